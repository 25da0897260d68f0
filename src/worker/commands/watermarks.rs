//! When a send queue is full, and when it has drained: by its own size, and by what waits in all queues of the worker.
//! Sums nothing up itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::Sending;

/// A queue of fewer bytes is never full because of the others.
pub const FLOOR: usize = 64 * 1024;

/// The marks of a worker's send queues. Set by the event loop, read by all threads.
pub struct Watermarks {
    /// `low < high`.
    sending: Sending,
    /// `sending.high`, at most [`FLOOR`].
    floor: usize,
    high: AtomicUsize,
    low: AtomicUsize,
}

impl Watermarks {
    /// As configured, while the queues together hold no more than they may.
    pub fn new(sending: Sending) -> Self {
        // Of one that was full something has gone when it has drained.
        let sending = Sending { low: sending.low.min(sending.high.saturating_sub(1)), ..sending };
        Watermarks {
            sending,
            floor: sending.high.min(FLOOR),
            high: AtomicUsize::new(sending.high),
            low: AtomicUsize::new(sending.low),
        }
    }

    /// A queue of so many bytes is full.
    #[inline]
    pub fn high(&self) -> usize {
        self.high.load(Ordering::Relaxed)
    }

    /// One that was full has drained at so many.
    #[inline]
    pub fn low(&self) -> usize {
        self.low.load(Ordering::Relaxed)
    }

    /// No queue of fewer bytes is full.
    #[inline]
    pub fn floor(&self) -> usize {
        self.floor
    }

    /// All queues together hold so many bytes now. The marks are lowered when that is more than it may be, and raised
    /// again once a quarter of it is free. [event loop]
    pub fn update(&self, sum: u64) {
        let Sending { high, low, total } = self.sending;
        let is_low = self.high() < high;
        let (high, low) = match total {
            0 => return,
            _ if sum > total && !is_low => (self.floor, low.min(FLOOR / 4)),
            _ if sum <= total - total / 4 && is_low => (high, low),
            _ => return,
        };
        self.high.store(high, Ordering::Relaxed);
        self.low.store(low, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watermarks(high: usize, low: usize, total: u64) -> Watermarks {
        Watermarks::new(Sending { high, low, total })
    }

    #[test]
    fn a_sum_that_is_too_large_lowers_both_marks_until_a_quarter_is_free() {
        let watermarks = watermarks(1 << 20, 1 << 18, 4000);
        let after = |sum| {
            watermarks.update(sum);
            (watermarks.high(), watermarks.low())
        };
        let (open, tight) = ((1 << 20, 1 << 18), (FLOOR, FLOOR / 4));
        assert_eq!([4000, 4001, 4000, 3001].map(after), [open, tight, tight, tight]);
        assert_eq!([3000, 4000, 4001].map(after), [open, open, tight]);
    }

    #[test]
    fn marks_below_the_floor_stay_and_so_do_all_without_a_bound() {
        let small = watermarks(1000, 10, 4000);
        small.update(5000);
        assert_eq!((small.high(), small.low(), small.floor()), (1000, 10, 1000));
        let equal = watermarks(1000, 1000, 0);
        assert_eq!((equal.high(), equal.low()), (1000, 999), "what is full has not drained");
        let unbounded = watermarks(1 << 20, 1 << 18, 0);
        unbounded.update(u64::MAX);
        assert_eq!(unbounded.high(), 1 << 20);
    }
}
