//! How a connection ends as its handler sees it: the peer's Close, deadlines, and `on_close`, which is called once.

use ::ws_handler::raw::*;

use crate::ffi::call::Handler;
use crate::ffi::place::{self, Callback};
use crate::ffi::strict;
use crate::proto::ws::connection::Deadline;
use crate::worker::conn::channel::{Ended, PeerClose, ThreadEvent};
use crate::worker::conn::open::LastCall;
use crate::worker::session::Session;

impl Session {
    /// The peer sent the first Close frame.
    pub fn peer_closes(&self, id: u64, code: u16, reason: &[u8]) {
        self.conns.note_peer_close(id, code, reason);
        let Some((handler, channel)) = self.conns.with_open(id, |handler, open| {
            open.begin_close(WS_BY_PEER, code);
            (handler, open.channel().cloned())
        }) else {
            return;
        };
        if self.conns.recorder.records(handler) {
            self.conns.record_close(id, code, reason);
        }
        if let Some(channel) = channel {
            channel.put(ThreadEvent::PeerClose(PeerClose { code, reason: [reason, b"\0"].concat() }));
            return self.conns.set_last_call(id, LastCall::Answer);
        }
        let result = self.handlers.tell(handler, Callback::Passive, id, |handler| handler.passive(id));
        let result = result.unwrap_or(WS_OK);
        place::note_result(Callback::Passive, id, result, "answered with 1011");
        let answer = if result < 0 { Some(1011) } else { (code != 1005).then_some(code) };
        self.conns.close(id, answer, b"", WS_BY_PEER);
    }

    /// Calls on_close, and shuts the connection down.
    pub fn notify_closed(&self, id: u64) {
        let Some((handler, silent, channel, (by, code))) = self.conns.with_open(id, |handler, open| {
            let silent = open.silent;
            let extra = open.extra();
            (handler, silent, extra.channel.take(), extra.closing)
        }) else {
            return;
        };
        let by = u32::from(by);
        if self.conns.recorder.records(handler) {
            self.conns.record_end(id, by, code);
        }
        self.conns.log(id, |log, record, now| log.close(id, record, now, by, code.into()));
        self.conns.metrics.of(handler).count_close(by, code);
        match channel {
            Some(channel) => {
                channel.end(Ended { by, code }).into_iter().for_each(|task| self.run_task(id, task));
            }
            None if silent => {}
            None => {
                let close = |handler: Handler| handler.close(id, by, u32::from(code));
                self.handlers.tell(handler, Callback::Close, id, close);
                strict::ended(id);
            }
        }
        self.conns.shutdown(id);
    }

    /// Handles the deadline of an open connection: its handler's timers, an overdue answer to the peer's Close, and the
    /// deadlines of the protocol.
    pub fn on_deadline(&self, id: u64) {
        let now = self.conns.now();
        // One by one: a callback may clear the next one.
        let expired =
            || self.conns.with_open(id, |_, open| open.pop_timer(now).filter(|_| !open.over)).flatten();
        while let Some(task) = expired() {
            self.run_task(id, task);
        }
        let is_last_call_over = self.conns.with_open(id, |_, open| open.last_call_by() <= now) == Some(true);
        if is_last_call_over {
            self.conns.finish_input(id);
        }
        self.protocol_deadline(id);
    }

    fn protocol_deadline(&self, id: u64) {
        let now = self.conns.now();
        self.conns.core.borrow_mut().mark_dirty(id);
        let due =
            self.conns.with_protocol(id, |open, io| (open.proto.on_deadline(io), open.channel().is_some()));
        let Some((due, is_blocking)) = due else { return };
        let stalled = self.conns.core.borrow_mut().table.get(id).is_some_and(|conn| {
            conn.stalled().is_some_and(|since| since + self.conns.stall_time(conn.handler) <= now)
        });
        match due {
            Deadline::Later if stalled => {
                log::info!("connection {id:x}: send stalled; connection dropped");
                self.conns.end(id, WS_BY_HOST, 1006);
            }
            Deadline::Later => {}
            Deadline::Pinged => self.conns.flush(id),
            Deadline::Idle if is_blocking => self.conns.close_after_messages(id, 1001),
            Deadline::Idle => {
                self.conns.begin_close(id, WS_BY_HOST, 1001);
                self.conns.flush(id);
            }
            Deadline::PeerSilent | Deadline::CloseTimedOut => self.conns.end(id, WS_BY_HOST, 1006),
        }
    }
}
