//! Admission: limits over all workers, allowed hosts and origins, and floods that must not keep others out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use client::{Answer, Raw, UPGRADE};
use daemon::{Dir, Server, until};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

/// Serves these fixtures.
#[track_caller]
fn serve(handlers: &[&str], args: &[&str]) -> (Server, Dir) {
    let dir = Dir::new();
    for name in handlers {
        fixtures::add_handler(dir.path(), name, name);
    }
    let server = Server::start(&dir, &[&["--workers", "2"], args].concat());
    (server, dir)
}

/// Connects from this local address.
fn try_from(from: &str, to: &str) -> std::io::Result<Raw> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from.parse().unwrap(), 0).into())?;
    socket.connect(&to.parse::<SocketAddr>().unwrap().into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(daemon::TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(Raw::over(stream))
}

#[track_caller]
fn from(from: &str, server: &Server) -> Raw {
    try_from(from, &server.address()).unwrap()
}

const ONE: &str = "127.0.0.1";
const OTHER: &str = "127.0.0.2";

/// Opens a WebSocket from this address.
#[track_caller]
fn open(address: &str, server: &Server, resource: &str) -> Raw {
    let mut raw = from(address, server);
    raw.upgrade(resource, "");
    raw
}

/// Opens this many, each of which answers.
#[track_caller]
fn crowd(address: &str, server: &Server, count: usize) -> Vec<Raw> {
    let mut all: Vec<Raw> = (0..count).map(|_| open(address, server, "/echo")).collect();
    all.iter_mut().for_each(|raw| assert_eq!(raw.ask("here"), "here"));
    all
}

/// The answer to a handshake with these headers.
#[track_caller]
fn answer(mut raw: Raw, resource: &str, headers: &str) -> Answer {
    raw.send(format!("GET {resource} HTTP/1.1\r\n{UPGRADE}{headers}\r\n").as_bytes());
    raw.answer()
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, retry: &str) {
    assert_eq!((answer.status, answer.header("Retry-After")), (status, Some(retry)), "{}", answer.head);
}

/// Waits until one more connection is admitted, and returns it.
#[track_caller]
fn let_in(address: &str, server: &Server) -> Raw {
    let mut found = None;
    until("there is room for one more", || {
        let mut raw = from(address, server);
        // The server may have closed it already.
        let request = format!("GET /echo HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n");
        let _ = raw.stream.write_all(request.as_bytes());
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && raw.stream.read(&mut byte).is_ok_and(|count| count == 1) {
            head.extend(byte);
        }
        found = head.starts_with(b"HTTP/1.1 101 ").then_some(raw);
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn connections_of_an_address_are_limited_over_all_workers() {
    let (mut server, _dir) = serve(&["echo"], &["-o", "max_connections_per_address=6"]);
    let mut all = crowd(ONE, &server, 6);
    for _ in 0..3 {
        // The reply comes before the request is read, and also if one was sent.
        assert_refused(&from(ONE, &server).answer(), 429, "10");
        assert_refused(&answer(from(ONE, &server), "/echo", "Host: a\r\n"), 429, "10");
    }
    let mut others = crowd(OTHER, &server, 6);
    assert_refused(&from(OTHER, &server).answer(), 429, "10");
    drop(all.pop());
    all.push(let_in(ONE, &server));
    all.iter_mut().chain(&mut others).for_each(|raw| assert_eq!(raw.ask("still"), "still"));
    assert_refused(&from(ONE, &server).answer(), 429, "10");
    server.says("127.0.0.1:");
    server.says("was turned away: too many connections from its address");
    drop((all, others));
    server.stop();
}

#[test]
fn connections_of_all_addresses_are_limited() {
    let (mut server, _dir) = serve(&["echo"], &["-o", "max_connections_total=4"]);
    let mut all = crowd(ONE, &server, 2);
    all.append(&mut crowd(OTHER, &server, 2));
    assert_refused(&from(ONE, &server).answer(), 503, "10");
    assert_refused(&from("127.0.0.3", &server).answer(), 503, "10");
    all.remove(0);
    all.push(let_in("127.0.0.3", &server));
    assert_refused(&from(ONE, &server).answer(), 503, "10");
    server.says("was turned away: too many connections");
    drop(all);
    server.stop();
}

/// However processes end, each open connection is counted once, and no ended one is.
#[test]
fn moved_connections_are_counted_once_and_ended_ones_not() {
    let args = ["-o", "max_connections_per_address=10", "-o", "quarantine_deaths=0"];
    let (mut server, _dir) = serve(&["echo", "crash"], &args);
    let mut all = crowd(ONE, &server, 10);
    for _ in 0..3 {
        // From another address: this one is at its limit.
        let mut culprit = open(OTHER, &server, "/crash");
        culprit.text("null");
        culprit.expect_close(1011);
        all.iter_mut().for_each(|raw| assert_eq!(raw.ask("still"), "still"));
        assert_refused(&from(ONE, &server).answer(), 429, "10");
        // Ended connections are not counted: one leaves, one is admitted.
        drop(all.remove(0));
        all.push(let_in(ONE, &server));
        assert_refused(&from(ONE, &server).answer(), 429, "10");
    }
    // After SIGKILL the connections of the worker have ended.
    for worker in server.workers() {
        let _ = kill(Pid::from_raw(worker), Signal::SIGKILL); // it may have ended
    }
    all.iter_mut().for_each(|raw| raw.expect_end());
    all = (0..10).map(|_| let_in(ONE, &server)).collect();
    assert_refused(&from(ONE, &server).answer(), 429, "10");
    all.iter_mut().for_each(|raw| assert_eq!(raw.ask("still"), "still"));
    drop(all);
    crowd(OTHER, &server, 10);
    server.stop();
}

#[test]
fn replaced_workers_hand_the_counts_over() {
    let args = ["-o", "max_connections_per_address=10", "-o", "worker_max_messages=50"];
    let (mut server, _dir) = serve(&["echo"], &args);
    let mut all = crowd(ONE, &server, 10);
    until("workers have been replaced", || {
        all.iter_mut().for_each(|raw| assert_eq!(raw.ask("on"), "on"));
        server.log().matches("exited, replaced").count() >= 3
    });
    drop(all.pop());
    all.push(let_in(ONE, &server));
    until("as many are counted as there are", || from(ONE, &server).answer().status == 429);
    drop(all);
    server.stop();
}

#[test]
fn a_reload_changes_a_limit_and_keeps_the_counts() {
    let dir = Dir::new();
    fixtures::add_handler(dir.path(), "echo", "echo");
    let file = dir.path().join("wshd.conf");
    let limit = |most: u32| std::fs::write(&file, format!("max_connections_per_address = {most}\n")).unwrap();
    limit(3);
    let mut server = Server::start(&dir, &["--workers", "2", "--config", file.to_str().unwrap()]);
    let mut all = crowd(ONE, &server, 3);
    assert_refused(&from(ONE, &server).answer(), 429, "10");
    for (round, most) in [6, 9].into_iter().enumerate() {
        limit(most);
        server.signal(Signal::SIGHUP);
        until("the reload is done", || server.log().matches("reload: done").count() > round);
        // Old workers may still be moving connections.
        until("all have moved", || {
            all.iter_mut().for_each(|raw| assert_eq!(raw.ask("still"), "still"));
            server.workers().len() == 2
        });
        all.extend((0..3).map(|_| let_in(ONE, &server)));
        assert_refused(&from(ONE, &server).answer(), 429, "10");
    }
    drop(all);
    server.stop();
}

#[test]
fn new_connections_of_an_address_per_second_are_limited() {
    let (mut server, _dir) = serve(&["echo"], &["-o", "max_handshakes_per_address=5"]);
    let begun = Instant::now();
    let mut opened = 0;
    for _ in 0..60 {
        let mut raw = from(ONE, &server);
        raw.send(format!("GET /echo HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
        let head = raw.head();
        match head.starts_with("HTTP/1.1 101 ") {
            true => opened += 1,
            false => {
                assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("Retry-After: 1\r\n"), "{head}")
            }
        }
    }
    let seconds = begun.elapsed().as_secs() as usize + 2;
    assert!((5..=5 * seconds).contains(&opened), "{opened} in {seconds} seconds, begun ones included");
    assert_eq!(open(OTHER, &server, "/echo").ask("here"), "here");
    drop(let_in(ONE, &server));
    server.stop();
}

#[test]
fn connections_of_a_pool_are_limited() {
    let dir = Dir::new();
    for name in ["echo", "everything"] {
        fixtures::add_handler(dir.path(), name, name);
    }
    let file = dir.path().join("wshd.conf");
    let text = "[handler.'/everything']\nisolation = 'pool'\npool = 'p'\n\
                [pool.p]\nworkers = 2\nmax_connections = 3\n";
    std::fs::write(&file, text).unwrap();
    let mut server = Server::start(&dir, &["--workers", "2", "--config", file.to_str().unwrap()]);
    let mut all: Vec<Raw> = (0..3).map(|_| open(ONE, &server, "/everything")).collect();
    let full = answer(from(OTHER, &server), "/everything", "Host: a\r\n");
    assert_refused(&full, 503, "10");
    crowd(ONE, &server, 5);
    drop(all.pop());
    until("there is room in the pool", || {
        let mut raw = from(ONE, &server);
        raw.send(format!("GET /everything HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
        let opened = raw.head().starts_with("HTTP/1.1 101 ");
        all.extend(opened.then_some(raw));
        opened
    });
    drop(all);
    server.stop();
}

#[test]
fn origins_that_are_not_allowed_are_forbidden() {
    let dir = Dir::new();
    for name in ["echo", "everything", "resume"].iter().take(2) {
        fixtures::add_handler(dir.path(), name, name);
    }
    fixtures::add_handler(dir.path(), "own", "echo");
    let file = dir.path().join("wshd.conf");
    std::fs::write(
        &file,
        "[handler.'/own']\nallow_origin = 'null'\n[handler.'/everything']\nallow_origin = '*'\n",
    )
    .unwrap();
    let args = ["-o", "allow_origin=https://*.example.com", "-o", "allow_origin=http://localhost:8080"];
    let mut server = Server::start(&dir, &[&["--config", file.to_str().unwrap()], &args[..]].concat());
    let status = |resource: &str, origin: &str| {
        let mut raw = from(ONE, &server);
        raw.send(format!("GET {resource} HTTP/1.1\r\nHost: a\r\n{UPGRADE}{origin}\r\n").as_bytes());
        raw.head()[9..12].to_owned()
    };
    for (resource, origin, expected) in [
        ("/echo", "Origin: https://www.example.com\r\n", "101"),
        ("/echo", "Origin: http://localhost:8080\r\n", "101"),
        ("/echo", "Origin: http://www.example.com\r\n", "403"),
        ("/echo", "Origin: https://example.org\r\n", "403"),
        ("/echo", "Origin: null\r\n", "403"),
        ("/echo", "Origin: https://www.example.com\r\nOrigin: https://example.org\r\n", "403"),
        ("/echo", "", "101"), // no browser
        ("/own", "Origin: null\r\n", "101"),
        ("/own", "Origin: https://www.example.com\r\n", "403"),
        ("/everything", "Origin: https://example.org\r\n", "101"),
    ] {
        assert_eq!(status(resource, origin), expected, "{resource} {origin}");
    }
    server.says("was turned away: an origin that is not allowed here: ");
    server.stop();
}

#[test]
fn hosts_that_are_not_served_are_misdirected() {
    let (mut server, _dir) =
        serve(&["echo"], &["-o", "allow_host=example.com", "-o", "allow_host=[::1]:8080"]);
    let status = |host: &str| answer(from(ONE, &server), "/nothing", &format!("Host: {host}\r\n")).status;
    for (host, expected) in [
        ("example.com", 404),
        ("Example.com:8080", 404),
        ("[::1]:8080", 404),
        ("[::1]", 421),
        ("www.example.com", 421),
        ("", 421),
    ] {
        assert_eq!(status(host), expected, "{host}");
    }
    // RFC 9112 section 3.2.2: the target counts, not Host.
    let mut raw = from(ONE, &server);
    raw.send(b"GET http://example.org/ HTTP/1.1\r\nHost: example.com\r\n\r\n");
    assert_eq!(raw.answer().status, 421);
    drop(raw);
    server.stop();
}

#[test]
fn messages_of_a_peer_per_second_are_limited() {
    let (mut server, _dir) = serve(&["echo", "echo_blocking"], &["-o", "max_message_rate=20"]);
    for resource in ["/echo", "/echo_blocking"] {
        let mut patient = open(OTHER, &server, resource);
        let mut raw = open(ONE, &server, resource);
        // Fragments and Pings do not count as messages.
        for _ in 0..15 {
            raw.frame(0x01, b"in ");
            raw.frame(client::PING, b"");
            raw.frame(0x80, b"two");
        }
        let texts = std::iter::from_fn(|| raw.next()).filter(|frame| frame.first == client::TEXT);
        assert_eq!(texts.take(15).count(), 15);
        // At once: a pause between them would allow more.
        raw.send(&client::frame(client::TEXT, b"too many").repeat(200));
        assert_eq!(raw.expect_close(1008), "too many messages");
        assert_eq!(patient.ask("here"), "here");
    }
    server.says("was turned away: more messages in a second than are allowed");
    server.stop();
}

#[test]
fn empty_fragments_count_as_messages() {
    let (mut server, _dir) = serve(&["echo", "echo_blocking"], &["-o", "max_message_rate=20"]);
    for resource in ["/echo", "/echo_blocking"] {
        let mut raw = open(ONE, &server, resource);
        raw.frame(0x01, b"");
        for _ in 0..10 {
            raw.frame(0x00, b"");
        }
        raw.frame(0x80, b"");
        assert_eq!(raw.next().map(|frame| frame.payload.len()), Some(0), "11 are not too many");
        // At once: a pause between them would allow more.
        raw.send(&[client::frame(0x01, b"begun"), client::frame(0x00, b"").repeat(30)].concat());
        assert_eq!(raw.expect_close(1008), "too many messages");
    }
    server.stop();
}

#[test]
fn bytes_of_a_peer_per_second_are_limited() {
    let (mut server, _dir) = serve(&["echo"], &["-o", "max_byte_rate=64K"]);
    let mut raw = open(ONE, &server, "/echo");
    // At once: a pause between them would allow both.
    raw.send(
        &[client::frame(client::BINARY, &[b'x'; 200_000]), client::frame(client::TEXT, b"too soon")].concat(),
    );
    assert_eq!(raw.next().unwrap().payload.len(), 200_000, "one may be larger");
    raw.expect_close(1008);
    drop(raw);
    let mut raw = open(ONE, &server, "/echo");
    for _ in 0..1000 {
        assert_eq!(raw.ask("many small ones"), "many small ones");
    }
    drop(raw);
    server.stop();
}

/// Refusals are logged at most once a second.
#[test]
fn log_lines_about_refusals_are_limited() {
    let (mut server, _dir) = serve(&["echo"], &["-o", "max_connections_per_address=1"]);
    let begun = Instant::now();
    let one = crowd(ONE, &server, 1);
    for _ in 0..500 {
        drop(from(ONE, &server).rest());
    }
    until("it says how many it has left out", || {
        drop(from(ONE, &server).rest());
        server.log().contains(" more such lines were left out")
    });
    let lines = server.log().matches("was turned away").count();
    // Each of two workers.
    let most = 2 * (begun.elapsed().as_secs() as usize + 2);
    assert!(lines <= most, "{lines} lines, expected at most {most}");
    drop(one);
    server.stop();
}

/// Raises the limit on descriptors to the hard limit.
fn raise_descriptors(needed: u64) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(most > needed, "{most} open files are allowed; this needs more than {needed} (ulimit -Hn)");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// One address opens `flood` connections to a server with room for `room`; another must be served all the time.
fn nobody_is_kept_out(flood: usize, room: usize) {
    raise_descriptors(flood as u64 + 200);
    let half = (room / 2).to_string();
    let args = ["-o", "max_connections_per_address=20", "--max-connections", &half];
    let (mut server, _dir) = serve(&["echo"], &args);
    let mut before = open(OTHER, &server, "/echo");
    let mut held = Vec::new();
    for number in 0..flood {
        // Some wait, some send a request; the server may close them first.
        if let Ok(mut raw) = try_from(ONE, &server.address()) {
            if number % 2 == 0 {
                let _ = raw.stream.write_all(b"GET /echo HTTP/1.1\r\n");
            }
            held.push(raw);
        }
        if number % (flood / 10) == 0 {
            assert_eq!(before.ask("still here"), "still here");
            assert_eq!(open(OTHER, &server, "/echo").ask("come in"), "come in");
        }
    }
    // Of those above a worker may not have noticed the end.
    let mut others: Vec<Raw> = (0..15).map(|_| let_in(OTHER, &server)).collect();
    others.iter_mut().for_each(|raw| assert_eq!(raw.ask("here"), "here"));
    // The flood holds no more connections than it may.
    let is_open = |raw: &mut Raw| {
        raw.stream.set_nonblocking(true).unwrap();
        let mut bytes = [0; 4096];
        loop {
            match raw.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    };
    until("all others are closed", || {
        held.retain_mut(is_open);
        held.len() <= 20
    });
    drop((before, held, others));
    server.stop();
}

#[test]
fn one_address_does_not_keep_another_out() {
    nobody_is_kept_out(600, 100);
}

#[test]
#[ignore = "opens 10,000 connections"]
fn one_address_with_ten_thousand_connections_does_not_keep_another_out() {
    nobody_is_kept_out(10_000, 2000);
}

#[test]
fn a_thousand_slow_clients_do_not_keep_others_out() {
    const COUNT: usize = 1000;
    raise_descriptors(COUNT as u64 + 200);
    let (mut server, _dir) = serve(&["echo"], &["-o", "handshake_timeout=4s"]);
    let begun = Instant::now();
    let head = b"GET /echo HTTP/1.1\r\n";
    let mut slow: Vec<Raw> = (0..COUNT).map(|_| from(ONE, &server)).collect();
    let mut client = open(OTHER, &server, "/echo");
    let mut round = 0;
    until("the time of all is over", || {
        if begun.elapsed() >= Duration::from_secs(round) {
            slow.retain_mut(|raw| raw.stream.write_all(&head[round as usize..][..1]).is_ok());
            round += 1;
        }
        assert_eq!(client.ask("still here"), "still here");
        // One that gets no processor for four seconds is too slow as well.
        assert_eq!(let_in(OTHER, &server).ask("come in"), "come in");
        round >= 6
    });
    for mut raw in slow {
        let text = raw.rest();
        assert!(text.is_empty() || text.starts_with(b"HTTP/1.1 408 "), "{}", text.escape_ascii());
    }
    // Received bytes do not extend the deadline.
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    drop(client);
    server.stop();
}
