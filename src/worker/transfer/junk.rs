//! What cannot be understood in an inbox: counted, and logged once in a while, since whoever sends it may send a lot.

use std::cell::Cell;
use std::time::Duration;

use crate::clock;
use crate::time::Instant;

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub struct Junk {
    /// When the next line may be written.
    next: Cell<Instant>,
    /// Not logged since the last line.
    unsaid: Cell<u64>,
    /// The process that has sent what is being read.
    sender: Cell<i32>,
}

impl Junk {
    /// What is read from here on was sent by this process.
    pub fn set_sender(&self, pid: i32) {
        self.sender.set(pid);
    }

    /// There was some.
    pub fn note(&self, what: impl FnOnce() -> String) {
        let now = clock::now();
        if now < self.next.get() {
            return self.unsaid.set(self.unsaid.get().saturating_add(1));
        }
        self.next.set(now + PAUSE);
        let (sender, unsaid) = (self.sender.get(), self.unsaid.take());
        log::error!(
            "inbox: from process {sender}: {}; {unsaid} more like it since this was last logged",
            what()
        );
    }
}
