//! Draining a server.

use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;

use nix::sys::signal::Signal;
use tungstenite::Message;

use super::client::{Client, Raw, ask, close_of, connect};
use super::h2::H2;
use super::server::{Dir, ECHO, Server, TIMEOUT, until};
use super::tls;
use super::{Operated, health, not_ready, ready};

fn is_refused(address: &str) -> bool {
    TcpStream::connect(address).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Whether the server has closed this connection, without waiting for it.
fn is_closed(client: &mut Client) -> bool {
    client.get_ref().set_nonblocking(true).unwrap();
    let closed = match client.read() {
        Ok(Message::Close(_)) => true,
        Ok(other) => panic!("{other:?}"),
        Err(tungstenite::Error::Io(error)) => error.kind() != std::io::ErrorKind::WouldBlock,
        Err(_) => true,
    };
    client.get_ref().set_nonblocking(false).unwrap();
    closed
}

#[test]
fn clients_are_closed_one_after_another_and_then_the_server_stops() {
    let mut operated = Operated::start(&["--workers", "2"]);
    let address = operated.address();
    // So many over such a time that the first ones are closed soon, and most of them not for minutes.
    let mut clients: Vec<Client> = (0..300).map(|_| connect(&address, "/echo")).collect();
    assert!(operated.says(&["drain", "--for", "10m"]).starts_with("draining; the server stops in "));
    assert_eq!(health(&operated.metrics(), "/readyz"), not_ready("draining"));
    until("new clients are refused", || is_refused(&address));
    let draining = &operated.status()["draining"];
    assert_eq!(draining["accepting"], false);
    assert!(draining["seconds"].as_f64().unwrap() > 10.0, "{draining}");
    assert!(operated.says(&["status"]).contains("DRAINING, closing connections; stops in "));
    until("the first one is closed", || clients.iter_mut().any(is_closed));
    let is_served = |client: &mut Client| {
        client.send(Message::text("x")).is_ok() && client.read().is_ok_and(|answer| answer.is_text())
    };
    let served = clients.iter_mut().map(is_served).filter(|is_served| *is_served).count();
    assert!(served > 150, "only {served} of 300 are served");
    assert!(operated.refuses(&["reload"]).contains("the server is draining"));
    assert!(operated.refuses(&["upgrade"]).contains("the server is draining"));

    operated.says(&["drain", "--for", "1s"]);
    let codes: Vec<u16> = clients.iter_mut().map(|client| close_of(client).0).collect();
    // Those that were found closed above have been read already.
    assert!(codes.iter().filter(|code| **code == 1001).count() > 150, "{codes:?}");
    drop(clients);
    assert_eq!(operated.server.wait().code(), Some(0), "{}", operated.server.log());
    operated.server.says("stopping");
}

#[test]
fn a_crash_does_not_end_a_drain() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    dir.handler(
        "crash",
        r#"
        #include <stdlib.h>
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; abort(); }
        WS_HANDLER(.name = "crash", .on_message = on_message);
        "#,
    );
    let mut operated = Operated::start_in(dir, &["--workers", "1"]);
    let address = operated.address();
    let mut clients: Vec<Client> = (0..20).map(|_| connect(&address, "/echo")).collect();
    let mut crash = connect(&address, "/crash");
    operated.says(&["drain", "--for", "1h"]);
    until("TCP is refused", || is_refused(&address));
    crash.send(Message::text("now")).unwrap();
    operated.server.says("has ended after its crash: moved 20 connections, lost 1");
    assert!(clients.iter_mut().all(|client| ask(client, "still here") == "still here"));
    assert_eq!(operated.status()["draining"]["accepting"], false);
    operated.says(&["drain", "--for", "1s"]);
    drop((clients, crash));
    assert_eq!(operated.server.wait().code(), Some(0), "{}", operated.server.log());
}

#[test]
fn a_server_that_is_drained_can_resume() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let socket = dir.path().join("socket");
    let also = format!("server_host=unix:{}", socket.display());
    let args = ["--workers", "2", "-o", "server_host=127.0.0.1", "-o", &also, "-o", "health=/healthz"];
    let mut operated = Operated::start_in(dir, &args);
    let (address, metrics) = (operated.address(), operated.metrics());
    assert!(operated.refuses(&["resume"]).contains("not draining"));
    let mut client = connect(&address, "/echo");
    for _ in 0..2 {
        operated.says(&["drain", "--for", "1h"]);
        until("TCP is refused", || is_refused(&address));
        let ask_health = || {
            let mut raw = Raw::over(UnixStream::connect(&socket).unwrap());
            raw.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
            raw.answer()
        };
        let refused = ask_health();
        assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("10")), "at a Unix socket");
        assert_eq!(ask(&mut client, "still here"), "still here");
        assert_eq!(operated.says(&["resume"]), "resumed: new connections are accepted\n");
        assert_eq!(ask_health().status, 200);
        assert_eq!(health(&metrics, "/readyz"), ready());
        let mut another = connect(&address, "/echo");
        assert_eq!(ask(&mut another, "again"), "again");
        assert!(operated.status()["draining"].is_null());
    }
    assert!(operated.says(&["reload"]).contains("done"));
    operated.server.stop();
}

#[test]
fn health_checks_fail_before_connections_are_refused() {
    let mut operated = Operated::start(&[
        "--workers",
        "1",
        "-o",
        "health=/healthz",
        "-o",
        "drain_delay=1h",
        "-o",
        "drain_code=1012",
    ]);
    let address = operated.address();
    operated.says(&["drain", "--for", "1s"]);
    assert_eq!(health(&address, "/healthz"), not_ready("draining"));
    assert_eq!(operated.status()["draining"]["accepting"], true);
    let mut client = connect(&address, "/echo");
    assert_eq!(ask(&mut client, "served"), "served");
    operated.says(&["resume"]);
    assert_eq!(health(&address, "/healthz"), ready());
    operated.server.stop();
}

/// The next message to the service manager that contains this.
fn heard(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let size = manager.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..size].to_vec()).unwrap()
}

#[test]
fn sigterm_drains_first_if_so_configured_and_the_second_one_stops() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_wshd"));
    let log = dir.path().join("log");
    command.args(["--port", "0", "--websock-handlers"]).arg(dir.path()).arg("--log-file").arg(&log);
    command.arg("--control-socket").arg(dir.path().join("control"));
    command.args(["-o", "drain_before_stop=1h", "-o", "drain_code=1012"]);
    command.env("NOTIFY_SOCKET", dir.path().join("notify"));
    let server = Server::launch(command, log).when_ready();
    let mut operated = Operated { server, dir };
    assert!(heard(&manager).starts_with("READY=1"));
    let mut clients = [0, 1].map(|_| connect(&operated.address(), "/echo"));
    operated.server.signal(Signal::SIGTERM);
    assert!(heard(&manager).starts_with("STATUS=Draining: accepting no more; closing 2 connections"));
    let stopping = heard(&manager);
    let usec = stopping.strip_prefix("STOPPING=1\nEXTEND_TIMEOUT_USEC=").unwrap().lines().next().unwrap();
    let usec: u64 = usec.parse().unwrap();
    assert!((3_600_000_000..3_700_000_000).contains(&usec), "an hour, stop_timeout and a margin: {stopping}");
    assert_eq!(ask(&mut clients[0], "still here"), "still here");
    assert!(operated.refuses(&["resume"]).contains("told to stop"));
    operated.says(&["drain", "--for", "2h"]);
    assert!(heard(&manager).starts_with("STATUS=Draining"));
    let extended = heard(&manager);
    assert!(extended.starts_with("EXTEND_TIMEOUT_USEC=72"), "{extended}");
    operated.server.signal(Signal::SIGTERM);
    let codes = clients.each_mut().map(|client| close_of(client).0);
    assert_eq!(codes, [1012, 1012]);
    drop(clients);
    assert_eq!(operated.server.wait().code(), Some(0), "{}", operated.server.log());
}

#[test]
fn a_server_without_clients_stops_at_once() {
    let mut operated = Operated::start(&["--workers", "1"]);
    operated.says(&["drain", "--for", "1h"]);
    assert_eq!(operated.server.wait().code(), Some(0), "{}", operated.server.log());
}

/// A server with TLS and HTTP/2.
fn encrypted() -> (Operated, tls::Client, u16) {
    let (dir, authority) = tls::prepare(&["echo"]);
    let options = tls::options(&dir, &["--workers", "1", "-o", "drain_code=1012"]);
    let operated = Operated::start_in(dir, &options.iter().map(String::as_str).collect::<Vec<_>>());
    let port = tls::port(&operated.server);
    (operated, tls::Client::of(&authority), port)
}

#[test]
fn connections_of_tls_are_drained_and_resumed() {
    let (mut operated, client, port) = encrypted();
    let mut socket = client.open(port, "/echo").unwrap();
    operated.says(&["drain", "--for", "1h"]);
    until("TLS is refused", || is_refused(&operated.address()));
    tls::echo(&mut socket, 1000);
    operated.says(&["resume"]);
    let mut another = client.open(port, "/echo").unwrap();
    tls::echo(&mut another, 1000);
    tls::echo(&mut socket, 1000);
    operated.says(&["drain", "--for", "1s"]);
    for socket in [&mut socket, &mut another] {
        let Message::Close(Some(close)) = socket.read().unwrap() else { panic!("no close frame") };
        assert_eq!(u16::from(close.code), 1012);
        while socket.read().is_ok() {}
    }
    drop((socket, another));
    assert_eq!(operated.server.wait().code(), Some(0), "{}", operated.server.log());
}

#[test]
fn an_http2_connection_gets_goaway() {
    let (mut operated, client, port) = encrypted();
    let mut h2 = H2::open(&client.alpn("h2"), port);
    let stream = h2.websocket("/echo");
    operated.says(&["drain", "--for", "1h"]);
    assert_eq!(h2.goaway(), Some(0), "NO_ERROR");
    h2.echo(stream, "still here");
    operated.says(&["drain", "--for", "1s"]);
    assert_eq!(h2.data(stream, 4), [0x88, 2, 0x03, 0xf4], "a Close frame with 1012");
    drop(h2);
    assert_eq!(operated.server.wait().code(), Some(0), "{}", operated.server.log());
}

#[test]
fn per_connection_processes_are_drained() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let config = dir.path().join("w.conf");
    std::fs::write(&config, "[handler.'/echo']\nisolation = 'connection'\n").unwrap();
    let mut operated = Operated::start_in(dir, &["--workers", "1", "--config", config.to_str().unwrap()]);
    let mut clients = [0, 1, 2].map(|_| connect(&operated.address(), "/echo"));
    assert!(clients.iter_mut().all(|client| ask(client, "here") == "here"));
    operated.says(&["drain", "--for", "2s"]);
    assert_eq!(clients.each_mut().map(|client| close_of(client).0), [1001; 3]);
    drop(clients);
    assert_eq!(operated.server.wait().code(), Some(0), "{}", operated.server.log());
}
