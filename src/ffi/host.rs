//! The traits that answer the calls of plugins: [`Host`], one for each kind of
//! thread, and [`Worker`] and [`EventLoop`] for calls without a connection.
//! The C functions are in `table`, the places that they may be called from
//! in `place`. Does not know connections, sockets or threads.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_void};

use ::ws_handler::raw::*;

use super::place::{Callback, enter, leave};

/// A property of a connection that is a byte string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Fact {
    Resource,
    Path,
    Query,
    Authority,
    Origin,
    Method,
    RequestedProtocols,
    RequestedExtensions,
    Protocol,
    Extensions,
    RemoteUser,
    CloseReason,
    State,
    /// Of the peer's TLS connection: `WS_TLS_...`.
    Tls(u32),
}

/// A property of a connection that is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Number {
    Version,
    Deflate,
    LastOpcode,
    CloseCode,
    IsResumed,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer's.
    Remote,
    /// Ours.
    Local,
}

/// A change of the reply to a handshake, or its end.
#[allow(missing_docs)]
pub enum Reply<'a> {
    /// `None`: no subprotocol.
    Protocol(Option<&'a [u8]>),
    Header {
        name: &'a [u8],
        value: &'a [u8],
    },
    Deflate(&'a ws_deflate_options),
    RefuseExtensions,
    Accept,
    AcceptAndClose {
        code: u32,
        reason: &'a [u8],
    },
    Reject {
        status: u32,
        content_type: Option<&'a [u8]>,
        body: &'a [u8],
    },
    Abort,
}

/// The payload of an outgoing message, by the owner of its memory.
pub enum Payload<'a> {
    /// Valid during the call only.
    Borrowed(&'a [u8]),
    /// A copy of such bytes.
    Copied(Vec<u8>),
    /// Valid until it is dropped, which releases it.
    Owned(OwnedBytes),
}

impl Payload<'_> {
    /// The payload.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Payload::Borrowed(bytes) => bytes,
            Payload::Copied(bytes) => bytes,
            Payload::Owned(bytes) => bytes.as_ref(),
        }
    }

    /// The same for longer than the call: copied, if need be.
    pub fn into_owned(self) -> Payload<'static> {
        match self {
            Payload::Borrowed(bytes) => Payload::Copied(bytes.to_vec()),
            Payload::Copied(bytes) => Payload::Copied(bytes),
            Payload::Owned(bytes) => Payload::Owned(bytes),
        }
    }
}

/// Bytes that a handler owns, released by its function when dropped.
pub struct OwnedBytes {
    pub(super) data: *const u8,
    pub(super) size: usize,
    pub(super) _release: Release,
}

// SAFETY: the handler of ws_send_owned() leaves the bytes unchanged until release,
// which may run on any thread.
unsafe impl Send for OwnedBytes {}

impl AsRef<[u8]> for OwnedBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the handler keeps data[0..size) valid as long as this value lives.
        unsafe { bytes(self.data.cast(), self.size) }
    }
}

/// The user pointer of a connection, released by the handler's function when dropped.
pub struct User {
    pub(super) pointer: *mut c_void,
    /// Its argument is the pointer.
    pub(super) release: Release,
}

// SAFETY: release may run on another thread (ws_set_user_owned); the host never dereferences the pointer.
unsafe impl Send for User {}

impl User {
    /// The handler's pointer.
    pub fn pointer(&self) -> *mut c_void {
        self.pointer
    }

    /// Whether it has a release function.
    pub fn is_owned(&self) -> bool {
        self.release.function.is_some()
    }
}

/// A release function of a handler, called exactly once: when this is dropped, or, on threads with [`defer_releases`],
/// by [`run_releases`].
pub struct Release {
    pub(super) function: Option<unsafe extern "C" fn(*mut c_void)>,
    pub(super) arg: *mut c_void,
}

impl Drop for Release {
    fn drop(&mut self) {
        let Some(function) = self.function.take() else { return };
        let arg = self.arg;
        // A thread that ends has no host code running: it calls the function at once.
        let deferred = DEFERRED.try_with(|deferred| match &mut *deferred.borrow_mut() {
            Some(waiting) => {
                waiting.push((function, arg));
                HAS_DEFERRED.set(true);
                true
            }
            None => false,
        });
        if !deferred.unwrap_or(false) {
            // SAFETY: the handler's own function with its own argument, once.
            unsafe { function(arg) }
        }
    }
}

type Deferred = (unsafe extern "C" fn(*mut c_void), *mut c_void);

thread_local! {
    static DEFERRED: RefCell<Option<Vec<Deferred>>> = const { RefCell::new(None) };
    static HAS_DEFERRED: Cell<bool> = const { Cell::new(false) };
}

/// From now on releases on this thread wait for [`run_releases`]: the function may call the host, whose data may be in
/// use where the value is dropped.
pub fn defer_releases() {
    DEFERRED.set(Some(Vec::new()));
}

/// Runs the releases that wait on this thread; whether there were any.
#[inline]
pub fn run_releases() -> bool {
    HAS_DEFERRED.replace(false) && release_deferred()
}

#[cold]
fn release_deferred() -> bool {
    let waiting = DEFERRED.with_borrow_mut(|deferred| deferred.as_mut().map(std::mem::take));
    let waiting = waiting.unwrap_or_default();
    for (function, arg) in &waiting {
        // SAFETY: the handler's own function with its own argument, once.
        unsafe { function(*arg) }
    }
    !waiting.is_empty()
}

/// A function of the handler with its argument, to be called once; intervals copy it for each call.
#[derive(Clone, Copy)]
pub struct Task {
    pub(super) task: unsafe extern "C" fn(ws_conn, *mut c_void),
    pub(super) arg: *mut c_void,
}

// SAFETY: ws_post() documents that the argument is passed to another thread.
unsafe impl Send for Task {}

impl Task {
    /// Calls it on the thread of the connection.
    pub fn run(self, conn: ws_conn) {
        let before = enter(Callback::Task, conn);
        // SAFETY: the handler's own function with its own argument.
        unsafe { (self.task)(conn, self.arg) };
        leave(before);
    }
}

/// A function of the handler for a descriptor that is ready, with its argument.
#[derive(Clone, Copy)]
pub struct Ready {
    pub(super) ready: unsafe extern "C" fn(i32, u32, *mut c_void),
    pub(super) arg: *mut c_void,
}

impl Ready {
    /// Calls it on the event loop.
    pub fn run(self, fd: i32, events: u32) {
        let before = enter(Callback::Ready, 0);
        // SAFETY: the handler's own function with its own argument.
        unsafe { (self.ready)(fd, events, self.arg) };
        leave(before);
    }
}

/// Answers the calls on one thread. A method is called only from a place
/// that the function's tag allows, but the connection may be gone.
/// Results are those of the functions in `ws_handler.h`.
pub trait Host {
    /// Calls `f` once with what is known of a connection, unless that is gone. `f` calls neither host nor handler.
    fn look(&self, conn: ws_conn, f: &mut dyn FnMut(&mut dyn ConnectionInfo));
    /// Waits for a message.
    fn receive(&self, conn: ws_conn, timeout_ms: i64) -> Result<ws_message, i32>;
    /// Sends a message or fragment.
    fn send(&self, conn: ws_conn, kind: u32, payload: Payload<'_>, flags: u32) -> i32;
    /// Sends a Ping.
    fn ping(&self, conn: ws_conn, payload: &[u8]) -> i32;
    /// Bytes in the send queue.
    fn buffered(&self, conn: ws_conn) -> usize;
    /// Stops or resumes reading.
    fn pause(&self, conn: ws_conn, pause: bool) -> i32;
    /// Sends raw octets, outside of the protocol.
    fn send_raw(&self, conn: ws_conn, octets: &[u8]) -> i32;
    /// Starts a timer, which runs once if the period is 0.
    fn set_timer(&self, conn: ws_conn, delay_ms: u64, period_ms: u64, task: Task) -> i64;
    /// Stops a timer.
    fn clear_timer(&self, conn: ws_conn, timer: i64) -> i32;
    /// Queues a function for the connection's thread.
    fn post(&self, conn: ws_conn, task: Task) -> i32;
    /// Begins or answers the closing handshake.
    fn close(&self, conn: ws_conn, code: u32, reason: &[u8]) -> i32;
    /// Drops the connection.
    fn abort(&self, conn: ws_conn) -> i32;
    /// Sets the user pointer.
    fn set_user(&self, conn: ws_conn, user: User) -> i32;
    /// The user pointer.
    fn user(&self, conn: ws_conn) -> *mut c_void;
    /// Attaches state.
    fn set_state(&self, conn: ws_conn, state: &[u8]) -> i32;
}

impl dyn Host {
    /// Asks something about a connection; `None` if that is gone.
    pub(super) fn ask<R>(&self, conn: ws_conn, ask: impl FnOnce(&mut dyn ConnectionInfo) -> R) -> Option<R> {
        let (mut ask, mut answer) = (Some(ask), None);
        self.look(conn, &mut |info| answer = ask.take().map(|ask| ask(info)));
        answer
    }
}

/// What handlers may ask about a connection. Pointers stay valid as the header says.
pub trait ConnectionInfo {
    /// A string; absent if there is none.
    fn fact(&mut self, fact: Fact) -> ws_bytes;
    /// A number.
    fn number(&self, number: Number) -> u32;
    /// The first header of that name.
    fn header(&self, name: &[u8]) -> ws_bytes;
    /// The index-th header.
    fn header_at(&self, index: usize) -> Option<(ws_bytes, ws_bytes)>;
    /// An address.
    fn address(&self, end: End) -> Option<Address>;
}

/// Answers calls about the worker on any thread. Handlers are identified by number.
pub trait Worker: Sync {
    /// Queues a function for the event loop.
    fn post(&self, handler: u16, task: Task) -> i32;
    /// How many workers the pool has.
    fn workers(&self) -> u32;
    /// The name of the handler that runs on this thread, or that has this connection.
    fn handler_name(&self, conn: ws_conn) -> String;
}

/// Answers calls about the event loop on its thread.
pub trait EventLoop {
    /// Starts a timer, which runs once if the period is 0.
    fn set_timer(&self, handler: u16, delay_ms: u64, period_ms: u64, task: Task) -> i64;
    /// Stops a timer.
    fn clear_timer(&self, handler: u16, timer: i64) -> i32;
    /// Watches a descriptor, or changes its events.
    fn watch(&self, handler: u16, fd: i32, events: u32, ready: Ready) -> i32;
    /// Stops watching it.
    fn unwatch(&self, handler: u16, fd: i32) -> i32;
}

/// An address as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `WS_IPV4`, `WS_IPV6` or `WS_UNIX`.
    pub family: u32,
    /// 0 for `WS_UNIX`.
    pub port: u16,
    /// Cut to what `ws_address.text` holds.
    pub text: String,
}

/// Absent bytes.
pub const ABSENT: ws_bytes = ws_bytes { data: std::ptr::null(), size: 0 };

/// Bytes of the host that are followed by a NUL in memory. The caller ensures that they live long enough.
pub fn followed_by_nul(bytes: &[u8]) -> ws_bytes {
    ws_bytes { data: bytes.as_ptr().cast(), size: bytes.len() }
}

/// Bytes of the host; the slice ends with a NUL, which is not counted. The caller ensures that they live long enough.
pub fn terminated(bytes: &[u8]) -> ws_bytes {
    match bytes {
        [.., 0] => ws_bytes { data: bytes.as_ptr().cast(), size: bytes.len() - 1 },
        // Without a NUL the handler could read past the end.
        _ => ABSENT,
    }
}

// ------------------------------------------------------------ C to Rust helpers

/// # Safety
/// `data[0..size)` must be readable for `'a` unless size is 0.
pub(super) unsafe fn bytes<'a>(data: *const c_char, size: usize) -> &'a [u8] {
    if data.is_null() || size == 0 {
        return &[];
    }
    // SAFETY: promised by the caller; not null.
    unsafe { std::slice::from_raw_parts(data.cast(), size) }
}

/// # Safety
/// `to` must be null or point to a `T`.
pub(super) unsafe fn store<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: promised by the caller; not null.
        unsafe { to.write(value) }
    }
}
