//! Circuit breakers, one for each handler, in shared memory. The supervisor opens the breaker of a handler that crashes
//! too often; workers refuse its requests until the time is over, then let one connection through as a probe, and close
//! the breaker when that succeeds. Atomics only, as in the scoreboard. Only the supervisor can open one; the workers of
//! the pool that serves the handler say whether it was probed, and can harm their own handlers only.

#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use super::layout::{Audience, Memory, Owner, PerPool};
use super::region::Shareable;
use crate::time::Instant;

/// Of one handler.
#[derive(Clone, Copy, Debug)]
pub struct CircuitBreaker {
    /// When it becomes half-open (ns of the monotonic clock); 0: it is closed. Written by the supervisor.
    until: &'static AtomicU64,
    probe: &'static ProbeState,
}

/// What the workers of its pool say. All zero: nothing yet.
#[derive(Debug, Default)]
#[repr(C)]
struct ProbeState {
    /// The `until` of which a probe has succeeded: the breaker is closed.
    passed: AtomicU64,
    /// The process that has let the probe through; [`NOT_PROBED`], or [`INCONCLUSIVE`].
    prober: AtomicI32,
}

// SAFETY: atomic integers.
unsafe impl Shareable for ProbeState {}

/// The breakers of all handlers, by the pool that serves them.
#[derive(Debug)]
pub struct Breakers {
    until: &'static [AtomicU64],
    probes: PerPool<ProbeState>,
}

impl Breakers {
    /// Makes the breakers of so many handlers, all closed. They live until the last process ends. [supervisor, before
    /// fork]
    pub fn create(memory: &'static Memory, handlers: usize) -> io::Result<&'static Self> {
        Ok(Box::leak(Box::new(Self {
            until: memory.table(Owner::Supervisor, handlers)?,
            probes: memory.per_pool(Audience::DefaultPool, handlers)?,
        })))
    }

    /// That of a handler of this pool, if this process can see it.
    pub fn get(&self, pool: usize, handler: u16) -> Option<CircuitBreaker> {
        let probe = self.probes.get(pool)?.get(usize::from(handler))?;
        Some(CircuitBreaker { until: self.until.get(usize::from(handler))?, probe })
    }

    /// A process has ended: its probes are inconclusive. There are so many handlers. [supervisor]
    pub fn release(&self, pid: i32, handlers: usize) {
        let probes = self.probes.iter().flat_map(|(_, probes)| probes.iter().take(handlers));
        probes.for_each(|probe| probe.release(pid));
    }
}

impl ProbeState {
    fn release(&self, pid: i32) {
        let _ = self.prober.compare_exchange(pid, INCONCLUSIVE, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// No probe since the breaker was opened.
const NOT_PROBED: i32 = 0;
/// The last probe ended before it had succeeded or failed.
const INCONCLUSIVE: i32 = -1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Requests reach the handler.
    Closed,
    /// Requests are refused, for a time or until an operator lifts it.
    Open,
    /// The time is over: one connection at a time passes as a probe.
    HalfOpen,
}

/// The answer to a connection that is to reach the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The breaker is closed.
    Free,
    /// Only as a probe: what becomes of it is to be told to [`CircuitBreaker::close`], with this `until`, or to
    /// [`CircuitBreaker::release`]. `first`: since the breaker was opened.
    Probe { until: Instant, first: bool },
    /// Not now. After so many whole seconds, at least 1, it is worth trying again.
    Refused { seconds: u64 },
}

impl CircuitBreaker {
    /// When it becomes half-open; none: it is closed.
    fn until(&self) -> Option<Instant> {
        let until = self.until.load(Ordering::Acquire);
        let is_open = until != 0 && self.probe.passed.load(Ordering::Acquire) != until;
        is_open.then(|| Instant::from_nanos(until))
    }

    pub fn state(&self, now: Instant) -> BreakerState {
        match self.until() {
            None => BreakerState::Closed,
            Some(until) if now < until => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }

    /// The seconds of Retry-After for a connection that surely cannot pass now: for a process that forwards the others
    /// to another one, where they [`enter`](Self::enter). [worker]
    pub fn refusal(&self, now: Instant) -> Option<u64> {
        match self.until()? {
            Instant::NEVER => Some(UNKNOWN),
            until if now < until => Some(until.since(now).as_nanos().div_ceil(1_000_000_000) as u64),
            _ => (self.probe.prober.load(Ordering::Acquire) > 0).then_some(1),
        }
    }

    /// A connection is to reach the handler, in the process `pid`. [worker]
    pub fn enter(&self, pid: i32, now: Instant) -> Decision {
        let Some(until) = self.until() else { return Decision::Free };
        if let Some(seconds) = self.refusal(now) {
            return Decision::Refused { seconds };
        }
        let claim =
            |free| self.probe.prober.compare_exchange(free, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if claim(NOT_PROBED) {
            Decision::Probe { until, first: true }
        } else if claim(INCONCLUSIVE) {
            Decision::Probe { until, first: false }
        } else {
            Decision::Refused { seconds: 1 }
        }
    }

    /// The probe of this process has succeeded. False if the breaker was opened once more meanwhile. [worker]
    pub fn close(&self, pid: i32, until: Instant) -> bool {
        let is_same = self.until.load(Ordering::Acquire) == until.as_nanos();
        if is_same {
            self.probe.passed.store(until.as_nanos(), Ordering::Release);
        }
        self.release(pid);
        is_same
    }

    /// The probe of this process has ended, inconclusive. [worker]
    pub fn release(&self, pid: i32) {
        self.probe.release(pid);
    }

    /// Until it becomes half-open; None if it is closed, or open until an operator lifts that.
    pub fn time_left(&self, now: Instant) -> Option<Duration> {
        self.until().filter(|until| !until.is_never()).map(|until| until.since(now))
    }

    /// Closes it. [supervisor]
    pub fn lift(&self) {
        self.open(Instant::default());
    }

    /// Opens it until this instant; [`Instant::NEVER`]: until an operator lifts that. [supervisor]
    pub fn open(&self, until: Instant) {
        self.probe.passed.store(0, Ordering::Release);
        self.until.store(until.as_nanos(), Ordering::Release);
        self.probe.prober.store(NOT_PROBED, Ordering::Release);
    }
}

/// The seconds that clients are told when nobody knows how long it will be.
const UNKNOWN: u64 = 60;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const US: i32 = 17;
    const THEM: i32 = 18;
    const SECOND: u64 = 1_000_000_000;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    fn closed() -> CircuitBreaker {
        CircuitBreaker { until: Box::leak(Box::default()), probe: Box::leak(Box::default()) }
    }

    fn open_until(until: u64) -> CircuitBreaker {
        let breaker = closed();
        breaker.open(at(until));
        breaker
    }

    #[test]
    fn a_closed_breaker_lets_all_pass() {
        let breaker = closed();
        assert_eq!((breaker.enter(US, at(0)), breaker.enter(US, at(5))), (Decision::Free, Decision::Free));
        assert_eq!(breaker.state(at(5)), BreakerState::Closed);
    }

    #[test]
    fn an_open_breaker_says_how_long_in_whole_seconds() {
        let breaker = open_until(10 * SECOND);
        for (now, seconds) in [(0, 10), (1, 10), (SECOND, 9), (9 * SECOND, 1), (10 * SECOND - 1, 1)] {
            assert_eq!(breaker.enter(US, at(now)), Decision::Refused { seconds }, "at {now} ns");
            assert_eq!(breaker.state(at(now)), BreakerState::Open);
        }
    }

    #[test]
    fn one_probe_at_a_time() {
        let breaker = open_until(10);
        assert_eq!(breaker.enter(US, at(10)), Decision::Probe { until: at(10), first: true });
        assert_eq!(breaker.enter(US, at(11)), Decision::Refused { seconds: 1 });
        assert_eq!(breaker.enter(THEM, at(11)), Decision::Refused { seconds: 1 });
        breaker.release(THEM); // not theirs
        assert_eq!(breaker.enter(THEM, at(12)), Decision::Refused { seconds: 1 });
        breaker.release(US);
        assert_eq!(breaker.enter(THEM, at(13)), Decision::Probe { until: at(10), first: false });
        assert_eq!(breaker.state(at(13)), BreakerState::HalfOpen);
        assert!(breaker.close(THEM, at(10)));
        assert_eq!(breaker.enter(US, at(14)), Decision::Free);
    }

    #[test]
    fn a_probe_does_not_close_what_was_opened_after_it_had_passed() {
        let breaker = open_until(10);
        breaker.enter(US, at(10));
        breaker.open(at(40));
        assert!(!breaker.close(US, at(10)));
        assert_eq!(breaker.state(at(39)), BreakerState::Open);
        assert_eq!(breaker.enter(THEM, at(40)), Decision::Probe { until: at(40), first: true });
    }

    #[test]
    fn a_breaker_that_is_lifted_is_closed_whatever_a_probe_says() {
        let breaker = open_until(10);
        breaker.enter(US, at(10));
        breaker.lift();
        assert!(!breaker.close(US, at(10)), "it was not the probe that opened it");
        assert_eq!(
            (breaker.enter(US, at(11)), breaker.enter(THEM, at(11))),
            (Decision::Free, Decision::Free)
        );
        breaker.open(Instant::NEVER);
        assert_eq!(breaker.enter(US, at(u64::MAX - 1)), Decision::Refused { seconds: 60 });
        assert_eq!((breaker.state(at(u64::MAX - 1)), breaker.time_left(at(0))), (BreakerState::Open, None));
        breaker.open(at(20));
        assert_eq!(
            (breaker.time_left(at(15)), breaker.time_left(at(25))),
            (Some(Duration::from_nanos(5)), Some(Duration::ZERO))
        );
        breaker.lift();
        assert_eq!((breaker.state(at(16)), breaker.time_left(at(16))), (BreakerState::Closed, None));
    }

    #[test]
    fn each_handler_has_its_own() {
        let memory = Memory::create();
        let breakers = Breakers::create(memory, 3).unwrap();
        [0, 1].into_iter().for_each(|pool| memory.open(pool, &Audience::ALL).unwrap());
        breakers.get(1, 1).unwrap().open(at(7));
        let states: Vec<BreakerState> = [(0, 0), (1, 1), (0, 2)]
            .map(|(pool, handler)| breakers.get(pool, handler).unwrap().state(at(1)))
            .into();
        assert_eq!(states, [BreakerState::Closed, BreakerState::Open, BreakerState::Closed]);
        assert!(breakers.get(0, 3).is_none() && breakers.get(2, 0).is_none());
    }

    #[test]
    fn the_probe_of_a_process_that_has_ended_is_over() {
        let memory = Memory::create();
        let breakers = Breakers::create(memory, 2).unwrap();
        memory.open(0, &Audience::ALL).unwrap();
        let breaker = breakers.get(0, 1).unwrap();
        breaker.open(at(10));
        breaker.enter(US, at(10));
        breakers.release(US, 1);
        assert_eq!(breaker.enter(THEM, at(11)), Decision::Refused { seconds: 1 });
        breakers.release(US, 2);
        assert_eq!(breaker.enter(THEM, at(11)), Decision::Probe { until: at(10), first: false });
    }
}
