//! How long to wait before something that has failed is tried again.

use std::time::Duration;

use crate::time::Instant;

/// Waits that double from failure to failure, up to a bound. One that worked for long enough in between starts over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    /// Failures that are not forgiven.
    failures: u32,
}

/// The waits of a [`Backoff`].
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Failures in a row that are retried at once.
    pub free: u32,
    /// The first wait after those.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// After so much work without a failure earlier ones do not count any more.
    pub forgiven: Duration,
}

impl Backoff {
    /// Nothing has failed.
    pub const NONE: Self = Self { failures: 0 };

    /// It has failed after working for so long: the wait until it is to be tried again.
    pub fn failed(&mut self, rule: &Rule, worked: Duration) -> Duration {
        let Rule { free, first, longest, forgiven } = *rule;
        if worked >= forgiven {
            self.failures = 0;
        }
        let wait = match self.failures.checked_sub(free) {
            None => Duration::ZERO,
            Some(before) => doubled(first, before).min(longest),
        };
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

/// Something that is tried again when it has failed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retry {
    backoff: Backoff,
    not_before: Instant,
}

impl Retry {
    /// It has failed. It has worked since it was last tried, which is when it might be.
    pub fn failed(&mut self, rule: &Rule, now: Instant) {
        self.not_before = now + self.backoff.failed(rule, now.since(self.not_before));
    }

    /// Before this it is not to be tried.
    pub fn not_before(&self) -> Instant {
        self.not_before
    }
}

/// A time doubled so many times.
pub fn doubled(first: Duration, times: u32) -> Duration {
    1_u32.checked_shl(times).and_then(|factor| first.checked_mul(factor)).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_start_over_after_long_work() {
        let seconds = Duration::from_secs;
        let rule = Rule { free: 1, first: seconds(1), longest: seconds(5), forgiven: seconds(60) };
        let mut backoff = Backoff::NONE;
        for (worked, wait) in [(0, 0), (59, 1), (0, 2), (0, 4), (0, 5), (0, 5), (60, 0), (0, 1)] {
            assert_eq!(backoff.failed(&rule, seconds(worked)), seconds(wait), "after {worked} s");
        }
        assert_eq!(doubled(seconds(1), 31), seconds(1 << 31));
        assert_eq!(doubled(seconds(1), 32), Duration::MAX);
    }

    #[test]
    fn what_fails_is_tried_again_later_each_time() {
        let ms = Duration::from_millis;
        let rule = Rule { free: 2, first: ms(100), longest: ms(5000), forgiven: ms(10_000) };
        let mut retry = Retry::default();
        let at = |time: u64| Instant::default() + ms(time);
        for (failed, not_before) in
            [(20_000, 20_000), (20_001, 20_001), (20_002, 20_102), (20_102, 20_302), (40_000, 40_000)]
        {
            retry.failed(&rule, at(failed));
            assert_eq!(retry.not_before(), at(not_before));
        }
    }
}
