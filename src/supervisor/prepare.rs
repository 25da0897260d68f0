//! From the configuration to a supervisor that can fork: binds, finds the handlers and maps what is shared.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::auxiliary::{Auxiliaries, Gateways};
use super::bus::Bus;
use super::generation::{Generation, Sockets, stamps};
use super::maintenance::Maintenance;
use super::policy::drain::Drain;
use super::policy::slots::Slots;
use super::pools::Pools;
use super::postmortem::Postmortem;
use super::processes::Processes;
use super::rolling::Rolling;
use super::upgrade::{Predecessor, Upgrade};
use super::{Host, Origin, Supervisor, plural};
use crate::clock;
use crate::config::{Config, Console, Pool};
use crate::confine;
use crate::control::Control;
use crate::exit::{Exit, Failure};
use crate::fleet::memory::scoreboard::Place;
use crate::fleet::memory::shared::Shared;
use crate::fleet::routes::Routes;
use crate::fleet::sockets::listener::{self, BindError, Bound, Listener};
use crate::handlers::discover::discover;
use crate::service::daemonize::Daemon;
use crate::service::listen_fds::Passed;
use crate::service::start_signals::{STOP, StartSignals};

/// Room for a message in the record of a crash, where the configuration names none.
const MESSAGE: usize = 64 * 1024;

pub(super) fn not_bound(error: BindError) -> Failure {
    Failure(Exit::Bind, error.to_string())
}

/// The handlers, and what was left out.
pub(super) fn find_handlers(config: &Config, start: &StartSignals) -> Result<(Routes, Vec<String>), Failure> {
    let found = discover(config, &Routes::default(), &|| start.received().is_none());
    go_on(start)?;
    let (routes, faults) = found.map_err(|why| Failure(Exit::Config, why))?;
    faults.iter().for_each(|fault| log::warn!("{fault}"));
    if config.strict_handlers && !faults.is_empty() {
        let broken = match faults.len() {
            1 => "a handler or alias is broken".to_owned(),
            count => format!("{count} handlers or aliases are broken"),
        };
        return Err(Failure(Exit::Config, format!("{broken}, see above")));
    }
    Ok((routes, faults))
}

impl Supervisor {
    /// All that comes before the first fork of a worker.
    pub(super) fn prepare(config: Config, mut origin: Origin, start: &StartSignals) -> Result<Self, Failure> {
        confine::check(&config).map_err(|why| Failure(Exit::Config, why))?;
        let inherited = origin.predecessor.as_ref().map(Predecessor::inherited).transpose();
        let (mut inherited, queue, bus) = inherited
            .map_err(|error| Failure(Exit::Bind, format!("sockets of the old server: {error}")))?
            .unwrap_or_default();
        for Passed { fd, name } in std::mem::take(&mut origin.sockets) {
            inherited.push(Arc::new(listener::adopt(fd, &name).map_err(not_bound)?));
        }
        let bus = bus.map_or_else(Bus::new, Ok).and_then(|bus| bus.following(&config))?;
        let before = Generation::before_start(inherited, bus);
        let gateways = Gateways::new(queue)?;
        let sockets = before.sockets_for(&config, [&[], &[]]).map_err(not_bound)?;
        let bound: Sockets = sockets.iter().flat_map(|sockets| before.new_of(sockets)).cloned().collect();
        Self::new(config, origin, (before, sockets, gateways), start)
            .inspect_err(|_| bound.iter().for_each(|listener| listener.remove_file()))
    }

    fn new(
        config: Config,
        origin: Origin,
        (before, sockets, gateways): (Generation, [Sockets; 2], Gateways),
        start: &StartSignals,
    ) -> Result<Self, Failure> {
        let Origin { reread, invocation, predecessor, mut notify, .. } = origin;
        notify.set_silent(predecessor.is_some());
        let found = find_handlers(&config, start)?;
        let shared = shared(&config, &found.0)?;
        shared.scoreboard.share_sockets(predecessor.is_some());
        let mut processes = Processes::default();
        for (pool, settings) in (0_u16..).zip(&config.pools) {
            for number in 0..settings.workers as u16 {
                shared.assign(processes.slots(), Place { pool, number })?;
                processes.add_slot()?;
            }
        }
        // Parents of per-connection processes fork twice, so that their children become those of the supervisor.
        set_child_subreaper(true).map_err(io::Error::from)?;
        let signals = watch_signals()?;
        go_on(start)?; // the loop reads what comes from here on
        let control = Control::new(&config.control, &before.listeners).map_err(|error| {
            let path = config.control.socket.clone().unwrap_or_default();
            Failure(Exit::Bind, format!("--control-socket {}: {error}", path.display()))
        })?;
        crate::log::count_losses(Some(&shared.scoreboard.bulletin().log_lost));
        let certificates = stamps(&config);
        let generation = before.following(config, found, sockets, certificates);
        let generation = generation.map_err(|why| Failure(Exit::Internal, why))?;
        Ok(Self {
            slots: Slots::new(processes.slots()),
            postmortem: Postmortem::new(generation.config.quarantine),
            auxiliaries: Auxiliaries::new(gateways, predecessor.is_none()),
            upgrade: Upgrade::new(invocation, predecessor),
            drain: Drain::default(),
            rolling: Rolling::default(),
            pools: Pools::default(),
            maintenance: Maintenance::default(),
            host: Host {
                reread,
                signals,
                control,
                notify,
                daemon: Daemon::default(),
                started: SystemTime::now(),
                turned: clock::now(),
                longest_turn: Duration::ZERO,
            },
            generation,
            shared,
            processes,
        })
    }
}

fn shared(config: &Config, routes: &Routes) -> Result<Shared, Failure> {
    let processes = config.pools.iter().map(Pool::processes).sum();
    // Also without crash records, which a reload may turn on: memory that no crash uses is reserved only.
    let message = config.crash_records.as_ref().map_or(MESSAGE, |records| records.bytes);
    Ok(Shared::create(processes, routes, (config.head.bytes, message))?)
}

/// One line, stable for scripts.
pub(super) fn summary(listeners: &[Arc<Listener>], config: &Config, resources: usize) -> String {
    let addresses: Vec<String> = listeners.iter().map(|listener| listener.address.to_string()).collect();
    let mut line = format!(
        "ready on {}, {}, {}",
        addresses.join(" and "),
        plural(config.all_workers(), "worker"),
        plural(resources, "resource")
    );
    let has_console = |listener: &&Arc<Listener>| config.listener(listener.asked()).console != Console::Never;
    let mut with_console = listeners.iter().filter(has_console);
    if let Some(authority) = with_console.find_map(|listener| Bound::local_authority(&listener.address)) {
        line += &format!(", console http://{authority}/console.html");
    }
    line
}

/// Signals that request something and must not end a server that has just been started.
const REQUESTS: [Signal; 5] =
    [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTTIN, Signal::SIGTTOU];

/// From here on these wait until the loop reads them.
pub(super) fn hold_requests() -> io::Result<()> {
    Ok(SigSet::from_iter(REQUESTS).thread_block()?)
}

/// From here on these signals are read, not delivered.
fn watch_signals() -> io::Result<SignalFd> {
    let signals = SigSet::from_iter(STOP.into_iter().chain([Signal::SIGCHLD]).chain(REQUESTS));
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// An error if the server is told to stop while it starts.
fn go_on(signals: &StartSignals) -> Result<(), Failure> {
    match signals.received() {
        None => Ok(()),
        Some(signal) => Err(Failure(Exit::Internal, format!("{signal} received during the start"))),
    }
}

/// Raises the limit of open files as far as the connections need it; where that is not possible lowers the number of
/// connections.
pub(super) fn raise_descriptors(config: &mut Config) {
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
            "a worker can open at most {limit} files (RLIMIT_NOFILE); --max-connections lowered from {} to {possible}",
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
        let both =
            listener::bind_missing(&[Listen::Unix(path.clone()), tcp], &|_| Default::default(), &[]).unwrap();
        let config = |workers| Config { pools: vec![Pool::new("default", workers)], ..Config::default() };
        let port = both[1].address.local_authority().unwrap().port();
        assert_eq!(
            summary(&both, &config(2), 1),
            format!(
                "ready on unix:{} and 0.0.0.0:{port}, 2 workers, 1 resource, \
                 console http://127.0.0.1:{port}/console.html",
                path.display()
            )
        );
        let expected = format!("ready on unix:{}, 1 worker, 0 resources", path.display());
        assert_eq!(summary(&both[..1], &config(1), 0), expected);
    }
}
