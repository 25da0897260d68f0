//! Topics for operators: listing and publishing.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::client::Raw;
use crate::daemon::{Dir, Server, ctl, until, wshd};

/// One with a control socket.
fn start(handlers: &[&str], args: &[&str]) -> (Dir, Server) {
    let dir = Dir::new();
    let socket = dir.path().join("control");
    crate::start(dir, handlers, &[&["--control-socket", socket.to_str().unwrap()], args].concat())
}

/// Publishes; standard output or error.
fn publish(dir: &Dir, args: &[&str], message: &[u8]) -> Result<String, String> {
    let mut command = wshd();
    command.arg("ctl").arg("--control-socket").arg(dir.path().join("control")).arg("publish").args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(message); // it may not read all
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if status.success() { Ok(text(stdout)) } else { Err(text(stderr)) }
}

#[test]
fn topics_are_listed_and_published_to() {
    let (dir, mut server) = start(&["topics", "other=topics"], &["--workers", "2"]);
    // Null if the bus gets no processor for two seconds.
    let list = || {
        let output = ctl(&dir.path().join("control"), &["topics", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    assert_eq!(list()["topics"], serde_json::json!([]), "nobody has used any");
    let why = publish(&dir, &["--scope", "/topics", "news"], b"too early").unwrap_err();
    assert!(why.contains("no handler has used topics yet"), "{why}");
    let mut clients: Vec<Raw> = (0..3).map(|_| Raw::open(&server.address(), "/topics")).collect();
    let mut other = Raw::open(&server.address(), "/other");
    clients.iter_mut().for_each(|client| assert_eq!(client.ask("sub news"), "sub 0"));
    assert_eq!(other.ask("sub news"), "sub 0");
    until("all are counted", || {
        let list = list();
        let row = |index: usize| {
            let row = &list["topics"][index];
            (row["scope"].as_str().unwrap_or_default().to_owned(), row["subscribers"].as_u64())
        };
        row(0) == ("/other".to_owned(), Some(1)) && row(1) == ("/topics".to_owned(), Some(3))
    });
    assert!(list()["engine"].is_null());
    until("they are in the table", || {
        let table = ctl(&dir.path().join("control"), &["topics"]);
        let table = String::from_utf8(table.stdout).unwrap();
        table.starts_with("SCOPE") && table.contains("/topics  news")
    });

    // It is published as well if the bus answers too late.
    let is_late = |why: &str| why.contains("the bus has not answered within");
    match publish(&dir, &["news", "--scope", "/topics"], b"hello") {
        Ok(said) => assert_eq!(said, "published to news of /topics: 3 subscribers here\n"),
        Err(why) => assert!(is_late(&why), "{why}"),
    }
    clients.iter_mut().for_each(|client| assert_eq!(client.next_text(), "hello"));
    let published = publish(&dir, &["news", "--scope", "/topics", "--binary"], &[0xff; 65536]);
    assert!(published.as_ref().err().is_none_or(|why| is_late(why)), "{published:?}");
    for client in &mut clients {
        let frame = client.next().unwrap();
        assert_eq!((frame.first, frame.payload.len()), (crate::client::BINARY, 65536));
    }
    for (args, message, expected) in [
        (&["news"][..], &b"x"[..], "expected --scope with one of /other, /topics"),
        (&["news", "--scope", "/nowhere"], b"x", "no handler has topics of /nowhere: expected --scope"),
        (&["a\u{1}", "--scope", "/topics"], b"x", "expected a topic of 1 to 255 bytes"),
        (&["news", "--scope", "/topics"], b"\xff", "not UTF-8: publish it with --binary"),
        (&["news", "--scope", "/topics"], &[b'x'; 65537], "expected a message of at most 65536 bytes"),
    ] {
        let why = publish(&dir, args, message).unwrap_err();
        assert!(why.contains(expected), "{args:?}: {why}");
    }
    server.says("requests: publish 5 bytes to news");
    assert_eq!(other.ask("missed"), "missed 0", "nothing has come there");
    drop((clients, other));
    server.stop();
}

#[test]
fn a_message_that_waits_in_many_queues_counts_once_for_send_total() {
    const SUBSCRIBERS: usize = 8;
    let (dir, mut server) = start(&["topics"], &["--workers", "1", "-o", "send_total=2M"]);
    let socket = dir.path().join("control");
    let mut slow: Vec<Raw> = (0..SUBSCRIBERS).map(|_| Raw::open(&server.address(), "/topics")).collect();
    slow.iter_mut().for_each(|one| assert_eq!(one.ask("sub news"), "sub 0"));
    let mut fast = Raw::open(&server.address(), "/topics");
    // Together the queues reach 3 MiB, of the same messages.
    until("all queues are long", || {
        assert!(fast.ask("many news 1 50000").starts_with("many "));
        assert!(!server.log().contains("too slow"), "{}", server.log());
        let list: Value =
            serde_json::from_str(&server.ctl_says(&socket, &["connections", "--json"])).unwrap();
        let is_long = |one: &&Value| one["queued"].as_u64() > Some(400_000);
        list["connections"].as_array().unwrap().iter().filter(is_long).count() == SUBSCRIBERS
    });
    drop((slow, fast));
    server.stop();
}
