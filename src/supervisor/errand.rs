//! Errands: work that may wait for a disk or a name server is done by a child, which hands the result back. One that
//! takes longer than [`ERRAND`] sends signs of life.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid};

use super::Supervisor;
use super::child::exit_child;
use super::processes::{Errand, Process, Role};
use super::spawn::fork_child;
use crate::clock;
use crate::exit::Exit;
use crate::fleet::process::title;
use crate::fleet::sockets::control::Channel;

/// How long an errand may take, or be silent.
const ERRAND: Duration = Duration::from_secs(10);

/// What an errand says before it ends.
pub(super) fn read(process: &mut Process) {
    while let Some(channel) = &process.channel {
        match process.result.take(channel.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(_) => {}
            Err(_) => process.channel = None,
        }
        process.set_deadline(clock::now() + ERRAND, "finish in time");
    }
}

impl Supervisor {
    /// Forks a child that does this, with the log as it is, and exits; whether it was done is its exit code. It is
    /// given where it may hand something back. An error is logged.
    pub(super) fn send_out(
        &mut self,
        errand: Errand,
        work: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<Pid, String> {
        let forked = Channel::pair().and_then(|channels| Ok((channels, fork_child()?)));
        let ((ours, theirs), forked) = forked.map_err(|error| {
            let why = format!("{}: cannot fork: {error}", errand.name());
            log::error!("{why}");
            why
        })?;
        match forked {
            ForkResult::Parent { child } => {
                let mut process = Process::new(Role::Errand(errand), None, 0, Some(ours));
                process.set_deadline(clock::now() + ERRAND, "finish in time");
                self.processes.insert(child, process);
                Ok(child)
            }
            ForkResult::Child => {
                let _ = set_pdeathsig(Signal::SIGKILL);
                title::set(errand.name());
                let work = || {
                    fcntl(&theirs, FcntlArg::F_SETFL(OFlag::empty()))?; // it may wait for the supervisor
                    work(theirs.as_fd())
                };
                // A panic has printed its message.
                let is_done = catch_unwind(AssertUnwindSafe(work)).is_ok_and(|done| {
                    done.inspect_err(|error| log::error!("{}: {error}", errand.name())).is_ok()
                });
                exit_child(if is_done { Exit::Ok } else { Exit::Internal }.code())
            }
        }
    }

    /// Whether such an errand is on its way.
    pub(super) fn is_out(&self, errand: Errand) -> bool {
        self.processes.in_role(Role::Errand(errand)).next().is_some()
    }
}
