//! Blocking handlers: service while they sleep, wake-ups, and floods.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::client::{self, BINARY, CLOSE, PING, PONG, Raw, TEXT, close_payload};
use crate::{memory, open_with, serve};

#[test]
fn pings_are_answered_while_the_handler_sleeps() {
    let server = serve(&["everything_blocking"], &["-o", "ping_interval=50ms", "-o", "pong_timeout=5m"]);
    let mut raw = Raw::open(&server.address(), "/everything_blocking");
    raw.text("sleep 600000");
    raw.frame(PING, b"awake?");
    // The server also sends its own Pings.
    let (mut pings, mut is_answered) = (0, false);
    while pings < 3 || !is_answered {
        let frame = raw.next().unwrap();
        if frame.first == PING {
            raw.frame(PONG, &frame.payload);
            pings += 1;
        } else {
            assert_eq!(
                (frame.first, &frame.payload[..]),
                (PONG, &b"awake?"[..]),
                "before the handler has slept"
            );
            is_answered = true;
        }
    }
    let mut other = Raw::open(&server.address(), "/everything_blocking");
    assert_eq!(other.ask("sleep 200"), "sleep: ok");
}

#[test]
fn receive_wakes_on_a_message_a_timeout_and_a_close() {
    let mut server = serve(&["everything_blocking"], &[]);
    let mut raw = Raw::open(&server.address(), "/everything_blocking");
    let begun = Instant::now();
    assert_eq!(raw.ask("receive 60"), "receive: -3");
    assert!(begun.elapsed() >= Duration::from_millis(60), "{:?}", begun.elapsed());
    raw.text("receive -1");
    assert_eq!(raw.ask("hello"), "receive: 1 1 \"hello\"");
    // Timers and posted functions run in ws_receive().
    raw.text("timer 10 woken");
    assert!(raw.next_text().starts_with("set_timer: "));
    raw.text("receive 5000");
    assert_eq!(raw.next_text(), "timer: woken");
    raw.frame(CLOSE, &close_payload(4000, ""));
    raw.expect_close(4000);
    raw.expect_end();
    // The peer disconnects: the thread must end, or stop() would wait for it.
    let raw = Raw::open(&server.address(), "/everything_blocking");
    drop(raw);
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn messages_before_the_idle_timeout_are_answered_first() {
    let server = serve(&["everything_blocking"], &["-o", "idle_timeout=200ms"]);
    let messages = [client::frame(TEXT, b"sleep 600"), client::frame(TEXT, b"sleep 1")].concat();
    let mut raw = open_with(&server, "/everything_blocking", &messages);
    assert_eq!(raw.next_text(), "sleep: ok");
    assert_eq!(raw.next_text(), "sleep: ok");
    raw.expect_close(1001);
}

/// What a client sends in one write before it shuts down its writing side.
fn half_closed(server: &crate::Served, resource: &str, sent: &[u8]) -> Raw {
    let mut raw = Raw::open(&server.address(), resource);
    raw.send(sent);
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
    raw
}

#[test]
fn messages_before_the_end_of_input_are_answered() {
    let server = serve(&["everything", "everything_blocking"], &[]);
    let message = client::frame(TEXT, b"sleep 100");
    let close = client::frame(CLOSE, &close_payload(4000, ""));
    let violation = client::frame(0x83, b"no such opcode");
    for resource in ["/everything", "/everything_blocking"] {
        // RFC 6455 5.5.1: the Close frame is answered even if the peer has shut down its writing side.
        let mut raw = half_closed(&server, resource, &[&message[..], &message, &close].concat());
        assert_eq!((raw.next_text(), raw.next_text()), ("sleep: ok".to_owned(), "sleep: ok".to_owned()));
        raw.expect_close(4000);
        raw.expect_end();
        let mut raw = half_closed(&server, resource, &[&message[..], &message].concat());
        assert_eq!((raw.next_text(), raw.next_text()), ("sleep: ok".to_owned(), "sleep: ok".to_owned()));
        raw.expect_end();
        let mut raw = half_closed(&server, resource, &[&message[..], &message, &violation].concat());
        assert_eq!((raw.next_text(), raw.next_text()), ("sleep: ok".to_owned(), "sleep: ok".to_owned()));
        raw.expect_close(1002);
        raw.expect_end();
    }
}

#[test]
fn queued_messages_are_sent_after_the_end_of_input() {
    let server = serve(&["echo", "echo_blocking"], &["-odeflate=false"]);
    // More than the kernel's buffers hold.
    let payload = vec![b'x'; 12 << 20];
    for resource in ["/echo", "/echo_blocking"] {
        let mut raw = half_closed(&server, resource, &client::frame(TEXT, &payload));
        assert_eq!(raw.next().unwrap().payload.len(), payload.len());
        raw.expect_end();
    }
}

#[test]
fn messages_that_came_before_a_stop_are_answered() {
    let mut server = serve(&["everything_blocking"], &[]);
    let mut raw = Raw::open(&server.address(), "/everything_blocking");
    let mut idle = Raw::open(&server.address(), "/everything_blocking");
    raw.text("sleep 300");
    raw.text("user");
    raw.frame(PING, b"all of it has come");
    assert_eq!(raw.next().unwrap().first, PONG);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    idle.expect_close(1001);
    assert_eq!(raw.next_text(), "sleep: ok");
    assert_eq!(raw.next_text(), "user: ");
    raw.expect_close(1001);
    drop((raw, idle));
    server.wait();
}

#[test]
fn the_end_of_transfer_data_closes() {
    let server = serve(&["everything_blocking"], &[]);
    for (text, code) in [("return", 1000), ("fail", 1011)] {
        let mut raw = Raw::open(&server.address(), "/everything_blocking");
        raw.text(text);
        raw.expect_close(code);
        raw.frame(CLOSE, &close_payload(code, ""));
        raw.expect_end();
    }
}

#[test]
fn a_flood_at_a_sleeping_handler_is_throttled_without_loss() {
    let server = serve(&["everything_blocking"], &["-odeflate=false"]);
    let mut raw = Raw::open(&server.address(), "/everything_blocking");
    raw.text("released");
    assert_eq!(raw.next_text(), "released: 0");
    let before = memory(server.worker());
    raw.text("sleep 500");
    // 32 MiB, which fit neither into the channel (1 MiB) nor into the kernel's buffers.
    let mut sender = raw.stream.try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        for n in 0..2048_u32 {
            let mut message = vec![0; 16 * 1024];
            message[..4].copy_from_slice(&n.to_be_bytes());
            sender.write_all(&client::frame(BINARY, &message)).unwrap();
        }
    });
    let asleep = raw.next().unwrap();
    let grown = memory(server.worker()).saturating_sub(before);
    assert_eq!((asleep.first, &asleep.payload[..]), (TEXT, &b"sleep: ok"[..]));
    assert!(grown < 6 << 20, "{grown} bytes");
    for n in 0..2048_u32 {
        let message = raw.next().unwrap();
        assert_eq!((message.payload.len(), &message.payload[..4]), (16 * 1024, &n.to_be_bytes()[..]));
    }
    flood.join().unwrap();
}

#[test]
fn sending_waits_for_a_peer_that_reads_slowly() {
    let args = ["-o", "send_high=64K", "-o", "send_low=16K", "-odeflate=false"];
    let server = serve(&["bench"], &args);
    let mut raw = Raw::open(&server.address(), "/bench");
    let before = memory(server.worker());
    raw.text(&format!("0 20000 {}", "x".repeat(1000)));
    // 20 MB, of which the kernel buffers a part; the handler waits in ws_send() for the rest.
    let mut most = 0;
    for n in 0..20_000 {
        assert_eq!(raw.next().unwrap().payload.len(), 1000, "message {n}");
        if n % 1000 == 0 {
            most = most.max(memory(server.worker()));
        }
    }
    raw.expect_close(1000);
    let grown = most.saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes");
}

#[test]
fn threads_are_independent() {
    let mut server = serve(&["echo", "everything_blocking"], &[]);
    let mut sleeping: Vec<Raw> =
        (0..20).map(|_| Raw::open(&server.address(), "/everything_blocking")).collect();
    for raw in &mut sleeping {
        raw.text("sleep 6000");
    }
    let mut other = Raw::open(&server.address(), "/everything_blocking");
    assert_eq!(other.ask("user"), "user: ");
    assert_eq!(Raw::open(&server.address(), "/echo").ask("x"), "x");
    for raw in &mut sleeping {
        raw.stream.set_nonblocking(true).unwrap();
        assert!(raw.stream.peek(&mut [0]).is_err(), "it has slept before the others were served");
        raw.stream.set_nonblocking(false).unwrap();
    }
    for raw in &mut sleeping {
        assert_eq!(raw.next_text(), "sleep: ok");
    }
    drop((sleeping, other));
    server.stop();
}
