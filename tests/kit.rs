//! The commands for authors of handlers, from outside: `wshd cat` and its siblings against a server, and their manual
//! pages against their options.
#![allow(clippy::unwrap_used)]

#[path = "common/server.rs"]
mod daemon;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use daemon::{Dir, ECHO, Server, output_of, output_within, wshd};

/// Runs `wshd cat` with this standard input.
#[track_caller]
fn cat(url: &str, args: &[&str], input: &[u8]) -> Output {
    // A file: it is there before the program begins.
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

/// Closes as it is told, `CODE REASON`; "abort" is the end without a Close frame.
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
    // Much more than any buffer between them holds, both ways.
    let much: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    let output = cat(&url("/echo"), &["--binary"], &much);
    ends(&output, 0, "");
    assert!(output.stdout == much, "{} of {} bytes", output.stdout.len(), much.len());

    for (input, status, said) in [
        ("1000 bye\n", 0, ""),
        ("1001 \n", 101, "closed with 1001"),
        ("1011 it broke\n", 111, "closed with 1011: it broke"),
        ("4000 mine\n", 120, "closed with 4000: mine"),
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
        std::io::BufRead::read_line(&mut stderr, &mut line).unwrap();
        assert!(line.starts_with("pong after ") && line.ends_with(" ms\n"), "{line}");
    }
    server.stop();
    assert_eq!(child.wait().unwrap().code(), Some(101));
}

#[test]
fn cat_says_why_there_is_no_connection() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    ends(&cat(&format!("ws://{closed}/"), &[], b""), 8, "refused");
    ends(&cat("http://localhost/", &[], b""), 2, "expected ws://HOST");
    ends(&cat(&format!("ws://{closed}/"), &["--ca", "/nowhere"], b""), 2, "--ca is for wss://");
    ends(&cat(&format!("wss://{closed}/"), &["--ca", "/nowhere"], b""), 2, "--ca /nowhere: ");
    // One that accepts and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", silent.local_addr().unwrap());
    ends(&cat(&url, &["--timeout", "50ms"], b""), 8, "no answer within 50ms");
}

#[test]
fn cat_sends_what_the_request_is_to_say() {
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

#[test]
fn cat_trusts_the_certificates_that_it_is_told() {
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
    // An echo over TLS; connections whose handshake fails are let go.
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
    // By another certificate, and by none.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&file, other.cert.pem()).unwrap();
    ends(&cat(&url, &["--ca", file.to_str().unwrap()], b""), 8, "certificate");
    std::fs::write(&file, "no certificate").unwrap();
    ends(&cat(&url, &["--ca", file.to_str().unwrap()], b""), 2, "found none");
}

/// Begins a handler and runs its test, as its author would.
#[track_caller]
fn new_passes_its_test(lang: &str, style: &str) {
    let dir = Dir::new();
    let output =
        output_of(wshd().args(["new", "my-chat", "--lang", lang, "--style", style]).current_dir(dir.path()));
    ends(&output.unwrap(), 0, "");
    let mut make = Command::new("make");
    make.arg("test").current_dir(dir.path().join("my-chat")).env_remove("MAKEFLAGS");
    let output = output_within(Duration::from_secs(120), &mut make).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    ends(&output, 0, "");
    assert!(said.contains(&format!("style      {}", style.trim_end_matches('s'))), "{said}");
    assert!(said.ends_with("my-chat: all tests passed\n"), "{said}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("warning"), "{output:?}");
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
    new_passes_its_test("rust", "events");
    new_passes_its_test("rust", "blocking");
}

#[test]
fn new_overwrites_nothing() {
    let dir = Dir::new();
    let new = |name: &str| output_of(wshd().args(["new", name]).current_dir(dir.path())).unwrap();
    std::fs::write(dir.path().join("taken"), "mine").unwrap();
    ends(&new("taken"), 9, "taken exists and is left as it is: choose another name");
    assert_eq!(std::fs::read(dir.path().join("taken")).unwrap(), b"mine");
    ends(&new("chat"), 0, "");
    ends(&new("chat"), 9, "exists");
    ends(&new("no/where"), 9, "no/where: No such file");
    ends(&new("Bad Name"), 2, "expected a name");
}

/// The commands that have a manual page of their own.
const COMMANDS: [(&str, &str); 2] =
    [("cat", include_str!("../man/wshd-cat.1")), ("new", include_str!("../man/wshd-new.1"))];

#[test]
fn the_manuals_name_the_options_of_the_commands() {
    let mut program = wshd::cli::command();
    program.build();
    for (name, manual) in COMMANDS {
        let command = program.find_subcommand(name).unwrap();
        let visible = command.get_arguments().filter(|arg| arg.get_id() != "help");
        let options: BTreeSet<_> =
            visible.filter_map(|arg| Some((arg.get_short(), arg.get_long()?))).collect();
        let described = manual.lines().filter_map(|line| line.strip_prefix(".It Fl ")).map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let short = words[0].chars().next().filter(|_| words[0].len() == 1);
            (short, words.iter().find_map(|word| word.strip_prefix('-')).unwrap())
        });
        assert_eq!(options, described.collect(), "wshd-{name}(1)");
        for default in command.get_arguments().flat_map(|arg| arg.get_default_values()) {
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
