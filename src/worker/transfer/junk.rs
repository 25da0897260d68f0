//! Malformed messages in an inbox: counted, and logged at a limited rate, since the sender may send many.

use std::cell::Cell;
use std::time::Duration;

use crate::clock;
use crate::worker::base::log_limit::LogLimit;

/// Lines, and in which time.
const RATE: (u32, Duration) = (1, Duration::from_secs(10));

#[derive(Default)]
pub struct Junk {
    said: LogLimit,
    /// The process that has sent what is being read.
    sender: Cell<i32>,
}

impl Junk {
    /// What is read from here on was sent by this process.
    pub fn set_sender(&self, pid: i32) {
        self.sender.set(pid);
    }

    pub fn note(&self, what: impl FnOnce() -> String) {
        let Some(unsaid) = self.said.admit(RATE, clock::now()) else { return };
        let sender = self.sender.get();
        log::error!(
            "inbox: from process {sender}: {}; {unsaid} more like it since this was last logged",
            what()
        );
    }
}
