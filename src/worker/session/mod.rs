//! An open WebSocket: messages, closing, deadlines.

pub mod closing;
pub mod messages;
pub mod opening;

use std::cell::RefCell;

use crate::worker::base::complaints::Complaints;
use crate::worker::base::lifecycle::Lifecycle;
use crate::worker::blocking::threads::Threads;
use crate::worker::commands::queue::CommandQueue;
use crate::worker::conn::connections::Conns;
use crate::worker::host::handlers::Handlers;
use crate::worker::host::loop_host::LoopHost;
use crate::worker::listen::admission::Admission;

/// Serves open connections.
pub struct Session {
    /// The connections.
    pub conns: &'static Conns,
    /// The handlers that are called.
    pub handlers: &'static Handlers,
    /// What handlers call.
    pub host: &'static LoopHost,
    /// Threads of blocking handlers.
    pub threads: &'static Threads,
    /// Commands of other threads.
    pub commands: &'static CommandQueue,
    /// Counts refusals.
    pub admission: &'static Admission,
    /// The time of this turn.
    pub life: &'static Lifecycle,
    /// What is logged of peers that do not keep to the protocol.
    pub complaints: RefCell<Complaints>,
}
