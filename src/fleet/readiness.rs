//! Whether new connections are wanted, and how long open ones may stay: one word of shared memory. The supervisor decides
//! and is the only one that writes it; workers and the metrics process read it whenever it matters, so that nobody has to
//! be told, and a worker that has just been started acts like the others.

use std::sync::atomic::{AtomicU64, Ordering};

use super::scoreboard::{Scoreboard, Slot};
use crate::time::Instant;

/// What the supervisor has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// The server is not ready yet.
    Starting,
    /// New connections are wanted.
    Ready,
    /// They are accepted, but load balancers should send them elsewhere.
    Draining,
    /// None is accepted, and open ones are closed, evenly spread until then.
    Closing {
        /// When the server stops.
        until: Instant,
    },
}

impl Readiness {
    /// Whether listening sockets are accepted from.
    pub fn accepts(self) -> bool {
        !matches!(self, Readiness::Closing { .. })
    }
}

/// A [`Readiness`] in shared memory; zeroed: starting.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct ReadinessWord(AtomicU64);

const STARTING: u64 = 0;
const READY: u64 = 1;
const DRAINING: u64 = 2;

impl ReadinessWord {
    /// What was decided last.
    pub fn get(&self) -> Readiness {
        match self.0.load(Ordering::SeqCst) {
            STARTING => Readiness::Starting,
            READY => Readiness::Ready,
            DRAINING => Readiness::Draining,
            until => Readiness::Closing { until: Instant::from_nanos(until) },
        }
    }

    /// Decides. [supervisor]
    pub fn set(&self, readiness: Readiness) {
        let word = match readiness {
            Readiness::Starting => STARTING,
            Readiness::Ready => READY,
            Readiness::Draining => DRAINING,
            Readiness::Closing { until } => until.as_nanos().max(DRAINING + 1),
        };
        self.0.store(word, Ordering::SeqCst);
    }
}

impl Scoreboard {
    /// What health checks are told: whether load balancers should send connections, in a word.
    pub fn is_ready(&self) -> Result<&'static str, &'static str> {
        match self.readiness() {
            Readiness::Starting => Err("starting"),
            Readiness::Draining | Readiness::Closing { .. } => Err("draining"),
            Readiness::Ready if self.saturation().0 => Err("saturated"),
            // All have died, and are being restarted.
            Readiness::Ready if !self.slots().iter().any(Slot::takes_connections) => Err("starting"),
            Readiness::Ready => Ok("ready"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_read_as_it_was_written() {
        let word = ReadinessWord::default();
        assert_eq!(word.get(), Readiness::Starting);
        let until = Instant::from_nanos(5_000_000_000);
        for readiness in
            [Readiness::Ready, Readiness::Draining, Readiness::Closing { until }, Readiness::Starting]
        {
            word.set(readiness);
            assert_eq!(word.get(), readiness);
            assert_eq!(readiness.accepts(), !matches!(readiness, Readiness::Closing { .. }));
        }
        word.set(Readiness::Closing { until: Instant::default() });
        assert!(!word.get().accepts(), "a time that is long over is still a time");
    }
}
