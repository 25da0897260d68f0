//! Sends log lines to the supervisor, for a process that must not have the log files open: one datagram per line. The
//! supervisor does not trust the content; it adds the sender's name and pid, and writes the line.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{SendFlags, send};
use serde::{Deserialize, Serialize};

use super::line::{Line, Value, cut};
use super::{Level, LogKind};

/// Maximum bytes of a datagram.
pub const MAX_BYTES: usize = 8 * 1024;
/// Maximum fields of a line, and maximum bytes of a field's name.
const FIELDS: usize = 64;
const KEY: usize = 32;

/// The sending side, for the lines of one log.
pub struct Relay {
    socket: OwnedFd,
    kind: LogKind,
}

/// A line on the wire.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Wire {
    /// The log it is for.
    pub kind: LogKind,
    level: Level,
    handler: Option<String>,
    conn: u64,
    message: String,
    fields: Vec<(String, serde_json::Value)>,
    /// Lines lost before it.
    pub lost: u64,
}

impl Relay {
    /// Sends the lines of one log over this socket.
    pub fn new(socket: OwnedFd, kind: LogKind) -> Self {
        Self { socket, kind }
    }

    /// The socket.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a line and the number of lines lost before it; false: not sent.
    pub fn send(&self, line: &Line<'_>, lost: u64) -> bool {
        let mut longest = MAX_BYTES;
        loop {
            let Ok(bytes) = serde_json::to_vec(&self.wire(line, lost, longest)) else { return false };
            if bytes.len() <= MAX_BYTES {
                return send(&self.socket, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok();
            }
            if longest == 0 {
                return false;
            }
            longest /= 2;
        }
    }

    fn wire(&self, line: &Line<'_>, lost: u64, longest: usize) -> Wire {
        let value = |value: &Value<'_>| match value {
            Value::Text(text) => cut(text, longest).into(),
            Value::Number(number) => (*number).into(),
            Value::Absent => serde_json::Value::Null,
        };
        Wire {
            kind: self.kind,
            level: line.level,
            handler: line.handler.map(|handler| cut(handler, longest).into_owned()),
            conn: line.conn,
            message: cut(line.message, longest).into_owned(),
            fields: line.fields.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect(),
            lost,
        }
    }

    /// The same for another log.
    pub fn try_clone(&self, kind: LogKind) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, kind })
    }
}

impl Wire {
    /// Parses a datagram. One that [`Relay::send`] did not make is plain text, such as a handler's output.
    pub fn read(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).ok().filter(Self::is_valid).unwrap_or_else(|| {
            let message = String::from_utf8_lossy(bytes).trim_end().to_owned();
            Self { level: Level::Info, message, ..Self::default() }
        })
    }

    fn is_valid(&self) -> bool {
        let is_name = |key: &str| {
            (1..=KEY).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        };
        // With one name twice in an object of JSON, readers would take the sender's value for ours.
        let is_taken = |key: &str| match key {
            "time" | "level" | "process" | "pid" | "message" => true,
            "handler" => self.handler.is_some(),
            "conn" => self.conn != 0,
            _ => false,
        };
        self.fields.len() <= FIELDS && self.fields.iter().all(|(key, _)| is_name(key) && !is_taken(key))
    }

    /// Calls `f` with the line.
    pub fn with_line<R>(&self, f: impl FnOnce(&Line<'_>) -> R) -> R {
        let fields: Vec<(&str, Value<'_>)> =
            self.fields.iter().map(|(key, value)| (&**key, field(value))).collect();
        let Wire { level, handler, conn, message, .. } = self;
        f(&Line { level: *level, handler: handler.as_deref(), conn: *conn, message, fields: &fields })
    }
}

fn field(value: &serde_json::Value) -> Value<'_> {
    match value {
        serde_json::Value::String(text) => Value::Text(text),
        value => value.as_u64().map_or(Value::Absent, Value::Number),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_line_arrives_as_it_was_sent_and_is_truncated_if_too_long() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let relay = Relay::new(ours.into(), LogKind::Access);
        let fields =
            [("status", Value::Number(101)), ("origin", Value::Text("a\n")), ("user", Value::Absent)];
        let line = Line {
            level: Level::Warn,
            handler: Some("chat"),
            conn: 0xab,
            message: "access",
            fields: &fields,
        };
        let mut bytes = [0; 2 * MAX_BYTES];
        assert!(relay.send(&line, 3));
        let size = theirs.recv(&mut bytes).unwrap();
        let received = Wire::read(&bytes[..size]);
        assert_eq!((received.kind, received.lost), (LogKind::Access, 3));
        received.with_line(|came| {
            assert_eq!(
                format!("{:?}", (came.level, came.handler, came.conn, came.message, came.fields)),
                format!("{:?}", (line.level, line.handler, line.conn, line.message, line.fields))
            );
        });
        let long = "\u{1}".repeat(3 * MAX_BYTES);
        assert!(relay.send(&Line { message: &long, ..line }, 0));
        let size = theirs.recv(&mut bytes).unwrap();
        assert!(size <= MAX_BYTES);
        Wire::read(&bytes[..size])
            .with_line(|line| assert!(line.message.starts_with("\u{1}") && line.message.ends_with("...")));
    }

    #[test]
    fn any_other_datagram_is_text() {
        let bad_name = r#"{"kind":"Main","level":"debug","handler":null,"conn":0,"message":"","fields":[["A\nB",1]],"lost":0}"#;
        let bad_level = bad_name.replace("debug", "loud").replace("A\\nB", "a");
        let good = bad_name.replace("A\\nB", "a");
        Wire::read(good.as_bytes()).with_line(|line| assert_eq!(line.fields.len(), 1));
        let forged = ["time", "level", "process", "pid", "message"]
            .map(|name| good.replace("\"a\"", &format!("{name:?}")));
        for text in
            forged.iter().map(String::as_str).chain(["hello", "{}", bad_name, &bad_level, &"[".repeat(5000)])
        {
            let received = Wire::read(format!("{text}\n").as_bytes());
            assert_eq!(received.kind, LogKind::Main);
            received.with_line(|line| assert_eq!((line.message, line.fields.len()), (text, 0)));
        }
        Wire::read(&[0xff, b'a']).with_line(|line| assert_eq!(line.message, "\u{fffd}a"));
    }
}
