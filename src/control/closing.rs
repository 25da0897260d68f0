//! Closing a connection: its worker is told, and reports whether it does.

use std::time::Duration;

use super::view::View;
use super::{Control, Number, Outcome};
use crate::ctl::request::Id;
use crate::fleet::control::Command;
use crate::time::Instant;

/// How long a worker may take to begin to close a connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// A worker has been told to close a connection.
pub(super) struct Closing {
    ticket: u64,
    client: Number,
    id: Id,
    /// When the client is told that the worker has not replied.
    pub deadline: Instant,
}

impl Control {
    /// Has a worker close a connection with this code.
    pub(super) fn close_connection(
        &mut self,
        client: Number,
        (id, code): (Id, u16),
        view: &View<'_>,
        now: Instant,
    ) -> Outcome {
        let ticket = self.ticket();
        let Some((_, channel)) = view.channel_to(id.pid) else {
            return Outcome::Answer(Err(format!("no worker has pid {}: see wshd ctl connections", id.pid)));
        };
        if let Err(error) = channel.send_command(Command::Close { ticket, conn: id.conn, code }) {
            return Outcome::Answer(Err(format!("process {} takes no commands: {error}", id.pid)));
        }
        self.closings.push(Closing { ticket, client, id, deadline: now + PATIENCE });
        Outcome::Later
    }

    /// A worker has begun to close a connection, or has none that it could close.
    pub(super) fn closing(&mut self, ticket: u64, begun: bool) {
        let Some(index) = self.closings.iter().position(|closing| closing.ticket == ticket) else { return };
        let Closing { client, id, .. } = self.closings.swap_remove(index);
        let result = match begun {
            true => Ok(format!("{id} is being closed").into()),
            false => Err(format!("{id} is not an open connection: see wshd ctl connections")),
        };
        self.answer(client, &result);
    }

    /// Answers clients whose worker does not reply in time.
    pub(super) fn finish_closings(&mut self, view: &View<'_>, now: Instant) {
        let (late, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.closings).into_iter().partition(|closing| closing.deadline <= now);
        self.closings = rest;
        for Closing { client, id, .. } in late {
            let slot = view.channel_to(id.pid).map(|(slot, _)| slot);
            let why = match slot.map(|slot| view.executes(slot, id.pid, now)) {
                Some(Some(call)) => format!("it is in {} of {}", call.callback, call.handler),
                Some(None) => "it is busy".to_owned(),
                None => "it has ended".to_owned(),
            };
            let why = format!(
                "process {} has not closed the connection within {} seconds: {why}",
                id.pid,
                PATIENCE.as_secs()
            );
            self.answer(client, &Err(why));
        }
    }
}
