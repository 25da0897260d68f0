//! Plain HTTP: static files, the console page, and all responses except 101.
//!
//! A request head goes in, a response comes out. No socket; it blocks on the local file system only. Only GET and HEAD
//! are served, without request bodies and persistent connections: each response has `Connection: close`.

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
pub use response::{Body, HSTS, Response, reason_phrase, takes_content};

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
    /// `root` is the document root, if files are to be served; `resources` are those that the console page offers.
    /// Fails if `root` cannot be opened as a directory; it is held open, so it may be renamed later.
    pub fn new(root: Option<PathBuf>, resources: &[Resource]) -> io::Result<Self> {
        let root = root.map(|path| file::Root::open(&path)).transpose()?;
        Ok(Self { root, console: Console::new(resources) })
    }

    /// Responds to a request that is not a WebSocket handshake. `now` is the date of the response.
    ///
    /// First, if `console`, the built-in page `/console.html`, then the handlers' resources (426; `is_resource`: the
    /// path is one), then files. Without a document root, `/` is redirected to the console.
    pub fn serve(&self, head: &Head, is_resource: bool, console: bool, now: SystemTime) -> Response {
        match head.method() {
            "GET" => self.get(head, is_resource, console, now),
            "HEAD" => self.get(head, is_resource, console, now).without_content(),
            _ => refuse_method(head.method(), now),
        }
    }

    fn get(&self, head: &Head, is_resource: bool, console: bool, now: SystemTime) -> Response {
        if console && head.path() == console::PATH {
            return self.console.response(now);
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

/// A plain-text error response, dated now.
pub fn error(status: u16, why: &str, fields: &[(&str, &str)]) -> Response {
    Response::error(SystemTime::now(), status, why, fields)
}

impl From<BadRequest> for Response {
    fn from(bad: BadRequest) -> Self {
        error(bad.status, bad.why, bad.headers)
    }
}

/// The response to a health check: 200 or 503, and the state. Not to be cached (RFC 9111 section 5.2.2.5).
pub fn health(head: &Head, state: Result<&str, &str>, now: SystemTime) -> Response {
    if !matches!(head.method(), "GET" | "HEAD") {
        return refuse_method(head.method(), now);
    }
    let (status, text) = state.map_or_else(|why| (503, why), |state| (200, state));
    let fields = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")];
    Response::new(now, status, &fields, Body::Bytes(format!("{text}\n").into_bytes().into()))
}

/// The response to a method other than GET and HEAD.
pub fn refuse_method(method: &str, now: SystemTime) -> Response {
    match is_known_method(method) {
        true => Response::error(now, 405, "only GET and HEAD are served here", &[("Allow", "GET, HEAD")]),
        false => Response::error(now, 501, "unknown method", &[]),
    }
}

fn upgrade_required(console: bool, now: SystemTime) -> Response {
    let why = match console {
        true => "this is a WebSocket resource; the page /console.html can connect to it",
        false => "this is a WebSocket resource",
    };
    Response::error(now, 426, why, &[])
}

fn not_found(now: SystemTime) -> Response {
    Response::error(now, 404, "no such file", &[])
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
