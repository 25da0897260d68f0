//! Every limit, each by its option.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::client::{self, BINARY, CLOSE, PING, PONG, Raw, TEXT, UPGRADE};
use crate::daemon::{Dir, Server, until};
use crate::{fixtures, memory, open_with, serve};

#[test]
fn a_message_over_the_limit_is_refused_in_every_form() {
    let server = serve(&["echo", "echo_blocking", "stream"], &["--max-message", "1000"]);
    for resource in ["/echo", "/echo_blocking"] {
        let mut raw = Raw::open(&server.address(), resource);
        raw.frame(BINARY, &[b'x'; 1000]);
        assert_eq!(raw.next().unwrap().payload.len(), 1000);
        // The length alone is enough.
        raw.send(&client::frame(BINARY, &[b'x'; 1001])[..8]);
        raw.expect_close(1009);
        raw.expect_end();
        let mut raw = Raw::open(&server.address(), resource);
        raw.frame(0x02, &[b'x'; 600]);
        raw.frame(0x80, &[b'x'; 401]);
        raw.expect_close(1009);
        raw.expect_end();
    }
    let mut raw = Raw::open(&server.address(), "/stream");
    raw.frame(0x02, &[b'x'; 600]);
    raw.frame(0x80, &[b'x'; 401]);
    raw.expect_close(1009);
}

#[test]
fn an_inflate_bomb_stops_at_the_message_limit() {
    let server = serve(&["echo"], &["--max-message", "1M"]);
    let mut bomb = Vec::with_capacity(1 << 20);
    let mut deflate = flate2::Compress::new(flate2::Compression::best(), false);
    deflate.compress_vec(&vec![0; 64 << 20], &mut bomb, flate2::FlushCompress::Sync).unwrap();
    let before = memory(server.worker());
    let mut raw = Raw::connect(&server.address());
    raw.upgrade("/echo", "Sec-WebSocket-Extensions: permessage-deflate\r\n");
    raw.frame(0xc2, &bomb);
    raw.expect_close(1009);
    let grown = memory(server.worker()).saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes");
}

#[test]
fn a_frame_over_the_limit_is_refused_in_a_message_within_its_own() {
    let server = serve(&["echo"], &["--max-message", "10K", "-o", "max_frame=1000"]);
    let mut raw = Raw::open(&server.address(), "/echo");
    raw.frame(0x02, &[b'x'; 1000]);
    raw.frame(0x80, &[b'x'; 1000]);
    assert_eq!(raw.next().unwrap().payload.len(), 2000);
    raw.send(&client::frame(BINARY, &[b'x'; 1001])[..8]);
    raw.expect_close(1009);
}

#[test]
fn a_connection_without_messages_is_closed_after_the_idle_time() {
    let server = serve(&["echo", "echo_blocking"], &["--idle-timeout", "150ms"]);
    for resource in ["/echo", "/echo_blocking"] {
        let begun = Instant::now();
        // Pings are not messages.
        let mut raw = open_with(&server, resource, &client::frame(PING, b""));
        assert_eq!(raw.next().unwrap().first, PONG);
        raw.expect_close(1001);
        assert!(begun.elapsed() >= Duration::from_millis(150), "{:?}", begun.elapsed());
        raw.frame(CLOSE, &[]);
        raw.expect_end();
    }
}

#[test]
fn a_silent_peer_is_pinged_and_one_that_answers_stays() {
    let server = serve(&["echo"], &["-o", "ping_interval=50ms", "-o", "pong_timeout=4s"]);
    let mut raw = Raw::open(&server.address(), "/echo");
    for _ in 0..4 {
        let ping = raw.next().unwrap();
        assert_eq!(ping.first, PING);
        raw.frame(PONG, &ping.payload);
    }
    assert_eq!(raw.ask("still here"), "still here");
    // Now it does not answer: one more Ping, then the end, without a Close.
    assert_eq!(raw.next().unwrap().first, PING);
    raw.expect_end();
}

#[test]
fn without_an_interval_there_are_no_pings() {
    let server = serve(&["everything"], &["-o", "ping_interval=0"]);
    let mut raw = Raw::open(&server.address(), "/everything");
    raw.text("timer 200 later");
    assert!(raw.next_text().starts_with("set_timer: "));
    assert_eq!(raw.next_text(), "timer: later");
}

#[test]
fn a_close_that_is_not_answered_ends_in_time() {
    let server = serve(&["close", "everything_blocking"], &["-o", "close_timeout=100ms"]);
    let mut raw = Raw::open(&server.address(), "/close");
    let begun = Instant::now();
    raw.text("3000 bye");
    raw.expect_close(3000);
    // It continues to send instead of closing: that is discarded.
    raw.text("not done yet");
    raw.expect_end();
    assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
    // For a blocking handler that does not answer, the server does.
    let mut raw = Raw::open(&server.address(), "/everything_blocking");
    raw.text("sleep 600000");
    raw.frame(CLOSE, &client::close_payload(4000, ""));
    raw.expect_close(4000);
    raw.expect_end();
}

#[test]
fn a_full_send_queue_and_its_draining_are_reported() {
    let args = ["-o", "send_high=64K", "-o", "send_low=16K", "-odeflate=false"];
    let server = serve(&["queue"], &args);
    let mut raw = Raw::open(&server.address(), "/queue");
    raw.text("fill 10000");
    // The client reads nothing until the handler has filled the queue; the kernel's buffers are limited.
    server.says("queue: filled");
    let mut count = 0;
    let told = loop {
        let frame = raw.next().unwrap();
        match frame.first {
            BINARY => count += 1,
            TEXT => break String::from_utf8(frame.payload).unwrap(),
            other => panic!("{other:x}"),
        }
    };
    let numbers: Vec<usize> = told.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
    assert!(told.starts_with("writable "), "{told}");
    assert_eq!(numbers[0], count, "all that was queued has come");
    // Full above the high mark, by no more than the message that crossed it.
    assert!((65_536..65_536 + 10_014).contains(&numbers[1]), "{told}");
    // It continues.
    raw.text("fill 10000");
    assert_eq!(raw.next().unwrap().first, BINARY);
}

#[test]
fn a_client_that_never_reads_costs_bounded_memory_and_is_dropped() {
    let args = ["-o", "send_high=64K", "-o", "ping_interval=1s", "-o", "pong_timeout=1s"];
    for resource in ["/echo_noext", "/echo_blocking", "/echo_cpp"] {
        let server = serve(&[&resource[1..]], &args);
        let mut raw = open_with(&server, resource, &client::frame(BINARY, &[0; 100]));
        while raw.next().unwrap().first != BINARY {}
        let before = memory(server.worker());
        // Sends until the server reads no more, and then until it drops the connection.
        raw.stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        let message = client::frame(BINARY, &[b'x'; 50_000]);
        let mut most = 0;
        while raw.stream.write_all(&message).is_ok() {
            most = most.max(memory(server.worker()));
        }
        let grown = most.saturating_sub(before);
        // The channel of a blocking handler holds 1 MiB, the loop reads 512 KiB at a time.
        assert!(grown < 6 << 20, "{resource}: {grown} bytes");
        server.says("send stalled; connection dropped");
    }
}

#[test]
fn queues_over_the_total_are_full_earlier() {
    let args = ["-o", "send_total=300K", "-o", "send_high=1M", "-o", "send_low=256K", "-odeflate=false"];
    let server = serve(&["queue"], &args);
    let mut both = [(); 2].map(|()| Raw::open(&server.address(), "/queue"));
    // How many bytes waited when the queue was full, as the handler tells once it has drained.
    let told = |raw: &mut Raw| loop {
        let frame = raw.next().unwrap();
        if frame.first == TEXT {
            let text = String::from_utf8(frame.payload).unwrap();
            break text.rsplit_once(' ').and_then(|(_, size)| size.parse::<usize>().ok()).unwrap();
        }
    };
    for (raw, count) in both.iter_mut().zip([1, 2]) {
        raw.text("fill 10000");
        until("this one is full, too", || server.log().matches("queue: filled").count() == count);
    }
    let [first, second] = both.each_mut().map(told);
    // The first is full when it holds the total for all, of which the kernel then accepts less than a quarter
    // (else it would not be full yet); the second is full at 64K, or when both have the total again.
    let alone = 225 << 10..(300 << 10) + 10_014;
    assert!(alone.contains(&first), "{first}");
    assert!((64 << 10..(75 << 10) + 10_014).contains(&second), "{second}");
    // Both have drained: each has its full limit again.
    both[1].text("fill 10000");
    let again = told(&mut both[1]);
    assert!(alone.contains(&again), "{again}");
}

#[test]
fn memory_of_clients_that_never_read_is_bounded() {
    const CLIENTS: usize = 16;
    const MESSAGE: usize = 50_000;
    // A busy machine needs longer for all this than a client may be silent.
    let options = ["-o", "send_total=1M", "-o", "send_high=1M", "-o", "ping_interval=0"];
    let server = serve(&["echo_noext"], &options);
    let mut clients: Vec<(Raw, u32)> = Vec::new();
    let message =
        |number: u32| client::frame(BINARY, &[&number.to_be_bytes()[..], &[b'x'; MESSAGE]].concat());
    let mut most = 0;
    let before = memory(server.worker());
    for _ in 0..CLIENTS {
        clients.push((Raw::open(&server.address(), "/echo_noext"), 0));
    }
    // Each sends until the server stops reading, which leaves a part of a message unsent.
    let mut rests = Vec::new();
    for (raw, sent) in &mut clients {
        raw.stream.set_nonblocking(true).unwrap();
        let mut rest = Vec::new();
        let mut waited = 0;
        while waited < 20 {
            if rest.is_empty() {
                rest = message(*sent);
                *sent += 1;
            }
            match raw.stream.write(&rest) {
                Ok(count) => {
                    rest.drain(..count);
                    waited = 0;
                }
                // It is full if nothing was sent for a while.
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    std::thread::sleep(Duration::from_millis(5));
                    waited += 1;
                }
            }
            most = most.max(memory(server.worker()));
        }
        raw.stream.set_nonblocking(false).unwrap();
        rests.push(rest);
    }
    // A queue may be 64 KiB, and a message, whatever the others are; as much is read and set aside, or is half of a
    // message that is being gathered. Without the bound it would be 1 MiB for each.
    let grown = most.saturating_sub(before);
    assert!(grown < 10 << 20, "{grown} bytes");
    // No client is dropped, and all messages are echoed in order.
    for ((mut raw, sent), rest) in clients.into_iter().zip(rests) {
        let mut writer = raw.stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || writer.write_all(&rest).unwrap());
            for number in 0..sent {
                let frame = raw.next().unwrap();
                assert_eq!((frame.first, frame.payload.len()), (BINARY, MESSAGE + 4));
                assert_eq!(frame.payload[..4], number.to_be_bytes());
            }
        });
        assert!(raw.ask("and on").starts_with("and on"));
    }
}

#[test]
fn pings_per_second_have_a_bound() {
    let server = serve(&["echo"], &["-o", "max_pings=5"]);
    let mut raw = Raw::open(&server.address(), "/echo");
    let flood: Vec<u8> = (0..50).flat_map(|_| client::frame(PING, b"")).collect();
    raw.send(&flood);
    for _ in 0..5 {
        assert_eq!(raw.next().unwrap().first, PONG);
    }
    assert_eq!(raw.expect_close(1008), "");
    let server = serve(&["echo"], &["-o", "max_pings=0"]);
    let mut raw = Raw::open(&server.address(), "/echo");
    raw.send(&flood);
    for _ in 0..50 {
        assert_eq!(raw.next().unwrap().first, PONG);
    }
}

#[test]
fn connections_over_the_limit_wait() {
    let server = serve(&["echo"], &["--max-connections", "2"]);
    let first = Raw::open(&server.address(), "/echo");
    let mut second = Raw::open(&server.address(), "/echo");
    assert_eq!(second.ask("x"), "x");
    // The kernel has accepted the third, the worker has not.
    let mut third = Raw::connect(&server.address());
    third.send(format!("GET /echo HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
    crate::turns::arrived(&third);
    server.says("all workers are full (1 with max_connections 2): new connections wait");
    // The worker goes on for some turns.
    (0..3).for_each(|_| assert_eq!(second.ask("x"), "x"));
    third.stream.set_nonblocking(true).unwrap();
    let nothing = third.stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    third.stream.set_nonblocking(false).unwrap();
    drop(first);
    assert!(third.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(third.ask("my turn"), "my turn");
    drop((second, third));
    server.says("new ones are accepted again");
    assert_eq!(server.log().matches("new connections wait").count(), 1);
}

#[test]
fn blocking_handlers_over_the_limit_are_refused_before_the_handshake() {
    let server = serve(&["echo", "echo_blocking"], &["-o", "max_threads=2"]);
    let mut first = Raw::open(&server.address(), "/echo_blocking");
    let mut second = Raw::open(&server.address(), "/echo_blocking");
    let mut third = Raw::connect(&server.address());
    let handshake = format!("GET /echo_blocking HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n");
    third.send(handshake.as_bytes());
    let answer = third.answer();
    assert_eq!(answer.status, 503);
    assert!(answer.header("Retry-After").is_some(), "{answer:?}");
    assert_eq!(Raw::open(&server.address(), "/echo").ask("the others are served"), "the others are served");
    first.frame(CLOSE, &[]);
    first.expect_close(1005);
    first.expect_end();
    until("there is a thread again", || {
        let mut fourth = Raw::connect(&server.address());
        fourth.send(handshake.as_bytes());
        fourth.head().starts_with("HTTP/1.1 101 ")
    });
    assert_eq!(second.ask("x"), "x");
}

#[test]
fn memory_of_incomplete_heads_is_their_size() {
    let server = serve(&["echo"], &["-o", "max_head=1M"]);
    let before = memory(server.worker());
    let mut slow: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = client::tcp(&server.address());
            stream.write_all(b"GET /echo HTTP/1.1\r\nHost: ").unwrap();
            stream
        })
        .collect();
    let mut last = Raw::open(&server.address(), "/echo");
    assert_eq!(last.ask("x"), "x");
    let each = memory(server.worker()).saturating_sub(before) / 200;
    assert!(each < 4096, "{each} bytes for a head of 26");
    slow.clear();
}

/// The beginning of a compressed message, which inflates to this many bytes.
fn unfinished(inflated: usize) -> Vec<u8> {
    let mut deflated = Vec::with_capacity(inflated / 64 + 1024);
    let mut deflate = flate2::Compress::new(flate2::Compression::best(), false);
    deflate.compress_vec(&vec![0; inflated], &mut deflated, flate2::FlushCompress::Sync).unwrap();
    client::frame(0x42, &deflated)
}

#[test]
fn memory_of_incomplete_messages_is_bounded_and_released() {
    const CLIENTS: usize = 40;
    let args = ["-o", "receive_total=32M", "--max-message", "4M"];
    let server = serve(&["echo"], &args);
    let begin = unfinished(4 << 20);
    let before = memory(server.worker());
    let clients: Vec<Raw> = (0..CLIENTS)
        .map(|_| {
            let mut raw = Raw::connect(&server.address());
            raw.upgrade("/echo", "Sec-WebSocket-Extensions: permessage-deflate\r\n");
            raw.send(&begin);
            raw
        })
        .collect();
    // The bound holds although they have sent 160 MiB: some wait or are closed.
    until("memory is scarce", || server.log().contains("no memory for its message (receive_total)"));
    until("all that was sent is read or waits", || crate::daemon::is_idle(server.worker()));
    let grown = memory(server.worker()).saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes");
    // Others are served meanwhile.
    assert_eq!(Raw::open(&server.address(), "/echo").ask("small"), "small");
    drop(clients);
    until("the memory is given back", || memory(server.worker()).saturating_sub(before) < 8 << 20);
}

#[test]
fn large_messages_wait_for_memory_and_all_of_them_arrive() {
    const CLIENTS: usize = 12;
    const MESSAGE: usize = 2 << 20;
    let args = ["-o", "receive_total=6M", "-o", "send_high=64K", "-odeflate=false"];
    let server = serve(&["echo"], &args);
    let clients: Vec<Raw> = (0..CLIENTS).map(|_| Raw::open(&server.address(), "/echo")).collect();
    std::thread::scope(|scope| {
        for (mut raw, byte) in clients.into_iter().zip(b'a'..) {
            scope.spawn(move || {
                // In fragments, each of which is read before the next one comes.
                for part in 0..4 {
                    let first = [0x02, 0x00, 0x00, 0x80][part];
                    raw.frame(first, &vec![byte; MESSAGE / 4]);
                    std::thread::sleep(Duration::from_millis(20));
                }
                let echo = raw.next().unwrap();
                assert!(echo.payload.len() == MESSAGE && echo.payload.iter().all(|octet| *octet == byte));
            });
        }
    });
    assert!(!server.log().contains("no memory"), "{}", server.log());
}

#[test]
fn a_message_that_others_wait_for_is_dropped_eventually() {
    let args = ["-o", "receive_total=1M", "-odeflate=false"];
    let server = serve(&["echo"], &args);
    let mut slow = Raw::open(&server.address(), "/echo");
    slow.frame(0x02, &vec![b'x'; 900 << 10]);
    crate::turns::arrived(&slow);
    until("it is read", || crate::daemon::is_idle(server.worker()));
    let mut next = Raw::open(&server.address(), "/echo");
    next.frame(0x02, &vec![b'y'; 20 << 10]);
    next.frame(0x80, &vec![b'y'; 200 << 10]);
    slow.expect_close(1013);
    assert_eq!(next.next().unwrap().payload.len(), 220 << 10);
}

/// A client with context takeover.
struct Inflating {
    raw: Raw,
    inflate: flate2::Decompress,
}

impl Inflating {
    fn open(server: &crate::Served, answer: &str) -> Self {
        let mut raw = Raw::connect(&server.address());
        let head = raw.upgrade("/echo", "Sec-WebSocket-Extensions: permessage-deflate\r\n");
        assert!(head.contains(answer), "{head}");
        Inflating { raw, inflate: flate2::Decompress::new(false) }
    }

    /// Sends a text to be echoed; returns the size of the compressed reply.
    fn ask(&mut self, text: &str) -> usize {
        self.raw.text(text);
        let reply = self.raw.next().unwrap();
        assert_eq!(reply.first, 0xc1);
        let whole = [&reply.payload[..], &[0, 0, 0xff, 0xff]].concat();
        let mut inflated = Vec::with_capacity(text.len() + 100);
        self.inflate.decompress_vec(&whole, &mut inflated, flate2::FlushDecompress::Sync).unwrap();
        assert_eq!(inflated, text.as_bytes());
        reply.payload.len()
    }
}

/// Digits without a pattern.
fn digits(from: u64) -> String {
    (from..from + 60).map(|number| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20).to_string()).collect()
}

#[test]
fn memory_of_compression_contexts_is_bounded() {
    const CLIENTS: u64 = 100;
    let server = serve(&["echo"], &["-o", "deflate_total=2M"]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Inflating::open(&server, "deflate")).collect();
    let before = memory(server.worker());
    for round in 0..3 {
        for (client, number) in clients.iter_mut().zip(0..) {
            client.ask(&digits(number * 1000 + round));
        }
    }
    let grown = memory(server.worker()).saturating_sub(before);
    // Without the bound it would be 19 MiB.
    assert!(grown < 6 << 20, "{grown} bytes");
}

#[test]
fn a_context_of_compression_is_dropped_after_the_idle_time() {
    let server = serve(&["echo"], &["-o", "deflate_idle=300ms"]);
    let mut client = Inflating::open(&server, "deflate");
    let text = digits(0);
    let alone = client.ask(&text);
    until("the message is compressed with what came before", || client.ask(&text) < alone / 2);
    until("it is compressed without it", || {
        std::thread::sleep(Duration::from_millis(1500));
        client.ask(&text) == alone
    });
}

#[test]
fn compression_contexts_can_be_turned_off() {
    let server = serve(&["echo"], &["-odeflate_takeover=false"]);
    let mut client = Inflating::open(&server, "server_no_context_takeover");
    let text = digits(0);
    assert_eq!(client.ask(&text), client.ask(&text));
}

/// A handler may have lower or higher limits than the others.
#[test]
fn a_handler_has_limits_of_its_own() {
    let dir = Dir::new();
    for name in ["echo", "everything", "everything_blocking"] {
        fixtures::add_handler(dir.path(), name, name);
    }
    let config = dir.path().join("wshd.conf");
    let text = "workers = 2\nmax_message = 20\n[handler.'/echo']\nmax_message = 10\nresources = '/room/*'\n\
                [handler.'/everything']\nmax_connections = 2\n[handler.'/everything_blocking']\nidle_timeout = '200ms'\n";
    std::fs::write(&config, text).unwrap();
    let mut server = Server::start(&dir, &["--config", config.to_str().unwrap()]);
    let mut small = Raw::open(&server.address(), "/room/7");
    assert_eq!(small.ask("0123456789"), "0123456789");
    small.text("01234567890");
    small.expect_close(1009);
    let mut large = open_with(&server, "/everything_blocking", &client::frame(TEXT, b"user"));
    assert_eq!(large.next_text(), "user: ");
    large.expect_close(1001);
    drop((small, large));
    let open: Vec<Raw> = (0..2).map(|_| Raw::open(&server.address(), "/everything")).collect();
    let refused = || {
        let mut third = Raw::connect(&server.address());
        third.send(format!("GET /everything HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
        third.head().starts_with("HTTP/1.1 503 ")
    };
    assert!(refused());
    drop(open);
    until("there is room again", || !refused());
    server.stop();
}
