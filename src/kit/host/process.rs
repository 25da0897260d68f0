//! Processes of the host, and their shared clock.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Once, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, dup2_stdin, fork as fork_process, getpid, getppid};

use crate::clock;
use crate::exit::Exit;
use crate::fleet::process::orphans;
pub use crate::fleet::process::orphans::adopt as adopt_orphans;
use crate::supervisor::death::Cause;

/// Interval of polling the end of a process.
const POLL: Duration = Duration::from_millis(1);

/// Maximum rounds of killing children.
const MAX_ROUNDS: usize = 10_000;

/// How far the clock is ahead; ns.
static AHEAD: OnceLock<&'static AtomicU64> = OnceLock::new();

/// Makes this process and its children use a clock that [`advance_clock`] advances.
pub fn share_clock() -> io::Result<()> {
    if AHEAD.get().is_some() {
        return Ok(());
    }
    let size = NonZeroUsize::new(size_of::<AtomicU64>()).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces no other memory.
    let base = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_SHARED)? };
    // SAFETY: page-aligned, of this size, zeroed (a valid AtomicU64), and never unmapped.
    clock::shift(AHEAD.get_or_init(|| unsafe { base.cast::<AtomicU64>().as_ref() }));
    Ok(())
}

/// Advances the shared clock.
pub fn advance_clock(time: Duration) {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    AHEAD.get().map(|ahead| ahead.fetch_add(nanos, Ordering::Relaxed));
}

/// Prints panics of this process and its children to standard error too, since the log is a temporary file.
pub fn show_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let logs = take_hook();
        set_hook(Box::new(move |panic| {
            logs(panic);
            let _ = writeln!(io::stderr(), "wshd: {panic}"); // it may be closed
        }));
    });
}

/// Blocks SIGTERM, which the event loop of a worker reads from a descriptor.
pub fn block_sigterm() -> io::Result<()> {
    Ok(SigSet::from(Signal::SIGTERM).thread_set_mask()?)
}

/// Makes the kernel send the program SIGTERM when the thread that starts it ends, even by SIGKILL.
pub fn end_with_parent(command: &mut Command) {
    let parent = getpid();
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(move || end_with(parent, Signal::SIGTERM)) };
}

/// Makes the kernel send this process a signal when the thread that forked it ends. A change of the user takes that
/// back (prctl(2)).
pub fn end_with(parent: Pid, signal: Signal) -> io::Result<()> {
    set_pdeathsig(signal)?;
    // The parent may have ended before.
    if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
}

/// A child. Dropping this kills it.
pub struct Process {
    pid: Pid,
    status: Option<Cause>,
}

/// Forks a child that runs `work` and exits with the result. It closes the descriptors in `closed` first.
pub fn fork(closed: &[RawFd], work: impl FnOnce() -> i32) -> io::Result<Process> {
    let parent = getpid();
    // SAFETY: this process has one thread, so its child may do anything.
    match unsafe { fork_process()? } {
        ForkResult::Parent { child } => Ok(Process { pid: child, status: None }),
        ForkResult::Child => {
            for fd in closed {
                // SAFETY: the child ends below, and never returns to an owner of these descriptors.
                unsafe { libc::close(*fd) };
            }
            let code = prepare(parent).map_or(Exit::Internal.code(), |()| {
                // A panic has logged its message.
                catch_unwind(AssertUnwindSafe(work)).unwrap_or(Exit::Internal.code())
            });
            // SAFETY: ends the child without exit handlers, which belong to its parent, or to the handler, whose
            // threads may still run.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Prepares the child: streams and signals.
fn prepare(parent: Pid) -> io::Result<()> {
    end_with(parent, Signal::SIGKILL)?;
    // A handler that reads standard input must not take it from the terminal.
    dup2_stdin(File::open("/dev/null")?)?;
    for crash in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: the default action runs no code; it replaces the handler of Rust's runtime.
        unsafe { signal(crash, SigHandler::SigDfl)? };
    }
    block_sigterm()
}

/// Kills all children of this process and their orphans, and returns their number. Children that keep forking are
/// bounded by [`Confinement::of_untrusted`](crate::confine::Confinement::of_untrusted); after [`MAX_ROUNDS`] this gives
/// up.
pub fn kill_children() -> usize {
    orphans::kill_all_but(&BTreeSet::new(), MAX_ROUNDS)
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<Cause> {
        self.status = self.status.or_else(|| Cause::reap(self.pid));
        self.status
    }

    /// Waits for its end; None if it did not end in this time and was killed.
    pub fn wait(mut self, timeout: Duration) -> Option<Cause> {
        let begun = Instant::now();
        while self.ended().is_none() && begun.elapsed() < timeout {
            sleep(POLL);
        }
        self.status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() && kill(self.pid, Signal::SIGKILL).is_ok() {
            let _ = waitpid(self.pid, None); // reaps it
        }
    }
}
