//! What the event loop leaves for the thread of a blocking connection, and how
//! that thread waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::ws_handler::raw::ws_bytes;

use crate::clock;
use crate::ffi::host::{ABSENT, Task, terminated};
use crate::time::Instant;
use crate::worker::commands::queue::{CommandQueue, ThreadCommand};

/// Payload bytes that wait here before the loop stops reading from the peer.
const HIGH: usize = 1024 * 1024;
/// The loop reads again when no more than this waits.
const LOW: usize = 256 * 1024;
/// What an item costs beyond its payload, so that a flood of empty messages counts.
const EVENT_COST: usize = 64;

/// One thing for the thread to take, in order.
pub enum ThreadEvent {
    /// A message or fragment; the payload is followed by a NUL.
    Message {
        kind: u32,
        flags: u32,
        payload: Vec<u8>,
    },
    /// A Pong; the payload is followed by a NUL.
    Pong {
        payload: Vec<u8>,
        rtt: Duration,
    },
    Task(Task),
    /// The peer began to close and waits for the answer.
    PeerClose(PeerClose),
}

impl ThreadEvent {
    fn cost(&self) -> usize {
        match self {
            ThreadEvent::Message { payload, .. } | ThreadEvent::Pong { payload, .. } => {
                payload.len() + EVENT_COST
            }
            ThreadEvent::Task(_) | ThreadEvent::PeerClose(_) => 0,
        }
    }

    /// Whether it counts after our own Close.
    fn outlives_close(&self) -> bool {
        matches!(self, ThreadEvent::Task(_) | ThreadEvent::PeerClose(_))
    }

    fn task(&self) -> Option<Task> {
        if let ThreadEvent::Task(task) = self { Some(*task) } else { None }
    }
}

#[derive(Clone, Debug)]
pub struct PeerClose {
    /// Its code, 1005 without one.
    pub code: u16,
    /// Its reason, followed by a NUL.
    pub reason: Vec<u8>,
}

impl PeerClose {
    /// Code and reason as handlers see them, while this is neither changed nor moved out of its heap.
    pub fn lend(&self) -> (u16, ws_bytes) {
        (self.code, if self.reason.len() > 1 { terminated(&self.reason) } else { ABSENT })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// `WS_BY_...`
    pub by: u32,
    /// The code that the side gave.
    pub code: u16,
}

/// What the handshake has agreed on.
pub struct Agreed {
    pub protocol: Option<Vec<u8>>,
    /// See [`Record::deflate`](crate::worker::conn::record::Record::deflate).
    pub deflate: u32,
}

#[derive(Default)]
struct ChannelState {
    /// The handshake is done. Taken by the thread when it begins.
    agreed: Option<Agreed>,
    events: VecDeque<ThreadEvent>,
    bytes: usize,
    /// The loop has stopped reading and wants to know when there is room.
    throttled: bool,
    /// The peer's answer to our Close.
    answer: Option<PeerClose>,
    /// A Close was sent: messages no longer count.
    closing: bool,
    /// Nothing more comes from the peer; whether the loop wants a command once all is taken.
    input_ended: Option<bool>,
    /// The server wants the connection to end, and the thread has not been told.
    draining: bool,
    /// It has.
    drained: bool,
    /// The thread waits for the next thing.
    waiting: bool,
    hold: Hold,
    lost: bool,
    ended: Option<Ended>,
    /// Attached by the handler, not to the record yet.
    state: Option<Vec<u8>>,
}

/// What the thread has of the connection.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Hold {
    #[default]
    Held,
    /// It is to release the connection once there is nothing left to take.
    Leaving,
    /// It has: the connection goes on in another process.
    Moved,
    /// Its handler has returned: it takes nothing more that could move, and ends the connection.
    Finished,
}

/// What the loop and the thread of one blocking connection exchange.
pub struct ThreadChannel {
    conn: u64,
    /// Is told whether the thread has something to do.
    commands: &'static CommandQueue,
    /// The handler can go on in another process.
    resumable: bool,
    state: Mutex<ChannelState>,
    changed: Condvar,
}

/// What a waiting thread wakes up for.
pub enum Woken {
    /// The next item; `room` if the loop wants to be told that it can read again.
    Event(ThreadEvent, bool),
    /// The connection is closing or gone.
    Closing,
    /// The server wants the connection to end; said once.
    Draining,
    /// The connection goes on in another process: nothing can be sent to it any more.
    Moved,
    TimedOut,
}

impl ThreadChannel {
    pub fn new(conn: u64, commands: &'static CommandQueue, resumable: bool) -> Arc<Self> {
        let (state, changed) = Default::default();
        Arc::new(ThreadChannel { conn, commands, resumable, state, changed })
    }

    // ------------------------------------------------------ called by the loop

    /// Whether the connection can go on in another process when its thread has nothing to do.
    pub fn is_resumable(&self) -> bool {
        self.resumable
    }

    /// The thread is to release the connection once it has taken all that is here; with `at_once` only if it
    /// waits for more. Returns whether it will.
    pub fn leave(&self, at_once: bool) -> bool {
        self.change(|state| {
            if state.hold == Hold::Held && (state.waiting || !at_once) {
                state.hold = Hold::Leaving;
            }
            matches!(state.hold, Hold::Leaving | Hold::Moved)
        })
    }

    /// The handshake is done: the thread can begin.
    pub fn open(&self, agreed: Agreed) {
        self.change(|state| state.agreed = Some(agreed));
    }

    /// Leaves an item; false if the loop should stop reading.
    pub fn put(&self, event: ThreadEvent) -> bool {
        self.change(|state| {
            self.commands.set_idle(self.conn, false);
            state.bytes += event.cost();
            state.events.push_back(event);
            state.throttled |= state.bytes > HIGH;
            !state.throttled
        })
    }

    pub fn answered(&self, close: PeerClose) {
        self.change(|state| state.answer = Some(close));
    }

    /// The connection has ended without (the rest of) a closing handshake.
    pub fn lost(&self) {
        self.change(|state| state.lost = true);
    }

    /// The server wants the connection to end soon.
    pub fn drain(&self) {
        self.change(|state| state.draining = true);
    }

    /// A Close was sent: there are no more messages. Of one that is lost those that came before are taken still.
    pub fn closing(&self) {
        self.change(|state| state.closing |= !state.lost);
    }

    /// Nothing more comes from the peer: once the thread has taken all that is here, it says so to the loop, and waits.
    pub fn end_input(&self) {
        self.change(|state| state.input_ended = state.input_ended.or(Some(true)));
    }

    /// The connection is gone. Returns the functions that were posted and not called.
    pub fn end(&self, ended: Ended) -> Vec<Task> {
        self.change(|state| {
            state.ended = Some(ended);
            let tasks = state.events.iter().filter_map(ThreadEvent::task).collect();
            state.events.retain(|event| event.task().is_none());
            tasks
        })
    }

    /// The state that the thread has attached since.
    pub fn take_state(&self) -> Option<Vec<u8>> {
        self.lock().state.take()
    }

    /// Whether the thread has attached a state that is still to be taken.
    pub fn has_state(&self) -> bool {
        self.lock().state.is_some()
    }

    /// Something outside changed that the thread may wait for: the send queue has drained.
    pub fn nudge(&self) {
        self.change(|_| ());
    }

    /// Leaves a posted function; false if the connection is gone.
    pub fn post(&self, task: Task) -> bool {
        self.change(|state| {
            let is_here = state.ended.is_none() && state.hold != Hold::Moved;
            if is_here {
                self.commands.set_idle(self.conn, false);
                state.events.push_back(ThreadEvent::Task(task));
            }
            is_here
        })
    }

    // ------------------------------------------------ called by its own thread

    /// Waits until the connection is open; `None` if it ended before.
    pub fn wait_open(&self) -> Option<Agreed> {
        self.wait_while(|state| state.agreed.is_none() && state.ended.is_none()).agreed.take()
    }

    /// Waits for the next thing, at most until `deadline`.
    pub fn wait(&self, deadline: Option<Instant>) -> Woken {
        let mut state = self.lock();
        loop {
            let left = deadline.map(clock::sleep_until);
            let is_late = left.is_some_and(|left| left.is_zero());
            let next = self.next(&mut state).or_else(|| is_late.then_some(Woken::TimedOut));
            state.waiting = next.is_none();
            // Idle while the queue is empty (`put` clears it), and after the thread has released the connection.
            self.commands.set_idle(self.conn, state.waiting || matches!(next, Some(Woken::Moved)));
            if let Some(next) = next {
                return next;
            }
            state = match left {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn next(&self, state: &mut ChannelState) -> Option<Woken> {
        while let Some(event) = state.events.pop_front() {
            state.bytes -= event.cost();
            if state.closing && !event.outlives_close() {
                continue;
            }
            let room = state.throttled && state.bytes <= LOW;
            state.throttled &= !room;
            return Some(Woken::Event(event, room));
        }
        if state.closing || state.lost || state.ended.is_some() {
            return Some(Woken::Closing);
        }
        if state.input_ended == Some(true) {
            state.input_ended = Some(false);
            self.commands.give(ThreadCommand::CaughtUp(self.conn));
        }
        if state.draining {
            (state.draining, state.drained) = (false, true);
            return Some(Woken::Draining);
        }
        if state.hold == Hold::Leaving && state.input_ended.is_none() {
            state.hold = Hold::Moved;
            self.commands.at(self.conn).close();
        }
        (state.hold == Hold::Moved).then_some(Woken::Moved)
    }

    /// The handler has come to its end: the connection is closed, not moved. False if it was moved before.
    pub fn finish(&self) -> bool {
        let mut state = self.lock();
        let is_ours = state.hold != Hold::Moved;
        if is_ours {
            state.hold = Hold::Finished;
        }
        is_ours
    }

    /// The peer's answer to our Close, and whether the connection is over.
    pub fn closing_state(&self) -> (Option<PeerClose>, bool) {
        let state = self.lock();
        (state.answer.clone(), state.lost || state.ended.is_some())
    }

    /// Attaches a state; true if the loop is to be told, false if it has yet to take an earlier one.
    pub fn set_state(&self, state: &[u8]) -> bool {
        self.lock().state.replace(state.to_vec()).is_none()
    }

    /// Whether the thread was told that the server wants the connection to end.
    pub fn is_drained(&self) -> bool {
        self.lock().drained
    }

    /// Waits while the send queue is full and the connection is not gone.
    pub fn wait_writable(&self, is_full: impl Fn() -> bool) {
        drop(self.wait_while(|state| state.ended.is_none() && is_full()));
    }

    pub fn wait_ended(&self) -> Ended {
        let state = self.wait_while(|state| state.ended.is_none());
        state.ended.unwrap_or(Ended { by: ::ws_handler::raw::WS_BY_HOST, code: 1006 })
    }

    fn wait_while(&self, waits: impl Fn(&ChannelState) -> bool) -> MutexGuard<'_, ChannelState> {
        let wait = self.changed.wait_while(self.lock(), |state| waits(state));
        wait.unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut ChannelState) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_one();
        result
    }

    fn lock(&self) -> MutexGuard<'_, ChannelState> {
        // A panic while it is held leaves plain data that is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
