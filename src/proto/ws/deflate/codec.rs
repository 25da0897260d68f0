//! Compressing and inflating the payload of messages (RFC 7692 section 7.2).
//!
//! Knows no frames and no negotiation. A connection that takes no context over holds no codec between messages: it
//! borrows one from the worker's [`Codecs`] for the length of a message.

use crate::proto::ws::deflate::negotiate::Params;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// What a sync flush ends with, left out at the end of a message (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// The tail, then an empty final block: without a context to keep, the stream must end here.
const TAIL_AND_END: [u8; 9] = [0x00, 0x00, 0xff, 0xff, 0x01, 0x00, 0x00, 0xff, 0xff];
/// The empty message, or the end of a message that is flushed already (RFC 7692 section 7.2.3.6).
const EMPTY: u8 = 0x00;
/// Room beyond the estimate in which inflating stays on its fast path; bytes.
const SLACK: usize = 320;
/// The most that is reserved ahead of what is known to be needed; bytes.
const STEP: usize = 32 * 1024;
/// Below this one zlib-rs writes fixed Huffman codes only, which makes short messages a third larger.
const FASTEST: u8 = 2;

/// The window where the agreement leaves it open; bits. Any window up to 15 is allowed then. With 15 each message of
/// many connections runs against a cold cache: 1 KiB of JSON takes half as long again, for the same size.
const WINDOW: u8 = 12;

/// What zlib-rs allocates for a compressor beside its windows (hash table, pending output, symbols, state), and for an
/// inflater; bytes, rounded up. Not all of it has been touched by short messages.
const COMPRESSOR: usize = 248 * 1024;
const INFLATER: usize = 44 * 1024;

/// A worker's codecs that no connection holds right now. At most [`Codecs::KEPT`] of each kind wait here.
#[derive(Debug, Default)]
pub struct Codecs {
    compressors: Vec<(CompressorKey, Box<Compress>)>,
    #[allow(clippy::vec_box)] // boxes move between the pool and connections
    inflaters: Vec<Box<Decompress>>,
}

/// Window bits and level.
pub type CompressorKey = (u8, u8);

impl Codecs {
    /// How many idle compressors, and how many idle inflaters, are kept.
    pub const KEPT: usize = 4;

    /// An empty pool; it fills with what connections give back.
    pub fn new() -> Codecs {
        Codecs::default()
    }

    fn take_compressor(&mut self, key: CompressorKey) -> Box<Compress> {
        match self.compressors.iter().rposition(|(kept, _)| *kept == key) {
            Some(index) => self.compressors.swap_remove(index).1,
            None => Box::new(Compress::new_with_window_bits(Compression::new(key.1.into()), false, key.0)),
        }
    }

    fn give_compressor(&mut self, key: CompressorKey, mut compressor: Box<Compress>) {
        compressor.reset();
        if self.compressors.len() >= Self::KEPT {
            self.compressors.swap_remove(0);
        }
        self.compressors.push((key, compressor));
    }

    /// Always with the largest window: it reads what smaller ones wrote, and takes the same memory.
    fn take_inflater(&mut self) -> Box<Decompress> {
        self.inflaters.pop().unwrap_or_else(|| Box::new(Decompress::new(false)))
    }

    fn give_inflater(&mut self, mut inflater: Box<Decompress>) {
        if self.inflaters.len() < Self::KEPT {
            inflater.reset(false);
            self.inflaters.push(inflater);
        }
    }
}

/// Why a message cannot be inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// It would be longer than the limit (close code 1009).
    #[error("the message inflates to more than the limit")]
    TooBig,
    /// It is not valid deflate data (close code 1007).
    #[error("the message is not valid deflate data")]
    Corrupt,
}

/// The compression of one connection, both ways.
#[derive(Debug)]
pub struct Deflate {
    params: Params,
    threshold: u32,
    level: u8,
    /// A message is partly sent.
    compressing: bool,
    /// What has been inflated of the message that is partly received.
    inflated: Inflated,
    /// Held between messages only where the context is taken over; the same below.
    compressor: Option<Box<Compress>>,
    inflater: Option<Box<Decompress>>,
}

impl Deflate {
    /// Compression as agreed; messages shorter than `threshold` bytes are not worth it; `level` is 1 (fast) to 9
    /// (small), where 1 and 2 do the same.
    pub fn new(params: Params, threshold: u32, level: u8) -> Deflate {
        Deflate {
            params,
            threshold,
            level: level.clamp(FASTEST, 9),
            compressing: false,
            inflated: Inflated::Nothing,
            compressor: None,
            inflater: None,
        }
    }

    /// Whether a message of `len` bytes is long enough to be compressed.
    pub fn wants(&self, len: usize) -> bool {
        u32::try_from(len).map_or(true, |len| len >= self.threshold)
    }

    /// Appends the compressed form of a fragment, complete: nothing of it is held back. `last` ends the message.
    pub fn compress(&mut self, codecs: &mut Codecs, data: &[u8], last: bool, out: &mut Vec<u8>) {
        if !data.is_empty() {
            let key = self.compressor_key();
            let compressor = self.compressor.get_or_insert_with(|| codecs.take_compressor(key));
            deflate(compressor, data, out);
            if last {
                debug_assert!(out.ends_with(&TAIL));
                out.truncate(out.len().saturating_sub(TAIL.len()));
            }
        } else if last {
            out.push(EMPTY);
        }
        self.compressing = !last;
        if last && self.params.server_no_context_takeover() {
            self.give_compressor(codecs);
        }
    }

    /// Appends what a fragment inflates to; `last` is the message's end. `out` never gets longer than `limit`: the
    /// first byte in excess is [`InflateError::TooBig`]. On success `out` has room for at least one more byte. After
    /// an error the connection can only be failed, and [`Deflate::reset`] called.
    pub fn inflate(
        &mut self,
        codecs: &mut Codecs,
        data: &[u8],
        last: bool,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), InflateError> {
        out.reserve(1);
        // A compressed message of no octets at all is not in the RFC, but some peers send it for an empty one.
        if data.is_empty() && (!last || self.inflated == Inflated::Nothing) {
            return Ok(());
        }
        let inflater = self.inflater.get_or_insert_with(|| codecs.take_inflater());
        let alone = self.params.client_no_context_takeover();
        let mut result = inflate(inflater, data, limit, self.inflated, out);
        if last {
            result = result.and_then(|inflated| finish(inflater, inflated, alone, limit, out));
        }
        if last && alone {
            self.give_inflater(codecs);
        }
        self.inflated = if last { Inflated::Nothing } else { result? };
        result.map(|_| ())
    }

    /// Gives what is held back to the pool: the connection ends. Contexts are forgotten.
    pub fn reset(&mut self, codecs: &mut Codecs) {
        self.compressing = false;
        self.inflated = Inflated::Nothing;
        self.give_compressor(codecs);
        self.give_inflater(codecs);
    }

    /// Whether [`Deflate::new`] in another process can go on from here: between messages, and with no context that
    /// the client goes on to refer to. (Ours can start afresh: a new stream is a valid continuation.)
    pub fn movable(&self) -> bool {
        !self.compressing && self.inflater.is_none()
    }

    /// Bytes of memory that the contexts hold: for sending, for receiving. 0 while there is none.
    pub fn context_bytes(&self) -> (usize, usize) {
        let (bits, _) = self.compressor_key();
        let sending = self.compressor.as_ref().map_or(0, |_| COMPRESSOR + (4 << bits));
        (sending, self.inflater.as_ref().map_or(0, |_| INFLATER))
    }

    /// Forgets the context for sending, unless a message is partly sent: the next message is compressed without a
    /// history, which any receiver can read (RFC 7692 section 7.1.1.1: taking over is the sender's choice), and a
    /// context is allocated again for it. True if there is none afterwards. That for receiving cannot be dropped: the
    /// client may refer to it as long as `client_no_context_takeover` is not agreed.
    pub fn drop_sending_context(&mut self, codecs: &mut Codecs) -> bool {
        if self.compressing {
            return false;
        }
        self.give_compressor(codecs);
        true
    }

    /// How it compresses: messages compressed alone with the same key are the same.
    pub fn compressor_key(&self) -> CompressorKey {
        (self.params.server_max_window_bits().unwrap_or(WINDOW), self.level)
    }

    fn give_compressor(&mut self, codecs: &mut Codecs) {
        if let Some(compressor) = self.compressor.take() {
            codecs.give_compressor(self.compressor_key(), compressor);
        }
    }

    fn give_inflater(&mut self, codecs: &mut Codecs) {
        if let Some(inflater) = self.inflater.take() {
            codecs.give_inflater(inflater);
        }
    }
}

/// Appends the compressed form of a whole message, which refers to no other: any receiver can read it whose window is
/// not smaller.
pub fn compress_alone(codecs: &mut Codecs, key: CompressorKey, data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return out.push(EMPTY);
    }
    let mut compressor = codecs.take_compressor(key);
    deflate(&mut compressor, data, out);
    out.truncate(out.len().saturating_sub(TAIL.len()));
    codecs.give_compressor(key, compressor);
}

/// Appends `data`, which is not empty, and a sync flush: the output ends in [`TAIL`].
fn deflate(compressor: &mut Compress, mut data: &[u8], out: &mut Vec<u8>) {
    loop {
        // More than the six bytes with which zlib could end up writing its flush marker twice.
        out.reserve(data.len().min(STEP) + 64);
        let before = compressor.total_in();
        let result = compressor.compress_vec(data, out, FlushCompress::Sync);
        let used = (compressor.total_in() - before) as usize;
        data = data.get(used..).unwrap_or_default();
        debug_assert!(result.is_ok(), "compressing fails by misuse only: {result:?}");
        if result.is_err() || (data.is_empty() && out.len() < out.capacity()) {
            return;
        }
    }
}

/// How far a message has been inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inflated {
    Nothing,
    /// Up to somewhere in a block or between blocks.
    Open,
    /// Up to the end of a block that has BFINAL set.
    Final,
}

/// Appends what `data` inflates to, all of it.
fn inflate(
    inflater: &mut Decompress,
    mut data: &[u8],
    limit: usize,
    mut inflated: Inflated,
    out: &mut Vec<u8>,
) -> Result<Inflated, InflateError> {
    loop {
        if out.len() == out.capacity() {
            // Up to one byte above the limit, which then tells that there is more.
            let most = limit.saturating_sub(out.len()).saturating_add(1);
            out.reserve_exact(out.len().max((4 * data.len()).min(STEP)).saturating_add(SLACK).min(most));
        }
        let before = inflater.total_in();
        let result = inflater.decompress_vec(data, out, FlushDecompress::None);
        // First, as what is corrupt lies behind it.
        if out.len() > limit {
            out.truncate(limit);
            return Err(InflateError::TooBig);
        }
        let status = result.map_err(|_| InflateError::Corrupt)?;
        let used = (inflater.total_in() - before) as usize;
        data = data.get(used..).unwrap_or_default();
        if status == Status::StreamEnd {
            // 7.2.3.4: the message goes on after a final block. After a stream's end another begins, without a history.
            inflated = Inflated::Final;
            inflater.reset(false);
        } else if used > 0 {
            inflated = Inflated::Open;
        }
        if data.is_empty() && out.len() < out.capacity() {
            return Ok(inflated);
        }
    }
}

/// Ends a message by what the sender has left out (RFC 7692 section 7.2.2).
fn finish(
    inflater: &mut Decompress,
    inflated: Inflated,
    alone: bool,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<Inflated, InflateError> {
    // It ended in a final block without the octet that section 7.2.3.4 adds: whole all the same.
    if inflated == Inflated::Final {
        return Ok(inflated);
    }
    let len = out.len();
    let tail = if alone { &TAIL_AND_END[..] } else { &TAIL[..] };
    let inflated = inflate(inflater, tail, limit, inflated, out)?;
    // The tail taken for data, or for a part of a block: the message was cut off.
    if out.len() > len || (alone && inflated != Inflated::Final) {
        return Err(InflateError::Corrupt);
    }
    Ok(inflated)
}

/// Inflates arbitrary bytes, and compresses and inflates them, in fragments that the bytes choose themselves.
#[doc(hidden)]
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, clippy::expect_used)]
pub fn fuzz(data: &[u8]) {
    let Some((&[choice, cut, level], data)) = data.split_first_chunk() else { return };
    let agreed = |takeover| {
        let bits = [1, takeover, 0, 9 + (choice >> 2) % 7];
        Params::from_bits(u32::from_be_bytes(bits)).expect("valid parameters")
    };
    let (mut codecs, mut deflate) = (Codecs::new(), Deflate::new(agreed(choice & 3), 0, level));
    let limit = usize::from(cut) * 64;
    let fragments = |data: &[u8]| {
        let size = usize::from(cut).max(1);
        let mut fragments = data.chunks(size).map(<[u8]>::to_vec).collect::<Vec<_>>();
        fragments.insert(fragments.len() / 2, Vec::new());
        fragments
    };

    let mut out = Vec::new();
    let pieces = fragments(data);
    for (index, piece) in pieces.iter().enumerate() {
        let result = deflate.inflate(&mut codecs, piece, index + 1 == pieces.len(), limit, &mut out);
        assert!(out.len() <= limit && out.capacity() <= (limit + 1).max(8));
        if result.is_err() {
            break;
        }
        assert!(out.len() < out.capacity());
    }
    deflate.reset(&mut codecs);

    // What we send is read by the same code: so both takeover flags are the same.
    let params = agreed((choice & 1) * 3);
    let (mut ours, mut theirs) = (Deflate::new(params, 0, level), Deflate::new(params, 0, level));
    for message in [data, data, &[], data.get(1..).unwrap_or_default()] {
        let (mut wire, mut out) = (Vec::new(), Vec::new());
        let pieces = fragments(message);
        for (index, piece) in pieces.iter().enumerate() {
            ours.compress(&mut codecs, piece, index + 1 == pieces.len(), &mut wire);
        }
        let pieces = fragments(&wire);
        for (index, piece) in pieces.iter().enumerate() {
            theirs.inflate(&mut codecs, piece, index + 1 == pieces.len(), message.len(), &mut out).unwrap();
        }
        assert_eq!(out, message);
        assert!(ours.compressor.is_none() || !params.server_no_context_takeover());
        assert!(theirs.movable() || !params.client_no_context_takeover());
    }
}

#[cfg(test)]
mod tests;
