//! The connection to the engine, NATS or Redis, that shares topics with other machines. A thread of its own serves it:
//! the loop of the bus sends it commands through a [`CommandQueue`], and takes messages from an [`Inbox`]; neither
//! blocks.
//!
//! Only topics with subscribers on this machine are subscribed at the engine, and no message returns to the machine
//! that published it. Without a connection, messages to other machines are dropped and counted.

mod commands;
mod inbox;
mod interest;
mod nats;
mod redis;
mod session;
mod subject;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use self::commands::{CommandQueue, Message};
use self::inbox::Inbox;
use self::interest::Interest;
use self::session::Session;
use crate::clock;
use crate::config::bus::Engine as Settings;
use crate::fleet::memory::counters::bus::BusCounters;
use crate::fleet::sockets::bus_wire;
use crate::time::Instant;

/// Time for the last messages to reach the engine when the bus exits.
const FINISH: Duration = Duration::from_millis(500);
/// `WS_TEXT` and `WS_BINARY`.
const KINDS: [u8; 2] = [1, 2];

/// See the module.
pub struct Engine {
    name: String,
    commands: Arc<CommandQueue>,
    inbox: Arc<Inbox>,
    interest: Interest,
    counters: &'static BusCounters,
    thread: JoinHandle<()>,
}

impl Engine {
    /// Begins to connect. A topic stays subscribed for `linger` after its last subscriber has gone.
    pub fn start(settings: Settings, linger: Duration, counters: &'static BusCounters) -> io::Result<Self> {
        let name = settings.name();
        let commands = Arc::new(CommandQueue::new(settings.queue));
        let inbox = Arc::new(Inbox::new(settings.queue, counters)?);
        let session = Session::new(settings, Arc::clone(&commands), Arc::clone(&inbox), counters);
        let run = || {
            // The panic hook has logged it. The supervisor starts another bus.
            catch_unwind(AssertUnwindSafe(|| session.run())).unwrap_or_else(|_| std::process::abort());
        };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(run)?;
        Ok(Engine { name, commands, inbox, interest: Interest::new(linger), counters, thread })
    }

    /// Its kind and servers.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.counters.connected.get() != 0
    }

    /// Publishes a message of this machine.
    pub fn publish(&self, key: &str, message: bus_wire::Publication<'_>) {
        let is_text = message.kind == KINDS[0];
        let payload = Bytes::copy_from_slice(message.payload);
        if !self.commands.publish(Message { key: key.into(), is_text, payload }) {
            self.counters.dropped_out.add_shared(1);
        }
    }

    /// A topic has gained its first subscriber on this machine, or lost the last one.
    pub fn set_interest(&mut self, key: &str, has_subscribers: bool, now: Instant) {
        if let Some(key) = self.interest.change(key, has_subscribers, now) {
            self.commands.set_wanted(key, true);
        }
    }

    /// Unsubscribes from topics that have been without subscribers for `linger`.
    pub fn expire(&mut self, now: Instant) {
        self.interest.expire(now).into_iter().for_each(|key| self.commands.set_wanted(key, false));
    }

    /// Passes the messages of one turn to `take`.
    pub fn receive(&self, mut take: impl FnMut(&str, bus_wire::Publication<'_>)) {
        for message in self.inbox.take() {
            let kind = if message.is_text { KINDS[0] } else { KINDS[1] };
            take(
                &message.key,
                bus_wire::Publication { but: 0, kind, compress: true, payload: &message.payload },
            );
        }
    }

    /// Ends the connection once the last messages were sent, at the latest after [`FINISH`].
    pub fn finish(self) {
        self.commands.close();
        let give_up = clock::now() + FINISH;
        while !self.thread.is_finished() && clock::now() < give_up {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Readable when messages have arrived.
impl AsFd for Engine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }
}
