//! The server's side of the control socket (`wshd ctl`): reads requests, answers those that only ask, and hands the
//! others to the supervisor as [`Operation`]s. Sees the server as a [`View`]; changes nothing of it, and never waits.
//! What a request means is in `crate::ctl::request`.

mod bus;
mod closing;
mod listing;
mod pending;
mod recording;
mod socket;
pub mod view;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::PollFd;
use serde_json::{Value, json};

use self::bus::Errand;
use self::closing::{Closing, ClosingAll};
use self::listing::Listing;
use self::pending::Pending;
use self::recording::Recording;
use self::socket::{Asked, Socket};
use self::view::View;
use crate::clock;
use crate::config;
use crate::ctl::answer;
use crate::ctl::request::{Change, Request, Switch};
use crate::ctl::topics::Topics;
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
    /// Those that wait for other processes.
    pending: Vec<Pending>,
    /// What is recorded, if something is.
    recording: Option<Recording>,
    /// Clients waiting for a reload that has not begun yet.
    reload_wanted: Vec<Number>,
    /// Clients waiting for the reload that is under way.
    reloading: Vec<Number>,
    /// Clients waiting for an upgrade.
    upgrading: Vec<Number>,
    /// The ticket of the next command to a process that replies.
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
    Answer(Value),
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
        let pending = self.pending.iter().map(|pending| pending.deadline);
        pending.chain(self.socket.as_ref().and_then(Socket::deadline)).min()
    }

    /// Reads requests and sends answers as far as possible without waiting; true if [`serve`](Self::serve) has
    /// something to do.
    pub fn read(&mut self, now: Instant) -> bool {
        let asked = self.socket.as_mut().map(|socket| socket.turn(now));
        self.asked.extend(asked.into_iter().flatten());
        let is_over = self.recording.as_ref().is_some_and(Recording::is_over);
        is_over || !self.asked.is_empty() || !self.pending.is_empty()
    }

    /// Answers the requests that were read, and those whose workers have replied or are late; returns what the
    /// supervisor has to do, and for whom.
    pub fn serve(&mut self, view: &View<'_>, now: Instant) -> Vec<(Number, Operation)> {
        let mut operations = Vec::new();
        self.end_recording(view);
        for Asked { client, pid, uid, line, fd } in std::mem::take(&mut self.asked) {
            let outcome = Request::read(&line).and_then(|request| {
                if let Some(change) = request.change() {
                    log::info!("wshd ctl: process {pid} of user {uid} requests: {change}");
                }
                self.take_up(client, request, fd, view, now)
            });
            match outcome {
                Ok(Outcome::Answer(result)) => self.answer(client, &Ok(result)),
                Err(why) => self.answer(client, &Err(why)),
                Ok(Outcome::Later) => {}
                Ok(Outcome::Do(operation)) => operations.push((client, operation)),
            }
        }
        self.finish_pending(view, now);
        operations
    }

    fn take_up(
        &mut self,
        client: Number,
        request: Request,
        fd: Option<OwnedFd>,
        view: &View<'_>,
        now: Instant,
    ) -> Result<Outcome, String> {
        let time = |seconds: u32| Duration::from_secs(seconds.into());
        Ok(match request {
            Request::Status {} => Outcome::Answer(json!(view.status(self.started, now))),
            Request::Config {} => Outcome::Answer((*view.config.effective).into()),
            Request::Connections { filter } => {
                self.wait(client, now, |ticket| Listing::begin(&filter, view, ticket))?
            }
            Request::Close { id: Some(id), filter, code } if filter.is_empty() => {
                self.wait(client, now, |ticket| Closing::begin(id, code, view, ticket))?
            }
            Request::Close { id: None, filter, code } if !filter.is_empty() => {
                self.wait(client, now, |ticket| ClosingAll::begin(&filter, code, view, ticket))?
            }
            Request::Close { .. } => return Err("expected an id, or a filter that is not empty".to_owned()),
            Request::Cancel {} => Outcome::Do(Operation::Cancel),
            Request::LogLevel { level: None } => Outcome::Answer(sink::level().name().into()),
            Request::LogLevel { level: Some(name) } => match Level::from_name(&name) {
                Some(level) => Outcome::Do(Operation::LogLevel(level)),
                None => {
                    let levels = Level::ALL.map(Level::name).join(", ");
                    return Err(format!("{}: expected one of {levels}", name.escape_debug()));
                }
            },
            Request::Quarantine { resource, state, seconds } => {
                quarantine(view, resource.as_deref(), state, seconds.map(time))?
            }
            // Nobody uses any.
            Request::Topics {} if view.bus.is_none() => Outcome::Answer(json!(Topics::default())),
            Request::Topics {} => self.wait(client, now, |ticket| Errand::topics(view, ticket))?,
            Request::Publish { scope, topic, binary, data } => self.wait(client, now, |ticket| {
                Errand::publish((scope, topic), (&data, binary), view, ticket, now)
            })?,
            Request::Record { resource, longest } => {
                Outcome::Answer(self.record(&resource, longest, fd, view, now)?)
            }
            Request::Stop { now } => {
                self.answer(client, &Ok("stopping".into()));
                Outcome::Do(Operation::Stop { now })
            }
            Request::Reload {} => {
                self.reload_wanted.push(client);
                Outcome::Do(Operation::Reload)
            }
            Request::Upgrade {} if view.is_upgrading => {
                return Err("an upgrade is already under way".to_owned());
            }
            Request::Upgrade {} => {
                self.upgrading.push(client);
                Outcome::Do(Operation::Upgrade)
            }
            Request::Drain { seconds } => Outcome::Do(Operation::Drain { time: seconds.map(time) }),
            Request::Resume {} => Outcome::Do(Operation::Resume),
            Request::Workers { pool, change } => Outcome::Do(Operation::Workers { pool, change }),
        })
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
}

/// Which handlers are quarantined, or the change of one.
fn quarantine(
    view: &View<'_>,
    resource: Option<&str>,
    state: Option<Switch>,
    time: Option<Duration>,
) -> Result<Outcome, String> {
    let Some(resource) = resource else {
        return match (state, time) {
            (None, None) => Ok(Outcome::Answer(json!(view.handlers()))),
            _ => Err("expected the resource whose handler to quarantine".to_owned()),
        };
    };
    let handler = view
        .routes
        .find(resource)
        .ok_or_else(|| format!("no handler serves {resource}: see wshd ctl quarantine without a resource"))?;
    match (state, time) {
        (None, None) => Ok(Outcome::Answer(json!(Vec::from_iter(view.handler(handler))))),
        (Some(state @ Switch::On), time) | (Some(state @ Switch::Off), time @ None) => {
            Ok(Outcome::Do(Operation::Quarantine { handler, state, time }))
        }
        _ => Err("expected a time with \"on\" only".to_owned()),
    }
}
