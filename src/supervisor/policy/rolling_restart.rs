//! Replacing workers while they serve. A replacement is started beside each, as a standby; it begins to serve, and the
//! old worker hands its connections over and leaves, one after another.
//!
//! A reload is all or nothing: its standbys are started first, a few at a time, and only when all of them are ready
//! does the first one serve. If one of them fails before that, all are dismissed and nothing has changed.
//!
//! Change with [`RollingRestart::on`], then carry out [`RollingRestart::action`] until there is none.

use std::collections::VecDeque;

use crate::fleet::memory::scoreboard::Place;

/// A worker to be started, one to be retired in its favour, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Place of the worker to be started.
    pub start: Option<Place>,
    /// Slot of the worker to be retired then.
    pub retire: Option<usize>,
}

/// Something has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A reload makes these steps necessary. Only when idle.
    Reload(Vec<Step>),
    /// One more worker is to be replaced, added or removed.
    Step(Step),
    /// The standby for this place is ready.
    Ready(Place),
    /// The standby for this place has failed, or could not be started.
    Failed(Place, String),
    /// The worker of this slot hands its connections over, or is gone.
    Left(usize),
    /// A worker that was to be added is not wanted any more.
    Cancel(Place),
    /// The reload is not wanted any more, of which nothing serves yet; the reason.
    CancelReload(String),
    /// Nothing is replaced any more; the reason.
    Abort(String),
}

/// Something is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a standby.
    Start(Place),
    /// All standbys of the reload are ready: what is started from now on is of the new generation.
    Commit,
    /// The standby begins to serve.
    Begin(Place),
    /// The worker of this slot hands over to the worker that began for this place, or to others, and leaves.
    Retire(usize, Option<Place>),
    /// Kill the standby.
    Dismiss(Place),
    /// A standby that belongs to no reload has failed, and what it was for does not happen; why.
    GiveUp(String),
    /// The reload is over; an error says why, and whether it was committed.
    Done(Result<(), ReloadFailure>),
}

/// Why a reload did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReloadFailure {
    /// The reason.
    pub why: String,
    /// Whether the new generation serves in part.
    pub committed: bool,
}

/// Standbys that may be starting at a time.
const AT_A_TIME: usize = 4;
/// Attempts for a worker of a generation that has been committed.
const ATTEMPTS: u32 = 3;

/// The steps that are left, and how far the first ones are.
#[derive(Debug, Default)]
pub struct RollingRestart {
    steps: VecDeque<Progress>,
    reload: Reload,
    /// The slot whose worker has been told to leave.
    retiring: Option<usize>,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
struct Progress {
    step: Step,
    is_of_reload: bool,
    standby: Standby,
    attempts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standby {
    NotStarted,
    Starting,
    Ready,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Reload {
    #[default]
    None,
    /// Standbys are starting; nothing has changed.
    Trial,
    /// They serve, one after another.
    Committed {
        /// A worker that could not be replaced.
        failed: Option<String>,
    },
}

impl RollingRestart {
    /// Whether nothing is being replaced.
    pub fn is_idle(&self) -> bool {
        self.steps.is_empty() && self.retiring.is_none() && self.reload == Reload::None
    }

    /// Whether the worker of this slot has been told to leave and has not begun to.
    pub fn is_retiring(&self, slot: usize) -> bool {
        self.retiring == Some(slot)
    }

    /// Whether the worker of this slot is to leave.
    pub fn retires(&self, slot: usize) -> bool {
        self.is_retiring(slot) || self.steps.iter().any(|pending| pending.step.retire == Some(slot))
    }

    /// The places of workers that are to come in addition.
    pub fn additions(&self) -> impl Iterator<Item = Place> {
        let steps = self.steps.iter().map(|pending| pending.step);
        steps.filter(|step| step.retire.is_none()).filter_map(|step| step.start)
    }

    /// The slots of workers that are to be replaced in their places.
    pub fn replaced(&self) -> impl Iterator<Item = usize> {
        let steps = self.steps.iter().map(|pending| pending.step);
        steps.filter(|step| step.start.is_some()).filter_map(|step| step.retire)
    }

    /// The next action.
    pub fn action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Something has happened.
    pub fn on(&mut self, event: Event) {
        match event {
            Event::Reload(steps) => {
                self.steps = steps.into_iter().map(|step| Progress::new(step, true)).collect();
                self.reload = Reload::Trial;
            }
            Event::Step(step) => self.steps.push_back(Progress::new(step, false)),
            Event::Ready(place) => {
                if let Some(pending) = self.standby(place) {
                    pending.standby = Standby::Ready;
                }
            }
            Event::Failed(place, why) => self.failed(place, why),
            Event::Left(slot) => {
                self.retiring.take_if(|retiring| *retiring == slot);
            }
            Event::Cancel(place) => self.remove(place),
            Event::CancelReload(why) if self.reload == Reload::Trial => self.abort_reload(why),
            Event::CancelReload(_) => {}
            Event::Abort(why) => self.abort(why),
        }
        self.advance();
    }

    fn standby(&mut self, place: Place) -> Option<&mut Progress> {
        let mut steps = self.steps.iter_mut();
        steps.find(|pending| pending.step.start == Some(place) && pending.standby != Standby::NotStarted)
    }

    fn failed(&mut self, place: Place, why: String) {
        let Some(pending) = self.standby(place) else { return };
        pending.standby = Standby::NotStarted;
        pending.attempts += 1;
        let given_up = pending.attempts >= ATTEMPTS;
        match &mut self.reload {
            Reload::Trial => self.abort_reload(why),
            Reload::None => {
                self.remove(place);
                self.actions.push_back(Action::GiveUp(why));
            }
            Reload::Committed { failed } if given_up => {
                failed.get_or_insert(why);
                self.remove(place);
            }
            Reload::Committed { .. } => {}
        }
    }

    /// Without what is to be started for this place.
    fn remove(&mut self, place: Place) {
        let is_it = |pending: &Progress| pending.step.start == Some(place);
        if self.steps.iter().any(|pending| is_it(pending) && pending.standby != Standby::NotStarted) {
            self.actions.push_back(Action::Dismiss(place));
        }
        self.steps.retain(|pending| !is_it(pending));
    }

    /// What was wanted besides the reload begins anew.
    fn abort_reload(&mut self, why: String) {
        let others = self.steps.iter().filter(|pending| !pending.is_of_reload);
        let others: Vec<Progress> = others.map(|pending| Progress::new(pending.step, false)).collect();
        self.abort(why);
        self.steps.extend(others);
    }

    fn abort(&mut self, why: String) {
        self.retiring = None;
        for pending in self.steps.drain(..).filter(|pending| pending.standby != Standby::NotStarted) {
            self.actions.extend(pending.step.start.map(Action::Dismiss));
        }
        let committed = match std::mem::take(&mut self.reload) {
            Reload::None => return,
            Reload::Trial => false,
            Reload::Committed { .. } => true,
        };
        self.actions.push_back(Action::Done(Err(ReloadFailure { why, committed })));
    }

    /// As far as that is possible now.
    fn advance(&mut self) {
        if self.reload == Reload::Trial {
            let starting = self.steps.iter().filter(|pending| pending.standby == Standby::Starting).count();
            for pending in
                self.steps.iter_mut().filter(|pending| pending.is_to_start()).take(AT_A_TIME - starting)
            {
                self.actions.extend(pending.start());
            }
            if self
                .steps
                .iter()
                .any(|pending| pending.step.start.is_some() && pending.standby != Standby::Ready)
            {
                return;
            }
            self.actions.push_back(Action::Commit);
            self.reload = Reload::Committed { failed: None };
        }
        while self.retiring.is_none()
            && let Some(first) = self.steps.front_mut()
        {
            if first.is_to_start() {
                return self.actions.extend(first.start());
            }
            if first.standby == Standby::Starting {
                return;
            }
            let Step { start, retire } = first.step;
            self.steps.pop_front();
            self.actions.extend(start.map(Action::Begin));
            self.actions.extend(retire.map(|slot| Action::Retire(slot, start)));
            self.retiring = retire;
        }
        if self.steps.is_empty()
            && self.retiring.is_none()
            && let Reload::Committed { failed } = &mut self.reload
        {
            let result = failed.take().map_or(Ok(()), |why| Err(ReloadFailure { why, committed: true }));
            self.actions.push_back(Action::Done(result));
            self.reload = Reload::None;
        }
    }
}

impl Progress {
    fn new(step: Step, is_of_reload: bool) -> Self {
        Self { step, is_of_reload, standby: Standby::NotStarted, attempts: 0 }
    }

    fn is_to_start(&self) -> bool {
        self.step.start.is_some() && self.standby == Standby::NotStarted
    }

    fn start(&mut self) -> Option<Action> {
        self.standby = Standby::Starting;
        self.step.start.map(Action::Start)
    }
}

#[cfg(test)]
mod tests {
    use super::Action::{Begin, Commit, Dismiss, Done, GiveUp, Retire, Start};
    use super::Event::{Abort, Cancel, CancelReload, Failed, Left, Ready};
    use super::*;

    const A: Place = Place { pool: 0, number: 0 };
    const B: Place = Place { pool: 0, number: 1 };
    const C: Place = Place { pool: 0, number: 2 };

    fn replace(place: Place, slot: usize) -> Step {
        Step { start: Some(place), retire: Some(slot) }
    }

    fn failed(place: Place) -> Event {
        Failed(place, "it died".to_owned())
    }

    fn failure(why: &str, committed: bool) -> Action {
        Done(Err(ReloadFailure { why: why.to_owned(), committed }))
    }

    /// Runs a table of events and actions.
    #[track_caller]
    fn check(table: &[(Event, &[Action])]) {
        let mut rolling = RollingRestart::default();
        for (row, (event, actions)) in table.iter().enumerate() {
            rolling.on(event.clone());
            let done: Vec<Action> = std::iter::from_fn(|| rolling.action()).collect();
            assert_eq!(done, *actions, "row {row}: {event:?}");
        }
        assert!(rolling.is_idle(), "{rolling:?}");
    }

    #[test]
    fn a_reload_touches_nothing_before_all_standbys_are_ready() {
        check(&[
            (Event::Reload(vec![replace(A, 0), replace(B, 1)]), &[Start(A), Start(B)]),
            (Ready(B), &[]),
            (Ready(A), &[Commit, Begin(A), Retire(0, Some(A))]),
            (Left(1), &[]),
            (Left(0), &[Begin(B), Retire(1, Some(B))]),
            (Left(1), &[Done(Ok(()))]),
        ]);
    }

    #[test]
    fn one_standby_that_fails_and_nothing_has_changed() {
        let refused = [Dismiss(A), failure("it died", false)];
        let reload = Event::Reload(vec![replace(A, 0), replace(B, 1)]);
        check(&[(reload.clone(), &[Start(A), Start(B)]), (failed(B), &refused)]);
        check(&[(reload.clone(), &[Start(A), Start(B)]), (Ready(A), &[]), (failed(B), &refused)]);
        let stopped = [Dismiss(A), Dismiss(B), failure("stop", false)];
        check(&[(reload, &[Start(A), Start(B)]), (Ready(A), &[]), (Abort("stop".to_owned()), &stopped)]);
    }

    #[test]
    fn a_worker_that_is_added_during_a_reload_comes_even_if_that_fails() {
        let add = Event::Step(Step { start: Some(C), retire: None });
        let cancel = CancelReload("no".to_owned());
        for (end, dismissed, why) in
            [(failed(A), vec![Dismiss(C)], "it died"), (cancel, vec![Dismiss(A), Dismiss(C)], "no")]
        {
            let actions = [&dismissed[..], &[failure(why, false), Start(C)]].concat();
            check(&[
                (Event::Reload(vec![replace(A, 0)]), &[Start(A)]),
                (add.clone(), &[Start(C)]),
                (end, &actions),
                (Ready(C), &[Begin(C)]),
            ]);
        }
    }

    #[test]
    fn a_few_standbys_start_at_a_time() {
        let places: Vec<Place> = (0..6).map(|number| Place { pool: 0, number }).collect();
        let mut rolling = RollingRestart::default();
        rolling.on(Event::Reload(places.iter().map(|place| replace(*place, 0)).collect()));
        let started = |rolling: &mut RollingRestart| std::iter::from_fn(|| rolling.action()).count();
        assert_eq!(started(&mut rolling), AT_A_TIME);
        rolling.on(Ready(places[0]));
        assert_eq!(started(&mut rolling), 1);
    }

    #[test]
    fn after_the_commit_a_worker_gets_three_attempts_and_the_end_says_that_it_failed() {
        check(&[
            (Event::Reload(vec![replace(A, 0), replace(B, 1)]), &[Start(A), Start(B)]),
            (Ready(B), &[]),
            (Ready(A), &[Commit, Begin(A), Retire(0, Some(A))]),
            (failed(B), &[]),
            (Left(0), &[Start(B)]),
            (failed(B), &[Start(B)]),
            (failed(B), &[failure("it died", true)]),
        ]);
    }

    #[test]
    fn a_stop_after_the_commit_is_no_success() {
        check(&[
            (Event::Reload(vec![replace(A, 0)]), &[Start(A)]),
            (Ready(A), &[Commit, Begin(A), Retire(0, Some(A))]),
            (Abort("stop".to_owned()), &[failure("stop", true)]),
            (Left(0), &[]),
        ]);
    }

    #[test]
    fn a_reload_that_changes_nothing_is_done_at_once() {
        check(&[(Event::Reload(Vec::new()), &[Commit, Done(Ok(()))])]);
    }

    #[test]
    fn workers_come_and_go_one_after_another_and_one_that_fails_is_given_up() {
        let add = |place| Event::Step(Step { start: Some(place), retire: None });
        check(&[
            (add(C), &[Start(C)]),
            (Event::Step(Step { start: None, retire: Some(0) }), &[]),
            (Ready(C), &[Begin(C), Retire(0, None)]),
            (add(A), &[]),
            (add(B), &[]),
            (Left(0), &[Start(A)]),
            (Cancel(A), &[Dismiss(A), Start(B)]),
            (failed(A), &[]),
            (failed(B), &[GiveUp("it died".to_owned())]),
        ]);
    }
}
