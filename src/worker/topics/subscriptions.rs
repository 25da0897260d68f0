//! What handlers do with topics, on any thread: when a call returns, it is in the table and in the queue to the bus.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::ws_handler::raw::*;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::clock;
use crate::config::TopicBounds;
use crate::ffi::topics::Topics;
use crate::fleet::memory::counters::handler::Count;
use crate::fleet::sockets::bus_wire::{
    Incoming, MAX_MESSAGE, Outgoing, Publication, Request, checked_name, key_of,
};
use crate::proto::ws::utf8;
use crate::worker::base::metrics::Metrics;
use crate::worker::commands::queue::{CommandQueue, Counted, ThreadCommand};
use crate::worker::topics::table::SubscriptionTable;
use crate::worker::topics::travelling::Subscription;

/// What threads share.
pub struct BusState {
    /// All subscriptions.
    pub table: SubscriptionTable,
    /// What is queued for the bus.
    out: Outgoing,
    /// To the bus, as long as it receives.
    pub socket: Option<Arc<OwnedFd>>,
    /// Messages put into `out` for the present bus.
    pub published: u64,
    /// Connections whose messages may still be in `out`; empty if `out` is.
    unsent: HashSet<u64>,
    /// In shared memory, for the supervisor if this process dies: messages in `out`.
    unpublished: &'static Count,
    /// Connections whose subscriptions have changed, and that the event loop has been told of.
    pub renewed: HashSet<u64>,
}

impl BusState {
    fn new(bounds: TopicBounds, last_number: u64, unpublished: &'static Count) -> Self {
        BusState {
            table: SubscriptionTable::new(bounds, last_number),
            out: Outgoing::default(),
            socket: None,
            published: 0,
            unsent: HashSet::new(),
            unpublished,
            renewed: HashSet::new(),
        }
    }

    /// The subscriptions, and where requests for the bus go.
    pub fn requests(&mut self) -> (&mut SubscriptionTable, &mut Vec<u8>) {
        (&mut self.table, self.out.tail())
    }

    /// Introduces this worker to a new bus: all subscriptions, then the messages that were published while there was
    /// none. All messages up to `delivered` were delivered.
    pub fn begin_anew(&mut self, delivered: u64) {
        // Other queued frames are out of date: the table says what they said, and what has changed since.
        self.keep_published();
        let published = self.out.take();
        self.table.subscribe_anew(delivered, self.out.tail());
        self.out.tail().extend(published);
    }

    /// Keeps only the messages of what was queued for a bus that has exited. Returns how many.
    pub fn keep_published(&mut self) -> u64 {
        let mut all = Incoming::of(self.out.take());
        let mut count = 0;
        while let Ok(Some(content)) = all.next_frame() {
            if let Some(published @ Request::Publish { .. }) = Request::read(content) {
                published.append_to(self.out.tail());
                count += 1;
            }
        }
        count
    }

    /// Sends as much of `out` as the socket takes; true if something is left. A bus that receives nothing more has
    /// exited, or is about to: the event loop notices the end.
    pub fn write(&mut self) -> bool {
        let Some(socket) = &self.socket else { return !self.out.is_empty() };
        while !self.out.is_empty() {
            match send(socket, self.out.unsent(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => self.out.advance(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => {
                    self.socket = None;
                    return true;
                }
            }
        }
        self.unsent.clear();
        self.unpublished.clear();
        false
    }

    /// Notes that a message of the connection `this`, or of none (0), was put into `out`.
    fn publish(&mut self, this: u64) {
        self.published += 1;
        self.unpublished.add(1);
        if this != 0 {
            self.unsent.insert(this);
        }
    }

    /// Whether a message of this connection may still be in `out`: what it publishes in another worker would overtake
    /// that.
    pub fn has_unsent(&self, conn: u64) -> bool {
        self.unsent.contains(&conn)
    }
}

/// See the module.
pub struct Subscriptions {
    shared: Mutex<BusState>,
    /// The scope of each handler's topics.
    scopes: Vec<String>,
    bounds: TopicBounds,
    commands: &'static CommandQueue,
    metrics: &'static Metrics,
    /// Whether topics were ever used.
    is_used: AtomicBool,
}

impl Subscriptions {
    /// None yet. `scopes` are those of handlers, by number.
    pub fn new(
        scopes: Vec<String>,
        bounds: TopicBounds,
        commands: &'static CommandQueue,
        metrics: &'static Metrics,
    ) -> Self {
        let mut seed = [0; 8];
        // Without randomness the process and the time have to do.
        if rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::NONBLOCK) != Ok(8) {
            seed = (clock::now().as_nanos() ^ u64::from(std::process::id()) << 40).to_ne_bytes();
        }
        let shared = Mutex::new(BusState::new(bounds, u64::from_ne_bytes(seed), metrics.lane.unpublished()));
        Subscriptions { shared, scopes, bounds, commands, metrics, is_used: AtomicBool::new(false) }
    }

    #[inline]
    pub fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    pub fn set_used(&self) {
        self.is_used.store(true, Ordering::Relaxed);
    }

    /// What threads share. It is consistent even after a panic: nothing calls a handler while it is locked.
    pub fn lock(&self) -> MutexGuard<'_, BusState> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn scope_of(&self, handler: u16) -> Option<&str> {
        self.scopes.get(usize::from(handler)).map(String::as_str)
    }

    fn key(&self, handler: u16, topic: &[u8]) -> Option<String> {
        Some(key_of(self.scope_of(handler)?, checked_name(topic)?))
    }

    /// Tells the event loop that the subscriptions of a connection have changed, once until it has looked at them.
    fn renew(&self, shared: &mut BusState, conn: u64) -> i32 {
        if !shared.renewed.insert(conn) {
            return WS_OK;
        }
        let result = self.commands.give_counted(conn, Counted::Topics);
        if result != WS_OK {
            shared.renewed.remove(&conn);
        }
        result
    }

    /// Sends what was appended; the event loop sends the rest.
    fn send(&self, mut shared: MutexGuard<'_, BusState>) {
        self.set_used();
        let is_left = shared.write();
        drop(shared);
        if is_left {
            self.commands.give(ThreadCommand::Topics);
        }
    }
}

impl Topics for Subscriptions {
    fn subscribe(&self, conn: u64, topic: &[u8], flags: u32) -> i32 {
        let Some(handler) = self.commands.handler_of(conn) else { return WS_E_GONE };
        let key = self.key(handler, topic).filter(|_| flags & !WS_DROP == 0);
        let Some(key) = key else { return WS_E_INVALID };
        let wanted = Subscription { from: clock::now().as_nanos(), flags: flags as u8 };
        let mut shared = self.lock();
        let (table, out) = shared.requests();
        if table.subscribe(conn, &key, wanted, None, out).is_err() {
            return WS_E_LIMIT;
        }
        // In the record of the connection, it moves along. If the connection has ended, so does the subscription.
        let result = self.renew(&mut shared, conn);
        if result != WS_OK {
            let (table, out) = shared.requests();
            table.leave(conn, out);
        }
        self.send(shared);
        result
    }

    fn unsubscribe(&self, conn: u64, topic: &[u8]) -> i32 {
        let Some(handler) = self.commands.handler_of(conn) else { return WS_E_GONE };
        let Some(key) = self.key(handler, topic) else { return WS_E_INVALID };
        let mut shared = self.lock();
        let (table, out) = shared.requests();
        if !table.unsubscribe(conn, &key, out) {
            return WS_E_INVALID;
        }
        let _ = self.renew(&mut shared, conn); // it may have ended
        self.send(shared);
        WS_OK
    }

    fn publish(&self, handler: u16, this: u64, topic: &[u8], kind: u32, payload: &[u8], flags: u32) -> i32 {
        let known = flags & !(WS_UNCOMPRESSED | WS_NOT_SELF) == 0 && matches!(kind, WS_TEXT | WS_BINARY);
        let key = self.key(handler, topic).filter(|_| known);
        let Some(key) = key.filter(|_| kind != WS_TEXT || utf8::is_valid(payload)) else {
            return WS_E_INVALID;
        };
        if payload.len() > MAX_MESSAGE {
            return WS_E_LIMIT;
        }
        let counters = self.metrics.of(handler);
        let mut shared = self.lock();
        if shared.out.len() + payload.len() > self.bounds.queue as usize {
            counters.topics.refused.add_shared(1);
            return WS_E_FULL;
        }
        let but = if flags & WS_NOT_SELF != 0 { shared.table.number_of(this) } else { 0 };
        let message = Publication { but, kind: kind as u8, compress: flags & WS_UNCOMPRESSED == 0, payload };
        let time = clock::now().as_nanos();
        Request::Publish { time, key: &key, message }.append_to(shared.out.tail());
        shared.publish(this);
        counters.topics.published.add_shared(1);
        self.send(shared);
        WS_OK
    }

    fn subscribers(&self, handler: u16, topic: &[u8]) -> u64 {
        self.key(handler, topic).map_or(0, |key| self.lock().table.subscribers(&key))
    }

    fn missed(&self, conn: u64) -> u64 {
        let mut shared = self.lock();
        let missed = shared.table.take_missed(conn);
        if missed > 0 {
            let _ = self.renew(&mut shared, conn); // it may have ended
        }
        missed
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_new_bus_is_told_what_is_so_now_and_not_what_was_said_to_none() {
        let bounds = TopicBounds { per_connection: 9, topics: 9, ..TopicBounds::default() };
        let mut shared = BusState::new(bounds, 0, Box::leak(Box::default()));
        let wanted = Subscription { from: 7, flags: 0 };
        let message = Publication { but: 0, kind: 1, compress: false, payload: b"x" };
        let (table, out) = shared.requests();
        table.subscribe(1, "/chat\0a", wanted, None, out).unwrap();
        Request::Publish { time: 1, key: "/chat\0a", message }.append_to(out);
        table.unsubscribe(1, "/chat\0a", out);
        table.subscribe(1, "/chat\0a", wanted, None, out).unwrap();
        shared.begin_anew(0);
        let mut said = Incoming::of(shared.out.take());
        let mut next =
            || said.next_frame().unwrap().map(|content| format!("{:?}", Request::read(content).unwrap()));
        assert!(next().unwrap().starts_with("Subscribe { topic: 2, ticket: 3, from: 7,"));
        assert!(next().unwrap().starts_with("Publish "));
        assert_eq!(next(), None);
    }
}
