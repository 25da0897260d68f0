//! An open connection: bytes in, messages to the handler.

use std::fmt::Display;
use std::time::Duration;

use ::ws_handler::raw::*;

use crate::clock;
use crate::ffi::call::Handler;
use crate::ffi::host::Task;
use crate::ffi::place::{self, Callback, POISON};
use crate::fleet::refusal::Refusal;
use crate::proto::ws::connection::{Body, Connection, Event, Io, Kind};
use crate::time::Instant;
use crate::worker::base::metrics::NO_HANDLER;
use crate::worker::conn::channel::ThreadEvent;
use crate::worker::conn::open::Open;
use crate::worker::conn::table::Pause;
use crate::worker::conn::turn::Slice;
use crate::worker::host::handlers::Service;
use crate::worker::session::Session;

/// Whom messages are for.
#[derive(Clone, Copy)]
struct Target<'a> {
    id: u64,
    handler: u16,
    /// None if this process has not loaded it.
    service: Option<&'a Service>,
}

impl Session {
    /// Processes the bytes that were set aside; false if there are none.
    pub fn process_unread(&self, id: u64, buffer: &mut [u8]) -> bool {
        let count = {
            let core = &mut *self.conns.core.borrow_mut();
            let Some((conn, record)) = core.table.both(id) else { return true };
            record.pin();
            conn.set_pause(Pause::Slice, false, self.conns.now());
            if conn.is_paused() {
                return true;
            }
            let Some(unread) = conn.take_unread() else { return false };
            // These bytes once fitted into this buffer, or follow a request head, which is shorter.
            let Some(to) = buffer.get_mut(..unread.len()) else { return true };
            to.copy_from_slice(&unread);
            unread.len()
        };
        if count < buffer.len() {
            let begun = clock::now();
            self.process(id, buffer, count, Some(begun));
        }
        true
    }

    /// Feeds `buffer[..count]` to the protocol, and handles the events. `begun` is the time if the caller has read the
    /// clock. What does not fit into a slice is set aside until the connection's next turn.
    pub fn process(&self, id: u64, buffer: &mut [u8], count: usize, begun: Option<Instant>) {
        let Some(to) = self.target(id) else { return };
        let limits = &self.conns.settings(to.handler).limits;
        let now = self.conns.now();
        let mut slice = Slice::new(begun);
        let mut at = 0;
        let mut is_share_stale = false;
        loop {
            let whole = {
                let mut core = self.conns.core.borrow_mut();
                let Some(conn) = core.table.get(id) else { return };
                // Flushed below.
                conn.dirty = true;
                let is_full = conn.queued() >= self.conns.commands.watermarks.high();
                let is_paused = conn.is_paused();
                let Some(open) = conn.open().filter(|open| !open.over) else { break };
                if is_paused {
                    if at < count {
                        open.set_unread(buffer[at..count].into());
                    }
                    break;
                }
                if is_full {
                    drop(core);
                    self.conns.flush_within(id);
                    continue;
                }
                let whole = open.proto.receive_whole(&mut buffer[..count], &mut at, now, limits);
                if let Some((kind, range)) = &whole {
                    open.note_message(*kind, range.len(), true);
                }
                whole
            };
            let is_message = match whole {
                Some((_, range)) if self.is_too_fast(id, true, range.len()) => false,
                Some((kind, range)) => {
                    self.deliver(to, kind, WS_FIRST | WS_LAST, Body::Input(range), buffer);
                    true
                }
                None => self.process_other(to, buffer, &mut is_share_stale, |proto, buffer, io| {
                    proto.receive_other(&mut buffer[..count], &mut at, io)
                }),
            };
            // No further call of the protocol would find anything.
            if at >= count {
                break;
            }
            if is_message && slice.add_message() && self.is_slice_over(id, &mut slice) {
                self.conns.wait_for_turn(id, &buffer[at..count]);
                break;
            }
        }
        if is_share_stale {
            self.conns.count_share(id);
        }
        self.conns.finish_turn(id);
    }

    /// Tells the protocol of `count` bytes that were received where the message is gathered, and handles what comes of
    /// them.
    pub fn process_gathered(&self, id: u64, buffer: &mut [u8], count: usize) {
        let Some(to) = self.target(id) else { return };
        let mut is_share_stale = false;
        self.process_other(to, buffer, &mut is_share_stale, |proto, _, io| proto.taken(count, io));
        if is_share_stale {
            self.conns.count_share(id);
        }
        self.conns.finish_turn(id);
    }

    /// Handles what the protocol receives if that is no whole message in one frame. Returns whether the handler was
    /// given a message.
    #[inline(never)]
    fn process_other(
        &self,
        to: Target,
        buffer: &mut [u8],
        is_share_stale: &mut bool,
        receive: impl FnOnce(&mut Connection, &mut [u8], &mut Io) -> Event,
    ) -> bool {
        let received = self.conns.with_protocol(to.id, |open, io| {
            if open.over {
                return None;
            }
            let event = receive(&mut open.proto, buffer, io);
            if let Event::Message { kind, last, body, .. } = &event {
                open.note_message(*kind, body.len(), *last);
            }
            *is_share_stale |= open.is_share_stale();
            Some(event)
        });
        received.flatten().is_some_and(|event| self.handle(to, event, buffer))
    }

    /// Calls are about this connection from now on.
    fn target(&self, id: u64) -> Option<Target<'_>> {
        let handler = self.handlers.set_current(id)?;
        Some(Target { id, handler, service: self.handlers.service(handler) })
    }

    /// Handles an event. Returns whether the handler was given a message.
    fn handle(&self, to: Target, event: Event, buffer: &mut [u8]) -> bool {
        let id = to.id;
        match event {
            Event::NeedMore => {}
            // Counts as a message: it costs as much as a small one.
            Event::Empty => _ = self.is_too_fast(id, true, 0),
            Event::Message { first, ref body, .. } if self.is_too_fast(id, first, body.len()) => {}
            Event::Message { kind, first, last, body, .. } => {
                let flags = if first { WS_FIRST } else { 0 } | if last { WS_LAST } else { 0 };
                self.deliver(to, kind, flags, body, buffer);
                return true;
            }
            Event::Ping { body } if self.conns.recorder.records(to.handler) => {
                self.conns.record_ping(id, body.octets(buffer));
            }
            Event::Ping { .. } => {}
            Event::Pong { body, rtt } => {
                self.deliver_pong(id, [body.octets(buffer), b"\0"].concat(), rtt);
            }
            Event::CloseReceived { code, reason } => self.peer_closes(id, code, reason.octets(buffer)),
            Event::Closed { code, reason } => self.conns.note_peer_close(id, code, reason.octets(buffer)),
            Event::Failed { code, why } => {
                self.complain(id, why, code);
                self.conns.failed(id, code);
            }
        }
        false
    }

    /// Logs that a peer does not keep to the protocol, if that peer was not complained about too often.
    fn complain(&self, id: u64, why: impl Display, code: u16) {
        let (peer, now) = (self.conns.peer(id), self.conns.now());
        let Some(left_out) = self.complaints.borrow_mut().admit(peer.map(|peer| peer.ip()), now) else {
            return;
        };
        let peer = peer.map_or("a Unix socket".to_owned(), |peer| peer.to_string());
        log::info!("connection {id:x} from {peer}: {why}; closed with {code}{left_out}");
    }

    #[inline(never)]
    fn is_slice_over(&self, id: u64, slice: &mut Slice) -> bool {
        let core = &mut *self.conns.core.borrow_mut();
        core.table.get(id).is_some_and(|conn| slice.is_over(&mut conn.turn, clock::now))
    }

    /// Delivers a message to its handler, or to the thread of a blocking one.
    #[inline(always)]
    fn deliver(&self, to: Target, kind: Kind, flags: u32, body: Body, buffer: &mut [u8]) {
        if self.conns.access_log.is_on() {
            self.conns.access_log.received(to.id, body.len(), flags & WS_LAST != 0);
        }
        if self.conns.recorder.records(to.handler) {
            self.conns.record_message(to.id, kind == Kind::Text, flags, body.octets(buffer));
        }
        let Some(service) = to.service else { return };
        if service.handler.is_blocking() {
            return self.put_message(to.id, kind, flags, body, buffer);
        }
        match body {
            Body::Input(range) => {
                // The NUL after the payload replaces a byte that is restored below.
                let next = std::mem::replace(&mut buffer[range.end], 0);
                self.call_message(to, service, kind, flags, &buffer[range.start..], range.len());
                buffer[range.end] = next;
                if place::is_strict() {
                    buffer[range].fill(POISON);
                }
            }
            Body::Owned(payload) => self.deliver_owned(to, service, kind, flags, payload),
        }
    }

    /// Not inlined: keeps the path of messages that came in one read short.
    #[inline(never)]
    fn deliver_owned(&self, to: Target, service: &Service, kind: Kind, flags: u32, mut payload: Vec<u8>) {
        let size = payload.len();
        payload.push(0);
        self.call_message(to, service, kind, flags, &payload, size);
        if place::is_strict() {
            payload.fill(POISON);
        }
    }

    /// Queues a message for the thread of a blocking handler.
    #[inline(never)]
    fn put_message(&self, id: u64, kind: Kind, flags: u32, body: Body, buffer: &[u8]) {
        let Some(channel) = self.conns.channel(id) else { return };
        let mut payload = match body {
            Body::Owned(payload) => payload,
            Body::Input(range) => {
                let mut payload = Vec::with_capacity(range.len() + 1);
                payload.extend_from_slice(&buffer[range]);
                payload
            }
        };
        payload.push(0);
        let room = channel.put(ThreadEvent::Message { kind: kind as u32, flags, payload });
        if !room {
            self.conns.pause(id, Pause::ThreadChannel);
        }
    }

    /// Calls on_message with the first `size` bytes of `from`, which a NUL follows.
    #[inline(always)]
    fn call_message(&self, to: Target, service: &Service, kind: Kind, flags: u32, from: &[u8], size: usize) {
        let current = self.handlers.current;
        current.deliver(kind as u32, flags == WS_FIRST | WS_LAST, from, size);
        let timing = self.handlers.begin_call(to.handler, Callback::Message);
        service.handler.message(to.id, kind as u32, flags, &from[..size + 1]);
        self.handlers.end_call(timing);
        current.delivered();
    }

    /// Delivers a Pong; `payload` ends in a NUL.
    pub fn deliver_pong(&self, id: u64, payload: Vec<u8>, rtt: Duration) {
        let known = self.conns.with_open(id, |handler, open| (handler, open.channel().cloned()));
        let Some((handler, channel)) = known else { return };
        match channel {
            Some(channel) => drop(channel.put(ThreadEvent::Pong { payload, rtt })),
            None => {
                let pong = |handler: Handler| handler.pong(id, &payload, rtt.as_nanos() as u64);
                self.handlers.tell(handler, Callback::Pong, id, pong);
            }
        }
    }

    /// Calls on_writable: the send queue has drained.
    fn notify_writable(&self, id: u64) {
        match self.conns.with_open(id, |handler, open| (handler, open.channel().cloned())) {
            Some((_, Some(channel))) => channel.nudge(),
            Some((handler, None)) => {
                self.handlers.tell(handler, Callback::Writable, id, |handler| handler.writable(id));
            }
            None => {}
        }
    }

    /// Whether a message or fragment exceeds the rate limit; if so, the connection is being closed.
    #[inline]
    fn is_too_fast(&self, id: u64, is_first: bool, size: usize) -> bool {
        self.admission.limits_rate() && self.exceeds_rate(id, is_first, size)
    }

    #[inline(never)]
    fn exceeds_rate(&self, id: u64, is_first: bool, size: usize) -> bool {
        let now = self.conns.now();
        let exceeds = |open: &mut Open| {
            // Whom the server is closing is not counted again.
            let is_closed = open.proto.close_sent().is_some();
            let pace = open.extra().pace.as_mut().filter(|_| !is_closed);
            pace.is_some_and(|pace| !pace.admits(is_first, size, now))
        };
        if self.conns.with_open(id, |_, open| exceeds(open)) != Some(true) {
            return false;
        }
        self.admission.note(Refusal::Messages, self.conns.peer(id), "");
        self.conns.close(id, Some(1008), b"too many messages", ::ws_handler::raw::WS_BY_HOST);
        true
    }

    /// Runs a posted function here, or queues it for the blocking thread. It also runs if the connection is gone, so
    /// that it can free what it holds.
    pub fn run_posted(&self, id: u64, task: Task) {
        let channel = self.conns.with_open(id, |_, open| open.channel().filter(|_| !open.over).cloned());
        if !channel.flatten().is_some_and(|channel| channel.post(task)) {
            self.conns.commands.at(id).end_post();
            self.run_task(id, task);
        }
    }

    /// Runs a function of the handler here. Its connection may have gone.
    pub fn run_task(&self, id: u64, task: Task) {
        let handler = self.handlers.set_current(id).unwrap_or(NO_HANDLER);
        self.handlers.call(handler, Callback::Task, || task.run(id));
    }

    /// Finishes what events have left: calls on_close and on_writable, and flushes send queues.
    #[inline]
    pub fn settle(&self) {
        while self.conns.core.borrow().has_pending() {
            self.settle_some();
        }
    }

    #[inline(never)]
    fn settle_some(&self) {
        let (over, dirty, writable) = {
            let core = &mut *self.conns.core.borrow_mut();
            (core.over.pop(), core.dirty.pop(), core.writable.pop())
        };
        if let Some(id) = over {
            self.notify_closed(id);
        }
        if let Some(id) = dirty {
            self.conns.flush(id);
        }
        if let Some(id) = writable {
            self.notify_writable(id);
        }
    }
}
