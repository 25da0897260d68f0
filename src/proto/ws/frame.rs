//! Frame headers on the wire (RFC 6455 5.2): decoding a client's, encoding a
//! server's. Knows one header at a time; the order of frames is `message`'s.

use crate::proto::ws::close::Violation;
use crate::proto::ws::mask::Mask;

/// The longest header of a client's frame: two octets, a 64-bit length, the masking key.
pub const MAX_HEADER: usize = 14;

/// The longest payload of a control frame (RFC 6455 5.5).
pub const MAX_CONTROL: usize = 125;

/// What a frame carries (RFC 6455 5.2, 11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of the message that was begun.
    Continuation = 0,
    /// A text message or its first fragment.
    Text = 1,
    /// A binary message or its first fragment.
    Binary = 2,
    /// The closing handshake.
    Close = 8,
    /// Wants a Pong.
    Ping = 9,
    /// Answers a Ping.
    Pong = 10,
}

impl Opcode {
    /// Whether the frame stands outside messages (RFC 6455 5.5: the highest bit of the opcode).
    #[inline]
    pub fn is_control(self) -> bool {
        self as u8 & 8 != 0
    }
}

/// The header of a client's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The last fragment of its message.
    pub fin: bool,
    /// The first fragment of a compressed message (RFC 7692 6).
    pub rsv1: bool,
    /// What it carries.
    pub opcode: Opcode,
    /// Octets of payload that follow; below 2^63.
    pub len: u64,
    /// The key of the payload.
    pub mask: Mask,
}

/// Decodes the header at the start of `input`: the header and its length, or `None` if it is not complete
/// yet. A wrong header is refused with the first octet that shows it. `rsv1` says whether an extension
/// uses that bit.
pub fn decode(input: &[u8], rsv1: bool) -> Result<Option<(FrameHeader, usize)>, Violation> {
    let Some((&first, rest)) = input.split_first() else { return Ok(None) };
    let (fin, rsv1, opcode) = check_first(first, rsv1)?;
    let Some((&second, rest)) = rest.split_first() else { return Ok(None) };
    // RFC 6455 5.1: a server closes upon a frame that is not masked.
    if second & 0x80 == 0 {
        return Err(Violation::of_protocol("frame is not masked"));
    }
    // RFC 6455 5.5: control frames have a payload of 125 octets or less.
    if opcode.is_control() && second & 0x7f > 125 {
        return Err(Violation::of_protocol("control frame over 125 octets"));
    }
    let (len, rest, before_key) = match second & 0x7f {
        126 => {
            let Some((&octets, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
            let len = u64::from(u16::from_be_bytes(octets));
            // RFC 6455 5.2: the minimal number of octets must be used.
            if len < 126 {
                return Err(Violation::of_protocol("length not in its shortest form"));
            }
            (len, rest, 4)
        }
        127 => {
            let Some((&octets, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
            let len = u64::from_be_bytes(octets);
            // RFC 6455 5.2: the most significant bit must be 0.
            if len >> 63 != 0 {
                return Err(Violation::of_protocol("length over 63 bits"));
            }
            if len <= 0xffff {
                return Err(Violation::of_protocol("length not in its shortest form"));
            }
            (len, rest, 10)
        }
        short => (u64::from(short), rest, 2),
    };
    let Some((&key, _)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    Ok(Some((FrameHeader { fin, rsv1, opcode, len, mask: Mask::new(key) }, before_key + 4)))
}

/// Decodes the header of a frame that is a whole text or binary message and uses no extension: opcode, octets of
/// payload, key, and octets of the header. `None` for any other frame, and for what is wrong or incomplete: that is
/// `decode`'s.
#[inline]
pub fn decode_simple(input: &[u8]) -> Option<(Opcode, usize, Mask, usize)> {
    let (first, len, key, header) = match *input {
        [first, second @ 0x80..=0xfd, a, b, c, d, ..] => (first, usize::from(second & 0x7f), [a, b, c, d], 6),
        [first, 0xfe, e, f, a, b, c, d, ..] => {
            (first, usize::from(u16::from_be_bytes([e, f])), [a, b, c, d], 8)
        }
        [first, 0xff, 0, 0, 0, 0, e, f, g, h, a, b, c, d, ..] => {
            (first, u32::from_be_bytes([e, f, g, h]) as usize, [a, b, c, d], 14)
        }
        _ => return None,
    };
    let opcode = match first {
        0x81 => Opcode::Text,
        0x82 => Opcode::Binary,
        _ => return None,
    };
    // RFC 6455 5.2: the minimal number of octets must be used.
    let shortest = encoded_len(len) + 4 == header;
    shortest.then_some((opcode, len, Mask::new(key), header))
}

/// The length of the header that `encode` writes.
#[inline]
pub fn encoded_len(len: usize) -> usize {
    match len {
        0..126 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// The same as [`encode`] for a whole message of fewer than 126 octets.
#[inline(always)]
pub fn encode_short(out: &mut Vec<u8>, opcode: Opcode, len: u8) {
    // Not as a slice: the copy would be a call.
    out.push(opcode as u8 | 0x80);
    out.push(len);
}

/// Appends a server's frame header: not masked (RFC 6455 5.1), the length in its shortest form.
#[inline]
pub fn encode(out: &mut Vec<u8>, opcode: Opcode, fin: bool, rsv1: bool, len: usize) {
    let first = opcode as u8 | u8::from(fin) << 7 | u8::from(rsv1) << 6;
    match len {
        0..126 => out.extend_from_slice(&[first, len as u8]),
        126..=0xffff => {
            let [high, low] = (len as u16).to_be_bytes();
            out.extend_from_slice(&[first, 126, high, low]);
        }
        _ => {
            out.extend_from_slice(&[first, 127]);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

#[inline]
fn check_first(first: u8, rsv1_used: bool) -> Result<(bool, bool, Opcode), Violation> {
    let (fin, rsv1) = (first & 0x80 != 0, first & 0x40 != 0);
    // RFC 6455 5.2: a reserved bit without an extension that defines it fails the connection.
    if first & 0x30 != 0 || (rsv1 && !rsv1_used) {
        return Err(Violation::of_protocol("reserved bit set"));
    }
    let opcode = match first & 0x0f {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        _ => return Err(Violation::of_protocol("reserved opcode")),
    };
    // RFC 7692 6: RSV1 belongs to the first fragment of a message, and not to control frames.
    if rsv1 && !matches!(opcode, Opcode::Text | Opcode::Binary) {
        return Err(Violation::of_protocol("RSV1 on a frame that begins no message"));
    }
    // RFC 6455 5.5: control frames are not fragmented.
    if opcode.is_control() && !fin {
        return Err(Violation::of_protocol("fragmented control frame"));
    }
    Ok((fin, rsv1, opcode))
}

/// Any octets decode without a panic, a complete header is the same whatever follows it, and an error
/// stays the same when more arrives.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((&settings, input)) = data.split_first() else { return };
    let rsv1 = settings & 1 != 0;
    let whole = decode(input, rsv1);
    for cut in 0..input.len().min(MAX_HEADER + 2) {
        match decode(&input[..cut], rsv1) {
            Ok(None) => {}
            decided => assert_eq!(decided, whole),
        }
    }
    if let Ok(Some((header, consumed))) = whole {
        assert!(consumed <= MAX_HEADER && header.len >> 63 == 0);
        // A server's header of the same frame is the client's without mask bit and key.
        let mut encoded = Vec::new();
        encode(&mut encoded, header.opcode, header.fin, header.rsv1, header.len as usize);
        encoded[1] |= 0x80;
        assert_eq!(&encoded, &input[..consumed - 4]);
    }
    if let Some((opcode, len, mask, header)) = decode_simple(input) {
        let simple = FrameHeader { fin: true, rsv1: false, opcode, len: len as u64, mask };
        assert_eq!(whole, Ok(Some((simple, header))));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn why(input: &[u8]) -> &'static str {
        decode(input, false).unwrap_err().why
    }

    #[test]
    fn lengths_of_every_form() {
        // RFC 6455 5.2: 7 bits, 7+16 bits, 7+64 bits; each at both ends of its range.
        let key = [1, 2, 3, 4];
        for (octets, len) in [
            (&[0x80u8][..], 0u64),
            (&[0xfd], 125),
            (&[0xfe, 0, 126], 126),
            (&[0xfe, 0xff, 0xff], 65535),
            (&[0xff, 0, 0, 0, 0, 0, 1, 0, 0], 65536),
            (&[0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], i64::MAX as u64),
        ] {
            let input = [&[0x82], octets, &key, b"payload"].concat();
            let (header, consumed) = decode(&input, false).unwrap().unwrap();
            assert_eq!((header.len, header.mask), (len, Mask::new(key)));
            assert_eq!(consumed, 1 + octets.len() + 4);
            for cut in 0..consumed {
                assert_eq!(decode(&input[..cut], false), Ok(None), "{len} cut at {cut}");
            }
        }
    }

    #[test]
    fn refused_with_the_first_octet_that_shows_it() {
        assert_eq!(why(&[0xa1]), "reserved bit set");
        assert_eq!(why(&[0x91]), "reserved bit set");
        assert_eq!(why(&[0xc1]), "reserved bit set");
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
            assert_eq!(why(&[0x80 | opcode]), "reserved opcode");
        }
        for opcode in [8, 9, 10] {
            assert_eq!(why(&[opcode]), "fragmented control frame");
            assert_eq!(why(&[0x80 | opcode, 0xfe]), "control frame over 125 octets");
        }
        assert_eq!(why(&[0x81, 0x05]), "frame is not masked");
        assert_eq!(why(&[0x81, 0xfe, 0, 125]), "length not in its shortest form");
        assert_eq!(why(&[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]), "length not in its shortest form");
        assert_eq!(why(&[0x81, 0xff, 0x80, 0, 0, 0, 0, 1, 0, 0]), "length over 63 bits");
    }

    #[test]
    fn rsv1_where_an_extension_uses_it() {
        assert!(decode(&[0xc1, 0x80, 0, 0, 0, 0], true).unwrap().unwrap().0.rsv1);
        for first in [0xc0, 0xc8, 0xc9, 0xca] {
            assert!(decode(&[first], true).is_err(), "{first:02x}");
        }
    }

    /// RFC 6455 5.7: the examples of unmasked (server) frames.
    #[test]
    fn encodes_the_examples() {
        let encoded = |opcode, fin, len| {
            let mut out = Vec::new();
            encode(&mut out, opcode, fin, false, len);
            assert_eq!(out.len(), encoded_len(len));
            out
        };
        assert_eq!(encoded(Opcode::Text, true, 5), [0x81, 0x05]);
        assert_eq!(encoded(Opcode::Text, false, 3), [0x01, 0x03]);
        assert_eq!(encoded(Opcode::Continuation, true, 2), [0x80, 0x02]);
        assert_eq!(encoded(Opcode::Ping, true, 5), [0x89, 0x05]);
        assert_eq!(encoded(Opcode::Binary, true, 256), [0x82, 0x7e, 0x01, 0x00]);
        // And both ends of the 16-bit form.
        assert_eq!(encoded(Opcode::Binary, true, 126), [0x82, 0x7e, 0x00, 0x7e]);
        assert_eq!(encoded(Opcode::Binary, true, 65535), [0x82, 0x7e, 0xff, 0xff]);
        assert_eq!(encoded(Opcode::Binary, true, 65536), [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    proptest! {
        #[test]
        fn holds_for_any_octets(data in proptest::collection::vec(any::<u8>(), 0..20)) {
            fuzz(&data);
        }
    }
}
