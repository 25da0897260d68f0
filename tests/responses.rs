//! HTTP responses from all sources: complete, and without content for HEAD (RFC 9110 9.3.2).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;

use std::io::{Cursor, Write};

use client::{Answer, Raw, UPGRADE};
use daemon::{Dir, ECHO, Server, until};

/// Rejects with the status that the query names; adds headers of its own.
const REJECT: &str = r#"
    #include <stdlib.h>
    #include <string.h>
    #include <ws_handler.h>
    static int32_t do_extra_handshake(ws_conn conn, ws_handshake *hs)
    {
        ws_bytes query = ws_query(conn);
        int status = query.size ? atoi(query.data) : 403;
        const char *way = query.size ? strchr(query.data, ',') : NULL;
        if (way != NULL && strstr(way, "typed"))
            ws_add_header(hs, "Content-Type", "application/json");
        if (way != NULL && strstr(way, "dated"))
            ws_add_header(hs, "Date", "then");
        if (way != NULL && strstr(way, "body"))
            return ws_reject_body(hs, status, "text/html", "<p>no", 5);
        if (way != NULL && strstr(way, "bare"))
            return ws_reject_body(hs, status, "", "{}", 2);
        return ws_reject(hs, status);
    }
    static void on_message(ws_conn conn, const ws_message *msg) { (void)conn, (void)msg; }
    WS_HANDLER(.name = "reject", .do_extra_handshake = do_extra_handshake, .on_message = on_message);
"#;

#[track_caller]
fn ask(address: &str, request: &str) -> Answer {
    let mut raw = Raw::connect(address);
    raw.send(request.as_bytes());
    raw.answer()
}

fn serve(args: &[&str]) -> (Server, Dir) {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    dir.handler("reject", REJECT);
    let server = Server::start(&dir, &[&["--workers", "1"], args].concat());
    (server, dir)
}

/// Every error response has content for other methods, and the same fields without content for HEAD.
#[test]
fn head_gets_no_content() {
    let args =
        [["-o", "allow_host=localhost"], ["-o", "allow_origin=https://example.com"], ["-o", "max_head=2K"]];
    let (mut server, _dir) = serve(&args.concat());
    let (mut hasty, _dir) = serve(&[&args.concat()[..], &["-o", "handshake_timeout=200ms"]].concat());
    // A client that gets no processor for so long has sent nothing, and gets no answer.
    let too_slow = |request: &str| {
        let mut answer = Vec::new();
        until("the beginning of a request comes in time", || {
            let mut raw = Raw::connect(&hasty.address());
            let _ = raw.stream.write_all(request.as_bytes());
            answer = raw.rest();
            !answer.is_empty()
        });
        Raw::over(Cursor::new(answer)).answer()
    };
    let ask = |status: u16, request: &str| match status {
        408 => too_slow(request),
        _ => ask(&server.address(), request),
    };
    let long = "x".repeat(2100);
    let handshake = |line: &str| format!("{line} HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}");
    for (status, request) in [
        (405, handshake("METHOD /echo") + "\r\n"),
        (403, handshake("METHOD /echo") + "Origin: https://example.org\r\n\r\n"),
        (400, "METHOD / HTTP/1.1\r\nHost: a:b\r\n\r\n".to_owned()),
        (400, "METHOD x HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned()),
        (408, "METHOD / HTTP/1.1\r\nHost: localhost\r\n".to_owned()),
        (414, format!("METHOD /{long}")),
        (421, "METHOD / HTTP/1.1\r\nHost: example.com\r\n\r\n".to_owned()),
        (426, "METHOD /echo HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned()),
        (431, format!("METHOD / HTTP/1.1\r\nHost: localhost\r\nA: {long}")),
        (505, "METHOD / HTTP/2.0\r\nHost: localhost\r\n\r\n".to_owned()),
    ] {
        // Both the handshake and the site require GET.
        let other = if status == 405 { "PUT" } else { "GET" };
        let full = ask(status, &request.replace("METHOD", other));
        let head = ask(status, &request.replace("METHOD", "HEAD"));
        // An upgrade with HEAD is an error.
        assert_eq!((full.status, head.status), (status, status), "{request}");
        assert_eq!(head.body, b"", "{request}");
        let length = full.header("Content-Length").unwrap();
        assert_eq!(full.body.len().to_string(), length, "{request}");
        assert_eq!(head.header("Content-Length"), Some(length), "{request}");
        assert!(!full.body.is_empty() && head.header("Date").is_some(), "{}", head.head);
        assert!(head.header("Connection").is_some_and(|value| value.ends_with("close")), "{}", head.head);
    }
    server.stop();
    hasty.stop();
}

/// A connection over a limit is answered before its request is read, which may be HEAD.
#[test]
fn a_response_before_the_request_has_no_content() {
    let (mut server, _dir) = serve(&["-o", "max_connections_per_address=1"]);
    let held = Raw::open(&server.address(), "/echo");
    let answer = Raw::connect(&server.address()).answer();
    assert_eq!((answer.status, answer.body.len()), (429, 0), "{}", answer.head);
    assert_eq!(answer.header("Content-Length"), Some("0"), "nothing that the client would wait for");
    assert!(answer.header("Retry-After").is_some() && answer.header("Date").is_some(), "{}", answer.head);
    drop(held);
    server.stop();
}

#[test]
fn a_rejection_by_a_handler_is_a_complete_response() {
    let (mut server, _dir) = serve(&[]);
    let reject = |query: &str| {
        let request = format!("GET /reject?{query} HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n");
        let answer = ask(&server.address(), &request);
        for name in ["\r\ncontent-type: ", "\r\ndate: ", "\r\ncontent-length: "] {
            assert!(answer.head.to_lowercase().matches(name).count() <= 1, "{query}: {}", answer.head);
        }
        assert!(answer.header("Date").is_some(), "{query}: {}", answer.head);
        answer
    };
    let text = "text/plain; charset=utf-8";
    for (query, status, content_type, body) in [
        ("403", 403, Some(text), "403 Forbidden\n"),
        // The type is that of the content that is sent.
        ("403,typed", 403, Some(text), "403 Forbidden\n"),
        ("409,body", 409, Some("text/html"), "<p>no"),
        ("409,body,typed", 409, Some("text/html"), "<p>no"),
        ("409,bare,typed", 409, Some("application/json"), "{}"),
        ("409,bare", 409, None, "{}"),
        ("426", 426, Some(text), "426 Upgrade Required\n"),
    ] {
        let answer = reject(query);
        assert_eq!(answer.status, status, "{query}");
        assert_eq!(answer.header("Content-Type"), content_type, "{query}");
        assert_eq!(str::from_utf8(&answer.body), Ok(body), "{query}");
    }
    assert_eq!(reject("403,dated").header("Date"), Some("then"));
    let required = reject("426");
    assert_eq!(required.header("Upgrade"), Some("websocket"));
    assert_eq!(required.header("Sec-WebSocket-Version"), Some("13"));
    assert_eq!(required.header("Connection"), Some("Upgrade, close"));
    assert_eq!(reject("304").body, b"");
    server.stop();
}

#[test]
fn unknown_methods_are_distinguished_from_those_not_allowed() {
    let (mut server, _dir) = serve(&[]);
    for (method, status) in [("POST", 405), ("OPTIONS", 405), ("TRACE", 405), ("BREW", 501), ("get", 501)] {
        for (path, fields) in [("/", ""), ("/echo", UPGRADE)] {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let answer = ask(&server.address(), &request);
            assert_eq!(answer.status, status, "{method} {path}");
            assert_eq!(answer.header("Allow").is_some(), status == 405, "{method} {path}");
        }
    }
    server.stop();
}

#[test]
fn a_port_that_is_not_named_is_that_of_the_scheme() {
    let (mut server, _dir) = serve(&["--validation-port", "443", "-o", "allow_host=example.com:443"]);
    for (target, status) in [
        ("https://example.com/echo", 101),
        ("wss://example.com:443/echo", 101),
        ("wss://example.com:/echo", 101),
        ("ws://example.com:443/echo", 101),
        ("ws://example.com/echo", 421),
        ("https://example.com:8443/echo", 421),
        ("/echo", 101),
    ] {
        let mut raw = Raw::connect(&server.address());
        raw.send(format!("GET {target} HTTP/1.1\r\nHost: example.com:\r\n{UPGRADE}\r\n").as_bytes());
        let head = raw.head();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {head}");
    }
    server.stop();
}

#[test]
fn the_console_is_served_to_allowed_clients_only() {
    let get = |server: &Server, path: &str, fields: &str| {
        ask(
            &server.address(),
            &format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n"),
        )
    };
    let relayed = "X-Forwarded-For: 192.0.2.1\r\n";
    for (args, here, through_a_proxy) in
        [(&[][..], 200, 404), (&["-o", "console=true"], 200, 200), (&["-o", "console=false"], 404, 404)]
    {
        let (mut server, _dir) = serve(args);
        assert_eq!(get(&server, "/console.html", "").status, here, "{args:?}");
        assert_eq!(get(&server, "/console.html", relayed).status, through_a_proxy, "{args:?}");
        let is_named = here == 200;
        assert_eq!(get(&server, "/", "").status, if is_named { 302 } else { 404 }, "{args:?}");
        let answer = get(&server, "/echo", "");
        assert_eq!(
            (answer.status, String::from_utf8_lossy(&answer.body).contains("/console.html")),
            (426, is_named),
            "{args:?}"
        );
        assert_eq!(server.ready.contains("console"), is_named, "{}", server.ready);
        server.stop();
    }
}
