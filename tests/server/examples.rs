//! Each example of `plugins/` behaves as its first comment says.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tungstenite::Message;

use crate::client::{
    self, CLOSE, Raw, ask, close_of, close_payload, connect, connect_with, header, next_text,
};
use crate::daemon::{Dir, Server, bound, until};
use crate::{fixtures, serve};

#[test]
fn close_with_the_code_and_reason_of_a_text() {
    let server = serve(&["close"], &[]);
    for (text, code, reason) in [
        ("3001 so long", 3001, "so long"),
        ("1000", 1000, ""),
        ("1005", 1005, ""),
        ("1006 never sent", 1011, "expected CODE REASON"),
        ("what?", 1011, "expected CODE REASON"),
        ("1005 a reason needs a code", 1011, "expected CODE REASON"),
    ] {
        let mut client = connect(&server.address(), "/close");
        client.send(Message::text(text)).unwrap();
        assert_eq!(close_of(&mut client), (code, reason.to_owned()), "{text}");
    }
}

#[test]
fn close_answers_with_the_same_code_and_reason() {
    let server = serve(&["close"], &[]);
    let mut raw = Raw::open(&server.address(), "/close");
    raw.frame(CLOSE, &close_payload(4001, "ж"));
    assert_eq!(raw.expect_close(4001), "ж");
    raw.expect_end();
    let mut raw = Raw::open(&server.address(), "/close");
    raw.frame(CLOSE, &[]);
    raw.expect_close(1005);
    raw.expect_end();
}

#[test]
fn origin_check_accepts_only_example_com() {
    let server = serve(&["origin_check"], &[]);
    let (mut client, _) =
        connect_with(&server.address(), "/origin_check", &[("Origin", "http://example.com")]);
    assert_eq!(next_text(&mut client), "origin_check_wsh is called for /origin_check, ");
    assert_eq!(close_of(&mut client).0, 1000);
    for origin in
        ["", "Origin: http://example.com.evil.org\r\n", "Origin: null\r\n", "Origin: HTTP://EXAMPLE.COM\r\n"]
    {
        let mut raw = Raw::connect(&server.address());
        let request = format!("GET /origin_check HTTP/1.1\r\nHost: a\r\n{}{origin}\r\n", client::UPGRADE);
        raw.send(request.as_bytes());
        assert_eq!(raw.answer().status, 403, "{origin}");
    }
}

#[test]
fn cookie_sets_the_cookies_of_the_query() {
    let server = serve(&["cookie"], &[]);
    let cookies = |query: &str| -> Vec<String> {
        let mut raw = Raw::connect(&server.address());
        let head = raw.upgrade(&format!("/cookie{query}"), "");
        raw.expect_close(1000);
        let lines = head.lines().filter_map(|line| line.strip_prefix("Set-Cookie: "));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(cookies("?set"), ["foo=bar; Max-Age=86400"]);
    assert_eq!(cookies("?set_httponly"), ["httpOnlyFoo=bar; Max-Age=86400; httpOnly"]);
    assert_eq!(cookies("?clear")[0], "foo=0; Max-Age=0");
    assert!(cookies("").is_empty());
}

#[test]
fn hsts_adds_its_header_and_sends_hello() {
    let server = serve(&["hsts"], &[]);
    let mut raw = Raw::connect(&server.address());
    let head = raw.upgrade("/hsts", "");
    assert_eq!(header(&head, "Strict-Transport-Security"), Some("max-age=86400"));
    assert_eq!(raw.next_text(), "Hello");
    raw.expect_close(1000);
}

#[test]
fn internal_error_and_the_two_ways_to_drop() {
    let mut server = serve(&["internal_error", "abort", "abort_handshake"], &[]);
    let mut raw = Raw::open(&server.address(), "/internal_error");
    raw.expect_close(1011);
    let mut raw = Raw::open(&server.address(), "/abort");
    raw.expect_end();
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("GET /abort_handshake HTTP/1.1\r\nHost: a\r\n{}\r\n", client::UPGRADE).as_bytes());
    assert_eq!(raw.rest(), b"", "no reply at all");
    drop(raw);
    server.stop();
}

#[test]
fn bench_sends_at_the_given_rate() {
    let server = serve(&["bench"], &[]);
    let mut client = connect(&server.address(), "/bench");
    let begun = Instant::now();
    client.send(Message::text("0.02 4 tick tock")).unwrap();
    for _ in 0..4 {
        assert_eq!(next_text(&mut client), "tick tock");
    }
    assert_eq!(close_of(&mut client).0, 1000);
    // It waits after each of the four.
    assert!(begun.elapsed() >= Duration::from_millis(80), "{:?}", begun.elapsed());
    let mut client = connect(&server.address(), "/bench");
    client.send(Message::text("0 1000 fast")).unwrap();
    assert!((0..1000).all(|_| next_text(&mut client) == "fast"));
    assert_eq!(close_of(&mut client).0, 1000);
    let mut client = connect(&server.address(), "/bench");
    client.send(Message::text("soon")).unwrap();
    assert_eq!(close_of(&mut client).0, 1011);
    // It notices that the peer disconnects while it waits: the thread does not stay for an hour.
    let mut client = connect(&server.address(), "/bench");
    client.send(Message::text("3600 2 x")).unwrap();
    assert_eq!(next_text(&mut client), "x");
    client.close(client::close_frame(1000, "")).unwrap();
    assert_eq!(close_of(&mut client).0, 1000);
}

#[test]
fn benchmark_helper_measures_both_directions() {
    let server = serve(&["benchmark_helper"], &[]);
    let mut client = connect(&server.address(), "/benchmark_helper");
    for size in [0, 1, 100, 3 << 20] {
        client.send(Message::text(format!("receive {size}"))).unwrap();
        let Message::Binary(bytes) = client.read().unwrap() else { panic!("expected a binary message") };
        assert!(bytes.len() == size && bytes.iter().all(|byte| *byte == b'a'), "{size}");
        client.send(Message::text("send 1")).unwrap();
        client.send(Message::binary(bytes)).unwrap();
        assert_eq!(next_text(&mut client), size.to_string());
    }
    client.send(Message::text("send 0")).unwrap();
    assert_eq!(ask(&mut client, "b"), "1", "not verified");
    client.send(Message::text("send 1")).unwrap();
    client.send(Message::text("ab")).unwrap();
    assert_eq!(close_of(&mut client).0, 1011);
    let mut client = connect(&server.address(), "/benchmark_helper");
    client.send(Message::text("dance")).unwrap();
    assert_eq!(close_of(&mut client).0, 1011);
}

/// PostgreSQL in the event loop, through libpq and ws_watch_fd(): many queries at a time, a database that goes away and
/// comes back, and a worker that crashes meanwhile.
#[test]
#[ignore = "needs PostgreSQL's server and libpq"]
fn postgres_counts_words() {
    let Some(mut database) = Database::start() else { return };
    let dir = Dir::new();
    let object = dir.path().join("postgres_wsh.so");
    let flags = |what: &str| {
        let output = Command::new("pkg-config").args([what, "libpq"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let source = fixtures::root().join("plugins/libpq/postgres_wsh.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-I"]).arg(fixtures::root().join("include"));
    cc.args(flags("--cflags")).arg(source).arg("-o").arg(&object).args(flags("--libs"));
    assert!(cc.status().unwrap().success());
    let file = dir.path().join("w.conf");
    let conninfo =
        format!("host={} user=words dbname=postgres connect_timeout=2", database.dir.path().display());
    std::fs::write(&file, format!("[handler.'/postgres'.settings]\nconninfo = '{conninfo}'\n")).unwrap();
    let mut server = Server::start(&dir, &["--workers", "1", "--config", file.to_str().unwrap()]);
    let mut clients: Vec<Raw> = (0..20).map(|_| Raw::open(&server.address(), "/postgres")).collect();
    for round in 0..10 {
        clients.iter_mut().for_each(|client| client.text("all"));
        let mut seen: Vec<u32> = clients
            .iter_mut()
            .map(|client| client.next_text().strip_prefix("all ").unwrap().parse().unwrap())
            .collect();
        seen.sort();
        assert_eq!(seen, (round * 20 + 1..=round * 20 + 20).collect::<Vec<_>>());
    }
    database.stop();
    until("it is found out", || clients[0].ask("away") == "unavailable");
    database.serve();
    until("it is tried again", || clients[0].ask("back").starts_with("back "));
    clients.drain(..).for_each(|mut client| client.frame(CLOSE, &close_payload(1000, "")));
    server.stop();
}

/// A PostgreSQL for the test, on a socket in a directory.
struct Database {
    dir: tempfile::TempDir,
    programs: std::path::PathBuf,
    child: Option<Child>,
}

impl Database {
    /// None if PostgreSQL is not installed.
    fn start() -> Option<Self> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let mut programs: Vec<_> = versions.map(|version| version.unwrap().path().join("bin")).collect();
        programs.sort();
        let programs = programs.pop()?;
        let dir = tempfile::tempdir().unwrap();
        let mut database = Self { dir, programs, child: None };
        if nix::unistd::geteuid().is_root() {
            let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
            nix::unistd::chown(database.dir.path(), Some(nobody.uid), Some(nobody.gid)).unwrap();
        }
        let data = database.data();
        let mut initdb = database.program("initdb");
        initdb.args(["--auth=trust", "--username=words", "--no-sync", "-D"]).arg(data);
        assert!(initdb.stdout(Stdio::null()).status().unwrap().success());
        database.serve();
        Some(database)
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    /// PostgreSQL does not run as root.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        if nix::unistd::geteuid().is_root() {
            let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
            command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw());
        }
        command.current_dir("/");
        command
    }

    fn serve(&mut self) {
        let mut postgres = self.program("postgres");
        postgres.args(["-c", "listen_addresses=", "-c", "fsync=off", "-k"]).arg(self.dir.path());
        postgres.arg("-D").arg(self.data()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(bound(&mut postgres).spawn().unwrap());
        let socket = self.dir.path().join(".s.PGSQL.5432");
        until("the database listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        let ready = || {
            let mut ready = self.program("pg_isready");
            ready.arg("-h").arg(self.dir.path()).stdout(Stdio::null());
            ready.status().unwrap().success()
        };
        until("the database is ready", ready);
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fast shutdown.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(child.id() as i32),
                nix::sys::signal::SIGINT,
            );
            child.wait().unwrap();
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.stop();
    }
}
