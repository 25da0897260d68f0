//! Lines of the log of a process that has no file of it: where the supervisor takes them from, and how many.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};

use crate::time::{Instant, Rate};

/// Lines that a process may have written in a second; a long one counts as several.
const RATE: u64 = 2000;
/// After a rest there may be at once what may come in this time.
const BURST: Duration = Duration::from_secs(2);
/// Bytes that count as one line.
const LINE: usize = 512;

/// Where the lines of a process come from that has no file of the log. Whoever has the other end of it can only have lines
/// appended, and not more than [`RATE`]: what does not get into the socket is lost, and counted there.
#[derive(Debug)]
pub struct Source {
    socket: OwnedFd,
    lines: Rate,
}

impl Source {
    /// One, and the end for the process.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // The kernel says who has sent a line.
        set_socket_passcred(&socket, true)?;
        Ok((Self { socket, lines: Rate::new(RATE, BURST) }, theirs))
    }

    /// Where to wait for lines; not as long as there were too many.
    pub fn interest(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        self.opens(now).is_none().then_some(self.socket.as_fd())
    }

    /// When there may be lines again, if there were too many.
    pub fn opens(&self, now: Instant) -> Option<Instant> {
        self.lines.opens(now)
    }

    /// The next line, and the pid of who has sent it. None: there is none now. An error: there will be none.
    pub fn take(&mut self, bytes: &mut [u8], now: Instant) -> io::Result<Option<(usize, i32)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let message = match recvmsg(&self.socket, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            message => message?,
        };
        self.lines.add(1 + (message.bytes / LINE) as u64, now);
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
