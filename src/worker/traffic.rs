//! An open connection: bytes in, messages to the handler, bytes out, and its end.

use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use ::ws_handler::raw::*;

use super::conn::{Conn, FileBody, NEVER, Open, Pause, Phase};
use super::greet::LINGER;
use super::mailbox::{Ended, Item, PeerClose};
use super::mailroom::Parcel;
use super::record::standing;
use super::{Core, Worker};
use crate::ffi::host::{Callback, Task};
use crate::proto::connection::{Body, Deadline, Event, Kind, Send};

/// Bytes of a file put into the send queue at a time.
const FILE_PIECE: u64 = 128 * 1024;

impl Worker {
    // --------------------------------------------------------------------- in

    /// A socket has something to read. `buffer` ends in one spare byte.
    pub fn readable(&self, id: u64, buffer: &mut [u8]) {
        enum Next {
            Head,
            Messages,
            Nothing,
        }
        let room = buffer.len() - 1;
        let (received, next) = {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return };
            let next = match &conn.phase {
                Phase::Head(_) => Next::Head,
                Phase::Open(_) => Next::Messages,
                // What comes now is not wanted: it is read so that closing does not reset the connection
                // before the peer has read our last words.
                Phase::Opening(..) | Phase::Reply(_) | Phase::Linger => Next::Nothing,
            };
            if conn.is_paused() {
                return;
            }
            if let Some(record) = core.table.record(id) {
                // Until all that is read now is processed the connection can not move.
                record.set_standing(record.standing() & !(standing::MOVABLE | standing::FRESH));
            }
            let Some(conn) = core.table.get(id) else { return };
            ((&conn.socket).read(&mut buffer[..room]), next)
        };
        match (received, next) {
            (Ok(0), _) => self.lost(id),
            (Ok(count), Next::Head) => self.read_head(id, &buffer[..count]),
            (Ok(count), Next::Messages) => self.process(id, buffer, count),
            (Ok(_), Next::Nothing) => {}
            (Err(error), _) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            (Err(_), _) => self.lost(id),
        }
    }

    /// Processes bytes that were set aside when reading paused.
    pub fn process_unread(&self, id: u64, buffer: &mut [u8]) {
        let count = {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return };
            let (false, Some(unread)) = (conn.is_paused(), conn.unread.take()) else { return };
            // It came out of this buffer, or is a request head's tail, which is shorter.
            let Some(to) = buffer.get_mut(..unread.len()) else { return };
            to.copy_from_slice(&unread);
            unread.len()
        };
        if count < buffer.len() {
            self.process(id, buffer, count);
        }
    }

    /// Feeds `buffer[..count]` to the protocol and does what comes of it.
    fn process(&self, id: u64, buffer: &mut [u8], count: usize) {
        let mut at = 0;
        loop {
            if self.is_above_high(id) {
                self.flush(id);
            }
            let event = {
                let core = &mut *self.core.borrow_mut();
                let Some(conn) = core.table.get(id) else { return };
                if conn.is_paused() {
                    let rest = &buffer[at..count];
                    conn.unread = (!rest.is_empty()).then(|| rest.into());
                    break;
                }
                let limits = &self.config.limits;
                let protocol = conn.protocol(self.now.get(), limits, &mut core.codecs, &mut core.spare);
                let Some((open, mut io)) = protocol else { return };
                if open.over {
                    break;
                }
                open.proto.receive(&mut buffer[..count], &mut at, &mut io)
            };
            match event {
                Event::NeedMore => break,
                Event::Message { kind, first, last, body, .. } => {
                    let flags = if first { WS_FIRST } else { 0 } | if last { WS_LAST } else { 0 };
                    self.deliver(id, kind, flags, body, buffer);
                }
                Event::Pong { body, rtt } => self.deliver_pong(id, body.octets(buffer), rtt),
                Event::CloseReceived { code, reason } => self.peer_closes(id, code, reason.octets(buffer)),
                Event::Closed { code, reason } => {
                    self.note_peer_close(id, code, reason.octets(buffer));
                }
                Event::Failed { code, why } => {
                    log::info!("connection {id:x}: {why}; closed with {code}");
                    self.begin_close(id, WS_BY_HOST, code);
                }
            }
        }
        self.flush(id);
    }

    fn is_above_high(&self, id: u64) -> bool {
        self.core.borrow_mut().table.get(id).is_some_and(|conn| conn.queued() >= self.config.send_high)
    }

    fn deliver(&self, id: u64, kind: Kind, flags: u32, body: Body, buffer: &mut [u8]) {
        let size = body.len();
        self.slot.messages_in.store(self.slot.messages_in.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.slot.bytes_in.store(self.slot.bytes_in.load(Ordering::Relaxed) + size as u64, Ordering::Relaxed);
        let (handler, mailbox) = {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return };
            let handler = conn.handler;
            let Some(open) = conn.open() else { return };
            open.last_opcode = kind as u8;
            (handler, open.mailbox.clone())
        };
        if let Some(mailbox) = mailbox {
            let mut payload = match body {
                Body::Owned(payload) => payload,
                Body::Input(range) => {
                    let mut payload = Vec::with_capacity(size + 1);
                    payload.extend_from_slice(&buffer[range]);
                    payload
                }
            };
            payload.push(0);
            let room = mailbox.put(Item::Message { kind: kind as u32, flags, payload });
            if !room {
                self.pause(id, Pause::Mailbox);
            }
            return;
        }
        let Some(service) = self.service(handler) else { return };
        match body {
            Body::Input(range) => {
                // The NUL after the payload takes the place of a byte that is put back.
                let end = range.end;
                let next = std::mem::replace(&mut buffer[end], 0);
                self.call_message(handler, id, service, kind, flags, &buffer[range.start..=end]);
                buffer[end] = next;
            }
            Body::Owned(mut payload) => {
                payload.push(0);
                self.call_message(handler, id, service, kind, flags, &payload);
            }
        }
    }

    fn call_message(
        &self,
        handler: u16,
        id: u64,
        service: &super::Service,
        kind: Kind,
        flags: u32,
        payload: &[u8],
    ) {
        if kind == Kind::Text && flags == WS_FIRST | WS_LAST {
            self.delivering.set((payload.as_ptr(), payload.len() - 1));
        }
        self.attributed(handler, Callback::Message, id, || {
            service.handler.message(id, kind as u32, flags, payload)
        });
        self.delivering.set((std::ptr::null(), 0));
    }

    fn deliver_pong(&self, id: u64, payload: &[u8], rtt: u64) {
        let Some((handler, mailbox)) = self.with_open(id, |handler, open| (handler, open.mailbox.clone()))
        else {
            return;
        };
        match mailbox {
            Some(mailbox) => drop(mailbox.put(Item::Pong { payload: payload.to_vec(), rtt })),
            None => {
                let Some(service) = self.service(handler) else { return };
                self.attributed(handler, Callback::Pong, id, || service.handler.pong(id, payload, rtt));
            }
        }
    }

    // -------------------------------------------------------------------- out

    /// Writes what waits, as far as the socket takes it, and goes on from there.
    pub fn flush(&self, id: u64) {
        let mut writable = None;
        {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return };
            conn.dirty = false;
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
                if after > 0 {
                    break;
                }
                let more = match &mut conn.phase {
                    Phase::Reply(Some(file)) => next_piece(file, queue.tail()),
                    _ => Some(false),
                };
                match more {
                    Some(true) => continue,
                    Some(false) => {
                        if let Some(queue) = conn.queue.take() {
                            core.spare.put(queue);
                        }
                    }
                    // The file can not be read on: the length that was promised can not be kept.
                    None => {
                        drop(conn.queue.take());
                        let _ = conn.socket.shutdown(Shutdown::Both);
                    }
                }
                break;
            }
            let left = conn.queued();
            self.mailroom.count_queued(id, conn.counted as usize, left);
            conn.counted = u32::try_from(left).unwrap_or(u32::MAX);
            let now = self.now.get();
            match &mut conn.phase {
                Phase::Open(open) => {
                    open.stalled = match left {
                        0 => NEVER,
                        _ if progress || open.stalled == NEVER => now,
                        _ => open.stalled,
                    };
                    if left == 0 && open.proto.is_finished() && !open.over {
                        open.over = true;
                        core.over.push(id);
                    }
                }
                Phase::Reply(_) if left == 0 => {
                    let _ = conn.socket.shutdown(Shutdown::Write);
                    conn.phase = Phase::Linger;
                    conn.deadline = now.saturating_add(LINGER);
                }
                Phase::Reply(_) if progress => {
                    conn.deadline = now.saturating_add(self.config.handshake_time);
                }
                _ => {}
            }
            if left <= self.config.send_low {
                writable = Some(conn.handler);
            } else if left >= self.config.send_high && matches!(conn.phase, Phase::Open(_)) {
                conn.set_pause(Pause::Queue, true, now);
            }
            self.watch_conn(id, conn);
            let stands = standing_of(conn);
            if let Some(record) = core.table.record(id) {
                record.set_standing(stands);
            }
        }
        if let Some(handler) = writable {
            self.resume(id, Pause::Queue);
            if self.mailroom.take_full(id) {
                self.say_writable(id, handler);
            }
        }
        self.arm(id);
    }

    fn say_writable(&self, id: u64, handler: u16) {
        match self.with_open(id, |_, open| open.mailbox.clone()) {
            Some(Some(mailbox)) => mailbox.nudge(),
            Some(None) => {
                let Some(service) = self.service(handler) else { return };
                if service.handler.has(Callback::Writable) {
                    self.attributed(handler, Callback::Writable, id, || service.handler.writable(id));
                }
            }
            None => {}
        }
    }

    /// Puts a connection on the list of those to flush. Until then it can not move.
    pub fn mark_dirty(core: &mut Core, id: u64) {
        match core.table.get(id) {
            Some(conn) if !conn.dirty => conn.dirty = true,
            _ => return,
        }
        core.dirty.push(id);
        if let Some(record) = core.table.record(id) {
            record.set_standing(record.standing() & !standing::MOVABLE);
        }
    }

    /// What another thread sends.
    pub fn send_parcel(&self, id: u64, kind: u32, parcel: Parcel, flags: u32) {
        self.mailroom.count_queued(id, parcel.bytes().len(), 0);
        let how = Send { more: flags & WS_MORE != 0, compress: flags & WS_UNCOMPRESSED == 0, trusted: false };
        let trusted = !how.more && kind == WS_TEXT;
        let result = match parcel {
            Parcel::Copied(bytes) => self.send_bytes(
                id,
                kind,
                &bytes,
                Send { trusted: trusted && self.is_unfragmented(id), ..how },
            ),
            Parcel::Owned(bytes) => self.send_owned_bytes(id, kind, bytes, how),
        };
        // The thread was told that all is well: only a fragmented text that proves wrong comes here.
        if result == WS_E_INVALID {
            log::error!(
                "connection {id:x}: a fragmented text from another thread was not UTF-8; closed with 1011"
            );
            self.close(id, Some(1011), b"", WS_BY_HANDLER);
        }
    }

    fn is_unfragmented(&self, id: u64) -> bool {
        self.with_open(id, |_, open| open.proto.is_movable()).unwrap_or(false)
    }

    /// A Ping from another thread.
    pub fn send_ping_for_thread(&self, id: u64, payload: &[u8]) {
        self.mailroom.count_queued(id, payload.len(), 0);
        self.send_ping(id, payload);
    }

    // ----------------------------------------------------------------- pauses

    /// Stops reading for a reason.
    pub fn pause(&self, id: u64, reason: Pause) {
        let core = &mut *self.core.borrow_mut();
        let Some(conn) = core.table.get(id) else { return };
        conn.set_pause(reason, true, self.now.get());
        self.watch_conn(id, conn);
    }

    /// A reason not to read has gone.
    pub fn resume(&self, id: u64, reason: Pause) {
        let core = &mut *self.core.borrow_mut();
        let Some(conn) = core.table.get(id) else { return };
        if conn.set_pause(reason, false, self.now.get()) {
            self.watch_conn(id, conn);
            if conn.unread.is_some() {
                core.resumed.push(id);
            }
        }
    }

    /// `ws_pause` and `ws_resume`.
    pub fn pause_for_handler(&self, id: u64, paused: bool) {
        if paused {
            self.pause(id, Pause::Handler);
        } else {
            self.resume(id, Pause::Handler);
            self.arm(id);
        }
    }

    /// A blocking thread has taken enough.
    pub fn mailbox_has_room(&self, id: u64) {
        self.resume(id, Pause::Mailbox);
        self.arm(id);
    }

    /// Has epoll watch for what is wanted now.
    pub fn watch(&self, id: u64) {
        if let Some(conn) = self.core.borrow_mut().table.get(id) {
            self.watch_conn(id, conn);
        }
    }

    fn watch_conn(&self, id: u64, conn: &mut Conn) {
        let wanted = u8::from(!conn.is_paused()) | if conn.queued() > 0 { 2 } else { 0 };
        if wanted != conn.watched {
            conn.watched = wanted;
            if let Err(error) = self.poll.watch(&conn.socket, id, wanted) {
                log::error!("connection {id:x}: epoll: {error}");
            }
        }
    }

    // -------------------------------------------------------------------- end

    /// Sends a Close frame, first or as the answer. Does nothing if one was sent.
    pub fn close(&self, id: u64, code: Option<u16>, reason: &[u8], by: u32) {
        let closed = {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return };
            let limits = &self.config.limits;
            let protocol = conn.protocol(self.now.get(), limits, &mut core.codecs, &mut core.spare);
            let Some((open, mut io)) = protocol else { return };
            let closed = open.proto.close(code, reason, &mut io).is_ok();
            if closed {
                conn.deadline = NEVER;
                Self::mark_dirty(core, id);
            }
            closed
        };
        if closed {
            self.begin_close(id, by, code.unwrap_or(1005));
            // The peer's Close is wanted now, whatever the handler has paused for.
            self.resume(id, Pause::Handler);
            self.resume(id, Pause::Mailbox);
            self.arm(id);
        }
    }

    /// Closing has begun: nothing can be sent any more.
    fn begin_close(&self, id: u64, by: u32, code: u16) {
        self.mailroom.set_gone(id);
        let mailbox = self.with_open(id, |_, open| {
            open.begin_close(by, code);
            open.mailbox.clone()
        });
        if let Some(mailbox) = mailbox.flatten() {
            mailbox.closing();
        }
    }

    /// The peer sent the first Close frame.
    fn peer_closes(&self, id: u64, code: u16, reason: &[u8]) {
        self.note_peer_close(id, code, reason);
        let Some((handler, mailbox)) = self.with_open(id, |handler, open| {
            open.begin_close(WS_BY_PEER, code);
            (handler, open.mailbox.clone())
        }) else {
            return;
        };
        if let Some(mailbox) = mailbox {
            mailbox.peer_close(PeerClose { code, reason: [reason, b"\0"].concat() });
            // The thread answers; if it does not come to it in time, we do.
            let deadline = self.now.get().saturating_add(self.config.limits.close_deadline / 10 * 9);
            if let Some(conn) = self.core.borrow_mut().table.get(id) {
                conn.deadline = deadline;
            }
            return self.arm(id);
        }
        let Some(service) = self.service(handler) else { return };
        let result = match service.handler.has(Callback::Passive) {
            true => self.attributed(handler, Callback::Passive, id, || service.handler.passive(id)),
            false => WS_OK,
        };
        let answer = if result < 0 { Some(1011) } else { (code != 1005).then_some(code) };
        self.close(id, answer, b"", WS_BY_PEER);
    }

    fn note_peer_close(&self, id: u64, code: u16, reason: &[u8]) {
        let close = PeerClose { code, reason: [reason, b"\0"].concat() };
        self.with_open(id, |_, open| {
            if let Some(mailbox) = open.mailbox.as_ref().filter(|_| open.proto.close_sent().is_some()) {
                mailbox.answered(close.clone());
            }
            open.peer_close = Some(Box::new(close));
        });
    }

    /// The socket has failed, or the peer has closed it.
    pub fn lost(&self, id: u64) {
        match self.with_open(id, |_, _| ()) {
            Some(()) => self.end(id, WS_BY_PEER, 1006),
            None => self.drop_unopened(id),
        }
    }

    /// The handler wants the connection dropped.
    pub fn abort(&self, id: u64) {
        if let Some(conn) = self.core.borrow_mut().table.get(id) {
            drop(conn.queue.take());
        }
        self.end(id, WS_BY_HANDLER, 1006);
    }

    /// The connection is over without (the rest of) a closing handshake.
    pub fn end(&self, id: u64, by: u32, code: u16) {
        if let Some(mailbox) = self.with_open(id, |_, open| open.mailbox.clone()).flatten() {
            mailbox.lost();
        }
        self.begin_close(id, by, code);
        let core = &mut *self.core.borrow_mut();
        let Some(conn) = core.table.get(id) else { return };
        let Some(open) = conn.open() else { return };
        if !open.over {
            open.over = true;
            core.over.push(id);
        }
    }

    /// Tells the handler that a connection is over, and forgets it.
    pub fn say_over(&self, id: u64) {
        let Some((handler, silent, mailbox, (by, code))) =
            self.with_open(id, |handler, open| (handler, open.silent, open.mailbox.take(), open.closing))
        else {
            return;
        };
        let by = u32::from(by);
        match (mailbox, self.service(handler)) {
            (Some(mailbox), _) => {
                for task in mailbox.end(Ended { by, code }) {
                    task.run(id);
                }
            }
            (None, Some(service)) if !silent && service.handler.has(Callback::Close) => {
                self.attributed(handler, Callback::Close, id, || {
                    service.handler.close(id, by, u32::from(code))
                });
            }
            _ => {}
        }
        self.hang_up(id);
    }

    /// Closes the socket; if the peer may still be sending, only after it has closed its end: a reset would
    /// take our Close frame with it.
    fn hang_up(&self, id: u64) {
        {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return };
            let said = conn.open().is_some_and(|open| open.proto.close_sent().is_some());
            let heard = conn.open().is_some_and(|open| open.peer_close.is_some());
            if said && !heard && conn.queued() == 0 && conn.socket.shutdown(Shutdown::Write).is_ok() {
                conn.phase = Phase::Linger;
                conn.unread = None;
                conn.deadline = self.now.get().saturating_add(LINGER);
                for reason in [Pause::Handler, Pause::Mailbox, Pause::Queue] {
                    conn.set_pause(reason, false, self.now.get());
                }
                self.watch_conn(id, conn);
            }
        }
        let lingers =
            matches!(self.core.borrow_mut().table.get(id).map(|conn| &conn.phase), Some(Phase::Linger));
        if lingers {
            self.arm(id);
        } else {
            self.remove(id);
        }
    }

    /// Forgets a connection and closes its socket.
    pub fn remove(&self, id: u64) {
        let removed = self.core.borrow_mut().table.remove(id);
        if removed.is_some() {
            self.uncount();
        }
    }

    // -------------------------------------------------------------- deadlines

    /// How long the send queue may wait without the peer taking anything; ns.
    pub fn stall_time(&self) -> u64 {
        let limits = &self.config.limits;
        match limits.ping_interval {
            0 => NEVER,
            interval => interval.saturating_add(limits.pong_deadline),
        }
    }

    /// A connection's deadline has come.
    pub fn on_deadline(&self, id: u64) {
        let now = self.now.get();
        let (handler, unopened, phase_over, timers) = {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return };
            let over = conn.deadline <= now;
            let linger = matches!(conn.phase, Phase::Linger);
            let handler = conn.handler;
            match conn.open() {
                None if linger && over => {
                    core.table.remove(id);
                    return self.uncount();
                }
                None => (handler, true, over, Vec::new()),
                Some(open) => (handler, false, over, take_due(open, now)),
            }
        };
        if unopened {
            if phase_over {
                self.too_slow(id);
            }
            return;
        }
        for task in timers {
            self.attributed(handler, Callback::Task, id, || task.run(id));
        }
        if phase_over {
            // The blocking thread did not answer the peer's Close in time.
            let code =
                self.with_open(id, |_, open| open.peer_close.as_ref().map_or(1005, |close| close.code));
            let answer = code.filter(|code| *code != 1005);
            self.close(id, answer, b"", WS_BY_PEER);
            if let Some(conn) = self.core.borrow_mut().table.get(id) {
                conn.deadline = NEVER;
            }
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
            let protocol = conn.protocol(now, &self.config.limits, &mut core.codecs, &mut core.spare);
            let Some((open, mut io)) = protocol else { return };
            let due = open.proto.on_deadline(&mut io);
            (due, open.stalled != NEVER && open.stalled.saturating_add(stall) <= now)
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

    // ----------------------------------------------------------------- shared

    /// A posted function: called here, or left for the blocking thread; if the connection is gone, called all
    /// the same, so that what it holds can be freed.
    pub fn run_posted(&self, id: u64, task: Task) {
        let known = self.with_open(id, |handler, open| (handler, open.mailbox.clone(), open.over));
        match known {
            Some((_, Some(mailbox), false)) => {
                if let Err(task) = mailbox.post(task) {
                    task.run(id);
                }
            }
            Some((handler, None, false)) => {
                self.mailroom.uncount_post(id);
                self.attributed(handler, Callback::Task, id, || task.run(id));
            }
            _ => task.run(id),
        }
    }

    /// A state that a blocking thread attaches.
    pub fn attach_state(&self, id: u64, state: &[u8]) {
        if let Some(record) = self.core.borrow_mut().table.record(id) {
            record.set_state(state);
            record.seal();
        }
    }

    /// Runs with an open connection and its handler's index; must not call the handler.
    pub fn with_open<R>(&self, id: u64, f: impl FnOnce(u16, &mut Open) -> R) -> Option<R> {
        let core = &mut *self.core.borrow_mut();
        let conn = core.table.get(id)?;
        let handler = conn.handler;
        conn.open().map(|open| f(handler, open))
    }

    /// Calls into a handler, with the scoreboard saying so.
    pub fn attributed<R>(&self, handler: u16, callback: Callback, id: u64, call: impl FnOnce() -> R) -> R {
        let doing = &self.slot.doing;
        doing.begin(handler, callback as u32, id, self.now.get());
        let result = call();
        doing.end();
        result
    }
}

/// How an idle connection stands, should the process crash.
fn standing_of(conn: &Conn) -> u32 {
    let boundary = conn.queue.as_ref().is_none_or(|queue| queue.is_at_start());
    let movable = conn.queue.is_none() && conn.unread.is_none();
    match &conn.phase {
        Phase::Head(bytes) if bytes.is_empty() => standing::TAKEN | standing::FRESH,
        Phase::Open(open) if !open.over && open.proto.close_sent().is_none() => {
            let movable = movable && open.proto.is_movable() && open.mailbox.is_none();
            standing::TAKEN
                | if boundary { standing::BOUNDARY } else { 0 }
                | if movable { standing::MOVABLE } else { 0 }
        }
        _ => standing::TAKEN,
    }
}

/// Takes the timers that are due out of a connection, in order.
fn take_due(open: &mut Open, now: u64) -> Vec<Task> {
    let Some(timers) = &mut open.timers else { return Vec::new() };
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
