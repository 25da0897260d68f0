//! The functions of `ws_handler.h` through the real server, each on a command of a client (see
//! `ctests/fixtures/everything.h`), in both styles.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::client::{self, Answer, BINARY, CLOSE, PING, PONG, Raw, TEXT, UPGRADE, close_payload, header};
use crate::daemon::{Dir, Server};
use crate::{Served, serve};

const BOTH: [&str; 2] = ["everything", "everything_blocking"];

fn everything() -> Served {
    serve(&BOTH, &[])
}

#[track_caller]
fn answer(server: &Served, resource: &str, headers: &str) -> Answer {
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("GET {resource} HTTP/1.1\r\nHost: h.example:81\r\n{UPGRADE}{headers}\r\n").as_bytes());
    raw.answer()
}

/// Closes and reads to the end, so that on_close has run.
fn leave(mut raw: Raw) {
    raw.frame(CLOSE, &close_payload(1000, ""));
    while raw.next().is_some() {}
}

#[test]
fn facts_about_the_request_in_the_handshake_and_after() {
    let server = everything();
    for name in BOTH {
        let mut raw = Raw::connect(&server.address());
        let headers = "Origin: http://o.example\r\nSec-WebSocket-Protocol: x, chat.v1\r\nX-One:  1 \r\n\
                       Sec-WebSocket-Extensions: foo; a=\"b\"\r\nSec-WebSocket-Extensions: bar\r\n";
        raw.send(
            format!("GET /{name}?facts HTTP/1.1\r\nHost: h.example:81\r\n{UPGRADE}{headers}\r\n").as_bytes(),
        );
        let head = raw.head();
        let extensions = "foo; a=\"b\", bar";
        for (name, value) in [
            ("X-Method", "GET"),
            ("X-Authority", "h.example:81"),
            ("X-Resource", &format!("/{name}?facts")),
            ("X-Requested-Protocols", "x, chat.v1"),
            ("X-Requested-Extensions", extensions),
            ("X-Headers", "10"),
        ] {
            assert_eq!(header(&head, name), Some(value), "{head}");
        }
        for (command, reply) in [
            ("resource", format!("\"/{name}?facts\"")),
            ("path", format!("\"/{name}\"")),
            ("query", "\"facts\"".into()),
            ("authority", "\"h.example:81\"".into()),
            ("origin", "\"http://o.example\"".into()),
            ("method", "\"GET\"".into()),
            ("header x-ONE", "\"1\"".into()),
            ("header absent", "-".into()),
            ("headers", "10".into()),
            ("header_at 0", "Host=h.example:81".into()),
            ("header_at 10", "0".into()),
            ("requested_protocols", "\"x, chat.v1\"".into()),
            ("requested_extensions", format!("\"{extensions}\"")),
            ("version", "13".into()),
            ("tls_fact 1", "-".into()),
            ("protocol", "\"chat.v1\"".into()),
            ("extensions", "-".into()),
            ("deflate", "0".into()),
            ("worker", "0".into()),
            ("started", "1".into()),
            ("now", "forward".into()),
            ("config absent", "-".into()),
            ("config_at 0", "0".into()),
            ("is_resumed", "0".into()),
            ("close_code", "0".into()),
            ("close_reason", "-".into()),
            ("thread", "same".into()),
        ] {
            let function = command.split(' ').next().unwrap();
            assert_eq!(raw.ask(command), format!("{function}: {reply}"), "{name}");
        }
        let ours = raw.stream.local_addr().unwrap().port();
        let theirs = server.address().split_once(':').unwrap().1.to_owned();
        let remote = format!("remote_address: 0 family=4 port={ours} text=127.0.0.1");
        assert_eq!(raw.ask("remote_address"), remote, "{name}");
        let local = format!("local_address: 0 family=4 port={theirs} text=127.0.0.1");
        assert_eq!(raw.ask("local_address"), local, "{name}");
        let mut bare = Raw::open(&server.address(), &format!("/{name}"));
        for absent in ["query", "origin", "protocol", "requested_protocols", "requested_extensions"] {
            assert_eq!(bare.ask(absent), format!("{absent}: -"), "{name}");
        }
    }
}

#[test]
fn a_resource_seen_in_the_handshake_stays_valid_for_the_life_of_the_connection() {
    let source = r#"
        #include <ws_handler.h>
        static ws_bytes kept;
        static int32_t do_extra_handshake(ws_conn conn, ws_handshake *hs)
        {
            (void)hs;
            kept = ws_resource(conn);
            return WS_OK;
        }
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            (void)msg;
            ws_send(conn, WS_TEXT, kept.data, kept.size);
            ws_send(conn, WS_TEXT, ws_resource(conn).data, ws_resource(conn).size);
            ws_send(conn, WS_TEXT, ws_protocol(conn).data, ws_protocol(conn).size);
        }
        WS_HANDLER(.protocols = "chosen", .do_extra_handshake = do_extra_handshake, .on_message = on_message);
    "#;
    let dir = Dir::new();
    dir.handler("keeps", source);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    // Short and long: in the record itself, and beside it.
    for filling in [10, 70, 90, 300, 3000] {
        let resource = format!("/keeps?{}", "x".repeat(filling));
        let mut raw = Raw::connect(&server.address());
        raw.upgrade(&resource, "Sec-WebSocket-Protocol: chosen, a-longer-one-that-nobody-knows\r\n");
        assert_eq!(raw.ask("kept"), resource);
        assert_eq!(raw.next_text(), resource);
        assert_eq!(raw.next_text(), "chosen");
        leave(raw);
    }
    server.stop();
}

#[test]
fn the_handler_determines_the_reply() {
    let server = everything();
    for name in BOTH {
        let results = |query: &str| -> (String, Vec<String>) {
            let mut raw = Raw::connect(&server.address());
            let offer = "Sec-WebSocket-Protocol: a, chat.v1\r\n";
            let head = raw.upgrade(&format!("/{name}?{query}"), offer);
            let results =
                head.lines().filter_map(|line| line.strip_prefix("X-Result: ").map(str::to_owned)).collect();
            (head, results)
        };
        let (head, got) = results("protocol=a&protocol=b&header=X-Mine:yes&accept");
        assert_eq!(got, ["protocol=0", "protocol=-5", "header=0"]);
        assert_eq!(header(&head, "Sec-WebSocket-Protocol"), Some("a"));
        assert_eq!(header(&head, "X-Mine"), Some("yes"));
        let (head, got) = results("protocol=a&protocol=");
        assert_eq!(got, ["protocol=0"; 2]);
        assert_eq!(header(&head, "Sec-WebSocket-Protocol"), None, "it can be un-chosen");
        // Header injection, and headers of the handshake itself.
        let (head, got) =
            results("header=X-Evil:a%0d%0aX-Injected:b&header=X%20Y:z&header=Upgrade:h2c&header=:x");
        assert_eq!(got, ["header=-5"; 4]);
        assert!(!head.contains("Injected") && !head.contains("h2c"), "{head}");
        let (_, got) = results(&["header=X:y"; 70].join("&"));
        assert!(got.iter().all(|result| result == "header=0"), "{got:?}");
        let (head, _) = results(&["header=X:y"; 70].join("&"));
        assert_eq!(head.lines().filter(|line| line.starts_with("X")).count(), 64, "64 headers are the most");

        let rejected = answer(&server, &format!("/{name}?header=X-Why:no&reject=302"), "");
        assert_eq!((rejected.status, rejected.header("X-Why")), (302, Some("no")));
        let rejected = answer(&server, &format!("/{name}?reject_body=418"), "");
        assert_eq!((rejected.status, &rejected.body[..]), (418, &b"<p>no</p>"[..]));
        assert_eq!(rejected.header("Content-Type"), Some("text/html"));
        assert_eq!(rejected.header("Content-Length"), Some("9"));
        // 200 is not a rejection: the call fails, and its result is an error.
        assert_eq!(answer(&server, &format!("/{name}?reject=200"), "").status, 500);
        assert_eq!(answer(&server, &format!("/{name}?fail"), "").status, 500);
        let mut raw = Raw::connect(&server.address());
        raw.send(format!("GET /{name}?abort HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
        assert_eq!(raw.rest(), b"");
        let mut raw = Raw::open(&server.address(), &format!("/{name}?accept_close=4002"));
        assert_eq!(raw.expect_close(4002), "accepted and closed");
        raw.frame(CLOSE, &close_payload(4002, ""));
        raw.expect_end();
        let mut raw = Raw::open(&server.address(), &format!("/{name}?open=fail"));
        raw.expect_close(1011);
    }
}

#[test]
fn compression_is_configured_and_refused_by_the_handler() {
    let server = everything();
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    for name in BOTH {
        let mut raw = Raw::connect(&server.address());
        let head = raw.upgrade(&format!("/{name}?deflate=10,11,1,1,5,9"), offer);
        let agreed = header(&head, "Sec-WebSocket-Extensions").unwrap().to_owned();
        for part in [
            "server_max_window_bits=10",
            "client_max_window_bits=11",
            "server_no_context_takeover",
            "client_no_context_takeover",
        ] {
            assert!(agreed.contains(part), "{agreed}");
        }
        raw.text("send tiny");
        assert_eq!(raw.next().unwrap().first, TEXT, "below the threshold of 5 bytes");
        raw.text("deflate");
        assert_eq!(raw.next().unwrap().first, 0xc1, "above it");
        raw.text("zeros 1000");
        let compressed = raw.next().unwrap();
        assert!(compressed.first == 0xc2 && compressed.payload.len() < 50, "{compressed:?}");
        raw.text("uncompressed 1000");
        assert_eq!(raw.next().unwrap().payload.len(), 1000, "{name}");
        let head = Raw::connect(&server.address()).upgrade(&format!("/{name}?noext"), offer);
        assert_eq!(header(&head, "Sec-WebSocket-Extensions"), None);
        let head = Raw::connect(&server.address()).upgrade(&format!("/{name}?deflate=8,15,0,0,0,1"), "");
        assert!(head.contains("X-Result: deflate=-5\r\n"), "{head}");
    }
}

#[test]
fn sending_in_every_way() {
    let server = everything();
    for name in BOTH {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        assert_eq!(raw.ask("send ж"), "ж");
        raw.frame(BINARY, b"\x00\xff");
        assert_eq!(raw.next().unwrap().payload, b"\x00\xff");
        assert_eq!(raw.ask("last_opcode"), "last_opcode: 1");
        raw.text("fragments rest");
        // The euro sign, cut within: RFC 6455 section 5.6 checks the message, not the fragments.
        let frames: Vec<_> = (0..3).map(|_| raw.next().unwrap()).collect();
        assert_eq!(frames.iter().map(|frame| frame.first).collect::<Vec<_>>(), [0x01, 0x00, 0x80], "{name}");
        assert_eq!(
            frames.iter().flat_map(|frame| frame.payload.clone()).collect::<Vec<_>>(),
            "€rest".as_bytes()
        );
        raw.text("mixed");
        assert_eq!(raw.next().unwrap().payload, b"mix");
        assert_eq!(raw.next().unwrap().payload, b"ed");
        assert_eq!(raw.next_text(), "mixed: 0 -5", "{name}");
        assert_eq!(raw.ask("bad_utf8"), "bad_utf8: -5");
        assert_eq!(raw.ask("bad_type"), "bad_type: -5");
        let mut released = 0;
        for size in [10, 100_000] {
            raw.text(&format!("owned {size}"));
            assert!(raw.next().unwrap().payload == vec![b'o'; size]);
            released += 1;
            assert_eq!(raw.ask("released"), format!("released: {released}"), "{name}");
        }
        assert_eq!(raw.ask("buffered"), "buffered: 0", "{name}");
    }
}

#[test]
fn pings_and_their_pongs() {
    let server = everything();
    for name in BOTH {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        raw.text("ping are you there");
        let mut seen = [raw.next().unwrap(), raw.next().unwrap()];
        seen.sort_by_key(|frame| frame.first);
        assert_eq!(seen[0].payload, b"ping: 0");
        assert_eq!((seen[1].first, &seen[1].payload[..]), (PING, &b"are you there"[..]));
        raw.frame(PONG, b"nobody asked for this");
        raw.frame(PONG, b"are you there");
        assert_eq!(raw.next_text(), "pong: \"are you there\" rtt", "{name}");
        raw.text("ping_of 125");
        assert!((0..2).any(|_| raw.next().unwrap().payload.len() == 125));
        while raw.ask("ping_of 126") != "ping_of: -5" {}
    }
}

#[test]
fn timers_and_posted_functions() {
    let mut server = everything();
    for name in BOTH {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        let begun = Instant::now();
        raw.text("timer 1200 late");
        raw.text("timer 600 soon");
        assert_eq!([raw.next_text(), raw.next_text()], ["set_timer: 1", "set_timer: 2"], "{name}");
        assert_eq!(raw.next_text(), "timer: soon");
        assert!(begun.elapsed() >= Duration::from_millis(600));
        assert_eq!(raw.next_text(), "timer: late");
        assert!(begun.elapsed() >= Duration::from_millis(1200));
        assert_eq!(raw.ask("timer 100000 never"), "set_timer: 3");
        assert_eq!(raw.ask("clear_timer 3"), "clear_timer: 0");
        assert_eq!(raw.ask("clear_timer 3"), "clear_timer: -5", "{name}");
        assert_eq!(raw.ask("timers 16"), "timers: 19");
        assert_eq!(raw.ask("timers 1"), "timers: -7", "{name}: 16 are the most");
        raw.text("post hello");
        let mut seen = [raw.next_text(), raw.next_text()];
        seen.sort();
        assert_eq!(seen, ["post: 0", "posted: hello"], "{name}");
        raw.text("post_thread 5 x");
        assert_eq!(raw.next_text(), "posted:  x", "{name}");
        assert_eq!(raw.ask("posts 1025"), "posts: 1024 -7", "{name}");
        crate::daemon::until("those have run", || raw.ask("posts 1") == "posts: 1 0");
        leave(raw);
    }
    server.stop();
}

#[test]
fn a_function_posted_to_a_connection_that_ends_is_still_called() {
    let server = everything();
    for name in BOTH {
        // The handler sleeps while another thread posts, and the connection is cut meanwhile.
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        raw.text("post_thread 0 in time");
        raw.text("sleep 50");
        raw.text("abort");
        while raw.next().is_some() {}
        let mut other = Raw::open(&server.address(), &format!("/{name}"));
        crate::daemon::until("it has been called", || other.ask("posted") != "posted: 0 gone 0");
    }
}

#[test]
fn reading_pauses_and_resumes() {
    let server = everything();
    for name in BOTH {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        let begun = Instant::now();
        assert_eq!(raw.ask("pause 60"), "pause: 0", "{name}");
        raw.frame(PING, b"not seen");
        raw.text("send after");
        let mut seen: Vec<_> = (0..3).map(|_| raw.next().unwrap().payload).collect();
        assert!(begun.elapsed() >= Duration::from_millis(60), "{name}: {seen:?}");
        // The blocking style resumes by a command to the loop, which may go on reading before the thread's reply.
        seen.sort();
        assert_eq!(seen, [&b"after"[..], b"not seen", b"resume: 0"], "{name}");
    }
}

#[test]
fn user_pointer_and_state_stay_with_the_connection() {
    let server = everything();
    for name in BOTH {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        let mut other = Raw::open(&server.address(), &format!("/{name}"));
        assert_eq!(raw.ask("set_user mine"), "set_user: 0");
        assert_eq!(raw.ask("state"), "state: -");
        assert_eq!(raw.ask("set_state some state"), "set_state: 0");
        assert_eq!(raw.ask("state"), "state: \"some state\"");
        assert_eq!(raw.ask("set_state a longer one, of which a part stays"), "set_state: 0");
        assert_eq!(raw.ask("state_from 2"), "state_from: 0");
        assert_eq!(raw.ask("state"), "state: \"longer one, of which a part stays\"", "{name}");
        assert_eq!(other.ask("state"), "state: -");
        assert_eq!(other.ask("user"), "user: ");
        assert_eq!(raw.ask("state_of 4096"), "state_of: 0");
        assert_eq!(raw.ask("state_of 4097"), "state_of: -7");
        assert_eq!(raw.ask("state_size"), "state_size: 4096", "{name}");
        assert_eq!(raw.ask("state_of 0"), "state_of: 0");
        assert_eq!(raw.ask("state"), "state: -");
        assert_eq!(raw.ask("user"), "user: mine");
    }
}

/// The arguments of the connection's on_close, reported by a later connection; `how` ends the connection.
#[track_caller]
fn last_close(server: &Served, name: &str, how: impl FnOnce(&mut Raw)) -> BTreeMap<String, String> {
    let mut raw = Raw::open(&server.address(), &format!("/{name}?last"));
    raw.ask("set_user note");
    raw.ask("set_state kept");
    let seen = server.log().matches(": closed: by=").count();
    how(&mut raw);
    crate::daemon::until("on_close has run", || server.log().matches(": closed: by=").count() > seen);
    let log = server.log();
    let line = log.rsplit(": closed: ").next().unwrap().lines().next().unwrap();
    let fields: BTreeMap<_, _> = line
        .split(' ')
        .filter_map(|field| field.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(fields["resource"], format!("/{name}?last"), "{line}");
    assert_eq!((&*fields["user"], &*fields["state"], &*fields["send"]), ("note", "kept", "-1"), "{line}");
    fields
}

#[test]
fn on_close_has_who_ended_it_and_the_code() {
    let mut server = everything();
    for name in BOTH {
        // by: 1 the peer, 2 the handler, 3 the host.
        for (what, by, code, close_code, reason) in [
            ("the peer closes", "1", "4001", "4001", "bye"),
            ("the peer closes without a code", "1", "1005", "1005", ""),
            ("the peer vanishes", "1", "1006", "1006", ""),
            ("the handler closes", "2", "3000", "3000", "and-so-do-I"),
            ("the handler aborts", "2", "1006", "1006", ""),
            ("the peer breaks the protocol", "3", "1002", "1006", ""),
        ] {
            let fields = last_close(&server, name, |raw| match what {
                "the peer closes" => raw.frame(CLOSE, &close_payload(4001, "bye")),
                "the peer closes without a code" => raw.frame(CLOSE, &[]),
                "the peer vanishes" => raw.stream.shutdown(std::net::Shutdown::Both).unwrap(),
                "the handler closes" => {
                    raw.text("close 3000 enough");
                    assert_eq!(raw.expect_close(3000), "enough");
                    raw.frame(CLOSE, &close_payload(3000, "and-so-do-I"));
                }
                "the handler aborts" => raw.text("abort"),
                _ => raw.frame(0x83, b""),
            });
            let got = (&*fields["by"], &*fields["code"], &*fields["close_code"], &*fields["reason"]);
            assert_eq!(got, (by, code, close_code, reason), "{name}: {what}");
        }
    }
    server.stop();
}

#[test]
fn the_handler_chooses_the_answer_to_a_close() {
    let server = everything();
    for name in BOTH {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        assert_eq!(raw.ask("passive 4003 chosen"), "passive: ok");
        raw.frame(CLOSE, &close_payload(1000, "x"));
        assert_eq!(raw.expect_close(4003), "chosen", "{name}");
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        raw.ask("passive fail");
        raw.frame(CLOSE, &close_payload(1000, "x"));
        raw.expect_close(1011);
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        for wrong in ["close 1006", "close 999", "close 5000", "close 1005 reason", "close 70000"] {
            assert_eq!(raw.ask(wrong), "close: -5", "{name}: {wrong}");
        }
    }
}

#[test]
fn logging_is_one_line_with_the_handlers_name() {
    let server = everything();
    for name in BOTH {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        let text = format!("of {name} \n with\ttwo lines");
        assert_eq!(raw.ask(&format!("log 40 {text}")), "log: ok");
        raw.ask("log_long");
    }
    server.says("of everything \\n with\\ttwo lines");
    let log = server.log();
    let line = log.lines().find(|line| line.contains("of everything \\n")).unwrap();
    assert!(line.contains("everything: connection "), "{line}");
    let zeros =
        log.lines().filter(|line| line.ends_with(&"0".repeat(1023)) && !line.ends_with(&"0".repeat(1024)));
    assert_eq!(zeros.count(), 2, "cut at 1,023 bytes");
}

#[test]
fn ten_threads_send_and_nothing_is_lost_or_out_of_order() {
    let mut server = serve(&["ten_threads"], &["-o", "send_high=16K"]);
    let mut raw = Raw::open(&server.address(), "/ten_threads");
    raw.text("go");
    let mut next = [0; 10];
    loop {
        let text = raw.next_text();
        let (thread, number) = text.split_once(' ').unwrap();
        if thread == "done" {
            break;
        }
        let (thread, number): (usize, u32) = (thread.parse().unwrap(), number.parse().unwrap());
        assert_eq!(number, next[thread], "of thread {thread}");
        next[thread] += 1;
    }
    assert_eq!(next, [1000; 10]);
    leave(raw);
    server.stop();
}

#[test]
fn a_stale_id_is_gone_and_harmless() {
    let mut server = serve(&["keep_id"], &[]);
    let mut first = Raw::open(&server.address(), "/keep_id");
    assert_eq!(first.ask("keep"), "kept");
    leave(first);
    // It gets the same slot in the worker's table, with another id.
    let mut second = Raw::open(&server.address(), "/keep_id");
    assert_eq!(
        second.ask("report"),
        "id=gone send=-1 send_flags=-1 send_text=-1 send_owned=-1 ping=-1 buffered=0 pause=-1 resume=-1 post=-1 \
         close=-1 abort=-1 released=1 posted=0"
    );
    assert!(second.ask("report").starts_with("id=gone "));
    leave(second);
    server.stop();
}

#[test]
fn a_handshake_is_finished_later_by_another_thread() {
    let mut server = serve(&["late_accept", "late_blocking"], &["-o", "handshake_timeout=3s"]);
    let mut raw = Raw::connect(&server.address());
    let head = raw.upgrade("/late_accept?accept", "Sec-WebSocket-Protocol: late\r\n");
    assert_eq!(header(&head, "X-Late"), Some("yes"));
    assert_eq!(header(&head, "Sec-WebSocket-Protocol"), Some("late"));
    // The thread tries that when the reply is already on its way.
    crate::daemon::until("finishing it a second time is too late", || raw.ask("again") == "-1");
    let rejected = answer(&server, "/late_accept?reject", "");
    assert_eq!((rejected.status, &rejected.body[..]), (403, &b"later means no"[..]));
    let mut aborted = Raw::connect(&server.address());
    aborted.send(format!("GET /late_accept?abort HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
    assert_eq!(aborted.rest(), b"");
    let mut closed = Raw::open(&server.address(), "/late_accept?close");
    assert_eq!(closed.expect_close(4001), "late");
    drop(closed);
    let begun = Instant::now();
    assert_eq!(answer(&server, "/late_accept?never", "").status, 503);
    assert!(begun.elapsed() >= Duration::from_secs(3));
    assert_eq!(answer(&server, "/late_accept?accept=60000", "").status, 503, "after the deadline");
    // Peers that disconnect before: at once, and while the thread finishes it.
    for _ in 0..50 {
        let mut gone = Raw::connect(&server.address());
        gone.send(format!("GET /late_accept?accept=1 HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
    }
    assert_eq!(answer(&server, "/late_blocking", "").status, 500, "not in the blocking style");
    assert_eq!(raw.ask("x"), "x");
    leave(raw);
    server.stop();
}

#[test]
fn streams_come_as_fragments() {
    let server = serve(&["stream", "stream_blocking"], &[]);
    for name in ["stream", "stream_blocking"] {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        assert_eq!(raw.ask("whole"), "1 3 5", "{name}");
        raw.frame(0x02, b"abc");
        assert_eq!(raw.next_text(), "2 1 3", "{name}: before the message is whole");
        raw.frame(0x00, b"defg");
        assert_eq!(raw.next_text(), "2 0 4");
        raw.frame(0x80, b"");
        assert_eq!(raw.next_text(), "2 2 0");
        // The received part of an incomplete frame is delivered.
        let frame = client::frame(BINARY, &[7; 1000]);
        raw.send(&frame[..500]);
        let first = raw.next_text();
        assert!(first.starts_with("2 1 "), "{first}");
        raw.send(&frame[500..]);
        let mut size: usize = first[4..].parse().unwrap();
        loop {
            let part = raw.next_text();
            size += part[4..].parse::<usize>().unwrap();
            if part.starts_with("2 2 ") {
                break;
            }
        }
        assert_eq!(size, 1000);
    }
}

#[test]
fn the_veneers_of_c_and_rust_work_in_the_server() {
    let mut server = serve(&["veneer", "veneer_blocking", "panic", "panic_blocking"], &[]);
    let mut raw = Raw::connect(&server.address());
    let head = raw.upgrade("/veneer", "Sec-WebSocket-Protocol: x, veneer\r\n");
    assert_eq!(header(&head, "X-Veneer"), Some("yes"));
    assert!(raw.ask("facts").contains(" protocol=veneer version=13 "));
    assert_eq!(raw.ask("post"), "posted");
    assert_eq!(raw.ask("timer 1"), "timer");
    assert_eq!(raw.ask("object"), "messages 4");
    // An exception closes that connection and is logged; the others stay.
    for (resource, text) in [
        ("/veneer", "throw"),
        ("/veneer", "throw_int"),
        ("/veneer", "timer_throw"),
        ("/veneer", "post_throw"),
        ("/veneer?throw=constructor", ""),
        ("/veneer?throw=on_open", ""),
        ("/veneer_blocking", "throw"),
        ("/veneer_blocking", "fail"),
        ("/panic", "panic"),
        ("/panic", "timer"),
        ("/panic", "post"),
        ("/panic", "fail"),
        ("/panic?open", ""),
        ("/panic_blocking", "panic"),
        ("/panic_blocking", "fail"),
    ] {
        let mut broken = Raw::open(&server.address(), resource);
        broken.text(text);
        broken.expect_close(1011);
        assert_eq!(raw.ask("still here"), "still here", "{resource} {text}");
    }
    for resource in ["/veneer?throw=do_extra_handshake", "/panic?handshake"] {
        assert_eq!(answer(&server, resource, "").status, 500, "{resource}");
    }
    leave(raw);
    server.stop();
}

#[test]
fn the_handler_compiled_against_the_first_release_still_works() {
    let frozen = format!("abi_1_0_echo_wsh.so.{}", std::env::consts::ARCH);
    let frozen = crate::fixtures::root().join("ctests/frozen").join(frozen);
    assert!(frozen.exists() || std::env::consts::ARCH != "x86_64", "{} is missing", frozen.display());
    if !frozen.exists() {
        return; // there is a binary for this architecture only
    }
    let dir = Dir::new();
    fs::copy(&frozen, dir.path().join("old_wsh.so")).unwrap();
    let server = Server::start(&dir, &["--workers", "1"]);
    let mut raw = Raw::open(&server.address(), "/old");
    assert_eq!(raw.ask("as it was"), "as it was");
    raw.frame(TEXT, b"");
    assert_eq!(raw.next_text(), "");
    assert_eq!(raw.ask("Tail"), format!("0 0 0 1 0 wshd {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn process_state_of_a_handler_does_not_affect_the_server_and_its_output_is_written() {
    let dir = crate::daemon::Dir::new();
    crate::fixtures::add_handler(dir.path(), "process_state", "process_state");
    std::fs::create_dir(dir.path().join("www")).unwrap();
    std::fs::write(dir.path().join("www/page.txt"), "found").unwrap();
    let log = dir.path().join("log");
    let mut command = crate::daemon::wshd();
    command.current_dir(dir.path()).args(["--port", "0", "--workers", "1", "-w", "."]);
    command.args(["--document-root", "www", "--log-file", "log", "--log-level", "debug"]);
    let mut server = crate::daemon::Server::launch(command, log.clone()).when_ready();
    // A handler that has changed its directory.
    let mut client = crate::client::Raw::connect(&server.address());
    client.send(b"GET /page.txt HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.rest().ends_with(b"found"));
    std::fs::rename(&log, dir.path().join("old")).unwrap();
    server.signal(nix::sys::signal::Signal::SIGUSR1);
    crate::daemon::until("the log is reopened where it was", || log.exists());
    // A program that a handler starts, except for what was ignored when the server was started.
    let ours = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let mut raw = crate::client::Raw::open(&server.address(), "/process_state");
    // Rust's runtime ignores SIGPIPE in this process.
    let rust_ignores = 1 << (libc::SIGPIPE - 1);
    // The two after these are the C library's own, and ignored by its posix_spawn(3).
    let signals = u64::from(u32::MAX >> 1);
    assert_eq!(ignored(&raw.ask("signals")) & !(ignored(&ours) & !rust_ignores) & signals, 0);
    drop(raw);
    server.stop();
    assert_eq!(std::fs::read_to_string(dir.path().join("written")).unwrap(), "started\nstopped\n");
}
