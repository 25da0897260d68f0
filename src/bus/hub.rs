//! Which worker gets which message: state and rules of the bus. No socket and no clock: frames and the time in, frames out.
//!
//! Each message gets a stamp, the time at which it was taken in, and is kept for a while: a worker that says up to which
//! stamp a connection has seen all, gets the rest. So a connection misses nothing and gets nothing twice, wherever it
//! goes and however long its subscription was on the way.

mod history;
mod topics;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use self::history::Kept;
use crate::fleet::bus_wire::{Message, Notice, Outgoing, Request, split_key};
use crate::proto::ws::utf8;
use crate::time::Instant;

/// What a message in the history costs beside its payload; bytes.
const COST: usize = 128;
/// That messages of a topic were forgotten is known for so many times as long as messages are kept.
const UNUSED: u32 = 6;

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that may wait for one worker; what comes then is dropped for it.
    pub queue: usize,
    /// Bytes of messages that are kept.
    pub history: usize,
    /// How long they are kept at most.
    pub age: Duration,
    /// Topics of one worker at most.
    pub topics: usize,
}

/// Why a worker is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// Not a frame of this protocol.
    #[error("sent nonsense")]
    Nonsense,
    /// Its pool serves no handler with this scope.
    #[error("used a scope of other pools")]
    Scope,
    /// More topics than it may have.
    #[error("subscribed to too many topics")]
    Topics,
    /// Text that is none.
    #[error("published text that is not UTF-8")]
    NotUtf8,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages taken in.
    pub published: u64,
    /// Messages sent to workers, each counted once for each of them.
    pub forwarded: u64,
    /// Messages that a worker did not get since it did not keep up.
    pub dropped: u64,
}

/// A message that was published, and its key.
pub type Published<'m> = Option<(&'m str, Message<'m>)>;

struct Worker {
    pool: u16,
    /// By its own numbers.
    topics: HashMap<u32, Rc<str>>,
    out: Outgoing,
    /// Messages of it that were taken in.
    taken: u64,
    /// As far as it knows.
    told: u64,
    /// What it did not get and does not know of, by its number of the topic: how many, and the stamp of the last.
    missed: BTreeMap<u32, (u32, u64)>,
    /// It has been sent all up to this stamp, or told how much it has missed.
    passed: u64,
}

struct Topic {
    subscribers: Vec<Subscriber>,
    history: VecDeque<Kept>,
    /// Stamp of the last message that was forgotten.
    forgotten: u64,
    /// It is among [`Hub::unused`].
    is_unused: bool,
}

impl Topic {
    fn is_empty(&self) -> bool {
        self.subscribers.is_empty() && self.history.is_empty()
    }

    fn new(forgotten: u64) -> Self {
        Topic { subscribers: Vec::new(), history: VecDeque::new(), forgotten, is_unused: false }
    }
}

struct Subscriber {
    worker: u64,
    number: u32,
    /// Connections there.
    count: u32,
}

/// See the module.
pub struct Hub {
    limits: Limits,
    /// Which pool may use which scope.
    scopes: HashSet<(u16, String)>,
    /// By token, which is the caller's.
    workers: HashMap<u64, Worker>,
    topics: HashMap<Rc<str>, Topic>,
    /// Topics of the messages that are kept, and when they were taken in; oldest first.
    order: VecDeque<(Rc<str>, u64)>,
    /// Sum of the costs of those.
    kept: usize,
    /// The last stamp.
    stamp: u64,
    /// Topics without subscribers and messages, and the stamps of the last that was forgotten. They are known for a while: a
    /// subscriber may be on its way that has not seen all of that.
    unused: VecDeque<(Rc<str>, u64)>,
    /// No message of a topic that is not known any more had a later stamp.
    floor: u64,
    /// Topics whose number of subscribers has changed.
    recount: HashSet<Rc<str>>,
    /// Topics that may have got their first subscriber, or lost the last one.
    turned: HashSet<Rc<str>>,
    counts: Counts,
}

impl Hub {
    /// One without workers, where pools may use these scopes.
    pub fn new(limits: Limits, scopes: impl IntoIterator<Item = (u16, String)>) -> Self {
        Hub {
            limits,
            scopes: scopes.into_iter().collect(),
            workers: HashMap::new(),
            topics: HashMap::new(),
            order: VecDeque::new(),
            kept: 0,
            stamp: 0,
            unused: VecDeque::new(),
            floor: 0,
            recount: HashSet::new(),
            turned: HashSet::new(),
            counts: Counts::default(),
        }
    }

    /// A worker of this pool has come.
    pub fn connect(&mut self, token: u64, pool: u16) {
        let worker = Worker {
            pool,
            topics: HashMap::new(),
            out: Outgoing::default(),
            taken: 0,
            told: 0,
            missed: BTreeMap::new(),
            passed: 0,
        };
        self.workers.insert(token, worker);
    }

    /// A worker has gone.
    pub fn disconnect(&mut self, token: u64) {
        self.deafen(token);
        self.workers.remove(&token);
    }

    /// A worker does not hear any more; what it has said may still be on its way.
    pub fn deafen(&mut self, token: u64) {
        let Some(worker) = self.workers.get_mut(&token) else { return };
        worker.out.take();
        let topics = std::mem::take(&mut worker.topics);
        topics.into_values().for_each(|key| self.leave(token, &key));
    }

    /// Workers that are connected.
    pub fn workers(&self) -> impl Iterator<Item = u64> {
        self.workers.keys().copied()
    }

    /// What is to be written to a worker.
    pub fn out(&mut self, token: u64) -> Option<&mut Outgoing> {
        self.workers.get_mut(&token).map(|worker| &mut worker.out)
    }

    /// What has been counted.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes in what a worker says in one frame. If that is a message, returns it with its key.
    pub fn take_in<'m>(
        &mut self,
        token: u64,
        content: &'m [u8],
        now: Instant,
    ) -> Result<Published<'m>, Breach> {
        match Request::read(content).ok_or(Breach::Nonsense)? {
            Request::Subscribe { topic, ticket, from, key } => {
                self.subscribe(token, topic, ticket, from, key)?;
            }
            Request::Unsubscribe { topic } => {
                if let Some(key) =
                    self.workers.get_mut(&token).and_then(|worker| worker.topics.remove(&topic))
                {
                    self.leave(token, &key);
                }
            }
            Request::Publish { key, message, .. } => {
                self.check_scope(token, key)?;
                if message.kind == 1 && !utf8::is_valid(message.payload) {
                    return Err(Breach::NotUtf8);
                }
                self.publish(key, message, now);
                self.workers.get_mut(&token).into_iter().for_each(|worker| worker.taken += 1);
                return Ok(Some((key, message)));
            }
            Request::Count { topic, count } => {
                let known = self.workers.get(&token).and_then(|worker| worker.topics.get(&topic));
                if let Some(key) = known
                    && let Some(entry) = self.topics.get_mut(key)
                    && let Some(ours) = entry.subscribers.iter_mut().find(|known| known.worker == token)
                {
                    ours.count = count;
                    self.recount.insert(Rc::clone(key));
                }
            }
        }
        Ok(None)
    }

    fn check_scope(&self, token: u64, key: &str) -> Result<(), Breach> {
        let (scope, _) = split_key(key).ok_or(Breach::Nonsense)?;
        let pool = self.workers.get(&token).map(|worker| worker.pool).ok_or(Breach::Nonsense)?;
        // Borrowed pairs cannot be looked up; there are few scopes.
        let is_ours = self.scopes.iter().any(|(of, name)| *of == pool && name == scope);
        if is_ours { Ok(()) } else { Err(Breach::Scope) }
    }

    fn subscribe(
        &mut self,
        token: u64,
        number: u32,
        ticket: u32,
        from: u64,
        key: &str,
    ) -> Result<(), Breach> {
        self.check_scope(token, key)?;
        let key = self.own(key);
        let topic = self.topics.entry(Rc::clone(&key)).or_insert_with(|| Topic::new(self.floor));
        let Some(worker) = self.workers.get_mut(&token) else { return Ok(()) };
        match worker.topics.get(&number) {
            Some(known) if *known == key => {}
            Some(_) => return Err(Breach::Nonsense),
            None if worker.topics.len() >= self.limits.topics => return Err(Breach::Topics),
            None if topic.subscribers.iter().any(|known| known.worker == token) => {
                return Err(Breach::Nonsense);
            }
            None => {
                worker.topics.insert(number, Rc::clone(&key));
                topic.subscribers.push(Subscriber { worker: token, number, count: 1 });
                self.turned.insert(Rc::clone(&key));
                self.recount.insert(key);
            }
        }
        // Before what comes after the gap.
        if topic.forgotten > from {
            Notice::Missed { topic: number, ticket, stamp: topic.forgotten, count: 1 }
                .append_to(worker.out.tail());
        }
        let mut missed = 0;
        let start = topic.history.partition_point(|kept| kept.stamp <= from);
        for kept in topic.history.range(start..) {
            let message = kept.message.message();
            if worker.out.len() > self.limits.queue {
                missed += 1;
                self.counts.dropped += 1;
            } else {
                let notice = Notice::Message { topic: number, ticket, stamp: kept.stamp, message };
                notice.append_to(worker.out.tail());
            }
        }
        Notice::Replayed { topic: number, ticket, stamp: self.stamp, missed }.append_to(worker.out.tail());
        Ok(())
    }

    /// Takes in a message, from wherever.
    pub fn publish(&mut self, key: &str, message: Message<'_>, now: Instant) {
        self.stamp = now.as_nanos().max(self.stamp + 1);
        self.counts.published += 1;
        let key = self.own(key);
        let topic = self.topics.entry(Rc::clone(&key)).or_insert_with(|| Topic::new(self.floor));
        for Subscriber { worker, number, .. } in &topic.subscribers {
            let Some(worker) = self.workers.get_mut(worker) else { continue };
            if worker.out.len() > self.limits.queue {
                let (count, stamp) = worker.missed.entry(*number).or_default();
                (*count, *stamp) = (count.saturating_add(1), self.stamp);
                self.counts.dropped += 1;
                continue;
            }
            worker.tell_missed();
            worker.passed = self.stamp;
            let notice = Notice::Message { topic: *number, ticket: 0, stamp: self.stamp, message };
            notice.append_to(worker.out.tail());
            self.counts.forwarded += 1;
        }
        self.keep(key, self.stamp, message);
    }

    /// The key, as the topic that is known has it.
    fn own(&self, key: &str) -> Rc<str> {
        self.topics.get_key_value(key).map_or_else(|| key.into(), |(key, _)| Rc::clone(key))
    }

    fn leave(&mut self, token: u64, key: &Rc<str>) {
        if let Some(topic) = self.topics.get_mut(key) {
            topic.subscribers.retain(|subscriber| subscriber.worker != token);
            self.recount.insert(Rc::clone(key));
            self.turned.insert(Rc::clone(key));
        }
        self.look_for_use(key);
    }

    /// Ends a turn: workers are told what of theirs was taken in, and what they did not get.
    pub fn end_turn(&mut self) {
        for worker in self.workers.values_mut() {
            if worker.taken != worker.told {
                worker.told = worker.taken;
                Notice::Taken { count: worker.taken }.append_to(worker.out.tail());
            }
            if worker.out.len() <= self.limits.queue {
                worker.tell_missed();
            }
        }
    }

    /// Tells workers how many subscribers there are elsewhere, where that has changed.
    pub fn tell_counts(&mut self) {
        for key in self.recount.drain() {
            let Some(topic) = self.topics.get(&key) else { continue };
            let all: u32 = topic.subscribers.iter().fold(0, |all, of| all.saturating_add(of.count));
            for Subscriber { worker, number, count } in &topic.subscribers {
                if let Some(worker) = self.workers.get_mut(worker) {
                    let notice = Notice::Others { topic: *number, count: all - (*count).min(all) };
                    notice.append_to(worker.out.tail());
                }
            }
        }
    }

    /// Tells workers that have heard nothing lately how far all have come: what has been seen of a topic without messages
    /// would else look old when connections move.
    pub fn tell_passed(&mut self) {
        let queue = self.limits.queue;
        let is_behind = |worker: &&mut Worker| worker.passed < self.stamp && !worker.topics.is_empty();
        for worker in self.workers.values_mut().filter(is_behind) {
            if worker.out.len() <= queue {
                worker.tell_missed();
                worker.passed = self.stamp;
                Notice::Passed { stamp: self.stamp }.append_to(worker.out.tail());
            }
        }
    }

    /// Whether there is something for [`tell_counts`](Self::tell_counts).
    pub fn has_news(&self) -> bool {
        !self.recount.is_empty()
    }
}

impl Worker {
    fn tell_missed(&mut self) {
        for (topic, (count, stamp)) in std::mem::take(&mut self.missed) {
            if self.topics.contains_key(&topic) {
                Notice::Missed { topic, ticket: 0, stamp, count }.append_to(self.out.tail());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
