//! The log: optional fields of the access log, and limits on lines about a peer.

use serde_json::Value;

use super::client::{Raw, connect_with};
use super::server::{Dir, ECHO, until};
use super::{Operated, request};

#[test]
fn the_access_log_has_the_configured_fields() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let access = dir.path().join("access");
    let mut args = vec!["--workers", "1", "--access-log", access.to_str().unwrap(), "-o", "log_format=json"];
    let fields = ["method", "host", "origin", "user_agent", "handler", "reply_bytes"];
    let fields = fields.map(|field| format!("access_log_fields={field}"));
    fields.iter().for_each(|field| args.extend(["-o", field]));
    let mut operated = Operated::start_in(dir, &args);
    let headers = [("Origin", "http://example.org"), ("User-Agent", "tests/1.0")];
    drop(connect_with(&operated.address(), "/echo", &headers));
    let answer = request(&operated.address(), "GET", "/nothing", "User-Agent: other/2\r\n");
    assert_eq!(request(&operated.address(), "HEAD", "/nothing", "").status, 404);
    until("all is in the access log", || operated.file("access").lines().count() == 4);
    let text = operated.file("access");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |event: &str| -> Vec<&Value> { lines.iter().filter(|line| line["event"] == event).collect() };
    for event in ["open", "close"] {
        let line = of(event)[0];
        let found = ["method", "origin", "user_agent", "handler"].map(|name| line[name].as_str().unwrap());
        assert_eq!(found, ["GET", "http://example.org", "tests/1.0", "echo"], "{line}");
        assert_eq!(
            (line["host"].as_str().unwrap(), line["reply_bytes"].is_null()),
            (&*operated.address(), true)
        );
    }
    let http = of("http");
    let get = http.iter().find(|line| line["method"] == "GET").unwrap();
    assert_eq!((&get["user_agent"], &get["handler"]), (&"other/2".into(), &Value::Null));
    assert_eq!(get["reply_bytes"].as_u64(), Some(answer.body.len() as u64));
    let head = http.iter().find(|line| line["method"] == "HEAD").unwrap();
    assert_eq!((&head["reply_bytes"], &head["user_agent"]), (&0.into(), &Value::Null));
    operated.server.stop();
}

#[test]
fn repeated_protocol_errors_of_a_peer_do_not_fill_the_log() {
    let mut operated = Operated::start(&["--workers", "1"]);
    let begun = std::time::Instant::now();
    for _ in 0..20 {
        let mut raw = Raw::open(&operated.address(), "/echo");
        raw.frame(0x83, b"an opcode that does not exist");
        raw.expect_close(1002);
    }
    let lines = operated.server.log().matches("; closed with 1002").count();
    // Three in ten seconds; a machine may be slow.
    let most = 3 * (begun.elapsed().as_secs() as usize / 10 + 2);
    assert!((3..=most).contains(&lines), "{lines} lines:\n{}", operated.server.log());
    operated.server.says("from 127.0.0.1:");
    operated.server.stop();
}
