//! The host's table and the C functions behind it: each turns C values into
//! Rust ones, checks that it was called from a place its tag in `ws_handler.h`
//! allows, and passes it to the [`Host`](super::host::Host) of the calling thread.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};

use super::host::*;
use super::plugin::Log;
use super::topics;
use ::ws_handler::raw::*;

/// The table for one handler; it carries what the functions that are not about
/// a connection need. Lives as long as the process.
#[repr(C)]
struct Table {
    raw: ws_host,
    handler: String,
    number: u16,
    settings: Vec<(String, String)>,
    log: Log,
}

/// Makes the table for one handler. It is never freed: a plugin is never unloaded.
pub fn table(
    handler: &str,
    (number, worker): (u16, u32),
    settings: Vec<(String, String)>,
    log: Log,
) -> &'static ws_host {
    let handler = handler.to_owned();
    let table = Box::leak(Box::new(Table { raw: host(worker), handler, number, settings, log }));
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
        subscribe: topics::subscribe,
        unsubscribe: topics::unsubscribe,
        publish: topics::publish,
        subscribers: topics::subscribers,
        missed: topics::missed,
    }
}

/// The number of the handler that this table was made for.
///
/// # Safety
/// `host` is a table made by [`table`].
pub(super) unsafe fn number_of(host: *const ws_host) -> u16 {
    // SAFETY: promised by the caller; it is the first member of a Table.
    unsafe { (*host.cast::<Table>()).number }
}

// ------------------------------------------------- log, time, configuration

unsafe extern "C" fn write_log(
    host: *const ws_host,
    conn: ws_conn,
    level: u32,
    text: *const c_char,
    size: usize,
) {
    count_call();
    // SAFETY: the wrappers in the header pass the table they were given by table().
    let table = unsafe { &*host.cast::<Table>() };
    // SAFETY: the handler passes text[0..size).
    let text = String::from_utf8_lossy(unsafe { bytes(text, size) });
    (table.log)(&table.handler, level, conn, text.trim_end());
}

unsafe extern "C" fn now() -> u64 {
    count_call();
    crate::clock::now().as_nanos()
}

unsafe extern "C" fn config(host: *const ws_host, key: *const c_char, size: usize) -> ws_bytes {
    count_call();
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
    count_call();
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
    let result = host_at("ws_send_owned", Tag::AnyThread, conn)
        .map_or(WS_E_GONE, |host| host.send(conn, kind, payload, flags));
    // Here nothing of the host's is in use.
    run_releases();
    result
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
