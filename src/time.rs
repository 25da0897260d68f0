//! Points in time as values, and how often something may happen. Reads no clock: [`crate::clock`] does.

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

/// So many in a second, and a burst after a rest: the generic cell rate algorithm (ITU-T I.371).
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// In a second; 0: no limit.
    most: u64,
    /// What may come at once is what may come in this time.
    burst: Duration,
    /// When everything so far would have come at this rate.
    due: Instant,
}

impl Rate {
    /// At most so many in a second; 0: no limit.
    pub fn new(most: u64, burst: Duration) -> Self {
        Self { most, burst, due: Instant::default() }
    }

    /// Whether so many may come now; then they have. A count above the burst is admitted after a rest, and delays what
    /// follows.
    pub fn admits(&mut self, count: u64, now: Instant) -> bool {
        let is_open = count == 0 || self.opens(now).is_none();
        if is_open {
            self.add(count, now);
        }
        is_open
    }

    /// So many have come, whether they may or not.
    pub fn add(&mut self, count: u64, now: Instant) {
        if self.most != 0 {
            let time = (u128::from(count) * 1_000_000_000).div_ceil(self.most.into());
            self.due = self.due.max(now) + Duration::from_nanos(u64::try_from(time).unwrap_or(u64::MAX));
        }
    }

    /// When something may come again; none: now.
    pub fn opens(&self, now: Instant) -> Option<Instant> {
        let wait = self.due.since(now).checked_sub(self.burst)?;
        Some(now + wait + Duration::from_nanos(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

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

    #[test]
    fn a_burst_may_come_and_then_so_many_in_each_second() {
        let start = Instant::default() + 5 * SECOND;
        let mut rate = Rate::new(1000, 2 * SECOND);
        let mut admitted = |now| (0..5000).filter(|_| rate.admits(1, now)).count();
        assert_eq!(admitted(start), 2000);
        assert_eq!(admitted(start + SECOND / 10), 100);
        assert_eq!(admitted(start + 100 * SECOND), 2000, "after a rest");
        assert!((0..5000).all(|_| Rate::new(0, SECOND).admits(1, start)), "no limit");
    }

    #[test]
    fn what_came_beyond_the_rate_is_waited_for() {
        let now = Instant::default() + SECOND;
        let mut rate = Rate::new(1000, SECOND);
        assert_eq!(rate.opens(now), None);
        rate.add(3000, now);
        let opens = rate.opens(now).unwrap_or_default();
        assert_eq!(opens.since(now), 2 * SECOND + Duration::from_nanos(1));
        assert!(!rate.admits(1, now + 2 * SECOND) && rate.admits(1, opens));
    }
}
