//! The one monotonic clock of the server. A script of `wshd test` can move it on ([`shift`]); in a server nobody does.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::time::Instant;

/// How far the clock is ahead of the kernel's; ns. Set by the kit only, before the first fork.
static SHIFT: OnceLock<&'static AtomicU64> = OnceLock::new();
/// Longest sleep of a thread while the clock can be shifted: it would not be woken.
const NAP: Duration = Duration::from_millis(1);

/// The present time. Async-signal-safe (clock_gettime(2)).
pub fn now() -> Instant {
    let shift = SHIFT.get().map_or(0, |shift| shift.load(Ordering::Relaxed));
    // It fails for no clock that exists.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Instant::default(), |time| {
        Instant::from_nanos(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64 + shift)
    })
}

/// How long a thread that waits for this time may sleep before it looks at the clock again; zero once it has come.
pub fn sleep_until(deadline: Instant) -> Duration {
    let left = deadline.since(now());
    if SHIFT.get().is_some() { left.min(NAP) } else { left }
}

/// From now on the clock of this process and its children is ahead by the nanoseconds in `ahead`, which is memory that
/// they share and must only grow. The first call counts. [kit]
pub fn shift(ahead: &'static AtomicU64) {
    let _ = SHIFT.set(ahead);
}
