//! Fairness between heavy and light connections.

use std::fs;
use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};
use nix::unistd::Pid;

use crate::client::{self, Raw, TEXT};
use crate::daemon::{is_idle, until};
use crate::{Served, serve};

/// Size of a message that makes a connection heavy.
const MUCH: usize = 160 * 1024;
/// Bytes that are read at once from a heavy connection.
const SOME: usize = 48 * 1024;

/// A text of that length that begins with this.
fn large(begin: &str, size: usize) -> Vec<u8> {
    client::frame(TEXT, format!("{begin} {}", "x".repeat(size)).as_bytes())
}

/// Heavy connections.
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

/// The worker's socket has received all of it.
pub fn arrived(raw: &Raw) {
    let port = format!(":{:04X}", raw.stream.local_addr().unwrap().port());
    until("the other end has it", || {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        // Columns: number, local and remote address, state, bytes to be sent or confirmed : to be received.
        let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut line = line.filter(|line| line.get(1).is_some_and(|local| local.ends_with(&port)));
        line.next().is_some_and(|line| line[4].starts_with("00000000:"))
    });
}

/// Makes the handler block the worker until the returned file exists.
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
fn light_connections_are_served_before_heavy_ones() {
    let server = serve(&["turns"], &[]);
    let dir = tempfile::tempdir().unwrap();
    let mut quiet = Raw::open(&server.address(), "/turns");
    let mut gate = Raw::open(&server.address(), "/turns");
    // More than are watched while they wait.
    let names = "ABCDEFGHIJKLMNOPQRST";
    let mut many = heavy(&server, &mut gate, names.len());

    // All of them arrive while the worker is blocked, the largest first.
    let go = hold(&server, &mut gate, '1', dir.path(), false);
    let go_on = hold(&server, &mut many[0], 'A', dir.path(), true);
    for (raw, name) in many.iter_mut().zip(names.chars()).skip(1) {
        raw.send(&large(&name.to_string(), SOME));
    }
    quiet.text("a");
    many.iter().chain([&quiet]).for_each(arrived);
    fs::write(go, "").unwrap();
    // A connection that arrives while the first of them is served does not wait for the others.
    server.says("A holds");
    quiet.text("b");
    arrived(&quiet);
    fs::write(go_on, "").unwrap();
    // The connection that asks is light too, and may be answered before the last of them.
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
fn a_queued_connection_that_ends_is_skipped() {
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
    // The last one waits in the queue, and the one before it has disconnected.
    drop(many.remove(1));
    fs::write(go_on, "").unwrap();
    assert_eq!(many[1].ask("order"), "1AC");
    assert_eq!(gate.ask("order"), "");
}

#[test]
fn the_rest_of_a_burst_is_read_without_further_data() {
    // A Unix socket holds more than is read at a time, even on a connection that was light so far.
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
fn data_after_a_passed_descriptor_is_read() {
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
fn data_after_urgent_data_is_read() {
    let server = serve(&["turns"], &[]);
    let dir = tempfile::tempdir().unwrap();
    let mut gate = Raw::open(&server.address(), "/turns");
    let mut raw = Raw::open(&server.address(), "/turns");
    let go = hold(&server, &mut gate, '1', dir.path(), false);
    raw.text("a");
    // Urgent data: a read ends before it (tcp(7)).
    send(raw.stream.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
    raw.text("b nap");
    arrived(&raw);
    fs::write(go, "").unwrap();
    assert_eq!(raw.next_text(), "b");
    assert_eq!(gate.ask("order"), "1ab");
}

#[test]
fn an_end_of_input_with_a_message_is_noticed() {
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
fn slow_messages_are_served_in_slices_and_the_worker_is_not_killed() {
    const MESSAGES: usize = 200;
    // All of them take longer than a handler may.
    let server = serve(&["turns"], &["-o", "handler_timeout=1s"]);
    let mut quiet = Raw::open(&server.address(), "/turns");
    let mut slow = Raw::open(&server.address(), "/turns");
    // Both find their messages when the worker goes on.
    let worker = Pid::from_raw(server.worker());
    kill(worker, Signal::SIGSTOP).unwrap();
    slow.send(&client::frame(TEXT, b"a nap").repeat(MESSAGES));
    arrived(&slow);
    quiet.text("order");
    arrived(&quiet);
    kill(worker, Signal::SIGCONT).unwrap();
    assert_eq!(slow.next_text(), "a", "what is ready does not wait for the rest");
    let first = quiet.next_text();
    assert!(!first.is_empty() && first.len() < MESSAGES / 2, "{} were processed before", first.len());
    (1..MESSAGES).for_each(|_| assert_eq!(slow.next_text(), "a"));
    assert_eq!(first.len() + quiet.ask("order").len(), MESSAGES);
    assert_eq!(slow.ask("order"), "");
}

#[test]
fn a_timer_counts_from_the_call_even_in_a_long_callback() {
    let server = serve(&["turns"], &[]);
    let mut raw = Raw::open(&server.address(), "/turns");
    let took: u32 = raw.ask("a timer").parse().unwrap();
    assert!(took >= 50, "after {took} ms");
}
