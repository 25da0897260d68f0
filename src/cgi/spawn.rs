//! Starts a program: in a process group of its own, with the given environment only, pipes as its three streams and no
//! other descriptor, no_new_privs, and resource limits. The kernel kills it when the thread that started it ends.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

/// Signals whose default action is restored; this process ignores some of them.
const SIGNALS: std::ops::Range<libc::c_int> = 1..32;

/// Resource limits of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// CPU time of each of its processes.
    pub cpu: Duration,
    /// Address space of each of its processes; bytes.
    pub memory: Option<u64>,
    /// Processes and threads of its user.
    pub processes: Option<u64>,
}

/// Starts a program in its directory. The pipes are blocking.
pub fn spawn(file: &Path, environment: Vec<(OsString, OsString)>, limits: Limits) -> io::Result<Child> {
    let mut command = Command::new(file);
    command.env_clear().envs(environment).current_dir(file.parent().unwrap_or(Path::new("/")));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    // SAFETY: `confine`, called between fork and exec, only makes system calls and does not allocate.
    unsafe { command.pre_exec(move || confine(limits)) };
    command.spawn()
}

fn confine(limits: Limits) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    set_no_new_privs()?;
    let seconds = limits.cpu.as_secs().max(1);
    let wanted = [
        (Resource::RLIMIT_CORE, Some(0)),
        (Resource::RLIMIT_CPU, Some(seconds)),
        (Resource::RLIMIT_AS, limits.memory),
        (Resource::RLIMIT_NPROC, limits.processes),
    ];
    for (resource, limit) in wanted {
        if let Some(limit) = limit {
            let (_, hard) = getrlimit(resource)?;
            setrlimit(resource, limit.min(hard), limit.min(hard))?;
        }
    }
    for signal in SIGNALS {
        // SAFETY: SIG_DFL installs no code; for SIGKILL and SIGSTOP the call fails and changes nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: this only sets FD_CLOEXEC; the process is about to execute another program.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    Ok(())
}
