//! The body of the fuzz target: any octets from a client, fed in two ways.

use super::*;
use crate::proto::ws::deflate::negotiate::{Config, negotiate};
use crate::proto::ws::extension::Offer;

/// The first three octets choose settings and cuts, the rest is what the client sends. It must not panic; memory
/// stays within the limits; whole or in pieces, the same comes of it.
pub fn fuzz(data: &[u8]) {
    let [settings, step, seed, stream @ ..] = data else { return };
    let whole = run(*settings, stream, std::iter::repeat(stream.len()));
    let pieces = std::iter::successors(Some(usize::from(*seed)), |last| Some((last * 31 + 7) % 251));
    let most = usize::from(*step) % 64 + 1;
    assert_eq!(
        run(*settings, stream, pieces.map(|number| number % most + 1)),
        whole,
        "in pieces up to {most}"
    );
}

/// What came of a stream; parts of messages put together.
#[derive(Debug, PartialEq)]
struct Outcome {
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

fn run(settings: u8, data: &[u8], pieces: impl Iterator<Item = usize>) -> Outcome {
    let bit = |place: u8| settings >> place & 1 != 0;
    let stream = bit(0);
    let config = Config { client_no_context_takeover: bit(2), threshold: 8, ..Config::default() };
    let offer = Offer { name: "permessage-deflate".into(), params: vec![] };
    let params = bit(1).then(|| negotiate(&[offer], &config)).flatten();
    let deflate = params.map(|params| Deflate::new(params, config.threshold, config.level));
    let limits = if bit(3) {
        Limits { frame: 300, message: 500, pings_per_second: 3, ..Limits::default() }
    } else {
        Limits { frame: 1 << 16, message: 1 << 16, pings_per_second: 0, ..Limits::default() }
    };
    let (mut codecs, mut out) = (Codecs::new(), Vec::new());
    let mut io = Io { now: Instant::from_nanos(1), limits: &limits, codecs: &mut codecs, out: &mut out };
    let mut connection = Connection::new(Instant::default(), deflate, stream);
    if bit(4) {
        assert_eq!(connection.ping(b"ping", &mut io), Ok(()));
    }
    if bit(5) {
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
                Some((gathered, most)) if bit(6) && room > 0 => {
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
                Event::Empty => {}
                Event::Message { kind, first, last, compressed, body } => {
                    assert!(!bit(5) && (stream || (first && last)));
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
        assert!(
            held <= factor * fed + 2048 || (params.is_some() && held <= limits.message + 2048),
            "{held} of {fed}"
        );
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    Outcome {
        close_sent: connection.close_sent(),
        finished: connection.is_finished(),
        movable: connection.is_movable(),
        events,
        out,
    }
}

fn octets<'a>(body: &'a Body, input: &'a [u8]) -> &'a [u8] {
    if let Body::Owned(gathered) = body {
        assert!(gathered.capacity() > gathered.len());
    }
    body.octets(input)
}
