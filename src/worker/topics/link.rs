//! The event loop's end of the bus: connects to it, and delivers what it brings.
//!
//! A message goes to its subscribers in the order of their ids, for a bounded time in each turn of the loop. While there is
//! no bus what is published waits, up to a bound.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ::ws_handler::raw::*;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::clock;
use crate::fleet::bus_wire::{FORMAT, Incoming, Notice};
use crate::fleet::control::{Channel, Report};
use crate::fleet::datagram;
use crate::proto::ws::connection::{Broadcast, Kind};
use crate::time::Instant;
use crate::worker::base::poll::{BUS, READABLE, WRITABLE};
use crate::worker::base::progress::Progress;
use crate::worker::conn::broadcasting::Shared as Outcome;
use crate::worker::conn::connections::Conns;
use crate::worker::topics::subscriptions::{Shared, Subscriptions};
use crate::worker::topics::table::{Fate, Recipients};
use crate::worker::topics::travelling::{Subscription, Traveller};

/// Time for messages of topics in a turn of the loop, while others wait.
const SHARE: Duration = Duration::from_millis(1);
/// Deliveries between two looks at the clock.
const UNTIMED: u32 = 16;
/// Bytes read at a time.
const READ: usize = 64 * 1024;
/// Time between two attempts to connect.
const RETRY: Duration = Duration::from_millis(100);
/// How long a worker that leaves waits for the bus.
const FINISH: Duration = Duration::from_millis(500);
/// RFC 6455 7.4, registered by IANA: Try Again Later.
const TRY_AGAIN_LATER: u16 = 1013;

/// A connection to the bus.
struct Connected {
    socket: Arc<OwnedFd>,
    incoming: Incoming,
    /// What the poll watches it for.
    watched: u8,
    /// There may be more to read.
    is_readable: bool,
    /// Messages of this worker that it has taken in.
    taken: u64,
}

impl Connected {
    /// Receives what has come; false if the bus has ended.
    fn receive(&mut self) -> bool {
        let received = recv(&*self.socket, self.incoming.room(READ), RecvFlags::DONTWAIT);
        let count = received.as_ref().map_or(0, |(count, _)| *count);
        self.incoming.received(count, READ);
        match received {
            Ok((0, _)) => return false,
            Ok((count, _)) => self.is_readable = count == READ,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.is_readable = false,
            Err(_) => return false,
        }
        true
    }

    /// Whether the bus has ended. Looks only at what it has taken in by then: messages it is asked for anew.
    fn has_ended(&mut self) -> bool {
        loop {
            match self.incoming.next_frame() {
                Ok(Some(content)) => {
                    if let Some(Notice::Taken { count }) = Notice::read(content) {
                        self.taken = count;
                    }
                }
                Ok(None) => {
                    self.is_readable = true;
                    if !self.receive() {
                        return true;
                    }
                    if !self.is_readable {
                        return false;
                    }
                }
                Err(_) => return true,
            }
        }
    }
}

/// A message that is being delivered.
struct Delivery {
    whom: Recipients,
    message: Broadcast,
    /// Id of the last connection that it was delivered to.
    position: u64,
}

/// See the module.
pub struct Link {
    conns: &'static Conns,
    subscriptions: &'static Subscriptions,
    progress: &'static Progress,
    control: &'static Channel,
    /// Where a bus, now or later, takes up connections of this pool.
    rendezvous: OwnedFd,
    connected: RefCell<Option<Connected>>,
    delivery: RefCell<Option<Delivery>>,
    /// When to try to connect; ns.
    retry_at: Cell<Instant>,
    has_work: Cell<bool>,
}

impl Link {
    /// Not connected yet.
    pub fn new(
        conns: &'static Conns,
        subscriptions: &'static Subscriptions,
        progress: &'static Progress,
        control: &'static Channel,
        rendezvous: OwnedFd,
    ) -> Self {
        Link {
            conns,
            subscriptions,
            progress,
            control,
            rendezvous,
            connected: RefCell::default(),
            delivery: RefCell::default(),
            retry_at: Cell::default(),
            has_work: Cell::new(false),
        }
    }

    /// The poll says that the socket is ready.
    pub fn ready(&self) {
        self.connected.borrow_mut().iter_mut().for_each(|connected| connected.is_readable = true);
        self.has_work.set(true);
    }

    /// Whether something is left to be done in the next turn.
    pub fn has_work(&self) -> bool {
        self.has_work.get()
    }

    /// When to look again without being told.
    pub fn due(&self) -> Option<Instant> {
        let waits = self.subscriptions.is_used() && self.connected.borrow().is_none();
        waits.then(|| self.retry_at.get())
    }

    /// Does what is due; once in a turn of the loop. False if topics were never used.
    #[inline]
    pub fn serve(&self) -> bool {
        self.subscriptions.is_used() && self.serve_used()
    }

    #[inline(never)]
    fn serve_used(&self) -> bool {
        self.forget_gone();
        if self.connected.borrow().is_none() {
            if self.conns.life.turn().instant() >= self.retry_at.get() {
                self.connect();
            }
            self.conns.life.request_chores(); // which see to the next attempt
        }
        let until = clock::now() + SHARE;
        self.has_work.set(self.deliver_until(until));
        self.tell_bus();
        true
    }

    // ----------------------------------------------------------- connecting

    fn connect(&self) {
        self.retry_at.set(self.conns.life.turn().instant() + RETRY);
        match self.try_connect() {
            Ok(()) => {
                if let Err(error) = self.control.send_report(Report::Topics) {
                    log::warn!("cannot report to the supervisor: {error}");
                }
            }
            // The bus has not taken up others yet.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => log::error!("cannot connect to the bus: {error}; retrying"),
        }
    }

    fn try_connect(&self) -> io::Result<()> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
        let ours = Arc::new(ours);
        self.conns.poll.add(&*ours, BUS)?;
        datagram::send(self.rendezvous.as_fd(), &FORMAT.to_ne_bytes(), Some(theirs.as_fd()))?;
        let mut shared = self.subscriptions.lock();
        shared.socket = Some(Arc::clone(&ours));
        shared.begin_anew(self.progress.last());
        // All wait, which a crash must find in the records: live ones have seen what this worker delivers, these have not.
        shared
            .table
            .members()
            .into_iter()
            .for_each(|conn| self.renew_record(conn, shared.table.export(conn)));
        let (incoming, watched) = (Incoming::default(), READABLE);
        let connected = Connected { socket: ours, incoming, watched, is_readable: false, taken: 0 };
        *self.connected.borrow_mut() = Some(connected);
        Ok(())
    }

    /// The worker leaves: what was published goes to the bus, this one or the next, if it takes it in time.
    pub fn finish(&self) {
        let give_up = clock::now() + FINISH;
        while self.subscriptions.is_used() && self.subscriptions.lock().write() {
            if clock::now() >= give_up {
                // The supervisor counts them.
                return log::warn!("the bus did not take the last published messages in time");
            }
            if self.connected.borrow_mut().as_mut().is_none_or(Connected::has_ended) {
                self.disconnect();
                self.connect();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The poll has forgotten all.
    pub fn rewatch(&self) {
        if let Some(connected) = self.connected.borrow_mut().as_mut() {
            connected.watched = READABLE;
            if let Err(error) = self.conns.poll.add(&*connected.socket, BUS) {
                log::error!("bus: epoll: {error}");
            }
        }
    }

    /// The bus has gone. What it was told and has not said that it has taken in may be lost.
    fn disconnect(&self) {
        let Some(mut connected) = self.connected.borrow_mut().take() else { return };
        connected.has_ended(); // which reads the last that it has said
        self.conns.poll.forget(&*connected.socket);
        let mut shared = self.subscriptions.lock();
        shared.socket = None;
        let waiting = shared.keep_published();
        let said = std::mem::replace(&mut shared.published, waiting);
        drop(shared);
        self.note_lost(said.saturating_sub(waiting + connected.taken), "has ended");
    }

    fn note_lost(&self, lost: u64, why: &str) {
        if lost > 0 {
            log::warn!("the bus {why}: up to {lost} published messages are lost");
            self.conns.metrics.place.topics_lost.add_shared(lost);
        }
    }

    /// Sends what waits, and has the poll watch for room if that does not go out.
    fn tell_bus(&self) {
        let mut connected = self.connected.borrow_mut();
        let Some(connected) = connected.as_mut() else { return };
        let mut shared = self.subscriptions.lock();
        let Shared { table, out, socket, .. } = &mut *shared;
        if table.has_chores() {
            let is_free = |conn| self.conns.is_unfragmented(conn);
            let free = table.unblock(is_free, out.tail());
            free.into_iter().for_each(|conn| self.renew_record(conn, table.export(conn)));
            if socket.is_some() {
                table.tell_counts(out.tail());
            }
            self.conns.metrics.lane.set_subscriptions(table.len() as u64);
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

    /// What travels with a connection has changed.
    pub fn renew(&self, id: u64) {
        let is_open = self.conns.with_open(id, |_, open| !open.over) == Some(true);
        let mut shared = self.subscriptions.lock();
        let Shared { table, out, .. } = &mut *shared;
        if is_open {
            self.renew_record(id, table.export(id));
        } else {
            table.leave(id, out.tail());
        }
    }

    fn renew_record(&self, id: u64, topics: Vec<u8>) {
        self.conns.core.borrow_mut().table.set_topics(id, topics);
    }

    /// Connections have gone, and their subscriptions with them.
    fn forget_gone(&self) {
        let gone = std::mem::take(&mut self.conns.core.borrow_mut().unsubscribed);
        if !gone.is_empty() {
            let mut shared = self.subscriptions.lock();
            let Shared { table, out, .. } = &mut *shared;
            gone.into_iter().for_each(|id| table.leave(id, out.tail()));
        }
    }

    /// A connection to a handler has come from another process with these subscriptions, and had `seen` what came before
    /// that.
    pub fn arrive(&self, id: u64, handler: u16, topics: &[u8], seen: u64) {
        let Some(traveller) = Traveller::read(topics) else {
            return log::error!("connection {id:x}: malformed subscriptions; dropped");
        };
        let Some(scope) = self.subscriptions.scope_of(handler) else { return };
        self.subscriptions.set_used();
        let mut shared = self.subscriptions.lock();
        let Shared { table, out, .. } = &mut *shared;
        let left_out = table.arrive(id, scope, &traveller.settle(seen), out.tail());
        if left_out > 0 {
            log::error!(
                "connection {id:x}: lost {left_out} subscriptions: this worker has too many (topics_max)"
            );
        }
        self.renew_record(id, table.export(id));
    }

    /// The same for one that is only passing through.
    pub fn pass(&self, id: u64, topics: &[u8], seen: u64) {
        let settled = Traveller::read(topics).map(|traveller| traveller.settle(seen).write());
        self.renew_record(id, settled.unwrap_or_default());
    }

    /// Whether all that a connection has published is on its way to the bus, so that it can go on in another worker.
    pub fn is_quiet(&self, id: u64) -> bool {
        !self.subscriptions.is_used() || !self.subscriptions.lock().has_unsent(id)
    }

    // ------------------------------------------------------------- delivering

    /// Delivers until this time; true if something is left.
    fn deliver_until(&self, until: Instant) -> bool {
        loop {
            if !self.go_on_delivering(until) {
                return true;
            }
            match self.next_notice() {
                Next::Done => {}
                Next::Nothing => return false,
                Next::Ended => {
                    self.disconnect();
                    if self.conns.life.turn().instant() >= self.retry_at.get() {
                        self.connect();
                    }
                    return false;
                }
            }
            if clock::now() >= until {
                return true;
            }
        }
    }

    /// Deals with what the bus says next; a message is only put into `delivery`.
    fn next_notice(&self) -> Next {
        let mut connected = self.connected.borrow_mut();
        let Some(connected) = connected.as_mut() else { return Next::Nothing };
        loop {
            match connected.incoming.next_frame() {
                Ok(Some(content)) => {
                    let Some(notice) = Notice::read(content) else {
                        log::error!("malformed frame from the bus; reconnecting");
                        return Next::Ended;
                    };
                    if let Notice::Taken { count } = notice {
                        connected.taken = count;
                    }
                    self.take_in(notice);
                    return Next::Done;
                }
                Ok(None) if connected.is_readable => {
                    if !connected.receive() {
                        return Next::Ended;
                    }
                }
                Ok(None) => return Next::Nothing,
                Err(_) => return Next::Ended,
            }
        }
    }

    fn take_in(&self, notice: Notice<'_>) {
        match notice {
            Notice::Message { topic, ticket, stamp, message } => {
                let kind = if u32::from(message.kind) == WS_TEXT { Kind::Text } else { Kind::Binary };
                let whom = Recipients { topic, ticket, stamp, but: message.but };
                let message = self.conns.broadcast(kind, message.payload, message.compress);
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
            Notice::Taken { .. } => {}
            Notice::Passed { stamp } => self.progress.pass(stamp),
        }
    }

    /// Goes on with the message that is being delivered; false if time is over before all have it.
    fn go_on_delivering(&self, until: Instant) -> bool {
        let mut delivery = self.delivery.borrow_mut();
        let Some(Delivery { whom, message, position }) = delivery.as_mut() else { return true };
        let mut shared = self.subscriptions.lock();
        let (mut count, mut changed, mut slow) = (0, Vec::new(), Vec::new());
        let is_live = whom.ticket == 0;
        let deliver = |id, subscription: Subscription| {
            let outcome = self.conns.share(id, message);
            if is_live {
                self.progress.reach(id);
            }
            match outcome {
                Outcome::Sent if is_live => {}
                Outcome::Sent => changed.push(id),
                Outcome::Gone => {}
                Outcome::Unfinished => {
                    changed.push(id);
                    return Fate::Blocked;
                }
                Outcome::Full => {
                    slow.push((id, subscription));
                    return Fate::Missed;
                }
            }
            Fate::Goes
        };
        let is_late = || {
            count += 1;
            count % UNTIMED == 0 && clock::now() >= until
        };
        let last = shared.table.for_each(*whom, *position, deliver, is_late);
        changed.into_iter().for_each(|id| self.renew_record(id, shared.table.export(id)));
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

    /// Subscribers have missed messages: those that did not want that are closed.
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

/// What has become of what the bus says next.
enum Next {
    /// It is dealt with.
    Done,
    /// It says nothing.
    Nothing,
    /// It has gone.
    Ended,
}
