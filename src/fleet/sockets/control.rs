//! The channel between the supervisor and a worker or auxiliary process: a SOCK_SEQPACKET socket pair, non-blocking on
//! both sides, with one message a datagram, as JSON: both processes are of the same executable. Carries commands, with
//! descriptors where they need some, and reports, never a client's byte. What a worker sends may come from the code of
//! a handler. The end of the channel is a message too: the other process has ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::datagram;
use crate::log::{self, Level, LogKind};
use crate::time::Instant;

/// What the supervisor commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Accept nothing more, close all connections with 1001, exit by the deadline.
    Stop,
    /// Exit now.
    Quit,
    /// Move so many connections to the inbox of another slot.
    Rebalance { to: u16, count: u16 },
    /// Accept nothing more, move all connections to another slot, or to the inbox whose sending end comes with this,
    /// and exit.
    Migrate { to: u16 },
    /// Accept nothing more, and exit when all connections have ended, within the time that their handlers have.
    Drain,
    /// The worker was started to wait, and is to serve from now on.
    Begin,
    /// Fork a child into a slot. With the sending and the receiving end of its inbox, and its end of the channel to the
    /// supervisor.
    Child { slot: u16 },
    /// The descriptor is the sending end of a slot's inbox.
    Tx { slot: u16 },
    /// Adopt what lies in the inbox whose receiving end comes with this: its slot has no process for now.
    TakeUp,
    /// Write this log into the file whose descriptor comes with this. Carried out by [`Channel::recv_command`].
    Log(LogKind),
    /// Write lines of this level and above. Carried out by [`Channel::recv_command`].
    LogLevel(Level),
    /// Write the list of connections, in place of the filter in it, or the bus that of topics, into the file that comes
    /// along. Reports give the ticket back.
    List { ticket: u64 },
    /// Publish the message in the file that comes along.
    Publish { ticket: u64 },
    /// Write what the connections of a handler receive into the socket that comes along (wshd-test(1)); without one, no
    /// more.
    Record {
        handler: u16,
        /// What is in longer messages is not written; bytes.
        longest: u32,
        #[serde(with = "nanos")]
        begun: Instant,
    },
    /// Report [`Report::Alive`]. For auxiliary processes: workers have a heartbeat on the scoreboard.
    Ping,
    /// Close all connections that the filter lets through which is in the file that comes along.
    CloseAll { ticket: u64, code: u16 },
    /// Close a connection.
    Close { ticket: u64, conn: u64, code: u16 },
}

/// An instant as its nanoseconds.
mod nanos {
    use super::*;

    pub fn serialize<S: serde::Serializer>(instant: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(instant.as_nanos())
    }

    pub fn deserialize<'a, D: serde::Deserializer<'a>>(deserializer: D) -> Result<Instant, D::Error> {
        u64::deserialize(deserializer).map(Instant::from_nanos)
    }
}

/// What a worker or an auxiliary process reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// It serves, or is ready as a standby, with so many handlers in service, and so many that did not load or whose
    /// `on_worker_start` failed.
    Ready { loaded: u16, broken: u16 },
    /// An auxiliary process will exit, with the exit code of the server if that is starting, too; why.
    Failed(String),
    /// It crashes, and sends its connections to its slot's inbox.
    Crashed,
    /// It accepts nothing more, and hands its connections over as it was told.
    Leaving,
    /// So many connections or topics are in the file; so many connections are not, as there are too many.
    Listed { ticket: u64, listed: u64, left_out: u64 },
    /// Whether it closes the connection; else there is none that it could close.
    Closing { ticket: u64, begun: bool },
    /// It has published a message to so many connections of this server.
    Published { ticket: u64, subscribers: u64 },
    /// It closes so many connections.
    ClosingAll { ticket: u64, count: u64 },
    /// It was forked by its parent; who it is the kernel says.
    Born,
    /// A spare process has got its connection.
    Taken,
    /// Its handlers use topics.
    Topics,
    /// It cannot take connections, as the scoreboard says. Said again as long as it is so.
    Faulty,
    /// The reply to a ping.
    Alive,
}

/// An auxiliary process is ready; it has no handlers.
pub const AUXILIARY_READY: Report = Report::Ready { loaded: 0, broken: 0 };

/// Bytes of the longest message.
const MESSAGE: usize = 4096;
/// Bytes of the longest reason in one, as JSON.
const REASON: usize = MESSAGE - 64;

/// [`Report::Crashed`] as it is sent, for a signal handler, which can use nothing else of this module.
pub const CRASHED: &[u8] = br#""Crashed""#;

/// One end. Errors of kind `WouldBlock` mean: nothing there yet (or no room); `InvalidData`: a malformed
/// message was read and can be skipped.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// The two ends, the supervisor's first. [supervisor, before fork]
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (ours, theirs) = datagram::pair()?;
        Ok((Channel(ours), Channel(theirs)))
    }

    /// [supervisor]
    pub fn send_command(&self, command: Command) -> io::Result<()> {
        self.send(&command, &[])
    }

    /// [supervisor]
    pub fn send_command_with(&self, command: Command, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send(&command, fds)
    }

    /// The next command and what came with it, pings and those about the log excepted, which are carried out here;
    /// None: the supervisor is gone. [worker, auxiliary process]
    pub fn recv_command(&self) -> io::Result<Option<(Command, Option<OwnedFd>)>> {
        let received = self.recv_command_with(1)?;
        Ok(received.map(|(command, mut fds)| (command, fds.pop())))
    }

    /// The same with up to so many descriptors. [zygote]
    pub fn recv_command_with(&self, fds: usize) -> io::Result<Option<(Command, Vec<OwnedFd>)>> {
        loop {
            let Some((command, mut fds)) = self.recv(fds)? else { return Ok(None) };
            match command {
                Command::LogLevel(level) => log::set_level(level),
                Command::Log(kind) => {
                    let fd = fds.pop().ok_or_else(|| io::Error::other("no descriptor came"));
                    if let Err(error) = fd.and_then(|fd| log::replace(kind, fd)) {
                        ::log::warn!("cannot reopen the log; keeping the old file: {error}");
                    }
                }
                Command::Ping => self.send_report(&Report::Alive)?,
                command => return Ok(Some((command, fds))),
            }
        }
    }

    /// [worker, auxiliary process]
    pub fn send_report(&self, report: &Report) -> io::Result<()> {
        self.send(report, &[])
    }

    /// The next report; None: the process has ended. [supervisor]
    pub fn recv_report(&self) -> io::Result<Option<Report>> {
        Ok(self.recv(0)?.map(|(report, _)| report))
    }

    /// Reports that it is ready, and waits until it is told to begin; false: it is told to leave, or the supervisor has
    /// ended. [auxiliary process]
    pub fn stand_by(&self) -> io::Result<bool> {
        self.send_report(&AUXILIARY_READY)?;
        loop {
            match self.recv_command() {
                Ok(Some((Command::Begin, _))) => return Ok(true),
                Ok(Some((Command::Drain | Command::Stop | Command::Quit, _)) | None) => return Ok(false),
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
                    match poll(&mut fds, PollTimeout::NONE) {
                        Ok(_) | Err(nix::Error::EINTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        datagram::send(self.0.as_fd(), &serde_json::to_vec(message)?, fds)
    }

    fn recv<T: DeserializeOwned>(&self, most_fds: usize) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = [0; MESSAGE + 1]; // one more, to notice what is too long
        let received = match datagram::receive_all(self.0.as_fd(), &mut bytes, most_fds) {
            // Said once when the other process ended without reading all that was sent to it. What it had sent
            // itself is still there.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                datagram::receive_all(self.0.as_fd(), &mut bytes, most_fds)?
            }
            received => received?,
        };
        let message = match received.size {
            0 => return Ok(None),
            1..=MESSAGE => bytes.get(..received.size).and_then(|text| serde_json::from_slice(text).ok()),
            _ => None,
        };
        let message = message.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "sends a malformed message on its channel")
        })?;
        Ok(Some((message, received.fds)))
    }
}

impl From<OwnedFd> for Channel {
    /// An end that came from another process.
    fn from(end: OwnedFd) -> Self {
        Channel(end)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Report {
    /// [`Report::Failed`]; a longer reason is cut off.
    pub fn failed(mut why: String) -> Self {
        while serde_json::to_vec(&why).map_or(0, |text| text.len()) > REASON {
            why = why.chars().take(why.chars().count() * 3 / 4).collect();
        }
        Report::Failed(why)
    }

    /// The ticket of the command that it replies to, if it replies to one.
    pub fn ticket(&self) -> Option<u64> {
        match self {
            Report::Listed { ticket, .. }
            | Report::Published { ticket, .. }
            | Report::Closing { ticket, .. }
            | Report::ClosingAll { ticket, .. } => Some(*ticket),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::MsgFlags;

    use super::*;

    #[test]
    fn commands_and_reports_arrive_as_sent() {
        let (supervisor, worker) = Channel::pair().unwrap();
        supervisor.send_command(Command::Stop).unwrap();
        supervisor.send_command(Command::Quit).unwrap();
        worker.send_report(&Report::Ready { loaded: 0x1234, broken: 7 }).unwrap();
        supervisor.send_command(Command::Rebalance { to: 0x1234, count: 7 }).unwrap();
        for sent in [Command::Stop, Command::Quit, Command::Rebalance { to: 0x1234, count: 7 }] {
            assert!(matches!(worker.recv_command().unwrap(), Some((command, None)) if command == sent));
        }
        assert_eq!(supervisor.recv_report().unwrap(), Some(Report::Ready { loaded: 0x1234, broken: 7 }));
    }

    #[test]
    fn a_reason_is_cut_off_where_a_message_has_no_more_room() {
        let (supervisor, auxiliary) = Channel::pair().unwrap();
        for (why, least) in
            [("no such key".to_owned(), 11), ("x".repeat(10_000), 2500), ("\0".repeat(5000), 400)]
        {
            auxiliary.send_report(&Report::failed(why.clone())).unwrap();
            let Some(Report::Failed(told)) = supervisor.recv_report().unwrap() else { panic!("{why}") };
            assert!(why.starts_with(&told) && told.len() >= least, "{}", told.len());
        }
    }

    #[test]
    fn what_a_signal_handler_sends_is_the_report_of_a_crash() {
        assert_eq!(serde_json::to_vec(&Report::Crashed).unwrap(), CRASHED);
    }

    #[test]
    fn a_descriptor_goes_with_its_order() {
        let (supervisor, worker) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        supervisor.send_command(Command::Stop).unwrap();
        supervisor.send_command_with(Command::Quit, &[file.as_fd(), file.as_fd()]).unwrap();
        supervisor.send_command_with(Command::Child { slot: 7 }, &[file.as_fd(); 3]).unwrap();
        assert!(matches!(worker.recv_command().unwrap(), Some((Command::Stop, None))));
        let Some((Command::Quit, Some(copy))) = worker.recv_command().unwrap() else {
            panic!("no descriptor")
        };
        let Some((Command::Child { slot: 7 }, all)) = worker.recv_command_with(3).unwrap() else {
            panic!("no command")
        };
        assert_eq!(all.len(), 3);
        let inode = |fd: BorrowedFd<'_>| nix::sys::stat::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(copy.as_fd()), inode(file.as_fd()));
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
        worker.send_report(&Report::Crashed).unwrap();
        drop(worker);
        assert_eq!(supervisor.recv_report().unwrap(), Some(Report::Crashed));
        assert_eq!(supervisor.recv_report().unwrap(), None);
    }

    #[test]
    fn the_end_of_the_other_side_comes_after_what_it_sent() {
        let (supervisor, worker) = Channel::pair().unwrap();
        worker.send_report(&Report::Ready { loaded: 1, broken: 0 }).unwrap();
        drop(worker);
        assert!(supervisor.recv_report().unwrap().is_some());
        assert_eq!(supervisor.recv_report().unwrap(), None);
        assert_eq!(supervisor.send_command(Command::Stop).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn nonsense_is_reported_and_passed_over() {
        let (supervisor, worker) = Channel::pair().unwrap();
        let long = [b' '; MESSAGE + 1];
        let deep = [b'['; MESSAGE];
        for junk in
            [&b"R"[..], &long, &deep, b"{\"Ready\":{\"loaded\":65536,\"broken\":0}}", b"\"Stop\"", b"\xff"]
        {
            nix::sys::socket::send(worker.0.as_raw_fd(), junk, MsgFlags::empty()).unwrap();
            assert_eq!(supervisor.recv_report().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        worker.send_report(&Report::Ready { loaded: 1, broken: 0 }).unwrap();
        assert!(supervisor.recv_report().unwrap().is_some());
    }

    #[test]
    fn a_reader_that_never_reads_does_not_block_the_sender() {
        let (supervisor, _worker) = Channel::pair().unwrap();
        let error = (0..100_000).find_map(|_| supervisor.send_command(Command::Stop).err());
        assert_eq!(error.map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
    }
}
