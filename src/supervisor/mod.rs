//! The supervisor: binds, forks, watches, restarts, stops. Single-threaded; never reads a byte of a client and never
//! loads a handler. What it does when is decided in [`policy`]; here it is carried out, and nothing here waits:
//! whatever takes time is a child with a deadline in the table of [`processes`].

mod auxiliary;
pub mod bus;
mod certificates;
mod child;
mod control;
pub(crate) mod crash_record;
pub(crate) mod death;
mod drain;
pub mod dry_run;
mod errand;
pub mod generation;
mod logs;
mod mail;
mod maintenance;
mod next_generation;
pub mod policy;
mod pools;
mod postmortem;
mod prepare;
mod processes;
mod relay;
mod reload;
mod reports;
mod rolling;
pub mod spawn;
pub mod upgrade;
mod workers;

use std::convert::Infallible;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use self::auxiliary::Auxiliaries;
use self::child::Child;
use self::generation::Generation;
use self::maintenance::Maintenance;
use self::policy::drain::Drain;
use self::policy::slots::{Action, Event, Slots};
use self::policy::upgrade as upgrade_policy;
use self::pools::Pools;
use self::postmortem::Postmortem;
use self::processes::{Errand, Process, Processes, Role};
use self::rolling::Rolling;
use self::upgrade::{Invocation, Predecessor, Upgrade};
use crate::clock;
use crate::config::Config;
use crate::control::Control;
use crate::exit::{Exit, Failure};
use crate::fleet::memory::bulletin::Readiness;
use crate::fleet::memory::shared::Shared;
use crate::fleet::process::title;
use crate::fleet::sockets::control::Command;
use crate::log::Destination;
use crate::service::daemonize::Daemon;
use crate::service::listen_fds::Passed;
use crate::service::notify::Notify;
use crate::service::start_signals::{StartSignals, end_by};
use crate::time::Instant;

/// Reads the configuration anew; the error says what is wrong with it.
pub type Reread = dyn Fn() -> Result<Config, String>;

/// Where a server comes from.
pub struct Origin {
    /// For a reload.
    pub reread: Rc<Reread>,
    /// For an upgrade.
    pub invocation: Invocation,
    /// The server that this one replaces.
    pub predecessor: Option<Predecessor>,
    /// Sockets to use instead of binding; none unless some were passed.
    pub sockets: Vec<Passed>,
    /// To the service manager.
    pub notify: Notify,
    /// What started it; told how it goes.
    pub daemon: Daemon,
}

/// Serves until told to stop. Errors are in the log; the result is the exit code. A forked child does not return.
pub fn run(mut config: Config, mut origin: Origin) -> Exit {
    config.daemon.instance.iter().for_each(|name| title::set_instance(name));
    title::set("supervisor");
    crate::log::set_process("supervisor");
    let file = config.file.as_ref().map(|file| format!("configuration file {}", file.display()));
    let file = file.as_deref().unwrap_or("no configuration file");
    log::info!("wshd {} is starting, {file}", env!("CARGO_PKG_VERSION"));
    prepare::raise_descriptors(&mut config);
    let is_log_seen = config.log.destination == Destination::Stderr && !origin.daemon.is_detached();
    let mut daemon = std::mem::take(&mut origin.daemon);
    let signals = match prepare::hold_requests().and_then(|()| StartSignals::watch()) {
        Ok(signals) => signals,
        Err(error) => return failed_to_start(&mut daemon, is_log_seen, Exit::Internal, &error.to_string()),
    };
    let outcome = match Supervisor::prepare(config, origin, &signals) {
        Ok(mut supervisor) => {
            drop(signals);
            supervisor.host.daemon = daemon;
            supervisor.run(is_log_seen)
        }
        Err(Failure(exit, why)) => {
            let exit = failed_to_start(&mut daemon, is_log_seen, exit, &why);
            signals.received().into_iter().for_each(end_by);
            LoopEnd::Exit(exit)
        }
    };
    // All that was the supervisor's is dropped: a child has what it was given, and nothing else.
    match outcome {
        LoopEnd::Exit(exit) => exit,
        LoopEnd::Child(child) => child.run(),
    }
}

fn failed_to_start(daemon: &mut Daemon, is_log_seen: bool, exit: Exit, why: &str) -> Exit {
    log::error!(target: crate::log::CRITICAL, "{why}");
    if !is_log_seen {
        eprintln!("wshd: {why}"); // where it was started from
    }
    daemon.ended(exit);
    exit
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// How the supervisor's loop ends.
enum LoopEnd {
    /// The server ends.
    Exit(Exit),
    /// This is a forked child, which is to become this.
    Child(Box<Child>),
}

/// What a step of the loop returns: the loop goes on, or ends.
type Flow<T = ()> = ControlFlow<LoopEnd, T>;

struct Supervisor {
    /// What new workers are made of.
    generation: Generation,
    /// What workers, metrics and supervisor write and read.
    shared: Shared,
    processes: Processes,
    /// Which slots are to have a process.
    slots: Slots,
    /// Replacing workers while they serve.
    rolling: Rolling,
    /// Pools with a process for each connection.
    pools: Pools,
    /// Another executable that takes over, or the one that this one takes over from.
    upgrade: Upgrade,
    /// Whether the server drains, and how far that is.
    drain: Drain,
    /// Processes without a slot.
    auxiliaries: Auxiliaries,
    /// What workers have died of.
    postmortem: Postmortem,
    /// What is looked at regularly.
    maintenance: Maintenance,
    /// What the process has around it.
    host: Host,
}

/// The surroundings of the supervisor's process.
struct Host {
    reread: Rc<Reread>,
    signals: SignalFd,
    /// The control socket.
    control: Control,
    /// To the service manager.
    notify: Notify,
    /// To the place that the server was started from.
    daemon: Daemon,
    /// When the supervisor began.
    started: SystemTime,
    /// When the loop last began to turn.
    turned: Instant,
    /// The longest turn since the server was ready.
    longest_turn: Duration,
}

/// What keeps the server from beginning something else.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Busy {
    Stopping,
    Starting,
    Draining,
    Upgrading,
    Replacing,
}

/// Reads what a process has to say.
type Read = fn(&mut Supervisor, Pid);

/// Of the Close frames of a server that stops (RFC 6455 section 7.4.1).
const GOING_AWAY: u16 = 1001;
/// A turn of the loop that takes longer than this is worth a warning: nothing in it should wait.
const LONG_TURN: Duration = Duration::from_millis(500);

impl Supervisor {
    fn run(mut self, is_log_seen: bool) -> LoopEnd {
        self.slots.on(Event::Time, clock::now());
        let outcome = match self.turn_forever() {
            ControlFlow::Break(outcome) => outcome,
            ControlFlow::Continue(never) => match never {},
        };
        if let LoopEnd::Exit(exit) = outcome {
            // Another server has them, too, or takes them back.
            if !self.shared.scoreboard.are_sockets_shared() {
                let sockets = self.generation.sockets().chain(self.host.control.listener());
                sockets.for_each(|listener| listener.remove_file());
            }
            if !is_log_seen && !self.host.daemon.is_ready() {
                eprintln!("wshd: ended with status {} before it was ready; see the log", exit.code());
            }
            self.host.daemon.ended(exit);
            log::info!("stopped, exit status {}", exit.code());
        }
        outcome
    }

    fn turn_forever(&mut self) -> Flow<Infallible> {
        loop {
            self.go_on_with_reload();
            self.carry_out()?;
            self.request_upgrade();
            self.isolate_suspects();
            self.ask_for_processes();
            self.start_auxiliaries()?;
            self.announce();
            self.write_records();
            if let Some(exit) = self.is_done() {
                return ControlFlow::Break(LoopEnd::Exit(exit));
            }
            self.wait();
        }
    }

    /// Carries out what was decided, until nothing is left to be done at this moment.
    fn carry_out(&mut self) -> Flow {
        loop {
            if let Some(action) = self.slots.action() {
                self.carry_out_for_slots(action)?;
            } else if let Some(action) = self.rolling.policy.action() {
                self.carry_out_rolling(action)?;
            } else if !self.begin_reload() {
                return ControlFlow::Continue(());
            }
        }
    }

    fn carry_out_for_slots(&mut self, action: Action) -> Flow {
        match action {
            Action::Spawn(slot) => self.start_worker(slot)?,
            Action::Stop(slot) => self.stop_worker(slot, Command::Stop),
            Action::Quit(slot) => self.stop_worker(slot, Command::Quit),
            Action::GiveUp => {
                log::error!(target: crate::log::CRITICAL, "no worker becomes ready: giving up");
                self.stop(Exit::Start, true);
            }
            Action::Leave => self.leave(),
        }
        ControlFlow::Continue(())
    }

    /// Stops the server: when all connections are closed, or at once.
    fn stop(&mut self, exit: Exit, at_once: bool) {
        self.stop_by(Event::Stop { exit, at_once });
    }

    /// The server is told to stop. Nothing is replaced any more, and processes that leave anyway have to be quick.
    fn stop_by(&mut self, event: Event) {
        self.drain = Drain::Off;
        let code = match self.shared.scoreboard.bulletin().readiness() {
            Readiness::Closing { code, .. } => code, // it drains
            _ => GOING_AWAY,
        };
        let until = self.end_of_stop();
        self.shared.scoreboard.bulletin().set_readiness(Readiness::Closing { until, code });
        self.host.notify.stopping(self.stop_time());
        self.on_upgrade(upgrade_policy::Event::Cancel("the server is told to stop".to_owned()));
        self.refuse_connections();
        self.abort_rolling("the server is told to stop");
        self.slots.on(event, clock::now());
        self.settle_auxiliaries();
        self.stop_pools();
        self.hurry();
    }

    /// No worker is left that holds a slot: the rest is waited for.
    fn leave(&mut self) {
        self.auxiliaries.abort_trial(&mut self.processes);
        self.settle_auxiliaries();
        self.hurry();
    }

    /// The exit code, when nothing is left to be done.
    fn is_done(&self) -> Option<Exit> {
        let superseded = self.upgrade.is_superseded();
        let is_ours = |process: &Process| match process.role {
            Role::Successor => !superseded,
            Role::Auxiliary(_) => self.slots.exit().is_some(),
            Role::Errand(Errand::Reload | Errand::WatchCertificates) => false, // they end with this process
            Role::Errand(_) => !process.is_late(), // not even a signal may end one that waits for a disk
            _ => true,
        };
        let mut ours = self.processes.iter().filter(|(_, process)| is_ours(process));
        match ours.next() {
            Some(_) => None,
            None if self.pools.channels().next().is_some() => None,
            None if self.slots.is_stopping() => self.slots.exit(),
            None if superseded && self.rolling.policy.is_idle() && self.upgrade.interest().is_none() => {
                log::info!("upgrade: all connections moved or closed; exiting");
                Some(Exit::Ok)
            }
            None => None,
        }
    }

    /// Waits for a signal, a message or the next deadline, and takes in what has happened.
    fn wait(&mut self) {
        let now = clock::now();
        let busy = now.since(self.host.turned);
        if self.host.daemon.is_ready() {
            self.host.longest_turn = self.host.longest_turn.max(busy);
        }
        if busy > LONG_TURN {
            log::warn!(
                "the supervisor was busy for {busy:?}; the machine is overloaded, or a file system or name server slow"
            );
        }
        let deadlines = [
            self.processes.deadline(),
            self.slots.deadline(),
            self.pools.deadline(now),
            (!self.slots.is_stopping()).then(|| self.maintenance.deadline(now)),
            self.auxiliaries.due(),
            self.maintenance.mail.deadline(),
            self.host.control.deadline(),
            self.host.notify.due(),
            self.drain.deadline(),
            self.next_log(now),
        ];
        let timeout = deadlines.into_iter().flatten().min().map_or(PollTimeout::NONE, |deadline| {
            let wait = deadline.since(now).as_nanos().div_ceil(1_000_000);
            u64::try_from(wait)
                .ok()
                .and_then(|wait| PollTimeout::try_from(wait).ok())
                .unwrap_or(PollTimeout::MAX)
        });
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(self.host.signals.as_fd())];
        let mut speakers: Vec<(Pid, Read)> = Vec::new();
        for (pid, process) in self.processes.iter() {
            if let Some(log) = process.log.as_ref().and_then(|log| log.interest(now)) {
                speakers.push((pid, |supervisor, pid| supervisor.read_log(pid, logs::AT_ONCE)));
                fds.push(readable(log));
            }
            if let Some(channel) = &process.channel {
                speakers.push((pid, |supervisor, pid| supervisor.read_reports(pid, reports::AT_ONCE)));
                fds.push(readable(channel.as_fd()));
            }
        }
        fds.extend(self.pools.channels().map(|channel| readable(channel.as_fd())));
        fds.extend(self.upgrade.interest().map(readable));
        let accepts = !self.upgrade.is_superseded();
        fds.extend(self.host.control.interest(accepts).filter(|_| self.upgrade.predecessor.is_none()));
        fds.extend(self.unread_inboxes().map(|inbox| readable(inbox.as_fd())));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => log::error!("poll: {error}"),
        }
        let is_ready = |fd: &PollFd| fd.revents().is_some_and(|events| !events.is_empty());
        let mut is_heard = fds.iter().skip(1).map(is_ready).collect::<Vec<_>>().into_iter();
        speakers.retain(|_| is_heard.next() == Some(true));
        drop(fds);
        self.host.turned = clock::now();
        speakers.into_iter().for_each(|(pid, read)| read(self, pid));
        self.read_forked();
        self.watch_old_server();
        self.serve_control();
        self.read_signals();
        self.take_up_mail();
        let now = clock::now();
        self.signal_late(now);
        self.maintain(now);
        self.host.notify.turn(now);
        self.go_on_with_drain();
        self.slots.on(Event::Time, now);
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.host.signals.read_signal() {
            let Ok(signal) = Signal::try_from(info.ssi_signo as i32) else { continue };
            if signal != Signal::SIGCHLD {
                log::info!("{signal} received");
            }
            let complain = |result: Result<(), String>| {
                if let Err(why) = result {
                    log::error!("{signal}: {why}");
                }
            };
            match signal {
                Signal::SIGCHLD => self.reap(),
                Signal::SIGINT => self.stop_by(Event::Interrupt),
                Signal::SIGQUIT => self.stop(Exit::Ok, true),
                Signal::SIGHUP => self.rolling.is_reload_wanted = true,
                Signal::SIGUSR2 => self.upgrade.is_wanted = true,
                Signal::SIGTTIN => complain(self.add_worker(0)),
                Signal::SIGTTOU => complain(self.remove_worker(0)),
                Signal::SIGUSR1 => self.reopen_logs(),
                _ => self.terminate(),
            }
        }
    }

    /// Why nothing else can begin now, if it cannot; what it can begin in spite of is left out.
    fn busy(&self, but: &[Busy]) -> Option<&'static str> {
        let table = [
            (Busy::Stopping, self.slots.is_stopping(), "the server is told to stop"),
            (Busy::Starting, !self.host.daemon.is_ready(), "the server is still starting"),
            (Busy::Draining, self.drain.is_on(), "the server is draining"),
            (Busy::Upgrading, self.upgrade.policy.is_under_way(), "an upgrade is under way"),
            (Busy::Replacing, !self.rolling.is_idle(), "workers are being replaced; try again"),
        ];
        let found = table.into_iter().find(|(what, is_so, _)| *is_so && !but.contains(what));
        found.map(|(.., why)| why)
    }

    /// The server is ready once all its processes are. Whoever started it may have closed its output: no reason not to
    /// serve.
    fn announce(&mut self) {
        let is_due = !self.host.daemon.is_ready() && !self.slots.is_stopping();
        if !is_due || !self.slots.were_ready() || !self.auxiliaries.are_ready() {
            return;
        }
        if let Err(Failure(exit, why)) = self.try_announce() {
            log::error!(target: crate::log::CRITICAL, "{why}");
            self.stop(exit, true);
        }
    }

    fn try_announce(&mut self) -> Result<(), Failure> {
        self.host.daemon.place_pid_file()?;
        self.shared.scoreboard.bulletin().set_reload(true);
        self.shared.scoreboard.bulletin().set_readiness(Readiness::Ready);
        let summary = self.summary();
        log::info!("{summary}");
        let mut out = io::stdout();
        let _ = writeln!(out, "wshd: {summary}").and_then(|()| out.flush());
        self.host.daemon.ready()?;
        self.host.notify.set_silent(false);
        self.host.notify.ready(&summary);
        self.take_over();
        Ok(())
    }

    fn summary(&self) -> String {
        let Generation { config, routes, listeners, .. } = &self.generation;
        prepare::summary(listeners, config, routes.resources().len())
    }

    /// How long a worker may take to stop.
    fn stop_time(&self) -> Duration {
        self.generation.config.stop_timeout
    }

    /// Until when whoever is told to stop now may take: once the server stops, all have the same time.
    fn end_of_stop(&self) -> Instant {
        match self.shared.scoreboard.bulletin().readiness() {
            Readiness::Closing { until, .. } if self.slots.is_stopping() => until,
            _ => clock::now() + self.stop_time(),
        }
    }
}
