//! Rate limit for what a peer sends: messages and bytes per second.

use std::time::Duration;

use crate::time::{Instant, Rate};

const SECOND: Duration = Duration::from_secs(1);

/// The limits of one connection, whose bursts are what may come in a second.
#[derive(Debug)]
pub struct RateLimit {
    messages: Rate,
    bytes: Rate,
}

impl RateLimit {
    /// At most so many in a second; 0: no limit.
    pub fn new(messages: u32, bytes: u64) -> Self {
        let rate = |most| Rate::new(most, SECOND);
        Self { messages: rate(messages.into()), bytes: rate(bytes) }
    }

    /// Whether a message, or a part of one, of this size may come now.
    pub fn admits(&mut self, is_first: bool, size: usize, now: Instant) -> bool {
        self.messages.admits(u64::from(is_first), now) && self.bytes.admits(size as u64, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_then_as_many_in_each_second() {
        for most in [1, 3, 7, 1000] {
            let mut pace = RateLimit::new(most, 0);
            let now = Instant::default() + 5 * SECOND;
            let mut admitted = |now| (0..2 * most).filter(|_| pace.admits(true, 1 << 20, now)).count();
            assert_eq!(admitted(now), most as usize);
            assert_eq!(admitted(now), 0);
            let all: usize = (1..=100).map(|step| admitted(now + step * SECOND / 10)).sum();
            assert_eq!(all, 10 * most as usize, "in ten seconds");
            assert_eq!(admitted(now + 100 * SECOND), most as usize, "after a rest");
        }
    }

    #[test]
    fn bytes_count_in_every_part_and_messages_once() {
        let (mut pace, now) = (RateLimit::new(2, 1000), Instant::default());
        assert!(pace.admits(true, 400, now) && pace.admits(false, 400, now) && pace.admits(true, 100, now));
        assert!(!pace.admits(true, 0, now), "the third message");
        assert!(pace.admits(false, 100, now) && !pace.admits(false, 1, now));
    }

    #[test]
    fn a_message_above_the_burst_has_to_be_made_up_for() {
        let at = |ns: u64| Instant::default() + Duration::from_nanos(ns);
        let mut pace = RateLimit::new(0, 1000);
        assert!(pace.admits(true, 10_000, at(0)));
        assert!(!pace.admits(true, 1, at(9_000_000_000 - 1)));
        // 9 of 10 seconds are over: as if nothing but a second's worth was there.
        assert!(pace.admits(true, 1, at(9_000_000_000 + 1)));
        assert!(pace.admits(true, usize::MAX, Instant::NEVER), "without overflow");
    }
}
