//! The bulletin: some words of shared memory, which only the supervisor writes. They say whether new connections are
//! wanted and how long open ones may stay, and how the last reload went. Workers and the metrics process read them
//! whenever it matters, so that nobody has to be told, and a worker that has just been started acts like the others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    /// None is accepted, and open ones are closed with this code (above 2), evenly spread until the server stops; whole
    /// milliseconds.
    Closing { until: Instant, code: u16 },
}

impl Readiness {
    /// Whether listening sockets are accepted from.
    pub fn accepts(self) -> bool {
        !matches!(self, Readiness::Closing { .. })
    }
}

/// See the module. Zeroed: the server is starting.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Bulletin {
    /// A [`Readiness`]: one of the words below, or milliseconds and, in the lowest 16 bits, a code.
    readiness: AtomicU64,
    /// When the last reload ended, in seconds since the Unix epoch, times 2; plus 1 if it has succeeded.
    reload: AtomicU64,
    /// Lines of the log that the supervisor has lost.
    pub log_lost: AtomicU64,
}

const STARTING: u64 = 0;
const READY: u64 = 1;
const DRAINING: u64 = 2;

impl Bulletin {
    pub fn readiness(&self) -> Readiness {
        match self.readiness.load(Ordering::SeqCst) {
            STARTING => Readiness::Starting,
            READY => Readiness::Ready,
            DRAINING => Readiness::Draining,
            word => Readiness::Closing {
                until: Instant::default() + Duration::from_millis(word >> 16),
                code: word as u16,
            },
        }
    }

    /// [supervisor]
    pub fn set_readiness(&self, readiness: Readiness) {
        let word = match readiness {
            Readiness::Starting => STARTING,
            Readiness::Ready => READY,
            Readiness::Draining => DRAINING,
            Readiness::Closing { until, code } => (until.as_nanos() / 1_000_000) << 16 | u64::from(code),
        };
        self.readiness.store(word, Ordering::SeqCst);
    }

    /// When the last reload, or the start, ended, in seconds since the Unix epoch, and whether it has succeeded.
    pub fn reload(&self) -> (u64, bool) {
        let word = self.reload.load(Ordering::Relaxed);
        (word / 2, word % 2 == 1)
    }

    /// One has ended now. [supervisor]
    pub fn set_reload(&self, is_successful: bool) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.reload.store(now.saturating_mul(2) | u64::from(is_successful), Ordering::Relaxed);
    }
}

impl Scoreboard {
    /// What health checks are told: whether load balancers should send connections, in a word.
    pub fn is_ready(&self) -> Result<&'static str, &'static str> {
        match self.bulletin().readiness() {
            Readiness::Starting => Err("starting"),
            Readiness::Draining | Readiness::Closing { .. } => Err("draining"),
            Readiness::Ready if self.saturation().0 => Err("saturated"),
            // All have died, and are being restarted.
            Readiness::Ready if !self.slots().any(|(_, slot)| is_serving(&slot)) => Err("starting"),
            Readiness::Ready => Ok("ready"),
        }
    }
}

/// Whether connections can come to the worker of this slot from outside.
fn is_serving(slot: &Slot) -> bool {
    slot.place().pool == 0 && slot.takes_connections()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_read_as_it_was_written() {
        let bulletin = Bulletin::default();
        assert_eq!(bulletin.readiness(), Readiness::Starting);
        let closing = |seconds| Readiness::Closing {
            until: Instant::default() + Duration::from_secs(seconds),
            code: 1012,
        };
        for readiness in
            [Readiness::Ready, Readiness::Draining, closing(5), closing(1 << 32), Readiness::Starting]
        {
            bulletin.set_readiness(readiness);
            assert_eq!(bulletin.readiness(), readiness);
            assert_eq!(readiness.accepts(), !matches!(readiness, Readiness::Closing { .. }));
        }
        bulletin.set_readiness(closing(0));
        assert!(!bulletin.readiness().accepts(), "a time that is long over is still a time");
        assert_eq!(bulletin.reload(), (0, false));
        for is_successful in [true, false] {
            bulletin.set_reload(is_successful);
            let (time, known) = bulletin.reload();
            assert!(time > 1_700_000_000 && known == is_successful);
        }
    }
}
