//! TLS and HTTP/2 with independent clients. Slower tier; `.ci/run` installs them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common {
    pub mod fixtures;
    pub mod server;
    pub mod tls;
}

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use rcgen::PublicKeyData as _;
use tungstenite::Message;

use common::fixtures::{add_handler, root};
use common::server::{Dir, Server, TIMEOUT, memory_of, output_of, output_within, until};
use common::tls::{Authority, port, prepare, processes, start};

struct Setup {
    server: Server,
    dir: Dir,
    authority: Authority,
}

impl Setup {
    fn new(more: &[&str]) -> Self {
        let (dir, authority) = prepare(&["echo", "echo_blocking"]);
        Self { server: start(&dir, more), dir, authority }
    }

    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://localhost:{}", port(&self.server))
    }
}

/// The output of a client, which must succeed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = output_within(TIMEOUT * 6, command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn script(name: &str) -> std::path::PathBuf {
    root().join("tests/clients").join(name)
}

#[test]
#[ignore = "needs the Python package websockets"]
fn python_websockets_over_tls() {
    let python = std::env::var("WSHD_PYTHON").expect("WSHD_PYTHON: a python3 with the package websockets");
    let setup = Setup::new(&[]);
    let mut client = Command::new(python);
    client.arg(script("python_client.py")).arg(setup.url("wss")).arg("plain");
    let said = run(client.env("SSL_CERT_FILE", setup.authority.file("ca.pem")));
    assert!(said.lines().count() == 2 && said.lines().all(|line| line.ends_with(": 20")), "{said}");
}

#[test]
#[ignore = "needs Node.js and the npm package ws"]
fn node_ws_over_tls() {
    let modules = std::env::var("WSHD_NODE_MODULES").expect("WSHD_NODE_MODULES: a directory with ws");
    assert!(Path::new(&modules).join("ws").exists(), "npm install ws");
    let setup = Setup::new(&[]);
    let mut client = Command::new("node");
    client.arg(script("node_client.mjs")).arg(setup.url("wss")).arg("plain");
    let said = run(client.env("NODE_EXTRA_CA_CERTS", setup.authority.file("ca.pem")));
    assert!(said.lines().count() == 2 && said.lines().all(|line| line.ends_with(": 20")), "{said}");
}

#[test]
#[ignore = "needs Node.js"]
fn node_http2_with_extended_connect() {
    let setup = Setup::new(&[]);
    let mut client = Command::new("node");
    client.arg(script("http2_client.mjs")).arg(setup.url("https"));
    let said = run(client.env("NODE_EXTRA_CA_CERTS", setup.authority.file("ca.pem")));
    assert_eq!(said.trim(), "10");
}

#[test]
#[ignore = "needs nghttp2-client"]
fn nghttp_and_h2load() {
    let setup = Setup::new(&["-o", "hsts=1h"]);
    let url = format!("{}/console.html", setup.url("https"));
    let said = run(Command::new("nghttp").args(["-nv", "--no-verify-peer", &url]));
    assert!(said.contains(":status: 200") && said.contains("ENABLE_CONNECT_PROTOCOL(0x08):1"), "{said}");
    assert!(said.contains("strict-transport-security: max-age=3600"), "{said}");
    let said = run(Command::new("h2load").args(["-n", "2000", "-c", "10", "-m", "20", &url]));
    assert!(said.contains("2000 succeeded, 0 failed"), "{said}");
}

#[test]
#[ignore = "needs the Python package h2"]
fn python_h2_breaks_the_rules() {
    let python = std::env::var("WSHD_PYTHON").expect("WSHD_PYTHON: a python3 with the package h2");
    let setup = Setup::new(&["--workers", "1", "-o", "gateways=1", "-o", "handshake_timeout=5s"]);
    let gateway = processes(&setup.server, "gateway")[0];
    let before = memory_of(gateway, "VmRSS");
    let mut client = Command::new(python);
    client.arg(script("http2_abuse.py")).arg(port(&setup.server).to_string());
    let said = run(client.arg(setup.authority.file("ca.pem")));
    let closed = [
        "streams reset at once",
        "streams that the server has to reset",
        "DATA without data",
        "a huge header",
        "many headers",
        "headers that unpack",
        "headers that never end",
    ];
    assert_eq!(said.lines().count(), 15, "{said}");
    for line in said.lines() {
        let (abuse, outcome) = line.split_once(": ").unwrap();
        let expected = if closed.contains(&abuse) { "closed" } else { "served" };
        assert_eq!(outcome, expected, "{abuse}");
    }
    assert_eq!(processes(&setup.server, "gateway"), [gateway], "it has not been replaced");
    let grown = memory_of(gateway, "VmRSS").saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB more than before");
}

/// Behind a proxy that speaks HTTP/2 with prior knowledge, and opens WebSockets as RFC 8441 says.
#[test]
#[ignore = "needs haproxy"]
fn haproxy_over_h2c() {
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    let path = |name: &str| dir.path().join(name);
    let access = format!("access_log={}", path("access").display());
    std::fs::write(path("page.html"), "a page").unwrap();
    let root = dir.path().display().to_string();
    let options = ["-o", "h2c=true", "-o", "trust_proxy=127.0.0.1", "-o", &access, "--document-root", &root];
    let server = Server::start(&dir, &options);
    let text = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n timeout tunnel 60s\n\
         frontend all\n bind unix@{}\n http-request set-header X-Forwarded-For 192.0.2.7\n default_backend chat\n\
         backend chat\n server a {} proto h2\n",
        path("entrance").display(),
        server.address()
    );
    std::fs::write(path("haproxy.cfg"), text).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(path("haproxy.cfg"));
    let _haproxy = Server::launch(command, path("haproxy.log"));
    let connect = || UnixStream::connect(path("entrance"));
    until("haproxy listens", || connect().is_ok());
    let mut sockets: Vec<_> =
        (0..20).map(|_| tungstenite::client("ws://localhost/echo", connect().unwrap()).unwrap().0).collect();
    for size in [0, 1, 1000, 300_000] {
        let message = Message::binary(vec![b'x'; size]);
        for socket in &mut sockets {
            socket.send(message.clone()).unwrap();
            assert!(socket.read().unwrap() == message, "{size}");
        }
    }
    let mut plain = connect().unwrap();
    plain.write_all(b"GET /page.html HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\na page"), "{answer}");
    for socket in &mut sockets {
        socket.close(None).unwrap();
        assert!(matches!(socket.read(), Ok(Message::Close(_))));
    }
    until("all are in the access log, of the client that the proxy names", || {
        let lines = std::fs::read_to_string(path("access")).unwrap_or_default();
        lines.lines().filter(|line| line.contains("192.0.2.7")).count() > sockets.len()
    });
}

#[test]
#[ignore = "needs openssl"]
fn openssl_with_each_version_and_resumption() {
    let setup = Setup::new(&[]);
    let ticket = setup.dir.path().join("session").display().to_string();
    let address = format!("localhost:{}", port(&setup.server));
    let ca = setup.authority.file("ca.pem");
    let client = |more: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &address, "-servername", "localhost", "-CAfile", &ca]);
        // Its input ends at once: it prints the negotiated parameters, reads the ticket, and closes.
        let script =
            "printf 'GET / HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n'; sleep 0.5";
        let mut shell = Command::new("sh");
        let line: Vec<String> = command
            .get_args()
            .map(|arg| arg.to_str().unwrap().to_owned())
            .chain(more.iter().map(|arg| (*arg).to_owned()))
            .collect();
        shell.arg("-c").arg(format!("({script}) | openssl {}", line.join(" "))).stdin(Stdio::null());
        output_of(&mut shell).map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap()
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let said = client(&[version, "-sess_out", &ticket]);
        assert!(said.contains("Verify return code: 0 (ok)") && said.contains("HTTP/1.1 302"), "{said}");
        let said = client(&[version, "-sess_in", &ticket]);
        assert!(said.contains("Reused, "), "{said}");
    }
    for version in ["-tls1", "-tls1_1"] {
        let said = client(&[version]);
        assert!(said.contains("Cipher is (NONE)"), "{said}");
    }
}

#[test]
#[ignore = "needs testssl.sh"]
fn testssl_finds_no_weakness() {
    let setup = Setup::new(&["-o", "hsts=365d"]);
    let address = format!("localhost:{}", port(&setup.server));
    let mut command = Command::new("testssl");
    // Protocols, standard ciphers, forward secrecy, and weaknesses known in 2024.
    command.args([
        "--quiet",
        "--color",
        "0",
        "--warnings",
        "off",
        "-p",
        "-s",
        "-f",
        "-H",
        "-I",
        "-T",
        "-R",
        "-C",
        "-Z",
        "-W",
    ]);
    let output = output_within(TIMEOUT * 6, command.arg(address)).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("TLS 1.3    offered (OK)") && said.contains("TLS 1.2    offered (OK)"), "{said}");
    assert!(
        said.contains("TLS 1.1    not offered") && said.contains("SSLv3      not offered (OK)"),
        "{said}"
    );
    assert!(!said.contains("VULNERABLE (NOT ok)") && !said.contains("NOT ok"), "{said}");
}

/// A page that echoes over a WebSocket, and the browser's network log.
#[test]
#[ignore = "needs chromium"]
fn chromium_over_http_1_and_2() {
    for (options, session) in [(&["-o", "http2=false"][..], false), (&[], true)] {
        let root = tempfile::tempdir().unwrap();
        let page = "<title>waits</title><script>const s = new WebSocket(`wss://${location.host}/echo`);\
            s.onopen = () => s.send('hello'); s.onmessage = (e) => { document.title = `got ${e.data}`; };\
            s.onerror = () => { document.title = 'failed'; };\
            (async () => { for (let i = 0; i < 300; i++) await fetch(`/index.html?${i}`); })();</script>";
        std::fs::write(root.path().join("index.html"), page).unwrap();
        let root = root.path().display().to_string();
        let setup = Setup::new(&[options, &["--document-root", &root]].concat());
        let path = |name: &str| setup.dir.path().join(name).display().to_string();
        let key = std::fs::read_to_string(setup.authority.file("cert.key")).unwrap();
        let key = rcgen::KeyPair::from_pem(&key).unwrap();
        let digest = ring::digest::digest(&ring::digest::SHA256, &key.subject_public_key_info());
        let pin = base64::engine::general_purpose::STANDARD.encode(digest);
        let mut browser = Command::new("chromium");
        browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
        browser.args(["--disable-background-networking", "--virtual-time-budget=5000", "--dump-dom"]);
        browser.arg(format!("--user-data-dir={}", path("profile")));
        browser.arg(format!("--log-net-log={}", path("net.json")));
        browser.arg(format!("--ignore-certificate-errors-spki-list={pin}"));
        let said = run(browser.arg(format!("{}/index.html", setup.url("https"))));
        assert!(said.contains("got hello"), "{said}");
        let log = std::fs::read_to_string(path("net.json")).unwrap();
        // The page, and the WebSocket on a stream of the same connection.
        assert_eq!(log.contains(":protocol: websocket"), session, "extended CONNECT in the network log");
    }
}
