//! A socket pair of which the supervisor keeps both ends, so that what lies in it outlives the process that was to read
//! it: the inbox of a slot, the queue of the gateways, and for each pool where its workers meet the bus.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::datagram;

/// Both ends, which are non-blocking.
#[derive(Debug)]
pub struct SocketQueue {
    pub tx: OwnedFd,
    /// More than one process may have this end: each datagram comes to one of them.
    pub rx: OwnedFd,
}

impl SocketQueue {
    pub fn new() -> io::Result<Self> {
        let (tx, rx) = datagram::pair()?;
        Ok(Self { tx, rx })
    }

    /// The same with a send buffer of so many bytes; the kernel may give less.
    pub fn with_room(bytes: usize) -> io::Result<Self> {
        let (tx, rx) = datagram::pair_with_room(bytes)?;
        Ok(Self { tx, rx })
    }

    pub fn has_mail(&self) -> bool {
        datagram::is_readable(self.rx.as_fd())
    }
}
