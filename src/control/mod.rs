//! The server's side of the control socket (`wshd ctl`): reads requests, answers those that only ask, and hands the
//! others to the supervisor. Sees the server as a [`View`]; changes nothing of it, and never waits.

mod bus;
mod connections;
mod pending;
mod recording;
mod socket;
pub mod view;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::poll::PollFd;
use serde_json::{Value, json};

use self::pending::Pending;
use self::recording::Recording;
use self::socket::{Asked, Socket};
use self::view::View;
use crate::clock;
use crate::config;
use crate::ctl::answer::{self, Handler};
use crate::ctl::request::{Request, Switch};
use crate::ctl::topics::Topics;
use crate::fleet::sockets::listener::Listener;
use crate::log as sink;
use crate::time::Instant;

pub use self::socket::Number;

/// The control socket, and what its clients are waiting for. The default has no socket.
#[derive(Default)]
pub struct Control {
    /// None without `--control-socket`, and in workers.
    socket: Option<Socket>,
    /// When the supervisor started.
    started: Instant,
    /// Those that wait for other processes.
    pending: Vec<Pending>,
    /// What is recorded, if something is.
    recording: Option<Recording>,
    /// Clients that wait for the end of a reload or an upgrade.
    waiting: Vec<(Number, Job)>,
    /// The ticket of the next command to a process that replies.
    next_ticket: u64,
}

/// What takes its time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Job {
    /// A reload that has not begun yet.
    NextReload,
    /// The reload that is under way.
    Reload,
    Upgrade,
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
        self.socket.as_ref().map(|socket| &socket.listener)
    }

    /// What the supervisor's loop is to wait for. Unless it `accepts` another server has taken the socket over.
    pub fn interest(&self, accepts: bool) -> impl Iterator<Item = PollFd<'_>> {
        let recording = self.recording.iter().map(Recording::interest);
        self.socket.iter().flat_map(move |socket| socket.interest(accepts)).chain(recording)
    }

    /// When [`read`](Self::read) and [`serve`](Self::serve) are to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let pending = self.pending.iter().map(|pending| pending.deadline);
        pending.chain(self.socket.as_ref().and_then(Socket::deadline)).min()
    }

    /// Reads requests and sends answers as far as possible without waiting; None if [`serve`](Self::serve) has nothing
    /// to do.
    pub fn read(&mut self, accepts: bool, now: Instant) -> Option<Vec<Asked>> {
        let asked = self.socket.as_mut().map(|socket| socket.turn(accepts, now)).unwrap_or_default();
        let is_over = self.recording.as_ref().is_some_and(Recording::is_over);
        (is_over || !asked.is_empty() || !self.pending.is_empty()).then_some(asked)
    }

    /// Answers the requests that were read, and those whose workers have replied or are late. Returns those that the
    /// supervisor has to carry out: a reload ends with [`reload_ends`](Self::reload_ends), an upgrade with
    /// [`upgrade_ends`](Self::upgrade_ends), a stop was answered; the others end with [`answer`](Self::answer).
    pub fn serve(&mut self, asked: Vec<Asked>, view: &View<'_>, now: Instant) -> Vec<(Number, Request)> {
        let mut to_do = Vec::new();
        self.end_recording(view);
        for Asked { client, pid, uid, line, fd } in asked {
            let result = Request::read(&line).and_then(|request| {
                if let Some(change) = request.change() {
                    log::info!("wshd ctl: process {pid} of user {uid} requests: {change}");
                }
                self.take_up((client, request), fd, view, now, &mut to_do)
            });
            result.transpose().iter().for_each(|result| self.answer(client, result));
        }
        self.finish_pending(view, now);
        to_do
    }

    /// The answer, unless that follows: from other processes, or from the supervisor, which has to do it.
    fn take_up(
        &mut self,
        (client, request): (Number, Request),
        fd: Option<OwnedFd>,
        view: &View<'_>,
        now: Instant,
        to_do: &mut Vec<(Number, Request)>,
    ) -> Result<Option<Value>, String> {
        match request {
            Request::Status {} => return Ok(Some(json!(view.status(self.started, now)))),
            Request::Config {} => return Ok(Some((*view.config.effective).into())),
            Request::LogLevel { level: None } => return Ok(Some(sink::level().name().into())),
            Request::Connections { filter } => {
                return self.wait(client, now, |ticket| connections::list(&filter, view, ticket));
            }
            Request::Close { id: Some(id), filter, code } if filter.is_empty() => {
                return self.wait(client, now, |ticket| connections::close(id, code, view, ticket));
            }
            Request::Close { id: None, filter, code } if !filter.is_empty() => {
                return self.wait(client, now, |ticket| connections::close_all(&filter, code, view, ticket));
            }
            Request::Close { .. } => return Err("expected an id, or a filter that is not empty".to_owned()),
            // Nobody uses any.
            Request::Topics {} if view.bus.is_none() => return Ok(Some(json!(Topics::default()))),
            Request::Topics {} => return self.wait(client, now, |ticket| bus::topics(view, ticket)),
            Request::Publish { scope, topic, binary, data } => {
                let message = (&data, binary);
                return self
                    .wait(client, now, |ticket| bus::publish((scope, topic), message, view, ticket, now));
            }
            Request::Record { resource, longest } => {
                return self.record(&resource, longest, fd, view, now).map(Some);
            }
            Request::Quarantine { ref resource, state, seconds } => {
                if let Some(handlers) = quarantined(view, resource.as_deref(), state, seconds)? {
                    return Ok(Some(json!(handlers)));
                }
            }
            Request::Stop { .. } => self.answer(client, &Ok("stopping".into())),
            Request::Reload {} => self.waiting.push((client, Job::NextReload)),
            Request::Upgrade {} if view.is_upgrading => {
                return Err("an upgrade is already under way".to_owned());
            }
            Request::Upgrade {} => self.waiting.push((client, Job::Upgrade)),
            Request::Cancel {}
            | Request::Drain { .. }
            | Request::Resume {}
            | Request::LogLevel { level: Some(_) }
            | Request::Workers { .. } => {}
        }
        to_do.push((client, request));
        Ok(None)
    }

    /// The reload begins that clients are waiting for.
    pub fn reload_begins(&mut self) {
        for (_, job) in self.waiting.iter_mut().filter(|(_, job)| *job == Job::NextReload) {
            *job = Job::Reload;
        }
    }

    /// The reload has ended: clients that waited for it are told.
    pub fn reload_ends(&mut self, result: &Result<String, String>) {
        self.end(
            Job::Reload,
            result.clone().map_err(|why| format!("reload: {why}")).map(|done| format!("reload: {done}")),
        );
    }

    /// The upgrade has ended: clients that waited for it are told, and who records.
    pub fn upgrade_ends(&mut self, result: &Result<String, String>) {
        if let (Ok(_), Some(recording)) = (result, &self.recording) {
            recording.say_why_it_ends("the server was upgraded");
        }
        self.end(Job::Upgrade, result.clone());
    }

    fn end(&mut self, ended: Job, result: Result<String, String>) {
        let result = result.map(Value::String);
        let told: Vec<_> = self.waiting.extract_if(.., |(_, job)| *job == ended).collect();
        told.into_iter().for_each(|(client, _)| self.answer(client, &result));
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

/// The handlers that are asked for; None: the quarantine of one is to be changed.
fn quarantined(
    view: &View<'_>,
    resource: Option<&str>,
    state: Option<Switch>,
    seconds: Option<u32>,
) -> Result<Option<Vec<Handler>>, String> {
    let handlers = match resource {
        None if state.is_some() || seconds.is_some() => {
            return Err("expected the resource whose handler to quarantine".to_owned());
        }
        None => view.handlers(),
        Some(resource) => {
            let handler = view.routes.find(resource).ok_or_else(|| {
                format!("no handler serves {resource}: see wshd ctl quarantine without a resource")
            })?;
            Vec::from_iter(view.handler(handler))
        }
    };
    match (state, seconds) {
        (None, None) => Ok(Some(handlers)),
        (Some(Switch::On), _) | (Some(Switch::Off), None) => Ok(None),
        _ => Err("expected a time with \"on\" only".to_owned()),
    }
}
