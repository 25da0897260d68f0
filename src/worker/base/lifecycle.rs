//! The time of the event loop's present turn, what it is to see to besides events, and when the worker is to be gone.

use std::cell::Cell;

use crate::clock;

/// Of one event loop, which alone uses it.
pub struct Lifecycle {
    /// When this turn of the loop began; ns.
    pub now: Cell<u64>,
    /// When to leave, once told to stop; ns.
    pub stop_at: Cell<Option<u64>>,
    /// Something has to be seen to at the end of this turn that no event tells of.
    has_chores: Cell<bool>,
    /// When to see to all of that in any case; ns.
    chores_at: Cell<u64>,
}

impl Lifecycle {
    /// The first turn begins now.
    pub fn new() -> Self {
        let now = Cell::new(clock::now().as_nanos());
        Self { now, stop_at: Cell::new(None), has_chores: Cell::new(true), chores_at: Cell::new(0) }
    }

    /// Whether the worker was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop_at.get().is_some()
    }

    /// The chores are due at the end of this turn: something has changed that they depend on.
    #[inline]
    pub fn request_chores(&self) {
        self.has_chores.set(true);
    }

    /// Whether the chores are due.
    #[inline]
    pub fn are_chores_due(&self) -> bool {
        self.has_chores.get() || self.now.get() >= self.chores_at.get()
    }

    /// The chores were done. They are due again at `next` (ns), and in the next turn already if there is `more`.
    pub fn chores_done(&self, next: u64, more: bool) {
        self.has_chores.set(more);
        self.chores_at.set(next);
    }

    /// When the loop has to turn for the chores; ns.
    #[inline]
    pub fn chores_at(&self) -> u64 {
        self.chores_at.get()
    }
}
