//! A datagram, and a descriptor with it where one is needed (unix(7), SCM_RIGHTS). Knows nothing of what is in it.

#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Sends it whole, or not at all.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], with: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds: Vec<RawFd> = with.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one into `bytes`, which cuts it off if it is longer: its size, 0 at the end of the other side, and what
/// came with it. `WouldBlock` if the socket does not wait and there is none.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut slices = [IoSliceMut::new(bytes)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let mut with = None;
    for part in received.cmsgs()? {
        let ControlMessageOwned::ScmRights(raw) = part else { continue };
        for raw in raw {
            // SAFETY: the kernel has just made this descriptor for this process, and nobody else owns it.
            with = Some(unsafe { OwnedFd::from_raw_fd(raw) });
        }
    }
    Ok((received.bytes, with))
}
