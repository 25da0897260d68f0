//! The bus: a process that carries published messages between workers, and to and from an engine that connects
//! machines. It loads no handler and trusts no worker: all input is checked, and a worker can use the scopes of its own
//! pool only.

pub mod baton;
mod engine;
pub mod hub;
mod operator;
mod peers;
mod server;

use std::io;
use std::os::fd::OwnedFd;

use self::baton::Baton;
use crate::config;
use crate::fleet::memory::counters::bus::BusCounters;
use crate::fleet::sockets::control::Channel;
use hub::Limits;

/// What the supervisor passes on through the fork.
pub struct Start {
    /// Where workers connect: pool, receiving end, maximum connections.
    pub rendezvous: Vec<(u16, OwnedFd, usize)>,
    /// Held by the bus that serves.
    pub baton: Baton,
    /// Bounds.
    pub limits: Limits,
    /// The scopes that each pool may use.
    pub scopes: Vec<(u16, String)>,
    /// The engine that connects machines, if one is configured, and its counters.
    pub engine: Option<(config::bus::Engine, &'static BusCounters)>,
}

/// Reports that it is ready, waits for the command to begin, and serves until the command to stop.
pub fn run(start: Start, channel: &Channel) -> io::Result<()> {
    if !channel.stand_by()? {
        return Ok(());
    }
    server::Server::new(start, channel)?.serve()
}
