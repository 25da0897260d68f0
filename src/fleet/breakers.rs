//! The gates: shared memory with one for each handler, made before the first fork. The supervisor shuts a
//! handler's gate when it crashes too often; workers answer for it until the time is over, then let one
//! connection through as a probe, and open the gate when that goes well. Atomics only, as in the scoreboard.

#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// Of one handler. All zero: open.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct CircuitBreaker {
    /// ns of `scoreboard::now`; 0: the gate is open.
    until: AtomicU64,
    /// The process that has let the probe through; [`NOBODY`], or [`NOBODY_NOW`].
    prober: AtomicI32,
}

/// No probe since the gate was shut.
const NOBODY: i32 = 0;
/// The last probe has told nothing.
const NOBODY_NOW: i32 = -1;

/// How a gate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Everybody may pass.
    Open,
    /// Nobody may, for a time.
    Shut,
    /// The time is over; one connection at a time may pass as a probe.
    Probing,
}

/// The answer to a connection that wants to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The gate is open.
    Free,
    /// Only as a probe: what becomes of it is to be told to [`CircuitBreaker::open`] or [`CircuitBreaker::release`].
    Probe {
        /// To be given to [`CircuitBreaker::open`].
        until: u64,
        /// Whether it is the first since the gate was shut.
        first: bool,
    },
    /// Not now.
    Refused {
        /// Whole seconds after which it is worth trying again; at least 1.
        seconds: u64,
    },
}

impl CircuitBreaker {
    /// How the gate stands.
    pub fn standing(&self, now: u64) -> Standing {
        match self.until.load(Ordering::Acquire) {
            0 => Standing::Open,
            until if now < until => Standing::Shut,
            _ => Standing::Probing,
        }
    }

    /// The seconds after which a connection may try again that surely can not pass now: for a process that sends
    /// those that may to another one, where they [`enter`](Self::enter). [worker]
    pub fn refusal(&self, now: u64) -> Option<u64> {
        match self.until.load(Ordering::Acquire) {
            0 => None,
            UNTIL_LIFTED => Some(UNKNOWN),
            until if now < until => Some((until - now).div_ceil(SECOND)),
            _ => (self.prober.load(Ordering::Acquire) > 0).then_some(1),
        }
    }

    /// A connection wants to pass, in the process `pid`. [worker]
    pub fn enter(&self, pid: i32, now: u64) -> Decision {
        let until = self.until.load(Ordering::Acquire);
        if until == 0 {
            return Decision::Free;
        }
        if let Some(seconds) = self.refusal(now) {
            return Decision::Refused { seconds };
        }
        let claim =
            |free| self.prober.compare_exchange(free, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if claim(NOBODY) {
            Decision::Probe { until, first: true }
        } else if claim(NOBODY_NOW) {
            Decision::Probe { until, first: false }
        } else {
            Decision::Refused { seconds: 1 }
        }
    }

    /// The probe of this process went well. False if the gate was shut once more meanwhile. [worker]
    pub fn open(&self, pid: i32, until: u64) -> bool {
        let opened = self.until.compare_exchange(until, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        self.release(pid);
        opened
    }

    /// The probe of this process is over and has told nothing, or the process has ended. [worker, supervisor]
    pub fn release(&self, pid: i32) {
        let _ = self.prober.compare_exchange(pid, NOBODY_NOW, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// ns until the gate is not shut any more; None if it is open, or shut until somebody lifts that.
    pub fn time_left(&self, now: u64) -> Option<u64> {
        match self.until.load(Ordering::Acquire) {
            0 | UNTIL_LIFTED => None,
            until => Some(until.saturating_sub(now)),
        }
    }

    /// Everybody may pass again. [supervisor]
    pub fn lift(&self) {
        self.until.store(0, Ordering::Release);
        self.prober.store(NOBODY, Ordering::Release);
    }

    /// Nobody passes until then, [`UNTIL_LIFTED`] or an instant. [supervisor]
    pub fn shut(&self, until: u64) {
        self.until.store(until, Ordering::Release);
        self.prober.store(NOBODY, Ordering::Release);
    }
}

/// A gate that is shut until this instant waits for somebody to lift that.
pub const UNTIL_LIFTED: u64 = u64::MAX;
/// The seconds that clients are told when nobody knows how long it will be.
const UNKNOWN: u64 = 60;

const SECOND: u64 = 1_000_000_000;

/// Makes the gates of so many handlers, all open. They live until the last process ends. [supervisor, before fork]
pub fn create(handlers: usize) -> io::Result<&'static [CircuitBreaker]> {
    let Some(size) = handlers.checked_mul(size_of::<CircuitBreaker>()).and_then(NonZeroUsize::new) else {
        return Ok(&[]);
    };
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces no other memory.
    let base = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_SHARED)? };
    // SAFETY: page-aligned, of this size, zeroed (a valid Gate: atomics only), and never unmapped.
    Ok(unsafe { std::slice::from_raw_parts(base.cast::<CircuitBreaker>().as_ptr(), handlers) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const US: i32 = 17;
    const THEM: i32 = 18;

    fn shut_until(until: u64) -> CircuitBreaker {
        let breaker = CircuitBreaker::default();
        breaker.shut(until);
        breaker
    }

    #[test]
    fn an_open_gate_lets_all_pass() {
        let breaker = CircuitBreaker::default();
        assert_eq!((breaker.enter(US, 0), breaker.enter(US, 5)), (Decision::Free, Decision::Free));
        assert_eq!(breaker.standing(5), Standing::Open);
    }

    #[test]
    fn a_shut_gate_says_how_long_in_whole_seconds() {
        let breaker = shut_until(10 * SECOND);
        for (now, seconds) in [(0, 10), (1, 10), (SECOND, 9), (9 * SECOND, 1), (10 * SECOND - 1, 1)] {
            assert_eq!(breaker.enter(US, now), Decision::Refused { seconds }, "at {now} ns");
            assert_eq!(breaker.standing(now), Standing::Shut);
        }
    }

    #[test]
    fn one_probe_at_a_time() {
        let breaker = shut_until(10);
        assert_eq!(breaker.enter(US, 10), Decision::Probe { until: 10, first: true });
        assert_eq!(breaker.enter(US, 11), Decision::Refused { seconds: 1 });
        assert_eq!(breaker.enter(THEM, 11), Decision::Refused { seconds: 1 });
        breaker.release(THEM); // not theirs
        assert_eq!(breaker.enter(THEM, 12), Decision::Refused { seconds: 1 });
        breaker.release(US);
        assert_eq!(breaker.enter(THEM, 13), Decision::Probe { until: 10, first: false });
        assert_eq!(breaker.standing(13), Standing::Probing);
        assert!(breaker.open(THEM, 10));
        assert_eq!(breaker.enter(US, 14), Decision::Free);
    }

    #[test]
    fn a_probe_does_not_open_what_was_shut_after_it_had_passed() {
        let breaker = shut_until(10);
        breaker.enter(US, 10);
        breaker.shut(40);
        assert!(!breaker.open(US, 10));
        assert_eq!(breaker.standing(39), Standing::Shut);
        assert_eq!(breaker.enter(THEM, 40), Decision::Probe { until: 40, first: true });
    }

    #[test]
    fn a_gate_that_is_lifted_is_open_whatever_a_probe_says() {
        let breaker = shut_until(10);
        breaker.enter(US, 10);
        breaker.lift();
        assert!(!breaker.open(US, 10), "it was not the probe that opened it");
        assert_eq!((breaker.enter(US, 11), breaker.enter(THEM, 11)), (Decision::Free, Decision::Free));
        breaker.shut(UNTIL_LIFTED);
        assert_eq!(breaker.enter(US, u64::MAX - 1), Decision::Refused { seconds: 60 });
        assert_eq!((breaker.standing(u64::MAX - 1), breaker.time_left(0)), (Standing::Shut, None));
        breaker.shut(20);
        assert_eq!((breaker.time_left(15), breaker.time_left(25)), (Some(5), Some(0)));
        breaker.lift();
        assert_eq!((breaker.standing(16), breaker.time_left(16)), (Standing::Open, None));
    }

    #[test]
    fn each_handler_has_its_own() {
        let breakers = create(3).unwrap();
        breakers[1].shut(7);
        let standings: Vec<Standing> = breakers.iter().map(|breaker| breaker.standing(1)).collect();
        assert_eq!(standings, [Standing::Open, Standing::Shut, Standing::Open]);
        assert!(create(0).unwrap().is_empty());
    }
}
