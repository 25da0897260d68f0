//! Sends live connections to another process, which adopts them: balance, reload, upgrade, and what a crashed
//! process has left in the inbox.

pub mod detach;
pub mod intake;
pub mod pacing;
pub mod program;
pub mod receive;
pub mod send;
pub mod waiting;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::worker::base::progress::Progress;
use crate::worker::conn::handoff::Shipment;
use crate::worker::connections::Conns;
use crate::worker::handshake::Handshakes;
use crate::worker::host::handlers::Handlers;
use crate::worker::session::Session;
use crate::worker::topics::link::Link;
use crate::worker::transfer::detach::Detaching;
use crate::worker::transfer::intake::Intake;
use crate::worker::transfer::send::Leaving;
use crate::worker::transfer::waiting::Waiting;

pub struct Transfer {
    pub conns: &'static Conns,
    pub handlers: &'static Handlers,
    /// Goes on with those that arrive open.
    pub session: &'static Session,
    /// Goes on with the others.
    pub handshakes: &'static Handshakes,
    /// Subscriptions of those that arrive.
    pub link: &'static Link,
    /// What those that leave have seen by theirs.
    pub progress: &'static Progress,
    pub intake: Intake,
    /// Where requests for programs go.
    pub cgi: Option<OwnedFd>,
    /// By slot: where others are sent connections.
    pub txs: RefCell<BTreeMap<usize, Rc<OwnedFd>>>,
    /// Room for connections on their way to another process.
    pub shipment: RefCell<Box<Shipment>>,
    /// Where connections are handed over to, once told so.
    pub leaving: RefCell<Option<Leaving>>,
    /// Requests that wait for a process.
    pub waiting: RefCell<Vec<Waiting>>,
    /// Blocking connections on their way to another process.
    pub detaching: RefCell<Detaching>,
}
