//! The body of the fuzz target: any octets from a client, or messages that it encodes, fed in two ways.

use super::*;
use crate::proto::ws::deflate::negotiate::{Config, Params, negotiate};
use crate::proto::ws::extension::Offer;

/// Bits of the first octet, as in `fuzz/seeds`.
const STREAM: u8 = 1;
const DEFLATE: u8 = 2;
const ALONE: u8 = 4;
const TIGHT: u8 = 8;
const PINGED: u8 = 16;
const CLOSING: u8 = 32;
const INTAKE: u8 = 64;
const MESSAGES: u8 = 128;

/// Messages shorter than this are not compressed.
pub const THRESHOLD: u32 = 8;

/// The first three octets choose settings and cuts, the rest is what the client sends, or describes messages that it
/// sends.
pub fn fuzz(data: &[u8]) {
    let [settings, step, seed, rest @ ..] = data else { return };
    if settings & MESSAGES != 0 {
        let (wire, expected) = messages(rest);
        let outcome = check(settings & (STREAM | INTAKE), None, [*step, *seed], &wire);
        assert_eq!(outcome.events, expected);
        return assert!(outcome.movable);
    }
    let config = Config { client_no_context_takeover: settings & ALONE != 0, ..Config::default() };
    let offer = Offer { name: "permessage-deflate".into(), params: vec![] };
    let params = (settings & DEFLATE != 0).then(|| negotiate(&[offer], &config)).flatten();
    check(*settings, params, [*step, *seed], rest);
}

/// What a client sends must not cause a panic; memory stays within the limits; what is answered is whole frames; whole
/// or in pieces, the same comes of it.
pub fn check(settings: u8, params: Option<Params>, [step, seed]: [u8; 2], stream: &[u8]) -> Outcome {
    let whole = run(settings, params, stream, std::iter::repeat(stream.len()));
    check_frames(&whole.out, params.is_some());
    let pieces = std::iter::successors(Some(usize::from(seed)), |last| Some((last * 31 + 7) % 251));
    let most = usize::from(step) % 64 + 1;
    let in_pieces = run(settings, params, stream, pieces.map(|number| number % most + 1));
    assert_eq!(in_pieces, whole, "in pieces up to {most}");
    whole
}

/// What came of a stream; parts of messages put together.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    events: Vec<Seen>,
    out: Vec<u8>,
    close_sent: Option<u16>,
    finished: bool,
    movable: bool,
}

#[derive(Debug, PartialEq)]
enum Seen {
    Message(Kind, bool, Vec<u8>),
    Pong(Vec<u8>),
    Close(u16, Vec<u8>),
    Failed(u16),
}

fn run(settings: u8, params: Option<Params>, data: &[u8], pieces: impl Iterator<Item = usize>) -> Outcome {
    let is_set = |bit: u8| settings & bit != 0;
    let stream = is_set(STREAM);
    let deflate = params.map(|params| Deflate::new(params, THRESHOLD, 1));
    let limits = match is_set(TIGHT) {
        true => Limits { frame: 300, message: 500, pings_per_second: 3, ..Limits::default() },
        false => Limits { frame: 1 << 15, message: 1 << 15, pings_per_second: 0, ..Limits::default() },
    };
    let (mut codecs, mut out) = (Codecs::new(), Vec::new());
    let mut io = Io { now: Instant::from_nanos(1), limits: &limits, codecs: &mut codecs, out: &mut out };
    let mut connection = Connection::new(Instant::default(), deflate, stream);
    if is_set(PINGED) {
        assert_eq!(connection.ping(b"ping", &mut io), Ok(()));
    }
    if is_set(CLOSING) {
        assert_eq!(connection.close(Some(1000), b"", &mut io), Ok(()));
    }

    let (mut events, mut message) = (Vec::new(), Vec::new());
    let (mut rest, mut fed) = (data, 0);
    for size in pieces {
        let (piece, later) = rest.split_at(size.min(rest.len()));
        let mut piece = piece.to_vec();
        fed += piece.len();
        let mut at = 0;
        loop {
            let room = piece.len() - at;
            let event = match connection.intake(1) {
                Some((gathered, most)) if is_set(INTAKE) && room > 0 => {
                    let count = most.min(room);
                    gathered.extend_from_slice(&piece[at..at + count]);
                    at += count;
                    connection.taken(count, &mut io)
                }
                _ => connection.receive(&mut piece, &mut at, &mut io),
            };
            match event {
                Event::NeedMore if at < piece.len() => {}
                Event::NeedMore => break,
                Event::Empty | Event::Ping { .. } => {}
                Event::Message { kind, first, last, compressed, body } => {
                    assert!(!is_set(CLOSING) && (stream || (first && last)));
                    assert_eq!(first, message.is_empty());
                    assert!(last || !body.is_empty());
                    message.extend_from_slice(octets(&body, &piece));
                    assert!(message.len() <= limits.message);
                    if last {
                        let whole = std::mem::take(&mut message);
                        assert!(kind == Kind::Binary || std::str::from_utf8(&whole).is_ok());
                        assert_eq!(connection.send(kind, &whole, Send::default(), &mut io), Ok(()));
                        events.push(Seen::Message(kind, compressed, whole));
                    }
                }
                Event::Pong { body, .. } => events.push(Seen::Pong(octets(&body, &piece).to_vec())),
                Event::CloseReceived { code, reason } => {
                    let reason = octets(&reason, &piece).to_vec();
                    let answer = (code != NO_CODE).then_some(code);
                    assert_eq!(connection.close(answer, b"", &mut io), Ok(()));
                    events.push(Seen::Close(code, reason));
                }
                Event::Closed { code, reason } => {
                    events.push(Seen::Close(code, octets(&reason, &piece).to_vec()));
                }
                Event::Failed { code, .. } => events.push(Seen::Failed(code)),
            }
        }
        assert_eq!(at, piece.len());
        // What waits is a multiple of what came, or (inflated) at most the limit and what inflating is ahead.
        let held = connection.decoder.held();
        let factor = if fed < 64 * 1024 { 4 } else { 16 };
        let inflated = if params.is_some() { limits.message } else { 0 };
        assert!(held <= inflated.max(factor * fed) + 2048, "{held} of {fed}");
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    let movable = connection.is_movable();
    let (close_sent, finished) = (connection.close_sent(), connection.is_finished());
    fall_silent(&mut connection, &mut io);
    Outcome { close_sent, finished, movable, events, out }
}

/// Nothing comes any more: at most one keepalive Ping, and the connection is dropped.
fn fall_silent(connection: &mut Connection, io: &mut Io) {
    let mut found = Vec::new();
    while !connection.is_finished() {
        io.now = connection.deadline(io.limits);
        found.push(connection.on_deadline(io));
        assert!(found.len() <= 2, "{found:?}");
    }
    let dropped =
        matches!(found[..], [] | [Deadline::Pinged, Deadline::PeerSilent] | [Deadline::CloseTimedOut]);
    assert!(dropped, "{found:?}");
}

/// Whether a client could read it: whole frames of which Close is the last.
fn check_frames(mut rest: &[u8], is_deflate_agreed: bool) {
    while let &[first, second, ref tail @ ..] = rest {
        let (header, len) = match second {
            0..126 => (0, usize::from(second)),
            126 => (2, usize::from(u16::from_be_bytes([tail[0], tail[1]]))),
            _ => panic!("an answer of 64 KiB, or a masked one"),
        };
        assert!(len >= 126 || header == 0, "the length is in its shortest form");
        assert!(tail.len() >= header + len, "a frame is cut off");
        rest = &tail[header + len..];
        match first {
            0x81 | 0x82 => {}
            0xc1 | 0xc2 => assert!(is_deflate_agreed),
            0x88 => assert!(len != 1 && len < 126 && rest.is_empty()),
            0x89 | 0x8a => assert!(len < 126),
            _ => panic!("first octet {first:#x}"),
        }
    }
    assert!(rest.is_empty());
}

/// Binary messages of which each is described by the number of its fragments, its length and the key; and what they are
/// to come out as.
fn messages(mut rest: &[u8]) -> (Vec<u8>, Vec<Seen>) {
    let (mut wire, mut expected) = (Vec::new(), Vec::new());
    while let [fragments, len, key, tail @ ..] = rest {
        let (payload, tail) = tail.split_at(usize::from(*len).min(tail.len()));
        rest = tail;
        let each = payload.len() / (usize::from(*fragments) % 5 + 1) + 1;
        let count = payload.chunks(each).len().max(1);
        for index in 0..count {
            let opcode = if index == 0 { Opcode::Binary } else { Opcode::Continuation };
            client_frame(&mut wire, opcode, index + 1 == count, *key, payload.chunks(each).nth(index));
            if fragments & 0x80 != 0 {
                client_frame(&mut wire, Opcode::Pong, true, *key, payload.get(..payload.len().min(100)));
            }
        }
        expected.push(Seen::Message(Kind::Binary, false, payload.to_vec()));
    }
    (wire, expected)
}

/// Appends a frame as a client sends it.
fn client_frame(wire: &mut Vec<u8>, opcode: Opcode, fin: bool, key: u8, payload: Option<&[u8]>) {
    let payload = payload.unwrap_or_default();
    let start = wire.len();
    frame::encode(wire, opcode, fin, false, payload.len());
    wire[start + 1] |= 0x80;
    let key = [key, key ^ 1, !key, 77];
    wire.extend_from_slice(&key);
    wire.extend(payload.iter().enumerate().map(|(i, octet)| octet ^ key[i % 4]));
}

fn octets<'a>(body: &'a Body, input: &'a [u8]) -> &'a [u8] {
    if let Body::Owned(gathered) = body {
        assert!(gathered.capacity() > gathered.len());
    }
    body.octets(input)
}
