//! Compressed messages after RFC 7692 section 7.2: octets on the wire, cut at every place, and their content.
#![allow(clippy::expect_used)]

use wshd::proto::ws::deflate::codec::{Codecs, Deflate, InflateError};
use wshd::proto::ws::deflate::negotiate::{Config, negotiate};
use wshd::proto::ws::extension;

/// RFC 7692 section 7.2.3: octets on the wire, and their content.
const EXAMPLES: &[(&str, &[u8], &[u8])] = &[
    ("7.2.3.1 one block", b"\xf2\x48\xcd\xc9\xc9\x07\x00", b"Hello"),
    ("7.2.3.3 stored", b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00", b"Hello"),
    ("7.2.3.4 BFINAL", b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", b"Hello"),
    ("7.2.3.5 two blocks", b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", b"Hello"),
    ("7.2.3.6 empty", b"\x00", b""),
    ("BFINAL without the octet behind it", b"\xf3\x48\xcd\xc9\xc9\x07\x00", b"Hello"),
    (
        "a block, BFINAL, a block",
        b"\xf2\x48\x05\x00\x00\x00\xff\xff\x01\x00\x00\xff\xff\xf2\x48\xcd\xc9\xc9\x07\x00",
        b"HeHello",
    ),
    ("no octets", b"", b""),
    ("inflates to nothing", b"\x02\x00\x00\x00\xff\xff\x00", b""),
];

#[test]
fn inflates_the_examples_of_the_rfc_at_every_cut() {
    let mut codecs = Codecs::new();
    for offer in [TAKEOVER, ALONE] {
        let mut deflate = deflate(offer);
        for (name, wire, expected) in EXAMPLES {
            for cut in 0..=wire.len() {
                let (head, tail) = wire.split_at(cut);
                for pieces in [&[head, tail][..], &[&[], head, &[], tail, &[]]] {
                    let out = inflate_pieces(&mut deflate, &mut codecs, pieces, 16);
                    assert_eq!(out.as_deref(), Ok(*expected), "{name}, cut at {cut}, {offer}");
                }
            }
        }
    }
}

#[test]
fn compresses_as_the_examples_of_the_rfc() {
    let mut codecs = Codecs::new();
    // 7.2.3.1 and 7.2.3.2: the second one refers to the first.
    let mut takeover = deflate(TAKEOVER);
    assert_eq!(compress(&mut takeover, &mut codecs, &[b"Hello"]), b"\xf2\x48\xcd\xc9\xc9\x07\x00");
    assert_eq!(compress(&mut takeover, &mut codecs, &[b"Hello"]), b"\xf2\x00\x11\x00\x00");
    let mut alone = deflate(ALONE);
    for _ in 0..2 {
        assert_eq!(compress(&mut alone, &mut codecs, &[b"Hello"]), b"\xf2\x48\xcd\xc9\xc9\x07\x00");
    }
    // 7.2.3.6, also after a message and at the end of fragments.
    assert_eq!(compress(&mut alone, &mut codecs, &[b""]), b"\x00");
    assert_eq!(compress(&mut takeover, &mut codecs, &[b"", b""]), b"\x00");
    assert_eq!(
        compress(&mut alone, &mut codecs, &[b"He", b"", b""]),
        b"\xf2\x48\x05\x00\x00\x00\xff\xff\x00"
    );
}

#[test]
fn takes_the_clients_context_over_if_negotiated() {
    let mut codecs = Codecs::new();
    // 7.2.3.2.
    let second: &[u8] = b"\xf2\x00\x11\x00\x00";
    for (offer, expected) in [(TAKEOVER, Ok(b"Hello".to_vec())), (ALONE, Err(InflateError::Corrupt))] {
        let mut deflate = deflate(offer);
        let first = inflate_pieces(&mut deflate, &mut codecs, &[b"\xf2\x48\xcd\xc9\xc9\x07\x00"], 9);
        assert_eq!(first.as_deref(), Ok(&b"Hello"[..]));
        assert_eq!(deflate.movable(), offer == ALONE);
        assert_eq!(inflate_pieces(&mut deflate, &mut codecs, &[second], 9), expected, "{offer}");
    }
}

/// The parameters for this offer with default settings.
fn deflate(offer: &str) -> Deflate {
    let offers = extension::parse([offer.as_bytes()].into_iter()).expect("valid");
    let config = Config { client_no_context_takeover: false, ..Config::default() };
    Deflate::new(negotiate(&offers, &config).expect("valid"), 64, 1)
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
