//! Messages there and back, by tungstenite and byte by byte, through an echo in each language and style.

use tungstenite::{Bytes, Message};

use crate::client::{
    self, BINARY, CLOSE, PING, PONG, Raw, TEXT, close_of, close_payload, connect, connect_with,
};
use crate::serve;

const ECHOES: [&str; 4] = ["echo", "echo_blocking", "echo_cpp", "echo_rust"];

/// Bytes with a long period.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..size).map(next).collect()
}

#[test]
fn messages_of_every_length_form_come_back_in_all_variants() {
    let mut server = serve(&ECHOES, &[]);
    for name in ECHOES {
        let mut client = connect(&server.address(), &format!("/{name}"));
        for size in [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20, 5 << 20] {
            let bytes = Bytes::from(noise(size));
            client.send(Message::Binary(bytes.clone())).unwrap();
            assert!(client.read().unwrap() == Message::Binary(bytes), "{name}: {size} bytes");
            let text = "ж€𝄞a".repeat(size / 10 + 1);
            client.send(Message::text(text.as_str())).unwrap();
            assert!(client.read().unwrap() == Message::text(text), "{name}: a text of about {size} bytes");
        }
        client.close(client::close_frame(1000, "done")).unwrap();
        assert_eq!(close_of(&mut client).0, 1000, "{name}");
    }
    server.stop();
}

#[test]
fn many_small_messages_at_once_keep_their_order() {
    let server = serve(&ECHOES, &[]);
    for name in ECHOES {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        let burst: Vec<u8> = (0..5000).flat_map(|n| client::frame(TEXT, n.to_string().as_bytes())).collect();
        raw.send(&burst);
        for n in 0..5000 {
            assert_eq!(raw.next_text(), n.to_string(), "{name}");
        }
    }
}

#[test]
fn fragments_with_control_frames_between_are_one_message() {
    let server = serve(&ECHOES, &[]);
    for name in ECHOES {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        raw.frame(0x01, b"one ");
        raw.frame(PING, b"between");
        assert_eq!(
            raw.next().unwrap(),
            client::Frame { first: PONG, payload: b"between".to_vec() },
            "{name}"
        );
        raw.frame(0x00, b"");
        raw.frame(PONG, b"nobody asked");
        raw.frame(0x80, b"message");
        assert_eq!(raw.next_text(), "one message", "{name}");
    }
}

#[test]
fn bytes_may_arrive_one_by_one() {
    let server = serve(&["echo"], &[]);
    let mut raw = Raw::connect(&server.address());
    let head = format!("GET /echo HTTP/1.1\r\nHost: a\r\n{}\r\n", client::UPGRADE);
    let frames =
        [client::frame(TEXT, b"Hello"), client::frame(BINARY, &noise(300)), client::frame(CLOSE, &[])];
    for byte in [head.as_bytes(), &frames.concat()].concat() {
        raw.send(&[byte]);
    }
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.next_text(), "Hello");
    assert_eq!(raw.next().unwrap(), client::Frame { first: BINARY, payload: noise(300) });
    raw.expect_close(1005);
    raw.expect_end();
}

#[test]
fn pings_are_answered_with_their_payload() {
    let server = serve(&["echo", "echo_blocking"], &[]);
    for name in ["echo", "echo_blocking"] {
        let mut client = connect(&server.address(), &format!("/{name}"));
        for payload in [&b""[..], b"x", &[7; 125]] {
            client.send(Message::Ping(payload.into())).unwrap();
            assert_eq!(client.read().unwrap(), Message::Pong(payload.into()), "{name}");
        }
    }
}

#[test]
fn the_peer_closes_and_its_code_comes_back() {
    let mut server = serve(&ECHOES, &[]);
    for name in ECHOES {
        for code in [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4999] {
            let mut raw = Raw::open(&server.address(), &format!("/{name}"));
            raw.text("last");
            raw.frame(CLOSE, &close_payload(code, "because"));
            assert_eq!(raw.next_text(), "last", "{name}: what was sent before is still answered");
            raw.expect_close(code);
            raw.expect_end();
        }
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        raw.frame(CLOSE, &[]);
        assert_eq!(raw.next().unwrap(), client::Frame { first: CLOSE, payload: Vec::new() }, "{name}");
        raw.expect_end();
    }
    server.stop();
}

#[test]
fn goodbye_ends_the_connection() {
    let mut server = serve(&ECHOES, &[]);
    for name in ECHOES {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        assert_eq!(raw.ask("Goodbye"), "Goodbye", "{name}");
        raw.expect_close(1000);
        raw.frame(CLOSE, &close_payload(1000, ""));
        raw.expect_end();
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        raw.frame(BINARY, b"Goodbye");
        assert_eq!(raw.next().unwrap().first, BINARY, "{name}: only the text");
        assert_eq!(raw.ask("still here"), "still here", "{name}");
    }
    server.stop();
}

#[test]
fn a_protocol_error_fails_the_connection_with_its_code() {
    let server = serve(&["echo", "echo_blocking"], &[]);
    // RFC 6455 sections 5.1, 5.2, 5.4, 5.5, 7.4.1, 8.1.
    let cases: [(&str, Vec<u8>, u16); 12] = [
        ("not masked", vec![TEXT, 1, b'a'], 1002),
        ("RSV1 without an extension", client::frame(0xc1, b"a"), 1002),
        ("a reserved opcode", client::frame(0x83, b""), 1002),
        ("a reserved control opcode", client::frame(0x8b, b""), 1002),
        ("a continuation of nothing", client::frame(0x80, b"a"), 1002),
        ("a message within a message", [client::frame(0x01, b"a"), client::frame(TEXT, b"b")].concat(), 1002),
        ("a fragmented ping", client::frame(0x09, b""), 1002),
        ("a ping of 126 bytes", client::frame(PING, &[0; 126]), 1002),
        ("a length that is not minimal", vec![TEXT, 0xfe, 0, 1, 0, 0, 0, 0, b'a'], 1002),
        ("a close of one byte", client::frame(CLOSE, &[3]), 1002),
        ("a close code that is reserved", client::frame(CLOSE, &close_payload(1005, "")), 1002),
        ("a reason that is not UTF-8", client::frame(CLOSE, &[3, 0xe8, 0xff]), 1007),
    ];
    for name in ["echo", "echo_blocking"] {
        for (what, bytes, code) in &cases {
            let mut raw = Raw::open(&server.address(), &format!("/{name}"));
            assert_eq!(raw.ask(what), *what);
            raw.send(bytes);
            raw.expect_close(*code);
            raw.expect_end();
        }
        // The first bad byte of a long text fails it; the rest need not come.
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        raw.send(&[TEXT, 0xfe, 1, 0, 0, 0, 0, 0, b'a', 0xff]);
        raw.expect_close(1007);
        raw.expect_end();
    }
}

#[test]
fn a_subprotocol_is_chosen_if_the_handler_knows_it() {
    let server = serve(&["echo", "echo_blocking", "everything"], &[]);
    let chosen = |resource: &str, offer: &str| {
        let mut raw = Raw::connect(&server.address());
        let head = raw.upgrade(resource, &format!("Sec-WebSocket-Protocol: {offer}\r\n"));
        client::header(&head, "Sec-WebSocket-Protocol").map(str::to_owned)
    };
    for name in ["/echo", "/echo_blocking"] {
        assert_eq!(chosen(name, "other, echo").as_deref(), Some("echo"));
        assert_eq!(chosen(name, "Echo, other"), None, "subprotocols are case-sensitive");
    }
    // The handler's order counts: "chat.v2, chat.v1".
    assert_eq!(chosen("/everything", "chat.v1, chat.v2").as_deref(), Some("chat.v2"));
    assert_eq!(chosen("/everything", "chat.v1").as_deref(), Some("chat.v1"));
    let (mut client, headers) =
        connect_with(&server.address(), "/everything", &[("Sec-WebSocket-Protocol", "chat.v1")]);
    assert_eq!(headers["Sec-WebSocket-Protocol"], "chat.v1");
    assert_eq!(client::ask(&mut client, "protocol"), "protocol: \"chat.v1\"");
}

#[test]
fn compression_is_negotiated_and_used() {
    let server = serve(&["echo", "echo_noext"], &[]);
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let mut raw = Raw::connect(&server.address());
    let head = raw.upgrade("/echo", offer);
    let agreed = client::header(&head, "Sec-WebSocket-Extensions").unwrap();
    assert!(agreed.starts_with("permessage-deflate"), "{agreed}");
    // RFC 7692 section 7.2.3.2: an uncompressed block, then the same text compressed; both are "Hello".
    raw.frame(0xc1, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
    assert_eq!(raw.next_text(), "Hello", "below the threshold it goes uncompressed");
    raw.text(&"a".repeat(1000));
    let frame = raw.next().unwrap();
    assert_eq!(frame.first, 0xc1, "RSV1 says that it is compressed");
    assert!(frame.payload.len() < 100, "{}", frame.payload.len());
    let mut inflater = flate2::Decompress::new(false);
    let mut text = Vec::with_capacity(2000);
    let input = [&frame.payload[..], &[0, 0, 0xff, 0xff]].concat();
    inflater.decompress_vec(&input, &mut text, flate2::FlushDecompress::Sync).unwrap();
    assert_eq!(text, "a".repeat(1000).as_bytes());
    let mut raw = Raw::connect(&server.address());
    let head = raw.upgrade("/echo_noext", offer);
    assert_eq!(client::header(&head, "Sec-WebSocket-Extensions"), None);
    raw.text(&"a".repeat(1000));
    assert_eq!(raw.next().unwrap().first, TEXT);
    drop(server);
    let server = serve(&["echo"], &["-odeflate=false"]);
    let head = Raw::connect(&server.address()).upgrade("/echo", offer);
    assert_eq!(client::header(&head, "Sec-WebSocket-Extensions"), None);
}
