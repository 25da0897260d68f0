//! The messages that the bus keeps for a while, and the stamps of those that it has dropped.

use std::rc::Rc;
use std::time::Duration;

use super::{COST, Hub, Topic, UNUSED};
use crate::fleet::sockets::bus_wire::{self, Incoming, Publication};
use crate::time::Instant;

/// A message that is kept.
pub(super) struct Kept {
    pub(super) stamp: u64,
    pub(super) message: Stored,
}

/// Its content.
pub(super) struct Stored {
    but: u64,
    kind: u8,
    compress: bool,
    payload: Box<[u8]>,
}

impl Stored {
    fn new(message: Publication<'_>) -> Self {
        let Publication { but, kind, compress, payload } = message;
        Stored { but, kind, compress, payload: payload.into() }
    }

    /// As it was published.
    pub(super) fn message(&self) -> Publication<'_> {
        Publication { but: self.but, kind: self.kind, compress: self.compress, payload: &self.payload }
    }

    fn cost(&self) -> usize {
        self.payload.len() + COST
    }
}

impl Hub {
    /// Keeps a message; drops the oldest ones if there is no room.
    pub(super) fn keep(&mut self, key: Rc<str>, stamp: u64, message: Publication<'_>) {
        let message = Stored::new(message);
        self.kept += message.cost();
        let topic = self.topics.entry(Rc::clone(&key)).or_insert_with(|| Topic::new(self.floor));
        topic.history.push_back(Kept { stamp, message });
        self.order.push_back((key, stamp));
        while self.kept > self.limits.history {
            self.forget_oldest();
        }
    }

    /// All kept messages, and the stamps of forgotten ones, for the next bus.
    pub fn history(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut append = |kept: bus_wire::Kept<'_>| kept.append_to(&mut bytes);
        append(bus_wire::Kept::Floor { stamp: self.floor });
        for (key, topic) in self.topics.iter().filter(|(_, topic)| topic.forgotten > self.floor) {
            append(bus_wire::Kept::Forgotten { stamp: topic.forgotten, key });
        }
        for (key, stamp) in &self.order {
            let Some(history) = self.topics.get(key).map(|topic| &topic.history) else { continue };
            let index = history.partition_point(|kept| kept.stamp < *stamp);
            if let Some(kept) = history.get(index) {
                append(bus_wire::Kept::Message { stamp: *stamp, key, message: kept.message.message() });
            }
        }
        bytes
    }

    /// Takes over the history of the previous bus.
    pub fn take_over(&mut self, history: Vec<u8>) {
        let mut frames = Incoming::of(history);
        while let Ok(Some(content)) = frames.next_frame() {
            let Some(kept) = bus_wire::Kept::read(content) else { return };
            self.stamp = self.stamp.max(kept.stamp());
            match kept {
                bus_wire::Kept::Floor { stamp } => self.floor = stamp,
                bus_wire::Kept::Forgotten { stamp, key } => {
                    let key = self.own(key);
                    self.topics.insert(Rc::clone(&key), Topic::new(stamp));
                    self.remove_if_empty(&key);
                }
                bus_wire::Kept::Message { stamp, key, message } => self.keep(self.own(key), stamp, message),
            }
        }
    }

    /// Drops messages, and forgets unused topics, that are too old.
    pub fn expire(&mut self, now: Instant) {
        let before = |time: Duration| {
            let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            now.as_nanos().saturating_sub(time)
        };
        let last = before(self.limits.age);
        while self.order.front().is_some_and(|(_, stamp)| *stamp <= last) {
            self.forget_oldest();
        }
        let last = before(self.limits.age * UNUSED);
        while self.unused.front().is_some_and(|(_, forgotten)| *forgotten <= last) {
            self.forget_unused();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((key, _)) = self.order.pop_front() else { return };
        let Some(topic) = self.topics.get_mut(&key) else { return };
        if let Some(kept) = topic.history.pop_front() {
            topic.forgotten = kept.stamp;
            self.kept -= kept.message.cost();
        }
        self.remove_if_empty(&key);
    }

    /// Removes a topic without subscribers and messages; if it has forgotten messages, only after a while.
    pub(super) fn remove_if_empty(&mut self, key: &Rc<str>) {
        let Some(topic) = self.topics.get_mut(key).filter(|topic| topic.is_empty()) else { return };
        self.changed_counts.remove(key);
        if topic.forgotten <= self.floor {
            self.topics.remove(key);
        } else if !topic.is_unused {
            topic.is_unused = true;
            self.unused.push_back((Rc::clone(key), topic.forgotten));
            while self.unused.len() > self.limits.topics {
                self.forget_unused();
            }
        }
    }

    fn forget_unused(&mut self) {
        let Some((key, _)) = self.unused.pop_front() else { return };
        let Some(topic) = self.topics.get_mut(&key) else { return };
        topic.is_unused = false;
        if topic.is_empty() {
            self.floor = self.floor.max(topic.forgotten);
            self.topics.remove(&key);
        }
    }
}
