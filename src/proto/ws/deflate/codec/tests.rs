//! Messages there and back, limits, and what is held between messages.
#![allow(clippy::unwrap_used)]

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
        // Noise that repeats itself one byte outside of the window cannot be compressed without leaving it.
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

/// An inflater that knows nothing of this: one zlib stream from the first message to the last.
fn judge(inflater: &mut Decompress, wire: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 16);
    let input = [wire, &TAIL].concat();
    let before = inflater.total_in();
    inflater.decompress_vec(&input, &mut out, FlushDecompress::Sync).unwrap();
    assert_eq!(inflater.total_in() - before, input.len() as u64);
    out
}

#[test]
fn without_its_context_a_connection_goes_on_in_the_same_stream() {
    let (mut codecs, mut ours, mut theirs) = (Codecs::new(), deflate(TAKEOVER), Decompress::new(false));
    let data = noise(3000);
    let mut lengths = Vec::new();
    for drops in [false, false, true, false, true, true] {
        if drops {
            assert!(ours.context_bytes().0 > 64 * 1024);
            assert!(ours.drop_sending_context(&mut codecs) && ours.drop_sending_context(&mut codecs));
            assert_eq!(ours.context_bytes(), (0, 0));
        }
        let wire = compress(&mut ours, &mut codecs, &[&data[..1000], &data[1000..]]);
        assert!(judge(&mut theirs, &wire) == data);
        lengths.push(wire.len());
    }
    let fresh = lengths[0];
    assert!(lengths[1] < fresh / 4, "with a history: {lengths:?}");
    assert_eq!(lengths, [fresh, lengths[1], fresh, lengths[1], fresh, fresh]);
}

#[test]
fn a_context_is_not_dropped_within_a_message() {
    let (mut codecs, mut ours, mut theirs) = (Codecs::new(), deflate(TAKEOVER), Decompress::new(false));
    let mut wire = Vec::new();
    ours.compress(&mut codecs, b"Hello, ", false, &mut wire);
    assert!(!ours.drop_sending_context(&mut codecs));
    ours.compress(&mut codecs, b"world", true, &mut wire);
    assert_eq!(judge(&mut theirs, &wire), b"Hello, world");
    assert!(ours.drop_sending_context(&mut codecs));
}

#[test]
fn the_context_for_receiving_is_held_only_as_long_as_the_client_may_refer_to_it() {
    let mut codecs = Codecs::new();
    let mut theirs = Compress::new(Compression::fast(), false);
    for (offer, held) in [(ALONE, false), (TAKEOVER, true)] {
        let mut ours = deflate(offer);
        theirs.reset();
        let mut wire = Vec::with_capacity(99);
        theirs.compress_vec(b"Hello", &mut wire, FlushCompress::Sync).unwrap();
        let (first, second) = wire[..wire.len() - 4].split_at(3);
        let mut out = Vec::new();
        ours.inflate(&mut codecs, first, false, 99, &mut out).unwrap();
        assert!(ours.context_bytes().1 > 32 * 1024, "{offer}: within a message");
        ours.inflate(&mut codecs, second, true, 99, &mut out).unwrap();
        assert_eq!((&out[..], ours.context_bytes().1 > 0), (&b"Hello"[..], held), "{offer}");
    }
}

#[test]
fn the_pool_tells_windows_and_levels_apart() {
    let mut codecs = Codecs::new();
    for (offer, level) in [(ALONE, 2), (ALONE, 9), ("permessage-deflate; server_max_window_bits=9", 9)] {
        let mut deflate = Deflate::new(deflate(offer).params, 0, level);
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
