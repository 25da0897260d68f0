//! Closing connections: their workers are told, and report whether they do, or how many.

use std::os::fd::AsFd;

use serde_json::Value;

use super::listing::with_filter;
use super::pending::{TIMEOUT, Task, is_told};
use super::view::View;
use crate::ctl::answer;
use crate::ctl::filter::Filter;
use crate::ctl::request::Id;
use crate::fleet::control::{Command, Report};
use crate::time::Instant;

/// A worker is to close a connection.
pub(super) struct Closing {
    id: Id,
    /// Whether it does; else there is none that it could close.
    begun: Option<bool>,
}

impl Closing {
    /// Tells it, with the code of the Close frame.
    pub fn begin(id: Id, code: u16, view: &View<'_>, ticket: u64) -> Result<(Vec<i32>, Self), String> {
        let (_, channel) = view
            .channel_to(id.pid)
            .ok_or_else(|| format!("no worker has pid {}: see wshd ctl connections", id.pid))?;
        channel
            .send_command(Command::Close { ticket, conn: id.conn, code })
            .map_err(|error| format!("process {} takes no commands: {error}", id.pid))?;
        Ok((vec![id.pid], Self { id, begun: None }))
    }
}

impl Task for Closing {
    fn on_reply(&mut self, _: i32, report: Report) {
        if let Report::Closing { begun, .. } = report {
            self.begun = Some(begun);
        }
    }

    fn answer(self: Box<Self>, _: &[i32], view: &View<'_>, now: Instant) -> Vec<u8> {
        let Self { id, begun } = *self;
        answer::line(&match begun {
            Some(true) => Ok(format!("{id} is being closed").into()),
            Some(false) => Err(format!("{id} is not an open connection: see wshd ctl connections")),
            None => {
                let slot = view.channel_to(id.pid).map(|(slot, _)| slot);
                let why = match slot.map(|slot| view.executes(slot, id.pid, now)) {
                    Some(Some(call)) => format!("it is in {} of {}", call.callback, call.handler),
                    Some(None) => "it is busy".to_owned(),
                    None => "it has ended".to_owned(),
                };
                Err(format!(
                    "process {} has not closed the connection within {} seconds: {why}",
                    id.pid,
                    TIMEOUT.as_secs()
                ))
            }
        })
    }
}

/// Workers are to close connections; how many they do.
pub(super) struct ClosingAll(u64);

impl ClosingAll {
    /// Tells all workers, with the code of the Close frames.
    pub fn begin(
        filter: &Filter,
        code: u16,
        view: &View<'_>,
        ticket: u64,
    ) -> Result<(Vec<i32>, Self), String> {
        let file = with_filter(filter).map_err(|error| format!("cannot close connections: {error}"))?;
        let command = Command::CloseAll { ticket, code };
        let told = view.serving().filter(|(_, channel)| is_told(channel, command, file.as_fd()));
        Ok((told.map(|(pid, _)| pid).collect(), Self(0)))
    }
}

impl Task for ClosingAll {
    fn on_reply(&mut self, _: i32, report: Report) {
        if let Report::ClosingAll { count, .. } = report {
            self.0 = self.0.saturating_add(count);
        }
    }

    fn answer(self: Box<Self>, silent: &[i32], _: &View<'_>, _: Instant) -> Vec<u8> {
        let mut text =
            format!("{} connection{} being closed", self.0, if self.0 == 1 { " is" } else { "s are" });
        if !silent.is_empty() {
            let silent: Vec<String> = silent.iter().map(ToString::to_string).collect();
            text +=
                &format!("; no answer within {} seconds of process {}", TIMEOUT.as_secs(), silent.join(", "));
        }
        answer::line(&Ok(Value::String(text)))
    }
}
