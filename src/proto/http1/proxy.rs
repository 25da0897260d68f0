//! The header of the PROXY protocol, versions 1 and 2, with which a proxy begins a connection to tell whom it relays
//! (the specification is HAProxy's proxy-protocol.txt).
//!
//! Decides nothing: who may send such a header, and who must, is the caller's affair. Reads nothing of it but the
//! client's address and the checksum. Refuses whatever the specification does not allow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A complete header: whom the proxy speaks for, and how many bytes of the input it has. `None`: for itself, or it does
/// not know; then the real address counts.
pub type ProxyHeader = (Option<SocketAddr>, usize);

const V1: &[u8] = b"PROXY ";
/// Section 2.1: the longest line with its CRLF.
const V1_LONGEST: usize = 107;
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Section 2.2: what comes before the addresses.
const V2_FIXED: usize = 16;
/// Section 2.2.3, PP2_TYPE_CRC32C.
const CHECKSUM: u8 = 3;

/// Parses the header at the beginning of `input`, which is everything received so far; `None` if it is not complete,
/// and right so far. An error says why it begins with none: the connection is to be dropped (section 2: receivers must
/// not guess).
pub fn parse(input: &[u8]) -> Result<Option<ProxyHeader>, &'static str> {
    let begins = |with: &[u8]| input.iter().zip(with).all(|(byte, expected)| byte == expected);
    if begins(V2) {
        version_2(input)
    } else if begins(V1) {
        version_1(input)
    } else {
        Err("not a header of the PROXY protocol")
    }
}

/// Section 2.1: `PROXY TCP4 SOURCE DESTINATION PORT PORT CRLF`.
fn version_1(input: &[u8]) -> Result<Option<ProxyHeader>, &'static str> {
    let line = input.get(..V1_LONGEST).unwrap_or(input);
    let Some(end) = memchr::memchr2(b'\r', b'\n', line) else { return incomplete(line) };
    match line.get(end..).unwrap_or_default() {
        [b'\r', b'\n', ..] => {}
        [b'\r'] => return incomplete(line),
        _ => return Err("a line that does not end in CRLF"),
    }
    let text = line.get(V1.len()..end).and_then(|text| std::str::from_utf8(text).ok());
    let text = text.ok_or("a line that is not ASCII")?;
    let consumed = end + 2;
    let mut words = text.split(' ');
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        return Ok(Some((None, consumed)));
    }
    let mut address = || match (family, words.next()) {
        ("TCP4", Some(word)) => word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        // An IPv4 address within is not in the specification's grammar.
        ("TCP6", Some(word)) if !word.contains('.') => word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => None,
    };
    let (source, destination) = (address(), address());
    let (source_port, destination_port) = (words.next().and_then(port), words.next().and_then(port));
    match (source, destination, source_port, destination_port, words.next()) {
        (Some(ip), Some(_), Some(port), Some(_), None) => {
            Ok(Some((Some(SocketAddr::new(ip, port)), consumed)))
        }
        _ => Err("expected PROXY TCP4|TCP6 SOURCE DESTINATION PORT PORT, or PROXY UNKNOWN"),
    }
}

fn incomplete(line: &[u8]) -> Result<Option<ProxyHeader>, &'static str> {
    match line.len() {
        0..V1_LONGEST => Ok(None),
        _ => Err("a line of more than 107 bytes"),
    }
}

/// A decimal number without zeros in front.
fn port(text: &str) -> Option<u16> {
    let canonical = text == "0" || text.starts_with(|first: char| ('1'..='9').contains(&first));
    text.parse().ok().filter(|_| canonical)
}

/// Section 2.2: the signature, version and command, family and transport, a length, so many bytes.
fn version_2(input: &[u8]) -> Result<Option<ProxyHeader>, &'static str> {
    let is_local = match input.get(V2.len()) {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err("an unknown version or command of the PROXY protocol"),
    };
    let Some(&[_, family, high, low]) = input.get(V2.len()..V2_FIXED) else { return Ok(None) };
    let consumed = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    let Some(header) = input.get(..consumed) else { return Ok(None) };
    let block = header.get(V2_FIXED..).unwrap_or_default();
    // LOCAL: the proxy itself, for a health check. The family is ignored, too.
    if is_local {
        return Ok(Some((None, consumed)));
    }
    let too_short = "a block that is too short for its addresses";
    let (client, addresses) = match (family >> 4, family & 0xf) {
        (_, 3..) | (4.., _) => return Err("an unknown family or transport of the PROXY protocol"),
        (0, _) | (_, 0) => return Ok(Some((None, consumed))),
        (1, transport) => {
            let &[a, b, c, d, _, _, _, _, high, low, _, _] = block.get(..12).ok_or(too_short)? else {
                return Err(too_short);
            };
            (at(Ipv4Addr::new(a, b, c, d), [high, low], transport), 12)
        }
        (2, transport) => {
            let (source, rest) = block.split_first_chunk::<16>().ok_or(too_short)?;
            let &[high, low, _, _] = rest.get(16..20).ok_or(too_short)? else { return Err(too_short) };
            (at(Ipv6Addr::from(*source), [high, low], transport), 36)
        }
        // A Unix socket on the proxy's machine.
        _ => (None, 216),
    };
    check_vectors(header, block.get(addresses..).ok_or(too_short)?)?;
    Ok(Some((client, consumed)))
}

/// Only a stream (1) can carry what follows; addresses of another transport say nothing.
fn at(ip: impl Into<IpAddr>, port: [u8; 2], transport: u8) -> Option<SocketAddr> {
    (transport == 1).then(|| SocketAddr::new(ip.into(), u16::from_be_bytes(port)))
}

/// Section 2.2: type, length, value, up to the end. A checksum among them must be right (2.2.3).
fn check_vectors(header: &[u8], mut rest: &[u8]) -> Result<(), &'static str> {
    while let [kind, high, low, after @ ..] = rest {
        let size = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, next) = after.split_at_checked(size).ok_or("a vector that is longer than its header")?;
        if *kind == CHECKSUM {
            let sum: [u8; 4] = value.try_into().map_err(|_| "a checksum that is not 4 bytes")?;
            let start = header.len() - next.len() - sum.len();
            let zeroed = header.iter().enumerate();
            let zeroed = zeroed.map(|(at, byte)| if at.wrapping_sub(start) < 4 { 0 } else { *byte });
            if crc32c(zeroed) != u32::from_be_bytes(sum) {
                return Err("a checksum that is wrong");
            }
        }
        rest = next;
    }
    if rest.is_empty() { Ok(()) } else { Err("a vector that is cut off") }
}

/// RFC 9260 appendix A, bit by bit: a header has a hundred bytes.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| sum >> 1 ^ if sum & 1 != 0 { 0x82f6_3b78 } else { 0 })
    })
}

/// Parses arbitrary bytes; a header is one however it comes in.
#[doc(hidden)]
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let whole = parse(data);
    let Ok(Some((_, consumed))) = whole else { return };
    assert!(consumed <= data.len() && consumed >= 15);
    assert_eq!(parse(&data[..consumed]), whole, "what follows does not matter");
    for cut in [consumed - 1, consumed / 2, consumed / 3, 1, 0] {
        assert_eq!(parse(&data[..cut]), Ok(None), "cut at {cut}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The client that a header names, which must be the whole of the input, however it is cut.
    #[track_caller]
    fn client(header: &[u8]) -> Option<SocketAddr> {
        fuzz(header);
        let request = b"GET / HTTP/1.1\r\n";
        match parse(&[header, request].concat()) {
            Ok(Some((client, consumed))) if consumed == header.len() => client,
            other => panic!("{other:?}: {}", header.escape_ascii()),
        }
    }

    #[track_caller]
    fn refused(header: &[u8]) -> &'static str {
        parse(header).expect_err("expected to be refused")
    }

    fn address(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    /// A version 2 header.
    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        [V2, &[command, family], &(block.len() as u16).to_be_bytes(), block].concat()
    }

    const IPV4: [u8; 12] = [192, 168, 0, 1, 192, 168, 0, 11, 0xdc, 0x04, 0x01, 0xbb];

    #[test]
    fn the_example_of_the_specification() {
        let line = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n";
        assert_eq!(client(line), address("192.168.0.1:56324"));
    }

    #[test]
    fn the_longest_lines_of_the_specification() {
        let v4 = b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n";
        assert_eq!((v4.len(), client(v4)), (56, address("255.255.255.255:65535")));
        let full = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let v6 = format!("PROXY TCP6 {full} {full} 65535 65535\r\n");
        assert_eq!((v6.len(), client(v6.as_bytes())), (104, address(&format!("[{full}]:65535"))));
        let unknown = format!("PROXY UNKNOWN {full} {full} 65535 65535\r\n");
        assert_eq!((unknown.len(), client(unknown.as_bytes())), (107, None));
        assert_eq!(client(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(client(b"PROXY UNKNOWN whatever it is\r\n"), None);
    }

    #[test]
    fn lines_that_are_not_exact() {
        for wrong in [
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\n",
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\r\n",
            "PROXY TCP4 192.168.0.01 192.168.0.11 56324 443\r\n",
            "PROXY TCP4 192.168.0.256 192.168.0.11 56324 443\r\n",
            "PROXY TCP4 192.168.0 192.168.0.11 56324 443\r\n",
            "PROXY TCP4 192.168.0.1 192.168.0.11 056324 443\r\n",
            "PROXY TCP4 192.168.0.1 192.168.0.11 +56324 443\r\n",
            "PROXY TCP4 192.168.0.1 192.168.0.11 65536 443\r\n",
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324\r\n",
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443 \r\n",
            "PROXY TCP4  192.168.0.1 192.168.0.11 56324 443\r\n",
            "PROXY TCP4 ::1 ::1 56324 443\r\n",
            "PROXY TCP6 192.168.0.1 192.168.0.11 56324 443\r\n",
            "PROXY TCP6 ::ffff:192.168.0.1 ::1 56324 443\r\n",
            "PROXY TCP6 1::2::3 ::1 56324 443\r\n",
            "PROXY UDP4 192.168.0.1 192.168.0.11 56324 443\r\n",
            "PROXY unknown\r\n",
            "PROXY \r\n",
            "Proxy TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
            "PROXYTCP4",
            "GET / HTTP/1.1\r\n",
        ] {
            refused(wrong.as_bytes());
        }
        refused(b"PROXY TCP4 192.168.0.\xff 192.168.0.11 56324 443\r\n");
    }

    #[test]
    fn a_line_is_waited_for_up_to_its_longest() {
        let mut line = b"PROXY UNKNOWN ".to_vec();
        line.resize(105, b'x');
        assert_eq!(parse(&line), Ok(None));
        assert_eq!(client(&[&line[..], b"\r\n"].concat()), None);
        line.extend_from_slice(b"xx");
        assert_eq!(refused(&line), "a line of more than 107 bytes");
        *line.last_mut().unwrap() = b'\r';
        assert_eq!(refused(&line), "a line of more than 107 bytes");
    }

    #[test]
    fn binary_headers_name_the_source() {
        assert_eq!(client(&v2(0x21, 0x11, &IPV4)), address("192.168.0.1:56324"));
        let mut ipv6 = [0; 36];
        ipv6[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        ipv6[32..].copy_from_slice(&[0x12, 0x34, 0, 80]);
        assert_eq!(client(&v2(0x21, 0x21, &ipv6)), address("[2001:db8::7]:4660"));
    }

    #[test]
    fn binary_headers_without_an_address_that_counts() {
        assert_eq!(client(&v2(0x20, 0, &[])), None, "LOCAL");
        assert_eq!(client(&v2(0x20, 0xff, b"is skipped")), None, "LOCAL with a block");
        assert_eq!(client(&v2(0x21, 0, b"\x04\0")), None, "UNSPEC");
        assert_eq!(client(&v2(0x21, 0x12, &IPV4)), None, "UDP");
        assert_eq!(client(&v2(0x21, 0x31, &[b'/'; 216])), None, "a Unix socket");
    }

    #[test]
    fn binary_headers_that_are_wrong() {
        for (command, family, block) in [
            (0x11, 0x11, &IPV4[..]), // version 1
            (0x22, 0x11, &IPV4),     // neither LOCAL nor PROXY
            (0x21, 0x41, &IPV4),
            (0x21, 0x13, &IPV4),
            (0x21, 0x11, &IPV4[..11]),
            (0x21, 0x21, &[0; 35]),
            (0x21, 0x31, &[0; 215]),
        ] {
            refused(&v2(command, family, block));
        }
        // As soon as it can be seen.
        refused(&[V2, &[0x31]].concat());
    }

    #[test]
    fn vectors_are_skipped_and_their_checksum_is_not() {
        let block = |vectors: &[u8]| [&IPV4[..], vectors].concat();
        let header = v2(0x21, 0x11, &block(b"\x04\0\x02xx\xea\0\0"));
        assert_eq!(client(&header), address("192.168.0.1:56324"));
        for cut in [&b"\x04"[..], b"\x04\0", b"\x04\0\x02x", b"\x03\0\x03abc"] {
            refused(&v2(0x21, 0x11, &block(cut)));
        }
        let mut header = v2(0x21, 0x11, &block(b"\x04\0\x01x\x03\0\x04\0\0\0\0\x04\0\0"));
        let sum = crc32c(header.iter().copied());
        header[35..39].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(client(&header), address("192.168.0.1:56324"));
        header[16] ^= 1;
        assert_eq!(refused(&header), "a checksum that is wrong");
    }

    #[test]
    fn the_checksum_of_rfc_3720() {
        // Appendix B.4: 32 bytes of zeros, of ones, and counted up; and the usual check value.
        assert_eq!(crc32c([0; 32].into_iter()), 0x8a91_36aa);
        assert_eq!(crc32c([0xff; 32].into_iter()), 0x62a8_ab43);
        assert_eq!(crc32c(0..32), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789".iter().copied()), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn any_bytes(version_2: bool, bytes: Vec<u8>) {
            fuzz(&[if version_2 { V2 } else { V1 }, &bytes].concat());
            fuzz(&bytes);
        }
    }
}
