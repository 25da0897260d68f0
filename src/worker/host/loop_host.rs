//! The calls of handlers on the event loop: information from the records, everything
//! else done at once.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

use ::ws_handler::raw::*;

use crate::clock;
use crate::ffi::host::{ABSENT, Address, Callback, End, Fact, Host, Number, Payload, Reply, Task, present};
use crate::proto::ws::close;
use crate::proto::ws::connection::Send;
use crate::proto::ws::deflate::negotiate::Params;
use crate::worker::commands::queue::{Command, CommandQueue};
use crate::worker::conn::connections::Conns;
use crate::worker::conn::info::{self, Info};
use crate::worker::conn::sending::message_kind;
use crate::worker::conn::table::Phase;

/// See the module.
pub struct LoopHost {
    /// What the calls are about.
    pub conns: &'static Conns,
    /// Where posted functions and late verdicts go.
    pub commands: &'static CommandQueue,
    /// The text that a handler is being given: already known to be UTF-8.
    pub delivering: Cell<(*const u8, usize)>,
}

impl Host for LoopHost {
    fn fact(&self, conn: u64, fact: Fact) -> ws_bytes {
        match fact {
            Fact::CloseReason => {
                let core = &mut *self.conns.core.borrow_mut();
                let open = core.table.get(conn).and_then(|conn| conn.open());
                let close = open.and_then(|open| open.peer_close());
                match close.and_then(|close| close.reason.strip_suffix(b"\0")) {
                    Some(reason) if !reason.is_empty() => present(reason),
                    _ => ABSENT,
                }
            }
            Fact::State => {
                let core = &mut *self.conns.core.borrow_mut();
                core.table.record(conn).and_then(|record| record.state()).map_or(ABSENT, present)
            }
            _ => self.info(conn, |info| info.get(fact)).unwrap_or(ABSENT),
        }
    }

    fn number(&self, conn: u64, number: Number) -> u32 {
        let core = &mut *self.conns.core.borrow_mut();
        match number {
            // A function that outlived its connection finds it gone.
            Number::Version => {
                let in_task = crate::ffi::host::place().0 == Callback::Task;
                let conn = core.table.get(conn);
                conn.map_or(
                    0,
                    |conn| if in_task && conn.open().is_none_or(|open| open.over) { 0 } else { 13 },
                )
            }
            Number::IsResumed => core.table.record(conn).map_or(0, |record| u32::from(record.is_resumed())),
            Number::Deflate => core.table.record(conn).map_or(0, |record| u32::from(record.deflate != 0)),
            Number::LastOpcode => core
                .table
                .get(conn)
                .and_then(|conn| conn.open())
                .map_or(0, |open| u32::from(open.last_opcode)),
            Number::CloseCode => {
                let open = core.table.get(conn).and_then(|conn| conn.open());
                open.map_or(0, |open| match open.peer_close() {
                    Some(close) => u32::from(close.code),
                    None if open.over => WS_CLOSE_ABNORMAL,
                    None => 0,
                })
            }
        }
    }

    fn header(&self, conn: u64, name: &[u8]) -> ws_bytes {
        self.info(conn, |info| info.header(name)).unwrap_or(ABSENT)
    }

    fn header_at(&self, conn: u64, index: usize) -> Option<(ws_bytes, ws_bytes)> {
        self.info(conn, |info| info.header_at(index)).flatten()
    }

    fn address(&self, conn: u64, end: End) -> Option<Address> {
        let core = &mut *self.conns.core.borrow_mut();
        match end {
            End::Remote => core.table.record(conn).map(|record| info::address(record.peer.address())),
            End::Local => {
                let local = core.table.get(conn)?.socket.local_addr().ok()?;
                info::local_end(Some(&local), core.table.record(conn)?.facts())
            }
        }
    }

    fn reply(&self, handshake: u64, reply: Reply<'_>) -> i32 {
        let ours = match self.conns.core.borrow_mut().table.get(handshake).map(|conn| &conn.phase) {
            Some(Phase::Opening(handshake, None, ..)) => Some(handshake.clone()),
            _ => None,
        };
        let Some(ours) = ours else { return WS_E_GONE };
        let later = crate::ffi::host::place() != (Callback::Handshake, handshake);
        let result = if later { ours.reply_later(reply) } else { ours.reply(reply) };
        // Later, from a timer or a callback of another connection: nobody else will see the verdict.
        if later && ours.has_verdict() {
            self.commands.give(Command::Verdict(handshake));
        }
        result
    }

    fn receive(&self, _: u64, _: i64) -> Result<ws_message, i32> {
        Err(WS_E_PLACE)
    }

    fn send(&self, conn: u64, kind: u32, payload: Payload<'_>, flags: u32) -> i32 {
        match flags & WS_MORE != 0 || self.commands.has_fragments(conn) {
            false => self.send_payload(conn, kind, payload, flags),
            true => self.send_fragment(conn, kind, payload, flags),
        }
    }

    fn ping(&self, conn: u64, payload: &[u8]) -> i32 {
        self.conns.send_ping(conn, payload, true)
    }

    fn buffered(&self, conn: u64) -> usize {
        self.conns.core.borrow_mut().table.get(conn).map_or(0, |conn| conn.queued())
    }

    fn pause(&self, conn: u64, pause: bool) -> i32 {
        if self.conns.with_open(conn, |_, open| open.over || open.is_closing()) != Some(false) {
            return WS_E_GONE;
        }
        self.conns.pause_for_handler(conn, pause);
        WS_OK
    }

    fn set_timer(&self, conn: u64, delay_ms: u64, task: Task) -> i64 {
        let made = self.conns.with_open(conn, |_, open| match open.over {
            true => i64::from(WS_E_GONE),
            false => open.extra().timers.set(clock::now(), delay_ms, task),
        });
        self.conns.arm(conn);
        made.unwrap_or(i64::from(WS_E_GONE))
    }

    fn clear_timer(&self, conn: u64, timer: i64) -> i32 {
        match self.conns.with_open(conn, |_, open| open.extra().timers.clear(timer)) {
            Some(true) => WS_OK,
            Some(false) => WS_E_INVALID,
            None => WS_E_GONE,
        }
    }

    fn post(&self, conn: u64, task: Task) -> i32 {
        self.commands.post(conn, task)
    }

    fn close(&self, conn: u64, code: u32, reason: &[u8]) -> i32 {
        let Some(code) = close::checked(code, reason) else { return WS_E_INVALID };
        if self.conns.with_open(conn, |_, open| open.over || open.proto.close_sent().is_some()) != Some(false)
        {
            return WS_E_GONE;
        }
        self.conns.close(conn, code, reason, WS_BY_HANDLER);
        WS_OK
    }

    fn abort(&self, conn: u64) -> i32 {
        if self.conns.with_open(conn, |_, open| open.over) != Some(false) {
            return WS_E_GONE;
        }
        self.conns.abort(conn);
        WS_OK
    }

    fn set_user(&self, conn: u64, user: *mut c_void) -> i32 {
        self.conns.with_open(conn, |_, open| open.user = user).map_or(WS_E_GONE, |()| WS_OK)
    }

    fn user(&self, conn: u64) -> *mut c_void {
        self.conns.with_open(conn, |_, open| open.user).unwrap_or(null_mut())
    }

    fn set_state(&self, conn: u64, state: &[u8]) -> i32 {
        let core = &mut *self.conns.core.borrow_mut();
        let Some(record) = core.table.record(conn) else { return WS_E_GONE };
        record.set_state(state);
        record.seal();
        WS_OK
    }
}

impl LoopHost {
    /// Runs with the facts of a connection, wherever they lie.
    fn info<R>(&self, id: u64, f: impl FnOnce(Info<'_>) -> R) -> Option<R> {
        let core = &mut *self.conns.core.borrow_mut();
        let request = match &core.table.get(id)?.phase {
            Phase::Opening(handshake, ..) => Some(Arc::clone(&handshake.request)),
            Phase::Open(open) => open.request().cloned(),
            _ => return None,
        };
        let record = core.table.record(id)?;
        let deflate = (record.deflate != 0).then(|| Params::from_bits(record.deflate)).flatten();
        let facts = record.facts();
        Some(f(Info { strings: record.strings(), deflate, request: request.as_deref(), facts }))
    }

    #[inline(always)]
    fn send_payload(&self, conn: u64, kind: u32, payload: Payload<'_>, flags: u32) -> i32 {
        let how = Send { more: flags & WS_MORE != 0, compress: flags & WS_UNCOMPRESSED == 0, trusted: false };
        match payload {
            Payload::Borrowed(bytes) => {
                let trusted = !how.more && self.delivering.get() == (bytes.as_ptr(), bytes.len());
                self.conns.send_bytes(conn, kind, bytes, Send { trusted, ..how }, true)
            }
            Payload::Owned(bytes) => self.conns.send_owned_bytes(conn, kind, bytes, how, true),
        }
    }

    /// A fragment, or what follows one: threads that send on the same connection are told, and what they were told WS_OK
    /// for comes before it.
    #[cold]
    fn send_fragment(&self, conn: u64, kind: u32, payload: Payload<'_>, flags: u32) -> i32 {
        if self.conns.with_open(conn, |_, open| open.over) != Some(false) {
            return WS_E_GONE;
        }
        if message_kind(kind).is_none() {
            return WS_E_INVALID;
        }
        let Some(running) = self.commands.begin_fragments(conn, kind) else { return WS_E_INVALID };
        self.conns.run_sends(conn);
        let result = self.send_payload(conn, kind, payload, flags);
        let is_begun = flags & WS_MORE != 0 && result == WS_OK || running != 0 && result != WS_OK;
        if !is_begun {
            self.commands.end_fragments(conn);
        }
        result
    }
}
