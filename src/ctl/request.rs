//! What the control socket can be asked for: one JSON object, on a line of its own. `wshd ctl` writes it and the
//! supervisor reads it, both with this type, and wshd-ctl(8) describes it. Knows no socket and carries nothing out.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::filter::{Filter, Peer};
use super::publish::Payload;
use crate::log::Level;
use crate::proto::ws::close;

/// The longest request, with the end of its line; bytes.
pub const MAX_BYTES: usize = 96 * 1024;

/// What a code to close with has to be.
pub const CLOSE_CODE: &str = "expected a close code that may be sent: 1000-1003, 1007-1014 or 3000-4999";

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// How the server is: answered with [`Status`](super::answer::Status).
    Status {},
    /// What is configured: answered with a text, TOML without secrets.
    Config {},
    /// Connections: answered with [`Connections`](super::answer::Connections).
    Connections {
        /// Which.
        #[serde(default, skip_serializing_if = "Filter::is_empty")]
        filter: Filter,
    },
    /// Close one connection, or all that a filter lets through; one of both has to be there.
    Close {
        /// Which one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<Id>,
        /// Which ones; not empty.
        #[serde(default, skip_serializing_if = "Filter::is_empty")]
        filter: Filter,
        /// The code of the Close frame; 1001 unless given.
        #[serde(default = "going_away", deserialize_with = "close_code")]
        code: u16,
    },
    /// Record what the connections of a handler receive, into the socket that comes with the line: answered with a
    /// [`Handler`](super::answer::Handler).
    Record {
        /// A resource of the handler.
        resource: String,
        /// Of a longer message the size only; bytes.
        longest: u32,
    },
    /// All topics: answered with [`Topics`](super::topics::Topics).
    Topics {},
    /// Publish a message: answered with a text.
    Publish {
        /// Of the topic; may be left out if there is only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<String>,
        /// To what.
        topic: String,
        /// Whether it is binary, not text.
        #[serde(default)]
        binary: bool,
        /// The message.
        data: Payload,
    },
    /// Which handlers are quarantined, or to change that: answered with a list of
    /// [`Handler`](super::answer::Handler).
    Quarantine {
        /// A resource of the handler; without it, all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resource: Option<String>,
        /// What is to be; without it, only tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<Switch>,
        /// For how long; seconds, without them until it is switched off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u32>,
    },
    /// Stop the server.
    Stop {
        /// Without closing connections first.
        #[serde(default)]
        now: bool,
    },
    /// Send clients away, then stop.
    Drain {
        /// Over which time connections are closed; without it as configured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u32>,
    },
    /// Serve again after a drain.
    Resume {},
    /// Read configuration and handlers anew.
    Reload {},
    /// Go on as the program that is now in the place of the running one.
    Upgrade {},
    /// Give up a reload or an upgrade that is not in force yet.
    Cancel {},
    /// Which lines are logged, or to change that until the next reload: answered with the level.
    #[serde(rename = "log-level")]
    LogLevel {
        /// The least level; without it, only tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        level: Option<Level>,
    },
    /// Change the number of workers of a pool.
    Workers {
        /// Its name.
        #[serde(default = "default_pool")]
        pool: String,
        /// How.
        change: Change,
    },
}

/// A quarantine by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// Not to be served.
    On,
    /// To be served.
    Off,
}

/// A change of the number of workers, written as `+1`, `-1` or `4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Change {
    /// So many more, or less; never 0.
    By(i32),
    /// So many.
    To(u32),
}

/// Names a connection among all processes of a server: `PID:ID`, the latter in hexadecimal as in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id {
    /// The process that has it.
    pub pid: i32,
    /// Its id there.
    pub conn: u64,
}

fn going_away() -> u16 {
    1001
}

fn close_code<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    let code = u16::deserialize(from)?;
    close::may_travel(code).then_some(code).ok_or_else(|| D::Error::custom(CLOSE_CODE))
}

fn default_pool() -> String {
    "default".to_owned()
}

impl Request {
    /// Reads a line. What is wrong with it, if anything is.
    pub fn read(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))
    }

    /// What it asks to be done, for the log; none if it only asks for an answer.
    pub fn change(&self) -> Option<String> {
        Some(match self {
            Request::Status {}
            | Request::Config {}
            | Request::Connections { .. }
            | Request::Topics {}
            | Request::LogLevel { level: None }
            | Request::Quarantine { state: None, .. } => return None,
            Request::Record { resource, longest } => {
                format!("record {}, messages up to {longest} bytes", resource.escape_debug())
            }
            Request::Publish { topic, data, .. } => {
                format!("publish {} bytes to {}", data.bytes().len(), topic.escape_debug())
            }
            Request::Close { id: Some(id), code, .. } => format!("close {id} with {code}"),
            Request::Close { id: None, filter, code } => format!("close all of {filter} with {code}"),
            Request::Quarantine { resource, state: Some(state), .. } => {
                let state = if *state == Switch::On { "on" } else { "off" };
                format!("quarantine {} {state}", resource.as_deref().unwrap_or_default().escape_debug())
            }
            Request::Stop { now } => if *now { "stop now" } else { "stop" }.to_owned(),
            Request::Drain { seconds: Some(seconds) } => format!("drain for {seconds} s"),
            Request::Drain { seconds: None } => "drain".to_owned(),
            Request::Resume {} => "resume".to_owned(),
            Request::Reload {} => "reload".to_owned(),
            Request::Upgrade {} => "upgrade".to_owned(),
            Request::Cancel {} => "cancel".to_owned(),
            Request::LogLevel { level: Some(level) } => format!("log-level {}", level.name()),
            Request::Workers { pool, change } => format!("workers {change} of {}", pool.escape_debug()),
        })
    }

    /// The line, with its end.
    pub fn line(&self) -> Result<Vec<u8>, String> {
        let mut line = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        line.push(b'\n');
        match line.len() {
            0..=MAX_BYTES => Ok(line),
            _ => Err(format!("the request is too long: expected at most {MAX_BYTES} bytes")),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::By(number) => write!(f, "{number:+}"),
            Change::To(number) => write!(f, "{number}"),
        }
    }
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: i32 = text.parse().map_err(|_| WORKERS.to_owned())?;
        match text.starts_with(['+', '-']) {
            true if number != 0 => Ok(Change::By(number)),
            false => u32::try_from(number).map(Change::To).map_err(|_| WORKERS.to_owned()),
            true => Err(WORKERS.to_owned()),
        }
    }
}

const WORKERS: &str = "expected a number of workers, or a change such as +1 or -1";

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:x}", self.pid, self.conn)
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(pid, conn)| {
            let pid = pid.parse().ok().filter(|pid| *pid > 0)?;
            Some(Id { pid, conn: u64::from_str_radix(conn, 16).ok()? })
        });
        parts.ok_or_else(|| {
            "expected PID:ID as wshd ctl connections lists it, such as 4711:100000007".to_owned()
        })
    }
}

/// As a string in JSON.
macro_rules! written {
    ($name:ty) => {
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

written!(Id);
written!(Change);
written!(Peer);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn requests_as_the_manual_writes_them() {
        let id = Id { pid: 4711, conn: 0x1_0000_0007 };
        let chat = || Filter { handler: Some("chat".to_owned()), ..Filter::default() };
        let close = |id, filter, code| Request::Close { id, filter, code };
        let quarantine = |resource: Option<&str>, state, seconds| Request::Quarantine {
            resource: resource.map(str::to_owned),
            state,
            seconds,
        };
        let workers = |pool: &str, change| Request::Workers { pool: pool.to_owned(), change };
        for (line, request) in [
            (r#"{"command":"status"}"#, Request::Status {}),
            (r#"{"command":"config"}"#, Request::Config {}),
            (r#"{"command":"connections"}"#, Request::Connections { filter: Filter::default() }),
            (
                r#"{"command":"connections","filter":{"handler":"chat"}}"#,
                Request::Connections { filter: chat() },
            ),
            (r#"{"command":"close","id":"4711:100000007"}"#, close(Some(id), Filter::default(), 1001)),
            (
                r#"{"command":"close","id":"4711:100000007","code":4000}"#,
                close(Some(id), Filter::default(), 4000),
            ),
            (r#"{"command":"close","filter":{"handler":"chat"}}"#, close(None, chat(), 1001)),
            (r#"{"command":"cancel"}"#, Request::Cancel {}),
            (r#"{"command":"log-level","level":"debug"}"#, Request::LogLevel { level: Some(Level::Debug) }),
            (r#"{"command":"quarantine"}"#, quarantine(None, None, None)),
            (
                r#"{"seconds":60,"state":"on","command":"quarantine","resource":"/chat"}"#,
                quarantine(Some("/chat"), Some(Switch::On), Some(60)),
            ),
            (r#"{"command":"stop"}"#, Request::Stop { now: false }),
            (r#"{"command":"stop","now":true}"#, Request::Stop { now: true }),
            (r#"{"command":"topics"}"#, Request::Topics {}),
            (
                r#"{"command":"record","resource":"/chat","longest":65536}"#,
                Request::Record { resource: "/chat".to_owned(), longest: 65536 },
            ),
            (
                r#"{"command":"publish","topic":"lobby","data":""}"#,
                Request::Publish {
                    scope: None,
                    topic: "lobby".to_owned(),
                    binary: false,
                    data: Payload::default(),
                },
            ),
            (r#"{"command":"drain"}"#, Request::Drain { seconds: None }),
            (r#"{"command":"drain","seconds":30}"#, Request::Drain { seconds: Some(30) }),
            (r#"{"command":"resume"}"#, Request::Resume {}),
            (r#"{"command":"reload"}"#, Request::Reload {}),
            (r#"{"command":"upgrade"}"#, Request::Upgrade {}),
            (r#"{"command":"workers","change":"-1"}"#, workers("default", Change::By(-1))),
            (r#" { "command" : "workers" , "pool":"chat","change":"3" } "#, workers("chat", Change::To(3))),
        ] {
            assert_eq!(Request::read(line.as_bytes()), Ok(request.clone()), "{line}");
            let written = request.line().unwrap();
            assert_eq!(written.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(Request::read(&written), Ok(request));
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_a_reason() {
        for wrong in [
            "",
            "{}",
            "[]",
            "null",
            "status",
            "\"status\"",
            "{\"command\":\"status\"",
            "\0",
            "\u{e9}",
            "{\"command\":7}",
            r#"{"command":"reboot"}"#,
            r#"{"command":"Status"}"#,
            r#"{"command":"status","x":1}"#,
            r#"{"command":"status"}{"command":"stop"}"#,
            r#"{"command":"close","id":"7"}"#,
            r#"{"command":"close","id":"-1:7"}"#,
            r#"{"command":"close","id":"1:g"}"#,
            r#"{"command":"close","id":"1:7","code":65536}"#,
            r#"{"command":"close","id":"1:7","code":1005}"#,
            r#"{"command":"close","filter":{"colour":"red"}}"#,
            r#"{"command":"connections","filter":{"peer":"somebody"}}"#,
            r#"{"command":"stop","now":"yes"}"#,
            r#"{"command":"log-level","level":"loud"}"#,
            r#"{"command":"workers"}"#,
            r#"{"command":"workers","change":1}"#,
            r#"{"command":"workers","change":"+0"}"#,
            r#"{"command":"workers","change":"1.5"}"#,
            r#"{"command":"quarantine","resource":"/","state":"maybe"}"#,
        ] {
            let error = Request::read(wrong.as_bytes()).unwrap_err();
            assert!(error.starts_with("not a request: "), "{wrong}: {error}");
        }
        assert!(Request::read(&[0xff, 0xfe]).is_err());
        assert!(Request::read("[".repeat(MAX_BYTES).as_bytes()).is_err());
        let long = Request::Quarantine { resource: Some("/".repeat(MAX_BYTES)), state: None, seconds: None };
        assert!(long.line().unwrap_err().contains("too long"));
    }
}
