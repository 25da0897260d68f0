//! A worker's connection to a bus, and what was received on it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::fleet::sockets::bus_wire::{Form, Incoming, Notice};
use crate::worker::base::poll::READABLE;

/// Bytes read at a time.
const READ: usize = 64 * 1024;

/// See the module.
pub struct Connected {
    pub socket: Arc<OwnedFd>,
    pub incoming: Incoming,
    /// The poll's interest in it.
    pub watched: u8,
    /// There may be more to read.
    pub is_readable: bool,
    /// Messages of this worker that the bus has accepted.
    pub taken: u64,
    /// Compressed forms of the message in the next frame.
    pub compressed: Vec<(Form, Vec<u8>)>,
}

impl Connected {
    /// A new connection, which the poll watches.
    pub fn new(socket: Arc<OwnedFd>) -> Self {
        let incoming = Incoming::default();
        Connected {
            socket,
            incoming,
            watched: READABLE,
            is_readable: false,
            taken: 0,
            compressed: Vec::new(),
        }
    }

    /// Receives what has arrived; false if the bus has exited.
    pub fn receive(&mut self) -> bool {
        let received = recv(&*self.socket, self.incoming.room(READ), RecvFlags::DONTWAIT);
        let count = received.as_ref().map_or(0, |(count, _)| *count);
        self.incoming.received(count, READ);
        match received {
            Ok((0, _)) => return false,
            Ok((count, _)) => self.is_readable = count == READ,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.is_readable = false,
            Err(_) => return false,
        }
        true
    }

    /// Whether the bus has exited. Reads to the end how many messages it has accepted; those that it sends are
    /// requested again from the next bus.
    pub fn has_ended(&mut self) -> bool {
        loop {
            match self.incoming.next_frame() {
                Ok(Some(content)) => {
                    if let Some(Notice::Taken { count }) = Notice::read(content) {
                        self.taken = count;
                    }
                }
                Ok(None) => {
                    self.is_readable = true;
                    if !self.receive() {
                        return true;
                    }
                    if !self.is_readable {
                        return false;
                    }
                }
                Err(_) => return true,
            }
        }
    }
}
