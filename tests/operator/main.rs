//! Operating a running server: health checks, draining, closing connections, metrics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/client.rs"]
mod client;
#[path = "../common/fixtures.rs"]
mod fixtures;
#[path = "../common/h2.rs"]
mod h2;
#[path = "../common/server.rs"]
mod server;
#[path = "../common/tls.rs"]
mod tls;

mod balancers;
mod ctl;
mod drain;
mod health;
mod log;
mod metrics;

use std::path::PathBuf;
use std::process::Output;

use client::{Answer, Raw};
use serde_json::Value;
use server::{Dir, ECHO, Server, until};

/// A server of `/echo` with a control socket and metrics.
struct Operated {
    server: Server,
    dir: Dir,
}

impl Operated {
    fn start(args: &[&str]) -> Self {
        let dir = Dir::new();
        dir.handler("echo", ECHO);
        Self::start_in(dir, args)
    }

    fn start_in(dir: Dir, args: &[&str]) -> Self {
        let control = dir.path().join("control");
        let own = ["--metrics", "127.0.0.1:0", "--control-socket", control.to_str().unwrap()];
        Self { server: Server::start(&dir, &[&own, args].concat()), dir }
    }

    fn address(&self) -> String {
        self.server.address()
    }

    /// The address of the metrics.
    fn metrics(&self) -> String {
        let log = self.server.log();
        log.split_once("metrics are served on ").unwrap().1.lines().next().unwrap().to_owned()
    }

    fn ctl(&self, args: &[&str]) -> Output {
        server::ctl(&self.socket(), args)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// The output.
    #[track_caller]
    fn says(&self, args: &[&str]) -> String {
        self.server.ctl_says(&self.socket(), args)
    }

    /// Asserts that the server refuses, and returns why.
    #[track_caller]
    fn refuses(&self, args: &[&str]) -> String {
        self.server.ctl_refuses(&self.socket(), args)
    }

    /// Closes this many connections. One that moves from one worker to another at that moment is in none of them, and
    /// a worker that gets no processor for two seconds closes its own without an answer.
    #[track_caller]
    fn closes(&self, filter: &[&str], count: usize) {
        let mut closed = 0;
        until("all are being closed", || {
            let answer = self.says(&[&["close"], filter].concat());
            let number: usize = answer.split(' ').next().unwrap().parse().unwrap();
            let said = match number {
                1 => "1 connection is being closed".to_owned(),
                _ => format!("{number} connections are being closed"),
            };
            closed += number;
            let is_silent = answer.starts_with(&format!("{said}; no answer within"));
            assert!(closed <= count && (is_silent || answer == format!("{said}\n")), "{closed}: {answer}");
            closed == count || is_silent
        });
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.says(&["status", "--json"])).unwrap()
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

/// The answer to a request without a body.
#[track_caller]
fn request(address: &str, method: &str, path: &str, headers: &str) -> Answer {
    let mut raw = Raw::connect(address);
    raw.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes());
    raw.answer()
}

/// Status and text of a health check.
#[track_caller]
fn health(address: &str, path: &str) -> (u16, String) {
    let answer = request(address, "GET", path, "");
    (answer.status, String::from_utf8(answer.body).unwrap())
}

fn ready() -> (u16, String) {
    (200, "ready\n".to_owned())
}

fn not_ready(why: &str) -> (u16, String) {
    (503, format!("{why}\n"))
}
