//! Reports of crashes: the log line and the JSON record, compared with the output of `addr2line` for the
//! handler and with a replay of the record. And the supervisor must not grow with deaths.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use client::{BINARY, Raw, TEXT};
use daemon::{Dir, Server, is_alive, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const QUARANTINE_OFF: [&str; 2] = ["-o", "quarantine_deaths=0"];

/// A server with one worker that records crashes.
struct Recorded {
    server: Server,
    handlers: Dir,
    records: Dir,
}

fn serve(handlers: &[&str], args: &[&str]) -> Recorded {
    let (dir, records) = (Dir::new(), Dir::new());
    handlers.iter().for_each(|name| fixtures::add_handler(dir.path(), name, name));
    let records_arg = &format!("crash_dir={}", records.path().display());
    let ours = ["--workers", "1", "-o", records_arg];
    let server = Server::start(&dir, &[&ours[..], &QUARANTINE_OFF, args].concat());
    Recorded { server, handlers: dir, records }
}

impl Recorded {
    fn paths(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.records.path()).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    /// Kills the worker; returns the new log line and the new record.
    #[track_caller]
    fn death<R>(&self, cause: impl FnOnce(&Server) -> R) -> (String, Value) {
        let (before, worker) = (self.paths(), self.server.worker());
        // Its result, such as a connection, is kept until the worker is dead.
        let _kept = cause(&self.server);
        let announced = format!("crash record of process {worker}: ");
        self.server.says(&announced);
        let log = self.server.log();
        let line = log
            .lines()
            .find(|line| {
                line.contains(" error supervisor[") && line.contains(&format!("default/0[{worker}] "))
            })
            .unwrap();
        let new: Vec<PathBuf> = self.paths().into_iter().filter(|path| !before.contains(path)).collect();
        let [path] = &new[..] else { panic!("{new:?}") };
        assert!(log.contains(&format!("{announced}{}", path.display())));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        until("the worker is replaced", || {
            let now = self.server.workers();
            now.len() == 1 && now[0] != worker && is_alive(now[0])
        });
        (line.to_owned(), serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
    }

    /// The crash record after this message to this resource.
    #[track_caller]
    fn crash(&self, resource: &str, headers: &str, text: &str) -> (String, Value) {
        self.death(|server| {
            let mut raw = Raw::connect(&server.address());
            raw.upgrade(resource, headers);
            raw.text(text);
            raw
        })
    }
}

/// The functions at an address, the innermost first, by binutils.
fn functions_at(object: &Path, offset: &str) -> String {
    let output = Command::new("addr2line").args(["-f", "-i", "-e"]).arg(object).arg(offset).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The function whose symbol covers an address.
fn symbol_at(object: &Path, offset: &str) -> String {
    let address = u64::from_str_radix(offset.trim_start_matches("0x"), 16).unwrap();
    let output = Command::new("nm").args(["-S", "--defined-only"]).arg(object).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let covers = |line: &&str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [start, size, _, _] = fields[..] else { return false };
        hex(start).zip(hex(size)).is_some_and(|(start, size)| (start..start + size).contains(&address))
    };
    text.lines().find(covers).and_then(|line| line.split(' ').nth(3)).unwrap_or_default().to_owned()
}

#[test]
fn the_place_is_the_one_of_addr2line() {
    let served = serve(&["crash", "crash_blocking"], &[]);
    for (handler, way, signal) in [
        ("crash", "null", "SIGSEGV"),
        ("crash", "fpe", "SIGFPE"),
        ("crash", "abort", "SIGABRT"),
        ("crash", "doublefree", "SIGABRT"),
        ("crash", "stack", "SIGSEGV"),
        ("crash", "thread null", "SIGSEGV"),
        ("crash_blocking", "null", "SIGSEGV"),
        ("crash_blocking", "abort", "SIGABRT"),
    ] {
        let (line, record) = served.crash(&format!("/{handler}"), "", way);
        let object = served.handlers.path().join(format!("{handler}_wsh.so"));
        assert_eq!(record["signal"], signal, "{way}: {line}");
        assert_eq!(record["cause"], "crash");
        assert_eq!(record["handler"]["name"], handler, "{way}: {line}");
        assert_eq!(record["code"]["module"], format!("{handler}_wsh.so"), "{way}: {line}");
        let offset = record["code"]["offset"].as_str().unwrap();
        assert!(line.contains(&format!(", {handler}_wsh.so+{offset}")), "{line}");
        let (functions, symbol) = (functions_at(&object, offset), symbol_at(&object, offset));
        let expected = if way == "stack" { "endless" } else { "crash_by" };
        assert!(functions.contains(expected), "{way}: {functions}");
        assert!(functions.contains(&symbol) && !symbol.is_empty(), "{way}: {symbol}, {functions}");
        let via = record["via"]["module"].as_str();
        match way {
            "abort" | "doublefree" => {
                assert!(via.unwrap().starts_with("libc") && line.contains(" (via libc"), "{way}: {line}");
            }
            "fpe" => {} // where a division does not trap, the fixture has the library raise the signal
            _ => assert_eq!(via, None, "{way}: {line}"),
        }
    }
}

#[test]
fn a_jump_to_an_invalid_address_has_the_place_of_the_jump() {
    let served = serve(&["crash"], &[]);
    let (line, record) = served.crash("/crash", "", "wildjump");
    assert!(line.contains("SIGSEGV at address 0xdead000 in on_message of crash, crash_wsh.so+0x"), "{line}");
    assert!(line.contains(" (via 0xdead000)"), "{line}");
    let object = served.handlers.path().join("crash_wsh.so");
    assert!(functions_at(&object, record["code"]["offset"].as_str().unwrap()).contains("crash_by"), "{line}");
}

#[test]
fn a_line_names_peer_and_message() {
    let served = serve(&["crash"], &[]);
    let mut peer = String::new();
    let (line, record) = served.death(|server| {
        let mut raw = Raw::open(&server.address(), "/crash");
        peer = raw.stream.local_addr().unwrap().to_string();
        raw.text("null");
        raw.rest();
    });
    // CRC-32 of "null", by Python's zlib.crc32.
    let end = format!(" from {peer}, text message of 4 bytes (hash 25cbfc4f)");
    assert!(line.ends_with(&end), "{line}");
    assert_eq!(record["peer"], peer);
    assert!(
        line.contains(&format!(", connection {} from ", record["connection"].as_str().unwrap())),
        "{line}"
    );
    let message = serde_json::json!({
        "type": "text", "size": 4, "hash": "25cbfc4f", "bytes": "bnVsbA==", "complete": true
    });
    assert_eq!(record["message"], message);
}

#[test]
fn a_record_replayed_crashes_again() {
    let served = serve(&["crash", "crash_blocking"], &[]);
    for handler in ["crash", "crash_blocking"] {
        let headers = "Origin: https://example.com\r\nSec-WebSocket-Protocol: chat\r\n";
        let (_, first) = served.crash(&format!("/{handler}?a=b"), headers, "abort");
        let request = &first["request"];
        assert_eq!(request["origin"], "https://example.com");
        let replay = |record: &Value| {
            let bytes = record["message"]["bytes"].as_str().unwrap();
            let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).unwrap();
            let kind = if record["message"]["type"] == "text" { TEXT } else { BINARY };
            served.death(|server| {
                let mut raw = Raw::connect(&server.address());
                let origin = format!("Origin: {}\r\n", record["request"]["origin"].as_str().unwrap());
                raw.upgrade(record["request"]["resource"].as_str().unwrap(), &origin);
                raw.frame(kind, &bytes);
                raw.rest();
            })
        };
        let (_, second) = replay(&first);
        for same in ["cause", "signal", "code", "via", "handler", "request", "message"] {
            assert_eq!(first[same], second[same], "{same}");
        }
    }
}

#[test]
fn a_crash_in_the_handshake_has_its_request() {
    let served = serve(&["crash"], &[]);
    let (_, record) = served.death(|server| {
        let mut raw = Raw::connect(&server.address());
        let upgrade = client::UPGRADE;
        raw.send(format!("GET /crash?handshake=null HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n").as_bytes());
        raw.rest();
    });
    assert_eq!(record["handler"]["callback"], "do_extra_handshake");
    assert_eq!(record["request"]["resource"], "/crash?handshake=null");
    assert_eq!(record["message"], Value::Null);
}

#[test]
fn bytes_of_messages_are_bounded_and_can_be_omitted() {
    // The handler compares up to the NUL.
    let long = format!("null\0{}", "x".repeat(99_999));
    for (limit, kept) in [("0", 0), ("1", 1), ("5000", 5000), ("64K", 65_536), ("1M", 100_004)] {
        let served = serve(&["crash"], &["-o", &format!("crash_bytes={limit}")]);
        let (_, record) = served.crash("/crash", "", &long);
        let bytes = record["message"]["bytes"].as_str().unwrap();
        let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).unwrap();
        assert_eq!(bytes, &long.as_bytes()[..kept], "{limit}");
        assert_eq!(record["message"]["size"], long.len());
        assert_eq!(record["message"]["complete"], kept == long.len());
    }
}

#[test]
fn exits_hangs_and_kills_are_distinguished() {
    let served = serve(&["exits", "loop"], &["-o", "handler_timeout=2s"]);
    let (line, exit) = served.crash("/exits", "", "exit");
    assert_eq!((&exit["cause"], &exit["signal"]), (&"exit".into(), &Value::Null));
    assert!(line.contains("ended: exit() called in on_message of exits, exits_wsh.so+0x"), "{line}");
    assert_eq!(exit["message"]["bytes"], "ZXhpdA==");
    let (_, exit) = served.crash("/exits", "", "_exit");
    assert_eq!(exit["cause"], "exit");

    let mut peer = String::new();
    let (line, ended) = served.death(|server| {
        let mut raw = Raw::open(&server.address(), "/exits");
        peer = raw.stream.local_addr().unwrap().to_string();
        raw.text("group");
        raw.rest();
    });
    assert_eq!((&ended["cause"], &ended["status"]), (&"ended".into(), &3.into()));
    assert!(line.contains("ended with status 3 in on_message of exits, connection "), "{line}");
    // CRC-32 of "group", by Python's zlib.crc32.
    let end = format!(" from {peer}, text message of 5 bytes (hash 6dc044c5)");
    assert!(line.ends_with(&end), "{line}");
    assert_eq!(ended["peer"], peer);
    let message = serde_json::json!({
        "type": "text", "size": 5, "hash": "6dc044c5", "bytes": "Z3JvdXA=", "complete": true
    });
    assert_eq!(ended["message"], message);

    // Of a longer message the beginning is known. The handler compares up to the NUL.
    let (line, ended) = served.crash("/exits", "", &format!("group\0{}", "x".repeat(94)));
    assert!(line.ends_with(", text message of 100 bytes"), "{line}");
    let bytes = base64::engine::general_purpose::STANDARD.decode(ended["message"]["bytes"].as_str().unwrap());
    assert_eq!(bytes.unwrap(), [b"group\0", "x".repeat(58).as_bytes()].concat());
    assert_eq!((&ended["message"]["hash"], &ended["message"]["complete"]), (&Value::Null, &false.into()));

    let (line, hang) = served.crash("/loop", "", "loop");
    assert_eq!(hang["cause"], "hang");
    assert!(line.contains("killed: handler timeout in on_message of loop, loop_wsh.so+0x"), "{line}");
    let object = served.handlers.path().join("loop_wsh.so");
    assert!(functions_at(&object, hang["code"]["offset"].as_str().unwrap()).contains("on_message"));

    // Its handlers are loaded then.
    let _open = Raw::open(&served.server.address(), "/exits");
    let (line, killed) =
        served.death(|server| kill(Pid::from_raw(server.worker()), Signal::SIGKILL).unwrap());
    assert_eq!((&killed["cause"], &killed["signal"]), (&"killed".into(), &"SIGKILL".into()));
    assert_eq!((&killed["handler"], &killed["message"]), (&Value::Null, &Value::Null));
    assert!(line.ends_with("died of SIGKILL"), "{line}");
}

#[test]
fn a_signal_from_outside_is_attributed_to_no_handler() {
    let served = serve(&["crash"], &[]);
    // The handler's return addresses may still be on this stack.
    assert_eq!(Raw::open(&served.server.address(), "/crash").ask("hello"), "hello");
    let (line, record) =
        served.death(|server| kill(Pid::from_raw(server.worker()), Signal::SIGSEGV).unwrap());
    assert_eq!((&record["signal"], &record["handler"]), (&"SIGSEGV".into(), &Value::Null), "{line}");
    assert!(line.contains(" in no handler, "), "{line}");
}

#[test]
fn without_the_option_nothing_is_written() {
    let dir = Dir::new();
    fixtures::add_handler(dir.path(), "crash", "crash");
    let server = Server::start(&dir, &["--workers", "1"]);
    let mut raw = Raw::open(&server.address(), "/crash");
    raw.text("null");
    raw.rest();
    server.says("has ended after its crash");
    assert!(!server.log().contains("the record of"));
}

#[test]
fn a_missing_directory_is_an_error() {
    let dir = Dir::new();
    let output = daemon::run(&["-w", dir.path().to_str().unwrap(), "-o", "crash_dir=/nowhere"]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("-o crash_dir=/nowhere: expected a directory"), "{said}");
}

/// Kills workers in all ways; neither descriptors nor memory of the supervisor may grow.
fn many_deaths(count: usize) {
    let served = serve(&["crash", "exits"], &[]);
    let supervisor = served.server.pid();
    let mut deaths = 0;
    let mut die = |times: usize| {
        for _ in 0..times {
            let worker = served.server.worker();
            let mut raw = Raw::connect(&served.server.address());
            let (resource, text) = [("/crash", "null"), ("/crash", "abort"), ("/exits", "exit")][deaths % 3];
            raw.upgrade(resource, "");
            raw.text(text);
            raw.rest();
            deaths += 1;
            until("the worker is replaced", || {
                let now = served.server.workers();
                now.len() == 1 && now[0] != worker && is_alive(now[0])
            });
        }
    };
    die(20);
    let (fds, kib) = (daemon::descriptors_of(supervisor), daemon::memory_of(supervisor, "VmRSS"));
    die(count);
    // It may still be processing the last deaths.
    until("the descriptors of the dead are closed", || daemon::descriptors_of(supervisor) <= fds);
    let after = daemon::memory_of(supervisor, "VmRSS");
    println!("{count} deaths: {fds} descriptors, {kib} KiB before, {after} KiB after");
    // Less than a page for 12 deaths, after the heap has settled.
    assert!(after <= kib + 64 + count as u64 / 3, "{kib} KiB, then {after} KiB after {count} deaths");
    // A process of its own writes them.
    until("the last records are written", || served.paths().len() == 100.min(count + 20));
}

#[test]
fn the_supervisor_does_not_grow_with_200_deaths() {
    many_deaths(200);
}

#[test]
#[ignore = "a minute"]
fn the_supervisor_does_not_grow_with_400_deaths() {
    many_deaths(400);
}
