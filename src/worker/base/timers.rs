//! Deadlines of connections: a heap with at most one live entry for each, in
//! milliseconds.
//!
//! Lazy: receiving a message moves no timer. When an entry comes up, its
//! connection is asked for its real deadline, and entered again if that is later.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Nanoseconds of a millisecond.
pub const MS: u64 = 1_000_000;
/// Bits of an entry that name the slot of the connection; those above them are its time.
const SLOT_BITS: u32 = 24;
/// Deadlines from here on (ms) are not entered: 34 years.
pub const FOREVER: u64 = 1 << (u64::BITS - SLOT_BITS);
/// The largest slot that an entry can name.
pub const MAX_SLOT: u32 = (1 << SLOT_BITS) - 1;

/// The deadlines of a worker.
pub struct Timers {
    heap: BinaryHeap<Reverse<u64>>,
}

impl Timers {
    /// Room for one of each of so many connections, which costs nothing until used; it grows if need be.
    pub fn new(connections: u32) -> Self {
        Timers { heap: BinaryHeap::with_capacity(connections as usize) }
    }

    /// Enters a deadline (ms, before [`FOREVER`]) for the connection in a slot. The caller remembers it: an entry
    /// that the connection does not remember is stale.
    pub fn enter(&mut self, at: u64, slot: u32) {
        self.heap.push(Reverse(at << SLOT_BITS | u64::from(slot & MAX_SLOT)));
    }

    /// The next entry that is due at `now` (ns), as deadline (ms) and slot.
    pub fn due(&mut self, now: u64) -> Option<(u64, u32)> {
        if self.next()? > now {
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        Some((entry >> SLOT_BITS, entry as u32 & MAX_SLOT))
    }

    /// When the next entry is due; ns.
    pub fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(entry)| (entry >> SLOT_BITS).saturating_mul(MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_up_in_order_and_not_before_their_time() {
        let mut timers = Timers::new(3);
        timers.enter(30, 3);
        timers.enter(10, MAX_SLOT);
        timers.enter(20, 2);
        assert_eq!(timers.next(), Some(10 * MS));
        assert_eq!(timers.due(10 * MS - 1), None);
        assert_eq!(timers.due(25 * MS), Some((10, MAX_SLOT)));
        assert_eq!(timers.due(25 * MS), Some((20, 2)));
        assert_eq!(timers.due(25 * MS), None);
    }
}
