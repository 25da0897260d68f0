//! Draining: health checks fail first, so that load balancers send nobody any more; after a grace nothing is accepted
//! and connections are closed over a time; then the server stops. Until then it can resume, unless it was told to stop
//! (a last drain). Each row is a state, each column an event:
//!
//! | | Begin | Resume | Time | Empty |
//! |---|---|---|---|---|
//! | Off | Announce, or Close | | | |
//! | Announced | the times change | Resume, Off | Close when due | |
//! | Closing | Close: the time changes | Resume, Off | Stop, Off when due | Stop, Off |

use std::time::Duration;

use crate::time::Instant;

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drain {
    /// The server serves, or stops.
    #[default]
    Off,
    /// Health checks fail; connections are still accepted.
    Announced {
        /// When nothing is accepted any more.
        close_at: Instant,
        /// Over which connections are closed then.
        time: Duration,
        /// The server was told to stop.
        is_last: bool,
    },
    /// Nothing is accepted, and connections are closed.
    Closing {
        /// When the server stops.
        until: Instant,
        /// The server was told to stop.
        is_last: bool,
    },
}

/// Something has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Drain; or, while draining, do so over another time.
    Begin {
        /// From failing health checks to accepting nothing more.
        grace: Duration,
        /// Over which connections are closed.
        time: Duration,
        /// The server was told to stop.
        is_last: bool,
    },
    /// Serve again.
    Resume,
    /// Nothing but that time has passed.
    Time,
    /// No connection is left.
    Empty,
}

/// Something is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fail health checks.
    Announce,
    /// Accept nothing more, and close connections until then.
    Close {
        /// When the server stops.
        until: Instant,
    },
    /// Accept again.
    Resume,
    /// Stop the server.
    Stop,
}

impl Drain {
    /// Whether the server drains.
    pub fn is_on(self) -> bool {
        self != Drain::Off
    }

    /// Whether it was told to stop when it has drained: it cannot resume.
    pub fn is_last(self) -> bool {
        matches!(self, Drain::Announced { is_last: true, .. } | Drain::Closing { is_last: true, .. })
    }

    /// When the server stops, if it drains.
    pub fn end(self) -> Option<Instant> {
        match self {
            Drain::Announced { close_at, time, .. } => Some(close_at + time),
            Drain::Closing { until, .. } => Some(until),
            Drain::Off => None,
        }
    }

    /// When [`Event::Time`] is to be given.
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Drain::Announced { close_at, .. } => Some(close_at),
            Drain::Closing { until, .. } => Some(until),
            Drain::Off => None,
        }
    }

    /// Something has happened: what is to be done.
    pub fn on(&mut self, event: Event, now: Instant) -> Option<Action> {
        let (state, action) = match (*self, event) {
            (Drain::Off, Event::Begin { grace, time, is_last }) if !grace.is_zero() => {
                (Drain::Announced { close_at: now + grace, time, is_last }, Some(Action::Announce))
            }
            (Drain::Off, Event::Begin { time, is_last, .. }) => close(now + time, is_last),
            (Drain::Announced { close_at, is_last, .. }, Event::Begin { time, is_last: last, .. }) => {
                (Drain::Announced { close_at, time, is_last: is_last || last }, None)
            }
            (Drain::Closing { is_last, .. }, Event::Begin { time, is_last: last, .. }) => {
                close(now + time, is_last || last)
            }
            (
                Drain::Announced { is_last: false, .. } | Drain::Closing { is_last: false, .. },
                Event::Resume,
            ) => (Drain::Off, Some(Action::Resume)),
            (Drain::Announced { close_at, time, is_last }, Event::Time) if close_at <= now => {
                close(now + time, is_last)
            }
            (Drain::Closing { until, .. }, Event::Time) if until <= now => (Drain::Off, Some(Action::Stop)),
            (Drain::Closing { .. }, Event::Empty) => (Drain::Off, Some(Action::Stop)),
            (state, _) => (state, None),
        };
        *self = state;
        action
    }
}

fn close(until: Instant, is_last: bool) -> (Drain, Option<Action>) {
    (Drain::Closing { until, is_last }, Some(Action::Close { until }))
}

#[cfg(test)]
mod tests {
    use super::Event::{Empty, Resume, Time};
    use super::*;

    fn at(second: u64) -> Instant {
        Instant::default() + Duration::from_secs(second)
    }

    fn begin(grace: u64, time: u64, is_last: bool) -> Event {
        let [grace, time] = [grace, time].map(Duration::from_secs);
        Event::Begin { grace, time, is_last }
    }

    fn announced(close_at: u64, time: u64, is_last: bool) -> Drain {
        Drain::Announced { close_at: at(close_at), time: Duration::from_secs(time), is_last }
    }

    fn closing(until: u64, is_last: bool) -> Drain {
        Drain::Closing { until: at(until), is_last }
    }

    #[test]
    fn what_happens_in_each_state() {
        let close = |until| Some(Action::Close { until: at(until) });
        // All of it happens at second 10.
        let table = [
            (Drain::Off, begin(5, 30, false), announced(15, 30, false), Some(Action::Announce)),
            (Drain::Off, begin(0, 30, true), closing(40, true), close(40)),
            (Drain::Off, Resume, Drain::Off, None),
            (Drain::Off, Time, Drain::Off, None),
            (Drain::Off, Empty, Drain::Off, None),
            (announced(15, 30, false), begin(9, 60, false), announced(15, 60, false), None),
            (announced(15, 30, false), begin(9, 60, true), announced(15, 60, true), None),
            (announced(15, 30, false), Resume, Drain::Off, Some(Action::Resume)),
            (announced(15, 30, true), Resume, announced(15, 30, true), None),
            (announced(15, 30, false), Time, announced(15, 30, false), None),
            (announced(10, 30, true), Time, closing(40, true), close(40)),
            (announced(15, 30, false), Empty, announced(15, 30, false), None),
            (closing(20, false), begin(9, 60, false), closing(70, false), close(70)),
            (closing(20, true), begin(9, 0, false), closing(10, true), close(10)),
            (closing(20, false), Resume, Drain::Off, Some(Action::Resume)),
            (closing(20, true), Resume, closing(20, true), None),
            (closing(20, false), Time, closing(20, false), None),
            (closing(10, false), Time, Drain::Off, Some(Action::Stop)),
            (closing(20, false), Empty, Drain::Off, Some(Action::Stop)),
        ];
        for (before, event, after, action) in table {
            let mut drain = before;
            assert_eq!((drain.on(event, at(10)), drain), (action, after), "{before:?} {event:?}");
            assert_eq!(drain.is_on(), drain.end().is_some());
            assert!(drain.deadline() <= drain.end());
        }
    }
}
