//! An open connection: bytes in, messages to the handler, bytes out.

use std::net::Shutdown;
use std::os::unix::fs::FileExt;

use ::ws_handler::raw::*;
use rustix::io::Errno;

use crate::ffi::host::{Callback, monotonic};
use crate::proto::ws::connection::{Body, Event, Kind};
use crate::worker::conn::channel::Delivery;
use crate::worker::conn::receive;
use crate::worker::conn::record::flags;
use crate::worker::conn::table::{Conn, FileBody, Open, Pause, Phase};
use crate::worker::conn::turn::UNTIMED;
use crate::worker::handshake::request::LINGER;
use crate::worker::{Core, Service, Worker};

/// So many bytes of a frame, or more, are received where its message is gathered.
const LARGE: usize = 16 * 1024;
/// Bytes of a file put into the send queue at a time.
const FILE_PIECE: u64 = 128 * 1024;

impl Worker {
    // --------------------------------------------------------------------- in

    /// A socket has something to read, or may have and it is its turn. `buffer` ends in one spare byte. Says whether there
    /// may be more now: as much came as was asked for, or a signal came instead.
    #[inline(always)]
    pub fn readable(&self, id: u64, in_turn: bool, buffer: &mut [u8]) -> bool {
        #[derive(Clone, Copy)]
        enum Next {
            Head,
            Messages,
            Gathered,
            Nothing,
            ReplyStill,
        }
        let (received, asked, next, at_once, room) = {
            let core = &mut *self.core.borrow_mut();
            let Some((conn, record)) = core.table.both(id) else { return false };
            let at_once = conn.turn.is_at_once();
            let Some(room) = core.turns.room_for(id, conn, in_turn) else {
                self.watch_conn(id, conn);
                return false;
            };
            let next = match &conn.phase {
                Phase::Head(..) => Next::Head,
                Phase::Open(_) => Next::Messages,
                // What comes now is not wanted: it is read so that closing does not reset the connection
                // before the peer has read our last words.
                Phase::Opening(..) | Phase::Linger(_) => Next::Nothing,
                Phase::Reply(..) => Next::ReplyStill,
            };
            if conn.is_paused() {
                return false;
            }
            // Until all that is read now is processed the connection can not move.
            record.set_flags(record.flags() & !(flags::MOVABLE | flags::FRESH));
            if matches!(next, Next::Head) {
                record.forget_head();
            }
            let intake = match &mut conn.phase {
                Phase::Open(open) if !at_once && !open.over => open.proto.intake(LARGE),
                _ => None,
            };
            match intake {
                Some((gathered, most)) => {
                    let asked = most.min(room);
                    (receive::append(&conn.socket, gathered, asked), asked, Next::Gathered, at_once, room)
                }
                None => {
                    let room = room.min(receive::AT_ONCE);
                    (receive::receive(&conn.socket, &mut buffer[..room]), room, next, at_once, room)
                }
            }
        };
        match (received, next) {
            // A half-close after the request: the reply is wanted all the same.
            (Ok(0), Next::ReplyStill) => self.pause(id, Pause::Ended),
            (Ok(0), _) => self.connection_lost(id),
            (Ok(count), Next::Head) => self.read_head(id, &buffer[..count]),
            (Ok(count), Next::Messages) if count <= UNTIMED && at_once => self.process(id, buffer, count, 0),
            (Ok(count), Next::Messages | Next::Gathered) => {
                let (begun, before) = (monotonic(), self.delivered(id));
                match next {
                    Next::Gathered => self.process(id, buffer, 0, count),
                    _ => self.process(id, buffer, count, 0),
                }
                let took = monotonic().saturating_sub(begun);
                let delivered = self.delivered(id).saturating_sub(before);
                if let Some(conn) = self.core.borrow_mut().table.get(id) {
                    conn.turn.update(room, count, delivered, took);
                }
            }
            (Ok(_), Next::Nothing | Next::ReplyStill) => {}
            // Nothing to read after all: it stands as it did.
            (Err(Errno::AGAIN | Errno::INTR), _) => self.flush(id),
            (Err(_), _) => self.connection_lost(id),
        }
        received == Ok(asked) || received == Err(Errno::INTR)
    }

    /// Bytes that the handler of a connection has been given in messages.
    fn delivered(&self, id: u64) -> u64 {
        self.with_open(id, |_, open| open.counted.counters().bytes_in.get()).unwrap_or(0)
    }

    /// Processes bytes that were set aside when reading paused; false if there are none.
    pub fn process_unread(&self, id: u64, buffer: &mut [u8]) -> bool {
        let count = {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return true };
            if conn.is_paused() {
                return true;
            }
            let Some(unread) = conn.take_unread() else { return false };
            // It came out of this buffer, or is a request head's tail, which is shorter.
            let Some(to) = buffer.get_mut(..unread.len()) else { return true };
            to.copy_from_slice(&unread);
            unread.len()
        };
        if count < buffer.len() {
            self.process(id, buffer, count, 0);
        }
        true
    }

    /// Feeds `buffer[..count]` to the protocol, after `gathered` bytes that were received where a message is gathered, and
    /// does what comes of it.
    fn process(&self, id: u64, buffer: &mut [u8], count: usize, mut gathered: usize) {
        self.set_current(id);
        let mut at = 0;
        loop {
            let (event, handler) = {
                let core = &mut *self.core.borrow_mut();
                let Some(conn) = core.table.get(id) else { return };
                // What is sent meanwhile leaves with the flush below.
                conn.dirty = true;
                if conn.is_paused() && gathered == 0 {
                    let rest = &buffer[at..count];
                    conn.set_unread((!rest.is_empty()).then(|| rest.into()));
                    break;
                }
                let (full, handler) = (conn.queued() >= self.commands.watermarks.high(), conn.handler);
                let limits = &self.config.limits;
                let protocol = conn.protocol(self.now.get(), limits, &mut core.codecs, &mut core.queue_pool);
                let Some((open, mut io)) = protocol.filter(|(open, _)| !open.over) else { break };
                if full && gathered == 0 {
                    (None, handler)
                } else {
                    let event = match std::mem::take(&mut gathered) {
                        0 => open.proto.receive(&mut buffer[..count], &mut at, &mut io),
                        gathered => open.proto.taken(gathered, &mut io),
                    };
                    if let Event::Message { kind, last, body, .. } = &event {
                        open.last_opcode = *kind as u8;
                        open.counted.counters().received(body.len(), *last);
                    }
                    (Some(event), handler)
                }
            };
            match event {
                None => self.flush_within(id),
                Some(Event::NeedMore) if at >= count => break,
                Some(Event::NeedMore) => {}
                // It counts as a message: it costs as much as a small one.
                Some(Event::Empty) => _ = self.is_too_fast(id, true, 0),
                Some(Event::Message { first, ref body, .. }) if self.is_too_fast(id, first, body.len()) => {}
                Some(Event::Message { kind, first, last, body, .. }) => {
                    let flags = if first { WS_FIRST } else { 0 } | if last { WS_LAST } else { 0 };
                    self.deliver(id, handler, kind, flags, body, buffer);
                }
                Some(Event::Pong { body, rtt }) => self.deliver_pong(id, body.octets(buffer), rtt),
                Some(Event::CloseReceived { code, reason }) => {
                    self.peer_closes(id, code, reason.octets(buffer));
                }
                Some(Event::Closed { code, reason }) => self.note_peer_close(id, code, reason.octets(buffer)),
                Some(Event::Failed { code, why }) => {
                    log::info!("connection {id:x}: {why}; closed with {code}");
                    self.begin_close(id, WS_BY_HOST, code);
                }
            }
        }
        self.flush(id);
    }

    /// Gives a message to its handler, or to the thread of a blocking one.
    fn deliver(&self, id: u64, handler: u16, kind: Kind, flags: u32, body: Body, buffer: &mut [u8]) {
        self.access_log.received(id, body.len(), flags & WS_LAST != 0);
        let Some(service) = self.service(handler) else { return };
        if service.handler.is_blocking() {
            return self.put_message(id, kind, flags, body, buffer);
        }
        match body {
            Body::Input(range) => {
                // The NUL after the payload takes the place of a byte that is put back.
                let next = std::mem::replace(&mut buffer[range.end], 0);
                self.call_message(handler, id, service, (kind, flags), &buffer[range.start..], range.len());
                buffer[range.end] = next;
            }
            Body::Owned(mut payload) => {
                let size = payload.len();
                payload.push(0);
                self.call_message(handler, id, service, (kind, flags), &payload, size);
            }
        }
    }

    /// Leaves a message for the thread of a blocking handler.
    fn put_message(&self, id: u64, kind: Kind, flags: u32, body: Body, buffer: &[u8]) {
        let Some(channel) = self.with_open(id, |_, open| open.channel().cloned()).flatten() else { return };
        let mut payload = match body {
            Body::Owned(payload) => payload,
            Body::Input(range) => {
                let mut payload = Vec::with_capacity(range.len() + 1);
                payload.extend_from_slice(&buffer[range]);
                payload
            }
        };
        payload.push(0);
        let room = channel.put(Delivery::Message { kind: kind as u32, flags, payload });
        if !room {
            self.pause(id, Pause::ThreadChannel);
        }
    }

    /// A message of so many bytes, with which `from` begins; a NUL follows them.
    fn call_message(
        &self,
        handler: u16,
        id: u64,
        service: &Service,
        (kind, flags): (Kind, u32),
        from: &[u8],
        size: usize,
    ) {
        if kind == Kind::Text && flags == WS_FIRST | WS_LAST {
            self.delivering.set((from.as_ptr(), size));
        }
        self.slot.call.deliver(kind as u32, from, size);
        self.call(handler, Callback::Message, || {
            service.handler.message(id, kind as u32, flags, &from[..size + 1])
        });
        self.slot.call.delivered();
        self.delivering.set((std::ptr::null(), 0));
    }

    fn deliver_pong(&self, id: u64, payload: &[u8], rtt: u64) {
        let known = self.with_open(id, |handler, open| (handler, open.channel().cloned()));
        let Some((handler, channel)) = known else { return };
        match channel {
            Some(channel) => drop(channel.put(Delivery::Pong { payload: payload.to_vec(), rtt })),
            None => {
                let has_pong = |service: &&Service| service.handler.has(Callback::Pong);
                let Some(service) = self.service(handler).filter(has_pong) else { return };
                self.call_about(handler, Callback::Pong, id, || service.handler.pong(id, payload, rtt));
            }
        }
    }

    // -------------------------------------------------------------------- out

    /// Writes what waits, as far as the socket takes it, and goes on from there.
    pub fn flush(&self, id: u64) {
        let writable = {
            let core = &mut *self.core.borrow_mut();
            let Some((conn, record)) = core.table.both(id) else { return };
            let now = self.now.get();
            conn.dirty = false;
            let mut progress = false;
            if let Some(queue) = &conn.queue {
                // While it is being written to, on a crash of another thread nothing can be said.
                record.set_flags(flags::TAKEN);
                let counted = queue.counted;
                progress = write_queue(conn);
                self.count_queue(id, conn, counted);
            }
            let left = conn.queued();
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
                        conn.set_pause(Pause::Queue, true, now);
                    }
                }
                Phase::Reply(..) if left == 0 => {
                    let _ = conn.socket.shutdown(Shutdown::Write);
                    // Nothing to wait for if the peer has closed its end already.
                    let linger = if conn.is_paused() { 0 } else { LINGER };
                    conn.phase = Phase::Linger(now.saturating_add(linger));
                }
                Phase::Reply(_, deadline) if progress => {
                    *deadline = now.saturating_add(self.config.handshake_time);
                }
                _ => {}
            }
            let writable = left <= self.commands.watermarks.low();
            if writable && conn.set_pause(Pause::Queue, false, now) && conn.has_unread() {
                core.turns.join(id, conn);
            }
            self.watch_conn(id, conn);
            record.set_flags(flags_of(conn));
            self.arm_conn(id, conn, &mut core.timers);
            writable.then_some(conn.handler)
        };
        if let Some(handler) = writable
            && self.commands.take_full(id)
        {
            self.notify_writable(id, handler);
        }
    }

    /// Has the mailroom know how much waits now, of which it knew `counted`.
    pub fn count_queue(&self, id: u64, conn: &mut Conn, counted: u32) {
        let left = u32::try_from(conn.queued()).unwrap_or(u32::MAX);
        if counted != left {
            self.commands.watermarks.update(self.metrics.count_queued(counted, left));
            self.commands.count_queued(id, counted as usize, left as usize);
        }
        if let Some(queue) = &mut conn.queue {
            queue.counted = left;
        }
    }

    /// The same while there is more to process.
    fn flush_within(&self, id: u64) {
        self.flush(id);
        if let Some(record) = self.core.borrow_mut().table.record(id) {
            record.set_flags(record.flags() & !flags::MOVABLE);
        }
    }

    fn notify_writable(&self, id: u64, handler: u16) {
        match self.with_open(id, |_, open| open.channel().cloned()) {
            Some(Some(channel)) => channel.nudge(),
            Some(None) => {
                let Some(service) = self.service(handler) else { return };
                if service.handler.has(Callback::Writable) {
                    self.call_about(handler, Callback::Writable, id, || service.handler.writable(id));
                }
            }
            None => {}
        }
    }

    /// Puts a connection on the list of those to flush. Until then it can not move.
    pub fn mark_dirty(core: &mut Core, id: u64) {
        match core.table.both(id) {
            Some((conn, record)) if !conn.dirty => {
                conn.dirty = true;
                record.set_flags(record.flags() & !flags::MOVABLE);
            }
            _ => return,
        }
        core.dirty.push(id);
    }

    // ----------------------------------------------------------------- shared

    /// Runs with an open connection and its handler's index; must not call the handler.
    pub fn with_open<R>(&self, id: u64, f: impl FnOnce(u16, &mut Open) -> R) -> Option<R> {
        let core = &mut *self.core.borrow_mut();
        let conn = core.table.get(id)?;
        let handler = conn.handler;
        conn.open().map(|open| f(handler, open))
    }

    /// Calls into a handler about a connection, with the scoreboard saying so.
    pub fn call_about<R>(&self, handler: u16, callback: Callback, id: u64, call: impl FnOnce() -> R) -> R {
        self.set_current(id);
        self.call(handler, callback, call)
    }

    /// The scoreboard knows from now on which connection calls are about.
    fn set_current(&self, id: u64) {
        let peer = self.core.borrow_mut().table.record(id).map(|record| record.peer).unwrap_or_default();
        self.slot.call.set_current(id, peer, self.now.get());
    }

    /// Calls into a handler about the connection turned to.
    #[inline]
    fn call<R>(&self, handler: u16, callback: Callback, call: impl FnOnce() -> R) -> R {
        self.slot.call.begin(handler, callback as u32);
        let result = self.metrics.stopwatch(handler).time(callback, call);
        self.slot.call.end();
        result
    }
}

/// Writes a connection's queue, file pieces following; true if the socket took anything. If the socket fails the queue
/// goes.
fn write_queue(conn: &mut Conn) -> bool {
    let mut progress = false;
    while let Some(queue) = &mut conn.queue {
        let before = queue.len();
        let written = queue.write_to(&conn.socket);
        let after = queue.len();
        progress |= after < before;
        if written.is_err() {
            drop(conn.queue.take());
            break;
        }
        let more = match &mut conn.phase {
            Phase::Reply(Some(file), _) if after == 0 => next_piece(file, queue.tail()),
            _ => Some(false),
        };
        match more {
            Some(true) => {}
            Some(false) => break,
            // The file can not be read on: the length that was promised can not be kept.
            None => {
                drop(conn.queue.take());
                let _ = conn.socket.shutdown(Shutdown::Both);
            }
        }
    }
    progress
}

/// How an idle connection stands, should the process crash.
fn flags_of(conn: &Conn) -> u32 {
    let boundary = conn.queue.as_ref().is_none_or(|queue| queue.is_at_start());
    let movable = conn.queue.is_none() && !conn.has_unread();
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
                | if channel.is_some() { flags::THREAD } else { 0 }
        }
        _ => flags::TAKEN,
    }
}

/// The next piece of a file; false at its end, `None` if it can not be read.
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
