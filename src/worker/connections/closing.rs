//! Sends Close frames and ends connections. `session` calls the handlers.
//!
//! A peer ends what it sends by a Close frame, by the end of its stream or by a violation of the protocol; or the
//! server wishes to end. The thread of a blocking handler then has a last call: it takes and answers what has come,
//! says so, and only then the connection is closed (RFC 6455 5.5.1, 7.1.1).

use std::net::Shutdown;

use ::ws_handler::raw::*;

use crate::proto::ws::connection::Io;
use crate::worker::base::metrics::NO_HANDLER;
use crate::worker::conn::channel::PeerClose;
use crate::worker::conn::open::{LastCall, Open};
use crate::worker::conn::table::{LINGER, Pause, Phase};
use crate::worker::connections::Conns;
use crate::worker::connections::sending::counted_of;

impl Conns {
    /// Sends a Close frame, first or as the answer. Does nothing if one was sent.
    pub fn close(&self, id: u64, code: Option<u16>, reason: &[u8], by: u32) {
        let closed = self.with_protocol(id, |open, io| {
            if open.over {
                return false;
            }
            // RFC 6455 7.1.7: of a connection that has failed the code is fixed.
            let (code, reason) = open.failure().map_or((code, reason), |code| (Some(code), &b""[..]));
            let is_sent = open.proto.close(code, reason, io).is_ok();
            if is_sent {
                open.extra().last_call = None;
            }
            is_sent
        });
        if closed == Some(true) {
            self.core.borrow_mut().mark_dirty(id);
            self.begin_close(id, by, code.unwrap_or(1005));
            // The peer's Close must be read, whatever has paused reading.
            self.resume(id, Pause::Handler);
            self.resume(id, Pause::ThreadChannel);
            self.resume(id, Pause::Move);
            self.arm(id);
        }
    }

    /// Closing has begun: nothing can be sent any more.
    pub fn begin_close(&self, id: u64, by: u32, code: u16) {
        self.commands.at(id).close();
        self.with_open(id, |_, open| {
            open.begin_close(by, code);
            open.channel().inspect(|channel| channel.closing());
        });
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
        self.lose(id, by, code);
        let core = &mut *self.core.borrow_mut();
        let Some((conn, record)) = core.table.both(id) else { return };
        let Some(open) = conn.open() else { return };
        // It must not be resumed elsewhere.
        record.cut();
        if !std::mem::replace(&mut open.over, true) {
            core.over.push(id);
        }
    }

    /// The thread of a blocking handler is told that there is no closing handshake, or no rest of it.
    fn lose(&self, id: u64, by: u32, code: u16) {
        self.with_open(id, |_, open| open.channel().inspect(|channel| channel.lost()).is_some());
        self.begin_close(id, by, code);
    }

    /// Closes the socket. If the peer may still be sending, waits for its end first: a reset would discard our Close
    /// frame.
    pub fn shutdown(&self, id: u64) {
        self.release_memory(id);
        {
            let core = &mut *self.core.borrow_mut();
            core.end_subscriptions(id);
            let Some((conn, record)) = core.table.both(id) else { return };
            let is_unanswered =
                |open: &mut Open| open.proto.close_sent().is_some() && open.peer_close().is_none();
            if conn.open().is_some_and(is_unanswered)
                && conn.queued() == 0
                && conn.socket.shutdown(Shutdown::Write).is_ok()
            {
                record.forget_head(); // it goes with the phase
                record.leave_alone();
                conn.phase = Phase::Linger(self.now() + LINGER);
                conn.clear_pauses();
                self.watch_conn(id, conn);
                return self.arm_conn(id, conn, &mut core.timers);
            }
        }
        self.remove(id);
    }

    /// The peer broke the protocol or a limit.
    pub fn failed(&self, id: u64, code: u16) {
        match self.with_open(id, |_, open| open.proto.is_finished()) {
            Some(false) => self.end_messages(id, LastCall::Close(code), Some((WS_BY_HOST, code))),
            _ => self.begin_close(id, WS_BY_HOST, code),
        }
    }

    /// The peer has closed its end. It may still read: what was received before is answered, and what is queued is
    /// sent. False if the connection is not open.
    pub fn input_ended(&self, id: u64) -> bool {
        let is_answered = |open: &mut Open, io: &mut Io| {
            open.proto.end_input(io);
            open.channel().is_none() || open.proto.close_sent().is_some()
        };
        match self.with_protocol(id, is_answered) {
            None => return false,
            Some(true) => self.finish_unclosed(id),
            Some(false) => {
                self.pause(id, Pause::Ended);
                self.end_messages(id, LastCall::Ended, Some((WS_BY_PEER, 1006)));
            }
        }
        true
    }

    /// The server ends the connection, after what a blocking handler has not answered yet.
    pub fn close_after_messages(&self, id: u64, code: u16) {
        let is_blocking = self.with_open(id, |_, open| {
            open.channel().is_some() && !open.over && open.proto.close_sent().is_none()
        });
        if is_blocking != Some(true) {
            self.run_sends(id);
            return self.close(id, Some(code), b"", WS_BY_HOST);
        }
        self.pause(id, Pause::Move);
        self.end_messages(id, LastCall::Close(code), None);
    }

    /// The thread of a blocking handler gets nothing after what has come. The first call counts.
    fn end_messages(&self, id: u64, last_call: LastCall, closing: Option<(u32, u16)>) {
        let is_told = self.with_open(id, |_, open| {
            if open.extra().last_call.is_some() {
                return false;
            }
            if let Some((by, code)) = closing {
                open.begin_close(by, code);
            }
            open.channel().inspect(|channel| channel.end_input()).is_some()
        });
        if is_told == Some(true) {
            self.set_last_call(id, last_call);
        }
    }

    /// Notes what is done when the thread has taken all that has come; if it does not in time, it is done then.
    pub fn set_last_call(&self, id: u64, last_call: LastCall) {
        let handler = self.core.borrow_mut().table.get(id).map_or(NO_HANDLER, |conn| conn.handler);
        let limit = self.settings(handler).limits.close_deadline / 10 * 9;
        // In a stop the peer has to answer in what is left.
        let stop = self.life.stop.get().map_or(limit, |stop| stop.leave_at.since(self.now()) / 2);
        let by = self.now() + limit.min(stop);
        self.with_open(id, |_, open| open.extra().last_call = Some((last_call, by)));
        self.arm(id);
    }

    /// The thread has taken all that came before the end, or had the time for it.
    pub fn finish_input(&self, id: u64) {
        let last_call = self.with_open(id, |_, open| {
            let last_call = open.extra().last_call.take()?.0;
            Some((last_call, open.peer_close().map_or(1005, |close| close.code)))
        });
        match last_call.flatten() {
            Some((LastCall::Answer, code)) => {
                self.close(id, Some(code).filter(|code| *code != 1005), b"", WS_BY_PEER)
            }
            Some((LastCall::Close(code), _)) => self.close(id, Some(code), b"", WS_BY_HOST),
            Some((LastCall::Ended, _)) => self.finish_unclosed(id),
            None => {}
        }
    }

    /// The connection is over without a closing handshake once what is queued is sent.
    fn finish_unclosed(&self, id: u64) {
        self.flush(id);
        self.with_protocol(id, |open, io| open.proto.abandon(io));
        if self.core.borrow_mut().table.get(id).is_none_or(|conn| conn.queued() == 0) {
            return self.end(id, WS_BY_PEER, 1006);
        }
        self.pause(id, Pause::Ended);
        self.lose(id, WS_BY_PEER, 1006);
    }

    pub fn with_protocol<R>(&self, id: u64, f: impl FnOnce(&mut Open, &mut Io) -> R) -> Option<R> {
        let core = &mut *self.core.borrow_mut();
        let (conn, record) = core.table.both(id)?;
        record.pin();
        let (now, limits) = (self.now(), &self.settings(conn.handler).limits);
        let protocol = conn.protocol(now, limits, &mut core.codecs, &mut core.queue_pool);
        protocol.map(|(open, mut io)| f(open, &mut io))
    }
}
