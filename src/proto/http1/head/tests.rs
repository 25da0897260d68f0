//! The request head: what is read, and what is refused.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

const LIMITS: HeadLimits = HeadLimits { bytes: 2048, headers: 8 };

fn head(text: &str) -> Head {
    match parse(text.as_bytes(), &LIMITS).unwrap() {
        Parsed::Head { head, .. } => head,
        Parsed::NeedMore => panic!("incomplete: {text:?}"),
    }
}

fn status(text: impl AsRef<[u8]>) -> u16 {
    parse(text.as_ref(), &LIMITS).err().map_or(200, |bad| bad.status)
}

#[test]
fn reads_request_line_and_fields() {
    let text =
        "GET /chat?a=1?b HTTP/1.1\r\nHost: example.com:80\r\nX-A:  one \r\nx-a:two\r\nEmpty:\r\n\r\nrest";
    let Parsed::Head { head, consumed } = parse(text.as_bytes(), &LIMITS).unwrap() else { panic!() };
    assert_eq!(&text[consumed..], "rest");
    assert_eq!((head.method(), head.target(), head.minor_version()), ("GET", "/chat?a=1?b", 1));
    assert_eq!((head.path(), head.query(), head.authority()), ("/chat", Some("a=1?b"), "example.com:80"));
    assert_eq!(head.header("X-a"), Some(&b"one"[..]));
    assert_eq!(head.header_all("x-a").collect::<Vec<_>>(), [b"one", b"two"]);
    assert_eq!(head.header("empty"), Some(&b""[..]));
    assert_eq!(head.header("absent"), None);
    assert_eq!(head.header_at(2), Some(("x-a", &b"two"[..])));
    assert_eq!(head.header_at(4), None);
    assert_eq!(head.as_bytes(), &text.as_bytes()[..consumed]);
}

#[test]
fn every_split_needs_more_and_then_gives_the_same() {
    let text = "GET /a HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n";
    for cut in 0..text.len() {
        assert!(matches!(parse(&text.as_bytes()[..cut], &LIMITS), Ok(Parsed::NeedMore)), "at {cut}");
    }
    assert_eq!(head(text).header("upgrade"), Some(&b"websocket"[..]));
}

#[test]
fn a_long_head_in_pieces_is_found_complete_with_its_last_byte() {
    for end in ["\r\n\r\n", "\n\n", "\n\r\n", "\r\n\n"] {
        let text = format!("\r\nGET /a HTTP/1.1\r\nHost: h\r\nA: {}{end}", "v".repeat(1500));
        for step in 1..5 {
            let mut seen = 0;
            while seen + step < text.len() {
                let parsed = parse_more(&text.as_bytes()[..seen + step], seen, &LIMITS);
                assert!(matches!(parsed, Ok(Parsed::NeedMore)), "{end:?} at {seen}: {parsed:?}");
                seen += step;
            }
            let parsed = parse_more(text.as_bytes(), seen, &LIMITS);
            assert!(matches!(parsed, Ok(Parsed::Head { .. })), "{end:?} in steps of {step}: {parsed:?}");
        }
    }
}

/// Else the end of a head would be searched for in empty lines again and again.
#[test]
fn two_empty_lines_before_the_request_are_ignored_and_no_more() {
    let text = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(status(format!("\r\n\r\n{text}")), 200);
    assert_eq!(status(format!("\n\n\n\n{text}")), 200);
    assert_eq!(status("\r\n\r\n\r"), 400);
    assert_eq!(status(format!("\n\n\n\n\n{text}")), 400);
}

#[test]
fn refuses_what_is_malformed() {
    #[rustfmt::skip]
    let table = [
        "GET /a#b", "GET /#", "GET a", "GET *", "GET ftp://h/", "GET http:///a", "GET http://u@h/", "GET http:h", "GET http://a:x/",
        "GET  /", "G@T /", "GET /a b", "GET /\x01", "GET", "\0",
    ];
    for line in table {
        assert_eq!(status(format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n")), 400, "{line:?}");
    }
    #[rustfmt::skip]
    let table = [
        "", "Host: a\r\nHost: a", "Host: a b", "Host: a/b", "Host: u@h", "Host: h\r\n folded: x", "Host : h",
        "Host: h\r\nA: \x00", "Host: h\r\nA b: c", "Host: h\r\n: c", "Host: h\r\nA", "Host: h\rA: b",
        "Host: h\r\nContent-Length: x", "Host: h\r\nContent-Length: -1", "Host: h\r\nContent-Length:",
        "Host: h\r\nContent-Length: 1\r\nContent-Length: 2", "Host: h\r\nContent-Length: 99999999999999999999",
        "Host: a:b", "Host: a:99999", "Host: [::1", "Host: %zz", "Host: :80", "Host: h\r\nTransfer-Encoding: gzip",
        "Host: h\r\nTransfer-Encoding:", "Host: h\r\nTransfer-Encoding: chunked, gzip",
        "Host: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Host: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 1",
    ];
    for fields in table {
        assert_eq!(status(format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n")), 400, "{fields:?}");
    }
}

#[test]
fn refuses_other_versions() {
    #[rustfmt::skip]
    let table = [
        ("HTTP/1.1", 200), ("HTTP/1.0", 200), ("HTTP/1.2", 200), ("HTTP/1.9", 200), ("HTTP/2.0", 505), ("HTTP/0.9", 505),
        ("HTTP/1.", 400), ("HTTP/1.10", 400), ("HTTP/1.21", 400), ("HTTP/1.a", 400), ("http/1.1", 400), ("HTTX/1.1", 400), ("", 400), ("b HTTP/1.1", 400), ("HTTP/1.1x", 400),
    ];
    for (version, expected) in table {
        assert_eq!(status(format!("GET / {version}\r\nHost: h\r\n\r\n")), expected, "{version:?}");
    }
    assert_eq!(status("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
}

/// RFC 9110 section 2.5.
#[test]
fn a_later_minor_version_is_read_as_the_last_one_known() {
    let text = "\r\nGET /a HTTP/1.7\r\nHost: h\r\n\r\n";
    let head = head(text);
    assert_eq!((head.minor_version(), head.resource(), head.as_bytes()), (1, "/a", text.as_bytes()));
    for cut in 0..text.len() {
        assert!(matches!(parse(&text.as_bytes()[..cut], &LIMITS), Ok(Parsed::NeedMore)), "at {cut}");
    }
}

#[test]
fn the_authority_is_that_of_the_target_or_of_host() {
    for (target, resource, authority, port) in [
        ("/", "/", "h:8", Some(8)),
        ("ws://x:1/a?b", "/a?b", "x:1", Some(1)),
        ("wss://x", "/", "x", Some(443)),
        ("http://[::1]:?q=/", "/?q=/", "[::1]:", Some(80)),
    ] {
        let head = head(&format!("GET {target} HTTP/1.1\r\nHost: h:8\r\n\r\n"));
        assert_eq!((head.resource(), head.authority()), (resource, authority), "{target}");
        assert_eq!(head.host_and_port().and_then(|asked| asked.port), port, "{target}");
    }
    assert_eq!(head("GET / HTTP/1.1\r\nHost: h\r\n\r\n").host_and_port().unwrap().port, None);
    assert_eq!(head("GET / HTTP/1.1\r\nHost:\r\n\r\n").host_and_port(), None);
}

#[test]
fn refuses_garbage_early() {
    assert_eq!(status(b"\x16\x03\x01"), 400, "a TLS ClientHello");
    assert_eq!(status("GET / HTTP/2"), 505);
    assert_eq!(status("GET / HTTP/1.1\r\n folded"), 400);
}

#[test]
fn keeps_its_limits() {
    let with = |target: usize, value: usize, fields: usize| {
        let (target, value) = ("a".repeat(target), "v".repeat(value));
        format!("GET /{target} HTTP/1.1\r\nHost: h\r\nA: {value}\r\n{}\r\n", "B: c\r\n".repeat(fields))
    };
    let fit = LIMITS.bytes - with(0, 0, 0).len();
    assert_eq!(status(with(0, fit, 0)), 200);
    assert_eq!(status(with(0, fit + 1, 0)), 431);
    assert_eq!(status(with(LIMITS.bytes, 0, 0)), 414);
    assert_eq!(status(with(0, 0, LIMITS.headers - 2)), 200);
    assert_eq!(status(with(0, 0, LIMITS.headers - 1)), 431);
    // The same without an end in sight.
    assert_eq!(status("A".repeat(LIMITS.bytes)), 414);
    assert_eq!(status(&with(0, LIMITS.bytes, 0)[..LIMITS.bytes]), 431);
    assert_eq!(status(&with(0, LIMITS.bytes, 0)[..LIMITS.bytes - 1]), 200);
    // More fields than are parsed on the stack.
    let many = HeadLimits { bytes: 1 << 16, headers: 200 };
    let parsed = parse(with(0, 0, 150).as_bytes(), &many);
    assert!(matches!(parsed, Ok(Parsed::Head { head, .. }) if head.header_at(151).is_some()));
}

#[test]
fn finds_tokens_in_lists() {
    let head =
        head("GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, UPGRADE\r\nConnection: ,x ,\r\n\r\n");
    assert!(head.has_token("connection", "upgrade"));
    assert!(head.has_token("Connection", "X"));
    assert!(!head.has_token("connection", "keep"));
    assert!(!head.has_token("connection", ""));
    assert!(!head.has_token("host", "x"));
}

#[test]
fn tells_bodies() {
    for (field, body) in [
        ("A: b", false),
        ("Content-Length: 0", false),
        ("Content-Length: 3", true),
        ("Content-Length: 3, 3", true),
        ("Transfer-Encoding: chunked", true),
        ("Transfer-Encoding: gzip, Chunked", true),
    ] {
        let head = head(&format!("POST / HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n"));
        assert_eq!(head.has_body(), body, "{field}");
    }
}

#[test]
fn http_1_0_needs_no_host() {
    assert_eq!(head("GET / HTTP/1.0\r\n\r\n").authority(), "");
}

#[test]
fn the_bodies_of_the_fuzzer_hold() {
    fuzz(b"\r\nGET http://a?b HTTP/1.1\r\nHost: h\r\n\r\nmore");
    fuzz(b"OPTIONS * HTTP/1.1\nHost: h\nA:\n\n");
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(data: Vec<u8>, target in "[!-~]{1,20}", fields in "([A-Za-z-]{1,9}: ?[ -~]{0,9}\r?\n){0,5}") {
        fuzz(&data);
        fuzz(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes());
    }
}
