//! A connection as the event loop sees it, and the table of them.
//!
//! Connections are named by a 64-bit id: the generation of their slot in the upper half, the slot in the lower.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket};

use crate::config::Console;
use crate::proto::ws::connection::Io;
use crate::proto::ws::deflate::codec::Codecs;
use crate::proto::ws::limits::Limits;
use crate::time::Instant;
use crate::worker::base::metrics::NO_HANDLER;
use crate::worker::base::poll::{ARRIVALS, READABLE};
use crate::worker::base::timers::Tick;
use crate::worker::conn::channel::ThreadChannel;
use crate::worker::conn::extents::{Extents, RawExtents};
use crate::worker::conn::handshake::Handshake;
use crate::worker::conn::open::Open;
use crate::worker::conn::record::{Record, Records};
use crate::worker::conn::send_queue::{QueuePool, SendQueue};
use crate::worker::conn::turn::Turn;

/// How long the peer may take to close its end after everything was said.
pub const LINGER: Duration = Duration::from_secs(2);

/// Reasons not to read from a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Pause {
    /// The handler has asked for it.
    Handler = 1,
    /// The blocking thread does not keep up.
    ThreadChannel = 2,
    /// The send queue is above its high mark.
    SendQueue = 4,
    /// The handshake is not finished.
    Handshake = 8,
    /// The peer has closed its end.
    Ended = 16,
    /// The blocking thread is to take what has come, and then the connection moves or is closed.
    Move = 32,
    /// What was read of it waits for the next slice.
    Slice = 64,
    /// It is in the middle of a large message while memory for messages is scarce.
    Memory = 128,
}

pub struct Conn {
    pub socket: Socket,
    pub phase: Phase,
    /// What waits to be sent; none if nothing does.
    pub queue: Option<Box<SendQueue>>,
    /// The entry in the timers that counts; [`Tick::NEVER`] without one.
    pub timer_at: Tick,
    /// Since when this worker has it; seconds of the clock.
    pub since: u32,
    /// Index of the handler in the routes, once the request is known.
    pub handler: u16,
    pauses: u8,
    /// What epoll watches it for: see [`ARRIVALS`] and its siblings.
    pub watched: u8,
    /// Whether it is served at once or in turn.
    pub turn: Turn,
    /// It is going to be flushed: it is in the list for that, or being processed.
    pub dirty: bool,
    /// Whether a receive that brings less than was asked for has emptied the socket. On a Unix socket it may have ended
    /// at ancillary data (unix(7)).
    pub is_drained_by_short_reads: bool,
}

/// Where a connection stands. The last field is when that has to be over; [`Instant::NEVER`] if it has not.
pub enum Phase {
    Head(PartialHead, Instant),
    /// The handler decides about the handshake; what came after the request is set aside.
    Opening(Arc<Handshake>, Option<Arc<ThreadChannel>>, Option<Box<[u8]>>, Instant),
    Reply(Option<FileBody>, Instant),
    Open(Open),
    /// All is sent; the peer is to close its end.
    Linger(Instant),
}

/// A request head that is not complete yet, and what is known before it is.
#[derive(Default)]
pub struct PartialHead {
    /// What was read of it.
    pub read: Vec<u8>,
    /// Whether clients are served the console where this one came in.
    pub console: Console,
    /// Whether an HTTP response may have content: something was read, and it does not begin with HEAD.
    pub takes_content: bool,
}

pub struct FileBody {
    pub file: File,
    pub offset: u64,
    pub left: u64,
}

impl Conn {
    /// A connection whose request head is to be read by `deadline`.
    pub fn new(socket: Socket, deadline: Instant) -> Self {
        let is_local = socket.domain().is_ok_and(|domain| domain == Domain::UNIX);
        Conn {
            socket,
            phase: Phase::Head(PartialHead::default(), deadline),
            queue: None,
            timer_at: Tick::NEVER,
            since: 0,
            handler: NO_HANDLER,
            pauses: 0,
            watched: if is_local { READABLE } else { ARRIVALS },
            turn: Turn::new(),
            dirty: false,
            is_drained_by_short_reads: !is_local,
        }
    }

    /// The request head, as long as it is read.
    pub fn head(&mut self) -> Option<&mut PartialHead> {
        match &mut self.phase {
            Phase::Head(head, _) => Some(head),
            _ => None,
        }
    }

    pub fn open(&mut self) -> Option<&mut Open> {
        match &mut self.phase {
            Phase::Open(open) => Some(open),
            _ => None,
        }
    }

    /// Stops or resumes reading for one reason. True if the last reason to pause has gone.
    pub fn set_pause(&mut self, reason: Pause, paused: bool, now: Instant) -> bool {
        let before = self.pauses;
        self.pauses = if paused { before | reason as u8 } else { before & !(reason as u8) };
        if (before == 0) != (self.pauses == 0)
            && let Some(open) = self.open()
        {
            open.proto.set_paused(paused, now);
        }
        before != 0 && self.pauses == 0
    }

    /// What comes is only read to find the end: no reason not to counts any more.
    pub fn clear_pauses(&mut self) {
        self.pauses = 0;
    }

    pub fn is_paused(&self) -> bool {
        self.pauses != 0
    }

    /// Takes what was set aside.
    pub fn take_unread(&mut self) -> Option<Box<[u8]>> {
        match &mut self.phase {
            Phase::Opening(_, _, unread, _) => unread.take(),
            Phase::Open(open) => open.take_unread(),
            _ => None,
        }
    }

    /// Whether there is such.
    pub fn has_unread(&self) -> bool {
        match &self.phase {
            Phase::Opening(_, _, unread, _) => unread.is_some(),
            Phase::Open(open) => open.has_unread(),
            _ => false,
        }
    }

    /// Since when the send queue waits without progress.
    pub fn stalled(&self) -> Option<Instant> {
        self.queue.as_ref()?.stalled
    }

    pub fn queued(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.len())
    }

    /// When the present phase has to be over, or an open connection's thread to have answered the peer's Close frame.
    pub fn deadline(&self) -> Instant {
        match &self.phase {
            Phase::Head(_, at) | Phase::Opening(.., at) | Phase::Reply(_, at) | Phase::Linger(at) => *at,
            Phase::Open(open) => open.last_call_by(),
        }
    }

    /// Whether the entry in the timers stands: it was made while the connection was open, and each message since has
    /// only moved its deadlines away.
    #[inline]
    pub fn is_armed(&self) -> bool {
        self.timer_at != Tick::NEVER
            && self.queue.is_none()
            && matches!(&self.phase, Phase::Open(open) if open.armed && open.is_quiet())
    }

    /// The next instant at which something is to be done about this connection. `stall` is how long the
    /// send queue may wait without progress.
    pub fn next_deadline(&self, limits: &Limits, stall: Duration) -> Instant {
        let Phase::Open(open) = &self.phase else { return self.deadline() };
        let stalled = self.stalled().map_or(Instant::NEVER, |since| since + stall);
        self.deadline().min(open.proto.deadline(limits)).min(open.next_timer()).min(stalled)
    }

    /// The open WebSocket with what its protocol needs of its surroundings.
    pub fn protocol<'a>(
        &'a mut self,
        now: Instant,
        limits: &'a Limits,
        codecs: &'a mut Codecs,
        queue_pool: &mut QueuePool,
    ) -> Option<(&'a mut Open, Io<'a>)> {
        let Phase::Open(open) = &mut self.phase else { return None };
        let out = self.queue.get_or_insert_with(|| queue_pool.take()).tail();
        Some((open, Io { now, limits, codecs, out }))
    }
}

pub struct Table {
    /// By slot; never grows beyond what was reserved, so that what is there does not move.
    places: Vec<Option<Conn>>,
    /// By slot: upper half of the id of the connection there, or of the last one.
    generations: Vec<u32>,
    free: Vec<u32>,
    records: Records,
    /// What waits in send queues, where a record says so.
    unsent: Extents,
    /// Subscriptions as they travel, by slot, and where they lie.
    topics: HashMap<u32, Box<[u8]>>,
    topic_extents: Extents,
    most: u32,
}

impl Table {
    /// A table with room for `most` connections.
    pub fn new(most: u32) -> io::Result<Self> {
        let (records, unsent) = (Records::map(most as usize)?, Extents::map(most as usize)?);
        let (topics, topic_extents) = (HashMap::new(), Extents::map(most as usize)?);
        // Unused memory costs nothing, and growing would fragment the heap.
        let (places, generations) = (Vec::with_capacity(most as usize), Vec::with_capacity(most as usize));
        let free = Vec::new();
        Ok(Table { places, generations, free, records, unsent, topics, topic_extents, most })
    }

    /// Adds a connection. Its record is cut until more is known. Its socket is given back when the table is full.
    pub fn add(&mut self, conn: Conn) -> Result<u64, Socket> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.places.len() < self.most as usize => {
                self.places.push(None);
                self.generations.push(0);
                self.places.len() as u32 - 1
            }
            None => return Err(conn.socket),
        };
        let (Some(place), Some(generation), Some(record)) = (
            self.places.get_mut(slot as usize),
            self.generations.get_mut(slot as usize),
            self.records.get_mut(slot),
        ) else {
            return Err(conn.socket);
        };
        // 0 is no generation: no id is 0.
        *generation = generation.wrapping_add(1).max(1);
        (record.generation, record.fd) = (*generation, conn.socket.as_raw_fd());
        record.seal();
        record.cut();
        *place = Some(conn);
        Ok(u64::from(*generation) << 32 | u64::from(slot))
    }

    #[inline]
    pub fn get(&mut self, id: u64) -> Option<&mut Conn> {
        self.place(id)?.as_mut()
    }

    /// The place of the connection of that id; empty once it is gone.
    #[inline]
    fn place(&mut self, id: u64) -> Option<&mut Option<Conn>> {
        let slot = id as u32 as usize;
        let is_current = *self.generations.get(slot)? == (id >> 32) as u32;
        self.places.get_mut(slot).filter(|_| is_current)
    }

    /// The record of a connection; changed ones are to be sealed.
    pub fn record(&mut self, id: u64) -> Option<&mut Record> {
        self.both(id).map(|(_, record)| record)
    }

    #[inline]
    pub fn both(&mut self, id: u64) -> Option<(&mut Conn, &mut Record)> {
        self.all(id).map(|(conn, record, _)| (conn, record))
    }

    /// The records, and where it is noted what the subscriptions are, for the rescue.
    pub fn raw(&self) -> ((NonNull<Record>, usize), RawExtents) {
        (self.records.raw(), self.topic_extents.raw())
    }

    /// Where it is noted what waits in send queues.
    pub fn unsent(&self) -> RawExtents {
        self.unsent.raw()
    }

    /// A connection, its record, and the place of what waits in its send queue.
    #[inline]
    pub fn all(&mut self, id: u64) -> Option<(&mut Conn, &mut Record, &mut Extents)> {
        let slot = id as u32 as usize;
        let is_current = *self.generations.get(slot)? == (id >> 32) as u32;
        let place = self.places.get_mut(slot).filter(|_| is_current)?;
        Some((place.as_mut()?, self.records.get_mut(id as u32)?, &mut self.unsent))
    }

    pub fn has_topics(&self, id: u64) -> bool {
        !self.topics.is_empty() && self.topics.contains_key(&(id as u32))
    }

    /// The subscriptions of a connection, as they travel: they stay where they are until they change. `None` if they
    /// were damaged.
    pub fn topics(&self, id: u64) -> Option<*const [u8]> {
        self.topic_extents.raw().find(id as u32 as usize)
    }

    /// Replaces the subscriptions of a connection, as they are to travel; empty for none.
    pub fn set_topics(&mut self, id: u64, bytes: Vec<u8>) {
        if self.topics.is_empty() && bytes.is_empty() || self.get(id).is_none() {
            return;
        }
        let (slot, bytes) = (id as u32, bytes.into_boxed_slice());
        // Before those that were there are freed.
        self.topic_extents.note(slot, &bytes);
        match bytes.is_empty() {
            true => self.topics.remove(&slot),
            false => self.topics.insert(slot, bytes),
        };
    }

    /// Takes a connection out and forgets all about it.
    pub fn remove(&mut self, id: u64) -> Option<Conn> {
        self.set_topics(id, Vec::new());
        let conn = self.place(id)?.take()?;
        let slot = id as u32;
        self.records.get_mut(slot)?.clear();
        self.free.push(slot);
        Some(conn)
    }

    pub fn ids(&self) -> Vec<u64> {
        let taken = self.places.iter().zip(0..).filter(|(conn, _)| conn.is_some());
        taken.filter_map(|(_, slot)| self.id_of(slot)).collect()
    }

    /// The id of the connection in this slot, or of the last one.
    pub fn id_of(&self, slot: u32) -> Option<u64> {
        self.generations.get(slot as usize).map(|generation| u64::from(*generation) << 32 | u64::from(slot))
    }

    pub fn len(&self) -> u32 {
        (self.places.len() - self.free.len()) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn() -> Conn {
        Conn::new(Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap(), Instant::NEVER)
    }

    #[test]
    fn what_an_idle_connection_costs() {
        // With the record and an entry in the timers.
        let timers = size_of::<u64>();
        let connection = size_of::<Option<Conn>>();
        assert!(connection + size_of::<Record>() + timers <= 248, "{connection}");
    }

    #[test]
    fn an_id_names_one_connection_only() {
        let mut table = Table::new(1).unwrap();
        let first = table.add(conn()).unwrap();
        assert!(table.add(conn()).is_err(), "the table has one place");
        assert!(table.remove(first).is_some());
        let second = table.add(conn()).unwrap();
        assert_ne!(first, second);
        assert!(table.get(first).is_none() && table.remove(first).is_none());
        assert_eq!(table.ids(), [second]);
    }

    #[test]
    fn a_crash_finds_the_subscriptions_that_were_set_last() {
        let mut table = Table::new(2).unwrap();
        let (one, other) = (table.add(conn()).unwrap(), table.add(conn()).unwrap());
        let sizes = |table: &Table| [one, other].map(|id| table.topics(id).unwrap().len());
        table.set_topics(one, vec![7; 10_000]);
        assert_eq!(
            (sizes(&table), table.has_topics(one), table.has_topics(other)),
            ([10_000, 0], true, false)
        );
        table.set_topics(one, vec![8; 10]);
        assert_eq!(sizes(&table), [10, 0]);
        table.set_topics(other, vec![8; 20]);
        table.remove(one);
        assert_eq!((sizes(&table), table.has_topics(one)), ([0, 20], false));
    }

    #[test]
    fn reading_resumes_when_the_last_reason_to_pause_is_gone() {
        let (mut conn, now) = (conn(), Instant::default());
        assert!(!conn.set_pause(Pause::Handler, true, now));
        assert!(!conn.set_pause(Pause::SendQueue, true, now));
        assert!(!conn.set_pause(Pause::Handler, false, now));
        assert!(conn.is_paused());
        assert!(conn.set_pause(Pause::SendQueue, false, now));
        assert!(!conn.set_pause(Pause::SendQueue, false, now), "it was not paused");
    }
}
