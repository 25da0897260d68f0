//! Sends live connections to another process, and takes them up there: balance, reload, upgrade, and what a crashed
//! process has left in the inbox.

pub mod detach;
pub mod junk;
pub mod pacing;
pub mod program;
pub mod receive;
pub mod send;
pub mod waiting;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::Config;
use crate::fleet::control::Channel;
use crate::fleet::inbox::Inbox;
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::{Scoreboard, Slot};
use crate::worker::base::descriptors::Descriptors;
use crate::worker::base::lifecycle::Lifecycle;
use crate::worker::base::metrics::Metrics;
use crate::worker::base::progress::Progress;
use crate::worker::blocking::threads::Threads;
use crate::worker::commands::queue::CommandQueue;
use crate::worker::conn::connections::Conns;
use crate::worker::conn::handoff::{Arrivals, Shipment};
use crate::worker::handshake::Handshakes;
use crate::worker::host::handlers::Handlers;
use crate::worker::listen::admission::Admission;
use crate::worker::session::Session;
use crate::worker::topics::link::Link;
use crate::worker::transfer::detach::Detaching;
use crate::worker::transfer::junk::Junk;
use crate::worker::transfer::send::Leaving;
use crate::worker::transfer::waiting::Waiting;

/// What moves connections between this process and others.
pub struct Transfer {
    /// The connections.
    pub conns: &'static Conns,
    /// Whom they are told about.
    pub handlers: &'static Handlers,
    /// What goes on with those that arrive open.
    pub session: &'static Session,
    /// What goes on with the others.
    pub handshakes: &'static Handshakes,
    /// Threads of blocking handlers.
    pub threads: &'static Threads,
    /// Subscriptions of those that arrive.
    pub link: &'static Link,
    /// What those that leave have seen by theirs.
    pub progress: &'static Progress,
    /// What other threads have left for connections.
    pub commands: &'static CommandQueue,
    /// What is counted.
    pub metrics: &'static Metrics,
    /// Where connections are counted by address.
    pub admission: &'static Admission,
    /// Limits and times.
    pub config: Arc<Config>,
    /// Which handler a path has.
    pub routes: Arc<Routes>,
    /// Time, and whether the worker is stopping.
    pub life: &'static Lifecycle,
    /// The slots of all workers.
    pub scoreboard: &'static Scoreboard,
    /// This worker's.
    pub slot: &'static Slot,
    /// This process.
    pub pid: i32,
    /// The pool that it belongs to.
    pub pool: usize,
    /// To the supervisor.
    pub control: &'static Channel,
    /// Room for descriptors that come.
    pub descriptors: &'static Descriptors,
    /// Where connections come from other workers.
    pub inbox: Inbox,
    /// Whether the event loop waits for them: not before this worker serves, nor while there is no room for them.
    pub watches_inbox: Cell<bool>,
    /// Where requests for programs go.
    pub cgi: Option<OwnedFd>,
    /// By slot: where others are sent connections.
    pub txs: RefCell<BTreeMap<usize, Rc<OwnedFd>>>,
    /// Connections that have come from another process and are not in the table yet.
    pub arrivals: RefCell<&'static mut Arrivals>,
    /// What has come that was no connection.
    pub junk: Junk,
    /// Room for connections on their way to another process.
    pub shipment: RefCell<Box<Shipment>>,
    /// Where connections are handed over to, once told so.
    pub leaving: RefCell<Option<Leaving>>,
    /// Requests that wait for a process.
    pub waiting: RefCell<Vec<Waiting>>,
    /// Blocking connections on their way to another process.
    pub detaching: RefCell<Vec<Detaching>>,
}
