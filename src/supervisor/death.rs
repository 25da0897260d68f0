//! The death of a worker for people: one line for the log with all that is known, and a record in JSON from which
//! it can be replayed. Writes no log and quarantines nobody.

use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::{WaitOptions, waitpid};
use serde_json::{Value, json};

use super::plural;
use crate::ffi::callback_name;
use crate::ffi::guarded;
use crate::fleet::crash::{EXIT, HANG, Spot};
use crate::fleet::crash_report::{Facts, Message};
use crate::fleet::routes::Route;

/// The most records in a directory; the oldest make way.
pub const MOST: usize = 100;
const PREFIX: &str = "wshd-crash-";

/// How a worker came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A signal that its own code has raised, and the address that could not be used.
    Crash(Signal, u64),
    /// A handler has called `exit()`.
    Exit,
    /// A handler did not come back.
    Hang,
    /// A signal that the process could not report; by number, since those for real time have no name.
    Killed(i32),
    /// It has ended by itself with this status.
    Ended(i32),
}

impl Cause {
    /// That of a child, which is reaped. None: it has not ended. To nix a signal without a name is an error, after which the
    /// child is gone.
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
        match self {
            Cause::Crash(..) => "crash",
            Cause::Exit => "exit",
            Cause::Hang => "hang",
            Cause::Killed(_) => "killed",
            Cause::Ended(_) => "ended",
        }
    }

    /// The signal of which it died.
    fn signal(self) -> Option<String> {
        let number = match self {
            Cause::Crash(signal, _) => signal as i32,
            Cause::Killed(number) => number,
            Cause::Exit | Cause::Hang | Cause::Ended(_) => return None,
        };
        let unnamed = |_| format!("signal {number}");
        Some(Signal::try_from(number).map_or_else(unnamed, |signal| signal.as_str().to_owned()))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signal = self.signal().unwrap_or_default();
        match self {
            Cause::Crash(Signal::SIGSEGV | Signal::SIGBUS, address) => {
                write!(text, "crashed: {signal} at address {address:#x}")?;
                guarded::explain(*address).map_or(Ok(()), |what| write!(text, " ({what})"))
            }
            Cause::Crash(..) => write!(text, "crashed: {signal}"),
            Cause::Exit => text.write_str("was brought down by a call of exit()"),
            Cause::Hang => text.write_str("was brought down: a handler did not come back"),
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
    /// Its process.
    pub pid: i32,
    /// How it died.
    pub cause: Cause,
    /// The handler it died in.
    pub handler: Option<&'a Route>,
    /// The callback, as `ffi` counts them.
    pub callback: u32,
    /// The connection's id; 0: none.
    pub conn: u64,
    /// What it has left.
    pub facts: Facts,
}

impl Death<'_> {
    /// The line for the log, without the worker's name and pid.
    pub fn line(&self) -> String {
        let mut line = self.cause.to_string();
        let Facts { code, via, peer, message, .. } = &self.facts;
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
        if let Some(Message { kind, size, hash, .. }) = message {
            let size = usize::try_from(*size).unwrap_or(usize::MAX);
            let _ = write!(line, ", {} message of {}", kind_name(*kind), plural(size, "byte"));
            if let Some(hash) = hash {
                let _ = write!(line, " (hash {hash:08x})");
            }
        }
        line
    }

    pub fn record(&self, time: SystemTime) -> Value {
        let Facts { code, via, peer, resource, origin, protocol, message } = &self.facts;
        let address = match self.cause {
            Cause::Crash(Signal::SIGSEGV | Signal::SIGBUS, address) => Some(format!("{address:#x}")),
            _ => None,
        };
        let status = if let Cause::Ended(status) = self.cause { Some(status) } else { None };
        let spot = |spot: &Option<Spot>| {
            let place =
                |spot: &Spot| json!({ "module": spot.module(), "offset": format!("{:#x}", spot.offset) });
            spot.as_ref().map(place)
        };
        let handler = self.handler.map(|route| {
            json!({
                "name": route.name,
                "version": route.version,
                "file": route.file.to_string_lossy(),
                "resource": route.resource,
                "callback": callback_name(self.callback),
            })
        });
        let text =
            |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let request = resource.is_some().then(
            || json!({ "resource": text(resource), "origin": text(origin), "subprotocol": text(protocol) }),
        );
        let message = message.as_ref().map(|message| {
            json!({
                "type": kind_name(message.kind),
                "size": message.size,
                "hash": message.hash.map(|hash| format!("{hash:08x}")),
                "bytes": BASE64.encode(&message.bytes),
                "complete": message.bytes.len() as u64 == message.size,
            })
        });
        json!({
            "wshd": env!("CARGO_PKG_VERSION"),
            "time": humantime::format_rfc3339_millis(time).to_string(),
            "worker": self.worker,
            "pid": self.pid,
            "cause": self.cause.name(),
            "signal": self.cause.signal(),
            "address": address,
            "status": status,
            "code": spot(code),
            "via": spot(via),
            "handler": handler,
            "connection": (self.conn != 0).then(|| format!("{:x}", self.conn)),
            "peer": peer.map(|peer| peer.to_string()),
            "request": request,
            "message": message,
        })
    }
}

/// Writes a record into a directory, whose oldest records make way. Returns its path.
pub fn write(dir: &Path, record: &Value, time: SystemTime, pid: i32) -> io::Result<PathBuf> {
    let stamp = humantime::format_rfc3339_millis(time).to_string().replace([':', '-'], "");
    let path = dir.join(format!("{PREFIX}{stamp}-{pid}.json"));
    let mut text = serde_json::to_string_pretty(record)?;
    text.push('\n');
    // create_new follows no link that somebody has put there.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    // On a full disk nothing is left rather than a part.
    file.write_all(text.as_bytes()).inspect_err(|_| drop(std::fs::remove_file(&path)))?;
    make_room(dir)?;
    Ok(path)
}

/// Removes the oldest records; their names sort by time.
fn make_room(dir: &Path) -> io::Result<()> {
    let is_record = |name: &str| name.starts_with(PREFIX) && name.ends_with(".json");
    let names = std::fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| is_record(name)).collect();
    names.sort();
    let surplus = names.len().saturating_sub(MOST);
    names.iter().take(surplus).try_for_each(|name| std::fs::remove_file(dir.join(name)))
}

fn kind_name(kind: u32) -> &'static str {
    match kind {
        ws_handler::raw::WS_TEXT => "text",
        _ => "binary",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn route() -> Route {
        let (file, name) = ("/h/crash_wsh.so".into(), "crash".into());
        Route { file, name, version: "1".into(), ..Route::for_test("/crash") }
    }

    fn spot(module: &str, offset: u64) -> Option<Spot> {
        Some(Spot::new(module.as_bytes(), offset))
    }

    fn facts() -> Facts {
        Facts {
            code: spot("crash_wsh.so", 0x11a3),
            via: spot("libc.so.6", 0x8a),
            peer: Some("192.0.2.1:80".parse().unwrap()),
            resource: Some(b"/crash?a".to_vec()),
            origin: None,
            protocol: Some(b"chat".to_vec()),
            message: Some(Message { kind: 1, size: 5, hash: Some(0x1a2b), bytes: b"hel".to_vec() }),
        }
    }

    /// on_message is number 6 (`ffi::place::Callback`).
    fn death(cause: Cause, handler: Option<&Route>, facts: Facts) -> Death<'_> {
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
        let least = Death { conn: 0, ..death(Cause::Crash(Signal::SIGSEGV, 16), None, Facts::default()) };
        assert_eq!(least.line(), "crashed: SIGSEGV at address 0x10 in no handler");
        let killed = Death { conn: 0, ..death(Cause::Killed(9), None, Facts::default()) };
        assert_eq!(killed.line(), "died of SIGKILL");
        assert_eq!(Cause::Killed(34).to_string(), "died of signal 34");
        let ended = death(Cause::Ended(0), Some(&route), Facts::default());
        assert_eq!(ended.line(), "ended with status 0 in on_message of crash, connection 100000002");
    }

    #[test]
    fn a_record_has_all_of_it() {
        let route = route();
        let time = UNIX_EPOCH + Duration::from_millis(1_767_322_805_678); // 2026-01-02 03:00:05.678
        let record = death(Cause::Crash(Signal::SIGSEGV, 16), Some(&route), facts()).record(time);
        let expected = json!({
            "wshd": env!("CARGO_PKG_VERSION"),
            "time": "2026-01-02T03:00:05.678Z",
            "worker": "worker default/0",
            "pid": 42,
            "cause": "crash",
            "signal": "SIGSEGV",
            "address": "0x10",
            "status": null,
            "code": { "module": "crash_wsh.so", "offset": "0x11a3" },
            "via": { "module": "libc.so.6", "offset": "0x8a" },
            "handler": { "name": "crash", "version": "1", "file": "/h/crash_wsh.so", "resource": "/crash",
                         "callback": "on_message" },
            "connection": "100000002",
            "peer": "192.0.2.1:80",
            "request": { "resource": "/crash?a", "origin": null, "subprotocol": "chat" },
            "message": { "type": "text", "size": 5, "hash": "00001a2b", "bytes": "aGVs", "complete": false },
        });
        assert_eq!(record, expected);
    }

    #[test]
    fn a_directory_keeps_the_newest_records_and_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a-note.json"), "").unwrap();
        let write_at = |second: u64| {
            let time = UNIX_EPOCH + Duration::from_secs(1_767_322_805 + second);
            write(dir.path(), &json!(second), time, 42).unwrap()
        };
        let first = write_at(0);
        assert_eq!(first.file_name().unwrap(), "wshd-crash-20260102T030005.000Z-42.json");
        assert_eq!(first.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let rest: Vec<PathBuf> = (1..=MOST as u64).map(write_at).collect();
        assert!(!first.exists() && rest.iter().all(|path| path.exists()));
        assert!(dir.path().join("a-note.json").exists());
        assert!(write(dir.path(), &json!(0), UNIX_EPOCH, 1).is_ok(), "older than all: it goes at once");
        let again = write(dir.path(), &json!(0), UNIX_EPOCH + Duration::from_secs(1_767_322_806), 42);
        assert!(again.is_err(), "nothing is written over");
    }
}
