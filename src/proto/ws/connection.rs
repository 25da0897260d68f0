//! One WebSocket connection after the opening handshake: messages both ways,
//! Pings, the closing handshake, deadlines (RFC 6455 5 to 7). A state machine:
//! it has no socket and no clock, and it never waits.

use crate::proto::ws::close::{self, NO_CODE, POLICY, Violation};
use crate::proto::ws::deflate::codec::{Codecs, Deflate};
use crate::proto::ws::frame::{self, MAX_CONTROL, Opcode};
use crate::proto::ws::limits::Limits;
use crate::proto::ws::message::{self, Decoded, Decoder, Surroundings};
use crate::proto::ws::utf8::{self, Validator};
use crate::time::Instant;
use std::ops::Range;
use std::time::Duration;

mod broadcast;
mod deadline;
mod intake;
mod sending;

pub use crate::proto::ws::message::{Body, Kind};
pub use broadcast::{Broadcast, SharedFrame};
pub use deadline::Deadline;
pub use sending::{Send, SendError};

/// What `Connection::receive` has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// All of the input is used up.
    NeedMore,
    /// A whole message (`first` and `last`), or in a stream a part of one. In a stream the parts come as
    /// they arrive, and a part of a text may end within a character; only the last may be empty.
    Message {
        /// Of the message.
        kind: Kind,
        /// The message begins here.
        first: bool,
        /// The message ends here.
        last: bool,
        /// It came compressed.
        compressed: bool,
        /// What it says.
        body: Body,
    },
    /// The answer to the newest `ping()`. Others, and those to keepalive Pings, are not reported.
    Pong {
        /// As in the Ping.
        body: Body,
        /// Time since the Ping.
        rtt: Duration,
    },
    /// A Ping, which has been answered.
    Ping {
        /// At most 125 octets.
        body: Body,
    },
    /// A fragment that brings nothing and ends nothing has come.
    Empty,
    /// The peer began the closing handshake. The caller answers with `close()`, within the close deadline.
    CloseReceived {
        /// 1005 if the Close frame had none.
        code: u16,
        /// UTF-8, at most 123 octets.
        reason: Body,
    },
    /// The peer answered our Close frame: the connection is finished.
    Closed {
        /// The peer's; 1005 if its Close frame had none.
        code: u16,
        /// The peer's; UTF-8, at most 123 octets.
        reason: Body,
    },
    /// The peer broke the protocol or a limit. The connection is finished; a Close frame with `code` has been appended,
    /// unless one was sent before. After `defer_failures` the caller sends it with `close()`, as it answers the peer's
    /// Close.
    Failed {
        /// RFC 6455 7.4.1.
        code: u16,
        /// What was wrong; for the log.
        why: &'static str,
    },
}

/// What one call needs of its surroundings.
pub struct Io<'a> {
    /// The time.
    pub now: Instant,
    /// The connection's limits.
    pub limits: &'a Limits,
    /// The worker's codecs.
    pub codecs: &'a mut Codecs,
    /// Where frames to be written are appended.
    pub out: &'a mut Vec<u8>,
}

/// The state of a connection. Times are those of the calls' `now`.
pub struct Connection {
    decoder: Decoder,
    deflate: Option<Box<Deflate>>,
    /// When the last octets came.
    last_received: Instant,
    /// When the last data message, or part of one, came or was sent.
    last_message: Instant,
    /// When the newest keepalive Ping was sent, while open; when the first Close frame was sent or came, after.
    since: Instant,
    rare: Option<Box<Rare>>,
    /// 0: none.
    close_sent: u16,
    close_state: CloseState,
    awaiting_pong: bool,
    stream: bool,
    paused: bool,
    deferring: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CloseState {
    Open,
    /// Ours is sent, the peer's is to come.
    CloseSent,
    /// The peer's has come, or nothing will; ours is to be sent.
    CloseReceived,
    /// Both, or the connection has failed.
    Finished,
}

/// What most connections never have.
#[derive(Default)]
struct Rare {
    /// The peer's Pings are paid for up to this time: each costs its share of a second, none more than a
    /// second ahead.
    pings_paid: Instant,
    /// The newest `ping()`, if unanswered.
    ping: Option<OwnPing>,
    /// The message that is partly sent.
    outgoing: Option<Outgoing>,
}

struct OwnPing {
    at: Instant,
    payload: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Outgoing {
    kind: Kind,
    compressed: bool,
    utf8: Validator,
}

impl Connection {
    /// A connection whose opening handshake is complete. `stream`: deliver parts of messages as they come
    /// instead of gathering whole ones.
    pub fn new(now: Instant, deflate: Option<Deflate>, stream: bool) -> Self {
        Connection {
            decoder: Decoder::default(),
            deflate: deflate.map(Box::new),
            last_received: now,
            last_message: now,
            since: now,
            rare: None,
            close_sent: 0,
            close_state: CloseState::Open,
            awaiting_pong: false,
            stream,
            paused: false,
            deferring: false,
        }
    }

    /// From now on failures leave it to the caller to send the Close frame: something may have to be sent before it.
    pub fn defer_failures(&mut self) {
        self.deferring = true;
    }

    /// Takes octets from `input[*at..]`, advances `at`, and returns at the first event. **To be called until it
    /// says `NeedMore`**; in between the caller may send, ping and close. Pings are answered in here. Once the
    /// peer's Close has come or the connection is finished, the rest is swallowed.
    #[inline]
    pub fn receive(&mut self, input: &mut [u8], at: &mut usize, io: &mut Io) -> Event {
        if *at >= input.len() {
            return Event::NeedMore;
        }
        match self.receive_whole(input, at, io.now, io.limits) {
            Some((kind, range)) => {
                let body = Body::Input(range);
                Event::Message { kind, first: true, last: true, compressed: false, body }
            }
            None => self.receive_other(input, at, io),
        }
    }

    /// The same for the usual message, which costs less then: a whole one in one frame, where it lies in `input`.
    /// `None`, and nothing was taken, for anything else: that is for [`receive_other`](Self::receive_other).
    #[inline(always)]
    pub fn receive_whole(
        &mut self,
        input: &mut [u8],
        at: &mut usize,
        now: Instant,
        limits: &Limits,
    ) -> Option<(Kind, Range<usize>)> {
        if self.close_state != CloseState::Open || !self.decoder.is_between_messages() {
            return None;
        }
        let whole = message::whole(input, at, limits)?;
        (self.last_received, self.last_message) = (now, now);
        Some(whole)
    }

    /// The same for what is not a whole message in one frame.
    #[inline(never)]
    pub fn receive_other(&mut self, input: &mut [u8], at: &mut usize, io: &mut Io) -> Event {
        self.last_received = io.now;
        while matches!(self.close_state, CloseState::Open | CloseState::CloseSent) {
            let mut with = Surroundings {
                limits: io.limits,
                deflate: self.deflate.as_deref_mut(),
                codecs: io.codecs,
                stream: self.stream,
            };
            let item = self.decoder.next(input, at, &mut with);
            if let Some(event) = self.event(item, input, io) {
                return event;
            }
        }
        *at = input.len();
        Event::NeedMore
    }

    /// What an item means for the connection, if that is anything.
    fn event(&mut self, item: Result<Decoded, Violation>, input: &[u8], io: &mut Io) -> Option<Event> {
        match item {
            // RFC 6455 5.5.1: after our Close nobody waits for messages.
            Ok(Decoded::Data { .. }) if self.close_state == CloseState::CloseSent => None,
            Ok(Decoded::Data { kind, first, last, compressed, body }) => {
                self.last_message = io.now;
                Some(Event::Message { kind, first, last, compressed, body })
            }
            Ok(Decoded::NeedMore) => Some(Event::NeedMore),
            Ok(Decoded::Empty) => Some(Event::Empty),
            Ok(Decoded::Control { opcode, body }) => self.on_control(opcode, body, input, io),
            Err(violation) => Some(self.fail(violation, io)),
        }
    }

    /// Appends a Ping of at most 125 octets. `Event::Pong` follows when the peer answers it, unless a newer
    /// one is sent before.
    pub fn ping(&mut self, payload: &[u8], io: &mut Io) -> Result<(), SendError> {
        self.check_may_send()?;
        if payload.len() > MAX_CONTROL {
            return Err(SendError::TooLong);
        }
        control(io.out, Opcode::Ping, payload);
        self.rare().ping = Some(OwnPing { at: io.now, payload: payload.to_vec() });
        Ok(())
    }

    /// Begins the closing handshake, or answers the peer's Close. Without a code the body is empty, and so must
    /// be the reason. Nothing can be sent after it.
    pub fn close(&mut self, code: Option<u16>, reason: &[u8], io: &mut Io) -> Result<(), SendError> {
        self.check_may_send()?;
        match code {
            Some(code) if !close::may_travel(code) => return Err(SendError::BadCode),
            None if !reason.is_empty() => return Err(SendError::BadCode),
            _ if reason.len() > close::MAX_REASON => return Err(SendError::TooLong),
            _ if std::str::from_utf8(reason).is_err() => return Err(SendError::NotUtf8),
            _ => {}
        }
        self.append_close(code, reason, io.out);
        if self.close_state == CloseState::CloseReceived {
            self.finish(io.codecs);
        } else {
            self.close_state = CloseState::CloseSent;
            self.since = io.now;
        }
        Ok(())
    }

    /// Fails the connection for a reason that the peer is not to blame for, and forgets the message that is incomplete.
    pub fn give_up(&mut self, code: u16, why: &'static str, io: &mut Io) -> Event {
        self.decoder = Decoder::default();
        self.fail(Violation { code, why }, io)
    }

    /// The peer has closed its end without a Close frame. What is to be sent still can be.
    pub fn end_input(&mut self, io: &mut Io) {
        match self.close_state {
            CloseState::Open => (self.close_state, self.since) = (CloseState::CloseReceived, io.now),
            CloseState::CloseSent => self.finish(io.codecs),
            CloseState::CloseReceived | CloseState::Finished => {}
        }
    }

    /// Ends it without a Close frame.
    pub fn abandon(&mut self, io: &mut Io) {
        self.finish(io.codecs);
    }

    /// Both sides are done, or the connection has failed: once `out` is written the socket can be shut down.
    pub fn is_finished(&self) -> bool {
        self.close_state == CloseState::Finished
    }

    /// The code of our Close frame, 1005 if it had none; `None` if none was sent.
    pub fn close_sent(&self) -> Option<u16> {
        (self.close_sent != 0).then_some(self.close_sent)
    }

    /// Open, no frame or message incomplete either way, no compression context that the peer refers to: a new
    /// `Connection` in another process can go on from here.
    pub fn is_movable(&self) -> bool {
        self.close_state == CloseState::Open
            && self.decoder.is_between_messages()
            && self.is_between_sends()
            && self.deflate.as_deref().is_none_or(Deflate::movable)
    }

    /// No message is partly sent.
    pub fn is_between_sends(&self) -> bool {
        self.rare.as_ref().is_none_or(|rare| rare.outgoing.is_none())
    }

    /// Octets of the present frame's payload that are still to come.
    pub fn to_come(&self) -> u64 {
        self.decoder.to_come()
    }

    /// Bytes of memory in which an incomplete message is gathered, inflated so far; not counting what was handed out.
    /// Between messages 0.
    #[inline]
    pub fn held(&self) -> usize {
        self.decoder.held()
    }

    /// Bytes of the contexts of compression: see [`Deflate::context_bytes`].
    pub fn context_bytes(&self) -> (usize, usize) {
        self.deflate.as_deref().map_or((0, 0), Deflate::context_bytes)
    }

    /// Forgets the context for sending, if there is one and no message is partly sent: see
    /// [`Deflate::drop_sending_context`].
    pub fn drop_sending_context(&mut self, codecs: &mut Codecs) -> bool {
        self.deflate.as_deref_mut().is_none_or(|deflate| deflate.drop_sending_context(codecs))
    }

    /// The compression, if agreed.
    pub fn deflate(&self) -> Option<&Deflate> {
        self.deflate.as_deref()
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn outgoing(&self) -> Option<Outgoing> {
        self.rare.as_ref().and_then(|rare| rare.outgoing)
    }

    fn check_may_send(&self) -> Result<(), SendError> {
        match self.close_state {
            CloseState::Open | CloseState::CloseReceived => Ok(()),
            CloseState::CloseSent | CloseState::Finished => Err(SendError::Closing),
        }
    }

    #[inline(never)]
    fn on_control(&mut self, opcode: Opcode, body: Body, input: &[u8], io: &mut Io) -> Option<Event> {
        let payload = body.octets(input);
        match opcode {
            Opcode::Close => Some(match close::parse(payload) {
                Ok(code) => self.on_close(code, body, io),
                Err(violation) => self.fail(violation, io),
            }),
            // RFC 6455 5.5.1: after our Close nothing more is sent.
            Opcode::Ping if self.close_state == CloseState::CloseSent => None,
            Opcode::Ping => {
                if !self.pay_for_ping(io) {
                    return Some(self.fail(Violation { code: POLICY, why: "too many Pings" }, io));
                }
                // RFC 6455 5.5.3: the Pong has the Ping's application data.
                control(io.out, Opcode::Pong, payload);
                Some(Event::Ping { body })
            }
            _ => {
                if self.awaiting_pong && payload == self.since.as_nanos().to_be_bytes() {
                    self.awaiting_pong = false;
                    return None;
                }
                // RFC 6455 5.5.3: a Pong that was not asked for is no error.
                let ping = self.rare.as_mut()?.ping.take_if(|ping| ping.payload == payload)?;
                Some(Event::Pong { body, rtt: io.now.since(ping.at) })
            }
        }
    }

    fn on_close(&mut self, code: u16, body: Body, io: &mut Io) -> Event {
        let code_len = body.len().min(2);
        let reason = match body {
            Body::Input(range) => Body::Input(range.start + code_len..range.end),
            Body::Owned(mut gathered) => {
                gathered.drain(..code_len);
                Body::Owned(gathered)
            }
        };
        if self.close_state == CloseState::CloseSent {
            self.finish(io.codecs);
            Event::Closed { code, reason }
        } else {
            self.close_state = CloseState::CloseReceived;
            self.since = io.now;
            Event::CloseReceived { code, reason }
        }
    }

    /// Whether the peer may send a Ping now.
    fn pay_for_ping(&mut self, io: &Io) -> bool {
        let Some(price) = SECOND.checked_div(io.limits.pings_per_second) else { return true };
        let rare = self.rare();
        let paid = rare.pings_paid.max(io.now) + price;
        let affordable = paid.since(io.now) <= SECOND;
        if affordable {
            rare.pings_paid = paid;
        }
        affordable
    }

    /// RFC 6455 7.1.7: fails the connection.
    #[cold]
    fn fail(&mut self, violation: Violation, io: &mut Io) -> Event {
        if self.deferring && self.close_state == CloseState::Open {
            (self.close_state, self.since) = (CloseState::CloseReceived, io.now);
            return Event::Failed { code: violation.code, why: violation.why };
        }
        if self.close_state != CloseState::CloseSent {
            self.append_close(Some(violation.code), b"", io.out);
        }
        self.finish(io.codecs);
        Event::Failed { code: violation.code, why: violation.why }
    }

    fn append_close(&mut self, code: Option<u16>, reason: &[u8], out: &mut Vec<u8>) {
        self.close_sent = code.unwrap_or(NO_CODE);
        let code = code.map(u16::to_be_bytes);
        let code = code.as_ref().map_or(&[][..], |octets| octets);
        frame::encode(out, Opcode::Close, true, false, code.len() + reason.len());
        out.extend_from_slice(code);
        out.extend_from_slice(reason);
    }

    /// Gives back what is held: nothing more is decoded or sent.
    fn finish(&mut self, codecs: &mut Codecs) {
        self.close_state = CloseState::Finished;
        self.decoder = Decoder::default();
        self.rare = None;
        if let Some(deflate) = &mut self.deflate {
            deflate.reset(codecs);
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn control(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    frame::encode(out, opcode, true, false, payload.len());
    out.extend_from_slice(payload);
}

#[cfg(any(test, fuzzing))]
mod fuzzing;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use fuzzing::{check, fuzz};

#[cfg(test)]
mod tests;
