//! What a server owes to its caller: a shell that waits until it is ready, a pid file, a service manager that
//! passes sockets and wants to be notified. Knows neither workers nor handlers.

#![allow(unsafe_code)]

pub mod daemonize;
pub mod listen_fds;
pub mod notify;
pub mod pid_file;
pub mod start_signals;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;

/// Opens /dev/null, which a root directory may lack: the error names it.
pub fn open_null() -> io::Result<File> {
    const NULL: &str = "/dev/null";
    let opened = File::options().read(true).write(true).open(NULL);
    opened.map_err(|error| io::Error::new(error.kind(), format!("{NULL}: {error}")))
}

/// Takes a variable out of the environment. Call it in a process with one thread only.
fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name);
    // SAFETY: one thread, as the caller promises: nobody reads the environment meanwhile.
    unsafe { std::env::remove_var(name) };
    value
}

/// Whether the value of LISTEN_PID or WATCHDOG_PID is this process.
fn names_this_process(pid: &Option<OsString>) -> bool {
    let own = std::process::id().to_string();
    pid.as_ref().is_some_and(|pid| pid.as_bytes() == own.as_bytes())
}
