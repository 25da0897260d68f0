//! Which slots have a process: workers are started, restarted with a growing delay, stopped, and given up if none of
//! them starts.
//!
//! A worker that dies is restarted at once the first time, then after 1 s, 2 s, 4 s and so on up to 30 s; a minute of
//! service resets the delay.

use crate::exit::Exit;

/// Nanoseconds of a clock that only goes forward.
pub type Time = u64;

/// Something has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The beginning.
    Start,
    /// The worker in this slot accepts connections.
    Ready(usize),
    /// The process in this slot has ended, or could not be forked.
    Died(usize),
    /// The process in this slot is going down because of a handler, and hands its connections over.
    Crashed(usize),
    /// A worker that was started to wait serves in this slot from now on.
    Adopted(usize),
    /// The process in this slot hands its connections over to others and leaves: nobody follows it.
    Left(usize),
    /// What left this slot has crashed, and somebody has to take up what is in its inbox.
    Orphaned(usize),
    /// Stop when all connections are closed.
    Terminate,
    /// The same from a terminal; when repeated: stop at once.
    Interrupt,
    /// Stop at once.
    Quit,
    /// A worker found what makes going on pointless.
    Fail(Exit),
    /// A worker has handlers that cannot be loaded, which is an error at the start: a server that serves goes on.
    Broken,
    /// Nothing but that time has passed.
    Time,
}

/// Something is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fork a worker into this slot.
    Spawn(usize),
    /// Order the worker to stop.
    Stop(usize),
    /// Order the worker to leave at once.
    Quit(usize),
    /// Kill the worker: it had its time.
    Kill(usize),
    /// All workers are ready, for the first time: say so.
    Announce,
    /// Nothing is left to be done.
    Leave(Exit),
}

/// The times of a plan, all in ns.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From the order to stop until a worker must have left by itself.
    pub stop: Time,
}

/// After the time to stop, or the order to quit: the patience left.
pub const GRACE: Time = SECOND;
/// A worker that is not ready after this is killed.
pub const START: Time = 60 * SECOND;
/// A worker that served this long has its earlier deaths forgiven.
pub const FORGIVEN: Time = 60 * SECOND;
/// The longest wait before a worker is replaced.
pub const LONGEST_WAIT: Time = 30 * SECOND;
/// So many failed starts in a row, in every slot, and the fleet is given up.
pub const FAILED_STARTS: u32 = 5;
const SECOND: Time = 1_000_000_000;

/// The state of the fleet as far as decisions depend on it.
#[derive(Debug)]
pub struct Plan {
    slots: Vec<Slot>,
    phase: Phase,
    times: Times,
    announced: bool,
}

#[derive(Clone, Debug)]
struct Slot {
    process: Process,
    /// Deaths that are not forgiven.
    deaths: u32,
    /// Starts in a row that ended before the worker was ready.
    failed_starts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    /// None, and one is due at this time.
    Due(Time),
    Starting {
        since: Time,
    },
    Running {
        since: Time,
    },
    /// Killed because it did not get ready; its death is still to be reported.
    Killed,
    /// None, and none is due.
    Gone,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Serving,
    /// The workers have been told to leave; who is left at `kill_at` is killed.
    Stopping {
        kill_at: Time,
        exit: Exit,
        at_once: bool,
        interrupted: bool,
    },
    /// The rest was killed.
    Killing {
        exit: Exit,
    },
    Left,
}

impl Plan {
    /// A plan for so many slots; [`Event::Start`] sets it going.
    pub fn new(slots: usize, times: Times) -> Self {
        Self { slots: vec![Slot::EMPTY; slots], phase: Phase::Serving, times, announced: false }
    }

    /// Other times, after a reload.
    pub fn set_times(&mut self, times: Times) {
        self.times = times;
    }

    /// Whether the workers have been told to leave.
    pub fn is_stopping(&self) -> bool {
        !matches!(self.phase, Phase::Serving)
    }

    /// The slots in which somebody is, or is to be.
    pub fn taken(&self) -> impl Iterator<Item = usize> {
        let slots = self.slots.iter().enumerate();
        slots.filter(|(_, slot)| slot.process != Process::Gone).map(|(index, _)| index)
    }

    /// Whether all that should serve do.
    fn is_complete(&self) -> bool {
        let is_well = |slot: &Slot| matches!(slot.process, Process::Running { .. } | Process::Gone);
        self.slots.iter().all(is_well)
    }

    /// What is to be done after `event` at `now`. Events about slots that have no process change nothing.
    pub fn on(&mut self, event: Event, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Start => self.slots.iter_mut().for_each(|slot| slot.process = Process::Due(now)),
            Event::Ready(slot) => self.ready(slot, now, &mut actions),
            Event::Died(slot) => self.died(slot, now, &mut actions),
            Event::Crashed(slot) => self.crashed(slot, now, &mut actions),
            Event::Adopted(slot) => self.adopted(slot, now, &mut actions),
            Event::Left(slot) => {
                if let Some(slot) = self.slots.get_mut(slot) {
                    *slot = Slot::EMPTY;
                }
            }
            Event::Orphaned(slot) => {
                if let Some(slot) = self.slots.get_mut(slot) {
                    slot.process = Process::Running { since: now };
                }
                self.crashed(slot, now, &mut actions);
            }
            Event::Terminate => self.stop(Exit::Ok, false, now, &mut actions),
            Event::Interrupt => self.interrupt(now, &mut actions),
            Event::Quit => self.stop(Exit::Ok, true, now, &mut actions),
            Event::Fail(exit) => self.stop(exit, true, now, &mut actions),
            Event::Broken if !self.announced => self.stop(Exit::Config, true, now, &mut actions),
            Event::Broken => {}
            Event::Time => {}
        }
        self.pass_time(now, &mut actions);
        self.leave(&mut actions);
        actions
    }

    /// When [`Event::Time`] is next worth giving, if at all.
    pub fn deadline(&self) -> Option<Time> {
        match self.phase {
            Phase::Serving => self.slots.iter().filter_map(|slot| slot.deadline()).min(),
            Phase::Stopping { kill_at, .. } => Some(kill_at),
            Phase::Killing { .. } | Phase::Left => None,
        }
    }

    fn ready(&mut self, slot: usize, now: Time, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(slot) else { return };
        if !matches!(slot.process, Process::Starting { .. }) {
            return;
        }
        slot.process = Process::Running { since: now };
        slot.failed_starts = 0;
        if self.is_complete() && !self.announced && matches!(self.phase, Phase::Serving) {
            self.announced = true;
            actions.push(Action::Announce);
        }
    }

    fn died(&mut self, slot: usize, now: Time, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(slot) else { return };
        match slot.process {
            Process::Running { since } if now.saturating_sub(since) >= FORGIVEN => slot.deaths = 0,
            Process::Running { .. } => {}
            Process::Starting { .. } | Process::Killed => slot.failed_starts += 1,
            Process::Due(_) | Process::Gone => return,
        }
        if !matches!(self.phase, Phase::Serving) {
            slot.process = Process::Gone;
            return;
        }
        slot.process = Process::Due(now.saturating_add(wait(slot.deaths)));
        slot.deaths = slot.deaths.saturating_add(1);
        let mut taken = self.slots.iter().filter(|slot| slot.process != Process::Gone);
        if taken.all(|slot| slot.failed_starts >= FAILED_STARTS) {
            self.stop(Exit::Start, true, now, actions);
        }
    }

    /// Its connections wait for a replacement, if only to be closed, and a handler is to blame: no backoff.
    fn crashed(&mut self, slot: usize, now: Time, actions: &mut Vec<Action>) {
        let Some(process) = self.slots.get_mut(slot).map(|slot| &mut slot.process) else { return };
        match (*process, self.phase) {
            (Process::Running { .. }, Phase::Serving) => {
                *process = Process::Starting { since: now };
                actions.push(Action::Spawn(slot));
            }
            (Process::Running { .. }, Phase::Stopping { at_once: false, .. }) => {
                *process = Process::Starting { since: now };
                actions.extend([Action::Spawn(slot), Action::Stop(slot)]);
            }
            // It was not serving yet, or nobody is replaced any more: a death like others.
            _ => self.died(slot, now, actions),
        }
    }

    fn adopted(&mut self, slot: usize, now: Time, actions: &mut Vec<Action>) {
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, Slot::EMPTY);
        }
        self.slots[slot] = Slot { process: Process::Running { since: now }, ..Slot::EMPTY };
        if let Phase::Stopping { at_once, .. } = self.phase {
            actions.push(if at_once { Action::Quit(slot) } else { Action::Stop(slot) });
        }
    }

    fn interrupt(&mut self, now: Time, actions: &mut Vec<Action>) {
        let again = matches!(self.phase, Phase::Stopping { interrupted: true, .. });
        self.stop(Exit::Ok, again, now, actions);
        if let Phase::Stopping { interrupted, .. } = &mut self.phase {
            *interrupted = true;
        }
    }

    /// Tells all to leave: within the time to stop, or at once. The first reason to leave is the exit code.
    fn stop(&mut self, exit: Exit, at_once: bool, now: Time, actions: &mut Vec<Action>) {
        let order = if at_once { Action::Quit } else { Action::Stop };
        let (exit, interrupted) = match self.phase {
            Phase::Serving => (exit, false),
            Phase::Stopping { exit, at_once: false, interrupted, .. } if at_once => (exit, interrupted),
            Phase::Stopping { .. } | Phase::Killing { .. } | Phase::Left => return,
        };
        let patience = if at_once { GRACE } else { self.times.stop.saturating_add(GRACE) };
        self.phase = Phase::Stopping { kill_at: now.saturating_add(patience), exit, at_once, interrupted };
        for (index, slot) in self.slots.iter_mut().enumerate() {
            match slot.process {
                Process::Starting { .. } | Process::Running { .. } => actions.push(order(index)),
                Process::Killed | Process::Gone => {}
                Process::Due(_) => slot.process = Process::Gone,
            }
        }
    }

    fn pass_time(&mut self, now: Time, actions: &mut Vec<Action>) {
        let is_due = |slot: &Slot| slot.deadline().is_some_and(|deadline| deadline <= now);
        match self.phase {
            Phase::Serving => {
                for (index, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| is_due(slot)) {
                    if matches!(slot.process, Process::Due(_)) {
                        slot.process = Process::Starting { since: now };
                        actions.push(Action::Spawn(index));
                    } else {
                        slot.process = Process::Killed;
                        actions.push(Action::Kill(index));
                    }
                }
            }
            Phase::Stopping { kill_at, exit, .. } if kill_at <= now => {
                let left = actions.len();
                for (index, slot) in self.slots.iter().enumerate() {
                    if !matches!(slot.process, Process::Gone) {
                        actions.push(Action::Kill(index));
                    }
                }
                let killed = actions.len() > left && exit == Exit::Ok;
                self.phase = Phase::Killing { exit: if killed { Exit::Killed } else { exit } };
            }
            Phase::Stopping { .. } | Phase::Killing { .. } | Phase::Left => {}
        }
    }

    fn leave(&mut self, actions: &mut Vec<Action>) {
        if let Phase::Stopping { exit, .. } | Phase::Killing { exit } = self.phase
            && self.slots.iter().all(|slot| slot.process == Process::Gone)
        {
            self.phase = Phase::Left;
            actions.push(Action::Leave(exit));
        }
    }
}

impl Slot {
    /// Nobody is in it, and nobody is to be.
    const EMPTY: Slot = Slot { process: Process::Gone, deaths: 0, failed_starts: 0 };

    fn deadline(&self) -> Option<Time> {
        match self.process {
            Process::Due(at) => Some(at),
            Process::Starting { since } => Some(since.saturating_add(START)),
            Process::Running { .. } | Process::Killed | Process::Gone => None,
        }
    }
}

/// The wait before a replacement, after so many deaths before this one.
fn wait(deaths: u32) -> Time {
    match deaths {
        0 => 0,
        1..=5 => SECOND << (deaths - 1),
        _ => LONGEST_WAIT,
    }
}

#[cfg(test)]
mod tests;
