//! The slower tier: independent clients, and very many connections.
//!
//! `WSHD_PYTHON` names a Python with the package websockets, `WSHD_NODE_MODULES` a directory with the npm package ws;
//! `.ci/run` installs both below `target/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::client::{self, Raw, UPGRADE};
use crate::daemon::{TIMEOUT, output_within, until};
use crate::{memory, serve};

fn script(name: &str) -> PathBuf {
    crate::fixtures::root().join("tests/clients").join(name)
}

/// The output of a client, which must succeed.
#[track_caller]
fn run(command: &mut Command) -> String {
    // Some need 30 s on a quiet machine.
    let output = output_within(TIMEOUT * 6, command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Each line is "VARIANT: COUNT"; all variants must have exchanged something.
#[track_caller]
fn assert_complete(said: &str) {
    assert_eq!(said.lines().count(), 14, "7 variants with 2 handlers: {said}");
    assert!(said.lines().all(|line| line.ends_with(": 20")), "{said}");
}

#[test]
#[ignore = "needs the Python package websockets"]
fn python_websockets() {
    let python = std::env::var("WSHD_PYTHON").expect(
        "WSHD_PYTHON is not set: the path of a python3 with the package \"websockets\" (pip install websockets)",
    );
    let server = serve(&["echo", "echo_blocking"], &[]);
    let check = Command::new(&python).args(["-c", "import websockets"]).status();
    assert!(
        check.is_ok_and(|status| status.success()),
        "{python} has no package \"websockets\": pip install websockets"
    );
    assert_complete(&run(Command::new(&python).arg(script("python_client.py")).arg(server.address())));
}

#[test]
#[ignore = "needs Node.js and the npm package ws"]
fn node_ws() {
    let modules = std::env::var("WSHD_NODE_MODULES").expect(
        "WSHD_NODE_MODULES is not set: a node_modules directory with the package \"ws\" (npm install ws)",
    );
    let package = Path::new(&modules).join("ws");
    assert!(package.exists(), "{} is not there: npm install ws", package.display());
    let server = serve(&["echo", "echo_blocking"], &[]);
    assert_complete(&run(Command::new("node").arg(script("node_client.mjs")).arg(server.address())));
}

#[test]
#[ignore = "opens 10,000 connections"]
fn ten_thousand_idle_connections_on_one_worker() {
    const COUNT: usize = 10_000;
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, most) = nix::sys::resource::getrlimit(limit).unwrap();
    assert!(
        most > COUNT as u64 + 200,
        "{most} open files are allowed; {COUNT} connections need more (ulimit -Hn)"
    );
    nix::sys::resource::setrlimit(limit, most, most).unwrap();
    let mut server = serve(&["echo"], &[]);
    let before = memory(server.worker());
    let connect = |address: &str| {
        let mut raw = Raw::connect(address);
        raw.send(format!("GET /echo HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n").as_bytes());
        raw
    };
    // A local port can be used once for each address of the server.
    let mut all: Vec<Raw> = (0..COUNT).map(|_| connect(&server.address())).collect();
    for raw in &mut all {
        assert!(raw.head().starts_with("HTTP/1.1 101 "));
    }
    let each = memory(server.worker()).saturating_sub(before) / COUNT as u64;
    println!("{each} bytes of the server's memory for each of {COUNT} idle connections");
    assert!(each < 1024, "{each} bytes each");
    // All of them are alive, in any order.
    for raw in all.iter_mut().rev() {
        raw.text("x");
    }
    for raw in &mut all {
        assert_eq!(raw.next_text(), "x");
    }
    for raw in &mut all {
        raw.frame(client::CLOSE, &[]);
    }
    for raw in &mut all {
        raw.expect_close(1005);
    }
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.worker())).unwrap().count();
    until("all are gone", || descriptors() < 100);
    drop(all);
    server.stop();
}
