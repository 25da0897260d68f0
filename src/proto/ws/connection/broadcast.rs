//! One message to many connections: checked, framed and compressed once, and shared by all that take it in the same
//! form.

use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;

use super::{Connection, Deflate, Kind, SendError, frame};
use crate::proto::ws::deflate::codec::{Codecs, CompressorKey, compress_alone};
use crate::time::Instant;

/// A message on its way to many connections. Its frames are made when the first connection needs them.
pub struct Broadcast {
    kind: Kind,
    /// UTF-8 if it is text.
    payload: Box<[u8]>,
    /// Compress it for those that have agreed on that.
    compress: bool,
    plain: Option<Rc<SharedFrame>>,
    /// One for each way to compress, which are few: window bits and level.
    compressed: Vec<(CompressorKey, Rc<SharedFrame>)>,
    /// How many of those were not compressed here: the first ones.
    given: usize,
    total: Rc<Cell<usize>>,
}

/// A frame that is in many send queues. Counted once, for as long as it is in any.
pub struct SharedFrame {
    bytes: Box<[u8]>,
    total: Rc<Cell<usize>>,
}

impl SharedFrame {
    fn new(kind: Kind, is_compressed: bool, payload: &[u8], total: &Rc<Cell<usize>>) -> Rc<Self> {
        let mut frame = Vec::with_capacity(frame::encoded_len(payload.len()) + payload.len());
        frame::encode(&mut frame, kind.opcode(), true, is_compressed, payload.len());
        frame.extend_from_slice(payload);
        total.set(total.get() + frame.len());
        Rc::new(SharedFrame { bytes: frame.into(), total: Rc::clone(total) })
    }
}

impl Deref for SharedFrame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for SharedFrame {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes.len());
    }
}

impl Broadcast {
    /// A message; text must be UTF-8. The bytes of its frames are counted in `total`.
    pub fn new(kind: Kind, payload: Box<[u8]>, compress: bool, total: Rc<Cell<usize>>) -> Self {
        Broadcast { kind, payload, compress, plain: None, compressed: Vec::new(), given: 0, total }
    }

    /// The same, compressed already.
    pub fn with_compressed(mut self, forms: impl IntoIterator<Item = (CompressorKey, Vec<u8>)>) -> Self {
        for (key, smaller) in forms {
            self.compressed.push((key, SharedFrame::new(self.kind, true, &smaller, &self.total)));
        }
        self.given = self.compressed.len();
        self
    }

    /// The ways in which it had to be compressed here.
    pub fn compressed_here(&self) -> impl Iterator<Item = CompressorKey> {
        self.compressed.iter().skip(self.given).map(|(key, _)| *key)
    }

    /// Bytes of its payload.
    pub fn size(&self) -> usize {
        self.payload.len()
    }

    fn plain(&mut self) -> &Rc<SharedFrame> {
        let Self { kind, payload, total, .. } = self;
        self.plain.get_or_insert_with(|| SharedFrame::new(*kind, false, payload, total))
    }

    fn compressed(&mut self, key: CompressorKey, codecs: &mut Codecs) -> Rc<SharedFrame> {
        if let Some((_, frame)) = self.compressed.iter().find(|(known, _)| *known == key) {
            return Rc::clone(frame);
        }
        let mut smaller = Vec::new();
        compress_alone(codecs, key, &self.payload, &mut smaller);
        let frame = SharedFrame::new(self.kind, true, &smaller, &self.total);
        self.compressed.push((key, Rc::clone(&frame)));
        frame
    }
}

impl Connection {
    /// The frame that carries a message to many on this connection: the caller is to write it after what was appended
    /// before. `WrongKind` while a message is partly sent: nothing can be sent between its fragments.
    #[inline]
    pub fn share(
        &mut self,
        message: &mut Broadcast,
        now: Instant,
        codecs: &mut Codecs,
    ) -> Result<Rc<SharedFrame>, SendError> {
        self.check_may_send()?;
        if !self.is_between_sends() {
            return Err(SendError::WrongKind);
        }
        self.last_message = now;
        let wants = |deflate: &&mut Box<Deflate>| message.compress && deflate.wants(message.payload.len());
        match self.deflate.as_mut().filter(wants) {
            None => Ok(Rc::clone(message.plain())),
            Some(deflate) => {
                // The peer's window moves on by a message that our context does not know: it starts afresh.
                deflate.drop_sending_context(codecs);
                let key = deflate.compressor_key();
                Ok(message.compressed(key, codecs))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::proto::ws::connection::{Body, Event, Io, Send};
    use crate::proto::ws::deflate::codec::Deflate;
    use crate::proto::ws::deflate::negotiate::Params;
    use crate::proto::ws::limits::Limits;

    /// Bytes as `Params::to_bits` has them: takeover both ways, and the server's window.
    fn with_deflate(server_bits: u8) -> Connection {
        let params = Params::from_bits(u32::from_be_bytes([1, 2, 0, server_bits])).unwrap();
        Connection::new(START, Some(Deflate::new(params, 0, 1)), false)
    }

    const START: Instant = Instant::from_nanos(0);

    fn text(size: usize) -> Box<[u8]> {
        b"price of tea ".iter().copied().cycle().take(size).collect()
    }

    #[test]
    fn one_form_for_all_that_take_the_same() {
        let mut codecs = Codecs::new();
        let mut message = Broadcast::new(Kind::Text, text(1000), true, Rc::default());
        let mut plain = [(); 2].map(|()| Connection::new(START, None, false));
        let mut packed = [0, 0, 9].map(with_deflate);
        let mut share = |conn: &mut Connection| conn.share(&mut message, START, &mut codecs).unwrap();
        let frames = plain.each_mut().map(&mut share);
        assert!(Rc::ptr_eq(&frames[0], &frames[1]));
        assert_eq!(frames[0].get(..4), Some(&[0x81, 126, 3, 232][..]));
        let frames = packed.each_mut().map(&mut share);
        assert!(Rc::ptr_eq(&frames[0], &frames[1]) && !Rc::ptr_eq(&frames[0], &frames[2]));
        assert!(frames[0].len() < 100 && frames[0][0] == 0xc1);
    }

    #[test]
    fn a_form_that_was_given_is_not_made_again() {
        let mut codecs = Codecs::new();
        let [mut one, mut other] = [0, 9].map(with_deflate);
        let given = [((9, 2), b"given".to_vec())];
        let mut message = Broadcast::new(Kind::Text, text(1000), true, Rc::default()).with_compressed(given);
        assert_eq!(message.compressed_here().count(), 0);
        assert_eq!(&other.share(&mut message, START, &mut codecs).unwrap()[..], b"\xc1\x05given");
        assert_eq!(message.compressed_here().count(), 0);
        one.share(&mut message, START, &mut codecs).unwrap();
        assert_eq!(message.compressed_here().collect::<Vec<_>>(), [(12, 2)]);
    }

    /// What the connection has sent before and sends afterwards is compressed with a context.
    #[test]
    fn the_context_for_sending_starts_afresh() {
        let (limits, mut codecs, mut out) = (Limits::default(), Codecs::new(), Vec::new());
        let mut conn = with_deflate(0);
        let mut message = Broadcast::new(Kind::Text, text(500), true, Rc::default());
        for step in 0..3 {
            match step {
                1 => out.extend_from_slice(&conn.share(&mut message, START, &mut codecs).unwrap()),
                _ => {
                    let mut io = Io { now: START, limits: &limits, codecs: &mut codecs, out: &mut out };
                    conn.send(Kind::Text, &text(700), Send::default(), &mut io).unwrap();
                }
            }
        }
        // A peer that keeps its window reads all three.
        let params = Params::from_bits(u32::from_be_bytes([1, 0, 0, 0])).unwrap();
        let mut peer = Deflate::new(params, 0, 1);
        let mut at = 0;
        for size in [700, 500, 700] {
            let length = usize::from(out[at + 1]);
            let mut inflated = Vec::new();
            peer.inflate(&mut codecs, &out[at + 2..at + 2 + length], true, 1000, &mut inflated).unwrap();
            assert_eq!(inflated, text(size)[..]);
            at += 2 + length;
        }
        assert_eq!(at, out.len());
    }

    #[test]
    fn nothing_goes_between_fragments_or_after_a_close() {
        let (limits, mut codecs, mut out) = (Limits::default(), Codecs::new(), Vec::new());
        let mut conn = Connection::new(START, None, false);
        let mut message = Broadcast::new(Kind::Binary, text(10), true, Rc::default());
        let mut io = Io { now: START, limits: &limits, codecs: &mut codecs, out: &mut out };
        let more = Send { more: true, ..Send::default() };
        conn.send(Kind::Text, b"a", more, &mut io).unwrap();
        assert_eq!(conn.share(&mut message, START, io.codecs).err(), Some(SendError::WrongKind));
        conn.send(Kind::Text, b"b", Send::default(), &mut io).unwrap();
        assert!(conn.share(&mut message, START, io.codecs).is_ok());
        conn.close(Some(1000), b"", &mut io).unwrap();
        assert_eq!(conn.share(&mut message, START, io.codecs).err(), Some(SendError::Closing));
        let closed = conn.receive(&mut [0x88, 0x80, 0, 0, 0, 0], &mut 0, &mut io);
        assert_eq!(closed, Event::Closed { code: 1005, reason: Body::Input(6..6) });
    }
}
