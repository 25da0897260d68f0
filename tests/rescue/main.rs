//! A crash costs one connection: handlers that die in every way, with other connections that must not be affected.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/client.rs"]
mod client;
#[path = "../common/server.rs"]
mod daemon;
#[path = "../common/fixtures.rs"]
mod fixtures;

mod crashes;
mod crowd;
mod handover;
mod hangs;
mod moved;
mod orphans;
mod races;
mod resumable;
mod signals;
mod single;
mod slow;
mod threads;

use client::Raw;
use daemon::{Dir, Server};

/// Resource and text for each way to die.
const WAYS: [(&str, &str); 15] = [
    ("/crash", "null"),
    ("/crash", "abort"),
    ("/crash", "stack"),
    ("/crash", "fpe"),
    ("/crash", "wildjump"),
    ("/crash", "doublefree"),
    ("/crash", "exit"),
    ("/throw", "throw"),
    ("/panic_abort", "panic"),
    ("/crash", "ill"),
    ("/crash", "bus"),
    ("/crash", "trap"),
    ("/crash", "sys"),
    ("/crash", "xcpu"),
    ("/crash", "_exit"),
];

/// The handlers of [`WAYS`], and one that does not crash.
const HANDLERS: [&str; 4] = ["crash", "throw", "panic_abort", "echo"];

/// Serves these fixtures, `NAME` or `PATH=NAME`, with one worker, unless `args` say otherwise.
#[track_caller]
fn serve(handlers: &[&str], args: &[&str]) -> (Server, Dir) {
    let dir = Dir::new();
    for name in handlers {
        let (path, name) = name.split_once('=').unwrap_or((name, name));
        fixtures::add_handler(dir.path(), path, name);
    }
    let one = ["--workers", "1"];
    let workers = if args.contains(&"--workers") { &[][..] } else { &one[..] };
    let server = Server::start(&dir, &[workers, &QUARANTINE_OFF, args].concat());
    (server, dir)
}

/// Crashes are expected here.
const QUARANTINE_OFF: [&str; 2] = ["-o", "quarantine_deaths=0"];

/// One connection crashes its worker, and ends with 1011.
#[track_caller]
fn crash(server: &Server, resource: &str, text: &str) {
    let mut culprit = Raw::open(&server.address(), resource);
    culprit.text(text);
    culprit.expect_close(1011);
    culprit.expect_end();
}

/// How often the log contains this.
fn logged(server: &Server, text: &str) -> usize {
    server.log().matches(text).count()
}

/// Stops the server, and asserts that it ends properly, apart from crashes: exit code 0, no process left.
#[track_caller]
fn stop(server: &mut Server) {
    let workers = server.workers();
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(workers.iter().all(|pid| !daemon::is_alive(*pid)), "workers are left");
    assert_eq!(logged(server, "] died of"), 0, "{}", server.log());
}
