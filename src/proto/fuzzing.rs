//! The body of the fuzz target over all of `proto`: a client's stream from its first octet, answered as a worker with
//! an echo handler would. Has no socket, so it says nothing about writing.

use super::http1::head::{HeadLimits, Parsed, parse};
use super::ws::connection::{Connection, Deadline, Event, Io, Send};
use super::ws::deflate::codec::{Codecs, Deflate};
use super::ws::limits::Limits;
use super::ws::message::Kind;
use super::ws::{close, deflate::negotiate as deflate, extension, handshake};
use crate::time::Instant;

/// The first three octets choose settings and cuts, the rest is what the client sends. It must not panic, the answer
/// must be valid, and whole or in pieces the same must come of it; a client that then falls silent is got rid of.
pub fn stream(data: &[u8]) {
    let [settings, step, seed, stream @ ..] = data else { return };
    let whole = serve(*settings, [stream].into_iter());
    check(&whole);
    let mut rest = stream;
    let mut number = usize::from(*seed);
    let pieces = std::iter::from_fn(|| {
        number = (number * 31 + 7) % 251;
        let (piece, later) = rest.split_at((number % (usize::from(*step) + 1) + 1).min(rest.len()));
        rest = later;
        (!piece.is_empty()).then_some(piece)
    });
    let in_pieces = serve(*settings, pieces);
    // A head that is wrong in two ways, or has no end, may be refused early or later, for another reason.
    let refuses = |out: &[u8]| out.starts_with(b"HTTP/1.1 4") || out.starts_with(b"HTTP/1.1 5");
    let refused = refuses(&in_pieces) && (refuses(&whole) || whole.is_empty());
    assert!(in_pieces == whole || refused, "{} and {}", in_pieces.escape_ascii(), whole.escape_ascii());
}

/// A connection on its way.
enum Stage {
    Head(Vec<u8>),
    Open(Box<Connection>),
    Answered,
}

/// All that the server writes.
fn serve<'a>(settings: u8, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let bit = |place: u8| settings >> place & 1 != 0;
    let limits = match bit(0) {
        true => Limits { frame: 300, message: 500, pings_per_second: 3, ..Limits::default() },
        false => Limits { frame: 1 << 15, message: 1 << 15, ..Limits::default() },
    };
    let config = deflate::Config {
        enabled: !bit(1),
        client_no_context_takeover: !bit(2),
        threshold: 8,
        ..deflate::Config::default()
    };
    let (mut out, mut codecs, mut stage) = (Vec::new(), Codecs::new(), Stage::Head(Vec::new()));
    for piece in pieces {
        let mut piece = piece.to_vec();
        if let Stage::Head(bytes) = &mut stage {
            bytes.append(&mut piece);
            let (next, unread) = greet(bytes, &config, &mut out);
            (stage, piece) = (next.unwrap_or(Stage::Head(std::mem::take(bytes))), unread);
        }
        if let Stage::Open(connection) = &mut stage {
            let io = Io { now: Instant::from_nanos(1), limits: &limits, codecs: &mut codecs, out: &mut out };
            echo(connection, &mut piece, io);
        }
    }
    if let Stage::Open(connection) = &mut stage {
        fall_silent(connection, &limits, &mut codecs, &mut out);
    }
    out
}

/// The opening handshake: the next stage if the head is complete or wrong, and what came after the head.
fn greet(bytes: &[u8], config: &deflate::Config, out: &mut Vec<u8>) -> (Option<Stage>, Vec<u8>) {
    let (head, unread) = match parse(bytes, &HeadLimits { bytes: 2048, headers: 16 }) {
        Ok(Parsed::NeedMore) => return (None, Vec::new()),
        Ok(Parsed::Head { head, consumed }) => (head, bytes[consumed..].to_vec()),
        Err(bad) => {
            refuse(out, bad.status);
            return (Some(Stage::Answered), Vec::new());
        }
    };
    match handshake::check(&head) {
        Ok(opening) => {
            let params = deflate::negotiate(&opening.extensions, config);
            let value = params.map(|params| params.header_value());
            let protocol = opening.protocols.first().map(String::as_str);
            handshake::write_switching(out, &opening, protocol, value.as_deref(), &[]);
            let deflate = params.map(|params| Deflate::new(params, config.threshold, config.level));
            (Some(Stage::Open(Box::new(Connection::new(Instant::from_nanos(1), deflate, false)))), unread)
        }
        Err(refusal) => {
            refuse(out, refusal.status);
            (Some(Stage::Answered), Vec::new())
        }
    }
}

/// In place of the response, which is not made here.
fn refuse(out: &mut Vec<u8>, status: u16) {
    out.extend_from_slice(format!("HTTP/1.1 {status} refused\r\n\r\n").as_bytes());
}

/// Answers each message with itself, and Close with its code.
fn echo(connection: &mut Connection, input: &mut [u8], mut io: Io) {
    let mut at = 0;
    loop {
        match connection.receive(input, &mut at, &mut io) {
            Event::NeedMore => break,
            Event::Empty => {}
            Event::Message { kind, body, .. } => {
                let text = body.octets(input);
                assert!(kind == Kind::Binary || std::str::from_utf8(text).is_ok());
                assert_eq!(connection.send(kind, text, Send::default(), &mut io), Ok(()));
            }
            Event::CloseReceived { code, .. } => {
                let code = (code != close::NO_CODE).then_some(code);
                assert_eq!(connection.close(code, b"", &mut io), Ok(()));
            }
            Event::Pong { .. } => panic!("nothing was pinged"),
            Event::Closed { .. } => panic!("we never close first"),
            Event::Failed { .. } => assert!(connection.is_finished()),
        }
    }
    assert_eq!(at, input.len());
}

/// Nothing comes any more: one keepalive Ping, and the connection is dropped.
fn fall_silent(connection: &mut Connection, limits: &Limits, codecs: &mut Codecs, out: &mut Vec<u8>) {
    let mut found = Vec::new();
    while !connection.is_finished() && !matches!(found.last(), Some(Deadline::PeerSilent)) {
        let now = connection.deadline(limits);
        found.push(connection.on_deadline(&mut Io { now, limits, codecs, out }));
        assert!(found.len() <= 2, "{found:?}");
    }
    assert!(matches!(found[..], [] | [Deadline::Pinged, Deadline::PeerSilent]), "{found:?}");
}

/// Whether a client could read it: a response, and after 101 whole frames of which Close is the last.
fn check(out: &[u8]) {
    if out.is_empty() {
        return; // the head was not complete
    }
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(head)) = response.parse(out) else { panic!("{}", out.escape_ascii()) };
    let mut rest = &out[head..];
    if response.code != Some(101) {
        return;
    }
    let offered = response.headers.iter().filter(|field| field.name == "Sec-WebSocket-Extensions");
    let compressed = extension::parse(offered.map(|field| field.value)).is_ok_and(|list| !list.is_empty());
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
            0xc1 | 0xc2 => assert!(compressed),
            0x88 => assert!(len != 1 && len < 126 && rest.is_empty()),
            0x89 | 0x8a => assert!(len < 126),
            _ => panic!("first octet {first:#x}"),
        }
    }
    assert!(rest.is_empty());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use crate::proto::http1::{head, proxy};
    use crate::proto::ws::{connection, deflate::codec, frame, handshake, message};

    type Target = (&'static str, fn(&[u8]));

    /// As in fuzz/targets/.
    const TARGETS: [Target; 8] = [
        ("codec", codec::fuzz),
        ("connection", connection::fuzz),
        ("frame", frame::fuzz),
        ("handshake", handshake::fuzz),
        ("head", head::fuzz),
        ("message", message::fuzz),
        ("proxy", proxy::fuzz),
        ("stream", super::stream),
    ];

    fn names_in(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The seeds, and all that once broke something.
    #[test]
    fn the_corpora_are_replayed() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let targets = names_in(&fuzz.join("targets"));
        assert_eq!(targets, TARGETS.map(|(name, _)| format!("{name}.rs")), "as in fuzz/targets");
        for (target, body) in TARGETS {
            let corpus = fuzz.join("corpus").join(target);
            let seeds = names_in(&corpus);
            assert!(!seeds.is_empty(), "{} is empty", corpus.display());
            for seed in seeds {
                let octets = std::fs::read(corpus.join(&seed)).unwrap();
                // Named by the test runner's captured output if the body panics.
                println!("{target}: {seed}");
                body(&octets);
            }
        }
    }
}
