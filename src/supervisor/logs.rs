//! The level of the log, which `wshd ctl log-level` changes, and its files: opened anew on SIGUSR1, renamed by their
//! size. A child does that, as it may wait for a disk. Every worker is sent the new descriptor, and writes into the old
//! file until it has read that: no line is lost in between. Workers of pools with a user of their own do not get them:
//! what they say is taken from a socket, and written here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::unistd::Pid;

use super::Supervisor;
use super::processes::Errand;
use crate::clock;
use crate::fleet::sockets::control::Command;
use crate::fleet::sockets::handover::{self, Received};
use crate::log::{self as sink, Level, LogKind};
use crate::time::Instant;

/// Lines that are taken from a process before others get their turn.
pub(super) const AT_ONCE: usize = 64;
/// Lines that are taken from a process that has ended.
pub(super) const LAST: usize = 1000;

/// What is done about the files.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// They are to be opened anew once the present child has opened some.
    is_wanted: bool,
    /// One could not be renamed, and that has been said.
    is_failing: bool,
}

impl Supervisor {
    pub(super) fn reopen_logs(&mut self) {
        self.open_logs("reopen the log", true, sink::reopen);
    }

    /// Renames the files that have become too large.
    pub(super) fn look_after_logs(&mut self) {
        if LogKind::ALL.into_iter().any(sink::is_rotation_due) {
            self.open_logs("rotate a log file", false, sink::rotate);
        }
    }

    /// Has a child do what may wait for a disk. `is_ordered`: it is done once, so that a failure is always said.
    fn open_logs(
        &mut self,
        what: &str,
        is_ordered: bool,
        open: impl Fn(LogKind) -> Result<Option<OwnedFd>, String>,
    ) {
        // What a reload opens may have been renamed before it is in force.
        if self.rolling.is_preparing() || self.is_out(Errand::OpenLogs) {
            return self.maintenance.logs.is_wanted |= is_ordered;
        }
        let is_known = self.maintenance.logs.is_failing && !is_ordered;
        let open_all = |outbox: BorrowedFd<'_>| {
            let (mut kinds, mut opened, mut faults) = (Vec::new(), Vec::new(), Vec::new());
            for kind in LogKind::ALL {
                match open(kind) {
                    Ok(None) => {}
                    Ok(Some(fd)) => {
                        kinds.push((kind, sink::path(kind)));
                        opened.push(fd);
                    }
                    Err(why) => faults.push(why),
                }
            }
            if !is_known {
                let fault = |why: &String| log::error!("cannot {what}: {why}; keeping the old file");
                faults.iter().for_each(fault);
            }
            let fds: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
            handover::send(outbox, &(faults.is_empty(), kinds), &fds)
        };
        let _ = self.send_out(Errand::OpenLogs, open_all); // else the old file is kept
    }

    pub(super) fn logs_were_opened(&mut self, result: Received) {
        let opened = result.open::<(bool, Vec<(LogKind, Option<PathBuf>)>)>();
        let is_done = matches!(opened, Ok(((true, _), _)));
        let is_known = std::mem::replace(&mut self.maintenance.logs.is_failing, !is_done);
        if opened.is_err() && !is_known {
            log::error!("cannot reopen the log: its file system does not answer; keeping the old file");
        }
        let ((_, kinds), fds) = opened.unwrap_or_default();
        for ((kind, path), fd) in kinds.into_iter().zip(fds) {
            if sink::path(kind) != path {
                continue; // a reload has put another log in force
            }
            // All get it, also those that are being replaced and those that wait.
            let mut pids = self.processes.with_channel();
            pids.retain(|pid| self.processes.get(*pid).is_some_and(|process| !process.is_walled));
            let what_else = "it keeps writing to the old log file";
            self.tell_all(pids, Command::Log(kind), Some(fd.as_fd()), what_else);
            if let Err(error) = sink::replace(kind, fd) {
                log::error!("cannot reopen the log: {error}; keeping the old file");
            }
        }
    }

    /// An errand has ended, for which this may have waited.
    pub(super) fn reopen_logs_if_wanted(&mut self) {
        if std::mem::take(&mut self.maintenance.logs.is_wanted) {
            self.reopen_logs();
        }
    }

    /// Changes the least level of all processes, until a reload.
    pub(super) fn set_log_level(&mut self, level: Level) {
        sink::set_level(level);
        let all = self.processes.with_channel();
        self.tell_all(all, Command::LogLevel(level), None, "it keeps its log level");
    }

    fn tell_all(&self, pids: Vec<Pid>, command: Command, fd: Option<BorrowedFd<'_>>, what_else: &str) {
        for pid in pids {
            let told = self.processes.command(pid, command, fd);
            // Another error: it has gone.
            if told.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                log::warn!("process {pid} does not read its commands; {what_else}");
            }
        }
    }

    /// Writes at most so many lines of a process.
    pub(super) fn read_log(&mut self, pid: Pid, most: usize) {
        let (mut bytes, now) = ([0; sink::MAX_RELAYED], clock::now());
        for _ in 0..most {
            let Some(process) = self.processes.get_mut(pid) else { return };
            let Some(source) = process.log.as_mut() else { return };
            let (size, sender) = match source.take(&mut bytes, now) {
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

    /// When there may be lines again of a process that has written too many.
    pub(super) fn next_log(&self, now: Instant) -> Option<Instant> {
        self.processes.iter().filter_map(|(_, process)| process.log.as_ref()?.opens(now)).min()
    }
}
