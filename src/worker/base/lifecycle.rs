//! The time of the event loop's present turn, and when the worker is to be gone.

use std::cell::Cell;

use crate::clock;

/// Of one event loop, which alone uses it.
pub struct Lifecycle {
    /// When this turn of the loop began; ns.
    pub now: Cell<u64>,
    /// When to leave, once told to stop; ns.
    pub stop_at: Cell<Option<u64>>,
}

impl Lifecycle {
    /// The first turn begins now.
    pub fn new() -> Self {
        Self { now: Cell::new(clock::now().as_nanos()), stop_at: Cell::new(None) }
    }

    /// Whether the worker was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop_at.get().is_some()
    }
}
