//! Which topics there are.

use std::rc::Rc;

use super::{Hub, Topic};

impl Hub {
    /// Topics with subscribers: key, workers, connections.
    pub fn topics(&self) -> impl Iterator<Item = (&str, usize, u64)> {
        let subscribed = self.topics.iter().filter(|(_, topic)| topic.has_subscribers());
        subscribed.map(|(key, topic)| (&**key, topic.subscribers.len(), topic.connections()))
    }

    /// Connections that are subscribed to a topic.
    pub fn subscribers(&self, key: &str) -> u64 {
        self.topics.get(key).map_or(0, Topic::connections)
    }

    /// The topics that may have got their first subscriber since this was asked, or lost the last one, and whether they have
    /// any.
    pub fn turned(&mut self) -> impl Iterator<Item = (Rc<str>, bool)> {
        let topics = &self.topics;
        self.turned.drain().map(|key| {
            let has_subscribers = topics.get(&key).is_some_and(Topic::has_subscribers);
            (key, has_subscribers)
        })
    }
}

impl Topic {
    fn has_subscribers(&self) -> bool {
        !self.subscribers.is_empty()
    }

    fn connections(&self) -> u64 {
        self.subscribers.iter().map(|subscriber| u64::from(subscriber.count)).sum()
    }
}
