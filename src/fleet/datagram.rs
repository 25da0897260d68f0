//! A datagram, or a piece of a stream, and a descriptor with it where one is needed (unix(7), SCM_RIGHTS). Knows nothing of
//! what is in it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

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

/// Sends it whole, or not at all.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], with: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send_as(SendFlags::NOSIGNAL, socket, bytes, with)
}

/// The same on a socket of others, who may have made it wait.
pub fn send_at_once(socket: BorrowedFd<'_>, bytes: &[u8], with: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send_as(SendFlags::NOSIGNAL | SendFlags::DONTWAIT, socket, bytes, with)
}

fn send_as(
    flags: SendFlags,
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    with: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &with {
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    Ok(())
}

/// Receives one into `bytes`, which cuts it off if it is longer: its size, 0 at the end of the other side, and what
/// came with it; more descriptors than one are closed. `WouldBlock` if the socket does not wait and there is none.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    // Where a socket tells of senders (SO_PASSCRED), that comes first.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let rights = control.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    Ok((received.bytes, rights.flatten().last()))
}
