//! The list of all connections, of which the supervisor knows none. Each worker is given a file in memory, writes its
//! part into it as JSON, and reports when it has; the parts are joined, up to a bound, if they are JSON. A worker that does not
//! reply in time is named, with the callback that it is in.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::de::IgnoredAny;
use serde_json::json;

use super::view::View;
use super::{Control, Number, Outcome};
use crate::ctl::answer::Silent;
use crate::ctl::filter::Filter;
use crate::fleet::control::{Channel, Command};
use crate::time::Instant;

/// How long workers may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Maximum size of a list.
const MAX_BYTES: usize = 16 << 20;

/// A list that is being written.
pub(super) struct Listing {
    ticket: u64,
    client: Number,
    /// When it is sent as far as it is complete.
    pub deadline: Instant,
    parts: Vec<Part>,
}

/// What one worker writes.
struct Part {
    pid: i32,
    file: File,
    /// Connections that are in the file, and that are not; none until it has said so.
    written: Option<(u64, u64)>,
}

impl Control {
    /// A worker has written its part.
    pub(super) fn listed(&mut self, pid: i32, ticket: u64, listed: u64, left_out: u64) {
        let listing = self.listings.iter_mut().find(|listing| listing.ticket == ticket);
        let part = listing.and_then(|listing| listing.parts.iter_mut().find(|part| part.pid == pid));
        if let Some(part) = part {
            part.written = Some((listed, left_out));
        }
    }
}

impl Control {
    /// Has all workers write down their connections, those that the filter lets through.
    pub(super) fn list_connections(
        &mut self,
        client: Number,
        filter: &Filter,
        view: &View<'_>,
        now: Instant,
    ) -> Outcome {
        let ticket = self.ticket();
        let part = |pid: i32, channel: &Channel| {
            let file = with_filter(filter)?;
            match channel.send_command_with(Command::List { ticket }, file.as_fd()) {
                Ok(()) => Ok(Part { pid, file, written: None }),
                // It is gone, and its connections with it.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    file.set_len(0)?;
                    Ok(Part { pid, file, written: Some((0, 0)) })
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    Ok(Part { pid, file, written: None })
                }
                Err(error) => Err(error),
            }
        };
        let channels = view.channels().filter(|(pid, ..)| !view.is_starting(*pid));
        let parts: io::Result<Vec<Part>> = channels.map(|(pid, _, channel)| part(pid, channel)).collect();
        match parts {
            Ok(parts) => {
                self.listings.push(Listing { ticket, client, deadline: now + PATIENCE, parts });
                Outcome::Later
            }
            Err(error) => Outcome::Answer(Err(format!("cannot list connections: {error}"))),
        }
    }

    /// Sends the lists that are complete, or have been waited for long enough.
    pub(super) fn finish_listings(&mut self, view: &View<'_>, now: Instant) {
        let is_there = |pid: i32| view.channels().any(|(known, ..)| known == pid);
        let is_complete = |listing: &Listing| {
            listing.parts.iter().all(|part| part.written.is_some() || !is_there(part.pid))
        };
        let (finished, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.listings)
            .into_iter()
            .partition(|listing| is_complete(listing) || listing.deadline <= now);
        self.listings = rest;
        for listing in finished {
            let client = listing.client;
            self.send(client, listing.put_together(view, now));
        }
    }
}

impl Listing {
    /// The answer, from the parts as they are.
    fn put_together(self, view: &View<'_>, now: Instant) -> Vec<u8> {
        let mut line = br#"{"ok":true,"result":{"connections":["#.to_vec();
        let begun = line.len();
        let (mut total_left_out, mut silent) = (0, Vec::new());
        for mut part in self.parts {
            let Some((listed, left_out)) = part.written else {
                silent.extend(view.channel_to(part.pid).map(|(slot, _)| Silent {
                    worker: view.short_name(slot),
                    pid: part.pid,
                    executes: view.executes(slot, part.pid, now),
                }));
                continue;
            };
            total_left_out = u64::saturating_add(total_left_out, left_out);
            match part.text(MAX_BYTES.saturating_sub(line.len())) {
                Some(text) if text.is_empty() => {}
                Some(text) => {
                    if line.len() > begun {
                        line.push(b',');
                    }
                    line.extend_from_slice(&text);
                }
                None => total_left_out = total_left_out.saturating_add(listed),
            }
        }
        let silent = json!(silent);
        line.extend_from_slice(
            format!("],\"left_out\":{total_left_out},\"silent\":{silent}}}}}\n").as_bytes(),
        );
        line
    }
}

impl Part {
    /// What is in the file, unless it is more than `most` or nothing that could be in a line.
    fn text(&mut self, most: usize) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        self.file.rewind().ok()?;
        let most = u64::try_from(most).ok()?;
        let size = (&mut self.file).take(most.saturating_add(1)).read_to_end(&mut text).ok()?;
        // A worker can write anything.
        let is_list = || serde_json::from_slice::<IgnoredAny>(&[b"[", &text[..], b"]"].concat()).is_ok();
        (size as u64 <= most && !text.contains(&b'\n') && is_list()).then_some(text)
    }
}

/// A file in memory for a worker, with a filter in it.
pub(super) fn with_filter(filter: &Filter) -> io::Result<File> {
    let file: File = memfd_create(c"wshd connections", MFdFlags::MFD_CLOEXEC)?.into();
    serde_json::to_writer(&file, filter)?;
    Ok(file)
}
