//! The process that serves metrics, which is no worker and has no slot: it is forked anew when it dies and at a reload,
//! and ends with the supervisor. And what the supervisor itself counts.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::crash::Cause;
use super::policy::slots::Time;
use super::{Fleet, spawn};
use crate::config::{Config, Pool};
use crate::fleet::counters::{Counters, DEATHS, Entry, OTHER, PlaceCounters};
use crate::fleet::listener::{self, BindError, Listener};
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::{self, MAX_SLOTS};

/// The pauses (ns) before it is forked once more: doubled from the first to the longest, and forgotten when it has
/// served for the longest.
const PAUSES: (Time, Time) = (1_000_000_000, 30_000_000_000);
/// Length of the kernel's queue of clients.
const BACKLOG: i32 = 64;

/// The process, if there is one, and its sockets.
pub(super) struct Metrics {
    /// None: metrics are not served.
    pub listeners: Vec<Arc<Listener>>,
    /// When the supervisor started.
    pub started: SystemTime,
    pid: Option<Pid>,
    /// It is of an older edition, and has been killed.
    is_old: bool,
    /// When the last one was forked.
    since: Time,
    /// When to fork.
    at: Time,
    /// The last pause; 0: none.
    pause: Time,
}

impl Default for Metrics {
    fn default() -> Self {
        let started = SystemTime::now();
        Self { listeners: Vec::new(), started, pid: None, is_old: false, since: 0, at: 0, pause: 0 }
    }
}

impl Metrics {
    /// Binds, if metrics are to be served and there is no socket for that.
    pub fn prepare(config: &Config, inherited: &[Arc<Listener>]) -> Result<Self, BindError> {
        Ok(Self { listeners: bind(config, inherited)?, ..Self::default() })
    }

    /// Serves on these sockets, and tells of the new edition, from now on.
    pub fn renew(&mut self, listeners: Vec<Arc<Listener>>) {
        let is_gone = |old: &&Arc<Listener>| !listeners.iter().any(|new| Arc::ptr_eq(old, new));
        self.listeners.iter().filter(is_gone).for_each(|listener| listener.remove_file());
        self.listeners = listeners;
        self.start_anew();
    }

    /// What it was forked with has changed.
    pub fn start_anew(&mut self) {
        if let Some(pid) = self.pid {
            // Not reaped yet, so the pid is still its own; it has nothing to lose. Clients wait in the socket.
            self.is_old = kill(pid, Signal::SIGKILL).is_ok();
        }
    }

    /// A process has ended: whether it was this one.
    pub fn ended(&mut self, pid: Pid, status: WaitStatus) -> bool {
        if self.pid != Some(pid) {
            return false;
        }
        self.pid = None;
        if !std::mem::take(&mut self.is_old) {
            log::error!("metrics[{pid}] is gone: {status:?}");
            self.retry();
        }
        true
    }

    fn retry(&mut self) {
        let now = scoreboard::now();
        let served = now.saturating_sub(self.since) >= PAUSES.1;
        self.pause = if served { PAUSES.0 } else { (self.pause * 2).clamp(PAUSES.0, PAUSES.1) };
        self.at = now.saturating_add(self.pause);
    }

    /// Ends it, for good.
    pub fn end(&mut self) {
        self.listeners.iter().for_each(|listener| listener.remove_file());
        self.hand_over();
    }

    /// Ends it, and leaves the sockets to another executable.
    pub fn hand_over(&mut self) {
        self.listeners.clear();
        if let Some(pid) = self.pid.take() {
            // Not reaped yet, so the pid is still its own; it has nothing to lose.
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

impl Fleet {
    /// When the process is to be forked, if it is. While there are two executables the one that serves has it.
    pub(super) fn metrics_due(&self) -> Option<Time> {
        let metrics = &self.metrics;
        let is_missing = metrics.pid.is_none() && !metrics.listeners.is_empty();
        (is_missing && self.predecessor.is_none()).then_some(metrics.at)
    }

    /// Forks the process if it is missing.
    pub(super) fn tend_metrics(&mut self) {
        let now = scoreboard::now();
        if self.metrics_due().is_none_or(|at| at > now) {
            return;
        }
        self.metrics.since = now;
        match spawn::spawn_metrics(self) {
            Ok(pid) => self.metrics.pid = Some(pid),
            Err(error) => {
                log::error!("the process that serves metrics can not be forked: {error}");
                self.metrics.retry();
            }
        }
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
        self.scoreboard.slot(slot).and_then(|record| self.counters.place(record.place())).map(count);
    }

    /// Counts something of a handler.
    pub(super) fn count_handler(&self, handler: u16, count: impl FnOnce(&Entry)) {
        let route = self.routes.handlers().get(usize::from(handler));
        let entry = route.map_or(OTHER, |route| self.counters.entry_of(&route.resource));
        self.counters.entry(entry).map(count);
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
