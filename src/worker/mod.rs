//! A worker: one process that owns connections and runs handlers.
//!
//! One event loop touches all sockets (`event_loop`). A connection's way:
//! `accept` -> `start_connection` (request head, route, opening handshake) -> `traffic`
//! (messages both ways, closing) -> handlers, whose calls come back in through
//! `calls` (on the loop), `thread` (blocking handlers) or `outside` (threads of
//! their own).

mod base;
mod blocking;
mod commands;
mod conn;
mod crash;
mod event_loop;
mod handshake;
mod host;
mod listen;
mod ops;
pub mod process;
mod session;
mod transfer;

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::gettid;

use crate::config::Config;
use crate::ffi::host as plugin_host;
use crate::fleet::addresses::Addresses;
use crate::fleet::breakers;
use crate::fleet::control::{self, Channel, Report};
use crate::fleet::counters::Counters;
use crate::fleet::crash_report::CrashReport;
use crate::fleet::inbox::Inbox;
use crate::fleet::listener::Listener;
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::{Scoreboard, Slot, State};
use crate::http::Site;
use crate::proto::ws::deflate::codec::Codecs;
use base::memory;
use base::metrics::Metrics;
use base::poll::Poll;
use base::timers::{self, Timers};
use blocking::thread::ThreadHost;
use blocking::watchdog::Watchdog;
use commands::queue::{Command, CommandQueue};
use conn::handoff::{Arrivals, Shipment};
use conn::send_queue::QueuePool;
use conn::table::Table;
use conn::turn::TurnQueue;
use crash::modules::Modules;
use crash::report::Collector;
use crash::rescue::{self, RescueContext};
use handshake::breaker_probe::Probe;
use host::foreign_host::ForeignThreadHost;
use host::handlers::{Loaded, Service};
use listen::accept::{Acceptor, Share};
use listen::admission::Admission;
use ops::access_log::AccessLog;
use process::per_connection;
use transfer::detach::Detaching;
use transfer::send::Leaving;

/// What a worker is given by the supervisor, just after fork.
pub struct Start {
    /// The configuration.
    pub config: Arc<Config>,
    /// The handlers to load.
    pub routes: Arc<Routes>,
    /// The sockets to accept from.
    pub listeners: Vec<Arc<Listener>>,
    /// Where all workers write down how they are.
    pub scoreboard: &'static Scoreboard,
    /// Where all processes count.
    pub counters: &'static Counters,
    /// This worker's slot.
    pub slot: usize,
    /// To the supervisor.
    pub control: Channel,
    /// Where connections come from other workers.
    pub inbox: Inbox,
    /// By slot: where others are sent connections.
    pub txs: Vec<OwnedFd>,
    /// Whether to wait for the order to begin.
    pub standby: bool,
    /// By handler: whether it is served.
    pub breakers: &'static [breakers::CircuitBreaker],
    /// By slot: what a crash leaves.
    pub crash_report: &'static [CrashReport],
    /// Where connections are counted.
    pub addresses: &'static Addresses,
}

/// What changes while a connection is served. Never borrowed while a handler runs:
/// its calls borrow it.
struct Core {
    table: Table,
    codecs: Codecs,
    queue_pool: QueuePool,
    timers: Timers,
    /// Connections with something to write.
    dirty: Vec<u64>,
    /// Connections whose end the handler is to hear of.
    over: Vec<u64>,
    /// Connections that wait for their turn, among them those that may be read again and have something left unread.
    turns: TurnQueue,
}

/// The worker. Lives as long as the process.
struct Worker {
    config: Arc<Config>,
    routes: Arc<Routes>,
    /// By index of the route; none if it could not be loaded.
    services: Vec<Option<Service>>,
    site: Site,
    slot: &'static Slot,
    scoreboard: &'static Scoreboard,
    control: Channel,
    /// Where connections come from other workers.
    inbox: Inbox,
    /// By slot: where others are sent connections.
    txs: RefCell<Vec<OwnedFd>>,
    /// The pool that it belongs to.
    pool: usize,
    metrics: &'static Metrics,
    commands: &'static CommandQueue,
    thread_host: &'static ThreadHost,
    poll: &'static Poll,
    core: RefCell<Core>,
    /// The time of this turn of the loop; ns.
    now: Cell<u64>,
    /// Where connections come in.
    acceptor: &'static Acceptor,
    /// By handler: whether it is served.
    breakers: &'static [breakers::CircuitBreaker],
    /// Who may come in.
    admission: Admission,
    /// Connections to quarantined handlers that were let through.
    probes: RefCell<Vec<Probe>>,
    /// This process.
    pid: i32,
    /// Connections that it can have.
    most_connections: u32,
    /// Connections that have come from another process and are not in the table yet.
    arrivals: RefCell<&'static mut Arrivals>,
    /// Room for connections on their way to another process.
    shipment: RefCell<Box<Shipment>>,
    /// Where connections are handed over to, once told so.
    leaving: RefCell<Option<Leaving>>,
    /// When to leave, once told to stop.
    stop_at: Cell<Option<u64>>,
    /// In a process for one connection: whether that has come.
    per_connection: Option<Cell<bool>>,
    /// Blocking connections on their way to another process.
    detaching: RefCell<Vec<Detaching>>,
    /// Blocking threads that run.
    threads: Cell<u32>,
    /// Commands of other threads that were taken and are still to be carried out.
    batch: RefCell<VecDeque<Command>>,
    /// What the access log knows of the connections.
    access_log: AccessLog,
    /// The text that a handler is being given: already known to be UTF-8.
    delivering: Cell<(*const u8, usize)>,
}

/// Runs a worker until it is told to leave; returns the exit code of the process.
pub fn run(start: Start) -> i32 {
    let place = start.scoreboard.slot(start.slot).map(Slot::place).unwrap_or_default();
    let (loaded, ready) = Loaded::load(&start.config, &start.routes, place);
    run_loaded(start, loaded, ready)
}

/// The same where the handlers have been loaded.
fn run_loaded(start: Start, loaded: Loaded, ready: Report) -> i32 {
    match serve(start, loaded, ready) {
        Ok(()) => 0,
        Err(error) => {
            log::error!("worker: {error}");
            1
        }
    }
}

fn serve(start: Start, loaded: Loaded, ready: Report) -> io::Result<()> {
    let Start { config, routes, listeners, scoreboard, slot: index, control, .. } = start;
    let (breakers, crash_report, standby) = (start.breakers, start.crash_report, start.standby);
    let (inbox, txs) = (start.inbox, start.txs);
    let slot = scoreboard.slot(index).ok_or_else(|| io::Error::other("no such slot in the scoreboard"))?;
    let pid = std::process::id() as i32;
    let metrics =
        Metrics::new(start.counters, &routes, (index, slot.place()), pid, config.metrics.is_some())?;
    let metrics: &Metrics = Box::leak(Box::new(metrics));
    let per_connection = per_connection::is_per_connection_place(&config, slot.place());
    let connections = if per_connection { per_connection::CONNECTIONS } else { most_connections(&config) };
    let commands: &'static CommandQueue =
        memory::guard(CommandQueue::new(connections, config.sending, metrics)?)?;
    plugin_host::set_outside_host(Box::leak(Box::new(ForeignThreadHost { commands })));
    let poll: &Poll = Box::leak(Box::new(Poll::new()?));
    let acceptor: &Acceptor =
        Box::leak(Box::new(Acceptor::new(&listeners, poll, Share { scoreboard, index, slot, connections })));
    let arrivals = memory::guard(Arrivals::new())?;
    let known_arrivals = NonNull::from(&mut *arrivals);
    let pool = usize::from(slot.place().pool);
    let desk = start.addresses.join(std::process::id() as i32, pool);
    let admission = Admission::new(Arc::clone(&config), desk);
    let resources = routes.resources().map(|(resource, _)| resource.to_owned()).collect();
    let worker: &'static Worker = Box::leak(Box::new(Worker {
        site: Site::new(
            config.document_root.as_deref().map(|root| config.inside(root).into_owned()),
            resources,
        )?,
        slot,
        scoreboard,
        control,
        inbox,
        txs: RefCell::new(txs),
        pool,
        metrics,
        commands,
        thread_host: Box::leak(Box::new(ThreadHost { commands, metrics })),
        poll,
        core: RefCell::new(Core {
            table: Table::new(connections)?,
            codecs: Codecs::new(),
            queue_pool: QueuePool::default(),
            timers: Timers::new(connections),
            dirty: Vec::new(),
            over: Vec::new(),
            turns: TurnQueue::default(),
        }),
        now: Cell::new(plugin_host::monotonic()),
        acceptor,
        breakers,
        admission,
        probes: RefCell::default(),
        pid,
        most_connections: connections,
        arrivals: RefCell::new(arrivals),
        shipment: RefCell::new(Box::new(Shipment::new())),
        leaving: RefCell::default(),
        stop_at: Cell::new(None),
        detaching: RefCell::default(),
        threads: Cell::new(0),
        batch: RefCell::default(),
        access_log: AccessLog::new(config.log.access.is_some()),
        delivering: Cell::new((std::ptr::null(), 0)),
        per_connection: per_connection.then(|| Cell::new(false)),
        services: loaded.0,
        config: Arc::clone(&config),
        routes,
    }));
    plugin_host::set_host(worker);
    let loaded_files = worker.services.iter().zip(0..).filter_map(|(service, index)| {
        service.as_ref().map(|service| (index, service.plugin.path.as_path()))
    });
    let modules = Modules::read(&loaded_files.collect::<Vec<_>>())?;
    let crash_report =
        *crash_report.get(index).ok_or_else(|| io::Error::other("no such slot for a crash report"))?;
    rescue::install(RescueContext {
        pid: worker.pid,
        collector: Collector { modules, crash_report },
        records: worker.core.borrow().table.records(),
        arrivals: known_arrivals,
        commands,
        slot,
        tx: worker.inbox.tx().as_raw_fd(),
        control: worker.control.as_fd().as_raw_fd(),
        report: &control::CRASHED,
        shipment: UnsafeCell::new(Shipment::new()),
    })?;
    if config.handler_time != 0 {
        let routes = Arc::clone(&worker.routes);
        let watchdog = Watchdog { slot, event_loop: gettid(), routes, limit: config.handler_time };
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || watchdog.run())?;
    }
    if standby {
        slot.set_state(State::Standby);
    } else {
        worker.begin()?;
    }
    worker.control.send_report(ready)?;
    worker.run()
}

impl Worker {
    /// From now on connections are served.
    fn begin(&self) -> io::Result<()> {
        self.slot.heartbeat.store(plugin_host::monotonic(), Ordering::Relaxed);
        self.slot.set_state(State::Running);
        self.poll.add(self.inbox.rx(), event_loop::INBOX)?;
        let acceptor = self.acceptor;
        if acceptor.exists() {
            std::thread::Builder::new().name("doorkeeper".to_owned()).spawn(|| acceptor.keep())?;
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
