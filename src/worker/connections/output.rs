//! Writing: the send queue to the socket, messages and replies into the send queue.

use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::fleet::sockets::facts::GatewayFacts;
use crate::http::{Body, Response};
use crate::worker::conn::extents::Extents;
use crate::worker::conn::record::{Record, flags};
use crate::worker::conn::send_queue::Size;
use crate::worker::conn::table::{Conn, FileBody, LINGER, Pause, Phase};
use crate::worker::connections::Conns;

/// Most bytes in the send queue of a connection that moves with them.
const UNSENT: usize = 16 * 1024;
/// Bytes of a file put into the send queue at a time.
const FILE_PIECE: u64 = 128 * 1024;
/// Pieces of a file that are written at a time, however quickly the peer takes them; others have their turn then.
const FILE_PIECES: usize = 4;

impl Conns {
    /// Writes the send queue as far as the socket takes it, and updates what depends on it.
    pub fn flush(&self, id: u64) {
        let writable = {
            let core = &mut *self.core.borrow_mut();
            let Some((conn, record, unsent)) = core.table.all(id) else { return };
            let now = self.now();
            conn.dirty = false;
            let (mut progress, mut left) = (false, 0);
            if let Some(queue) = &conn.queue {
                // If another thread crashes during the write, no Close frame can follow.
                record.cut();
                let counted = queue.counted;
                progress = write_queue(conn);
                left = conn.queued();
                if left > 0 || counted.all > 0 {
                    let sum = self.count_queue(id, conn, counted);
                    sum.inspect(|sum| core.heap_trim.note(*sum));
                }
            }
            match conn.queue.take() {
                Some(mut queue) if left > 0 => {
                    queue.stalled = queue.stalled.filter(|_| !progress).or(Some(now));
                    conn.queue = Some(queue);
                }
                Some(queue) => core.queue_pool.put(queue),
                None => {}
            }
            match &mut conn.phase {
                Phase::Open(open) => {
                    if left == 0 && open.proto.is_finished() && !open.over {
                        open.over = true;
                        core.over.push(id);
                    }
                    if left >= self.commands.watermarks.high() {
                        conn.set_pause(Pause::SendQueue, true, now);
                    }
                }
                Phase::Reply(..) if left == 0 => {
                    let _ = conn.socket.shutdown(Shutdown::Write);
                    // The peer may have closed its end already.
                    let linger = if conn.is_paused() { Duration::ZERO } else { LINGER };
                    conn.phase = Phase::Linger(now + linger);
                }
                Phase::Reply(_, deadline) if progress => {
                    *deadline = now + self.config.handshake_timeout;
                }
                _ => {}
            }
            let writable = left <= self.commands.watermarks.low();
            if writable && conn.set_pause(Pause::SendQueue, false, now) && conn.has_unread() {
                core.turns.join(id, conn);
            }
            self.watch_conn(id, conn);
            self.settle_record(id, conn, record, unsent);
            self.arm_conn(id, conn, &mut core.timers);
            writable
        };
        if writable && self.commands.at(id).take_full() {
            self.core.borrow_mut().writable.push(id);
        }
    }

    /// The same in the middle of processing: the connection stays immovable.
    pub fn flush_within(&self, id: u64) {
        self.flush(id);
        if let Some(record) = self.core.borrow_mut().table.record(id) {
            record.pin();
        }
    }

    /// Notes how a connection stands that is not being processed.
    #[inline]
    pub fn settle_record(&self, id: u64, conn: &Conn, record: &Record, unsent: &mut Extents) {
        // Below the low mark no on_writable is pending: the process that adopts the connection would not know.
        let most = || UNSENT.min(self.commands.watermarks.low());
        let bytes = conn.queue.as_ref().and_then(|queue| queue.as_frames(most()));
        if let Some(bytes) = bytes {
            unsent.note(id as u32, bytes);
        }
        record.set_flags(flags_of(conn, bytes.is_some()));
    }

    /// What another process had still to send on a connection that comes from there goes before anything else.
    pub fn put_unsent(&self, id: u64, frames: &[u8]) {
        let core = &mut *self.core.borrow_mut();
        let Some((conn, record, unsent)) = core.table.all(id) else { return };
        let flags = record.flags() & !flags::UNSENT;
        if frames.is_empty() {
            return record.set_flags(flags);
        }
        let out = conn.queue.get_or_insert_with(|| core.queue_pool.take()).tail();
        out.extend_from_slice(frames);
        unsent.note(id as u32, out);
        record.set_flags(flags | flags::UNSENT);
    }

    /// Updates the count of queued bytes that other threads see; it was `counted`. Returns the sum of all connections'
    /// if that has changed.
    pub fn count_queue(&self, id: u64, conn: &mut Conn, counted: Size) -> Option<usize> {
        let left = conn.queue.as_ref().map_or(Size::default(), |queue| queue.size());
        if let Some(queue) = &mut conn.queue {
            queue.counted = left;
        }
        if counted == left {
            return None;
        }
        self.commands.at(id).add_bytes(counted.all as usize, left.all as usize);
        Some(self.count_all_queues(counted.own, left.own))
    }

    /// Updates the bytes in all send queues after one queue's own bytes changed from `before` to `after`; returns the
    /// sum.
    pub fn count_all_queues(&self, before: u32, after: u32) -> usize {
        let (counted, shared) = self.shared_frames.count();
        let sum =
            self.metrics.lane.count_queued(before as u64 + counted as u64, after as u64 + shared as u64);
        self.commands.watermarks.update(sum);
        sum as usize
    }

    /// Sends a handler's octets in place of a response; the connection ends with them.
    pub fn reply_octets(&self, id: u64, octets: &[u8]) {
        self.finish_with(id, |_, out| {
            out.extend_from_slice(octets);
            None
        });
    }

    /// Sends an HTTP response; the connection ends with it.
    pub fn reply(&self, id: u64, response: Response) {
        let response = response.with_hsts(self.hsts(id).as_deref());
        // A request that was read whole is a GET.
        let takes_content = |conn: &mut Conn| conn.head().is_none_or(|head| head.takes_content);
        let takes_content = self.core.borrow_mut().table.get(id).is_some_and(takes_content);
        let response = if takes_content { response } else { response.without_content() };
        let answer = Some((response.head(), response.content_length()));
        self.log(id, |log, record, now| log.answer(id, record, now, answer));
        self.finish_with(id, |handler, out| {
            self.metrics.of(handler).count_status(response.status());
            out.extend_from_slice(response.head());
            match response.into_body() {
                Body::Empty => None,
                Body::Bytes(bytes) => {
                    out.extend_from_slice(&bytes);
                    None
                }
                Body::File { file, offset, length } => Some(FileBody { file, offset, left: length }),
            }
        });
    }

    /// The connection ends with what `write`, which is given its handler, puts into its send queue, and a file behind
    /// that.
    fn finish_with(&self, id: u64, write: impl FnOnce(u16, &mut Vec<u8>) -> Option<FileBody>) {
        {
            let core = &mut *self.core.borrow_mut();
            let Some((conn, record)) = core.table.both(id) else { return };
            record.cut();
            record.forget_head();
            let file = write(conn.handler, conn.queue.get_or_insert_with(|| core.queue_pool.take()).tail());
            let by = self.now() + self.config.handshake_timeout;
            conn.phase = Phase::Reply(file, by);
            conn.dirty = true;
            core.dirty.push(id);
        }
        self.resume(id, Pause::Handshake);
        self.arm(id);
    }

    /// The value of Strict-Transport-Security (RFC 6797 section 7.1), if the gateway that the connection comes from has
    /// one.
    fn hsts(&self, id: u64) -> Option<String> {
        let core = &mut *self.core.borrow_mut();
        let hsts = GatewayFacts::from_bytes(core.table.record(id)?.facts()?)?.hsts?;
        str::from_utf8(hsts).ok().map(str::to_owned)
    }
}

/// Writes a connection's queue, and pieces of a file behind it; true if the socket took anything. If the socket fails,
/// whatever the reason, the queue is dropped and nothing can follow: the loop is told of the end of the stream.
fn write_queue(conn: &mut Conn) -> bool {
    let (mut progress, mut pieces) = (false, 0);
    while let Some(queue) = &mut conn.queue {
        let before = queue.len();
        let written = queue.write_to(&conn.socket);
        let after = queue.len();
        progress |= after < before;
        if written.is_err() {
            drop(conn.queue.take());
            let _ = conn.socket.shutdown(Shutdown::Both);
            break;
        }
        let more = match &mut conn.phase {
            Phase::Reply(Some(file), _) if after == 0 => next_piece(file, queue.tail()),
            _ => Some(false),
        };
        match more {
            Some(true) if pieces < FILE_PIECES => pieces += 1,
            // The piece waits in the queue until the socket is found to be writable.
            Some(_) => break,
            // The file cannot be read: Content-Length cannot be kept.
            None => {
                drop(conn.queue.take());
                let _ = conn.socket.shutdown(Shutdown::Both);
            }
        }
    }
    progress
}

/// The record flags of a connection that is not being processed. `has_unsent`: what waits in its send queue travels
/// with it.
fn flags_of(conn: &Conn, has_unsent: bool) -> u32 {
    let boundary = conn.queue.as_ref().is_none_or(|queue| queue.is_at_start());
    let movable = (conn.queue.is_none() || has_unsent) && !conn.has_unread();
    match &conn.phase {
        Phase::Head(..) => flags::TAKEN | flags::FRESH,
        Phase::Opening(..) => flags::TAKEN | if conn.has_unread() { flags::AHEAD } else { flags::OPENING },
        Phase::Open(open) if !open.over && open.proto.close_sent().is_none() => {
            let channel = open.channel();
            let resumable = channel.is_none_or(|channel| channel.is_resumable());
            let movable = movable && resumable && open.proto.is_movable();
            flags::TAKEN
                | if boundary { flags::BOUNDARY } else { 0 }
                | if movable { flags::MOVABLE } else { 0 }
                | if has_unsent { flags::UNSENT } else { 0 }
                | if channel.is_some() { flags::THREAD } else { 0 }
        }
        Phase::Linger(_) => 0,
        Phase::Reply(..) | Phase::Open(_) => flags::TAKEN,
    }
}

/// Appends the next piece of a file; false at its end, `None` if it cannot be read.
fn next_piece(file: &mut FileBody, out: &mut Vec<u8>) -> Option<bool> {
    if file.left == 0 {
        return Some(false);
    }
    let size = file.left.min(FILE_PIECE) as usize;
    let start = out.len();
    out.resize(start + size, 0);
    let read = file.file.read_at(out.get_mut(start..)?, file.offset).ok().filter(|read| *read > 0)?;
    out.truncate(start + read);
    file.offset += read as u64;
    file.left -= read as u64;
    Some(true)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::fleet::sockets::datagram;
    use crate::time::Instant;
    use crate::worker::conn::send_queue::SendQueue;

    #[test]
    fn nothing_follows_bytes_that_a_socket_has_refused() {
        // A message too long for this kind of socket is an error without an end of the connection.
        let (ours, theirs) = datagram::pair().unwrap();
        let mut conn = Conn::new(ours.into(), Instant::NEVER);
        let mut queue = Box::new(SendQueue::default());
        queue.tail().resize(16 << 20, 7);
        conn.queue = Some(queue);
        assert!(!write_queue(&mut conn) && conn.queue.is_none());
        let mut rest = Vec::new();
        assert_eq!(UnixStream::from(theirs).read_to_end(&mut rest).unwrap(), 0);
    }
}
