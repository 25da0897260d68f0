//! The level of the log, which `wshd ctl log-level` changes, and its files: opened anew on SIGUSR1, renamed by their size. A child
//! does that first, as it may wait for a disk. Every worker is sent the new descriptor, and writes into the old file until it
//! has read that: no line is lost in between. Workers of pools with a user of their own do not get them: what they say is taken
//! from a socket, and written here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::role::{Errand, Role};
use super::{Supervisor, spawn};
use crate::fleet::control::{Channel, Command};
use crate::log::{self as sink, Book, Level};
use crate::time::Instant;

/// Lines that are taken from a process before others get their turn.
pub(super) const AT_ONCE: usize = 64;
/// Lines that are taken from a process that has ended.
pub(super) const LAST: usize = 1000;

/// What is done about the files.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// They are to be opened anew once the present child has done so.
    is_wanted: bool,
    /// One could not be renamed, and that has been said.
    is_failing: bool,
}

impl Supervisor {
    /// Opens the files anew.
    pub(super) fn reopen_logs(&mut self) {
        self.open_logs(|book| sink::reopen(book).is_ok());
    }

    /// Renames the files that have become too large.
    pub(super) fn look_after_logs(&mut self) {
        if sink::BOOKS.into_iter().any(sink::is_rotation_due) {
            let is_known = self.maintenance.logs.is_failing;
            self.open_logs(|book| match sink::rotate(book) {
                Ok(_) => true,
                Err(error) => {
                    if !is_known {
                        log::error!("cannot rotate a log file: {error}");
                    }
                    false
                }
            });
        }
    }

    /// Has a child do what may wait for a disk.
    fn open_logs(&mut self, open: impl Fn(Book) -> bool) {
        if self.processes.in_role(Role::Errand(Errand::OpenLogs)).next().is_some() {
            return self.maintenance.logs.is_wanted = true;
        }
        let open_all = |_: &Channel| sink::BOOKS.map(open).iter().all(|is_open| *is_open);
        if let Err(error) = spawn::errand(self, Errand::OpenLogs, open_all) {
            log::error!("cannot reopen the log: cannot fork: {error}; keeping the old file");
        }
    }

    /// The child has ended: opening the files waits for nobody now, unless the child had to.
    pub(super) fn logs_were_opened(&mut self, status: WaitStatus) {
        let is_done = matches!(status, WaitStatus::Exited(_, 0));
        let is_known = std::mem::replace(&mut self.maintenance.logs.is_failing, !is_done);
        let complain = |why: &str| {
            if !is_known {
                log::error!("cannot reopen the log: {why}; keeping the old file");
            }
        };
        match status {
            WaitStatus::Exited(..) => {
                for book in sink::BOOKS {
                    match sink::reopen(book) {
                        Ok(fd) => self.hand_on(book, fd),
                        Err(error) => complain(&error),
                    }
                }
            }
            _ => complain("its file system does not answer"),
        }
        if std::mem::take(&mut self.maintenance.logs.is_wanted) {
            self.reopen_logs();
        }
    }

    /// Changes the least level of all processes, until a reload.
    pub(super) fn set_log_level(&mut self, level: Level) {
        sink::set_level(level);
        for pid in self.processes.with_channel() {
            if let Err(error) = self.processes.command(pid, Command::LogLevel(level), None)
                && error.kind() == io::ErrorKind::WouldBlock
            {
                log::warn!("process {pid} does not read its commands, and keeps its log level");
            }
        }
        self.auxiliaries.renew(&mut self.processes);
    }

    /// Sends a descriptor to all workers, also those that are being replaced and those that wait.
    fn hand_on(&mut self, book: Book, fd: Option<OwnedFd>) {
        let Some(fd) = fd else { return };
        let has_files = |pid: &Pid| self.processes.get(*pid).is_some_and(|process| process.log.is_none());
        for pid in self.processes.with_channel().into_iter().filter(has_files) {
            // Another error: it has gone.
            match self.processes.command(pid, Command::Log(book), Some(fd.as_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    log::warn!("process {pid} does not read its commands, and goes on in the old log file");
                }
                _ => {}
            }
        }
        self.auxiliaries.renew(&mut self.processes);
    }

    /// Writes at most so many lines of a process.
    pub(super) fn read_log(&mut self, pid: Pid, most: usize) {
        let mut bytes = [0; sink::MAX_RELAYED];
        for _ in 0..most {
            let Some(process) = self.processes.get_mut(pid) else { return };
            let Some(source) = process.log.as_mut() else { return };
            let (size, sender) = match source.take(&mut bytes) {
                Ok(Some(line)) => line,
                Ok(None) => return,
                Err(_) => return process.log = None,
            };
            let slot = self.processes.get(Pid::from_raw(sender)).or_else(|| self.processes.get(pid));
            let slot = slot.and_then(|process| process.slot).unwrap_or_default();
            sink::write_relayed(
                bytes.get(..size).unwrap_or_default(),
                &self.name(slot),
                sender.unsigned_abs(),
            );
        }
    }

    /// When there is more to wait for.
    pub(super) fn next_log(&self) -> Option<Instant> {
        self.processes.iter().filter_map(|(_, process)| process.log.as_ref()?.opens()).min()
    }

    /// Time has passed.
    pub(super) fn refill_logs(&mut self, now: Instant) {
        let logs = self.processes.iter_mut().filter_map(|(_, process)| process.log.as_mut());
        logs.for_each(|source| source.refill(now));
    }
}
