//! Frames to messages (RFC 6455 5.4): unmasked, inflated, checked, limited.
//! Control frames are handed out as they stand between the fragments; what
//! they mean is `connection`'s.

use crate::proto::ws::close::{INVALID_DATA, TOO_BIG, Violation};
use crate::proto::ws::deflate::codec::{Codecs, Deflate, InflateError};
use crate::proto::ws::frame::{self, FrameHeader, MAX_HEADER, Opcode};
use crate::proto::ws::limits::Limits;
pub use crate::proto::ws::payload::{Body, Kind};
use crate::proto::ws::utf8::{self, Validator};
use std::ops::Range;

/// What `Decoder::next` has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// All of the input is used up.
    NeedMore,
    /// A whole message (`first` and `last`), or in a stream a part of one, inflated if it came `compressed`; a part of
    /// a text may end within a character.
    Data { kind: Kind, first: bool, last: bool, compressed: bool, body: Body },
    /// A fragment without an octet, neither the first of its message nor the last.
    Empty,
    /// Close, Ping or Pong, with at most 125 octets.
    Control { opcode: Opcode, body: Body },
}

/// What decoding needs besides the input.
pub struct Surroundings<'a> {
    /// `frame` and `message` are kept here.
    pub limits: &'a Limits,
    /// The connection's compression, if agreed.
    pub deflate: Option<&'a mut Deflate>,
    /// The worker's codecs.
    pub codecs: &'a mut Codecs,
    /// Deliver what is there instead of gathering whole messages.
    pub stream: bool,
}

/// Takes a client's frames apart. Between messages it holds no memory but itself; within one, what has
/// arrived, times a small factor.
#[derive(Default)]
pub struct Decoder {
    /// Present while a message or a frame is incomplete.
    partial: Option<Box<Partial>>,
}

/// Where the input stands.
#[derive(Clone, Copy)]
enum Stage {
    /// `0 <= have < MAX_HEADER` octets of a header are there.
    Header { have: u8, octets: [u8; MAX_HEADER - 1] },
    /// Within a payload: `len` octets of it are to come, masked with `mask`.
    Payload(FrameHeader),
}

impl Stage {
    const START: Stage = Stage::Header { have: 0, octets: [0; MAX_HEADER - 1] };
}

impl Default for Stage {
    fn default() -> Self {
        Stage::START
    }
}

#[derive(Default)]
struct Partial {
    stage: Stage,
    message: Option<Incomplete>,
    /// What has come of a control frame.
    control: Vec<u8>,
}

/// A message that is incomplete.
struct Incomplete {
    kind: Kind,
    compressed: bool,
    utf8: Validator,
    /// A part has been delivered.
    begun: bool,
    /// Octets delivered before: 0 unless this is a stream.
    delivered: usize,
    /// What waits for the end of the message; empty in a stream.
    gathered: Vec<u8>,
}

impl Decoder {
    /// Neither a frame nor a message is incomplete.
    #[inline]
    pub fn is_between_messages(&self) -> bool {
        self.partial.is_none()
    }

    /// Octets of the present frame's payload that are still to come.
    pub fn to_come(&self) -> u64 {
        match self.partial.as_ref().map(|partial| &partial.stage) {
            Some(Stage::Payload(header)) => header.len,
            _ => 0,
        }
    }

    /// Takes `input[*at..]` up to the end of the next item. After an error nothing more can be decoded.
    #[inline(never)]
    pub fn next(
        &mut self,
        input: &mut [u8],
        at: &mut usize,
        with: &mut Surroundings,
    ) -> Result<Decoded, Violation> {
        let mut stage = self.partial.as_ref().map_or(Stage::START, |partial| partial.stage);
        let item = loop {
            match stage {
                Stage::Header { have, octets } => {
                    let kept = octets.get(..usize::from(have)).unwrap_or_default();
                    match next_header(kept, input, at, with.deflate.is_some())? {
                        Ok(header) => {
                            self.begin_frame(&header, with.limits)?;
                            stage = Stage::Payload(header);
                        }
                        Err(incomplete) => {
                            stage = incomplete;
                            break Decoded::NeedMore;
                        }
                    }
                }
                Stage::Payload(header) => {
                    let (after, item) = self.payload(header, input, at, with)?;
                    stage = after;
                    if let Some(item) = item {
                        break item;
                    }
                }
            }
        };
        match (&mut self.partial, stage) {
            (Some(partial), Stage::Header { have: 0, .. }) if partial.is_empty() => self.partial = None,
            (None, Stage::Header { have: 0, .. }) => {}
            (partial, _) => partial.get_or_insert_default().stage = stage,
        }
        Ok(item)
    }

    /// Whether the frame may stand here.
    fn begin_frame(&mut self, header: &FrameHeader, limits: &Limits) -> Result<(), Violation> {
        let open = self.partial.as_ref().is_some_and(|partial| partial.message.is_some());
        let kind = match header.opcode {
            // RFC 6455 5.4: control frames may stand between the fragments of a message.
            Opcode::Close | Opcode::Ping | Opcode::Pong => return Ok(()),
            // RFC 6455 5.4: fragments of one message are not interleaved with another's.
            Opcode::Continuation if !open => {
                return Err(Violation::of_protocol("continuation of no message"));
            }
            Opcode::Text | Opcode::Binary if open => {
                return Err(Violation::of_protocol("new message within a fragmented one"));
            }
            Opcode::Continuation => None,
            Opcode::Text => Some(Kind::Text),
            Opcode::Binary => Some(Kind::Binary),
        };
        if header.len > limits.frame as u64 {
            return Err(Violation { code: TOO_BIG, why: "frame over the limit" });
        }
        let partial = self.partial.get_or_insert_default();
        if let Some(kind) = kind {
            partial.message = Some(Incomplete::new(kind, header.rsv1));
        }
        match &partial.message {
            Some(message) if !message.compressed && header.len > message.room(limits) as u64 => {
                Err(TOO_LARGE)
            }
            _ => Ok(()),
        }
    }

    /// What is there of the payload, and what comes next. No item: it is complete, and there is nothing to deliver.
    fn payload(
        &mut self,
        mut header: FrameHeader,
        input: &mut [u8],
        at: &mut usize,
        with: &mut Surroundings,
    ) -> Result<(Stage, Option<Decoded>), Violation> {
        let start = *at;
        let available = input.len().saturating_sub(start);
        let count = usize::try_from(header.len).map_or(available, |len| len.min(available));
        let range = start..start + count;
        let piece = input.get_mut(range.clone()).unwrap_or_default();
        header.mask.apply(piece);
        header.len -= count as u64;
        *at = range.end;
        let complete = header.len == 0;
        let stage = if complete { Stage::START } else { Stage::Payload(header) };
        let item = if header.opcode.is_control() {
            self.control(header.opcode, complete, piece, range)
        } else if let Some(message) = self.partial.as_mut().and_then(|partial| partial.message.as_mut()) {
            let last = complete && header.fin;
            message.take(piece, header.len, last, with)?;
            let item = message.deliver(range, last, with);
            if last {
                self.partial = None;
            }
            item
        } else {
            None
        };
        let is_empty = count == 0 && header.opcode == Opcode::Continuation;
        let nothing = if complete { is_empty.then_some(Decoded::Empty) } else { Some(Decoded::NeedMore) };
        Ok((stage, item.or(nothing)))
    }

    /// Where the caller may put the next octets of a frame as they come instead of passing them to `next`: a buffer,
    /// and how many may be appended to it. Only within a frame whose payload is gathered as it is, and not for fewer
    /// than `least`, or the rest of the frame. `taken` is to be told.
    pub fn intake(&mut self, least: usize) -> Option<(&mut Vec<u8>, usize)> {
        let Partial { stage: Stage::Payload(header), message: Some(message), .. } =
            self.partial.as_deref_mut()?
        else {
            return None;
        };
        if header.opcode.is_control() || message.compressed || message.gathered.is_empty() {
            return None;
        }
        let rest = usize::try_from(header.len).unwrap_or(usize::MAX);
        let least = least.min(rest);
        message.grow(0, least, header.len);
        // The last octet is for the NUL.
        let room = message.gathered.capacity().saturating_sub(message.gathered.len() + 1).min(rest);
        (room >= least).then_some((&mut message.gathered, room))
    }

    /// So many octets have been appended to what `intake` gave. Like `next`.
    pub fn taken(&mut self, count: usize, with: &mut Surroundings) -> Result<Decoded, Violation> {
        let Some(Partial { stage, message: Some(message), .. }) = self.partial.as_deref_mut() else {
            return Ok(Decoded::NeedMore);
        };
        let Stage::Payload(header) = stage else { return Ok(Decoded::NeedMore) };
        let before = message.gathered.len().saturating_sub(count);
        header.mask.apply(message.gathered.get_mut(before..).unwrap_or_default());
        header.len = header.len.saturating_sub(count as u64);
        let complete = header.len == 0;
        let last = complete && header.fin;
        message.check(before, last)?;
        if complete {
            *stage = Stage::START;
        }
        let item = message.deliver(0..0, last, with);
        if last {
            self.partial = None;
        }
        Ok(item.unwrap_or(Decoded::NeedMore))
    }

    /// A control frame, once it is complete.
    fn control(
        &mut self,
        opcode: Opcode,
        complete: bool,
        piece: &[u8],
        range: Range<usize>,
    ) -> Option<Decoded> {
        let cut = self.partial.as_ref().is_some_and(|partial| !partial.control.is_empty());
        if complete && !cut {
            return Some(Decoded::Control { opcode, body: Body::Input(range) });
        }
        if piece.is_empty() {
            return None;
        }
        let partial = self.partial.get_or_insert_default();
        partial.control.reserve(piece.len() + 1);
        partial.control.extend_from_slice(piece);
        if !complete {
            return None;
        }
        Some(Decoded::Control { opcode, body: Body::Owned(std::mem::take(&mut partial.control)) })
    }

    /// Bytes of memory in which an incomplete message or control frame is gathered, inflated if it came compressed.
    #[inline]
    pub fn held(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| {
            partial.control.capacity()
                + partial.message.as_ref().map_or(0, |message| message.gathered.capacity())
        })
    }
}

impl Partial {
    /// Apart from the stage.
    fn is_empty(&self) -> bool {
        self.message.is_none() && self.control.is_empty()
    }
}

impl Incomplete {
    /// The most that is allocated ahead for a message of which little has arrived.
    const FLOOR: usize = 1024;
    /// Of a message of which so much has arrived more is allocated ahead, so that not much has to be moved later.
    const MUCH: usize = 64 * 1024;

    fn new(kind: Kind, compressed: bool) -> Self {
        Incomplete {
            kind,
            compressed,
            utf8: Validator::default(),
            begun: false,
            delivered: 0,
            gathered: Vec::new(),
        }
    }

    /// How much larger it may become.
    fn room(&self, limits: &Limits) -> usize {
        limits.message.saturating_sub(self.delivered).saturating_sub(self.gathered.len())
    }

    /// Takes a piece of a frame's payload, of which `to_come` octets are missing.
    fn take(
        &mut self,
        piece: &[u8],
        to_come: u64,
        last: bool,
        with: &mut Surroundings,
    ) -> Result<(), Violation> {
        let before = self.gathered.len();
        let mut inflated = Ok(());
        if self.compressed {
            if let Some(deflate) = with.deflate.as_deref_mut() {
                let limit = with.limits.message.saturating_sub(self.delivered);
                inflated = deflate.inflate(with.codecs, piece, last, limit, &mut self.gathered);
            }
        } else if !with.stream {
            self.grow(piece.len(), piece.len(), to_come);
            self.gathered.extend_from_slice(piece);
        }
        // What came before an error counts first.
        if self.compressed || !with.stream {
            self.check(before, last && inflated.is_ok())?;
        } else {
            check_text(self.kind, &mut self.utf8, piece, last)?;
        }
        inflated.map_err(|error| match error {
            InflateError::TooBig => TOO_LARGE,
            InflateError::Corrupt => Violation { code: INVALID_DATA, why: "not deflate data" },
        })
    }

    /// Checks what has been gathered from `before` on.
    fn check(&mut self, before: usize, last: bool) -> Result<(), Violation> {
        let fresh = self.gathered.get(before..).unwrap_or_default();
        check_text(self.kind, &mut self.utf8, fresh, last)
    }

    /// Makes room for `least` octets and a NUL: for the rest of the frame as well, but for no more than a multiple of
    /// what is there and what has `arrived` to be added, whatever length the header declares.
    fn grow(&mut self, arrived: usize, least: usize, to_come: u64) {
        let len = self.gathered.len();
        if self.gathered.capacity() - len > least {
            return;
        }
        let declared = usize::try_from(to_come).unwrap_or(usize::MAX).saturating_add(arrived + 1);
        let there = len + arrived;
        let factor = if there < Self::MUCH { 4 } else { 16 };
        let earned = (factor * there).max(Self::FLOOR) - len;
        self.gathered.reserve_exact(declared.min(earned));
    }

    /// The whole message at its end; in a stream what has come, if anything.
    fn deliver(&mut self, range: Range<usize>, last: bool, with: &Surroundings) -> Option<Decoded> {
        if !last && (!with.stream || (range.is_empty() && !self.compressed)) {
            return None;
        }
        let body = if with.stream && !self.compressed {
            Body::Input(range)
        } else {
            self.gathered.reserve_exact(1);
            Body::Owned(std::mem::take(&mut self.gathered))
        };
        if !last && body.is_empty() {
            return None;
        }
        let first = !self.begun;
        self.begun = true;
        self.delivered += body.len();
        Some(Decoded::Data { kind: self.kind, first, last, compressed: self.compressed, body })
    }
}

/// RFC 6455 8.1: text is checked as it arrives.
fn check_text(kind: Kind, utf8: &mut Validator, fresh: &[u8], last: bool) -> Result<(), Violation> {
    if kind == Kind::Text {
        utf8.feed(fresh).map_err(|_| NOT_UTF8)?;
    }
    if last { utf8.finish().map_err(|_| NOT_UTF8) } else { Ok(()) }
}

const NOT_UTF8: Violation = Violation { code: INVALID_DATA, why: "text is not UTF-8" };
const TOO_LARGE: Violation = Violation { code: TOO_BIG, why: "message over the limit" };

/// The next header, of which `kept` has come before; what is kept of it now if it is incomplete.
fn next_header(
    kept: &[u8],
    input: &[u8],
    at: &mut usize,
    rsv1: bool,
) -> Result<Result<FrameHeader, Stage>, Violation> {
    let rest = input.get(*at..).unwrap_or_default();
    if kept.is_empty()
        && let Some((header, consumed)) = frame::decode(rest, rsv1)?
    {
        *at += consumed;
        return Ok(Ok(header));
    }
    let mut octets = [0; MAX_HEADER];
    let mut filled = 0;
    for (slot, octet) in octets.iter_mut().zip(kept.iter().chain(rest)) {
        *slot = *octet;
        filled += 1;
    }
    if let Some((header, consumed)) = frame::decode(octets.get(..filled).unwrap_or_default(), rsv1)? {
        // The octets kept were not enough: `consumed` is larger than their number.
        *at += consumed.saturating_sub(kept.len());
        return Ok(Ok(header));
    }
    // Not complete, hence shorter than the longest header.
    let [octets @ .., _] = octets;
    *at = input.len();
    Ok(Err(Stage::Header { have: filled as u8, octets }))
}

/// The next frame, if that is a whole message, uses no extension and lies in `input` as a whole: its type, and where
/// its payload lies, unmasked. `None`, and nothing has changed, for any other, and for what is wrong: that is
/// [`Decoder::next`]'s.
#[inline(always)]
pub fn whole(input: &mut [u8], at: &mut usize, limits: &Limits) -> Option<(Kind, Range<usize>)> {
    let (opcode, len, mask, header) = frame::decode_simple(input.get(*at..)?)?;
    let start = *at + header;
    let end = start.saturating_add(len);
    let payload = input.get_mut(start..end)?;
    if len > limits.frame.min(limits.message) {
        return None;
    }
    let kind = if opcode == Opcode::Text { Kind::Text } else { Kind::Binary };
    let unmask = |payload: &mut [u8]| {
        let mut mask = mask;
        mask.apply(payload);
    };
    unmask(payload);
    if kind == Kind::Text && !utf8::is_valid(payload) {
        unmask(payload); // as it came
        return None;
    }
    *at = end;
    Some((kind, start..end))
}
