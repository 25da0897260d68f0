//! The C functions of the host's table for the request, the reply and the negotiated parameters; see `table`.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};

use super::decode;
use super::host::*;
use super::place::*;
use ::ws_handler::raw::*;

// ------------------------------------------------------------------ request

macro_rules! facts {
    ($($function:ident: $name:literal $fact:ident;)*) => {$(
        pub(super) unsafe extern "C" fn $function(conn: ws_conn) -> ws_bytes {
            fact($name, conn, Fact::$fact)
        }
    )*};
}

fn fact(function: &str, conn: ws_conn, fact: Fact) -> ws_bytes {
    let host = host_at(function, Tag::Callback, conn);
    host.and_then(|host| host.ask(conn, |info| info.fact(fact))).unwrap_or(ABSENT)
}

facts! {
    resource_: "ws_resource" Resource;
    path_: "ws_path" Path;
    query_: "ws_query" Query;
    authority_: "ws_authority" Authority;
    origin_: "ws_origin" Origin;
    remote_user_: "ws_remote_user" RemoteUser;
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
        pub(super) unsafe extern "C" fn $function(conn: ws_conn) -> $type {
            let host = host_at($name, Tag::Callback, conn);
            host.and_then(|host| host.ask(conn, |info| info.number(Number::$number) as $type)).unwrap_or(0)
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

pub(super) unsafe extern "C" fn header(conn: ws_conn, name: *const c_char, size: usize) -> ws_bytes {
    // SAFETY: the handler passes name[0..size).
    let name = unsafe { bytes(name, size) };
    let host = host_at("ws_header", Tag::Callback, conn);
    host.and_then(|host| host.ask(conn, |info| info.header(name))).unwrap_or(ABSENT)
}

pub(super) unsafe extern "C" fn header_at(
    conn: ws_conn,
    index: usize,
    name: *mut ws_bytes,
    value: *mut ws_bytes,
) -> i32 {
    let host = host_at("ws_header_at", Tag::Callback, conn);
    let found = host.and_then(|host| host.ask(conn, |info| info.header_at(index))).flatten();
    let Some((found, text)) = found else { return 0 };
    // SAFETY: the handler passes places for two ws_bytes.
    unsafe {
        store(name, found);
        store(value, text);
    }
    1
}

pub(super) unsafe extern "C" fn query_param(
    conn: ws_conn,
    name: *const c_char,
    name_size: usize,
    text: *mut c_char,
    size: usize,
) -> i32 {
    let Some(host) = host_at("ws_query_param", Tag::Callback, conn) else { return WS_E_PLACE };
    let query = host.ask(conn, |info| info.fact(Fact::Query)).unwrap_or(ABSENT);
    // SAFETY: the query is valid during this call; the handler passes name[0..name_size) and room for size bytes.
    unsafe { write(decode::query_param(bytes(query.data, query.size), bytes(name, name_size)), text, size) }
}

pub(super) unsafe extern "C" fn cookie(
    conn: ws_conn,
    name: *const c_char,
    name_size: usize,
    text: *mut c_char,
    size: usize,
) -> i32 {
    let Some(host) = host_at("ws_cookie", Tag::Callback, conn) else { return WS_E_PLACE };
    // SAFETY: the handler passes name[0..name_size).
    let name = unsafe { bytes(name, name_size) };
    let found = host.ask(conn, |info| {
        let fields = (0..).map_while(|index| info.header_at(index));
        // SAFETY: the fields are valid during this call.
        let mut cookies = fields.filter_map(|(field, value)| unsafe {
            let is_cookie = bytes(field.data, field.size).eq_ignore_ascii_case(b"cookie");
            is_cookie.then(|| bytes(value.data, value.size))
        });
        cookies.find_map(|cookies| decode::cookie(cookies, name))
    });
    // SAFETY: the handler passes room for size bytes.
    unsafe { write(found.flatten(), text, size) }
}

/// Writes a decoded value and a NUL; returns its length or an error.
///
/// # Safety
/// `to[0..size)` must be writable.
unsafe fn write(value: Option<Vec<u8>>, to: *mut c_char, size: usize) -> i32 {
    let Some(mut value) = value else { return WS_E_ABSENT };
    if value.contains(&0) {
        return WS_E_INVALID;
    }
    let length = value.len();
    value.push(0);
    if to.is_null() || value.len() > size {
        return WS_E_LIMIT;
    }
    // SAFETY: promised by the caller, and there is room.
    unsafe { std::ptr::copy_nonoverlapping(value.as_ptr().cast(), to, value.len()) };
    i32::try_from(length).unwrap_or(WS_E_LIMIT)
}

pub(super) unsafe extern "C" fn remote_address(conn: ws_conn, to: *mut ws_address, size: usize) -> i32 {
    // SAFETY: passed on as it came.
    unsafe { address("ws_remote_address", conn, End::Remote, to, size) }
}

pub(super) unsafe extern "C" fn local_address(conn: ws_conn, to: *mut ws_address, size: usize) -> i32 {
    // SAFETY: passed on as it came.
    unsafe { address("ws_local_address", conn, End::Local, to, size) }
}

/// # Safety
/// `to[0..size)` bytes must be writable.
unsafe fn address(function: &str, conn: ws_conn, end: End, to: *mut ws_address, size: usize) -> i32 {
    let mut out = ws_address { family: 0, port: 0, text: [0; 112] };
    let result = match host_at(function, Tag::Callback, conn) {
        None => WS_E_PLACE,
        Some(host) => match host.ask(conn, |info| info.address(end)).flatten() {
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
        // SAFETY: the handler passes its own sizeof(ws_address); the copy is within both structs.
        unsafe { std::ptr::copy_nonoverlapping((&raw const out).cast::<u8>(), to.cast::<u8>(), size) };
    }
    result
}

pub(super) unsafe extern "C" fn tls_fact(conn: ws_conn, which: u32) -> ws_bytes {
    fact("ws_tls_fact", conn, Fact::Tls(which))
}

/// Upper bound for the size of any version of the options.
const LARGEST_OPTIONS: usize = 4096;

// -------------------------------------------------------------------- reply

/// What is done to handshakes in progress, on any thread. Results are those of the functions in `ws_handler.h`.
pub trait PendingHandshakes: Sync {
    /// Changes or finishes the reply, in do_extra_handshake or later.
    fn reply(&self, handshake: u64, in_callback: bool, reply: Reply<'_>) -> i32;
    /// Sets the user pointer later than in do_extra_handshake.
    fn set_user(&self, handshake: u64, user: User) -> i32;
    /// Attaches state later than in do_extra_handshake.
    fn set_state(&self, handshake: u64, state: &[u8]) -> i32;
}

static PENDING: AnyThread<dyn PendingHandshakes> = AnyThread::unset();

/// Sets who answers; the first call counts. Until then there are no handshakes.
pub fn set_pending_handshakes(pending: &'static dyn PendingHandshakes) {
    PENDING.set(pending);
}

/// Whether the calling thread is in do_extra_handshake of this handshake.
fn is_in(handshake: u64) -> bool {
    place() == (Callback::Handshake, handshake)
}

fn reply(hs: *mut ws_handshake, reply: Reply<'_>) -> i32 {
    let handshake = hs as usize as u64;
    PENDING.ask(WS_E_GONE, |pending| pending.reply(handshake, is_in(handshake), reply))
}

pub(super) unsafe extern "C" fn set_protocol(
    hs: *mut ws_handshake,
    protocol: *const c_char,
    size: usize,
) -> i32 {
    // SAFETY: the handler passes protocol[0..size).
    let name = (!protocol.is_null()).then(|| unsafe { bytes(protocol, size) });
    reply(hs, Reply::Protocol(name))
}

pub(super) unsafe extern "C" fn add_header(
    hs: *mut ws_handshake,
    name: *const c_char,
    name_size: usize,
    value: *const c_char,
    value_size: usize,
) -> i32 {
    // SAFETY: the handler passes both with their sizes.
    let (name, value) = unsafe { (bytes(name, name_size), bytes(value, value_size)) };
    reply(hs, Reply::Header { name, value })
}

pub(super) unsafe extern "C" fn configure_deflate(
    hs: *mut ws_handshake,
    options: *const ws_deflate_options,
) -> i32 {
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
    let size = unsafe { options.cast::<usize>().read() };
    if !(size_of::<usize>()..=LARGEST_OPTIONS).contains(&size) {
        return WS_E_INVALID;
    }
    let known = size.min(all.size);
    // SAFETY: the handler's struct has size bytes.
    let unknown = unsafe { bytes(options.cast::<c_char>().add(known), size - known) };
    if unknown.iter().any(|byte| *byte != 0) {
        return WS_E_UNSUPPORTED;
    }
    // SAFETY: the copy is within both structs.
    unsafe { std::ptr::copy_nonoverlapping(options.cast::<u8>(), (&raw mut all).cast::<u8>(), known) };
    reply(hs, Reply::Deflate(&all))
}

pub(super) unsafe extern "C" fn refuse_extensions(hs: *mut ws_handshake) -> i32 {
    reply(hs, Reply::RefuseExtensions)
}

pub(super) unsafe extern "C" fn accept(hs: *mut ws_handshake) -> i32 {
    reply(hs, Reply::Accept)
}

pub(super) unsafe extern "C" fn accept_and_close(
    hs: *mut ws_handshake,
    code: u32,
    reason: *const c_char,
    size: usize,
) -> i32 {
    // SAFETY: the handler passes reason[0..size).
    let reason = unsafe { bytes(reason, size) };
    reply(hs, Reply::AcceptAndClose { code, reason })
}

pub(super) unsafe extern "C" fn reject(
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
    reply(hs, Reply::Reject { status, content_type, body })
}

pub(super) unsafe extern "C" fn abort_handshake(hs: *mut ws_handshake) -> i32 {
    reply(hs, Reply::Abort)
}

pub(super) unsafe extern "C" fn attach_user(
    hs: *mut ws_handshake,
    user: *mut c_void,
    release: Option<unsafe extern "C" fn(*mut c_void)>,
) -> i32 {
    let handshake = hs as usize as u64;
    let user = owned(user, release);
    let result = match is_in(handshake) {
        true => host_at("ws_attach_user", Tag::Callback, handshake)
            .map_or(WS_E_GONE, |host| host.set_user(handshake, user)),
        false => PENDING.ask(WS_E_GONE, |pending| pending.set_user(handshake, user)),
    };
    run_releases();
    result
}

pub(super) unsafe extern "C" fn attach_state(hs: *mut ws_handshake, data: *const c_void, size: usize) -> i32 {
    if size > WS_STATE_MAX {
        return WS_E_LIMIT;
    }
    let handshake = hs as usize as u64;
    // SAFETY: the handler passes data[0..size).
    let state = unsafe { bytes(data.cast(), size) };
    match is_in(handshake) {
        true => host_at("ws_attach_state", Tag::Callback, handshake)
            .map_or(WS_E_GONE, |host| host.set_state(handshake, state)),
        false => PENDING.ask(WS_E_GONE, |pending| pending.set_state(handshake, state)),
    }
}

pub(super) fn owned(pointer: *mut c_void, release: Option<unsafe extern "C" fn(*mut c_void)>) -> User {
    User { pointer, release: Release { function: release, arg: pointer } }
}
