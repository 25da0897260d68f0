//! Inboxes: the Unix sockets on which connections arrive from other processes.
//!
//! The supervisor makes one for each slot. A worker gets the sending ends of those of its own pool, and of those of the
//! pools that it hands requests to; what lies in an inbox outlives the process that was to read it. A datagram carries
//! up to [`MAX_FDS`] descriptors and a description of as many connections, whose format is the worker's matter. Who has
//! the sending end may be the code of a handler, and send anything.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::net::sockopt::{set_socket_passcred, socket_send_buffer_size};
use rustix::net::{RecvFlags, recv};

use super::datagram::{self, MAX_FDS};
use super::queue::SocketQueue;

/// The form of what is in a datagram: another number whenever the description of a connection changes, so that
/// different versions of the server do not misread each other. A datagram begins with it and the number of descriptors,
/// which are u32 in native byte order.
pub const FORMAT: u32 = 0x7773_6808;
/// Bytes in one datagram.
pub const MAX_BYTES: usize = 160 * 1024;
/// Wanted for the send buffer; the kernel may give less, but its default holds a datagram.
const SEND_BUFFER: usize = 4 * 1024 * 1024;

/// A new, empty one. The kernel tells its reader who has sent a datagram.
pub fn create() -> io::Result<SocketQueue> {
    let queue = SocketQueue::with_room(SEND_BUFFER)?;
    set_socket_passcred(&queue.rx, true)?;
    Ok(queue)
}

/// How many descriptors the next datagram brings. `WouldBlock` when there is none, `UnexpectedEof` when there will be
/// none any more, as somebody has shut the socket down: an empty datagram is not sent.
pub fn next_fds(rx: BorrowedFd<'_>) -> io::Result<usize> {
    let mut start = [[0; 4]; 2];
    // A peek that has no room for descriptors makes none.
    let (_, size) = recv(rx, start.as_flattened_mut(), RecvFlags::PEEK)?;
    if size == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let [format, count] = start.map(u32::from_ne_bytes);
    // Of another format it is received to be dropped.
    Ok(if format == FORMAT { MAX_FDS.min(count as usize) } else { 1 })
}

/// Whether the next datagram finds room, if nobody else sends one before: the kernel takes one while the send buffer is
/// not full.
pub fn has_room(tx: BorrowedFd<'_>) -> bool {
    // Of anything else sending will tell.
    let Some(used) = datagram::unacknowledged(tx) else { return true };
    socket_send_buffer_size(tx).is_ok_and(|size| used < size)
}

/// The inbox of a slot, and by slot the sending ends of those that its worker may send to. The others are closed.
pub fn split(
    inboxes: Vec<SocketQueue>,
    slot: usize,
    reaches: impl Fn(usize) -> bool,
) -> io::Result<(SocketQueue, BTreeMap<usize, OwnedFd>)> {
    let (mut ours, mut txs) = (None, BTreeMap::new());
    for (index, inbox) in inboxes.into_iter().enumerate() {
        if index == slot {
            txs.insert(index, inbox.tx.try_clone()?);
            ours = Some(inbox);
        } else if reaches(index) {
            txs.insert(index, inbox.tx);
        }
    }
    Ok((ours.ok_or_else(|| io::Error::other("no inbox for this slot"))?, txs))
}

/// Memory for one datagram, reserved beforehand: sending allocates nothing, locks nothing and is async-signal-safe.
pub struct Parcel {
    slices: [MaybeUninit<libc::iovec>; SLICES],
    used: usize,
    bytes: usize,
    fds: [RawFd; MAX_FDS],
    count: usize,
    control: ControlBuffer,
}

/// Pieces of memory in one datagram; the kernel takes 1,024 (UIO_MAXIOV).
const SLICES: usize = 1000;
/// Pieces that one connection may consist of.
pub const PIECES: usize = 7;

#[repr(C, align(8))]
struct ControlBuffer([u8; CONTROL]);

// SAFETY: CMSG_SPACE only computes.
const CONTROL: usize = unsafe { libc::CMSG_SPACE((MAX_FDS * size_of::<RawFd>()) as u32) } as usize;

impl Parcel {
    pub const fn new() -> Self {
        Parcel {
            slices: [MaybeUninit::uninit(); SLICES],
            used: 0,
            bytes: 0,
            fds: [-1; MAX_FDS],
            count: 0,
            control: ControlBuffer([0; CONTROL]),
        }
    }

    /// Whether a connection described by so many bytes has room.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.count < MAX_FDS && self.used + PIECES <= SLICES && self.bytes + bytes <= MAX_BYTES
    }

    pub fn fds(&self) -> &[RawFd] {
        self.fds.get(..self.count).unwrap_or_default()
    }

    /// How many connections are in it.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Adds a connection. False, and nothing is added, without room for it.
    ///
    /// # Safety
    /// The pieces must stay as they are and `fd` open until the parcel is sent or emptied.
    pub unsafe fn add(&mut self, fd: RawFd, pieces: &[*const [u8]]) -> bool {
        let size = pieces.iter().map(|piece| piece.len()).sum();
        if pieces.len() > PIECES || !self.has_room(size) {
            return false;
        }
        for piece in pieces.iter().filter(|piece| piece.len() > 0) {
            if let Some(slice) = self.slices.get_mut(self.used) {
                slice.write(libc::iovec { iov_base: piece.cast_mut().cast(), iov_len: piece.len() });
                self.used += 1;
            }
        }
        if let Some(place) = self.fds.get_mut(self.count) {
            *place = fd;
            self.count += 1;
        }
        self.bytes += size;
        true
    }

    /// Empties it without sending.
    pub fn clear(&mut self) {
        (self.used, self.bytes, self.count) = (0, 0, 0);
    }

    /// Sends all and empties it. On an error nothing was sent and it keeps its content; `WouldBlock`: the inbox is
    /// full.
    ///
    /// # Safety
    /// What was promised to [`add`](Self::add) must hold.
    pub unsafe fn send(&mut self, tx: RawFd) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let fds = self.count * size_of::<RawFd>();
        // SAFETY: an all-zero msghdr is valid.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = self.slices.as_mut_ptr().cast();
        header.msg_iovlen = self.used;
        header.msg_control = self.control.0.as_mut_ptr().cast();
        // SAFETY: the control buffer has room for a header and MAX_FDS descriptors.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(fds as u32) as usize;
            let first = libc::CMSG_FIRSTHDR(&header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(fds as u32) as usize;
            std::ptr::copy_nonoverlapping(self.fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(first), fds);
        }
        // SAFETY: the header describes live memory, by the caller's promise.
        let sent = unsafe { libc::sendmsg(tx, &header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        self.clear();
        Ok(())
    }
}

// SAFETY: the pointers are used only by add() and send(), whose callers promise that they are valid then.
unsafe impl Send for Parcel {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::fleet::sockets::datagram::{Datagram, receive_all};

    #[test]
    fn descriptors_and_bytes_arrive_together_and_in_order() {
        let inbox = create().unwrap();
        let mut parcel = Box::new(Parcel::new());
        let mut theirs = Vec::new();
        let pairs: Vec<_> = (0..MAX_FDS).map(|_| UnixStream::pair().unwrap()).collect();
        for (index, (ours, _)) in pairs.iter().enumerate() {
            let tag = [index as u8];
            // SAFETY: sent below; the tags are leaked.
            let added = unsafe { parcel.add(ours.as_raw_fd(), &[b"<", Box::leak(Box::new(tag)), b">"]) };
            assert!(added);
        }
        assert!(!parcel.has_room(1), "the kernel takes no more");
        // SAFETY: all pairs are open.
        unsafe { parcel.send(inbox.tx.as_raw_fd()).unwrap() };
        for (ours, other) in pairs {
            drop(ours); // in flight
            theirs.push(other);
        }
        let mut bytes = vec![0; MAX_BYTES];
        let Datagram { size, fds, sender } = receive_all(inbox.rx.as_fd(), &mut bytes, MAX_FDS).unwrap();
        assert_eq!((size, fds.len()), (3 * MAX_FDS, MAX_FDS));
        assert_eq!(sender, Some(std::process::id() as i32));
        for (index, (fd, mut other)) in fds.into_iter().zip(theirs).enumerate() {
            assert_eq!(bytes[3 * index..3 * index + 3], [b'<', index as u8, b'>']);
            File::from(fd).write_all(&[index as u8]).unwrap();
            let mut byte = [0];
            other.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [index as u8]);
        }
        assert_eq!(
            receive_all(inbox.rx.as_fd(), &mut bytes, MAX_FDS).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }

    #[test]
    fn a_full_inbox_says_so_and_loses_nothing() {
        let inbox = create().unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut parcel = Box::new(Parcel::new());
        let piece = vec![7; MAX_BYTES];
        let mut sent = 0;
        loop {
            // SAFETY: piece and socket live to the end.
            unsafe {
                assert!(parcel.add(ours.as_raw_fd(), &[&piece[..]]));
                let has_room = has_room(inbox.tx.as_fd());
                match parcel.send(inbox.tx.as_raw_fd()) {
                    Ok(()) => {
                        assert!(has_room);
                        sent += 1;
                    }
                    Err(error) => {
                        assert_eq!((error.kind(), has_room), (io::ErrorKind::WouldBlock, false));
                        break;
                    }
                }
            }
        }
        assert_eq!(parcel.len(), 1);
        let mut bytes = vec![0; MAX_BYTES];
        for _ in 0..sent {
            assert_eq!(receive_all(inbox.rx.as_fd(), &mut bytes, MAX_FDS).unwrap().size, MAX_BYTES);
        }
        // SAFETY: as above.
        unsafe { parcel.send(inbox.tx.as_raw_fd()).unwrap() };
        assert_eq!(receive_all(inbox.rx.as_fd(), &mut bytes, MAX_FDS).unwrap().fds.len(), 1);
    }
}
