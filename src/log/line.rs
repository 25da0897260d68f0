//! Formats an event as one line or datagram: text, JSON, syslog, journal. No I/O. Whatever an event contains, the
//! result is one line of bounded length.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::SystemTime;

use super::Level;

/// An event.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// Severity.
    pub level: Level,
    /// The handler that logged it, if any.
    pub handler: Option<&'a str>,
    /// The connection it concerns; 0: none.
    pub conn: u64,
    /// The text.
    pub message: &'a str,
    /// Further fields, in this order.
    pub fields: &'a [(&'a str, Value<'a>)],
}

/// The value of a field.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Text; may contain any character.
    Text(&'a str),
    /// A number.
    Number(u64),
    /// No value: `-` in text, null in JSON, omitted in the journal.
    Absent,
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        text.map_or(Value::Absent, Value::Text)
    }
}

/// The process that writes, and the time.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// The time.
    pub now: SystemTime,
    /// "supervisor" or "worker default/0"; empty: no name was set.
    pub process: &'a str,
    /// Its pid.
    pub pid: u32,
}

/// Format of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `2026-01-02T03:04:05.678Z warn  worker default/0[1234] message`
    Text,
    /// One JSON object.
    Json,
    /// A line of text on standard error for the journal, which adds time and pid itself (sd-daemon(3)):
    /// `<4>worker default/0: message`.
    JournalText,
    /// The same prefix and a JSON object.
    JournalJson,
    /// A datagram as of syslog(3), without the time: the daemon adds it (RFC 3164 4.3.2).
    /// `<28>wshd[1234]: worker default/0: message`.
    SyslogText,
    /// The same prefix and a JSON object.
    SyslogJson,
    /// A datagram of the journal's native protocol.
    Journal,
}

impl Form {
    /// The event in at most `max` bytes; `max` is at least 1 KiB. Long strings are truncated to fit.
    pub fn write(self, line: &Line<'_>, by: &Writer<'_>, max: usize) -> Vec<u8> {
        let mut longest = max;
        loop {
            let bytes = self.write_cut(line, by, longest);
            if bytes.len() <= max || longest == 0 {
                return bytes;
            }
            longest /= 2;
        }
    }

    /// The event with strings truncated to `longest` bytes before escaping.
    fn write_cut(self, line: &Line<'_>, by: &Writer<'_>, longest: usize) -> Vec<u8> {
        let by = &Writer { process: &cut(by.process, longest), ..*by };
        let mut text = String::with_capacity(256);
        // Writing to a String does not fail.
        let _ = match self {
            Form::SyslogText | Form::SyslogJson => {
                write!(text, "<{}>wshd[{}]: ", DAEMON | severity(line.level), by.pid)
            }
            Form::Text => {
                write!(text, "{} {:<5} ", humantime::format_rfc3339_millis(by.now), line.level.name())
            }
            Form::JournalText | Form::JournalJson => write!(text, "<{}>", severity(line.level)),
            Form::Json | Form::Journal => Ok(()),
        };
        match self {
            Form::Text => {
                let process = if by.process.is_empty() { "wshd" } else { by.process };
                let _ = write!(text, "{}[{}] ", Escaped(process), by.pid);
                write_message(&mut text, line, longest);
                text.push('\n');
            }
            Form::SyslogText | Form::JournalText => {
                if !by.process.is_empty() {
                    let _ = write!(text, "{}: ", Escaped(by.process));
                }
                write_message(&mut text, line, longest);
                if self == Form::JournalText {
                    text.push('\n');
                }
            }
            Form::Json | Form::JournalJson => {
                write_json(&mut text, line, by, longest);
                text.push('\n');
            }
            Form::SyslogJson => write_json(&mut text, line, by, longest),
            Form::Journal => return journal(line, by, longest),
        }
        text.into_bytes()
    }
}

/// Facility 3 (daemon), RFC 3164 4.1.1.
const DAEMON: u8 = 3 << 3;

/// The severities of RFC 3164 4.1.1, which are the journal's priorities.
fn severity(level: Level) -> u8 {
    match level {
        Level::Critical => 2,
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Fine => 7,
    }
}

/// Handler, connection, message and fields as text; also the journal's `MESSAGE`.
fn write_message(text: &mut String, line: &Line<'_>, longest: usize) {
    if let Some(handler) = line.handler {
        let _ = write!(text, "{}: ", Escaped(&cut(handler, longest)));
    }
    if line.conn != 0 {
        let _ = write!(text, "connection {:x}: ", line.conn);
    }
    let _ = write!(text, "{}", Escaped(&cut(line.message, longest)));
    for (key, value) in line.fields {
        let _ = match value {
            Value::Absent => write!(text, " {key}=-"),
            Value::Number(number) => write!(text, " {key}={number}"),
            Value::Text(value) => {
                let value = cut(value, longest);
                match is_plain(&value) {
                    true => write!(text, " {key}={value}"),
                    // Escaped as in JSON, and other control characters as well.
                    false => write!(text, " {key}={}", Escaped(&quoted(&value))),
                }
            }
        };
    }
}

/// Whether a value needs no quotation marks; `-` stands for an absent value.
fn is_plain(value: &str) -> bool {
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '"' && c != '=';
    !value.is_empty() && value != "-" && value.chars().all(is_plain)
}

fn write_json(text: &mut String, line: &Line<'_>, by: &Writer<'_>, longest: usize) {
    let _ = write!(
        text,
        r#"{{"time":"{}","level":"{}","process":{},"pid":{}"#,
        humantime::format_rfc3339_millis(by.now),
        line.level.name(),
        quoted(if by.process.is_empty() { "wshd" } else { by.process }),
        by.pid
    );
    if let Some(handler) = line.handler {
        let _ = write!(text, r#","handler":{}"#, quoted(&cut(handler, longest)));
    }
    if line.conn != 0 {
        let _ = write!(text, r#","conn":"{:x}""#, line.conn);
    }
    let _ = write!(text, r#","message":{}"#, quoted(&cut(line.message, longest)));
    for (key, value) in line.fields {
        let _ = match value {
            Value::Absent => write!(text, r#","{key}":null"#),
            Value::Number(number) => write!(text, r#","{key}":{number}"#),
            Value::Text(value) => write!(text, r#","{key}":{}"#, quoted(&cut(value, longest))),
        };
    }
    text.push('}');
}

/// Fields as `KEY=value`; if the value has a newline, as `KEY`, size and value.
fn journal(line: &Line<'_>, by: &Writer<'_>, longest: usize) -> Vec<u8> {
    let mut entry = Vec::with_capacity(512);
    let mut field = |key: &str, value: &str| {
        entry.extend_from_slice(key.as_bytes());
        if value.contains('\n') {
            entry.push(b'\n');
            entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            entry.push(b'=');
        }
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    };
    let mut message = String::with_capacity(256);
    write_message(&mut message, line, longest);
    field("MESSAGE", &message);
    field("PRIORITY", &severity(line.level).to_string());
    field("SYSLOG_IDENTIFIER", "wshd");
    field("WSHD_LEVEL", line.level.name());
    if !by.process.is_empty() {
        field("WSHD_PROCESS", by.process);
    }
    if let Some(handler) = line.handler {
        field("WSHD_HANDLER", &cut(handler, longest));
    }
    if line.conn != 0 {
        field("WSHD_CONN", &format!("{:x}", line.conn));
    }
    for (key, value) in line.fields {
        let key = format!("WSHD_{}", key.to_ascii_uppercase());
        match value {
            Value::Absent => {}
            Value::Number(number) => field(&key, &number.to_string()),
            Value::Text(value) => field(&key, &cut(value, longest)),
        }
    }
    entry
}

/// The text; if it is longer than `longest` bytes, its beginning and "...".
pub fn cut(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest {
        return Cow::Borrowed(text);
    }
    let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    Cow::Owned(format!("{}...", text.get(..end).unwrap_or_default()))
}

/// A JSON string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Text with control characters escaped, so that it stays on one line and does nothing to a terminal.
pub struct Escaped<'a>(pub &'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.0.contains(char::is_control) {
            return f.write_str(self.0);
        }
        self.0.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => f.write_char(c),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const MAX: usize = 4096;

    fn line<'a>(message: &'a str, fields: &'a [(&'static str, Value<'a>)]) -> Line<'a> {
        Line { level: Level::Warn, handler: None, conn: 0, message, fields }
    }

    fn by() -> Writer<'static> {
        // date -u -d @1767323045: 2026-01-02 03:04:05
        let now = UNIX_EPOCH + Duration::from_millis(1_767_323_045_678);
        Writer { now, process: "worker default/0", pid: 1234 }
    }

    fn text(form: Form, line: &Line<'_>) -> String {
        String::from_utf8(form.write(line, &by(), MAX)).unwrap()
    }

    fn json(line: &Line<'_>) -> serde_json::Value {
        let text = text(Form::Json, line);
        assert_eq!(text.matches('\n').count(), 1);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_line_has_time_level_process_and_message() {
        assert_eq!(
            text(Form::Text, &line("caf\u{e9} 1", &[])),
            "2026-01-02T03:04:05.678Z warn  worker default/0[1234] caf\u{e9} 1\n"
        );
        let critical = Line { level: Level::Critical, ..line("x", &[]) };
        let unnamed = Writer { process: "", ..by() };
        let bytes = Form::Text.write(&critical, &unnamed, MAX);
        assert_eq!(bytes, b"2026-01-02T03:04:05.678Z critical wshd[1234] x\n");
    }

    #[test]
    fn a_handler_and_its_connection_are_named() {
        let line = Line { handler: Some("chat"), conn: 0x1_0000_0007, ..line("hello", &[]) };
        assert!(text(Form::Text, &line).ends_with("] chat: connection 100000007: hello\n"));
        let json = json(&line);
        assert_eq!(
            (&json["handler"], &json["conn"], &json["message"]),
            (&"chat".into(), &"100000007".into(), &"hello".into())
        );
    }

    #[test]
    fn an_event_is_one_line_whatever_it_contains() {
        let fields = [("value", Value::Text("a b\r\n\u{1b}\"\\="))];
        let evil = line("a\r\nb\u{1b}[2J", &fields);
        let text = text(Form::Text, &evil);
        assert!(text.ends_with("] a\\r\\nb\\u{1b}[2J value=\"a b\\r\\n\\u001b\\\"\\\\=\"\n"), "{text}");
        assert_eq!(text.matches('\n').count(), 1);
        let json = json(&evil);
        assert_eq!(json["message"], "a\r\nb\u{1b}[2J");
        assert_eq!(json["value"], "a b\r\n\u{1b}\"\\=");
    }

    #[test]
    fn fields_follow_the_message_and_are_quoted_if_necessary() {
        let fields = [
            ("a", Value::Text("/x?y[1]:2")),
            ("b", Value::Number(7)),
            ("c", Value::Absent),
            ("d", Value::Text("-")),
            ("e", Value::Text("")),
            ("f", Value::Text("p q")),
        ];
        let all = line("access", &fields);
        assert!(text(Form::Text, &all).ends_with("] access a=/x?y[1]:2 b=7 c=- d=\"-\" e=\"\" f=\"p q\"\n"));
        let json = json(&all);
        assert_eq!((&json["b"], &json["c"], &json["d"]), (&7.into(), &serde_json::Value::Null, &"-".into()));
    }

    #[test]
    fn json_has_time_level_process_and_message() {
        assert_eq!(
            text(Form::Json, &line("m", &[])),
            "{\"time\":\"2026-01-02T03:04:05.678Z\",\"level\":\"warn\",\"process\":\"worker default/0\",\
             \"pid\":1234,\"message\":\"m\"}\n"
        );
    }

    #[test]
    fn a_line_is_bounded_in_every_form() {
        // The longest when escaped: 6 bytes in JSON and in text.
        let long = "\u{7}".repeat(20_000);
        let fields = [("field", Value::Text(&long))];
        let long = Line { handler: Some(&long), ..line(&long, &fields) };
        let by = Writer { process: &"\u{e9}".repeat(20_000), ..by() };
        let lines = [Form::Text, Form::Json, Form::JournalText, Form::JournalJson];
        for form in lines.into_iter().chain([Form::SyslogText, Form::SyslogJson, Form::Journal]) {
            for max in [1024, MAX, 2 * MAX] {
                let bytes = form.write(&long, &by, max);
                assert!(bytes.len() <= max && bytes.len() > max / 4, "{form:?} {max} {}", bytes.len());
            }
        }
        let bytes = Form::Json.write(&long, &by, MAX);
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert!(json["message"].as_str().unwrap().ends_with("\u{7}..."));
    }

    #[test]
    fn a_line_for_the_journal_on_standard_error() {
        assert_eq!(text(Form::JournalText, &line("m\nn", &[])), "<4>worker default/0: m\\nn\n");
        let json = text(Form::JournalJson, &line("m", &[]));
        assert!(json.starts_with("<4>{\"time\":") && json.ends_with("\"message\":\"m\"}\n"), "{json}");
    }

    #[test]
    fn a_datagram_for_syslog() {
        // Facility 3, severity 4: 3 * 8 + 4 = 28 (RFC 3164 4.1.1).
        assert_eq!(text(Form::SyslogText, &line("m\nn", &[])), "<28>wshd[1234]: worker default/0: m\\nn");
        let json = text(Form::SyslogJson, &line("m", &[]));
        assert!(json.starts_with("<28>wshd[1234]: {\"time\":") && json.ends_with("\"message\":\"m\"}"));
        let severities = [
            (Level::Fine, 31),
            (Level::Debug, 31),
            (Level::Info, 30),
            (Level::Error, 27),
            (Level::Critical, 26),
        ];
        for (level, number) in severities {
            let text = text(Form::SyslogText, &Line { level, ..line("m", &[]) });
            assert!(text.starts_with(&format!("<{number}>")), "{text}");
        }
    }

    #[test]
    fn a_datagram_for_the_journal() {
        let fields =
            [("resource", Value::Text("a\nb")), ("status", Value::Number(101)), ("no", Value::Absent)];
        let entry = Line { handler: Some("chat"), conn: 16, ..line("m\nn", &fields) };
        let mut expected =
            b"MESSAGE=chat: connection 10: m\\nn resource=\"a\\nb\" status=101 no=-\n".to_vec();
        expected.extend_from_slice(b"PRIORITY=4\nSYSLOG_IDENTIFIER=wshd\nWSHD_LEVEL=warn\n");
        expected.extend_from_slice(b"WSHD_PROCESS=worker default/0\nWSHD_HANDLER=chat\nWSHD_CONN=10\n");
        // systemd.io/JOURNAL_NATIVE_PROTOCOL: the key, a newline, 64 bits little-endian, the value, a newline.
        expected.extend_from_slice(b"WSHD_RESOURCE\n\x03\0\0\0\0\0\0\0a\nb\nWSHD_STATUS=101\n");
        assert_eq!(Form::Journal.write(&entry, &by(), MAX), expected);
    }
}
