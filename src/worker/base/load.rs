//! How many connections this process has, as the scoreboard tells the others.
//!
//! A process for one connection counts one from the moment that somebody reserves it until it has left, so that it is
//! reserved once.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use crate::fleet::scoreboard::{Scoreboard, Slot};

pub struct Load {
    slot: &'static Slot,
    scoreboard: &'static Scoreboard,
    /// In a process for one connection: whether that has come.
    taken: Option<Cell<bool>>,
}

impl Load {
    /// Of the process in this slot; `per_connection` if it is for one connection.
    pub fn new(slot: &'static Slot, scoreboard: &'static Scoreboard, per_connection: bool) -> Self {
        Self { slot, scoreboard, taken: per_connection.then(|| Cell::new(false)) }
    }

    pub fn is_per_connection(&self) -> bool {
        self.taken.is_some()
    }

    pub fn is_taken(&self) -> bool {
        self.taken.as_ref().is_some_and(Cell::get)
    }

    pub fn accepted(&self) {
        self.slot.connections.fetch_add(1, Ordering::Relaxed);
        self.scoreboard.changed();
    }

    /// A connection arrives from another process. False: it is not served here, where the one connection has come already.
    pub fn arrived(&self) -> bool {
        let Some(taken) = &self.taken else {
            self.slot.connections.fetch_add(1, Ordering::Relaxed);
            return true;
        };
        if taken.replace(true) {
            return false;
        }
        // It comes without a reservation if it was rescued from a crash.
        self.slot.connections.store(1, Ordering::Relaxed);
        true
    }

    pub fn release(&self) {
        if self.taken.is_some() {
            return; // it stays reserved
        }
        self.slot.connections.fetch_sub(1, Ordering::Relaxed);
        self.scoreboard.changed();
    }
}
