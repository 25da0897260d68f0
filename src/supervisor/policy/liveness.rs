//! Which processes hang where no signal reaches them. A worker's event loop beats at least once a second; a handler may
//! keep it for as long as `handler_timeout`, after which the worker's own watchdog kills it. An auxiliary process has
//! answered another ping.
//!
//! Time in which the supervisor itself did not run is not held against a process: the machine may have slept.

use std::time::Duration;

use crate::time::Instant;

/// How often workers are looked at.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// How long workers may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Outside of handlers; zero: workers are not judged.
    pub silence: Duration,
    /// In one call of a handler, before its worker's watchdog acts; zero: as long as it likes.
    pub handler: Duration,
}

/// How long a process has been silent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pulse {
    beat: u64,
    silent: Duration,
    looked: Instant,
}

impl Pulse {
    /// A look at its heartbeat, and whether it is in a call of a handler: how long it has been silent, if that is too
    /// long.
    pub fn look(&mut self, beat: u64, in_handler: bool, limits: Limits, now: Instant) -> Option<Duration> {
        // A look that comes late counts like one in time.
        let passed = match self.looked == Instant::default() {
            true => Duration::ZERO,
            false => now.since(self.looked).min(2 * INTERVAL),
        };
        self.looked = now;
        if self.beat != beat {
            (self.beat, self.silent) = (beat, Duration::ZERO);
            return None;
        }
        self.silent += passed;
        let limit = match in_handler {
            true if limits.handler.is_zero() => return None,
            true => limits.silence + limits.handler,
            false => limits.silence,
        };
        (!limits.silence.is_zero() && self.silent >= limit).then_some(self.silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMITS: Limits = Limits { silence: Duration::from_secs(5), handler: Duration::from_secs(10) };

    /// When (seconds) a process that is silent from 0 on is found out, with looks at these times.
    fn found(looks: impl IntoIterator<Item = u32>, in_handler: bool, limits: Limits) -> Option<u32> {
        let mut pulse = Pulse::default();
        let start = Instant::from_nanos(1);
        pulse.look(7, in_handler, limits, start);
        looks.into_iter().find(|at| pulse.look(7, in_handler, limits, start + *at * SECOND).is_some())
    }

    #[test]
    fn a_silent_worker_is_found_and_one_in_a_handler_later() {
        assert_eq!(found(0..60, false, LIMITS), Some(5));
        assert_eq!(found(0..60, true, LIMITS), Some(15));
        assert_eq!(found(0..60, true, Limits { handler: Duration::ZERO, ..LIMITS }), None);
        assert_eq!(found(0..60, false, Limits { silence: Duration::ZERO, ..LIMITS }), None);
    }

    #[test]
    fn a_beat_starts_over() {
        let mut pulse = Pulse::default();
        let at = |seconds: u32| Instant::from_nanos(1) + seconds * SECOND;
        assert!((0..4).all(|second| pulse.look(1, false, LIMITS, at(second)).is_none()));
        assert!((4..9).all(|second| pulse.look(2, false, LIMITS, at(second)).is_none()));
        assert_eq!(pulse.look(2, false, LIMITS, at(9)), Some(5 * SECOND));
    }

    #[test]
    fn time_in_which_the_supervisor_stood_still_does_not_count() {
        assert_eq!(found([1, 1000, 1001], false, LIMITS), None);
        assert_eq!(found([1, 1000, 1001, 1002], false, LIMITS), Some(1002));
    }
}
