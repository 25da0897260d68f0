//! TLS: rustls clients against the gateway, its files, and its connections.

#![allow(clippy::unwrap_used)]

mod common {
    pub mod fixtures;
    pub mod server;
    pub mod tls;
}

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use common::server::{Dir, Server, TIMEOUT, is_alive, memory_of, output_of, until, wshd};
use common::tls::{Authority, Client, echo, port, prepare, processes, start, start_copy, upgrade};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{DnType, date_time_ymd};
use rustls::HandshakeKind;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tungstenite::Message;

fn set_up() -> (Dir, Authority) {
    prepare(&["echo", "crash"])
}

#[track_caller]
fn reload(server: &Server, outcome: &str) {
    let before = server.log().matches(outcome).count();
    server.signal(Signal::SIGHUP);
    until(outcome, || server.log().matches(outcome).count() > before);
}

/// The common name of the server's certificate.
fn shown(stream: &common::tls::Tls) -> String {
    let der = stream.conn.peer_certificates().unwrap()[0].to_vec();
    let names = ["first", "second", "third", "cert"];
    let is_in = |name: &&str| der.windows(name.len()).any(|part| part == name.as_bytes());
    names.into_iter().find(is_in).unwrap().to_owned()
}

#[test]
fn a_websocket_over_each_version_of_tls() {
    let (dir, authority) = set_up();
    let mut server = start(&dir, &["--workers", "2", "-o", "gateways=2"]);
    assert_eq!(processes(&server, "gateway").len(), 2);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = Client::of(&authority).version(version);
        let mut socket = client.open(port(&server), "/echo").unwrap();
        for size in [0, 1, 125, 126, 70_000, 3_000_000] {
            echo(&mut socket, size);
        }
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
    }
    server.stop();
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[test]
fn sessions_are_resumed_at_any_gateway() {
    let (dir, authority) = set_up();
    let server = start(&dir, &["-o", "gateways=3"]);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = Client::of(&authority).version(version);
        for number in 0..12 {
            let mut socket = client.open(port(&server), "/echo").unwrap();
            echo(&mut socket, 5); // by then the ticket has arrived
            let expected = if number == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
            let got = socket.get_ref().conn.handshake_kind().unwrap();
            // The first TLS 1.3 handshake may have requested another key share.
            assert!(got == expected || number == 0, "{version:?} {number}: {got:?}");
        }
    }
}

#[test]
fn invalid_files_prevent_the_start() {
    let (dir, authority) = set_up();
    let path = |name: &str| dir.path().join(name).display().to_string();
    authority.issue("other", &["localhost"]);
    authority.issue_with("old", &["localhost"], |params| params.not_after = date_time_ymd(2020, 1, 1));
    authority.issue_with("young", &["localhost"], |params| params.not_before = date_time_ymd(2999, 1, 1));
    std::fs::write(dir.path().join("nothing.pem"), "nothing").unwrap();
    authority.issue("open", &["localhost"]);
    for (name, mode) in [("nothing.pem", 0o600), ("open.key", 0o644)] {
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    for (certificate, key, why) in [
        ("none.pem", "cert.key", "none.pem: No such file"),
        ("cert.pem", "none.key", "none.key: No such file"),
        ("nothing.pem", "cert.key", "nothing.pem: no certificate in the file"),
        ("cert.pem", "nothing.pem", "nothing.pem: no private key in PEM"),
        ("cert.pem", "other.key", "other.key does not match certificate"),
        ("open.pem", "open.key", "open.key: others can read this secret, mode 0644: chmod o= "),
        ("old.pem", "old.key", "old.pem: expired on 2020-01-01"),
        ("young.pem", "young.key", "young.pem: not valid before 2999-01-01"),
    ] {
        // A start, and a test of the configuration.
        for test in [&[][..], &["-T"]] {
            let mut command = wshd();
            command.args(test).args(["-p", "0", "-t", "-k", &path(key), "-c", &path(certificate), "-w"]);
            let output = output_of(command.arg(dir.path())).unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains(why), "{certificate} {key}: {said}");
            assert_eq!(output.status.code(), Some(3), "{said}");
        }
    }
}

#[test]
fn a_reload_loads_a_new_certificate_and_an_invalid_one_changes_nothing() {
    let (dir, authority) = set_up();
    let server = start(&dir, &["--workers", "2"]);
    let port = port(&server);
    let mut old = Client::of(&authority).open(port, "/echo").unwrap();
    echo(&mut old, 10);
    assert_eq!(shown(old.get_ref()), "cert");
    std::fs::copy(authority.file("ca.pem"), authority.file("cert.pem")).unwrap();
    reload(&server, "does not match certificate");
    assert_eq!(shown(&Client::of(&authority).connect(port).unwrap()), "cert");
    authority.issue("second", &["localhost"]);
    for end in ["pem", "key"] {
        std::fs::copy(authority.file(&format!("second.{end}")), authority.file(&format!("cert.{end}")))
            .unwrap();
    }
    reload(&server, "reload: done");
    let mut new = Client::of(&authority).open(port, "/echo").unwrap();
    assert_eq!(shown(new.get_ref()), "second");
    echo(&mut new, 10);
    echo(&mut old, 100_000);
}

#[test]
fn a_crash_moves_the_connections_and_a_gateway_that_dies_is_replaced() {
    let (dir, authority) = set_up();
    let server = start(&dir, &["--workers", "1", "-o", "quarantine_deaths=0"]);
    let client = Client::of(&authority);
    let mut others: Vec<_> = (0..20).map(|_| client.open(port(&server), "/echo").unwrap()).collect();
    let mut culprit = client.open(port(&server), "/crash").unwrap();
    let worker = processes(&server, "worker")[0];
    culprit.send(Message::text("null")).unwrap();
    let Message::Close(Some(close)) = culprit.read().unwrap() else { panic!("no Close frame") };
    assert_eq!(u16::from(close.code), 1011);
    until("the worker is gone", || !is_alive(worker));
    others.iter_mut().for_each(|other| echo(other, 1000));

    let gateway = processes(&server, "gateway")[0];
    kill(Pid::from_raw(gateway), Signal::SIGKILL).unwrap();
    until("its connections end", || others[0].read().is_err());
    until("another one serves", || client.open(port(&server), "/echo").is_ok());
    echo(&mut client.open(port(&server), "/echo").unwrap(), 10);
}

#[test]
fn the_certificate_is_chosen_by_name_and_client_certificates_can_be_required() {
    let (dir, authority) = set_up();
    let other = Authority::named(dir.path(), "other-ca");
    authority.issue_with("client", &[], |params| {
        params.distinguished_name.push(DnType::CountryName, "AQ");
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    });
    other.issue("stranger", &[]);
    let ca = authority.file("ca.pem");
    let required = ["--tls-client-auth", "--tls-client-ca", &ca];
    let optional = ["--tls-client-auth", "--tls-client-ca", &ca, "--tls-client-cert-optional"];
    for (options, without) in [(&required[..], false), (&optional[..], true)] {
        let server = start(&dir, options);
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let client = || Client::of(&authority).version(version);
            let right = client().certificate(&authority, "client");
            for _ in 0..3 {
                echo(&mut right.open(port(&server), "/echo").unwrap(), 100); // also resumed
            }
            let stranger = client().certificate(&other, "stranger");
            assert!(stranger.open(port(&server), "/echo").is_err(), "a stranger {version:?}");
            assert_eq!(client().open(port(&server), "/echo").is_ok(), without, "none {version:?}");
        }
    }
}

#[test]
fn connections_end_like_plain_ones() {
    let (dir, authority) = set_up();
    let server = start(&dir, &[]);
    let client = Client::of(&authority);
    let request = "GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let masked_close = [0x88, 0x82, 0, 0, 0, 0, 3, 0xe8];
    let masked_text = [0x81, 0x82, 0, 0, 0, 0, b'h', b'i'];
    // close_notify after a message and a Close frame: both are answered, and then the server sends close_notify.
    let mut stream = client.connect(port(&server)).unwrap();
    stream.write_all(&[request.as_bytes(), &masked_text, &masked_close].concat()).unwrap();
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap(); // an error without close_notify
    assert!(all.ends_with(b"\x81\x02hi\x88\x02\x03\xe8"), "{:?}", String::from_utf8_lossy(&all));
    // An abrupt end, and bytes that are not TLS, close the connection of the worker.
    let mut broken = client.connect(port(&server)).unwrap();
    broken.write_all(request.as_bytes()).unwrap();
    broken.read_exact(&mut [0; 12]).unwrap();
    broken.sock.write_all(&[b'x'; 100]).unwrap();
    let mut rest = Vec::new();
    assert!(broken.read_to_end(&mut rest).is_err());
    drop(client.connect(port(&server)).unwrap());
    // Not TLS at all.
    let mut plain = TcpStream::connect(("127.0.0.1", port(&server))).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    plain.read_to_end(&mut rest).unwrap();
    echo(&mut client.open(port(&server), "/echo").unwrap(), 10);
}

#[test]
fn a_thousand_stalled_handshakes_do_not_delay_others() {
    let (dir, authority) = set_up();
    let server = start(&dir, &["-o", "handshake_timeout=1h"]);
    let port = port(&server);
    let stalled: Vec<TcpStream> = (0..1000)
        .map(|number| {
            let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
            // The beginning of a ClientHello.
            socket.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252][..number % 10]).unwrap();
            socket
        })
        .collect();
    echo(&mut Client::of(&authority).open(port, "/echo").unwrap(), 10);
    let is_stalled = |mut socket: &TcpStream| {
        socket.set_nonblocking(true).unwrap();
        socket.read(&mut [0]).is_err_and(|error| is_later(&error))
    };
    assert!(stalled.iter().all(is_stalled), "nobody had to leave for it");
}

/// A configuration file with this text, in which `DIR` is the directory.
fn config(dir: &Dir, text: &str) -> String {
    let path = dir.path().join("wshd.conf");
    std::fs::write(&path, text.replace("DIR", &dir.path().display().to_string())).unwrap();
    path.display().to_string()
}

/// All ports in the ready line, in their order.
fn ports(server: &Server) -> Vec<u16> {
    let addresses = server.ready.trim_start_matches("wshd: ready on ").split(',').next().unwrap();
    let port = |address: &str| address.rsplit_once(':').unwrap().1.trim().parse().unwrap();
    addresses.split(" and ").map(port).collect()
}

#[test]
fn several_listeners() {
    let (dir, authority) = set_up();
    for (name, host) in [("first", "first.test"), ("second", "*.second.test"), ("third", "third.test")] {
        authority.issue(name, &[host]);
    }
    let open = |path: &std::path::Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let program = dir.path().join("www/cgi/hello");
    std::fs::create_dir_all(program.parent().unwrap()).unwrap();
    std::fs::write(&program, "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nhello'\n").unwrap();
    open(dir.path());
    open(&program);
    let user = if nix::unistd::geteuid().is_root() { "cgi_user = 'nobody'\n" } else { "" };
    let text = r#"
        document_root = "DIR/www"
        cgi_paths = "/cgi"
        certificate = ["DIR/first.pem", "DIR/second.pem", "DIR/third.pem"]
        private_key = ["DIR/first.key", "DIR/second.key", "DIR/third.key"]
        [[listener]]
        address = "127.0.0.5:0"
        tls = true
        hsts = "1h"
        tls_min_version = "1.3"
        [[listener]]
        address = "127.0.0.2:0"
        redirect_to_https = true
        [[listener]]
        address = "127.0.0.3:0"
        h2c = true
        [[listener]]
        address = "127.0.0.4:0"
    "#;
    let server = Server::start(&dir, &["-f", &config(&dir, &[user, text].concat())]);
    let [tls, redirect, h2c, plain] = ports(&server)[..] else { panic!("{}", server.ready) };
    // The certificate is chosen by name; the first is for all others.
    for (host, name) in [("first.test", "first"), ("a.second.test", "second"), ("third.test", "third")] {
        assert_eq!(shown(&Client::of(&authority).at("127.0.0.5").host(host).connect(tls).unwrap()), name);
    }
    for other in ["a.b.second.test", "second.test"] {
        let error = Client::of(&authority).at("127.0.0.5").host(other).connect(tls).unwrap_err();
        assert!(error.to_string().contains("not valid for name"), "{error}");
    }
    let old = Client::of(&authority).at("127.0.0.5").host("first.test").version(&rustls::version::TLS12);
    assert!(old.connect(tls).is_err(), "TLS 1.2");
    let get = |stream: &mut dyn ReadWrite, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: first.test:1234\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    // Of programs, too.
    for (path, status) in [("/nothing", " 404 "), ("/cgi/hello", " 200 "), ("/cgi/nothing", " 404 ")] {
        let mut stream = Client::of(&authority).at("127.0.0.5").host("first.test").connect(tls).unwrap();
        let answer = get(&mut stream, path);
        assert!(
            answer.contains(status) && answer.contains("\r\nStrict-Transport-Security: max-age=3600\r\n"),
            "{answer}"
        );
    }
    let mut stream = TcpStream::connect(("127.0.0.2", redirect)).unwrap();
    let answer = get(&mut stream, "/a?b");
    assert!(
        answer.starts_with("HTTP/1.1 308 ") && answer.contains("\r\nLocation: https://first.test/a?b\r\n"),
        "{answer}"
    );
    for (address, port) in [("127.0.0.3", h2c), ("127.0.0.4", plain)] {
        let answer = get(&mut TcpStream::connect((address, port)).unwrap(), "/console.html");
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("Strict"), "{answer}");
        let url = format!("ws://{address}:{port}/echo");
        let stream = TcpStream::connect((address, port)).unwrap();
        let (mut socket, _) = tungstenite::client(url, stream).unwrap();
        socket.send(Message::text("hi")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("hi"));
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

#[test]
fn a_changed_certificate_is_loaded_without_a_reload() {
    let (dir, authority) = set_up();
    let server = start(&dir, &["--metrics", "127.0.0.1:0"]);
    std::fs::write(dir.path().join("bad_wsh.so"), "junk").unwrap();
    reload(&server, "reload: failed");
    let mut old = Client::of(&authority).open(port(&server), "/echo").unwrap();
    authority.issue("second", &["localhost"]);
    for end in ["pem", "key"] {
        std::fs::rename(authority.file(&format!("second.{end}")), authority.file(&format!("cert.{end}")))
            .unwrap();
    }
    let seen = || shown(&Client::of(&authority).connect(port(&server)).unwrap());
    until("the new one is shown", || seen() == "second");
    assert!(
        metrics(&server).contains("\nwshd_last_reload_successful 0\n"),
        "what is configured is not in force"
    );
    // An invalid one is logged once, and changes nothing.
    std::fs::write(authority.file("cert.key"), "nothing").unwrap();
    server.says("no private key in PEM");
    assert_eq!(seen(), "second");
    echo(&mut old, 1000);
}

#[test]
fn an_upgrade_keeps_all_connections() {
    let (dir, authority) = set_up();
    let mut server = start_copy(&dir, &["--workers", "1"]);
    let client = Client::of(&authority);
    let mut before: Vec<_> = (0..5).map(|_| client.open(port(&server), "/echo").unwrap()).collect();
    let _new = upgrade(&server);
    before.iter_mut().for_each(|socket| echo(socket, 10_000));
    let mut after = client.open(port(&server), "/echo").unwrap();
    echo(&mut after, 10_000);
    // The old one ends with its last connection.
    before.iter_mut().for_each(|socket| {
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
    });
    assert_eq!(server.wait().code(), Some(0));
    echo(&mut after, 10_000);
}

#[test]
fn a_proxy_names_the_client_before_the_handshake() {
    let (dir, authority) = set_up();
    let access = dir.path().join("access").display().to_string();
    let trust = ["-o", "trust_proxy=127.0.0.1", "-o", "proxy_protocol=true", "-o"];
    let access_log = format!("access_log={access}");
    let server = start(&dir, &[&trust[..], &[&access_log]].concat());
    let header = b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 443\r\n";
    let client = Client::of(&authority).prelude(header);
    echo(&mut client.open(port(&server), "/echo").unwrap(), 10);
    assert!(Client::of(&authority).open(port(&server), "/echo").is_err(), "without the header");
    until("the client is in the log", || {
        std::fs::read_to_string(&access).unwrap_or_default().contains("192.0.2.7")
    });
}

#[test]
fn the_port_is_free_soon_after_a_supervisor_was_killed() {
    let (dir, authority) = set_up();
    let server = start(&dir, &[]);
    let mut socket = Client::of(&authority).open(port(&server), "/echo").unwrap();
    server.signal(Signal::SIGKILL);
    until("it is free", || std::net::TcpListener::bind(("127.0.0.1", port(&server))).is_ok());
    // Sent by the worker, and relayed.
    let Message::Close(Some(close)) = socket.read().unwrap() else { panic!("no Close frame") };
    assert_eq!(u16::from(close.code), 1001);
}

#[test]
fn a_gateway_that_does_not_respond_is_killed_and_replaced() {
    let (dir, authority) = set_up();
    let mut server = start(&dir, &["-o", "worker_timeout=1s", "--metrics", "127.0.0.1:0"]);
    let stopped = [processes(&server, "gateway")[0], processes(&server, "metrics")[0]];
    stopped.iter().for_each(|pid| kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap());
    for (pid, name) in stopped.iter().zip(["gateway", "metrics"]) {
        server.says(&format!("{name}[{pid}] has not responded for "));
        until("there is another", || processes(&server, name).iter().any(|other| other != pid));
    }
    // Others that get no processor for a second are killed, too.
    until("it is served", || {
        let Ok(mut socket) = Client::of(&authority).open(port(&server), "/echo") else { return false };
        socket.send(Message::text("x")).is_ok() && socket.read().is_ok_and(|answer| answer.is_text())
    });
    for (pid, name) in stopped.iter().zip(["gateway", "metrics"]) {
        let line = format!("{name}[{pid}] has not responded");
        assert_eq!(server.log().matches(&line).count(), 1, "{}", server.log());
    }
    server.stop();
}

#[test]
fn a_gateway_uses_the_reopened_log() {
    let (dir, _) = set_up();
    let server = start(&dir, &[]);
    let log = dir.path().join("log");
    std::fs::rename(&log, dir.path().join("log.old")).unwrap();
    server.signal(Signal::SIGUSR1);
    let old = dir.path().join("log.old").display().to_string();
    let gateway = processes(&server, "gateway")[0];
    let holds = || {
        let files = std::fs::read_dir(format!("/proc/{gateway}/fd")).unwrap();
        files
            .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
            .any(|file| file.display().to_string() == old)
    };
    until("the old one is let go of", || log.exists() && !holds());
}

/// Answers with both ends of the connection.
const ENDS: &str = r#"
    #include <ws_handler.h>
    #include <stdio.h>
    #include <string.h>
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        ws_address local, remote;
        char text[300];
        (void)msg;
        ws_local_address(conn, &local);
        ws_remote_address(conn, &remote);
        snprintf(text, sizeof text, "%s %u, %s", local.text, (unsigned)local.port, remote.text);
        ws_send(conn, WS_TEXT, text, strlen(text));
    }
    WS_HANDLER(.name = "ends", .on_message = on_message);
"#;

#[test]
fn handlers_see_the_ends_of_the_connection_to_the_gateway() {
    let (dir, authority) = set_up();
    dir.handler("ends", ENDS);
    let server = start(&dir, &[]);
    let mut socket = Client::of(&authority).open(port(&server), "/ends").unwrap();
    socket.send(Message::text("?")).unwrap();
    let expected = format!("127.0.0.1 {}, 127.0.0.1", port(&server));
    assert_eq!(socket.read().unwrap(), Message::text(expected));
}

/// Answers with the TLS fact of this number; empty if it is absent.
const FACTS: &str = r#"
    #include <ws_handler.h>
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        ws_bytes fact = ws_tls_fact(conn, (uint32_t)(msg->data[0] - '0'));
        ws_send(conn, WS_BINARY, fact.data, fact.size);
    }
    WS_HANDLER(.name = "facts", .on_message = on_message);
"#;

#[test]
fn handlers_get_the_tls_parameters_and_the_client_certificate() {
    let (dir, authority) = set_up();
    dir.handler("facts", FACTS);
    authority.issue("client", &["ann.example"]);
    let server = start(&dir, &["--tls-client-auth", "--tls-client-ca", &authority.file("ca.pem")]);
    let pem = std::fs::read(authority.file("client.pem")).unwrap();
    let der: Vec<u8> = CertificateDer::pem_slice_iter(&pem).flat_map(|der| der.unwrap().to_vec()).collect();
    for (version, name) in [(&rustls::version::TLS12, "TLSv1.2"), (&rustls::version::TLS13, "TLSv1.3")] {
        let client =
            Client::of(&authority).version(version).alpn("http/1.1").certificate(&authority, "client");
        for is_resumed in [false, true] {
            let mut socket = client.open(port(&server), "/facts").unwrap();
            let mut fact = |number: u32| {
                socket.send(Message::text(number.to_string())).unwrap();
                socket.read().unwrap().into_data().to_vec()
            };
            assert_eq!(fact(1), name.as_bytes());
            assert!(fact(2).starts_with(b"TLS_"), "{name}");
            assert_eq!(fact(3), b"localhost");
            assert!(!fact(4).is_empty(), "{name}");
            assert_eq!(fact(5), b"http/1.1");
            assert!(fact(6) == der, "{name}: the chain");
            assert_eq!(fact(7), if is_resumed { &b"1"[..] } else { b"" }, "{name}");
            assert_eq!(fact(8), b"");
        }
    }
}

/// A handler that searches memory for bytes: `own BYTES` in its own, `PID BYTES` in that of another process. The bytes
/// are inverted, so that the command does not contain them.
const SPY: &str = r#"
    #include <ws_handler.h>
    #include <fcntl.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>
    static const char *look(const char *pid, const unsigned char *bytes, size_t size)
    {
        static unsigned char buffer[1 << 20];
        char name[64], line[512];
        unsigned long from, to;
        snprintf(name, sizeof name, "/proc/%s/maps", pid);
        FILE *maps = fopen(name, "r");
        snprintf(name, sizeof name, "/proc/%s/mem", pid);
        int mem = open(name, O_RDONLY);
        if (maps == NULL || mem < 0)
            return "denied";
        while (fgets(line, sizeof line, maps) != NULL) {
            if (sscanf(line, "%lx-%lx r", &from, &to) != 2)
                continue;
            for (; from < to; from += sizeof buffer - size) {
                size_t want = to - from < sizeof buffer ? to - from : sizeof buffer;
                ssize_t got = pread(mem, buffer, want, (off_t)from);
                for (ssize_t at = 0; at + (ssize_t)size <= got; at++) {
                    size_t same = 0;
                    while (same < size && (buffer[at + same] ^ 0xff) == bytes[same])
                        same++;
                    if (same == size)
                        return "found";
                }
                if (want < sizeof buffer)
                    break;
            }
        }
        return "nothing";
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        char pid[32];
        size_t at = 0;
        const char *data = (const char *)msg->data;
        while (data[at] != ' ')
            at++;
        memcpy(pid, data, at);
        pid[at] = 0;
        const char *said = look(strcmp(pid, "own") == 0 ? "self" : pid, (const unsigned char *)data + at + 1,
                                msg->size - at - 1);
        ws_send(conn, WS_TEXT, said, strlen(said));
    }
    WS_HANDLER(.name = "spy", .on_message = on_message);
"#;

#[test]
fn no_key_is_accessible_to_a_handler() {
    let (dir, authority) = set_up();
    dir.handler("spy", SPY);
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // A worker that runs as root could do anything.
    let is_root = nix::unistd::geteuid().is_root();
    let server = start(&dir, if is_root { &["--user", "65534", "--group", "65534"] } else { &[] });
    let gateway = processes(&server, "gateway")[0];
    let key = std::fs::read_to_string(authority.file("cert.key")).unwrap();
    let key = rcgen::KeyPair::from_pem(&key).unwrap().serialize_der();
    // The private part of a key of P-256 in PKCS #8 (RFC 5915).
    let secret = &key[36..68];
    let turned: Vec<u8> = secret.iter().map(|byte| !byte).collect();
    let mut socket = Client::of(&authority).open(port(&server), "/spy").unwrap();
    let mut ask = |of: &str, bytes: &[u8]| {
        socket.send(Message::binary([of.as_bytes(), b" ", bytes].concat())).unwrap();
        socket.read().unwrap().into_text().unwrap().to_string()
    };
    // The search works.
    let there: Vec<u8> = b"/proc/%s/maps".iter().map(|byte| !byte).collect();
    assert_eq!(ask("own", &there), "found");
    assert_eq!(ask("own", &turned), "nothing");
    assert_eq!(ask(&gateway.to_string(), &turned), "denied");
    let supervisor = server.pid();
    let of_supervisor = ask(&supervisor.to_string(), &turned);
    assert!(matches!(of_supervisor.as_str(), "denied" | "nothing"), "{of_supervisor}");
}

/// The metrics of the server.
fn metrics(server: &Server) -> String {
    let log = server.log();
    let (_, rest) = log.split_once("metrics are served on ").unwrap();
    let mut stream = TcpStream::connect(rest.split_whitespace().next().unwrap()).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn handshakes_have_a_deadline_and_metrics_have_counts_and_expiry() {
    let (dir, authority) = set_up();
    let expiry = std::time::SystemTime::now() + Duration::from_secs(5 * 24 * 3600 + 3600);
    authority.issue_with("cert", &["localhost"], |params| params.not_after = expiry.into());
    let server = start(&dir, &["--metrics", "127.0.0.1:0", "-o", "handshake_timeout=8s"]);
    server.says("cert.pem expires in 5 days; renew it");
    let client = Client::of(&authority);
    for _ in 0..2 {
        echo(&mut client.open(port(&server), "/echo").unwrap(), 5);
    }
    // No bytes, and the beginning of a ClientHello: both are closed after the timeout.
    let stalled = [&[][..], &[22, 3, 1, 2, 0, 1, 0]].map(|sent| {
        let mut stalled = TcpStream::connect(("127.0.0.1", port(&server))).unwrap();
        stalled.set_read_timeout(Some(TIMEOUT)).unwrap();
        stalled.write_all(sent).unwrap();
        stalled
    });
    for mut stalled in stalled {
        assert!(!stalled.read(&mut [0]).is_err_and(|error| is_later(&error)), "it is still open");
    }
    let mut plain = TcpStream::connect(("127.0.0.1", port(&server))).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    plain.read_to_end(&mut Vec::new()).unwrap();
    let seconds = expiry.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for line in [
        "wshd_tls_handshakes_total{resumed=\"no\"} 1".to_owned(),
        "wshd_tls_handshakes_total{resumed=\"yes\"} 1".to_owned(),
        "wshd_tls_handshake_failures_total{reason=\"timeout\"} 2".to_owned(),
        "wshd_tls_handshake_failures_total{reason=\"protocol\"} 1".to_owned(),
        format!("wshd_certificate_expiry_timestamp_seconds {seconds}"),
    ] {
        until(&line, || metrics(&server).lines().any(|told| told == line));
    }
}

/// Whether nothing could be read or written in time.
fn is_later(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

#[test]
fn ciphers_and_tickets_are_as_configured() {
    let (dir, authority) = set_up();
    let only = "tls_ciphers=TLS_CHACHA20_POLY1305_SHA256";
    let server = start(&dir, &["-o", only, "-o", "session_tickets=false"]);
    let client = Client::of(&authority);
    for _ in 0..3 {
        let mut socket = client.open(port(&server), "/echo").unwrap();
        echo(&mut socket, 5);
        let tls = &socket.get_ref().conn;
        let suite = tls.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
        assert_ne!(tls.handshake_kind(), Some(HandshakeKind::Resumed));
    }
    let old = Client::of(&authority).version(&rustls::version::TLS12);
    assert!(old.connect(port(&server)).is_err(), "no cipher of TLS 1.2");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut command = wshd();
    command.args([
        "-T",
        "-t",
        "-k",
        &path("cert.key"),
        "-c",
        &path("cert.pem"),
        "-o",
        "tls_ciphers=RC4",
        "-w",
    ]);
    let output = output_of(command.arg(dir.path())).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cipher RC4: expected one of TLS_AES_256_GCM_SHA384, "), "{said}");
}

#[test]
fn a_client_that_does_not_read_is_throttled_with_bounded_memory() {
    const SIZE: usize = 64 * 1024;
    const MESSAGES: usize = 600;
    let (dir, authority) = set_up();
    let server = start(&dir, &["--workers", "1", "-o", "gateways=1", "-o", "deflate=false"]);
    let mut stream = Client::of(&authority).connect(port(&server)).unwrap();
    let request = "GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let processes = [processes(&server, "gateway")[0], processes(&server, "worker")[0]];
    let memory = || processes.map(|pid| memory_of(pid, "VmRSS"));
    let before = memory();
    // The same frame, with a key of zeros, repeatedly.
    let message = [&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &[7; SIZE]].concat();
    let (mut sent, whole) = (0, MESSAGES * message.len());
    stream.sock.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut send = || {
        let at = sent % message.len();
        match stream.write(&message[at..message.len().min(at + whole - sent)]) {
            Ok(count) => sent += count,
            Err(error) => assert!(is_later(&error), "{error}"),
        }
        sent
    };
    // Until nothing was accepted for a second.
    let mut last = 0;
    loop {
        let now = send();
        assert!(now < whole, "everything was taken, and nothing read");
        if std::mem::replace(&mut last, now) == now {
            break;
        }
    }
    for (before, after) in before.into_iter().zip(memory()) {
        assert!(after < before + (8 << 10), "{before} KiB, and then {after}");
    }
}

#[test]
#[ignore = "takes 10 s"]
fn a_client_that_pauses_gets_all_of_a_file() {
    let (dir, authority) = set_up();
    let root = dir.path().join("www");
    std::fs::create_dir(&root).unwrap();
    // For some of these sizes the worker has sent everything and the gateway has not.
    let sizes: Vec<usize> = (4..40).map(|size| size * 128 * 1024).collect();
    for size in &sizes {
        std::fs::write(root.join(size.to_string()), vec![7; *size]).unwrap();
    }
    let server = start(&dir, &["-d", root.to_str().unwrap()]);
    let request = |size: &usize| {
        let mut stream = Client::of(&authority).connect(port(&server)).unwrap();
        let head = format!("GET /{size} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let streams: Vec<_> = sizes.iter().map(request).collect();
    std::thread::sleep(Duration::from_secs(9));
    for (size, mut stream) in sizes.iter().zip(streams) {
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer);
        assert!(end.is_ok() && answer.len() > *size, "{} of {size} bytes: {end:?}", answer.len());
    }
}

#[test]
fn a_ticket_does_not_stand_in_for_a_client_certificate() {
    let (dir, authority) = set_up();
    authority.issue("client", &[]);
    let other = Authority::named(dir.path(), "other-ca");
    other.issue("other", &[]);
    let text = r#"
        certificate = "DIR/cert.pem"
        private_key = "DIR/cert.key"
        [[listener]]
        address = "127.0.0.1:0"
        tls = true
        [[listener]]
        address = "127.0.0.2:0"
        tls = true
        tls_client_auth = true
        tls_client_cert_optional = true
        tls_client_ca = "DIR/other-ca.pem"
        [[listener]]
        address = "127.0.0.3:0"
        tls = true
        tls_client_auth = true
        tls_client_ca = "DIR/ca.pem"
    "#;
    let server = Server::start(&dir, &["-f", &config(&dir, text)]);
    let [open, optional, required] = ports(&server)[..] else { panic!("{}", server.ready) };
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut clients = [
            (open, Client::of(&authority)),
            (optional, Client::of(&authority).at("127.0.0.2").certificate(&other, "other")),
        ];
        for (port, client) in clients.each_mut() {
            *client = std::mem::replace(client, Client::of(&authority)).version(version);
            echo(&mut client.open(*port, "/echo").unwrap(), 5); // by then the ticket has arrived
        }
        for (_, client) in clients {
            assert!(client.at("127.0.0.3").open(required, "/echo").is_err(), "{version:?}");
        }
        let right = Client::of(&authority).at("127.0.0.3").version(version).certificate(&authority, "client");
        (0..3).for_each(|_| echo(&mut right.open(required, "/echo").unwrap(), 5));
    }
}
