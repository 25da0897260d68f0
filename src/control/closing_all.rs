//! Closing all connections that a filter lets through: each worker is told, and reports how many that were.

use std::os::fd::AsFd;
use std::time::Duration;

use super::listing::with_filter;
use super::view::View;
use super::{Control, Number, Outcome};
use crate::ctl::filter::Filter;
use crate::fleet::control::Command;
use crate::time::Instant;

/// How long workers may take to begin.
const PATIENCE: Duration = Duration::from_secs(2);

/// Workers have been told to close connections.
pub(super) struct ClosingAll {
    ticket: u64,
    client: Number,
    /// When those that have not reported are named.
    pub deadline: Instant,
    /// The workers that have not reported yet.
    waiting: Vec<i32>,
    /// Connections that are being closed.
    count: u64,
}

impl Control {
    /// Has all workers close what the filter lets through.
    pub(super) fn close_all(
        &mut self,
        client: Number,
        (filter, code): (&Filter, u16),
        view: &View<'_>,
        now: Instant,
    ) -> Outcome {
        let ticket = self.ticket();
        let file = match with_filter(filter) {
            Ok(file) => file,
            Err(error) => return Outcome::Answer(Err(format!("cannot close connections: {error}"))),
        };
        let mut waiting = Vec::new();
        for (pid, _, channel) in view.channels().filter(|(pid, ..)| !view.is_starting(*pid)) {
            match channel.send_command_with(Command::CloseAll { ticket, code }, file.as_fd()) {
                // It is gone, and its connections with it.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                // One that cannot be told does not report, either.
                Ok(()) | Err(_) => waiting.push(pid),
            }
        }
        let deadline = now + PATIENCE;
        self.closings_of_many.push(ClosingAll { ticket, client, deadline, waiting, count: 0 });
        Outcome::Later
    }

    /// A worker closes so many.
    pub(super) fn closing_all(&mut self, pid: i32, ticket: u64, count: u64) {
        let closing = self.closings_of_many.iter_mut().find(|closing| closing.ticket == ticket);
        if let Some(closing) = closing
            && let Some(index) = closing.waiting.iter().position(|waiting| *waiting == pid)
        {
            closing.waiting.swap_remove(index);
            closing.count = closing.count.saturating_add(count);
        }
    }

    /// Answers clients whose workers have reported, or are late.
    pub(super) fn finish_closings_of_many(&mut self, view: &View<'_>, now: Instant) {
        let is_there = |pid: &i32| view.channel_to(*pid).is_some();
        let (finished, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.closings_of_many)
            .into_iter()
            .partition(|closing| !closing.waiting.iter().any(is_there) || closing.deadline <= now);
        self.closings_of_many = rest;
        for ClosingAll { client, waiting, count, .. } in finished {
            let silent: Vec<String> =
                waiting.iter().filter(|pid| is_there(pid)).map(ToString::to_string).collect();
            let mut text =
                format!("{count} connection{} being closed", if count == 1 { " is" } else { "s are" });
            if !silent.is_empty() {
                text += &format!("; no answer within {PATIENCE:?} of process {}", silent.join(", "));
            }
            self.answer(client, &Ok(text.into()));
        }
    }
}
