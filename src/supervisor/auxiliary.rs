//! Auxiliary processes: children of the supervisor that hold no slot and load no handler. Each is forked as a standby:
//! it says on its channel that it is ready, or why it cannot be, and serves from [`Command::Begin`] on. Until all are
//! ready a start is not announced and a reload not begun; one that cannot start keeps the server from starting, or the
//! reload from changing anything. Later ones that die are restarted with a growing delay.
//!
//! How many of each kind there are follows from the state of the server ([`Supervisor::settle_auxiliaries`]). A reload
//! starts new ones of the kinds that it changes beside the old ones, and an upgrade a whole set. Those that are not
//! needed any more are told to drain ([`Command::Drain`]): they accept nothing more and exit with their last
//! connection, at `drain_timeout` at the latest; an old server of an upgrade waits for them.
//!
//! To add a kind:
//! - a variant of [`Kind`], with its row in each of its methods and in the functions below;
//! - what it is given and runs, in `spawn::auxiliary`.
//!
//! Its code begins with [`stand_by`](crate::fleet::sockets::control::Channel::stand_by), and obeys `Drain`, `Stop`,
//! `Quit` and the end of the channel. Its confinement is chosen in `child`; what needs the rights of the supervisor (a
//! private key) is opened before that, there.

use std::io;
use std::time::Duration;

use nix::unistd::Pid;

use super::death::Cause;
use super::generation::Generation;
use super::policy::backoff::{Retry, Rule};
use super::policy::drain::Drain;
use super::processes::{EXIT, Kind, Processes, Role};
use super::{Flow, Supervisor, spawn};
use crate::clock;
use crate::exit::Exit;
use crate::fleet::sockets::control::Command;
use crate::fleet::sockets::gateway_queue::{self, Salt};
use crate::fleet::sockets::queue::SocketQueue;
use crate::time::Instant;

/// How many processes of a kind a generation has.
fn count(kind: Kind, generation: &Generation) -> usize {
    match kind {
        Kind::Metrics => usize::from(!generation.metrics.is_empty()),
        Kind::Gateway if generation.gateway_listeners().next().is_none() => 0,
        Kind::Gateway => generation.config.gateway.processes,
        Kind::Bus => usize::from(generation.bus.is_used()),
        Kind::Cgi => usize::from(generation.cgi.is_some()),
    }
}

/// Whether the processes of one generation cannot serve another.
fn is_changed(kind: Kind, old: &Generation, new: &Generation) -> bool {
    match kind {
        Kind::Metrics => true, // it reports the configuration and its handlers
        _ if old.is_changed_for_all(new) => true,
        Kind::Gateway => old.are_gateways_changed(new),
        Kind::Bus => new.bus.is_used() && old.bus_settings() != new.bus_settings(),
        Kind::Cgi => old.programs() != new.programs(),
    }
}

/// When one that has died is restarted.
fn rule(kind: Kind) -> Rule {
    const RESTART: Rule = Rule {
        free: 0,
        first: Duration::from_secs(1),
        longest: Duration::from_secs(30),
        forgiven: Duration::from_secs(30),
    };
    match kind {
        Kind::Metrics | Kind::Gateway | Kind::Cgi => RESTART,
        // Nothing that is published arrives without it.
        Kind::Bus => Rule { free: 3, first: Duration::from_millis(100), ..RESTART },
    }
}

/// One that is to be there.
struct Auxiliary {
    kind: Kind,
    /// Of the generation of a reload that is not committed.
    is_trial: bool,
    pid: Option<Pid>,
    is_ready: bool,
    /// Why it cannot start, in its own words.
    why: Option<String>,
    /// When the next one is due, if there is none.
    restart: Retry,
}

impl Auxiliary {
    fn new(kind: Kind, is_trial: bool) -> Self {
        Self { kind, is_trial, pid: None, is_ready: false, why: None, restart: Retry::default() }
    }

    fn failed(&mut self, now: Instant) {
        (self.pid, self.is_ready) = (None, false);
        self.restart.failed(&rule(self.kind), now);
    }

    /// It is not needed any more. One that relays connections leaves with its last one, the others by the deadline.
    fn retire(self, processes: &mut Processes, deadline: Instant) {
        let Some(pid) = self.pid else { return };
        processes.set_role(pid, Role::Leaving(self.kind));
        let _ = processes.command(pid, Command::Drain, None); // it is gone, or late
        let deadline = if self.kind == Kind::Gateway { Instant::NEVER } else { deadline };
        processes.get_mut(pid).into_iter().for_each(|process| process.set_deadline(deadline, EXIT));
    }
}

/// All that are to be there.
pub(super) struct Auxiliaries {
    all: Vec<Auxiliary>,
    /// The kinds that those on trial replace.
    replaces: Vec<Kind>,
    /// Why one on trial cannot start.
    refusal: Option<String>,
    /// While there are two servers, only the processes of one serve.
    is_serving: bool,
    pub gateways: Gateways,
}

/// What gateways share, with the workers and among themselves.
pub(super) struct Gateways {
    /// Where they leave connections.
    pub queue: SocketQueue,
    /// For the keys of their session tickets.
    pub salt: Salt,
}

impl Gateways {
    /// With the queue of the server that this one replaces, if that has left one.
    pub fn new(inherited: Option<SocketQueue>) -> io::Result<Self> {
        let queue = inherited.map_or_else(gateway_queue::create, Ok)?;
        let mut salt = [0; 32];
        rustix::rand::getrandom(&mut salt, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self { queue, salt })
    }
}

impl Auxiliaries {
    pub fn new(gateways: Gateways, is_serving: bool) -> Self {
        Self { all: Vec::new(), replaces: Vec::new(), refusal: None, is_serving, gateways }
    }

    fn of(&self, is_trial: bool) -> impl Iterator<Item = &Auxiliary> {
        self.all.iter().filter(move |auxiliary| auxiliary.is_trial == is_trial)
    }

    /// Whether all of the generation in force are ready.
    pub fn are_ready(&self) -> bool {
        self.of(false).all(|auxiliary| auxiliary.is_ready)
    }

    /// The process of this kind that serves, if there is one.
    pub fn serving(&self, kind: Kind) -> Option<Pid> {
        let auxiliary = self.of(false).find(|auxiliary| auxiliary.kind == kind && auxiliary.is_ready);
        auxiliary.filter(|_| self.is_serving).and_then(|auxiliary| auxiliary.pid)
    }

    /// When the next process is to be forked.
    pub fn due(&self) -> Option<Instant> {
        let missing = self.all.iter().filter(|auxiliary| auxiliary.pid.is_none());
        missing.map(|auxiliary| auxiliary.restart.not_before()).min()
    }

    /// So many of a kind are to be there. Those that are too many have until the deadline.
    fn settle(&mut self, kind: Kind, wanted: usize, processes: &mut Processes, deadline: Instant) {
        let present = self.of(false).filter(|auxiliary| auxiliary.kind == kind).count();
        self.all.extend((present..wanted).map(|_| Auxiliary::new(kind, false)));
        for _ in wanted..present {
            let index = self.all.iter().rposition(|auxiliary| auxiliary.kind == kind && !auxiliary.is_trial);
            index.into_iter().for_each(|index| self.all.remove(index).retire(processes, deadline));
        }
    }

    /// Begins to start those that a reload needs.
    pub fn try_out(&mut self, old: &Generation, new: &Generation) {
        self.refusal = None;
        self.replaces = Kind::ALL.into_iter().filter(|kind| is_changed(*kind, old, new)).collect();
        for kind in &self.replaces {
            self.all.extend((0..count(*kind, new)).map(|_| Auxiliary::new(*kind, true)));
        }
    }

    /// How the trial has gone, once that is known.
    pub fn trial(&mut self) -> Option<Result<(), String>> {
        match self.refusal.take() {
            Some(why) => Some(Err(why)),
            None => self.of(true).all(|auxiliary| auxiliary.is_ready).then_some(Ok(())),
        }
    }

    /// The reload is given up.
    pub fn abort_trial(&mut self, processes: &mut Processes) {
        let trial = self.all.extract_if(.., |auxiliary| auxiliary.is_trial);
        trial.filter_map(|auxiliary| auxiliary.pid).for_each(|pid| processes.dismiss(pid));
    }

    /// Those of the trial serve from now on; those that they replace have until the deadline.
    pub fn commit(&mut self, processes: &mut Processes, deadline: Instant) {
        let kinds = std::mem::take(&mut self.replaces);
        let is_replaced = |auxiliary: &mut Auxiliary| !auxiliary.is_trial && kinds.contains(&auxiliary.kind);
        let replaced: Vec<_> = self.all.extract_if(.., is_replaced).collect();
        self.all.iter_mut().for_each(|auxiliary| auxiliary.is_trial = false);
        self.serve(processes);
        replaced.into_iter().for_each(|auxiliary| auxiliary.retire(processes, deadline));
    }

    /// Those that are ready serve, and others as soon as they are.
    pub fn serve(&mut self, processes: &mut Processes) {
        self.is_serving = true;
        let ready = self.of(false).filter(|auxiliary| auxiliary.is_ready);
        ready.filter_map(|auxiliary| auxiliary.pid).for_each(|pid| begin(processes, pid));
    }

    fn by_pid(&mut self, pid: Pid) -> Option<&mut Auxiliary> {
        self.all.iter_mut().find(|auxiliary| auxiliary.pid == Some(pid))
    }

    /// The process has said how its start went.
    pub fn on_start(&mut self, pid: Pid, start: Result<(), String>, processes: &mut Processes) {
        let is_serving = self.is_serving;
        let Some(auxiliary) = self.by_pid(pid) else { return };
        match start {
            Err(why) => auxiliary.why = Some(why), // its end comes
            Ok(()) => {
                auxiliary.is_ready = true;
                processes.get_mut(pid).into_iter().for_each(|process| process.clear_deadline());
                if is_serving && !auxiliary.is_trial {
                    begin(processes, pid);
                }
            }
        }
    }

    /// The process has ended: why, and whether it was on trial; None if it is not one of these.
    fn ended(&mut self, pid: Pid, how: &str, now: Instant) -> Option<(String, bool)> {
        let auxiliary = self.by_pid(pid)?;
        let why = auxiliary.why.take().map_or_else(|| how.to_owned(), |why| format!("cannot start: {why}"));
        let why = format!("{}[{pid}] {why}", auxiliary.kind.name());
        auxiliary.failed(now);
        let is_trial = auxiliary.is_trial;
        if is_trial {
            self.refusal = Some(why.clone());
        }
        Some((why, is_trial))
    }
}

fn begin(processes: &Processes, pid: Pid) {
    let _ = processes.command(pid, Command::Begin, None); // it serves already, or is gone
}

impl Supervisor {
    /// Has as many of each kind be there as the server needs in its present state.
    pub(super) fn settle_auxiliaries(&mut self) {
        let is_gone = self.slots.exit().is_some() || self.upgrade.is_superseded();
        let deadline = self.drain_deadline(None);
        for kind in Kind::ALL {
            let is_wanted = match kind {
                _ if is_gone => false,
                Kind::Metrics => true, // they show how the workers stop
                Kind::Bus => true,     // handlers publish until their last connection has ended
                _ if self.slots.is_stopping() => false,
                Kind::Gateway => !matches!(self.drain, Drain::Closing { .. }),
                Kind::Cgi => true,
            };
            let wanted = if is_wanted { count(kind, &self.generation) } else { 0 };
            self.auxiliaries.settle(kind, wanted, &mut self.processes, deadline);
        }
    }

    /// Forks those that are due.
    pub(super) fn start_auxiliaries(&mut self) -> Flow {
        self.settle_auxiliaries();
        let now = clock::now();
        for index in 0..self.auxiliaries.all.len() {
            let Some(auxiliary) = self.auxiliaries.all.get_mut(index) else { break };
            let Auxiliary { kind, is_trial, .. } = *auxiliary;
            if auxiliary.pid.is_some() || auxiliary.restart.not_before() > now {
                continue;
            }
            let on_trial = self.rolling.on_trial().filter(|_| is_trial);
            let generation = on_trial.unwrap_or(&self.generation).clone();
            let forked = spawn::auxiliary(self, kind, &generation)?;
            let Some(auxiliary) = self.auxiliaries.all.get_mut(index) else { break };
            match forked {
                Ok(pid) => auxiliary.pid = Some(pid),
                Err(error) => {
                    let why = format!("{} cannot be forked: {error}", kind.name());
                    log::error!("{why}");
                    auxiliary.failed(now);
                    if is_trial {
                        self.auxiliaries.refusal = Some(why);
                    }
                }
            }
        }
        Flow::Continue(())
    }

    pub(super) fn auxiliary_ended(&mut self, pid: Pid, cause: Cause) {
        let Some((why, is_trial)) = self.auxiliaries.ended(pid, &cause.to_string(), clock::now()) else {
            return;
        };
        let is_start = !is_trial && !self.host.daemon.is_ready() && !self.slots.is_stopping();
        if !is_start {
            return log::error!("{why}");
        }
        log::error!(target: crate::log::CRITICAL, "{why}");
        let exit = match cause {
            Cause::Ended(code) if code == Exit::Config.code() => Exit::Config,
            Cause::Ended(code) if code == Exit::Bind.code() => Exit::Bind,
            _ => Exit::Start,
        };
        self.stop(exit, true);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fleet::sockets::control::Channel;
    use crate::supervisor::processes::Process;

    /// A pid that no process has.
    const NOBODY: Pid = Pid::from_raw(i32::MAX);

    /// One that was forked, its entry in the table, and its end of the channel.
    fn forked(is_trial: bool, is_serving: bool) -> (Auxiliaries, Processes, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        let mut processes = Processes::default();
        let role = Role::Auxiliary(Kind::Metrics);
        processes.insert(NOBODY, Process::new(role, None, 0, Some(ours)));
        let one = Auxiliary { pid: Some(NOBODY), ..Auxiliary::new(Kind::Metrics, is_trial) };
        let all = Auxiliaries {
            all: vec![one],
            replaces: vec![Kind::Metrics],
            ..Auxiliaries::new(Gateways::new(None).unwrap(), is_serving)
        };
        (all, processes, theirs)
    }

    fn has_begun(channel: &Channel) -> bool {
        matches!(channel.recv_command(), Ok(Some((Command::Begin, None))))
    }

    #[test]
    fn one_that_is_ready_begins_when_its_server_serves() {
        for is_serving in [true, false] {
            let (mut all, mut processes, channel) = forked(false, is_serving);
            assert!(!all.are_ready());
            all.on_start(NOBODY, Ok(()), &mut processes);
            assert_eq!((all.are_ready(), has_begun(&channel)), (true, is_serving));
            if !is_serving {
                all.serve(&mut processes);
                assert!(has_begun(&channel));
            }
        }
    }

    #[test]
    fn one_on_trial_begins_with_the_commit() {
        let (mut all, mut processes, channel) = forked(true, true);
        assert_eq!(all.trial(), None);
        all.on_start(NOBODY, Ok(()), &mut processes);
        assert_eq!((all.trial(), has_begun(&channel)), (Some(Ok(())), false));
        all.commit(&mut processes, Instant::NEVER);
        assert!(has_begun(&channel) && all.are_ready() && all.all.len() == 1);
    }

    #[test]
    fn one_on_trial_that_cannot_start_says_why_and_refuses_the_reload() {
        let (mut all, mut processes, _channel) = forked(true, true);
        all.on_start(NOBODY, Err("no key".to_owned()), &mut processes);
        assert_eq!(all.trial(), None, "its end comes");
        let why = format!("metrics[{NOBODY}] cannot start: no key");
        assert_eq!(all.ended(NOBODY, "ended", Instant::default()), Some((why.clone(), true)));
        assert_eq!(all.trial(), Some(Err(why)));
        all.abort_trial(&mut processes);
        assert_eq!(all.due(), None);
    }

    #[test]
    fn one_that_dies_is_due_again_later_each_time() {
        let (mut all, _, _channel) = forked(false, true);
        let second = Duration::from_secs(1);
        for seconds in [1, 2, 4] {
            let now = all.all[0].restart.not_before();
            assert_eq!(all.ended(NOBODY, "died", now), Some((format!("metrics[{NOBODY}] died"), false)));
            assert_eq!(all.due(), Some(now + seconds * second));
            all.all[0].pid = Some(NOBODY);
        }
    }

    #[test]
    fn as_many_are_there_as_are_wanted_and_the_rest_is_retired() {
        let (mut all, mut processes, channel) = forked(false, true);
        let end = Instant::from_nanos(7);
        all.settle(Kind::Metrics, 3, &mut processes, end);
        all.settle(Kind::Gateway, 1, &mut processes, end);
        assert_eq!((all.all.len(), all.due()), (4, Some(Instant::default())));
        all.settle(Kind::Metrics, 1, &mut processes, end);
        assert_eq!((all.all.len(), all.all[0].pid), (2, Some(NOBODY)), "the last ones go");
        all.settle(Kind::Metrics, 0, &mut processes, end);
        assert_eq!(processes.get(NOBODY).unwrap().role, Role::Leaving(Kind::Metrics));
        assert!(matches!(channel.recv_command(), Ok(Some((Command::Drain, None)))) && all.all.len() == 1);
    }
}
