//! Topics: a published message reaches every subscriber, in every worker and pool, once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/client.rs"]
mod client;
#[path = "../common/server.rs"]
mod daemon;
#[path = "../common/fixtures.rs"]
mod fixtures;

mod moves;
mod operators;
mod workers;

use daemon::{Dir, Server};

/// Serves handlers; PATH=NAME is installed at another path.
fn start(dir: Dir, handlers: &[&str], args: &[&str]) -> (Dir, Server) {
    for handler in handlers {
        let (path, name) = handler.split_once('=').unwrap_or((handler, handler));
        fixtures::add_handler(dir.path(), path, name);
    }
    let server = Server::start(&dir, args);
    (dir, server)
}
