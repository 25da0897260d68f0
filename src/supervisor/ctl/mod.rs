//! What an operator asks for on the control socket (`wshd ctl`): `socket` takes requests and sends answers, here they
//! are carried out, at once or with an answer that follows. What a request means is in `crate::ctl::request`.

mod listing;
mod orders;
mod status;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nix::poll::PollFd;
use serde_json::Value;

use self::listing::Listing;
use self::orders::Closing;
use super::Fleet;
use super::policy::slots::{Event, Time};
use crate::clock;
use crate::config;
use crate::control::socket::{Asked, Number, Socket};
use crate::ctl::answer;
use crate::ctl::request::Request;
use crate::fleet::control::Report;
use crate::fleet::listener::Listener;
use crate::fleet::scoreboard;
use crate::time::Instant;

/// The control socket, and what is being done for its clients.
pub(super) struct Control {
    /// None without `--control-socket`, and in workers.
    socket: Option<Socket>,
    /// When the supervisor began.
    started: Time,
    /// Lists of connections that workers are writing.
    listings: Vec<Listing>,
    /// Connections that workers are to close.
    closings: Vec<Closing>,
    /// Who waits for a reload that has not begun yet.
    reload_wanted: Vec<Number>,
    /// Who waits for the one that goes on.
    reloading: Vec<Number>,
    /// Who waits for an upgrade.
    upgrading: Vec<Number>,
    /// The number of the next order to a worker that is answered.
    next_ticket: u64,
}

/// What becomes of a request.
enum Outcome {
    /// It is done, or can not be.
    Now(Result<Value, String>),
    /// [`Fleet::answer`] follows.
    Later,
}

impl Control {
    /// Listens, if that is wanted; perhaps on a socket that is inherited.
    pub fn new(config: &config::Control, inherited: &[Arc<Listener>]) -> io::Result<Self> {
        let bind = |path: &PathBuf| Socket::bind(path, config.group, inherited);
        let socket = config.socket.as_ref().map(bind).transpose()?;
        Ok(Self { socket, ..Self::none() })
    }

    /// Without a socket: for workers, which are not asked.
    pub fn none() -> Self {
        let started = scoreboard::now();
        let (listings, closings) = (Vec::new(), Vec::new());
        let (reload_wanted, reloading) = (Vec::new(), Vec::new());
        let upgrading = Vec::new();
        Self {
            socket: None,
            started,
            listings,
            closings,
            reload_wanted,
            reloading,
            upgrading,
            next_ticket: 1,
        }
    }

    /// The socket, for another server.
    pub fn listener(&self) -> Option<&Arc<Listener>> {
        self.socket.as_ref().and_then(Socket::listener)
    }

    /// Another server has taken the socket over.
    pub fn hand_over(&mut self) {
        self.socket.iter_mut().for_each(Socket::hand_over);
    }

    /// An upgrade has come to its end: those who have waited for it are told.
    pub fn upgrade_ends(&mut self, result: &Result<String, String>) {
        for client in std::mem::take(&mut self.upgrading) {
            self.answer(client, result.clone());
        }
    }

    /// Removes the socket's file.
    pub fn remove_file(&self) {
        self.socket.iter().for_each(Socket::remove_file);
    }

    /// What the supervisor's loop is to wait for.
    pub fn interest(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.socket.iter().flat_map(Socket::interest)
    }

    /// When [`Fleet::serve_control`] is to be called at the latest.
    pub fn deadline(&self) -> Option<Time> {
        let clients = self.socket.as_ref().and_then(Socket::deadline).map(Instant::as_nanos);
        let listings = self.listings.iter().map(|listing| listing.deadline);
        let closings = self.closings.iter().map(|closing| closing.deadline);
        listings.chain(closings).chain(clients).min()
    }

    /// A worker has done what it was told on behalf of a client.
    pub fn hear(&mut self, pid: i32, report: Report) {
        match report {
            Report::Listed { ticket, listed, left_out } => self.listed(pid, ticket, listed, left_out),
            Report::Closing { ticket, begun } => self.closing(ticket, begun),
            Report::Ready { .. } | Report::Crashed | Report::Leaving => {}
            Report::Born { .. } | Report::Taken => {}
        }
    }

    /// The reload begins that was wanted.
    pub fn reload_begins(&mut self) {
        self.reloading.append(&mut self.reload_wanted);
    }

    /// It has come to its end: those who have waited for it are told.
    pub fn reload_ends(&mut self, result: &Result<String, String>) {
        let result = result.clone().map_err(|why| format!("the reload was {why}"));
        for client in std::mem::take(&mut self.reloading) {
            self.answer(client, result.clone().map(|done| format!("reload: {done}")));
        }
    }

    /// A number that a worker is to give back.
    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    fn answer(&mut self, client: Number, result: Result<String, String>) {
        self.send(client, answer::line(&result.map(Value::String)));
    }

    fn send(&mut self, client: Number, line: Vec<u8>) {
        if let Some(socket) = &mut self.socket {
            socket.answer(client, line, clock::now());
        }
    }
}

impl Fleet {
    /// Takes up what clients of the control socket want, and answers those whose answers are complete.
    pub(super) fn serve_control(&mut self, events: &mut VecDeque<Event>) {
        // As long as another executable serves it is the one to be asked.
        let socket = self.control.socket.as_mut().filter(|_| self.predecessor.is_none());
        let asked = socket.map(|socket| socket.turn(clock::now()));
        for asked in asked.into_iter().flatten() {
            let client = asked.client;
            match self.obey(asked, events) {
                Outcome::Now(answer) => self.control.send(client, answer::line(&answer)),
                Outcome::Later => {}
            }
        }
        self.finish_listings();
        self.finish_closings();
    }

    /// Answers a client that has waited for it.
    pub(super) fn answer(&mut self, client: Number, result: Result<String, String>) {
        self.control.answer(client, result);
    }

    fn obey(&mut self, asked: Asked, events: &mut VecDeque<Event>) -> Outcome {
        let Asked { client, pid, uid, line } = asked;
        let request = match Request::read(&line) {
            Ok(request) => request,
            Err(why) => return Outcome::Now(Err(why)),
        };
        match &request {
            Request::Status {} | Request::Connections {} | Request::Quarantine { state: None, .. } => {}
            order => log::info!("process {pid} of user {uid} orders: {}", order.name()),
        }
        match request {
            Request::Status {} => Outcome::Now(self.status()),
            Request::Connections {} => self.list_connections(client),
            Request::Close { id, code } => self.close_connection(client, id, code),
            Request::Quarantine { resource, state, seconds } => {
                Outcome::Now(self.quarantine(resource.as_deref(), state, seconds))
            }
            Request::Stop { now } => {
                events.push_back(if now { Event::Quit } else { Event::Terminate });
                Outcome::Now(Ok("stopping".into()))
            }
            Request::Reload {} => {
                self.control.reload_wanted.push(client);
                self.ask_for_reload();
                Outcome::Later
            }
            Request::Upgrade {} if self.is_upgrade_due || self.successor.is_some() => {
                Outcome::Now(Err("an upgrade is on its way already".to_owned()))
            }
            Request::Upgrade {} => {
                self.control.upgrading.push(client);
                self.ask_for_upgrade();
                Outcome::Later
            }
            Request::Workers { pool, change } => Outcome::Now(self.change_workers(&pool, change)),
        }
    }
}
