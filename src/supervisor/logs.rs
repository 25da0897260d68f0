//! The level of the log, which `wshd ctl log-level` changes, and its files: opened anew on SIGUSR1, renamed by their size.
//! Only the supervisor does that; every worker is sent the new descriptor, and writes into the old file until it has read
//! that: no line is lost in between. Workers of pools with a user of their own do not get them: what they say is taken from a
//! socket, and written here.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::unistd::Pid;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};

use super::Supervisor;
use crate::fleet::control::Command;
use crate::log::{self as sink, Book, Level};
use crate::time::Instant;

/// How often sizes are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Between two times that a process gets room for more lines.
const PAUSE: Duration = Duration::from_millis(100);

/// When the sizes of the files are looked at next.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    look_at: Instant,
    /// By book: a file could not be renamed or opened anew, and that has been said.
    failing: [bool; sink::BOOKS.len()],
}

impl Supervisor {
    /// Opens the files anew.
    pub(super) fn reopen_logs(&mut self) {
        for book in sink::BOOKS {
            match sink::reopen(book) {
                Ok(fd) => self.hand_on(book, fd),
                Err(error) => {
                    log::error!("cannot reopen the log: {error}; keeping the old file")
                }
            }
        }
    }

    /// When sizes are to be looked at next, if at all.
    pub(super) fn next_look_at_logs(&self) -> Option<Instant> {
        (self.generation.config.log.rotation.size != 0).then_some(self.maintenance.sizes.look_at)
    }

    /// Renames the files that have become too large.
    pub(super) fn look_after_logs(&mut self, now: Instant) {
        if self.next_look_at_logs().is_none_or(|at| at > now) {
            return;
        }
        self.maintenance.sizes.look_at = now + LOOK;
        for (index, book) in sink::BOOKS.into_iter().enumerate() {
            let rotated = sink::rotate(book);
            let was_failing = self
                .maintenance
                .sizes
                .failing
                .get_mut(index)
                .map(|failing| std::mem::replace(failing, rotated.is_err()));
            match rotated {
                Ok(fd) => self.hand_on(book, fd),
                Err(_) if was_failing == Some(true) => {}
                Err(error) => log::error!("cannot rotate a log file: {error}"),
            }
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
}

/// Lines that a process may have written in a second, and at once after it was quiet; a long one counts as several.
const RATE: u32 = 2000;
const BURST: u32 = 4000;
/// Bytes that count as one line.
const LINE: usize = 512;
/// Lines that are taken from a process before others get their turn.
const AT_ONCE: usize = 64;
/// Lines that are taken from a process that has ended.
const LAST: usize = 1000;

/// Where the lines of a process come from that has no file of the log. Whoever has the other end of it can only have lines
/// appended, and not more than [`RATE`]: what does not get into the socket is lost, and counted there.
#[derive(Debug)]
pub(super) struct Source {
    socket: OwnedFd,
    /// Lines that may be taken now.
    left: u32,
    /// When that was.
    counted: Instant,
}

impl Source {
    /// One, and the end for the process.
    pub fn pair(now: Instant) -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // The kernel says who has sent a line.
        set_socket_passcred(&socket, true)?;
        Ok((Self { socket, left: BURST, counted: now }, theirs))
    }

    /// Where to wait for lines; not as long as there were too many.
    pub fn interest(&self) -> Option<BorrowedFd<'_>> {
        (self.left > 0).then_some(self.socket.as_fd())
    }

    /// When there may be lines again.
    pub fn opens(&self) -> Option<Instant> {
        (self.left == 0).then(|| self.counted + PAUSE)
    }

    /// Time has passed.
    pub fn refill(&mut self, now: Instant) {
        let passed = now.since(self.counted);
        if passed >= PAUSE {
            let more = u128::from(RATE) * passed.as_millis() / 1000;
            self.left = self.left.saturating_add(u32::try_from(more).unwrap_or(BURST)).min(BURST);
            self.counted = now;
        }
    }

    /// The next line, and the pid of who has sent it. None: there is none now. An error: there will be none.
    fn take(&mut self, bytes: &mut [u8]) -> io::Result<Option<(usize, i32)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let message = match recvmsg(&self.socket, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            message => message?,
        };
        let lines = 1 + message.bytes / LINE;
        self.left = self.left.saturating_sub(u32::try_from(lines).unwrap_or(BURST));
        let sender = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmCredentials(sender) => Some(sender.pid.as_raw_nonzero().get()),
            _ => None,
        });
        match (message.bytes, sender) {
            (1.., Some(pid)) => Ok(Some((message.bytes, pid))),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Supervisor {
    /// Writes what a process has to say.
    pub(super) fn read_log(&mut self, pid: Pid) {
        self.read_lines(pid, AT_ONCE);
    }

    /// The same with what a process has left that has ended.
    pub(super) fn read_last_lines(&mut self, pid: Pid) {
        self.read_lines(pid, LAST);
    }

    fn read_lines(&mut self, pid: Pid, most: usize) {
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

    /// Processes whose lines are waited for, and where.
    pub(super) fn logs_of_others(&self) -> impl Iterator<Item = (Pid, BorrowedFd<'_>)> {
        self.processes.iter().filter_map(|(pid, process)| Some((pid, process.log.as_ref()?.interest()?)))
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
