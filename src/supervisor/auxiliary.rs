//! Auxiliary processes: children of the supervisor that hold no slot and load no handler. Each is forked as a standby: it
//! says on its channel that it is ready, or why it cannot be, and serves from [`Command::Begin`] on. Until all are ready a
//! start is not announced and a reload not begun; one that cannot start keeps the server from starting, or the reload from
//! changing anything. Later ones that die are restarted with a growing delay.
//!
//! A reload starts new ones of the kinds that it changes beside the old ones, and an upgrade a whole set. Those that are
//! replaced are told to drain ([`Command::Drain`]): they accept nothing more and exit with their last connection, at
//! `drain_timeout` at the latest; an old server of an upgrade waits for them.
//!
//! To add a kind:
//! - a variant of [`Kind`], with its row in each method below;
//! - a `Start`, as `metrics::Start`: what the process is given; a variant of `child::Auxiliary` and a line in its `run`;
//! - a line in `spawn::auxiliary`, which fills it in from the generation.
//!
//! Its code sends [`Start::Ready`], waits for `Begin`, and obeys `Drain`, `Stop`, `Quit` and the end of the channel. One
//! that takes commands also gets `Tx` (the inbox of a new slot) and `Log`. Its confinement is chosen in `child`; what needs
//! the rights of the supervisor (a private key) is opened before that, there.

use std::time::Duration;

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::generation::Generation;
use super::policy::backoff::{Backoff, Rule};
use super::policy::slots::Event;
use super::processes::{Processes, Role};
use super::{Flow, Supervisor, spawn};
use crate::clock;
use crate::exit::Exit;
use crate::fleet::control::{Command, Start};
use crate::time::Instant;

/// What an auxiliary process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    const ALL: [Kind; 4] = [Kind::Metrics, Kind::Gateway, Kind::Bus, Kind::Cgi];

    /// Its name in the log and in `ps`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Metrics => "metrics",
            Kind::Gateway => "gateway",
            Kind::Bus => "bus",
            Kind::Cgi => "cgi",
        }
    }

    /// How many processes a generation has.
    fn count(self, generation: &Generation) -> usize {
        match self {
            Kind::Metrics => usize::from(!generation.metrics.is_empty()),
            Kind::Gateway if generation.gateway_listeners().next().is_none() => 0,
            Kind::Gateway => generation.config.gateway.processes,
            Kind::Bus => usize::from(generation.bus.is_used()),
            Kind::Cgi => usize::from(generation.cgi.is_some()),
        }
    }

    /// Whether the processes of one generation cannot serve another.
    fn is_changed(self, old: &Generation, new: &Generation) -> bool {
        match self {
            Kind::Metrics => true, // it tells of the configuration and its handlers
            Kind::Gateway => old.are_gateways_changed(new),
            Kind::Bus => new.bus.is_used() && old.bus_settings() != new.bus_settings(),
            Kind::Cgi => old.programs() != new.programs(),
        }
    }

    /// Whether it reads commands after `Begin`. One that does not has nothing to lose: it is killed when it is not needed,
    /// and replaced when it would have to be told something.
    pub fn takes_commands(self) -> bool {
        match self {
            Kind::Metrics => false,
            Kind::Gateway | Kind::Bus | Kind::Cgi => true,
        }
    }

    /// When one that has died is restarted.
    fn restart(self) -> Rule {
        match self {
            Kind::Metrics | Kind::Gateway | Kind::Cgi => RESTART,
            // Nothing that is published arrives without it.
            Kind::Bus => Rule { free: 3, first: Duration::from_millis(100), ..RESTART },
        }
    }
}

impl Kind {
    /// Whether one that is replaced may take until its last connection has ended.
    fn relays(self) -> bool {
        match self {
            Kind::Metrics | Kind::Bus | Kind::Cgi => false,
            Kind::Gateway => true,
        }
    }
}

const RESTART: Rule = Rule {
    free: 0,
    first: Duration::from_secs(1),
    longest: Duration::from_secs(30),
    forgiven: Duration::from_secs(30),
};

/// One that is to be there.
struct Auxiliary {
    kind: Kind,
    pid: Option<Pid>,
    is_ready: bool,
    /// Why it cannot start, in its own words.
    why: Option<String>,
    /// When it was forked last.
    since: Instant,
    /// When the next one is due, if there is none.
    at: Instant,
    restart: Backoff,
}

impl Auxiliary {
    fn new(kind: Kind) -> Self {
        let (since, at) = Default::default();
        Self { kind, pid: None, is_ready: false, why: None, since, at, restart: Backoff::new(kind.restart()) }
    }

    fn failed(&mut self, now: Instant) {
        (self.pid, self.is_ready) = (None, false);
        self.at = now + self.restart.failed(now.since(self.since));
    }

    /// Others are in its place.
    fn replaced(self, processes: &mut Processes, deadline: Instant) {
        let deadline = if self.kind.relays() { Instant::NEVER } else { deadline };
        self.retire(processes, deadline);
    }

    /// It is not needed any more.
    fn retire(self, processes: &mut Processes, deadline: Instant) {
        let Some(pid) = self.pid else { return };
        if !self.kind.takes_commands() {
            return processes.dismiss(pid);
        }
        processes.set_role(pid, Role::Leaving(self.kind));
        let _ = processes.command(pid, Command::Drain, None); // it is gone, or late
        processes.get_mut(pid).into_iter().for_each(|process| process.set_deadline(deadline));
    }
}

/// All that are to be there.
pub(super) struct Auxiliaries {
    /// Of the generation in force.
    current: Vec<Auxiliary>,
    /// Of the generation of a reload, until it is committed.
    trial: Vec<Auxiliary>,
    /// The kinds that the trial replaces.
    replaces: Vec<Kind>,
    /// Why one of the trial cannot start.
    refusal: Option<String>,
    /// While there are two servers, only the processes of one serve.
    is_serving: bool,
}

impl Auxiliaries {
    pub fn new(generation: &Generation, is_serving: bool) -> Self {
        let current = wanted(&Kind::ALL, generation);
        Self { current, trial: Vec::new(), replaces: Vec::new(), refusal: None, is_serving }
    }

    /// Whether all of the generation in force are ready.
    pub fn are_ready(&self) -> bool {
        self.current.iter().all(|auxiliary| auxiliary.is_ready)
    }

    /// The process of this kind that serves, if there is one.
    pub fn serving(&self, kind: Kind) -> Option<Pid> {
        let auxiliary = self.current.iter().find(|auxiliary| auxiliary.kind == kind && auxiliary.is_ready);
        auxiliary.filter(|_| self.is_serving).and_then(|auxiliary| auxiliary.pid)
    }

    /// When the next process is to be forked.
    pub fn due(&self) -> Option<Instant> {
        let missing = self.current.iter().chain(&self.trial).filter(|auxiliary| auxiliary.pid.is_none());
        missing.map(|auxiliary| auxiliary.at).min()
    }

    /// Begins to start those that a reload needs.
    pub fn try_out(&mut self, old: &Generation, new: &Generation) {
        self.replaces = Kind::ALL.into_iter().filter(|kind| kind.is_changed(old, new)).collect();
        (self.trial, self.refusal) = (wanted(&self.replaces, new), None);
    }

    /// How the trial has gone, once that is known.
    pub fn trial(&mut self) -> Option<Result<(), String>> {
        match self.refusal.take() {
            Some(why) => Some(Err(why)),
            None => self.trial.iter().all(|auxiliary| auxiliary.is_ready).then_some(Ok(())),
        }
    }

    /// The reload is given up.
    pub fn abort_trial(&mut self, processes: &mut Processes) {
        self.trial.drain(..).filter_map(|auxiliary| auxiliary.pid).for_each(|pid| processes.dismiss(pid));
    }

    /// Those of the trial serve from now on; those that they replace have until the deadline.
    pub fn commit(&mut self, processes: &mut Processes, deadline: Instant) {
        let kinds = std::mem::take(&mut self.replaces);
        let is_replaced = |auxiliary: &mut Auxiliary| kinds.contains(&auxiliary.kind);
        let replaced: Vec<_> = self.current.extract_if(.., is_replaced).collect();
        self.current.append(&mut self.trial);
        self.serve(processes);
        replaced.into_iter().for_each(|auxiliary| auxiliary.replaced(processes, deadline));
    }

    /// Those that are ready serve, and others as soon as they are.
    pub fn serve(&mut self, processes: &mut Processes) {
        self.is_serving = true;
        let ready = self.current.iter().filter(|auxiliary| auxiliary.is_ready);
        ready.filter_map(|auxiliary| auxiliary.pid).for_each(|pid| begin(processes, pid));
    }

    /// Those that take no commands are replaced: what they were forked with has changed.
    pub fn renew(&mut self, processes: &mut Processes) {
        for auxiliary in self.current.iter_mut().filter(|auxiliary| !auxiliary.kind.takes_commands()) {
            auxiliary.is_ready = false;
            auxiliary.pid.take().into_iter().for_each(|pid| processes.dismiss(pid));
        }
    }

    /// One of this kind is needed from now on.
    pub fn need(&mut self, kind: Kind) {
        if !self.current.iter().any(|auxiliary| auxiliary.kind == kind) {
            self.current.push(Auxiliary::new(kind));
        }
    }

    /// None is needed any more. Those that have connections get until the deadline.
    pub fn retire(&mut self, processes: &mut Processes, deadline: Instant) {
        self.abort_trial(processes);
        self.current.drain(..).for_each(|auxiliary| auxiliary.replaced(processes, deadline));
    }

    /// The server drains: those that relay connections accept nothing more, and exit with their last one.
    pub fn drain(&mut self, processes: &mut Processes) {
        let relays = self.current.extract_if(.., |auxiliary| auxiliary.kind.relays());
        relays.for_each(|auxiliary| auxiliary.replaced(processes, Instant::NEVER));
    }

    /// It goes on: they are to be there again.
    pub fn resume(&mut self, generation: &Generation) {
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.relays()).collect();
        self.current.extend(wanted(&kinds, generation));
    }

    /// The server stops: those with connections leave with the workers, the others show how these stop.
    pub fn stop(&mut self, processes: &mut Processes, deadline: Instant) {
        let leaving = self.current.extract_if(.., |auxiliary| auxiliary.kind.takes_commands());
        leaving.for_each(|auxiliary| auxiliary.retire(processes, deadline));
    }

    /// All of a generation are to be there again.
    pub fn take_back(&mut self, generation: &Generation) {
        self.current = wanted(&Kind::ALL, generation);
    }

    fn by_pid(&mut self, pid: Pid) -> Option<&mut Auxiliary> {
        self.current.iter_mut().chain(&mut self.trial).find(|auxiliary| auxiliary.pid == Some(pid))
    }

    /// The process has said how its start went.
    pub fn on_start(&mut self, pid: Pid, start: Start, processes: &mut Processes) {
        let Some(auxiliary) = self.by_pid(pid) else { return };
        match start {
            Start::Failed(why) => auxiliary.why = Some(why), // its end comes
            Start::Done(_) => {}
            Start::Ready => {
                auxiliary.is_ready = true;
                processes.get_mut(pid).into_iter().for_each(|process| process.set_deadline(Instant::NEVER));
                if self.is_serving && self.current.iter().any(|auxiliary| auxiliary.pid == Some(pid)) {
                    begin(processes, pid);
                }
            }
        }
    }

    /// The process has ended: why, unless that is its own affair, and whether it was on trial.
    fn ended(&mut self, pid: Pid, how: &str, now: Instant) -> Option<(String, bool)> {
        let is_trial = self.trial.iter().any(|auxiliary| auxiliary.pid == Some(pid));
        let auxiliary = self.by_pid(pid)?;
        let why = auxiliary.why.take().map_or_else(|| how.to_owned(), |why| format!("cannot start: {why}"));
        let why = format!("{}[{pid}] {why}", auxiliary.kind.name());
        auxiliary.failed(now);
        if is_trial {
            self.refusal = Some(why.clone());
        }
        Some((why, is_trial))
    }
}

fn begin(processes: &Processes, pid: Pid) {
    let _ = processes.command(pid, Command::Begin, None); // it serves already, or is gone
}

fn wanted(kinds: &[Kind], generation: &Generation) -> Vec<Auxiliary> {
    let processes = |kind: &Kind| std::iter::repeat_n(*kind, kind.count(generation));
    kinds.iter().flat_map(processes).map(Auxiliary::new).collect()
}

impl Supervisor {
    /// Forks those that are due.
    pub(super) fn start_auxiliaries(&mut self) -> Flow {
        let now = clock::now();
        for is_trial in [false, true] {
            let Some(generation) =
                (if is_trial { self.rolling.on_trial() } else { Some(&self.generation) }).cloned()
            else {
                continue;
            };
            for index in 0.. {
                let Auxiliaries { current, trial, .. } = &mut self.auxiliaries;
                let Some(auxiliary) = (if is_trial { trial } else { current }).get_mut(index) else { break };
                if auxiliary.pid.is_some() || auxiliary.at > now {
                    continue;
                }
                auxiliary.since = now;
                let kind = auxiliary.kind;
                let forked = spawn::auxiliary(self, kind, &generation)?;
                let Auxiliaries { current, trial, refusal, .. } = &mut self.auxiliaries;
                let Some(auxiliary) = (if is_trial { trial } else { current }).get_mut(index) else { break };
                match forked {
                    Ok(pid) => auxiliary.pid = Some(pid),
                    Err(error) => {
                        log::error!("{}: cannot fork: {error}", kind.name());
                        auxiliary.failed(now);
                        if is_trial {
                            *refusal = Some(format!("{} cannot be forked: {error}", kind.name()));
                        }
                    }
                }
            }
        }
        Flow::Continue(())
    }

    /// An auxiliary process has ended.
    pub(super) fn auxiliary_ended(&mut self, pid: Pid, status: WaitStatus, how: &str) {
        let Some((why, is_trial)) = self.auxiliaries.ended(pid, how, clock::now()) else { return };
        let is_start = !is_trial && !self.host.daemon.is_ready() && !self.slots.is_stopping();
        if !is_start {
            return log::error!("{why}");
        }
        log::error!(target: crate::log::CRITICAL, "{why}");
        self.stop(Event::Fail(match status {
            WaitStatus::Exited(_, code) if code == Exit::Config.code() => Exit::Config,
            WaitStatus::Exited(_, code) if code == Exit::Bind.code() => Exit::Bind,
            _ => Exit::Start,
        }));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fleet::control::Channel;
    use crate::supervisor::processes::Process;

    /// A pid that no process has.
    const NOBODY: Pid = Pid::from_raw(i32::MAX);

    /// One that was forked, its entry in the table, and its end of the channel.
    fn forked() -> (Auxiliary, Processes, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        let mut processes = Processes::default();
        let role = Role::Auxiliary(Kind::Metrics);
        processes.insert(NOBODY, Process::new(role, None, 0, Some(ours)));
        (Auxiliary { pid: Some(NOBODY), ..Auxiliary::new(Kind::Metrics) }, processes, theirs)
    }

    fn auxiliaries(current: Vec<Auxiliary>, trial: Vec<Auxiliary>, is_serving: bool) -> Auxiliaries {
        Auxiliaries { current, trial, replaces: vec![Kind::Metrics], refusal: None, is_serving }
    }

    fn has_begun(channel: &Channel) -> bool {
        matches!(channel.recv_command(), Ok(Some((Command::Begin, None))))
    }

    #[test]
    fn one_that_is_ready_begins_when_its_server_serves() {
        for is_serving in [true, false] {
            let (one, mut processes, channel) = forked();
            let mut all = auxiliaries(vec![one], vec![], is_serving);
            assert!(!all.are_ready());
            all.on_start(NOBODY, Start::Ready, &mut processes);
            assert_eq!((all.are_ready(), has_begun(&channel)), (true, is_serving));
            if !is_serving {
                all.serve(&mut processes);
                assert!(has_begun(&channel));
            }
        }
    }

    #[test]
    fn one_on_trial_begins_with_the_commit() {
        let (one, mut processes, channel) = forked();
        let mut all = auxiliaries(vec![], vec![one], true);
        assert_eq!(all.trial(), None);
        all.on_start(NOBODY, Start::Ready, &mut processes);
        assert_eq!((all.trial(), has_begun(&channel)), (Some(Ok(())), false));
        all.commit(&mut processes, Instant::NEVER);
        assert!(has_begun(&channel) && all.are_ready() && all.trial.is_empty());
    }

    #[test]
    fn one_on_trial_that_cannot_start_says_why_and_refuses_the_reload() {
        let (one, mut processes, _channel) = forked();
        let mut all = auxiliaries(vec![], vec![one], true);
        all.on_start(NOBODY, Start::Failed("no key".to_owned()), &mut processes);
        assert_eq!(all.trial(), None, "its end comes");
        let why = format!("metrics[{NOBODY}] cannot start: no key");
        assert_eq!(all.ended(NOBODY, "ended", Instant::default()), Some((why.clone(), true)));
        assert_eq!(all.trial(), Some(Err(why)));
        all.abort_trial(&mut processes);
        assert_eq!(all.due(), None);
    }

    #[test]
    fn one_that_dies_is_due_again_later_each_time() {
        let (one, _, _channel) = forked();
        let mut all = auxiliaries(vec![one], vec![], true);
        let second = Duration::from_secs(1);
        for seconds in [1, 2, 4] {
            let now = all.current[0].since;
            assert_eq!(all.ended(NOBODY, "died", now), Some((format!("metrics[{NOBODY}] died"), false)));
            assert_eq!(all.due(), Some(now + seconds * second));
            all.current[0].pid = Some(NOBODY);
        }
    }
}
