//! From the request head to 101 or a refusal.

pub mod authentication;
pub mod breaker_probe;
pub mod checks;
mod health;
pub mod outcome;
pub mod replies;
pub mod request;

use std::cell::RefCell;
use std::sync::Arc;

use crate::config::Config;
use crate::fleet::breakers::Breakers;
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::Scoreboard;
use crate::http::Site;
use crate::worker::base::lifecycle::Lifecycle;
use crate::worker::base::metrics::Metrics;
use crate::worker::blocking::threads::Threads;
use crate::worker::commands::queue::CommandQueue;
use crate::worker::conn::connections::Conns;
use crate::worker::conn::handshake::Registry;
use crate::worker::handshake::authentication::Logins;
use crate::worker::handshake::breaker_probe::Probe;
use crate::worker::host::handlers::Handlers;
use crate::worker::listen::admission::Admission;
use crate::worker::session::Session;

/// Serves connections that are not open yet.
pub struct Handshakes {
    /// The connections.
    pub conns: &'static Conns,
    /// Takes over open connections.
    pub session: &'static Session,
    /// The handlers that are called.
    pub handlers: &'static Handlers,
    /// Threads of blocking handlers.
    pub threads: &'static Threads,
    /// What other threads may know of connections.
    pub commands: &'static CommandQueue,
    /// Handshakes that other threads may finish.
    pub registry: &'static Registry,
    /// Limits over all processes.
    pub admission: &'static Admission,
    /// What is counted.
    pub metrics: &'static Metrics,
    /// Which handler a path has.
    pub routes: Arc<Routes>,
    /// Answers requests that are not for a WebSocket.
    pub site: Site,
    /// Whether the server is ready.
    pub scoreboard: &'static Scoreboard,
    /// By handler.
    pub breakers: &'static Breakers,
    /// Passwords that are being compared.
    pub logins: Logins,
    /// Probe connections to quarantined handlers.
    pub probes: RefCell<Vec<Probe>>,
    /// Limits and times.
    pub config: Arc<Config>,
    /// Time, and whether the worker is stopping.
    pub life: &'static Lifecycle,
    /// This process.
    pub pid: i32,
    /// The pool that it belongs to.
    pub pool: usize,
}
