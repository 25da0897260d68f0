//! The supervisor: binds, forks, watches, replaces, stops. Small and single-threaded; never reads a byte of a
//! client and never loads a handler. What it does when is decided in [`policy`]; here it is carried out.

mod changes;
mod children;
mod control;
pub mod crash;
mod deaths;
pub mod edition;
mod logs;
mod metrics;
pub mod policy;
mod reload;
mod roll;
pub mod spawn;
pub mod upgrade;
mod upkeep;
mod workers;

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use self::children::Children;
use self::deaths::Deaths;
use self::edition::Edition;
use self::metrics::Metrics;
use self::policy::slots::{self as plan, Action, Event, Plan, Times};
use self::roll::Roll;
use self::upgrade::{Invocation, Predecessor, Successor};
use self::upkeep::Upkeep;
use self::workers::{Replaced, Worker};
use crate::config::{Config, Pool};
use crate::control::Control;
use crate::exit::Exit;
use crate::fleet::addresses::Addresses;
use crate::fleet::control::Command;
use crate::fleet::counters::Counters;
use crate::fleet::inbox::Inbox;
use crate::fleet::listener::{self, BindError, Bound, Listener};
use crate::fleet::process_title;
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::{self, MAX_SLOTS, Place, Scoreboard};
use crate::handlers::discover::discover;
use crate::log::Destination;
use crate::service::daemonize::{self, Daemon};
use crate::service::listen_fds::Passed;
use crate::service::notify::Notify;
use crate::service::start_signals::{STOP, StartSignals, end_by};
use crate::time::Instant;

/// Reads the configuration anew; the error says what is wrong with it.
pub type Reread = Box<dyn Fn() -> Result<Config, String>>;

/// Where a server comes from.
pub struct Origin {
    /// For a reload.
    pub reread: Reread,
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

/// Serves until told to stop. What went wrong is in the log; the result is the exit code.
pub fn run(mut config: Config, mut origin: Origin) -> Exit {
    process_title::set("wshd: supervisor");
    crate::log::set_process("supervisor");
    let file = config.file.as_ref().map(|file| format!("configuration file {}", file.display()));
    let file = file.as_deref().unwrap_or("no configuration file");
    log::info!("wshd {} is starting, {file}", env!("CARGO_PKG_VERSION"));
    raise_descriptors(&mut config);
    let is_log_seen = config.log.destination == Destination::Stderr && !origin.daemon.is_detached();
    let mut daemon = std::mem::take(&mut origin.daemon);
    let signals = match hold_requests().and_then(|()| StartSignals::watch()) {
        Ok(signals) => signals,
        Err(error) => return failed_to_start(&mut daemon, is_log_seen, Exit::Internal, &error.to_string()),
    };
    match Fleet::prepare(config, origin, &signals) {
        Ok(mut fleet) => {
            drop(signals);
            fleet.daemon = daemon;
            let exit = fleet.serve();
            // After an upgrade, or before it is done, they are somebody else's.
            if !fleet.has_successor() && fleet.predecessor.is_none() {
                fleet.listeners.iter().for_each(|listener| listener.remove_file());
                fleet.control.remove_file();
            }
            if !is_log_seen && !fleet.daemon.is_ready() {
                eprintln!("wshd: ended with status {} before it was ready; see the log", exit.code());
            }
            fleet.daemon.ended(exit);
            log::info!("stopped, exit status {}", exit.code());
            exit
        }
        Err((exit, why)) => {
            let exit = failed_to_start(&mut daemon, is_log_seen, exit, &why);
            signals.received().into_iter().for_each(end_by);
            exit
        }
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

/// An error if the server is told to stop while it starts.
fn go_on(signals: &StartSignals) -> Result<(), (Exit, String)> {
    match signals.received() {
        None => Ok(()),
        Some(signal) => Err((Exit::Internal, format!("{signal} received during the start"))),
    }
}

/// Everything that the supervisor holds; a forked worker takes its share out of it.
struct Fleet {
    config: Arc<Config>,
    routes: Arc<Routes>,
    listeners: Vec<Arc<Listener>>,
    /// Handlers and aliases that were left out because they are broken.
    faults: Vec<String>,
    reread: Reread,
    invocation: Invocation,
    /// The server that this one replaces, until it has got what it needs.
    predecessor: Option<Predecessor>,
    /// The server that is to replace this one.
    successor: Option<Successor>,
    /// Whether an upgrade is wanted.
    is_upgrade_due: bool,
    scoreboard: &'static Scoreboard,
    /// Where workers count connections.
    addresses: &'static Addresses,
    counters: &'static Counters,
    /// The process that serves what is counted.
    metrics: Metrics,
    /// By slot.
    workers: Vec<Option<Worker>>,
    /// By slot: where connections arrive from other workers.
    inboxes: Vec<Inbox>,
    /// Processes that have been replaced, and are to end soon.
    replaced: Vec<Replaced>,
    /// Slots in which somebody is, or is to be, as the plan knows it.
    taken: BTreeSet<usize>,
    /// Slots whose workers have left for good.
    vacant: BTreeSet<usize>,
    /// Replacing workers while they serve.
    roll: Roll,
    /// Processes that serve one connection each.
    children: Children,
    /// Whether a reload is wanted.
    is_reload_due: bool,
    /// What workers have died of.
    deaths: Deaths,
    /// When workers are looked after.
    upkeep: Upkeep,
    /// Of the log files.
    sizes: logs::Sizes,
    /// What operators ask for.
    control: Control,
    /// None in a worker.
    signals: Option<SignalFd>,
    /// To the service manager.
    notify: Notify,
    /// To the place that the server was started from.
    daemon: Daemon,
}

impl Fleet {
    /// Binds, finds the handlers and makes what is shared; all before the first fork of a worker.
    fn prepare(config: Config, origin: Origin, start: &StartSignals) -> Result<Self, (Exit, String)> {
        crate::confine::landlock::check(&config).map_err(|why| (Exit::Config, why))?;
        let addresses = Addresses::for_processes(config.pools.iter().map(Pool::processes).sum())
            .map_err(|error| (Exit::Internal, error.to_string()))?;
        let Origin { reread, invocation, predecessor, sockets, notify, daemon } = origin;
        let inherited = predecessor.as_ref().map(Predecessor::listeners).transpose();
        let inherited =
            inherited.map_err(|error| (Exit::Bind, format!("sockets of the old server: {error}")))?;
        let mut inherited = inherited.unwrap_or_default();
        let bind_failed = |error: BindError| (Exit::Bind, error.to_string());
        for Passed { fd, name } in sockets {
            inherited.push(Arc::new(listener::adopt(fd, &name).map_err(bind_failed)?));
        }
        let listeners =
            listener::adopted_or_bound(&config.listen, config.backlog, &inherited).map_err(bind_failed)?;
        let is_new = predecessor.is_none();
        let metrics = Metrics::prepare(&config, &inherited).map_err(|error| {
            if is_new {
                listeners.iter().for_each(|listener| listener.remove_file());
            }
            bind_failed(error)
        })?;
        let internal = |error: io::Error| (Exit::Internal, error.to_string());
        let prepared = || {
            let found = discover(&config, &Routes::default(), &|| start.received().is_some());
            go_on(start)?;
            let (routes, faults) = found.map_err(|error| (Exit::Config, error.to_string()))?;
            faults.iter().for_each(|fault| log::warn!("{fault}"));
            if config.strict_handlers && !faults.is_empty() {
                let count = faults.len();
                return Err((Exit::Config, format!("{count} handlers or aliases are broken, see above")));
            }
            let scoreboard = Scoreboard::create(MAX_SLOTS).map_err(internal)?;
            scoreboard.share_sockets(!is_new);
            let mut inboxes = Vec::new();
            for (pool, settings) in config.pools.iter().enumerate() {
                for number in 0..settings.workers {
                    scoreboard.assign(inboxes.len(), Place { pool: pool as u16, number: number as u16 });
                    inboxes.push(Inbox::new().map_err(internal)?);
                }
            }
            let counters = metrics::counters(&config, &routes).map_err(internal)?;
            let deaths = Deaths::new(&config).map_err(internal)?;
            let signals = watch_signals().map_err(internal)?;
            go_on(start)?; // the loop reads what comes from here on
            let control = Control::new(&config.control, &inherited).map_err(|error| {
                let path = config.control.socket.clone().unwrap_or_default();
                (Exit::Bind, format!("--control-socket {}: {error}", path.display()))
            })?;
            Ok((routes, faults, scoreboard, counters, deaths, control, signals, inboxes))
        };
        match prepared() {
            Ok((routes, faults, scoreboard, counters, deaths, control, signals, inboxes)) => Ok(Self {
                workers: (0..inboxes.len()).map(|_| None).collect(),
                inboxes,
                replaced: Vec::new(),
                taken: BTreeSet::new(),
                vacant: BTreeSet::new(),
                roll: Roll::default(),
                children: Children::default(),
                is_reload_due: false,
                deaths,
                control,
                upkeep: Upkeep::default(),
                sizes: logs::Sizes::default(),
                config: Arc::new(config),
                routes: Arc::new(routes),
                listeners,
                faults,
                reread,
                invocation,
                predecessor,
                successor: None,
                is_upgrade_due: false,
                scoreboard,
                addresses,
                counters,
                metrics,
                signals: Some(signals),
                notify,
                daemon,
            }),
            Err(error) => {
                if is_new {
                    listeners.iter().chain(&metrics.listeners).for_each(|listener| listener.remove_file());
                }
                Err(error)
            }
        }
    }

    /// What new workers are made of.
    fn edition(&self) -> Edition {
        Edition {
            config: Arc::clone(&self.config),
            routes: Arc::clone(&self.routes),
            listeners: self.listeners.clone(),
            metrics: self.metrics.listeners.clone(),
            faults: self.faults.clone(),
        }
    }

    fn serve(&mut self) -> Exit {
        let mut plan = Plan::new(self.inboxes.len(), Times { stop: self.config.stop_time });
        let mut events = VecDeque::from([Event::Start]);
        loop {
            if let Some(exit) = self.carry_out(&mut plan, &mut events) {
                return exit;
            }
            // Only now is everybody where the plan thinks.
            self.taken = plan.taken().collect();
            self.begin_reload(&plan);
            self.begin_upgrade(&plan);
            self.go_on_with_upgrade();
            self.roll_on(&mut events);
            self.keep_children();
            plan.set_times(Times { stop: self.config.stop_time });
            if !events.is_empty() {
                continue;
            }
            if self.is_superseded() {
                log::info!("all connections are with the new executable");
                return Exit::Ok;
            }
            self.write_records();
            self.tend_metrics();
            self.wait(plan.deadline(), &mut events);
            events.push_back(Event::Time);
        }
    }

    /// Does what the plan wants after these events; the exit code, if that is to leave.
    fn carry_out(&mut self, plan: &mut Plan, events: &mut VecDeque<Event>) -> Option<Exit> {
        while let Some(event) = events.pop_front() {
            match event {
                Event::Terminate | Event::Interrupt => self.prepare_to_stop(Command::Stop),
                Event::Quit | Event::Fail(_) => self.prepare_to_stop(Command::Quit),
                _ => {}
            }
            for action in plan.on(event, scoreboard::now()) {
                match action {
                    Action::Leave(exit) => {
                        self.see_off();
                        return Some(exit);
                    }
                    Action::Announce => events.extend(self.announce().err()),
                    Action::Spawn(slot) => events.extend(self.spawn(slot).err()),
                    Action::Stop(slot) => self.order(slot, Command::Stop),
                    Action::Quit(slot) => self.order(slot, Command::Quit),
                    Action::Kill(slot) => self.kill(slot),
                }
            }
        }
        None
    }

    /// Nobody is replaced any more, and those that leave anyway are to be quick.
    fn prepare_to_stop(&mut self, command: Command) {
        self.notify.stopping();
        self.refuse_connections();
        self.call_off("the server is told to stop");
        self.release_children();
        self.hurry_replaced(command);
    }

    /// Waits for a signal, a report or the deadline, and says what has happened.
    fn wait(&mut self, deadline: Option<plan::Time>, events: &mut VecDeque<Event>) {
        let kills = self.replaced.iter().map(|replaced| replaced.kill_at);
        let looks = self.next_look().into_iter().chain(self.next_look_at_logs()).chain(self.metrics_due());
        let looks = looks.chain(self.children.deadline());
        let deadline = kills.chain(deadline).chain(looks).chain(self.roll.deadline());
        let upgrade = self.successor.iter().filter(|successor| !successor.is_serving);
        let deadline = deadline.chain(self.control.deadline().map(Instant::as_nanos));
        let deadline = deadline.chain(upgrade.map(|successor| successor.give_up));
        let deadline = deadline.chain(self.notify.due().map(Instant::as_nanos)).min();
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            let milliseconds = deadline.saturating_sub(scoreboard::now()).div_ceil(1_000_000);
            PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
        });
        let mut fds: Vec<PollFd> =
            self.signals.iter().map(|signals| PollFd::new(signals.as_fd(), PollFlags::POLLIN)).collect();
        let workers = self.workers.iter().flatten().filter_map(|worker| worker.control.as_ref());
        let replaced = self.replaced.iter().filter_map(|replaced| replaced.control.as_ref());
        let channels = workers.chain(replaced).chain(self.roll.channels()).chain(self.children.channels());
        fds.extend(channels.map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.control.interest().filter(|_| self.predecessor.is_none()));
        let inboxes = self.vacant.iter().filter_map(|slot| self.inboxes.get(*slot));
        let inboxes = inboxes.chain(self.inboxes_of_nobody());
        fds.extend(inboxes.map(|inbox| PollFd::new(inbox.rx(), PollFlags::POLLIN)));
        let upgrade = self.successor.iter().filter(|successor| !successor.is_serving);
        fds.extend(upgrade.map(|successor| PollFd::new(successor.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => log::error!("poll: {error}"),
        }
        for slot in 0..self.workers.len() {
            self.read_reports(slot, events);
        }
        self.read_replaced(events);
        self.serve_control(events);
        self.read_signals(events);
        self.look_into_vacant_inboxes(events);
        self.kill_replaced();
        self.look_after_workers();
        self.look_after_logs();
        self.notify.turn(crate::clock::now());
    }

    fn read_signals(&mut self, events: &mut VecDeque<Event>) {
        while let Some(Ok(Some(info))) = self.signals.as_ref().map(SignalFd::read_signal) {
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
                Signal::SIGCHLD => self.reap(events),
                Signal::SIGINT => events.push_back(Event::Interrupt),
                Signal::SIGQUIT => events.push_back(Event::Quit),
                Signal::SIGHUP => self.ask_for_reload(),
                Signal::SIGUSR2 => self.ask_for_upgrade(),
                Signal::SIGTTIN => complain(self.add_worker(0)),
                Signal::SIGTTOU => complain(self.remove_worker(0)),
                Signal::SIGUSR1 => self.reopen_logs(),
                _ => events.push_back(Event::Terminate),
            }
        }
    }

    /// Tells everybody that the server serves. Who started it may have closed its output: no reason not to serve.
    fn announce(&mut self) -> Result<(), Event> {
        let failed = |error: daemonize::Error| {
            log::error!(target: crate::log::CRITICAL, "{error}");
            Event::Fail(error.exit())
        };
        self.daemon.place_pid_file().map_err(failed)?;
        let mut out = io::stdout();
        let _ = writeln!(out, "wshd: {}", self.summary()).and_then(|()| out.flush());
        self.daemon.ready().map_err(failed)?;
        log::info!("{}", self.summary());
        self.notify.ready(&self.summary());
        if let Some(predecessor) = self.predecessor.take() {
            self.take_over(&predecessor);
        }
        Ok(())
    }

    /// What it serves.
    fn summary(&self) -> String {
        status(&self.listeners, self.config.all_workers(), self.routes.resources().len())
    }
}

/// One line, stable for scripts.
fn status(listeners: &[Arc<Listener>], workers: usize, resources: usize) -> String {
    let addresses: Vec<String> = listeners.iter().map(|listener| listener.address.to_string()).collect();
    let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let mut line = format!(
        "ready on {}, {}, {}",
        addresses.join(" and "),
        plural(workers, "worker"),
        plural(resources, "resource")
    );
    if let Some(authority) = listeners.iter().find_map(|listener| Bound::local_authority(&listener.address)) {
        line += &format!(", console http://{authority}/console.html");
    }
    line
}

/// Signals that ask for something and must not end a server that has just been started.
const REQUESTS: [Signal; 5] =
    [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTTIN, Signal::SIGTTOU];

/// From here on these wait until the loop reads them.
fn hold_requests() -> io::Result<()> {
    Ok(SigSet::from_iter(REQUESTS).thread_block()?)
}

/// From here on these signals are read, not delivered.
fn watch_signals() -> io::Result<SignalFd> {
    let signals = SigSet::from_iter(STOP.into_iter().chain([Signal::SIGCHLD]).chain(REQUESTS));
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Raises the limit of open files as far as the connections need it; where that is not possible lowers the
/// number of connections.
fn raise_descriptors(config: &mut Config) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = u64::from(config.connections) + config.reserved_descriptors();
    if soft >= wanted {
        return;
    }
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard) {
        Ok(()) => wanted.min(hard),
        Err(_) => soft,
    };
    if limit < wanted {
        let possible =
            u32::try_from(limit.saturating_sub(config.reserved_descriptors()).max(1)).unwrap_or(u32::MAX);
        log::warn!(
            "a worker can have {limit} open files only: --max-connections lowered from {} to {possible}",
            config.connections
        );
        config.connections = possible;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Listen;

    #[test]
    fn the_ready_line_names_addresses_numbers_and_console() {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("s");
        let tcp = Listen::Tcp { host: "0.0.0.0".to_owned(), port: 0 };
        let both = listener::bind_missing(&[Listen::Unix(path.clone()), tcp], 1, &[]).unwrap();
        let port = both[1].address.local_authority().unwrap().port();
        assert_eq!(
            status(&both, 2, 1),
            format!(
                "ready on unix:{} and 0.0.0.0:{port}, 2 workers, 1 resource, \
                 console http://127.0.0.1:{port}/console.html",
                path.display()
            )
        );
        let expected = format!("ready on unix:{}, 1 worker, 0 resources", path.display());
        assert_eq!(status(&both[..1], 1, 0), expected);
    }
}
