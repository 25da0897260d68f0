//! The process table: each child of the supervisor by pid, with what it is for, the slot it is in, its channel, and
//! until when it has to do what it was told. A late process gets SIGTERM and a second later SIGKILL, whatever its role.
//!
//! Also the slots' inboxes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use strum::IntoStaticStr;

use super::policy::liveness::Pulse;
use super::relay::LineSource;
use crate::fleet::sockets::control::{Channel, Command};
use crate::fleet::sockets::handover::Received;
use crate::fleet::sockets::inbox;
use crate::fleet::sockets::queue::SocketQueue;
use crate::time::{Instant, Rate};

/// What the log says that a late process did not do: it was told to exit.
pub const EXIT: &str = "exit in time";
/// The same of one that starts.
pub const READY: &str = "become ready in time";
/// From SIGTERM to SIGKILL.
pub const GRACE: Duration = Duration::from_secs(1);

/// Reports of a process in a second: far more than there ever are, since an operator may have each of many connections
/// closed at once, and so few that reading them takes no time. The code of a handler can write into its worker's
/// channel.
const REPORTS: u64 = 20_000;

/// What the supervisor would have to wait for if it did it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Reads the configuration for a reload, finds its handlers, binds its sockets and opens its log.
    Reload,
    /// Renames files of the log, and opens them.
    OpenLogs,
    /// Looks at the files that gateways read until they have changed.
    WatchCertificates,
    /// Changes files, and hands nothing back; what the process is called.
    Tidy(&'static str),
}

impl Errand {
    pub fn name(self) -> &'static str {
        match self {
            Errand::Reload => "preparing the reload",
            Errand::OpenLogs => "opening the log",
            Errand::WatchCertificates => "watching the certificates",
            Errand::Tidy(what) => what,
        }
    }
}

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds its slot: serves there, or will as soon as it has started.
    Worker,
    /// Holds its slot, and serves one connection there. Forked by the worker of its pool with this pid.
    PerConnection(Pid),
    /// Started beside the worker that it is to replace; waits for the command to begin.
    Standby,
    /// Hands its connections over, or waits until they end; holds its slot no more.
    Draining,
    /// Crashes, and sends its connections to the inbox of its slot, which it holds no more.
    Crashed,
    /// Of the supervisor's own; holds no slot.
    Auxiliary(Kind),
    /// The same after it was replaced or told to leave: exits with its last connection.
    Leaving(Kind),
    /// Does one thing that may wait for a disk or a name server, and exits.
    Errand(Errand),
    /// The other executable of an upgrade.
    Successor,
    /// Was killed because it is not needed.
    Dismissed,
}

/// What an auxiliary process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Kind {
    /// Serves metrics over HTTP.
    Metrics,
    /// Ends TLS and HTTP/2.
    Gateway,
    /// Carries published messages between workers.
    Bus,
    /// Runs programs for requests.
    Cgi,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Metrics, Kind::Gateway, Kind::Bus, Kind::Cgi];

    /// Its name in the log and in `ps`.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A child of the supervisor, from fork until it is reaped.
#[derive(Debug)]
pub struct Process {
    pub role: Role,
    /// Where it serves, or did.
    pub slot: Option<usize>,
    /// Of its slot's record, when it was forked: what the record says is about this process while they are the same.
    pub generation: u32,
    /// None: it has none, or its end is closed.
    pub channel: Option<Channel>,
    /// Its pool is a boundary: it has no file of the log, and must not get one.
    pub is_walled: bool,
    /// Where its lines of the log come from then, and those of the processes that it has forked.
    pub log: Option<LineSource>,
    pub pulse: Pulse,
    /// Pings that an auxiliary process has answered.
    pub answered: u64,
    /// How much it may report.
    pub reports: Rate,
    /// It was told to hand its connections over.
    pub is_retiring: bool,
    /// Of a worker: numbers of the handlers that it was started without.
    pub skipped: Vec<u16>,
    /// What an errand, or another executable, has handed back.
    pub result: Received,
    /// When it gets the next signal, unless it does this before.
    deadline: Instant,
    to: &'static str,
    next: Signal,
}

impl Process {
    pub fn new(role: Role, slot: Option<usize>, generation: u32, channel: Option<Channel>) -> Self {
        let (is_walled, log, pulse, answered, is_retiring, skipped, result) = Default::default();
        Self {
            role,
            slot,
            generation,
            channel,
            is_walled,
            log,
            pulse,
            answered,
            reports: Rate::new(REPORTS, Duration::from_secs(1)),
            is_retiring,
            skipped,
            result,
            deadline: Instant::NEVER,
            to: "",
            next: Signal::SIGTERM,
        }
    }

    /// Until when it has to do something; replaces what was said before, unless it is late already.
    pub fn set_deadline(&mut self, deadline: Instant, to: &'static str) {
        if !self.is_late() {
            (self.deadline, self.to) = (deadline, to);
        }
    }

    /// It has done what it had to.
    pub fn clear_deadline(&mut self) {
        self.set_deadline(Instant::NEVER, "");
    }

    /// The same as [`Process::set_deadline`], if it had more time.
    pub fn hurry(&mut self, deadline: Instant, to: &'static str) {
        if deadline < self.deadline {
            self.set_deadline(deadline, to);
        }
    }

    /// Until when it has to exit, without another SIGTERM.
    pub fn kill_at(&mut self, deadline: Instant) {
        self.set_deadline(deadline, EXIT);
        self.next = Signal::SIGKILL;
    }

    /// Whether it has all the time that it wants, and has never been late.
    pub fn has_no_deadline(&self) -> bool {
        self.deadline == Instant::NEVER && !self.is_late()
    }

    /// Whether it has been late, and got a signal for that.
    pub fn is_late(&self) -> bool {
        self.next != Signal::SIGTERM
    }
}

/// All children, and all slots.
#[derive(Default)]
pub struct Processes {
    table: BTreeMap<Pid, Process>,
    /// By slot: where connections arrive from other processes.
    inboxes: Vec<SocketQueue>,
}

impl Processes {
    /// One more slot; its number.
    pub fn add_slot(&mut self) -> io::Result<usize> {
        self.inboxes.push(inbox::create()?);
        Ok(self.inboxes.len() - 1)
    }

    /// A new inbox for a slot: who has an end of the old one has nothing to do with it any more.
    pub fn renew_inbox(&mut self, slot: usize) -> io::Result<()> {
        *self.inboxes.get_mut(slot).ok_or(io::ErrorKind::NotFound)? = inbox::create()?;
        Ok(())
    }

    pub fn slots(&self) -> usize {
        self.inboxes.len()
    }

    pub fn inbox(&self, slot: usize) -> Option<&SocketQueue> {
        self.inboxes.get(slot)
    }

    /// Whether a connection waits in the inbox of a slot.
    pub fn has_mail(&self, slot: usize) -> bool {
        self.inbox(slot).is_some_and(SocketQueue::has_mail)
    }

    /// The inboxes of all slots. In a forked child, which leaves the table behind.
    pub fn take_inboxes(&mut self) -> Vec<SocketQueue> {
        std::mem::take(&mut self.inboxes)
    }

    /// A child was forked.
    pub fn insert(&mut self, pid: Pid, process: Process) {
        self.table.insert(pid, process);
    }

    /// A child was reaped.
    pub fn remove(&mut self, pid: Pid) -> Option<Process> {
        self.table.remove(&pid)
    }

    pub fn set_role(&mut self, pid: Pid, role: Role) {
        self.table.get_mut(&pid).into_iter().for_each(|process| process.role = role);
    }

    pub fn get(&self, pid: Pid) -> Option<&Process> {
        self.table.get(&pid)
    }

    pub fn get_mut(&mut self, pid: Pid) -> Option<&mut Process> {
        self.table.get_mut(&pid)
    }

    /// Those that hold a slot, each with its own.
    pub fn holders(&self) -> impl Iterator<Item = (usize, Pid)> {
        let is_holder = |process: &Process| matches!(process.role, Role::Worker | Role::PerConnection(_));
        let holders = self.iter().filter(move |(_, process)| is_holder(process));
        holders.filter_map(|(pid, process)| Some((process.slot?, pid)))
    }

    pub fn holder(&self, slot: usize) -> Option<Pid> {
        self.holders().find(|(held, _)| *held == slot).map(|(_, pid)| pid)
    }

    /// Whether any process is, or was, in this slot and has not been reaped.
    pub fn is_in_use(&self, slot: usize) -> bool {
        self.table.values().any(|process| process.slot == Some(slot))
    }

    pub fn iter(&self) -> impl Iterator<Item = (Pid, &Process)> {
        self.table.iter().map(|(pid, process)| (*pid, process))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Pid, &mut Process)> {
        self.table.iter_mut().map(|(pid, process)| (*pid, process))
    }

    pub fn in_role(&self, role: Role) -> impl Iterator<Item = Pid> {
        self.table.iter().filter(move |(_, process)| process.role == role).map(|(pid, _)| *pid)
    }

    /// Pids of all that can be told something.
    pub fn with_channel(&self) -> Vec<Pid> {
        let listens = |process: &Process| {
            process.channel.is_some() && !matches!(process.role, Role::Errand(_) | Role::Successor)
        };
        self.iter().filter(|(_, process)| listens(process)).map(|(pid, _)| pid).collect()
    }

    /// Sends a command, perhaps with a descriptor. A process that cannot be told is gone, or will be killed.
    pub fn command(&self, pid: Pid, command: Command, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let channel = self.table.get(&pid).and_then(|process| process.channel.as_ref());
        let channel = channel.ok_or(io::ErrorKind::BrokenPipe)?;
        channel.send_command_with(command, fd.as_slice())
    }

    /// Kills a process that is not needed.
    pub fn dismiss(&mut self, pid: Pid) {
        self.set_role(pid, Role::Dismissed);
        self.signal(pid, Signal::SIGKILL);
    }

    /// Ends a process: SIGTERM now, SIGKILL after a grace.
    pub fn terminate(&mut self, pid: Pid, now: Instant) {
        if let Some(process) = self.table.get_mut(&pid) {
            process.kill_at(now + GRACE);
            self.signal(pid, Signal::SIGTERM);
        }
    }

    /// Only to what is in the table: not reaped yet, so the pid is still its own.
    fn signal(&self, pid: Pid, signal: Signal) {
        if self.table.contains_key(&pid) {
            let _ = kill(pid, signal);
        }
    }

    /// When [`Processes::late`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.table.values().map(|process| process.deadline).filter(|deadline| !deadline.is_never()).min()
    }

    /// Signals those that are late, each at most twice: what each did not do, and the signal.
    pub fn late(&mut self, now: Instant) -> Vec<(Pid, &'static str, Signal)> {
        let mut late = Vec::new();
        for (pid, process) in self.table.iter_mut().filter(|(_, process)| process.deadline <= now) {
            late.push((*pid, process.to, process.next));
            process.deadline = if process.is_late() { Instant::NEVER } else { now + GRACE };
            (process.to, process.next) = (EXIT, Signal::SIGKILL);
        }
        late.iter().for_each(|(pid, _, signal)| self.signal(*pid, *signal));
        late
    }
}

/// Whether it is a child of this process, or was one and has not been reaped.
pub fn is_ours(pid: i32) -> bool {
    let flags = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let pid = Some(pid).filter(|pid| *pid > 0).and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| waitid(WaitId::Pid(pid), flags).is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A pid that no process has.
    const NOBODY: Pid = Pid::from_raw(i32::MAX);
    const OTHER: Pid = Pid::from_raw(i32::MAX - 1);

    fn at(second: u32) -> Instant {
        Instant::default() + second * SECOND
    }

    fn worker(slot: usize) -> Process {
        Process::new(Role::Worker, Some(slot), 1, None)
    }

    #[test]
    fn who_is_late_gets_sigterm_then_sigkill_and_its_deadline_is_over() {
        for role in [
            Role::Worker,
            Role::Draining,
            Role::Crashed,
            Role::Standby,
            Role::Auxiliary(Kind::Metrics),
            Role::Successor,
        ] {
            let mut processes = Processes::default();
            processes.insert(NOBODY, Process::new(role, None, 0, None));
            assert_eq!(processes.deadline(), None);
            processes.get_mut(NOBODY).unwrap().set_deadline(at(5), EXIT);
            processes.get_mut(NOBODY).unwrap().hurry(at(7), EXIT);
            let signals = |processes: &mut Processes, second| {
                processes.late(at(second)).into_iter().map(|(.., signal)| signal).collect::<Vec<_>>()
            };
            assert_eq!(signals(&mut processes, 4), []);
            assert_eq!(signals(&mut processes, 5), [Signal::SIGTERM]);
            assert_eq!(processes.deadline(), Some(at(6)));
            processes.get_mut(NOBODY).unwrap().set_deadline(at(90), EXIT); // too late
            assert_eq!(signals(&mut processes, 6), [Signal::SIGKILL]);
            assert_eq!((processes.deadline(), signals(&mut processes, 100)), (None, vec![]), "{role:?}");
        }
    }

    #[test]
    fn one_process_holds_a_slot() {
        let mut processes = Processes::default();
        assert_eq!(processes.add_slot().unwrap(), 0);
        processes.insert(NOBODY, worker(0));
        assert_eq!(processes.holder(0), Some(NOBODY));
        processes.set_role(NOBODY, Role::Crashed);
        assert_eq!((processes.holder(0), processes.is_in_use(0)), (None, true));
        processes.insert(OTHER, worker(0));
        assert!(processes.remove(NOBODY).is_some());
        assert_eq!(processes.holder(0), Some(OTHER), "the end of the other one changes nothing");
        assert!(processes.remove(OTHER).is_some());
        assert_eq!((processes.holder(0), processes.is_in_use(0), processes.iter().count()), (None, false, 0));
    }

    #[test]
    fn a_standby_holds_its_slot_from_when_it_begins() {
        let mut processes = Processes::default();
        processes.add_slot().unwrap();
        processes.insert(NOBODY, Process::new(Role::Standby, Some(0), 1, None));
        assert_eq!(processes.holder(0), None);
        processes.set_role(NOBODY, Role::Worker);
        assert_eq!(processes.holder(0), Some(NOBODY));
    }

    #[test]
    fn only_own_children_are_taken_for_children() {
        for pid in [0, -1, 1, std::process::id() as i32, i32::MAX] {
            assert!(!is_ours(pid), "{pid}");
        }
    }
}
