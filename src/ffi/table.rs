//! The host's table and its C functions: each converts C values to Rust,
//! checks that its tag in `ws_handler.h` allows the place of the call, and
//! calls the [`Host`](super::host::Host) of the thread.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};

use super::host::*;
use super::place::*;
use super::plugin::LoadOptions;
use super::request::*;
use super::strict::{checked, closed, fails, is_on};
use super::topics;
use ::ws_handler::raw::*;

/// The table for one handler, with the data for functions without a
/// connection. Lives as long as the process.
#[repr(C)]
struct Table {
    raw: ws_host,
    name: String,
    /// Each key and value followed by a NUL.
    settings: Vec<(String, String)>,
    given: LoadOptions,
}

/// Makes the table for one handler. It is never freed: a plugin is never unloaded.
pub fn table(name: &str, mut given: LoadOptions) -> &'static ws_host {
    let terminated = |(key, value): (String, String)| (key + "\0", value + "\0");
    let settings = std::mem::take(&mut given.settings).into_iter().map(terminated).collect();
    let table = Table { raw: host(given.worker), name: name.to_owned(), settings, given };
    &Box::leak(Box::new(table)).raw
}

/// # Safety
/// `host` is a table made by [`table`]: the functions in the header pass the one that the entry function got.
unsafe fn table_of<'a>(host: *const ws_host) -> &'a Table {
    // SAFETY: promised by the caller; it is the first member of a Table.
    unsafe { &*host.cast::<Table>() }
}

const VERSION: &std::ffi::CStr =
    match std::ffi::CStr::from_bytes_with_nul(concat!("wshd ", env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"wshd",
    };

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
        attach_user,
        attach_state,
        query_param,
        cookie,
        host_version: VERSION.as_ptr(),
        workers,
        watch_fd,
        unwatch_fd,
        get_extension,
        send_raw,
        subscribe: topics::subscribe,
        unsubscribe: topics::unsubscribe,
        publish: topics::publish,
        subscribers: topics::subscribers,
        missed: topics::missed,
        remote_user: remote_user_,
    }
}

/// The number of the handler that this table was made for.
///
/// # Safety
/// `host` is a table made by [`table`].
pub(super) unsafe fn number_of(host: *const ws_host) -> u16 {
    // SAFETY: promised by the caller; it is the first member of a Table.
    unsafe { (*host.cast::<Table>()).given.number }
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
    // SAFETY: the host's table, and the handler passes text[0..size).
    let (table, text) = unsafe { (table_of(host), String::from_utf8_lossy(bytes(text, size))) };
    (table.given.log)(&table.name, level, conn, text.trim_end());
}

unsafe extern "C" fn now() -> u64 {
    count_call();
    crate::clock::now().as_nanos()
}

unsafe extern "C" fn config(host: *const ws_host, key: *const c_char, size: usize) -> ws_bytes {
    count_call();
    // SAFETY: the host's table, and the handler passes key[0..size).
    let (table, key) = unsafe { (table_of(host), bytes(key, size)) };
    let value = table.settings.iter().find(|(name, _)| name.as_bytes().strip_suffix(b"\0") == Some(key));
    if value.is_none() && is_on() {
        log::info!(
            "{}: ws_config({:?}): no such setting is configured",
            table.name,
            String::from_utf8_lossy(key)
        );
    }
    value.map_or(ABSENT, |(_, value)| terminated(value.as_bytes()))
}

unsafe extern "C" fn config_at(
    host: *const ws_host,
    index: usize,
    key: *mut ws_bytes,
    value: *mut ws_bytes,
) -> i32 {
    count_call();
    // SAFETY: the host's table.
    let table = unsafe { table_of(host) };
    let Some((name, text)) = table.settings.get(index) else { return 0 };
    // SAFETY: the handler passes places for two ws_bytes.
    unsafe {
        store(key, terminated(name.as_bytes()));
        store(value, terminated(text.as_bytes()));
    }
    1
}

// ------------------------------------------------------- the worker, the host

unsafe extern "C" fn workers(_: *const ws_host) -> u32 {
    WORKER.ask(1, |worker| worker.workers())
}

unsafe extern "C" fn watch_fd(
    host: *const ws_host,
    fd: i32,
    events: u32,
    ready: ws_ready,
    arg: *mut c_void,
) -> i32 {
    // SAFETY: the host's table.
    let table = unsafe { table_of(host) };
    let Some(event_loop) = event_loop("ws_watch_fd", &table.name) else { return WS_E_PLACE };
    let Some(ready) = ready.filter(|_| fd >= 0 && matches!(events, 1..=3)) else { return WS_E_INVALID };
    event_loop.watch(table.given.number, fd, events, Ready { ready, arg })
}

unsafe extern "C" fn unwatch_fd(host: *const ws_host, fd: i32) -> i32 {
    // SAFETY: the host's table.
    let table = unsafe { table_of(host) };
    let event_loop = event_loop("ws_unwatch_fd", &table.name);
    event_loop.map_or(WS_E_PLACE, |event_loop| event_loop.unwatch(table.given.number, fd))
}

/// None exists yet.
unsafe extern "C" fn get_extension(_: *const ws_host, _id: *const c_char, _size: usize) -> *const c_void {
    count_call();
    std::ptr::null()
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
    if fails() {
        return WS_E_FULL;
    }
    let result = host_at("ws_send", Tag::AnyThread, conn)
        .map_or(WS_E_GONE, |host| host.send(conn, kind, payload, flags));
    checked("ws_send", conn, size, result)
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
    let release = Release { function: release, arg };
    let payload = Payload::Owned(OwnedBytes { data: data.cast(), size, _release: release });
    let result = host_at("ws_send_owned", Tag::AnyThread, conn)
        .map_or(WS_E_GONE, |host| host.send(conn, kind, payload, flags));
    // No data of the host is in use here.
    run_releases();
    checked("ws_send_owned", conn, size, result)
}

unsafe extern "C" fn send_raw(host: *const ws_host, conn: ws_conn, data: *const c_void, size: usize) -> i32 {
    // SAFETY: the host's table, and the handler passes data[0..size).
    let (table, octets) = unsafe { (table_of(host), bytes(data.cast(), size)) };
    if !table.given.raw {
        count_call();
        return WS_E_DENIED;
    }
    host_at("ws_send_raw", Tag::AnyThread, conn).map_or(WS_E_GONE, |host| host.send_raw(conn, octets))
}

unsafe extern "C" fn ping(conn: ws_conn, data: *const c_void, size: usize) -> i32 {
    // SAFETY: the handler passes data[0..size).
    let payload = unsafe { bytes(data.cast(), size) };
    if fails() {
        return WS_E_FULL;
    }
    let result = host_at("ws_ping", Tag::AnyThread, conn).map_or(WS_E_GONE, |host| host.ping(conn, payload));
    checked("ws_ping", conn, size, result)
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

unsafe extern "C" fn set_timer(
    host: *const ws_host,
    conn: ws_conn,
    delay_ms: u64,
    period_ms: u64,
    task: ws_task,
    arg: *mut c_void,
) -> i64 {
    let place = i64::from(WS_E_PLACE);
    let task = task.map(|task| Task { task, arg }).ok_or(i64::from(WS_E_INVALID));
    if fails() {
        return i64::from(WS_E_LIMIT);
    }
    if conn == 0 {
        // SAFETY: the host's table.
        let table = unsafe { table_of(host) };
        let Some(event_loop) = event_loop("ws_set_timer", &table.name) else { return place };
        let set = |task| event_loop.set_timer(table.given.number, delay_ms, period_ms, task);
        return task.map_or_else(|wrong| wrong, set);
    }
    let Some(host) = host_at("ws_set_timer", Tag::Callback, conn) else { return place };
    task.map_or_else(|wrong| wrong, |task| host.set_timer(conn, delay_ms, period_ms, task))
}

unsafe extern "C" fn clear_timer(host: *const ws_host, conn: ws_conn, timer: i64) -> i32 {
    if conn == 0 {
        // SAFETY: the host's table.
        let table = unsafe { table_of(host) };
        let event_loop = event_loop("ws_clear_timer", &table.name);
        return event_loop.map_or(WS_E_PLACE, |event_loop| event_loop.clear_timer(table.given.number, timer));
    }
    host_at("ws_clear_timer", Tag::Callback, conn).map_or(WS_E_PLACE, |host| host.clear_timer(conn, timer))
}

unsafe extern "C" fn post(host: *const ws_host, conn: ws_conn, task: ws_task, arg: *mut c_void) -> i32 {
    let Some(task) = task else { return WS_E_INVALID };
    let task = Task { task, arg };
    if fails() {
        return WS_E_LIMIT;
    }
    if conn == 0 {
        // SAFETY: the host's table.
        let number = unsafe { table_of(host) }.given.number;
        return WORKER.ask(WS_E_GONE, |worker| worker.post(number, task));
    }
    let result = host_at("ws_post", Tag::AnyThread, conn).map_or(WS_E_GONE, |host| host.post(conn, task));
    checked("ws_post", conn, 0, result)
}

unsafe extern "C" fn close(conn: ws_conn, code: u32, reason: *const c_char, size: usize) -> i32 {
    // SAFETY: the handler passes reason[0..size).
    let reason = unsafe { bytes(reason, size) };
    let result =
        host_at("ws_close", Tag::AnyThread, conn).map_or(WS_E_GONE, |host| host.close(conn, code, reason));
    if result >= 0 {
        closed(conn);
    }
    checked("ws_close", conn, 0, result)
}

unsafe extern "C" fn abort(conn: ws_conn) -> i32 {
    let result = host_at("ws_abort", Tag::AnyThread, conn).map_or(WS_E_GONE, |host| host.abort(conn));
    if result >= 0 {
        closed(conn);
    }
    checked("ws_abort", conn, 0, result)
}

// ------------------------------------------------ what a connection carries

unsafe extern "C" fn set_user(
    conn: ws_conn,
    user: *mut c_void,
    release: Option<unsafe extern "C" fn(*mut c_void)>,
) -> i32 {
    let user = owned(user, release);
    let result =
        host_at("ws_set_user", Tag::Callback, conn).map_or(WS_E_PLACE, |host| host.set_user(conn, user));
    // No data of the host is in use here.
    run_releases();
    result
}

unsafe extern "C" fn user(conn: ws_conn) -> *mut c_void {
    host_at("ws_user", Tag::Callback, conn).map_or(std::ptr::null_mut(), |host| host.user(conn))
}

unsafe extern "C" fn set_state(conn: ws_conn, data: *const c_void, size: usize) -> i32 {
    if size > WS_STATE_MAX || fails() {
        return checked("ws_set_state", conn, size, WS_E_LIMIT);
    }
    // SAFETY: the handler passes data[0..size).
    let state = unsafe { bytes(data.cast(), size) };
    host_at("ws_set_state", Tag::Callback, conn).map_or(WS_E_PLACE, |host| host.set_state(conn, state))
}
