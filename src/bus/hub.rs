//! Which worker gets which message: state and rules of the bus. No socket and no clock: frames and the time in, frames out.
//!
//! Each message gets a stamp, the time at which it was taken in, and is kept for a while: a worker that says up to which
//! stamp a connection has seen all, gets the rest. So a connection misses nothing and gets nothing twice, wherever it
//! goes and however long its subscription was on the way.

mod topics;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use crate::fleet::bus_wire::{self, Incoming, Message, Notice, Outgoing, Request, split_key};
use crate::proto::ws::utf8;
use crate::time::Instant;

/// What a message in the history costs beside its payload; bytes.
const COST: usize = 128;

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
    /// What it did not get and does not know of, by its number of the topic.
    missed: BTreeMap<u32, u32>,
}

#[derive(Default)]
struct Topic {
    subscribers: Vec<Subscriber>,
    history: VecDeque<Kept>,
    /// Stamp of the last message that was forgotten.
    forgotten: u64,
}

struct Subscriber {
    worker: u64,
    number: u32,
    /// Connections there.
    count: u32,
}

struct Kept {
    stamp: u64,
    message: Rc<Stored>,
}

struct Stored {
    but: u64,
    kind: u8,
    compress: bool,
    payload: Box<[u8]>,
}

impl Stored {
    fn new(message: Message<'_>) -> Self {
        let Message { but, kind, compress, payload } = message;
        Stored { but, kind, compress, payload: payload.into() }
    }

    fn message(&self) -> Message<'_> {
        Message { but: self.but, kind: self.kind, compress: self.compress, payload: &self.payload }
    }

    fn cost(&self) -> usize {
        self.payload.len() + COST
    }
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
        };
        self.workers.insert(token, worker);
    }

    /// A worker has gone.
    pub fn disconnect(&mut self, token: u64) {
        let Some(worker) = self.workers.remove(&token) else { return };
        worker.topics.into_values().for_each(|key| self.leave(token, &key));
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
            Request::Publish { key, message } => {
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
        let key: Rc<str> = match self.topics.get_key_value(key) {
            Some((key, _)) => Rc::clone(key),
            None => key.into(),
        };
        let topic = self.topics.entry(Rc::clone(&key)).or_default();
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
            Notice::Missed { topic: number, ticket, count: 1 }.append_to(worker.out.tail());
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
        let key: Rc<str> = match self.topics.get_key_value(key) {
            Some((key, _)) => Rc::clone(key),
            None => key.into(),
        };
        let topic = self.topics.entry(Rc::clone(&key)).or_default();
        for Subscriber { worker, number, .. } in &topic.subscribers {
            let Some(worker) = self.workers.get_mut(worker) else { continue };
            if worker.out.len() > self.limits.queue {
                *worker.missed.entry(*number).or_default() += 1;
                self.counts.dropped += 1;
                continue;
            }
            worker.tell_missed();
            let notice = Notice::Message { topic: *number, ticket: 0, stamp: self.stamp, message };
            notice.append_to(worker.out.tail());
            self.counts.forwarded += 1;
        }
        self.keep(key, self.stamp, message);
    }

    fn keep(&mut self, key: Rc<str>, stamp: u64, message: Message<'_>) {
        let message = Rc::new(Stored::new(message));
        self.kept += message.cost();
        self.topics.entry(Rc::clone(&key)).or_default().history.push_back(Kept { stamp, message });
        self.order.push_back((key, stamp));
        while self.kept > self.limits.history {
            self.forget_oldest();
        }
    }

    /// All messages that are kept, for the bus that follows.
    pub fn history(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, stamp) in &self.order {
            let Some(history) = self.topics.get(key).map(|topic| &topic.history) else { continue };
            let index = history.partition_point(|kept| kept.stamp < *stamp);
            if let Some(kept) = history.get(index) {
                bus_wire::Kept { stamp: *stamp, key, message: kept.message.message() }.append_to(&mut bytes);
            }
        }
        bytes
    }

    /// Keeps what the bus before this one has kept.
    pub fn take_over(&mut self, history: Vec<u8>) {
        let mut frames = Incoming::of(history);
        while let Ok(Some(content)) = frames.next_frame() {
            let Some(bus_wire::Kept { stamp, key, message }) = bus_wire::Kept::read(content) else { return };
            self.stamp = self.stamp.max(stamp);
            let key = self.topics.get_key_value(key).map_or_else(|| key.into(), |(key, _)| Rc::clone(key));
            self.keep(key, stamp, message);
        }
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: Instant) {
        let age = u64::try_from(self.limits.age.as_nanos()).unwrap_or(u64::MAX);
        let last = now.as_nanos().saturating_sub(age);
        while self.order.front().is_some_and(|(_, stamp)| *stamp <= last) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((key, _)) = self.order.pop_front() else { return };
        let Some(topic) = self.topics.get_mut(&key) else { return };
        if let Some(kept) = topic.history.pop_front() {
            topic.forgotten = kept.stamp;
            self.kept -= kept.message.cost();
        }
        self.remove_unused(&key);
    }

    fn leave(&mut self, token: u64, key: &Rc<str>) {
        if let Some(topic) = self.topics.get_mut(key) {
            topic.subscribers.retain(|subscriber| subscriber.worker != token);
            self.recount.insert(Rc::clone(key));
            self.turned.insert(Rc::clone(key));
        }
        self.remove_unused(key);
    }

    fn remove_unused(&mut self, key: &Rc<str>) {
        if self.topics.get(key).is_some_and(|topic| topic.subscribers.is_empty() && topic.history.is_empty())
        {
            self.topics.remove(key);
            self.recount.remove(key);
        }
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

    /// Whether there is something for [`tell_counts`](Self::tell_counts).
    pub fn has_news(&self) -> bool {
        !self.recount.is_empty()
    }

    /// Tells all workers that another bus follows.
    pub fn say_farewell(&mut self) {
        self.workers.values_mut().for_each(|worker| Notice::Farewell.append_to(worker.out.tail()));
    }
}

impl Worker {
    fn tell_missed(&mut self) {
        for (topic, count) in std::mem::take(&mut self.missed) {
            if self.topics.contains_key(&topic) {
                Notice::Missed { topic, ticket: 0, count }.append_to(self.out.tail());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { queue: 1000, history: 2000, age: Duration::from_secs(10), topics: 2 };
    const KEY: &str = "/chat\0room";

    fn hub(workers: u64) -> Hub {
        let mut hub = Hub::new(LIMITS, [(0, "/chat".to_owned()), (1, "shared".to_owned())]);
        (1..=workers).for_each(|token| hub.connect(token, 0));
        hub
    }

    fn say(hub: &mut Hub, token: u64, request: Request<'_>, now: u64) -> Result<(), Breach> {
        let mut bytes = Vec::new();
        request.append_to(&mut bytes);
        hub.take_in(token, &bytes[4..], Instant::from_nanos(now)).map(drop)
    }

    fn subscribe(hub: &mut Hub, token: u64, ticket: u32, from: u64) {
        say(hub, token, Request::Subscribe { topic: 5, ticket, from, key: KEY }, 0).unwrap();
    }

    fn publish(hub: &mut Hub, token: u64, payload: &[u8], now: u64) {
        let message = Message { but: 0, kind: 1, compress: true, payload };
        say(hub, token, Request::Publish { key: KEY, message }, now).unwrap();
    }

    /// What a worker is told, in short.
    fn heard(hub: &mut Hub, token: u64) -> String {
        let out = hub.out(token).unwrap();
        let bytes = out.unsent().to_vec();
        out.advance(bytes.len());
        let mut incoming = Incoming::default();
        incoming.room(bytes.len()).copy_from_slice(&bytes);
        incoming.received(bytes.len(), bytes.len());
        let mut all = Vec::new();
        while let Some(content) = incoming.next_frame().unwrap() {
            all.push(match Notice::read(content).unwrap() {
                Notice::Message { ticket, stamp, message, .. } => {
                    format!("{}@{stamp}/{ticket}", message.payload.escape_ascii())
                }
                Notice::Replayed { ticket, stamp, missed, .. } => {
                    format!("replayed@{stamp}/{ticket}-{missed}")
                }
                other => format!("{other:?}"),
            });
        }
        all.join(" ")
    }

    #[test]
    fn a_message_goes_to_each_worker_that_has_subscribed_with_rising_stamps() {
        let mut hub = hub(3);
        subscribe(&mut hub, 1, 1, 0);
        subscribe(&mut hub, 2, 1, 0);
        publish(&mut hub, 3, b"a", 100);
        publish(&mut hub, 1, b"b", 100);
        for token in [1, 2] {
            assert_eq!(heard(&mut hub, token), "replayed@0/1-0 a@100/0 b@101/0");
        }
        assert_eq!(heard(&mut hub, 3), "");
        hub.end_turn();
        assert_eq!(heard(&mut hub, 3), "Taken { count: 1 }");
        say(&mut hub, 2, Request::Unsubscribe { topic: 5 }, 0).unwrap();
        hub.disconnect(1);
        publish(&mut hub, 3, b"c", 200);
        assert_eq!(heard(&mut hub, 2), "");
        assert_eq!(hub.topics().count(), 0);
    }

    #[test]
    fn whoever_comes_later_gets_what_came_after_the_stamp_it_names() {
        let mut hub = hub(2);
        subscribe(&mut hub, 1, 1, 0);
        for (payload, now) in [(b"a", 10), (b"b", 20), (b"c", 30)] {
            publish(&mut hub, 1, payload, now);
        }
        subscribe(&mut hub, 2, 7, 10);
        publish(&mut hub, 1, b"d", 40);
        assert_eq!(heard(&mut hub, 2), "b@20/7 c@30/7 replayed@30/7-0 d@40/0");
        subscribe(&mut hub, 2, 8, 30);
        assert_eq!(heard(&mut hub, 2), "d@40/8 replayed@40/8-0");
    }

    #[test]
    fn the_bus_that_follows_has_what_this_one_has_kept() {
        let mut old = hub(1);
        subscribe(&mut old, 1, 1, 0);
        (10..13).for_each(|now| publish(&mut old, 1, b"m", now));
        let mut new = hub(1);
        new.take_over(old.history());
        subscribe(&mut new, 1, 7, 10);
        publish(&mut new, 1, b"n", 5);
        assert_eq!(heard(&mut new, 1), "m@11/7 m@12/7 replayed@12/7-0 n@13/0");
        new.expire(Instant::from_nanos(20_000_000_000));
        assert!(new.order.is_empty() && new.kept == 0);
    }

    #[test]
    fn the_history_has_bounds_and_what_it_lacks_is_said() {
        let mut hub = hub(2);
        subscribe(&mut hub, 1, 1, 0);
        (1..=3).for_each(|now| publish(&mut hub, 1, &[b'x'; 600], now));
        subscribe(&mut hub, 2, 7, 0);
        let all = heard(&mut hub, 2);
        assert!(
            all.starts_with("Missed { topic: 5, ticket: 7, count: 1 }") && all.ends_with("replayed@3/7-0")
        );
        hub.expire(Instant::from_nanos(3 + 10_000_000_000));
        subscribe(&mut hub, 2, 8, 2);
        assert_eq!(heard(&mut hub, 2), "Missed { topic: 5, ticket: 8, count: 1 } replayed@3/8-0");
        subscribe(&mut hub, 2, 9, 3);
        assert_eq!(heard(&mut hub, 2), "replayed@3/9-0");
        assert!(hub.order.is_empty() && hub.kept == 0);
        hub.disconnect(1);
        hub.disconnect(2);
        assert!(hub.topics.is_empty());
    }

    #[test]
    fn a_worker_that_does_not_keep_up_is_told_how_much_it_has_missed() {
        let mut hub = hub(2);
        subscribe(&mut hub, 1, 1, 0);
        (1..=5).for_each(|now| publish(&mut hub, 2, &[b'x'; 600], now));
        assert_eq!(hub.counts(), Counts { published: 5, forwarded: 2, dropped: 3 });
        hub.end_turn();
        assert_eq!(heard(&mut hub, 1).matches("Missed").count(), 0);
        publish(&mut hub, 2, b"y", 6);
        assert_eq!(heard(&mut hub, 1), "Missed { topic: 5, ticket: 0, count: 3 } y@6/0");
    }

    #[test]
    fn a_worker_that_breaks_the_rules_is_found_out() {
        let mut hub = hub(1);
        let subscribe = |topic, key| Request::Subscribe { topic, ticket: 1, from: 0, key };
        assert_eq!(say(&mut hub, 1, subscribe(1, "shared\0a"), 0), Err(Breach::Scope));
        assert_eq!(say(&mut hub, 1, subscribe(1, "/chat\0a"), 0), Ok(()));
        assert_eq!(say(&mut hub, 1, subscribe(1, "/chat\0b"), 0), Err(Breach::Nonsense));
        assert_eq!(say(&mut hub, 1, subscribe(2, "/chat\0a"), 0), Err(Breach::Nonsense));
        assert_eq!(say(&mut hub, 1, subscribe(2, "/chat\0b"), 0), Ok(()));
        assert_eq!(say(&mut hub, 1, subscribe(3, "/chat\0c"), 0), Err(Breach::Topics));
        let message = Message { but: 0, kind: 1, compress: false, payload: b"\xff" };
        assert_eq!(say(&mut hub, 1, Request::Publish { key: KEY, message }, 0), Err(Breach::NotUtf8));
        assert_eq!(say(&mut hub, 1, Request::Publish { key: "shared\0a", message }, 0), Err(Breach::Scope));
        assert_eq!(hub.take_in(1, b"?", Instant::default()), Err(Breach::Nonsense));
    }

    #[test]
    fn workers_hear_how_many_subscribers_there_are_elsewhere() {
        let mut hub = hub(2);
        subscribe(&mut hub, 1, 1, 0);
        subscribe(&mut hub, 2, 1, 0);
        say(&mut hub, 1, Request::Count { topic: 5, count: 30 }, 0).unwrap();
        hub.tell_counts();
        assert!(heard(&mut hub, 2).ends_with("Others { topic: 5, count: 30 }"));
        assert!(!hub.has_news());
        hub.disconnect(1);
        hub.tell_counts();
        assert_eq!(heard(&mut hub, 2), "Others { topic: 5, count: 0 }");
    }
}
