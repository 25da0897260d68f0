//! How connections are shared among the workers of a pool: a worker that is ahead of the others accepts no more until
//! they have caught up, as the scoreboard tells.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::clock;
use crate::fleet::memory::scoreboard::{Fault, Scoreboard, Slot, State};

/// A worker whose loop has not turned for so long is not waited for.
const STALE: Duration = Duration::from_secs(3);
/// A worker that has been in one call of a handler for so long is not waited for.
const STUCK: Duration = Duration::from_millis(100);

/// A worker's share of all connections of its pool.
pub struct FairShare {
    pub scoreboard: &'static Scoreboard,
    pub index: usize,
    pub slot: &'static Slot,
    pub connections: u32,
}

impl FairShare {
    pub fn is_full(&self) -> bool {
        load(self.slot) >= self.connections
    }

    pub fn is_half_full(&self) -> bool {
        load(self.slot) >= self.connections / 2
    }

    /// Says once that all workers are full, and once that there is room again: not for a single connection of many, of
    /// which some may come and go at any time. [event loop]
    pub fn watch_saturation(&self) {
        if self.slot.state() != State::Running {
            return;
        }
        let pool = self.slot.place().pool;
        let workers = self.scoreboard.slots().map(|(_, slot)| slot);
        let loads = workers.filter(|slot| slot.place().pool == pool && slot.takes_connections());
        let loads = loads.map(|slot| load(&slot));
        let free: Vec<u32> = loads.map(|load| self.connections.saturating_sub(load)).collect();
        let (workers, most) = (free.len() as u64, u64::from(self.connections));
        let free: u64 = free.into_iter().map(u64::from).sum();
        if free == 0 && workers > 0 && self.scoreboard.set_saturated(true) {
            log::warn!(
                "all workers are full ({workers} with max_connections {most}): new connections wait until others close"
            );
        }
        if free > workers * most / 20 && self.scoreboard.set_saturated(false) {
            log::info!("there is room for {free} connections: new ones are accepted again");
        }
    }

    pub fn may_take(&self) -> bool {
        if matches!(self.slot.fault(), Some(Fault::Descriptors | Fault::System)) {
            return false;
        }
        let siblings = self.scoreboard.slots();
        // The workers of other pools have connections sent to them.
        let siblings = siblings.filter(|(_, sibling)| sibling.place().pool == self.slot.place().pool);
        let others = siblings.filter(|(index, _)| *index != self.index).map(|(_, other)| other);
        let others = others.filter(serves).map(|other| load(&other));
        may_accept(load(self.slot), self.connections, others)
    }
}

/// Whether a worker takes its share, so that others wait for it.
fn serves(slot: &Slot) -> bool {
    let now = clock::now();
    let is_stuck = || slot.call.current().is_some() && now.since(slot.call.since()) >= STUCK;
    slot.takes_connections() && now.since(slot.heartbeat()) < STALE && !is_stuck()
}

fn load(slot: &Slot) -> u32 {
    slot.connections.load(Ordering::Relaxed)
}

/// Whether a worker of this load may take one more: it must not be more than one
/// or a twentieth ahead of the least loaded.
fn may_accept(mine: u32, most: u32, others: impl Iterator<Item = u32>) -> bool {
    let least = others.min().unwrap_or(mine);
    mine < most && mine <= least + least / 20
}

#[cfg(test)]
mod tests {
    use super::may_accept;

    #[test]
    fn the_least_loaded_worker_accepts_and_one_far_ahead_does_not() {
        assert!(may_accept(0, 10, [5, 6, 7].into_iter()));
        assert!(may_accept(5, 10, [5, 6, 7].into_iter()));
        assert!(!may_accept(6, 10, [5, 6, 7].into_iter()));
        assert!(may_accept(104, 1000, [100, 120].into_iter()));
        assert!(!may_accept(106, 1000, [100, 120].into_iter()));
    }

    #[test]
    fn a_worker_alone_accepts_up_to_its_bound() {
        assert!(may_accept(9, 10, std::iter::empty()));
        assert!(!may_accept(10, 10, std::iter::empty()));
    }

    #[test]
    fn loads_stay_within_the_bar_however_unlucky_the_order() {
        // Always the most loaded worker that may accept gets the next connection.
        let mut loads = [0_u32; 4];
        for _ in 0..400 {
            let next = (0..4)
                .filter(|&i| may_accept(loads[i], 1000, (0..4).filter(|&j| j != i).map(|j| loads[j])))
                .max_by_key(|&i| loads[i]);
            loads[next.unwrap()] += 1;
        }
        let (most, least) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
        assert!(f64::from(*most) / f64::from(*least) <= 1.1, "{loads:?}");
    }
}
