//! How far messages of topics have come to connections. What one has seen can be told at any moment, also in the middle
//! of a message that goes to many: they are served in the order of their ids.

use std::sync::atomic::{AtomicU64, Ordering};

/// Of one worker; only its event loop writes.
#[derive(Default)]
pub struct Progress {
    /// Stamp of the last message that was delivered to all.
    done: AtomicU64,
    /// Stamp of the one that is being delivered; 0: none.
    current: AtomicU64,
    /// Id of the last connection that the current one was delivered to.
    position: AtomicU64,
}

impl Progress {
    /// A message is about to be delivered.
    pub fn begin(&self, stamp: u64) {
        self.position.store(0, Ordering::Relaxed);
        self.current.store(stamp, Ordering::Release);
    }

    /// It was delivered to all up to this connection.
    #[inline]
    pub fn reach(&self, conn: u64) {
        self.position.store(conn, Ordering::Relaxed);
    }

    /// It was delivered to all.
    pub fn end(&self) {
        self.pass(self.current.load(Ordering::Relaxed));
        self.current.store(0, Ordering::Release);
    }

    /// There was nothing to deliver up to this stamp that was not delivered.
    pub fn pass(&self, stamp: u64) {
        self.done.store(stamp.max(self.done()), Ordering::Release);
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// The last stamp that some connection may have seen.
    pub fn last(&self) -> u64 {
        self.done().max(self.current.load(Ordering::Relaxed))
    }

    /// The last stamp that this connection has seen, as far as its subscriptions are live. Async-signal-safe.
    pub fn seen_by(&self, conn: u64) -> u64 {
        match self.current.load(Ordering::Acquire) {
            current if current != 0 && conn <= self.position.load(Ordering::Relaxed) => {
                current.max(self.done())
            }
            _ => self.done(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_under_way_was_seen_by_those_that_it_has_reached() {
        let progress = Progress::default();
        progress.begin(10);
        progress.reach(5);
        assert_eq!([4, 5, 6].map(|conn| progress.seen_by(conn)), [10, 10, 0]);
        assert_eq!(progress.last(), 10);
        progress.end();
        assert_eq!([5, 6].map(|conn| progress.seen_by(conn)), [10, 10]);
    }
}
