//! The bus: a process that carries published messages between workers, and to and from an engine that joins machines. It loads no handler, and parses what workers say as a
//! stranger's: a worker of one pool cannot reach topics of another that do not have its scope.

mod engine;
pub mod hub;
mod operator;
mod peers;
mod server;

use std::io;
use std::os::fd::OwnedFd;

use crate::config;
use crate::fleet::bus_counters::BusCounters;
use crate::fleet::control::{self, Channel};
use crate::fleet::rendezvous::Baton;
use hub::Limits;

/// What the process is given by the supervisor, just after fork.
pub struct Start {
    /// Where workers connect, with the number of their pool, and how many may at a time.
    pub rendezvous: Vec<(u16, OwnedFd, usize)>,
    /// To be the only one.
    pub baton: Baton,
    /// Bounds.
    pub limits: Limits,
    /// Which pool may use which scope.
    pub scopes: Vec<(u16, String)>,
    /// The engine that joins topics with those of other machines, if there is one, and what is counted of it.
    pub engine: Option<(config::bus::Engine, &'static BusCounters)>,
}

/// Serves from the command to begin until it is told to leave.
pub fn run(start: Start, channel: &Channel) -> io::Result<()> {
    channel.send_start(&control::Start::Ready)?;
    channel.wait_for_begin()?;
    server::Server::new(start, channel)?.serve()
}
