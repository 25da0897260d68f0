//! Deadlines of connections: a heap with at most one live entry for each.
//!
//! Lazy: receiving a message moves no timer. When an entry comes up, its
//! connection is asked for its real deadline, and entered again if that is later.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::time::Instant;

/// Nanoseconds of a millisecond.
pub const MS: u64 = 1_000_000;
/// Bits of an entry that name the slot of the connection; those above them are its time.
const SLOT_BITS: u32 = 24;
/// The largest slot that an entry can name.
pub const MAX_SLOT: u32 = (1 << SLOT_BITS) - 1;

/// The time of an entry: milliseconds, at most [`NEVER`](Self::NEVER).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u64);

impl Tick {
    /// No entry: later than any, which is 34 years.
    pub const NEVER: Tick = Tick(1 << (u64::BITS - SLOT_BITS));

    /// The first that is not before a deadline.
    pub fn from(deadline: Instant) -> Self {
        Tick(deadline.as_nanos().div_ceil(MS)).min(Self::NEVER)
    }
}

pub struct Timers {
    heap: BinaryHeap<Reverse<u64>>,
}

impl Timers {
    /// With room for one entry of each connection, which costs nothing until used; grows if need be.
    pub fn new(connections: u32) -> Self {
        Timers { heap: BinaryHeap::with_capacity(connections as usize) }
    }

    /// Enters a deadline, not [`Tick::NEVER`], for the connection in a slot. The caller remembers it: an entry that the
    /// connection does not remember is stale.
    pub fn enter(&mut self, at: Tick, slot: u32) {
        self.heap.push(Reverse(at.0 << SLOT_BITS | u64::from(slot & MAX_SLOT)));
    }

    /// The next entry that is due, as deadline and slot.
    pub fn due(&mut self, now: Instant) -> Option<(Tick, u32)> {
        if self.next()? > now {
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        Some((Tick(entry >> SLOT_BITS), entry as u32 & MAX_SLOT))
    }

    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(entry)| Instant::from_nanos((entry >> SLOT_BITS).saturating_mul(MS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_up_in_order_and_not_before_their_time() {
        let mut timers = Timers::new(3);
        let at = |ns: u64| Instant::from_nanos(ns);
        timers.enter(Tick::from(at(30 * MS)), 3);
        timers.enter(Tick::from(at(10 * MS)), MAX_SLOT);
        timers.enter(Tick::from(at(20 * MS - 1)), 2);
        assert_eq!(timers.next(), Some(at(10 * MS)));
        assert_eq!(timers.due(at(10 * MS - 1)), None);
        assert_eq!(timers.due(at(25 * MS)), Some((Tick(10), MAX_SLOT)));
        assert_eq!(timers.due(at(25 * MS)), Some((Tick(20), 2)));
        assert_eq!(timers.due(at(25 * MS)), None);
        assert_eq!(Tick::from(Instant::NEVER), Tick::NEVER);
    }
}
