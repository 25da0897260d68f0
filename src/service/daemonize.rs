//! Going to the background, while the process that was called waits until the server is ready or has failed; with it
//! goes the pid file.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};

use super::pid_file::PidFile;
use crate::config;
use crate::exit::{Exit, Failure};

/// The server as a daemon. The default has neither caller nor pid file: that of a worker.
#[derive(Debug, Default)]
pub struct Daemon {
    /// To the process that was called, until it has been told how the start went.
    caller: Option<File>,
    /// Where to place the pid file.
    pid_path: Option<PathBuf>,
    /// None until the server serves.
    pid_file: Option<PidFile>,
    /// Whether this server takes over from one that holds the pid file.
    is_successor: bool,
    is_ready: bool,
}

/// What the caller is told; else the status to end with.
const READY: u8 = 0;

impl Daemon {
    /// Goes to the background if configured, and checks that there can be a pid file. Call it in a process with one
    /// thread, and tell [`ended`](Self::ended) how it ends. `is_successor`: this process was started by the server that
    /// it replaces, which is in the background and holds the pid file.
    pub fn start(settings: &config::Daemon, is_successor: bool) -> Result<Self, Failure> {
        let caller = (settings.detach && !is_successor).then(detach).transpose().map_err(not_detached)?;
        let mut daemon =
            Self { caller, pid_path: settings.pid_file.clone(), is_successor, ..Self::default() };
        let check = if is_successor { PidFile::check_directory } else { PidFile::check };
        let checked = settings.pid_file.as_deref().map_or(Ok(()), check);
        checked.inspect_err(|Failure(exit, _)| daemon.tell(exit.code() as u8)).map(|()| daemon)
    }

    /// Whether what goes to the standard streams is read by nobody, or soon will be.
    pub fn is_detached(&self) -> bool {
        self.caller.is_some()
    }

    /// Places the pid file. Call it before anybody is told that the server is ready.
    pub fn place_pid_file(&mut self) -> Result<(), Failure> {
        let Some(path) = &self.pid_path else { return Ok(()) };
        let placed = if self.is_successor { PidFile::take_over(path) } else { PidFile::place(path) };
        self.pid_file = Some(placed?);
        Ok(())
    }

    /// The server is ready: lets the caller go and leaves its terminal.
    pub fn ready(&mut self) -> Result<(), Failure> {
        self.is_ready = true;
        if self.caller.is_some() {
            leave_streams().map_err(not_detached)?;
            self.tell(READY);
        }
        Ok(())
    }

    /// Whether the server has been ready.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Has the pid file name this process again if a successor, which has failed, has put its own there.
    pub fn rewrite_pid_file(&mut self) -> Result<(), Failure> {
        if let (Some(path), Some(false)) = (&self.pid_path, self.pid_file.as_ref().map(PidFile::is_there)) {
            self.pid_file = Some(PidFile::take_over(path)?);
        }
        Ok(())
    }

    /// The server ends.
    pub fn ended(&mut self, exit: Exit) {
        if let Some(pid_file) = self.pid_file.take() {
            pid_file.remove();
        }
        if self.caller.is_some() {
            // One that was told to stop has stopped as it should, but is not ready.
            let exit = if exit == Exit::Ok { Exit::Internal } else { exit };
            self.tell(exit.code() as u8);
        }
    }

    fn tell(&mut self, what: u8) {
        if let Some(mut caller) = self.caller.take() {
            let _ = caller.write_all(&[what]); // it may have gone: somebody has pressed Ctrl-C
        }
    }
}

fn not_detached(error: io::Error) -> Failure {
    Failure(Exit::Internal, format!("cannot go to the background: {error}"))
}

/// Leaves the session and the directory. Returns in the daemon; the process that was called waits to be told how it
/// goes, and ends.
fn detach() -> io::Result<File> {
    let (from_daemon, to_caller) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread, so the child may do whatever a process may do.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(to_caller);
            wait_for(child, File::from(from_daemon))
        }
        ForkResult::Child => {
            drop(from_daemon);
            setsid()?;
            // SAFETY: as above. The second child leads no session, and so never gets a terminal.
            if let ForkResult::Parent { .. } = unsafe { fork() }? {
                // SAFETY: ends this process here: what it has is its child's.
                unsafe { libc::_exit(0) }
            }
            chdir("/")?;
            dup2_stdin(super::open_null()?)?;
            Ok(File::from(to_caller))
        }
    }
}

/// In the process that was called, to its end.
fn wait_for(child: Pid, mut from_daemon: File) -> ! {
    let _ = waitpid(child, None); // the one in between
    let mut told = [0];
    let status = match from_daemon.read_exact(&mut told) {
        Ok(()) => i32::from(told[0]),
        Err(_) => {
            eprintln!("wshd: died before it was ready");
            Exit::Internal.code()
        }
    };
    std::process::exit(status)
}

/// Has standard output and error go nowhere.
pub fn leave_streams() -> io::Result<()> {
    let null = super::open_null()?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}
