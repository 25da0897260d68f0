//! The commands for authors of handlers, from outside: `wshd cat` and others against a server, and their manual
//! pages compared with their options.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/client.rs"]
mod client;
mod conversations;
#[path = "../common/server.rs"]
mod daemon;
mod debugging;
mod guides;
mod newcomer;
mod programs;
mod recordings;
mod samples;
#[path = "../webdriver/mod.rs"]
#[allow(dead_code)] // tests/browser.rs has more
mod webdriver;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use client::{ask, connect};
use daemon::{Dir, ECHO, Server, TIMEOUT, children, is_alive, output_of, output_within, until, wshd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Runs `wshd cat` with this standard input.
#[track_caller]
fn cat(url: &str, args: &[&str], input: &[u8]) -> Output {
    // A file, so that all input is available at the start.
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    output_of(wshd().arg("cat").args(args).arg(url).env("WSHD_PASSWORD", "sesame").stdin(file)).unwrap()
}

#[track_caller]
fn ends(output: &Output, status: i32, said: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(stderr.contains(said), "{stderr}");
}

/// Closes on command, `CODE REASON`; "abort" ends without a Close frame.
const CLOSE: &str = r#"
    #include <stdlib.h>
    #include <ws_handler.h>
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        char *end;
        unsigned code = (unsigned)strtoul(msg->data, &end, 10);
        if (code == 0)
            ws_abort(conn);
        else
            ws_close(conn, code, *end == ' ' ? end + 1 : end);
    }
    WS_HANDLER(.name = "close", .on_message = on_message);
"#;

#[test]
fn cat_sends_lines_and_prints_messages() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    dir.handler("close", CLOSE);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let url = |path: &str| format!("ws://{}{path}", server.address());

    let output = cat(&url("/echo"), &[], "one\n\nb\u{e4}r\nno end".as_bytes());
    ends(&output, 0, "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\n\nb\u{e4}r\nno end\n");
    // More than all buffers between them hold, in both directions.
    let much: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    let output = cat(&url("/echo"), &["--binary"], &much);
    ends(&output, 0, "");
    assert!(output.stdout == much, "{} of {} bytes", output.stdout.len(), much.len());

    let output = cat(&url("/echo"), &["--binary", "--compress", "--verbose"], &much);
    ends(&output, 0, "< sec-websocket-extensions: permessage-deflate; client_no_context_takeover");
    assert!(output.stdout == much, "{} of {} bytes", output.stdout.len(), much.len());

    for (input, status, said) in [
        ("1000 bye\n", 0, ""),
        ("1001 \n", 101, "closed with 1001"),
        ("1011 it broke\n", 111, "closed with 1011: it broke"),
        ("4000 it's mine\n", 120, "closed with 4000: it's mine"),
        ("abort\n", 106, "without a Close frame"),
    ] {
        ends(&cat(&url("/close"), &["--keep-open"], input.as_bytes()), status, said);
    }
    ends(&cat(&url("/close"), &["-v", "-k"], b"1000 bye\n"), 0, "< sec-websocket-accept: ");
    ends(&cat(&url("/nothing"), &[], b""), 9, "refused with status 404");
    ends(&cat(&url("/echo"), &[], b"\xff\n"), 1, "--binary");
    server.stop();
}

#[test]
fn cat_pings_and_stays_after_the_end_of_standard_input() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let url = format!("ws://{}/echo", server.address());
    let mut child = wshd().args(["cat", "-k", "-p", "20ms", &url]).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    for _ in 0..3 {
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.starts_with("pong after ") && line.ends_with(" ms\n"), "{line}");
    }
    server.stop();
    assert_eq!(child.wait().unwrap().code(), Some(101));
}

#[test]
fn cat_says_why_there_is_no_connection() {
    // Bound but not listening: it refuses connections, even if children of other tests inherit it.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let closed = socket.local_addr().unwrap().as_socket().unwrap();
    ends(&cat(&format!("ws://{closed}/"), &[], b""), 8, "refused");
    ends(&cat("http://localhost/", &[], b""), 2, "expected ws://HOST");
    ends(&cat(&format!("ws://{closed}/"), &["--ca", "/nowhere"], b""), 2, "--ca is for wss://");
    ends(&cat(&format!("wss://{closed}/"), &["--ca", "/nowhere"], b""), 2, "--ca /nowhere: ");
    // A server that accepts and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", silent.local_addr().unwrap());
    ends(&cat(&url, &["--timeout", "50ms"], b""), 8, "no answer within 50ms");
}

#[test]
fn cat_sends_headers_cookies_and_credentials() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/a?b=c", listener.local_addr().unwrap());
    let answering = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 10\r\n\r\nnot today\n").unwrap();
        String::from_utf8(head).unwrap()
    });
    let args =
        ["-s", "chat.v2", "-s", "chat.v1", "-H", "Origin: https://example.com", "-H", "Host: example.org"];
    let more = ["-H", "X-A: 1", "-H", "X-A: 2", "--cookie", "a=1", "--cookie", "b=2", "-u", "ann"];
    ends(&cat(&url, &[&args[..], &more].concat(), b""), 9, "status 403 Forbidden: not today");
    let head = answering.join().unwrap();
    assert!(head.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{head}");
    for line in [
        "sec-websocket-protocol: chat.v2, chat.v1",
        "origin: https://example.com",
        "host: example.org",
        "x-a: 1",
        "x-a: 2",
        "cookie: a=1; b=2",
        "authorization: basic yw5uonnlc2ftzq==", // ann:sesame
    ] {
        assert_eq!(head.lines().filter(|found| found.to_lowercase() == line).count(), 1, "{line} in {head}");
    }
}

/// Echoes until "bye". The arguments set its compression: both window sizes, and context takeover.
const PYTHON_ECHO: &str = r#"
import sys
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.sync.server import serve
server_bits, client_bits, alone = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "alone"
deflate = ServerPerMessageDeflateFactory(alone, alone, server_bits, client_bits)
def echo(connection):
    assert [extension.name for extension in connection.protocol.extensions] == ["permessage-deflate"]
    for message in connection:
        if message == "bye":
            return
        connection.send([message[:5], message[5:]] if len(message) < 20 else message)
with serve(echo, "127.0.0.1", 0, extensions=[deflate], compression=None) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
"#;

#[test]
#[ignore = "needs the Python package websockets"]
fn cat_compresses_with_another_server() {
    let python = std::env::var("WSHD_PYTHON").expect("WSHD_PYTHON: a python3 with the package websockets");
    for variant in [["12", "12", "shared"], ["15", "9", "alone"], ["9", "15", "shared"]] {
        let mut server = Command::new(&python);
        server.args(["-c", PYTHON_ECHO]).args(variant).stdout(Stdio::piped());
        let mut server = server.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let url = format!("ws://127.0.0.1:{}/", port.trim());
        let lines: String =
            (0..200).map(|number| format!("{}{number}\n", "some more words ".repeat(number % 50))).collect();
        let input = format!("{lines}bye\n");
        let output = cat(&url, &["--compress", "--verbose", "--keep-open"], input.as_bytes());
        let _ = server.kill();
        let _ = server.wait();
        ends(&output, 0, "sec-websocket-extensions: permessage-deflate");
        assert_eq!(String::from_utf8_lossy(&output.stdout), lines, "{variant:?}");
    }
}

#[test]
fn cat_trusts_the_given_certificates() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("wss://localhost:{}/", listener.local_addr().unwrap().port());
    // An echo over TLS; connections whose handshake fails are dropped.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let tls = rustls::StreamOwned::new(session, stream.unwrap());
            let Ok(mut socket) = tungstenite::accept(tls) else { continue };
            while let Ok(message) = socket.read() {
                if !message.is_close() {
                    socket.send(message).unwrap();
                }
            }
        }
    });
    let dir = Dir::new();
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, certified.cert.pem()).unwrap();
    let output = cat(&url, &["--ca", file.to_str().unwrap()], b"over TLS\n");
    ends(&output, 0, "");
    assert_eq!(output.stdout, b"over TLS\n");
    // With another CA, and with the system's.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&file, other.cert.pem()).unwrap();
    ends(&cat(&url, &["--ca", file.to_str().unwrap()], b""), 8, "certificate");
    std::fs::write(&file, "no certificate").unwrap();
    ends(&cat(&url, &["--ca", file.to_str().unwrap()], b""), 2, "found none");
}

#[test]
fn bench_measures_an_echo() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let url = format!("ws://{}/echo", server.address());
    let bench = |args: &[&str]| output_of(wshd().arg("bench").args(args).arg(&url)).unwrap();
    let json = |args: &[&str]| {
        let output = bench(&[&["--json", "-t", "300ms"], args].concat());
        ends(&output, 0, "");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };

    let result = json(&["-c", "3", "-d", "4", "-z", "200K"]);
    let answers = result["answers"].as_u64().unwrap();
    assert!(answers >= 12 && result["unanswered"] == 0 && result["ended_early"] == 0, "{result}");
    let latency = &result["latency_ns"];
    assert!(latency["quantiles"]["0.5"].as_u64() <= latency["max"].as_u64(), "{result}");

    // All messages that are due in the time are sent, even if they are late.
    let result = json(&["-c", "2", "-r", "200", "--binary"]);
    assert_eq!((&result["answers"], &result["unanswered"]), (&60.into(), &0.into()), "{result}");

    let svg = dir.path().join("latency.svg");
    let output = bench(&["-t", "100ms", "--svg", svg.to_str().unwrap()]);
    ends(&output, 0, "");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("latency of a message, from sending it") && text.contains(" 99.99%  "), "{text}");
    let svg = std::fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<svg ") && svg.contains("<rect ") && svg.ends_with("</svg>\n"), "{svg}");
    server.stop();
}

/// A handler that stalls once delays all messages that are due meanwhile: with a rate their latencies show it.
#[test]
fn bench_at_a_rate_includes_delays_by_a_stall() {
    let dir = Dir::new();
    let stalls = r#"
        #include <time.h>
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            static int count;
            struct timespec time = {0, 500 * 1000 * 1000};
            if (++count == 50)
                nanosleep(&time, NULL);
            ws_send(conn, msg->type, msg->data, msg->size);
        }
        WS_HANDLER(.name = "stalls", .on_message = on_message);
    "#;
    dir.handler("stalls", stalls);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let url = format!("ws://{}/stalls", server.address());
    let args = ["bench", "--json", "-c", "1", "-r", "100", "-t", "1500ms", &url];
    let output = output_of(wshd().args(args)).unwrap();
    ends(&output, 0, "");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    // 50 of 150 messages were due during the stall, but only one was sent in it.
    assert_eq!(result["answers"], 150, "{result}");
    let (quantiles, max) = (&result["latency_ns"]["quantiles"], &result["latency_ns"]["max"]);
    assert!(quantiles["0.9"].as_u64().unwrap() > 200_000_000, "{result}");
    assert!(max.as_u64().unwrap() > 450_000_000, "{result}");
    server.stop();
}

#[test]
fn bench_reports_when_it_is_interrupted() {
    let dir = Dir::new();
    let echo = r#"
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            static int count;
            ws_send(conn, msg->type, msg->data, msg->size);
            if (++count == 3)
                ws_log(WS_LOG_WARN, "under load");
        }
        WS_HANDLER(.name = "echo", .on_message = on_message);
    "#;
    dir.handler("echo", echo);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let url = format!("ws://{}/echo", server.address());
    let mut command = wshd();
    let bench = command.args(["bench", "--json", "-t", "1h", "-c", "1", &url]);
    let bench = bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("messages are sent", || server.log().contains("under load"));
    kill(Pid::from_raw(bench.id() as i32), Signal::SIGINT).unwrap();
    let output = bench.wait_with_output().unwrap();
    ends(&output, 0, "");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(result["answers"].as_u64().unwrap() >= 2 && result["ended_early"] == 0, "{result}");
    server.stop();
}

#[test]
fn bench_does_not_count_the_wait_for_a_missing_answer() {
    let dir = Dir::new();
    let once = ECHO.replace("ws_send(", "static int count;\nif (count++ < 3) ws_send(");
    dir.handler("once", &once);
    let mut is_measured = |_| {
        let mut server = Server::start(&dir, &["--workers", "1"]);
        let url = format!("ws://{}/once", server.address());
        let args = ["bench", "--json", "-c", "1", "-t", "100ms", "--timeout", "2s", &url];
        let output = output_of(wshd().args(args)).unwrap();
        ends(&output, 0, "");
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        println!("{result}");
        server.stop();
        result["answers"] == 3 && result["unanswered"] == 1 && result["seconds"].as_f64().unwrap() < 1.0
    };
    // On a busy machine the answers may take long, too.
    assert!((0..5).any(&mut is_measured), "3 answers, 1 is missing, and all in less than a second");
}

#[test]
fn bench_reports_connections_that_end() {
    let dir = Dir::new();
    dir.handler("close", &CLOSE.replace("ws_abort(conn)", "ws_close(conn, 4001, \"enough\")"));
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let url = format!("ws://{}/close", server.address());
    let output = output_of(wshd().args(["bench", "-c", "2", &url])).unwrap();
    ends(&output, 8, "2 connections ended early, the first with: close 4001 \"enough\"");
    server.stop();
}

/// Compiles a handler of these callbacks and asks `wshd check` about it.
fn checked(dir: &Dir, language: &str, flags: &[&str], source: &str) -> serde_json::Value {
    let file = dir.path().join(format!("x_wsh.{language}"));
    std::fs::write(&file, source).unwrap();
    let object = dir.path().join("x_wsh.so");
    let mut compiler = Command::new(if language == "c" { "cc" } else { "c++" });
    compiler.args(["-shared", "-fPIC", "-I", concat!(env!("CARGO_MANIFEST_DIR"), "/include")]).args(flags);
    ends(&output_of(compiler.arg(&file).arg("-o").arg(&object)).unwrap(), 0, "");
    let output = output_of(wshd().args(["check", "--json", "--strict"]).arg(&object)).unwrap();
    let mut result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let warned =
        result[0]["findings"].as_array().unwrap().iter().any(|finding| finding["level"] == "warning");
    assert_eq!(output.status.code(), Some(if warned { 6 } else { 0 }), "{result}");
    result[0].take()
}

#[test]
fn check_names_what_a_handler_should_not_do() {
    let dir = Dir::new();
    let event = |what: &str| {
        format!(
            "#include <stdlib.h>\n#include <signal.h>\n#include <unistd.h>\n#include <ws_handler.h>\n\
             static void on_message(ws_conn conn, const ws_message *msg) {{ (void)conn; (void)msg; {what} }}\n\
             WS_HANDLER(.name = \"x\", .on_message = on_message);\n"
        )
    };
    let blocking = |members: &str| {
        format!(
            "#include <unistd.h>\n#include <ws_handler.h>\n\
             static int32_t transfer_data(ws_conn conn) {{ (void)conn; sleep(1); return WS_OK; }}\n\
             void later(ws_conn conn) {{ (void)conn; }}\n\
             WS_HANDLER(.name = \"x\", .transfer_data = transfer_data, {members});\n"
        )
    };
    let hidden: &[&str] = &["-fvisibility=hidden"];
    let shared = "#include <ws_handler.hpp>\ntemplate <class T> struct count { static int n; };\n\
                  template <class T> int count<T>::n;\n\
                  struct x { void on_message(ws::conn c, const ws::message &m) { ++count<int>::n; c.send(m); } };\n\
                  WS_HANDLER_CPP(x, name = \"x\");\n";
    // Language, flags, source, and the rule and message of the finding.
    type Case = (&'static str, &'static [&'static str], String, Option<(&'static str, &'static str)>);
    let cases: [Case; 10] = [
        ("c", hidden, event("ws_send_text(conn, \"fine\");"), None),
        ("c", hidden, event("exit(1);"), Some(("ends-worker", "calls exit()"))),
        ("c", hidden, event("signal(SIGINT, SIG_IGN);"), Some(("process-state", "calls signal()"))),
        ("c", hidden, event("sleep(1);"), Some(("blocking-call", "calls sleep(), which may wait"))),
        ("c", hidden, blocking(".name = \"y\""), None),
        ("c", hidden, blocking(".on_drain = later"), Some(("style", "on_drain is never called"))),
        ("c", &[], blocking(".version = \"1\""), Some(("exports", "exports later besides its entry"))),
        ("c", &["-fvisibility=hidden", "-Wl,-rpath,/opt/lib"], event(""), Some(("rpath", "/opt/lib"))),
        (
            "c",
            &["-fvisibility=hidden", "-Wl,-z,execstack"],
            event(""),
            Some(("execstack", "executable stacks")),
        ),
        ("cc", &[], shared.to_owned(), Some(("unique", "-fno-gnu-unique"))),
    ];
    for (language, flags, source, expected) in cases {
        let result = checked(&dir, language, flags, &source);
        assert_eq!(result["fault"], serde_json::Value::Null, "{result}");
        let findings = result["findings"].as_array().unwrap();
        match expected {
            None => assert!(findings.is_empty(), "{source}\n{result}"),
            Some((rule, message)) => {
                let found = findings.iter().find(|finding| finding["rule"] == rule);
                let found = found.unwrap_or_else(|| panic!("no {rule}: {source}\n{result}"));
                assert!(found["message"].as_str().unwrap().contains(message), "{found}");
            }
        }
    }
    let result = checked(&dir, "cc", &["-fvisibility=hidden", "-fno-gnu-unique"], shared);
    assert!(
        result["findings"]
            .as_array()
            .unwrap()
            .iter()
            .all(|finding| finding["rule"] != "unique" && finding["rule"] != "exports"),
        "{result}"
    );
}

#[test]
fn check_prints_findings_as_text() {
    let dir = Dir::new();
    let object = dir.handler(
        "x",
        &ECHO
            .replace("ws_send(", "chdir(\"/\"); ws_send(")
            .replace("#include", "#include <unistd.h>\n#include"),
    );
    let output = output_of(wshd().arg("check").arg(&object)).unwrap();
    ends(&output, 0, ""); // without --strict
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("    warning    calls chdir(), which changes the process of all handlers"),
        "{text}"
    );
    let odd = dir.path().join("my x_wsh.so");
    std::fs::copy(&object, &odd).unwrap();
    let text = output_of(wshd().arg("check").arg(&odd)).unwrap().stdout;
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("    note       no request can name it: a server will not serve it"), "{text}");
    std::fs::write(&object, b"\x7fELF and no more").unwrap();
    let output = output_of(wshd().arg("check").arg(&object)).unwrap();
    ends(&output, 6, "");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("x_wsh.so: cannot be loaded: ") && text.contains("warning    cannot be examined"),
        "{text}"
    );
}

/// The worker of an untrusted handler changes its user, which takes back that it is killed with its parent.
#[test]
fn the_processes_of_a_check_end_with_it() {
    let dir = Dir::new();
    let object = dir.handler("x", ECHO);
    let mut check = wshd();
    check.args(["check", "--faults"]).arg(&object).stdout(Stdio::null()).env("TMPDIR", dir.path());
    let mut check = check.spawn().unwrap();
    let pid = check.id() as i32;
    // Bus and worker.
    until("it serves the handler", || children(pid).len() == 2);
    thread::sleep(Duration::from_millis(100));
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let all = children(pid);
    check.kill().unwrap();
    check.wait().unwrap();
    until("they have ended", || !all.iter().any(|pid| is_alive(*pid)));
}

/// Creates a handler and runs its test, as an author would.
#[track_caller]
fn new_passes_its_test(lang: &str, style: &str) -> Dir {
    let dir = Dir::new();
    let output =
        output_of(wshd().args(["new", "my-chat", "--lang", lang, "--style", style]).current_dir(dir.path()));
    ends(&output.unwrap(), 0, "");
    let mut make = Command::new("make");
    make.arg("test").current_dir(dir.path().join("my-chat")).env_remove("MAKEFLAGS");
    let output = output_within(Duration::from_secs(120), &mut make).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("style      {}", style.trim_end_matches('s'))), "{said}");
    assert!(said.contains("my-chat.test: passed, "), "{said}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("warning"), "{output:?}");
    dir
}

/// A test of the handler's package, with the feature `test` of the crate.
const TEST_IN_RUST: &str = r#"
    use ws_handler::test::{Failure, converse, converse_with};

    #[test]
    fn it_echoes() {
        let package = env!("CARGO_MANIFEST_DIR");
        converse(package, "> hello\n< hello\n").unwrap();
        let failure = converse(package, "> hello\n< goodbye\n").unwrap_err();
        let is_told = matches!(&failure, Failure::Script(said) if said.contains("got       text \"hello\""));
        assert!(is_told, "{failure}");
        let failure = converse_with(package, ">! large 2K\n< x\n", &["max_message=1K"]).unwrap_err();
        assert!(failure.to_string().contains("close 1009"), "{failure}");
    }
"#;

#[track_caller]
fn package_has_conversations(dir: &Dir) {
    let package = dir.path().join("my-chat");
    let manifest = std::fs::read_to_string(package.join("Cargo.toml")).unwrap();
    let feature = "[dev-dependencies]\nws-handler = { path = \"ws-handler\", features = [\"test\"] }\n\n[profile.release]";
    std::fs::write(package.join("Cargo.toml"), manifest.replace("[profile.release]", feature)).unwrap();
    std::fs::create_dir(package.join("tests")).unwrap();
    std::fs::write(package.join("tests/conversations.rs"), TEST_IN_RUST).unwrap();
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--offline"]).current_dir(&package).env("WSHD", env!("CARGO_BIN_EXE_wshd"));
    let output = output_within(Duration::from_secs(120), &mut cargo).unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn new_in_c_passes_its_test_at_once() {
    new_passes_its_test("c", "events");
    new_passes_its_test("c", "blocking");
}

#[test]
fn new_in_cpp_passes_its_test_at_once() {
    new_passes_its_test("c++", "events");
    new_passes_its_test("c++", "blocking");
}

#[test]
#[ignore = "runs cargo"]
fn new_in_rust_passes_its_test_at_once() {
    package_has_conversations(&new_passes_its_test("rust", "events"));
    new_passes_its_test("rust", "blocking");
}

#[test]
fn new_overwrites_nothing() {
    let dir = Dir::new();
    let new = |name: &str| output_of(wshd().args(["new", name]).current_dir(dir.path())).unwrap();
    std::fs::write(dir.path().join("taken"), "mine").unwrap();
    ends(&new("taken"), 9, "taken exists: choose another name");
    assert_eq!(std::fs::read(dir.path().join("taken")).unwrap(), b"mine");
    ends(&new("chat"), 0, "");
    ends(&new("chat"), 9, "exists");
    ends(&new("no/where"), 9, "no/where: No such file");
    ends(&new("Bad Name"), 2, "expected a name");
    // Of what cannot be completed nothing is left: here the paths of the files are too long.
    let mut deep = dir.path().to_owned();
    while deep.as_os_str().len() < 3900 {
        deep.push("d".repeat(100));
    }
    deep.push("d".repeat(4084 - deep.as_os_str().len()));
    std::fs::create_dir_all(&deep).unwrap();
    ends(&new(deep.join("chat").to_str().unwrap()), 9, "File name too long");
    assert!(!deep.join("chat").exists());
}

/// `wshd run`, and what it prints.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(dir: &Dir, file: &str) -> Self {
        let mut command = wshd();
        command.args(["run", "--port", "0", file]).current_dir(dir.path()).env("TMPDIR", dir.path());
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let both: [Box<dyn Read + Send>; 2] = [Box::new(out), Box::new(err)];
        for stream in both {
            let sender = sender.clone();
            thread::spawn(move || {
                BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
            });
        }
        Running { child, lines }
    }

    /// Waits for a line with this in it.
    #[track_caller]
    fn says(&self, what: &str) -> String {
        let (mut before, begun) = (String::new(), Instant::now());
        loop {
            let line = self.lines.recv_timeout(TIMEOUT.saturating_sub(begun.elapsed()));
            let line = line.unwrap_or_else(|_| panic!("no {what:?} in\n{before}"));
            if line.contains(what) {
                return line;
            }
            before += &(line + "\n");
        }
    }

    /// The URL of the handler, once it is served.
    fn address(&self) -> String {
        let line = self.says("wshd: serving ws://");
        line.trim_start_matches("wshd: serving ws://").split('/').next().unwrap().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

const VERSIONED: &str = r#"
    #include <time.h>
    #include <ws_handler.h>
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        struct timespec time = {0, 120 * 1000 * 1000};
        if (msg->size == 4 && memcmp(msg->data, "slow", 4) == 0) {
            printf("printed by the handler\n");
            fflush(stdout);
            nanosleep(&time, NULL);
        }
        ws_send_text(conn, "version 1");
    }
    WS_HANDLER(.name = "x", .on_message = on_message);
"#;

#[test]
fn run_compiles_and_reloads_what_changes() {
    let dir = Dir::new();
    let source = dir.path().join("x_wsh.c");
    std::fs::write(&source, VERSIONED).unwrap();
    let mut running = Running::start(&dir, "x_wsh.c");
    let mut client = connect(&running.address(), "/x");
    assert_eq!(ask(&mut client, "hello"), "version 1");
    // A callback between two samples is not seen, and they are rare on a busy machine.
    let begun = Instant::now();
    let line = loop {
        assert!(begun.elapsed() < TIMEOUT, "nothing is said of a callback that blocks");
        assert_eq!(ask(&mut client, "slow"), "version 1");
        let mut lines = running.lines.try_iter();
        if let Some(line) = lines.find(|line| line.contains("blocked the event loop for more than")) {
            break line;
        }
    };
    assert!(line.contains("x: on_message for connection "), "{line}");

    std::fs::write(&source, VERSIONED.replace("ws_send_text(conn", "ws_send_tekst(conn")).unwrap();
    running.says("ws_send_tekst");
    running.says("compilation failed; the previous version stays in service");
    assert_eq!(ask(&mut client, "hello"), "version 1");

    // The connection continues in the new version.
    std::fs::write(&source, VERSIONED.replace("version 1", "version 2")).unwrap();
    let begun = Instant::now();
    while ask(&mut client, "hello") != "version 2" {
        assert!(begun.elapsed() < TIMEOUT, "the old version is still served");
        thread::sleep(Duration::from_millis(10));
    }
    kill(Pid::from_raw(running.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    // Up to the end of both streams.
    let rest: Vec<String> = running.lines.iter().collect();
    assert!(!rest.iter().any(|line| line.contains("serving")), "the server's own line: {rest:?}");
}

#[test]
fn run_waits_until_the_source_compiles() {
    let dir = Dir::new();
    let source = dir.path().join("x_wsh.cc");
    std::fs::write(&source, "no C++").unwrap();
    let running = Running::start(&dir, "x_wsh.cc");
    running.says("compilation failed; waiting for a change");
    std::fs::write(
        &source,
        "#include <ws_handler.hpp>\nstruct x { void on_message(ws::conn c, const ws::message &m) { c.send(m); } };\n\
         WS_HANDLER_CPP(x, name = \"x\");\n",
    )
    .unwrap();
    let mut client = connect(&running.address(), "/x");
    assert_eq!(ask(&mut client, "hello"), "hello");
    // Its server does not outlive it.
    kill(Pid::from_raw(running.child.id() as i32), Signal::SIGKILL).unwrap();
    assert!(client.read().unwrap().is_close());
    let output = output_of(wshd().args(["run", "chat.py"]).current_dir(dir.path())).unwrap();
    ends(&output, 3, "chat.py: No such file");
}

#[test]
#[ignore = "runs cargo"]
fn run_builds_packages() {
    let dir = Dir::new();
    ends(&output_of(wshd().args(["new", "y", "-l", "rust"]).current_dir(dir.path())).unwrap(), 0, "");
    let running = Running::start(&dir, "y");
    assert_eq!(ask(&mut connect(&running.address(), "/y"), "hello"), "hello");
}

#[test]
fn run_does_not_take_files_of_the_compiler_for_changes() {
    let dir = Dir::new();
    std::fs::write(dir.path().join("x_wsh.c"), ECHO).unwrap();
    // TMPDIR is the directory of the source, as if that was in /tmp.
    let running = Running::start(&dir, "x_wsh.c");
    running.address();
    thread::sleep(Duration::from_millis(500));
    kill(Pid::from_raw(running.child.id() as i32), Signal::SIGTERM).unwrap();
    let rest: Vec<String> = running.lines.iter().collect();
    assert!(!rest.iter().any(|line| line.contains("SIGHUP received")), "{rest:?}");
}

#[test]
fn run_says_why_its_server_ends() {
    let dir = Dir::new();
    let object = dir.handler("x", ECHO);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut run = wshd();
    run.args(["run", "--port", &port]).arg(&object);
    let output = output_of(&mut run).unwrap();
    ends(&output, 4, "Address already in use");
    ends(&output, 4, "choose another port with --port");
}

#[test]
fn run_has_defaults_for_its_server_and_the_compiler() {
    let dir = Dir::new();
    std::fs::write(dir.path().join("x_wsh.c"), ECHO).unwrap();
    let mut run = wshd();
    run.args(["run", "--port", "0", "-o", "workers=2", "x_wsh.c"]).current_dir(dir.path()).env("CC", " ");
    let running = Running::of(run);
    assert!(running.says("wshd: ready on ").contains(", 2 workers, "));
}

/// The commands with a manual page of their own.
const COMMANDS: [(&str, &str); 7] = [
    ("bench", include_str!("../../man/wshd-bench.1")),
    ("cat", include_str!("../../man/wshd-cat.1")),
    ("check", include_str!("../../man/wshd-check.1")),
    ("new", include_str!("../../man/wshd-new.1")),
    ("replay", include_str!("../../man/wshd-replay.1")),
    ("run", include_str!("../../man/wshd-run.1")),
    ("test", include_str!("../../man/wshd-test.1")),
];

#[test]
fn the_manuals_name_the_options_of_the_commands() {
    let mut program = wshd::cli::command();
    program.build();
    for (name, manual) in COMMANDS {
        let command = program.find_subcommand(name).unwrap();
        let visible = command.get_arguments().filter(|arg| arg.get_id() != "help" && !arg.is_hide_set());
        let options: BTreeSet<_> =
            visible.filter_map(|arg| Some((arg.get_short(), arg.get_long()?))).collect();
        let described = manual.lines().filter_map(|line| line.strip_prefix(".It Fl ")).filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let short = words[0].chars().next().filter(|_| words[0].len() == 1);
            Some((short, words.iter().find_map(|word| word.strip_prefix('-'))?))
        });
        assert_eq!(options, described.collect(), "wshd-{name}(1)");
        for default in
            command.get_arguments().filter(|arg| !arg.is_hide_set()).flat_map(|arg| arg.get_default_values())
        {
            let default = default.to_str().unwrap();
            assert!(
                default == "false" || manual.contains(&format!("The default is {default}")),
                "{name}: {default}"
            );
        }
    }
}

#[test]
fn every_command_has_help() {
    for (name, _) in COMMANDS {
        let output = output_of(Command::new(env!("CARGO_BIN_EXE_wshd")).args([name, "--help"])).unwrap();
        ends(&output, 0, "");
        assert!(String::from_utf8_lossy(&output.stdout).contains("Usage: wshd"), "{name}");
    }
}
