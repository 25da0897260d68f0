//! The list of all connections: the supervisor knows none of them. Each worker is given a file in memory, writes its
//! part as JSON into it, and says when it has; the parts are put together unread, up to a bound. A worker that does
//! not come to it in time is named, with what it does instead.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::json;

use super::{Control, Number, Outcome};
use crate::ctl::answer::Silent;
use crate::fleet::control::{Channel, Command};
use crate::fleet::scoreboard::{self, State};
use crate::supervisor::Fleet;
use crate::supervisor::policy::slots::Time;

/// How long workers may take; ns.
const PATIENCE: Time = 2_000_000_000;
/// Most bytes of a list.
const MAX_BYTES: usize = 16 << 20;

/// A list that is being written.
pub(super) struct Listing {
    ticket: u64,
    client: Number,
    /// When it is sent as it is.
    pub deadline: Time,
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

impl Fleet {
    /// Has all workers write down their connections.
    pub(super) fn list_connections(&mut self, client: Number) -> Outcome {
        let ticket = self.control.ticket();
        let part = |pid: i32, channel: &Channel| {
            let file: File = memfd_create(c"wshd connections", MFdFlags::MFD_CLOEXEC)?.into();
            match channel.send_command_with(Command::List { ticket }, file.as_fd()) {
                Ok(()) => Ok(Part { pid, file, written: None }),
                // It is gone, and its connections with it.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    Ok(Part { pid, file, written: Some((0, 0)) })
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    Ok(Part { pid, file, written: None })
                }
                Err(error) => Err(error),
            }
        };
        // One that is still loading handlers has no connections, and reads no orders yet.
        let starting = |pid: i32| {
            let mut records = self.scoreboard.slots().iter();
            records.any(|slot| slot.pid.load(Ordering::Relaxed) == pid && slot.state() == State::Starting)
        };
        let channels = self.channels().filter(|(pid, ..)| !starting(*pid));
        let parts: io::Result<Vec<Part>> = channels.map(|(pid, _, channel)| part(pid, channel)).collect();
        match parts {
            Ok(parts) => {
                let deadline = scoreboard::now().saturating_add(PATIENCE);
                self.control.listings.push(Listing { ticket, client, deadline, parts });
                Outcome::Later
            }
            Err(error) => Outcome::Now(Err(format!("connections can not be listed: {error}"))),
        }
    }

    /// Sends the lists that are complete, or have been waited for long enough.
    pub(super) fn finish_listings(&mut self) {
        let now = scoreboard::now();
        let mut index = 0;
        while let Some(listing) = self.control.listings.get(index) {
            let is_there = |pid: i32| self.channels().any(|(known, ..)| known == pid);
            let complete = listing.parts.iter().all(|part| part.written.is_some() || !is_there(part.pid));
            if !complete && listing.deadline > now {
                index += 1;
                continue;
            }
            let listing = self.control.listings.swap_remove(index);
            let client = listing.client;
            let line = self.put_together(listing);
            self.control.send(client, line);
        }
    }

    fn put_together(&self, listing: Listing) -> Vec<u8> {
        let mut line = br#"{"ok":true,"result":{"connections":["#.to_vec();
        let begun = line.len();
        let (mut total_left_out, mut silent) = (0, Vec::new());
        for mut part in listing.parts {
            let Some((listed, left_out)) = part.written else {
                let slot = self.channels().find(|(pid, ..)| *pid == part.pid).map(|(_, slot, _)| slot);
                silent.extend(slot.map(|slot| Silent {
                    worker: self.short_name(slot),
                    pid: part.pid,
                    executes: self.executes(slot, part.pid),
                }));
                continue;
            };
            total_left_out += left_out;
            match part.text(MAX_BYTES.saturating_sub(line.len())) {
                Some(text) if text.is_empty() => {}
                Some(text) => {
                    if line.len() > begun {
                        line.push(b',');
                    }
                    line.extend_from_slice(&text);
                }
                None => total_left_out += listed,
            }
        }
        let silent = json!(silent);
        line.extend_from_slice(
            format!("],\"left_out\":{total_left_out},\"silent\":{silent}}}}}\n").as_bytes(),
        );
        line
    }

    /// All processes that have connections and take orders: pid, slot, channel.
    pub(super) fn channels(&self) -> impl Iterator<Item = (i32, usize, &Channel)> {
        let workers = self.workers.iter().enumerate().filter_map(|(slot, worker)| {
            let worker = worker.as_ref()?;
            Some((worker.pid.as_raw(), slot, worker.control.as_ref()?))
        });
        let replaced = self
            .replaced
            .iter()
            .filter_map(|replaced| Some((replaced.pid.as_raw(), replaced.slot, replaced.control.as_ref()?)));
        workers.chain(replaced)
    }

    /// The slot of a process and the way to it.
    pub(super) fn channel_to(&self, pid: i32) -> Option<(usize, &Channel)> {
        self.channels().find(|(known, ..)| *known == pid).map(|(_, slot, channel)| (slot, channel))
    }
}

impl Part {
    /// What is in the file, unless it is more than `most` or nothing that could be in a line.
    fn text(&mut self, most: usize) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        self.file.rewind().ok()?;
        let most = u64::try_from(most).ok()?;
        let size = (&mut self.file).take(most.saturating_add(1)).read_to_end(&mut text).ok()?;
        (size as u64 <= most && !text.contains(&b'\n')).then_some(text)
    }
}
