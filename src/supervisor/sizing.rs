//! More workers, or fewer, in a pool: by signal, or by `wshd ctl workers`.

use serde_json::Value;

use super::policy::rolling_restart::{Event, Step};
use super::{Busy, Supervisor};
use crate::ctl::request::Change;
use crate::fleet::memory::scoreboard::Place;

/// In a pool, by command.
const MOST_WORKERS: usize = 1024;

impl Supervisor {
    /// Changes the number of workers of a pool; workers are added or removed one after another.
    pub(super) fn change_workers(&mut self, pool: &str, change: Change) -> Result<Value, String> {
        let config = &self.generation.config;
        let number = config.pool(pool).filter(|number| config.pools[*number].workers > 0);
        let number = number.ok_or_else(|| format!("there is no pool {pool}: see wshd ctl status"))? as u16;
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

    /// Whether workers can be replaced, added or removed now.
    pub(super) fn may_replace(&self) -> Result<(), String> {
        let busy = self.busy(&[Busy::Starting, Busy::Draining, Busy::Replacing]);
        busy.map_or(Ok(()), |why| Err(why.to_owned()))
    }

    pub(super) fn add_worker(&mut self, pool: u16) -> Result<(), String> {
        self.may_replace()?;
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
        self.may_replace()?;
        let workers = self.workers_of(pool);
        if workers.len() <= 1 {
            return Err("cannot remove the last worker".to_owned());
        }
        // In the place of one that is being replaced there would be another one soon.
        let is_replaced = |slot: &Option<usize>| slot.is_some_and(|slot| self.rolling.policy.retires(slot));
        let event = match workers.into_iter().filter(|(_, slot)| !is_replaced(slot)).max() {
            Some((_, Some(slot))) => Event::Step(Step { start: None, retire: Some(slot) }),
            Some((place, None)) => Event::Cancel(place),
            None => return Err("workers are being replaced; try again".to_owned()),
        };
        self.rolling.policy.on(event);
        Ok(())
    }

    /// Places and slots of all workers, also of those that are to be restarted, however often they have failed.
    pub(super) fn all_workers(&self) -> Vec<(Place, usize)> {
        self.slots.taken().map(|slot| (self.place_of(slot), slot)).collect()
    }

    /// Those of a pool that are not to leave, with their slots, and those that are to come in addition.
    pub(super) fn workers_of(&self, pool: u16) -> Vec<(Place, Option<usize>)> {
        let rolling = &self.rolling.policy;
        let replaced: Vec<usize> = rolling.replaced().collect();
        let staying = self.all_workers().into_iter();
        let staying = staying.filter(|(_, slot)| !rolling.retires(*slot) || replaced.contains(slot));
        let staying = staying.map(|(place, slot)| (place, Some(slot)));
        let coming = rolling.additions().map(|place| (place, None));
        staying.chain(coming).filter(|(place, _)| place.pool == pool).collect()
    }
}
