//! What this worker counts, and how long its handlers take: the clock is looked at only if somebody wants to know,
//! which is when the server has an endpoint for metrics.

use crate::clock;
use crate::ffi::call::Handler;
use crate::ffi::place::Callback;
use crate::fleet::memory::counters::handler::{HandlerCounters, Times};
use crate::fleet::memory::counters::{Counters, Lane, NONE, OTHER, PlaceCounters};
use crate::fleet::memory::scoreboard::Place;
use crate::fleet::routes::Routes;
use crate::time::{Instant, TurnStart};

/// The counters of this process. Those of a handler are found by its number in the routes.
pub struct Metrics {
    /// What is counted of this process as a whole.
    pub lane: Lane,
    counters: &'static Counters,
    /// By handler: its entry in the counters of all processes, and this process's part of that.
    handlers: Vec<(usize, &'static HandlerCounters)>,
    /// Of the worker that this process is.
    pub place: &'static PlaceCounters,
    timed: bool,
}

pub const NO_HANDLER: u16 = u16::MAX;

impl Metrics {
    /// Begins to count what the process in this slot does; `timed`: times as well.
    pub fn new(
        counters: &'static Counters,
        routes: &Routes,
        (slot, place): (usize, Place),
        pid: i32,
        timed: bool,
    ) -> Self {
        let lane = counters.claim(usize::from(place.pool), slot, pid);
        let entries = routes.handlers().iter().map(|route| counters.entry_of(&route.resource));
        let handlers = entries.map(|entry| (entry, lane.counters(entry))).collect();
        // Without room in shared memory the counts are kept in private memory, and not shown.
        let place = counters.place(place).unwrap_or_else(|| Box::leak(Box::default()));
        Self { lane, counters, handlers, place, timed }
    }

    /// What is counted for a handler, or for [`NO_HANDLER`].
    pub fn of(&self, handler: u16) -> &'static HandlerCounters {
        let entry = if handler == NO_HANDLER { NONE } else { OTHER };
        let known = self.handlers.get(usize::from(handler));
        known.map_or_else(|| self.lane.counters(entry), |(_, counters)| counters)
    }

    /// Open connections to a handler, in all processes.
    pub fn open_of(&self, handler: u16) -> u64 {
        self.handlers.get(usize::from(handler)).map_or(0, |(entry, _)| self.counters.open_of(*entry))
    }

    pub fn stopwatch(&self, handler: u16) -> Stopwatch {
        Stopwatch(self.timed.then(|| self.of(handler)))
    }

    /// A turn of the event loop has ended. [event loop]
    pub fn count_turn(&self, turn: TurnStart) {
        if self.timed {
            self.place.turns.add(nanoseconds_since(turn.instant()));
        }
    }
}

/// Measures how long calls take, or does not.
#[derive(Clone, Copy)]
pub struct Stopwatch(Option<&'static HandlerCounters>);

impl Stopwatch {
    /// Calls, and counts the time. [any thread]
    pub fn time<R>(self, callback: Callback, call: impl FnOnce() -> R) -> R {
        let timing = self.start(callback);
        let result = call();
        timing.stop();
        result
    }

    /// The same for a callback that the handler may not have, which is not counted then. [any thread]
    pub fn time_of<R>(self, handler: Handler, callback: Callback, call: impl FnOnce() -> R) -> R {
        if handler.has(callback) { self.time(callback, call) } else { call() }
    }

    /// A call begins. [any thread]
    #[inline]
    pub fn start(self, callback: Callback) -> Timing {
        Timing(self.0.and_then(|counters| Some((counters.times(callback as u32)?, clock::now()))))
    }
}

/// A call that is being measured, or is not.
pub struct Timing(Option<(&'static Times, Instant)>);

impl Timing {
    #[inline]
    pub fn stop(self) {
        if let Some((times, begun)) = self.0 {
            times.add(nanoseconds_since(begun));
        }
    }
}

fn nanoseconds_since(begun: Instant) -> u64 {
    clock::now().since(begun).as_nanos() as u64
}

/// Counts a WebSocket as open for as long as it lives. [event loop]
pub struct OpenCount(&'static HandlerCounters);

impl OpenCount {
    pub fn new(counters: &'static HandlerCounters) -> Self {
        counters.open.add(1);
        Self(counters)
    }

    pub fn counters(&self) -> &'static HandlerCounters {
        self.0
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.open.subtract(1);
    }
}
