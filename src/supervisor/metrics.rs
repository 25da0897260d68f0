//! The process that serves metrics, which is no worker and has no slot: it is restarted when it dies and at a reload, and
//! ends with the supervisor. And what the supervisor itself counts.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::unistd::Pid;

use super::death::Cause;
use super::policy::backoff::{Backoff, Rule};
use super::processes::Processes;
use super::{Flow, Supervisor, spawn};
use crate::clock;
use crate::config::{Config, Pool};
use crate::fleet::counters::{Counters, DEATHS, Entry, OTHER, PlaceCounters};
use crate::fleet::listener::{self, BindError, Listener};
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::MAX_SLOTS;
use crate::time::Instant;

const RESTART: Rule = Rule {
    free: 0,
    first: Duration::from_secs(1),
    longest: Duration::from_secs(30),
    forgiven: Duration::from_secs(30),
};
/// Length of the kernel's queue of clients.
const BACKLOG: i32 = 64;

/// The process, if there is one, and its sockets.
pub(super) struct Metrics {
    /// None: metrics are not served.
    pub listeners: Vec<Arc<Listener>>,
    /// When the supervisor started.
    pub started: SystemTime,
    /// Whether this server is to serve them: while there are two, the one that serves does.
    pub is_wanted: bool,
    pid: Option<Pid>,
    /// When the last one was forked.
    since: Instant,
    /// When the next one is due.
    at: Instant,
    restart: Backoff,
}

impl Metrics {
    pub fn new(listeners: Vec<Arc<Listener>>, is_wanted: bool) -> Self {
        Self {
            listeners,
            started: SystemTime::now(),
            is_wanted,
            pid: None,
            since: Instant::default(),
            at: Instant::default(),
            restart: Backoff::new(RESTART),
        }
    }

    /// Serves on these sockets, and tells of the new generation, from now on.
    pub fn renew(&mut self, listeners: Vec<Arc<Listener>>, processes: &mut Processes) {
        let is_gone = |old: &&Arc<Listener>| !listeners.iter().any(|new| Arc::ptr_eq(old, new));
        self.listeners.iter().filter(is_gone).for_each(|listener| listener.remove_file());
        self.listeners = listeners;
        self.start_anew(processes);
    }

    /// What it was forked with has changed: another one is forked. It has nothing to lose, and clients wait in the socket.
    pub fn start_anew(&mut self, processes: &mut Processes) {
        self.pid.take().into_iter().for_each(|pid| processes.dismiss(pid));
    }

    /// The process has ended.
    pub fn ended(&mut self, pid: Pid, how: &str) {
        if self.pid.take_if(|known| *known == pid).is_some() {
            log::error!("metrics[{pid}] {how}");
            self.retry();
        }
    }

    fn retry(&mut self) {
        let now = clock::now();
        self.at = now + self.restart.failed(now.since(self.since));
    }

    /// When the process is to be forked, if it is.
    pub fn due(&self) -> Option<Instant> {
        let is_missing = self.pid.is_none() && !self.listeners.is_empty() && self.is_wanted;
        is_missing.then_some(self.at)
    }

    /// Ends it, for good.
    pub fn stop(&mut self, processes: &mut Processes) {
        self.is_wanted = false;
        self.start_anew(processes);
    }

    /// Another executable serves metrics on these sockets.
    pub fn hand_over(&mut self, processes: &mut Processes) {
        self.stop(processes);
    }

    /// It does not any more.
    pub fn take_back(&mut self) {
        self.is_wanted = true;
    }

    /// Removes the files of the sockets.
    pub fn remove_files(&self) {
        self.listeners.iter().for_each(|listener| listener.remove_file());
    }
}

impl Supervisor {
    /// Forks the process if it is due.
    pub(super) fn start_metrics(&mut self) -> Flow {
        let now = clock::now();
        if self.metrics.due().is_some_and(|at| at <= now) {
            self.metrics.since = now;
            match spawn::metrics(self)? {
                Ok(pid) => self.metrics.pid = Some(pid),
                Err(error) => {
                    log::error!("metrics: cannot fork: {error}");
                    self.metrics.retry();
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// A process of this slot has died, perhaps in a handler.
    pub(super) fn count_death(&self, slot: usize, cause: Cause, handler: Option<u16>) {
        let cause = DEATHS.iter().position(|name| *name == cause.name());
        self.count_in_place(slot, |counters| {
            if let Some(count) = cause.and_then(|cause| counters.deaths.get(cause)) {
                count.add_shared(1);
            }
        });
        if let Some(handler) = handler {
            self.count_handler(handler, |entry| entry.crashes.add(1));
        }
    }

    /// Counts something of the worker whose slot this is.
    pub(super) fn count_in_place(&self, slot: usize, count: impl FnOnce(&PlaceCounters)) {
        self.shared
            .scoreboard
            .slot(slot)
            .and_then(|record| self.shared.counters.place(record.place()))
            .map(count);
    }

    /// Counts something of a handler.
    pub(super) fn count_handler(&self, handler: u16, count: impl FnOnce(&Entry)) {
        let route = self.generation.routes.handlers().get(usize::from(handler));
        let entry = route.map_or(OTHER, |route| self.shared.counters.entry_of(&route.resource));
        self.shared.counters.entry(entry).map(count);
    }
}

/// The sockets to serve metrics on, of which those that are there go on.
pub(super) fn bind(config: &Config, have: &[Arc<Listener>]) -> Result<Vec<Arc<Listener>>, BindError> {
    let listeners = listener::bind_missing(config.metrics.as_slice(), BACKLOG, have)?;
    let is_new = |new: &&Arc<Listener>| !have.iter().any(|old| Arc::ptr_eq(old, new));
    for listener in listeners.iter().filter(is_new) {
        log::info!("metrics are served on {}", listener.address);
    }
    Ok(listeners)
}

/// Counters for a fleet. Before the first fork.
pub(super) fn counters(config: &Config, routes: &Routes) -> io::Result<&'static Counters> {
    // A reload doubles the processes for a while, and may make more of them.
    let processes: usize = config.pools.iter().map(Pool::processes).sum();
    let lanes = processes.saturating_mul(2).saturating_add(64).min(MAX_SLOTS);
    let counters = Counters::create(MAX_SLOTS, lanes, routes.handlers().len())?;
    enter_handlers(counters, routes);
    Ok(counters)
}

/// Sees to it that all handlers have counters. Before a worker is forked that serves them.
pub(super) fn enter_handlers(counters: &Counters, routes: &Routes) {
    for (_, route) in routes.in_service() {
        counters.enter(&route.resource);
    }
}
