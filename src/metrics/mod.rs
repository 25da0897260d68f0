//! The process that serves metrics as OpenMetrics or Prometheus text. It reads shared memory and /proc only. It loads
//! no handler and asks no worker, so it responds even if they hang or crash.

mod bus;
mod families;
mod gateways;
mod processes;
mod server;
mod text;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use crate::config::Config;
use crate::fleet::memory::scoreboard::Place;
use crate::fleet::memory::shared::Shared;
use crate::fleet::routes::Routes;
use crate::fleet::sockets::control::Channel;
use crate::fleet::sockets::listener::Listener;
use crate::http::{self, Body, Response};
use crate::proto::http1::head::Head;
use text::Format;

/// Log lines that this process has lost. Not in shared memory, since no other process reads it.
pub static LOG_LOST: AtomicU64 = AtomicU64::new(0);

/// What the supervisor passes on through the fork.
pub struct Start {
    /// The configuration.
    pub config: Arc<Config>,
    /// The handlers.
    pub routes: Arc<Routes>,
    /// The sockets to serve on.
    pub listeners: Vec<Arc<Listener>>,
    /// What all processes share.
    pub shared: Shared,
    /// The supervisor's pid.
    pub supervisor: i32,
    /// When the supervisor started.
    pub started: SystemTime,
}

impl Start {
    /// The name of a worker: pool and number.
    fn name(&self, place: Place) -> String {
        let name = self.config.worker_name(place.pool, place.number);
        name.trim_start_matches("worker ").to_owned()
    }
}

/// Serves from the command to begin until it is told to leave; fails if polling fails.
pub fn run(start: Start, channel: &Channel) -> io::Result<()> {
    if !channel.stand_by()? {
        return Ok(());
    }
    server::serve(&start.listeners, channel, |head| answer(&start, head))
}

/// The response to a request.
fn answer(start: &Start, head: &Head) -> Response {
    let now = SystemTime::now();
    match head.path() {
        "/metrics" => report(start, head, now),
        "/livez" => http::health(head, Ok("alive"), now),
        "/readyz" => http::health(head, start.shared.scoreboard.is_ready(), now),
        _ => http::error(404, "expected /metrics, /livez or /readyz", &[]),
    }
}

fn report(start: &Start, head: &Head, now: SystemTime) -> Response {
    if !matches!(head.method(), "GET" | "HEAD") {
        return http::refuse_method(head.method(), now);
    }
    let accept: Vec<_> = head.header_all("Accept").map(String::from_utf8_lossy).collect();
    let format = Format::wanted(&accept.join(","));
    let fields = [("Content-Type", format.content_type()), ("Vary", "Accept")];
    Response::new(now, 200, &fields, Body::Bytes(families::report(start, format).into_bytes().into()))
}
