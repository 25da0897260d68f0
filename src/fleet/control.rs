//! The channel between the supervisor and one worker: a SOCK_SEQPACKET socket pair, one typed message a
//! datagram, non-blocking on both sides. Carries commands, with a descriptor where one needs it, and reports, never a
//! client's byte. The end of the channel is a message too: the other process has ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::datagram;
use crate::log::{self, Level, LogKind};
use crate::time::Instant;

/// What the supervisor commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Accept nothing more, close all connections with 1001, exit by the deadline.
    Stop,
    /// Exit now.
    Quit,
    /// Move so many connections to the inbox of another slot.
    Rebalance {
        /// The other slot.
        to: u16,
        /// How many at most.
        count: u16,
    },
    /// Accept nothing more, move all connections to another slot, or to the inbox whose sending end comes with this, and
    /// exit.
    Migrate {
        /// The other slot, if no descriptor comes.
        to: u16,
    },
    /// Accept nothing more, and exit when all connections have ended, within the time that their handlers have.
    Drain,
    /// The worker was started to wait, and is to serve from now on.
    Begin,
    /// Fork a child into a slot. Sent once for each of its descriptors: the sending end (0) and the receiving end (1) of its
    /// inbox, its end of the channel to the supervisor (2).
    Child {
        /// The slot.
        slot: u16,
        /// Which descriptor it is.
        part: u16,
    },
    /// The descriptor is the sending end of a slot's inbox.
    Tx {
        /// The slot.
        slot: u16,
    },
    /// Adopt what lies in the inbox whose receiving end comes with this: its slot has no process for now.
    TakeUp,
    /// Write this log into the file whose descriptor comes with this. Carried out by [`Channel::recv_command`].
    Log(LogKind),
    /// Write lines of this level and above. Carried out by [`Channel::recv_command`].
    LogLevel(Level),
    /// Write the list of connections, in place of the filter in it, or the bus that of topics, into the file that comes
    /// along.
    List {
        /// To be given back.
        ticket: u64,
    },
    /// Publish the message in the file that comes along.
    Publish {
        /// To be given back.
        ticket: u64,
    },
    /// Write what the connections of a handler receive into the socket that comes along (wshd-test(1)); without one, no
    /// more.
    Record {
        /// Its number.
        handler: u16,
        /// What is in longer messages is not written; bytes.
        longest: u32,
        /// When that began.
        begun: Instant,
    },
    /// Close all connections that the filter lets through which is in the file that comes along.
    CloseAll {
        /// To be given back.
        ticket: u64,
        /// Of the Close frames.
        code: u16,
    },
    /// Close a connection.
    Close {
        /// To be given back.
        ticket: u64,
        /// Its id.
        conn: u64,
        /// Of the Close frame.
        code: u16,
    },
}

/// What a worker reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// It serves, or could if it were not to wait, with so many handlers loaded and so many that could not be.
    Ready {
        /// Handlers in service.
        loaded: u16,
        /// Handlers that did not load, or whose `on_worker_start` failed.
        broken: u16,
    },
    /// It crashes, and sends its connections to its slot's inbox.
    Crashed,
    /// It accepts nothing more, and hands its connections over as it was told.
    Leaving,
    /// It has written its list.
    Listed {
        /// Of the command.
        ticket: u64,
        /// Connections or topics in the file.
        listed: u64,
        /// Connections that are not, as there are too many.
        left_out: u64,
    },
    /// It has been told to close a connection.
    Closing {
        /// Of the command.
        ticket: u64,
        /// Whether it does; else there is none that it could close.
        begun: bool,
    },
    /// It has published a message.
    Published {
        /// Of the command.
        ticket: u64,
        /// Connections of this server that are subscribed to the topic.
        subscribers: u64,
    },
    /// It closes so many connections.
    ClosingAll {
        /// Of the command.
        ticket: u64,
        /// How many.
        count: u64,
    },
    /// It was forked by its parent, and this is its pid.
    Born {
        /// To be checked.
        pid: i32,
    },
    /// A spare process has got its connection.
    Taken,
    /// Its handlers use topics.
    Topics,
    /// It cannot take connections, as the scoreboard says. Said again as long as it is so.
    Faulty,
}

/// What an auxiliary process says of its start, and later to what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It serves as soon as it is told to begin.
    Ready,
    /// It will exit, with the exit code of the server if that is starting, too; why.
    Failed(String),
    /// It has started, and has done what a command asked for: [`Report::Listed`] or [`Report::Published`].
    Done(Report),
}

/// One end. Errors of kind `WouldBlock` mean: nothing there yet (or no room); `InvalidData`: nonsense came,
/// was taken off the channel, and can be passed over.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// The two ends, the supervisor's first. [supervisor, before fork]
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (ours, theirs) = datagram::pair()?;
        Ok((Channel(ours), Channel(theirs)))
    }

    /// Sends a command. [supervisor]
    pub fn send_command(&self, command: Command) -> io::Result<()> {
        self.send(command.message(), None)
    }

    /// Sends a command and a descriptor that goes with it. [supervisor]
    pub fn send_command_with(&self, command: Command, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.send(command.message(), Some(fd))
    }

    /// The next command and what came with it, those about the log excepted, which are carried out here; None: the
    /// supervisor is gone. [worker, auxiliary process]
    pub fn recv_command(&self) -> io::Result<Option<(Command, Option<OwnedFd>)>> {
        loop {
            let Some((message, fd)) = self.recv()? else { return Ok(None) };
            match (Command::read(message), fd) {
                (Some(Command::LogLevel(level)), _) => log::set_level(level),
                (Some(Command::Log(kind)), Some(fd)) => {
                    if let Err(error) = log::replace(kind, fd) {
                        ::log::warn!("cannot reopen the log; keeping the old file: {error}");
                    }
                }
                (Some(Command::Log(_)), None) => {
                    ::log::warn!("cannot reopen the log; keeping the old file: no descriptor came");
                }
                (Some(command), fd) => return Ok(Some((command, fd))),
                (None, _) => return Err(nonsense(message[0])),
            }
        }
    }

    /// Sends a report. [worker]
    pub fn send_report(&self, report: Report) -> io::Result<()> {
        self.send(report.message(), None)
    }

    /// The next report; None: the worker has ended. [supervisor]
    pub fn recv_report(&self) -> io::Result<Option<Report>> {
        let Some((message, _)) = self.recv()? else { return Ok(None) };
        Report::read(message).map(Some).ok_or_else(|| nonsense(message[0]))
    }

    /// Says how the start went; a longer reason is cut off. [auxiliary process]
    pub fn send_start(&self, start: &Start) -> io::Result<()> {
        let mut bytes = match start {
            Start::Ready => vec![b'R'],
            Start::Failed(why) => [b"F", why.as_bytes()].concat(),
            Start::Done(report) => report.message().to_vec(),
        };
        bytes.truncate(REASON);
        datagram::send(self.0.as_fd(), &bytes, &[])
    }

    /// Waits until it is told to begin; false: it is told to leave, or the supervisor has ended. [auxiliary process]
    pub fn wait_for_begin(&self) -> io::Result<bool> {
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

    /// The same; None: the process is gone, or has nothing more to say. [supervisor]
    pub fn recv_start(&self) -> io::Result<Option<Start>> {
        let mut bytes = [0; REASON];
        let (size, _) = datagram::receive(self.0.as_fd(), &mut bytes)?;
        match bytes.get(..size).and_then(<[u8]>::split_first) {
            None => Ok(None),
            Some((b'R', [])) => Ok(Some(Start::Ready)),
            Some((b'F', why)) => Ok(Some(Start::Failed(String::from_utf8_lossy(why).into_owned()))),
            Some((tag @ (b'W' | b'V'), _)) => {
                let message = bytes.get(..size).and_then(|bytes| bytes.try_into().ok());
                let report = message.and_then(Report::read).ok_or_else(|| nonsense(*tag))?;
                Ok(Some(Start::Done(report)))
            }
            Some((tag, _)) => Err(nonsense(*tag)),
        }
    }

    fn send(&self, message: Message, with: Option<BorrowedFd<'_>>) -> io::Result<()> {
        datagram::send(self.0.as_fd(), &message, with.as_slice())
    }

    fn recv(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        match self.recv_once() {
            // Said once when the other process ended without reading all that was sent to it. What it had sent
            // itself is still there.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.recv_once(),
            received => received,
        }
    }

    fn recv_once(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        let mut bytes = [0; size_of::<Message>() + 1]; // one more, to notice what is too long
        let (size, fd) = datagram::receive(self.0.as_fd(), &mut bytes)?;
        match size {
            0 => Ok(None),
            size => match bytes.get(..size).and_then(|bytes| bytes.try_into().ok()) {
                Some(message) => Ok(Some((message, fd))),
                None => Err(nonsense(bytes[0])),
            },
        }
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

impl Command {
    fn message(self) -> Message {
        match self {
            Command::Stop => message(b'S', [0; 3]),
            Command::Quit => message(b'Q', [0; 3]),
            Command::Migrate { to } => message(b'H', [to.into(), 0, 0]),
            Command::Drain => message(b'D', [0; 3]),
            Command::Begin => message(b'B', [0; 3]),
            Command::Tx { slot } => message(b'I', [slot.into(), 0, 0]),
            Command::TakeUp => message(b'U', [0; 3]),
            Command::Log(kind) => message(b'L', [kind as u64, 0, 0]),
            Command::LogLevel(level) => message(b'G', [level as u64, 0, 0]),
            Command::CloseAll { ticket, code } => message(b'A', [ticket, code.into(), 0]),
            Command::Child { slot, part } => message(b'P', [slot.into(), part.into(), 0]),
            Command::Rebalance { to, count } => message(b'M', [to.into(), count.into(), 0]),
            Command::List { ticket } => message(b'W', [ticket, 0, 0]),
            Command::Record { handler, longest, begun } => {
                message(b'R', [handler.into(), longest.into(), begun.as_nanos()])
            }
            Command::Publish { ticket } => message(b'V', [ticket, 0, 0]),
            Command::Close { ticket, conn, code } => message(b'X', [ticket, conn, code.into()]),
        }
    }

    fn read(message: Message) -> Option<Self> {
        let [first, second, third] = numbers(&message);
        Some(match message[0] {
            b'S' => Command::Stop,
            b'Q' => Command::Quit,
            b'H' => Command::Migrate { to: first as u16 },
            b'D' => Command::Drain,
            b'B' => Command::Begin,
            b'I' => Command::Tx { slot: first as u16 },
            b'U' => Command::TakeUp,
            b'L' => Command::Log(LogKind::from_number(first)?),
            b'G' => Command::LogLevel(Level::from_number(first)?),
            b'A' => Command::CloseAll { ticket: first, code: second as u16 },
            b'P' => Command::Child { slot: first as u16, part: second as u16 },
            b'M' => Command::Rebalance { to: first as u16, count: second as u16 },
            b'W' => Command::List { ticket: first },
            b'R' => Command::Record {
                handler: first as u16,
                longest: second as u32,
                begun: Instant::from_nanos(third),
            },
            b'V' => Command::Publish { ticket: first },
            b'X' => Command::Close { ticket: first, conn: second, code: third as u16 },
            _ => return None,
        })
    }
}

impl Report {
    fn message(self) -> Message {
        match self {
            Report::Ready { loaded, broken } => message(b'R', [loaded.into(), broken.into(), 0]),
            Report::Crashed => CRASHED,
            Report::Leaving => message(b'L', [0; 3]),
            Report::Listed { ticket, listed, left_out } => message(b'W', [ticket, listed, left_out]),
            Report::Published { ticket, subscribers } => message(b'V', [ticket, subscribers, 0]),
            Report::Closing { ticket, begun } => message(b'X', [ticket, begun.into(), 0]),
            Report::ClosingAll { ticket, count } => message(b'A', [ticket, count, 0]),
            Report::Born { pid } => message(b'B', [u64::from(pid.unsigned_abs()), 0, 0]),
            Report::Taken => message(b'T', [0; 3]),
            Report::Faulty => message(b'F', [0; 3]),
            Report::Topics => message(b'P', [0; 3]),
        }
    }

    /// The ticket of the command that it replies to, if it replies to one.
    pub fn ticket(self) -> Option<u64> {
        match self {
            Report::Listed { ticket, .. }
            | Report::Published { ticket, .. }
            | Report::Closing { ticket, .. }
            | Report::ClosingAll { ticket, .. } => Some(ticket),
            _ => None,
        }
    }

    fn read(message: Message) -> Option<Self> {
        let [first, second, third] = numbers(&message);
        Some(match message[0] {
            b'R' => Report::Ready { loaded: first as u16, broken: second as u16 },
            b'C' => Report::Crashed,
            b'L' => Report::Leaving,
            b'W' => Report::Listed { ticket: first, listed: second, left_out: third },
            b'V' => Report::Published { ticket: first, subscribers: second },
            b'X' => Report::Closing { ticket: first, begun: second != 0 },
            b'A' => Report::ClosingAll { ticket: first, count: second },
            b'B' => Report::Born { pid: first as i32 },
            b'T' => Report::Taken,
            b'F' => Report::Faulty,
            b'P' => Report::Topics,
            _ => return None,
        })
    }
}

/// The longest [`Start`].
const REASON: usize = 4096;

/// A tag, padded, and three numbers in native byte order.
type Message = [u8; 32];

/// [`Report::Crashed`] as it is sent, for a signal handler, which can use nothing else of this module.
pub const CRASHED: Message = message(b'C', [0; 3]);

const fn message(tag: u8, numbers: [u64; 3]) -> Message {
    let mut message = [0; 32];
    let (head, places) = message.as_chunks_mut::<8>().0.split_at_mut(1);
    head[0][0] = tag;
    let mut index = 0;
    while index < 3 {
        places[index] = numbers[index].to_ne_bytes();
        index += 1;
    }
    message
}

fn numbers(message: &Message) -> [u64; 3] {
    let [_, places @ ..] = message.as_chunks::<8>().0 else { return [0; 3] };
    std::array::from_fn(|index| places.get(index).map_or(0, |bytes| u64::from_ne_bytes(*bytes)))
}

fn nonsense(tag: u8) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("sends a control message of unknown kind {tag:#04x}"))
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
        worker.send_report(Report::Ready { loaded: 0x1234, broken: 7 }).unwrap();
        supervisor.send_command(Command::Rebalance { to: 0x1234, count: 7 }).unwrap();
        for sent in [Command::Stop, Command::Quit, Command::Rebalance { to: 0x1234, count: 7 }] {
            assert!(matches!(worker.recv_command().unwrap(), Some((command, None)) if command == sent));
        }
        assert_eq!(supervisor.recv_report().unwrap(), Some(Report::Ready { loaded: 0x1234, broken: 7 }));
    }

    #[test]
    fn the_start_of_an_auxiliary_process_is_told_with_its_reason() {
        let (supervisor, auxiliary) = Channel::pair().unwrap();
        for start in [Start::Ready, Start::Failed("no such key".to_owned())] {
            auxiliary.send_start(&start).unwrap();
            assert_eq!(supervisor.recv_start().unwrap(), Some(start));
        }
        auxiliary.send_start(&Start::Failed("x".repeat(10_000))).unwrap();
        assert_eq!(supervisor.recv_start().unwrap(), Some(Start::Failed("x".repeat(REASON - 1))));
        let done = Report::Published { ticket: 7, subscribers: 1 << 40 };
        auxiliary.send_report(done).unwrap();
        assert_eq!(supervisor.recv_start().unwrap(), Some(Start::Done(done)));
        auxiliary.send_report(Report::Crashed).unwrap();
        assert_eq!(supervisor.recv_start().unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(auxiliary);
        assert_eq!(supervisor.recv_start().unwrap(), None);
    }

    #[test]
    fn a_descriptor_goes_with_its_order() {
        let (supervisor, worker) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        supervisor.send_command(Command::Stop).unwrap();
        supervisor.send_command_with(Command::Quit, file.as_fd()).unwrap();
        assert!(matches!(worker.recv_command().unwrap(), Some((Command::Stop, None))));
        let Some((Command::Quit, Some(copy))) = worker.recv_command().unwrap() else {
            panic!("no descriptor")
        };
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
        for junk in [&b"R"[..], &[b'R'; 33], &[b'Z'; 32]] {
            nix::sys::socket::send(worker.0.as_raw_fd(), junk, MsgFlags::empty()).unwrap();
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
