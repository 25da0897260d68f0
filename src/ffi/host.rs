//! The calls that a plugin makes: the C functions behind the host's table.
//!
//! Each function turns C values into Rust ones, checks that it was called from
//! a place its tag in `ws_handler.h` allows, and passes it to the [`Host`] of
//! the calling thread. It knows nothing of connections, sockets or threads.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

use ::ws_handler::raw::*;
use log::Level;

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
    data: *const u8,
    size: usize,
    release: Option<unsafe extern "C" fn(*mut c_void)>,
    arg: *mut c_void,
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
        if let Some(release) = self.release {
            // SAFETY: the handler's own function with its own argument, once.
            unsafe { release(self.arg) }
        }
    }
}

/// A function of the handler with its argument, to be called once.
pub struct Task {
    task: unsafe extern "C" fn(ws_conn, *mut c_void),
    arg: *mut c_void,
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
}

impl Callback {
    /// The callback of that number; `None` for a number that is none.
    pub fn from_number(number: u32) -> Self {
        const ALL: [Callback; 13] = [
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
        }
    }
}

/// Where a thread is: in which callback of which connection.
pub type Place = (Callback, ws_conn);

thread_local! {
    static PLACE: Cell<Place> = const { Cell::new((Callback::None, 0)) };
    static HOST: Cell<Option<&'static dyn Host>> = const { Cell::new(None) };
}

/// The host of threads that the handlers made themselves.
static OUTSIDE: OnceLock<&'static (dyn Host + Sync)> = OnceLock::new();

/// Sets the host of the calling thread.
pub fn set_host(host: &'static dyn Host) {
    HOST.set(Some(host));
}

/// Sets the host of all threads that have none of their own; the first call counts.
pub fn set_outside_host(host: &'static (dyn Host + Sync)) {
    let _ = OUTSIDE.set(host);
}

/// Says that the calling thread enters a callback; returns where it was, to be
/// given to [`leave`].
pub fn enter(callback: Callback, conn: ws_conn) -> Place {
    PLACE.replace((callback, conn))
}

/// The callback is over.
pub fn leave(before: Place) {
    PLACE.set(before);
}

/// Where the calling thread is.
pub fn place() -> Place {
    PLACE.get()
}

/// The table for one handler; it carries what the functions that are not about
/// a connection need. Lives as long as the process.
#[repr(C)]
struct Table {
    raw: ws_host,
    handler: String,
    settings: Vec<(String, String)>,
}

/// Makes the table for one handler. It is never freed: a plugin is never unloaded.
pub fn table(handler: &str, worker: u32, settings: Vec<(String, String)>) -> &'static ws_host {
    let table = Box::leak(Box::new(Table { raw: host(worker), handler: handler.to_owned(), settings }));
    &table.raw
}

fn host(worker: u32) -> ws_host {
    ws_host {
        size: size_of::<ws_host>(),
        abi: WS_ABI,
        worker,
        log: write_log,
        now,
        config,
        config_at,
        resource: resource_,
        path: path_,
        query: query_,
        authority: authority_,
        origin: origin_,
        method: method_,
        header,
        header_at,
        requested_protocols: requested_protocols_,
        requested_extensions: requested_extensions_,
        version: version_,
        remote_address,
        local_address,
        tls_fact,
        set_protocol,
        add_header,
        configure_deflate,
        refuse_extensions,
        accept,
        accept_and_close,
        reject,
        abort_handshake,
        protocol: protocol_,
        extensions: extensions_,
        deflate: deflate_,
        receive,
        send,
        send_owned,
        ping,
        buffered,
        pause,
        resume,
        last_opcode: last_opcode_,
        set_timer,
        clear_timer,
        post,
        close,
        abort,
        close_code: close_code_,
        close_reason: close_reason_,
        set_user,
        user,
        set_state,
        state: state_,
        is_resumed: is_resumed_,
    }
}

// ------------------------------------------------------------------- places

/// The places that the tags name.
#[derive(Clone, Copy)]
enum Tag {
    AnyThread,
    /// In a callback of this connection.
    Callback,
    /// In do_extra_handshake, or after WS_LATER on any thread.
    Handshake,
    Transfer,
}

/// The host to ask, if `function` may be called here.
fn host_at(function: &str, tag: Tag, conn: ws_conn) -> Option<&'static dyn Host> {
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
    HOST.get().or_else(|| OUTSIDE.get().map(|host| *host as &dyn Host))
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
unsafe fn bytes<'a>(data: *const c_char, size: usize) -> &'a [u8] {
    if data.is_null() || size == 0 {
        return &[];
    }
    // SAFETY: promised by the caller; not null.
    unsafe { std::slice::from_raw_parts(data.cast(), size) }
}

/// # Safety
/// `to` must be null or point to a `T`.
unsafe fn store<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: promised by the caller; not null.
        unsafe { to.write(value) }
    }
}

// ------------------------------------------------- log, time, configuration

unsafe extern "C" fn write_log(
    host: *const ws_host,
    conn: ws_conn,
    level: u32,
    text: *const c_char,
    size: usize,
) {
    // SAFETY: the wrappers in the header pass the table they were given by table().
    let table = unsafe { &*host.cast::<Table>() };
    // SAFETY: the handler passes text[0..size).
    let text = String::from_utf8_lossy(unsafe { bytes(text, size) });
    let text = text.trim_end().escape_log();
    let level = match level {
        0..=19 => Level::Trace,
        20..=29 => Level::Debug,
        30..=39 => Level::Info,
        40..=49 => Level::Warn,
        _ => Level::Error,
    };
    match conn {
        0 => log::log!(level, "{}: {text}", table.handler),
        conn => log::log!(level, "{}: connection {conn:x}: {text}", table.handler),
    }
}

trait EscapeLog {
    /// Control characters made visible, so that one call is one line.
    fn escape_log(&self) -> String;
}

impl EscapeLog for str {
    fn escape_log(&self) -> String {
        let mut line = String::with_capacity(self.len());
        for c in self.chars() {
            match c {
                c if c.is_control() => line.extend(c.escape_default()),
                c => line.push(c),
            }
        }
        line
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, the clock of all times in a worker.
pub fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec that is ours; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

unsafe extern "C" fn now() -> u64 {
    monotonic()
}

unsafe extern "C" fn config(host: *const ws_host, key: *const c_char, size: usize) -> ws_bytes {
    // SAFETY: as in write_log().
    let (table, key) = unsafe { (&*host.cast::<Table>(), bytes(key, size)) };
    let value = table.settings.iter().find(|(name, _)| name.as_bytes() == key);
    value.map_or(ABSENT, |(_, value)| present(value.as_bytes()))
}

unsafe extern "C" fn config_at(
    host: *const ws_host,
    index: usize,
    key: *mut ws_bytes,
    value: *mut ws_bytes,
) -> i32 {
    // SAFETY: as in write_log().
    let table = unsafe { &*host.cast::<Table>() };
    let Some((name, text)) = table.settings.get(index) else { return 0 };
    // SAFETY: the handler passes places for two ws_bytes.
    unsafe {
        store(key, present(name.as_bytes()));
        store(value, present(text.as_bytes()));
    }
    1
}

// ------------------------------------------------------------------ request

macro_rules! facts {
    ($($function:ident: $name:literal $fact:ident;)*) => {$(
        unsafe extern "C" fn $function(conn: ws_conn) -> ws_bytes {
            host_at($name, Tag::Callback, conn).map_or(ABSENT, |host| host.fact(conn, Fact::$fact))
        }
    )*};
}

facts! {
    resource_: "ws_resource" Resource;
    path_: "ws_path" Path;
    query_: "ws_query" Query;
    authority_: "ws_authority" Authority;
    origin_: "ws_origin" Origin;
    method_: "ws_method" Method;
    requested_protocols_: "ws_requested_protocols" RequestedProtocols;
    requested_extensions_: "ws_requested_extensions" RequestedExtensions;
    protocol_: "ws_protocol" Protocol;
    extensions_: "ws_extensions" Extensions;
    close_reason_: "ws_close_reason" CloseReason;
    state_: "ws_state" State;
}

macro_rules! numbers {
    ($($function:ident: $name:literal $number:ident $type:ty;)*) => {$(
        unsafe extern "C" fn $function(conn: ws_conn) -> $type {
            host_at($name, Tag::Callback, conn).map_or(0, |host| host.number(conn, Number::$number) as $type)
        }
    )*};
}

numbers! {
    version_: "ws_version" Version u32;
    deflate_: "ws_deflate" Deflate i32;
    last_opcode_: "ws_last_opcode" LastOpcode u32;
    close_code_: "ws_close_code" CloseCode u32;
    is_resumed_: "ws_is_resumed" IsResumed i32;
}

unsafe extern "C" fn header(conn: ws_conn, name: *const c_char, size: usize) -> ws_bytes {
    // SAFETY: the handler passes name[0..size).
    let name = unsafe { bytes(name, size) };
    host_at("ws_header", Tag::Callback, conn).map_or(ABSENT, |host| host.header(conn, name))
}

unsafe extern "C" fn header_at(
    conn: ws_conn,
    index: usize,
    name: *mut ws_bytes,
    value: *mut ws_bytes,
) -> i32 {
    let Some(host) = host_at("ws_header_at", Tag::Callback, conn) else { return 0 };
    let Some((found, text)) = host.header_at(conn, index) else { return 0 };
    // SAFETY: the handler passes places for two ws_bytes.
    unsafe {
        store(name, found);
        store(value, text);
    }
    1
}

unsafe extern "C" fn remote_address(conn: ws_conn, to: *mut ws_address, size: usize) -> i32 {
    // SAFETY: passed on as it came.
    unsafe { address("ws_remote_address", conn, End::Remote, to, size) }
}

unsafe extern "C" fn local_address(conn: ws_conn, to: *mut ws_address, size: usize) -> i32 {
    // SAFETY: passed on as it came.
    unsafe { address("ws_local_address", conn, End::Local, to, size) }
}

/// # Safety
/// `to[0..size)` bytes must be writable.
unsafe fn address(function: &str, conn: ws_conn, end: End, to: *mut ws_address, size: usize) -> i32 {
    let mut out = ws_address { family: 0, port: 0, text: [0; 112] };
    let result = match host_at(function, Tag::Callback, conn) {
        None => WS_E_PLACE,
        Some(host) => match host.address(conn, end) {
            None => WS_E_GONE,
            Some(address) => {
                out.family = address.family;
                out.port = u32::from(address.port);
                let room = out.text.len() - 1;
                for (to, from) in out.text[..room].iter_mut().zip(address.text.bytes()) {
                    *to = from as c_char;
                }
                WS_OK
            }
        },
    };
    let size = size.min(size_of::<ws_address>());
    if !to.is_null() {
        // SAFETY: the handler passes its own sizeof(ws_address); no more is written than either has.
        unsafe { std::ptr::copy_nonoverlapping((&raw const out).cast::<u8>(), to.cast::<u8>(), size) };
    }
    result
}

unsafe extern "C" fn tls_fact(conn: ws_conn, _which: u32) -> ws_bytes {
    // No connection of this server has TLS facts yet: it ends before the worker.
    let _ = host_at("ws_tls_fact", Tag::Callback, conn);
    ABSENT
}

// -------------------------------------------------------------------- reply

fn reply(function: &str, hs: *mut ws_handshake, reply: Reply<'_>) -> i32 {
    let handshake = hs as usize as u64;
    host_at(function, Tag::Handshake, handshake).map_or(WS_E_PLACE, |host| host.reply(handshake, reply))
}

unsafe extern "C" fn set_protocol(hs: *mut ws_handshake, protocol: *const c_char, size: usize) -> i32 {
    // SAFETY: the handler passes protocol[0..size).
    reply("ws_set_protocol", hs, Reply::Protocol(unsafe { bytes(protocol, size) }))
}

unsafe extern "C" fn add_header(
    hs: *mut ws_handshake,
    name: *const c_char,
    name_size: usize,
    value: *const c_char,
    value_size: usize,
) -> i32 {
    // SAFETY: the handler passes both with their sizes.
    let (name, value) = unsafe { (bytes(name, name_size), bytes(value, value_size)) };
    reply("ws_add_header", hs, Reply::Header { name, value })
}

unsafe extern "C" fn configure_deflate(hs: *mut ws_handshake, options: *const ws_deflate_options) -> i32 {
    let mut all = ws_deflate_options {
        size: size_of::<ws_deflate_options>(),
        server_max_window_bits: 15,
        client_max_window_bits: 15,
        server_no_context_takeover: 0,
        client_no_context_takeover: 1,
        threshold: 64,
        level: 1,
    };
    if options.is_null() {
        return WS_E_INVALID;
    }
    // SAFETY: every version of the struct begins with its size.
    let size = unsafe { options.cast::<usize>().read() }.min(all.size);
    // SAFETY: no more is copied than the handler's struct and ours have.
    unsafe { std::ptr::copy_nonoverlapping(options.cast::<u8>(), (&raw mut all).cast::<u8>(), size) };
    reply("ws_configure_deflate", hs, Reply::Deflate(&all))
}

unsafe extern "C" fn refuse_extensions(hs: *mut ws_handshake) -> i32 {
    reply("ws_refuse_extensions", hs, Reply::RefuseExtensions)
}

unsafe extern "C" fn accept(hs: *mut ws_handshake) -> i32 {
    reply("ws_accept", hs, Reply::Accept)
}

unsafe extern "C" fn accept_and_close(
    hs: *mut ws_handshake,
    code: u32,
    reason: *const c_char,
    size: usize,
) -> i32 {
    // SAFETY: the handler passes reason[0..size).
    let reason = unsafe { bytes(reason, size) };
    reply("ws_accept_and_close", hs, Reply::AcceptAndClose { code, reason })
}

unsafe extern "C" fn reject(
    hs: *mut ws_handshake,
    status: u32,
    content_type: *const c_char,
    type_size: usize,
    body: *const c_char,
    body_size: usize,
) -> i32 {
    // SAFETY: the handler passes both with their sizes.
    let (kind, body) = unsafe { (bytes(content_type, type_size), bytes(body, body_size)) };
    let content_type = (!content_type.is_null()).then_some(kind);
    reply("ws_reject", hs, Reply::Reject { status, content_type, body })
}

unsafe extern "C" fn abort_handshake(hs: *mut ws_handshake) -> i32 {
    reply("ws_abort_handshake", hs, Reply::Abort)
}

// --------------------------------------------------------------------- data

unsafe extern "C" fn receive(conn: ws_conn, msg: *mut ws_message, timeout_ms: i64) -> i32 {
    let Some(host) = host_at("ws_receive", Tag::Transfer, conn) else { return WS_E_PLACE };
    match host.receive(conn, timeout_ms) {
        Ok(message) => {
            // SAFETY: the handler passes a place for a ws_message, whose size is fixed for good.
            unsafe { store(msg, message) };
            WS_MESSAGE
        }
        Err(result) => result,
    }
}

unsafe extern "C" fn send(conn: ws_conn, kind: u32, data: *const c_void, size: usize, flags: u32) -> i32 {
    // SAFETY: the handler passes data[0..size).
    let payload = Payload::Borrowed(unsafe { bytes(data.cast(), size) });
    host_at("ws_send", Tag::AnyThread, conn).map_or(WS_E_GONE, |host| host.send(conn, kind, payload, flags))
}

unsafe extern "C" fn send_owned(
    conn: ws_conn,
    kind: u32,
    data: *const c_void,
    size: usize,
    flags: u32,
    release: Option<unsafe extern "C" fn(*mut c_void)>,
    arg: *mut c_void,
) -> i32 {
    let payload = Payload::Owned(OwnedBytes { data: data.cast(), size, release, arg });
    host_at("ws_send_owned", Tag::AnyThread, conn)
        .map_or(WS_E_GONE, |host| host.send(conn, kind, payload, flags))
}

unsafe extern "C" fn ping(conn: ws_conn, data: *const c_void, size: usize) -> i32 {
    // SAFETY: the handler passes data[0..size).
    let payload = unsafe { bytes(data.cast(), size) };
    host_at("ws_ping", Tag::AnyThread, conn).map_or(WS_E_GONE, |host| host.ping(conn, payload))
}

unsafe extern "C" fn buffered(conn: ws_conn) -> usize {
    host_at("ws_buffered", Tag::AnyThread, conn).map_or(0, |host| host.buffered(conn))
}

unsafe extern "C" fn pause(conn: ws_conn) -> i32 {
    host_at("ws_pause", Tag::AnyThread, conn).map_or(WS_E_GONE, |host| host.pause(conn, true))
}

unsafe extern "C" fn resume(conn: ws_conn) -> i32 {
    host_at("ws_resume", Tag::AnyThread, conn).map_or(WS_E_GONE, |host| host.pause(conn, false))
}

// -------------------------------------------------- time, threads, closing

unsafe extern "C" fn set_timer(conn: ws_conn, delay_ms: u64, task: ws_task, arg: *mut c_void) -> i64 {
    let Some(host) = host_at("ws_set_timer", Tag::Callback, conn) else { return i64::from(WS_E_PLACE) };
    let Some(task) = task else { return i64::from(WS_E_INVALID) };
    host.set_timer(conn, delay_ms, Task { task, arg })
}

unsafe extern "C" fn clear_timer(conn: ws_conn, timer: i64) -> i32 {
    host_at("ws_clear_timer", Tag::Callback, conn).map_or(WS_E_PLACE, |host| host.clear_timer(conn, timer))
}

unsafe extern "C" fn post(conn: ws_conn, task: ws_task, arg: *mut c_void) -> i32 {
    let Some(host) = host_at("ws_post", Tag::AnyThread, conn) else { return WS_E_GONE };
    let Some(task) = task else { return WS_E_INVALID };
    host.post(conn, Task { task, arg })
}

unsafe extern "C" fn close(conn: ws_conn, code: u32, reason: *const c_char, size: usize) -> i32 {
    // SAFETY: the handler passes reason[0..size).
    let reason = unsafe { bytes(reason, size) };
    host_at("ws_close", Tag::AnyThread, conn).map_or(WS_E_GONE, |host| host.close(conn, code, reason))
}

unsafe extern "C" fn abort(conn: ws_conn) -> i32 {
    host_at("ws_abort", Tag::AnyThread, conn).map_or(WS_E_GONE, |host| host.abort(conn))
}

// ------------------------------------------------ what a connection carries

unsafe extern "C" fn set_user(conn: ws_conn, user: *mut c_void) -> i32 {
    host_at("ws_set_user", Tag::Callback, conn).map_or(WS_E_PLACE, |host| host.set_user(conn, user))
}

unsafe extern "C" fn user(conn: ws_conn) -> *mut c_void {
    host_at("ws_user", Tag::Callback, conn).map_or(std::ptr::null_mut(), |host| host.user(conn))
}

unsafe extern "C" fn set_state(conn: ws_conn, data: *const c_void, size: usize) -> i32 {
    if size > WS_STATE_MAX {
        return WS_E_LIMIT;
    }
    // SAFETY: the handler passes data[0..size).
    let state = unsafe { bytes(data.cast(), size) };
    host_at("ws_set_state", Tag::Callback, conn).map_or(WS_E_PLACE, |host| host.set_state(conn, state))
}
