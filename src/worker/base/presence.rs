//! What this process is to the others: its slot in the scoreboard, its channel to the supervisor, and how many
//! connections it has.
//!
//! A process for one connection counts one from its reservation to its end, so that it is reserved once.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use crate::fleet::memory::scoreboard::{Scoreboard, Slot};
use crate::fleet::sockets::control::{Channel, Report};

pub struct Presence {
    pub pid: i32,
    /// The pool that it serves.
    pub pool: usize,
    pub scoreboard: &'static Scoreboard,
    /// Its own.
    pub slot: &'static Slot,
    /// To the supervisor.
    pub control: &'static Channel,
    /// In a process for one connection: whether that has come.
    pub taken: Option<Cell<bool>>,
}

impl Presence {
    pub fn report(&self, report: Report) {
        if let Err(error) = self.control.send_report(&report) {
            log::warn!("cannot report to the supervisor: {error}");
        }
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

    /// A connection arrives from another process. False: it is not served here, where the one connection has come
    /// already.
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

    /// A connection is here no more.
    pub fn release(&self) {
        if self.taken.is_some() {
            return; // it stays reserved
        }
        self.slot.connections.fetch_sub(1, Ordering::Relaxed);
        self.scoreboard.changed();
    }
}
