//! Standbys, and workers that hand over to them; more workers or fewer in a pool, by signal or by `wshd ctl workers`.
//! When is decided in `policy::rolling_restart`.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::unistd::Pid;
use serde_json::Value;

use super::generation::Generation;
use super::policy::rolling_restart::{Action, Event, RollingRestart, Step};
use super::policy::slots;
use super::processes::Role;
use super::{Busy, Flow, Supervisor, spawn};
use crate::clock;
use crate::ctl::request::Change;
use crate::fleet::memory::scoreboard::{Place, State};
use crate::fleet::sockets::control::Command;
use crate::log as sink;

/// A worker has this long to begin to leave when it is told to; a handler that hangs is ended before.
const RETIRE: Duration = Duration::from_secs(120);

/// Workers in a pool, by command.
const MOST_WORKERS: usize = 1024;

/// Replacing workers while they serve.
#[derive(Default)]
pub(super) struct Rolling {
    pub policy: RollingRestart,
    /// How far a reload is, until it is committed.
    pub reload: Option<PendingReload>,
    /// A reload is to begin as soon as nothing else is being replaced.
    pub is_reload_wanted: bool,
    /// What is replaced was asked for by a reload; else certificates have changed, or a suspect is isolated.
    pub is_reload: bool,
    /// The log of before the reload, if that has another one.
    pub former_log: Option<sink::Former>,
    /// Workers may be left of a generation before the one in force: a reload did not replace all of them.
    pub is_incomplete: bool,
    /// What takes over from the worker that is told to leave.
    heir: Option<usize>,
}

/// A reload that has changed nothing yet.
pub(super) enum PendingReload {
    /// A child finds out what the new generation is made of.
    Preparing(Pid),
    /// Auxiliary processes of the new generation start.
    Starting(Generation),
    /// Workers of the new generation start.
    Replacing(Generation),
}

impl Rolling {
    /// Whether nothing is being replaced, and no reload begun.
    pub fn is_idle(&self) -> bool {
        self.policy.is_idle() && self.reload.is_none()
    }

    /// Whether a child finds out what the next generation is made of.
    pub fn is_preparing(&self) -> bool {
        matches!(self.reload, Some(PendingReload::Preparing(_)))
    }

    /// The generation of a reload whose processes start.
    pub fn on_trial(&self) -> Option<&Generation> {
        match &self.reload {
            Some(PendingReload::Starting(generation) | PendingReload::Replacing(generation)) => {
                Some(generation)
            }
            _ => None,
        }
    }

    /// The same if workers start.
    pub fn of_standbys(&self) -> Option<&Generation> {
        self.on_trial().filter(|_| matches!(self.reload, Some(PendingReload::Replacing(_))))
    }
}

impl Supervisor {
    pub(super) fn carry_out_rolling(&mut self, action: Action) -> Flow {
        match action {
            Action::Start(place) => return self.start_standby(place),
            Action::Commit => {
                if let Some(PendingReload::Replacing(generation)) = self.rolling.reload.take() {
                    self.commit(generation);
                }
            }
            Action::Begin(place) => self.begin_standby(place),
            Action::Retire(slot, heir) => {
                self.rolling.heir = heir.and_then(|place| self.slot_of(place, slot));
                self.retire(slot);
            }
            Action::Dismiss(place) => {
                if let Some((pid, slot)) = self.standby(place) {
                    log::debug!("{}[{pid}] is not needed any more", self.name(slot));
                    self.processes.dismiss(pid);
                }
            }
            Action::GiveUp(why) => {
                log::error!("{why}; the workers stay as they are");
                self.maintenance.replacement_failed(clock::now());
            }
            Action::Done(result) => self.reload_done(result),
        }
        ControlFlow::Continue(())
    }

    /// Begins to replace what serves by another generation.
    pub(super) fn try_out(&mut self, generation: Generation) {
        self.auxiliaries.try_out(&self.generation, &generation);
        self.rolling.reload = Some(PendingReload::Starting(generation));
    }

    /// Gives up what is being replaced; what serves goes on.
    pub(super) fn abort_rolling(&mut self, why: &str) {
        self.cancel_loading(why);
        self.rolling.policy.on(Event::Abort(why.to_owned()));
    }

    fn start_standby(&mut self, place: Place) -> Flow {
        let generation = self.rolling.of_standbys().unwrap_or(&self.generation).clone();
        let forked = match self.free_slot(place) {
            Ok(slot) => spawn::worker(self, Role::Standby, slot, &generation)?.map(|pid| (pid, slot)),
            Err(error) => Err(error),
        };
        match forked {
            Ok((pid, slot)) => log::debug!("{}[{pid}] is starting, as a standby", self.name(slot)),
            Err(error) => {
                let name = generation.config.worker_name(place.pool, place.number);
                let why = format!("{name}: cannot fork: {error}");
                log::error!("{why}");
                self.rolling.policy.on(Event::Failed(place, why));
            }
        }
        ControlFlow::Continue(())
    }

    fn standby(&self, place: Place) -> Option<(Pid, usize)> {
        let mut standbys = self.processes.in_role(Role::Standby);
        standbys.find_map(|pid| {
            let slot = self.processes.get(pid)?.slot?;
            (self.place_of(slot) == place).then_some((pid, slot))
        })
    }

    pub(super) fn on_standby_ready(&mut self, pid: Pid, slot: usize, (loaded, broken): (u16, u16)) {
        let place = self.place_of(slot);
        if broken > 0 {
            self.standby_failed(slot, pid, &format!("{broken} of its handlers cannot be loaded"));
            return self.processes.dismiss(pid);
        }
        log::debug!("{}[{pid}] is ready with {loaded} handlers, as a standby", self.name(slot));
        if let Some(process) = self.processes.get_mut(pid) {
            process.clear_deadline();
        }
        self.rolling.policy.on(Event::Ready(place));
    }

    pub(super) fn standby_failed(&mut self, slot: usize, pid: Pid, why: &str) {
        let why = format!("the new {}[{pid}]: {why}", self.name(slot));
        self.rolling.policy.on(Event::Failed(self.place_of(slot), why));
    }

    fn begin_standby(&mut self, place: Place) {
        // One that has ended since it was ready is restarted where it was to serve.
        let Some((pid, slot)) = self.standby(place) else { return self.want_worker(place) };
        self.processes.set_role(pid, Role::Worker);
        if let Some(record) = self.shared.scoreboard.slot(slot) {
            record.set_state(State::Running); // from here on it has to respond
        }
        self.command(slot, Command::Begin, None);
        self.join_recording(pid);
        self.maintenance.begin_rebalance(clock::now());
        self.slots.on(slots::Event::Adopted(slot), clock::now());
    }

    /// Has a worker be started in this place.
    pub(super) fn want_worker(&mut self, place: Place) {
        match self.free_slot(place) {
            Ok(slot) => self.slots.on(slots::Event::Wanted(slot), clock::now()),
            Err(error) => log::error!("no slot for a worker: {error}"),
        }
    }

    /// The slot whose worker is in this place, other than one.
    fn slot_of(&self, place: Place, except: usize) -> Option<usize> {
        let mut slots = 0..self.processes.slots();
        slots.find(|slot| {
            *slot != except && self.place_of(*slot) == place && self.processes.holder(*slot).is_some()
        })
    }

    /// The worker of a slot leaves, or is gone: none is started there any more.
    pub(super) fn left(&mut self, slot: usize) {
        self.slots.on(slots::Event::Left(slot), clock::now());
        self.rolling.policy.on(Event::Left(slot));
    }

    /// Tells the worker of a slot to hand over and leave.
    fn retire(&mut self, slot: usize) {
        if self.processes.holder(slot).is_none() {
            // It is to be restarted: that is not necessary any more, unless its inbox has something.
            return self.left(slot);
        }
        self.tell_to_leave(slot);
    }

    pub(super) fn tell_to_leave(&mut self, slot: usize) {
        let Some(pid) = self.processes.holder(slot) else { return };
        if self.upgrade.is_superseded() {
            match self.upgrade.tx(slot) {
                Some(tx) => self.command(slot, Command::Migrate { to: slot as u16 }, Some(tx)),
                None => self.command(slot, Command::Drain, None),
            }
        } else {
            let heir = self.rolling.heir.filter(|heir| self.processes.holder(*heir).is_some());
            match heir.or_else(|| self.heir_of(slot)) {
                Some(to) => self.tell_to_hand_over(pid, slot, to),
                None => {
                    log::error!("{}: no worker to move its connections to; keeping it", self.name(slot));
                    return self.rolling.policy.on(Event::Left(slot));
                }
            }
        }
        if let Some(process) = self.processes.get_mut(pid) {
            process.is_retiring = true;
            process.set_deadline(clock::now() + RETIRE, "begin to hand over in time");
        }
    }

    /// Tells a worker to hand its connections over to the one of another slot.
    pub(super) fn tell_to_hand_over(&self, pid: Pid, from: usize, to: usize) {
        // A worker whose pool is given up does not know the inboxes of another one.
        let pools = [from, to].map(|slot| usize::from(self.place_of(slot).pool));
        let is_known = self.generation.config.reaches(pools[0], pools[1]);
        let inbox = self.processes.inbox(to).filter(|_| !is_known).map(|inbox| inbox.tx.as_fd());
        if let Err(error) = self.processes.command(pid, Command::Migrate { to: to as u16 }, inbox) {
            log::debug!("{}[{pid}]: {error}", self.name(from)); // it is gone, or will be killed
        }
    }

    /// What takes over the connections of a worker without a successor: the least loaded of its pool, or else of the
    /// default pool, which passes connections on. One that does not serve yet finds in its inbox what came meanwhile.
    pub(super) fn heir_of(&self, slot: usize) -> Option<usize> {
        let pool = self.place_of(slot).pool;
        let rank = |heir: usize| {
            let record = self.shared.scoreboard.slot(heir)?;
            let serves = record.state() == State::Starting || record.takes_connections();
            let will_serve = serves || self.slots.due(heir).is_some();
            let is_heir = [pool, 0].contains(&record.place().pool) && will_serve;
            let load = record.connections.load(Ordering::Relaxed);
            is_heir.then_some((record.place().pool != pool, !serves, load))
        };
        let others = self.slots.taken().filter(|heir| *heir != slot);
        others.filter_map(|heir| Some((rank(heir)?, heir))).min().map(|(_, heir)| heir)
    }

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
