//! Log lines of one kind: a few in an interval, the others counted.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::time::Instant;

/// Admits so many lines of a kind in each interval. Threads that begin an interval at the same moment may count a line
/// too few.
#[derive(Debug)]
pub struct Limit {
    most: u64,
    interval: Duration,
    /// When the interval began; ns.
    since: AtomicU64,
    /// Lines in it, with those that were not logged; 0: none was begun.
    lines: AtomicU64,
}

/// How many lines were not logged before this one. Shown at the end of the line, if there were any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut(u64);

impl Limit {
    /// Before the first line.
    pub const fn new(most: u64, interval: Duration) -> Self {
        Self { most, interval, since: AtomicU64::new(0), lines: AtomicU64::new(0) }
    }

    /// Whether a line is to be logged now.
    pub fn admit(&self, now: Instant) -> Option<LeftOut> {
        let since = self.since.load(Ordering::Relaxed);
        if self.is_over(now)
            && self
                .since
                .compare_exchange(since, now.as_nanos(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            return Some(LeftOut(self.lines.swap(1, Ordering::Relaxed).saturating_sub(self.most)));
        }
        (self.lines.fetch_add(1, Ordering::Relaxed) < self.most).then_some(LeftOut(0))
    }

    /// Whether the interval is over, or none was begun.
    pub fn is_over(&self, now: Instant) -> bool {
        let since = Instant::from_nanos(self.since.load(Ordering::Relaxed));
        self.lines.load(Ordering::Relaxed) == 0 || now.since(since) >= self.interval
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str("; 1 more such line was left out"),
            count => write!(f, "; {count} more such lines were left out"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_pass_in_an_interval_and_the_others_are_counted() {
        let at = |seconds| Instant::default() + Duration::from_secs(seconds);
        let limit = Limit::new(3, Duration::from_secs(10));
        let passed = |now| (0..100).filter(|_| limit.admit(now).is_some()).count();
        assert_eq!(passed(at(0)), 3);
        assert_eq!((passed(at(9)), limit.is_over(at(9))), (0, false));
        assert_eq!((limit.is_over(at(10)), limit.admit(at(10))), (true, Some(LeftOut(197))));
        assert_eq!(passed(at(10)), 2);
        let told = [0, 1, 2].map(|count| LeftOut(count).to_string());
        assert_eq!(told, ["", "; 1 more such line was left out", "; 2 more such lines were left out"]);
    }
}
