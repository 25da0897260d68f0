//! How many processes a pool with a process for each connection has.

use std::time::Duration;

use super::backoff::Rule;
use crate::config::Processes;

/// A process that could not be forked, or died before it was ready, delays the next one.
pub const RETRY: Rule = Rule {
    free: 2,
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
    forgiven: Duration::from_secs(10),
};

/// The processes of such a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All that there are, or have been asked for.
    pub all: usize,
    /// Those among them that can take a connection, or soon can.
    pub idle: usize,
    /// Slots without a process in whose inbox a connection waits.
    pub orphaned: usize,
}

impl Count {
    /// How many are to be forked.
    pub fn missing(self, wanted: Processes) -> usize {
        let room = wanted.most.saturating_sub(self.all);
        wanted.spare.saturating_sub(self.idle).min(room).max(self.orphaned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_wait_as_are_wanted_and_there_is_room_for() {
        let wanted = Processes { spare: 3, most: 5 };
        for (all, idle, orphaned, expected) in [
            (0, 0, 0, 3),
            (3, 3, 0, 0),
            (3, 2, 0, 1),
            (3, 0, 0, 2), // two more are the bound
            (5, 0, 0, 0),
            (6, 0, 0, 0), // one is being replaced
            (5, 0, 1, 1), // a connection that was saved waits for a process, whatever the bound
            (3, 1, 1, 2),
        ] {
            let count = Count { all, idle, orphaned };
            assert_eq!(count.missing(wanted), expected, "{count:?}");
        }
    }
}
