//! The process that serves metrics: what the fleet has counted, and how it is now, as OpenMetrics or Prometheus text.
//! It reads shared memory and /proc only: no handler runs here, and no worker is asked, so that nothing that goes
//! wrong in them keeps anybody from seeing it.

mod bus;
mod families;
mod gateways;
mod processes;
mod server;
mod text;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::Config;
use crate::fleet::addresses::Addresses;
use crate::fleet::breakers::Breakers;
use crate::fleet::bus_counters::BusCounters;
use crate::fleet::control::{self, Channel};
use crate::fleet::counters::Counters;
use crate::fleet::gateway_counters::GatewayCounters;
use crate::fleet::listener::Listener;
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::{Place, Scoreboard};
use crate::http::{self, Body, Response};
use crate::proto::http1::head::Head;
use text::Format;

/// What the process is given by the supervisor, just after fork.
pub struct Start {
    /// The configuration.
    pub config: Arc<Config>,
    /// The handlers.
    pub routes: Arc<Routes>,
    /// The sockets to serve on.
    pub listeners: Vec<Arc<Listener>>,
    /// How the workers are.
    pub scoreboard: &'static Scoreboard,
    /// What they have counted.
    pub counters: &'static Counters,
    /// Clients that were turned away.
    pub addresses: &'static Addresses,
    /// What gateways have counted.
    pub gateways: &'static GatewayCounters,
    /// What the bus has counted.
    pub bus: &'static BusCounters,
    /// By handler: whether it is quarantined.
    pub breakers: &'static Breakers,
    /// The supervisor's pid.
    pub supervisor: i32,
    /// When the supervisor began.
    pub started: SystemTime,
}

impl Start {
    /// The name of a worker: pool and number.
    fn name(&self, place: Place) -> String {
        let name = self.config.worker_name(place.pool, place.number);
        name.trim_start_matches("worker ").to_owned()
    }
}

/// Serves from the command to begin until it is killed; fails if the sockets do.
pub fn run(start: Start, channel: &Channel) -> io::Result<Infallible> {
    channel.send_start(&control::Start::Ready)?;
    channel.wait_for_begin()?;
    server::serve(&start.listeners, |head| answer(&start, head))
}

/// The response to a request.
fn answer(start: &Start, head: &Head) -> Response {
    let now = SystemTime::now();
    match head.path() {
        "/metrics" => report(start, head, now),
        "/livez" => http::health(head, Ok("alive"), now),
        "/readyz" => http::health(head, start.scoreboard.is_ready(), now),
        _ => Response::error(now, 404, "there are /metrics, /livez and /readyz only", &[]),
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
