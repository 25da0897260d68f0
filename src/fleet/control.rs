//! The channel between the supervisor and one worker: a SOCK_SEQPACKET socket pair, one typed message a
//! datagram, non-blocking on both sides. Carries orders and reports, never a client's byte. The end of the
//! channel is a message too: the other process is gone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

/// What the supervisor orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Accept nothing more, close all connections with 1001, leave by the deadline.
    Stop,
    /// Leave now.
    Quit,
    /// Move so many connections to the inbox of another slot.
    Shed {
        /// The other slot.
        to: u16,
        /// How many at most.
        count: u16,
    },
    /// Hand all connections over to the process that replaces this one, and leave.
    HandOver,
}

/// What a worker reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// It accepts connections, with so many handlers loaded and so many that could not be.
    Ready {
        /// Handlers in service.
        loaded: u16,
        /// Handlers that did not load, or whose `on_worker_start` failed.
        broken: u16,
    },
    /// It is going down, and sends its connections to its slot's inbox.
    Crashed,
    /// It leaves its slot to another process, as it was told, and hands its connections over.
    Leaving,
}

/// One end. Errors of kind `WouldBlock` mean: nothing there yet (or no room); `InvalidData`: nonsense came,
/// was taken off the channel, and can be passed over.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// The two ends, the supervisor's first. [supervisor, before fork]
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Channel(ours), Channel(theirs)))
    }

    /// Sends an order. [supervisor]
    pub fn send_command(&self, command: Command) -> io::Result<()> {
        self.send(match command {
            Command::Stop => [b'S', 0, 0, 0, 0],
            Command::Quit => [b'Q', 0, 0, 0, 0],
            Command::HandOver => [b'H', 0, 0, 0, 0],
            Command::Shed { to, count } => numbers(b'M', to, count),
        })
    }

    /// The next order; None: the supervisor is gone. [worker]
    pub fn recv_command(&self) -> io::Result<Option<Command>> {
        match self.recv()? {
            None => Ok(None),
            Some([b'S', ..]) => Ok(Some(Command::Stop)),
            Some([b'Q', ..]) => Ok(Some(Command::Quit)),
            Some([b'H', ..]) => Ok(Some(Command::HandOver)),
            Some([b'M', a, b, c, d]) => {
                Ok(Some(Command::Shed { to: u16::from_le_bytes([a, b]), count: u16::from_le_bytes([c, d]) }))
            }
            Some([tag, ..]) => Err(nonsense(tag)),
        }
    }

    /// Sends a report. [worker]
    pub fn send_report(&self, report: Report) -> io::Result<()> {
        self.send(match report {
            Report::Ready { loaded, broken } => numbers(b'R', loaded, broken),
            Report::Crashed => CRASHED,
            Report::Leaving => [b'L', 0, 0, 0, 0],
        })
    }

    /// The next report; None: the worker is gone. [supervisor]
    pub fn recv_report(&self) -> io::Result<Option<Report>> {
        match self.recv()? {
            None => Ok(None),
            Some(CRASHED) => Ok(Some(Report::Crashed)),
            Some([b'L', ..]) => Ok(Some(Report::Leaving)),
            Some([b'R', a, b, c, d]) => Ok(Some(Report::Ready {
                loaded: u16::from_le_bytes([a, b]),
                broken: u16::from_le_bytes([c, d]),
            })),
            Some([tag, ..]) => Err(nonsense(tag)),
        }
    }

    fn send(&self, message: Message) -> io::Result<()> {
        send(self.0.as_raw_fd(), &message, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    fn recv(&self) -> io::Result<Option<Message>> {
        let mut message = [0; size_of::<Message>() + 1]; // one more, to notice what is too long
        let mut received = recv(self.0.as_raw_fd(), &mut message, MsgFlags::empty());
        if received == Err(nix::Error::ECONNRESET) {
            // Said once when the other process ended without reading all that was sent to it. What it had sent
            // itself is still there.
            received = recv(self.0.as_raw_fd(), &mut message, MsgFlags::empty());
        }
        match received {
            Ok(0) | Err(nix::Error::ECONNRESET) => Ok(None),
            Ok(size) => match message[..size].try_into() {
                Ok(message) => Ok(Some(message)),
                Err(_) => Err(nonsense(message[0])),
            },
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A tag and two numbers, little-endian.
type Message = [u8; 5];

/// [`Report::Crashed`] as it is sent, for a signal handler, which can use nothing else of this module.
pub const CRASHED: [u8; 5] = [b'C', 0, 0, 0, 0];

fn numbers(tag: u8, first: u16, second: u16) -> Message {
    let ([a, b], [c, d]) = (first.to_le_bytes(), second.to_le_bytes());
    [tag, a, b, c, d]
}

fn nonsense(tag: u8) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("control message of unknown kind {tag:#04x}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_reports_arrive_as_sent() {
        let (supervisor, worker) = Channel::pair().unwrap();
        supervisor.send_command(Command::Stop).unwrap();
        supervisor.send_command(Command::Quit).unwrap();
        worker.send_report(Report::Ready { loaded: 0x1234, broken: 7 }).unwrap();
        assert_eq!(worker.recv_command().unwrap(), Some(Command::Stop));
        assert_eq!(worker.recv_command().unwrap(), Some(Command::Quit));
        assert_eq!(supervisor.recv_report().unwrap(), Some(Report::Ready { loaded: 0x1234, broken: 7 }));
    }

    #[test]
    fn an_empty_channel_would_block_and_does_not_wait() {
        let (supervisor, worker) = Channel::pair().unwrap();
        assert_eq!(supervisor.recv_report().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(worker.recv_command().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_report_is_not_lost_with_a_worker_that_left_an_order_unread() {
        let (supervisor, worker) = Channel::pair().unwrap();
        supervisor.send_command(Command::Stop).unwrap();
        worker.send_report(Report::Crashed).unwrap();
        drop(worker);
        assert_eq!(supervisor.recv_report().unwrap(), Some(Report::Crashed));
        assert_eq!(supervisor.recv_report().unwrap(), None);
    }

    #[test]
    fn the_end_of_the_other_side_comes_after_what_it_sent() {
        let (supervisor, worker) = Channel::pair().unwrap();
        worker.send_report(Report::Ready { loaded: 1, broken: 0 }).unwrap();
        drop(worker);
        assert!(supervisor.recv_report().unwrap().is_some());
        assert_eq!(supervisor.recv_report().unwrap(), None);
        assert_eq!(supervisor.send_command(Command::Stop).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn nonsense_is_reported_and_passed_over() {
        let (supervisor, worker) = Channel::pair().unwrap();
        for junk in [&b"R"[..], b"Rtoolong", b"Zabcd"] {
            send(worker.0.as_raw_fd(), junk, MsgFlags::empty()).unwrap();
            assert_eq!(supervisor.recv_report().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        worker.send_report(Report::Ready { loaded: 1, broken: 0 }).unwrap();
        assert!(supervisor.recv_report().unwrap().is_some());
    }

    #[test]
    fn a_reader_that_never_reads_does_not_block_the_sender() {
        let (supervisor, _worker) = Channel::pair().unwrap();
        let error = (0..100_000).find_map(|_| supervisor.send_command(Command::Stop).err());
        assert_eq!(error.map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
    }
}
