//! From the request head to 101 or a refusal.

pub mod authentication;
pub mod breaker_probe;
pub mod checks;
pub mod outcome;
pub mod request;

use std::cell::RefCell;

use crate::fleet::memory::breakers::Breakers;
use crate::http::Site;
use crate::worker::conn::handshake::Registry;
use crate::worker::connections::Conns;
use crate::worker::handshake::authentication::Logins;
use crate::worker::handshake::breaker_probe::RunningProbe;
use crate::worker::host::handlers::Handlers;
use crate::worker::listen::admission::Admission;
use crate::worker::session::Session;

pub struct Handshakes {
    pub conns: &'static Conns,
    /// Goes on with those that have opened.
    pub session: &'static Session,
    pub handlers: &'static Handlers,
    /// Handshakes that other threads may finish.
    pub registry: &'static Registry,
    pub admission: &'static Admission,
    /// Answers requests that are not for a WebSocket.
    pub site: Site,
    pub breakers: &'static Breakers,
    /// Passwords that are being compared.
    pub logins: Logins,
    pub probes: RefCell<Vec<RunningProbe>>,
}
