//! The memory that a worker's incomplete messages may take together. From three quarters of it on, connections in the
//! middle of a large message wait, except for the oldest, so that there is no deadlock. When all of it is taken even
//! without what the oldest holds, a connection that still grows is refused. Knows no sockets.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::Instant;
use crate::worker::conn::receive::AT_ONCE;

/// A message that holds less is small: it is not counted and never waits; bytes.
const FLOOR: usize = 16 * 1024;
/// Bytes read at a time while memory is scarce.
const SCARCE_READ: usize = 16 * 1024;
/// The oldest has so long to complete its message while others wait for it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection holds of memory that is counted: of this budget 0, or [`FLOOR`] and more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub bytes: usize,
    /// Its key among the holders, while `bytes` is not 0.
    pub order: u64,
}

/// What a connection is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetDecision {
    Read,
    /// It is not read from until [`ReceiveBudget::take_released`] names it.
    Wait,
    /// It is closed: there is no memory for it.
    Refuse,
}

pub struct ReceiveBudget {
    /// Never 0.
    total: usize,
    sum: usize,
    /// Connections in the middle of a large message and the bytes of their shares, the oldest first.
    holders: BTreeMap<u64, (u64, usize)>,
    last_order: u64,
    /// From three quarters of the total on, until half of it is free.
    is_scarce: bool,
    /// Since when the oldest is the oldest and memory is scarce.
    since: Instant,
    released: Vec<u64>,
}

impl ReceiveBudget {
    /// An unused budget of `total` bytes; 0: no bound.
    pub fn new(total: u64) -> Self {
        let total = usize::try_from(total).ok().filter(|total| *total != 0).unwrap_or(usize::MAX);
        ReceiveBudget {
            total,
            sum: 0,
            holders: BTreeMap::new(),
            last_order: 0,
            is_scarce: false,
            since: Instant::default(),
            released: Vec::new(),
        }
    }

    /// The part of `held` bytes that counts.
    #[inline]
    pub fn counted(held: usize) -> usize {
        if held < FLOOR { 0 } else { held }
    }

    /// A connection holds `held` bytes now.
    pub fn update(&mut self, id: u64, share: &mut Share, held: usize, now: Instant) -> BudgetDecision {
        let held = Self::counted(held);
        let oldest = self.oldest();
        let grows = held > share.bytes;
        self.sum = self.sum - share.bytes + held;
        if share.bytes == 0 && held > 0 {
            self.last_order += 1;
            share.order = self.last_order;
        }
        match held {
            0 => self.holders.remove(&share.order),
            held => self.holders.insert(share.order, (id, held)),
        };
        share.bytes = held;
        let was_scarce = self.is_scarce;
        self.is_scarce = self.sum > if was_scarce { self.total / 2 } else { self.total / 4 * 3 };
        if was_scarce && !self.is_scarce {
            self.released.extend(self.holders.values().map(|(id, _)| id));
        } else if self.is_scarce && (!was_scarce || oldest != self.oldest()) {
            self.since = now;
            self.released.extend(self.oldest());
        }
        let Some((_, &(oldest, apart))) = self.holders.first_key_value() else { return BudgetDecision::Read };
        if held == 0 || !self.is_scarce || oldest == id {
            BudgetDecision::Read
        } else if grows && self.sum - apart > self.total {
            BudgetDecision::Refuse
        } else {
            BudgetDecision::Wait
        }
    }

    /// A connection that has ended holds nothing any more.
    pub fn release(&mut self, id: u64, mut share: Share, now: Instant) {
        self.update(id, &mut share, 0, now);
    }

    #[inline]
    pub fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// Connections that may go on; some of them may never have waited.
    #[inline]
    pub fn take_released(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.released)
    }

    /// The oldest, if others have waited for it for too long: it is refused.
    #[inline]
    pub fn overdue(&self, now: Instant) -> Option<u64> {
        let is_overdue = self.is_scarce && now.since(self.since) >= TIMEOUT;
        self.oldest().filter(|_| is_overdue && self.holders.len() > 1)
    }

    /// Whether a connection with this share is to wait before it reads on.
    #[inline]
    pub fn has_to_wait(&self, id: u64, share: impl FnOnce() -> Share) -> bool {
        self.is_scarce && share().bytes > 0 && self.oldest() != Some(id)
    }

    #[inline]
    pub fn room(&self) -> usize {
        if self.is_scarce { SCARCE_READ } else { AT_ONCE }
    }

    #[inline]
    pub fn sum(&self) -> usize {
        self.sum
    }

    fn oldest(&self) -> Option<u64> {
        self.holders.first_key_value().map(|(_, (id, _))| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: usize = 16 * FLOOR;

    fn at(ns: u64) -> Instant {
        Instant::from_nanos(ns)
    }

    fn budget() -> (ReceiveBudget, [Share; 4]) {
        (ReceiveBudget::new(TOTAL as u64), [Share::default(); 4])
    }

    #[test]
    fn while_memory_is_scarce_all_but_the_oldest_wait() {
        let (mut budget, [mut a, mut b, mut c, _]) = budget();
        assert_eq!(budget.update(1, &mut a, 6 * FLOOR, at(0)), BudgetDecision::Read);
        assert_eq!(budget.update(2, &mut b, 6 * FLOOR, at(0)), BudgetDecision::Read);
        assert_eq!((budget.take_released(), budget.room()), (vec![], AT_ONCE));
        assert_eq!(budget.update(3, &mut c, FLOOR, at(0)), BudgetDecision::Wait);
        assert_eq!(budget.room(), SCARCE_READ);
        assert!(
            budget.has_to_wait(2, || b)
                && !budget.has_to_wait(1, || a)
                && !budget.has_to_wait(4, Share::default)
        );
        assert_eq!(budget.update(2, &mut b, 7 * FLOOR, at(0)), BudgetDecision::Wait);
        // The oldest may even exceed the total.
        assert_eq!(budget.update(1, &mut a, 20 * FLOOR, at(0)), BudgetDecision::Read);
        budget.take_released();
        // It has completed its message: half of the total is free.
        assert_eq!(budget.update(1, &mut a, 0, at(0)), BudgetDecision::Read);
        assert_eq!((budget.take_released(), budget.sum()), (vec![2, 3], 8 * FLOOR));
    }

    #[test]
    fn the_next_oldest_goes_on_while_memory_stays_scarce() {
        let (mut budget, [mut a, mut b, mut c, _]) = budget();
        budget.update(1, &mut a, 2 * FLOOR, at(0));
        budget.update(2, &mut b, 6 * FLOOR, at(0));
        budget.update(3, &mut c, 6 * FLOOR, at(0));
        budget.take_released();
        budget.release(1, a, at(0));
        assert_eq!(budget.take_released(), [2]);
        assert_eq!(budget.update(2, &mut b, 7 * FLOOR, at(0)), BudgetDecision::Read);
        assert_eq!(budget.update(3, &mut c, 7 * FLOOR, at(0)), BudgetDecision::Wait);
    }

    #[test]
    fn above_the_total_who_grows_is_refused() {
        let (mut budget, [mut a, mut b, mut c, _]) = budget();
        budget.update(1, &mut a, FLOOR, at(0));
        assert_eq!(budget.update(2, &mut b, 15 * FLOOR, at(0)), BudgetDecision::Wait);
        assert_eq!(
            budget.update(3, &mut c, FLOOR, at(0)),
            BudgetDecision::Wait,
            "what the oldest holds does not count"
        );
        assert_eq!(budget.update(3, &mut c, 2 * FLOOR, at(0)), BudgetDecision::Refuse);
        budget.release(3, c, at(0));
        assert_eq!(budget.sum(), TOTAL);
    }

    #[test]
    fn the_oldest_has_a_limited_time_while_others_wait() {
        let (mut budget, [mut a, mut b, ..]) = budget();
        budget.update(1, &mut a, 14 * FLOOR, at(5));
        assert_eq!(budget.overdue(at(0) + 2 * TIMEOUT), None, "nobody waits");
        budget.update(2, &mut b, FLOOR, at(6));
        assert_eq!((budget.overdue(at(4) + TIMEOUT), budget.overdue(at(5) + TIMEOUT)), (None, Some(1)));
    }

    #[test]
    fn small_messages_cost_nothing_and_without_a_bound_nobody_waits() {
        let (mut budget, [mut a, ..]) = budget();
        assert_eq!(budget.update(1, &mut a, FLOOR - 1, at(0)), BudgetDecision::Read);
        assert_eq!((budget.sum(), a), (0, Share::default()));
        let mut unbounded = ReceiveBudget::new(0);
        assert_eq!(unbounded.update(1, &mut a, usize::MAX / 2, at(0)), BudgetDecision::Read);
        assert_eq!(unbounded.room(), AT_ONCE);
    }
}
