//! What is not WebSocket: static files, the console page and error replies.
//!
//! A request head goes in, a reply comes out. No socket is touched and nothing
//! is waited for but the local file system. Methods other than GET and HEAD,
//! request bodies and persistent connections are refused: each reply says
//! `Connection: close`.

mod conditional;
mod console;
mod file;
mod path;
mod range;
mod reply;

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::proto::http1::head::Head;
use console::Console;
use path::{Refused, RequestPath};
pub use reply::{Body, Reply};

/// Everything that is served over plain HTTP.
pub struct Site {
    root: Option<file::Root>,
    resources: Vec<String>,
    console: Console,
}

impl Site {
    /// `root` is the document root, if files are to be served; `resources` are the paths of the WebSocket
    /// handlers, which the console page offers. Fails when `root` is not a directory that can be opened; it is
    /// held open, so renaming it later does not matter.
    pub fn new(root: Option<PathBuf>, resources: Vec<String>) -> io::Result<Self> {
        let root = root.map(|path| file::Root::open(&path)).transpose()?;
        let console = Console::new(&resources);
        Ok(Self { root, resources, console })
    }

    /// Answers a request that is not a WebSocket handshake. `now` dates the reply.
    ///
    /// `/console.html` is always the built-in page, then come the handlers' resources (426), then files. With no
    /// document root, `/` leads to the console.
    pub fn serve(&self, head: &Head, now: SystemTime) -> Reply {
        match head.method() {
            "GET" => self.get(head, now),
            "HEAD" => self.get(head, now).without_body(),
            _ => reply::error_at(now, 405, "only GET and HEAD are served here", &[("Allow", "GET, HEAD")]),
        }
    }

    fn get(&self, head: &Head, now: SystemTime) -> Reply {
        if head.path() == console::PATH {
            return self.console.reply(now);
        }
        if self.resources.iter().any(|resource| resource == head.path()) {
            return upgrade_required(now);
        }
        let path = match RequestPath::parse(head.path()) {
            Ok(path) => path,
            Err(Refused::Malformed(why)) => return reply::error_at(now, 400, why, &[]),
            Err(Refused::Hidden) => return not_found(now),
        };
        match &self.root {
            Some(root) => file::serve(root, &path, head, now),
            None if head.path() == "/" => reply::redirect(now, 302, console::PATH),
            None => not_found(now),
        }
    }
}

/// A reply of plain text that says what is wrong. `headers` are added as they are: their values must be free of
/// control characters.
pub fn error(status: u16, why: &str, headers: &[(&str, &str)]) -> Reply {
    reply::error_at(SystemTime::now(), status, why, headers)
}

/// RFC 9110 15.5.22: the reply names the protocol to use instead.
fn upgrade_required(now: SystemTime) -> Reply {
    let why = "this resource speaks WebSocket; the page /console.html can connect to it";
    reply::error_at(now, 426, why, &[("Upgrade", "websocket")])
}

fn not_found(now: SystemTime) -> Reply {
    reply::error_at(now, 404, "there is no such file", &[])
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
