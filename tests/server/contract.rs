//! The contract of `ws_handler.h` where an error of the handler must have no effect or be reported: rejections, NULs,
//! flags, identity, and functions without a connection.

use std::fs;

use nix::sys::signal::Signal;

use crate::client::{Answer, CLOSE, Raw, UPGRADE, close_payload, frame};
use crate::daemon::{Dir, Server, is_alive, until};
use crate::{Served, fixtures, serve};

#[track_caller]
fn answer(server: &Server, resource: &str, headers: &str) -> Answer {
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("GET {resource} HTTP/1.1\r\nHost: a\r\n{UPGRADE}{headers}\r\n").as_bytes());
    raw.answer()
}

fn leave(mut raw: Raw) {
    raw.frame(CLOSE, &close_payload(1000, "bye"));
    while raw.next().is_some() {}
}

/// Serves fixtures with a configuration file.
fn serve_with(names: &[&str], config: &str) -> Served {
    let dir = Dir::new();
    names.iter().for_each(|name| fixtures::add_handler(dir.path(), name, name));
    let file = dir.path().join("w.conf");
    fs::write(&file, config).unwrap();
    let server = Server::start(&dir, &["--workers", "1", "--config", file.to_str().unwrap()]);
    Served { server, _dir: dir }
}

/// In both profiles: a debug build is always strict, a release build with the option.
const STRICT: &[&str] = &["--strict-abi"];

#[test]
fn a_rejection_wins_over_ok_and_a_strict_host_aborts() {
    for how in ["reject", "invalid", "abort"] {
        let server = serve(&["rejects"], STRICT);
        let before = server.worker();
        let mut raw = Raw::connect(&server.address());
        raw.send(format!("GET /rejects?{how} HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
        assert!(!raw.rest().starts_with(b"HTTP/1.1 101"), "{how}");
        until("the worker is gone", || !is_alive(before));
        server.says("rejects: do_extra_handshake of connection ");
        server.says("returned WS_OK after ws_reject() or ws_abort_handshake()");
        server.says("crashed: SIGABRT");
        assert!(!server.log().contains("in no handler"), "{}", server.log());
    }
    let server = serve(&["rejects"], STRICT);
    assert_eq!(answer(&server, "/rejects?accept", "").status, 401, "no way back");
    Raw::open(&server.address(), "/rejects");
}

#[test]
fn a_nul_follows_every_byte_string() {
    let config = "drain_timeout = '1m'\n[handler.'/nul'.settings]\nlimit = 25\nname = 'x'\nempty = ''\n[handler.'/nul_blocking'.settings]\nlimit = 25\n";
    let mut server = serve_with(&["nul", "nul_blocking", "nul_stream"], config);
    for (name, at_least) in [("nul", 150), ("nul_blocking", 150)] {
        for query in ["", "?q=1"] {
            let mut raw = Raw::connect(&server.address());
            let headers = "Origin: http://o.example\r\nX-Empty:\r\nX-Padded: \t a \t \r\nX-Last: z\r\n\
                           Sec-WebSocket-Protocol: b, a\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";
            raw.upgrade(&format!("/{name}{query}"), headers);
            let ping = raw.next().unwrap();
            raw.frame(0x8a, &ping.payload);
            raw.text("one");
            raw.text("two");
            raw.next_text();
            let looked_at: u32 = raw.next_text().parse().unwrap();
            assert!(looked_at > at_least, "{name}: only {looked_at} were looked at");
            let seen = server.log().matches("seen to the end").count();
            leave(raw);
            until("on_close has run", || server.log().matches("seen to the end").count() > seen);
        }
    }
    // Fragments that come in pieces, a full send queue, and connections that move to another process, one of them when
    // its message has ended.
    let mut two = ["/nul", "/nul_stream"].map(|resource| Raw::open(&server.address(), resource));
    let answer_ping = |raw: &mut Raw| {
        while raw.next().unwrap().first != 0x89 {}
        raw.frame(0x8a, b"ping");
    };
    two.iter_mut().for_each(answer_ping);
    let [whole, stream] = &mut two;
    whole.text("fill");
    while whole.next().unwrap().payload != b"writable" {}
    let (begin, end) = (frame(0x01, b"begin"), frame(0x80, &[b'e'; 3000]));
    stream.send(&begin);
    stream.next_text();
    stream.send(&end[..1000]);
    stream.next_text();
    let seen = server.log().matches("seen to the end").count();
    ["nul", "nul_stream"].iter().for_each(|name| fixtures::add_handler(server._dir.path(), name, name));
    server.signal(Signal::SIGHUP);
    server.says("drained");
    stream.send(&end[1000..]);
    until("both have moved", || server.log().matches("seen to the end").count() == seen + 2);
    for mut raw in two {
        answer_ping(&mut raw);
        raw.ask("resumed");
        leave(raw);
    }
    // In absolute form another byte follows the authority.
    let mut raw = Raw::connect(&server.address());
    raw.send(
        format!("GET http://h.example:81/nul?x HTTP/1.1\r\nHost: h.example:81\r\n{UPGRADE}\r\n").as_bytes(),
    );
    assert!(raw.head().starts_with("HTTP/1.1 101"));
    leave(raw);
    server.stop();
    assert!(!server.log().contains("no NUL"), "{}", server.log());
}

#[test]
fn unknown_flags_are_refused_or_ignored_as_their_place_says() {
    let server = serve(&["decoded", "future_flag", "future_hint"], &[]);
    assert_eq!(Raw::open(&server.address(), "/decoded").ask("flags"), "-5 -5");
    assert_eq!(Raw::open(&server.address(), "/future_hint").ask("x"), "x");
    assert_eq!(answer(&server, "/future_flag", "").status, 404);
    server.says("flags: got 0x80000000, which this version does not know: it needs a newer wshd");
}

#[test]
fn user_pointer_and_state_can_be_attached_in_the_handshake() {
    let mut server = serve(&["identity", "identity_blocking"], &["-o", "handshake_timeout=3s"]);
    for name in ["identity", "identity_blocking"] {
        let resource = format!("/{name}");
        let mut raw = Raw::open(&server.address(), &resource);
        assert_eq!(raw.ask("who"), "alice admin", "{name}");
        until("all has run", || {
            let order = raw.ask("order");
            order.starts_with("open") && order.contains(" timer") && order.contains(" posted")
        });
        assert!(!raw.ask("order").contains("cleared"));
        assert_eq!(raw.ask("released"), "1", "nobody");
        assert_eq!(
            [raw.ask("again"), raw.ask("who"), raw.ask("released")],
            ["0", "bob admin", "2"],
            "{name}"
        );
        leave(raw);
        server.says("closed with bob");
        // If a connection never opens, its attached pointer is released and posted functions run.
        assert_eq!(answer(&server, &format!("{resource}?reject"), "").status, 403);
        let mut raw = Raw::open(&server.address(), &resource);
        until("released", || raw.ask("released") == "6");
        assert_eq!(raw.ask("elsewhere"), "0", "all on the thread of the connection");
        leave(raw);
    }
    for (query, finish) in [("late", ""), ("later", "finish"), ("later", "finish in a timer")] {
        let mut other = Raw::open(&server.address(), "/identity");
        until("what it has begun has run", || {
            let order = other.ask("order");
            order.contains(" timer") && order.contains(" posted")
        });
        let mut raw = Raw::connect(&server.address());
        raw.send(format!("GET /identity?{query} HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
        if !finish.is_empty() {
            until("the handshake waits", || other.ask("order").is_empty());
            other.text(finish);
        }
        assert!(raw.head().starts_with("HTTP/1.1 101"), "{query} {finish}");
        assert_eq!(raw.ask("who"), "carol guest", "{query} {finish}");
        until("what was posted runs after on_open", || {
            let order = raw.ask("order");
            order.starts_with("open") && order.contains(" late")
        });
        leave(raw);
        leave(other);
    }
    let mut raw = Raw::open(&server.address(), "/identity");
    let before: u32 = raw.ask("released").parse().unwrap();
    assert_eq!(answer(&server, "/identity?never", "").status, 503);
    until("released after the time is over", || raw.ask("released").parse::<u32>().unwrap() >= before + 2);
    assert_eq!(raw.ask("elsewhere"), "1", "the one that another thread has replaced");
    leave(raw);
    server.stop();
    assert!(!server.log().contains("wrong"), "{}", server.log());
}

#[test]
fn a_handler_runs_in_its_worker_without_a_connection() {
    let mut server = serve(&["worker_life", "worker_life_cpp"], &[]);
    let version = env!("CARGO_PKG_VERSION");
    for name in ["worker_life", "worker_life_cpp"] {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        until("timers and posts have run", || {
            let life = raw.ask("life");
            life == format!("ticks=3 timers=1 posts=1 hangups=0 workers=1 version=wshd {version} extension=0")
        });
        raw.text("post");
        assert_eq!(raw.next_text(), "posted", "{name}");
        assert_eq!(raw.ask("write hello"), "pipe: hello", "{name}");
        assert_eq!(raw.ask("write again"), "pipe: again", "{name}");
        assert_eq!(raw.ask("wrong"), "-5 -5 -5 -5 -5", "{name}");
        raw.text("interval");
        until("an interval of a connection comes again", || raw.ask("counted").parse::<u32>().unwrap() > 2);
        assert_eq!(raw.ask("full"), "256 -7", "{name}");
        assert_eq!(raw.ask("write throw"), "pipe: throw", "{name}");
        assert_eq!(raw.ask("close"), "closed", "{name}");
        until("the end of a pipe is told", || raw.ask("life").contains("hangups=1"));
        assert_eq!(raw.ask("unwatch"), "-5 -5", "{name} has unwatched it");
        leave(raw);
    }
    server.says("exception in the function of a descriptor: on demand");
    server.stop();
    until("both have stopped", || server.log().matches("posts at the end: 2").count() == 2);
}

#[test]
fn a_crash_in_the_function_of_a_watched_descriptor_costs_no_connection() {
    let server = serve(&["worker_life", "echo"], &[]);
    let before = server.worker();
    let mut bystander = Raw::open(&server.address(), "/echo");
    Raw::open(&server.address(), "/worker_life").text("write crash");
    until("the worker is gone", || !is_alive(before));
    server.says("the function of a watched descriptor");
    server.says("worker_life");
    assert_eq!(bystander.ask("still here"), "still here");
    let mut raw = Raw::open(&server.address(), "/worker_life");
    until("on_worker_start has set it up again", || raw.ask("life").contains("ticks=3"));
    assert_eq!(raw.ask("write hello"), "pipe: hello");
}

#[test]
fn a_per_connection_process_has_the_state_of_on_worker_start() {
    let config = "process_timeout = '1m'\n[handler.'/worker_life']\nisolation = 'connection'\n";
    let server = serve_with(&["worker_life"], config);
    let mut two = [(); 2].map(|()| Raw::open(&server.address(), "/worker_life"));
    for raw in &mut two {
        until("timers and posts have run", || raw.ask("life").starts_with("ticks=3 timers=1 posts=1"));
    }
}

#[test]
fn parameters_and_cookies_are_decoded() {
    let server = serve(&["decoded"], &[]);
    let mut raw = Raw::connect(&server.address());
    let cookies = "Cookie: a=1; session=\"s%3Ax\"\r\nCookie: long=0123456789abcdef; b=2\r\n";
    raw.upgrade(
        "/decoded?room=blue%20moon+x&nul=a%00b&long=0123456789abcde&longer=0123456789abcdef&e",
        cookies,
    );
    for (command, reply) in [
        ("param room", "11 blue moon x"),
        ("param e", "0 "),
        ("param none", "-10 unchanged"),
        ("param nul", "-5 unchanged"),
        ("param long", "15 0123456789abcde"),
        ("param longer", "-7 unchanged"),
        ("cookie a", "1 1"),
        ("cookie session", "3 s:x"),
        ("cookie b", "1 2"),
        ("cookie long", "-7 unchanged"),
        ("cookie none", "-10 unchanged"),
    ] {
        assert_eq!(raw.ask(command), reply, "{command}");
    }
}

#[test]
fn raw_octets_are_sent_if_configured() {
    let server = serve_with(&["decoded"], "[handler.'/decoded']\nraw = true\n");
    let teapot = answer(&server, "/decoded?raw", "");
    assert_eq!(teapot.status, 418);
    let mut raw = Raw::open(&server.address(), "/decoded");
    // A frame type that the server itself never sends, then the answer.
    raw.text("raw \u{3}\u{1}x");
    let frame = raw.next().unwrap();
    assert_eq!((frame.first, &frame.payload[..]), (3, &b"x"[..]));
    assert_eq!(raw.next_text(), "WS_OK");
    let server = serve(&["decoded"], &[]);
    let mut raw = Raw::open(&server.address(), "/decoded?raw");
    assert_eq!(raw.ask("raw x"), "WS_E_DENIED");
    server.says("raw reply: WS_E_DENIED");
}

/// With strict_abi the memory is unmapped instead: `wshd test`, the sample kept_message.
#[cfg(debug_assertions)]
#[test]
fn a_strict_host_overwrites_messages_after_the_callback() {
    let server = serve(&["poison"], &[]);
    let mut raw = Raw::open(&server.address(), "/poison");
    assert_eq!(raw.ask("0123456789"), "0123456789");
    // The next data is read to the same place, but does not overwrite all of it.
    let text = raw.ask("look");
    assert!(text == "dbdb" || text == "6c6f", "{text}");
    // Fragments are joined elsewhere, and that memory is freed.
    raw.frame(0x01, b"01234");
    raw.frame(0x80, b"56789");
    assert_eq!(raw.next_text(), "0123456789");
}

#[test]
fn every_negative_result_is_logged_with_handler_callback_and_value() {
    let server = serve(&["negative", "negative_blocking"], &[]);
    for name in ["negative", "negative_blocking"] {
        let told = |callback: &str, value: &str, what: &str| {
            until(&format!("{name}: {callback} {value} is logged"), || {
                server.log().lines().any(|line| {
                    line.contains(&format!("{name}: {callback} of connection "))
                        && line.contains(&format!(" returned {value}; {what}"))
                })
            });
        };
        assert_eq!(answer(&server, &format!("/{name}?handshake"), "").status, 500);
        told("do_extra_handshake", "-7 (WS_E_LIMIT)", "answered with 500");
        Raw::open(&server.address(), &format!("/{name}?open")).expect_close(1011);
        told("on_open", "-77 (an unknown error)", "closed with 1011");
        let mut raw = Raw::open(&server.address(), &format!("/{name}?passive"));
        raw.frame(CLOSE, &close_payload(1000, ""));
        raw.expect_close(1011);
        told("passive_closing_handshake", "-9 (WS_E_FAILED)", "answered with 1011");
    }
    Raw::open(&server.address(), "/negative_blocking?transfer").expect_close(1011);
    server.says("negative_blocking: transfer_data of connection ");
    server.says("returned -3 (WS_E_TIMEOUT); closed with 1011");
}

/// The Close frame has the breach of the contract as its reason.
#[test]
fn a_breach_of_the_contract_is_the_close_reason() {
    let server = serve(&["wrong_place_receive"], STRICT);
    let mut breaking = Raw::open(&server.address(), "/wrong_place_receive");
    breaking.text("go");
    let reason = breaking.expect_close(1011);
    assert!(reason.starts_with("wrong_place_receive: ws_receive(") && reason.len() <= 123, "{reason}");
}
