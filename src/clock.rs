//! The one monotonic clock of the server.

use nix::time::{ClockId, clock_gettime};

use crate::time::Instant;

/// The present time. Async-signal-safe (clock_gettime(2)).
pub fn now() -> Instant {
    // It fails for no clock that exists.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Instant::default(), |time| {
        Instant::from_nanos(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
    })
}
