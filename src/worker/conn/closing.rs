//! Sends Close frames and ends connections. `session` calls the handlers.

use std::net::Shutdown;

use ::ws_handler::raw::*;

use crate::worker::conn::channel::PeerClose;
use crate::worker::conn::connections::Conns;
use crate::worker::conn::record::flags;
use crate::worker::conn::sending::counted_of;
use crate::worker::conn::table::{LINGER, Pause, Phase};

impl Conns {
    /// Sends a Close frame, first or as the answer. Does nothing if one was sent.
    pub fn close(&self, id: u64, code: Option<u16>, reason: &[u8], by: u32) {
        let closed = {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return };
            let limits = &self.settings(conn.handler).limits;
            let protocol =
                conn.protocol(self.life.turn().instant(), limits, &mut core.codecs, &mut core.queue_pool);
            let Some((open, mut io)) = protocol else { return };
            // RFC 6455 7.1.7: of a connection that has failed the code is fixed.
            let (code, reason) = open.failure().map_or((code, reason), |code| (Some(code), &b""[..]));
            let closed = open.proto.close(code, reason, &mut io).is_ok();
            if closed {
                open.extra().last_call = None;
                core.mark_dirty(id);
            }
            closed
        };
        if closed {
            self.begin_close(id, by, code.unwrap_or(1005));
            // From now on the peer's Close must be read, whoever has paused reading.
            self.resume(id, Pause::Handler);
            self.resume(id, Pause::ThreadChannel);
            self.resume(id, Pause::Move);
            self.arm(id);
        }
    }

    /// Closing has begun: nothing can be sent any more.
    pub fn begin_close(&self, id: u64, by: u32, code: u16) {
        self.commands.set_gone(id);
        let channel = self.with_open(id, |_, open| {
            open.begin_close(by, code);
            open.channel().cloned()
        });
        if let Some(channel) = channel.flatten() {
            channel.closing();
        }
    }

    /// Notes code and reason of the peer's Close frame.
    pub fn note_peer_close(&self, id: u64, code: u16, reason: &[u8]) {
        let close = PeerClose { code, reason: [reason, b"\0"].concat() };
        self.with_open(id, |_, open| {
            if let Some(channel) = open.channel().filter(|_| open.proto.close_sent().is_some()) {
                channel.answered(close.clone());
            }
            open.extra().peer_close = Some(close);
        });
    }

    /// Drops a connection on behalf of its handler.
    pub fn abort(&self, id: u64) {
        if let Some(conn) = self.core.borrow_mut().table.get(id) {
            let counted = counted_of(conn);
            conn.queue = None;
            self.count_queue(id, conn, counted);
        }
        self.end(id, WS_BY_HANDLER, 1006);
    }

    /// The connection is over without (the rest of) a closing handshake.
    pub fn end(&self, id: u64, by: u32, code: u16) {
        if let Some(channel) = self.channel(id) {
            channel.lost();
        }
        self.begin_close(id, by, code);
        let core = &mut *self.core.borrow_mut();
        let Some(conn) = core.table.get(id) else { return };
        let Some(open) = conn.open() else { return };
        if !open.over {
            open.over = true;
            core.over.push(id);
        }
        if let Some(record) = core.table.record(id) {
            // It must not be resumed elsewhere.
            record.set_flags(flags::TAKEN);
        }
    }

    /// Closes the socket. If the peer may still be sending, waits for its end first: a reset would discard our Close frame.
    pub fn shutdown(&self, id: u64) {
        self.release_memory(id);
        {
            let core = &mut *self.core.borrow_mut();
            core.end_subscriptions(id);
            let Some((conn, record)) = core.table.both(id) else { return };
            let said = conn.open().is_some_and(|open| open.proto.close_sent().is_some());
            let heard = conn.open().is_some_and(|open| open.peer_close().is_some());
            if said && !heard && conn.queued() == 0 && conn.socket.shutdown(Shutdown::Write).is_ok() {
                record.forget_head(); // it goes with the phase
                conn.phase = Phase::Linger(self.life.turn().instant() + LINGER);
                conn.clear_pauses();
                self.watch_conn(id, conn);
            }
        }
        let lingers =
            matches!(self.core.borrow_mut().table.get(id).map(|conn| &conn.phase), Some(Phase::Linger(_)));
        if lingers {
            self.arm(id);
        } else {
            self.remove(id);
        }
    }
}
