//! What the control socket answers: one JSON object on a line, which is either `{"ok":true,"result":...}` or
//! `{"ok":false,"error":"..."}`. The supervisor and its workers write these types and `wshd ctl` reads them; what it
//! does not know there it passes over. Times are seconds, sizes bytes.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

/// The line for a result or an error.
pub fn line(answer: &Result<Value, String>) -> Vec<u8> {
    let object = match answer {
        Ok(result) => json!({ "ok": true, "result": result }),
        Err(error) => json!({ "ok": false, "error": error }),
    };
    format!("{object}\n").into_bytes()
}

/// The result in such a line, or the error; `None` if it is neither.
pub fn read(line: &[u8]) -> Option<Result<Value, String>> {
    let mut object: serde_json::Map<String, Value> = serde_json::from_slice(line).ok()?;
    match object.get("ok")?.as_bool()? {
        true => Some(Ok(object.remove("result")?)),
        false => Some(Err(object.get("error")?.as_str()?.to_owned())),
    }
}

/// How the server is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// Of the supervisor.
    pub pid: i32,
    /// Since the supervisor has begun.
    pub uptime: f64,
    /// The longest that the supervisor has not listened, since the server was ready.
    #[serde(default)]
    pub longest_turn: f64,
    /// How it drains, if it does.
    #[serde(default)]
    pub draining: Option<Draining>,
    /// Where it listens.
    pub listen: Vec<String>,
    /// Those that are in a slot, in the order of slots.
    pub workers: Vec<Worker>,
    /// Those that have been replaced and have not ended yet.
    pub leaving: Vec<Worker>,
    /// The pools of workers.
    pub pools: Vec<Pool>,
    /// The handlers.
    pub handlers: Vec<Handler>,
}

/// A server that sends its clients away, and then stops.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Draining {
    /// Whether it still accepts connections.
    pub accepting: bool,
    /// Until it stops, at the latest.
    pub seconds: f64,
}

/// A worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Worker {
    /// `POOL/NUMBER`.
    pub name: String,
    /// Its process; 0 while there is none.
    pub pid: i32,
    /// Its pool.
    pub pool: String,
    /// `starting`, `waiting`, `running`, `stopping`, `hung` if it does not respond, `leaving`, or `empty` without a
    /// process.
    pub state: String,
    /// Resident memory.
    pub memory: u64,
    /// Processor time that it has used.
    pub cpu: f64,
    /// Connections that it has.
    pub connections: u32,
    /// Since it was forked.
    pub age: f64,
    /// Since its event loop last went around.
    pub heartbeat: f64,
    /// What this process has received and sent.
    pub totals: Totals,
    /// The callback that its event loop is in.
    pub executes: Option<Executes>,
}

/// Counters that only grow.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Messages received.
    pub messages_in: u64,
    /// Messages sent.
    pub messages_out: u64,
    /// Payload bytes received.
    pub bytes_in: u64,
    /// Payload bytes sent.
    pub bytes_out: u64,
}

/// A call into a handler that has not come back yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Executes {
    /// Name of the handler.
    pub handler: String,
    /// Its resource.
    pub resource: String,
    /// As in the header.
    pub callback: String,
    /// The connection that it is for, if it is for one.
    pub connection: Option<String>,
    /// Since it was called.
    #[serde(rename = "for")]
    pub time: f64,
}

/// A pool of workers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Workers that it is to have.
    pub workers: usize,
    /// Those that run.
    pub running: usize,
    /// Connections of all of them.
    pub connections: u64,
}

/// A handler.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Handler {
    /// As it calls itself.
    pub name: String,
    /// The same.
    pub version: String,
    /// The resources that it serves.
    pub resources: Vec<String>,
    /// `event` or `blocking`.
    pub style: String,
    /// The pool that serves it.
    pub pool: String,
    /// The shared object.
    pub file: String,
    /// WebSockets that are open.
    pub connections: u64,
    /// What all processes have received and sent for it since the server was started.
    pub totals: Totals,
    /// How it is quarantined, if it is.
    pub quarantine: Option<Quarantine>,
}

/// A handler that is not served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quarantine {
    /// Whether one connection at a time is let through as a probe.
    pub probing: bool,
    /// Until it is probed; none if it is quarantined until somebody lifts that, or is being probed.
    pub seconds: Option<f64>,
}

/// All connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connections<'a> {
    /// By worker. What is none is passed over: each worker writes its own.
    #[serde(deserialize_with = "readable")]
    pub connections: Vec<Connection<'a>>,
    /// Connections that are not listed, as there are too many.
    pub left_out: u64,
    /// Workers that have not answered in time, and whose connections are not listed.
    pub silent: Vec<Silent>,
}

fn readable<'de, 'a, D: Deserializer<'de>>(from: D) -> Result<Vec<Connection<'a>>, D::Error> {
    let entries = Vec::<Value>::deserialize(from)?;
    Ok(entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect())
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection<'a> {
    /// See [`Id`](super::request::Id).
    pub id: Cow<'a, str>,
    /// The worker that has it.
    pub worker: Cow<'a, str>,
    /// Address and port; none for a Unix socket.
    pub peer: Option<String>,
    /// `request`, `handshake`, `reply`, `open`, `closing` or `ended`.
    pub phase: Cow<'a, str>,
    /// Path and query; none until it is known.
    pub resource: Option<Cow<'a, str>>,
    /// Name of the handler that has it, if one has.
    pub handler: Option<Cow<'a, str>>,
    /// The authenticated user, if that was asked.
    pub user: Option<Cow<'a, str>>,
    /// Subprotocol, if one was agreed.
    pub protocol: Option<Cow<'a, str>>,
    /// Whether messages may be compressed.
    pub compressed: bool,
    /// Since this worker has it.
    pub age: f64,
    /// Bytes that wait to be sent.
    pub queued: u64,
}

/// A worker that does not answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Silent {
    /// `POOL/NUMBER`.
    pub worker: String,
    /// Its process.
    pub pid: i32,
    /// What keeps it from answering, if that is a handler.
    pub executes: Option<Executes>,
}

/// A time as seconds, to the millisecond.
pub fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_line_that_can_be_read() {
        for answer in [Ok(json!({"a": [1, "b\nc"]})), Ok(Value::Null), Err("no\nsuch".to_owned())] {
            let line = line(&answer);
            assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
            assert_eq!(read(&line), Some(answer));
        }
        for wrong in ["", "{}", "[]", "{\"ok\":true}", "{\"ok\":false}", "{\"ok\":1,\"result\":1}", "junk"] {
            assert_eq!(read(wrong.as_bytes()), None, "{wrong}");
        }
    }

    /// A handler that has taken its worker over must not hide the connections of others.
    #[test]
    fn a_list_is_read_whatever_one_worker_has_written() {
        let good = json!({
            "id": "1:1", "worker": "default/0", "peer": null, "phase": "open", "resource": null, "handler": null,
            "user": null, "protocol": null, "compressed": false, "age": 1.0, "queued": 0,
        });
        let list = json!({ "connections": [7, good, {}, null], "left_out": 0, "silent": [] });
        let list = Connections::deserialize(list).unwrap();
        assert_eq!(list.connections.iter().map(|entry| &*entry.id).collect::<Vec<_>>(), ["1:1"]);
    }

    #[test]
    fn seconds_have_three_digits() {
        assert_eq!(seconds(Duration::from_nanos(1_234_567_890)), 1.234);
        assert_eq!(seconds(Duration::ZERO), 0.0);
    }
}
