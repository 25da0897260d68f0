//! HTTP beside WebSocket: static files, the console page, and all responses but 101.
//!
//! A request head goes in, a response comes out. No socket is touched and nothing is waited for but the local file system.
//! Methods other than GET and HEAD, request bodies and persistent connections are refused: each response says
//! `Connection: close`.

mod conditional;
mod console;
mod file;
mod path;
mod range;
mod response;

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use crate::proto::http1::head::{BadRequest, Head, is_known_method};
use console::Console;
use path::Refused;
pub use path::RequestPath;
pub use response::{Body, Response, reason_phrase, takes_content};

/// A WebSocket resource.
#[derive(Debug, Serialize)]
pub struct Resource {
    /// Its path; a prefix ends in `/*`.
    pub path: String,
    /// The subprotocols of its handler, in order of preference.
    pub protocols: Vec<String>,
}

/// Everything that is served over plain HTTP.
pub struct Site {
    root: Option<file::Root>,
    console: Console,
}

impl Site {
    /// `root` is the document root, if files are to be served; `resources` are what the console page
    /// offers. Fails when `root` is not a directory that can be opened; it is held open, so renaming it later does not
    /// matter.
    pub fn new(root: Option<PathBuf>, resources: &[Resource]) -> io::Result<Self> {
        let root = root.map(|path| file::Root::open(&path)).transpose()?;
        Ok(Self { root, console: Console::new(resources) })
    }

    /// Answers a request that is not a WebSocket handshake. `now` dates the reply.
    ///
    /// With `console` `/console.html` is the built-in page; then come the handlers' resources (426), as `is_resource`
    /// tells, then files. With no document root, `/` leads to the console.
    pub fn serve(&self, head: &Head, is_resource: bool, console: bool, now: SystemTime) -> Response {
        match head.method() {
            "GET" => self.get(head, is_resource, console, now),
            "HEAD" => self.get(head, is_resource, console, now).without_content(),
            _ => refuse_method(head.method(), now),
        }
    }

    fn get(&self, head: &Head, is_resource: bool, console: bool, now: SystemTime) -> Response {
        if console && head.path() == console::PATH {
            return self.console.reply(now);
        }
        if is_resource {
            return upgrade_required(console, now);
        }
        let path = match RequestPath::parse(head.path()) {
            Ok(path) => path,
            Err(Refused::Malformed(why)) => return Response::error(now, 400, why, &[]),
            Err(Refused::Hidden) => return not_found(now),
        };
        match &self.root {
            Some(root) => file::serve(root, &path, head, now),
            None if console && head.path() == "/" => Response::redirect(now, 302, console::PATH),
            None => not_found(now),
        }
    }
}

/// A response of plain text that says what is wrong, made now.
pub fn error(status: u16, why: &str, fields: &[(&str, &str)]) -> Response {
    Response::error(SystemTime::now(), status, why, fields)
}

impl From<BadRequest> for Response {
    fn from(bad: BadRequest) -> Self {
        error(bad.status, bad.why, bad.headers)
    }
}

/// The answer to a health check: 200, or 503, and why in a word. No cache may keep it (RFC 9111 section 5.2.2.5).
pub fn health(head: &Head, state: Result<&str, &str>, now: SystemTime) -> Response {
    if !matches!(head.method(), "GET" | "HEAD") {
        return refuse_method(head.method(), now);
    }
    let (status, text) = state.map_or_else(|why| (503, why), |state| (200, state));
    let fields = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")];
    Response::new(now, status, &fields, Body::Bytes(format!("{text}\n").into_bytes().into()))
}

/// The answer to a method other than GET and HEAD.
pub fn refuse_method(method: &str, now: SystemTime) -> Response {
    match is_known_method(method) {
        true => Response::error(now, 405, "only GET and HEAD are served here", &[("Allow", "GET, HEAD")]),
        false => Response::error(now, 501, "unknown method", &[]),
    }
}

fn upgrade_required(console: bool, now: SystemTime) -> Response {
    let why = match console {
        true => "this resource speaks WebSocket; the page /console.html can connect to it",
        false => "this resource speaks WebSocket",
    };
    Response::error(now, 426, why, &[])
}

fn not_found(now: SystemTime) -> Response {
    Response::error(now, 404, "there is no such file", &[])
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
