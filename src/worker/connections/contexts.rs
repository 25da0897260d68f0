//! Which connections of a worker hold a context for compressing, and which of them lose it: the longest idle, when all
//! together are too large, and those that have been idle for too long. Knows no connections.

use std::collections::BTreeMap;

use crate::config::Contexts as Limits;
use crate::time::Instant;
use crate::worker::conn::receive_budget::Share;

pub struct Contexts {
    limits: Limits,
    /// Sum of all shares; bytes.
    sum: usize,
    /// Connection and time of the last use; the longest idle first.
    holders: BTreeMap<u64, (u64, Instant)>,
    last_order: u64,
}

impl Contexts {
    pub fn new(limits: Limits) -> Self {
        Contexts { limits, sum: 0, holders: BTreeMap::new(), last_order: 0 }
    }

    /// A connection has compressed a message, or lost its context, which takes `bytes` now.
    pub fn update(&mut self, id: u64, share: &mut Share, bytes: usize, now: Instant) {
        self.holders.remove(&share.order);
        self.sum = self.sum - share.bytes + bytes;
        *share = Share::default();
        if bytes > 0 {
            self.last_order += 1;
            *share = Share { bytes, order: self.last_order };
            self.holders.insert(self.last_order, (id, now));
        }
    }

    /// The longest idle, if it is to lose its context.
    #[inline]
    pub fn surplus(&self, now: Instant) -> Option<u64> {
        let (_, (id, used)) = self.holders.first_key_value()?;
        let is_too_much = self.limits.total != 0 && self.sum as u64 > self.limits.total;
        let is_idle = !self.limits.idle.is_zero() && now.since(*used) >= self.limits.idle;
        (is_too_much || is_idle).then_some(*id)
    }

    #[inline]
    pub fn sum(&self) -> usize {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const fn at(ns: u64) -> Instant {
        Instant::from_nanos(ns)
    }

    fn contexts(total: u64, idle: u64) -> (Contexts, [Share; 3]) {
        (Contexts::new(Limits { total, idle: Duration::from_nanos(idle) }), [Share::default(); 3])
    }

    #[test]
    fn the_longest_idle_loses_its_context_when_all_are_too_large() {
        let (mut contexts, [mut a, mut b, mut c]) = contexts(250, 0);
        contexts.update(1, &mut a, 100, at(0));
        contexts.update(2, &mut b, 100, at(1));
        contexts.update(1, &mut a, 100, at(2));
        assert_eq!(contexts.surplus(Instant::NEVER), None);
        contexts.update(3, &mut c, 100, at(3));
        assert_eq!((contexts.surplus(at(3)), contexts.sum()), (Some(2), 300));
        contexts.update(2, &mut b, 0, at(3));
        assert_eq!((contexts.surplus(at(3)), contexts.sum(), b), (None, 200, Share::default()));
    }

    #[test]
    fn a_context_is_lost_after_the_idle_time() {
        let (mut contexts, [mut a, mut b, _]) = contexts(0, 10);
        contexts.update(1, &mut a, 100, at(0));
        contexts.update(2, &mut b, 100, at(5));
        assert_eq!((contexts.surplus(at(9)), contexts.surplus(at(10))), (None, Some(1)));
        contexts.update(1, &mut a, 0, at(10));
        assert_eq!((contexts.surplus(at(14)), contexts.surplus(at(15))), (None, Some(2)));
    }
}
