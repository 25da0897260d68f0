//! Decides which worker gets which message. No socket and no clock: frames and the time in, frames out.
//!
//! Each message is stamped with the time at which it was accepted, and kept for a while. When a worker subscribes, it
//! names the stamp up to which its connection has received everything, and gets the messages after it: a connection
//! that moves misses no message and gets none twice.

mod compressed;
mod history;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use self::history::Kept;
use crate::fleet::sockets::bus_wire::{Form, Notice, Outgoing, Publication, Request, split_key};
use crate::proto::ws::deflate::codec::Codecs;
use crate::proto::ws::utf8;
use crate::time::Instant;

/// Memory of a kept message besides its payload; bytes.
const COST: usize = 128;
/// Maximum bytes queued for one worker beyond [`Limits::queue`], by replies to its requests: more than a worker that
/// reads them can request meanwhile.
const REPLIES: usize = 16 * 1024 * 1024;
/// An unused topic is remembered this many times as long as a message.
const UNUSED: u32 = 6;

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes queued for one worker; further messages are dropped for it.
    pub queue: usize,
    /// Bytes of kept messages.
    pub history: usize,
    /// Maximum age of a kept message.
    pub age: Duration,
    /// Maximum topics of one worker.
    pub topics: usize,
}

/// Why a worker is disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// Not a frame of this protocol.
    #[error("sent a malformed frame")]
    Malformed,
    /// Its pool serves no handler with this scope.
    #[error("used a scope of another pool")]
    Scope,
    /// Beyond [`Limits::topics`].
    #[error("subscribed to too many topics")]
    Topics,
    /// Beyond [`Limits::queue`] and [`REPLIES`].
    #[error("does not read the replies to its requests")]
    Unread,
    /// Text must be UTF-8.
    #[error("published text that is not UTF-8")]
    NotUtf8,
}

/// A message that was published, and its key.
pub type Published<'m> = Option<(&'m str, Publication<'m>)>;

struct Worker {
    pool: u16,
    /// Keys, by the worker's own numbers.
    topics: HashMap<u32, Rc<str>>,
    out: Outgoing,
    /// Messages accepted from it.
    taken: u64,
    /// `taken` as last reported to it.
    reported: u64,
    /// Messages dropped for it and not reported yet, by its number of the topic: how many, and the stamp of the last.
    missed: BTreeMap<u32, (u32, u64)>,
    /// Topics whose changed number of subscribers was not reported to it, since its queue was full.
    unreported: HashSet<Rc<str>>,
    /// Everything up to this stamp was sent to it, or reported as missed.
    passed: u64,
}

struct Topic {
    subscribers: Vec<Subscriber>,
    history: VecDeque<Kept>,
    /// Stamp of the last message that was dropped from `history`.
    forgotten: u64,
    /// Whether it is in [`Hub::unused`].
    is_unused: bool,
}

impl Topic {
    fn is_empty(&self) -> bool {
        self.subscribers.is_empty() && self.history.is_empty()
    }

    fn connections(&self) -> u64 {
        self.subscribers.iter().map(|subscriber| u64::from(subscriber.count)).sum()
    }

    fn new(forgotten: u64) -> Self {
        Topic { subscribers: Vec::new(), history: VecDeque::new(), forgotten, is_unused: false }
    }
}

struct Subscriber {
    worker: u64,
    /// The worker's number for the topic.
    number: u32,
    /// Subscribed connections of that worker.
    count: u32,
    /// Forms in which it wants messages, and the shortest message of each; bytes.
    forms: Vec<(Form, u32)>,
}

/// See the module.
pub struct Hub {
    limits: Limits,
    /// Pools and the scopes that each may use.
    scopes: Vec<(u16, String)>,
    /// By the caller's token.
    workers: HashMap<u64, Worker>,
    topics: HashMap<Rc<str>, Topic>,
    /// Topic and stamp of each kept message, oldest first.
    order: VecDeque<(Rc<str>, u64)>,
    /// Memory of the kept messages: `kept <= limits.history`.
    kept: usize,
    /// The last stamp that was given.
    stamp: u64,
    /// Topics without subscribers and messages, and their `forgotten`. Kept for a while, since a subscriber that is
    /// moving may have missed forgotten messages.
    unused: VecDeque<(Rc<str>, u64)>,
    /// The highest `forgotten` of all topics that were removed.
    floor: u64,
    /// Topics whose number of subscribers has changed.
    changed_counts: HashSet<Rc<str>>,
    /// Topics that may have gained their first subscriber, or lost the last one.
    changed_interest: HashSet<Rc<str>>,
    codecs: Codecs,
}

impl Hub {
    /// A hub without workers; `scopes` are pools and the scopes that each may use.
    pub fn new(limits: Limits, scopes: Vec<(u16, String)>) -> Self {
        Hub {
            limits,
            scopes,
            workers: HashMap::new(),
            topics: HashMap::new(),
            order: VecDeque::new(),
            kept: 0,
            stamp: 0,
            unused: VecDeque::new(),
            floor: 0,
            changed_counts: HashSet::new(),
            changed_interest: HashSet::new(),
            codecs: Codecs::new(),
        }
    }

    /// A worker of this pool has connected.
    pub fn connect(&mut self, token: u64, pool: u16) {
        let worker = Worker {
            pool,
            topics: HashMap::new(),
            out: Outgoing::default(),
            taken: 0,
            reported: 0,
            missed: BTreeMap::new(),
            unreported: HashSet::new(),
            passed: 0,
        };
        self.workers.insert(token, worker);
    }

    /// A worker has disconnected.
    pub fn disconnect(&mut self, token: u64) {
        self.stop_sending(token);
        self.workers.remove(&token);
    }

    /// Sends nothing more to a worker; frames that it has sent are still accepted.
    pub fn stop_sending(&mut self, token: u64) {
        let Some(worker) = self.workers.get_mut(&token) else { return };
        worker.out.take();
        let topics = std::mem::take(&mut worker.topics);
        topics.into_values().for_each(|key| self.leave(token, &key));
    }

    /// What is queued for a worker.
    pub fn out(&mut self, token: u64) -> Option<&mut Outgoing> {
        self.workers.get_mut(&token).map(|worker| &mut worker.out)
    }

    /// Accepts a frame of a worker. If it publishes a message, returns that and its key.
    pub fn take_in<'m>(
        &mut self,
        token: u64,
        content: &'m [u8],
        now: Instant,
    ) -> Result<Published<'m>, Breach> {
        match Request::read(content).ok_or(Breach::Malformed)? {
            Request::Subscribe { topic, ticket, from, key } => {
                self.subscribe(token, topic, ticket, from, key)?;
            }
            Request::Unsubscribe { topic } => {
                let Some(worker) = self.workers.get_mut(&token) else { return Ok(None) };
                if let Some(key) = worker.topics.remove(&topic) {
                    worker.unreported.remove(&key);
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
            Request::Compress { topic, form, least } => {
                self.subscriber(token, topic).into_iter().for_each(|(_, ours)| ours.want(form, least));
            }
            Request::Count { topic, count } => {
                if let Some((key, ours)) = self.subscriber(token, topic) {
                    ours.count = count;
                    self.changed_counts.insert(key);
                }
            }
        }
        Ok(None)
    }

    /// A worker's subscription, by its number for the topic, and the topic's key.
    fn subscriber(&mut self, token: u64, topic: u32) -> Option<(Rc<str>, &mut Subscriber)> {
        let key = self.workers.get(&token)?.topics.get(&topic)?;
        let ours = self.topics.get_mut(key)?.subscribers.iter_mut().find(|known| known.worker == token)?;
        Some((Rc::clone(key), ours))
    }

    fn check_scope(&self, token: u64, key: &str) -> Result<(), Breach> {
        let (scope, _) = split_key(key).ok_or(Breach::Malformed)?;
        let pool = self.workers.get(&token).map(|worker| worker.pool).ok_or(Breach::Malformed)?;
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
        if worker.out.len() > self.limits.queue.saturating_add(REPLIES) {
            return Err(Breach::Unread);
        }
        match worker.topics.get(&number) {
            Some(known) if *known == key => {}
            Some(_) => return Err(Breach::Malformed),
            None if worker.topics.len() >= self.limits.topics => return Err(Breach::Topics),
            None if topic.subscribers.iter().any(|known| known.worker == token) => {
                return Err(Breach::Malformed);
            }
            None => {
                worker.topics.insert(number, Rc::clone(&key));
                topic.subscribers.push(Subscriber { worker: token, number, count: 1, forms: Vec::new() });
                self.changed_interest.insert(Rc::clone(&key));
                self.changed_counts.insert(key);
            }
        }
        // Reported before the messages that follow the gap.
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
            } else {
                let notice = Notice::Message { topic: number, ticket, stamp: kept.stamp, message };
                notice.append_to(worker.out.tail());
            }
        }
        Notice::Replayed { topic: number, ticket, stamp: self.stamp, missed }.append_to(worker.out.tail());
        Ok(())
    }

    /// Sends a message to the workers that have subscribed, and keeps it.
    pub fn publish(&mut self, key: &str, message: Publication<'_>, now: Instant) {
        self.stamp = now.as_nanos().max(self.stamp + 1);
        let key = self.own(key);
        let topic = self.topics.entry(Rc::clone(&key)).or_insert_with(|| Topic::new(self.floor));
        let compressed = topic.compress(message, &mut self.codecs);
        for subscriber @ Subscriber { worker, number, .. } in &topic.subscribers {
            let Some(worker) = self.workers.get_mut(worker) else { continue };
            if worker.out.len() > self.limits.queue {
                let (count, stamp) = worker.missed.entry(*number).or_default();
                (*count, *stamp) = (count.saturating_add(1), self.stamp);
                continue;
            }
            worker.report_missed();
            worker.passed = self.stamp;
            for (form, payload) in compressed.iter().filter(|(form, _)| subscriber.wants(*form, message)) {
                Notice::Compressed { form: *form, payload }.append_to(worker.out.tail());
            }
            let notice = Notice::Message { topic: *number, ticket: 0, stamp: self.stamp, message };
            notice.append_to(worker.out.tail());
        }
        self.keep(key, self.stamp, message);
    }

    /// The key, shared with the topic if it is known.
    fn own(&self, key: &str) -> Rc<str> {
        self.topics.get_key_value(key).map_or_else(|| key.into(), |(key, _)| Rc::clone(key))
    }

    fn leave(&mut self, token: u64, key: &Rc<str>) {
        if let Some(topic) = self.topics.get_mut(key) {
            topic.subscribers.retain(|subscriber| subscriber.worker != token);
            self.changed_counts.insert(Rc::clone(key));
            self.changed_interest.insert(Rc::clone(key));
        }
        self.remove_if_empty(key);
    }

    /// Ends a turn: reports to workers how many of their messages were accepted, and what they missed. A worker whose
    /// queue is full gets that later.
    pub fn end_turn(&mut self) {
        for worker in self.workers.values_mut().filter(|worker| worker.out.len() <= self.limits.queue) {
            if worker.taken != worker.reported {
                worker.reported = worker.taken;
                Notice::Taken { count: worker.taken }.append_to(worker.out.tail());
            }
            worker.report_missed();
            self.changed_counts.extend(worker.unreported.drain());
        }
    }

    /// Reports to workers how many subscribers other workers have, for topics where that has changed.
    pub fn report_counts(&mut self) {
        for key in self.changed_counts.drain() {
            let Some(topic) = self.topics.get(&key) else { continue };
            let all: u32 = topic.subscribers.iter().fold(0, |all, of| all.saturating_add(of.count));
            for Subscriber { worker, number, count, .. } in &topic.subscribers {
                let Some(worker) = self.workers.get_mut(worker) else { continue };
                if worker.out.len() > self.limits.queue {
                    worker.unreported.insert(Rc::clone(&key));
                    continue;
                }
                let notice = Notice::Others { topic: *number, count: all - (*count).min(all) };
                notice.append_to(worker.out.tail());
            }
        }
    }

    /// Reports the last stamp to workers that were sent nothing lately: otherwise a connection subscribed to a quiet
    /// topic would seem to have missed messages when it moves.
    pub fn report_passed(&mut self) {
        let queue = self.limits.queue;
        let is_behind = |worker: &&mut Worker| worker.passed < self.stamp && !worker.topics.is_empty();
        for worker in self.workers.values_mut().filter(is_behind) {
            if worker.out.len() <= queue {
                worker.report_missed();
                worker.passed = self.stamp;
                Notice::Passed { stamp: self.stamp }.append_to(worker.out.tail());
            }
        }
    }

    /// Whether [`report_counts`](Self::report_counts) has anything to report.
    pub fn has_changed_counts(&self) -> bool {
        !self.changed_counts.is_empty()
    }

    /// Topics with subscribers: key, workers, connections.
    pub fn topics(&self) -> impl Iterator<Item = (&str, usize, u64)> {
        let subscribed = self.topics.iter().filter(|(_, topic)| !topic.subscribers.is_empty());
        subscribed.map(|(key, topic)| (&**key, topic.subscribers.len(), topic.connections()))
    }

    /// Connections that are subscribed to a topic.
    pub fn subscribers(&self, key: &str) -> u64 {
        self.topics.get(key).map_or(0, Topic::connections)
    }

    /// The topics that may have gained their first subscriber since the last call, or lost the last one, and whether
    /// they have any.
    pub fn changed_interest(&mut self) -> impl Iterator<Item = (Rc<str>, bool)> {
        let topics = &self.topics;
        self.changed_interest.drain().map(|key| {
            let has_subscribers = topics.get(&key).is_some_and(|topic| !topic.subscribers.is_empty());
            (key, has_subscribers)
        })
    }
}

impl Worker {
    fn report_missed(&mut self) {
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
