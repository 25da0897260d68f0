//! Lines of the log of a process that has no file of it: where the supervisor takes them from, and how many.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::set_socket_passcred;

use crate::fleet::sockets::datagram::{self, Datagram};
use crate::time::{Instant, Rate};

/// Lines that a process may have written in a second; a long one counts as several.
const RATE: u64 = 2000;
/// After a rest there may be at once what may come in this time.
const BURST: Duration = Duration::from_secs(2);
/// Bytes that count as one line.
const LINE: usize = 512;

/// Where the lines of a process come from that has no file of the log. Whoever has the other end of it can only have
/// lines appended, and not more than [`RATE`]: what does not get into the socket is lost, and counted there.
#[derive(Debug)]
pub struct LineSource {
    socket: OwnedFd,
    lines: Rate,
}

impl LineSource {
    /// One, and the end for the process.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (socket, theirs) = datagram::pair()?;
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
        let Datagram { size, sender, .. } = match datagram::receive_all(self.socket.as_fd(), bytes, 0) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(None);
            }
            received => received?,
        };
        self.lines.add(1 + (size / LINE) as u64, now);
        match (size, sender) {
            (1.., Some(pid)) => Ok(Some((size, pid))),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
