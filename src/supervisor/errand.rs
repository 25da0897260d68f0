//! Errands: what may have to wait for a disk or a name server is done by a child, which hands back what has come of it: a
//! value, and descriptors by name. One that takes longer than [`ERRAND`] has to say that it goes on.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Supervisor;
use super::child::exit_child;
use super::processes::Process;
use super::role::{Errand, Parts, Role};
use super::spawn::{Forked, fork_child};
use crate::clock;
use crate::exit::Exit;
use crate::fleet::control::Channel;
use crate::fleet::{datagram, process_title};

/// How long an errand may take, or be silent.
const ERRAND: Duration = Duration::from_secs(10);
/// The most descriptors that are handed back.
const MOST_PARTS: usize = 1024;
/// The longest name of one; bytes.
const NAME: usize = 32;
/// The name of the file with the value.
const VALUE: &str = "value";

/// The child's side.
pub(super) struct Outbox(Channel);

impl Outbox {
    /// It goes on.
    pub fn go_on(&self) {
        let _ = datagram::send(self.0.as_fd(), b".", None); // if nobody hears it, this process ends, too
    }

    /// Hands a descriptor back.
    pub fn part(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        datagram::send(self.0.as_fd(), name.as_bytes(), Some(fd))
    }

    /// Hands a value back; one at most.
    pub fn value(&self, value: &impl Serialize) -> io::Result<()> {
        let mut file = File::from(memfd_create(c"wshd errand", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(value)?)?;
        self.part(VALUE, file.as_fd())
    }
}

/// The value that was handed back.
pub(super) fn value_of<T: DeserializeOwned>(parts: &mut Parts) -> Result<T, String> {
    let failed = |error: &dyn std::fmt::Display| format!("what was found cannot be read: {error}");
    let at = parts.iter().position(|(name, _)| name == VALUE).ok_or_else(|| failed(&"it is missing"))?;
    let mut file = File::from(parts.remove(at).1);
    let mut text = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(|error| failed(&error))?;
    serde_json::from_slice(&text).map_err(|error| failed(&error))
}

/// What an errand says before it ends.
pub(super) fn read(process: &mut Process) {
    while let Some(channel) = &process.channel {
        let mut name = [0; NAME];
        match datagram::receive(channel.as_fd(), &mut name) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok((size, Some(fd))) if process.parts.len() < MOST_PARTS => {
                let name = String::from_utf8_lossy(name.get(..size).unwrap_or_default());
                process.parts.push((name.into_owned(), fd));
            }
            // A sign of life.
            Ok((1.., None)) => {}
            _ => process.channel = None,
        }
        process.set_deadline(clock::now() + ERRAND, "finish in time");
    }
}

impl Supervisor {
    /// Forks a child that does this, with the log as it is, and exits; whether it was done is its exit code. An error is logged.
    pub(super) fn send_out(
        &mut self,
        errand: Errand,
        work: impl FnOnce(&Outbox) -> io::Result<()>,
    ) -> Result<Pid, String> {
        let forked = Channel::pair().and_then(|channels| Ok((channels, fork_child()?)));
        let ((ours, theirs), forked) = forked.map_err(|error| {
            let why = format!("{}: cannot fork: {error}", errand.name());
            log::error!("{why}");
            why
        })?;
        match forked {
            Forked::Parent { child } => {
                let mut process = Process::new(Role::Errand(errand), None, 0, Some(ours));
                process.set_deadline(clock::now() + ERRAND, "finish in time");
                self.processes.insert(child, process);
                Ok(child)
            }
            Forked::Child { .. } => {
                let _ = set_pdeathsig(Signal::SIGKILL);
                process_title::set(errand.name());
                let work = || {
                    fcntl(&theirs, FcntlArg::F_SETFL(OFlag::empty()))?; // it may wait for the supervisor
                    work(&Outbox(theirs))
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
