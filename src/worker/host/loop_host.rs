//! The calls of handlers on the event loop: information from the records, everything
//! else done at once.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

use ::ws_handler::raw::*;

use crate::clock;
use crate::ffi::host::{ABSENT, ConnectionInfo, Host, Payload, Task, User};
use crate::fleet::memory::current_call::CurrentCall;
use crate::proto::ws::close;
use crate::worker::conn::channel::PeerClose;
use crate::worker::conn::handler_timers::{HandlerTimers, OF_A_CONNECTION};
use crate::worker::conn::handshake::{Handshake, Registry};
use crate::worker::conn::info::{Info, Stage};
use crate::worker::conn::table::Phase;
use crate::worker::connections::Conns;
use crate::worker::connections::sending::message_kind;

pub struct LoopHost {
    pub conns: &'static Conns,
    pub handshakes: &'static Registry,
    /// What a handler is being given.
    pub current: &'static CurrentCall,
}

impl Host for LoopHost {
    fn look(&self, id: u64, f: &mut dyn FnMut(&mut dyn ConnectionInfo)) {
        let core = &mut *self.conns.core.borrow_mut();
        let Some((conn, record)) = core.table.both(id) else { return };
        let socket = &conn.socket;
        let known = Info {
            stage: Stage::Handshake,
            record,
            request: None,
            local: &|| socket.local_addr().ok(),
            keep_path: &mut |_| ABSENT,
            peer_close: None,
            last_opcode: 0,
        };
        match &mut conn.phase {
            Phase::Opening(handshake, ..) => f(&mut Info {
                request: Some(&handshake.request),
                keep_path: &mut |text| handshake.keep_path(text),
                ..known
            }),
            Phase::Open(open) => f(&mut Info {
                stage: if open.over { Stage::Over } else { Stage::Open },
                request: open.request().cloned().as_deref(),
                peer_close: open.peer_close().map(PeerClose::lend),
                last_opcode: open.last_opcode.into(),
                keep_path: &mut |text| open.extra().path.keep(text),
                ..known
            }),
            _ => {}
        }
    }

    fn receive(&self, _: u64, _: i64) -> Result<ws_message, i32> {
        Err(WS_E_PLACE)
    }

    fn send(&self, conn: u64, kind: u32, payload: Payload<'_>, flags: u32) -> i32 {
        if let Payload::Borrowed(bytes) = payload
            && flags == 0
            && !self.is_within_fragments(conn)
            && self.conns.send_usual(conn, kind, bytes, self.is_trusted(kind, bytes))
        {
            return WS_OK;
        }
        self.send_any(conn, kind, payload, flags)
    }

    fn ping(&self, conn: u64, payload: &[u8]) -> i32 {
        match self.conns.send_ping(conn, payload, true) {
            WS_E_GONE => self.gone(conn),
            result => result,
        }
    }

    fn send_raw(&self, conn: u64, octets: &[u8]) -> i32 {
        match self.opening(conn) {
            Some(handshake) => handshake.add_octets(octets),
            None => self.conns.send_raw(conn, octets, true),
        }
    }

    fn buffered(&self, conn: u64) -> usize {
        self.conns.core.borrow_mut().table.get(conn).map_or(0, |conn| conn.queued())
    }

    fn pause(&self, conn: u64, pause: bool) -> i32 {
        if self.conns.with_open(conn, |_, open| open.over || open.is_closing()) != Some(false) {
            return self.gone(conn);
        }
        self.conns.pause_for_handler(conn, pause);
        WS_OK
    }

    fn set_timer(&self, conn: u64, delay_ms: u64, period_ms: u64, task: Task) -> i64 {
        let set =
            |timers: &mut HandlerTimers| timers.set(OF_A_CONNECTION, clock::now(), delay_ms, period_ms, task);
        if let Some(handshake) = self.opening(conn) {
            return handshake.carry(|carried| set(&mut carried.timers)).unwrap_or(i64::from(WS_E_GONE));
        }
        let made = self.conns.with_open(conn, |_, open| match open.over {
            true => i64::from(WS_E_GONE),
            false => set(&mut open.extra().timers),
        });
        self.conns.arm(conn);
        made.unwrap_or(i64::from(WS_E_GONE))
    }

    fn clear_timer(&self, conn: u64, timer: i64) -> i32 {
        let cleared = match self.opening(conn) {
            Some(handshake) => handshake.carry(|carried| carried.timers.clear(timer)),
            None => self.conns.with_open(conn, |_, open| open.extra().timers.clear(timer)),
        };
        cleared.unwrap_or(WS_E_GONE)
    }

    fn post(&self, conn: u64, task: Task) -> i32 {
        self.handshakes.post(conn, task)
    }

    fn close(&self, conn: u64, code: u32, reason: &[u8]) -> i32 {
        let Some(code) = close::checked(code, reason) else { return WS_E_INVALID };
        if self.conns.with_open(conn, |_, open| open.over || open.proto.close_sent().is_some()) != Some(false)
        {
            return self.gone(conn);
        }
        self.conns.run_sends(conn);
        self.conns.close(conn, code, reason, WS_BY_HANDLER);
        WS_OK
    }

    fn abort(&self, conn: u64) -> i32 {
        if self.conns.with_open(conn, |_, open| open.over) != Some(false) {
            return self.gone(conn);
        }
        self.conns.abort(conn);
        WS_OK
    }

    fn set_user(&self, conn: u64, user: User) -> i32 {
        let replaced = match self.opening(conn) {
            Some(handshake) => handshake.carry(|carried| carried.user.replace(user)),
            None => self.conns.with_open(conn, |_, open| open.set_user(user)),
        };
        replaced.map_or(WS_E_GONE, |_| WS_OK)
    }

    fn user(&self, conn: u64) -> *mut c_void {
        let user = self.conns.with_open(conn, |_, open| open.user());
        user.or_else(|| self.opening(conn).map(|handshake| handshake.user())).unwrap_or(null_mut())
    }

    fn set_state(&self, conn: u64, state: &[u8]) -> i32 {
        if let Some(handshake) = self.opening(conn) {
            handshake.carry(|carried| carried.state = None);
        }
        self.conns.edit_record(conn, |record| record.set_state(state)).map_or(WS_E_GONE, |()| WS_OK)
    }
}

impl LoopHost {
    /// The handshake of a connection that is not open yet, in the event style.
    fn opening(&self, id: u64) -> Option<Arc<Handshake>> {
        match self.conns.core.borrow_mut().table.get(id).map(|conn| &conn.phase) {
            Some(Phase::Opening(handshake, None, ..)) => Some(Arc::clone(handshake)),
            _ => None,
        }
    }

    /// The result of a call for a connection that is open, where this one is not.
    #[cold]
    fn gone(&self, id: u64) -> i32 {
        self.handshakes.result(id, WS_E_GONE)
    }

    /// Whether a fragmented message is being sent on this connection, here or by another thread.
    fn is_within_fragments(&self, conn: u64) -> bool {
        self.conns.commands.at(conn).gate().fragments() != 0
    }

    /// Whether a text is known to be UTF-8: it is the one that is being delivered.
    #[inline]
    fn is_trusted(&self, kind: u32, bytes: &[u8]) -> bool {
        kind == WS_TEXT && self.current.is_delivering(kind, bytes)
    }

    #[inline(never)]
    fn send_any(&self, conn: u64, kind: u32, payload: Payload<'_>, flags: u32) -> i32 {
        let result = match flags & WS_MORE != 0 || self.is_within_fragments(conn) {
            _ if flags & !(WS_MORE | WS_UNCOMPRESSED) != 0 => WS_E_INVALID,
            true => self.send_fragment(conn, kind, payload, flags),
            false => {
                // The end of a fragmented message may be on its way from another thread.
                self.conns.run_sends(conn);
                let trusted = self.is_trusted(kind, payload.bytes());
                self.conns.send(conn, kind, payload, flags, trusted, true)
            }
        };
        if result == WS_E_GONE { self.gone(conn) } else { result }
    }

    /// A fragment, or what follows one: threads that send on the same connection are told, and what was accepted from
    /// them comes before it.
    fn send_fragment(&self, conn: u64, kind: u32, payload: Payload<'_>, flags: u32) -> i32 {
        if self.conns.with_open(conn, |_, open| open.over) != Some(false) {
            return WS_E_GONE;
        }
        if message_kind(kind).is_none() {
            return WS_E_INVALID;
        }
        let Some(running) = self.conns.commands.at(conn).begin_fragments(kind) else { return WS_E_INVALID };
        self.conns.run_sends(conn);
        let result = self.conns.send(conn, kind, payload, flags, false, true);
        let is_begun = flags & WS_MORE != 0 && result == WS_OK || running != 0 && result != WS_OK;
        if !is_begun {
            self.conns.commands.at(conn).end_fragments();
        }
        result
    }
}
