//! An epoll instance for descriptors that belong to handlers and are known by number: any of them may be closed, or
//! another one by now.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use ::ws_handler::raw::{WS_FD_HANGUP, WS_FD_READ, WS_FD_WRITE};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Ready descriptors that are reported at a time.
const BATCH: usize = 32;

/// See the module. Readable itself while one of its descriptors is ready.
pub struct WatchSet(Epoll);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyFd {
    pub fd: RawFd,
    /// As it was given to [`WatchSet::set`].
    pub serial: u32,
    /// `WS_FD_...`.
    pub events: u32,
}

impl WatchSet {
    pub fn new() -> io::Result<Self> {
        Ok(WatchSet(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches a descriptor, or changes what it is watched for.
    pub fn set(&self, fd: RawFd, serial: u32, events: u32) -> io::Result<()> {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, events & WS_FD_READ != 0);
        flags.set(EpollFlags::EPOLLOUT, events & WS_FD_WRITE != 0);
        let mut event = EpollEvent::new(flags, u64::from(serial) << 32 | u64::from(fd as u32));
        match self.0.add(borrowed(fd)?, event) {
            Err(Errno::EEXIST) => Ok(self.0.modify(borrowed(fd)?, &mut event)?),
            added => Ok(added?),
        }
    }

    /// Watches it no more; false if it was closed before.
    pub fn remove(&self, fd: RawFd) -> bool {
        borrowed(fd).is_ok_and(|fd| self.0.delete(fd).is_ok())
    }

    /// Some of those that are ready.
    pub fn ready(&self) -> Vec<ReadyFd> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = self.0.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        events.iter().take(count).map(ready_fd).collect()
    }
}

impl AsFd for WatchSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

fn ready_fd(event: &EpollEvent) -> ReadyFd {
    let is = |flags| event.events().intersects(flags);
    let mut events = if is(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP) { WS_FD_READ } else { 0 };
    events |= if is(EpollFlags::EPOLLOUT) { WS_FD_WRITE } else { 0 };
    events |= if is(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) { WS_FD_HANGUP } else { 0 };
    ReadyFd { fd: event.data() as u32 as RawFd, serial: (event.data() >> 32) as u32, events }
}

fn borrowed<'a>(fd: RawFd) -> io::Result<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: not -1, and only given to epoll_ctl(2), for which one that is not open is EBADF.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_ready_is_reported_until_it_is_not() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let set = WatchSet::new().unwrap();
        let fd = ours.as_raw_fd();
        set.set(fd, 7, WS_FD_READ).unwrap();
        assert!(set.ready().is_empty());
        theirs.write_all(b"x").unwrap();
        let readable = ReadyFd { fd, serial: 7, events: WS_FD_READ };
        assert_eq!([set.ready(), set.ready()], [vec![readable], vec![readable]]);
        set.set(fd, 8, WS_FD_READ | WS_FD_WRITE).unwrap();
        assert_eq!(set.ready(), [ReadyFd { serial: 8, events: WS_FD_READ | WS_FD_WRITE, ..readable }]);
        drop(theirs);
        assert_eq!(set.ready()[0].events & WS_FD_HANGUP, WS_FD_HANGUP);
        assert!(set.remove(fd) && set.ready().is_empty());
        assert!(
            !set.remove(fd) && set.set(-1, 1, WS_FD_READ).is_err() && set.set(999, 1, WS_FD_READ).is_err()
        );
        // A file is always ready: nothing to wait for.
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(set.set(file.as_raw_fd(), 1, WS_FD_READ).is_err());
    }
}
