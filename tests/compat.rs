//! Compatibility with mod_pywebsocket's standalone server: command line, configuration file, and clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::fs::{create_dir_all, write};
use std::path::PathBuf;

use client::{Raw, UPGRADE, header};
use daemon::{Dir, Server, wshd};

/// Starts it in this directory with these arguments, which name the log file `log`.
#[track_caller]
fn start(dir: &Dir, line: &str) -> Server {
    let mut command = wshd();
    command.current_dir(dir.path()).args(line.split_whitespace());
    Server::launch(command, dir.path().join("log")).when_ready()
}

/// A document root with handlers below it.
fn tree(handlers: &str) -> (Dir, PathBuf) {
    let dir = Dir::new();
    let root = dir.path().join("example");
    create_dir_all(&root).unwrap();
    write(root.join("page.html"), "page").unwrap();
    for name in ["echo", "close", "origin_check", "internal_error"] {
        fixtures::add_handler(&root.join(handlers), name, name);
    }
    write(root.join("map"), "/alias /echo\n").unwrap();
    (dir, root)
}

#[track_caller]
fn serves(server: &Server) {
    let mut raw = Raw::open(&server.address(), "/alias");
    assert_eq!(raw.ask("Hello"), "Hello");
    assert_eq!(raw.ask("Goodbye"), "Goodbye");
    raw.expect_close(1000);
    let mut raw = Raw::open(&server.address(), "/echo");
    raw.frame(client::TEXT | 0x10, b"a reserved bit");
    raw.expect_close(1002);
    let mut raw = Raw::connect(&server.address());
    raw.send(b"GET /page.html HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(raw.answer().body, b"page");
}

#[test]
fn an_old_command_line_works_or_says_what_to_use() {
    let (dir, root) = tree("handlers");
    let line = format!(
        "-H 127.0.0.1 -p 0 -d {} -w handlers -m {}/map -s {0}/handlers --allow_handlers_outside_root_dir -q 10 \
         --log_file log --log-level warning --log_max 65536 --log_count 2 --tls_module ssl --strict --allow-draft75 \
         --handler-encoding=utf-8 --thread_monitor_interval_in_sec=-1 --deflate-log-level debug \
         --basic-auth-credential ann:secret",
        root.display(),
        root.display()
    );
    let mut server = start(&dir, &line);
    for (option, advice) in [
        ("--tls-module", "there is one TLS library"),
        ("--strict", "always checked strictly"),
        ("--allow-draft75", "RFC 6455 is the only protocol"),
        ("--handler-encoding", "handlers are shared objects"),
        ("--thread-monitor-interval-in-sec", "use wshd ctl status"),
        ("--deflate-log-level", "use --log-level"),
    ] {
        let log = server.log();
        let line = log.lines().find(|line| line.contains(&format!(" {option} is ignored: "))).expect(&log);
        assert!(line.contains(advice), "{line}");
    }
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("GET /echo HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
    assert_eq!(raw.answer().status, 401);
    let mut raw = Raw::connect(&server.address());
    raw.upgrade("/echo", "Authorization: Basic YW5uOnNlY3JldA==\r\n");
    assert_eq!(raw.ask("in"), "in");
    server.stop();
}

#[test]
fn its_configuration_file_and_its_default_for_handlers() {
    // Without -w handlers are in the document root.
    let (dir, root) = tree(".");
    let map = root.join("map");
    let text = format!(
        "[pywebsocket]\nserver_host = 127.0.0.1\nport = 81\ndocument_root = {}\nwebsock_handlers_map_file: {}\n\
         log_file = log\nstrict = True\n",
        root.display(),
        map.display()
    );
    write(dir.path().join("old.conf"), text).unwrap();
    let mut server = start(&dir, "--config old.conf -p 0");
    server.says("old.conf:7: strict is ignored: ");
    serves(&server);
    server.stop();
}

#[test]
fn a_client_without_a_common_subprotocol() {
    let dir = Dir::new();
    fixtures::add_handler(dir.path(), "echo", "echo");
    fixtures::add_handler(dir.path(), "strict/echo", "echo");
    let path = dir.path().join("wshd.conf");
    write(&path, "[handler.'/strict/echo']\nunmatched_subprotocol = 'refuse'\n").unwrap();
    let mut server = Server::start(&dir, &["--config", path.to_str().unwrap()]);
    let mut raw = Raw::connect(&server.address());
    let head = raw.upgrade("/echo", "Sec-WebSocket-Protocol: chat, superchat\r\n");
    assert_eq!(header(&head, "Sec-WebSocket-Protocol"), None);
    for (resource, offered, chosen) in
        [("/strict/echo", "Sec-WebSocket-Protocol: chat, echo\r\n", Some("echo")), ("/strict/echo", "", None)]
    {
        let mut raw = Raw::connect(&server.address());
        let head = raw.upgrade(resource, offered);
        assert_eq!(header(&head, "Sec-WebSocket-Protocol"), chosen);
    }
    let mut raw = Raw::connect(&server.address());
    let request =
        format!("GET /strict/echo HTTP/1.1\r\nHost: a\r\n{UPGRADE}Sec-WebSocket-Protocol: chat\r\n\r\n");
    raw.send(request.as_bytes());
    let answer = raw.answer();
    assert_eq!(answer.status, 400);
    assert!(String::from_utf8_lossy(&answer.body).contains("none of the subprotocols"));
    server.stop();
}
