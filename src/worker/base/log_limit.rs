//! Log lines of one kind: a few in an interval, the others counted. Pure.

use std::cell::Cell;
use std::time::Duration;

use crate::time::Instant;

/// What was logged lately.
#[derive(Debug, Default)]
pub struct LogLimit {
    /// When the interval began.
    since: Cell<Instant>,
    /// Lines that were logged in it.
    lines: Cell<u32>,
    /// Lines that were not logged since the last one.
    left_out: Cell<u64>,
}

impl LogLimit {
    /// Admits `most` lines in each interval. `Some`: log this line, and how many were suppressed since the last one.
    pub fn admit(&self, (most, interval): (u32, Duration), now: Instant) -> Option<u64> {
        if self.is_over(interval, now) {
            self.since.set(now);
            self.lines.set(0);
        }
        if self.lines.get() >= most {
            self.left_out.set(self.left_out.get().saturating_add(1));
            return None;
        }
        self.lines.set(self.lines.get() + 1);
        Some(self.left_out.take())
    }

    /// Whether an interval that was begun is over, or none was begun.
    pub fn is_over(&self, interval: Duration, now: Instant) -> bool {
        self.lines.get() == 0 || now.since(self.since.get()) >= interval
    }
}
