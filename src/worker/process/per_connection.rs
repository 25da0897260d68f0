//! Processes that serve one connection and leave with it. In the scoreboard they count one connection from the moment
//! that somebody reserves them for it until they have left, so that they are reserved once.

use std::sync::atomic::Ordering;

use crate::config::Config;
use crate::fleet::control::Report;
use crate::fleet::scoreboard::Place;
use crate::worker::Worker;

/// Room in their tables: for that one, and for those of an earlier process that wait for their peers to close.
pub const CONNECTIONS: u32 = 64;

/// Whether the worker of this place is one of them.
pub fn is_per_connection_place(config: &Config, place: Place) -> bool {
    let pool = config.pools.get(usize::from(place.pool));
    place.number > 0 && pool.is_some_and(|pool| pool.children.is_some())
}

impl Worker {
    /// Whether a connection that arrives is served here: the first one, where there may be one only.
    pub fn admit(&self) -> bool {
        let Some(taken) = &self.per_connection else {
            self.slot.connections.fetch_add(1, Ordering::Relaxed);
            return true;
        };
        if taken.replace(true) {
            return false;
        }
        // It has come without a reservation if it was saved from a crash.
        self.slot.connections.store(1, Ordering::Relaxed);
        if let Err(error) = self.control.send_report(Report::Taken) {
            log::error!("to the supervisor: {error}");
        }
        true
    }

    /// A connection is gone: the scoreboard hears of it.
    pub fn release_one(&self) {
        if self.per_connection.is_some() {
            return; // it stays reserved
        }
        self.slot.connections.fetch_sub(1, Ordering::Relaxed);
        self.scoreboard.changed();
    }

    /// Whether the one connection has come and gone.
    pub fn is_done(&self) -> bool {
        let taken = self.per_connection.as_ref().is_some_and(|taken| taken.get());
        taken && self.core.borrow().table.len() == 0 && self.threads.get() == 0
    }
}
