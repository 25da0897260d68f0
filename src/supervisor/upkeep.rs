//! Looking after workers that serve: loads are evened out after one has come new, and one that is worn is replaced.
//! What is too much is decided in [`balance`](super::policy::rebalance).

use std::sync::atomic::Ordering;

use super::Fleet;
use super::edition::Step;
use super::policy::{rebalance as balance, slots as plan};
use crate::config::Wear;
use crate::fleet::control::Command;
use crate::fleet::memory;
use crate::fleet::scoreboard::{self, State};

/// How often (ns) loads are compared after a worker has come new, and for how long.
const BALANCE: (plan::Time, plan::Time) = (100_000_000, 60_000_000_000);
/// How often (ns) workers are asked whether they are worn.
const LOOK: plan::Time = 1_000_000_000;

/// When workers are looked after.
#[derive(Default)]
pub(super) struct Upkeep {
    /// Until when loads are looked at closely, because a worker has come new.
    balance_until: plan::Time,
    /// When workers are looked after next.
    look_at: plan::Time,
}

impl Upkeep {
    /// A worker has come new.
    pub fn begin_balance(&mut self) {
        self.balance_until = scoreboard::now().saturating_add(BALANCE.1);
        self.look_at = 0;
    }
}

impl Fleet {
    /// When loads or wear are to be looked at next, if at all.
    pub(super) fn next_look(&self) -> Option<plan::Time> {
        let wanted = self.upkeep.balance_until > scoreboard::now() || self.config.wear.is_bounded();
        wanted.then_some(self.upkeep.look_at)
    }

    /// Has workers move connections to each other until they are balanced, and replaces those that are worn.
    pub(super) fn look_after_workers(&mut self) {
        let now = scoreboard::now();
        if self.next_look().is_none_or(|at| at > now) {
            return;
        }
        if self.upkeep.balance_until > now {
            self.upkeep.look_at = now.saturating_add(BALANCE.0);
            if self.roll.is_idle() {
                self.even_out();
            }
        } else {
            self.upkeep.look_at = now.saturating_add(LOOK);
        }
        // One at a time, so that there is always somebody to accept.
        if self.roll.is_idle() && self.replaced.is_empty() {
            let worn = (0..self.workers.len()).find_map(|slot| Some((slot, self.wear_of(slot, now)?)));
            if let Some((slot, why)) = worn {
                log::info!("{} is replaced: {why}", self.name(slot));
                self.roll.push(Step { start: self.place(slot), retire: Some(slot) });
            }
        }
    }

    /// One move in each pool that is out of balance.
    fn even_out(&self) {
        let slots = self.scoreboard.slots();
        let pools = self.config.pools.iter().enumerate().filter(|(_, pool)| pool.children.is_none());
        for (pool, _) in pools {
            let load = |slot: &scoreboard::Slot| {
                let serves = slot.state() == State::Running && usize::from(slot.place().pool) == pool;
                serves.then(|| slot.connections.load(Ordering::Relaxed))
            };
            let loads: Vec<Option<u32>> = slots.iter().map(load).collect();
            if let Some((from, to, count)) = balance::next_move(&loads) {
                self.order(from, Command::Shed { to: to as u16, count: count as u16 });
            }
        }
    }

    /// Why a worker is to be replaced, if it is.
    fn wear_of(&self, slot: usize, now: plan::Time) -> Option<String> {
        let worker = self.workers.get(slot)?.as_ref().filter(|_| !self.children.owns(slot))?;
        let record = self.scoreboard.slot(slot).filter(|record| record.state() == State::Running)?;
        let used = Wear {
            memory: if self.config.wear.memory == 0 {
                0
            } else {
                memory::resident(worker.pid.as_raw()).unwrap_or(0)
            },
            age: now.saturating_sub(record.started.load(Ordering::Relaxed)),
            messages: self.counters.traffic_of(worker.pid.as_raw()).map_or(0, |traffic| traffic.messages_in),
        };
        balance::worn(&self.config.wear, &used)
    }
}
