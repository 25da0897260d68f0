//! HTTP/2: WebSockets on streams, other requests, and clients that violate RFC 9113.

#![allow(clippy::unwrap_used)]

mod common {
    pub mod fixtures;
    pub mod h2;
    pub mod server;
    pub mod tls;
}

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::h2::{
    ACK, CONNECT_PROTOCOL, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, H2, HEADERS, PING,
    PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW, WINDOW_UPDATE, block, connect, frame, get,
    ws,
};
use common::server::{Dir, Server, is_alive, until};
use common::tls::{Authority, Client, echo, options, port, prepare, processes, start, start_copy, upgrade};
use nix::sys::signal::Signal;

const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

struct Setup {
    server: Server,
    authority: Authority,
    _dir: Dir,
}

impl Setup {
    fn new(more: &[&str]) -> Self {
        let (dir, authority) = prepare(&["echo", "crash"]);
        Self { server: start(&dir, more), authority, _dir: dir }
    }

    fn client(&self) -> Client {
        Client::of(&self.authority).alpn("h2")
    }

    fn open(&self) -> H2 {
        H2::open(&self.client(), port(&self.server))
    }
}

#[test]
fn many_websockets_on_one_connection() {
    let setup = Setup::new(&["--workers", "2"]);
    let mut h2 = setup.open();
    assert_eq!(h2.settings.get(&CONNECT_PROTOCOL), Some(&1));
    let streams: Vec<u32> = (0..20).map(|_| h2.websocket("/echo")).collect();
    for round in 0..3 {
        for stream in &streams {
            h2.echo(*stream, &format!("round {round} of {stream}"));
        }
    }
    // Each is closed by itself.
    let (first, others) = streams.split_first().unwrap();
    h2.send(&frame(DATA, 0, *first, &ws(8, &[3, 0xe8])));
    assert_eq!(h2.data(*first, 4), [0x88, 2, 3, 0xe8]);
    let last = h2.next(*first).unwrap();
    assert_eq!((last.kind, last.flags), (DATA, END_STREAM));
    others.iter().for_each(|stream| h2.echo(*stream, "still there"));
    // A reset is an abrupt end.
    h2.send(&frame(RST_STREAM, 0, others[0], &8_u32.to_be_bytes()));
    others[1..].iter().for_each(|stream| h2.echo(*stream, "still there"));
}

#[test]
fn flow_control_is_backpressure() {
    let setup = Setup::new(&["-o", "send_high=10M", "-o", "deflate=false"]);
    let mut h2 = H2::open_with(&setup.client(), port(&setup.server), &[(WINDOW, 1000)]);
    let stream = h2.websocket("/echo");
    let message = vec![7; 300_000];
    let sent = ws(2, &message);
    h2.send_data(stream, &sent);
    // The server sends no more than the window until it is opened.
    let mut got = Vec::new();
    while got.len() < 1000 {
        got.extend(h2.next(stream).unwrap().payload);
    }
    assert_eq!(got.len(), 1000);
    h2.send(&frame(WINDOW_UPDATE, 0, 0, &1_000_000_u32.to_be_bytes()));
    h2.send(&frame(WINDOW_UPDATE, 0, stream, &1_000_000_u32.to_be_bytes()));
    while got.len() < message.len() + 10 {
        got.extend(h2.next(stream).unwrap().payload);
    }
    assert!(got[10..] == message);
}

#[test]
fn other_requests_are_answered_as_over_http_1() {
    let setup = Setup::new(&[]);
    let mut h2 = setup.open();
    let stream = h2.begin(&get("/console.html"), END_STREAM);
    assert_eq!(h2.next(stream).unwrap().status(), 200);
    let mut page = Vec::new();
    loop {
        let Frame { kind, flags, payload, .. } = h2.next(stream).unwrap();
        assert_eq!(kind, DATA);
        page.extend(&payload);
        if flags & END_STREAM != 0 {
            break;
        }
        let more = (payload.len() as u32).to_be_bytes();
        h2.send(&[frame(WINDOW_UPDATE, 0, 0, &more), frame(WINDOW_UPDATE, 0, stream, &more)].concat());
    }
    assert!(String::from_utf8_lossy(&page).contains("</html>"));
    // RFC 9113 section 5.1: a stream error.
    h2.send(&frame(DATA, 0, stream, b"x"));
    let refused = h2.next(stream).unwrap();
    assert_eq!((refused.kind, refused.code()), (RST_STREAM, STREAM_CLOSED));
    let stream = h2.begin(&get("/nothing"), END_STREAM);
    let answer = h2.next(stream).unwrap();
    assert_eq!(answer.status(), 404, "{answer:?}");
    let head =
        [(":method", "HEAD"), (":scheme", "https"), (":authority", "localhost"), (":path", "/console.html")];
    let stream = h2.begin(&block(&head), END_STREAM);
    let answer = h2.next(stream).unwrap();
    assert_eq!((answer.status(), answer.flags & END_STREAM), (200, END_STREAM));
    // A WebSocket of a handler that does not exist.
    let stream = h2.begin(&connect("/nothing"), 0);
    assert_eq!(h2.next(stream).unwrap().status(), 404);
}

#[test]
fn programs_get_the_body_before_they_answer_and_their_output_is_not_chunked() {
    let (dir, authority) = prepare(&[]);
    let (root, mode) = (dir.path().join("www"), |path: &Path, mode| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    });
    std::fs::create_dir_all(root.join("cgi")).unwrap();
    mode(dir.path(), 0o755);
    let program = root.join("cgi/read");
    let text = "read line\nprintf 'Content-Type: text/plain\\n\\n'\necho \"got $line\"\nsleep 0.3\necho more $HTTPS $SERVER_PORT\n";
    std::fs::write(&program, format!("#!/bin/sh\n{text}")).unwrap();
    mode(&program, 0o755);
    let mut options = vec!["-d", root.to_str().unwrap(), "-x", "/cgi"];
    if nix::unistd::geteuid().is_root() {
        options.extend(["-o", "cgi_user=nobody"]);
    }
    let server = start(&dir, &options);
    let mut h2 = H2::open(&Client::of(&authority).alpn("h2"), port(&server));
    let body = |h2: &mut H2, stream| {
        let mut body = Vec::new();
        loop {
            let frame = h2.next(stream).unwrap();
            assert_eq!(frame.kind, DATA, "{frame:?}");
            body.extend(&frame.payload);
            if frame.flags & END_STREAM != 0 {
                return String::from_utf8(body).unwrap();
            }
        }
    };
    let head = |method, more: &[(&'static str, &'static str)]| {
        let first =
            [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", "/cgi/read")];
        block(&[&first, more].concat())
    };
    for expect in [&[][..], &[("expect", "100-continue")]] {
        let stream = h2.begin(&head("POST", &[&[("content-length", "6")], expect].concat()), 0);
        if !expect.is_empty() {
            assert_eq!(h2.next(stream).unwrap().status(), 100);
        }
        h2.send(&frame(DATA, 0, stream, b"hel"));
        h2.send(&frame(DATA, END_STREAM, stream, b"lo\n"));
        assert_eq!(h2.next(stream).unwrap().status(), 200);
        assert_eq!(body(&mut h2, stream), format!("got hello\nmore on {}\n", port(&server)));
    }
    // The end of the request is not that of the client.
    let stream = h2.begin(&head("GET", &[]), END_STREAM);
    assert_eq!(h2.next(stream).unwrap().status(), 200);
    assert_eq!(body(&mut h2, stream), format!("got \nmore on {}\n", port(&server)));
}

#[test]
fn a_stream_that_only_the_worker_ends_is_over() {
    let setup = Setup::new(&[]);
    let mut h2 = setup.open();
    let stream = h2.websocket("/echo");
    h2.send(&frame(DATA, 0, stream, &ws(8, &[3, 232])));
    // The client has not ended it.
    let reset = loop {
        let frame = h2.next(stream).unwrap();
        if frame.kind != DATA {
            break frame;
        }
    };
    assert_eq!((reset.kind, reset.code()), (RST_STREAM, NO_ERROR));
}

#[test]
fn streams_are_limited_and_logged_like_connections() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let access = format!("access_log={}", log.path().display());
    let setup = Setup::new(&["-o", "max_connections_per_address=3", "-o", &access]);
    let mut h2 = setup.open();
    let streams: Vec<u32> = (0..3).map(|_| h2.websocket("/echo")).collect();
    let one_too_many = h2.begin(&connect("/echo?too=many"), 0);
    assert_eq!(h2.next(one_too_many).unwrap().status(), 429);
    streams.iter().for_each(|stream| h2.echo(*stream, "still there"));
    h2.send(&frame(DATA, 0, streams[0], &ws(8, &[3, 0xe8])));
    let closed = |line: &str| line.contains("event=close") && line.contains("resource=/echo ");
    let lines = || std::fs::read_to_string(log.path()).unwrap();
    until("its end is logged", || lines().lines().any(closed));
    until("there is room again", || {
        let stream = h2.begin(&connect("/echo"), 0);
        h2.next(stream).unwrap().status() == 200
    });
    assert_eq!(lines().lines().filter(|line| closed(line)).count(), 1, "{}", lines());
}

#[test]
fn handshakes_and_idle_connections_of_an_address_are_limited() {
    let options = [
        "gateways=1",
        "handshake_timeout=1h",
        "max_connections_per_address=2",
        "trust_proxy=127.0.0.1",
        "proxy_protocol=true",
    ];
    let options: Vec<&str> = options.iter().flat_map(|option| ["-o", option]).collect();
    let setup = Setup::new(&options);
    let port = port(&setup.server);
    let header = |last: u8| format!("PROXY TCP4 192.0.2.{last} 192.0.2.1 5000 443\r\n").into_bytes();
    let client = |last| setup.client().prelude(&header(last));
    let is_refused = |last| client(last).connect(port).is_err();
    let stall = || {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.write_all(&header(7)).unwrap();
        socket
    };
    // The proxy has no limit.
    let _silent: Vec<TcpStream> = (0..5).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let stalled = [stall(), stall()];
    until("a third one is refused", || is_refused(7));
    setup
        .server
        .says("192.0.2.7 was turned away: too many connections from its address wait in this gateway");
    assert!(!is_refused(8), "another address");
    drop(stalled);
    until("there is room again", || !is_refused(7));

    let mut idle = [(); 2].map(|()| H2::open(&client(7), port));
    until("a third one is refused", || is_refused(7));
    let [first, second] = idle.each_mut().map(|h2| h2.websocket("/echo"));
    until("streams count in workers only", || !is_refused(7));
    let stalled = [stall(), stall()];
    until("a third one is refused", || is_refused(7));
    idle[1].echo(second, "still there");
    idle[0].send(&frame(DATA, END_STREAM, first, &ws(8, &[3, 0xe8])));
    assert_eq!(idle[0].goaway(), Some(NO_ERROR), "there is no room for an idle connection");
    drop(stalled);
    idle[1].echo(second, "still there");
}

#[test]
fn a_stream_for_which_the_gateway_has_no_room_is_refused() {
    let (dir, authority) = prepare(&["echo"]);
    let log = dir.path().join("log");
    let mut command = Command::new("prlimit");
    command.args(["--nofile=200", env!("CARGO_BIN_EXE_wshd"), "-p", "0", "--workers", "1", "-l"]);
    command.arg(&log).arg("-w").arg(dir.path());
    command.args(options(&dir, &["-o", "gateways=1"])).stdin(Stdio::null());
    let server = Server::launch(command, log).when_ready();
    let mut h2 = H2::open(&Client::of(&authority).alpn("h2"), port(&server));
    let (mut streams, begun) = (Vec::new(), std::time::Instant::now());
    loop {
        let stream = h2.begin(&connect("/echo"), 0);
        match h2.next(stream).unwrap().status() {
            200 => streams.push(stream),
            status => break assert_eq!(status, 503, "after {} streams", streams.len()),
        }
    }
    // (200 - 64) / 3 permits; the connection has one, and the next one that is accepted.
    assert_eq!(streams.len(), 43);
    for _ in 0..20 {
        let stream = h2.begin(&connect("/echo"), 0);
        assert_ne!(h2.next(stream).unwrap().status(), 200);
    }
    server.says("a connection was refused: the gateway has no room for a stream; raise RLIMIT_NOFILE");
    let most = 10 + begun.elapsed().as_secs() as usize;
    assert!(server.log().matches("no room for a stream").count() < most, "{}", server.log());
    echo(&mut Client::of(&authority).open(port(&server), "/echo").unwrap(), 10);
    streams.iter().for_each(|stream| h2.echo(*stream, "still there"));
    h2.send(&frame(DATA, END_STREAM, streams[0], &ws(8, &[3, 0xe8])));
    until("there is room again", || {
        let stream = h2.begin(&connect("/echo"), 0);
        h2.next(stream).unwrap().status() == 200
    });
}

#[test]
fn without_descriptors_a_gateway_refuses_and_the_client_can_read_that() {
    let setup = Setup::new(&["-o", "gateways=1"]);
    let mut h2 = setup.open();
    let stream = h2.websocket("/echo");
    let gateway = processes(&setup.server, "gateway")[0];
    let limit = |soft: u32| {
        let args = [format!("--pid={gateway}"), format!("--nofile={soft}:")];
        assert!(Command::new("prlimit").args(args).status().unwrap().success());
    };
    // One descriptor is left.
    let is_free = |number: &u32| !Path::new(&format!("/proc/{gateway}/fd/{number}")).exists();
    limit((0..).find(is_free).unwrap() + 1);
    let refused = h2.begin(&connect("/echo"), 0);
    assert_eq!(h2.next(refused).unwrap().status(), 503);
    setup.server.says("a connection was refused: cannot create a socket pair");
    // What the client still sends, which it may for two seconds, does not reset the connection.
    until("it is not reset", || {
        let mut tls = Client::of(&setup.authority).connect(port(&setup.server)).unwrap();
        let mut response = String::new();
        tls.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
        let is_over = tls.sock.write_all(b"late").is_ok() && matches!(tls.sock.read(&mut [0]), Ok(0));
        std::thread::sleep(Duration::from_millis(100));
        is_over && tls.sock.take_error().unwrap().is_none() && tls.sock.write_all(b"later").is_ok()
    });
    h2.echo(stream, "still there");
    limit(1000);
    let stream = h2.websocket("/echo");
    h2.echo(stream, "served again");
}

#[test]
fn crashes_and_reloads_cost_a_stream_or_nothing() {
    let setup = Setup::new(&["--workers", "1", "-o", "quarantine_deaths=0"]);
    let mut h2 = setup.open();
    let streams: Vec<u32> = (0..10).map(|_| h2.websocket("/echo")).collect();
    let culprit = h2.websocket("/crash");
    h2.send(&frame(DATA, 0, culprit, &ws(1, b"null")));
    assert_eq!(h2.data(culprit, 4), [0x88, 2, 3, 0xf3], "1011");
    streams.iter().for_each(|stream| h2.echo(*stream, "after a crash"));
    // The handler has changed: all connections move to a new worker.
    let handler = setup._dir.path().join("echo_wsh.so");
    let copy = handler.with_extension("copy");
    std::fs::copy(&handler, &copy).unwrap();
    std::fs::rename(&copy, &handler).unwrap();
    setup.server.signal(Signal::SIGHUP);
    setup.server.says("reload: done");
    streams.iter().for_each(|stream| h2.echo(*stream, "after a reload"));
}

#[test]
fn connections_move_to_the_pool_of_their_handler_and_survive_its_crash() {
    let (dir, authority) = prepare(&["echo", "crash"]);
    let config = dir.path().join("wshd.conf");
    std::fs::write(&config, "quarantine_deaths = 0\n[handler.'/crash']\nisolation = 'pool'\n").unwrap();
    let server = start(&dir, &["-f", config.to_str().unwrap(), "--workers", "1"]);
    let mut h2 = H2::open(&Client::of(&authority).alpn("h2"), port(&server));
    let (other, bystander) = (h2.websocket("/echo"), h2.websocket("/crash"));
    let mut over_http1 = Client::of(&authority).open(port(&server), "/crash").unwrap();
    let mut bystanders = |h2: &mut H2| {
        h2.echo(other, "in the default pool");
        h2.echo(bystander, "in the other pool");
        echo(&mut over_http1, 1000);
    };
    bystanders(&mut h2);
    let [default, pool] = ["worker default", "worker crash"].map(|title| processes(&server, title)[0]);
    let culprit = h2.websocket("/crash");
    h2.send(&frame(DATA, 0, culprit, &ws(1, b"null")));
    assert_eq!(h2.data(culprit, 4), [0x88, 2, 3, 0xf3], "1011");
    until("the pool's worker is gone", || !is_alive(pool));
    bystanders(&mut h2);
    assert!(is_alive(default));
}

#[test]
fn an_upgrade_keeps_all_streams() {
    let (dir, authority) = prepare(&["echo"]);
    let mut server = start_copy(&dir, &["--workers", "1"]);
    let client = Client::of(&authority).alpn("h2");
    let mut before = H2::open(&client, port(&server));
    let streams: Vec<u32> = (0..5).map(|_| before.websocket("/echo")).collect();
    let _new = upgrade(&server);
    streams.iter().for_each(|stream| before.echo(*stream, "after an upgrade"));
    let mut after = H2::open(&client, port(&server));
    let stream = after.websocket("/echo");
    after.echo(stream, "with the new server");
    // The old one accepts no new stream, and ends with its last one.
    for stream in streams {
        before.send(&frame(DATA, 0, stream, &ws(8, &[3, 0xe8])));
        assert_eq!(before.data(stream, 4), [0x88, 2, 3, 0xe8]);
        before.send(&frame(DATA, END_STREAM, stream, &[]));
    }
    assert!(before.is_going_away || before.goaway() == Some(NO_ERROR));
    assert_eq!(server.wait().code(), Some(0));
    after.echo(stream, "when the old one has ended");
}

/// What is sent after the preface and SETTINGS, and how that ends: GOAWAY, or RST_STREAM of stream 1, with this code.
/// An error of a stream may be treated as one of its connection (5.4.1), and the crate h2 has the unspecific
/// PROTOCOL_ERROR (7) where it does not tell malformed frames apart.
enum End {
    Connection(u32),
    Stream(u32),
    Fine,
}

#[test]
fn each_rule_of_rfc_9113_by_section() {
    use End::{Connection, Fine, Stream};
    let setup = Setup::new(&[]);
    let request = || frame(HEADERS, END_HEADERS | END_STREAM, 1, &get("/console.html"));
    let open = || frame(HEADERS, END_HEADERS, 1, &connect("/echo"));
    let headers = |headers: &[(&str, &str)]| frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(headers));
    let pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/")];
    let with = |more: (&'static str, &'static str)| headers(&[&pseudo[..], &[more]].concat());
    let rows: Vec<(&str, Vec<u8>, End)> = vec![
        ("4.1 an unknown type is ignored", [frame(0xbe, 0, 0, b"x"), request()].concat(), Fine),
        ("4.2 larger than the maximum", frame(DATA, 0, 1, &vec![0; 16_385]), Connection(FRAME_SIZE_ERROR)),
        (
            "4.3 a block that is no HPACK",
            frame(HEADERS, END_HEADERS, 1, &[0xff; 20]),
            Connection(COMPRESSION_ERROR),
        ),
        ("5.1 DATA on an idle stream", frame(DATA, 0, 1, b"x"), Connection(PROTOCOL_ERROR)),
        ("5.1 RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), Connection(PROTOCOL_ERROR)),
        (
            "5.1.1 an even stream",
            frame(HEADERS, END_HEADERS | END_STREAM, 2, &get("/")),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "5.1.1 a stream that was passed over",
            [
                frame(HEADERS, END_HEADERS | END_STREAM, 5, &get("/")),
                frame(HEADERS, END_HEADERS | END_STREAM, 3, &get("/")),
            ]
            .concat(),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "5.1 WINDOW_UPDATE of an idle stream",
            frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
            Connection(PROTOCOL_ERROR),
        ),
        ("5.1 DATA after END_STREAM", [request(), frame(DATA, 0, 1, b"x")].concat(), Stream(STREAM_CLOSED)),
        (
            "5.3.1 a stream that depends on itself",
            frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 7]),
            Stream(PROTOCOL_ERROR),
        ),
        ("6.1 DATA on stream 0", frame(DATA, 0, 0, b"x"), Connection(PROTOCOL_ERROR)),
        (
            "6.1 padding longer than the frame",
            [open(), frame(DATA, 8, 1, &[9, 1])].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        ("6.2 HEADERS on stream 0", frame(HEADERS, END_HEADERS, 0, &get("/")), Connection(PROTOCOL_ERROR)),
        (
            "6.2 padding longer than the frame",
            frame(HEADERS, END_HEADERS | END_STREAM | 8, 1, &[&[200][..], &get("/")].concat()),
            Connection(PROTOCOL_ERROR),
        ),
        ("6.3 PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0, 0, 0, 1, 7]), Connection(PROTOCOL_ERROR)),
        ("6.3 PRIORITY of a wrong size", frame(PRIORITY, 0, 1, &[0; 4]), Stream(FRAME_SIZE_ERROR)),
        ("6.4 RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0; 4]), Connection(PROTOCOL_ERROR)),
        (
            "6.4 RST_STREAM of a wrong size",
            [open(), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
            Connection(FRAME_SIZE_ERROR),
        ),
        ("6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), Connection(PROTOCOL_ERROR)),
        ("6.5 SETTINGS of a wrong size", frame(SETTINGS, 0, 0, &[0; 5]), Connection(FRAME_SIZE_ERROR)),
        ("6.5 ACK with a payload", frame(SETTINGS, ACK, 0, &[0; 6]), Connection(FRAME_SIZE_ERROR)),
        (
            "6.5.2 a window that is too large",
            frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]),
            Connection(FLOW_CONTROL_ERROR),
        ),
        (
            "6.5.2 a frame size that is too small",
            frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]),
            Connection(PROTOCOL_ERROR),
        ),
        ("6.5.2 ENABLE_PUSH of 2", frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]), Connection(PROTOCOL_ERROR)),
        (
            "6.5.2 an unknown setting is ignored",
            [frame(SETTINGS, 0, 0, &[0, 0xbe, 0, 0, 0, 1]), request()].concat(),
            Fine,
        ),
        (
            "6.6 PUSH_PROMISE of a client",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
            Connection(PROTOCOL_ERROR),
        ),
        ("6.7 PING on a stream", frame(PING, 0, 1, &[0; 8]), Connection(PROTOCOL_ERROR)),
        ("6.7 PING of a wrong size", frame(PING, 0, 0, &[0; 7]), Connection(FRAME_SIZE_ERROR)),
        ("6.7 a PING is answered", frame(PING, 0, 0, &[1; 8]), Fine),
        ("6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), Connection(PROTOCOL_ERROR)),
        (
            "6.9 WINDOW_UPDATE of 0 on a stream",
            [open(), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat(),
            Stream(PROTOCOL_ERROR),
        ),
        (
            "6.9.1 a window of a stream beyond 2^31 - 1",
            [open(), frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])].concat(),
            Stream(FLOW_CONTROL_ERROR),
        ),
        ("6.9 WINDOW_UPDATE of 0", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), Connection(PROTOCOL_ERROR)),
        (
            "6.9 WINDOW_UPDATE of a wrong size",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            Connection(FRAME_SIZE_ERROR),
        ),
        (
            "6.9.1 a window beyond 2^31 - 1",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            Connection(FLOW_CONTROL_ERROR),
        ),
        (
            "6.10 CONTINUATION without HEADERS",
            frame(CONTINUATION, END_HEADERS, 1, &[]),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "6.10 another frame between",
            [frame(HEADERS, 0, 1, &get("/")), frame(PING, 0, 0, &[0; 8])].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        (
            "8.1 trailers that do not end the stream",
            [open(), frame(HEADERS, END_HEADERS, 1, &block(&[("a", "b")]))].concat(),
            Stream(PROTOCOL_ERROR),
        ),
        (
            "8.1.1 more than content-length",
            [
                frame(HEADERS, END_HEADERS, 1, &block(&[&pseudo[..], &[("content-length", "1")]].concat())),
                frame(DATA, END_STREAM, 1, b"xx"),
            ]
            .concat(),
            Stream(PROTOCOL_ERROR),
        ),
        ("8.2.1 an empty name", with(("", "1")), Stream(PROTOCOL_ERROR)),
        ("8.2.1 a line end in a value", with(("a", "b\r\nc: d")), Stream(PROTOCOL_ERROR)),
        ("8.2.1 NUL in a value", with(("a", "b\0")), Stream(PROTOCOL_ERROR)),
        ("8.2.1 an upper case name", with(("X-Upper", "1")), Stream(PROTOCOL_ERROR)),
        ("8.2.2 a header of a connection", with(("connection", "close")), Stream(PROTOCOL_ERROR)),
        ("8.3 a pseudo-header that is unknown", with((":other", "1")), Stream(PROTOCOL_ERROR)),
        (
            "8.3 a pseudo-header behind others",
            headers(&[pseudo[0], ("a", "b"), pseudo[1], pseudo[2], pseudo[3]]),
            Stream(PROTOCOL_ERROR),
        ),
        ("8.2.2 te of other than trailers", with(("te", "gzip")), Stream(PROTOCOL_ERROR)),
        ("8.3 a pseudo-header of responses", with((":status", "200")), Stream(PROTOCOL_ERROR)),
        ("8.3 a pseudo-header twice", with((":path", "/")), Stream(PROTOCOL_ERROR)),
        (
            "8.3.1 an empty path",
            headers(&[pseudo[0], pseudo[1], pseudo[2], (":path", "")]),
            Stream(PROTOCOL_ERROR),
        ),
        ("8.3.1 no scheme", headers(&[pseudo[0], pseudo[2], pseudo[3]]), Stream(PROTOCOL_ERROR)),
        (
            "8.5 CONNECT with a path",
            headers(&[(":method", "CONNECT"), pseudo[2], pseudo[3]]),
            Stream(PROTOCOL_ERROR),
        ),
        ("RFC 8441 4: a protocol without CONNECT", with((":protocol", "websocket")), Stream(PROTOCOL_ERROR)),
        (
            "RFC 8441 4: a protocol without path",
            headers(&[(":method", "CONNECT"), (":protocol", "websocket"), pseudo[1], pseudo[2]]),
            Stream(PROTOCOL_ERROR),
        ),
        ("8.3.1 no method", headers(&pseudo[1..]), Stream(PROTOCOL_ERROR)),
        ("8.3.1 no path", headers(&pseudo[..3]), Stream(PROTOCOL_ERROR)),
    ];
    let mut wrong = Vec::new();
    for (rule, sent, expected) in rows {
        let mut h2 = setup.open();
        h2.send(&sent);
        if matches!(expected, Fine) {
            h2.send(&frame(PING, 0, 0, b"12345678"));
        }
        let got = loop {
            match h2.read() {
                Ok(frame) if frame.kind == GOAWAY && frame.code() != NO_ERROR => {
                    break format!("connection {}", frame.code());
                }
                Ok(frame) if frame.kind == RST_STREAM => break format!("stream {}", frame.code()),
                Ok(frame) if frame.kind == PING && frame.flags == ACK => break "fine".to_owned(),
                Ok(_) => {}
                Err(error) => break format!("nothing: {error}"),
            }
        };
        let expected = match expected {
            Connection(code) => format!("connection {code}"),
            Stream(code) => format!("stream {code}"),
            Fine => "fine".to_owned(),
        };
        if got != expected && got != format!("connection {PROTOCOL_ERROR}") {
            wrong.push(format!("{rule}: expected {expected}, got {got}"));
        }
    }
    // The preface itself (3.4).
    let mut stream = setup.client().connect(port(&setup.server)).unwrap();
    use std::io::{Read, Write};
    stream.write_all(&[&PREFACE[..20], b"XXXXXXXXXXXXXXXXXXXXXXXX"].concat()).unwrap();
    let _ = stream.read_to_end(&mut Vec::new()); // it ends, instead of hanging
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn floods_end_their_own_connection_only() {
    let setup = Setup::new(&["--workers", "1"]);
    let mut other = setup.open();
    let stream = other.websocket("/echo");
    // CVE-2023-44487: streams that are reset immediately.
    let mut h2 = setup.open();
    for number in 0..5000_u32 {
        let id = 2 * number + 1;
        let bytes = [
            frame(HEADERS, END_HEADERS, id, &connect("/echo")),
            frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()),
        ];
        if h2.try_send(&bytes.concat()).is_err() {
            break;
        }
    }
    assert!(matches!(h2.goaway(), Some(ENHANCE_YOUR_CALM) | None));
    other.echo(stream, "after a rapid reset");
    // CVE-2024-27316: headers that never end.
    let mut h2 = setup.open();
    h2.send(&frame(HEADERS, 0, 1, &get("/")));
    for _ in 0..2000 {
        let more = block(&[("x", &"y".repeat(100))]);
        if h2.try_send(&frame(CONTINUATION, 0, 1, &more)).is_err() {
            break;
        }
    }
    assert!(h2.goaway().is_none_or(|code| code != NO_ERROR));
    // A head over the limit.
    let mut h2 = setup.open();
    let long = "y".repeat(10_000);
    let huge = block(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "x"),
        (":path", "/"),
        ("a", &long),
        ("b", &long),
    ]);
    let (first, second) = huge.split_at(16_000);
    h2.send(&[frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 1, second)].concat());
    let answer = h2.next(1).unwrap();
    assert!(matches!(answer.kind, HEADERS | RST_STREAM) && answer.payload.len() < 500, "{answer:?}");
    // SETTINGS and PINGs whose answers are never read.
    let mut h2 = setup.open();
    let flood = [frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 1, 0]), frame(PING, 0, 0, &[0; 8])].concat().repeat(500);
    h2.send(&flood);
    other.echo(stream, "during a flood");
    // More streams than allowed.
    let mut h2 = setup.open();
    let streams: Vec<u32> = (0..300).map(|_| h2.begin(&connect("/echo"), 0)).collect();
    until("a stream is refused", || {
        h2.read().is_ok_and(|frame| frame.kind == RST_STREAM && frame.code() == 7)
    });
    drop(streams);
    other.echo(stream, "at the end");
}
