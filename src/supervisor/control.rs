//! The supervisor's part of `wshd ctl`: what requests see of it, and carrying out what they ask for.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

use super::Fleet;
use super::policy::slots::Event;
use super::reload::MOST_WORKERS;
use crate::clock;
use crate::control::view::{Process, View};
use crate::control::{Number, Operation};
use crate::ctl::request::{Change, Switch};
use crate::fleet::breakers::UNTIL_LIFTED;

impl Fleet {
    /// Serves clients of the control socket. While another executable still serves, it is the one to be asked.
    pub(super) fn serve_control(&mut self, events: &mut VecDeque<Event>) {
        let now = clock::now();
        if self.predecessor.is_some() || !self.control.read(now) {
            return;
        }
        let mut control = std::mem::take(&mut self.control); // the view borrows the rest
        let operations = control.serve(&self.view(), now);
        self.control = control;
        for (client, operation) in operations {
            self.operate(client, operation, events);
        }
    }

    fn operate(&mut self, client: Number, operation: Operation, events: &mut VecDeque<Event>) {
        match operation {
            Operation::Stop { now } => events.push_back(if now { Event::Quit } else { Event::Terminate }),
            Operation::Reload => self.ask_for_reload(),
            Operation::Upgrade => self.ask_for_upgrade(),
            Operation::Workers { pool, change } => {
                let result = self.change_workers(&pool, change);
                self.control.answer(client, &result);
            }
            Operation::Quarantine { handler, state, time } => {
                match state {
                    Switch::On => self.shut(handler, time),
                    Switch::Off => self.lift(handler),
                }
                let handlers: Vec<_> = self.view().handler(handler).into_iter().collect();
                let result = serde_json::to_value(handlers).map_err(|error| error.to_string());
                self.control.answer(client, &result);
            }
        }
    }

    /// What a request sees.
    fn view(&self) -> View<'_> {
        let slots = (0..self.workers.len()).filter(|slot| self.is_in_use(*slot));
        let present = slots.map(|slot| {
            let worker = self.workers.get(slot).and_then(Option::as_ref);
            let channel = worker.and_then(|worker| worker.control.as_ref());
            Process { slot, pid: worker.map(|worker| worker.pid), is_leaving: false, channel }
        });
        let leaving = self.replaced.iter().map(|replaced| Process {
            slot: replaced.slot,
            pid: Some(replaced.pid),
            is_leaving: true,
            channel: replaced.control.as_ref(),
        });
        View {
            config: &self.config,
            routes: &self.routes,
            listeners: &self.listeners,
            scoreboard: self.scoreboard,
            counters: self.counters,
            breakers: self.deaths.breakers,
            processes: present.chain(leaving).collect(),
            is_upgrading: self.is_upgrade_due || self.successor.is_some(),
        }
    }

    /// Whether there is a worker in this slot, or one is to come back there; else its worker has left it for good.
    fn is_in_use(&self, slot: usize) -> bool {
        let is_there = self.workers.get(slot).is_some_and(Option::is_some);
        let leaves = self.replaced.iter().any(|replaced| replaced.slot == slot);
        let waits = self.roll.slots().any(|standby| standby == slot);
        is_there || !(leaves || waits || self.vacant.contains(&slot))
    }

    /// Changes the number of workers of a pool; workers are added or removed one after another.
    fn change_workers(&mut self, pool: &str, change: Change) -> Result<Value, String> {
        let number = self.config.pools.iter().position(|known| known.name == pool && known.workers > 0);
        let number = number.and_then(|number| u16::try_from(number).ok());
        let number = number.ok_or_else(|| format!("there is no pool {pool}: see wshd ctl status"))?;
        if self.config.is_parent(number, 0) {
            return Err(format!("expected another pool: {pool} has a process for each connection"));
        }
        let before = self.workers_of(number).count();
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

    fn shut(&self, number: u16, time: Option<Duration>) {
        let until = time.map_or(UNTIL_LIFTED, |time| (clock::now() + time).as_nanos());
        if let Some(breaker) = self.deaths.breakers.get(usize::from(number)) {
            breaker.shut(until);
        }
        if let Some(route) = self.routes.handlers().get(usize::from(number)) {
            let how_long = time.map_or("until it is lifted".to_owned(), |time| format!("for {time:?}"));
            log::warn!("{}: quarantined by wshd ctl {how_long}; {} answers 503", route.name, route.resource);
        }
    }

    fn lift(&mut self, number: u16) {
        if let Some(breaker) = self.deaths.breakers.get(usize::from(number)) {
            breaker.lift();
        }
        self.deaths.forgive(number);
        if let Some(route) = self.routes.handlers().get(usize::from(number)) {
            log::warn!("{}: quarantine lifted by wshd ctl; handler back in service", route.name);
        }
    }
}
