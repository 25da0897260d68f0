//! The baton, which the one bus that serves holds.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Held by one process at a time, and given back by its end, however that comes. Whoever holds it can leave bytes for
/// the next one. A process that closes another descriptor of the same file gives it back, too (fcntl_locking(2)).
#[derive(Debug)]
pub struct Baton(File);

impl Baton {
    /// Held by nobody.
    pub fn new() -> io::Result<Self> {
        Ok(Baton(memfd_create(c"wshd bus", MFdFlags::MFD_CLOEXEC)?.into()))
    }

    /// The descriptor, for another process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes it, if no other process holds it.
    pub fn take(&self) -> io::Result<bool> {
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match fcntl(&self.0, FcntlArg::F_SETLK(&lock)) {
            Ok(_) => Ok(true),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Leaves this to the next one. [who holds it]
    pub fn leave(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.set_len(0)?;
        self.0.write_all_at(bytes, 0)
    }

    /// Takes what the one before has left; nothing if it died. [who holds it]
    pub fn found(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.0.metadata()?.len() as usize];
        self.0.read_exact_at(&mut bytes, 0)?;
        self.0.set_len(0)?;
        Ok(bytes)
    }
}

impl From<OwnedFd> for Baton {
    /// One that came from another process.
    fn from(fd: OwnedFd) -> Self {
        Baton(fd.into())
    }
}
