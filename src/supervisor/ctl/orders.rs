//! Closing a connection, and quarantine by hand.

use std::time::Duration;

use serde_json::Value;

use super::{Control, Number, Outcome};
use crate::ctl::request::{Change, Id, Switch};
use crate::fleet::breakers::UNTIL_LIFTED;
use crate::fleet::control::Command;
use crate::fleet::scoreboard;
use crate::supervisor::Fleet;
use crate::supervisor::policy::slots::Time;
use crate::supervisor::reload::MOST_WORKERS;

/// How long a worker may take to begin to close a connection; ns.
const PATIENCE: Time = 2_000_000_000;

/// A worker has been told to close a connection.
pub(super) struct Closing {
    ticket: u64,
    client: Number,
    id: Id,
    /// When the client is told that nothing has happened.
    pub deadline: Time,
}

impl Control {
    /// A worker has begun to close a connection, or there is none that it could close.
    pub(super) fn closing(&mut self, ticket: u64, begun: bool) {
        let Some(index) = self.closings.iter().position(|closing| closing.ticket == ticket) else { return };
        let Closing { client, id, .. } = self.closings.swap_remove(index);
        let result = match begun {
            true => Ok(format!("{id} is being closed")),
            false => Err(format!("{id} is no connection that is open: see wshd ctl connections")),
        };
        self.answer(client, result);
    }
}

impl Fleet {
    /// Has a worker close a connection.
    pub(super) fn close_connection(&mut self, client: Number, id: Id, code: u16) -> Outcome {
        let ticket = self.control.ticket();
        let order = Command::Close { ticket, conn: id.conn, code };
        let Some((_, channel)) = self.channel_to(id.pid) else {
            return Outcome::Now(Err(format!("no worker is process {}: see wshd ctl connections", id.pid)));
        };
        if let Err(error) = channel.send_command(order) {
            return Outcome::Now(Err(format!("process {} takes no orders: {error}", id.pid)));
        }
        let deadline = scoreboard::now().saturating_add(PATIENCE);
        self.control.closings.push(Closing { ticket, client, id, deadline });
        Outcome::Later
    }

    /// Tells clients whose worker does not answer.
    pub(super) fn finish_closings(&mut self) {
        let now = scoreboard::now();
        let (late, rest) =
            self.control.closings.drain(..).partition(|closing: &Closing| closing.deadline <= now);
        self.control.closings = rest;
        for Closing { client, id, .. } in late {
            let slot = self.channel_to(id.pid).map(|(slot, _)| slot);
            let current_call = slot.and_then(|slot| self.executes(slot, id.pid));
            let why = match current_call {
                Some(current_call) => {
                    format!("it is in {} of {}", current_call.callback, current_call.handler)
                }
                None if slot.is_none() => "it has ended".to_owned(),
                None => "it is busy".to_owned(),
            };
            let why = format!("process {} has not closed the connection within 2 seconds: {why}", id.pid);
            self.answer(client, Err(why));
        }
    }

    /// Quarantines the handler of a resource, or lifts that; tells how it, or how all of them, then stand.
    pub(super) fn quarantine(
        &mut self,
        resource: Option<&str>,
        state: Option<Switch>,
        time: Option<u32>,
    ) -> Result<Value, String> {
        let handlers = match (resource, state) {
            (None, None) if time.is_none() => self.handlers(),
            (None, _) => return Err("expected a resource to switch".to_owned()),
            (Some(resource), state) => {
                let number = self.routes.find(resource).ok_or_else(|| {
                    format!("no handler serves {resource}: see wshd ctl quarantine without a resource")
                })?;
                match (state, time) {
                    (Some(Switch::On), time) => self.shut(number, time),
                    (Some(Switch::Off), None) => self.lift(number),
                    (_, Some(_)) => return Err("expected a time with \"on\" only".to_owned()),
                    (None, None) => {}
                }
                self.handler(number).into_iter().collect()
            }
        };
        serde_json::to_value(handlers).map_err(|error| error.to_string())
    }

    /// Changes the number of workers of a pool; those that are to come or go do so one after another.
    pub(super) fn change_workers(&mut self, pool: &str, change: Change) -> Result<Value, String> {
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

    fn shut(&self, number: u16, time: Option<u32>) {
        let time = time.map(|time| Duration::from_secs(time.into()));
        let nanoseconds = time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let until = nanoseconds.map_or(UNTIL_LIFTED, |time| scoreboard::now().saturating_add(time));
        if let Some(breaker) = self.deaths.breakers.get(usize::from(number)) {
            breaker.shut(until);
        }
        if let Some(route) = self.routes.handlers().get(usize::from(number)) {
            let how_long = time.map_or("until that is lifted".to_owned(), |time| format!("for {time:?}"));
            log::warn!("{}: quarantined by order, {} answers 503 {how_long}", route.name, route.resource);
        }
    }

    fn lift(&mut self, number: u16) {
        if let Some(breaker) = self.deaths.breakers.get(usize::from(number)) {
            breaker.lift();
        }
        self.deaths.forgive(number);
        if let Some(route) = self.routes.handlers().get(usize::from(number)) {
            log::warn!("{}: served again by order", route.name);
        }
    }
}
