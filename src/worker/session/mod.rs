//! An open WebSocket: messages, closing, deadlines.

pub mod closing;
pub mod messages;
pub mod opening;

use std::cell::RefCell;

use crate::worker::base::complaints::Complaints;
use crate::worker::blocking::thread::ThreadHost;
use crate::worker::connections::Conns;
use crate::worker::host::handlers::Handlers;
use crate::worker::listen::admission::Admission;

pub struct Session {
    pub conns: &'static Conns,
    pub handlers: &'static Handlers,
    pub threads: &'static ThreadHost,
    pub admission: &'static Admission,
    /// What is logged of peers that do not keep to the protocol.
    pub complaints: RefCell<Complaints>,
}
