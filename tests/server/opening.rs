//! The opening handshake through the real server, byte by byte, and other requests.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::client::{self, Answer, CLOSE, Raw, TEXT, UPGRADE, header};
use crate::daemon::until;
use crate::{Served, serve};

/// Sends a request and reads the answer to the end.
#[track_caller]
fn request(server: &Served, bytes: impl AsRef<[u8]>) -> Answer {
    let mut raw = Raw::connect(&server.address());
    raw.send(bytes.as_ref());
    raw.answer()
}

/// An opening handshake for /echo in which one line is replaced.
fn handshake(line: &str, by: &str) -> String {
    let request = format!("GET /echo HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n");
    assert!(request.contains(line), "{line}");
    request.replace(line, by)
}

#[test]
fn the_answer_is_that_of_the_rfc() {
    let server = serve(&["echo"], &[]);
    let mut raw = Raw::connect(&server.address());
    let head = raw.upgrade("/echo?query", "");
    // RFC 6455 section 1.3, for this key.
    assert_eq!(header(&head, "Sec-WebSocket-Accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(header(&head, "Upgrade"), Some("websocket"));
    assert_eq!(header(&head, "Connection"), Some("Upgrade"));
    assert_eq!(header(&head, "Sec-WebSocket-Protocol"), None);
    assert_eq!(header(&head, "Sec-WebSocket-Extensions"), None);
    assert_eq!(raw.ask("open"), "open");
}

#[test]
fn invalid_handshakes_get_their_status() {
    let mut server = serve(&["echo"], &[]);
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let version = "Sec-WebSocket-Version: 13\r\n";
    for (why, request, status) in [
        ("method", handshake("GET", "PUT"), 405),
        ("HTTP/1.0", handshake("HTTP/1.1", "HTTP/1.0"), 400),
        ("HTTP/2.0", handshake("HTTP/1.1", "HTTP/2.0"), 505),
        ("no host", handshake("Host: localhost\r\n", ""), 400),
        ("two hosts", handshake("Host: localhost\r\n", "Host: a\r\nHost: b\r\n"), 400),
        ("a fragment", handshake("/echo", "/echo#part"), 400),
        ("no Connection", handshake("Connection: Upgrade\r\n", ""), 400),
        ("no key", handshake(key, ""), 400),
        ("a short key", handshake("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400),
        ("two keys", handshake(key, &format!("{key}{key}")), 400),
        ("no version", handshake(version, ""), 400),
        ("a body", handshake("Host", "Content-Length: 1\r\nHost"), 400),
        ("not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\x03\x03\r\n\r\n".to_owned(), 400),
        ("a folded line", handshake("Host: localhost\r\n", "Host: localhost\r\n folded\r\n"), 400),
        ("no handler", handshake("/echo", "/nothing"), 404),
        ("a part of a name", handshake("/echo", "/ech"), 404),
        ("a name and more", handshake("/echo", "/echo/more"), 404),
        ("another case", handshake("/echo", "/Echo"), 404),
        ("the file", handshake("/echo", "/echo_wsh.so"), 404),
    ] {
        let mut raw = Raw::connect(&server.address());
        raw.send(request.as_bytes());
        let answer = raw.answer();
        assert_eq!(answer.status, status, "{why}: {answer:?}");
        assert!(
            answer.header("Connection").is_some_and(|value| value.contains("close")),
            "{why}: {answer:?}"
        );
    }
    server.stop();
}

#[test]
fn another_version_gets_ours() {
    let server = serve(&["echo"], &[]);
    for version in ["0", "8", "12", "14", "255"] {
        let answer = request(&server, handshake("Version: 13", &format!("Version: {version}")));
        assert_eq!(answer.status, 426);
        assert_eq!(answer.header("Sec-WebSocket-Version"), Some("13"));
        assert_eq!(answer.header("Upgrade"), Some("websocket"));
    }
}

#[test]
fn a_plain_get_of_a_resource_gets_426() {
    let server = serve(&["echo"], &[]);
    let answer = request(&server, "GET /echo HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(answer.status, 426, "{answer:?}");
    assert_eq!(answer.header("Upgrade"), Some("websocket"));
}

#[test]
fn tokens_are_found_in_lists_and_in_any_case() {
    let server = serve(&["echo"], &[]);
    let headers = "upgrade: h2c, WebSocket\r\nCONNECTION: keep-alive, UPGRADE\r\nSec-websocket-version:13\r\n\
                   sec-websocket-key:   dGhlIHNhbXBsZSBub25jZQ==  \r\n";
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("GET /echo HTTP/1.1\r\nhost: a\r\n{headers}\r\n").as_bytes());
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.ask("x"), "x");
}

#[test]
fn targets_in_absolute_form() {
    let server = serve(&["echo"], &[]);
    for target in ["ws://localhost/echo", "http://example.com:81/echo?x", "wss://[::1]/echo"] {
        let mut raw = Raw::connect(&server.address());
        raw.upgrade(target, "");
        assert_eq!(raw.ask(target), target);
    }
    drop(server);
    let server = serve(&["echo"], &["--validation-host", "example.com", "--validation-port", "81"]);
    for (target, status) in [
        ("ws://EXAMPLE.com:81/echo", 101),
        ("/echo", 101),
        ("ws://example.com/echo", 421),
        ("ws://example.com:82/echo", 421),
        ("ws://example.org:81/echo", 421),
        ("ws://example.com.evil.org:81/echo", 421),
    ] {
        let mut raw = Raw::connect(&server.address());
        raw.send(handshake("/echo", target).as_bytes());
        assert!(raw.head().starts_with(&format!("HTTP/1.1 {status} ")), "{target}");
    }
}

#[test]
fn a_head_that_is_too_large_is_refused_before_its_end() {
    let server = serve(&["echo"], &["-o", "max_head=1K", "-o", "max_headers=8"]);
    let long = "x".repeat(1200);
    // The rest of the request is never sent.
    assert_eq!(request(&server, format!("GET /echo HTTP/1.1\r\nHost: a\r\nX: {long}")).status, 431);
    assert_eq!(request(&server, format!("GET /{long}")).status, 414);
    let four = "X: y\r\n".repeat(3);
    let mut raw = Raw::connect(&server.address());
    raw.upgrade("/echo", &four);
    assert_eq!(raw.ask("8 headers are allowed"), "8 headers are allowed");
    let five = format!("X: y\r\n{four}");
    assert_eq!(request(&server, format!("GET /echo HTTP/1.1\r\nHost: a\r\n{UPGRADE}{five}\r\n")).status, 431);
}

#[test]
fn frames_immediately_after_the_head_are_served() {
    let server = serve(&["echo", "echo_blocking", "late_accept"], &[]);
    for resource in ["/echo", "/echo_blocking", "/late_accept?accept=5"] {
        let large = vec![b'l'; 300_000];
        let mut raw = Raw::connect(&server.address());
        let head = format!("GET {resource} HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n");
        let frames = [client::frame(TEXT, b"early"), client::frame(TEXT, &large), client::frame(CLOSE, &[])];
        raw.send(&[head.as_bytes(), &frames.concat()].concat());
        assert!(raw.head().starts_with("HTTP/1.1 101 "), "{resource}");
        assert_eq!(raw.next_text(), "early", "{resource}");
        assert!(raw.next().unwrap().payload == large, "{resource}");
        raw.expect_close(1005);
        raw.expect_end();
    }
}

#[test]
fn a_client_that_stops_sending_is_dropped_in_time() {
    let server = serve(&["echo"], &["-o", "handshake_timeout=500ms"]);
    // No bytes: closed without a response. A part of a head, unless that is late on a busy machine: 408.
    assert_eq!(Raw::connect(&server.address()).rest(), b"");
    until("a part of a head is answered", || {
        let mut raw = Raw::connect(&server.address());
        raw.stream.write_all(b"GET /echo HTTP/1.1\r\nHost: a\r\n").is_ok()
            && raw.rest().starts_with(b"HTTP/1.1 408 ")
    });
    // Single bytes do not extend the deadline.
    until("single bytes are answered", || {
        let mut raw = Raw::connect(&server.address());
        let mut answered = Vec::new();
        raw.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        for byte in "GET /echo HTTP/1.1\r\nHost: ".bytes().chain(std::iter::repeat_n(b'a', 500)) {
            if raw.stream.write_all(&[byte]).is_err() {
                break;
            }
            let mut some = [0; 512];
            match raw.stream.read(&mut some) {
                Ok(0) => break,
                Ok(count) => answered.extend_from_slice(&some[..count]),
                Err(_) => {}
            }
        }
        answered.starts_with(b"HTTP/1.1 408 ")
    });
}

#[test]
fn a_request_followed_by_a_half_close_is_answered_completely() {
    let dir = tempfile::tempdir().unwrap();
    let large = vec![b'f'; 20 << 20];
    std::fs::write(dir.path().join("large.bin"), &large).unwrap();
    let server = serve(&["echo"], &["--document-root", dir.path().to_str().unwrap()]);
    let mut raw = Raw::connect(&server.address());
    raw.send(b"GET /large.bin HTTP/1.1\r\nHost: a\r\n\r\n");
    raw.stream.shutdown(Shutdown::Write).unwrap();
    let answer = raw.answer();
    assert_eq!(answer.status, 200);
    assert!(answer.body == large, "{} of {} bytes", answer.body.len(), large.len());
}

#[test]
fn a_disconnected_peer_is_closed() {
    let server = serve(&["echo", "echo_blocking"], &[]);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.worker())).unwrap().count();
    let mut warm = Raw::open(&server.address(), "/echo");
    assert_eq!(warm.ask("x"), "x");
    drop(warm);
    until("the first connection is gone", || !open_sockets(&server));
    let before = descriptors();
    for resource in ["/echo", "/echo_blocking"] {
        for way in ["reset", "half", "whole", "in a frame", "in a head"] {
            let mut raw = match way {
                "in a head" => Raw::connect(&server.address()),
                _ => Raw::open(&server.address(), resource),
            };
            match way {
                "reset" => {
                    socket2::SockRef::from(&raw.stream).set_linger(Some(Duration::ZERO)).unwrap();
                }
                "half" => raw.stream.shutdown(Shutdown::Write).unwrap(),
                "in a frame" => raw.send(&client::frame(TEXT, b"cut off")[..8]),
                "in a head" => raw.send(b"GET /ec"),
                _ => {}
            }
            drop(raw);
        }
    }
    until("all are forgotten", || descriptors() == before);
}

/// Whether the worker has a TCP connection.
fn open_sockets(server: &Served) -> bool {
    let port = server.address().rsplit_once(':').map(|(_, port)| port.parse::<u16>().unwrap()).unwrap();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    // State 01: established, 08: the peer has closed and we have not.
    table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|fields| {
        fields.get(1).is_some_and(|address| address.ends_with(&local))
            && matches!(fields.get(3), Some(&"01" | &"08"))
    })
}

#[test]
fn over_a_unix_socket_and_ipv6() {
    let socket = tempfile::tempdir().unwrap();
    let path = socket.path().join("wshd");
    let host = format!("unix:{}", path.display());
    let mut server = serve(&["everything"], &["-H", &host, "-H", "::1"]);
    let mut raw = Raw::over(client::unix(&path));
    raw.upgrade("/everything", "");
    assert_eq!(raw.ask("remote_address"), "remote_address: 0 family=1 port=0 text=");
    assert_eq!(raw.ask("local_address"), format!("local_address: 0 family=1 port=0 text={}", path.display()));
    drop(raw);
    let port = server.ready.split("[::1]:").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let stream = TcpStream::connect(format!("[::1]:{port}")).unwrap();
    let ours = stream.local_addr().unwrap().port();
    let mut raw = Raw::over(stream);
    raw.upgrade("/everything", "");
    assert_eq!(raw.ask("remote_address"), format!("remote_address: 0 family=6 port={ours} text=::1"));
    assert_eq!(raw.ask("local_address"), format!("local_address: 0 family=6 port={port} text=::1"));
    drop(raw);
    server.stop();
}
