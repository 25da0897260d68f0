//! What reaches the event loop from other threads: commands, in one queue with one wake-up, and the slots that those
//! threads enter to leave one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};

use ::ws_handler::raw::*;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::auth;
use crate::config::Sending;
use crate::ffi::host::{Payload, Task};
use crate::proto::ws::frame::MAX_CONTROL;
use crate::proto::ws::utf8;
use crate::worker::base::memory;
use crate::worker::base::metrics::{Metrics, NO_HANDLER};
use crate::worker::commands::slot::{ConnSlot, EntryQueue, Gate, Lease, Refused};
use crate::worker::commands::watermarks::Watermarks;

/// What a thread wants of the loop, about a connection that is named by id.
pub enum ThreadCommand {
    /// Counted in the connection's slot until it is carried out.
    Counted(u64, Counted),
    HandshakeEnded(u64),
    /// A blocking thread has released its connection, with this state: it can go on in another process.
    Detached(u64, Vec<u8>),
    /// A blocking thread has taken all messages after which nothing comes.
    CaughtUp(u64),
    /// A blocking thread has taken so many messages that reading can go on.
    Room(u64),
    ThreadEnded,
    /// The password in a request was compared.
    Authenticated(u64, auth::Outcome),
    /// There are requests for the bus.
    Topics,
    /// Functions that are about no connection were posted.
    Posted,
}

/// A command that was answered with WS_OK: it is carried out, or its connection ends and on_close tells.
pub enum Counted {
    /// Send a message or fragment.
    Send {
        kind: u32,
        payload: Payload<'static>,
        flags: u32,
    },
    Ping(Vec<u8>),
    /// Send octets past the protocol.
    Raw(Vec<u8>),
    /// Stop or resume reading, as the slot says.
    Pause,
    /// Call a function on the connection's thread.
    Post(Task),
    /// Begin or answer the closing handshake.
    Close {
        code: Option<u16>,
        reason: Vec<u8>,
    },
    Abort,
    /// Attach the state that its thread has left.
    State,
    /// Attach the subscriptions that it has now.
    Topics,
}

/// What other threads know of a connection.
struct Known {
    slot: ConnSlot,
    /// Upper half of the id of the connection whose blocking thread has nothing to do; 0 if it has.
    idle: AtomicU32,
    /// Index of its handler in the routes; of the one before for a moment, which matters to a counter only.
    handler: AtomicU16,
}

/// The meeting point of a worker's threads.
pub struct CommandQueue {
    connections: &'static [Known],
    /// What is known of an id that no connection can have: nobody enters.
    nobody: Known,
    waiting: EntryQueue<ThreadCommand>,
    awake: AtomicBool,
    wakeup: EventFd,
    /// When send queues are full.
    pub watermarks: Watermarks,
    metrics: &'static Metrics,
}

impl CommandQueue {
    /// Room for `connections`, whose send queues are full as configured.
    pub fn new(connections: u32, sending: Sending, metrics: &'static Metrics) -> io::Result<Self> {
        let unknown =
            || Known { slot: ConnSlot::new(), idle: AtomicU32::new(0), handler: AtomicU16::new(NO_HANDLER) };
        Ok(CommandQueue {
            connections: memory::guard_all((0..connections).map(|_| unknown()))?,
            nobody: unknown(),
            waiting: EntryQueue::new(),
            awake: AtomicBool::new(false),
            wakeup: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            watermarks: Watermarks::new(sending),
            metrics,
        })
    }

    // ---------------------------------------------------- called by any thread

    /// Leaves a command that is not counted, and wakes the loop.
    pub fn give(&self, command: ThreadCommand) {
        self.waiting.push(command);
        self.wake();
    }

    fn wake(&self) {
        if !self.awake.swap(true, Ordering::AcqRel) {
            let _ = self.wakeup.write(1);
        }
    }

    /// Leaves a command if the connection is open and `admit` lets it pass. Results as in `ws_handler.h`.
    fn enter(
        &self,
        conn: u64,
        admit: impl Fn(Gate) -> Result<Gate, Refused>,
        bytes: usize,
        counted: Counted,
    ) -> i32 {
        match self.try_enter(conn, admit, bytes, counted) {
            Ok(()) => WS_OK,
            // The command is dropped here, outside the lock: that may call the handler.
            Err((refused, _)) => self.refuse(conn, refused),
        }
    }

    /// The same; a command that is refused is given back.
    fn try_enter(
        &self,
        conn: u64,
        admit: impl Fn(Gate) -> Result<Gate, Refused>,
        bytes: usize,
        counted: Counted,
    ) -> Result<(), (Refused, ThreadCommand)> {
        self.waiting.enter(self.at(conn), admit, bytes, ThreadCommand::Counted(conn, counted))?;
        self.wake();
        Ok(())
    }

    /// `ws_send` and its kin from a thread that is not the loop. If the send queue is full the payload is given back.
    pub fn send<'a>(
        &self,
        conn: u64,
        kind: u32,
        payload: Payload<'a>,
        flags: u32,
    ) -> Result<i32, Payload<'a>> {
        let bytes = payload.bytes();
        if flags & !(WS_MORE | WS_UNCOMPRESSED) != 0 {
            return Ok(WS_E_INVALID);
        }
        let more = flags & WS_MORE != 0;
        // The loop checks fragmented text, whose pieces may be cut within a character.
        let may_begin = kind == WS_BINARY || kind == WS_TEXT && (more || utf8::is_valid(bytes));
        let admit = |gate: Gate| match gate.fragments() {
            0 if !may_begin => Err(Refused::Invalid),
            running if running != 0 && running != kind => Err(Refused::Invalid),
            _ if self.is_queue_full(conn) => Err(Refused::Full),
            _ => Ok(gate.with_fragments(if more { kind } else { 0 })),
        };
        // Before the payload is copied.
        match self.would_admit(conn, admit) {
            Ok(_) => {}
            Err(Refused::Full) => return Err(payload),
            Err(refused) => return Ok(self.refuse(conn, refused)),
        }
        let cost = cost(bytes);
        let payload = payload.into_owned();
        match self.try_enter(conn, admit, cost, Counted::Send { kind, payload, flags }) {
            Ok(()) => Ok(WS_OK),
            Err((Refused::Full, ThreadCommand::Counted(_, Counted::Send { payload, .. }))) => Err(payload),
            Err((refused, _)) => Ok(self.refuse(conn, refused)),
        }
    }

    fn would_admit(&self, conn: u64, admit: impl Fn(Gate) -> Result<Gate, Refused>) -> Result<Gate, Refused> {
        let lease = self.at(conn);
        if lease.is_open() { admit(lease.gate()) } else { Err(Refused::Gone) }
    }

    /// The result of a call that is refused for this reason.
    pub fn refuse(&self, conn: u64, refused: Refused) -> i32 {
        match refused {
            Refused::Gone => WS_E_GONE,
            Refused::Full => {
                self.count_refused(conn);
                WS_E_FULL
            }
            Refused::Limit => WS_E_LIMIT,
            Refused::Invalid => WS_E_INVALID,
        }
    }

    pub fn ping(&self, conn: u64, payload: &[u8]) -> i32 {
        self.send_octets(conn, payload, MAX_CONTROL, Counted::Ping)
    }

    pub fn send_raw(&self, conn: u64, octets: &[u8]) -> i32 {
        self.send_octets(conn, octets, usize::MAX, Counted::Raw)
    }

    fn send_octets(&self, conn: u64, octets: &[u8], most: usize, counted: fn(Vec<u8>) -> Counted) -> i32 {
        let admit = |gate| match () {
            () if self.is_queue_full(conn) => Err(Refused::Full),
            () if octets.len() > most => Err(Refused::Invalid),
            () => Ok(gate),
        };
        // Before they are copied.
        match self.would_admit(conn, admit) {
            Ok(_) => self.enter(conn, admit, cost(octets), counted(octets.to_vec())),
            Err(refused) => self.refuse(conn, refused),
        }
    }

    pub fn pause(&self, conn: u64, paused: bool) -> i32 {
        match self.at(conn).set_pause(paused) {
            Ok(true) => {
                self.give(ThreadCommand::Counted(conn, Counted::Pause));
                WS_OK
            }
            Ok(false) => WS_OK,
            Err(refused) => self.refuse(conn, refused),
        }
    }

    /// `ws_close` with a code that may be sent, or none: the last command of this connection.
    pub fn close(&self, conn: u64, code: Option<u16>, reason: &[u8]) -> i32 {
        self.enter(conn, |gate| Ok(gate.closed()), 0, Counted::Close { code, reason: reason.to_vec() })
    }

    /// `ws_abort`: the last command of this connection.
    pub fn abort(&self, conn: u64) -> i32 {
        self.enter(conn, |gate| Ok(gate.closed()), 0, Counted::Abort)
    }

    pub fn post(&self, conn: u64, task: Task) -> i32 {
        self.enter(conn, Gate::with_post, 0, Counted::Post(task))
    }

    /// Posts functions in their order; returns those that could not be.
    pub fn post_all(&self, conn: u64, tasks: Vec<Task>) -> Vec<Task> {
        tasks.into_iter().filter(|task| self.post(conn, *task) != WS_OK).collect()
    }

    /// The state that its thread has left, or the subscriptions that it has, are new.
    pub fn give_counted(&self, conn: u64, counted: Counted) -> i32 {
        self.enter(conn, Ok, 0, counted)
    }

    pub fn handler_of(&self, conn: u64) -> Option<u16> {
        self.at(conn).is_open().then(|| self.handler_named(conn))
    }

    /// The blocking thread of a connection has nothing to do, or something.
    pub fn set_idle(&self, conn: u64, idle: bool) {
        let (before, after) = if idle { (0, generation(conn)) } else { (generation(conn), 0) };
        // It changes nothing for a thread whose connection has gone, and another has taken the place.
        let _ = self.known(conn).idle.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether the blocking thread of a connection has nothing to do. Async-signal-safe.
    pub fn is_idle(&self, conn: u64) -> bool {
        self.known(conn).idle.load(Ordering::Acquire) == generation(conn)
    }

    /// Whether the send queue is above its high mark; if so, on_writable is pending.
    pub fn is_queue_full(&self, conn: u64) -> bool {
        self.at(conn).is_full(self.watermarks.high())
    }

    /// The same when something is to be sent, which then is not.
    pub fn refuses_to_send(&self, conn: u64) -> bool {
        let full = self.is_queue_full(conn);
        if full {
            self.count_refused(conn);
        }
        full
    }

    fn count_refused(&self, conn: u64) {
        self.metrics.of(self.handler_named(conn)).refused.add_shared(1);
    }

    /// The handler that this connection has, open or not yet, or one before it.
    pub fn handler_named(&self, conn: u64) -> u16 {
        self.known(conn).handler.load(Ordering::Relaxed)
    }

    fn known(&self, conn: u64) -> &Known {
        self.connections.get(conn as u32 as usize).unwrap_or(&self.nobody)
    }

    /// What it has of its slot.
    pub fn at(&self, conn: u64) -> Lease<'_> {
        self.known(conn).slot.of(generation(conn))
    }

    // ------------------------------------------------------ called by the loop

    /// Becomes readable, by an edge, when there are commands. It is not read: its counter takes more rings than there
    /// will ever be.
    pub fn wakeup(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }

    pub fn take(&self) -> Vec<ThreadCommand> {
        // In this order: a command given in between rings again. The other way round it could be missed here while
        // `awake` is still set, and nobody would ring.
        self.awake.swap(false, Ordering::AcqRel);
        self.waiting.take()
    }

    /// Messages that threads have sent on this connection and that have not been carried out.
    pub fn take_sends(&self, conn: u64) -> Vec<ThreadCommand> {
        self.waiting.extract(|command| command.is_send_of(conn))
    }

    /// The connection, not open yet, is this handler's.
    pub fn set_handler(&self, conn: u64, handler: u16) {
        self.known(conn).handler.store(handler, Ordering::Relaxed);
    }

    /// The connection can be sent to from now on.
    pub fn set_open(&self, conn: u64, handler: u16) {
        self.set_handler(conn, handler);
        self.known(conn).idle.store(0, Ordering::Relaxed);
        self.at(conn).open();
    }
}

impl ThreadCommand {
    /// Whether it sends a message or fragment on this connection.
    pub fn is_send_of(&self, conn: u64) -> bool {
        matches!(self, ThreadCommand::Counted(id, Counted::Send { .. }) if *id == conn)
    }
}

/// What a message on its way to the loop counts for; empty ones take memory, too.
pub fn cost(payload: &[u8]) -> usize {
    payload.len() + size_of::<ThreadCommand>()
}

fn generation(conn: u64) -> u32 {
    (conn >> 32) as u32
}

#[cfg(test)]
mod tests {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

    use super::*;
    use crate::fleet::memory::counters::Counters;
    use crate::fleet::memory::layout::{Audience, Memory};
    use crate::fleet::memory::scoreboard::Place;
    use crate::fleet::routes::Routes;

    fn metrics() -> Metrics {
        let memory = Memory::create();
        let counters = Counters::create(memory, 1, 1, 0).unwrap();
        memory.open(0, &Audience::ALL).unwrap();
        counters.enter_place(Place::default()).unwrap();
        Metrics::new(counters, &Routes::default(), (0, Place::default()), 1, false)
    }

    #[test]
    fn no_command_waits_for_a_bell_that_nobody_rings() {
        const COMMANDS: u64 = 200_000;
        let commands =
            CommandQueue::new(1, Sending { high: 1, low: 1, total: 0 }, Box::leak(Box::new(metrics())))
                .unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..COMMANDS).for_each(|conn| commands.give(ThreadCommand::HandshakeEnded(conn))));
            let poll = Epoll::new(EpollCreateFlags::empty()).unwrap();
            poll.add(commands.wakeup(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))
                .unwrap();
            let mut taken = 0;
            while taken < COMMANDS {
                let rings = poll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(60_000_u16)).unwrap();
                assert_eq!(rings, 1, "{} commands wait", COMMANDS - taken);
                taken += commands.take().len() as u64;
            }
        });
    }
}
