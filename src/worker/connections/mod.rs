//! The connections of a worker and what each waits for. Every operation on a connection that needs no handler is a
//! method here; calls that are due to handlers are collected in [`Core`] and made by `session`.

pub mod access_log;
pub mod broadcasting;
pub mod closing;
pub mod contexts;
pub mod gathering;
pub mod listing;
pub mod memory;
pub mod output;
pub mod read_control;
pub mod recorder;
pub mod sending;
pub mod transcript;
pub mod turn_queue;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::Socket;

use crate::config::{Config, HandlerSettings};
use crate::fleet::memory::addresses::Addresses;
use crate::fleet::routes::Routes;
use crate::proto::ws::deflate::codec::Codecs;
use crate::time::Instant;
use crate::worker::base::heap::HeapTrim;
use crate::worker::base::lifecycle::Lifecycle;
use crate::worker::base::metrics::Metrics;
use crate::worker::base::poll::Poll;
use crate::worker::base::presence::Presence;
use crate::worker::base::timers::{Tick, Timers};
use crate::worker::commands::queue::{CommandQueue, ThreadCommand};
use crate::worker::conn::channel::ThreadChannel;
use crate::worker::conn::open::Open;
use crate::worker::conn::receive_budget::ReceiveBudget;
use crate::worker::conn::record::Record;
use crate::worker::conn::send_queue::QueuePool;
use crate::worker::conn::table::{Conn, PartialHead, Table};
use crate::worker::connections::access_log::AccessLog;
use crate::worker::connections::broadcasting::SharedFrames;
use crate::worker::connections::contexts::Contexts;
use crate::worker::connections::gathering::Gathered;
use crate::worker::connections::recorder::Recorder;
use crate::worker::connections::sending::counted_of;
use crate::worker::connections::turn_queue::TurnQueue;

/// How long the send queue may wait where no Pings say what a silent peer is.
const STALL: Duration = Duration::from_secs(60);
/// A deadline is at least so far ahead: it cannot make the loop spin.
const SOON: Duration = Duration::from_millis(1);

/// What changes while connections are served. Never borrowed while a handler runs: its calls borrow it.
pub struct Core {
    pub table: Table,
    /// Compression state that connections take turns with.
    pub codecs: Codecs,
    /// Send queues that no connection needs now.
    pub queue_pool: QueuePool,
    /// When a connection's next deadline is.
    pub timers: Timers,
    /// Connections with something to write, each once.
    pub dirty: Vec<u64>,
    /// Connections whose replies go out at the end of the turn.
    pub gathered: Gathered,
    /// Connections whose on_close is due, each once.
    pub over: Vec<u64>,
    /// Connections whose send queue has drained, and whose handler waits for that.
    pub writable: Vec<u64>,
    /// Connections that have ended, or gone elsewhere, with subscriptions.
    pub unsubscribed: Vec<u64>,
    /// Connections that wait for their turn, among them those that may be read again and have something left unread.
    pub turns: TurnQueue,
    /// Memory of incomplete messages.
    pub receive_budget: ReceiveBudget,
    /// Contexts for compressing.
    pub contexts: Contexts,
    /// Whether memory that is free is to go back to the system.
    pub heap_trim: HeapTrim,
}

impl Core {
    /// Without connections, and with room for `most`.
    pub fn new(most: u32, config: &Config) -> io::Result<Self> {
        Ok(Core {
            table: Table::new(most)?,
            codecs: Codecs::new(),
            queue_pool: QueuePool::default(),
            timers: Timers::new(most),
            dirty: Vec::new(),
            gathered: Gathered::map(most)?,
            over: Vec::new(),
            writable: Vec::new(),
            unsubscribed: Vec::new(),
            turns: TurnQueue::default(),
            receive_budget: ReceiveBudget::new(config.memory.receive_total),
            contexts: Contexts::new(config.contexts),
            heap_trim: HeapTrim::default(),
        })
    }

    /// Whether a flush or a callback is pending.
    #[inline]
    pub fn has_pending(&self) -> bool {
        !(self.over.is_empty() && self.dirty.is_empty() && self.writable.is_empty())
    }

    /// Puts a connection on the list of those to flush. Until then it cannot move.
    pub fn mark_dirty(&mut self, id: u64) {
        match self.table.both(id) {
            Some((conn, record)) if !conn.dirty => {
                conn.dirty = true;
                record.pin();
            }
            _ => return,
        }
        self.dirty.push(id);
    }

    /// A connection is not sent messages of topics any more.
    pub fn end_subscriptions(&mut self, id: u64) {
        if self.table.has_topics(id) {
            self.table.set_topics(id, Vec::new());
            self.unsubscribed.push(id);
        }
    }
}

pub struct Conns {
    pub core: RefCell<Core>,
    /// Commands of other threads that were taken and are still to be carried out.
    pub batch: RefCell<VecDeque<ThreadCommand>>,
    pub config: Arc<Config>,
    pub routes: Arc<Routes>,
    /// What each handler is served with, by its number.
    pub handlers: Vec<HandlerSettings>,
    /// Time, and whether the worker is stopping.
    pub life: &'static Lifecycle,
    pub poll: &'static Poll,
    /// What other threads may know of them.
    pub commands: &'static CommandQueue,
    pub metrics: &'static Metrics,
    pub shared_frames: SharedFrames,
    /// This process, and how many there are as other processes see it.
    pub presence: &'static Presence,
    /// Where they are counted by address.
    pub addresses: &'static Addresses,
    /// A line for what becomes of each.
    pub access_log: AccessLog,
    /// What `wshd ctl record` asks for.
    pub recorder: Recorder,
}

impl Conns {
    /// Adds a connection, which the scoreboard counts already, to table and poll. An error, with the socket, if there
    /// is no room, or that cannot be watched.
    pub fn add(&self, mut conn: Conn) -> Result<u64, Socket> {
        let core = &mut *self.core.borrow_mut();
        conn.since = self.now().seconds();
        let id = core.table.add(conn).inspect_err(|_| {
            let most = core.table.len();
            log::warn!("a connection finds no room here: this worker has {most} already");
            self.presence.release();
        })?;
        let watched = core.table.get(id).map(|conn| self.poll.add_for(&conn.socket, id, conn.watched));
        if let Some(Err(error)) = watched
            && let Some(conn) = core.table.remove(id)
        {
            log::error!("a connection was refused: cannot watch its socket: {error}");
            self.presence.release();
            return Err(conn.socket);
        }
        self.access_log.begin(id, self.now());
        Ok(id)
    }

    /// Forgets a connection and closes its socket.
    pub fn remove(&self, id: u64) {
        self.log(id, |log, record, now| log.answer(id, record, now, None));
        self.release_memory(id);
        let removed = {
            let core = &mut *self.core.borrow_mut();
            if let Some(record) = core.table.record(id) {
                let ip = record.peer.address().map(|peer| peer.ip());
                self.addresses.settle(self.presence.pool, record.mark, ip);
            }
            core.end_subscriptions(id);
            core.table.remove(id)
        };
        if let Some(conn) = removed {
            let counted = counted_of(&conn);
            drop(conn);
            self.count_all_queues(counted.own, 0);
            self.presence.release();
            // It may have been the last one that this worker has waited for.
            self.life.request_chores();
        }
    }

    /// The time of the event loop's present turn.
    #[inline]
    pub fn now(&self) -> Instant {
        self.life.turn().instant()
    }

    pub fn len(&self) -> u32 {
        self.core.borrow().table.len()
    }

    pub fn ids(&self) -> Vec<u64> {
        self.core.borrow().table.ids()
    }

    /// Runs with an open connection and its handler's index; must not call the handler.
    pub fn with_open<R>(&self, id: u64, f: impl FnOnce(u16, &mut Open) -> R) -> Option<R> {
        let core = &mut *self.core.borrow_mut();
        let conn = core.table.get(id)?;
        let handler = conn.handler;
        conn.open().map(|open| f(handler, open))
    }

    /// Runs with the request head of a connection, as long as it is read.
    pub fn with_head<R>(&self, id: u64, f: impl FnOnce(&mut PartialHead) -> R) -> Option<R> {
        self.core.borrow_mut().table.get(id).and_then(Conn::head).map(f)
    }

    pub fn is_unfragmented(&self, id: u64) -> bool {
        self.with_open(id, |_, open| open.proto.is_between_sends()) == Some(true)
    }

    /// The channel to the thread of a blocking connection.
    pub fn channel(&self, id: u64) -> Option<Arc<ThreadChannel>> {
        self.with_open(id, |_, open| open.channel().cloned()).flatten()
    }

    pub fn edit_record<R>(&self, id: u64, edit: impl FnOnce(&mut Record) -> R) -> Option<R> {
        let core = &mut *self.core.borrow_mut();
        let record = core.table.record(id)?;
        let result = edit(record);
        record.seal();
        Some(result)
    }

    pub fn peer(&self, id: u64) -> Option<SocketAddr> {
        self.core.borrow_mut().table.record(id).and_then(|record| record.peer.address())
    }

    /// Bytes that the handler of a connection has been given in messages.
    pub fn delivered(&self, id: u64) -> u64 {
        self.with_open(id, |_, open| open.counted.counters().bytes_in.get()).unwrap_or(0)
    }

    /// What a handler is served with, by its number; for none, what those without a table are.
    #[inline]
    pub fn settings(&self, handler: u16) -> &HandlerSettings {
        self.handlers.get(usize::from(handler)).unwrap_or(&self.config.handler)
    }

    /// How long a send queue may wait without the peer taking anything.
    pub fn stall_time(&self, handler: u16) -> Duration {
        let limits = &self.settings(handler).limits;
        match limits.ping_interval {
            Duration::ZERO => STALL,
            interval => interval.saturating_add(limits.pong_deadline),
        }
    }

    /// Sees to it that the connection's next deadline is in the timers.
    pub fn arm(&self, id: u64) {
        let core = &mut *self.core.borrow_mut();
        if let Some(conn) = core.table.get(id) {
            self.arm_conn(id, conn, &mut core.timers);
        }
    }

    #[inline]
    pub fn arm_conn(&self, id: u64, conn: &mut Conn, timers: &mut Timers) {
        if !conn.is_armed() {
            self.arm_anew(id, conn, timers);
        }
    }

    fn arm_anew(&self, id: u64, conn: &mut Conn, timers: &mut Timers) {
        let deadline = conn.next_deadline(&self.settings(conn.handler).limits, self.stall_time(conn.handler));
        let at = Tick::from(deadline.max(self.now() + SOON));
        if at < conn.timer_at {
            conn.timer_at = at;
            timers.enter(at, id as u32);
        }
        if let Some(open) = conn.open() {
            open.armed = true;
        }
    }

    /// The connection that a timer has come up for, unless the entry was stale.
    pub fn come_up(&self, at: Tick, slot: u32) -> Option<u64> {
        let core = &mut *self.core.borrow_mut();
        let id = core.table.id_of(slot)?;
        core.table.get(id).filter(|conn| conn.timer_at == at)?.timer_at = Tick::NEVER;
        Some(id)
    }

    /// For the access log: what is said about a connection that has a record.
    #[inline]
    pub fn log(&self, id: u64, write: impl FnOnce(&AccessLog, &Record, Instant)) {
        if self.access_log.is_on()
            && let Some(record) = self.core.borrow_mut().table.record(id)
        {
            write(&self.access_log, record, self.now());
        }
    }
}
