//! Upgrade: another executable takes over, or this one serves on. Each row is a state, each column an event:
//!
//! | | Requested | Ready | Closed | Late | Cancel | Ended |
//! |---|---|---|---|---|---|---|
//! | Idle | Start, or Refuse | | | | | |
//! | Starting | Refuse | HandOver, Serving | Hurry, ChannelClosed | Fail, Ending | Fail, End, Ending | Fail, Idle |
//! | ChannelClosed | Refuse | | | Fail, Ending | Fail, End, Ending | Fail, Idle |
//! | Ending | Refuse | | | | | Idle |
//! | Serving | Refuse | | | | | TakeBack, Idle |

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpgradeState {
    /// There is no other executable.
    #[default]
    Idle,
    /// It was started, and is not ready.
    Starting,
    /// It has closed its channel: it is ending, or else it is ended.
    ChannelClosed,
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
    /// It has closed its channel, or sent nonsense.
    Closed,
    /// It has not become ready in time, and has been sent SIGTERM.
    Late,
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
    /// End the other executable if it does not end by itself in a moment.
    Hurry,
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
        matches!(self, UpgradeState::Starting | UpgradeState::ChannelClosed)
    }

    /// Whether the other executable serves.
    pub fn is_serving(self) -> bool {
        self == UpgradeState::Serving
    }

    /// Something has happened: what is to be done.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        let fail = |why: &str| Action::Fail(why.to_owned());
        let (state, actions) = match (*self, event) {
            (UpgradeState::Idle, Event::Requested(None)) => (UpgradeState::Starting, vec![Action::Start]),
            (state, Event::Requested(why)) => {
                (state, vec![Action::Refuse(why.unwrap_or("an upgrade is already under way").to_owned())])
            }
            (UpgradeState::Starting, Event::Ready) => (UpgradeState::Serving, vec![Action::HandOver]),
            (UpgradeState::Starting, Event::Closed) => (UpgradeState::ChannelClosed, vec![Action::Hurry]),
            (UpgradeState::ChannelClosed, Event::Late) => {
                (UpgradeState::Ending, vec![fail("it closed its channel before it was ready")])
            }
            (UpgradeState::Starting, Event::Late) => {
                (UpgradeState::Ending, vec![fail("it was not ready in time")])
            }
            (UpgradeState::Starting | UpgradeState::ChannelClosed, Event::Cancel(why)) => {
                (UpgradeState::Ending, vec![Action::Fail(why), Action::End])
            }
            (UpgradeState::Starting | UpgradeState::ChannelClosed, Event::Ended(how)) => {
                (UpgradeState::Idle, vec![Action::Fail(how)])
            }
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
    use super::Action::{End, Fail, HandOver, Hurry, Refuse, Start, TakeBack};
    use super::Event::{Cancel, Closed, Ended, Late, Ready, Requested};
    use super::UpgradeState::{ChannelClosed, Ending, Idle, Serving, Starting};

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
            (Starting, Closed, ChannelClosed, vec![Hurry]),
            (ChannelClosed, Late, Ending, vec![Fail(text("it closed its channel before it was ready"))]),
            (ChannelClosed, Cancel(text("stop")), Ending, vec![Fail(text("stop")), End]),
            (ChannelClosed, ended(), Idle, vec![Fail(text("it died"))]),
            (Starting, Late, Ending, vec![Fail(text("it was not ready in time"))]),
            (Starting, Cancel(text("stop")), Ending, vec![Fail(text("stop")), End]),
            (Starting, ended(), Idle, vec![Fail(text("it died"))]),
            (Ending, Requested(None), Ending, under_way()),
            (Ending, Ready, Ending, vec![]),
            (Ending, Closed, Ending, vec![]),
            (Ending, Late, Ending, vec![]),
            (Ending, Cancel(text("stop")), Ending, vec![]),
            (Ending, ended(), Idle, vec![]),
            (Serving, Requested(None), Serving, under_way()),
            (Serving, Closed, Serving, vec![]),
            (Serving, Cancel(text("stop")), Serving, vec![]),
            (Serving, ended(), Idle, vec![TakeBack(text("it died"))]),
        ];
        for (before, event, after, actions) in table {
            let mut upgrade = before;
            assert_eq!((upgrade.on(event.clone()), upgrade), (actions, after), "{before:?} {event:?}");
        }
    }
}
