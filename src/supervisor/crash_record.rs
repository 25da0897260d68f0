//! Crash records: what is known of a death as JSON, one file each, in `crash_dir`. Written here; `wshd replay` makes a
//! script of one. Fields that are missing, in a record of another version, are empty.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::death::{Death, kind_name};
use crate::ffi::callback_name;
use crate::fleet::memory::crash::Spot;

/// The most records in a directory; the oldest make way.
pub const MOST: usize = 100;
const PREFIX: &str = "wshd-crash-";

/// A record, whose fields are written in this order. Each has a time.
#[derive(Debug, Serialize, Deserialize)]
pub struct CrashRecord {
    /// Version of the server.
    #[serde(default)]
    pub wshd: String,
    pub time: String,
    #[serde(default)]
    pub worker: String,
    #[serde(default)]
    pub pid: i32,
    #[serde(default)]
    pub cause: String,
    pub signal: Option<String>,
    pub address: Option<String>,
    pub status: Option<i32>,
    pub code: Option<Code>,
    pub via: Option<Code>,
    pub handler: Option<Handler>,
    pub connection: Option<String>,
    pub peer: Option<String>,
    pub request: Option<Request>,
    pub message: Option<Message>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Code {
    pub module: String,
    pub offset: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Handler {
    pub name: String,
    pub version: String,
    pub file: String,
    pub resource: String,
    pub callback: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    pub resource: Option<String>,
    pub origin: Option<String>,
    pub subprotocol: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// "text" or "binary".
    #[serde(rename = "type")]
    pub kind: String,
    pub size: u64,
    pub hash: Option<String>,
    /// The first ones, in base64.
    pub bytes: String,
    /// Whether those are all.
    pub complete: bool,
}

impl CrashRecord {
    pub fn of(death: &Death<'_>, time: SystemTime) -> Self {
        let facts = &death.facts;
        let code = |spot: &Option<Spot>| {
            let of = |spot: &Spot| Code {
                module: spot.module().into_owned(),
                offset: format!("{:#x}", spot.offset),
            };
            spot.as_ref().map(of)
        };
        let text =
            |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        Self {
            wshd: env!("CARGO_PKG_VERSION").to_owned(),
            time: humantime::format_rfc3339_millis(time).to_string(),
            worker: death.worker.to_owned(),
            pid: death.pid,
            cause: death.cause.name().to_owned(),
            signal: death.cause.signal(),
            address: death.cause.address().map(|address| format!("{address:#x}")),
            status: death.cause.status(),
            code: code(&facts.code),
            via: code(&facts.via),
            handler: death.handler.map(|route| Handler {
                name: route.name.clone(),
                version: route.version.clone(),
                file: route.file.to_string_lossy().into_owned(),
                resource: route.resource.clone(),
                callback: callback_name(death.callback).to_owned(),
            }),
            connection: (death.conn != 0).then(|| format!("{:x}", death.conn)),
            peer: facts.peer.map(|peer| peer.to_string()),
            request: facts.resource.is_some().then(|| Request {
                resource: text(&facts.resource),
                origin: text(&facts.origin),
                subprotocol: text(&facts.protocol),
            }),
            message: facts.message.as_ref().map(|message| Message {
                kind: kind_name(message.kind).to_owned(),
                size: message.size,
                hash: message.hash.map(|hash| format!("{hash:08x}")),
                bytes: BASE64.encode(&message.bytes),
                complete: message.bytes.len() as u64 == message.size,
            }),
        }
    }

    /// Writes it into a directory, whose oldest records make way. Returns its path.
    pub fn write(&self, dir: &Path) -> io::Result<PathBuf> {
        let stamp = self.time.replace([':', '-'], "");
        let path = dir.join(format!("{PREFIX}{stamp}-{}.json", self.pid));
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        // Nobody reads a part of it, and on a full disk none is left.
        let mut file = NamedTempFile::new_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.persist_noclobber(&path)?;
        make_room(dir)?;
        Ok(path)
    }
}

impl Message {
    /// The bytes that were recorded.
    pub fn bytes(&self) -> Result<Vec<u8>, String> {
        BASE64.decode(&self.bytes).map_err(|error| format!("the bytes of the message: {error}"))
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, UNIX_EPOCH};

    use nix::sys::signal::Signal;
    use serde_json::json;

    use super::*;
    use crate::supervisor::death::Cause;
    use crate::supervisor::death::tests::{death, facts, route};

    /// 2026-01-02 03:00:05.678.
    const TIME: Duration = Duration::from_millis(1_767_322_805_678);

    #[test]
    fn a_record_has_all_that_is_known() {
        let route = route();
        let death = death(Cause::Crash(Signal::SIGSEGV, 16), Some(&route), facts());
        let record = serde_json::to_value(CrashRecord::of(&death, UNIX_EPOCH + TIME)).unwrap();
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
            let time = UNIX_EPOCH + Duration::from_secs(second);
            CrashRecord::of(&death(Cause::Exit, None, Default::default()), time).write(dir.path())
        };
        let second = |number: u64| TIME.as_secs() + number;
        let first = write_at(second(0)).unwrap();
        assert_eq!(first.file_name().unwrap(), "wshd-crash-20260102T030005.000Z-42.json");
        assert_eq!(first.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let rest: Vec<PathBuf> = (1..=MOST as u64).map(|number| write_at(second(number)).unwrap()).collect();
        assert!(!first.exists() && rest.iter().all(|path| path.exists()));
        assert!(dir.path().join("a-note.json").exists());
        assert!(write_at(0).is_ok(), "older than all: it goes at once");
        assert!(write_at(second(1)).is_err(), "nothing is written over");
    }
}
