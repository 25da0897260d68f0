//! Messages out (RFC 6455 6.1): one frame for each call, compressed where that was agreed.

use super::{CloseState, Connection, Deflate, Instant, Io, Kind, Opcode, Outgoing, Validator, frame, utf8};

/// How to send a message or a fragment of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send {
    /// The message goes on with the next send of the same kind.
    pub more: bool,
    /// Compress, where that was agreed and the size is worth it. The first fragment decides.
    pub compress: bool,
    /// The caller knows that the text is UTF-8: it is not checked. The same for all fragments of a message.
    pub trusted: bool,
}

impl Default for Send {
    fn default() -> Self {
        Send { more: false, compress: true, trusted: false }
    }
}

/// Why nothing was sent. The connection is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// Our Close frame has been sent, or the connection is finished.
    Closing,
    /// A text or a reason.
    NotUtf8,
    /// A Ping over 125 octets, a reason over 123.
    TooLong,
    /// A fragmented message of the other kind is unfinished.
    WrongKind,
    /// A close code that must not be sent, or a reason without a code.
    BadCode,
}

impl Connection {
    /// Appends a message, or a fragment of one, as one frame. Text must be UTF-8; a fragment may end within a
    /// character.
    pub fn send(&mut self, kind: Kind, data: &[u8], how: Send, io: &mut Io) -> Result<(), SendError> {
        let is_sent = !how.more && self.send_whole(kind, data, how.trusted, io.now, io.out);
        if !is_sent && self.send_header(kind, data, how, io)? {
            io.out.extend_from_slice(data);
        }
        Ok(())
    }

    /// The same for the usual message, which costs less then: a whole one, in a frame as it is. False, and nothing was
    /// appended, for any other, and if it may not be sent: `send` finds out why.
    #[inline(always)]
    pub fn send_whole(
        &mut self,
        kind: Kind,
        data: &[u8],
        trusted: bool,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> bool {
        if self.close_state != CloseState::Open || self.deflate.is_some() || self.rare.is_some() {
            return false;
        }
        if kind == Kind::Text && !trusted && !utf8::is_valid(data) {
            return false;
        }
        self.last_message = now;
        match data.len() {
            len @ 0..126 => frame::encode_short(out, kind.opcode(), len as u8),
            len => frame::encode(out, kind.opcode(), true, false, len),
        }
        out.extend_from_slice(data);
        true
    }

    /// As `send()`, but where the payload goes out as it is, only the header is appended: true, and the caller
    /// is to write `data` after `out`.
    pub fn send_header(
        &mut self,
        kind: Kind,
        data: &[u8],
        how: Send,
        io: &mut Io,
    ) -> Result<bool, SendError> {
        self.check_may_send()?;
        let unfinished = self.outgoing();
        if unfinished.is_some_and(|unfinished| unfinished.kind != kind) {
            return Err(SendError::WrongKind);
        }
        let first = unfinished.is_none();
        let mut utf8 = unfinished.map_or(Validator::default(), |unfinished| unfinished.utf8);
        let is_valid = match how.more {
            _ if kind != Kind::Text || how.trusted => true,
            false if first => utf8::is_valid(data),
            false => utf8.feed(data).and_then(|()| utf8.finish()).is_ok(),
            true => utf8.feed(data).is_ok(),
        };
        if !is_valid {
            return Err(SendError::NotUtf8);
        }
        // The length of a message that goes on is not known: taken for long.
        let wanted = |deflate: &Deflate| how.compress && (how.more || deflate.wants(data.len()));
        let compressed = match unfinished {
            None => self.deflate.as_deref().is_some_and(wanted),
            Some(unfinished) => unfinished.compressed,
        };
        if how.more || !first {
            self.rare().outgoing = how.more.then_some(Outgoing { kind, compressed, utf8 });
        }
        self.last_message = io.now;

        let opcode = if first { kind.opcode() } else { Opcode::Continuation };
        match &mut self.deflate {
            Some(deflate) if compressed => {
                // RFC 7692 6: RSV1 in the first fragment only.
                send_compressed(deflate, io, opcode, !how.more, first, data);
                Ok(false)
            }
            _ => {
                frame::encode(io.out, opcode, !how.more, false, data.len());
                Ok(true)
            }
        }
    }
}

/// Appends a frame whose length is known only after compressing: the header is written twice.
fn send_compressed(deflate: &mut Deflate, io: &mut Io, opcode: Opcode, fin: bool, first: bool, data: &[u8]) {
    let start = io.out.len();
    frame::encode(io.out, opcode, fin, first, data.len());
    let payload = io.out.len();
    deflate.compress(io.codecs, data, fin, io.out);
    let mut header = Vec::with_capacity(frame::MAX_HEADER);
    frame::encode(&mut header, opcode, fin, first, io.out.len() - payload);
    io.out.splice(start..payload, header);
}
