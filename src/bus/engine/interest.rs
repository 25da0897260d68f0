//! The topics to subscribe to at the engine: those with subscribers on this machine, and for a while those that have
//! lost their last one, since a connection may be moving from one worker to another.

use std::collections::HashMap;
use std::time::Duration;

use super::commands::Key;
use crate::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Interest {
    /// How long a topic without subscribers is kept.
    linger: Duration,
    /// When to unsubscribe; `None`: it has subscribers.
    topics: HashMap<Key, Option<Instant>>,
}

impl Interest {
    /// No topics.
    pub fn new(linger: Duration) -> Self {
        Interest { linger, topics: HashMap::new() }
    }

    /// A topic has gained its first subscriber, or lost the last one. Returns the key to subscribe to, if it is new.
    pub fn change(&mut self, key: &str, has_subscribers: bool, now: Instant) -> Option<Key> {
        match (self.topics.get_mut(key), has_subscribers) {
            (Some(until), true) => *until = None,
            (Some(until), false) => *until = Some(now + self.linger),
            (None, true) => {
                let key = Key::from(key);
                self.topics.insert(Key::clone(&key), None);
                return Some(key);
            }
            (None, false) => {}
        }
        None
    }

    /// Removes and returns the topics that have been without subscribers for long enough.
    pub fn expire(&mut self, now: Instant) -> Vec<Key> {
        let is_over = |_: &Key, until: &mut Option<Instant>| until.is_some_and(|until| until <= now);
        self.topics.extract_if(is_over).map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_outlives_its_last_subscriber_for_a_while() {
        let second = Duration::from_secs(1);
        let (mut interest, start) = (Interest::new(10 * second), Instant::default() + second);
        assert!(interest.change("/a\0b", false, start).is_none());
        assert_eq!(interest.change("/a\0b", true, start).as_deref(), Some("/a\0b"));
        assert!(interest.change("/a\0b", true, start).is_none());
        assert!(interest.change("/a\0b", false, start).is_none());
        assert!(interest.expire(start + 9 * second).is_empty());
        assert!(interest.change("/a\0b", true, start + 9 * second).is_none());
        assert!(interest.expire(start + 20 * second).is_empty());
        interest.change("/a\0b", false, start + 20 * second);
        assert_eq!(interest.expire(start + 30 * second), [Key::from("/a\0b")]);
        assert!(interest.change("/a\0b", true, start + 30 * second).is_some());
    }
}
