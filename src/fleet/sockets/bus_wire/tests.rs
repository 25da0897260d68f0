use proptest::prelude::*;

use super::*;

const MESSAGE: Publication<'_> = Publication { but: 7, kind: 1, compress: true, payload: b"hello" };

fn requests() -> [Request<'static>; 5] {
    [
        Request::Subscribe { topic: 1, ticket: 2, from: 3 << 40, key: "/chat\0room" },
        Request::Unsubscribe { topic: 9 },
        Request::Publish { time: 4, key: "/chat\0r", message: MESSAGE },
        Request::Compress { topic: 1, form: (12, 2), least: 64 },
        Request::Count { topic: 1, count: 2 },
    ]
}

#[test]
fn what_is_written_is_read_in_any_pieces() {
    let mut bytes = Vec::new();
    requests().iter().for_each(|request| request.append_to(&mut bytes));
    for size in 1..bytes.len() {
        let (mut incoming, mut read) = (Incoming::default(), 0);
        for piece in bytes.chunks(size) {
            incoming.room(size)[..piece.len()].copy_from_slice(piece);
            incoming.received(piece.len(), size);
            while let Some(content) = incoming.next_frame().unwrap() {
                assert_eq!(Request::read(content), Some(requests()[read]));
                read += 1;
            }
        }
        assert_eq!(read, requests().len());
    }
    let notices = [
        Notice::Message { topic: 1, ticket: 0, stamp: 5, message: MESSAGE },
        Notice::Compressed { form: (15, 9), payload: b"hello" },
        Notice::Replayed { topic: 1, ticket: 3, stamp: 6, missed: 2 },
        Notice::Missed { topic: 1, ticket: 3, stamp: 4, count: 2 },
        Notice::Taken { count: 1 },
        Notice::Others { topic: 1, count: 3 },
        Notice::Passed { stamp: 7 },
    ];
    for notice in notices {
        let mut bytes = Vec::new();
        notice.append_to(&mut bytes);
        assert_eq!(Notice::read(&bytes[LENGTH..]), Some(notice));
        assert_eq!(
            Notice::read(&bytes[LENGTH..bytes.len() - 1]).is_some(),
            matches!(notice, Notice::Message { .. } | Notice::Compressed { .. })
        );
    }
}

#[test]
fn nonsense_is_none() {
    let publish = |key: &'static str, message| {
        let mut bytes = Vec::new();
        Request::Publish { time: 1, key, message }.append_to(&mut bytes);
        Request::read(&bytes[LENGTH..]).is_some()
    };
    assert!(publish("/a\0b", MESSAGE));
    for key in ["/a", "\0b", "/a\0", "/a\0b\0c", "/a\0\n"] {
        assert!(!publish(key, MESSAGE), "{key:?}");
    }
    assert!(!publish("/a\0b", Publication { kind: 3, ..MESSAGE }));
    assert_eq!(Notice::read(&[b'Z', 8, 2]), None);
    let mut incoming = Incoming::default();
    incoming.room(4).copy_from_slice(&u32::MAX.to_ne_bytes());
    incoming.received(4, 4);
    assert_eq!(incoming.next_frame(), Err(TooLong));
}

#[test]
fn frames_that_were_not_wholly_written_are_written_anew() {
    let mut out = Outgoing::default();
    requests().iter().for_each(|request| request.append_to(out.tail()));
    let whole = out.unsent().to_vec();
    let mut second = Vec::new();
    requests()[0].append_to(&mut second);
    out.advance(second.len() + 3);
    assert_eq!(out.len(), whole.len() - second.len() - 3);
    assert_eq!(out.take(), whole[second.len()..]);
    assert!(out.is_empty() && out.take().is_empty());
}

proptest! {
    #[test]
    fn any_bytes_are_frames_or_nonsense(data in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz(&data);
        let mut framed = (data.len() as u32).to_ne_bytes().to_vec();
        framed.extend(&data);
        fuzz(&framed);
    }
}

/// Reads arbitrary bytes as both sides would.
fn fuzz(data: &[u8]) {
    let mut incoming = Incoming::default();
    for piece in data.chunks(7) {
        incoming.room(16)[..piece.len()].copy_from_slice(piece);
        incoming.received(piece.len(), 16);
        while let Ok(Some(content)) = incoming.next_frame() {
            let (mut again, mut ours) = (Vec::new(), Vec::new());
            if let Some(request) = Request::read(content) {
                request.append_to(&mut again);
                assert_eq!(again[LENGTH..], *content);
            }
            if let Some(notice) = Notice::read(content) {
                notice.append_to(&mut ours);
                assert_eq!(ours[LENGTH..], *content);
            }
        }
    }
}
