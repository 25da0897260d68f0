//! The whole server, seen from outside: through sockets, signals, and handlers written in C.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/client.rs"]
mod client;
#[path = "../common/server.rs"]
mod daemon;
#[path = "../common/fixtures.rs"]
mod fixtures;

mod accepting;
mod balance;
mod blocking;
mod broken_handlers;
mod clients;
mod contract;
mod echo;
mod examples;
mod handlers;
mod kept;
mod limits;
mod opening;
mod owned;
mod stopping;
mod threads;
mod turns;

use daemon::{Dir, Server};

/// A running server and the directory it serves from.
struct Served {
    server: Server,
    /// Outlives the server.
    _dir: Dir,
}

impl Served {
    /// The same as the server's own, and no worker has crashed.
    #[track_caller]
    fn stop(&mut self) {
        self.server.stop();
        let log = self.log();
        assert!(!["] died of", "] crashed"].iter().any(|word| log.contains(word)), "{log}");
    }
}

impl std::ops::Deref for Served {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

impl std::ops::DerefMut for Served {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// Serves these fixtures (`NAME`, or `PATH=NAME`) with one worker, unless `args` say otherwise.
#[track_caller]
fn serve(handlers: &[&str], args: &[&str]) -> Served {
    let dir = Dir::new();
    for name in handlers {
        let (path, name) = name.split_once('=').unwrap_or((name, name));
        fixtures::add_handler(dir.path(), path, name);
    }
    let one = ["--workers", "1"];
    let workers = if args.contains(&"--workers") { &[][..] } else { &one[..] };
    let server = Server::start(&dir, &[workers, args].concat());
    Served { server, _dir: dir }
}

/// Opens a WebSocket and sends frames in one piece with the request: however busy the machine is, the server does not
/// wait for them.
#[track_caller]
fn open_with(server: &Server, resource: &str, frames: &[u8]) -> client::Raw {
    let mut raw = client::Raw::connect(&server.address());
    let head = format!("GET {resource} HTTP/1.1\r\nHost: a\r\n{}\r\n", client::UPGRADE);
    raw.send(&[head.as_bytes(), frames].concat());
    let head = raw.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    raw
}

/// Bytes of a process's own memory.
fn memory(pid: i32) -> u64 {
    daemon::memory_of(pid, "RssAnon") * 1024
}
