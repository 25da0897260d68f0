//! The opening handshake after RFC 6455 section 4.2 and RFC 7692 sections 5 and 7.1: requests and
//! responses. Each request is fed whole, and cut at every place.
#![allow(clippy::expect_used)]

use wshd::http;
use wshd::proto::http1::head::{HeadLimits, Parsed, parse};
use wshd::proto::ws::deflate::negotiate::{Config, negotiate};
use wshd::proto::ws::handshake::{check, is_upgrade, write_switching};

const LIMITS: HeadLimits = HeadLimits { bytes: 8192, headers: 50 };

/// The request of RFC 6455 section 1.2, with other lines.
///
/// `line` replaces the request line. An edit `Name: value` replaces the field or adds it, `-Name` removes it,
/// `+Name: value` adds one more.
fn request(line: &str, edits: &[&str]) -> Vec<u8> {
    let mut fields = [
        "Host: server.example.com",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Origin: http://example.com",
        "Sec-WebSocket-Version: 13",
    ]
    .map(str::to_owned)
    .to_vec();
    for edit in edits {
        let name = edit.trim_start_matches(['-', '+']).split(':').next().unwrap_or_default();
        if !edit.starts_with('+') {
            fields.retain(|field| field.split(':').next() != Some(name));
        }
        if !edit.starts_with('-') {
            fields.push(edit.trim_start_matches('+').to_owned());
        }
    }
    format!("{line}\r\n{}\r\n\r\n", fields.join("\r\n")).into_bytes()
}

/// The response of a server that accepts every resource and chooses the first subprotocol.
fn answer(request: &[u8], config: &Config) -> String {
    let mut out = Vec::new();
    match parse(request, &LIMITS) {
        Ok(Parsed::NeedMore) => panic!("incomplete: {}", String::from_utf8_lossy(request)),
        Err(bad) => out = http::error(bad.status, bad.why, &[]).into_bytes(),
        Ok(Parsed::Head { head, consumed }) => {
            assert_eq!(consumed, request.len());
            match check(&head) {
                Err(refusal) => {
                    out = http::error(refusal.status, refusal.why, refusal.headers).into_bytes();
                }
                Ok(opening) => {
                    assert!(is_upgrade(&head));
                    let protocol = opening.protocols.first().map(String::as_str);
                    let extensions =
                        negotiate(&opening.extensions, config).map(|params| params.header_value());
                    write_switching(&mut out, &opening, protocol, extensions.as_deref(), &[]);
                }
            }
        }
    }
    String::from_utf8(out).expect("responses are text")
}

fn status(response: &str) -> u16 {
    response.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line")
}

fn header<'a>(response: &'a str, name: &str) -> Option<&'a str> {
    response.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// A request that is cut is incomplete; the complete one gives the same head however it was cut.
fn feed_at_every_split(request: &[u8], what: &str) {
    let Ok(Parsed::Head { head: whole, .. }) = parse(request, &LIMITS) else { return };
    for cut in 0..request.len() {
        let parsed = parse(&request[..cut], &LIMITS);
        assert!(matches!(parsed, Ok(Parsed::NeedMore)), "{what}: cut at {cut}: {parsed:?}");
    }
    // Bytes after the head are not a part of it.
    let more = [request, b"\x81\x80\0\0\0\0"].concat();
    let Ok(Parsed::Head { head, consumed }) = parse(&more, &LIMITS) else {
        panic!("{what}: with more behind")
    };
    assert_eq!((consumed, head.as_bytes()), (request.len(), whole.as_bytes()), "{what}");
    assert_eq!(head.resource(), whole.resource(), "{what}");
}

/// A row: section, request line, edits, status, and a header that the response has with its value.
type Row = (&'static str, &'static str, &'static [&'static str], u16, &'static str, &'static str);

const GET: &str = "GET /chat HTTP/1.1";
const ACCEPT: &str = "Sec-WebSocket-Accept";
const EXAMPLE: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

#[rustfmt::skip]
const HANDSHAKES: &[Row] = &[
    ("1.3 the example", GET, &[], 101, ACCEPT, EXAMPLE),
    ("4.2.2 5.2", GET, &[], 101, "Upgrade", "websocket"),
    ("4.2.2 5.3", GET, &[], 101, "Connection", "Upgrade"),
    // 4.2.1 item 1: an HTTP/1.1 or higher GET request including a resource
    ("4.2.1 1 root", "GET / HTTP/1.1", &[], 101, ACCEPT, EXAMPLE),
    ("4.2.1 1 query", "GET /chat?room=1 HTTP/1.1", &[], 101, ACCEPT, EXAMPLE),
    ("4.2.1 1 absolute", "GET http://server.example.com/chat HTTP/1.1", &[], 101, ACCEPT, EXAMPLE),
    ("4.2.1 1 absolute ws", "GET ws://server.example.com HTTP/1.1", &[], 101, ACCEPT, EXAMPLE),
    ("4.2.1 1 method", "POST /chat HTTP/1.1", &[], 405, "Allow", "GET"),
    ("4.2.1 1 method", "HEAD /chat HTTP/1.1", &[], 405, "Allow", "GET"),
    ("4.2.1 1 method is case-sensitive", "get /chat HTTP/1.1", &[], 501, "Connection", "close"),
    ("9110 9.1 unknown method", "BREW /chat HTTP/1.1", &[], 501, "Connection", "close"),
    ("9110 2.5 a higher minor version", "GET /chat HTTP/1.2", &[], 101, ACCEPT, EXAMPLE),
    ("4.2.1 1 HTTP/1.0", "GET /chat HTTP/1.0", &[], 400, "Connection", "close"),
    ("4.2.1 1 HTTP/2", "GET /chat HTTP/2.0", &[], 505, "Connection", "close"),
    ("4.2.1 1 no version", "GET /chat", &[], 400, "Connection", "close"),
    ("4.2.1 1 no resource", "GET HTTP/1.1", &[], 400, "Connection", "close"),
    ("4.2.1 1 relative", "GET chat HTTP/1.1", &[], 400, "Connection", "close"),
    ("3 fragment", "GET /chat#a HTTP/1.1", &[], 400, "Connection", "close"),
    ("3 escaped fragment", "GET /chat%23a HTTP/1.1", &[], 101, ACCEPT, EXAMPLE),
    ("4.1 has no body", GET, &["Content-Length: 1"], 400, "Connection", "close"),
    ("4.1 has no body", GET, &["Transfer-Encoding: chunked"], 400, "Connection", "close"),
    ("9112 6.3 not chunked", GET, &["Transfer-Encoding: gzip"], 400, "Connection", "close"),
    ("4.1 length of nothing", GET, &["Content-Length: 0"], 101, ACCEPT, EXAMPLE),
    // 4.2.1 item 2: Host
    ("4.2.1 2 absent", GET, &["-Host"], 400, "Connection", "close"),
    ("4.2.1 2 empty", GET, &["Host: "], 400, "Connection", "close"),
    ("4.2.1 2 twice", GET, &["+Host: other"], 400, "Connection", "close"),
    ("4.2.1 2 invalid", GET, &["Host: a b"], 400, "Connection", "close"),
    ("4.2.1 2 invalid port", GET, &["Host: a:b"], 400, "Connection", "close"),
    ("4.2.1 2 port above 65535", GET, &["Host: a:99999"], 400, "Connection", "close"),
    ("4.2.1 2 open bracket", GET, &["Host: [::1"], 400, "Connection", "close"),
    ("4.2.1 2 not percent-encoded", GET, &["Host: %zz"], 400, "Connection", "close"),
    ("3986 3.2.3 empty port", GET, &["Host: a:"], 101, ACCEPT, EXAMPLE),
    ("4.2.1 2 port", GET, &["Host: [::1]:8080"], 101, ACCEPT, EXAMPLE),
    // 4.2.1 item 3: Upgrade contains websocket, in any case
    ("4.2.1 3 absent", GET, &["-Upgrade"], 400, "Connection", "close"),
    ("4.2.1 3 other", GET, &["Upgrade: h2c"], 400, "Connection", "close"),
    ("4.2.1 3 not a token of its own", GET, &["Upgrade: websockets"], 400, "Connection", "close"),
    ("4.2.1 3 case", GET, &["Upgrade: WebSocket"], 101, ACCEPT, EXAMPLE),
    ("4.2.1 3 list", GET, &["Upgrade: h2c, websocket"], 101, ACCEPT, EXAMPLE),
    // 4.2.1 item 4: Connection contains Upgrade, in any case
    ("4.2.1 4 absent", GET, &["-Connection"], 400, "Connection", "close"),
    ("4.2.1 4 other", GET, &["Connection: keep-alive"], 400, "Connection", "close"),
    ("4.2.1 4 list", GET, &["Connection: keep-alive, upgrade"], 101, ACCEPT, EXAMPLE),
    ("4.2.1 4 two fields", GET, &["Connection: keep-alive", "+Connection: UPGRADE"], 101, ACCEPT, EXAMPLE),
    // 4.2.1 item 5: Sec-WebSocket-Key, 16 bytes in base64
    ("4.2.1 5 absent", GET, &["-Sec-WebSocket-Key"], 400, "Connection", "close"),
    ("4.2.1 5 empty", GET, &["Sec-WebSocket-Key:"], 400, "Connection", "close"),
    ("4.2.1 5 short", GET, &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j"], 400, "Connection", "close"),
    ("4.2.1 5 long", GET, &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQE="], 400, "Connection", "close"),
    ("4.2.1 5 not base64", GET, &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j*Q=="], 400, "Connection", "close"),
    ("4.2.1 5 unpadded", GET, &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"], 400, "Connection", "close"),
    ("11.3.1 twice", GET, &["+Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="], 400, "Connection", "close"),
    ("4.2.1 5 space around", GET, &["Sec-WebSocket-Key:  dGhlIHNhbXBsZSBub25jZQ==  "], 101, ACCEPT, EXAMPLE),
    ("4.2.1 names in any case", GET, &["-Sec-WebSocket-Key", "+SEC-websocket-KEY: dGhlIHNhbXBsZSBub25jZQ=="], 101, ACCEPT, EXAMPLE),
    // 4.2.1 item 6, 4.4: Sec-WebSocket-Version
    ("4.2.1 6 absent", GET, &["-Sec-WebSocket-Version"], 400, "Sec-WebSocket-Version", "13"),
    ("4.2.1 6 twice", GET, &["+Sec-WebSocket-Version: 13"], 400, "Sec-WebSocket-Version", "13"),
    ("4.2.1 6 not a number", GET, &["Sec-WebSocket-Version: x"], 400, "Sec-WebSocket-Version", "13"),
    ("4.3 leading zero", GET, &["Sec-WebSocket-Version: 013"], 400, "Sec-WebSocket-Version", "13"),
    ("4.3 above 255", GET, &["Sec-WebSocket-Version: 269"], 400, "Sec-WebSocket-Version", "13"),
    ("4.4 above 255", GET, &["Sec-WebSocket-Version: 777"], 400, "Sec-WebSocket-Version", "13"),
    ("4.4 list", GET, &["Sec-WebSocket-Version: 13, 8"], 400, "Sec-WebSocket-Version", "13"),
    ("4.4 older", GET, &["Sec-WebSocket-Version: 8"], 426, "Sec-WebSocket-Version", "13"),
    ("4.4 newer", GET, &["Sec-WebSocket-Version: 25"], 426, "Sec-WebSocket-Version", "13"),
    ("4.2.2 4 Upgrade in 426", GET, &["Sec-WebSocket-Version: 0"], 426, "Upgrade", "websocket"),
    ("4.4 before the key", GET, &["Sec-WebSocket-Version: 7", "-Sec-WebSocket-Key"], 426, "Sec-WebSocket-Version", "13"),
    // 4.2.1 item 7: Origin is for the handler to judge
    ("4.2.1 7 absent", GET, &["-Origin"], 101, ACCEPT, EXAMPLE),
    // 4.2.1 item 8, 4.1 item 10: Sec-WebSocket-Protocol
    ("4.2.1 8 one", GET, &["Sec-WebSocket-Protocol: chat"], 101, "Sec-WebSocket-Protocol", "chat"),
    ("4.2.1 8 list", GET, &["Sec-WebSocket-Protocol: b.v2 ,a"], 101, "Sec-WebSocket-Protocol", "b.v2"),
    ("11.3.4 two fields", GET, &["Sec-WebSocket-Protocol: b", "+Sec-WebSocket-Protocol: a"], 101, "Sec-WebSocket-Protocol", "b"),
    ("4.1 10 case matters", GET, &["Sec-WebSocket-Protocol: a, A"], 101, "Sec-WebSocket-Protocol", "a"),
    ("4.1 10 not a token", GET, &["Sec-WebSocket-Protocol: a b"], 400, "Connection", "close"),
    ("4.1 10 not a token", GET, &["Sec-WebSocket-Protocol: a/b"], 400, "Connection", "close"),
    ("4.1 10 not a token", GET, &["Sec-WebSocket-Protocol: \"a\""], 400, "Connection", "close"),
    ("4.1 10 twice", GET, &["Sec-WebSocket-Protocol: a, b, a"], 400, "Connection", "close"),
    ("4.1 10 twice", GET, &["Sec-WebSocket-Protocol: a", "+Sec-WebSocket-Protocol: a"], 400, "Connection", "close"),
    // 4.2.1 item 9, 9.1: Sec-WebSocket-Extensions
    ("9.1 unknown", GET, &["Sec-WebSocket-Extensions: foo; bar=1, mux; \"x\"=y"], 400, "Connection", "close"),
    ("9.1 unknown", GET, &["Sec-WebSocket-Extensions: foo; bar=\"1\", mux"], 101, ACCEPT, EXAMPLE),
    ("9.1 malformed", GET, &["Sec-WebSocket-Extensions: foo; "], 400, "Connection", "close"),
    ("9.1 malformed", GET, &["Sec-WebSocket-Extensions: permessage-deflate; a=\"b c\""], 400, "Connection", "close"),
    ("9.1 malformed", GET, &["Sec-WebSocket-Extensions: permessage-deflate", "+Sec-WebSocket-Extensions: ="], 400, "Connection", "close"),
    // 4.2.1 item 10: other fields are ignored
    ("4.2.1 10 cookies", GET, &["Cookie: a=b", "+User-Agent: x"], 101, ACCEPT, EXAMPLE),
    // RFC 9112 sections 2.2 and 5
    ("9112 2.2 empty line before", "\r\nGET /chat HTTP/1.1", &[], 101, ACCEPT, EXAMPLE),
    ("9112 5.1 space before the colon", GET, &["Cookie : a"], 400, "Connection", "close"),
    ("9112 5.2 folded", GET, &["Cookie: a\r\n b"], 400, "Connection", "close"),
    ("9110 5.5 NUL", GET, &["Cookie: a\0b"], 400, "Connection", "close"),
    ("9110 5.5 CR", GET, &["Cookie: a\rb"], 400, "Connection", "close"),
];

#[test]
fn opening_handshakes() {
    for (section, line, edits, expected, name, value) in HANDSHAKES {
        let request = request(line, edits);
        let what = format!("{section}: {line} {edits:?}");
        let response = answer(&request, &Config::default());
        assert_eq!(status(&response), *expected, "{what}: {response}");
        assert_eq!(header(&response, name), Some(*value), "{what}: {response}");
        assert!(*expected != 101 || response.ends_with("\r\n\r\n"), "{what}: 101 has no body");
        feed_at_every_split(&request, &what);
    }
}

/// Lists whose items are compared with each other have a bound, at which parsing stops.
#[test]
fn lists_have_a_bound() {
    let list = |count: usize| (0..count).map(|number| format!("p{number}")).collect::<Vec<_>>().join(",");
    for name in ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"] {
        let ask = |count| answer(&request(GET, &[&format!("{name}: {}", list(count))]), &Config::default());
        assert_eq!(status(&ask(128)), 101, "{name}");
        assert_eq!(status(&ask(129)), 431, "{name}");
        // Items beyond the bound are ignored.
        let more = format!("{name}: {}, {}, b c", list(100), list(100).replace('p', "q"));
        assert_eq!(status(&answer(&request(GET, &[&more]), &Config::default())), 431, "{name}");
    }
}

/// RFC 6455 section 4.2.2 items 5.5 and 5.6: only offered values are chosen.
#[test]
fn only_offered_values_are_chosen() {
    let response = answer(&request(GET, &[]), &Config::default());
    assert_eq!(header(&response, "Sec-WebSocket-Protocol"), None);
    assert_eq!(header(&response, "Sec-WebSocket-Extensions"), None);
}

/// The parameters of a server without preferences, of one without client context takeover (the default), and of one
/// that sends with a window of 2^11 bytes and requests 2^12.
fn servers() -> [(&'static str, Config); 3] {
    let plain = Config { client_no_context_takeover: false, ..Config::default() };
    let small = Config { server_max_window_bits: 11, client_max_window_bits: 12, ..plain.clone() };
    [("plain", plain), ("default", Config::default()), ("small", small)]
}

#[rustfmt::skip]
const OFFERS: &[(&str, &str, &str, Option<&str>)] = &[
    // 5, 7: offers and their order
    ("7", "plain", "permessage-deflate", Some("")),
    ("5 first of several", "plain", "permessage-deflate; server_max_window_bits=10, permessage-deflate", Some("; server_max_window_bits=10")),
    ("5 fallback", "plain", "permessage-deflate; server_max_window_bits=8, permessage-deflate", Some("")),
    ("5 fallback behind others", "plain", "foo, permessage-deflate; x, permessage-deflate; server_no_context_takeover", Some("; server_no_context_takeover")),
    ("5 all declined", "plain", "permessage-deflate; x, permessage-deflate; y", None),
    ("5 other extensions", "plain", "x-webkit-deflate-frame, permessage-bzip2", None),
    ("5.1 names are matched exactly", "plain", "Permessage-Deflate", None),
    // 7: an offer is declined for an unknown name, an invalid value, a repetition
    ("7 unknown parameter", "plain", "permessage-deflate; foo", None),
    ("7 unknown parameter", "plain", "permessage-deflate; foo=1", None),
    ("7 names are matched exactly", "plain", "permessage-deflate; Server_No_Context_Takeover", None),
    ("7 repeated", "plain", "permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
    ("7 repeated", "plain", "permessage-deflate; client_no_context_takeover; client_no_context_takeover", None),
    ("7 repeated", "plain", "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10", None),
    ("7 repeated", "plain", "permessage-deflate; client_max_window_bits; client_max_window_bits=10", None),
    // 7.1.1.1
    ("7.1.1.1", "plain", "permessage-deflate; server_no_context_takeover", Some("; server_no_context_takeover")),
    ("7.1.1.1 has no value", "plain", "permessage-deflate; server_no_context_takeover=1", None),
    // 7.1.1.2: a hint, and the server may ask for it unasked
    ("7.1.1.2", "plain", "permessage-deflate; client_no_context_takeover", Some("; client_no_context_takeover")),
    ("7.1.1.2 unasked", "default", "permessage-deflate", Some("; client_no_context_takeover")),
    ("7.1.1.2 has no value", "plain", "permessage-deflate; client_no_context_takeover=true", None),
    ("7.1.1 both", "plain", "permessage-deflate; client_no_context_takeover; server_no_context_takeover", Some("; server_no_context_takeover; client_no_context_takeover")),
    // 7.1.2.1
    ("7.1.2.1", "plain", "permessage-deflate; server_max_window_bits=9", Some("; server_max_window_bits=9")),
    ("7.1.2.1", "plain", "permessage-deflate; server_max_window_bits=15", Some("; server_max_window_bits=15")),
    ("7.1.2.1 quoted", "plain", "permessage-deflate; server_max_window_bits=\"10\"", Some("; server_max_window_bits=10")),
    ("7.1.2.1 not to be had", "plain", "permessage-deflate; server_max_window_bits=8", None),
    ("7.1.2.1 smaller than asked", "small", "permessage-deflate; server_max_window_bits=13", Some("; server_max_window_bits=11")),
    ("7.1.2.1 as asked", "small", "permessage-deflate; server_max_window_bits=10", Some("; server_max_window_bits=10")),
    ("7.1.2.1 unasked", "small", "permessage-deflate", Some("; server_max_window_bits=11")),
    ("7.1.2.1 needs a value", "plain", "permessage-deflate; server_max_window_bits", None),
    ("7.1.2.1 below", "plain", "permessage-deflate; server_max_window_bits=7", None),
    ("7.1.2.1 above", "plain", "permessage-deflate; server_max_window_bits=16", None),
    ("7.1.2.1 leading zero", "plain", "permessage-deflate; server_max_window_bits=09", None),
    ("7.1.2.1 leading zero", "plain", "permessage-deflate; server_max_window_bits=010", None),
    ("7.1.2.1 not a number", "plain", "permessage-deflate; server_max_window_bits=a", None),
    ("7.1.2.1 sign", "plain", "permessage-deflate; server_max_window_bits=+9", None),
    ("7.1.2.1 overflow", "plain", "permessage-deflate; server_max_window_bits=4294967305", None),
    // 7.1.2.2: a client that names it can be asked, and its value is a hint
    ("7.1.2.2", "plain", "permessage-deflate; client_max_window_bits", Some("")),
    ("7.1.2.2 default server", "default", "permessage-deflate; client_max_window_bits", Some("; client_no_context_takeover")),
    ("7.1.2.2 hint", "plain", "permessage-deflate; client_max_window_bits=10", Some("; client_max_window_bits=10")),
    ("7.1.2.2 hint of 8", "plain", "permessage-deflate; client_max_window_bits=8", Some("; client_max_window_bits=8")),
    ("7.1.2.2 hint of all", "plain", "permessage-deflate; client_max_window_bits=15", Some("")),
    ("7.1.2.2 asked", "small", "permessage-deflate; client_max_window_bits", Some("; server_max_window_bits=11; client_max_window_bits=12")),
    ("7.1.2.2 smaller than the hint", "small", "permessage-deflate; client_max_window_bits=14", Some("; server_max_window_bits=11; client_max_window_bits=12")),
    ("7.1.2.2 not named, not asked", "small", "permessage-deflate; server_max_window_bits=9", Some("; server_max_window_bits=9")),
    ("7.1.2.2 below", "plain", "permessage-deflate; client_max_window_bits=7", None),
    ("7.1.2.2 above", "plain", "permessage-deflate; client_max_window_bits=16", None),
    ("7.1.2.2 leading zero", "plain", "permessage-deflate; client_max_window_bits=08", None),
    // 7.1.3: its examples
    ("7.1.3", "plain", "permessage-deflate; client_max_window_bits; server_max_window_bits=10", Some("; server_max_window_bits=10")),
    ("7.1.3", "plain", "permessage-deflate; client_max_window_bits; server_max_window_bits=10, permessage-deflate; client_max_window_bits", Some("; server_max_window_bits=10")),
];

#[test]
fn compression_offers() {
    for (section, server, offer, expected) in OFFERS {
        let (_, config) =
            servers().into_iter().find(|(name, _)| name == server).expect("a server of this name");
        let request = request(GET, &[&format!("Sec-WebSocket-Extensions: {offer}")]);
        let response = answer(&request, &config);
        // A declined offer is not an error: the connection opens without the extension.
        assert_eq!(status(&response), 101, "{section}: {offer}: {response}");
        let expected = expected.map(|params| format!("permessage-deflate{params}"));
        assert_eq!(header(&response, "Sec-WebSocket-Extensions"), expected.as_deref(), "{section}: {offer}");
        feed_at_every_split(&request, offer);
    }
}

/// RFC 6455 section 9.1: fields of this name are one list.
#[test]
fn compression_offers_in_several_fields() {
    let offers =
        ["Sec-WebSocket-Extensions: permessage-deflate; x", "+Sec-WebSocket-Extensions: permessage-deflate"];
    let response = answer(&request(GET, &offers), &servers()[0].1);
    assert_eq!(header(&response, "Sec-WebSocket-Extensions"), Some("permessage-deflate"));
}
