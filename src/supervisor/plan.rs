//! What the supervisor does when something happens: a pure function of state and event, in virtual time. Forks,
//! kills, reads and prints nothing; `supervisor::run` carries the actions out.
//!
//! A worker that dies is replaced at once the first time, then after 1 s, 2 s, 4 s and so on up to 30 s; what
//! was is forgiven after a minute of service. A fleet of which no worker comes up is given up.

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
    /// Stop when all connections are closed.
    Terminate,
    /// The same from a terminal; when repeated: stop at once.
    Interrupt,
    /// Stop at once.
    Quit,
    /// A worker found what makes going on pointless.
    Fail(Exit),
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

#[derive(Debug)]
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
        let slot = |_| Slot { process: Process::Gone, deaths: 0, failed_starts: 0 };
        Self { slots: (0..slots).map(slot).collect(), phase: Phase::Serving, times, announced: false }
    }

    /// What is to be done after `event` at `now`. Events about slots that have no process change nothing.
    pub fn on(&mut self, event: Event, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Start => self.slots.iter_mut().for_each(|slot| slot.process = Process::Due(now)),
            Event::Ready(slot) => self.ready(slot, now, &mut actions),
            Event::Died(slot) => self.died(slot, now, &mut actions),
            Event::Crashed(slot) => self.crashed(slot, now, &mut actions),
            Event::Terminate => self.stop(Exit::Ok, false, now, &mut actions),
            Event::Interrupt => self.interrupt(now, &mut actions),
            Event::Quit => self.stop(Exit::Ok, true, now, &mut actions),
            Event::Fail(exit) => self.stop(exit, true, now, &mut actions),
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
        let all = self.slots.iter().all(|slot| matches!(slot.process, Process::Running { .. }));
        if all && !self.announced && matches!(self.phase, Phase::Serving) {
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
        if self.slots.iter().all(|slot| slot.failed_starts >= FAILED_STARTS) {
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
mod tests {
    use super::Action::*;
    use super::*;

    const STOP: Time = 10 * SECOND;

    /// Runs a table of (seconds, event, actions) through a plan that has been started at 0.
    #[track_caller]
    fn check(slots: usize, table: &[(u64, Event, &[Action])]) -> Plan {
        let mut plan = Plan::new(slots, Times { stop: STOP });
        assert_eq!(plan.on(Event::Start, 0), (0..slots).map(Spawn).collect::<Vec<_>>());
        for (row, (seconds, event, actions)) in table.iter().enumerate() {
            assert_eq!(plan.on(*event, seconds * SECOND), *actions, "row {row}: {event:?} at {seconds} s");
        }
        plan
    }

    use Event::{Crashed, Died, Fail, Interrupt, Quit as QuitNow, Ready, Terminate, Time as Passed};

    #[test]
    fn the_fleet_is_announced_once_when_all_are_ready() {
        check(
            2,
            &[
                (1, Ready(1), &[]),
                (1, Ready(1), &[]),
                (2, Ready(0), &[Announce]),
                (3, Died(0), &[Spawn(0)]),
                (4, Ready(0), &[]),
            ],
        );
    }

    #[test]
    fn a_worker_is_replaced_at_once_and_then_ever_later() {
        // At once, then 1, 2, 4, 8, 16, 30, 30 s after the death.
        check(
            1,
            &[
                (0, Ready(0), &[Announce]),
                (10, Died(0), &[Spawn(0)]),
                (10, Ready(0), &[]),
                (10, Died(0), &[]),
                (11, Passed, &[Spawn(0)]),
                (11, Ready(0), &[]),
                (11, Died(0), &[]),
                (12, Passed, &[]),
                (13, Passed, &[Spawn(0)]),
                (13, Ready(0), &[]),
                (13, Died(0), &[]),
                (16, Passed, &[]),
                (17, Passed, &[Spawn(0)]),
                (17, Ready(0), &[]),
                (17, Died(0), &[]),
                (24, Passed, &[]),
                (25, Passed, &[Spawn(0)]),
                (25, Ready(0), &[]),
                (25, Died(0), &[]),
                (40, Passed, &[]),
                (41, Passed, &[Spawn(0)]),
                (41, Ready(0), &[]),
                (41, Died(0), &[]),
                (70, Passed, &[]),
                (71, Passed, &[Spawn(0)]),
                (71, Ready(0), &[]),
                (71, Died(0), &[]),
                (100, Passed, &[]),
                (101, Passed, &[Spawn(0)]),
            ],
        );
    }

    #[test]
    fn a_minute_of_service_is_forgiveness() {
        check(
            1,
            &[
                (0, Ready(0), &[Announce]),
                (1, Died(0), &[Spawn(0)]),
                (1, Ready(0), &[]),
                (60, Died(0), &[]), // 59 s of service: the second death
                (61, Passed, &[Spawn(0)]),
                (61, Ready(0), &[]),
                (121, Died(0), &[Spawn(0)]), // 60 s: as if it were the first
                (121, Ready(0), &[]),
                (122, Died(0), &[]),
                (123, Passed, &[Spawn(0)]),
            ],
        );
    }

    #[test]
    fn the_other_slots_do_not_pay_for_one() {
        check(
            2,
            &[
                (0, Died(0), &[Spawn(0)]),
                (0, Died(0), &[]),
                (0, Died(1), &[Spawn(1)]),
                (1, Passed, &[Spawn(0)]),
            ],
        );
    }

    #[test]
    fn the_deadline_is_the_next_replacement_or_late_start() {
        let mut plan = check(2, &[(0, Ready(0), &[])]);
        assert_eq!(plan.deadline(), Some(START)); // slot 1 is starting
        assert_eq!(plan.on(Ready(1), SECOND), [Announce]);
        assert_eq!(plan.deadline(), None);
        assert_eq!(plan.on(Died(0), 2 * SECOND), [Spawn(0)]);
        assert_eq!(plan.on(Died(0), 3 * SECOND), []);
        assert_eq!(plan.deadline(), Some(4 * SECOND));
        assert_eq!(plan.on(Terminate, 3 * SECOND), [Stop(1)]);
        assert_eq!(plan.deadline(), Some(3 * SECOND + STOP + GRACE));
    }

    #[test]
    fn a_worker_that_does_not_get_ready_is_killed_and_replaced() {
        check(
            1,
            &[
                (59, Passed, &[]),
                (60, Passed, &[Kill(0)]),
                (61, Passed, &[]),
                (62, Ready(0), &[]), // too late
                (63, Died(0), &[Spawn(0)]),
                (64, Ready(0), &[Announce]),
            ],
        );
    }

    #[test]
    fn a_fleet_of_which_nobody_comes_up_is_given_up() {
        check(
            2,
            &[
                (0, Died(0), &[Spawn(0)]),
                (0, Died(0), &[]),
                (1, Passed, &[Spawn(0)]),
                (1, Died(0), &[]),
                (3, Passed, &[Spawn(0)]),
                (3, Died(0), &[]),
                (7, Passed, &[Spawn(0)]),
                (7, Died(0), &[]), // the fifth, but slot 1 may still come up
                (7, Died(1), &[Spawn(1)]),
                (7, Died(1), &[]),
                (8, Passed, &[Spawn(1)]),
                (8, Died(1), &[]),
                (10, Passed, &[Spawn(1)]),
                (10, Died(1), &[]),
                (14, Passed, &[Spawn(1)]),
                (15, Passed, &[Spawn(0)]),
                (15, Died(1), &[Quit(0)]),
                (15, Died(0), &[Leave(Exit::Start)]),
            ],
        );
    }

    #[test]
    fn one_start_that_succeeds_is_a_new_beginning() {
        check(
            1,
            &[
                (0, Died(0), &[Spawn(0)]),
                (0, Died(0), &[]),
                (1, Passed, &[Spawn(0)]),
                (1, Died(0), &[]),
                (3, Passed, &[Spawn(0)]),
                (3, Died(0), &[]),
                (7, Passed, &[Spawn(0)]),
                (7, Ready(0), &[Announce]),
                (7, Died(0), &[]),
                (15, Passed, &[Spawn(0)]),
                (15, Died(0), &[]), // the first failed start in a row
                (31, Passed, &[Spawn(0)]),
            ],
        );
    }

    #[test]
    fn stopping_waits_for_all_and_replaces_nobody() {
        check(
            3,
            &[
                (0, Ready(0), &[]),
                (0, Ready(1), &[]),
                (1, Died(2), &[Spawn(2)]),
                (1, Died(2), &[]), // due at 2 s, when nobody is replaced any more
                (1, Terminate, &[Stop(0), Stop(1)]),
                (2, Terminate, &[]),
                (3, Died(0), &[]),
                (11, Passed, &[]),
                (11, Died(1), &[Leave(Exit::Ok)]),
                (12, Passed, &[]),
                (12, Interrupt, &[]),
            ],
        );
    }

    #[test]
    fn who_does_not_stop_in_time_is_killed() {
        check(
            2,
            &[
                (0, Ready(0), &[]),
                (0, Ready(1), &[Announce]),
                (5, Terminate, &[Stop(0), Stop(1)]),
                (6, Died(0), &[]),
                (15, Passed, &[]), // 10 s are over, 1 s of grace is not
                (16, Passed, &[Kill(1)]),
                (17, Passed, &[]),
                (17, Died(1), &[Leave(Exit::Killed)]),
            ],
        );
    }

    #[test]
    fn a_second_interrupt_is_impatience_but_a_second_terminate_is_not() {
        check(
            1,
            &[
                (0, Ready(0), &[Announce]),
                (1, Interrupt, &[Stop(0)]),
                (2, Terminate, &[]),
                (3, Interrupt, &[Quit(0)]),
                (3, Interrupt, &[]),
                (4, Passed, &[Kill(0)]),
                (4, Died(0), &[Leave(Exit::Killed)]),
            ],
        );
        check(1, &[(1, Terminate, &[Stop(0)]), (2, Interrupt, &[]), (3, Interrupt, &[Quit(0)])]);
    }

    #[test]
    fn quit_leaves_at_once() {
        check(
            2,
            &[
                (0, Ready(0), &[]),
                (1, QuitNow, &[Quit(0), Quit(1)]),
                (1, Died(0), &[]),
                (2, Passed, &[Kill(1)]),
            ],
        );
        check(1, &[(1, Terminate, &[Stop(0)]), (2, QuitNow, &[Quit(0)]), (2, Died(0), &[Leave(Exit::Ok)])]);
    }

    #[test]
    fn with_no_process_left_there_is_nothing_to_wait_for() {
        check(1, &[(0, Died(0), &[Spawn(0)]), (0, Died(0), &[]), (0, Terminate, &[Leave(Exit::Ok)])]);
    }

    #[test]
    fn the_first_reason_to_leave_is_the_exit_code() {
        check(
            2,
            &[
                (0, Fail(Exit::Config), &[Quit(0), Quit(1)]),
                (0, Fail(Exit::Start), &[]),
                (0, Terminate, &[]),
                (0, Died(0), &[]),
                (1, Passed, &[Kill(1)]),
                (1, Died(1), &[Leave(Exit::Config)]),
            ],
        );
    }

    #[test]
    fn a_worker_that_crashes_while_serving_is_replaced_without_delay_whatever_was() {
        check(
            1,
            &[
                (0, Ready(0), &[Announce]),
                (1, Crashed(0), &[Spawn(0)]),
                (1, Ready(0), &[]),
                (1, Crashed(0), &[Spawn(0)]),
                (2, Crashed(0), &[Spawn(0)]), // before it was ready: the first death
                (2, Crashed(0), &[]),
                (3, Passed, &[Spawn(0)]),
                (4, Terminate, &[Stop(0)]),
                (5, Crashed(0), &[Leave(Exit::Ok)]),
            ],
        );
    }

    #[test]
    fn connections_of_a_worker_that_crashes_while_stopping_are_taken_up_to_be_closed() {
        check(
            2,
            &[
                (0, Ready(0), &[]),
                (0, Ready(1), &[Announce]),
                (1, Terminate, &[Stop(0), Stop(1)]),
                (1, Crashed(0), &[Spawn(0), Stop(0)]),
                (2, Ready(0), &[]),
                (2, Died(0), &[]),
                (2, QuitNow, &[Quit(1)]),
                (2, Crashed(1), &[Leave(Exit::Ok)]),
            ],
        );
    }

    #[test]
    fn events_about_nobody_change_nothing() {
        check(1, &[(0, Ready(7), &[]), (0, Died(7), &[]), (0, Ready(0), &[Announce])]);
    }
}
