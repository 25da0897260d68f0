//! The threads of blocking handlers: one for each connection. A thread never
//! touches a socket; it takes what the loop left in its channel, and sends
//! commands to the loop. Threads that handlers have made send the same commands.

use std::cell::RefCell;
use std::ffi::c_void;
use std::io;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ::ws_handler::raw::*;

use crate::clock;
use crate::ffi::call::{self, Handler};
use crate::ffi::host::{ConnectionInfo, Host, Payload, Task, User};
use crate::ffi::place::{self, Callback, POISON, is_strict};
use crate::proto::ws::close;
use crate::time::Instant;
use crate::worker::base::metrics::{Metrics, Stopwatch};
use crate::worker::blocking::watchdog::CallClock;
use crate::worker::commands::queue::{CommandQueue, Counted, ThreadCommand};
use crate::worker::commands::slot::Refused;
use crate::worker::conn::channel::{PeerClose, ThreadChannel, ThreadEvent, Woken};
use crate::worker::conn::handler_timers::{HandlerTimers, OF_A_CONNECTION};
use crate::worker::conn::handshake::{Handshake, Registry};
use crate::worker::conn::info::{OwnedInfo, Stage};
use crate::worker::crash::report;

/// Stack of a thread; only what is used becomes memory. What C programs are used to.
const STACK: usize = 8 * 1024 * 1024;

/// What a thread knows of its connection.
struct Current {
    conn: u64,
    handler: Handler,
    channel: Arc<ThreadChannel>,
    info: OwnedInfo,
    /// The message that the handler holds, with its NUL.
    message: Vec<u8>,
    /// It goes on in another process.
    moved: bool,
    timers: HandlerTimers,
    clock: &'static CallClock,
    stopwatch: Stopwatch,
    user: Option<User>,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// The host of all threads but the event loop's: those of blocking connections, and those that handlers have made,
/// which have no connection of their own.
pub struct ThreadHost {
    commands: &'static CommandQueue,
    /// Handshakes that other threads may finish.
    handshakes: &'static Registry,
    metrics: &'static Metrics,
    /// Threads of blocking connections: at most `most`. The event loop counts them.
    running: AtomicU32,
    most: u32,
}

/// A connection that is given to a thread.
pub struct ThreadStart {
    pub conn: u64,
    /// Index of the handler in the routes.
    pub number: u16,
    pub handler: Handler,
    pub channel: Arc<ThreadChannel>,
    pub info: OwnedInfo,
    /// None if it is open already, elsewhere.
    pub handshake: Option<Arc<Handshake>>,
}

impl ThreadHost {
    pub fn new(
        commands: &'static CommandQueue,
        handshakes: &'static Registry,
        metrics: &'static Metrics,
        most: u32,
    ) -> Self {
        Self { commands, handshakes, metrics, running: AtomicU32::new(0), most }
    }

    pub fn running(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }

    pub fn is_full(&self) -> bool {
        self.running() >= self.most
    }

    pub fn new_channel(&self, conn: u64, handler: Handler) -> Arc<ThreadChannel> {
        ThreadChannel::new(conn, self.commands, handler.has_flag(WS_RESUMABLE))
    }

    /// Starts a thread. The loop says when it has [`ended`](Self::ended).
    pub fn start(&'static self, beginning: ThreadStart) -> io::Result<()> {
        let builder = std::thread::Builder::new().stack_size(STACK).name("handler".to_owned());
        builder.spawn(move || live(self, beginning))?;
        self.running.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub fn ended(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The life of a connection, on its thread.
fn live(host: &'static ThreadHost, beginning: ThreadStart) {
    let ThreadStart { conn, number, handler, channel, info, handshake } = beginning;
    host.commands.set_idle(conn, false);
    let clock = CallClock::begin(number, conn);
    let stopwatch = host.metrics.stopwatch(number);
    let current = Current {
        conn,
        handler,
        channel: Arc::clone(&channel),
        info,
        message: vec![0],
        moved: false,
        timers: HandlerTimers::default(),
        clock,
        stopwatch,
        user: None,
    };
    CURRENT.set(Some(current));
    place::set_host(host);
    let is_open = match handshake {
        None => true,
        Some(handshake) => {
            let result = stopwatch.time_of(handler, Callback::Handshake, || handler.handshake(conn));
            handshake.settle(result);
            host.commands.give(ThreadCommand::HandshakeEnded(conn));
            let agreed = clock.pausing(|| channel.wait_open());
            let keeps_request = handler.has_flag(WS_KEEP_REQUEST);
            agreed.map(|agreed| with(|current| current.info.open(agreed, keeps_request))).is_some()
        }
    };
    if is_open {
        // Attached in the handshake.
        if channel.has_state() {
            host.commands.give_counted(conn, Counted::State);
        }
        if !serve(host, handler, &channel, conn, stopwatch) {
            stopwatch.time_of(handler, Callback::Close, || handler.close(conn, WS_BY_MOVE, 0));
            let state = |current: &mut Current| current.info.record.terminated_state().map(<[u8]>::to_vec);
            let mut state = with(state).flatten().unwrap_or_default();
            state.pop(); // the NUL
            host.commands.give(ThreadCommand::Detached(conn, state));
        } else if handler.has(Callback::Close) {
            let ended = clock.pausing(|| channel.wait_ended());
            with(Current::update_closing_state);
            stopwatch.time(Callback::Close, || handler.close(conn, ended.by, u32::from(ended.code)));
        }
    }
    // Dropped where nothing of the thread is in use: the release of the handler's pointer may call the host.
    drop(CURRENT.take());
    clock.end();
    host.commands.give(ThreadCommand::ThreadEnded);
}

/// From open to the closing handshake; false if the connection goes on in another process.
fn serve(
    host: &ThreadHost,
    handler: Handler,
    channel: &ThreadChannel,
    conn: u64,
    stopwatch: Stopwatch,
) -> bool {
    let opened = stopwatch.time_of(handler, Callback::Open, || handler.open(conn));
    let result = match opened {
        0.. => {
            let result = stopwatch.time(Callback::Transfer, || handler.transfer(conn));
            place::note_result(Callback::Transfer, conn, result, "closed with 1011");
            result
        }
        _ => {
            place::note_result(Callback::Open, conn, opened, "closed with 1011");
            opened
        }
    };
    if !channel.finish() {
        return false;
    }
    loop {
        match channel.wait(Some(clock::now())) {
            Woken::Event(ThreadEvent::Task(task), _) => host.run_task(conn, task),
            Woken::Event(ThreadEvent::PeerClose(close), _) => {
                host.answer_close(conn, close);
                break;
            }
            Woken::Event(..) | Woken::Draining => {}
            Woken::Closing | Woken::Moved | Woken::TimedOut => break,
        }
    }
    let code = match result {
        ..0 => 1011,
        _ if channel.is_drained() => 1012,
        _ => 1000,
    };
    // Counts only if nothing has closed the connection before.
    host.commands.close(conn, Some(code), b"");
    true
}

/// Runs with what this thread knows of its connection; must not call the handler.
fn with<R>(f: impl FnOnce(&mut Current) -> R) -> Option<R> {
    // None as well in a thread that is ending.
    CURRENT.try_with(|current| current.borrow_mut().as_mut().map(f)).ok().flatten()
}

/// The same, if the thread's connection is this one.
fn of<R>(conn: u64, f: impl FnOnce(&mut Current) -> R) -> Option<R> {
    with(|current| (current.conn == conn).then(|| f(current))).flatten()
}

/// Runs a function of the handler.
fn run_timed(conn: u64, task: Task) {
    match of(conn, |current| current.stopwatch) {
        Some(stopwatch) => stopwatch.time(Callback::Task, || task.run(conn)),
        None => task.run(conn),
    }
}

impl ThreadHost {
    /// The peer began to close: the handler chooses the answer.
    fn answer_close(&self, conn: u64, close: PeerClose) {
        let code = close.code;
        let Some((handler, stopwatch)) = of(conn, |current| {
            current.info.peer_close = Some(close);
            (current.handler, current.stopwatch)
        }) else {
            return;
        };
        let result = stopwatch.time_of(handler, Callback::Passive, || handler.passive(conn));
        place::note_result(Callback::Passive, conn, result, "answered with 1011");
        let code = if result < 0 { Some(1011) } else { (code != 1005).then_some(code) };
        // Counts only if the handler has not chosen another answer with ws_close().
        self.commands.close(conn, code, b"");
    }

    fn run_task(&self, conn: u64, task: Task) {
        self.commands.at(conn).end_post();
        run_timed(conn, task);
    }

    /// Calls the timers that have expired; returns when the next one does.
    fn run_timers(&self, conn: u64) -> Option<Instant> {
        let now = clock::now();
        while let Some(task) = of(conn, |current| current.timers.pop(now)).flatten() {
            run_timed(conn, task);
        }
        of(conn, |current| current.timers.next()).filter(|next| !next.is_never())
    }
}

impl Host for ThreadHost {
    fn look(&self, conn: u64, f: &mut dyn FnMut(&mut dyn ConnectionInfo)) {
        of(conn, |current| current.info.look(|info| f(info)));
    }

    fn receive(&self, conn: u64, timeout_ms: i64) -> Result<ws_message, i32> {
        let ours = of(conn, |current| (Arc::clone(&current.channel), current.clock));
        let (channel, clock) = ours.ok_or(WS_E_GONE)?;
        let end = u64::try_from(timeout_ms).ok().map(|ms| clock::now() + Duration::from_millis(ms));
        loop {
            let timer = self.run_timers(conn);
            let deadline = [end, timer].into_iter().flatten().min();
            match clock.pausing(|| channel.wait(deadline)) {
                Woken::Event(event, room) => {
                    if room {
                        self.commands.give(ThreadCommand::Room(conn));
                    }
                    match event {
                        ThreadEvent::Message { kind, flags, payload } => {
                            return of(conn, |current| {
                                if is_strict() {
                                    current.message.fill(POISON);
                                }
                                current.message = payload;
                                current.info.last_opcode = kind;
                                report::hold(kind, &current.message[..current.message.len() - 1]);
                                call::message(kind, flags, &current.message)
                            })
                            .ok_or(WS_E_GONE);
                        }
                        ThreadEvent::Pong { payload, rtt } => {
                            let ours = of(conn, |current| (current.handler, current.stopwatch));
                            if let Some((handler, stopwatch)) = ours {
                                stopwatch.time_of(handler, Callback::Pong, || {
                                    handler.pong(conn, &payload, rtt.as_nanos() as u64)
                                });
                            }
                        }
                        ThreadEvent::Task(task) => self.run_task(conn, task),
                        ThreadEvent::PeerClose(close) => {
                            self.answer_close(conn, close);
                            return Err(WS_CLOSED);
                        }
                    }
                }
                Woken::Draining => return Err(WS_E_DRAINING),
                Woken::Closing => {
                    of(conn, Current::update_closing_state);
                    return Err(WS_CLOSED);
                }
                // Once more for each further call.
                Woken::Moved => {
                    of(conn, |current| current.moved = true);
                    return Err(WS_CLOSED);
                }
                Woken::TimedOut if end.is_some_and(|end| clock::now() >= end) => return Err(WS_E_TIMEOUT),
                Woken::TimedOut => {}
            }
        }
    }

    fn send(&self, conn: u64, kind: u32, payload: Payload<'_>, flags: u32) -> i32 {
        let ours = of(conn, |current| (Arc::clone(&current.channel), current.clock));
        let mut payload = payload;
        let result = loop {
            // On its own connection's thread the call waits for room.
            if let Some((channel, clock)) = &ours
                && self.commands.is_queue_full(conn)
            {
                clock.pausing(|| channel.wait_writable(|| self.commands.is_queue_full(conn)));
            }
            match (self.commands.send(conn, kind, payload, flags), &ours) {
                (Ok(result), _) => break result,
                (Err(_), None) => break self.commands.refuse(conn, Refused::Full),
                // Another thread was quicker.
                (Err(given_back), Some(_)) => payload = given_back,
            }
        };
        self.handshakes.result(conn, result)
    }

    fn ping(&self, conn: u64, payload: &[u8]) -> i32 {
        self.handshakes.result(conn, self.commands.ping(conn, payload))
    }

    fn send_raw(&self, conn: u64, octets: &[u8]) -> i32 {
        match self.handshakes.get(conn) {
            Some(handshake) => handshake.add_octets(octets),
            None => self.commands.send_raw(conn, octets),
        }
    }

    fn buffered(&self, conn: u64) -> usize {
        self.commands.at(conn).buffered()
    }

    fn pause(&self, conn: u64, pause: bool) -> i32 {
        self.handshakes.result(conn, self.commands.pause(conn, pause))
    }

    fn set_timer(&self, conn: u64, delay_ms: u64, period_ms: u64, task: Task) -> i64 {
        let set = |current: &mut Current| {
            current.timers.set(OF_A_CONNECTION, clock::now(), delay_ms, period_ms, task)
        };
        of(conn, set).unwrap_or(i64::from(WS_E_GONE))
    }

    fn clear_timer(&self, conn: u64, timer: i64) -> i32 {
        of(conn, |current| current.timers.clear(timer)).unwrap_or(WS_E_GONE)
    }

    fn post(&self, conn: u64, task: Task) -> i32 {
        self.handshakes.post(conn, task)
    }

    fn close(&self, conn: u64, code: u32, reason: &[u8]) -> i32 {
        let Some(code) = close::checked(code, reason) else { return WS_E_INVALID };
        self.handshakes.result(conn, self.commands.close(conn, code, reason))
    }

    fn abort(&self, conn: u64) -> i32 {
        self.handshakes.result(conn, self.commands.abort(conn))
    }

    fn set_user(&self, conn: u64, user: User) -> i32 {
        // The one before is released here, where nothing of the thread is in use.
        of(conn, |current| current.user.replace(user)).map_or(WS_E_GONE, |_| WS_OK)
    }

    fn user(&self, conn: u64) -> *mut c_void {
        of(conn, |current| current.user.as_ref().map(User::pointer)).flatten().unwrap_or(null_mut())
    }

    fn set_state(&self, conn: u64, state: &[u8]) -> i32 {
        let copied = of(conn, |current| {
            // It may be a part of the one before, which is freed by the second call.
            let is_news = !current.moved && current.channel.set_state(state);
            current.info.record.set_state(state);
            // If it is moved, the state is taken along when on_close has returned: until then a crash must not move it.
            if current.moved {
                self.commands.set_idle(conn, false);
            }
            is_news
        });
        match copied {
            // Before the connection is open it is attached then.
            Some(true) if of(conn, |current| current.info.stage) == Some(Stage::Handshake) => WS_OK,
            Some(true) => self.commands.give_counted(conn, Counted::State),
            Some(false) => WS_OK,
            None => WS_E_GONE,
        }
    }
}

impl Current {
    /// Takes over what the loop knows about the end.
    fn update_closing_state(&mut self) {
        let (answer, over) = self.channel.closing_state();
        self.info.peer_close = self.info.peer_close.take().or(answer);
        if over {
            self.info.stage = Stage::Over;
        }
    }
}
