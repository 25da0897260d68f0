//! The time of the event loop's present turn, when its chores are due, and when the worker is to be gone.

use std::cell::Cell;

use crate::clock;
use crate::time::{Instant, TurnStart};

#[derive(Clone, Copy)]
pub struct Stop {
    /// When connections whose peers have not answered the Close are cut: handlers have the rest of the time for
    /// on_close. At or before `leave_at`.
    pub cut_at: Instant,
    /// When the worker leaves in any case.
    pub leave_at: Instant,
}

impl Stop {
    pub fn new(now: Instant, leave_at: Instant) -> Self {
        Self { cut_at: now + leave_at.since(now) / 4 * 3, leave_at }
    }

    /// When its next part is due.
    pub fn next(self, now: Instant) -> Instant {
        if now < self.cut_at { self.cut_at } else { self.leave_at }
    }
}

/// Of one event loop, which alone uses it.
pub struct Lifecycle {
    turn: Cell<TurnStart>,
    /// Once told to stop.
    pub stop: Cell<Option<Stop>>,
    /// The chores, which no event triggers, are due at the end of this turn.
    has_chores: Cell<bool>,
    /// When they are due in any case.
    chores_at: Cell<Instant>,
}

impl Lifecycle {
    pub fn new() -> Self {
        let turn = Cell::new(TurnStart::at(clock::now()));
        Self { turn, stop: Cell::new(None), has_chores: Cell::new(true), chores_at: Cell::default() }
    }

    pub fn begin_turn(&self, now: Instant) {
        self.turn.set(TurnStart::at(now));
    }

    #[inline]
    pub fn turn(&self) -> TurnStart {
        self.turn.get()
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.get().is_some()
    }

    /// The chores are due at the end of this turn: something has changed that they depend on.
    #[inline]
    pub fn request_chores(&self) {
        self.has_chores.set(true);
    }

    #[inline]
    pub fn are_chores_due(&self) -> bool {
        self.has_chores.get() || self.turn().instant() >= self.chores_at.get()
    }

    /// The chores begin. What requests them from here on holds for the next time.
    pub fn begin_chores(&self) {
        self.has_chores.set(false);
    }

    /// They are done, and due again at `next`; in the next turn already if there is `more`.
    pub fn end_chores(&self, next: Instant, more: bool) {
        self.has_chores.set(more || self.has_chores.get());
        self.chores_at.set(next);
    }

    #[inline]
    pub fn chores_at(&self) -> Instant {
        self.chores_at.get()
    }
}
