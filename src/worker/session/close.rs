//! How a connection ends: the closing handshake, from either side; loss; the
//! deadlines that see to it that it does end. The handler hears of it once.

use std::net::Shutdown;

use ::ws_handler::raw::*;

use crate::ffi::host::{Callback, Task};
use crate::proto::ws::connection::Deadline;
use crate::worker::Worker;
use crate::worker::conn::channel::{Ended, PeerClose};
use crate::worker::conn::record::flags;
use crate::worker::conn::table::{Open, Pause, Phase};
use crate::worker::handshake::request::LINGER;

/// How long the send queue may wait where no Pings say what a silent peer is; ns.
const STALL: u64 = 60_000_000_000;

impl Worker {
    /// Sends a Close frame, first or as the answer. Does nothing if one was sent.
    pub fn close(&self, id: u64, code: Option<u16>, reason: &[u8], by: u32) {
        let closed = {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return };
            let limits = &self.config.limits;
            let protocol = conn.protocol(self.now.get(), limits, &mut core.codecs, &mut core.queue_pool);
            let Some((open, mut io)) = protocol else { return };
            let closed = open.proto.close(code, reason, &mut io).is_ok();
            if closed {
                open.extra().answer_by = None;
                Self::mark_dirty(core, id);
            }
            closed
        };
        if closed {
            self.begin_close(id, by, code.unwrap_or(1005));
            // The peer's Close is wanted now, whatever the handler has paused for.
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

    /// The peer sent the first Close frame.
    pub fn peer_closes(&self, id: u64, code: u16, reason: &[u8]) {
        self.note_peer_close(id, code, reason);
        let Some((handler, channel)) = self.with_open(id, |handler, open| {
            open.begin_close(WS_BY_PEER, code);
            (handler, open.channel().cloned())
        }) else {
            return;
        };
        if let Some(channel) = channel {
            channel.peer_close(PeerClose { code, reason: [reason, b"\0"].concat() });
            // The thread answers; if it does not come to it in time, we do.
            let deadline = self.now.get().saturating_add(self.config.limits.close_deadline / 10 * 9);
            self.with_open(id, |_, open| open.extra().answer_by = Some(deadline));
            return self.arm(id);
        }
        let Some(service) = self.service(handler) else { return };
        let result = match service.handler.has(Callback::Passive) {
            true => self.call_about(handler, Callback::Passive, id, || service.handler.passive(id)),
            false => WS_OK,
        };
        let answer = if result < 0 { Some(1011) } else { (code != 1005).then_some(code) };
        self.close(id, answer, b"", WS_BY_PEER);
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

    /// The socket has failed, or the peer has closed it.
    pub fn connection_lost(&self, id: u64) {
        match self.with_open(id, |_, _| ()) {
            Some(()) => self.end(id, WS_BY_PEER, 1006),
            None => self.drop_unopened(id),
        }
    }

    /// The handler wants the connection dropped.
    pub fn abort(&self, id: u64) {
        if let Some(conn) = self.core.borrow_mut().table.get(id) {
            let counted = conn.queue.take().map_or(0, |queue| queue.counted);
            self.count_queue(id, conn, counted);
        }
        self.end(id, WS_BY_HANDLER, 1006);
    }

    /// The connection is over without (the rest of) a closing handshake.
    pub fn end(&self, id: u64, by: u32, code: u16) {
        if let Some(channel) = self.with_open(id, |_, open| open.channel().cloned()).flatten() {
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
            // It is not to come to life again elsewhere.
            record.set_flags(flags::TAKEN);
        }
    }

    /// Tells the handler that a connection is over, and forgets it.
    pub fn notify_closed(&self, id: u64) {
        let Some((handler, silent, channel, (by, code))) = self.with_open(id, |handler, open| {
            let silent = open.silent;
            let extra = open.extra();
            (handler, silent, extra.channel.take(), extra.closing)
        }) else {
            return;
        };
        let by = u32::from(by);
        self.log_close(id, by, code.into());
        self.metrics.of(handler).count_close(by, code);
        match (channel, self.service(handler)) {
            (Some(channel), _) => {
                for task in channel.end(Ended { by, code }) {
                    task.run(id);
                }
            }
            (None, Some(service)) if !silent && service.handler.has(Callback::Close) => {
                self.call_about(handler, Callback::Close, id, || {
                    service.handler.close(id, by, u32::from(code))
                });
            }
            _ => {}
        }
        self.shutdown(id);
    }

    /// Closes the socket; if the peer may still be sending, only after it has closed its end: a reset would
    /// take our Close frame with it.
    fn shutdown(&self, id: u64) {
        {
            let core = &mut *self.core.borrow_mut();
            let Some((conn, record)) = core.table.both(id) else { return };
            let said = conn.open().is_some_and(|open| open.proto.close_sent().is_some());
            let heard = conn.open().is_some_and(|open| open.peer_close().is_some());
            if said && !heard && conn.queued() == 0 && conn.socket.shutdown(Shutdown::Write).is_ok() {
                record.forget_head(); // it goes with the phase
                conn.phase = Phase::Linger(self.now.get().saturating_add(LINGER));
                for reason in [Pause::Handler, Pause::ThreadChannel, Pause::Queue, Pause::Move] {
                    conn.set_pause(reason, false, self.now.get());
                }
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

    /// Forgets a connection and closes its socket.
    pub fn remove(&self, id: u64) {
        self.log_answer(id, None);
        let removed = {
            let core = &mut *self.core.borrow_mut();
            core.table.record(id).inspect(|record| self.admission.end(record.peer.address(), record.mark));
            core.table.remove(id)
        };
        if let Some(conn) = removed {
            let sum = self.metrics.count_queued(conn.queue.as_ref().map_or(0, |queue| queue.counted), 0);
            self.commands.watermarks.update(sum);
            self.release_one();
        }
    }

    // -------------------------------------------------------------- deadlines

    /// How long the send queue may wait without the peer taking anything; ns.
    pub fn stall_time(&self) -> u64 {
        let limits = &self.config.limits;
        match limits.ping_interval {
            0 => STALL,
            interval => interval.saturating_add(limits.pong_deadline),
        }
    }

    /// A connection's deadline has come.
    pub fn on_deadline(&self, id: u64) {
        let now = self.now.get();
        let (handler, unopened, phase_over, timers) = {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return };
            let over = conn.deadline() <= now;
            let linger = matches!(conn.phase, Phase::Linger(_));
            let handler = conn.handler;
            match conn.open() {
                None if linger && over => {
                    core.table
                        .record(id)
                        .inspect(|record| self.admission.end(record.peer.address(), record.mark));
                    core.table.remove(id);
                    return self.release_one();
                }
                None => (handler, true, over, Vec::new()),
                Some(open) => (handler, false, over, take_due(open, now)),
            }
        };
        if unopened {
            if phase_over {
                self.handshake_timed_out(id);
            }
            return;
        }
        for task in timers {
            self.call_about(handler, Callback::Task, id, || task.run(id));
        }
        if phase_over {
            // The blocking thread did not answer the peer's Close in time.
            let code = self.with_open(id, |_, open| open.peer_close().map_or(1005, |close| close.code));
            let answer = code.filter(|code| *code != 1005);
            self.close(id, answer, b"", WS_BY_PEER);
            self.with_open(id, |_, open| open.extra().answer_by = None);
        }
        self.protocol_deadline(id);
    }

    fn protocol_deadline(&self, id: u64) {
        let now = self.now.get();
        let stall = self.stall_time();
        let (due, stalled) = {
            let core = &mut *self.core.borrow_mut();
            Self::mark_dirty(core, id);
            let Some(conn) = core.table.get(id) else { return };
            let protocol = conn.protocol(now, &self.config.limits, &mut core.codecs, &mut core.queue_pool);
            let Some((open, mut io)) = protocol else { return };
            let due = open.proto.on_deadline(&mut io);
            (due, conn.stalled().is_some_and(|since| since.saturating_add(stall) <= now))
        };
        match due {
            Deadline::Later if stalled => {
                log::info!("connection {id:x}: the peer takes nothing; dropped");
                self.end(id, WS_BY_HOST, 1006);
            }
            Deadline::Later => {}
            Deadline::Pinged => self.flush(id),
            Deadline::Idle => {
                self.begin_close(id, WS_BY_HOST, 1001);
                self.flush(id);
            }
            Deadline::PeerSilent => self.end(id, WS_BY_HOST, 1006),
            Deadline::CloseTimedOut => {
                // Whoever began to close, the other has not answered: cut.
                self.end(id, WS_BY_HOST, 1006);
            }
        }
    }
}

/// Takes the timers that are due out of a connection, in order.
fn take_due(open: &mut Open, now: u64) -> Vec<Task> {
    if open.next_timer() > now {
        return Vec::new();
    }
    let timers = &mut open.extra().timers;
    let mut due = Vec::new();
    let mut index = 0;
    while let Some((at, ..)) = timers.waiting.get(index) {
        if *at <= now {
            let (at, number, task) = timers.waiting.swap_remove(index);
            due.push((at, number, task));
        } else {
            index += 1;
        }
    }
    due.sort_by_key(|(at, number, _)| (*at, *number));
    due.into_iter().map(|(.., task)| task).collect()
}
