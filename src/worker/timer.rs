//! Deadlines of connections: a heap with at most one live entry for each.
//!
//! Lazy: receiving a message moves no timer. When an entry comes up, its
//! connection is asked for its real deadline, and entered again if that is later.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The deadlines of a worker.
#[derive(Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(u64, u64)>>,
}

impl Timers {
    /// Enters a deadline (ns) for a connection. The caller remembers it: an entry
    /// that the connection does not remember is stale.
    pub fn enter(&mut self, at: u64, conn: u64) {
        self.heap.push(Reverse((at, conn)));
    }

    /// The next entry that is due, as (deadline, connection).
    pub fn due(&mut self, now: u64) -> Option<(u64, u64)> {
        let Reverse((at, _)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// When the next entry is due.
    pub fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_up_in_order_and_not_before_their_time() {
        let mut timers = Timers::default();
        timers.enter(30, 3);
        timers.enter(10, 1);
        timers.enter(20, 2);
        assert_eq!(timers.next(), Some(10));
        assert_eq!(timers.due(9), None);
        assert_eq!(timers.due(25), Some((10, 1)));
        assert_eq!(timers.due(25), Some((20, 2)));
        assert_eq!(timers.due(25), None);
    }
}
