//! The death of a worker for people: one line for the log with all that is known. Writes no log and quarantines nobody.

use std::fmt::{self, Write as _};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::{WaitOptions, waitpid};
use strum::IntoStaticStr;

use super::plural;
use crate::ffi::callback_name;
use crate::ffi::guarded;
use crate::fleet::memory::crash::{EXIT, HANG};
use crate::fleet::memory::crash_report::{CrashDetails, MessageExcerpt};
use crate::fleet::routes::Route;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Cause {
    /// A signal that its own code has raised, and the address that could not be used.
    Crash(Signal, u64),
    /// A handler has called `exit()`.
    Exit,
    /// A handler did not return.
    Hang,
    /// A signal that the process could not report; by number, since those for real time have no name.
    Killed(i32),
    /// It has ended by itself with this status.
    Ended(i32),
}

impl Cause {
    /// That of a child, which is reaped. None: it has not ended. To nix a signal without a name is an error, after
    /// which the child is gone.
    pub fn reap(pid: Pid) -> Option<Self> {
        let pid = rustix::process::Pid::from_raw(pid.as_raw())?;
        let (_, status) = waitpid(Some(pid), WaitOptions::NOHANG).ok()??;
        let killed = status.terminating_signal().map(Cause::Killed);
        killed.or_else(|| status.exit_status().map(Cause::Ended))
    }

    /// Of what the scoreboard says of a crash.
    pub fn of_crash(signal: i32, address: u64) -> Self {
        match (signal, Signal::try_from(signal)) {
            (HANG, _) => Cause::Hang,
            (EXIT, _) | (_, Err(_)) => Cause::Exit,
            (_, Ok(signal)) => Cause::Crash(signal, address),
        }
    }

    /// The one word for it in a record.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The signal of which it died.
    pub fn signal(self) -> Option<String> {
        let number = match self {
            Cause::Crash(signal, _) => signal as i32,
            Cause::Killed(number) => number,
            Cause::Exit | Cause::Hang | Cause::Ended(_) => return None,
        };
        let unnamed = |_| format!("signal {number}");
        Some(Signal::try_from(number).map_or_else(unnamed, |signal| signal.as_str().to_owned()))
    }

    /// The address that could not be used.
    pub fn address(self) -> Option<u64> {
        match self {
            Cause::Crash(Signal::SIGSEGV | Signal::SIGBUS, address) => Some(address),
            _ => None,
        }
    }

    /// With what it has ended by itself.
    pub fn status(self) -> Option<i32> {
        if let Cause::Ended(status) = self { Some(status) } else { None }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signal = self.signal().unwrap_or_default();
        match self {
            Cause::Crash(..) => {
                write!(text, "crashed: {signal}")?;
                let Some(address) = self.address() else { return Ok(()) };
                write!(text, " at address {address:#x}")?;
                guarded::explain(address).map_or(Ok(()), |what| write!(text, " ({what})"))
            }
            Cause::Exit => text.write_str("ended: exit() called"),
            Cause::Hang => text.write_str("killed: handler timeout"),
            Cause::Killed(_) => write!(text, "died of {signal}"),
            Cause::Ended(status) => write!(text, "ended with status {status}"),
        }
    }
}

/// What is known of a death.
#[derive(Debug)]
pub struct Death<'a> {
    /// The worker's name.
    pub worker: &'a str,
    pub pid: i32,
    pub cause: Cause,
    /// The handler it died in.
    pub handler: Option<&'a Route>,
    /// The callback, as `ffi` counts them.
    pub callback: u32,
    /// The connection's id; 0: none.
    pub conn: u64,
    /// What it has left.
    pub facts: CrashDetails,
}

impl Death<'_> {
    /// The line for the log, without the worker's name and pid.
    pub fn line(&self) -> String {
        let mut line = self.cause.to_string();
        let CrashDetails { code, via, peer, message, .. } = &self.facts;
        // Writing to a String does not fail.
        if let Some(handler) = self.handler {
            let _ = write!(line, " in {} of {}", callback_name(self.callback), handler.name);
        } else if matches!(self.cause, Cause::Crash(..) | Cause::Exit | Cause::Hang) {
            line.push_str(" in no handler");
        }
        if let Some(code) = code {
            let _ = write!(line, ", {code}");
        }
        if let Some(via) = via {
            let _ = write!(line, " (via {via})");
        }
        if self.conn != 0 {
            let _ = write!(line, ", connection {:x}", self.conn);
        }
        if let Some(peer) = peer {
            let _ = write!(line, " from {peer}");
        }
        if let Some(MessageExcerpt { kind, size, hash, .. }) = message {
            let size = usize::try_from(*size).unwrap_or(usize::MAX);
            let _ = write!(line, ", {} message of {}", kind_name(*kind), plural(size, "byte"));
            if let Some(hash) = hash {
                let _ = write!(line, " (hash {hash:08x})");
            }
        }
        line
    }
}

pub fn kind_name(kind: u32) -> &'static str {
    match kind {
        ws_handler::raw::WS_TEXT => "text",
        _ => "binary",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use crate::fleet::memory::crash::Spot;

    pub fn route() -> Route {
        let (file, name) = ("/h/crash_wsh.so".into(), "crash".into());
        Route { file, name, version: "1".into(), ..Route::for_test("/crash") }
    }

    fn spot(module: &str, offset: u64) -> Option<Spot> {
        Some(Spot::new(module.as_bytes(), offset))
    }

    pub fn facts() -> CrashDetails {
        CrashDetails {
            code: spot("crash_wsh.so", 0x11a3),
            via: spot("libc.so.6", 0x8a),
            peer: Some("192.0.2.1:80".parse().unwrap()),
            resource: Some(b"/crash?a".to_vec()),
            origin: None,
            protocol: Some(b"chat".to_vec()),
            message: Some(MessageExcerpt { kind: 1, size: 5, hash: Some(0x1a2b), bytes: b"hel".to_vec() }),
        }
    }

    /// on_message is number 6 (`ffi::place::Callback`).
    pub fn death(cause: Cause, handler: Option<&Route>, facts: CrashDetails) -> Death<'_> {
        Death { worker: "worker default/0", pid: 42, cause, handler, callback: 6, conn: 0x1_0000_0002, facts }
    }

    #[test]
    fn a_line_tells_what_is_known() {
        let route = route();
        let full = death(Cause::Crash(Signal::SIGABRT, 7), Some(&route), facts());
        assert_eq!(
            full.line(),
            "crashed: SIGABRT in on_message of crash, crash_wsh.so+0x11a3 (via libc.so.6+0x8a), \
             connection 100000002 from 192.0.2.1:80, text message of 5 bytes (hash 00001a2b)"
        );
        let least =
            Death { conn: 0, ..death(Cause::Crash(Signal::SIGSEGV, 16), None, CrashDetails::default()) };
        assert_eq!(least.line(), "crashed: SIGSEGV at address 0x10 in no handler");
        let killed = Death { conn: 0, ..death(Cause::Killed(9), None, CrashDetails::default()) };
        assert_eq!(killed.line(), "died of SIGKILL");
        assert_eq!(Cause::Killed(34).to_string(), "died of signal 34");
        let ended = death(Cause::Ended(0), Some(&route), CrashDetails::default());
        assert_eq!(ended.line(), "ended with status 0 in on_message of crash, connection 100000002");
    }
}
