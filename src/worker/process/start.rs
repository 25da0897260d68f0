//! What a worker is given by the supervisor.

use std::os::fd::OwnedFd;
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
use crate::fleet::scoreboard::Scoreboard;

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
    /// By slot: where others are sent connections.
    pub txs: Vec<OwnedFd>,
    /// Whether to wait for the order to begin.
    pub standby: bool,
    /// By handler: whether it is served.
    pub breakers: &'static [CircuitBreaker],
    /// By slot: what a crash leaves.
    pub crash_report: &'static [CrashReport],
    /// Where connections are counted.
    pub addresses: &'static Addresses,
}
