//! The epoll instance of a worker, and what its sockets are watched for.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

pub const INBOX: u64 = 3;
pub const BUS: u64 = 4;
/// Token of the descriptors that handlers watch, all together.
pub const HANDLER_FDS: u64 = 5;
/// Token of the first listening socket; the others follow.
pub const LISTENER: u64 = 1 << 31;
/// Tokens from here on are ids of connections.
pub const CONNECTION: u64 = 1 << 32;

pub struct Poll(Epoll);

impl Poll {
    pub fn new() -> io::Result<Self> {
        Ok(Poll(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    pub fn wait(&self, events: &mut [EpollEvent], timeout: EpollTimeout) -> nix::Result<usize> {
        self.0.wait(events, timeout)
    }

    /// Forgets all at once, descriptors that are closed in this process and open in others too.
    pub fn renew(&self) -> io::Result<()> {
        let empty = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // SAFETY: both are open epoll instances, and the second number stays one that this value owns.
        let result = unsafe { libc::dup3(empty.0.as_raw_fd(), self.0.0.as_raw_fd(), libc::O_CLOEXEC) };
        Errno::result(result).map(drop).map_err(io::Error::from)
    }

    /// Adds a descriptor, watched for reading.
    pub fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        self.add_for(fd, token, READABLE)
    }

    /// Adds a descriptor, with what it is watched for.
    pub fn add_for(&self, fd: impl AsFd, token: u64, watched: u8) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(flags_of(watched), token))?)
    }

    /// Watches a descriptor no more; false if it is none of those that are watched.
    pub fn forget(&self, fd: impl AsFd) -> bool {
        self.0.delete(fd).is_ok()
    }

    /// Changes what a connection is watched for, or re-arms an event that was not handled.
    pub fn watch(&self, fd: impl AsFd, token: u64, watched: u8) -> io::Result<()> {
        Ok(self.0.modify(fd, &mut EpollEvent::new(flags_of(watched), token))?)
    }
}

pub const READABLE: u8 = 1;
pub const WRITABLE: u8 = 2;
/// Something has come to be read; reported once. It saves epoll from looking at the socket again when all of it has
/// been read: a fiftieth of a short echo.
pub const ARRIVALS: u8 = 4;
/// An event counter that is never read was rung: each ring is an event.
pub const RINGS: u8 = 8;
/// To be read, here or in one of the other processes that watch it: one of those that wait is woken.
pub const SHARED: u8 = 16;

fn flags_of(watched: u8) -> EpollFlags {
    let mut flags = EpollFlags::empty();
    flags.set(EpollFlags::EPOLLIN, watched & !WRITABLE != 0);
    flags.set(EpollFlags::EPOLLEXCLUSIVE, watched & SHARED != 0);
    flags.set(EpollFlags::EPOLLOUT, watched & WRITABLE != 0);
    // What ends a read early although more may be there: the end of the stream, and urgent data (tcp(7)).
    flags.set(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLPRI, watched & ARRIVALS != 0);
    flags.set(EpollFlags::EPOLLET, watched & (ARRIVALS | RINGS) != 0);
    flags
}
