//! Log lines of one kind: a few in an interval, the others counted. Pure.

use std::time::Duration;

use crate::time::Instant;

/// What was logged lately.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogLimit {
    /// When the interval began.
    since: Instant,
    /// Lines that were logged in it.
    lines: u32,
    /// Lines that were not logged since the last one.
    left_out: u64,
}

impl LogLimit {
    /// Whether a line is to be logged now, where so many may be in an interval: then how many were not since the last that was.
    pub fn admit(&mut self, (most, interval): (u32, Duration), now: Instant) -> Option<u64> {
        if self.is_over(interval, now) {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines >= most {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }

    /// Whether an interval that was begun is over, or none was begun.
    pub fn is_over(&self, interval: Duration, now: Instant) -> bool {
        self.lines == 0 || now.since(self.since) >= interval
    }
}
