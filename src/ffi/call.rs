//! Calling a plugin: one safe function for each callback of the handler's
//! table, which records the callback that the thread is in.
#![allow(unsafe_code)]

use ::ws_handler::raw::*;

use super::place::{Callback, enter, leave};
use super::{guarded, strict};

/// A handler's table, from `plugin::load`, ready to be called.
#[derive(Clone, Copy)]
pub struct Handler {
    table: &'static ws_handler,
}

// SAFETY: the table and what it points to never change and live as long as the process (ws_handler.h).
unsafe impl Send for Handler {}

impl Handler {
    /// The table lives as long as the process.
    pub fn new(table: &'static ws_handler) -> Self {
        Handler { table }
    }

    /// Whether the handler sets this flag (`WS_KEEP_REQUEST`, ...).
    pub fn has_flag(&self, flag: u32) -> bool {
        self.table.flags & flag != 0
    }

    /// Whether it has the blocking style.
    pub fn is_blocking(&self) -> bool {
        self.table.transfer_data.is_some()
    }

    /// Whether this callback is set.
    pub fn has(&self, callback: Callback) -> bool {
        match callback {
            Callback::Handshake => self.table.do_extra_handshake.is_some(),
            Callback::Open => self.table.on_open.is_some(),
            Callback::Passive => self.table.passive_closing_handshake.is_some(),
            Callback::Close => self.table.on_close.is_some(),
            Callback::Pong => self.table.on_pong.is_some(),
            Callback::Writable => self.table.on_writable.is_some(),
            Callback::Drain => self.table.on_drain.is_some(),
            _ => false,
        }
    }

    /// `on_worker_start`.
    pub fn worker_start(&self) -> i32 {
        // SAFETY: the handler's own function, called as the header says.
        within(Callback::WorkerStart, 0, || self.table.on_worker_start.map_or(WS_OK, |f| unsafe { f() }))
    }

    /// `on_worker_stop`.
    pub fn worker_stop(&self) {
        within(Callback::WorkerStop, 0, || {
            if let Some(f) = self.table.on_worker_stop {
                // SAFETY: the handler's own function, called as the header says.
                unsafe { f() }
            }
        })
    }

    /// `do_extra_handshake`; the handle is the connection's id.
    pub fn handshake(&self, conn: ws_conn) -> i32 {
        let Some(f) = self.table.do_extra_handshake else { return WS_OK };
        // SAFETY: the handle is opaque to the handler and never dereferenced.
        within(Callback::Handshake, conn, || unsafe { f(conn, conn as usize as *mut ws_handshake) })
    }

    /// `on_open`.
    pub fn open(&self, conn: ws_conn) -> i32 {
        let Some(f) = self.table.on_open else { return WS_OK };
        // SAFETY: the handler's own function, called as the header says.
        within(Callback::Open, conn, || unsafe { f(conn) })
    }

    /// `transfer_data`.
    pub fn transfer(&self, conn: ws_conn) -> i32 {
        let Some(f) = self.table.transfer_data else { return WS_E_FAILED };
        // SAFETY: the handler's own function, called as the header says.
        within(Callback::Transfer, conn, || unsafe { f(conn) })
    }

    /// `on_message`. `terminated` is the payload and its NUL byte.
    #[inline(always)]
    pub fn message(&self, conn: ws_conn, kind: u32, flags: u32, terminated: &[u8]) {
        let Some(f) = self.table.on_message else { return };
        let msg = message(kind, flags, terminated);
        // SAFETY: msg and its bytes outlive the call.
        within(Callback::Message, conn, || unsafe { f(conn, &msg) });
        if strict::is_on() {
            guarded::unmap();
        }
    }

    /// `passive_closing_handshake`.
    pub fn passive(&self, conn: ws_conn) -> i32 {
        let Some(f) = self.table.passive_closing_handshake else { return WS_OK };
        // SAFETY: the handler's own function, called as the header says.
        within(Callback::Passive, conn, || unsafe { f(conn) })
    }

    /// `on_close`.
    pub fn close(&self, conn: ws_conn, by: u32, code: u32) {
        strict::closing(conn);
        if let Some(f) = self.table.on_close {
            // SAFETY: the handler's own function, called as the header says.
            within(Callback::Close, conn, || unsafe { f(conn, by, code) });
        }
        strict::ended(conn);
    }

    /// `on_pong`. `terminated` is the payload with its NUL byte.
    pub fn pong(&self, conn: ws_conn, terminated: &[u8], rtt: u64) {
        let Some(f) = self.table.on_pong else { return };
        debug_assert_eq!(terminated.last(), Some(&0));
        let size = terminated.len().saturating_sub(1);
        // SAFETY: the bytes outlive the call.
        within(Callback::Pong, conn, || unsafe { f(conn, terminated.as_ptr().cast(), size, rtt) })
    }

    /// `on_writable`.
    pub fn writable(&self, conn: ws_conn) {
        let Some(f) = self.table.on_writable else { return };
        // SAFETY: the handler's own function, called as the header says.
        within(Callback::Writable, conn, || unsafe { f(conn) })
    }

    /// `on_drain`.
    pub fn drain(&self, conn: ws_conn) {
        let Some(f) = self.table.on_drain else { return };
        // SAFETY: the handler's own function, called as the header says.
        within(Callback::Drain, conn, || unsafe { f(conn) })
    }
}

/// Flushes all stdio streams of this process.
pub fn flush_stdio() {
    // SAFETY: fflush(NULL) takes no pointer of ours and locks each stream. The process is about to exit, so a failed
    // write is ignored.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// A message for the handler. `terminated` is the payload with its NUL byte.
pub fn message(kind: u32, flags: u32, terminated: &[u8]) -> ws_message {
    debug_assert_eq!(terminated.last(), Some(&0));
    let guarded = if strict::is_on() { guarded::map(terminated) } else { None };
    let data = guarded.unwrap_or(terminated.as_ptr()).cast();
    ws_message { type_: kind, flags, data, size: terminated.len().saturating_sub(1) }
}

fn within<R>(callback: Callback, conn: ws_conn, call: impl FnOnce() -> R) -> R {
    let before = enter(callback, conn);
    let result = call();
    leave(before);
    result
}
