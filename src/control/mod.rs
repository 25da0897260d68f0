//! The server's side of the control socket (`wshd ctl`): reads requests, answers those that only ask, and hands the
//! others to the supervisor as [`Operation`]s. Sees the server as a [`View`]; changes nothing of it, and never waits.
//! What a request means is in `crate::ctl::request`.

mod bus;
mod closing;
mod closing_all;
mod listing;
mod recording;
mod socket;
pub mod view;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::PollFd;
use serde_json::Value;

use self::bus::Errand;
use self::closing::Closing;
use self::closing_all::ClosingAll;
use self::listing::Listing;
use self::recording::Recording;
use self::socket::{Asked, Socket};
use self::view::View;
use crate::clock;
use crate::config;
use crate::ctl::answer;
use crate::ctl::request::{Change, Request, Switch};
use crate::fleet::control::Report;
use crate::fleet::listener::Listener;
use crate::log::{self as sink, Level};
use crate::time::Instant;

pub use self::socket::Number;

/// The control socket, and what its clients are waiting for. The default has no socket.
#[derive(Default)]
pub struct Control {
    /// None without `--control-socket`, and in workers.
    socket: Option<Socket>,
    /// When the supervisor started.
    started: Instant,
    /// Requests that were read and not yet served.
    asked: Vec<Asked>,
    /// Lists of connections that workers are writing.
    listings: Vec<Listing>,
    /// Connections that workers are to close.
    closings: Vec<Closing>,
    /// Many connections that workers are to close.
    closings_of_many: Vec<ClosingAll>,
    /// What is recorded, if something is.
    recording: Option<Recording>,
    /// What the bus does for clients.
    errands: Vec<Errand>,
    /// Clients waiting for a reload that has not begun yet.
    reload_wanted: Vec<Number>,
    /// Clients waiting for the reload that is under way.
    reloading: Vec<Number>,
    /// Clients waiting for an upgrade.
    upgrading: Vec<Number>,
    /// The ticket of the next command to a worker that replies.
    next_ticket: u64,
}

/// What a client wants the supervisor to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Stop the server; now: without closing connections first.
    Stop {
        /// At once.
        now: bool,
    },
    /// Reload; ends with [`Control::reload_ends`].
    Reload,
    /// Upgrade; ends with [`Control::upgrade_ends`].
    Upgrade,
    /// Drain, or do so over another time; answered with [`Control::answer`].
    Drain {
        /// Over which time connections are closed; None: as configured.
        time: Option<Duration>,
    },
    /// Serve again; answered with [`Control::answer`].
    Resume,
    /// Give up what is not in force yet; answered with [`Control::answer`].
    Cancel,
    /// Change the least level of the log; answered with [`Control::answer`].
    LogLevel(Level),
    /// Change the number of workers of a pool; answered with [`Control::answer`].
    Workers {
        /// Its name.
        pool: String,
        /// How.
        change: Change,
    },
    /// Quarantine a handler, or lift its quarantine; answered with [`Control::answer`].
    Quarantine {
        /// Number of the handler.
        handler: u16,
        /// On or off.
        state: Switch,
        /// For how long; None: until it is lifted.
        time: Option<Duration>,
    },
}

/// What becomes of a request.
enum Outcome {
    /// Answered at once.
    Answer(Result<Value, String>),
    /// The answer follows.
    Later,
    /// The supervisor has to do it.
    Do(Operation),
}

impl Control {
    /// Listens if a socket is configured, perhaps on one that is inherited.
    pub fn new(config: &config::Control, inherited: &[Arc<Listener>]) -> io::Result<Self> {
        let bind = |path: &PathBuf| Socket::bind(path, config.group, inherited);
        let socket = config.socket.as_ref().map(bind).transpose()?;
        Ok(Self { socket, started: clock::now(), ..Self::default() })
    }

    /// The socket, for another server.
    pub fn listener(&self) -> Option<&Arc<Listener>> {
        self.socket.as_ref().map(Socket::listener)
    }

    /// Another server has taken the socket over.
    pub fn hand_over(&mut self) {
        self.socket.iter_mut().for_each(Socket::hand_over);
    }

    /// The other server is gone.
    pub fn take_back(&mut self) {
        self.socket.iter_mut().for_each(Socket::take_back);
    }

    /// Removes the socket's file.
    pub fn remove_file(&self) {
        self.socket.iter().for_each(Socket::remove_file);
    }

    /// What the supervisor's loop is to wait for.
    pub fn interest(&self) -> impl Iterator<Item = PollFd<'_>> {
        let recording = self.recording.iter().map(Recording::interest);
        self.socket.iter().flat_map(Socket::interest).chain(recording)
    }

    /// When [`read`](Self::read) and [`serve`](Self::serve) are to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let clients = self.socket.as_ref().and_then(Socket::deadline);
        let listings = self.listings.iter().map(|listing| listing.deadline);
        let closings = self.closings.iter().map(|closing| closing.deadline);
        let errands = self.errands.iter().map(|errand| errand.deadline);
        let many = self.closings_of_many.iter().map(|closing| closing.deadline);
        listings.chain(closings).chain(many).chain(errands).chain(clients).min()
    }

    /// Reads requests and sends answers as far as possible without waiting; true if [`serve`](Self::serve) has
    /// something to do.
    pub fn read(&mut self, now: Instant) -> bool {
        let asked = self.socket.as_mut().map(|socket| socket.turn(now));
        self.asked.extend(asked.into_iter().flatten());
        let has_closings = !(self.closings.is_empty() && self.closings_of_many.is_empty());
        let waits = has_closings || !(self.listings.is_empty() && self.errands.is_empty());
        waits || !self.asked.is_empty() || self.recording.as_ref().is_some_and(Recording::is_over)
    }

    /// Answers the requests that were read, and those whose workers have replied or are late; returns what the
    /// supervisor has to do, and for whom.
    pub fn serve(&mut self, view: &View<'_>, now: Instant) -> Vec<(Number, Operation)> {
        let mut operations = Vec::new();
        self.end_recording(view);
        for Asked { client, pid, uid, line, fd } in std::mem::take(&mut self.asked) {
            let outcome = match Request::read(&line) {
                Ok(request) => {
                    if request.changes_something() {
                        log::info!("wshd ctl: process {pid} of user {uid} requests: {}", request.name());
                    }
                    match request {
                        Request::Record { resource, longest } => {
                            Outcome::Answer(self.record(&resource, longest, fd, view, now))
                        }
                        request => self.take_up(client, request, view, now),
                    }
                }
                Err(why) => Outcome::Answer(Err(why)),
            };
            match outcome {
                Outcome::Answer(answer) => self.answer(client, &answer),
                Outcome::Later => {}
                Outcome::Do(operation) => operations.push((client, operation)),
            }
        }
        self.finish_listings(view, now);
        self.finish_closings(view, now);
        self.finish_closings_of_many(view, now);
        self.finish_errands(now);
        operations
    }

    fn take_up(&mut self, client: Number, request: Request, view: &View<'_>, now: Instant) -> Outcome {
        match request {
            Request::Status {} => {
                let status = serde_json::to_value(view.status(self.started, now));
                Outcome::Answer(status.map_err(|error| error.to_string()))
            }
            Request::Config {} => Outcome::Answer(Ok((*view.config.effective).into())),
            Request::Connections { filter } => self.list_connections(client, &filter, view, now),
            Request::Close { id: Some(id), filter, code } if filter.is_empty() => {
                self.close_connection(client, (id, code), view, now)
            }
            Request::Close { id: None, filter, code } if !filter.is_empty() => {
                self.close_all(client, (&filter, code), view, now)
            }
            Request::Close { .. } => {
                Outcome::Answer(Err("expected an id, or a filter that is not empty".to_owned()))
            }
            Request::Cancel {} => Outcome::Do(Operation::Cancel),
            Request::LogLevel { level } => log_level(level.as_deref()),
            Request::Quarantine { resource, state, seconds } => {
                let time = seconds.map(|seconds| Duration::from_secs(seconds.into()));
                quarantine(view, resource.as_deref(), state, time)
            }
            Request::Topics {} => self.list_topics(client, view, now),
            Request::Publish { scope, topic, binary, data } => {
                self.publish(client, (scope, topic), (&data, binary), view, now)
            }
            Request::Record { .. } => Outcome::Answer(Err("expected a socket with it".to_owned())),
            Request::Stop { now } => {
                self.answer(client, &Ok("stopping".into()));
                Outcome::Do(Operation::Stop { now })
            }
            Request::Reload {} => {
                self.reload_wanted.push(client);
                Outcome::Do(Operation::Reload)
            }
            Request::Upgrade {} if view.is_upgrading => {
                Outcome::Answer(Err("an upgrade is already under way".to_owned()))
            }
            Request::Upgrade {} => {
                self.upgrading.push(client);
                Outcome::Do(Operation::Upgrade)
            }
            Request::Drain { seconds } => Outcome::Do(Operation::Drain {
                time: seconds.map(|seconds| Duration::from_secs(seconds.into())),
            }),
            Request::Resume {} => Outcome::Do(Operation::Resume),
            Request::Workers { pool, change } => Outcome::Do(Operation::Workers { pool, change }),
        }
    }

    /// A worker replies to a command that a client's request caused.
    pub fn hear(&mut self, pid: i32, report: Report) {
        match report {
            Report::Listed { ticket, listed, left_out } => {
                self.listed(pid, ticket, listed, left_out);
                self.errand_done(ticket, listed);
            }
            Report::Published { ticket, subscribers } => self.errand_done(ticket, subscribers),
            Report::Closing { ticket, begun } => self.closing(ticket, begun),
            Report::ClosingAll { ticket, count } => self.closing_all(pid, ticket, count),
            Report::Ready { .. } | Report::Crashed | Report::Leaving => {}
            Report::Born { .. } | Report::Taken | Report::Faulty | Report::Topics => {}
        }
    }

    /// The reload begins that clients are waiting for.
    pub fn reload_begins(&mut self) {
        self.reloading.append(&mut self.reload_wanted);
    }

    /// The reload has ended: clients that waited for it are told.
    pub fn reload_ends(&mut self, result: &Result<String, String>) {
        let result = result.clone().map_err(|why| format!("reload: {why}"));
        let result = result.map(|done| Value::String(format!("reload: {done}")));
        for client in std::mem::take(&mut self.reloading) {
            self.answer(client, &result);
        }
    }

    /// The upgrade has ended: clients that waited for it are told, and who records.
    pub fn upgrade_ends(&mut self, result: &Result<String, String>) {
        if let (Ok(_), Some(recording)) = (result, &self.recording) {
            recording.say_why_it_ends("the server was upgraded");
        }
        let result = result.clone().map(Value::String);
        for client in std::mem::take(&mut self.upgrading) {
            self.answer(client, &result);
        }
    }

    /// Answers a client that has waited for it.
    pub fn answer(&mut self, client: Number, result: &Result<Value, String>) {
        self.send(client, answer::line(result));
    }

    fn send(&mut self, client: Number, line: Vec<u8>) {
        if let Some(socket) = &mut self.socket {
            socket.answer(client, line, clock::now());
        }
    }

    /// A number that a worker is to give back.
    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }
}

/// The least level of the log, or the change of it.
fn log_level(name: Option<&str>) -> Outcome {
    match name.map(|name| Level::from_name(name).ok_or(name)) {
        None => Outcome::Answer(Ok(sink::level().name().into())),
        Some(Ok(level)) => Outcome::Do(Operation::LogLevel(level)),
        Some(Err(name)) => {
            let levels = Level::ALL.map(Level::name).join(", ");
            Outcome::Answer(Err(format!("{}: expected one of {levels}", name.escape_debug())))
        }
    }
}

/// Which handlers are quarantined, or the change of one.
fn quarantine(
    view: &View<'_>,
    resource: Option<&str>,
    state: Option<Switch>,
    time: Option<Duration>,
) -> Outcome {
    let answer = |handlers: Vec<answer::Handler>| {
        Outcome::Answer(serde_json::to_value(handlers).map_err(|error| error.to_string()))
    };
    let refused = |why: String| Outcome::Answer(Err(why));
    let Some(resource) = resource else {
        return match (state, time) {
            (None, None) => answer(view.handlers()),
            _ => refused("expected the resource whose handler to quarantine".to_owned()),
        };
    };
    let Some(handler) = view.routes.find(resource) else {
        return refused(format!("no handler serves {resource}: see wshd ctl quarantine without a resource"));
    };
    match (state, time) {
        (None, None) => answer(view.handler(handler).into_iter().collect()),
        (Some(state @ Switch::On), time) | (Some(state @ Switch::Off), time @ None) => {
            Outcome::Do(Operation::Quarantine { handler, state, time })
        }
        _ => refused("expected a time with \"on\" only".to_owned()),
    }
}
