//! The zygote of a pool with a process for each connection: loads and starts the handlers, and forks a process for each
//! command of the supervisor. It has one thread and serves no connection.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::ffi::call;
use crate::ffi::place::fork_as_server;
use crate::fleet::memory::scoreboard::State;
use crate::fleet::sockets::control::{Channel, Command, Report};
use crate::fleet::sockets::queue::SocketQueue;
use crate::worker::crash::start;
use crate::worker::host::handlers::Loaded;
use crate::worker::process::start::Start;

/// What a forked process does first, in its slot: becomes a child of the supervisor, and takes a title.
pub type Settle = dyn Fn(usize) -> io::Result<()>;

/// Returns in the zygote when it is to leave, and in each forked process.
pub fn serve_forks(mut start: Start, settle: &Settle) -> io::Result<Option<(Start, Loaded)>> {
    // Connections come to the children only.
    start.txs.clear();
    let slot = start.record()?;
    let loaded = start.load()?;
    slot.set_state(if start.standby { State::Standby } else { State::Running });
    start.control.send_report(&loaded.report)?;
    // Blocked since the fork.
    let signals =
        SignalFd::with_flags(&SigSet::from(Signal::SIGTERM), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    loop {
        let mut fds = [
            PollFd::new(start.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if let Ok(Some(_)) = signals.read_signal() {
            break;
        }
        match start.control.recv_command_with(3) {
            Ok(Some((Command::Child { slot: child }, fds))) => match <[OwnedFd; 3]>::try_from(fds) {
                Ok([tx, rx, control]) if fork_as_server(fork_child) => {
                    let (child, control) = (usize::from(child), Channel::from(control));
                    settle(child)?;
                    control.send_report(&Report::Born)?;
                    let start = Start {
                        slot: child,
                        control,
                        inbox: SocketQueue { tx, rx },
                        standby: false,
                        ..start
                    };
                    return Ok(Some((start, loaded)));
                }
                Ok(_) => {}
                // Its channel is closed, which the supervisor notices.
                Err(fds) => {
                    log::error!("cannot fork a process for a connection: {} of 3 descriptors came", fds.len())
                }
            },
            // A zygote has no connections.
            Ok(Some((Command::List { ticket }, _))) => {
                start.control.send_report(&Report::Listed { ticket, listed: 0, left_out: 0 })?;
            }
            Ok(Some((Command::CloseAll { ticket, .. }, _))) => {
                start.control.send_report(&Report::ClosingAll { ticket, count: 0 })?;
            }
            Ok(Some((Command::Close { ticket, .. }, _))) => {
                start.control.send_report(&Report::Closing { ticket, begun: false })?;
            }
            Ok(Some((Command::Begin, _))) => slot.set_state(State::Running),
            Ok(Some((Command::Migrate { .. } | Command::Drain, _))) => {
                slot.set_state(State::Stopping);
                start.control.send_report(&Report::Leaving)?;
                break;
            }
            Ok(Some((Command::Stop | Command::Quit, _))) | Ok(None) => break,
            Ok(Some(_)) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                log::warn!("cannot read a command of the supervisor: {error}")
            }
            Err(error) => return Err(error),
        }
    }
    start::forget();
    loaded.stop(slot.call);
    slot.set_state(State::Stopping);
    Ok(None)
}

/// Forks twice, so that the child becomes one of the supervisor. True in the child. Where it fails the child's channel
/// is closed, which the supervisor notices.
fn fork_child() -> bool {
    // Or each child would write it once more.
    call::flush_stdio();
    // SAFETY: this process has one thread, so that its child may do whatever a process may do. If a handler has made
    // more all the same, fork(3) leaves the allocator usable, and what the handler has locked is its own.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => {
            if !matches!(waitpid(child, None), Ok(WaitStatus::Exited(_, 0))) {
                log::error!("cannot fork a process for a connection");
            }
            false
        }
        Ok(ForkResult::Child) => {
            // SAFETY: as above.
            let forked = unsafe { fork() };
            if let Ok(ForkResult::Child) = forked {
                return true;
            }
            // SAFETY: ends the process in between without running anything of the parent's or the handlers'.
            unsafe { libc::_exit(i32::from(forked.is_err())) }
        }
        Err(error) => {
            log::error!("cannot fork a process for a connection: {error}");
            false
        }
    }
}
