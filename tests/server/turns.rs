//! Whose turn it is among connections that bring much and those that bring little.

use std::fs;
use std::path::{Path, PathBuf};

use crate::client::{self, Raw, TEXT};
use crate::daemon::until;
use crate::{Served, serve};

/// What counts as much at once.
const MUCH: usize = 64 * 1024;

/// A text of that length that begins so.
fn large(begin: &str) -> Vec<u8> {
    client::frame(TEXT, format!("{begin} {}", "x".repeat(MUCH)).as_bytes())
}

/// A connection that has brought much, which has been processed.
fn heavy(server: &Served) -> Raw {
    let mut raw = Raw::open(&server.address(), "/turns");
    raw.send(&large("-"));
    raw.ask("order");
    // Read in one piece now: what came before the last word was much once more.
    raw.send(&[large("-"), client::frame(TEXT, b"order")].concat());
    raw.next_text();
    raw
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
fn hold(server: &Served, raw: &mut Raw, name: char, dir: &Path, is_large: bool) -> PathBuf {
    let file = dir.join(format!("go-{name}"));
    let text = format!("{name} hold {}", file.display());
    raw.send(&if is_large { large(&text) } else { client::frame(TEXT, text.as_bytes()) });
    if !is_large {
        server.says(&format!("{name} holds"));
    }
    file
}

#[test]
fn who_brings_little_goes_before_those_that_bring_much() {
    let server = serve(&["turns"], &[]);
    let dir = tempfile::tempdir().unwrap();
    let mut quiet = Raw::open(&server.address(), "/turns");
    let mut gate = Raw::open(&server.address(), "/turns");
    let mut many: Vec<Raw> = (0..3).map(|_| heavy(&server)).collect();
    quiet.ask("order");

    // While the worker is held all of them come in, the largest first.
    let go = hold(&server, &mut gate, '1', dir.path(), false);
    let go_on = hold(&server, &mut many[0], 'A', dir.path(), true);
    for (raw, name) in many.iter_mut().zip(["A", "B", "C"]).skip(1) {
        raw.send(&large(name));
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
        order.len() >= 6
    });
    assert_eq!(order, "1aAbBC");
}

#[test]
fn who_ends_while_it_waits_is_not_waited_for() {
    let server = serve(&["turns"], &[]);
    let dir = tempfile::tempdir().unwrap();
    let mut many: Vec<Raw> = (0..3).map(|_| heavy(&server)).collect();
    let mut gate = Raw::open(&server.address(), "/turns");
    let go = hold(&server, &mut gate, '1', dir.path(), false);
    let go_on = hold(&server, &mut many[0], 'A', dir.path(), true);
    many[2].send(&large("C"));
    many.iter().for_each(arrived);
    fs::write(go, "").unwrap();
    server.says("A holds");
    // The last one waits in line, and the one before it is found to have gone.
    drop(many.remove(1));
    fs::write(go_on, "").unwrap();
    assert_eq!(many[1].ask("order"), "1AC");
    assert_eq!(gate.ask("order"), "");
}
