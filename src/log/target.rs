//! Where log lines go: a descriptor, or the socket of a log daemon. Never blocks and keeps no buffer: a line that
//! cannot be written at once is lost, and the caller learns it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};

use super::relay::Relay;

/// Maximum bytes of a line, so that what a peer sends cannot fill a disk at once.
const LINE: usize = 8 * 1024;
/// Maximum bytes of a line in a pipe: up to this size, a write is atomic (pipe(7)).
const PIPE_LINE: usize = libc::PIPE_BUF;

/// An open target.
pub enum Target {
    /// A file, a pipe, a terminal, or a stream socket.
    Stream(Stream),
    /// A log daemon.
    Daemon(Daemon),
    /// The supervisor, which writes the lines on behalf of this process.
    Relay(Relay),
}

/// A descriptor that lines are written to.
pub struct Stream {
    file: File,
    kind: Kind,
    /// The last line was written in part.
    torn: AtomicBool,
}

/// A datagram socket connected to a log daemon.
pub struct Daemon {
    socket: UnixDatagram,
    path: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Does not block: a regular file, or a terminal with O_NONBLOCK.
    Plain,
    /// A pipe with O_NONBLOCK.
    Pipe,
    /// A pipe or terminal that blocks: polled before each write.
    Blocking,
    Socket,
}

impl Target {
    /// Standard error.
    pub fn stderr() -> io::Result<Self> {
        let stderr = io::stderr();
        let kind = kind_of(stderr.as_fd())?;
        if kind == SFlag::S_IFIFO || kind == SFlag::S_IFCHR {
            // O_NONBLOCK belongs to the open file description, which other processes may share: use a new one for the
            // same pipe or terminal. Opening fails if it belongs to another user.
            if let Ok(file) = open(Path::new("/proc/self/fd/2")) {
                return Self::from_fd(file.into());
            }
        }
        Self::from_fd(stderr.as_fd().try_clone_to_owned()?)
    }

    /// A file to append to; created if it does not exist.
    pub fn file(path: &Path) -> io::Result<Self> {
        Self::from_fd(open(path)?.into())
    }

    /// An open file, pipe, terminal or stream socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        let kind = match kind_of(fd.as_fd())? {
            SFlag::S_IFSOCK => Kind::Socket,
            SFlag::S_IFIFO | SFlag::S_IFCHR if !flags.contains(OFlag::O_NONBLOCK) => Kind::Blocking,
            SFlag::S_IFIFO => Kind::Pipe,
            _ => Kind::Plain,
        };
        Ok(Self::Stream(Stream { file: fd.into(), kind, torn: AtomicBool::new(false) }))
    }

    /// The socket of a log daemon; `connected`: another process has connected it.
    pub fn daemon(path: &Path, connected: Option<OwnedFd>) -> io::Result<Self> {
        let connect = || {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.connect(path)?;
            Ok::<_, io::Error>(socket)
        };
        let socket = connected.map_or_else(connect, |socket| Ok(socket.into()))?;
        Ok(Self::Daemon(Daemon { socket, path: path.to_owned() }))
    }

    /// The descriptor, to be sent to another process.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(stream) => stream.file.as_fd(),
            Self::Daemon(daemon) => daemon.socket.as_fd(),
            Self::Relay(relay) => relay.as_fd(),
        }
    }

    /// The file of a [`Stream`].
    pub fn file_of(&self) -> Option<&File> {
        match self {
            Self::Stream(stream) => Some(&stream.file),
            Self::Daemon(..) | Self::Relay(..) => None,
        }
    }

    /// Maximum bytes of a line.
    pub fn longest_line(&self) -> usize {
        match self {
            Self::Stream(Stream { kind: Kind::Pipe | Kind::Blocking, .. }) => PIPE_LINE,
            _ => LINE,
        }
    }
}

impl Daemon {
    /// Connects to a daemon that was restarted. All processes share the socket: it suffices that one can reach its
    /// path.
    pub fn reconnect(&self) -> io::Result<()> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        self.socket.connect(&self.path).map_err(named)
    }

    /// Sends one datagram; false: lost.
    pub fn send(&self, bytes: &[u8]) -> bool {
        match self.socket.send(bytes) {
            Ok(_) => true,
            Err(error) if is_gone(&error) => self.reconnect().is_ok() && self.socket.send(bytes).is_ok(),
            Err(_) => false,
        }
    }
}

impl Stream {
    /// Writes whole lines; false: some of it is lost.
    pub fn write(&self, bytes: &[u8]) -> bool {
        // Ends a line that was written in part.
        let whole = match self.torn.load(Ordering::Relaxed) {
            true => &[b"\n", bytes].concat(),
            false => bytes,
        };
        match self.write_once(whole) {
            Ok(taken) if taken == whole.len() => {
                self.torn.store(false, Ordering::Relaxed);
                true
            }
            Ok(0) | Err(_) => false,
            Ok(_) => {
                self.torn.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    fn write_once(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.kind {
            Kind::Plain | Kind::Pipe => (&self.file).write(bytes),
            // A pipe that is writable takes PIPE_BUF bytes.
            Kind::Blocking if has_room(self.file.as_fd()) => (&self.file).write(bytes),
            Kind::Blocking => Ok(0),
            Kind::Socket => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                Ok(send(self.file.as_raw_fd(), bytes, flags)?)
            }
        }
    }
}

/// Whether standard error is a stream of systemd's journal: JOURNAL_STREAM names its device and inode
/// (systemd.exec(5)).
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = fstat(io::stderr().as_fd());
    stderr.is_ok_and(|stderr| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// Whether the daemon has closed its socket or shut down its reading side.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, NotConnected};
    matches!(error.kind(), ConnectionRefused | NotConnected | BrokenPipe)
}

fn has_room(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(1)
}

fn kind_of(fd: BorrowedFd<'_>) -> io::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT)
}

fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().append(true).create(true).custom_flags(flags).open(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use std::net::Shutdown;

    use super::*;

    impl Target {
        fn write(&self, bytes: &[u8]) -> bool {
            match self {
                Target::Stream(stream) => stream.write(bytes),
                Target::Daemon(daemon) => daemon.send(bytes),
                Target::Relay(_) => unreachable!(),
            }
        }
    }

    #[test]
    fn a_full_pipe_loses_whole_lines_and_does_not_block() {
        let (mut reader, writer) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let target = Target::file(Path::new(&path)).unwrap();
        drop(writer);
        let line = [[b'x'; PIPE_LINE - 1].as_slice(), b"\n"].concat();
        assert_eq!(target.longest_line(), PIPE_LINE);
        let taken = (0..1000).take_while(|_| target.write(&line)).count();
        assert!(taken > 0 && taken < 1000);
        assert!(!target.write(b"lost\n"));
        drop(target);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), taken * PIPE_LINE);
    }

    #[test]
    fn a_blocking_pipe_is_polled_first() {
        let (mut reader, writer) = io::pipe().unwrap();
        let target = Target::from_fd(writer.into()).unwrap();
        let taken = (0..1000).take_while(|_| target.write(&[b'x'; PIPE_LINE])).count();
        assert!(taken > 0 && taken < 1000);
        reader.read_exact(&mut vec![0; PIPE_LINE]).unwrap();
        assert!(target.write(b"again\n"));
    }

    #[test]
    fn a_line_after_a_torn_one_starts_on_a_new_line() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let target = Target::from_fd(ours.into()).unwrap();
        let line = [[b'x'; LINE - 1].as_slice(), b"\n"].concat();
        let whole = (0..10_000).take_while(|_| target.write(&line)).count();
        let Target::Stream(stream) = &target else { unreachable!() };
        // The kernel may accept part of the last line.
        let torn = stream.torn.load(Ordering::Relaxed);
        theirs.read_exact(&mut vec![0; whole * LINE]).unwrap();
        assert!(target.write(b"next\n"));
        drop(target);
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(if torn { b"x\nnext\n" } else { b"next\n" }));
        assert_eq!(rest.iter().filter(|byte| **byte == b'\n').count(), if torn { 2 } else { 1 });
    }

    #[test]
    fn a_full_device_loses_lines() {
        let target = Target::file(Path::new("/dev/full")).unwrap();
        assert!(!target.write(b"lost\n"));
    }

    #[test]
    fn a_restarted_daemon_is_connected_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(Target::daemon(&path, None).is_err());
        let daemon = UnixDatagram::bind(&path).unwrap();
        let target = Target::daemon(&path, None).unwrap();
        let mut buffer = [0; 16];
        assert!(target.write(b"one"));
        assert_eq!(daemon.recv(&mut buffer).unwrap(), 3);
        // Dropping it is not enough: a process that another test forked may hold the socket, too.
        daemon.shutdown(Shutdown::Both).unwrap();
        assert!(!target.write(b"lost"));
        std::fs::remove_file(&path).unwrap();
        let daemon = UnixDatagram::bind(&path).unwrap();
        assert!(target.write(b"again"));
        assert_eq!(daemon.recv(&mut buffer).unwrap(), 5);
        daemon.shutdown(Shutdown::Both).unwrap();
        assert!(!target.write(b"lost"));
    }

    #[test]
    fn lines_are_lost_if_a_daemon_does_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let _daemon = UnixDatagram::bind(&path).unwrap();
        let target = Target::daemon(&path, None).unwrap();
        assert!((0..100_000).any(|_| !target.write(&[b'x'; LINE])));
    }
}
