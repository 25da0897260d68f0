//! Listening sockets that a service manager passes (sd_listen_fds(3)). Takes them out of the environment, so that no
//! handler and no child of one gets them.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A descriptor that was passed. Whether it is a listening socket is for `fleet::listener` to find out.
#[derive(Debug)]
pub struct Passed {
    /// Closed on exec.
    pub fd: OwnedFd,
    /// For errors: its number, and its name if it has one.
    pub name: String,
}

/// SD_LISTEN_FDS_START
const FIRST: RawFd = 3;
/// A larger LISTEN_FDS is an error.
const MAX: RawFd = 1024;

/// Takes what was passed to this process out of the environment: the sockets to use instead of binding, in their order.
/// Call it before anything is opened or forked, in a process with one thread. The error names the variable or the
/// descriptor.
pub fn take() -> Result<Vec<Passed>, String> {
    let [fds, pid, names] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"].map(super::take_variable);
    let count = match fds.filter(|_| super::names_this_process(&pid)) {
        None => 0,
        Some(fds) => fds
            .to_str()
            .and_then(|text| text.parse().ok())
            .filter(|count| (0..=MAX).contains(count))
            .ok_or_else(|| format!("LISTEN_FDS={}: expected a number up to {MAX}", fds.display()))?,
    };
    let names = names.unwrap_or_default();
    let names: Vec<_> = names.to_str().unwrap_or_default().split(':').collect();
    let sockets = (FIRST..FIRST + count).zip(names.into_iter().chain(std::iter::repeat("")));
    let sockets = sockets.map(|(number, name)| {
        let name = match name {
            "" => format!("descriptor {number} of LISTEN_FDS"),
            name => format!("descriptor {number} ({name}) of LISTEN_FDS"),
        };
        match claim(number) {
            Ok(fd) => Ok(Passed { fd, name }),
            Err(error) => Err(format!("{name}: {error}")),
        }
    });
    sockets.collect()
}

/// Makes an inherited descriptor ours, if there is one of this number.
fn claim(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: sets a flag of a descriptor of which nobody in this process knows yet.
    nix::errno::Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, as fcntl has just shown, was passed to this process, and is claimed once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
