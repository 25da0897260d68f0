//! Whose turn it is among connections that bring much and those that bring little.

use std::fs;
use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};

use crate::client::{self, Raw, TEXT};
use crate::daemon::{is_idle, until};
use crate::{Served, serve};

/// Bytes in a message that are much at once.
const MUCH: usize = 160 * 1024;
/// Bytes that are read at once from whoever has brought much.
const SOME: usize = 48 * 1024;

/// A text of that length that begins so.
fn large(begin: &str, size: usize) -> Vec<u8> {
    client::frame(TEXT, format!("{begin} {}", "x".repeat(size)).as_bytes())
}

/// Connections that have brought much.
fn heavy(server: &Served, gate: &mut Raw, count: usize) -> Vec<Raw> {
    let mut many: Vec<Raw> = (0..count).map(|_| Raw::open(&server.address(), "/turns")).collect();
    many.iter_mut().for_each(|raw| raw.send(&large("-", MUCH)));
    let mut read = 0;
    until("all of it is read", || {
        read += gate.ask("order").matches('-').count();
        read == count
    });
    many
}

/// The worker has been sent all of it.
fn arrived(raw: &Raw) {
    let port = format!(":{:04X}", raw.stream.local_addr().unwrap().port());
    until("the other end has it", || {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        // Columns: number, local and remote address, state, bytes to be sent or confirmed : to be received.
        let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut line = line.filter(|line| line.get(1).is_some_and(|local| local.ends_with(&port)));
        line.next().is_some_and(|line| line[4].starts_with("00000000:"))
    });
}

/// Has the handler hold the worker until the file that is returned is there.
fn hold<S: Read + Write>(
    server: &Served,
    raw: &mut Raw<S>,
    name: char,
    dir: &Path,
    is_large: bool,
) -> PathBuf {
    let file = dir.join(format!("go-{name}"));
    let text = format!("{name} hold {}", file.display());
    raw.send(&if is_large { large(&text, SOME) } else { client::frame(TEXT, text.as_bytes()) });
    if !is_large {
        server.says(&format!("{name} holds"));
    }
    file
}

/// A server on a Unix socket in this directory, and two connections to it.
fn on_a_unix_socket(dir: &Path) -> (Served, [Raw<UnixStream>; 2]) {
    let socket = dir.join("wshd");
    let server = serve(&["turns"], &["--server-host", &format!("unix:{}", socket.display())]);
    let connect = |()| {
        let mut raw = Raw::over(client::unix(&socket));
        raw.upgrade("/turns", "");
        raw
    };
    (server, [(); 2].map(connect))
}

#[test]
fn who_brings_little_goes_before_those_that_bring_much() {
    let server = serve(&["turns"], &[]);
    let dir = tempfile::tempdir().unwrap();
    let mut quiet = Raw::open(&server.address(), "/turns");
    let mut gate = Raw::open(&server.address(), "/turns");
    // More than are watched while they wait.
    let names = "ABCDEFGHIJKLMNOPQRST";
    let mut many = heavy(&server, &mut gate, names.len());

    // While the worker is held all of them come in, the largest first.
    let go = hold(&server, &mut gate, '1', dir.path(), false);
    let go_on = hold(&server, &mut many[0], 'A', dir.path(), true);
    for (raw, name) in many.iter_mut().zip(names.chars()).skip(1) {
        raw.send(&large(&name.to_string(), SOME));
    }
    quiet.text("a");
    many.iter().chain([&quiet]).for_each(arrived);
    fs::write(go, "").unwrap();
    // One that comes while the first of them is served does not wait for the others.
    server.says("A holds");
    quiet.text("b");
    arrived(&quiet);
    fs::write(go_on, "").unwrap();
    // Who asks brings little, too, and may be answered before the last of them.
    let mut order = String::new();
    until("all have come", || {
        order += &gate.ask("order");
        order.len() >= names.len() + 3
    });
    assert_eq!(order, names.replacen('A', "1aAb", 1));
    // They are watched again.
    assert!(many.iter_mut().all(|raw| raw.ask("order").is_empty()));
}

#[test]
fn who_ends_while_it_waits_is_not_waited_for() {
    let server = serve(&["turns"], &[]);
    let dir = tempfile::tempdir().unwrap();
    let mut gate = Raw::open(&server.address(), "/turns");
    let mut many = heavy(&server, &mut gate, 3);
    let go = hold(&server, &mut gate, '1', dir.path(), false);
    let go_on = hold(&server, &mut many[0], 'A', dir.path(), true);
    many[2].send(&large("C", SOME));
    many.iter().for_each(arrived);
    fs::write(go, "").unwrap();
    server.says("A holds");
    // The last one waits in line, and the one before it is found to have gone.
    drop(many.remove(1));
    fs::write(go_on, "").unwrap();
    assert_eq!(many[1].ask("order"), "1AC");
    assert_eq!(gate.ask("order"), "");
}

#[test]
fn what_is_left_of_what_came_at_once_is_read_though_nothing_more_comes() {
    // In a Unix socket more waits than is read at a time, also of one that has brought little so far.
    let dir = tempfile::tempdir().unwrap();
    let (server, [mut gate, mut raw]) = on_a_unix_socket(dir.path());
    let go = hold(&server, &mut gate, '1', dir.path(), false);
    const MESSAGES: usize = 150;
    raw.send(&large("a", 1000).repeat(MESSAGES));
    fs::write(go, "").unwrap();
    let mut order = gate.ask("order");
    until("the worker waits", || is_idle(server.worker()));
    order += &gate.ask("order");
    assert_eq!(order, "1".to_owned() + &"a".repeat(MESSAGES));
}

/// unix(7): a receive ends at data that came with descriptors.
#[test]
fn what_stands_behind_a_descriptor_that_was_sent_along_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (server, [mut gate, mut raw]) = on_a_unix_socket(dir.path());
    let go = hold(&server, &mut gate, '1', dir.path(), false);
    let (first, second) = (client::frame(TEXT, b"a"), client::frame(TEXT, b"b nap"));
    let descriptors = [std::io::stderr().as_raw_fd()];
    let with = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(raw.stream.as_raw_fd(), &[IoSlice::new(&first)], &with, MsgFlags::empty(), None).unwrap();
    raw.send(&second);
    fs::write(go, "").unwrap();
    assert_eq!(raw.next_text(), "b");
    assert_eq!(gate.ask("order"), "1ab");
}

#[test]
fn what_stands_behind_urgent_data_is_read() {
    let server = serve(&["turns"], &[]);
    let dir = tempfile::tempdir().unwrap();
    let mut gate = Raw::open(&server.address(), "/turns");
    let mut raw = Raw::open(&server.address(), "/turns");
    let go = hold(&server, &mut gate, '1', dir.path(), false);
    raw.text("a");
    // A byte beside the stream: what is read ends before its place (tcp(7)).
    send(raw.stream.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
    raw.text("b nap");
    arrived(&raw);
    fs::write(go, "").unwrap();
    assert_eq!(raw.next_text(), "b");
    assert_eq!(gate.ask("order"), "1ab");
}

#[test]
fn an_end_that_came_with_a_message_is_noticed_behind_it() {
    let server = serve(&["turns"], &[]);
    let dir = tempfile::tempdir().unwrap();
    let mut gate = Raw::open(&server.address(), "/turns");
    let mut raw = Raw::open(&server.address(), "/turns");
    let go = hold(&server, &mut gate, '1', dir.path(), false);
    raw.text("a");
    raw.stream.shutdown(Shutdown::Write).unwrap();
    arrived(&raw);
    fs::write(go, "").unwrap();
    raw.expect_end();
    assert_eq!(gate.ask("order"), "1a");
}

#[test]
fn messages_that_take_long_are_served_in_slices_and_nobody_is_killed() {
    const MESSAGES: usize = 200;
    // All of them take longer than a handler may.
    let server = serve(&["turns"], &["-o", "handler_timeout=1s"]);
    let mut quiet = Raw::open(&server.address(), "/turns");
    let mut slow = Raw::open(&server.address(), "/turns");
    slow.send(&client::frame(TEXT, b"a nap").repeat(MESSAGES));
    assert_eq!(slow.next_text(), "a", "what is ready does not wait for the rest");
    let first = quiet.ask("order");
    assert!(!first.is_empty() && first.len() < MESSAGES / 2, "{} were processed before", first.len());
    (1..MESSAGES).for_each(|_| assert_eq!(slow.next_text(), "a"));
    assert_eq!(first.len() + quiet.ask("order").len(), MESSAGES);
    assert_eq!(slow.ask("order"), "");
}

#[test]
fn a_timer_runs_from_when_it_was_set_however_long_the_callback_has_taken() {
    let server = serve(&["turns"], &[]);
    let mut raw = Raw::open(&server.address(), "/turns");
    let took: u32 = raw.ask("a timer").parse().unwrap();
    assert!(took >= 50, "after {took} ms");
}
