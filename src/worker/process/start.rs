//! What a worker begins with.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use crate::config::Config;
use crate::fleet::memory::crash_report::CrashReport;
use crate::fleet::memory::scoreboard::Slot;
use crate::fleet::memory::shared::Shared;
use crate::fleet::routes::Routes;
use crate::fleet::sockets::control::Channel;
use crate::fleet::sockets::listener::Listener;
use crate::fleet::sockets::queue::SocketQueue;
use crate::worker::base::memory;
use crate::worker::host::handlers::Loaded;

/// What a worker is given by the supervisor, just after fork.
pub struct Start {
    pub config: Arc<Config>,
    pub routes: Arc<Routes>,
    /// Numbers of handlers that are not to be loaded: workers have died in them at the start.
    pub skipped: Vec<u16>,
    pub listeners: Vec<Arc<Listener>>,
    /// Where gateways leave connections, if this worker takes them.
    pub gateways: Option<OwnedFd>,
    pub shared: Shared,
    /// This worker's slot.
    pub slot: usize,
    /// To the supervisor.
    pub control: Channel,
    /// Where connections come from other workers.
    pub inbox: SocketQueue,
    /// Where the bus takes up this pool's connections to it.
    pub rendezvous: OwnedFd,
    /// By slot: where others are sent connections.
    pub txs: BTreeMap<usize, OwnedFd>,
    /// Where requests for programs go, if there are any.
    pub cgi: Option<OwnedFd>,
    /// Whether to wait for the command to begin.
    pub standby: bool,
}

impl Start {
    /// The number of the pool that it belongs to.
    pub fn pool(&self) -> usize {
        self.shared.scoreboard.place(self.slot).map_or(0, |place| usize::from(place.pool))
    }

    /// The record of the slot. Where it lies no overflow of the heap reaches it: a crash needs it.
    pub fn record(&self) -> io::Result<&'static Slot> {
        let slot = self.shared.scoreboard.slot(self.slot);
        memory::guard(slot.ok_or_else(|| io::Error::other("no such slot in the scoreboard"))?)
            .map(|slot| &*slot)
    }

    /// Where a crash leaves what is known.
    pub fn report(&self) -> io::Result<CrashReport> {
        let report = self.shared.crash_reports.get(self.pool(), self.slot);
        report.ok_or_else(|| io::Error::other("no such slot for crash reports"))
    }

    pub fn load(&self) -> io::Result<Loaded> {
        let control = self.control.as_fd().as_raw_fd();
        Loaded::load(&self.config, &self.routes, &self.skipped, self.record()?, self.report()?, control)
    }
}
