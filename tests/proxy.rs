//! Clients behind proxies: the PROXY header, Forwarded and X-Forwarded-For, accepted from trusted
//! addresses only. The tests check the address that the handler gets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::net::{SocketAddr, TcpStream};

use client::{Raw, UPGRADE};
use daemon::{Dir, Server, until};
use socket2::{Domain, Socket, Type};

const LINE: &str = "PROXY TCP4 192.0.2.7 127.0.0.1 56324 443\r\n";
/// The handler's answer.
const SEEN: &str = "remote_address: 0 family=4 port=56324 text=192.0.2.7";

fn request(resource: &str, headers: &str) -> String {
    format!("GET {resource} HTTP/1.1\r\nHost: a\r\n{UPGRADE}{headers}\r\n")
}

/// A version 2 header for a stream over IPv6.
fn binary() -> Vec<u8> {
    let source: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x29".to_vec();
    header.extend_from_slice(&source.octets());
    header.extend_from_slice(&[0; 16]);
    header.extend_from_slice(&[0x12, 0x34, 0, 80]);
    header.extend_from_slice(b"\x04\0\x02xx");
    header
}

const HANDLERS: [&str; 3] = ["everything", "everything_blocking", "crash"];

/// Serves with one worker unless `args` say otherwise; `args` may name the file [`POOL`].
#[track_caller]
fn serve(args: &[&str]) -> (Server, Dir) {
    let dir = Dir::new();
    for name in HANDLERS {
        fixtures::add_handler(dir.path(), name, name);
    }
    let one = ["--workers", "1"];
    let workers = if args.contains(&"--workers") { &[][..] } else { &one[..] };
    let patient = ["-o", "quarantine_deaths=0", "-o", "handshake_timeout=1h"];
    let server = Server::start(&dir, &[workers, &patient, args].concat());
    (server, dir)
}

/// The same with the event style handler in a pool of its own.
#[track_caller]
fn serve_from_pool(args: &[&str]) -> (Server, Dir) {
    let dir = Dir::new();
    for name in HANDLERS {
        fixtures::add_handler(dir.path(), name, name);
    }
    let file = dir.path().join("wshd.conf");
    std::fs::write(&file, "[handler.'/everything']\nisolation = 'pool'\n").unwrap();
    let config = ["--workers", "1", "-o", "quarantine_deaths=0", "--config", file.to_str().unwrap()];
    let server = Server::start(&dir, &[&config[..], args].concat());
    (server, dir)
}

const TRUST: [&str; 2] = ["-o", "trust_proxy=127.0.0.1"];
const PROTOCOL: [&str; 3] = ["-o", "trust_proxy=127.0.0.1", "-oproxy_protocol=true"];

/// The addresses that the handler gets for a connection that begins with these bytes.
#[track_caller]
fn seen(mut raw: Raw, bytes: &[u8]) -> String {
    raw.send(bytes);
    let head = raw.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    raw.ask("remote_address")
}

#[track_caller]
fn status(server: &Server, bytes: &str) -> u16 {
    let mut raw = Raw::connect(&server.address());
    raw.send(bytes.as_bytes());
    raw.answer().status
}

/// Connects from a local address.
fn from(address: &str, server: &Server) -> Raw {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(address.parse().unwrap(), 0).into()).unwrap();
    socket.connect(&server.address().parse::<SocketAddr>().unwrap().into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(daemon::TIMEOUT)).unwrap();
    Raw::over(stream)
}

#[test]
fn the_proxy_header_names_the_client_however_it_is_cut() {
    for (mut server, _dir) in [serve(&PROTOCOL), serve_from_pool(&PROTOCOL)] {
        for resource in ["/everything", "/everything_blocking"] {
            let all = [LINE, &request(resource, "")].concat();
            assert_eq!(seen(Raw::connect(&server.address()), all.as_bytes()), SEEN);
            let all = [&binary()[..], request(resource, "").as_bytes()].concat();
            let answer = seen(Raw::connect(&server.address()), &all);
            assert_eq!(answer, "remote_address: 0 family=6 port=4660 text=2001:db8::7");
        }
        // Cut at every place of the header, and byte by byte.
        let all = [LINE, &request("/everything", "")].concat();
        for cut in 1..=LINE.len() + 1 {
            let mut raw = Raw::connect(&server.address());
            raw.send(&all.as_bytes()[..cut]);
            std::thread::yield_now();
            assert_eq!(seen(raw, &all.as_bytes()[cut..]), SEEN, "cut at {cut}");
        }
        let mut raw = Raw::connect(&server.address());
        all.bytes().for_each(|byte| raw.send(&[byte]));
        assert_eq!(seen(raw, b""), SEEN);
        server.stop();
    }
}

#[test]
fn a_proxy_that_speaks_for_itself_is_the_peer() {
    let (mut server, _dir) = serve(&PROTOCOL);
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let raw = Raw::connect(&server.address());
        let port = raw.stream.local_addr().unwrap().port();
        let answer = seen(raw, &[header, request("/everything", "").as_bytes()].concat());
        assert_eq!(answer, format!("remote_address: 0 family=4 port={port} text=127.0.0.1"));
    }
    server.stop();
}

#[test]
fn the_proxy_header_is_required_from_trusted_addresses_only() {
    let (mut server, _dir) = serve(&PROTOCOL);
    for wrong in [request("/everything", ""), LINE.replace("\r\n", "\n") + &request("/everything", "")] {
        let mut raw = Raw::connect(&server.address());
        raw.send(wrong.as_bytes());
        assert_eq!(raw.rest(), b"", "closed without a word");
    }
    server.says("was turned away: no valid header of the PROXY protocol: not a header");
    let raw = from("127.0.0.2", &server);
    let port = raw.stream.local_addr().unwrap().port();
    let answer = seen(raw, request("/everything", "").as_bytes());
    assert_eq!(answer, format!("remote_address: 0 family=4 port={port} text=127.0.0.2"));
    let mut raw = from("127.0.0.2", &server);
    raw.send((LINE.to_owned() + &request("/everything", "")).as_bytes());
    assert_eq!(raw.answer().status, 400, "not even if it would like to be");
    drop(raw);
    server.stop();
}

#[test]
fn fields_of_the_request_name_the_client() {
    for (mut server, _dir) in [serve(&TRUST), serve_from_pool(&TRUST)] {
        for (headers, expected) in [
            ("X-Forwarded-For: 192.0.2.1, 192.0.2.2\r\n", "family=4 port=0 text=192.0.2.2"),
            ("X-Forwarded-For: 192.0.2.1, 127.0.0.1\r\n", "family=4 port=0 text=192.0.2.1"),
            ("Forwarded: for=\"[2001:db8::1]:4711\"\r\n", "family=6 port=4711 text=2001:db8::1"),
        ] {
            for resource in ["/everything", "/everything_blocking"] {
                let answer = seen(Raw::connect(&server.address()), request(resource, headers).as_bytes());
                assert_eq!(answer, format!("remote_address: 0 {expected}"));
            }
        }
        for wrong in ["X-Forwarded-For: me\r\n", "Forwarded: for\r\n"] {
            assert_eq!(status(&server, &request("/everything", wrong)), 400, "{wrong}");
        }
        let spoofed = "Forwarded: for=203.0.113.9\r\nX-Forwarded-For: 192.0.2.1\r\n";
        assert_eq!(status(&server, &request("/everything", spoofed)), 400);
        let raw = from("127.0.0.2", &server);
        let port = raw.stream.local_addr().unwrap().port();
        let answer = seen(raw, request("/everything", "X-Forwarded-For: 192.0.2.1\r\n").as_bytes());
        assert_eq!(
            answer,
            format!("remote_address: 0 family=4 port={port} text=127.0.0.2"),
            "nobody trusts it"
        );
        server.stop();
    }
}

/// A proxy behind a proxy: the first one uses the request, the second the PROXY header.
#[test]
fn proxy_header_and_fields_are_combined() {
    let args = ["-o", "trust_proxy=10.0.0.0/8"];
    let (mut server, _dir) = serve(&[&PROTOCOL[..], &args].concat());
    let field = request("/everything", "X-Forwarded-For: 192.0.2.1\r\n");
    let bytes = LINE.replace("192.0.2.7", "10.1.2.3") + &field;
    let answer = seen(Raw::connect(&server.address()), bytes.as_bytes());
    assert_eq!(answer, "remote_address: 0 family=4 port=0 text=192.0.2.1");
    let bytes = LINE.to_owned() + &field;
    assert_eq!(
        seen(Raw::connect(&server.address()), bytes.as_bytes()),
        SEEN,
        "192.0.2.7 is no proxy of ours"
    );
    server.stop();
}

#[test]
fn a_proxy_may_be_on_a_unix_socket() {
    let path = Dir::new();
    let socket = path.path().join("socket");
    let address = format!("unix:{}", socket.display());
    for (trust, expected) in [(true, "family=4 port=0 text=192.0.2.1"), (false, "family=1 port=0 text=")] {
        let trusted = if trust { &["-o", "trust_proxy=unix"][..] } else { &TRUST };
        let (mut server, _dir) = serve(&[&["--server-host", &address], trusted].concat());
        let mut raw = Raw::over(client::unix(&socket));
        raw.upgrade("/everything", "X-Forwarded-For: 192.0.2.1\r\n");
        let answer = raw.ask("remote_address");
        assert!(answer.ends_with(expected), "{answer}, expected {expected}");
        drop(raw);
        server.stop();
    }
}

/// A listener for a proxy, and one for the others.
#[test]
fn one_listener_requires_the_proxy_header_and_another_does_not() {
    use std::os::unix::fs::PermissionsExt;
    let place = Dir::new();
    let socket = place.path().join("socket");
    let file = place.path().join("wshd.conf");
    let text = format!(
        "trust_proxy = ['127.0.0.1', 'unix']\nworkers = 1\n[[listener]]\naddress = '127.0.0.1:0'\n\
         [[listener]]\naddress = 'unix:{}'\nmode = '0600'\nproxy_protocol = true\n",
        socket.display()
    );
    std::fs::write(&file, text).unwrap();
    let dir = Dir::new();
    fixtures::add_handler(dir.path(), "everything", "everything");
    let mut server = Server::start(&dir, &["--config", file.to_str().unwrap()]);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut plain = Raw::open(&server.address(), "/everything");
    assert!(plain.ask("remote_address").ends_with("text=127.0.0.1"));
    let mut relayed = Raw::over(client::unix(&socket));
    relayed.send(LINE.as_bytes());
    relayed.upgrade("/everything", "");
    assert_eq!(relayed.ask("remote_address"), SEEN);
    let mut bare = Raw::over(client::unix(&socket));
    bare.send(b"GET /everything HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(bare.rest().is_empty(), "a connection without the header is closed");
    drop((plain, relayed, bare));
    server.stop();
}

/// Crashes a worker of the default pool.
#[track_caller]
fn crash(server: &Server) {
    let mut culprit = from("127.0.0.2", server);
    culprit.upgrade("/crash", "");
    culprit.text("null");
    culprit.expect_close(1011);
}

#[test]
fn the_client_address_moves_with_the_connection() {
    let (mut server, _dir) = serve(&PROTOCOL);
    // One is relayed, the other is the proxy's own: the bytes after its header look like a header from a trusted
    // address.
    for header in [LINE, "PROXY UNKNOWN\r\n"] {
        let all = header.to_owned() + &request("/everything", "");
        let is_seen = |raw: &mut Raw, stage: usize| {
            let port = raw.stream.local_addr().unwrap().port();
            let own = format!("remote_address: 0 family=4 port={port} text=127.0.0.1");
            assert_eq!(
                raw.ask("remote_address"),
                if header == LINE { SEEN } else { &own },
                "{header}{stage}"
            );
        };
        // Open connections, and connections in each earlier state.
        let stages = [0, 1, 10, header.len(), header.len() + 1, header.len() + 30, all.len() - 1, all.len()];
        let mut raws = stages.map(|stage| {
            let mut raw = Raw::connect(&server.address());
            raw.send(&all.as_bytes()[..stage]);
            if stage == all.len() {
                assert!(raw.head().starts_with("HTTP/1.1 101 "));
            }
            (raw, stage)
        });
        for _ in 0..2 {
            crash(&server);
            let (open, stage) = raws.last_mut().unwrap();
            is_seen(open, *stage);
            assert_eq!(open.ask("is_resumed"), "is_resumed: 1");
        }
        for (raw, stage) in &mut raws {
            raw.send(&all.as_bytes()[*stage..]);
            if *stage < all.len() {
                assert!(raw.head().starts_with("HTTP/1.1 101 "), "{header}{stage}");
            }
            is_seen(raw, *stage);
        }
    }
    server.stop();
}

#[test]
fn limits_apply_to_the_client_not_to_the_proxy() {
    let limit = ["-o", "max_connections_per_address=2"];
    for by_header in [true, false] {
        let proxy = if by_header { &PROTOCOL[..] } else { &TRUST };
        let (mut server, _dir) = serve(&[proxy, &limit, &["--workers", "2"]].concat());
        let begin = |client: &str| match by_header {
            true => LINE.replace("192.0.2.7", client) + &request("/everything", ""),
            false => request("/everything", &format!("X-Forwarded-For: {client}\r\n")),
        };
        let open = |client: &str| {
            let mut raw = Raw::connect(&server.address());
            raw.send(begin(client).as_bytes());
            let head = raw.head();
            head.starts_with("HTTP/1.1 101 ").then_some(raw).ok_or(head)
        };
        let mut held: Vec<Raw> =
            (0..20).map(|number| open(&format!("192.0.2.{}", number / 2)).unwrap()).collect();
        let refused = open("192.0.2.3").map(|_| ()).unwrap_err();
        assert!(refused.starts_with("HTTP/1.1 429 ") && refused.contains("Retry-After: 10\r\n"), "{refused}");
        // After the move, each connection is counted for its client.
        crash(&server);
        held.iter_mut().for_each(|raw| assert!(raw.ask("remote_address").contains("text=192.0.2.")));
        assert!(open("192.0.2.3").is_err() && open("192.0.2.100").is_ok());
        drop(held.remove(7));
        until("there is room for one more", || open("192.0.2.3").map(|raw| held.push(raw)).is_ok());
        server.says("192.0.2.3:");
        drop(held);
        server.stop();
    }
}
