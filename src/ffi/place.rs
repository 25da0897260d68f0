//! The place of a thread: the callback and connection that it is in, and its host. Reports functions that are called
//! from a place that their tag in `ws_handler.h` does not allow.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ::ws_handler::raw::*;

use super::host::{EventLoop, Host, Worker};
use super::strict;
use crate::clock;
use crate::log::Limit;

/// The callback that a thread is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::FromRepr)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Callback {
    None = 0,
    WorkerStart,
    WorkerStop,
    Handshake,
    Open,
    Transfer,
    Message,
    Passive,
    Close,
    Pong,
    Writable,
    Drain,
    Task,
    /// Not a callback: the constructors and the entry function.
    Load,
    Ready,
}

impl Callback {
    /// The callback with this number; `Callback::None` for an unknown one.
    pub fn from_number(number: u32) -> Self {
        u8::try_from(number).ok().and_then(Self::from_repr).unwrap_or(Callback::None)
    }

    /// The callback's name in the header.
    pub fn name(self) -> &'static str {
        match self {
            Callback::None => "no callback",
            Callback::WorkerStart => "on_worker_start",
            Callback::WorkerStop => "on_worker_stop",
            Callback::Handshake => "do_extra_handshake",
            Callback::Open => "on_open",
            Callback::Transfer => "transfer_data",
            Callback::Message => "on_message",
            Callback::Passive => "passive_closing_handshake",
            Callback::Close => "on_close",
            Callback::Pong => "on_pong",
            Callback::Writable => "on_writable",
            Callback::Drain => "on_drain",
            Callback::Task => "a posted function or timer",
            Callback::Load => "loading",
            Callback::Ready => "the function of a watched descriptor",
        }
    }
}

/// The callback that a thread is in, and its connection or 0.
pub type CallContext = (Callback, ws_conn);

thread_local! {
    static PLACE: Cell<CallContext> = const { Cell::new((Callback::None, 0)) };
    static HOST: Cell<Option<&'static dyn Host>> = const { Cell::new(None) };
    static EVENT_LOOP: Cell<Option<&'static dyn EventLoop>> = const { Cell::new(None) };
    static CALLS: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
}

/// Counts the calls of this thread here from now on.
pub fn count_calls(calls: &'static AtomicU64) {
    CALLS.set(Some(calls));
}

/// Counts a call of the host or of a handler, as progress for the watchdog. Only this thread changes its count.
#[inline]
pub fn count_call() {
    if let Some(calls) = CALLS.get() {
        calls.store(calls.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// An object of this process that answers calls on any thread, once it is set.
pub(super) struct AnyThread<T: ?Sized + 'static>(OnceLock<&'static T>);

impl<T: ?Sized> AnyThread<T> {
    pub const fn unset() -> Self {
        Self(OnceLock::new())
    }

    /// The first call counts.
    pub fn set(&self, object: &'static T) {
        let _ = self.0.set(object);
    }

    /// Counts the call, and returns the object; none while it is not set, and in a child that a handler forked.
    pub fn get(&self) -> Option<&'static T> {
        count_call();
        self.0.get().copied().filter(|_| !is_child())
    }

    /// The same, and asks the object.
    pub fn ask<R>(&self, otherwise: R, ask: impl FnOnce(&T) -> R) -> R {
        self.get().map_or(otherwise, ask)
    }
}

/// The host of threads that handlers started.
static FOREIGN_HOST: OnceLock<&'static (dyn Host + Sync)> = OnceLock::new();
/// For calls about the worker.
pub(super) static WORKER: AnyThread<dyn Worker> = AnyThread::unset();

/// Sets the host of the calling thread.
pub fn set_host(host: &'static dyn Host) {
    HOST.set(Some(host));
}

/// Sets the host of all threads that have none of their own; the first call counts.
pub fn set_foreign_host(host: &'static (dyn Host + Sync)) {
    let _ = FOREIGN_HOST.set(host);
}

/// Sets the worker that answers handlers in this process; the first call counts.
pub fn set_worker(worker: &'static dyn Worker) {
    WORKER.set(worker);
}

/// Marks the calling thread as that of the event loop.
pub fn set_event_loop(event_loop: &'static dyn EventLoop) {
    EVENT_LOOP.set(Some(event_loop));
}

/// The event loop, if this is its thread; else a breach of the handler `name`.
pub(super) fn event_loop(function: &str, name: &str) -> Option<&'static dyn EventLoop> {
    count_call();
    let found = EVENT_LOOP.get();
    if found.is_none() {
        let here = PLACE.get().0.name();
        report_breach(format_args!(
            "{name}: {function}() without a connection was called in {here} on another thread than the event loop's; \
             it may be called only there"
        ));
    }
    found.filter(|_| !is_child())
}

/// The calling thread enters a callback. Returns its former place, for [`leave`].
pub fn enter(callback: Callback, conn: ws_conn) -> CallContext {
    PLACE.replace((callback, conn))
}

/// The callback has returned.
pub fn leave(before: CallContext) {
    if is_child()
        && let Some(end) = CHILD_RETURNS.get()
    {
        end(PLACE.get());
    }
    PLACE.set(before);
}

/// This process is a child that a handler forked, with a copy of everything.
static IS_CHILD: AtomicBool = AtomicBool::new(false);
/// Ends a forked child that returns from its callback.
static CHILD_RETURNS: OnceLock<fn(CallContext) -> !> = OnceLock::new();

/// The server itself is forking, not a handler.
static IS_OWN_FORK: AtomicBool = AtomicBool::new(false);

/// Runs a function of the server that forks: its children are no children of a handler.
pub fn fork_as_server<R>(fork: impl FnOnce() -> R) -> R {
    IS_OWN_FORK.store(true, Ordering::Relaxed);
    let result = fork();
    IS_OWN_FORK.store(false, Ordering::Relaxed);
    result
}

/// From now on children that handlers fork have no host, and are ended by this function when they return from their
/// callback.
pub fn watch_forks(returns: fn(CallContext) -> !) -> std::io::Result<()> {
    extern "C" fn in_child() {
        if IS_OWN_FORK.load(Ordering::Relaxed) {
            return;
        }
        IS_CHILD.store(true, Ordering::Relaxed);
        HOST.set(None);
        EVENT_LOOP.set(None);
    }
    let _ = CHILD_RETURNS.set(returns);
    // SAFETY: the registered function lives as long as the process and only does what a forked child may do.
    match unsafe { libc::pthread_atfork(None, None, Some(in_child)) } {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error)),
    }
}

/// Whether this process is a child that a handler forked.
fn is_child() -> bool {
    IS_CHILD.load(Ordering::Relaxed)
}

/// The place of the calling thread.
pub fn place() -> CallContext {
    PLACE.get()
}

// ------------------------------------------------------------------- places

/// The places that the tags name.
#[derive(Clone, Copy)]
pub(super) enum Tag {
    /// On any thread.
    AnyThread,
    /// In a callback of this connection.
    Callback,
    /// In transfer_data of this connection.
    Transfer,
}

/// The host that answers, if `function` may be called here.
pub(super) fn host_at(function: &str, tag: Tag, conn: ws_conn) -> Option<&'static dyn Host> {
    count_call();
    let (callback, here) = PLACE.get();
    let allowed = match tag {
        Tag::AnyThread => true,
        Tag::Callback => callback != Callback::None && here == conn,
        Tag::Transfer => callback == Callback::Transfer && here == conn,
    };
    if !allowed {
        let wanted = match tag {
            Tag::Transfer => "in transfer_data of this connection",
            _ => "in a callback of this connection",
        };
        breach(function, wanted, conn);
        return None;
    }
    HOST.get().or_else(foreign_host)
}

/// The host of a thread that a handler started. A forked child has none.
fn foreign_host() -> Option<&'static dyn Host> {
    FOREIGN_HOST.get().filter(|_| !is_child()).map(|host| *host as &dyn Host)
}

// ----------------------------------------------------------------- breaches

/// Most lines in an interval about breaches, and about calls without effect.
const LINES: u64 = 10;
const INTERVAL: Duration = Duration::from_secs(10);

/// Whether a breach of the contract ends the process.
static STRICT: AtomicBool = AtomicBool::new(cfg!(debug_assertions));

/// From now on a breach of the contract aborts the process, as in a debug build.
pub fn be_strict() {
    STRICT.store(true, Ordering::Relaxed);
    strict::begin();
}

/// A strict host overwrites a message with this byte when its callback has returned.
pub const POISON: u8 = 0xdb;

/// Whether the host is strict.
#[inline]
pub fn is_strict() -> bool {
    STRICT.load(Ordering::Relaxed)
}

/// Logs that a callback has broken the contract. A strict host then aborts, so that the error is found where it is
/// made.
pub fn breach_of_contract(callback: Callback, conn: ws_conn, what: std::fmt::Arguments<'_>) {
    let name = handler_name(conn);
    // If it aborts, the crash is attributed to that callback.
    let before = enter(callback, conn);
    report_breach(format_args!("{name}: {} of connection {conn:x} {what}", callback.name()));
    leave(before);
}

/// The name of the handler of this connection; 0: of the one that is called about none.
pub fn handler_name(conn: ws_conn) -> String {
    WORKER.0.get().map_or("a handler".to_owned(), |worker| worker.handler_name(conn))
}

fn report_breach(what: std::fmt::Arguments<'_>) {
    static LIMIT: Limit = Limit::new(LINES, INTERVAL);
    if let Some(left_out) = LIMIT.admit(clock::now()) {
        log::error!("{what}{left_out}");
    }
    if is_strict() {
        strict::note_breach(what);
        std::process::abort();
    }
}

/// Logs a call that had no effect because of an error in the handler.
pub(super) fn note_without_effect(conn: ws_conn, what: std::fmt::Arguments<'_>) {
    static LIMIT: Limit = Limit::new(LINES, INTERVAL);
    let Some(left_out) = LIMIT.admit(clock::now()) else { return };
    let (callback, here) = PLACE.get();
    let name = handler_name(if here != 0 { here } else { conn });
    let place = if callback == Callback::None { "outside of callbacks" } else { callback.name() };
    log::warn!("{name}: in {place}: {what} (connection {conn:x}){left_out}");
}

/// Reports a function that was called where its tag does not allow it.
#[cold]
fn breach(function: &str, wanted: &str, conn: ws_conn) {
    let (callback, here) = PLACE.get();
    let about = if here != 0 { here } else { conn };
    let name = handler_name(about);
    let place = match callback {
        Callback::None => "outside of callbacks".to_owned(),
        _ if here == 0 => format!("in {}", callback.name()),
        _ => format!("in {} of connection {here:x}", callback.name()),
    };
    report_breach(format_args!(
        "{name}: {function}({conn:x}) was called {place}; it may be called only {wanted}"
    ));
}

/// Logs a negative result of a callback, and its consequence.
pub fn note_result(callback: Callback, conn: ws_conn, result: i32, consequence: &str) {
    if result < 0 {
        let name = handler_name(conn);
        let (callback, error) = (callback.name(), error_name(result));
        log::error!("{name}: {callback} of connection {conn:x} returned {result} ({error}); {consequence}");
    }
}

/// Logs a positive result that no call in the callback returned.
pub fn note_wrong_result(callback: Callback, conn: ws_conn, result: i32) {
    let name = handler_name(conn);
    let callback = callback.name();
    log::error!(
        "{name}: {callback} of connection {conn:x} returned {result}, expected WS_OK, a negative result, or the result of a \
         function that it called"
    );
}

/// The name of a result in the header.
pub fn error_name(result: i32) -> &'static str {
    match result {
        WS_OK.. => "WS_OK",
        WS_E_GONE => "WS_E_GONE",
        WS_E_FULL => "WS_E_FULL",
        WS_E_TIMEOUT => "WS_E_TIMEOUT",
        WS_E_DRAINING => "WS_E_DRAINING",
        WS_E_INVALID => "WS_E_INVALID",
        WS_E_PLACE => "WS_E_PLACE",
        WS_E_LIMIT => "WS_E_LIMIT",
        WS_E_UNSUPPORTED => "WS_E_UNSUPPORTED",
        WS_E_FAILED => "WS_E_FAILED",
        WS_E_ABSENT => "WS_E_ABSENT",
        WS_E_DENIED => "WS_E_DENIED",
        _ => "an unknown error",
    }
}
