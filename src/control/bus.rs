//! What the bus is asked for: the list of topics, which it writes into a file in memory, and to publish a message, which it
//! is given in one. The supervisor looks into neither.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

use super::view::View;
use super::{Control, Number, Outcome};
use crate::ctl::publish::Payload;
use crate::ctl::topics::Topics;
use crate::fleet::bus_wire::{Message, Request, checked_name, key_of};
use crate::fleet::control::Command;
use crate::time::Instant;

/// How long the bus may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Maximum size of a list.
const MAX_BYTES: u64 = 16 << 20;
/// `WS_TEXT` and `WS_BINARY`.
const KINDS: [u8; 2] = [1, 2];

/// Something that the bus does for a client.
pub(super) struct Errand {
    ticket: u64,
    client: Number,
    /// When the client is told that the bus has not replied.
    pub deadline: Instant,
    what: What,
}

enum What {
    /// It writes the topics into this file.
    Topics(File),
    /// It publishes to the topic, in this scope.
    Publish { scope: String, topic: String },
}

impl Control {
    /// Has the bus list its topics.
    pub(super) fn list_topics(&mut self, client: Number, view: &View<'_>, now: Instant) -> Outcome {
        if view.bus.is_none() {
            return Outcome::Answer(Ok(json!(Topics::default()))); // nobody uses any
        }
        match memory() {
            Ok(file) => self.send_errand(client, view, now, What::Topics(file), None),
            Err(error) => Outcome::Answer(Err(format!("cannot list topics: {error}"))),
        }
    }

    /// Has the bus publish a message.
    pub(super) fn publish(
        &mut self,
        client: Number,
        (scope, topic): (Option<String>, String),
        (payload, is_binary): (&Payload, bool),
        view: &View<'_>,
        now: Instant,
    ) -> Outcome {
        let scope = match checked_scope(scope, view) {
            Ok(scope) => scope,
            Err(why) => return Outcome::Answer(Err(why)),
        };
        if checked_name(topic.as_bytes()).is_none() {
            let why = "expected a topic of 1 to 255 bytes without control characters";
            return Outcome::Answer(Err(why.to_owned()));
        }
        let payload = payload.bytes();
        if !is_binary && std::str::from_utf8(payload).is_err() {
            return Outcome::Answer(Err("the message is not UTF-8: publish it with --binary".to_owned()));
        }
        let kind = KINDS[usize::from(is_binary)];
        let message = Message { but: 0, kind, compress: true, payload };
        let mut frame = Vec::new();
        Request::Publish { time: now.as_nanos(), key: &key_of(&scope, &topic), message }
            .append_to(&mut frame);
        let file = memory().and_then(|mut file| file.write_all(&frame).map(|()| file));
        match file {
            Ok(file) => self.send_errand(client, view, now, What::Publish { scope, topic }, Some(file)),
            Err(error) => Outcome::Answer(Err(format!("cannot publish: {error}"))),
        }
    }

    fn send_errand(
        &mut self,
        client: Number,
        view: &View<'_>,
        now: Instant,
        what: What,
        message: Option<File>,
    ) -> Outcome {
        let Some(channel) = view.bus else {
            return Outcome::Answer(Err("there is no bus: no handler has used topics yet".to_owned()));
        };
        let ticket = self.ticket();
        let sent = match (&what, &message) {
            (What::Topics(file), _) => channel.send_command_with(Command::List { ticket }, file.as_fd()),
            (_, Some(message)) => channel.send_command_with(Command::Publish { ticket }, message.as_fd()),
            (_, None) => Err(io::ErrorKind::InvalidInput.into()),
        };
        if let Err(error) = sent {
            return Outcome::Answer(Err(format!("the bus takes no commands: {error}")));
        }
        self.errands.push(Errand { ticket, client, deadline: now + PATIENCE, what });
        Outcome::Later
    }

    /// The bus has done what it was asked for; `count`: topics in the file, or subscribers.
    pub(super) fn errand_done(&mut self, ticket: u64, count: u64) {
        let Some(index) = self.errands.iter().position(|errand| errand.ticket == ticket) else { return };
        let Errand { client, what, .. } = self.errands.swap_remove(index);
        let result = match what {
            What::Topics(file) => read_list(file),
            What::Publish { scope, topic } => {
                let plural = if count == 1 { "" } else { "s" };
                Ok(format!("published to {topic} of {scope}: {count} subscriber{plural} here").into())
            }
        };
        self.answer(client, &result);
    }

    /// Answers clients whom the bus has kept waiting.
    pub(super) fn finish_errands(&mut self, now: Instant) {
        let late: Vec<_> = self.errands.extract_if(.., |errand| errand.deadline <= now).collect();
        for Errand { client, .. } in late {
            let why = format!("the bus has not answered within {} seconds", PATIENCE.as_secs());
            self.answer(client, &Err(why));
        }
    }
}

fn memory() -> io::Result<File> {
    Ok(memfd_create(c"wshd topics", MFdFlags::MFD_CLOEXEC)?.into())
}

fn read_list(mut file: File) -> Result<Value, String> {
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.take(MAX_BYTES).read_to_end(&mut text));
    let failed = |error: &dyn std::fmt::Display| format!("the list of the bus: {error}");
    read.map_err(|error| failed(&error))?;
    serde_json::from_slice(&text).map_err(|error| failed(&error))
}

/// The scope of topics, which need not be named if there is only one.
fn checked_scope(scope: Option<String>, view: &View<'_>) -> Result<String, String> {
    let config = view.config;
    let routes = view.routes.in_service();
    let mut known: Vec<&str> = routes.map(|(_, route)| config.scope_of(&route.resource)).collect();
    known.sort_unstable();
    known.dedup();
    let choice = || match &known[..] {
        [] => "there are no handlers".to_owned(),
        known => format!("expected --scope with one of {}", known.join(", ")),
    };
    match (scope, &known[..]) {
        (Some(scope), known) if known.contains(&scope.as_str()) => Ok(scope),
        (Some(scope), _) => Err(format!("no handler has topics of {scope}: {}", choice())),
        (None, [only]) => Ok((*only).to_owned()),
        (None, _) => Err(choice()),
    }
}
