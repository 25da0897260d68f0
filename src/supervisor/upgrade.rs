//! Upgrade: another executable takes over while this one serves. It is started with one end of a socket pair, over
//! which it gets the listening sockets; when its workers are ready it sends back where their inboxes are, and all
//! connections are handed over to them. What happens when something fails is in `policy::upgrade`.
//!
//! From old to new: [`Handed`]. From new to old: [`Answer`].

#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::SigSet;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{AccessFlags, ForkResult, Pid, access, execv, getpid};
use serde::{Deserialize, Serialize};

use super::bus::Bus;
use super::child::exit_child;
use super::generation::Sockets;
use super::policy::rolling_restart::{self, Step};
use super::policy::upgrade::{self as policy, Action, Event};
use super::processes::{GRACE, Process, READY, Role};
use super::spawn::fork_child;
use super::{Busy, Supervisor};
use crate::clock;
use crate::exit::Failure;
use crate::fleet::memory::scoreboard::{Place, START};
use crate::fleet::sockets::control::Channel;
use crate::fleet::sockets::gateway_queue::FORMAT as QUEUE_FORMAT;
use crate::fleet::sockets::handover::{self, Received};
use crate::fleet::sockets::inbox::FORMAT;
use crate::fleet::sockets::listener::{self, Listen, Listener};
use crate::fleet::sockets::queue::SocketQueue;
use crate::service::notify::Notify;

/// Names the descriptor that the old executable has left for the new one.
const VARIABLE: &str = "WSHD_UPGRADE";
/// The new executable has this long to become ready; longer than its workers have.
const TIMEOUT: Duration = Duration::from_secs(2 * START.as_secs());

/// How this program was started, and is started again.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The executable; by the path it was called by, so that a link may point to another one meanwhile.
    pub program: PathBuf,
    /// All arguments, the program's name first.
    pub args: Vec<OsString>,
}

impl Invocation {
    /// That of this process. To be made before the title is written over the arguments, and before the working
    /// directory changes.
    pub fn of_this_process() -> Self {
        let args: Vec<OsString> = std::env::args_os().collect();
        let called = args.first().map(PathBuf::from).filter(|program| program.components().count() > 1);
        let called = called.and_then(|program| std::path::absolute(program).ok());
        let program = called.or_else(|| std::env::current_exe().ok()).unwrap_or_default();
        Self { program, args }
    }
}

/// The new executable's end: to the one that it replaces.
#[derive(Debug)]
pub struct Predecessor(OwnedFd);

impl Predecessor {
    /// If this process was started to replace another one. To be called once, before any descriptor is opened or
    /// closed; handlers do not inherit the variable.
    pub fn from_environment() -> Option<Self> {
        let value = std::env::var(VARIABLE).ok()?;
        // SAFETY: there is one thread, which reads no variable meanwhile.
        unsafe { std::env::remove_var(VARIABLE) };
        let raw: RawFd = value.parse().ok().filter(|raw| *raw > 2)?;
        // SAFETY: the old executable has left this descriptor for us, and nobody else in this process knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
        Some(Self(fd))
    }

    /// The descriptor, which is not to be closed with the others.
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// What goes on: the listening sockets, where gateways leave connections, those of the old executable too, and
    /// where workers meet the bus.
    pub fn inherited(&self) -> io::Result<(Sockets, Option<SocketQueue>, Option<Bus>)> {
        setsockopt(&self.0, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
        let mut received = Received::default();
        while !received.take(self.0.as_fd())? {}
        let (Handed { listeners, queue, bus }, fds) = received.open().map_err(io::Error::other)?;
        let mut fds = fds.into_iter();
        let listen = |(asked, fd)| match asked {
            Some(asked) => Listener::inherited(fd, asked).map(Arc::new),
            None => listener::adopt(fd, "a socket that was passed to the old server")
                .map(Arc::new)
                .map_err(io::Error::other),
        };
        let listeners = listeners.into_iter().zip(fds.by_ref()).map(listen).collect::<io::Result<_>>()?;
        let mut next = || fds.next().ok_or(io::ErrorKind::UnexpectedEof);
        let ends = SocketQueue { tx: next()?, rx: next()? };
        let bus = bus.map(|pools| Bus::of_parts(pools, &mut fds).ok_or(io::ErrorKind::UnexpectedEof));
        // A queue of another form is drained by the old workers.
        Ok((listeners, (queue == QUEUE_FORMAT).then_some(ends), bus.transpose()?))
    }

    /// Has the old executable hand its connections over to these.
    pub fn take_over<'a>(&self, inboxes: impl Iterator<Item = &'a SocketQueue>) -> io::Result<()> {
        let txs: Vec<_> = inboxes.map(|inbox| inbox.tx.as_fd()).collect();
        handover::send(self.0.as_fd(), &Answer::Ready(FORMAT), &txs)
    }
}

/// What the old executable hands to the new one, followed by these descriptors: the listening sockets, the sending and
/// the receiving end of the queue of the gateways, the parts of the bus.
#[derive(Serialize, Deserialize)]
struct Handed {
    /// What the sockets were bound for; None: passed by the service manager.
    listeners: Vec<Option<Listen>>,
    /// The form of what is in the queue.
    queue: u32,
    /// The pools that meet the bus, if topics are used.
    bus: Option<Vec<String>>,
}

/// What comes back.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Answer {
    /// The new executable is ready: the form of entries, followed by the inboxes of the workers of the default pool.
    Ready(u32),
    /// It was not executed; why. Said by the child that was to become it.
    NotExecuted(String),
}

/// An upgrade from the side of the old executable, and from that of the new one.
pub(super) struct Upgrade {
    pub policy: policy::UpgradeState,
    /// One is to begin.
    pub is_wanted: bool,
    invocation: Invocation,
    /// The server that this one replaces, until it has got what it needs.
    pub predecessor: Option<Predecessor>,
    /// The same once it has what it needs, until it ends: it has the listening sockets, too.
    old_server: Option<Predecessor>,
    /// Inboxes of the workers of the executable that replaces this one, as far as connections can move there.
    txs: Vec<OwnedFd>,
}

impl Upgrade {
    pub fn new(invocation: Invocation, predecessor: Option<Predecessor>) -> Self {
        let policy = policy::UpgradeState::default();
        Self { policy, is_wanted: false, invocation, predecessor, old_server: None, txs: Vec::new() }
    }

    /// Whether another executable serves in the place of this one.
    pub fn is_superseded(&self) -> bool {
        self.policy == policy::UpgradeState::Serving
    }

    /// Where the end of the old server shows, while it hands connections over.
    pub fn interest(&self) -> Option<BorrowedFd<'_>> {
        self.old_server.as_ref().map(|old| old.0.as_fd())
    }

    /// Where a worker hands its connections over to; the new workers take turns. None if connections cannot move there.
    pub fn tx(&self, slot: usize) -> Option<BorrowedFd<'_>> {
        let index = slot.checked_rem(self.txs.len())?;
        self.txs.get(index).map(AsFd::as_fd)
    }
}

/// In the child: becomes the other program. Returns only when that fails: why.
fn replace_image(program: &CString, args: &[CString], fd: BorrowedFd<'_>, notify: &Notify) -> String {
    // SAFETY: the child has one thread, which reads no variable meanwhile.
    unsafe {
        std::env::set_var(VARIABLE, fd.as_raw_fd().to_string());
        notify.variables.iter().for_each(|(name, value)| std::env::set_var(name, value));
    }
    let prepared =
        SigSet::empty().thread_set_mask().and_then(|()| fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())));
    match prepared.and_then(|_| execv(program, args)) {
        Err(Errno::ENOENT) if access(program.as_c_str(), AccessFlags::F_OK).is_ok() => {
            "cannot be started: its interpreter does not exist".to_owned()
        }
        Err(error) => not_started(&error.into()),
        Ok(never) => match never {},
    }
}

fn not_started(error: &io::Error) -> String {
    format!("cannot be started: {error}")
}

impl Supervisor {
    /// Begins the upgrade that is wanted, as soon as the server is ready.
    pub(super) fn request_upgrade(&mut self) {
        if !self.upgrade.is_wanted || !(self.host.daemon.is_ready() || self.slots.is_stopping()) {
            return;
        }
        self.upgrade.is_wanted = false;
        let why_not = match getpid().as_raw() {
            1 => Some("this is process 1, and the container would stop with it: start a new container"),
            _ => self.busy(&[Busy::Upgrading]),
        };
        self.on_upgrade(Event::Requested(why_not));
    }

    /// What the new executable says. Its channel stays open as long as it lives: it waits there for this one to end.
    pub(super) fn read_successor(&mut self, pid: Pid) {
        while let Some(process) = self.processes.get_mut(pid)
            && let Some(channel) = &process.channel
        {
            match process.result.take(channel.as_fd()) {
                Ok(false) => {}
                Ok(true) => {
                    let event = match std::mem::take(&mut process.result).open() {
                        Ok((Answer::NotExecuted(why), _)) => Event::Cancel(why),
                        Ok((Answer::Ready(FORMAT), txs)) => {
                            self.upgrade.txs = txs;
                            Event::Ready
                        }
                        // Another form of entries: connections cannot move there.
                        _ => Event::Ready,
                    };
                    self.on_upgrade(event);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Once, if it has ended without reading all: what it has sent follows.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(_) => {
                    process.channel = None;
                    if self.upgrade.policy.is_pending() {
                        let to = "exit after it closed its channel before it was ready";
                        process.hurry(clock::now() + GRACE, to);
                    }
                }
            }
        }
    }

    pub(super) fn on_upgrade(&mut self, event: Event) {
        for action in self.upgrade.policy.on(event) {
            match action {
                Action::Start => match self.start_successor() {
                    Ok(pid) => {
                        log::info!(
                            "upgrade: {}[{pid}] is starting",
                            self.upgrade.invocation.program.display()
                        );
                    }
                    Err(error) => self.on_upgrade(Event::Ended(not_started(&error))),
                },
                // A request that waits for the upgrade under way is answered when that ends.
                Action::Refuse(why) if self.upgrade.policy.is_under_way() => {
                    log::error!("upgrade: refused: {why}");
                }
                Action::Refuse(why) => self.upgrade_done(Err(format!("upgrade: refused: {why}"))),
                Action::Fail(why) => {
                    let program = self.upgrade.invocation.program.display();
                    let why = format!("upgrade: failed, and this executable serves on: {program}: {why}");
                    self.upgrade_done(Err(why));
                }
                Action::End => {
                    let successor = self.processes.in_role(Role::Successor).next();
                    successor.into_iter().for_each(|pid| self.processes.terminate(pid, clock::now()));
                }
                Action::HandOver => self.hand_over(),
                Action::TakeBack(how) if self.slots.is_stopping() => {
                    log::error!("upgrade: the new executable {how} while this one stops");
                }
                Action::TakeBack(how) => self.take_back(&how),
            }
        }
        self.note_sharing();
    }

    /// Whether another server has the listening sockets, too, or may have to take them back.
    fn note_sharing(&self) {
        let Upgrade { policy, predecessor, old_server, .. } = &self.upgrade;
        let has_new_server = policy.is_pending() || self.upgrade.is_superseded();
        let are_shared = has_new_server || predecessor.is_some() || old_server.is_some();
        self.shared.scoreboard.share_sockets(are_shared);
        if self.slots.is_stopping() {
            self.refuse_connections();
        }
    }

    fn start_successor(&mut self) -> io::Result<Pid> {
        let text = |text: &std::ffi::OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
        let program = text(self.upgrade.invocation.program.as_os_str())?;
        let args =
            self.upgrade.invocation.args.iter().map(|arg| text(arg)).collect::<io::Result<Vec<CString>>>()?;
        let (ours, theirs) = Channel::pair()?;
        fcntl(&theirs, FcntlArg::F_SETFL(OFlag::empty()))?; // it may wait for this one
        let listeners: Vec<_> = self.generation.sockets().chain(self.host.control.listener()).collect();
        let queue = &self.auxiliaries.gateways.queue;
        let (bus, parts) = self.generation.bus.parts().unzip();
        let asked = listeners.iter().map(|listener| listener.asked().cloned()).collect();
        let handed = Handed { listeners: asked, queue: QUEUE_FORMAT, bus };
        let mut fds: Vec<_> = listeners.iter().map(|listener| listener.as_fd()).collect();
        fds.extend([queue.tx.as_fd(), queue.rx.as_fd()]);
        fds.extend(parts.into_iter().flatten());
        handover::send(ours.as_fd(), &handed, &fds)?;
        match fork_child()? {
            ForkResult::Parent { child } => {
                let mut process = Process::new(Role::Successor, None, 0, Some(ours));
                process.set_deadline(clock::now() + TIMEOUT, READY);
                self.processes.insert(child, process);
                self.upgrade.txs.clear();
                Ok(child)
            }
            ForkResult::Child => {
                let why = replace_image(&program, &args, theirs.as_fd(), &self.host.notify);
                let _ = handover::send(theirs.as_fd(), &Answer::NotExecuted(why), &[]); // else the status tells
                exit_child(127)
            }
        }
    }

    /// The new executable serves: connections go there.
    fn hand_over(&mut self) {
        let successor = self.processes.in_role(Role::Successor).next();
        if let Some((pid, process)) = successor.and_then(|pid| Some((pid, self.processes.get_mut(pid)?))) {
            process.clear_deadline();
            self.host.notify.main_pid(pid);
        }
        if self.upgrade.txs.is_empty() {
            log::warn!(
                "upgrade: the new executable cannot take up connections; they are closed over drain_timeout"
            );
        }
        self.abort_rolling("another executable takes over");
        for (_, slot) in self.all_workers() {
            let step = Step { start: None, retire: Some(slot) };
            self.rolling.policy.on(rolling_restart::Event::Step(step));
        }
        self.upgrade_done(Ok("upgrade: the new executable serves, connections are handed over".to_owned()));
    }

    /// The new executable is gone while connections are handed over to it: this one serves again.
    fn take_back(&mut self, how: &str) {
        log::error!(
            "upgrade: the new executable {how} after it had taken over; this executable serves again"
        );
        // The one that has been told to leave will; those that were to follow stay.
        let leaves = |slot: usize| {
            let process = self.processes.holder(slot).and_then(|pid| self.processes.get(pid));
            process.is_some_and(|process| process.is_retiring)
        };
        let (leaving, staying): (Vec<_>, Vec<_>) =
            self.all_workers().into_iter().partition(|(_, slot)| leaves(*slot));
        self.abort_rolling("the new executable is gone");
        self.upgrade.txs.clear();
        self.host.notify.main_pid(Pid::this());
        let places: Vec<Place> = staying.into_iter().map(|(place, _)| place).collect();
        for (pool, settings) in (0_u16..).zip(&self.generation.config.clone().pools) {
            let missing = (0..settings.workers as u16).map(|number| Place { pool, number });
            missing.filter(|place| !places.contains(place)).for_each(|place| self.want_worker(place));
        }
        // What they have goes to those that start here.
        let leaving = leaving.into_iter().filter_map(|(_, slot)| self.processes.holder(slot));
        let leaving: Vec<Pid> = leaving.chain(self.processes.in_role(Role::Draining)).collect();
        for pid in leaving {
            let slot = self.processes.get(pid).and_then(|process| process.slot);
            if let Some((slot, heir)) = slot.and_then(|slot| Some((slot, self.heir_of(slot)?))) {
                self.tell_to_hand_over(pid, slot, heir);
            }
        }
    }

    /// The other executable has ended, and with it what it has put in place of the pid file.
    pub(super) fn successor_ended(&mut self, how: String) {
        if let Err(Failure(_, why)) = self.host.daemon.rewrite_pid_file() {
            log::error!("{why}");
        }
        self.on_upgrade(Event::Ended(how));
    }

    fn upgrade_done(&mut self, result: Result<String, String>) {
        match &result {
            Ok(done) => log::info!("{done}"),
            Err(why) => log::error!("{why}"),
        }
        self.host.control.upgrade_ends(&result);
    }

    /// All workers are ready: the old executable, if there is one, can hand its connections over.
    pub(super) fn take_over(&mut self) {
        let Some(predecessor) = self.upgrade.predecessor.take() else { return };
        self.auxiliaries.serve(&mut self.processes);
        let workers = self.all_workers().into_iter().filter(|(place, _)| place.pool == 0);
        let inboxes = workers.filter_map(|(_, slot)| self.processes.inbox(slot));
        if let Err(error) = predecessor.take_over(inboxes) {
            log::error!("upgrade: cannot reach the old executable: {error}");
        }
        // It sends nothing more, and its end is waited for in the loop.
        match fcntl(&predecessor.0, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)) {
            Ok(_) => self.upgrade.old_server = Some(predecessor),
            Err(error) => log::error!("upgrade: the channel to the old executable: {error}"),
        }
        self.note_sharing();
    }

    /// Until the old server has ended, it may have to take the listening sockets back: they are not shut down.
    pub(super) fn watch_old_server(&mut self) {
        let has_ended = |old: &Predecessor| {
            let next = Received::default().take(old.0.as_fd());
            next.is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
        };
        if self.upgrade.old_server.take_if(|old| has_ended(old)).is_some() {
            self.note_sharing();
        }
    }

    /// New connections are refused from now on, unless another executable has the sockets, too.
    pub(super) fn refuse_connections(&self) {
        if !self.shared.scoreboard.are_sockets_shared() {
            self.generation.listeners.iter().for_each(|listener| listener.shut_down());
        }
    }
}
