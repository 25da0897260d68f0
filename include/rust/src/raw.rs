//! The mirror of `ws_handler.h`, member for member and name for name.
//!
//! The header is the authority and documents every item; here stand only the
//! declarations. The host (`wshd` itself) and the safe half of this crate use
//! this one mirror, and a C program compares its layout with the header's.

#![allow(missing_docs, non_camel_case_types)]

use core::ffi::{c_char, c_void};

pub const WS_ABI_MAJOR: u32 = 1;
pub const WS_ABI_MINOR: u32 = 0;
pub const WS_ABI: u32 = WS_ABI_MAJOR << 16 | WS_ABI_MINOR;

/// The one symbol that a handler exports; see [`ws_handler_entry`].
pub const ENTRY_SYMBOL: &str = "ws_handler_entry_v1";

pub type ws_conn = u64;

/// A handle, never dereferenced by either side.
#[repr(C)]
pub struct ws_handshake {
    _opaque: [u8; 0],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ws_bytes {
    pub data: *const c_char,
    pub size: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ws_message {
    pub type_: u32,
    pub flags: u32,
    pub data: *const c_char,
    pub size: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ws_address {
    pub family: u32,
    pub port: u32,
    pub text: [c_char; 112],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ws_deflate_options {
    pub size: usize,
    pub server_max_window_bits: u32,
    pub client_max_window_bits: u32,
    pub server_no_context_takeover: u32,
    pub client_no_context_takeover: u32,
    pub threshold: u32,
    pub level: u32,
}

pub type ws_task = Option<unsafe extern "C" fn(conn: ws_conn, arg: *mut c_void)>;

pub type ws_ready = Option<unsafe extern "C" fn(fd: i32, events: u32, arg: *mut c_void)>;

pub type ws_handler_entry = unsafe extern "C" fn(host: *const ws_host) -> *const ws_handler;

pub const WS_TEXT: u32 = 1;
pub const WS_BINARY: u32 = 2;
pub const WS_FIRST: u32 = 1;
pub const WS_LAST: u32 = 2;
pub const WS_MORE: u32 = 1;
pub const WS_UNCOMPRESSED: u32 = 2;
pub const WS_FD_READ: u32 = 1;
pub const WS_FD_WRITE: u32 = 2;
pub const WS_FD_HANGUP: u32 = 4;
pub const WS_UNIX: u32 = 1;
pub const WS_IPV4: u32 = 4;
pub const WS_IPV6: u32 = 6;
pub const WS_OK: i32 = 0;
pub const WS_CLOSED: i32 = 0;
pub const WS_MESSAGE: i32 = 1;
pub const WS_REJECTED: i32 = 1;
pub const WS_ABORTED: i32 = 2;
pub const WS_LATER: i32 = 3;
pub const WS_E_GONE: i32 = -1;
pub const WS_E_FULL: i32 = -2;
pub const WS_E_TIMEOUT: i32 = -3;
pub const WS_E_DRAINING: i32 = -4;
pub const WS_E_INVALID: i32 = -5;
pub const WS_E_PLACE: i32 = -6;
pub const WS_E_LIMIT: i32 = -7;
pub const WS_E_UNSUPPORTED: i32 = -8;
pub const WS_E_FAILED: i32 = -9;
pub const WS_E_ABSENT: i32 = -10;
pub const WS_E_DENIED: i32 = -11;
pub const WS_CLOSE_NORMAL: u32 = 1000;
pub const WS_CLOSE_GOING_AWAY: u32 = 1001;
pub const WS_CLOSE_PROTOCOL_ERROR: u32 = 1002;
pub const WS_CLOSE_UNSUPPORTED: u32 = 1003;
pub const WS_CLOSE_NO_CODE: u32 = 1005;
pub const WS_CLOSE_ABNORMAL: u32 = 1006;
pub const WS_CLOSE_INVALID_DATA: u32 = 1007;
pub const WS_CLOSE_POLICY: u32 = 1008;
pub const WS_CLOSE_TOO_BIG: u32 = 1009;
pub const WS_CLOSE_INTERNAL_ERROR: u32 = 1011;
pub const WS_CLOSE_RESTART: u32 = 1012;
pub const WS_CLOSE_TRY_LATER: u32 = 1013;
pub const WS_BY_PEER: u32 = 1;
pub const WS_BY_HANDLER: u32 = 2;
pub const WS_BY_HOST: u32 = 3;
pub const WS_BY_MOVE: u32 = 4;
pub const WS_TLS_VERSION: u32 = 1;
pub const WS_TLS_CIPHER: u32 = 2;
pub const WS_TLS_SERVER_NAME: u32 = 3;
pub const WS_TLS_PEER_SUBJECT: u32 = 4;
pub const WS_TLS_ALPN: u32 = 5;
pub const WS_TLS_PEER_CHAIN: u32 = 6;
pub const WS_TLS_RESUMED: u32 = 7;
pub const WS_LOG_FINE: u32 = 10;
pub const WS_LOG_DEBUG: u32 = 20;
pub const WS_LOG_INFO: u32 = 30;
pub const WS_LOG_WARN: u32 = 40;
pub const WS_LOG_ERROR: u32 = 50;
pub const WS_LOG_CRITICAL: u32 = 60;
pub const WS_FOREVER: i64 = -1;
pub const WS_STATE_MAX: usize = 4096;
pub const WS_TOPIC_MAX: usize = 255;
pub const WS_PUBLISH_MAX: usize = 1_048_576;
pub const WS_NOT_SELF: u32 = 0x100;
pub const WS_DROP: u32 = 1;
pub const WS_KEEP_REQUEST: u32 = 0x10000;
pub const WS_STREAM: u32 = 0x20000;
pub const WS_NO_EXTENSIONS: u32 = 0x40000;
pub const WS_RESUMABLE: u32 = 1;

#[repr(C)]
pub struct ws_handler {
    pub size: usize,
    pub abi: u32,
    pub flags: u32,
    pub name: *const c_char,
    pub version: *const c_char,
    pub protocols: *const c_char,
    pub on_worker_start: Option<unsafe extern "C" fn() -> i32>,
    pub on_worker_stop: Option<unsafe extern "C" fn()>,
    pub do_extra_handshake: Option<unsafe extern "C" fn(conn: ws_conn, hs: *mut ws_handshake) -> i32>,
    pub on_open: Option<unsafe extern "C" fn(conn: ws_conn) -> i32>,
    pub transfer_data: Option<unsafe extern "C" fn(conn: ws_conn) -> i32>,
    pub on_message: Option<unsafe extern "C" fn(conn: ws_conn, msg: *const ws_message)>,
    pub passive_closing_handshake: Option<unsafe extern "C" fn(conn: ws_conn) -> i32>,
    pub on_close: Option<unsafe extern "C" fn(conn: ws_conn, by: u32, code: u32)>,
    pub on_pong: Option<unsafe extern "C" fn(conn: ws_conn, data: *const c_char, size: usize, rtt: u64)>,
    pub on_writable: Option<unsafe extern "C" fn(conn: ws_conn)>,
    pub on_drain: Option<unsafe extern "C" fn(conn: ws_conn)>,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ws_host {
    pub size: usize,
    pub abi: u32,
    pub worker: u32,
    pub log: unsafe extern "C" fn(
        host: *const ws_host,
        conn: ws_conn,
        level: u32,
        text: *const c_char,
        size: usize,
    ),
    pub now: unsafe extern "C" fn() -> u64,
    pub config: unsafe extern "C" fn(host: *const ws_host, key: *const c_char, size: usize) -> ws_bytes,
    pub config_at: unsafe extern "C" fn(
        host: *const ws_host,
        index: usize,
        key: *mut ws_bytes,
        value: *mut ws_bytes,
    ) -> i32,
    pub resource: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
    pub path: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
    pub query: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
    pub authority: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
    pub origin: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
    pub method: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
    pub header: unsafe extern "C" fn(conn: ws_conn, name: *const c_char, size: usize) -> ws_bytes,
    pub header_at:
        unsafe extern "C" fn(conn: ws_conn, index: usize, name: *mut ws_bytes, value: *mut ws_bytes) -> i32,
    pub requested_protocols: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
    pub requested_extensions: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
    pub version: unsafe extern "C" fn(conn: ws_conn) -> u32,
    pub remote_address: unsafe extern "C" fn(conn: ws_conn, address: *mut ws_address, size: usize) -> i32,
    pub local_address: unsafe extern "C" fn(conn: ws_conn, address: *mut ws_address, size: usize) -> i32,
    pub tls_fact: unsafe extern "C" fn(conn: ws_conn, which: u32) -> ws_bytes,
    pub set_protocol:
        unsafe extern "C" fn(hs: *mut ws_handshake, protocol: *const c_char, size: usize) -> i32,
    pub add_header: unsafe extern "C" fn(
        hs: *mut ws_handshake,
        name: *const c_char,
        name_size: usize,
        value: *const c_char,
        value_size: usize,
    ) -> i32,
    pub configure_deflate:
        unsafe extern "C" fn(hs: *mut ws_handshake, options: *const ws_deflate_options) -> i32,
    pub refuse_extensions: unsafe extern "C" fn(hs: *mut ws_handshake) -> i32,
    pub accept: unsafe extern "C" fn(hs: *mut ws_handshake) -> i32,
    pub accept_and_close:
        unsafe extern "C" fn(hs: *mut ws_handshake, code: u32, reason: *const c_char, size: usize) -> i32,
    pub reject: unsafe extern "C" fn(
        hs: *mut ws_handshake,
        status: u32,
        type_: *const c_char,
        type_size: usize,
        body: *const c_char,
        body_size: usize,
    ) -> i32,
    pub abort_handshake: unsafe extern "C" fn(hs: *mut ws_handshake) -> i32,
    pub protocol: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
    pub extensions: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
    pub deflate: unsafe extern "C" fn(conn: ws_conn) -> i32,
    pub receive: unsafe extern "C" fn(conn: ws_conn, msg: *mut ws_message, timeout_ms: i64) -> i32,
    pub send:
        unsafe extern "C" fn(conn: ws_conn, type_: u32, data: *const c_void, size: usize, flags: u32) -> i32,
    pub send_owned: unsafe extern "C" fn(
        conn: ws_conn,
        type_: u32,
        data: *const c_void,
        size: usize,
        flags: u32,
        release: Option<unsafe extern "C" fn(arg: *mut c_void)>,
        arg: *mut c_void,
    ) -> i32,
    pub ping: unsafe extern "C" fn(conn: ws_conn, data: *const c_void, size: usize) -> i32,
    pub buffered: unsafe extern "C" fn(conn: ws_conn) -> usize,
    pub pause: unsafe extern "C" fn(conn: ws_conn) -> i32,
    pub resume: unsafe extern "C" fn(conn: ws_conn) -> i32,
    pub last_opcode: unsafe extern "C" fn(conn: ws_conn) -> u32,
    pub set_timer: unsafe extern "C" fn(
        host: *const ws_host,
        conn: ws_conn,
        delay_ms: u64,
        period_ms: u64,
        task: ws_task,
        arg: *mut c_void,
    ) -> i64,
    pub clear_timer: unsafe extern "C" fn(host: *const ws_host, conn: ws_conn, timer: i64) -> i32,
    pub post:
        unsafe extern "C" fn(host: *const ws_host, conn: ws_conn, task: ws_task, arg: *mut c_void) -> i32,
    pub close: unsafe extern "C" fn(conn: ws_conn, code: u32, reason: *const c_char, size: usize) -> i32,
    pub abort: unsafe extern "C" fn(conn: ws_conn) -> i32,
    pub close_code: unsafe extern "C" fn(conn: ws_conn) -> u32,
    pub close_reason: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
    pub set_user: unsafe extern "C" fn(
        conn: ws_conn,
        user: *mut c_void,
        release: Option<unsafe extern "C" fn(arg: *mut c_void)>,
    ) -> i32,
    pub user: unsafe extern "C" fn(conn: ws_conn) -> *mut c_void,
    pub set_state: unsafe extern "C" fn(conn: ws_conn, data: *const c_void, size: usize) -> i32,
    pub state: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
    pub is_resumed: unsafe extern "C" fn(conn: ws_conn) -> i32,
    pub attach_user: unsafe extern "C" fn(
        hs: *mut ws_handshake,
        user: *mut c_void,
        release: Option<unsafe extern "C" fn(arg: *mut c_void)>,
    ) -> i32,
    pub attach_state: unsafe extern "C" fn(hs: *mut ws_handshake, data: *const c_void, size: usize) -> i32,
    pub query_param: unsafe extern "C" fn(
        conn: ws_conn,
        name: *const c_char,
        name_size: usize,
        text: *mut c_char,
        size: usize,
    ) -> i32,
    pub cookie: unsafe extern "C" fn(
        conn: ws_conn,
        name: *const c_char,
        name_size: usize,
        text: *mut c_char,
        size: usize,
    ) -> i32,
    pub host_version: *const c_char,
    pub workers: unsafe extern "C" fn(host: *const ws_host) -> u32,
    pub watch_fd: unsafe extern "C" fn(
        host: *const ws_host,
        fd: i32,
        events: u32,
        ready: ws_ready,
        arg: *mut c_void,
    ) -> i32,
    pub unwatch_fd: unsafe extern "C" fn(host: *const ws_host, fd: i32) -> i32,
    pub get_extension:
        unsafe extern "C" fn(host: *const ws_host, id: *const c_char, size: usize) -> *const c_void,
    pub send_raw:
        unsafe extern "C" fn(host: *const ws_host, conn: ws_conn, data: *const c_void, size: usize) -> i32,
    pub subscribe: unsafe extern "C" fn(conn: ws_conn, topic: *const c_char, size: usize, flags: u32) -> i32,
    pub unsubscribe: unsafe extern "C" fn(conn: ws_conn, topic: *const c_char, size: usize) -> i32,
    pub publish: unsafe extern "C" fn(
        host: *const ws_host,
        topic: *const c_char,
        topic_size: usize,
        type_: u32,
        data: *const c_void,
        size: usize,
        flags: u32,
    ) -> i32,
    pub subscribers: unsafe extern "C" fn(host: *const ws_host, topic: *const c_char, size: usize) -> u64,
    pub missed: unsafe extern "C" fn(conn: ws_conn) -> u64,
    pub remote_user: unsafe extern "C" fn(conn: ws_conn) -> ws_bytes,
}

// SAFETY: the tables are read only; the strings that they point to are static.
unsafe impl Sync for ws_host {}
