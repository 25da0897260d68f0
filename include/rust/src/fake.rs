//! A host for tests: records what the handler calls, and answers from a script.
//! One per thread. It needs `crate::raw` alone, so that tests of libraries can
//! include it too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::{ptr, slice};

use crate::raw::*;

/// What a connection that is gone is called here.
pub(crate) const GONE: ws_conn = 99;

type Release = Option<unsafe extern "C" fn(arg: *mut c_void)>;

#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) calls: Vec<String>,
    pub(crate) user: HashMap<ws_conn, (*mut c_void, Release)>,
    pub(crate) timers: Vec<(i64, ws_task, *mut c_void)>,
    timers_made: i64,
    pub(crate) watched: HashMap<i32, (ws_ready, *mut c_void)>,
    pub(crate) posts: Vec<(ws_conn, ws_task, *mut c_void)>,
    pub(crate) results: HashMap<&'static str, i32>,
    pub(crate) inbox: Vec<(i32, String)>,
    pub(crate) query: Option<&'static str>,
    state: Vec<u8>,
    current: String,
}

thread_local! {
    static FAKE: RefCell<Fake> = RefCell::default();
}

/// Changes or asks this thread's host.
pub(crate) fn fake<R>(f: impl FnOnce(&mut Fake) -> R) -> R {
    FAKE.with_borrow_mut(f)
}

/// What has been called since the last time.
pub(crate) fn calls() -> Vec<String> {
    fake(|fake| std::mem::take(&mut fake.calls))
}

/// Begins anew.
pub(crate) fn reset() {
    fake(|fake| *fake = Fake::default());
}

fn called(name: &'static str, what: String) -> i32 {
    fake(|fake| {
        fake.calls.push(if what.is_empty() { name.to_owned() } else { format!("{name} {what}") });
        fake.results.get(name).copied().unwrap_or(WS_OK)
    })
}

fn text(data: *const c_char, size: usize) -> String {
    match data.is_null() {
        true => String::new(),
        // SAFETY: given by the handler as pointer and length.
        false => String::from_utf8_lossy(unsafe { slice::from_raw_parts(data.cast(), size) }).into_owned(),
    }
}

fn lent(text: &'static str) -> ws_bytes {
    ws_bytes { data: text.as_ptr().cast(), size: text.len() }
}

const ABSENT: ws_bytes = ws_bytes { data: ptr::null(), size: 0 };

macro_rules! answers {
    ($($name:ident = $value:expr;)*) => {
        $(unsafe extern "C" fn $name(_conn: ws_conn) -> ws_bytes { $value })*
    };
}

answers! {
    resource = lent("/chat?room=1");
    path = lent("/chat");
    query = lent(fake(|fake| fake.query.unwrap_or("room=1")));
    authority = lent("example.com");
    origin = lent("https://example.com");
    remote_user = lent("ann");
    method = lent("GET");
    requested_protocols = lent("a, b");
    requested_extensions = ABSENT;
    protocol = lent("a");
    extensions = ABSENT;
    close_reason = lent("bye");
}

unsafe extern "C" fn log(_: *const ws_host, conn: ws_conn, level: u32, data: *const c_char, size: usize) {
    called("log", format!("{conn} {level} {}", text(data, size)));
}
unsafe extern "C" fn now() -> u64 {
    1_500
}
unsafe extern "C" fn config(_: *const ws_host, key: *const c_char, size: usize) -> ws_bytes {
    if text(key, size) == "key" { lent("value") } else { ABSENT }
}
unsafe extern "C" fn config_at(
    _: *const ws_host,
    index: usize,
    key: *mut ws_bytes,
    value: *mut ws_bytes,
) -> i32 {
    // SAFETY: two places of the crate.
    unsafe { (*key, *value) = (lent("key"), lent("value")) };
    i32::from(index == 0)
}
unsafe extern "C" fn header(_: ws_conn, name: *const c_char, size: usize) -> ws_bytes {
    if text(name, size) == "Host" { lent("example.com") } else { ABSENT }
}
unsafe extern "C" fn header_at(_: ws_conn, index: usize, name: *mut ws_bytes, value: *mut ws_bytes) -> i32 {
    // SAFETY: two places of the crate.
    unsafe { (*name, *value) = (lent("Host"), lent("example.com")) };
    i32::from(index < 2)
}
unsafe extern "C" fn version(conn: ws_conn) -> u32 {
    if conn == GONE { 0 } else { 13 }
}
unsafe extern "C" fn address(_: ws_conn, address: *mut ws_address, size: usize) -> i32 {
    assert_eq!(size, size_of::<ws_address>());
    // SAFETY: a place of the crate.
    let address = unsafe { &mut *address };
    address.family = WS_IPV4;
    address.port = 4711;
    for (to, from) in address.text.iter_mut().zip(c"192.0.2.1".to_bytes_with_nul()) {
        *to = *from as c_char;
    }
    WS_OK
}
unsafe extern "C" fn tls_fact(_: ws_conn, which: u32) -> ws_bytes {
    if which == WS_TLS_VERSION { lent("TLSv1.3") } else { ABSENT }
}
unsafe extern "C" fn set_protocol(_: *mut ws_handshake, protocol: *const c_char, size: usize) -> i32 {
    called("set_protocol", text(protocol, size))
}
unsafe extern "C" fn add_header(
    _: *mut ws_handshake,
    name: *const c_char,
    name_size: usize,
    value: *const c_char,
    value_size: usize,
) -> i32 {
    called("add_header", format!("{}: {}", text(name, name_size), text(value, value_size)))
}
unsafe extern "C" fn configure_deflate(_: *mut ws_handshake, options: *const ws_deflate_options) -> i32 {
    // SAFETY: a value of the crate.
    let o = unsafe { *options };
    assert_eq!(o.size, size_of::<ws_deflate_options>());
    called(
        "configure_deflate",
        format!(
            "{},{},{},{},{},{}",
            o.server_max_window_bits,
            o.client_max_window_bits,
            o.server_no_context_takeover,
            o.client_no_context_takeover,
            o.threshold,
            o.level
        ),
    )
}
unsafe extern "C" fn refuse_extensions(_: *mut ws_handshake) -> i32 {
    called("refuse_extensions", String::new())
}
unsafe extern "C" fn accept(_: *mut ws_handshake) -> i32 {
    called("accept", String::new())
}
unsafe extern "C" fn accept_and_close(
    _: *mut ws_handshake,
    code: u32,
    reason: *const c_char,
    size: usize,
) -> i32 {
    called("accept_and_close", format!("{code} {}", text(reason, size)))
}
unsafe extern "C" fn reject(
    _: *mut ws_handshake,
    status: u32,
    type_: *const c_char,
    type_size: usize,
    body: *const c_char,
    body_size: usize,
) -> i32 {
    let result = called("reject", format!("{status} {} {}", text(type_, type_size), text(body, body_size)));
    if result == WS_OK { WS_REJECTED } else { result }
}
unsafe extern "C" fn abort_handshake(_: *mut ws_handshake) -> i32 {
    called("abort_handshake", String::new());
    WS_ABORTED
}
unsafe extern "C" fn deflate(_: ws_conn) -> i32 {
    1
}
unsafe extern "C" fn receive(_: ws_conn, msg: *mut ws_message, timeout_ms: i64) -> i32 {
    called("receive", timeout_ms.to_string());
    fake(|fake| {
        if fake.inbox.is_empty() {
            return WS_CLOSED;
        }
        let (result, text) = fake.inbox.remove(0);
        fake.current = text;
        // SAFETY: a place of the crate; the text stays until the next call.
        unsafe {
            *msg = ws_message {
                type_: WS_TEXT,
                flags: WS_FIRST | WS_LAST,
                data: fake.current.as_ptr().cast(),
                size: fake.current.len(),
            };
        }
        result
    })
}
unsafe extern "C" fn send(conn: ws_conn, type_: u32, data: *const c_void, size: usize, flags: u32) -> i32 {
    called("send", format!("{conn} {type_} {flags} {}", text(data.cast(), size)))
}
unsafe extern "C" fn send_owned(
    conn: ws_conn,
    type_: u32,
    data: *const c_void,
    size: usize,
    flags: u32,
    release: Release,
    arg: *mut c_void,
) -> i32 {
    let result = called("send_owned", format!("{conn} {type_} {flags} {}", text(data.cast(), size)));
    // SAFETY: exactly once, whatever the result.
    unsafe { release.unwrap()(arg) };
    result
}
unsafe extern "C" fn ping(_: ws_conn, data: *const c_void, size: usize) -> i32 {
    called("ping", text(data.cast(), size))
}
unsafe extern "C" fn buffered(_: ws_conn) -> usize {
    7
}
unsafe extern "C" fn pause(_: ws_conn) -> i32 {
    called("pause", String::new())
}
unsafe extern "C" fn resume(_: ws_conn) -> i32 {
    called("resume", String::new())
}
unsafe extern "C" fn last_opcode(_: ws_conn) -> u32 {
    WS_BINARY
}
unsafe extern "C" fn set_timer(
    _: *const ws_host,
    conn: ws_conn,
    delay_ms: u64,
    period_ms: u64,
    task: ws_task,
    arg: *mut c_void,
) -> i64 {
    let every = if period_ms > 0 { format!(" every {period_ms}") } else { String::new() };
    let whose = if conn == 0 { " of the worker" } else { "" };
    let result = called("set_timer", format!("{delay_ms}{every}{whose}"));
    if result < 0 {
        return result.into();
    }
    fake(|fake| {
        fake.timers_made += 1;
        let id = fake.timers_made;
        fake.timers.push((id, task, arg));
        id
    })
}
unsafe extern "C" fn clear_timer(_: *const ws_host, _: ws_conn, timer: i64) -> i32 {
    called("clear_timer", timer.to_string())
}
unsafe extern "C" fn post(_: *const ws_host, conn: ws_conn, task: ws_task, arg: *mut c_void) -> i32 {
    let result = called("post", if conn == 0 { "0".to_owned() } else { String::new() });
    if result == WS_OK {
        fake(|fake| fake.posts.push((conn, task, arg)));
    }
    result
}
unsafe extern "C" fn close(conn: ws_conn, code: u32, reason: *const c_char, size: usize) -> i32 {
    called("close", format!("{conn} {code} {}", text(reason, size)))
}
unsafe extern "C" fn abort(_: ws_conn) -> i32 {
    called("abort", String::new())
}
unsafe extern "C" fn close_code(_: ws_conn) -> u32 {
    1000
}
/// Gives a connection its pointer; the one before is released.
unsafe fn own(conn: ws_conn, user: *mut c_void, release: Release, name: &'static str) -> i32 {
    let result = fake(|fake| fake.results.get(name).copied()).unwrap_or(WS_OK);
    let replaced = match result {
        WS_OK => fake(|fake| fake.user.insert(conn, (user, release))),
        _ => Some((user, release)),
    };
    if let Some((user, Some(release))) = replaced {
        // SAFETY: exactly once, whatever the result.
        unsafe { release(user) };
    }
    result
}
unsafe extern "C" fn set_user(conn: ws_conn, user: *mut c_void, release: Release) -> i32 {
    // SAFETY: passed on as it came.
    unsafe { own(conn, user, release, "set_user") }
}
/// A handshake is about connection 1.
unsafe extern "C" fn attach_user(_: *mut ws_handshake, user: *mut c_void, release: Release) -> i32 {
    called("attach_user", String::new());
    // SAFETY: passed on as it came.
    unsafe { own(1, user, release, "attach_user") }
}
unsafe extern "C" fn attach_state(_: *mut ws_handshake, data: *const c_void, size: usize) -> i32 {
    // SAFETY: passed on as it came.
    unsafe { set_state(1, data, size) }
}
/// After on_close, or when a handshake ends without an open connection: whether there was a pointer.
#[allow(dead_code)] // not every test that includes this
pub(crate) fn release_user(conn: ws_conn) -> bool {
    match fake(|fake| fake.user.remove(&conn)) {
        Some((user, Some(release))) => {
            // SAFETY: exactly once.
            unsafe { release(user) };
            true
        }
        _ => false,
    }
}
unsafe extern "C" fn query_param(
    _: ws_conn,
    name: *const c_char,
    name_size: usize,
    to: *mut c_char,
    size: usize,
) -> i32 {
    let value: &[u8] = match text(name, name_size).as_str() {
        "room" => b"blue moon",
        _ => return WS_E_ABSENT,
    };
    if value.len() >= size {
        return WS_E_LIMIT;
    }
    // SAFETY: the caller has size bytes.
    unsafe {
        ptr::copy_nonoverlapping(value.as_ptr().cast(), to, value.len());
        *to.add(value.len()) = 0;
    }
    value.len() as i32
}
unsafe extern "C" fn workers(_: *const ws_host) -> u32 {
    4
}
unsafe extern "C" fn watch_fd(
    _: *const ws_host,
    fd: i32,
    events: u32,
    ready: ws_ready,
    arg: *mut c_void,
) -> i32 {
    let result = called("watch_fd", format!("{fd} {events}"));
    if result == WS_OK {
        fake(|fake| fake.watched.insert(fd, (ready, arg)));
    }
    result
}
unsafe extern "C" fn unwatch_fd(_: *const ws_host, fd: i32) -> i32 {
    called("unwatch_fd", fd.to_string());
    if fake(|fake| fake.watched.remove(&fd)).is_some() { WS_OK } else { WS_E_INVALID }
}
unsafe extern "C" fn get_extension(_: *const ws_host, id: *const c_char, size: usize) -> *const c_void {
    if text(id, size) == "fake.answer" { ptr::from_ref(&42_u32).cast() } else { ptr::null() }
}
unsafe extern "C" fn send_raw(_: *const ws_host, conn: ws_conn, data: *const c_void, size: usize) -> i32 {
    called("send_raw", format!("{conn} {}", text(data.cast(), size)))
}
unsafe extern "C" fn user(conn: ws_conn) -> *mut c_void {
    fake(|fake| fake.user.get(&conn).map_or(ptr::null_mut(), |(user, _)| *user))
}
unsafe extern "C" fn set_state(_: ws_conn, data: *const c_void, size: usize) -> i32 {
    if size > WS_STATE_MAX {
        return WS_E_LIMIT;
    }
    fake(|fake| fake.state = text(data.cast(), size).into_bytes());
    WS_OK
}
unsafe extern "C" fn state(_: ws_conn) -> ws_bytes {
    fake(|fake| match fake.state.is_empty() {
        true => ABSENT,
        false => ws_bytes { data: fake.state.as_ptr().cast(), size: fake.state.len() },
    })
}
unsafe extern "C" fn is_resumed(_: ws_conn) -> i32 {
    1
}

unsafe extern "C" fn subscribe(conn: ws_conn, topic: *const c_char, size: usize, flags: u32) -> i32 {
    called("subscribe", format!("{conn} {} {flags}", text(topic, size)))
}
unsafe extern "C" fn unsubscribe(conn: ws_conn, topic: *const c_char, size: usize) -> i32 {
    called("unsubscribe", format!("{conn} {}", text(topic, size)))
}
unsafe extern "C" fn publish(
    _: *const ws_host,
    topic: *const c_char,
    topic_size: usize,
    kind: u32,
    data: *const c_void,
    size: usize,
    flags: u32,
) -> i32 {
    let (topic, data) = (text(topic, topic_size), text(data.cast(), size));
    called("publish", format!("{topic} {kind} {data} {flags}"))
}
unsafe extern "C" fn subscribers(_: *const ws_host, _: *const c_char, size: usize) -> u64 {
    size as u64
}
unsafe extern "C" fn missed(conn: ws_conn) -> u64 {
    conn
}

pub(crate) static HOST: ws_host = ws_host {
    size: size_of::<ws_host>(),
    abi: WS_ABI,
    worker: 3,
    log,
    now,
    config,
    config_at,
    resource,
    path,
    query,
    authority,
    origin,
    method,
    header,
    header_at,
    requested_protocols,
    requested_extensions,
    version,
    remote_address: address,
    local_address: address,
    tls_fact,
    set_protocol,
    add_header,
    configure_deflate,
    refuse_extensions,
    accept,
    accept_and_close,
    reject,
    abort_handshake,
    protocol,
    extensions,
    deflate,
    receive,
    send,
    send_owned,
    ping,
    buffered,
    pause,
    resume,
    last_opcode,
    set_timer,
    clear_timer,
    post,
    close,
    abort,
    close_code,
    close_reason,
    set_user,
    user,
    set_state,
    state,
    is_resumed,
    attach_user,
    attach_state,
    query_param,
    cookie: query_param,
    host_version: c"fake 1.0".as_ptr(),
    workers,
    watch_fd,
    unwatch_fd,
    get_extension,
    send_raw,
    subscribe,
    unsubscribe,
    publish,
    subscribers,
    missed,
    remote_user,
};
