//! The way to the engine, NATS or Redis, that joins topics with those of other machines. A thread of the bus connects to it;
//! the loop of the bus gives it [`Orders`] and takes what came from an [`Inbox`], and waits for neither.
//!
//! Only what is subscribed here is subscribed there. What was published here does not come back. While there is no
//! connection, what is published here is dropped on the way there, and counted.

mod inbox;
mod interest;
mod nats;
mod orders;
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

use self::inbox::Inbox;
use self::interest::Interest;
use self::orders::{Message, Orders};
use self::session::Session;
use crate::clock;
use crate::config::bus::Engine as Settings;
use crate::fleet::bus_counters::BusCounters;
use crate::fleet::bus_wire;
use crate::time::Instant;

/// How long the end of the bus waits for what is on its way to the engine.
const FINISH: Duration = Duration::from_millis(500);
/// `WS_TEXT` and `WS_BINARY`.
const KINDS: [u8; 2] = [1, 2];

/// See the module.
pub struct Engine {
    name: String,
    orders: Arc<Orders>,
    inbox: Arc<Inbox>,
    interest: Interest,
    counters: &'static BusCounters,
    thread: JoinHandle<()>,
}

impl Engine {
    /// Begins to connect. A topic stays subscribed for `linger` after its last subscriber has gone.
    pub fn start(settings: Settings, linger: Duration, counters: &'static BusCounters) -> io::Result<Self> {
        let name = settings.name();
        let orders = Arc::new(Orders::new(settings.queue));
        let inbox = Arc::new(Inbox::new(settings.queue, counters)?);
        let session = Session::new(settings, Arc::clone(&orders), Arc::clone(&inbox), counters);
        let run = || {
            // A panic has printed its message. Another bus is started.
            catch_unwind(AssertUnwindSafe(|| session.run())).unwrap_or_else(|_| std::process::abort());
        };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(run)?;
        Ok(Engine { name, orders, inbox, interest: Interest::new(linger), counters, thread })
    }

    /// What it is, and where.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.counters.connected.get() != 0
    }

    /// A message was published here.
    pub fn publish(&self, key: &str, message: bus_wire::Message<'_>) {
        let is_text = message.kind == KINDS[0];
        let payload = Bytes::copy_from_slice(message.payload);
        if !self.orders.publish(Message { key: key.to_owned(), is_text, payload }) {
            self.counters.dropped_out.add(1);
        }
    }

    /// A topic has subscribers here, or none any more.
    pub fn set_interest(&mut self, key: &str, has_subscribers: bool, now: Instant) {
        if let Some(key) = self.interest.change(key, has_subscribers, now) {
            self.orders.set_wanted(key, true);
        }
    }

    /// Does what is due, now and then.
    pub fn tend(&mut self, now: Instant) {
        self.interest.expire(now).into_iter().for_each(|key| self.orders.set_wanted(key, false));
    }

    /// Hands out what has come, as much as is for one turn.
    pub fn receive(&self, mut take: impl FnMut(&str, bus_wire::Message<'_>)) {
        for arrival in self.inbox.take() {
            let kind = if arrival.is_text { KINDS[0] } else { KINDS[1] };
            take(&arrival.key, bus_wire::Message { but: 0, kind, compress: true, payload: &arrival.payload });
        }
    }

    /// Ends, once all was sent or that takes too long.
    pub fn finish(self) {
        self.orders.close();
        let give_up = clock::now() + FINISH;
        while !self.thread.is_finished() && clock::now() < give_up {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Ready when something has come.
impl AsFd for Engine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }
}
