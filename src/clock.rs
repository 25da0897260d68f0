//! The monotonic clock of the server. Only a script of `wshd test` can advance it ([`shift`]).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::time::Instant;

/// Nanoseconds by which the clock is ahead of the kernel's. Set by the kit only, before the first fork.
static SHIFT: OnceLock<&'static AtomicU64> = OnceLock::new();
/// Maximum sleep of a thread if the clock can be shifted, since a shift does not wake it.
const MAX_SLEEP: Duration = Duration::from_millis(1);

/// The present time. Async-signal-safe (clock_gettime(2)).
pub fn now() -> Instant {
    let shift = SHIFT.get().map_or(0, |shift| shift.load(Ordering::Relaxed));
    // Cannot fail for CLOCK_MONOTONIC.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Instant::default(), |time| {
        Instant::from_nanos(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64 + shift)
    })
}

/// How long a thread that waits for `deadline` may sleep before it reads the clock again; zero: the deadline has
/// passed.
pub fn sleep_until(deadline: Instant) -> Duration {
    let left = deadline.since(now());
    if SHIFT.get().is_some() { left.min(MAX_SLEEP) } else { left }
}

/// Sets the clock of this process and its future children ahead by the nanoseconds in `ahead`, which is shared memory
/// and must only grow. Further calls have no effect. [kit]
pub fn shift(ahead: &'static AtomicU64) {
    let _ = SHIFT.set(ahead);
}
