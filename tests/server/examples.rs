//! Each example of `plugins/` does what its first comment says.

use std::time::{Duration, Instant};

use tungstenite::Message;

use crate::client::{
    self, CLOSE, Raw, ask, close_of, close_payload, connect, connect_with, header, next_text,
};
use crate::serve;

#[test]
fn close_with_the_code_and_reason_of_a_text() {
    let server = serve(&["close"], &[]);
    for (text, code, reason) in [
        ("3001 so long", 3001, "so long"),
        ("1000", 1000, ""),
        ("1005", 1005, ""),
        ("1006 never sent", 1011, "expected CODE REASON"),
        ("what?", 1011, "expected CODE REASON"),
        ("1005 a reason needs a code", 1011, "expected CODE REASON"),
    ] {
        let mut client = connect(&server.address(), "/close");
        client.send(Message::text(text)).unwrap();
        assert_eq!(close_of(&mut client), (code, reason.to_owned()), "{text}");
    }
}

#[test]
fn close_answers_with_the_same_code_and_reason() {
    let server = serve(&["close"], &[]);
    let mut raw = Raw::open(&server.address(), "/close");
    raw.frame(CLOSE, &close_payload(4001, "ж"));
    assert_eq!(raw.expect_close(4001), "ж");
    raw.expect_end();
    let mut raw = Raw::open(&server.address(), "/close");
    raw.frame(CLOSE, &[]);
    raw.expect_close(1005);
    raw.expect_end();
}

#[test]
fn origin_check_accepts_only_example_com() {
    let server = serve(&["origin_check"], &[]);
    let (mut client, _) =
        connect_with(&server.address(), "/origin_check", &[("Origin", "http://example.com")]);
    assert_eq!(next_text(&mut client), "origin_check_wsh is called for /origin_check, ");
    assert_eq!(close_of(&mut client).0, 1000);
    for origin in
        ["", "Origin: http://example.com.evil.org\r\n", "Origin: null\r\n", "Origin: HTTP://EXAMPLE.COM\r\n"]
    {
        let mut raw = Raw::connect(&server.address());
        let request = format!("GET /origin_check HTTP/1.1\r\nHost: a\r\n{}{origin}\r\n", client::UPGRADE);
        raw.send(request.as_bytes());
        assert_eq!(raw.answer().status, 403, "{origin}");
    }
}

#[test]
fn cookie_sets_what_the_query_says() {
    let server = serve(&["cookie"], &[]);
    let cookies = |query: &str| -> Vec<String> {
        let mut raw = Raw::connect(&server.address());
        let head = raw.upgrade(&format!("/cookie{query}"), "");
        raw.expect_close(1000);
        let lines = head.lines().filter_map(|line| line.strip_prefix("Set-Cookie: "));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(cookies("?set"), ["foo=bar; Max-Age=86400"]);
    assert_eq!(cookies("?set_httponly"), ["httpOnlyFoo=bar; Max-Age=86400; httpOnly"]);
    assert_eq!(cookies("?clear")[0], "foo=0; Max-Age=0");
    assert!(cookies("").is_empty());
}

#[test]
fn hsts_adds_its_header_and_says_hello() {
    let server = serve(&["hsts"], &[]);
    let mut raw = Raw::connect(&server.address());
    let head = raw.upgrade("/hsts", "");
    assert_eq!(header(&head, "Strict-Transport-Security"), Some("max-age=86400"));
    assert_eq!(raw.next_text(), "Hello");
    raw.expect_close(1000);
}

#[test]
fn internal_error_and_the_two_ways_to_drop() {
    let mut server = serve(&["internal_error", "abort", "abort_handshake"], &[]);
    let mut raw = Raw::open(&server.address(), "/internal_error");
    raw.expect_close(1011);
    let mut raw = Raw::open(&server.address(), "/abort");
    raw.expect_end();
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("GET /abort_handshake HTTP/1.1\r\nHost: a\r\n{}\r\n", client::UPGRADE).as_bytes());
    assert_eq!(raw.rest(), b"", "no reply at all");
    drop(raw);
    server.stop();
}

#[test]
fn bench_sends_at_the_pace_it_is_told() {
    let server = serve(&["bench"], &[]);
    let mut client = connect(&server.address(), "/bench");
    let begun = Instant::now();
    client.send(Message::text("0.02 4 tick tock")).unwrap();
    for _ in 0..4 {
        assert_eq!(next_text(&mut client), "tick tock");
    }
    assert_eq!(close_of(&mut client).0, 1000);
    // It waits after each of the four.
    assert!(begun.elapsed() >= Duration::from_millis(80), "{:?}", begun.elapsed());
    let mut client = connect(&server.address(), "/bench");
    client.send(Message::text("0 1000 fast")).unwrap();
    assert!((0..1000).all(|_| next_text(&mut client) == "fast"));
    assert_eq!(close_of(&mut client).0, 1000);
    let mut client = connect(&server.address(), "/bench");
    client.send(Message::text("soon")).unwrap();
    assert_eq!(close_of(&mut client).0, 1011);
    // A peer that leaves is noticed while it waits: the thread does not stay for an hour.
    let mut client = connect(&server.address(), "/bench");
    client.send(Message::text("3600 2 x")).unwrap();
    assert_eq!(next_text(&mut client), "x");
    client.close(client::close_frame(1000, "")).unwrap();
    assert_eq!(close_of(&mut client).0, 1000);
}

#[test]
fn benchmark_helper_measures_both_directions() {
    let server = serve(&["benchmark_helper"], &[]);
    let mut client = connect(&server.address(), "/benchmark_helper");
    for size in [0, 1, 100, 3 << 20] {
        client.send(Message::text(format!("receive {size}"))).unwrap();
        let Message::Binary(bytes) = client.read().unwrap() else { panic!("expected a binary message") };
        assert!(bytes.len() == size && bytes.iter().all(|byte| *byte == b'a'), "{size}");
        client.send(Message::text("send 1")).unwrap();
        client.send(Message::binary(bytes)).unwrap();
        assert_eq!(next_text(&mut client), size.to_string());
    }
    client.send(Message::text("send 0")).unwrap();
    assert_eq!(ask(&mut client, "b"), "1", "not verified");
    client.send(Message::text("send 1")).unwrap();
    client.send(Message::text("ab")).unwrap();
    assert_eq!(close_of(&mut client).0, 1011);
    let mut client = connect(&server.address(), "/benchmark_helper");
    client.send(Message::text("dance")).unwrap();
    assert_eq!(close_of(&mut client).0, 1011);
}
