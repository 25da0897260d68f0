//! A thread that waits for the end of the supervisor. When it has died, new connections are refused at once, so that
//! another server can listen in its place, also while a handler keeps the event loop from closing the sockets.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{PidfdFlags, getppid, pidfd_open};

use crate::fleet::memory::scoreboard::Scoreboard;
use crate::fleet::sockets::listener::Listener;

/// It needs little, and calls no handler.
const STACK: usize = 64 * 1024;

pub fn start(listeners: Vec<Arc<Listener>>, scoreboard: &'static Scoreboard) -> io::Result<()> {
    let supervisor = getppid().ok_or(io::ErrorKind::NotFound)?;
    let supervisor: OwnedFd = match pidfd_open(supervisor, PidfdFlags::empty()) {
        // valgrind 3.19 does not know it. The event loop notices the death as well, when no handler keeps it.
        Err(rustix::io::Errno::NOSYS) => return Ok(()),
        opened => opened?,
    };
    let watch = move || {
        // Readable when the process has ended (pidfd_open(2)).
        let mut fds = [PollFd::new(supervisor.as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
        if !scoreboard.are_sockets_shared() {
            listeners.iter().for_each(|listener| listener.shut_down());
        }
    };
    std::thread::Builder::new().name("orphan-watch".to_owned()).stack_size(STACK).spawn(watch).map(drop)
}
