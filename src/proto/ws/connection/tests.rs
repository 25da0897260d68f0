//! Sending, closing, sizes; what the peer may send is in `tests/frame_conformance.rs`, time in
//! `tests/connection_time.rs`.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::proto::ws::deflate::negotiate::{Config, negotiate};
use crate::proto::ws::extension::Offer;
use proptest::prelude::*;

const MORE: Send = Send { more: true, compress: true, trusted: false };
const LAST: Send = Send { more: false, compress: true, trusted: false };

/// A connection with what its calls need.
struct Bench {
    connection: Connection,
    limits: Limits,
    codecs: Codecs,
    out: Vec<u8>,
}

impl Bench {
    fn new(config: Option<&Config>) -> Self {
        let offer = Offer { name: "permessage-deflate".into(), params: vec![] };
        let deflate = config
            .map(|config| Deflate::new(negotiate(&[offer], config).unwrap(), config.threshold, config.level));
        Bench {
            connection: Connection::new(Instant::default(), deflate, false),
            limits: Limits::default(),
            codecs: Codecs::new(),
            out: Vec::new(),
        }
    }

    fn with<T>(&mut self, call: impl FnOnce(&mut Connection, &mut Io) -> T) -> T {
        let mut io = Io {
            now: Instant::default(),
            limits: &self.limits,
            codecs: &mut self.codecs,
            out: &mut self.out,
        };
        call(&mut self.connection, &mut io)
    }

    fn send(&mut self, kind: Kind, data: &[u8], how: Send) -> Result<(), SendError> {
        self.with(|connection, io| connection.send(kind, data, how, io))
    }

    /// The next event that is not a Ping.
    fn receive(&mut self, input: &mut [u8]) -> Event {
        let mut at = 0;
        loop {
            match self.with(|connection, io| connection.receive(input, &mut at, io)) {
                Event::Ping { .. } => {}
                event => return event,
            }
        }
    }
}

#[test]
fn a_connection_is_small() {
    assert!(size_of::<Connection>() <= 120, "{}", size_of::<Connection>());
}

#[test]
fn nothing_is_held_between_messages() {
    let mut bench = Bench::new(Some(&Config::default()));
    for mut input in [
        b"\x01\x80\0\0\0\0\x89\x80\0\0\0\0\x80\x83\0\0\0\0abc".to_vec(),
        b"\xc1\x87\0\0\0\0\xf2\x48\xcd\xc9\xc9\x07\0".to_vec(),
    ] {
        assert!(bench.connection.is_movable());
        let (start, end) = input.split_at_mut(3);
        assert_eq!(bench.receive(start), Event::NeedMore);
        assert!(!bench.connection.is_movable());
        assert!(matches!(bench.receive(end), Event::Message { last: true, .. }));
        assert!(bench.connection.is_movable() && bench.connection.decoder.held() == 0);
    }
}

/// Wherever the input ends within a control frame, also just behind its header.
#[test]
fn nothing_is_held_after_a_cut_control_frame() {
    let frame = b"\x8a\x82\0\0\0\0ab";
    for cut in 0..frame.len() {
        let mut bench = Bench::new(None);
        for piece in [&frame[..cut], &frame[cut..]] {
            assert_eq!(bench.receive(&mut piece.to_vec()), Event::NeedMore);
        }
        assert!(bench.connection.is_movable(), "cut at {cut}");
    }
}

#[test]
fn a_whole_message_stays_in_the_input() {
    let mut bench = Bench::new(None);
    let mut input = *b"\x81\x82\x01\x01\x01\x01cb\x82\x80\0\0\0\0";
    let event = bench.receive(&mut input);
    let body = Body::Input(6..8);
    assert_eq!(event, Event::Message { kind: Kind::Text, first: true, last: true, compressed: false, body });
    assert_eq!(&input[6..8], b"bc");
}

#[test]
fn memory_follows_what_has_come_not_what_is_announced() {
    let mut bench = Bench::new(None);
    let mut input = b"\x82\xff\0\0\0\0\0\xf0\0\0\0\0\0\0x".to_vec();
    assert_eq!(bench.receive(&mut input), Event::NeedMore);
    assert!(bench.connection.decoder.held() <= 1024);
    for fed in 1..1000 {
        assert_eq!(bench.receive(&mut [0; 100]), Event::NeedMore);
        let come = 1 + 100 * fed;
        let most = if come < 64 * 1024 { 4 * come + 1024 } else { 16 * come };
        assert!(bench.connection.decoder.held() <= most, "of {come}");
    }
}

/// 1000 octets of zeros in a few, cut before the last.
#[test]
fn what_an_incomplete_message_holds_counts_as_inflated() {
    let mut theirs = flate2::Compress::new(flate2::Compression::best(), false);
    let mut wire = Vec::with_capacity(99);
    theirs.compress_vec(&[0; 1000], &mut wire, flate2::FlushCompress::Sync).unwrap();
    let payload = &wire[..wire.len() - 4];
    let frame = [&[0xc2, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat();
    let mut bench = Bench::new(Some(&Config::default()));
    let (begin, end) = frame.split_at(frame.len() - 1);
    assert_eq!((bench.connection.held(), bench.connection.context_bytes()), (0, (0, 0)));
    assert_eq!(bench.receive(&mut begin.to_vec()), Event::NeedMore);
    let held = bench.connection.held();
    assert!((900..=4000).contains(&held), "{held} of {} that came", begin.len());
    assert!(bench.connection.context_bytes().1 > 0);
    assert!(matches!(bench.receive(&mut end.to_vec()), Event::Message { compressed: true, .. }));
    assert_eq!((bench.connection.held(), bench.connection.context_bytes()), (0, (0, 0)));
}

#[test]
fn a_sending_context_can_be_dropped_between_messages() {
    let mut bench = Bench::new(Some(&Config { threshold: 0, ..Config::default() }));
    assert_eq!(bench.send(Kind::Text, b"one", MORE), Ok(()));
    let Bench { connection, codecs, .. } = &mut bench;
    assert!(connection.context_bytes().0 > 0 && !connection.drop_sending_context(codecs));
    assert_eq!(bench.send(Kind::Text, b"two", LAST), Ok(()));
    let Bench { connection, codecs, .. } = &mut bench;
    assert!(connection.drop_sending_context(codecs) && connection.context_bytes() == (0, 0));
    assert!(Bench::new(None).connection.drop_sending_context(&mut Codecs::new()), "nothing was agreed");
}

#[test]
fn the_rest_of_a_frame_may_come_where_the_message_is_gathered() {
    // A text of 200 octets in two frames, of which the second is cut; all keys are "\x01\x02\x03\x04".
    let text: Vec<u8> = "é".repeat(100).into_bytes();
    let masked = |from: usize| {
        text.iter().skip(from).zip([1, 2, 3, 4].iter().cycle()).map(|(a, b)| a ^ b).collect::<Vec<u8>>()
    };
    let (first, second) = (masked(0), masked(51));
    let mut bench = Bench::new(None);
    assert!(bench.connection.intake(1).is_none(), "between messages");
    let begin = [b"\x01\xb3\x01\x02\x03\x04", &first[..51], b"\x89\x80abcd\x80\xfe\0\x95"].concat();
    assert_eq!(bench.receive(&mut begin.clone()), Event::NeedMore);
    assert!(bench.connection.intake(1).is_none(), "within a header");
    assert_eq!(bench.receive(&mut [b"\x01\x02\x03\x04", &second[..9]].concat()), Event::NeedMore);
    let mut at = 9;
    for count in [70, 1, 69] {
        let (gathered, room) = bench.connection.intake(1000).expect("within a payload");
        assert_eq!((gathered.len(), room), (51 + at, 149 - at), "no more than the frame");
        gathered.extend_from_slice(&second[at..at + count]);
        at += count;
        let event = bench.with(|connection, io| connection.taken(count, io));
        match event {
            Event::NeedMore => assert_ne!(at, 149),
            Event::Message { first: true, last: true, body: Body::Owned(body), .. } => {
                assert!(at == 149 && body == text && body.capacity() > body.len());
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(bench.connection.is_movable() && bench.connection.decoder.held() == 0);
}

#[test]
fn what_comes_where_the_message_is_gathered_is_checked_at_once() {
    let mut bench = Bench::new(None);
    assert_eq!(bench.receive(&mut b"\x81\xe4\0\0\0\0abc".to_vec()), Event::NeedMore);
    bench.connection.intake(1).unwrap().0.extend_from_slice(b"d\xff");
    let event = bench.with(|connection, io| connection.taken(2, io));
    assert!(matches!(event, Event::Failed { code: 1007, .. }), "{event:?}");
    assert!(bench.connection.intake(1).is_none());
}

#[test]
fn no_more_is_set_aside_than_has_been_earned() {
    let mut bench = Bench::new(None);
    let mut input = b"\x82\xff\0\0\0\0\0\xf0\0\0\0\0\0\0".to_vec();
    input.resize(input.len() + 2000, 0);
    assert_eq!(bench.receive(&mut input), Event::NeedMore);
    assert!(bench.connection.intake(16_000).is_none(), "little has come");
    let (_, room) = bench.connection.intake(5000).unwrap();
    assert!((5000..=6000).contains(&room), "{room}");
    assert!(bench.connection.decoder.held() <= 8000);
}

#[test]
fn fragments_are_checked_together() {
    let mut bench = Bench::new(None);
    assert_eq!(bench.send(Kind::Text, b"\xe2\x82", MORE), Ok(()));
    assert!(!bench.connection.is_movable());
    assert_eq!(bench.send(Kind::Binary, b"\xac", LAST), Err(SendError::WrongKind));
    assert_eq!(bench.send(Kind::Text, b"a", MORE), Err(SendError::NotUtf8));
    assert_eq!(bench.send(Kind::Text, b"", LAST), Err(SendError::NotUtf8));
    // The errors left it as it was.
    assert_eq!(bench.send(Kind::Text, b"\xac", LAST), Ok(()));
    assert_eq!(bench.out, b"\x01\x02\xe2\x82\x80\x01\xac");
    assert!(bench.connection.is_movable());
    assert_eq!(bench.send(Kind::Text, b"\xff", LAST), Err(SendError::NotUtf8));
    assert_eq!(bench.send(Kind::Text, b"\xff", Send { trusted: true, ..LAST }), Ok(()));
    assert_eq!(bench.send(Kind::Binary, b"\xff", LAST), Ok(()));
}

#[test]
fn header_alone_where_the_payload_is_not_compressed() {
    let config = Config { threshold: 10, ..Config::default() };
    let mut bench = Bench::new(Some(&config));
    let header = |bench: &mut Bench, data: &[u8], how| {
        bench.out.clear();
        let alone = bench.with(|connection, io| connection.send_header(Kind::Binary, data, how, io));
        (alone, bench.out.clone())
    };
    assert_eq!(header(&mut bench, &[0; 9], LAST), (Ok(true), b"\x82\x09".to_vec()));
    assert_eq!(
        header(&mut bench, &[0; 99], Send { compress: false, ..LAST }),
        (Ok(true), b"\x82\x63".to_vec())
    );
    let (alone, out) = header(&mut bench, &[0; 300], LAST);
    // RFC 7692 6: RSV1; the length is that of what follows.
    assert_eq!((alone, out[0], usize::from(out[1])), (Ok(false), 0xc2, out.len() - 2));
}

#[test]
fn compression_is_chosen_by_the_first_fragment() {
    let mut bench = Bench::new(Some(&Config::default()));
    for (first, opcodes) in [(MORE, [0x41, 0x80]), (Send { compress: false, ..MORE }, [0x01, 0x80])] {
        bench.out.clear();
        assert_eq!(bench.send(Kind::Text, b"ab", first), Ok(()));
        assert!(!bench.connection.is_movable());
        let second = bench.out.len();
        assert_eq!(bench.send(Kind::Text, b"cd", Send { compress: !first.compress, ..LAST }), Ok(()));
        assert_eq!([bench.out[0], bench.out[second]], opcodes);
    }
}

#[test]
fn what_a_close_may_be() {
    let mut bench = Bench::new(None);
    let mut close = |code, reason: &[u8]| bench.with(|connection, io| connection.close(code, reason, io));
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
        assert_eq!(close(Some(code), b""), Err(SendError::BadCode), "{code}");
    }
    assert_eq!(close(None, b"why"), Err(SendError::BadCode));
    assert_eq!(close(Some(1000), &[b'a'; 124]), Err(SendError::TooLong));
    assert_eq!(close(Some(1000), b"\xff"), Err(SendError::NotUtf8));
    assert_eq!(close(Some(4999), &[b'a'; 123]), Ok(()));
    assert_eq!(close(Some(1000), b""), Err(SendError::Closing));
    assert_eq!(bench.out[..4], [0x88, 125, 0x13, 0x87]);
    assert_eq!(bench.connection.close_sent(), Some(4999));
    assert!(bench.connection.close_state != CloseState::Open && !bench.connection.is_finished());
    assert_eq!(bench.send(Kind::Text, b"", LAST), Err(SendError::Closing));
    assert_eq!(bench.with(|connection, io| connection.ping(b"", io)), Err(SendError::Closing));
}

#[test]
fn an_empty_close_answers_an_empty_close() {
    let mut bench = Bench::new(None);
    assert_eq!(bench.connection.close_sent(), None);
    assert!(matches!(
        bench.receive(&mut b"\x88\x80\0\0\0\0".to_vec()),
        Event::CloseReceived { code: 1005, .. }
    ));
    // What was begun may still be said.
    assert_eq!(bench.send(Kind::Text, b"a", LAST), Ok(()));
    assert_eq!(bench.with(|connection, io| connection.close(None, b"", io)), Ok(()));
    assert_eq!(bench.out, b"\x81\x01a\x88\x00");
    assert_eq!(bench.connection.close_sent(), Some(1005));
    assert!(bench.connection.is_finished());
}

#[test]
fn close_between_fragments_of_ours() {
    let mut bench = Bench::new(None);
    assert_eq!(bench.send(Kind::Text, b"a", MORE), Ok(()));
    assert_eq!(bench.with(|connection, io| connection.ping(b"p", io)), Ok(()));
    assert_eq!(bench.with(|connection, io| connection.close(Some(1001), b"", io)), Ok(()));
    assert_eq!(bench.out, b"\x01\x01a\x89\x01p\x88\x02\x03\xe9");
}

#[test]
fn a_ping_has_at_most_125_octets() {
    let mut bench = Bench::new(None);
    assert_eq!(bench.with(|connection, io| connection.ping(&[0; 126], io)), Err(SendError::TooLong));
    assert_eq!(bench.with(|connection, io| connection.ping(&[0; 125], io)), Ok(()));
}

#[test]
fn a_failed_connection_holds_nothing() {
    let mut bench = Bench::new(Some(&Config::default()));
    let event = bench.receive(&mut b"\x02\x81\0\0\0\0a\x83".to_vec());
    assert_eq!(event, Event::Failed { code: 1002, why: "reserved opcode" });
    assert_eq!((bench.connection.decoder.held(), bench.connection.close_sent()), (0, Some(1002)));
    assert!(bench.connection.is_finished() && !bench.connection.is_movable());
    assert_eq!(bench.connection.deadline(&bench.limits), Instant::NEVER);
}

/// Streams that are mostly valid, so that the fuzz body gets past the first octets.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let first = prop::sample::select(vec![
        0x81u8, 0x81, 0x82, 0x01, 0x02, 0x00, 0x00, 0x80, 0x80, 0xc1, 0xc2, 0x41, 0x42, 0x89, 0x8a, 0x88,
        0x83,
    ]);
    let payload = prop_oneof![
        "\\PC{0,30}".prop_map(String::into_bytes),
        "[a-c]{0,125}".prop_map(String::into_bytes),
        Just(b"\xf2\x48\xcd\xc9\xc9\x07\x00".to_vec()),
        Just(b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00".to_vec()),
        Just(b"\xf2\x00\x11\x00\x00".to_vec()),
        Just(b"\xf2\x48\xcd".to_vec()),
        Just(b"\xc9\xc9\x07\x00".to_vec()),
        Just(b"\x03\xe8".to_vec()),
        Just(b"ping".to_vec()),
        prop::collection::vec(any::<u8>(), 0..200),
    ];
    let frame = (first, any::<[u8; 4]>(), payload).prop_map(|(first, key, payload)| {
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..126 => frame.push(0x80 | len as u8),
            len => frame.extend([0xfe, 0, len as u8]),
        }
        frame.extend(key);
        frame.extend(payload.iter().enumerate().map(|(i, octet)| octet ^ key[i % 4]));
        frame
    });
    prop::collection::vec(frame, 0..8).prop_map(|frames| frames.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whole_and_in_pieces_the_same(settings: [u8; 3], frames in frames()) {
        fuzz(&[&settings[..], &frames].concat());
    }

    #[test]
    fn any_octets(data in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz(&data);
    }
}
