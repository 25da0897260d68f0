//! Which handlers are not served for a while because workers die in them: a circuit breaker that opens by itself.
//!
//! So many deaths within the window that name one handler quarantine it, for a time that doubles with each
//! quarantine. When the time is over and it is being probed one death is enough. Deaths during the quarantine,
//! by connections that were open before, change nothing. After as long without a death as the quarantine was,
//! and at least the window, all is forgiven.
//!
//! A handler in which a worker dies at the start is not loaded again until it is forgiven.
//!
//! Deaths in a row that name nobody, with one handler that ran last before each:
//!
//! | | 1 | 2, 3 | more |
//! |---|---|---|---|
//! | it shares its pool | | isolate it: it is served in a pool of its own | quarantine it |
//! | it is alone | | | quarantine it |
//!
//! A death that names nobody in the pool of an isolated handler is its death.

use std::collections::BTreeMap;
use std::time::Duration;

use super::backoff::doubled;
use crate::config;
use crate::fleet::memory::breakers::BreakerState;
use crate::fleet::memory::crash::UNATTRIBUTED;
use crate::time::Instant;

/// The longest quarantine, unless the first one is configured to be longer.
pub const LONGEST: Duration = Duration::from_secs(600);

/// What is held against the handlers.
#[derive(Debug)]
pub struct Quarantine {
    /// From now on.
    pub rules: config::Quarantine,
    handlers: BTreeMap<u16, History>,
}

#[derive(Clone, Debug, Default)]
struct History {
    /// Since the last quarantine, within the window; in order.
    deaths: Vec<Instant>,
    /// A worker has died in it at the start.
    does_not_start: bool,
    /// Quarantines that are not forgiven.
    times: u32,
    /// Since when it has been good: the last death, or the end of the last quarantine.
    good_since: Instant,
}

/// A handler is to be quarantined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// How long.
    pub time: Duration,
    /// Deaths that led to it.
    pub deaths: usize,
}

/// What is done about a suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// It is served in a pool of its own.
    Isolate,
    /// It is not served.
    Quarantine(Term),
}

impl Quarantine {
    /// All handlers are without blame.
    pub fn new(rules: config::Quarantine) -> Self {
        Self { rules, handlers: BTreeMap::new() }
    }

    /// A process has died in this handler, whose breaker stands like this.
    pub fn on_death(&mut self, handler: u16, breaker: BreakerState, now: Instant) -> Option<Term> {
        self.count(handler, breaker, now, self.rules.deaths as usize)
    }

    /// A death, of which so many are enough.
    fn count(&mut self, handler: u16, breaker: BreakerState, now: Instant, enough: usize) -> Option<Term> {
        let first = self.rules.time;
        let window = self.rules.window;
        let history = self.handlers.entry(handler).or_default();
        if self.rules.deaths == 0 || breaker == BreakerState::Open {
            return None;
        }
        let clean = window.max(length(first, history.times.saturating_sub(1)));
        if now.since(history.good_since) >= clean {
            history.times = 0;
        }
        history.deaths.retain(|death| now.since(*death) < window);
        history.deaths.push(now);
        history.good_since = now;
        let deaths = history.deaths.len();
        if breaker == BreakerState::Closed && deaths < enough {
            return None;
        }
        let time = length(first, history.times);
        history.times = history.times.saturating_add(1);
        history.deaths.clear();
        history.good_since = now + time;
        Some(Term { time, deaths })
    }

    /// So many processes in a row have died in nobody's code, and this handler ran last.
    pub fn on_suspicion(
        &mut self,
        (handler, deaths): (u16, u32),
        is_alone: bool,
        breaker: BreakerState,
        now: Instant,
    ) -> Option<Measure> {
        match deaths {
            _ if self.rules.deaths == 0 => None,
            ..2 => None,
            2..=UNATTRIBUTED => (!is_alone).then_some(Measure::Isolate),
            _ => self.count(handler, breaker, now, 1).map(Measure::Quarantine),
        }
    }

    /// A worker has died in this handler before it could serve: once is enough, since none starts with it. False:
    /// nothing is quarantined.
    pub fn on_death_at_start(&mut self, handler: u16) -> bool {
        if self.rules.deaths > 0 {
            self.handlers.entry(handler).or_default().does_not_start = true;
        }
        self.does_not_start(handler)
    }

    /// Whether a handler is not to be loaded.
    pub fn does_not_start(&self, handler: u16) -> bool {
        self.handlers.get(&handler).is_some_and(|history| history.does_not_start)
    }

    /// The handlers that are not to be loaded.
    pub fn not_starting(&self) -> impl Iterator<Item = u16> {
        self.handlers.iter().filter(|(_, history)| history.does_not_start).map(|(handler, _)| *handler)
    }

    /// Nothing is held against this handler any more.
    pub fn forgive(&mut self, handler: u16) {
        self.handlers.remove(&handler);
    }
}

/// The length of a quarantine after so many.
fn length(first: Duration, before: u32) -> Duration {
    doubled(first, before).min(LONGEST.max(first))
}

#[cfg(test)]
mod tests {
    use super::BreakerState::{Closed, HalfOpen, Open};
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const RULES: config::Quarantine =
        config::Quarantine { deaths: 3, window: Duration::from_secs(60), time: Duration::from_secs(10) };

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    /// Runs a table of (seconds, handler, gate, seconds of quarantine or 0).
    #[track_caller]
    fn check(rules: config::Quarantine, table: &[(u64, u16, BreakerState, u64)]) {
        let mut quarantine = Quarantine::new(rules);
        for (row, (at, handler, breaker, seconds)) in table.iter().enumerate() {
            let verdict = quarantine.on_death(*handler, *breaker, Instant::from_nanos(at * SECOND));
            let time = verdict.map_or(0, |verdict| verdict.time.as_secs());
            assert_eq!(time, *seconds, "row {row}: a death in {handler} at {at} s");
        }
    }

    #[test]
    fn three_deaths_in_a_minute() {
        check(RULES, &[(100, 0, Closed, 0), (120, 0, Closed, 0), (159, 0, Closed, 10)]);
        // The first is a minute ago, and does not count any more; at 181 the second one does not.
        check(
            RULES,
            &[
                (100, 0, Closed, 0),
                (120, 0, Closed, 0),
                (160, 0, Closed, 0),
                (181, 0, Closed, 0),
                (182, 0, Closed, 10),
            ],
        );
    }

    #[test]
    fn only_that_handler() {
        check(
            RULES,
            &[(1, 0, Closed, 0), (2, 1, Closed, 0), (3, 0, Closed, 0), (4, 1, Closed, 0), (5, 1, Closed, 10)],
        );
    }

    #[test]
    fn a_probe_that_dies_is_enough_and_the_time_doubles_up_to_ten_minutes() {
        check(
            RULES,
            &[
                (1, 0, Closed, 0),
                (1, 0, Closed, 0),
                (1, 0, Closed, 10),
                (11, 0, HalfOpen, 20),
                (31, 0, HalfOpen, 40),
                (71, 0, HalfOpen, 80),
                (151, 0, HalfOpen, 160),
                (311, 0, HalfOpen, 320),
                (631, 0, HalfOpen, 600), // not 640
                (1231, 0, HalfOpen, 600),
            ],
        );
    }

    #[test]
    fn after_a_probe_that_went_well_three_deaths_again_and_twice_the_time() {
        check(
            RULES,
            &[
                (1, 0, Closed, 0),
                (1, 0, Closed, 0),
                (1, 0, Closed, 10),
                (12, 0, Closed, 0),
                (13, 0, Closed, 0),
                (14, 0, Closed, 20),
            ],
        );
    }

    #[test]
    fn deaths_of_connections_from_before_change_nothing() {
        check(
            RULES,
            &[
                (1, 0, Closed, 0),
                (1, 0, Closed, 0),
                (1, 0, Closed, 10),
                (2, 0, Open, 0),
                (2, 0, Open, 0),
                (2, 0, Open, 0),
                (12, 0, Closed, 0),
                (12, 0, Closed, 0),
                (12, 0, Closed, 20),
            ],
        );
    }

    #[test]
    fn forgiven_after_the_window_or_as_long_as_the_quarantine_was() {
        let begin = [(1, 0, Closed, 0), (1, 0, Closed, 0), (1, 0, Closed, 10)];
        // The quarantine ends at 11 s; the window is 60 s.
        check(RULES, &[&begin[..], &[(70, 0, HalfOpen, 20)]].concat());
        check(RULES, &[&begin[..], &[(71, 0, HalfOpen, 10)]].concat());
        // The fourth ends at 151 s and was 80 s.
        let begin =
            [&begin[..], &[(11, 0, HalfOpen, 20), (31, 0, HalfOpen, 40), (71, 0, HalfOpen, 80)]].concat();
        check(RULES, &[&begin[..], &[(230, 0, HalfOpen, 160)]].concat());
        check(RULES, &[&begin[..], &[(231, 0, HalfOpen, 10)]].concat());
        // A death that was not enough begins the clean time anew: 60 s after 65 s.
        let begin = [(1, 0, Closed, 0), (1, 0, Closed, 0), (1, 0, Closed, 10), (65, 0, Closed, 0)];
        check(RULES, &[&begin[..], &[(124, 0, HalfOpen, 20)]].concat());
        check(RULES, &[&begin[..], &[(125, 0, HalfOpen, 10)]].concat());
    }

    #[test]
    fn the_rules_are_the_operators() {
        let rules =
            config::Quarantine { deaths: 1, window: Duration::from_secs(1), time: Duration::from_secs(1000) };
        check(rules, &[(1, 0, Closed, 1000), (1001, 0, HalfOpen, 1000)]);
        check(
            config::Quarantine { deaths: 0, ..RULES },
            &[(1, 0, Closed, 0), (1, 0, Closed, 0), (1, 0, Closed, 0)],
        );
    }

    #[test]
    fn what_is_forgiven_does_not_count_any_more() {
        let mut quarantine = Quarantine::new(RULES);
        let mut dies =
            |handler, at: u64| quarantine.on_death(handler, Closed, Instant::from_nanos(at)).is_some();
        assert_eq!([dies(0, 1), dies(0, 2), dies(1, 2), dies(1, 2)], [false; 4]);
        quarantine.forgive(0);
        quarantine.forgive(2); // nobody knows it
        let mut dies =
            |handler, at: u64| quarantine.on_death(handler, Closed, Instant::from_nanos(at)).is_some();
        assert_eq!([dies(0, 3), dies(1, 3), dies(0, 4), dies(0, 5)], [false, true, false, true]);
    }

    #[test]
    fn a_suspect_is_isolated_first_and_then_quarantined() {
        let sentence = Some(Measure::Quarantine(Term { time: Duration::from_secs(10), deaths: 1 }));
        for (deaths, shares, alone) in [
            (1, None, None),
            (2, Some(Measure::Isolate), None),
            (3, Some(Measure::Isolate), None),
            (4, sentence, sentence),
        ] {
            for (is_alone, expected) in [(false, shares), (true, alone)] {
                let mut quarantine = Quarantine::new(RULES);
                let measure = quarantine.on_suspicion((0, deaths), is_alone, Closed, at(1));
                assert_eq!(measure, expected, "{deaths} deaths, alone: {is_alone}");
            }
        }
        let mut off = Quarantine::new(config::Quarantine { deaths: 0, ..RULES });
        assert_eq!(off.on_suspicion((0, 9), false, Closed, at(1)), None);
    }

    #[test]
    fn the_number_of_deaths_is_told() {
        let mut quarantine = Quarantine::new(RULES);
        assert_eq!(quarantine.on_death(0, Closed, at(1)), None);
        assert_eq!(quarantine.on_death(0, Closed, at(2)), None);
        let first = quarantine.on_death(0, Closed, at(3));
        assert_eq!(first, Some(Term { time: Duration::from_secs(10), deaths: 3 }));
        let second = quarantine.on_death(0, HalfOpen, at(11 * SECOND));
        assert_eq!(second, Some(Term { time: Duration::from_secs(20), deaths: 1 }));
    }
}
