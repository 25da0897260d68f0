//! Requests that the bus carries out: it lists topics into a file in memory, and publishes a message that it is given
//! in one.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;

use serde_json::Value;

use super::pending::{Replies, TIMEOUT, Told, memory};
use super::view::View;
use crate::ctl::answer;
use crate::ctl::publish::Payload;
use crate::fleet::sockets::bus_wire::{Publication, Request, checked_name, key_of};
use crate::fleet::sockets::control::{Command, Report};
use crate::time::Instant;

/// Maximum size of a list.
const MAX_BYTES: u64 = 16 << 20;
/// `WS_TEXT` and `WS_BINARY`.
const KINDS: [u8; 2] = [1, 2];

/// Has the bus list its topics.
pub(super) fn topics(view: &View<'_>, ticket: u64) -> Told {
    let file = memory().map_err(|error| format!("cannot list topics: {error}"))?;
    let asked = ask(view, Command::List { ticket }, &file)?;
    let answer = |replies: Replies, _: &View<'_>, _| {
        let list = count_of(&replies).and_then(|_| {
            let list = read_list(file);
            list.map_err(|why| format!("the list of the bus: {why}"))
        });
        answer::line(&list)
    };
    Ok((asked, Box::new(answer)))
}

/// Has the bus publish a message.
pub(super) fn publish(
    (scope, topic): (Option<String>, String),
    (payload, is_binary): (&Payload, bool),
    view: &View<'_>,
    ticket: u64,
    now: Instant,
) -> Told {
    let scope = checked_scope(scope, view)?;
    checked_name(topic.as_bytes()).ok_or("expected a topic of 1 to 255 bytes without control characters")?;
    let payload = payload.bytes();
    if !is_binary && std::str::from_utf8(payload).is_err() {
        return Err("the message is not UTF-8: publish it with --binary".to_owned());
    }
    let message = Publication { but: 0, kind: KINDS[usize::from(is_binary)], compress: true, payload };
    let mut frame = Vec::new();
    Request::Publish { time: now.as_nanos(), key: &key_of(&scope, &topic), message }.append_to(&mut frame);
    let file = memory().and_then(|mut file| file.write_all(&frame).map(|()| file));
    let file = file.map_err(|error| format!("cannot publish: {error}"))?;
    let asked = ask(view, Command::Publish { ticket }, &file)?;
    let answer = move |replies: Replies, _: &View<'_>, _| {
        answer::line(&count_of(&replies).map(|count| {
            let plural = if count == 1 { "" } else { "s" };
            format!("published to {topic} of {scope}: {count} subscriber{plural} here").into()
        }))
    };
    Ok((asked, Box::new(answer)))
}

/// What the bus has replied: topics in the file, or subscribers.
fn count_of(replies: &Replies) -> Result<u64, String> {
    match replies.come.first() {
        Some((_, Report::Listed { listed: count, .. } | Report::Published { subscribers: count, .. })) => {
            Ok(*count)
        }
        _ if replies.silent.is_empty() => Err("the bus has ended: try again".to_owned()),
        _ => Err(format!("the bus has not answered within {} seconds", TIMEOUT.as_secs())),
    }
}

/// Sends a command to the bus; its pid.
fn ask(view: &View<'_>, command: Command, file: &File) -> Result<Vec<i32>, String> {
    let (pid, channel) = view.bus.ok_or("there is no bus: no handler has used topics yet")?;
    let sent = channel.send_command_with(command, &[file.as_fd()]);
    sent.map_err(|error| format!("the bus takes no commands: {error}"))?;
    Ok(vec![pid])
}

fn read_list(mut file: File) -> Result<Value, String> {
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.take(MAX_BYTES).read_to_end(&mut text));
    read.map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

/// The scope of topics, which need not be named if there is only one.
fn checked_scope(scope: Option<String>, view: &View<'_>) -> Result<String, String> {
    let config = view.config;
    let routes = view.routes.in_service();
    let mut known: Vec<&str> = routes.map(|(_, route)| config.scope_of(&route.resource)).collect();
    known.sort_unstable();
    known.dedup();
    let choice = match &known[..] {
        [] => "there are no handlers".to_owned(),
        known => format!("expected --scope with one of {}", known.join(", ")),
    };
    match (scope, &known[..]) {
        (Some(scope), known) if known.contains(&scope.as_str()) => Ok(scope),
        (Some(scope), _) => Err(format!("no handler has topics of {scope}: {choice}")),
        (None, [only]) => Ok((*only).to_owned()),
        (None, _) => Err(choice),
    }
}
