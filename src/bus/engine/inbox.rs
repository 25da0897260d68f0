//! The bounded queue of messages of other machines, from the engine's thread to the loop of the bus, which an event
//! descriptor wakes. Messages that do not fit are dropped and counted.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::commands::{Key, Message};
use crate::fleet::memory::counters::bus::BusCounters;
use crate::fleet::sockets::bus_wire::MAX_MESSAGE;
use crate::proto::ws::utf8;

/// Bytes of messages taken in one turn of the bus; the last one may exceed it.
const TURN: usize = 256 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Inbox {
    state: Mutex<State>,
    ready: EventFd,
    /// Bytes that may wait.
    limit: usize,
    counters: &'static BusCounters,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Message>,
    /// Memory of `waiting`: `bytes <= limit`.
    bytes: usize,
}

impl Inbox {
    /// An empty queue.
    pub fn new(limit: usize, counters: &'static BusCounters) -> io::Result<Self> {
        let ready = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Inbox { state: Mutex::default(), ready, limit, counters })
    }

    /// Queues a message. It is text if it is UTF-8, unless its publisher has marked it as binary.
    pub fn put(&self, key: &Key, is_binary: bool, payload: Bytes) {
        let is_text = !is_binary && utf8::is_valid(&payload);
        let message = Message { key: Key::clone(key), is_text, payload };
        let mut state = self.lock();
        let bytes = state.bytes + message.cost();
        if message.payload.len() > MAX_MESSAGE || bytes > self.limit {
            return self.count_dropped();
        }
        state.bytes = bytes;
        state.waiting.push_back(message);
        drop(state);
        self.counters.received.add_shared(1);
        self.wake();
    }

    /// Counts a message that was dropped before it got here.
    pub fn count_dropped(&self) {
        self.counters.dropped_in.add_shared(1);
    }

    /// The messages of one turn of the bus.
    pub fn take(&self) -> Vec<Message> {
        let _ = self.ready.read(); // there may be nothing to read
        let mut state = self.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < TURN
            && let Some(message) = state.waiting.pop_front()
        {
            bytes += message.cost();
            state.bytes -= message.cost();
            taken.push(message);
        }
        if !state.waiting.is_empty() {
            self.wake();
        }
        taken
    }

    fn wake(&self) {
        let _ = self.ready.write(1); // fails at 2^64 - 2 only
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::commands::COST;
    use super::*;

    #[test]
    fn a_message_is_text_if_it_is_utf_8_and_not_marked_binary() {
        let inbox = Inbox::new(1000, Box::leak(Box::default())).unwrap();
        let key: Key = "/a\0b".into();
        inbox.put(&key, false, Bytes::from_static(b"text"));
        inbox.put(&key, true, Bytes::from_static(b"text"));
        inbox.put(&key, false, Bytes::from_static(b"\xff"));
        let kinds: Vec<bool> = inbox.take().iter().map(|message| message.is_text).collect();
        assert_eq!(kinds, [true, false, false]);
        assert!(inbox.take().is_empty());
    }

    #[test]
    fn messages_that_do_not_fit_are_counted() {
        let counters: &BusCounters = Box::leak(Box::default());
        let inbox = Inbox::new(2 * (COST + 5), counters).unwrap();
        let key: Key = "/a\0b".into();
        (0..3).for_each(|_| inbox.put(&key, false, Bytes::from_static(b"12345")));
        assert_eq!((counters.received.get(), counters.dropped_in.get()), (2, 1));
        assert_eq!(inbox.take().len(), 2);
        inbox.put(&key, false, Bytes::from_static(b"1234567890"));
        assert_eq!(inbox.take().len(), 1);
    }

    #[test]
    fn a_turn_is_bounded_and_the_rest_wakes_again() {
        let inbox = Inbox::new(4 * TURN, Box::leak(Box::default())).unwrap();
        let key: Key = "/a\0b".into();
        (0..3).for_each(|_| inbox.put(&key, true, vec![0; TURN - COST - 1].into()));
        assert_eq!(inbox.take().len(), 2);
        assert!(inbox.ready.read().is_ok());
    }
}
