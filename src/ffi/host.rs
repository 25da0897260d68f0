//! What the calls of plugins mean, and who answers them: the [`Host`] of the
//! calling thread, as far as the place that the thread is in allows. The C
//! functions themselves are in `table`. Knows nothing of connections, sockets or
//! threads.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ::ws_handler::raw::*;

/// A fact about a connection that is a string of bytes.
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
    CloseReason,
    State,
    /// Of the peer's TLS connection: by number.
    Tls(u32),
}

/// A fact about a connection that is a number.
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

/// What a handler wants of the reply to a handshake.
#[allow(missing_docs)]
pub enum Reply<'a> {
    Protocol(&'a [u8]),
    Header { name: &'a [u8], value: &'a [u8] },
    Deflate(&'a ws_deflate_options),
    RefuseExtensions,
    Accept,
    AcceptAndClose { code: u32, reason: &'a [u8] },
    Reject { status: u32, content_type: Option<&'a [u8]>, body: &'a [u8] },
    Abort,
}

/// How the memory of an outgoing message is to be treated.
pub enum Payload<'a> {
    /// Valid during the call only.
    Borrowed(&'a [u8]),
    /// Valid until it is dropped, which tells the handler.
    Owned(OwnedBytes),
}

/// Bytes of a handler's own, released by its function when dropped.
pub struct OwnedBytes {
    pub(super) data: *const u8,
    pub(super) size: usize,
    pub(super) release: Option<unsafe extern "C" fn(*mut c_void)>,
    pub(super) arg: *mut c_void,
}

// SAFETY: ws_send_owned() promises that the bytes stay as they are and that
// release may run on another thread.
unsafe impl Send for OwnedBytes {}

impl AsRef<[u8]> for OwnedBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the handler gave data[0..size) for as long as this value lives.
        unsafe { bytes(self.data.cast(), self.size) }
    }
}

impl Drop for OwnedBytes {
    fn drop(&mut self) {
        let Some(release) = self.release else { return };
        let release = Release { release, arg: self.arg };
        // Of a thread that ends nothing is in the way any more.
        let deferred = DEFERRED.try_with(|deferred| match &mut *deferred.borrow_mut() {
            Some(waiting) => {
                waiting.push(release);
                HAS_DEFERRED.set(true);
                true
            }
            None => false,
        });
        if !deferred.unwrap_or(false) {
            release.run();
        }
    }
}

/// A handler's function that has its bytes back.
#[derive(Clone, Copy)]
struct Release {
    release: unsafe extern "C" fn(*mut c_void),
    arg: *mut c_void,
}

impl Release {
    fn run(self) {
        // SAFETY: the handler's own function with its own argument, once.
        unsafe { (self.release)(self.arg) }
    }
}

thread_local! {
    static DEFERRED: RefCell<Option<Vec<Release>>> = const { RefCell::new(None) };
    static HAS_DEFERRED: Cell<bool> = const { Cell::new(false) };
}

/// From now on bytes that are dropped on this thread are released by [`run_releases`] only: the function may call the
/// host, which may be in the middle of something.
pub fn defer_releases() {
    DEFERRED.set(Some(Vec::new()));
}

/// Releases what was dropped on this thread; whether there was any.
#[inline]
pub fn run_releases() -> bool {
    HAS_DEFERRED.replace(false) && release_deferred()
}

#[cold]
fn release_deferred() -> bool {
    let waiting = DEFERRED.with_borrow_mut(|deferred| deferred.as_mut().map(std::mem::take));
    let waiting = waiting.unwrap_or_default();
    waiting.iter().for_each(|release| release.run());
    !waiting.is_empty()
}

/// A function of the handler with its argument, to be called once.
pub struct Task {
    pub(super) task: unsafe extern "C" fn(ws_conn, *mut c_void),
    pub(super) arg: *mut c_void,
}

// SAFETY: ws_post() is documented to hand the argument to another thread.
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

/// What the calls mean on one thread. A method is called only from a place
/// that the function's tag allows, except that the connection may be gone.
/// Results are those of the functions in `ws_handler.h`.
pub trait Host {
    /// A fact; pointer and length stay valid as the header says.
    fn fact(&self, conn: ws_conn, fact: Fact) -> ws_bytes;
    /// A number; 0 if the connection is gone.
    fn number(&self, conn: ws_conn, number: Number) -> u32;
    /// The first header of that name.
    fn header(&self, conn: ws_conn, name: &[u8]) -> ws_bytes;
    /// The index-th header.
    fn header_at(&self, conn: ws_conn, index: usize) -> Option<(ws_bytes, ws_bytes)>;
    /// An address.
    fn address(&self, conn: ws_conn, end: End) -> Option<Address>;
    /// Changes or finishes the reply to a handshake.
    fn reply(&self, handshake: u64, reply: Reply<'_>) -> i32;
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
    /// Starts a timer.
    fn set_timer(&self, conn: ws_conn, delay_ms: u64, task: Task) -> i64;
    /// Stops a timer.
    fn clear_timer(&self, conn: ws_conn, timer: i64) -> i32;
    /// Has a function called on the connection's thread.
    fn post(&self, conn: ws_conn, task: Task) -> i32;
    /// Begins or answers the closing handshake.
    fn close(&self, conn: ws_conn, code: u32, reason: &[u8]) -> i32;
    /// Drops the connection.
    fn abort(&self, conn: ws_conn) -> i32;
    /// Sets the user pointer.
    fn set_user(&self, conn: ws_conn, user: *mut c_void) -> i32;
    /// The user pointer.
    fn user(&self, conn: ws_conn) -> *mut c_void;
    /// Attaches state.
    fn set_state(&self, conn: ws_conn, state: &[u8]) -> i32;
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

/// Bytes that the host owns; the caller sees to it that they live long enough.
pub fn present(bytes: &[u8]) -> ws_bytes {
    ws_bytes { data: bytes.as_ptr().cast(), size: bytes.len() }
}

/// The callback that a thread is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Not a callback: its constructors, or its entry function.
    Load,
}

impl Callback {
    /// The callback of that number; `None` for a number that is none.
    pub fn from_number(number: u32) -> Self {
        const ALL: [Callback; 14] = [
            Callback::None,
            Callback::WorkerStart,
            Callback::WorkerStop,
            Callback::Handshake,
            Callback::Open,
            Callback::Transfer,
            Callback::Message,
            Callback::Passive,
            Callback::Close,
            Callback::Pong,
            Callback::Writable,
            Callback::Drain,
            Callback::Task,
            Callback::Load,
        ];
        let of_that_number = ALL.into_iter().find(|callback| *callback as u32 == number);
        of_that_number.unwrap_or(Callback::None)
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
        }
    }
}

/// Where a thread is: in which callback of which connection.
pub type Place = (Callback, ws_conn);

thread_local! {
    static PLACE: Cell<Place> = const { Cell::new((Callback::None, 0)) };
    static HOST: Cell<Option<&'static dyn Host>> = const { Cell::new(None) };
    static CALLS: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
}

/// From now on the calls on this thread are counted here.
pub fn count_calls(calls: &'static AtomicU64) {
    CALLS.set(Some(calls));
}

/// A call, of the host or of a handler: the thread makes progress. Only this thread changes the count.
#[inline]
pub fn count_call() {
    if let Some(calls) = CALLS.get() {
        calls.store(calls.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// The host of threads that the handlers made themselves.
static OUTSIDE: OnceLock<&'static (dyn Host + Sync)> = OnceLock::new();

/// Sets the host of the calling thread.
pub fn set_host(host: &'static dyn Host) {
    HOST.set(Some(host));
}

/// Sets the host of all threads that have none of their own; the first call counts.
pub fn set_foreign_host(host: &'static (dyn Host + Sync)) {
    let _ = OUTSIDE.set(host);
}

/// Says that the calling thread enters a callback; returns where it was, to be
/// given to [`leave`].
pub fn enter(callback: Callback, conn: ws_conn) -> Place {
    PLACE.replace((callback, conn))
}

/// The callback is over.
pub fn leave(before: Place) {
    if IS_CHILD.load(Ordering::Relaxed)
        && let Some(end) = CHILD_RETURNS.get()
    {
        end(PLACE.get());
    }
    PLACE.set(before);
}

/// This process is a child that a handler has forked, with a copy of everything.
static IS_CHILD: AtomicBool = AtomicBool::new(false);
/// What to do with one that returns from its callback.
static CHILD_RETURNS: OnceLock<fn(Place) -> !> = OnceLock::new();

/// From now on children that handlers fork have no host, and end with this function when they return from their
/// callback.
pub fn watch_forks(returns: fn(Place) -> !) -> std::io::Result<()> {
    extern "C" fn in_child() {
        IS_CHILD.store(true, Ordering::Relaxed);
        HOST.set(None);
    }
    let _ = CHILD_RETURNS.set(returns);
    // SAFETY: registers a function that lives as long as the process and does what a forked child may do only.
    match unsafe { libc::pthread_atfork(None, None, Some(in_child)) } {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error)),
    }
}

/// Whether this process is a child that a handler has forked.
pub(super) fn is_child() -> bool {
    IS_CHILD.load(Ordering::Relaxed)
}

/// Where the calling thread is.
pub fn place() -> Place {
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
    /// In do_extra_handshake, or after WS_LATER on any thread.
    Handshake,
    Transfer,
}

/// The host to ask, if `function` may be called here.
pub(super) fn host_at(function: &str, tag: Tag, conn: ws_conn) -> Option<&'static dyn Host> {
    count_call();
    let (callback, here) = PLACE.get();
    let allowed = match tag {
        Tag::AnyThread => true,
        Tag::Callback => callback != Callback::None && here == conn,
        Tag::Handshake => callback == Callback::None || (callback == Callback::Handshake && here == conn),
        Tag::Transfer => callback == Callback::Transfer && here == conn,
    };
    if !allowed {
        breach(function, tag, callback);
        return None;
    }
    HOST.get().or_else(foreign_host)
}

/// The host of a thread that a handler made itself. A forked child has none.
fn foreign_host() -> Option<&'static dyn Host> {
    let is_child = IS_CHILD.load(Ordering::Relaxed);
    OUTSIDE.get().filter(|_| !is_child).map(|host| *host as &dyn Host)
}

/// A handler called a function from a place that its tag does not allow: a
/// debug build aborts, so that the mistake is found where it is made.
fn breach(function: &str, tag: Tag, callback: Callback) {
    let wanted = match tag {
        Tag::AnyThread => "any thread",
        Tag::Callback => "a callback of this connection",
        Tag::Handshake => "do_extra_handshake, or any thread after WS_LATER",
        Tag::Transfer => "transfer_data of this connection",
    };
    log::error!("{function}() was called in {}; it may be called in {wanted} only", callback.name());
    if cfg!(debug_assertions) {
        std::process::abort();
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
