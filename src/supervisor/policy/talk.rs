//! How much a process may say to the supervisor. Far more than there ever is to say, and so little that reading it takes no
//! time: the code of a handler can write into its worker's channel.

use std::time::Duration;

use crate::time::Instant;

/// Reports of a process in a second. An operator may have each of many connections closed at once.
const MOST: u32 = 20_000;
const SECOND: Duration = Duration::from_secs(1);

/// What a process has said in the present second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Talk {
    since: Instant,
    count: u32,
}

impl Talk {
    /// It says something: whether that is too much.
    pub fn is_too_much(&mut self, now: Instant) -> bool {
        if now.since(self.since) >= SECOND {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count > MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_heard_and_a_flood_is_too_much() {
        let (mut talk, now) = (Talk::default(), Instant::default() + SECOND);
        assert!(!(0..MOST).any(|_| talk.is_too_much(now)));
        assert!(talk.is_too_much(now + SECOND / 2));
        assert!(!talk.is_too_much(now + SECOND));
    }
}
