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

/// The window where the agreement leaves it open; bits. Any window up to 15 is allowed then. With 15 each message of many
/// connections runs against a cold cache: 1 KiB of JSON takes half as long again, for the same size.
const WINDOW: u8 = 12;

/// A worker's codecs that no connection holds right now. At most [`Codecs::KEPT`] of each kind wait here.
#[derive(Debug, Default)]
pub struct Codecs {
    compressors: Vec<(CompressorKey, Box<Compress>)>,
    #[allow(clippy::vec_box)] // the boxes wander between here and the connections
    inflaters: Vec<Box<Decompress>>,
}

/// Window bits and level.
type CompressorKey = (u8, u8);

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

/// Why a message can not be inflated.
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

    /// What was agreed on.
    pub fn params(&self) -> Params {
        self.params
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

    fn compressor_key(&self) -> CompressorKey {
        (self.params.named_server_max_window_bits().unwrap_or(WINDOW), self.level)
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
            // 7.2.3.4: the message goes on after a final block. Who ends a stream begins another, without a history.
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
#[cfg(any(test, fuzzing, feature = "fuzz"))]
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::proto::ws::deflate::negotiate::{Config, negotiate};
    use crate::proto::ws::extension;
    use proptest::prelude::*;

    const MIB: usize = 1 << 20;

    /// What is agreed on when the client offers this and we want nothing in particular.
    fn deflate(offer: &str) -> Deflate {
        let offers = extension::parse([offer.as_bytes()].into_iter()).unwrap();
        let config = Config { client_no_context_takeover: false, ..Config::default() };
        Deflate::new(negotiate(&offers, &config).unwrap(), 64, 1)
    }

    const TAKEOVER: &str = "permessage-deflate";
    const ALONE: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    fn inflate_pieces(
        deflate: &mut Deflate,
        codecs: &mut Codecs,
        pieces: &[&[u8]],
        limit: usize,
    ) -> Result<Vec<u8>, InflateError> {
        let mut out = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            deflate.inflate(codecs, piece, index + 1 == pieces.len(), limit, &mut out)?;
        }
        assert!(out.len() < out.capacity(), "room for one more byte");
        Ok(out)
    }

    fn compress(deflate: &mut Deflate, codecs: &mut Codecs, pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            deflate.compress(codecs, piece, index + 1 == pieces.len(), &mut out);
        }
        out
    }

    /// Bytes that do not compress, the same each time (xorshift).
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn refuses_what_is_not_deflate() {
        let mut codecs = Codecs::new();
        for (name, wire) in [
            ("reserved block type", &b"\x06\x00"[..]),
            ("length and its complement differ", b"\x00\x05\x00\xfa\xfe\x48\x65\x6c\x6c\x6f\x00"),
            ("a match before the beginning", b"\xf2\x00\x11\x00\x00"),
            ("cut within a stored block", b"\x00\x05\x00\xfa\xff\x48"),
            ("cut within a Huffman block", b"\xf2\x48\xcd"),
        ] {
            let result = inflate_pieces(&mut deflate(ALONE), &mut codecs, &[wire], 99);
            assert_eq!(result, Err(InflateError::Corrupt), "{name}");
        }
        // What comes after is not touched by it.
        let good = inflate_pieces(&mut deflate(ALONE), &mut codecs, &[b"\xf2\x48\xcd\xc9\xc9\x07\x00"], 9);
        assert_eq!(good.as_deref(), Ok(&b"Hello"[..]));
    }

    #[test]
    fn a_message_that_is_cut_off_is_not_whole() {
        let mut codecs = Codecs::new();
        // Sixteen different bytes: worth a block with Huffman codes of its own.
        let data = noise(600).iter().map(|byte| byte % 16).collect::<Vec<_>>();
        let wire = compress(&mut deflate(ALONE), &mut codecs, &[&data]);
        assert_eq!(wire[0] & 6, 4, "a block with dynamic codes");
        for cut in 1..wire.len() - 1 {
            let result = inflate_pieces(&mut deflate(ALONE), &mut codecs, &[&wire[..cut]], 999);
            assert!(result.is_err(), "cut at {cut} of {}", wire.len());
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let mut codecs = Codecs::new();
        let bomb = compress(&mut deflate(ALONE), &mut codecs, &[&vec![0; 64 * MIB]]);
        assert!(bomb.len() < MIB);
        for limit in [0, 1, 1000, 100_000] {
            let mut out = Vec::new();
            let result = deflate(ALONE).inflate(&mut codecs, &bomb, true, limit, &mut out);
            assert_eq!(result, Err(InflateError::TooBig));
            assert!(out.len() == limit && out.capacity() <= limit.max(8) + 1, "{limit}: {}", out.capacity());
        }
    }

    #[test]
    fn the_limit_is_exact_and_counts_what_is_there_already() {
        let mut codecs = Codecs::new();
        for len in [1, 5, 1000, 70_000] {
            let data = noise(len);
            let wire = compress(&mut deflate(ALONE), &mut codecs, &[&data]);
            for (limit, ok) in [(len + 3, true), (len + 2, false)] {
                for room in [0, 2 * len] {
                    let mut out = Vec::with_capacity(3 + room);
                    out.extend_from_slice(b"...");
                    let result = deflate(ALONE).inflate(&mut codecs, &wire, true, limit, &mut out);
                    assert_eq!(result.is_ok(), ok, "{len}, {limit}, {room}");
                    assert!(!ok || out[3..] == data);
                    assert!(out.len() <= limit);
                }
            }
        }
    }

    #[test]
    fn stays_within_the_window() {
        let mut codecs = Codecs::new();
        for bits in 9..=15 {
            // Noise that repeats itself one byte outside of the window can not be compressed without leaving it.
            let period = (1 << bits) + 1;
            let data = noise(period).repeat(3);
            let mut small = deflate(&format!("{TAKEOVER}; server_max_window_bits={bits}"));
            assert!(compress(&mut small, &mut codecs, &[&data]).len() > data.len(), "{bits}");
            if bits < 15 {
                let mut larger = deflate(&format!("{TAKEOVER}; server_max_window_bits={}", bits + 1));
                assert!(compress(&mut larger, &mut codecs, &[&data]).len() < 2 * period, "{bits} + 1");
            }
        }
    }

    #[test]
    fn long_and_incompressible_messages_come_back() {
        let mut codecs = Codecs::new();
        for data in [noise(3 * MIB), noise(1000).repeat(3000), vec![7; 5 * MIB]] {
            for offer in [TAKEOVER, ALONE] {
                let (mut ours, mut theirs) = (deflate(offer), deflate(offer));
                for _ in 0..2 {
                    let (a, b) = data.split_at(data.len() / 3);
                    let wire = compress(&mut ours, &mut codecs, &[a, b]);
                    let out = inflate_pieces(&mut theirs, &mut codecs, &[&wire], data.len());
                    assert!(out.as_deref() == Ok(&data[..]), "{offer}");
                }
            }
        }
    }

    #[test]
    fn holds_codecs_for_a_message_only_unless_agreed() {
        let mut codecs = Codecs::new();
        let mut connections = (0..2 * Codecs::KEPT).map(|_| deflate(ALONE)).collect::<Vec<_>>();
        let mut out = Vec::new();
        for deflate in &mut connections {
            deflate.compress(&mut codecs, b"Hello", false, &mut out);
            assert!(!deflate.movable() && deflate.compressor.is_some());
            deflate.inflate(&mut codecs, b"\xf2", false, 99, &mut out).unwrap();
        }
        for (index, deflate) in connections.iter_mut().enumerate() {
            if index % 2 == 0 {
                deflate.reset(&mut codecs);
            } else {
                deflate.compress(&mut codecs, b"", true, &mut out);
                deflate.inflate(&mut codecs, b"\x48\xcd\xc9\xc9\x07\x00", true, 999, &mut out).unwrap();
            }
            assert!(deflate.movable() && deflate.compressor.is_none() && deflate.inflater.is_none());
        }
        assert_eq!((codecs.compressors.len(), codecs.inflaters.len()), (Codecs::KEPT, Codecs::KEPT));
    }

    #[test]
    fn the_pool_tells_windows_and_levels_apart() {
        let mut codecs = Codecs::new();
        for (offer, level) in [(ALONE, 2), (ALONE, 9), ("permessage-deflate; server_max_window_bits=9", 9)] {
            let mut deflate = Deflate::new(deflate(offer).params(), 0, level);
            compress(&mut deflate, &mut codecs, &[b"Hello"]);
            deflate.reset(&mut codecs);
        }
        let keys = codecs.compressors.iter().map(|(key, _)| *key).collect::<Vec<_>>();
        assert_eq!(keys, [(WINDOW, 2), (WINDOW, 9), (9, 9)]);
        codecs.take_compressor((WINDOW, 9));
        assert_eq!(codecs.compressors.len(), 2);
    }

    #[test]
    fn is_small_and_knows_its_threshold() {
        assert!(size_of::<Deflate>() <= 32);
        let deflate = deflate(TAKEOVER);
        assert!(!deflate.wants(63) && deflate.wants(64) && deflate.wants(usize::MAX));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(head: [u8; 3], data: Vec<u8>, text in "([a-d]{1,9}){0,60}") {
            fuzz(&[&head, &data[..]].concat());
            fuzz(&[&head, text.as_bytes()].concat());
        }
    }
}
