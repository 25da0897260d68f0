//! Points in time as values. Reads no clock: [`crate::clock`] does.

use std::ops::Add;
use std::time::Duration;

/// A point of the monotonic clock (CLOCK_MONOTONIC), to the nanosecond. The same in all processes of a server, so that it
/// can be stored in shared memory as [`as_nanos`](Self::as_nanos).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// Later than any other: a deadline that never comes.
    pub const NEVER: Instant = Instant(u64::MAX);

    /// So many nanoseconds of the clock.
    pub const fn from_nanos(nanos: u64) -> Self {
        Instant(nanos)
    }

    /// Nanoseconds of the clock.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Seconds of the clock, in which they fit for 136 years.
    pub const fn seconds(self) -> u32 {
        (self.0 / 1_000_000_000) as u32
    }

    /// So many seconds of the clock.
    pub const fn from_seconds(seconds: u32) -> Self {
        Instant(seconds as u64 * 1_000_000_000)
    }

    /// Time from `earlier` to this; zero if it is not earlier.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whether this is no deadline at all.
    pub const fn is_never(self) -> bool {
        self.0 == u64::MAX
    }
}

/// Saturates at [`Instant::NEVER`].
impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The time at which the present turn of an event loop began. Cheaper than a look at the clock, and too early by as much as
/// the turn has taken: good for "has it expired", not for computing a deadline that a handler asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TurnStart(Instant);

impl TurnStart {
    /// The turn began then.
    pub const fn at(instant: Instant) -> Self {
        TurnStart(instant)
    }

    /// The instant, for deadlines that may come earlier by the length of a turn.
    pub const fn instant(self) -> Instant {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_saturate_and_differences_are_not_negative() {
        let (early, late) = (Instant::from_nanos(5), Instant::from_nanos(7));
        assert_eq!(late.since(early), Duration::from_nanos(2));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(early + Duration::from_nanos(2), late);
        assert!(
            (late + Duration::MAX).is_never() && Instant::NEVER + Duration::from_secs(1) == Instant::NEVER
        );
    }
}
