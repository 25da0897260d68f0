//! The event loop's connection to the bus, and delivery of the messages that it brings.
//!
//! A message goes to its subscribers in the order of their ids, for a bounded time in each turn of the loop. While
//! there is no bus, published messages wait, up to a bound.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ::ws_handler::raw::*;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::clock;
use crate::fleet::sockets::bus_wire::{FORMAT, Form, Notice};
use crate::fleet::sockets::control::Report;
use crate::fleet::sockets::datagram;
use crate::proto::ws::connection::{Broadcast, Kind};
use crate::time::Instant;
use crate::worker::base::poll::{BUS, READABLE, WRITABLE};
use crate::worker::base::progress::Progress;
use crate::worker::connections::Conns;
use crate::worker::topics::connected::Connected;
use crate::worker::topics::subscriptions::Subscriptions;
use crate::worker::topics::table::{Delivered, Recipients};
use crate::worker::topics::travelling::{Subscription, Traveller};

/// Time for messages of topics in a turn of the loop, while others wait.
const SHARE: Duration = Duration::from_millis(1);
/// Deliveries between two looks at the clock.
const UNTIMED: u32 = 16;
/// Interval of attempts to connect.
const RETRY: Duration = Duration::from_millis(100);
/// How long a worker that exits waits for the bus.
const FINISH: Duration = Duration::from_millis(500);
/// RFC 6455 7.4, registered by IANA: Try Again Later.
const TRY_AGAIN_LATER: u16 = 1013;

/// A message that is being delivered.
struct Delivery {
    whom: Recipients,
    message: Broadcast,
    /// Id of the last connection that was dealt with.
    position: u64,
}

/// See the module.
pub struct Link {
    conns: &'static Conns,
    subscriptions: &'static Subscriptions,
    progress: &'static Progress,
    /// Where a bus, this one or the next, accepts connections of this pool.
    rendezvous: OwnedFd,
    connected: RefCell<Option<Connected>>,
    delivery: RefCell<Option<Delivery>>,
    /// When to try to connect.
    retry_at: Cell<Instant>,
    has_work: Cell<bool>,
}

impl Link {
    /// Not connected yet.
    pub fn new(
        conns: &'static Conns,
        subscriptions: &'static Subscriptions,
        progress: &'static Progress,
        rendezvous: OwnedFd,
    ) -> Self {
        Link {
            conns,
            subscriptions,
            progress,
            rendezvous,
            connected: RefCell::default(),
            delivery: RefCell::default(),
            retry_at: Cell::default(),
            has_work: Cell::new(false),
        }
    }

    /// The socket is ready.
    pub fn ready(&self) {
        self.connected.borrow_mut().iter_mut().for_each(|connected| connected.is_readable = true);
        self.has_work.set(true);
    }

    /// Whether the next turn must not wait.
    pub fn has_work(&self) -> bool {
        self.has_work.get()
    }

    /// When to call [`serve`](Self::serve) without an event.
    pub fn due(&self) -> Option<Instant> {
        let waits = self.subscriptions.is_used() && self.connected.borrow().is_none();
        waits.then(|| self.retry_at.get())
    }

    /// Connects, delivers and sends as due; once in a turn of the loop. False if topics were never used.
    #[inline]
    pub fn serve(&self) -> bool {
        self.subscriptions.is_used() && self.serve_used()
    }

    #[inline(never)]
    fn serve_used(&self) -> bool {
        self.forget_gone();
        if self.connected.borrow().is_none() {
            self.connect();
            self.conns.life.request_chores(); // the next attempt
        }
        let until = clock::now() + SHARE;
        self.has_work.set(self.deliver_until(until));
        self.tell_bus();
        true
    }

    // ----------------------------------------------------------- connecting

    /// Connects, if it is time to try.
    fn connect(&self) {
        let now = clock::now();
        if now < self.retry_at.get() {
            return;
        }
        self.retry_at.set(now + RETRY);
        match self.try_connect() {
            Ok(()) => self.conns.presence.report(Report::Topics),
            // The bus has not accepted others yet.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The supervisor has died, which keeps the other end. There will be no bus, and this worker stops.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                self.retry_at.set(Instant::NEVER);
            }
            Err(error) => log::error!("cannot connect to the bus: {error}; retrying"),
        }
    }

    fn try_connect(&self) -> io::Result<()> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
        let ours = Arc::new(ours);
        self.conns.poll.add(&*ours, BUS)?;
        datagram::send(self.rendezvous.as_fd(), &FORMAT.to_ne_bytes(), &[theirs.as_fd()])?;
        let mut shared = self.subscriptions.lock();
        shared.socket = Some(Arc::clone(&ours));
        shared.begin_anew(self.progress.last());
        // All subscriptions wait now. The records must say so in case of a crash: live ones count as having seen
        // whatever this worker has delivered.
        shared
            .table
            .members()
            .into_iter()
            .for_each(|conn| self.renew_record(conn, shared.table.export(conn)));
        *self.connected.borrow_mut() = Some(Connected::new(ours));
        Ok(())
    }

    /// The worker exits: sends what was published to this bus or the next, if that accepts it in time.
    pub fn finish(&self) {
        let give_up = clock::now() + FINISH;
        while self.subscriptions.is_used() && self.subscriptions.lock().write() {
            if clock::now() >= give_up {
                // The supervisor counts them.
                return log::warn!("the bus did not accept the last published messages within {FINISH:?}");
            }
            if self.connected.borrow_mut().as_mut().is_none_or(Connected::has_ended) {
                self.disconnect();
                self.connect();
                if self.retry_at.get().is_never() {
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The poll is new and empty.
    pub fn rewatch(&self) {
        if let Some(connected) = self.connected.borrow_mut().as_mut() {
            connected.watched = READABLE;
            if let Err(error) = self.conns.poll.add(&*connected.socket, BUS) {
                log::error!("bus: epoll: {error}");
            }
        }
    }

    /// The bus has exited. Messages that it has not reported as accepted may be lost.
    fn disconnect(&self) {
        let Some(mut connected) = self.connected.borrow_mut().take() else { return };
        connected.has_ended(); // reads its last report
        self.conns.poll.forget(&*connected.socket);
        let mut shared = self.subscriptions.lock();
        shared.socket = None;
        let waiting = shared.keep_published();
        let published = std::mem::replace(&mut shared.published, waiting);
        drop(shared);
        let lost = published.saturating_sub(waiting + connected.taken);
        if lost > 0 {
            log::warn!("the bus has exited: up to {lost} published messages are lost");
            self.conns.metrics.place.topics_lost.add_shared(lost);
        }
    }

    /// Sends what is queued; if the socket does not take all, waits until it is writable.
    fn tell_bus(&self) {
        let mut connected = self.connected.borrow_mut();
        let Some(connected) = connected.as_mut() else { return };
        let mut shared = self.subscriptions.lock();
        let is_heard = shared.socket.is_some();
        let (table, out) = shared.requests();
        if table.has_chores() {
            let is_free = |conn| self.conns.is_unfragmented(conn);
            let free = table.unblock(is_free, out);
            free.into_iter().for_each(|conn| self.renew_record(conn, table.export(conn)));
            if is_heard {
                table.tell_counts(out);
            }
            self.conns.metrics.lane.present().subscriptions.set(table.len() as u64);
        }
        let is_left = shared.write() && shared.socket.is_some();
        let wanted = if is_left { READABLE | WRITABLE } else { READABLE };
        if connected.watched != wanted {
            connected.watched = wanted;
            if let Err(error) = self.conns.poll.watch(&*connected.socket, BUS, wanted) {
                log::error!("bus: epoll: {error}");
            }
        }
    }

    // ----------------------------------------------------------- connections

    /// The subscriptions of a connection have changed: updates its record.
    pub fn renew(&self, id: u64) {
        let is_open = self.conns.with_open(id, |_, open| !open.over) == Some(true);
        let mut shared = self.subscriptions.lock();
        shared.renewed.remove(&id);
        let (table, out) = shared.requests();
        if is_open {
            self.renew_record(id, table.export(id));
        } else {
            table.leave(id, out);
        }
    }

    fn renew_record(&self, id: u64, topics: Vec<u8>) {
        self.conns.core.borrow_mut().table.set_topics(id, topics);
    }

    /// Ends the subscriptions of connections that have ended.
    fn forget_gone(&self) {
        let gone = std::mem::take(&mut self.conns.core.borrow_mut().unsubscribed);
        if !gone.is_empty() {
            let mut shared = self.subscriptions.lock();
            let (table, out) = shared.requests();
            gone.into_iter().for_each(|id| table.leave(id, out));
        }
    }

    /// A connection has come from another process with these subscriptions, and has `seen` everything up to this stamp.
    pub fn arrive(&self, id: u64, handler: u16, topics: &[u8], seen: u64) {
        let Some(traveller) = Traveller::read(topics) else {
            return log::error!("connection {id:x}: malformed subscriptions; connection kept without them");
        };
        let Some(scope) = self.subscriptions.scope_of(handler) else { return };
        self.subscriptions.set_used();
        let mut shared = self.subscriptions.lock();
        let (table, out) = shared.requests();
        let left_out = table.arrive(id, scope, &traveller.settle(seen), out);
        if left_out > 0 {
            log::error!(
                "connection {id:x}: lost {left_out} subscriptions: more than topics_per_connection, or than topics_max \
                 in this worker"
            );
        }
        self.renew_record(id, table.export(id));
    }

    /// The same for a connection that goes on to another process.
    pub fn pass(&self, id: u64, topics: &[u8], seen: u64) {
        let settled = Traveller::read(topics).map(|traveller| traveller.settle(seen).write());
        self.renew_record(id, settled.unwrap_or_default());
    }

    /// Whether everything that a connection has published was sent to the bus, so that the connection can move.
    pub fn is_quiet(&self, id: u64) -> bool {
        !self.subscriptions.is_used() || !self.subscriptions.lock().has_unsent(id)
    }

    // ------------------------------------------------------------- delivering

    /// Delivers until this time; true if messages may be left.
    fn deliver_until(&self, until: Instant) -> bool {
        while self.go_on_delivering(until) {
            match self.next_notice() {
                NextFrame::Done if clock::now() < until => {}
                NextFrame::Done => return true,
                NextFrame::Nothing => return false,
                NextFrame::Ended => {
                    self.disconnect();
                    self.connect();
                    return false;
                }
            }
        }
        true
    }

    /// Handles the next frame of the bus; a message is only put into `delivery`.
    fn next_notice(&self) -> NextFrame {
        let mut connected = self.connected.borrow_mut();
        let Some(connected) = connected.as_mut() else { return NextFrame::Nothing };
        loop {
            match connected.incoming.next_frame() {
                Ok(Some(content)) => {
                    let compressed = &mut connected.compressed;
                    match Notice::read(content) {
                        Some(Notice::Compressed { form, payload }) => {
                            compressed.push((form, payload.to_vec()))
                        }
                        Some(Notice::Taken { count }) => connected.taken = count,
                        Some(notice) => {
                            self.take_in(notice, compressed);
                            return NextFrame::Done;
                        }
                        None => {
                            log::error!("malformed frame of the bus; reconnecting");
                            return NextFrame::Ended;
                        }
                    }
                }
                Ok(None) if connected.is_readable => {
                    if !connected.receive() {
                        return NextFrame::Ended;
                    }
                }
                Ok(None) => return NextFrame::Nothing,
                Err(_) => return NextFrame::Ended,
            }
        }
    }

    fn take_in(&self, notice: Notice<'_>, compressed: &mut Vec<(Form, Vec<u8>)>) {
        match notice {
            Notice::Message { topic, ticket, stamp, message } => {
                let kind = if u32::from(message.kind) == WS_TEXT { Kind::Text } else { Kind::Binary };
                let whom = Recipients { topic, ticket, stamp, but: message.but };
                let message = self.conns.broadcast(kind, message.payload, message.compress);
                let message = message.with_compressed(compressed.drain(..));
                if ticket == 0 {
                    self.progress.begin(stamp);
                }
                *self.delivery.borrow_mut() = Some(Delivery { whom, message, position: 0 });
            }
            Notice::Replayed { topic, ticket, stamp, missed } => {
                let live = self.subscriptions.lock().table.replayed(topic, ticket, stamp, missed);
                live.iter().for_each(|(id, _)| self.renew(*id));
                if missed > 0 {
                    self.note_missed(&live, missed);
                }
            }
            Notice::Missed { topic, ticket, stamp, count } => {
                let whom = self.subscriptions.lock().table.missed(topic, ticket, stamp, count);
                self.note_missed(&whom, count);
            }
            Notice::Others { topic, count } => self.subscriptions.lock().table.set_others(topic, count),
            Notice::Taken { .. } | Notice::Compressed { .. } => {}
            Notice::Passed { stamp } => self.progress.pass(stamp),
        }
    }

    /// Continues the delivery; false if subscribers are left when the time is over.
    fn go_on_delivering(&self, until: Instant) -> bool {
        let mut delivery = self.delivery.borrow_mut();
        let Some(Delivery { whom, message, position }) = delivery.as_mut() else { return true };
        let mut shared = self.subscriptions.lock();
        let mut count = 0;
        let is_live = whom.ticket == 0;
        let deliver = |id| {
            let outcome = self.conns.share(id, message);
            if is_live {
                self.progress.reach(id);
            }
            outcome
        };
        let is_late = || {
            count += 1;
            count % UNTIMED == 0 && clock::now() >= until
        };
        let Delivered { last, changed, slow } = shared.table.deliver(*whom, *position, deliver, is_late);
        changed.into_iter().for_each(|id| self.renew_record(id, shared.table.export(id)));
        if last.is_none() {
            let (table, out) = shared.requests();
            let size = message.size() as u32;
            message.compressed_here().for_each(|form| table.want_compressed(whom.topic, form, size, out));
        }
        drop(shared);
        self.note_missed(&slow, 1);
        match last {
            Some(last) => *position = last,
            None => {
                if is_live {
                    self.progress.end();
                }
                *delivery = None;
            }
        }
        last.is_none()
    }

    /// Subscribers have missed messages: closes those that have not subscribed with `WS_DROP`.
    fn note_missed(&self, whom: &[(u64, Subscription)], count: u32) {
        for (id, subscription) in whom {
            let counters = self.conns.with_open(*id, |_, open| open.counted.counters());
            counters.into_iter().for_each(|counters| counters.topics.dropped.add(count.into()));
            if u32::from(subscription.flags) & WS_DROP == 0 {
                log::info!(
                    "connection {id:x}: too slow for the topics it is subscribed to; closed with 1013"
                );
                self.conns.close(*id, Some(TRY_AGAIN_LATER), b"too slow", WS_BY_HOST);
            } else {
                self.renew(*id);
            }
        }
    }
}

/// The next frame of the bus.
enum NextFrame {
    /// It was handled.
    Done,
    /// There is none.
    Nothing,
    /// The bus has exited.
    Ended,
}
