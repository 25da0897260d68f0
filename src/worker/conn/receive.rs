//! Receives from a socket.
//!
//! System calls are made with rustix, see `send_queue`.
#![allow(unsafe_code)]

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::Socket;

/// Bytes that a worker receives at a time from a connection, unless they belong to a large message. It is also the most
/// that is set aside for a connection that pauses.
pub const AT_ONCE: usize = 128 * 1024;
/// Bytes of a cache line, and of the widest vectors.
const LINE: usize = 64;
/// Bytes of the header of a masked frame of 64 KiB or more (RFC 6455 5.2).
const LARGE_HEADER: usize = 14;

/// Where a worker receives, for one connection at a time.
pub struct Buffer(Vec<u8>);

impl Buffer {
    pub fn new() -> Self {
        Buffer(vec![0; LINE + AT_ONCE + 1])
    }

    /// [`AT_ONCE`] bytes and one for the NUL after a message. The payload of a large frame that comes first begins with
    /// a cache line, which makes it cheaper to unmask, to validate and to copy.
    pub fn bytes(&mut self) -> &mut [u8] {
        let turns = self.0.as_ptr().addr().next_multiple_of(LINE) - self.0.as_ptr().addr();
        let start = (turns + LINE - LARGE_HEADER) % LINE;
        &mut self.0[start..=start + AT_ONCE]
    }
}

/// Receives into `buffer`; 0 at the end of the stream.
#[inline]
pub fn receive(socket: &Socket, buffer: &mut [u8]) -> Result<usize, Errno> {
    recv(socket, buffer, RecvFlags::empty()).map(|(_, count)| count)
}

/// Receives at most `most` bytes, and no more than the spare capacity of `buffer`, to which they are appended.
pub fn append(socket: &Socket, buffer: &mut Vec<u8>, most: usize) -> Result<usize, Errno> {
    let spare = buffer.spare_capacity_mut();
    let room = most.min(spare.len());
    let ((received, _), _) = recv(socket, spare.get_mut(..room).unwrap_or_default(), RecvFlags::empty())?;
    let count = received.len();
    // SAFETY: the first `count` bytes behind the present length lie within the capacity and were received just now.
    unsafe { buffer.set_len(buffer.len() + count) };
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_payload_of_a_large_frame_begins_with_a_cache_line() {
        let mut buffer = Buffer::new();
        let bytes = buffer.bytes();
        assert_eq!(bytes.len(), AT_ONCE + 1);
        assert_eq!(bytes[LARGE_HEADER..].as_ptr().addr() % LINE, 0);
    }

    #[test]
    fn what_is_appended_is_bounded_by_the_room_and_by_what_is_wanted() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = Socket::from(OwnedFd::from(ours));
        theirs.write_all(b"0123456789").unwrap();
        let mut buffer = Vec::with_capacity(8);
        buffer.extend_from_slice(b"abc");
        assert_eq!(append(&ours, &mut buffer, 2), Ok(2));
        assert_eq!(buffer, b"abc01");
        let room = buffer.capacity() - buffer.len();
        assert_eq!(append(&ours, &mut buffer, 100), Ok(room.min(8)));
        assert_eq!(buffer[..8], *b"abc01234");
        let mut buffer = Vec::with_capacity(100);
        assert_eq!(append(&ours, &mut buffer, 100), Ok(8 - room.min(8)));
        assert_eq!(append(&ours, &mut buffer, 100), Err(Errno::AGAIN));
        drop(theirs);
        assert_eq!(append(&ours, &mut buffer, 100), Ok(0));
    }
}
