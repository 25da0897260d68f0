//! Instants and rate limits, without a clock: see [`crate::clock`].

use std::ops::Add;
use std::time::Duration;

/// An instant of CLOCK_MONOTONIC, in nanoseconds. All processes of a server have the same clock, so it can be stored in
/// shared memory as [`as_nanos`](Self::as_nanos).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// A deadline that never comes.
    pub const NEVER: Instant = Instant(u64::MAX);

    /// The instant at which the clock shows so many nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Instant(nanos)
    }

    /// The clock in nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The clock in seconds; fits for 136 years.
    pub const fn seconds(self) -> u32 {
        (self.0 / 1_000_000_000) as u32
    }

    /// The instant at which the clock shows so many seconds.
    pub const fn from_seconds(seconds: u32) -> Self {
        Instant(seconds as u64 * 1_000_000_000)
    }

    /// The time from `earlier` to this; zero if `earlier` is later.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whether this is [`NEVER`](Self::NEVER).
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

/// When the present turn of an event loop began. Cheaper than reading the clock, but behind it by the duration of the
/// turn: good for checking whether something has expired, not for the deadline of a handler's timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TurnStart(Instant);

impl TurnStart {
    /// A turn that began at `instant`.
    pub const fn at(instant: Instant) -> Self {
        TurnStart(instant)
    }

    /// The instant, for deadlines that may come earlier by the length of a turn.
    pub const fn instant(self) -> Instant {
        self.0
    }
}

/// A rate limit with bursts: the generic cell rate algorithm (ITU-T I.371).
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Maximum per second; 0: unlimited.
    most: u64,
    /// A burst has as many events as the rate allows in this time.
    burst: Duration,
    /// When all events so far would have been allowed at this rate.
    due: Instant,
}

impl Rate {
    /// Allows `most` events per second; 0: unlimited.
    pub const fn new(most: u64, burst: Duration) -> Self {
        Self { most, burst, due: Instant(0) }
    }

    /// Whether `count` events are allowed now; if so, counts them. A count above the burst is allowed after a pause,
    /// and delays the following events.
    pub fn admits(&mut self, count: u64, now: Instant) -> bool {
        let is_open = count == 0 || self.opens(now).is_none();
        if is_open {
            self.add(count, now);
        }
        is_open
    }

    /// Counts events, whether they are allowed or not.
    pub fn add(&mut self, count: u64, now: Instant) {
        if self.most != 0 {
            let time = (u128::from(count) * 1_000_000_000).div_ceil(self.most.into());
            self.due = self.due.max(now) + Duration::from_nanos(u64::try_from(time).unwrap_or(u64::MAX));
        }
    }

    /// When an event is allowed again; None: now.
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
    fn after_a_burst_the_rate_applies() {
        let start = Instant::default() + 5 * SECOND;
        let mut rate = Rate::new(1000, 2 * SECOND);
        let mut admitted = |now| (0..5000).filter(|_| rate.admits(1, now)).count();
        assert_eq!(admitted(start), 2000);
        assert_eq!(admitted(start + SECOND / 10), 100);
        assert_eq!(admitted(start + 100 * SECOND), 2000, "after a pause");
        assert!((0..5000).all(|_| Rate::new(0, SECOND).admits(1, start)), "no limit");
    }

    #[test]
    fn events_above_the_rate_delay_the_following() {
        let now = Instant::default() + SECOND;
        let mut rate = Rate::new(1000, SECOND);
        assert_eq!(rate.opens(now), None);
        rate.add(3000, now);
        let opens = rate.opens(now).unwrap_or_default();
        assert_eq!(opens.since(now), 2 * SECOND + Duration::from_nanos(1));
        assert!(!rate.admits(1, now + 2 * SECOND) && rate.admits(1, opens));
    }
}
