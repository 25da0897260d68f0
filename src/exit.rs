//! The exit codes of wshd. Refuses to grow ad hoc: every way out of the program is named here, and wshd(8)
//! lists the same numbers.

use std::process::ExitCode;

/// How the program ends. The numbers are stable: scripts may test for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything was done.
    Ok = 0,
    /// A bug of ours, or the system refused something it normally grants.
    Internal = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration, or with `--strict-handlers` a handler, is wrong.
    Config = 3,
    /// A listening address cannot be bound, or another server holds the pid file.
    Bind = 4,
    /// No worker comes up.
    Start = 5,
    /// `wshd check` found faults.
    Check = 6,
    /// Workers did not stop in time and were killed.
    Killed = 7,
    /// `wshd ctl`, `cat`, `bench`: no server answers, or a connection ended early.
    Unreachable = 8,
    /// `wshd ctl`, `cat`, `bench`: the server does not do what it was asked for, or cannot. `wshd new`: nothing is created.
    Refused = 9,
}

impl Exit {
    /// The number, as a process passes it to `_exit`.
    pub fn code(self) -> i32 {
        i32::from(self as u8)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}
