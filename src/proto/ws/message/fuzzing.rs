//! The body of the fuzz target: messages that a client encodes, in any fragments and pieces.

use super::*;

/// The input is read as a list of binary messages with their fragments: each must come out as it went in.
pub fn fuzz(data: &[u8]) {
    let Some((&step, mut rest)) = data.split_first() else { return };
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
        expected.push(payload.to_vec());
    }
    for stream in [false, true] {
        assert_eq!(messages(&wire, usize::from(step) + 1, stream), expected, "stream {stream}");
    }
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

fn messages(wire: &[u8], step: usize, stream: bool) -> Vec<Vec<u8>> {
    let (limits, mut codecs) = (Limits::default(), Codecs::new());
    let mut with = Surroundings { limits: &limits, deflate: None, codecs: &mut codecs, stream };
    let (mut decoder, mut messages, mut message) = (Decoder::new(), Vec::new(), Vec::new());
    for piece in wire.chunks(step) {
        let mut piece = piece.to_vec();
        let mut at = 0;
        loop {
            match decoder.next(&mut piece, &mut at, &mut with) {
                Ok(Item::NeedMore) => break,
                Ok(Item::Data { last, body, .. }) => {
                    message.extend_from_slice(body.octets(&piece));
                    if last {
                        messages.push(std::mem::take(&mut message));
                    }
                }
                Ok(Item::Empty) => {}
                Ok(Item::Control { opcode, .. }) => assert_eq!(opcode, Opcode::Pong),
                Err(violation) => panic!("{violation:?}"),
            }
        }
    }
    assert!(decoder.is_between_messages() && decoder.held() == 0);
    messages
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn holds_for_any_messages(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            super::fuzz(&data);
        }
    }
}
