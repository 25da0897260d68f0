//! More workers, or fewer, in a pool: by signal, or by `wshd ctl workers`.

use serde_json::Value;

use super::Supervisor;
use super::policy::rolling_restart::{Event, Step};
use crate::ctl::request::Change;
use crate::fleet::memory::scoreboard::Place;

/// In a pool, by command.
const MOST_WORKERS: usize = 1024;

impl Supervisor {
    /// Changes the number of workers of a pool; workers are added or removed one after another.
    pub(super) fn change_workers(&mut self, pool: &str, change: Change) -> Result<Value, String> {
        let number =
            self.generation.config.pools.iter().position(|known| known.name == pool && known.workers > 0);
        let number = number.and_then(|number| u16::try_from(number).ok());
        let number = number.ok_or_else(|| format!("there is no pool {pool}: see wshd ctl status"))?;
        if self.generation.config.is_parent(number, 0) {
            return Err(format!("expected another pool: {pool} has a process for each connection"));
        }
        let before = self.workers_of(number).len();
        let after = match change {
            Change::By(change) => before.saturating_add_signed(change as isize),
            Change::To(after) => after as usize,
        };
        if !(1..=MOST_WORKERS).contains(&after) {
            return Err(format!("expected 1 to {MOST_WORKERS} workers, not {after}: there are {before}"));
        }
        (before..after).try_for_each(|_| self.add_worker(number))?;
        (after..before).try_for_each(|_| self.remove_worker(number))?;
        Ok(format!("{pool}: {before} workers become {after}").into())
    }

    pub(super) fn add_worker(&mut self, pool: u16) -> Result<(), String> {
        let numbers: Vec<u16> = self.workers_of(pool).iter().map(|(place, _)| place.number).collect();
        match (0..u16::MAX).find(|number| !numbers.contains(number)) {
            Some(number) if numbers.len() < MOST_WORKERS => {
                let step = Step { start: Some(Place { pool, number }), retire: None };
                self.rolling.policy.on(Event::Step(step));
                Ok(())
            }
            _ => Err(format!("there are {MOST_WORKERS} workers already")),
        }
    }

    /// One worker less in a pool; its connections go on in the others.
    pub(super) fn remove_worker(&mut self, pool: u16) -> Result<(), String> {
        let workers = self.workers_of(pool);
        match workers.iter().max() {
            Some((_, Some(slot))) if workers.len() > 1 => {
                let step = Step { start: None, retire: Some(*slot) };
                self.rolling.policy.on(Event::Step(step));
            }
            Some((place, None)) if workers.len() > 1 => self.rolling.policy.on(Event::Cancel(*place)),
            _ => return Err("cannot remove the last worker".to_owned()),
        }
        Ok(())
    }

    /// Places and slots of all workers.
    pub(super) fn serving(&self) -> Vec<(Place, usize)> {
        let slots = (0..self.processes.slots()).filter(|slot| !self.pools.owns(*slot));
        let slots = slots.filter(|slot| self.processes.holder(*slot).is_some());
        slots.map(|slot| (self.place_of(slot), slot)).collect()
    }

    /// Those of a pool that are not to leave, with their slots, and those that are to come in addition.
    pub(super) fn workers_of(&self, pool: u16) -> Vec<(Place, Option<usize>)> {
        let rolling = &self.rolling.policy;
        let replaced: Vec<usize> = rolling.replaced().collect();
        let serving = self.serving().into_iter();
        let serving = serving.filter(|(_, slot)| !rolling.retires(*slot) || replaced.contains(slot));
        let serving = serving.map(|(place, slot)| (place, Some(slot)));
        let coming = rolling.additions().map(|place| (place, None));
        serving.chain(coming).filter(|(place, _)| place.pool == pool).collect()
    }
}
