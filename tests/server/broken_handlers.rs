//! Handlers that cannot be served or misbehave, together with valid ones.

use crate::client::{self, CLOSE, Raw, UPGRADE};
use crate::daemon::{Dir, Server, is_alive, until};
use crate::fixtures;
use crate::{Served, serve};

/// Each with the message that the log must have after the file's name.
const BROKEN: [(&str, &[&str]); 8] = [
    ("wrong_major", &["got 2.3", "expected 1."]),
    ("both_styles", &["transfer_data", "on_message"]),
    ("no_style", &["transfer_data", "on_message"]),
    ("tiny_table", &["table"]),
    ("no_entry", &["ws_handler_entry_v1"]),
    ("entry_null", &["ws_handler_entry_v1"]),
    ("constructor_crashes", &["killed by signal"]),
    ("constructor_exits", &["exited with status"]),
];

fn line_of<'a>(log: &'a str, name: &str) -> &'a str {
    log.lines()
        .find(|line| line.contains(&format!("{name}_wsh.so")))
        .unwrap_or_else(|| panic!("no {name} in {log}"))
}

#[test]
fn broken_handlers_are_named_with_the_cause_and_the_others_are_served() {
    let names: Vec<&str> = BROKEN.iter().map(|(name, _)| *name).collect();
    let all =
        [&names[..], &["echo", "short_table", "larger_table", "undefined_symbol", "init_fails"]].concat();
    let mut server = serve(&all, &[]);
    let log = server.log();
    for (name, causes) in BROKEN {
        let line = line_of(&log, name);
        assert!(causes.iter().all(|cause| line.contains(cause)), "{line}");
        let mut raw = Raw::connect(&server.address());
        raw.send(format!("GET /{name} HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
        assert_eq!(raw.answer().status, 404, "{name}");
    }
    line_of(&log, "undefined_symbol");
    // Newer and older tables are valid.
    for name in ["echo", "short_table", "larger_table"] {
        let mut raw = Raw::open(&server.address(), &format!("/{name}"));
        assert_eq!(raw.ask("served"), "served", "{name}");
        raw.frame(CLOSE, &client::close_payload(1000, ""));
        raw.expect_close(1000);
        raw.expect_end();
    }
    // It loads, but cannot start in a worker.
    server.says("init_fails_wsh.so: on_worker_start returned -9");
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("GET /init_fails HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
    assert_eq!(raw.answer().status, 503);
    drop(raw);
    server.stop();
}

#[test]
fn a_broken_handler_is_an_error_with_strict_handlers() {
    for (name, _) in BROKEN {
        let dir = Dir::new();
        fixtures::add_handler(dir.path(), "echo", "echo");
        fixtures::add_handler(dir.path(), name, name);
        let mut server = Server::spawn(&dir, &["--workers", "1", "--strict-handlers"]);
        assert_eq!(server.wait().code(), Some(3), "{name}");
        line_of(&server.log(), name);
    }
}

/// Asserts that this resource answers 503.
#[track_caller]
fn is_unavailable(server: &Server, resource: &str) {
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("GET {resource} HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
    assert_eq!(raw.answer().status, 503, "{resource}");
}

#[test]
fn strict_handlers_do_not_end_a_server_that_serves() {
    let dir = Dir::new();
    fixtures::add_handler(dir.path(), "echo", "echo");
    fixtures::add_handler(dir.path(), "b", "echo");
    let mut server = Server::start(&dir, &["--workers", "1", "--strict-handlers"]);
    assert_eq!(Raw::open(&server.address(), "/b").ask("served"), "served");
    let junk = dir.path().join("junk");
    std::fs::write(&junk, "text").unwrap();
    std::fs::rename(&junk, dir.path().join("b_wsh.so")).unwrap();
    let worker = server.worker();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::SIGKILL).unwrap();
    server.says("b_wsh.so: not a shared object");
    until("it is replaced", || matches!(server.workers()[..], [other] if other != worker));
    assert_eq!(Raw::open(&server.address(), "/echo").ask("served"), "served");
    is_unavailable(&server, "/b");
    // A reload with it fails, even if it was broken before, and changes nothing.
    for count in 1..=2 {
        server.signal(nix::sys::signal::SIGHUP);
        until("the reload is refused", || server.log().matches("reload: failed").count() == count);
        let log = server.log();
        let line = log.lines().rfind(|line| line.contains("reload: failed")).unwrap();
        assert!(line.contains("b_wsh.so: not a shared object"), "{line}");
    }
    is_unavailable(&server, "/b");
    server.stop();
}

/// Another connection, and the worker that serves it.
#[track_caller]
fn still_serves(server: &Served, resource: &str) {
    until("a worker serves", || {
        let mut raw = Raw::connect(&server.address());
        raw.send(format!("GET {resource} HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
        raw.send(&client::frame(client::TEXT, b"hello"));
        raw.rest_or_frame()
    });
}

impl Raw {
    /// Whether a WebSocket opens and sends hello.
    fn rest_or_frame(&mut self) -> bool {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match std::io::Read::read(&mut self.stream, &mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return false,
            }
        }
        head.starts_with(b"HTTP/1.1 101") && self.next().is_some_and(|frame| frame.payload == b"hello")
    }
}

#[test]
fn a_crash_costs_one_worker_and_the_others_continue() {
    for (resource, text) in [
        ("/crash", "null"),
        ("/crash", "abort"),
        ("/crash", "stack"),
        ("/crash", "thread null"),
        ("/crash", "timer abort"),
        ("/crash?close=null", ""),
        ("/crash_blocking", "null"),
        ("/throw", "throw"),
        ("/panic_abort", "panic"),
    ] {
        let server = serve(&["echo", "crash", "crash_blocking", "throw", "panic_abort"], &["--workers", "2"]);
        let before = server.workers();
        let mut bystanders: Vec<Raw> = (0..4).map(|_| Raw::open(&server.address(), "/echo")).collect();
        let mut crashing = Raw::open(&server.address(), resource);
        match text {
            "" => crashing.frame(CLOSE, &client::close_payload(1000, "")),
            text => crashing.text(text),
        }
        until("one worker has died", || before.iter().filter(|pid| is_alive(**pid)).count() == 1);
        until("it is replaced", || {
            let now = server.workers();
            now.len() == 2 && now.iter().all(|pid| is_alive(*pid)) && now != before
        });
        // No other connection is affected, in any worker.
        let kept = bystanders.iter_mut().map(Raw::is_served).filter(|served| *served).count();
        assert_eq!(kept, 4, "{resource} {text}: of 4 are kept\n{}", server.log());
        still_serves(&server, "/echo");
        server.says("] crashed: SIG");
    }
}

impl Raw {
    /// Whether an echo still answers.
    fn is_served(&mut self) -> bool {
        let sent =
            std::io::Write::write_all(&mut self.stream, &client::frame(client::TEXT, b"hello")).is_ok();
        sent && self.next().is_some_and(|frame| frame.payload == b"hello")
    }
}

#[test]
fn an_exit_of_a_handler_ends_its_worker_only() {
    for way in ["exit", "_exit", "thread"] {
        let server = serve(&["echo", "exits"], &[]);
        let before = server.worker();
        Raw::open(&server.address(), "/exits").text(way);
        until("the worker is gone", || !is_alive(before));
        still_serves(&server, "/echo");
    }
}

/// Also in a release build, where only the option enables it.
#[test]
fn a_call_from_the_wrong_place_aborts_and_names_the_function() {
    for (name, function) in [
        ("wrong_place_receive", "ws_receive"),
        ("wrong_place_set_user", "ws_set_user"),
        ("wrong_place_other", "ws_resource"),
    ] {
        let server = serve(&[name], &["--strict-abi"]);
        let before = server.worker();
        let mut kept = Raw::open(&server.address(), &format!("/{name}"));
        assert_eq!(kept.ask("keep"), "keep");
        Raw::open(&server.address(), &format!("/{name}")).text("go");
        until("the worker is gone", || !is_alive(before));
        server.says(&format!("{name}: {function}("));
        server.says(") was called ");
        server.says("] crashed: SIGABRT");
        still_serves(&server, &format!("/{name}"));
    }
}
