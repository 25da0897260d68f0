//! A datagram, or a piece of a stream, and descriptors with it where they are needed (unix(7), SCM_RIGHTS). Knows
//! nothing of what is in it.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Descriptors in one datagram; the kernel takes 253 (unix(7), SCM_RIGHTS).
pub const MAX_FDS: usize = 240;

/// Two ends of a connection that keeps datagrams apart; both are non-blocking.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// The same with a send buffer of so many bytes for the first end; the kernel may give less to who is not root.
pub fn pair_with_room(bytes: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (tx, rx) = pair()?;
    if setsockopt(&tx, sockopt::SndBufForce, &bytes).is_err() {
        setsockopt(&tx, sockopt::SndBuf, &bytes)?;
    }
    Ok((tx, rx))
}

/// Whether the other side has closed the socket, a stream in both directions. Does not wait.
pub fn is_hung_up(socket: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(socket, PollFlags::empty())], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Whether there is something to receive, be it the end of the other side. Does not wait.
pub fn is_readable(socket: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(socket, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Bytes sent that the other side has not acknowledged (TCP) or received (Unix, where the kernel's own share counts);
/// `None`: not known. See tcp(7), SIOCOUTQ.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> Option<usize> {
    let mut count: c_int = 0;
    // SAFETY: the descriptor is open, and the call writes one integer.
    let is_known = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) } == 0;
    usize::try_from(count).ok().filter(|_| is_known)
}

/// Sends it whole, or not at all, with up to [`MAX_FDS`] descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_as(SendFlags::NOSIGNAL, socket, bytes, fds)
}

/// The same on a socket of others, who may have made it wait.
pub fn send_at_once(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_as(SendFlags::NOSIGNAL | SendFlags::DONTWAIT, socket, bytes, fds)
}

fn send_as(flags: SendFlags, socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    Ok(())
}

/// Receives one into `bytes`, which cuts it off if it is longer: its size, 0 at the end of the other side, and what
/// came with it; more descriptors than one are closed. `WouldBlock` if the socket does not wait and there is none.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let Datagram { size, mut fds, .. } = receive_all(socket, bytes, 1)?;
    Ok((size, fds.pop()))
}

/// A datagram that was received, with the descriptors for which there was room.
#[derive(Debug)]
pub struct Datagram {
    pub size: usize,
    pub fds: Vec<OwnedFd>,
    /// The process that has sent it, where the socket tells (SO_PASSCRED).
    pub sender: Option<i32>,
}

/// The same with up to so many descriptors, [`MAX_FDS`] at most; there may be room for a few more.
pub fn receive_all(socket: BorrowedFd<'_>, bytes: &mut [u8], fds: usize) -> io::Result<Datagram> {
    let mut received = Vec::new();
    let (size, sender) = receive_each(socket, bytes, fds, |fd| received.push(fd))?;
    Ok(Datagram { size, fds: received, sender })
}

/// The same, and gives each descriptor to `take`; returns the size and the sender. Allocates nothing.
pub fn receive_each(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: usize,
    mut take: impl FnMut(OwnedFd),
) -> io::Result<(usize, Option<i32>)> {
    // The kernel puts the sender first (SO_PASSCRED).
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(MAX_FDS))];
    let room = rustix::cmsg_space!(ScmCredentials(1), ScmRights(fds));
    let mut control = RecvAncillaryBuffer::new(space.get_mut(..room).unwrap_or_default());
    let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut sender = None;
    for part in control.drain() {
        match part {
            RecvAncillaryMessage::ScmRights(rights) => rights.for_each(&mut take),
            RecvAncillaryMessage::ScmCredentials(from) => sender = Some(from.pid.as_raw_nonzero().get()),
            _ => {}
        }
    }
    Ok((received.bytes, sender))
}
