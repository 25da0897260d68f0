//! The opening handshake, server side (RFC 6455 section 4.2), and the response that opens the connection.
//!
//! Chooses neither subprotocol nor extensions, and knows no handlers: it checks what the client sent and writes what
//! the caller decided. BadRequests are written by `http`.

use crate::proto::http1::field::{is_token, is_value, list};
use crate::proto::http1::head::{BadRequest, Head, bad, is_known_method};
use crate::proto::ws::extension::{self, Offer};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};
use std::collections::BTreeSet;

/// Subprotocols of a request. Handlers' own are compared with each of them.
pub const MAX_PROTOCOLS: usize = 128;

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// How each answer that accepts begins.
const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: ";
/// Bytes that it seldom exceeds.
const USUAL_ANSWER: usize = 256;

/// A valid opening handshake: what the client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The value of Sec-WebSocket-Accept.
    pub accept: [u8; 28],
    /// Subprotocols in the client's order of preference; at most [`MAX_PROTOCOLS`] tokens without duplicates.
    pub protocols: Vec<String>,
    /// Extensions in the client's order of preference.
    pub extensions: Vec<Offer>,
}

/// What becomes of a handshake that offers subprotocols of which the handler chooses none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmatched {
    /// The answer names none (RFC 6455 section 4.2.2).
    #[default]
    Omit,
    /// It is refused with 400, as by mod_pywebsocket.
    Refuse,
}

/// Whether this request asks for a WebSocket at all.
pub fn is_upgrade(head: &Head) -> bool {
    head.has_token("upgrade", "websocket")
}

/// Checks an opening handshake by RFC 6455 section 4.2.1. A list that is there but empty counts as absent.
pub fn check(head: &Head) -> Result<Opening, BadRequest> {
    // Item 1.
    match head.method() {
        "GET" => {}
        known if is_known_method(known) => {
            return Err(BadRequest { headers: &[("Allow", "GET")], ..BadRequest::new(405, "expected GET") });
        }
        _ => return Err(BadRequest::new(501, "unknown method")),
    }
    if head.minor_version() < 1 {
        return Err(bad("expected HTTP/1.1 or later"));
    }
    if head.has_body() {
        return Err(bad("an opening handshake has no body"));
    }
    // Item 2.
    if head.authority().is_empty() {
        return Err(bad("expected a host"));
    }
    // Items 3 and 4.
    if !is_upgrade(head) {
        return Err(bad("expected Upgrade: websocket"));
    }
    if !head.has_token("connection", "upgrade") {
        return Err(bad("expected Connection: Upgrade"));
    }
    // Item 6, before the key, so that other versions learn which one is spoken here (section 4.4).
    check_version(only(head, "sec-websocket-version"))?;
    // Item 5.
    let key = only(head, "sec-websocket-key").ok_or(bad("expected one Sec-WebSocket-Key"))?;
    if !is_key(key) {
        return Err(bad("expected Sec-WebSocket-Key to be 16 bytes in base64"));
    }
    Ok(Opening {
        accept: accept_key(key),
        // Items 8 and 9.
        protocols: protocols(head)?,
        extensions: extension::parse(head.header_all("sec-websocket-extensions"))?,
    })
}

/// The value of the only field of this name.
fn only<'a>(head: &'a Head, name: &str) -> Option<&'a [u8]> {
    let mut values = head.header_all(name);
    values.next().filter(|_| values.next().is_none())
}

/// Section 4.2.2 item 4: whoever does not ask for version 13 learns that it is the one spoken here. 426 to any other
/// number from 0 to 255 without leading zeros (section 4.3), 400 to what is no version.
fn check_version(value: Option<&[u8]>) -> Result<(), BadRequest> {
    let (status, headers): (_, &[_]) = match value {
        Some(b"13") => return Ok(()),
        Some(value) if is_version(value) => {
            (426, &[("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")])
        }
        _ => (400, &[("Sec-WebSocket-Version", "13")]),
    };
    Err(BadRequest { status, why: "expected Sec-WebSocket-Version: 13", headers })
}

fn is_version(value: &[u8]) -> bool {
    let text = std::str::from_utf8(value).unwrap_or_default();
    text.parse().is_ok_and(|version: u8| version.to_string() == text)
}

fn is_key(key: &[u8]) -> bool {
    let mut nonce = [0; 18];
    matches!(STANDARD.decode_slice(key, &mut nonce), Ok(16))
}

/// Section 4.1 item 10: tokens, all of them different.
fn protocols(head: &Head) -> Result<Vec<String>, BadRequest> {
    let (mut protocols, mut names) = (Vec::new(), BTreeSet::new());
    for element in list(head.header_all("sec-websocket-protocol")) {
        if protocols.len() == MAX_PROTOCOLS {
            return Err(BadRequest::new(431, "more than 128 subprotocols"));
        }
        let name = std::str::from_utf8(element).ok().filter(|name| is_token(name.as_bytes()));
        let name = name.ok_or(bad("malformed Sec-WebSocket-Protocol"))?;
        if !names.insert(name) {
            return Err(bad("a subprotocol is named twice"));
        }
        protocols.push(name.to_owned());
    }
    Ok(protocols)
}

/// The value of Sec-WebSocket-Accept for a Sec-WebSocket-Key (section 4.2.2 item 5.4).
pub fn accept_key(key: &[u8]) -> [u8; 28] {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let mut accept = [0; 28];
    // 20 bytes are 28 digits, always.
    let written = STANDARD.encode_slice(digest, &mut accept);
    debug_assert_eq!(written, Ok(28));
    accept
}

/// Appends the response that opens the connection (section 4.2.2 item 5).
///
/// `extensions` is the value of Sec-WebSocket-Extensions. Headers that would not be valid are left out.
pub fn write_switching(
    out: &mut Vec<u8>,
    opening: &Opening,
    protocol: Option<&str>,
    extensions: Option<&str>,
    headers: &[(String, String)],
) {
    out.reserve(USUAL_ANSWER);
    out.extend_from_slice(SWITCHING);
    out.extend_from_slice(&opening.accept);
    out.extend_from_slice(b"\r\n");
    if let Some(protocol) = protocol {
        write_header(out, "Sec-WebSocket-Protocol", protocol.as_bytes());
    }
    if let Some(extensions) = extensions {
        write_header(out, "Sec-WebSocket-Extensions", extensions.as_bytes());
    }
    for (name, value) in headers {
        write_header(out, name, value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn write_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    if is_token(name.as_bytes()) && is_value(value) {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::proto::http1::head::{HeadLimits, Parsed, parse};
    use proptest::prelude::*;

    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    fn head(text: &str) -> Head {
        match parse(text.as_bytes(), &HeadLimits { bytes: 4096, headers: 32 }).unwrap() {
            Parsed::Head { head, .. } => head,
            Parsed::NeedMore => panic!("incomplete: {text:?}"),
        }
    }

    /// A valid request with more fields.
    fn request(more: &str) -> String {
        format!(
            "GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             {KEY}Sec-WebSocket-Version: 13\r\n{more}\r\n"
        )
    }

    #[test]
    fn accepts_the_example_of_the_rfc() {
        // RFC 6455 sections 1.2 and 1.3.
        let opening = check(&head(&request(
            "Origin: http://example.com\r\nSec-WebSocket-Protocol: chat, superchat\r\n",
        )));
        let opening = opening.unwrap();
        assert_eq!(&opening.accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(opening.protocols, ["chat", "superchat"]);
        assert_eq!(opening.extensions, []);
    }

    #[test]
    fn writes_the_response_of_the_rfc() {
        let opening = check(&head(&request(""))).unwrap();
        let mut out = Vec::new();
        let headers = [("X-A".to_owned(), "1".to_owned()), ("X-B".to_owned(), "1\r\nX-C: 2".to_owned())];
        write_switching(&mut out, &opening, Some("chat"), Some("permessage-deflate"), &headers);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\
             Sec-WebSocket-Extensions: permessage-deflate\r\nX-A: 1\r\n\r\n"
        );
    }

    #[test]
    fn keys_are_16_bytes_in_base64() {
        for (key, valid) in [
            ("dGhlIHNhbXBsZSBub25jZQ==", true),
            ("AAAAAAAAAAAAAAAAAAAAAA==", true),
            ("", false),
            ("dGhlIHNhbXBsZSBub25jZQ", false),
            ("dGhlIHNhbXBsZSBub25jZR==", false), // bits behind the last byte
            ("dGhlIHNhbXBsZSBub25jZQE=", false), // 17 bytes
            ("dGhlIHNhbXBsZSBub25jZQEC", false), // 18 bytes
            ("dGhlIHNhbXBsZSBub25j", false),     // 15 bytes
            ("dGhlIHNhbXBsZSBub25jZQ==dGhlIHNhbXBsZSBub25jZQ==", false),
            ("dGhlIHNhbXBsZSBub25 ZQ==", false),
        ] {
            assert_eq!(is_key(key.as_bytes()), valid, "{key:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_requests_are_answered(more in "(Sec-WebSocket-(Protocol|Extensions|Version|Key): ?[a-d,;=\" ]{0,9}\r\n|Upgrade: h2\r\n|Content-Length: [01]\r\n){0,3}") {
            crate::proto::fuzzing::stream(&[b"\0\0\0", request(&more).as_bytes()].concat());
        }
    }
}
