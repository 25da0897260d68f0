//! What a worker is given by the supervisor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use crate::config::Config;
use crate::fleet::addresses::Addresses;
use crate::fleet::breakers::CircuitBreaker;
use crate::fleet::control::Channel;
use crate::fleet::counters::Counters;
use crate::fleet::crash_report::CrashReport;
use crate::fleet::inbox::Inbox;
use crate::fleet::listener::Listener;
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::{Scoreboard, Slot};
use crate::worker::host::handlers::Loaded;

/// What a worker is given by the supervisor, just after fork.
pub struct Start {
    /// The configuration.
    pub config: Arc<Config>,
    /// The handlers to load.
    pub routes: Arc<Routes>,
    /// Numbers of those that are not to be loaded: workers have died in them at the start.
    pub skipped: Vec<u16>,
    /// The sockets to accept from.
    pub listeners: Vec<Arc<Listener>>,
    /// Where gateways leave connections, if this worker takes them.
    pub gateways: Option<Arc<OwnedFd>>,
    /// Where all workers write down how they are.
    pub scoreboard: &'static Scoreboard,
    /// Where all processes count.
    pub counters: &'static Counters,
    /// This worker's slot.
    pub slot: usize,
    /// To the supervisor.
    pub control: Channel,
    /// Where connections come from other workers.
    pub inbox: Inbox,
    /// Where the bus takes up this pool's connections to it.
    pub rendezvous: OwnedFd,
    /// By slot: where others are sent connections.
    pub txs: Vec<OwnedFd>,
    /// Where requests for programs go, if there are any.
    pub cgi: Option<OwnedFd>,
    /// Whether to wait for the order to begin.
    pub standby: bool,
    /// By handler: whether it is served.
    pub breakers: &'static [CircuitBreaker],
    /// By slot: what a crash leaves.
    pub crash_report: &'static [CrashReport],
    /// Where connections are counted.
    pub addresses: &'static Addresses,
}

impl Start {
    /// The record of the slot.
    pub fn record(&self) -> io::Result<&'static Slot> {
        self.scoreboard.slot(self.slot).ok_or_else(|| io::Error::other("no such slot in the scoreboard"))
    }

    /// Where a crash leaves what is known.
    pub fn report(&self) -> io::Result<CrashReport> {
        self.crash_report
            .get(self.slot)
            .copied()
            .ok_or_else(|| io::Error::other("no such slot for crash reports"))
    }

    /// Loads the handlers.
    pub fn load(&self) -> io::Result<Loaded> {
        let control = self.control.as_fd().as_raw_fd();
        Loaded::load(&self.config, &self.routes, &self.skipped, self.record()?, self.report()?, control)
    }
}
