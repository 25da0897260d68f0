//! Which slots have a process: workers are started, restarted with a growing delay, stopped, and given up if none of
//! them starts.
//!
//! A worker that dies is restarted at once the first time, then after 1 s, 2 s, 4 s and so on up to 30 s; a minute of
//! service resets the delay. One that has served for a second is back after a second at the latest: there may be no
//! other. One that crashes while it serves is restarted at once, as its connections wait, unless it does nothing but
//! crash.
//!
//! Change with [`Slots::on`], then carry out [`Slots::action`] until there is none.

use std::collections::VecDeque;
use std::time::Duration;

use super::backoff::{Backoff, Rule};
use crate::exit::Exit;
use crate::time::{Instant, Rate};

/// Something has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The worker in this slot accepts connections.
    Ready(usize),
    /// The process in this slot has ended, or could not be forked.
    Died(usize),
    /// The process in this slot has died at the start, of what the next one will do without.
    Hindered(usize),
    /// The process in this slot is crashing, and sends its connections to the slot's inbox; whether it did so while it
    /// served a connection.
    Crashed(usize, bool),
    /// A standby serves in this slot from now on.
    Adopted(usize),
    /// The process in this slot hands its connections over and leaves: it is not replaced here.
    Left(usize),
    /// A worker is to serve in this slot again.
    Wanted(usize),
    /// Stop: when all connections are closed, or at once.
    Stop {
        /// The exit code, unless something was a reason to stop before.
        exit: Exit,
        /// Without waiting for connections.
        at_once: bool,
    },
    /// Stop when all connections are closed; when repeated: at once.
    Interrupt,
    /// A process that did not stop in time was killed.
    Killed,
    /// Nothing but that time has passed.
    Time,
}

/// Something is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fork a worker into this slot.
    Spawn(usize),
    /// Command the worker to stop.
    Stop(usize),
    /// Command the worker to leave at once.
    Quit(usize),
    /// None of the workers comes up: stop at once, with [`Exit::Start`].
    GiveUp,
    /// No worker is left: the server stops as soon as no other process is.
    Leave,
}

/// A process that died after at least this long has served, and its place is empty for no longer.
const SERVED: Duration = Duration::from_secs(1);
/// So many failed starts in a row, in every slot, and the server gives up.
const FAILED_STARTS: u32 = 5;
/// Crashes in a second, while serving, after each of which a worker is restarted at once.
const CRASHES: u64 = 10;
/// After a rest there may be as many at once as in this time.
const BURST: Duration = Duration::from_secs(10);
const RESTART: Rule = Rule {
    free: 1,
    first: Duration::from_secs(1),
    longest: Duration::from_secs(30),
    forgiven: Duration::from_secs(60),
};

/// All slots, as far as decisions depend on them.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Slot>,
    /// All workers have been ready once.
    were_ready: bool,
    /// The workers have been told to leave.
    stop: Option<Stop>,
    actions: VecDeque<Action>,
}

#[derive(Clone, Debug)]
struct Slot {
    process: Occupant,
    restart: Backoff,
    /// Starts in a row that ended before the worker was ready.
    failed_starts: u32,
    /// Those while it served.
    crashes: Rate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupant {
    /// None, and one is due at this time.
    Due(Instant),
    Starting,
    Running {
        since: Instant,
    },
    /// None, and none is due.
    Gone,
}

#[derive(Clone, Copy, Debug)]
struct Stop {
    since: Instant,
    exit: Exit,
    at_once: bool,
    /// There has been an [`Event::Interrupt`].
    is_interrupted: bool,
    /// No slot has a process, and none will.
    is_over: bool,
}

impl Slots {
    /// So many, for which workers are due.
    pub fn new(slots: usize) -> Self {
        let due = Slot { process: Occupant::Due(Instant::default()), ..Slot::EMPTY };
        Self { slots: vec![due; slots], were_ready: false, stop: None, actions: VecDeque::new() }
    }

    /// Whether the workers have been told to leave.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// Whether they are to do so at once.
    pub fn stops_at_once(&self) -> bool {
        self.stop.is_some_and(|stop| stop.at_once)
    }

    /// The exit code of the server, once the last worker has left.
    pub fn exit(&self) -> Option<Exit> {
        self.stop.filter(|stop| stop.is_over).map(|stop| stop.exit)
    }

    /// Whether all workers have been ready once.
    pub fn were_ready(&self) -> bool {
        self.were_ready
    }

    /// Whether a process is in this slot, or due.
    pub fn is_taken(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(|slot| slot.process != Occupant::Gone)
    }

    /// When a process for this slot, which has none, is due.
    pub fn due(&self, slot: usize) -> Option<Instant> {
        match self.slots.get(slot)?.process {
            Occupant::Due(at) => Some(at),
            _ => None,
        }
    }

    /// The slots in which a process is, or due.
    pub fn taken(&self) -> impl Iterator<Item = usize> {
        (0..self.slots.len()).filter(|slot| self.is_taken(*slot))
    }

    /// The next action.
    pub fn action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Time`] is to be given, if at all. Later than the last event.
    pub fn deadline(&self) -> Option<Instant> {
        (0..self.slots.len()).filter_map(|slot| self.due(slot)).min()
    }

    /// Something has happened. Events about slots that have no process change nothing.
    pub fn on(&mut self, event: Event, now: Instant) {
        match event {
            Event::Ready(slot) => self.ready(slot, now),
            Event::Died(slot) => self.died(slot, now),
            Event::Hindered(slot) => self.hindered(slot, now),
            Event::Crashed(slot, served) => self.crashed(slot, served, now),
            Event::Adopted(slot) => self.adopted(slot, now),
            Event::Left(slot) => {
                if let Some(slot) = self.slots.get_mut(slot) {
                    *slot = Slot::EMPTY;
                }
            }
            Event::Wanted(slot) if self.stop.is_none() => {
                let slot = self.slot_mut(slot);
                if slot.process == Occupant::Gone {
                    slot.process = Occupant::Due(now);
                }
            }
            Event::Wanted(_) => {}
            Event::Stop { exit, at_once } => self.stop(exit, at_once, now),
            Event::Interrupt => self.interrupt(now),
            Event::Killed => {
                if let Some(Stop { exit: exit @ Exit::Ok, .. }) = &mut self.stop {
                    *exit = Exit::Killed;
                }
            }
            Event::Time => {}
        }
        self.spawn_due(now);
        self.leave();
    }

    /// A slot, perhaps a new one.
    fn slot_mut(&mut self, slot: usize) -> &mut Slot {
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, Slot::EMPTY);
        }
        &mut self.slots[slot]
    }

    fn ready(&mut self, slot: usize, now: Instant) {
        let Some(slot) = self.slots.get_mut(slot) else { return };
        if slot.process != Occupant::Starting {
            return;
        }
        slot.process = Occupant::Running { since: now };
        slot.failed_starts = 0;
        let is_well = |slot: &Slot| matches!(slot.process, Occupant::Running { .. } | Occupant::Gone);
        self.were_ready |= self.slots.iter().all(is_well) && self.stop.is_none();
    }

    fn died(&mut self, slot: usize, now: Instant) {
        let Some(slot) = self.slots.get_mut(slot) else { return };
        let worked = match slot.process {
            Occupant::Running { since } => now.since(since),
            Occupant::Starting => {
                slot.failed_starts += 1;
                Duration::ZERO
            }
            Occupant::Due(_) | Occupant::Gone => return,
        };
        if self.stop.is_some() {
            slot.process = Occupant::Gone;
            return;
        }
        let wait = slot.restart.failed(&RESTART, worked);
        slot.process = Occupant::Due(now + if worked < SERVED { wait } else { wait.min(SERVED) });
        let mut taken = self.slots.iter().filter(|slot| slot.process != Occupant::Gone);
        if taken.all(|slot| slot.failed_starts >= FAILED_STARTS) && !self.actions.contains(&Action::GiveUp) {
            self.actions.push_back(Action::GiveUp);
        }
    }

    /// Happens at most once for each handler: no delay, and no failed start.
    fn hindered(&mut self, slot: usize, now: Instant) {
        match (self.slots.get_mut(slot), self.stop) {
            (Some(slot), None) if slot.process == Occupant::Starting => slot.process = Occupant::Due(now),
            _ => self.died(slot, now),
        }
    }

    /// Its connections wait for a replacement, if only to be closed: no delay. One that had no time to serve died like
    /// others, as did one that is not to be replaced any more. When all stop, a replacement is replaced only if a
    /// connection crashed it, of which there is one less then.
    fn crashed(&mut self, slot: usize, served: bool, now: Instant) {
        match (self.slots.get(slot).map(|slot| slot.process), self.stop) {
            (Some(Occupant::Running { since }), None) if !served && now.since(since) < SERVED => {
                self.died(slot, now);
            }
            (Some(Occupant::Running { .. }), None) => {
                let slot = &mut self.slots[slot];
                slot.process = Occupant::Due(slot.crashes.opens(now).unwrap_or(now));
                slot.crashes.add(1, now);
            }
            (Some(Occupant::Running { since }), Some(stop))
                if !stop.at_once && (served || since < stop.since) =>
            {
                self.slots[slot].process = Occupant::Starting;
                self.actions.extend([Action::Spawn(slot), Action::Stop(slot)]);
            }
            _ => self.died(slot, now),
        }
    }

    fn adopted(&mut self, slot: usize, now: Instant) {
        *self.slot_mut(slot) = Slot { process: Occupant::Running { since: now }, ..Slot::EMPTY };
        if let Some(Stop { at_once, .. }) = self.stop {
            self.actions.push_back(if at_once { Action::Quit(slot) } else { Action::Stop(slot) });
        }
    }

    fn interrupt(&mut self, now: Instant) {
        let again = self.stop.is_some_and(|stop| stop.is_interrupted);
        self.stop(Exit::Ok, again, now);
        self.stop.iter_mut().for_each(|stop| stop.is_interrupted = true);
    }

    /// Tells all to leave: within the time to stop, or at once. The first reason to leave is the exit code.
    fn stop(&mut self, exit: Exit, at_once: bool, now: Instant) {
        let before = self.stop;
        if before.is_some_and(|stop| stop.at_once || !at_once) {
            return;
        }
        let stop =
            before.unwrap_or(Stop { since: now, exit, at_once, is_interrupted: false, is_over: false });
        self.stop = Some(Stop { at_once, ..stop });
        for (index, slot) in self.slots.iter_mut().enumerate() {
            match slot.process {
                Occupant::Starting | Occupant::Running { .. } => {
                    self.actions.push_back(if at_once { Action::Quit(index) } else { Action::Stop(index) });
                }
                Occupant::Gone => {}
                Occupant::Due(_) => slot.process = Occupant::Gone,
            }
        }
    }

    fn spawn_due(&mut self, now: Instant) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if matches!(slot.process, Occupant::Due(at) if at <= now) {
                slot.process = Occupant::Starting;
                self.actions.push_back(Action::Spawn(index));
            }
        }
    }

    fn leave(&mut self) {
        if let Some(stop @ Stop { is_over: false, .. }) = &mut self.stop
            && self.slots.iter().all(|slot| slot.process == Occupant::Gone)
        {
            stop.is_over = true;
            self.actions.push_back(Action::Leave);
        }
    }
}

impl Slot {
    /// No process is in it, and none is due.
    const EMPTY: Slot = Slot {
        process: Occupant::Gone,
        restart: Backoff::NONE,
        failed_starts: 0,
        crashes: Rate::new(CRASHES, BURST),
    };
}

#[cfg(test)]
mod tests;
