//! The bounded queue of commands from the bus to the engine's thread.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Maximum commands taken at a time.
const BATCH: usize = 256;
/// Bytes of messages taken at a time; the last one may exceed it.
const BATCH_BYTES: usize = 256 * 1024;

/// Memory of a message besides its payload; bytes.
pub const COST: usize = 128;

/// A topic, by scope and name.
pub type Key = Arc<str>;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Subscribe to a topic.
    Subscribe(Key),
    /// Unsubscribe.
    Unsubscribe(Key),
    /// Publish a message of this machine.
    Publish(Message),
}

/// A message to or from the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub key: Key,
    /// Text is UTF-8.
    pub is_text: bool,
    pub payload: Bytes,
}

impl Message {
    /// Its share of a bounded queue; bytes.
    pub fn cost(&self) -> usize {
        self.payload.len() + COST
    }
}

/// See the module.
#[derive(Debug)]
pub struct CommandQueue {
    state: Mutex<State>,
    changed: Notify,
    /// Bytes of messages that may wait.
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Command>,
    /// Memory of the messages in `waiting`: `bytes <= limit`.
    bytes: usize,
    is_closed: bool,
}

impl CommandQueue {
    /// An empty queue.
    pub fn new(limit: usize) -> Self {
        CommandQueue { state: Mutex::default(), changed: Notify::new(), limit }
    }

    /// Queues a message; false if there is no room for it.
    pub fn publish(&self, message: Message) -> bool {
        let mut state = self.lock();
        let bytes = state.bytes + message.cost();
        if bytes > self.limit {
            return false;
        }
        state.bytes = bytes;
        state.waiting.push_back(Command::Publish(message));
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Subscribes or unsubscribes. Bounded by the number of topics, which is bounded in each worker.
    pub fn set_wanted(&self, key: Key, is_wanted: bool) {
        let command = if is_wanted { Command::Subscribe(key) } else { Command::Unsubscribe(key) };
        self.lock().waiting.push_back(command);
        self.changed.notify_one();
    }

    /// Ends the queue.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Waits for the next commands, at least one; `None` at the end of the queue. Can be cancelled without loss.
    pub async fn next(&self) -> Option<Vec<Command>> {
        loop {
            if let Some(taken) = self.take() {
                return taken;
            }
            self.changed.notified().await;
        }
    }

    /// `None`: the queue is empty.
    fn take(&self) -> Option<Option<Vec<Command>>> {
        let mut state = self.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < BATCH && bytes < BATCH_BYTES {
            let Some(command) = state.waiting.pop_front() else { break };
            if let Command::Publish(message) = &command {
                bytes += message.cost();
            }
            taken.push(command);
        }
        state.bytes -= bytes;
        match taken.is_empty() {
            false => Some(Some(taken)),
            true => state.is_closed.then_some(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(size: usize) -> Message {
        Message { key: "/a\0b".into(), is_text: true, payload: vec![b'x'; size].into() }
    }

    #[test]
    fn a_full_queue_refuses_messages_until_some_are_taken() {
        let commands = CommandQueue::new(100 + 2 * COST);
        assert!(
            commands.publish(message(60)) && !commands.publish(message(41)) && commands.publish(message(40))
        );
        commands.set_wanted("/a\0b".into(), true);
        let taken = commands.take().unwrap().unwrap();
        let subscribe = Command::Subscribe("/a\0b".into());
        assert_eq!(taken, [Command::Publish(message(60)), Command::Publish(message(40)), subscribe]);
        assert!(commands.take().is_none() && commands.publish(message(100)));
        commands.close();
        assert!(commands.take().unwrap().is_some() && commands.take().unwrap().is_none());
    }

    #[test]
    fn a_batch_is_bounded() {
        let commands = CommandQueue::new(BATCH_BYTES * 4);
        (0..3).for_each(|_| assert!(commands.publish(message(BATCH_BYTES / 2 + 1))));
        (0..BATCH + 1).for_each(|_| assert!(commands.publish(message(0))));
        let sizes: Vec<usize> =
            std::iter::from_fn(|| commands.take()).map(|taken| taken.unwrap().len()).collect();
        assert_eq!(sizes, [2, BATCH, 2]);
    }
}
