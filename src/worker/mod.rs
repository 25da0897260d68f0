//! A worker: one process that owns connections and runs handlers.
//!
//! Its rooms, each of which may use those below it only:
//!
//! - the files beside this one: the event loop, and what it does with each event
//! - [`process`]: what kind of process this is
//! - [`transfer`]: sends live connections to another process, and adopts those that come
//! - [`handshake`]: from the request head to 101 or a refusal
//! - [`session`]: an open WebSocket: messages, closing, deadlines
//! - [`host`]: handlers, and what they may call
//! - [`blocking`]: threads of blocking handlers, and the watchdog
//! - [`topics`]: subscriptions, and messages that are published
//! - [`listen`]: listening sockets, and the limits for what comes from there
//! - [`connections`]: all of them, and what can be done with one without its handler
//! - [`crash`]: code that runs in a signal handler
//! - [`conn`]: the data of a connection, and the table of all
//! - [`commands`]: from other threads to the loop
//! - [`base`]: leaf types

mod accepting;
mod base;
mod blocking;
mod commands;
mod conn;
mod connections;
mod control;
mod crash;
mod dispatch;
mod draining;
mod event_loop;
mod handshake;
mod host;
mod listen;
mod process;
mod session;
mod topics;
mod transfer;

use std::cell::{Cell, RefCell, UnsafeCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::clock;
use crate::config::Config;
use crate::ffi::place;
use crate::ffi::request::set_pending_handshakes;
use crate::ffi::topics::set_topics;
use crate::fleet::memory::scoreboard::State;
use crate::fleet::memory::shared::Shared;
use crate::http::{self, Site};
use base::descriptors::Descriptors;
use base::lifecycle::Lifecycle;
use base::memory;
use base::metrics::Metrics;
use base::poll::Poll;
use base::presence::Presence;
use base::progress::Progress;
use base::timers;
use blocking::thread::ThreadHost;
use blocking::watchdog::Watchdog;
use commands::queue::CommandQueue;
use conn::handoff::{Arrivals, Shipment};
use conn::handshake::Registry;
use connections::access_log::AccessLog;
use connections::recorder::Recorder;
use connections::{Conns, Core};
use crash::report::Collector;
use crash::rescue::{self, RescueContext};
use crash::{start, traps};
use draining::Spread;
use handshake::Handshakes;
use handshake::authentication::Logins;
use host::handlers::{Handlers, Loaded};
use host::loop_host::LoopHost;
use listen::acceptor::Acceptor;
use listen::admission::Admission;
use listen::share::FairShare;
pub use process::start::Start;
use process::zygote;
use session::Session;
use topics::link::Link;
use topics::subscriptions::Subscriptions;
use transfer::Transfer;
use transfer::intake::Intake;

/// Connections that a process for one connection has room for: for that one, and for those of an earlier process that
/// wait for their peers to close.
const PER_CONNECTION: u32 = 64;

/// The event loop and its rooms, which live as long as the process.
struct Worker {
    /// While the server drains: which connections are closed when.
    spread: RefCell<Option<Spread>>,
    /// SIGTERM, which is blocked since the fork.
    signals: SignalFd,
    descriptors: &'static Descriptors,
    conns: &'static Conns,
    handlers: &'static Handlers,
    session: &'static Session,
    handshakes: &'static Handshakes,
    link: &'static Link,
    transfer: Transfer,
    acceptor: &'static Acceptor,
}

/// Runs a worker until it is told to leave; returns the exit code of the process.
pub fn run(start: Start) -> i32 {
    match start.load() {
        Ok(loaded) => run_loaded(start, loaded),
        Err(error) => {
            log::error!("worker: {error}");
            1
        }
    }
}

/// Runs a zygote until it is told to leave, and in the processes that it forks a worker; returns the exit code of the
/// process. `settle` is what such a process does first, in its slot.
pub fn run_zygote(start: Start, settle: &zygote::Settle) -> i32 {
    match zygote::serve_forks(start, settle) {
        Ok(None) => 0,
        Ok(Some((child, loaded))) => run_loaded(child, loaded),
        Err(error) => {
            log::error!("zygote: {error}");
            start::forget();
            1
        }
    }
}

/// The same where the handlers have been loaded.
fn run_loaded(start: Start, loaded: Loaded) -> i32 {
    let slot = start.shared.scoreboard.slot(start.slot);
    match serve(start, loaded) {
        Ok(()) => {
            rescue::dismiss();
            // A process that ends in another state was ended by a handler.
            slot.inspect(|slot| slot.set_state(State::Stopping));
            0
        }
        Err(error) => {
            log::error!("worker: {error}");
            start::forget();
            1
        }
    }
}

fn serve(start: Start, loaded: Loaded) -> io::Result<()> {
    let (slot, crash_report) = (start.record()?, start.report()?);
    let Loaded { services, report: ready, modules, tasks, posts } = loaded;
    let Start { config, routes, listeners, gateways, shared, slot: index, control, inbox, .. } = start;
    let (rendezvous, txs, cgi, standby) = (start.rendezvous, start.txs, start.cgi, start.standby);
    let Shared { scoreboard, counters, addresses, breakers, .. } = shared;
    let pid = std::process::id() as i32;
    let number = slot.place();
    let pool = usize::from(number.pool);
    let taken = (number.number > 0 && config.is_per_connection(pool)).then(Cell::default);
    let most = if taken.is_some() { PER_CONNECTION } else { most_connections(&config) };

    let presence: &Presence = leak(Presence { pid, pool, scoreboard, slot, control: leak(control), taken });
    let life = leak(Lifecycle::new());
    let metrics = leak(Metrics::new(counters, &routes, (index, number), pid, config.metrics.is_some()));
    metrics.lane.present().connections_limit.set(most.into());
    metrics.lane.present().threads_limit.set(config.threads.into());
    let poll = leak(Poll::new()?);
    let commands: &'static CommandQueue = memory::guard(CommandQueue::new(most, config.sending, metrics)?)?;
    let registry: &Registry = leak(Registry::new(commands));
    let progress: &Progress = memory::guard(Progress::default())?;
    let conns = leak(Conns {
        core: RefCell::new(Core::new(most, &config)?),
        batch: RefCell::default(),
        handlers: routes.handlers().iter().map(|route| config.handler(&route.resource).clone()).collect(),
        life,
        poll,
        commands,
        metrics,
        shared_frames: Default::default(),
        presence,
        addresses,
        access_log: AccessLog::new(Arc::clone(&config), Arc::clone(&routes)),
        recorder: Recorder::default(),
        config: Arc::clone(&config),
        routes: Arc::clone(&routes),
    });
    let scopes = routes.handlers().iter().map(|route| config.scope_of(&route.resource).to_owned()).collect();
    let subscriptions: &Subscriptions = leak(Subscriptions::new(scopes, config.topics, commands, metrics));
    let link: &Link = leak(Link::new(conns, subscriptions, progress, rendezvous));
    let descriptors = leak(Descriptors::new(slot, scoreboard));
    let share = FairShare { scoreboard, index, slot, connections: most };
    let acceptor = leak(Acceptor::new(&listeners, gateways, poll, descriptors, share));
    if !listeners.is_empty() {
        listen::orphan_watch::start(listeners, scoreboard)?;
    }
    let admission = leak(Admission::new(Arc::clone(&config), addresses.join(pid, pool)));
    let threads: &ThreadHost = leak(ThreadHost::new(commands, registry, metrics, config.threads));
    let host = leak(LoopHost { conns, handshakes: registry, current: slot.call });
    let handlers = leak(Handlers { services, tasks, posts, current: slot.call, conns });
    let session = leak(Session { conns, handlers, threads, admission, complaints: RefCell::default() });
    let resources = routes.resources().map(|(path, number)| {
        let route = routes.get(number);
        http::Resource {
            path: path.to_owned(),
            protocols: route.map_or(Vec::new(), |route| route.protocols.clone()),
        }
    });
    let resources: Vec<_> = resources.collect();
    let document_root = config.document_root.as_deref().map(|root| config.inside(root).into_owned());
    let handshakes = leak(Handshakes {
        conns,
        session,
        handlers,
        registry,
        admission,
        site: Site::new(document_root, &resources)?,
        breakers,
        logins: Logins::new(commands)?,
        probes: RefCell::default(),
    });
    let arrivals: &mut Arrivals = memory::guard_zeroed()?;
    let known_arrivals = NonNull::from(&mut *arrivals);
    let (records, topics) = conns.core.borrow().table.raw();
    place::set_foreign_host(threads);
    place::set_host(host);
    set_pending_handshakes(registry);
    set_topics(subscriptions);
    rescue::prepare(RescueContext {
        pid,
        collector: Collector { modules, crash_report },
        records,
        topics,
        unsent: conns.core.borrow().table.unsent(),
        progress,
        arrivals: known_arrivals,
        commands,
        slot,
        tx: inbox.tx.as_raw_fd(),
        control: presence.control.as_fd().as_raw_fd(),
        shipment: UnsafeCell::new(Shipment::new()),
    })?;
    traps::complete()?;
    if let Some(watchdog) = Watchdog::new(&config, &routes, slot) {
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || watchdog.run())?;
    }
    let transfer = Transfer {
        conns,
        handlers,
        session,
        handshakes,
        link,
        progress,
        intake: Intake::new(inbox, poll, descriptors, arrivals),
        cgi,
        txs: RefCell::new(txs.into_iter().map(|(slot, tx)| (slot, Rc::new(tx))).collect()),
        shipment: RefCell::new(Box::new(Shipment::new())),
        leaving: RefCell::default(),
        detaching: RefCell::default(),
        waiting: RefCell::default(),
    };
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(&SigSet::from(Signal::SIGTERM), flags)?;
    let worker: &'static Worker = leak(Worker {
        spread: RefCell::default(),
        signals,
        descriptors,
        conns,
        handlers,
        session,
        handshakes,
        link,
        transfer,
        acceptor,
    });
    worker.handlers.tasks.begin(poll)?;
    worker.handlers.posts.begin(commands);
    if standby {
        slot.set_state(State::Standby);
    } else {
        worker.begin()?;
    }
    presence.control.send_report(&ready)?;
    worker.run()
}

/// The rooms of a worker live as long as its process, and refer to each other.
fn leak<T>(room: T) -> &'static T {
    Box::leak(Box::new(room))
}

impl Worker {
    /// From now on connections are served.
    fn begin(&self) -> io::Result<()> {
        let slot = self.conns.presence.slot;
        slot.beat(clock::now());
        slot.set_state(State::Running);
        self.transfer.intake.watch();
        let acceptor = self.acceptor;
        if acceptor.exists() {
            std::thread::Builder::new().name("accept-throttle".to_owned()).spawn(|| acceptor.throttle())?;
        }
        Ok(())
    }
}

/// Connections that this process can have: a pool may have a limit of its own.
fn most_connections(config: &Config) -> u32 {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let possible = files.saturating_sub(config.reserved_descriptors()).max(1);
    config.connections.min(u32::try_from(possible).unwrap_or(u32::MAX)).min(timers::MAX_SLOT)
}
