//! Malformed messages in an inbox: counted, and logged at a limited rate, since the sender may send many.

use std::cell::Cell;
use std::time::Duration;

use crate::clock;
use crate::log::Limit;

pub struct Junk {
    limit: Limit,
    /// The process that has sent what is being read.
    sender: Cell<i32>,
}

impl Default for Junk {
    fn default() -> Self {
        Self { limit: Limit::new(1, Duration::from_secs(10)), sender: Cell::default() }
    }
}

impl Junk {
    /// What is read from here on was sent by this process.
    pub fn set_sender(&self, pid: i32) {
        self.sender.set(pid);
    }

    pub fn note(&self, what: impl FnOnce() -> String) {
        if let Some(left_out) = self.limit.admit(clock::now()) {
            log::error!("inbox: from process {}: {}{left_out}", self.sender.get(), what());
        }
    }
}
