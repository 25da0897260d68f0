//! Replacing workers while they serve: new ones are started to wait, begin when they are ready, and the old ones hand
//! their connections over to them, one after another. All of a reload's first workers have to be ready before
//! anything that serves is touched; if one is not, nothing has changed.

use std::collections::VecDeque;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::edition::{Edition, Step};
use super::policy::slots::{self as plan, Event};
use super::{Fleet, Worker, spawn};
use crate::fleet::control::{Channel, Command, Report};
use crate::fleet::scoreboard::{self, Place, State};

/// A worker has this long (ns) to begin to leave when it is told to; a handler that hangs is brought down before.
const RETIRE: plan::Time = 120_000_000_000;

/// What is being replaced, and what is still to be.
#[derive(Default)]
pub(super) struct Roll {
    steps: VecDeque<Step>,
    standbys: Vec<Standby>,
    /// The edition that is tried; none once it serves.
    trial: Option<Edition>,
    /// The slot whose worker has been told to leave, who takes over, and until when it has to begin with that.
    retiring: Option<(usize, Option<usize>, plan::Time)>,
    /// A reload, not the replacement of a worker that is worn.
    is_reload: bool,
    /// Processes that waited, were not needed, and are killed.
    dismissed: Vec<Pid>,
}

/// A worker that waits.
struct Standby {
    slot: usize,
    place: Place,
    pid: Pid,
    control: Channel,
    is_ready: bool,
    /// When it is given up.
    give_up: plan::Time,
}

impl Roll {
    /// Whether nothing is being replaced.
    pub fn is_idle(&self) -> bool {
        self.steps.is_empty() && self.retiring.is_none() && self.trial.is_none()
    }

    /// Something more is to be replaced.
    pub fn push(&mut self, step: Step) {
        self.steps.push_back(step);
    }

    /// The worker of this slot hands its connections over.
    pub fn has_left(&mut self, slot: usize) {
        self.retiring.take_if(|(retiring, ..)| *retiring == slot);
    }

    /// Whether the worker of this slot is to leave.
    pub fn retires(&self, slot: usize) -> bool {
        let steps = self.steps.iter().filter_map(|step| step.retire);
        steps.chain(self.retiring.map(|(slot, ..)| slot)).any(|retired| retired == slot)
    }

    /// The places of workers that are to come in addition to those that there are.
    pub fn additions(&self) -> impl Iterator<Item = Place> {
        self.steps.iter().filter(|step| step.retire.is_none()).filter_map(|step| step.start)
    }

    /// The slots of workers for which others are to come.
    pub fn replaced(&self) -> Vec<usize> {
        self.steps.iter().filter(|step| step.start.is_some()).filter_map(|step| step.retire).collect()
    }

    /// When something is to be looked at, if at all.
    pub fn deadline(&self) -> Option<plan::Time> {
        let standbys = self.standbys.iter().map(|standby| standby.give_up);
        standbys.chain(self.retiring.map(|(.., give_up)| give_up)).min()
    }

    /// The channels of those that wait.
    pub fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.standbys.iter().map(|standby| &standby.control)
    }

    /// Forgets all; in a forked worker.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// A process has ended.
    pub fn has_ended(&mut self, pid: Pid) {
        self.dismissed.retain(|dismissed| *dismissed != pid);
    }

    /// Whether those that were killed have ended.
    pub fn is_over(&self) -> bool {
        self.dismissed.is_empty()
    }

    /// The slots of those that wait.
    pub fn slots(&self) -> impl Iterator<Item = usize> {
        self.standbys.iter().map(|standby| standby.slot)
    }
}

impl Fleet {
    /// Begins to replace workers by those of another edition; what comes of it is told by [`Fleet::reload_done`].
    pub(super) fn roll_out(&mut self, edition: Edition, steps: Vec<Step>) {
        self.roll.is_reload = true;
        self.roll.steps = steps.into();
        // The first of each pool shows whether it works.
        let mut first: Vec<Place> = Vec::new();
        for place in self.roll.steps.iter().filter_map(|step| step.start) {
            if first.iter().all(|known| known.pool != place.pool) {
                first.push(place);
            }
        }
        for place in first {
            if let Err(error) = self.start_standby(place, &edition) {
                return self.call_off(&format!("a worker can not be forked: {error}"));
            }
        }
        self.roll.trial = Some(edition);
    }

    /// Goes on with replacing as far as that is possible now.
    pub(super) fn roll_on(&mut self, events: &mut VecDeque<Event>) {
        self.read_standbys();
        if self.roll.trial.is_some() {
            if !self.roll.standbys.iter().all(|standby| standby.is_ready) {
                return;
            }
            if let Some(edition) = self.roll.trial.take() {
                self.set_edition(edition);
            }
        }
        while !self.roll.is_idle() || self.roll.is_reload {
            if let Some((slot, _, give_up)) = self.roll.retiring {
                if give_up > scoreboard::now() {
                    return;
                }
                log::error!("{} does not begin to leave: it stays", self.name(slot));
                self.roll.retiring = None;
            }
            let Some(step) = self.roll.steps.front().copied() else {
                self.roll.is_reload = false;
                self.reload_done(Ok(()));
                return;
            };
            if let Some(place) = step.start {
                match self.take_standby(place, events) {
                    Some(slot) => self.finish_step(step.retire, Some(slot), events),
                    None => return,
                }
            } else {
                self.finish_step(step.retire, None, events);
            }
        }
    }

    /// The step's new worker serves: the old one goes.
    fn finish_step(&mut self, retire: Option<usize>, to: Option<usize>, events: &mut VecDeque<Event>) {
        self.roll.steps.pop_front();
        let Some(slot) = retire else { return };
        if self.workers.get(slot).is_none_or(Option::is_none) {
            // It has died and was to come up again, or to take up what another has left: the inbox is looked into.
            self.leave_vacant(slot);
            events.push_back(Event::Left(slot));
            return;
        }
        self.roll.retiring = Some((slot, to, scoreboard::now().saturating_add(RETIRE)));
        self.order_to_leave(slot);
    }

    /// Tells a worker to leave, if it is the one that is to leave now; also one that has come up in its place.
    pub(super) fn order_to_leave(&mut self, slot: usize) {
        let Some((_, to, _)) = self.roll.retiring.filter(|(retiring, ..)| *retiring == slot) else { return };
        if let Some(successor) = self.successor.as_ref().filter(|successor| successor.is_serving) {
            return match successor.tx(slot) {
                Some(tx) => self.order_with(slot, Command::HandOver { to: slot as u16 }, Some(tx)),
                None => self.order(slot, Command::Drain),
            };
        }
        match to.or_else(|| self.heir_of(slot)) {
            Some(to) => self.order(slot, Command::HandOver { to: to as u16 }),
            None => {
                self.roll.retiring = None;
                log::error!("{}: nobody could take over its connections: it stays", self.name(slot));
            }
        }
    }

    /// Who takes over what a worker without a successor has: one of its pool, or else one that finds the right pool.
    fn heir_of(&self, slot: usize) -> Option<usize> {
        let pool = self.scoreboard.slot(slot)?.place().pool;
        let slots = self.scoreboard.slots().iter().enumerate();
        // One that has just been told to begin finds in its inbox what came meanwhile.
        let serves = |record: &scoreboard::Slot| matches!(record.state(), State::Running | State::Starting);
        let others = slots.filter(|(other, record)| *other != slot && serves(record));
        let heirs = others.filter(|(_, record)| record.place().pool == pool || record.place().pool == 0);
        let load = |record: &scoreboard::Slot| record.connections.load(std::sync::atomic::Ordering::Relaxed);
        heirs.min_by_key(|(_, record)| (record.place().pool != pool, load(record))).map(|(slot, _)| slot)
    }

    /// The slot of a worker for this place that begins to serve now; none while there is no such worker yet.
    fn take_standby(&mut self, place: Place, events: &mut VecDeque<Event>) -> Option<usize> {
        let Some(index) = self.roll.standbys.iter().position(|standby| standby.place == place) else {
            if let Err(error) = self.start_standby(place, &self.edition()) {
                log::error!("a worker can not be forked: {error}");
                self.roll.steps.pop_front();
            }
            return None;
        };
        if !self.roll.standbys.get(index).is_some_and(|standby| standby.is_ready) {
            return None;
        }
        let Standby { slot, pid, control, .. } = self.roll.standbys.swap_remove(index);
        self.adopt(Worker::new(pid, control), slot);
        if let Some(record) = self.scoreboard.slot(slot) {
            record.set_state(State::Starting);
        }
        self.order(slot, Command::Begin);
        events.push_back(Event::Adopted(slot));
        Some(slot)
    }

    fn start_standby(&mut self, place: Place, edition: &Edition) -> std::io::Result<()> {
        let slot = self.free_slot(place)?;
        let (pid, control) = spawn::spawn(self, slot, edition, true)?;
        log::debug!("{}[{pid}] is starting, to wait", self.name(slot));
        let give_up = scoreboard::now().saturating_add(plan::START);
        self.roll.standbys.push(Standby { slot, place, pid, control, is_ready: false, give_up });
        Ok(())
    }

    /// What those that wait report, and what becomes of those that take too long.
    fn read_standbys(&mut self) {
        let now = scoreboard::now();
        let mut wrong = None;
        for standby in &mut self.roll.standbys {
            match standby.control.recv_report() {
                Ok(Some(Report::Ready { broken: 0, .. })) => {
                    (standby.is_ready, standby.give_up) = (true, plan::Time::MAX);
                }
                Ok(Some(Report::Ready { broken, .. })) => {
                    wrong = Some((standby.pid, format!("{broken} of its handlers can not be loaded")));
                }
                Ok(Some(_)) | Ok(None) | Err(_) if standby.give_up <= now => {
                    wrong = Some((standby.pid, "it was not ready in time".to_owned()));
                }
                _ => {}
            }
        }
        if let Some((pid, why)) = wrong {
            // Not reaped yet, so the pid is still its own.
            let _ = kill(pid, Signal::SIGKILL);
            self.roll.dismissed.push(pid);
            self.lose_standby(pid, &why);
        }
    }

    /// A process that waited has ended, or is killed; false if it is none of those.
    pub(super) fn lose_standby(&mut self, pid: Pid, why: &str) -> bool {
        let Some(index) = self.roll.standbys.iter().position(|standby| standby.pid == pid) else {
            return false;
        };
        let standby = self.roll.standbys.swap_remove(index);
        let name = self.name(standby.slot);
        self.vacate(&standby);
        if self.roll.trial.is_some() {
            self.call_off(&format!("the new {name} is not as it should be: {why}"));
        } else {
            log::error!("{name}[{pid}], which was to replace another, is not as it should be: {why}");
            self.roll.steps.retain(|step| step.start != Some(standby.place));
        }
        true
    }

    /// Gives up what is being replaced; what serves goes on. Also when the server is told to stop.
    pub(super) fn call_off(&mut self, why: &str) {
        let was_trial = self.roll.trial.take().is_some() || self.roll.is_reload;
        for standby in std::mem::take(&mut self.roll.standbys) {
            self.dismiss(&standby);
        }
        self.roll = Roll { dismissed: std::mem::take(&mut self.roll.dismissed), ..Roll::default() };
        if was_trial {
            self.reload_done(Err(why.to_owned()));
        }
    }

    /// A worker that was to come in addition is not wanted any more.
    pub(super) fn cancel_start(&mut self, place: Place) {
        self.roll.steps.retain(|step| step.start != Some(place));
        let standbys = std::mem::take(&mut self.roll.standbys);
        let (cancelled, kept) = standbys.into_iter().partition(|standby| standby.place == place);
        self.roll.standbys = kept;
        let cancelled: Vec<Standby> = cancelled;
        cancelled.iter().for_each(|standby| self.dismiss(standby));
    }

    fn dismiss(&mut self, standby: &Standby) {
        log::debug!("{}[{}] is not needed any more", self.name(standby.slot), standby.pid);
        // Not reaped yet, so the pid is still its own.
        let _ = kill(standby.pid, Signal::SIGKILL);
        self.roll.dismissed.push(standby.pid);
        self.vacate(standby);
    }

    /// Nobody waits in this slot any more.
    fn vacate(&self, standby: &Standby) {
        if let Some(record) = self.scoreboard.slot(standby.slot) {
            record.end();
        }
    }
}
