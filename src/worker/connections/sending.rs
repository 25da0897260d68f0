//! Messages into the send queue, on behalf of handlers.

use std::collections::VecDeque;

use ::ws_handler::raw::*;
use socket2::Socket;

use crate::ffi::host::Payload;
use crate::fleet::memory::counters::handler::HandlerCounters;
use crate::proto::ws::connection::{Connection, Io, Kind, Send, SendError};
use crate::worker::commands::queue::{Counted, ThreadCommand, cost};
use crate::worker::conn::record::{Record, flags};
use crate::worker::conn::send_queue::{SendQueue, Size};
use crate::worker::conn::table::{Conn, Phase};
use crate::worker::connections::{Conns, Core};

/// Payloads from this size on are written from where they lie instead of being
/// gathered with others.
const LARGE: usize = 16 * 1024;

impl Conns {
    /// Whether the send queue is above its high mark even after the kernel was given what it takes; on_writable
    /// is pending then.
    #[inline]
    pub fn is_full(&self, id: u64, conn: &mut Conn, record: &mut Record) -> bool {
        conn.queued() >= self.commands.watermarks.floor() && self.stays_full(id, conn, record)
    }

    #[cold]
    fn stays_full(&self, id: u64, conn: &mut Conn, record: &mut Record) -> bool {
        // What is in it by now may lower the mark.
        self.count_queue(id, conn, counted_of(conn));
        if conn.queued() < self.commands.watermarks.high() {
            return false;
        }
        // A socket that fails is found out by the flush that follows.
        let _ = write_early(conn, record, |queue, socket| queue.write_to(socket));
        self.count_queue(id, conn, counted_of(conn));
        self.commands.refuses_to_send(id)
    }

    /// Carries out what other threads have sent on a connection, ahead of the other commands.
    #[inline]
    pub fn run_sends(&self, id: u64) {
        if !self.commands.at(id).is_quiet() && self.has_waiting_sends(id) {
            self.run_waiting_sends(id);
        }
    }

    /// Whether more is counted than what is in the send queue: it is on the way there.
    fn has_waiting_sends(&self, id: u64) -> bool {
        let queued = self.core.borrow_mut().table.get(id).map_or(0, |conn| counted_of(conn).all as usize);
        self.commands.at(id).bytes() > queued
    }

    #[cold]
    fn run_waiting_sends(&self, id: u64) {
        let taken = self.batch.take().into_iter();
        let (mut sends, rest): (VecDeque<_>, _) = taken.partition(|command| command.is_send_of(id));
        self.batch.replace(rest);
        sends.extend(self.commands.take_sends(id));
        for command in sends {
            if let ThreadCommand::Counted(id, Counted::Send { kind, payload, flags }) = command {
                self.send_accepted(id, kind, payload, flags);
                self.commands.at(id).leave();
            }
        }
    }

    /// Sends what was accepted from another thread with WS_OK.
    pub fn send_accepted(&self, id: u64, kind: u32, payload: Payload<'static>, flags: u32) {
        self.take_over(id, payload.bytes());
        // The thread has checked a text, but not the pieces of one.
        let trusted = flags & WS_MORE == 0 && self.is_unfragmented(id);
        let result = self.send(id, kind, payload, flags, trusted, false);
        if result == WS_E_INVALID {
            log::error!(
                "connection {id:x}: a fragmented text from another thread is not UTF-8; closing with 1011"
            );
            self.close(id, Some(1011), b"", WS_BY_HANDLER);
        }
    }

    /// Bytes that were accepted from another thread with WS_OK enter the send queue, which counts them. The connection
    /// cannot move until it is flushed.
    pub fn take_over(&self, id: u64, bytes: &[u8]) {
        self.core.borrow_mut().mark_dirty(id);
        self.commands.at(id).add_bytes(cost(bytes), 0);
    }

    /// Sends the usual message: whole, small, in a frame as it is, while the send queue is far from full. False, and
    /// nothing was done, for any other, and if it may not be sent: [`send`](Self::send) finds out why.
    #[inline(always)]
    pub fn send_usual(&self, id: u64, kind: u32, bytes: &[u8], trusted: bool) -> bool {
        let Some(kind) = message_kind(kind) else { return false };
        let core = &mut *self.core.borrow_mut();
        let Some(conn) = core.table.get(id) else { return false };
        let Phase::Open(open) = &mut conn.phase else { return false };
        let queue = match &mut conn.queue {
            Some(queue) => queue,
            none => none.insert(core.queue_pool.take()),
        };
        let has_room = bytes.len() < LARGE && queue.len() < self.commands.watermarks.floor();
        let now = self.now();
        if !has_room || open.over || !open.proto.send_whole(kind, bytes, trusted, now, queue.tail()) {
            return false;
        }
        open.counted.counters().sent(bytes.len(), true);
        if !conn.dirty {
            core.mark_dirty(id);
        }
        if self.access_log.is_on() {
            self.access_log.sent(id, bytes.len(), true);
        }
        true
    }

    /// Sends a message or fragment. `trusted`: the caller knows that a text is UTF-8. `bounded`: not if the send queue
    /// is full.
    pub fn send(
        &self,
        id: u64,
        kind: u32,
        payload: Payload<'_>,
        flags: u32,
        trusted: bool,
        bounded: bool,
    ) -> i32 {
        let Some(kind) = message_kind(kind) else { return WS_E_INVALID };
        let how = Send { more: flags & WS_MORE != 0, compress: flags & WS_UNCOMPRESSED == 0, trusted };
        let core = &mut *self.core.borrow_mut();
        let bytes = payload.bytes();
        let size = bytes.len();
        let sent = self.sending(core, id, bounded, |proto, io| {
            let follows = proto.send_header(kind, bytes, how, io)?;
            if follows && size < LARGE {
                io.out.extend_from_slice(bytes);
            }
            Ok(follows && size >= LARGE)
        });
        let (follows, counters) = match sent {
            Ok(sent) => sent,
            Err(result) => return result,
        };
        if follows && let Some((conn, record)) = core.table.both(id) {
            put_large(conn, record, payload);
        }
        counters.sent(size, !how.more);
        self.access_log.sent(id, size, !how.more);
        WS_OK
    }

    pub fn send_ping(&self, id: u64, payload: &[u8], bounded: bool) -> i32 {
        let core = &mut *self.core.borrow_mut();
        let sent = self.sending(core, id, bounded, |proto, io| proto.ping(payload, io));
        sent.err().unwrap_or(WS_OK)
    }

    pub fn send_raw(&self, id: u64, octets: &[u8], bounded: bool) -> i32 {
        let core = &mut *self.core.borrow_mut();
        let sent = self.sending(core, id, bounded, |_, io| {
            io.out.extend_from_slice(octets);
            Ok(())
        });
        sent.err().unwrap_or(WS_OK)
    }

    /// Runs with the protocol of a connection that can be sent to; what it appends goes out with the next flush. Also
    /// returns what is counted for its handler.
    fn sending<R>(
        &self,
        core: &mut Core,
        id: u64,
        bounded: bool,
        send: impl FnOnce(&mut Connection, &mut Io) -> Result<R, SendError>,
    ) -> Result<(R, &'static HandlerCounters), i32> {
        let (conn, record) = core.table.both(id).ok_or(WS_E_GONE)?;
        if bounded && self.is_full(id, conn, record) {
            return Err(WS_E_FULL);
        }
        let limits = &self.settings(conn.handler).limits;
        let protocol = conn.protocol(self.now(), limits, &mut core.codecs, &mut core.queue_pool);
        let (open, mut io) = protocol.filter(|(open, _)| !open.over).ok_or(WS_E_GONE)?;
        let counters = open.counted.counters();
        let sent = send(&mut open.proto, &mut io).map_err(send_result);
        let has_context = open.proto.deflate().is_some() && open.proto.context_bytes().0 > 0;
        if !conn.dirty {
            core.mark_dirty(id);
        }
        if has_context {
            core.count_context(id, self.now());
        }
        sent.map(|sent| (sent, counters))
    }
}

/// Puts a payload behind its header, with which the send queue ends: without a copy, as far as that is possible.
fn put_large(conn: &mut Conn, record: &mut Record, payload: Payload<'_>) {
    if let Payload::Owned(bytes) = payload {
        if let Some(queue) = &mut conn.queue {
            queue.push_owned(bytes);
        }
        return;
    }
    let bytes = payload.bytes();
    write_early(conn, record, |queue, socket| {
        // A socket that fails is found out by the flush that follows.
        let taken = queue.write_before(socket, bytes).unwrap_or(0);
        queue.tail().extend_from_slice(bytes.get(taken..).unwrap_or_default());
    });
}

/// Writes in the middle of a callback. Should there be a crash, no Close frame can follow while that goes on, nor if
/// it ends within a frame.
fn write_early<R>(
    conn: &mut Conn,
    record: &mut Record,
    write: impl FnOnce(&mut SendQueue, &Socket) -> R,
) -> Option<R> {
    let queue = conn.queue.as_deref_mut()?;
    record.pin();
    let stands = record.flags();
    record.set_flags(stands & !flags::BOUNDARY);
    let result = write(queue, &conn.socket);
    if queue.is_at_start() {
        record.set_flags(stands);
    }
    Some(result)
}

pub fn counted_of(conn: &Conn) -> Size {
    conn.queue.as_ref().map_or(Size::default(), |queue| queue.counted)
}

/// The type of a message by its number in `ws_handler.h`.
pub fn message_kind(kind: u32) -> Option<Kind> {
    match kind {
        WS_TEXT => Some(Kind::Text),
        WS_BINARY => Some(Kind::Binary),
        _ => None,
    }
}

fn send_result(error: SendError) -> i32 {
    match error {
        SendError::Closing => WS_E_GONE,
        SendError::NotUtf8 | SendError::TooLong | SendError::WrongKind | SendError::BadCode => WS_E_INVALID,
    }
}
