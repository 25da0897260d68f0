//! What reaches the event loop from other threads: commands about connections,
//! in one queue with one wake-up, and the few words about each connection that
//! those threads read to know whether a command still makes sense.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::ws_handler::raw::*;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::config::Sending;
use crate::ffi::host::{OwnedBytes, Payload, Reply, Task};
use crate::proto::ws::utf8;
use crate::worker::base::memory;
use crate::worker::base::metrics::Metrics;
use crate::worker::commands::watermarks::Watermarks;
use crate::worker::conn::handshake::{Handshake, close_body};

/// Functions that may wait for one connection, see `ws_post`.
const MAX_POSTS: u32 = 1024;

/// A payload on its way to the loop.
pub enum Outbound {
    /// A copy.
    Copied(Vec<u8>),
    /// The handler's own bytes.
    Owned(OwnedBytes),
}

impl Outbound {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Outbound::Copied(bytes) => bytes,
            Outbound::Owned(bytes) => bytes.as_ref(),
        }
    }
}

/// What a thread wants of the loop. Connections are named by id.
pub enum Command {
    /// A handshake has its verdict.
    Verdict(u64),
    /// Send a message or fragment.
    Send { conn: u64, kind: u32, outbound: Outbound, flags: u32 },
    /// Send a Ping.
    Ping(u64, Vec<u8>),
    /// Stop or resume reading on behalf of the handler.
    Pause(u64, bool),
    /// Call a function on the connection's thread.
    Post(u64, Task),
    /// Begin or answer the closing handshake.
    Close { conn: u64, code: Option<u16>, reason: Vec<u8> },
    /// Drop the connection.
    Abort(u64),
    /// Attach state.
    State(u64, Vec<u8>),
    /// A blocking thread has let go of its connection, with this state: it can go on in another process.
    Detached(u64, Vec<u8>),
    /// A blocking thread has taken so many messages that reading can go on.
    Room(u64),
    /// A blocking thread is over.
    ThreadEnded,
}

/// What other threads may know of a slot of the connection table.
#[derive(Default)]
struct SlotState {
    /// Upper half of the id of the connection that can be sent to; 0 if there is none.
    generation: AtomicU32,
    /// Bytes in its send queue and on the way there.
    queued: AtomicU32,
    /// Functions posted and not called yet.
    posts: AtomicU32,
    /// Commands without a payload that are on the way.
    pending: AtomicU32,
    /// Upper half of the id of the connection whose blocking thread has nothing to do; 0 if it has.
    idle: AtomicU32,
    /// Type of the fragmented message that is being sent, or 0.
    fragments: AtomicU32,
    /// Somebody was told WS_E_FULL and waits for on_writable.
    full: AtomicBool,
    /// Index of its handler in the routes.
    handler: AtomicU16,
}

/// The meeting point of a worker's threads.
pub struct CommandQueue {
    slots: &'static [SlotState],
    commands: Mutex<Vec<Command>>,
    awake: AtomicBool,
    wakeup: EventFd,
    handshakes: Mutex<HashMap<u64, Arc<Handshake>>>,
    /// When send queues are full.
    pub watermarks: Watermarks,
    metrics: &'static Metrics,
}

impl CommandQueue {
    /// Room for `connections`, whose send queues are full as configured.
    pub fn new(connections: u32, sending: Sending, metrics: &'static Metrics) -> io::Result<Self> {
        Ok(CommandQueue {
            slots: memory::guard_all((0..connections).map(|_| SlotState::default()))?,
            commands: Mutex::default(),
            awake: AtomicBool::new(false),
            wakeup: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            handshakes: Mutex::default(),
            watermarks: Watermarks::new(sending),
            metrics,
        })
    }

    // ---------------------------------------------------- called by any thread

    /// Leaves a command and wakes the loop.
    pub fn give(&self, command: Command) {
        lock(&self.commands).push(command);
        if !self.awake.swap(true, Ordering::AcqRel) {
            let _ = self.wakeup.write(1);
        }
    }

    /// `ws_send` and its kin from a thread that is not the loop.
    pub fn send(&self, conn: u64, kind: u32, payload: Payload<'_>, flags: u32) -> i32 {
        let Some(slot) = self.open(conn) else { return WS_E_GONE };
        let bytes = match &payload {
            Payload::Borrowed(bytes) => bytes,
            Payload::Owned(bytes) => bytes.as_ref(),
        };
        let running = slot.fragments.load(Ordering::Relaxed);
        let valid = match (running, kind) {
            // The loop checks fragmented text, whose pieces may be cut within a character.
            (0, WS_TEXT) => flags & WS_MORE != 0 || utf8::is_valid(bytes),
            (0, WS_BINARY) => true,
            (running, kind) => running == kind,
        };
        if !valid {
            return WS_E_INVALID;
        }
        if self.refuses(slot) {
            return WS_E_FULL;
        }
        let outbound = match payload {
            Payload::Borrowed(bytes) => Outbound::Copied(bytes.to_vec()),
            Payload::Owned(bytes) => Outbound::Owned(bytes),
        };
        slot.queued.fetch_add(clamp(cost(outbound.bytes())), Ordering::Relaxed);
        slot.fragments.store(if flags & WS_MORE != 0 { kind } else { 0 }, Ordering::Relaxed);
        self.give(Command::Send { conn, kind, outbound, flags });
        WS_OK
    }

    /// `ws_ping`.
    pub fn ping(&self, conn: u64, payload: &[u8]) -> i32 {
        let Some(slot) = self.open(conn) else { return WS_E_GONE };
        if payload.len() > 125 {
            return WS_E_INVALID;
        }
        if self.refuses(slot) {
            return WS_E_FULL;
        }
        slot.queued.fetch_add(clamp(cost(payload)), Ordering::Relaxed);
        self.give(Command::Ping(conn, payload.to_vec()));
        WS_OK
    }

    /// `ws_buffered`.
    pub fn buffered(&self, conn: u64) -> usize {
        self.open(conn).map_or(0, |slot| slot.queued.load(Ordering::Relaxed) as usize)
    }

    /// Commands without a payload: given if the connection is there. The loop confirms them with
    /// [`completed`](Self::obeyed).
    pub fn if_open(&self, conn: u64, command: Command) -> i32 {
        let Some(slot) = self.open(conn) else { return WS_E_GONE };
        slot.pending.fetch_add(1, Ordering::Relaxed);
        self.give(command);
        WS_OK
    }

    /// `ws_close`.
    pub fn close(&self, conn: u64, code: u32, reason: &[u8]) -> i32 {
        let Some(code) = close_body(code, reason) else { return WS_E_INVALID };
        self.if_open(conn, Command::Close { conn, code, reason: reason.to_vec() })
    }

    /// `ws_post`.
    pub fn post(&self, conn: u64, task: Task) -> i32 {
        let Some(slot) = self.open(conn) else { return WS_E_GONE };
        if slot.posts.fetch_add(1, Ordering::Relaxed) >= MAX_POSTS {
            slot.posts.fetch_sub(1, Ordering::Relaxed);
            return WS_E_LIMIT;
        }
        self.give(Command::Post(conn, task));
        WS_OK
    }

    /// A posted function has been called.
    pub fn uncount_post(&self, conn: u64) {
        if let Some(slot) = self.open(conn) {
            slot.posts.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether nothing is in the send queue, nor on the way to the loop: the connection is as its record says.
    /// Async-signal-safe.
    pub fn is_quiet(&self, conn: u64) -> bool {
        let is_zero = |count: &AtomicU32| count.load(Ordering::Relaxed) == 0;
        self.open(conn).is_none_or(|slot| is_zero(&slot.queued) && is_zero(&slot.pending))
    }

    /// The blocking thread of a connection has nothing to do, or something.
    pub fn set_idle(&self, conn: u64, idle: bool) {
        let Some(slot) = self.slots.get(conn as u32 as usize) else { return };
        let (zero, generation) = (0, (conn >> 32) as u32);
        let (before, after) = if idle { (zero, generation) } else { (generation, zero) };
        // It changes nothing for a thread whose connection has gone, and another has taken the place.
        let _ = slot.idle.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether the blocking thread of a connection has nothing to do. Async-signal-safe.
    pub fn is_idle(&self, conn: u64) -> bool {
        let slot = self.slots.get(conn as u32 as usize);
        slot.is_some_and(|slot| slot.idle.load(Ordering::Acquire) == (conn >> 32) as u32)
    }

    /// A handler's wish about a handshake that this thread is not in.
    pub fn reply(&self, handshake: u64, reply: Reply<'_>) -> i32 {
        let Some(known) = lock(&self.handshakes).get(&handshake).cloned() else { return WS_E_GONE };
        let result = known.reply_later(reply);
        if known.has_verdict() {
            self.give(Command::Verdict(handshake));
        }
        result
    }

    /// Whether the send queue is above its high mark; if so, on_writable is owed.
    pub fn is_queue_full(&self, conn: u64) -> bool {
        self.open(conn).is_some_and(|slot| self.is_full(slot))
    }

    /// The same when something is to be sent, which then is not.
    pub fn refuses_to_send(&self, conn: u64) -> bool {
        self.open(conn).is_some_and(|slot| self.refuses(slot))
    }

    fn refuses(&self, slot: &SlotState) -> bool {
        let full = self.is_full(slot);
        if full {
            self.metrics.of(slot.handler.load(Ordering::Relaxed)).refused.add_shared(1);
        }
        full
    }

    fn is_full(&self, slot: &SlotState) -> bool {
        let full = slot.queued.load(Ordering::Relaxed) as usize >= self.watermarks.high();
        if full {
            slot.full.store(true, Ordering::Release);
        }
        full
    }

    fn open(&self, conn: u64) -> Option<&SlotState> {
        let slot = self.slots.get(conn as u32 as usize)?;
        (slot.generation.load(Ordering::Acquire) == (conn >> 32) as u32).then_some(slot)
    }

    // ------------------------------------------------------ called by the loop

    /// Becomes readable, by an edge, when there are commands. It is not read: its counter takes more rings than there
    /// will ever be.
    pub fn wakeup(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }

    /// All commands so far.
    pub fn take(&self) -> Vec<Command> {
        // In this order: a command given in between rings again. The other way round it could be missed here while
        // `awake` is still set, and nobody would ring.
        self.awake.swap(false, Ordering::AcqRel);
        std::mem::take(&mut *lock(&self.commands))
    }

    /// The connection can be sent to from now on.
    pub fn set_open(&self, conn: u64, handler: u16) {
        let Some(slot) = self.slots.get(conn as u32 as usize) else { return };
        slot.queued.store(0, Ordering::Relaxed);
        slot.posts.store(0, Ordering::Relaxed);
        slot.pending.store(0, Ordering::Relaxed);
        slot.idle.store(0, Ordering::Relaxed);
        slot.fragments.store(0, Ordering::Relaxed);
        slot.full.store(false, Ordering::Relaxed);
        slot.handler.store(handler, Ordering::Relaxed);
        slot.generation.store((conn >> 32) as u32, Ordering::Release);
    }

    /// A command that [`if_open`](Self::if_open) gave was carried out.
    pub fn completed(&self, conn: u64) {
        if let Some(slot) = self.open(conn) {
            slot.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Nothing can be sent to the connection any more. Also called by its blocking thread, when that lets go of it.
    pub fn set_gone(&self, conn: u64) {
        if let Some(slot) = self.open(conn) {
            slot.generation.store(0, Ordering::Release);
        }
    }

    /// Bytes came into the send queue, or left it.
    pub fn count_queued(&self, conn: u64, before: usize, after: usize) {
        if let Some(slot) = self.open(conn) {
            slot.queued.fetch_add(clamp(after).wrapping_sub(clamp(before)), Ordering::Relaxed);
        }
    }

    /// The loop sends a fragment of this type, or (0) the end of a message.
    pub fn set_fragments(&self, conn: u64, kind: u32) {
        if let Some(slot) = self.open(conn) {
            slot.fragments.store(kind, Ordering::Relaxed);
        }
    }

    /// Whether on_writable is owed; asked once the queue has drained.
    pub fn take_full(&self, conn: u64) -> bool {
        self.open(conn)
            .is_some_and(|slot| slot.full.load(Ordering::Relaxed) && slot.full.swap(false, Ordering::AcqRel))
    }

    /// Makes a handshake known to all threads, before the handler hears of it.
    pub fn add_handshake(&self, handshake: &Arc<Handshake>) {
        lock(&self.handshakes).insert(handshake.conn, Arc::clone(handshake));
    }

    /// Forgets a handshake.
    pub fn remove_handshake(&self, conn: u64) {
        lock(&self.handshakes).remove(&conn);
    }
}

/// What a message on its way to the loop counts for; empty ones take memory, too.
pub fn cost(payload: &[u8]) -> usize {
    payload.len() + size_of::<Command>()
}

fn clamp(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves both collections whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

    use super::*;
    use crate::fleet::{counters::Counters, routes::Routes, scoreboard::Place};

    fn metrics() -> Metrics {
        let counters = Counters::create(1, 1, 0).unwrap();
        counters.enter_place(Place::default()).unwrap();
        Metrics::new(counters, &Routes::default(), (0, Place::default()), 1, false).unwrap()
    }

    #[test]
    fn no_command_waits_for_a_bell_that_nobody_rings() {
        const COMMANDS: u64 = 200_000;
        let commands =
            CommandQueue::new(1, Sending { high: 1, low: 1, total: 0 }, Box::leak(Box::new(metrics())))
                .unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..COMMANDS).for_each(|conn| commands.give(Command::Verdict(conn))));
            let poll = Epoll::new(EpollCreateFlags::empty()).unwrap();
            poll.add(commands.wakeup(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))
                .unwrap();
            let mut taken = 0;
            while taken < COMMANDS {
                let rings = poll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(5000_u16)).unwrap();
                assert_eq!(rings, 1, "{} commands wait", COMMANDS - taken);
                taken += commands.take().len() as u64;
            }
        });
    }
}
