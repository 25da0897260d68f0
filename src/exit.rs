//! The exit codes of wshd. All of them are defined here and documented in wshd(8).

use std::io::{self, Write};
use std::process::ExitCode;

/// An exit code. The numbers are stable, since scripts test for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Ok = 0,
    /// A bug of wshd, or an unexpected error of the system.
    Internal = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration, or with `--strict-handlers` a handler, is wrong.
    Config = 3,
    /// A listening address cannot be bound, or another server holds the pid file.
    Bind = 4,
    /// No worker could be started.
    Start = 5,
    /// `wshd check` found faults.
    Check = 6,
    /// Workers did not stop in time and were killed.
    Killed = 7,
    /// `wshd ctl`, `cat`, `bench`: no server answers, or a connection ended early.
    Unreachable = 8,
    /// `wshd ctl`, `cat`, `bench`: the server refused the request, or failed. `wshd new`: nothing was created.
    Refused = 9,
}

impl Exit {
    /// The number.
    pub fn code(self) -> i32 {
        i32::from(self as u8)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a server cannot start or a command fails: its exit code and the message; [`Exit::Ok`] if only the reader of its
/// output has gone.
#[derive(Debug)]
pub struct Failure(pub Exit, pub String);

impl Failure {
    /// Standard output cannot be written.
    pub fn output(error: io::Error) -> Self {
        let exit = if error.kind() == io::ErrorKind::BrokenPipe { Exit::Ok } else { Exit::Internal };
        Failure(exit, format!("standard output: {error}"))
    }

    /// Prints the message to standard error, whose reader may have gone, too.
    pub fn report(self) -> Exit {
        let Failure(exit, why) = self;
        if exit != Exit::Ok {
            let _ = writeln!(io::stderr(), "wshd: {why}");
        }
        exit
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure(Exit::Internal, error.to_string())
    }
}
