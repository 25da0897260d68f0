//! The files of the logs: opened anew on SIGUSR1, renamed by their size. Only the supervisor does that; every worker
//! is sent the new descriptor, and writes into the old file until it has read that: no line is lost in between.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::Fleet;
use super::policy::slots as plan;
use crate::fleet::control::Command;
use crate::fleet::scoreboard;
use crate::log::{self as sink, Book};

/// How often (ns) sizes are looked at.
const LOOK: plan::Time = 1_000_000_000;

/// When the sizes of the files are looked at next.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    look_at: plan::Time,
    /// By book: a file could not be renamed or opened anew, and that has been said.
    failing: [bool; sink::BOOKS.len()],
}

impl Fleet {
    /// Opens the files anew.
    pub(super) fn reopen_logs(&mut self) {
        for book in sink::BOOKS {
            match sink::reopen(book) {
                Ok(fd) => self.hand_on(book, fd),
                Err(error) => {
                    log::error!("the log can not be opened anew: {error}; it goes on in the old place")
                }
            }
        }
    }

    /// When sizes are to be looked at next, if at all.
    pub(super) fn next_look_at_logs(&self) -> Option<plan::Time> {
        (self.config.log.rotation.size != 0).then_some(self.sizes.look_at)
    }

    /// Renames the files that have become too large.
    pub(super) fn look_after_logs(&mut self) {
        let now = scoreboard::now();
        if self.next_look_at_logs().is_none_or(|at| at > now) {
            return;
        }
        self.sizes.look_at = now.saturating_add(LOOK);
        for (index, book) in sink::BOOKS.into_iter().enumerate() {
            let rotated = sink::rotate(book);
            let was_failing =
                self.sizes.failing.get_mut(index).map(|failing| std::mem::replace(failing, rotated.is_err()));
            match rotated {
                Ok(fd) => self.hand_on(book, fd),
                Err(_) if was_failing == Some(true) => {}
                Err(error) => log::error!("a log file has become too large, but can not be renamed: {error}"),
            }
        }
    }

    /// Sends a descriptor to all workers, also those that are being replaced and those that wait.
    fn hand_on(&mut self, book: Book, fd: Option<OwnedFd>) {
        let Some(fd) = fd else { return };
        let workers = self.workers.iter().flatten().filter_map(|worker| worker.control.as_ref());
        let replaced = self.replaced.iter().filter_map(|replaced| replaced.control.as_ref());
        let waiting = self.roll.channels().chain(self.children.channels());
        for channel in workers.chain(replaced).chain(waiting) {
            // Another error: it has gone.
            match channel.send_command_with(Command::Log(book), fd.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    log::warn!("a worker does not read its orders, and goes on in the old log file");
                }
                _ => {}
            }
        }
        // The process that serves metrics takes no orders, and another one inherits the new file.
        self.metrics.start_anew();
    }
}
