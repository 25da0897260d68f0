//! Upgrade: another executable takes over, or this one serves on. Each row is a state, each column an event:
//!
//! | | Requested | Ready | Late | Cancel | Ended |
//! |---|---|---|---|---|---|
//! | Idle | Start, or Refuse | | | | |
//! | Starting | Refuse | HandOver, Serving | Fail, Ending | Fail, End, Ending | Fail, Idle |
//! | Ending | Refuse | | | | Idle |
//! | Serving | Refuse | | | | TakeBack, Idle |

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpgradeState {
    /// There is no other executable.
    #[default]
    Idle,
    /// It was started, and is not ready.
    Starting,
    /// It has failed and is being ended.
    Ending,
    /// It serves; this process hands its connections over.
    Serving,
}

/// Something has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An upgrade is wanted; the reason if it is not possible now.
    Requested(Option<&'static str>),
    /// Its workers are ready to take connections over.
    Ready,
    /// It did not do this, and has been sent SIGTERM.
    Late(&'static str),
    /// It has ended; how. Or it could not be started; why.
    Ended(String),
    /// It is not wanted any more, or will not come; why.
    Cancel(String),
}

/// Something is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the other executable.
    Start,
    /// The upgrade is not begun.
    Refuse(String),
    /// Hand connections over; the upgrade has succeeded.
    HandOver,
    /// The upgrade has failed; this executable serves on.
    Fail(String),
    /// End the other executable: SIGTERM, then SIGKILL.
    End,
    /// The other executable is gone although it served: serve again, with new workers.
    TakeBack(String),
}

impl UpgradeState {
    /// Whether there is another executable.
    pub fn is_under_way(self) -> bool {
        self != UpgradeState::Idle
    }

    /// Whether the other executable has not failed, and does not serve yet.
    pub fn is_pending(self) -> bool {
        self == UpgradeState::Starting
    }

    /// Something has happened: what is to be done.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        let (state, actions) = match (*self, event) {
            (UpgradeState::Idle, Event::Requested(None)) => (UpgradeState::Starting, vec![Action::Start]),
            (state, Event::Requested(why)) => {
                (state, vec![Action::Refuse(why.unwrap_or("an upgrade is already under way").to_owned())])
            }
            (UpgradeState::Starting, Event::Ready) => (UpgradeState::Serving, vec![Action::HandOver]),
            (UpgradeState::Starting, Event::Late(to)) => {
                (UpgradeState::Ending, vec![Action::Fail(format!("it did not {to}"))])
            }
            (UpgradeState::Starting, Event::Cancel(why)) => {
                (UpgradeState::Ending, vec![Action::Fail(why), Action::End])
            }
            (UpgradeState::Starting, Event::Ended(how)) => (UpgradeState::Idle, vec![Action::Fail(how)]),
            (UpgradeState::Ending, Event::Ended(_)) => (UpgradeState::Idle, Vec::new()),
            (UpgradeState::Serving, Event::Ended(how)) => (UpgradeState::Idle, vec![Action::TakeBack(how)]),
            (state, _) => (state, Vec::new()),
        };
        *self = state;
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::Action::{End, Fail, HandOver, Refuse, Start, TakeBack};
    use super::Event::{Cancel, Ended, Late, Ready, Requested};
    use super::UpgradeState::{Ending, Idle, Serving, Starting};

    #[test]
    fn what_happens_in_each_state() {
        let text = |text: &str| text.to_owned();
        let under_way = || vec![Refuse(text("an upgrade is already under way"))];
        let ended = || Ended(text("it died"));
        let table = [
            (Idle, Requested(None), Starting, vec![Start]),
            (Idle, Requested(Some("not now")), Idle, vec![Refuse(text("not now"))]),
            (Idle, Ready, Idle, vec![]),
            (Idle, Cancel(text("stop")), Idle, vec![]),
            (Starting, Requested(None), Starting, under_way()),
            (Starting, Ready, Serving, vec![HandOver]),
            (Starting, Late("become ready"), Ending, vec![Fail(text("it did not become ready"))]),
            (Starting, Cancel(text("stop")), Ending, vec![Fail(text("stop")), End]),
            (Starting, ended(), Idle, vec![Fail(text("it died"))]),
            (Ending, Requested(None), Ending, under_way()),
            (Ending, Ready, Ending, vec![]),
            (Ending, Late("exit"), Ending, vec![]),
            (Ending, Cancel(text("stop")), Ending, vec![]),
            (Ending, ended(), Idle, vec![]),
            (Serving, Requested(None), Serving, under_way()),
            (Serving, Cancel(text("stop")), Serving, vec![]),
            (Serving, ended(), Idle, vec![TakeBack(text("it died"))]),
        ];
        for (before, event, after, actions) in table {
            let mut upgrade = before;
            assert_eq!((upgrade.on(event.clone()), upgrade), (actions, after), "{before:?} {event:?}");
        }
    }
}
