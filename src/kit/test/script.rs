//! Parser for the scripts of `wshd test`, which have one step per line.

use std::time::Duration;

use tungstenite::http::{HeaderName, HeaderValue};

use crate::kit::peer::Content;
use crate::kit::value::{self, size, time};

/// A step of a script.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// From 1.
    pub line: usize,
    /// The name of its peer; empty for the one without a name.
    pub peer: String,
    /// What the step does.
    pub action: Action,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The peer connects.
    Open(Opening),
    /// The peer sends this.
    Send(Content),
    /// The peer disconnects without a Close frame.
    Vanish,
    /// The peer stops reading, or reads again.
    Stall(bool),
    /// This must come next.
    Expect(Content),
    /// No message may come for this time of the host's clock.
    Silence(Duration),
    /// The reply to the opening handshake must have this status.
    Status(u16),
    /// The reply to the opening handshake must have this header.
    Header(HeaderName, HeaderValue),
    /// The script waits.
    Wait(Duration),
    /// The clock of the host advances.
    Pass(Duration),
    /// It advances to this time since the beginning.
    At(Duration),
    /// The connections move to another worker, as at a reload.
    Move,
    /// Another worker publishes this text for a topic.
    Publish(String, String),
    /// The log must have another line that contains this.
    Log(String),
}

/// How a peer connects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Opening {
    /// Path and query of its request, unless they are the handler's own.
    pub target: Option<String>,
    /// Additional headers of its request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether the script continues before there is a reply.
    pub is_late: bool,
}

/// A line that is not a step.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {why}")]
pub struct ScriptError {
    line: usize,
    /// In characters, from 1.
    column: usize,
    why: String,
}

/// The part of a line that is wrong, and why.
type Wrong<'a> = (&'a str, String);

/// Reads a script.
pub fn parse(text: &str) -> Result<Vec<Step>, ScriptError> {
    let mut steps: Vec<Step> = Vec::new();
    let mut in_message: Vec<String> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line_number = number + 1;
        let error = |(part, why): Wrong| {
            let offset = (part.as_ptr() as usize).saturating_sub(line.as_ptr() as usize);
            let column = line.char_indices().take_while(|(index, _)| *index < offset).count() + 1;
            ScriptError { line: line_number, column, why }
        };
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        // An indented line is a header of the request above it.
        if line.starts_with([' ', '\t']) {
            let Some(Action::Open(opening)) = steps.last_mut().map(|step| &mut step.action) else {
                let why = "a header must follow >! open or >! request; other lines must not be indented";
                return Err(error((line, why.to_owned())));
            };
            opening.headers.push(header(line).map_err(error)?);
            continue;
        }
        let (peer, action) = step(line, &mut in_message).map_err(error)?;
        steps.push(Step { line: line_number, peer, action });
    }
    Ok(steps)
}

/// Parses a line. `in_message` has the peers whose last fragment is still to come.
fn step<'a>(line: &'a str, in_message: &mut Vec<String>) -> Result<(String, Action), Wrong<'a>> {
    const EXPECTED: &str = "expected > or < after the name of a peer or none, or =";
    let mark = line.find(['>', '<', '=']).ok_or_else(|| (line, EXPECTED.to_owned()))?;
    let (peer, rest) = line.split_at(mark);
    if !peer.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err((line, format!("{EXPECTED}; a name has letters, digits and _")));
    }
    let (direction, is_control) = match rest.get(..2) {
        Some(">!") => ('>', true),
        Some("<!") => ('<', true),
        _ => (rest.chars().next().unwrap_or_default(), false),
    };
    let text = rest.get(if is_control { 2 } else { 1 }..).unwrap_or_default();
    let text = text.strip_prefix(' ').unwrap_or(text);
    let action = match (direction, is_control) {
        ('>', false) => Action::Send(Content::Text(text.to_owned())),
        ('<', false) => Action::Expect(Content::Text(text.to_owned())),
        ('>', _) => sent(peer, text, in_message)?,
        ('<', _) => expected(text)?,
        _ if !peer.is_empty() => return Err((rest, EXPECTED.to_owned())),
        _ => match word(text) {
            ("move", "") => Action::Move,
            ("wait", duration) => Action::Wait(at(duration, time)?),
            ("at", duration) => Action::At(at(duration, time)?),
            ("time", passes) => match word(passes) {
                ("passes", duration) => Action::Pass(at(duration, time)?),
                _ => return Err((passes, "expected = time passes TIME".to_owned())),
            },
            ("publish", message) => match word(message) {
                ("", _) => return Err((message, "expected = publish TOPIC TEXT".to_owned())),
                (topic, text) => Action::Publish(topic.to_owned(), text.to_owned()),
            },
            ("log", "") => return Err((text, "expected = log TEXT".to_owned())),
            ("log", text) => Action::Log(text.to_owned()),
            _ => {
                let what = "expected = move, = time passes TIME, = at TIME, = wait TIME, = publish TOPIC TEXT or = log TEXT";
                return Err((text, what.to_owned()));
            }
        },
    };
    Ok((peer.to_owned(), action))
}

/// Parses a part of a line.
fn at<T>(part: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<T, Wrong<'_>> {
    read(part).map_err(|why| (part, why))
}

fn sent<'a>(peer: &str, text: &'a str, in_message: &mut Vec<String>) -> Result<Action, Wrong<'a>> {
    // The connection ends, and with it an unfinished message.
    if let ("open" | "request" | "vanish", _) = word(text) {
        in_message.retain(|other| other != peer);
    }
    let content = match word(text) {
        (how @ ("open" | "request"), target) if target.is_empty() || target.starts_with('/') => {
            let target = Some(target.to_owned()).filter(|target| !target.is_empty());
            return Ok(Action::Open(Opening { target, is_late: how == "request", ..Opening::default() }));
        }
        ("open" | "request", target) => {
            return Err((target, "expected >! open or >! request, and a /PATH or nothing".to_owned()));
        }
        ("vanish", "") => return Ok(Action::Vanish),
        ("stop", "reading") => return Ok(Action::Stall(true)),
        ("read", "again") => return Ok(Action::Stall(false)),
        ("large", length) => large(length)?,
        ("text", text) => at(text, quoted)?,
        ("binary", digits) => match word(digits) {
            (part @ ("fragment" | "last"), digits) => {
                fragment(peer, part, (hex(digits)?, false), in_message).map_err(|why| (text, why))?
            }
            _ => Content::Binary(hex(digits)?),
        },
        (part @ ("fragment" | "last"), piece) => {
            fragment(peer, part, (piece.as_bytes().to_vec(), true), in_message).map_err(|why| (text, why))?
        }
        ("ping", text) => Content::Ping(at(text, control)?),
        ("pong", text) => Content::Pong(at(text, control)?),
        ("close", text) => close(text)?,
        _ => {
            let what = "expected >! open, request, text, binary, large, fragment, last, ping, pong, close, vanish, stop reading";
            return Err((text, format!("{what} or read again; a line of text is sent with > alone")));
        }
    };
    Ok(Action::Send(content))
}

fn expected(text: &str) -> Result<Action, Wrong<'_>> {
    let content = match word(text) {
        ("status", number) => {
            let status = number.parse().ok().filter(|status| (100..600).contains(status));
            let why = "expected <! status and a number such as 101";
            return status.map(Action::Status).ok_or_else(|| (number, why.to_owned()));
        }
        ("header", line) => return header(line).map(|(name, value)| Action::Header(name, value)),
        ("nothing", duration) => return at(duration, time).map(Action::Silence),
        ("large", length) => large(length)?,
        ("text", text) => at(text, quoted)?,
        ("binary", digits) => Content::Binary(hex(digits)?),
        ("ping", text) => Content::Ping(at(text, control)?),
        ("pong", text) => Content::Pong(at(text, control)?),
        ("close", text) => close(text)?,
        ("end", "") => Content::End,
        _ => {
            let what =
                "expected <! status, header, text, binary, large, ping, pong, close, end or nothing TIME";
            return Err((text, format!("{what}; a line of text is expected with < alone")));
        }
    };
    Ok(Action::Expect(content))
}

/// The first word, and the text after one space.
fn word(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or(text.split_at(text.len()))
}

fn header(line: &str) -> Result<(HeaderName, HeaderValue), Wrong<'_>> {
    at(line.trim_start(), value::header)
}

fn hex(digits: &str) -> Result<Vec<u8>, Wrong<'_>> {
    let mut values = Vec::new();
    for (index, c) in digits.char_indices().filter(|(_, c)| *c != ' ') {
        let why = "expected bytes as hexadecimal digits, such as 00 ff";
        let digit = c.to_digit(16).ok_or_else(|| (digits.split_at(index).1, why.to_owned()))?;
        values.push(digit as u8);
    }
    if !values.len().is_multiple_of(2) {
        return Err((digits, "expected two hexadecimal digits for each byte".to_owned()));
    }
    Ok(values.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

/// A text with line ends or other characters that a script cannot contain: a string of JSON (RFC 8259).
fn quoted(text: &str) -> Result<Content, String> {
    serde_json::from_str(text)
        .map(Content::Text)
        .map_err(|_| "expected a string as in JSON, such as \"a\\nb\"".to_owned())
}

/// A message of this size.
fn large(length: &str) -> Result<Content, Wrong<'_>> {
    match word(length) {
        (length, "binary") => Ok(Content::Binary(vec![b'x'; at(length, size)?])),
        _ => Ok(Content::Text("x".repeat(at(length, size)?))),
    }
}

/// A fragment of a message: the first one, unless the peer is within a message.
fn fragment(
    peer: &str,
    part: &str,
    (bytes, is_text): (Vec<u8>, bool),
    in_message: &mut Vec<String>,
) -> Result<Content, String> {
    let known = in_message.iter().position(|other| other == peer);
    match (part, known) {
        ("fragment", None) => in_message.push(peer.to_owned()),
        ("last", Some(at)) => drop(in_message.swap_remove(at)),
        ("last", None) => return Err("expected a >! fragment before the last".to_owned()),
        _ => {}
    }
    Ok(Content::Fragment { bytes, is_text, is_first: known.is_none(), is_last: part == "last" })
}

/// The payload of a control frame (RFC 6455 5.5).
fn control(text: &str) -> Result<Vec<u8>, String> {
    match text.len() {
        ..=125 => Ok(text.as_bytes().to_vec()),
        length => Err(format!("a control frame carries at most 125 bytes: got {length}")),
    }
}

fn close(text: &str) -> Result<Content, Wrong<'_>> {
    let (number, reason) = word(text);
    if number.is_empty() {
        return Ok(Content::Close(1005, String::new()));
    }
    let code = number.parse().ok().filter(|code| (1000..5000).contains(code));
    let why = "expected close, or close CODE REASON with a code from 1000 to 4999";
    let code = code.ok_or_else(|| (number, why.to_owned()))?;
    match reason.len() {
        ..=123 => Ok(Content::Close(code, reason.to_owned())),
        length => Err((reason, format!("the reason of a close has at most 123 bytes: got {length}"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn actions(script: &str) -> Vec<(String, Action)> {
        parse(script).unwrap().into_iter().map(|step| (step.peer, step.action)).collect()
    }

    fn one(script: &str) -> Action {
        let mut all = actions(script);
        assert_eq!(all.len(), 1, "{script}");
        all.remove(0).1
    }

    #[test]
    fn lines_become_steps() {
        let text = |text: &str| Content::Text(text.to_owned());
        let script = "# two of them\n\nann> hello\nbob< hello\n<\n>  two spaces\n";
        let expected = [
            ("ann", Action::Send(text("hello"))),
            ("bob", Action::Expect(text("hello"))),
            ("", Action::Expect(text(""))),
            ("", Action::Send(text(" two spaces"))),
        ];
        assert_eq!(actions(script), expected.map(|(peer, action)| (peer.to_owned(), action)));
        assert_eq!(parse("#\n> x").unwrap()[0].line, 2);
    }

    #[test]
    fn requests_have_headers_below_them() {
        let action = one(">! open /chat?room=1\n    Origin: https://example.com\n    Cookie: a=b\n");
        let Action::Open(Opening { target: Some(target), headers, is_late: false }) = action else {
            panic!("{action:?}")
        };
        assert_eq!((target.as_str(), headers.len()), ("/chat?room=1", 2));
        assert!(matches!(one(">! request"), Action::Open(Opening { target: None, is_late: true, .. })));
        assert_eq!(one("<! status 403"), Action::Status(403));
        assert!(matches!(one("<! header Set-Cookie: a=b"), Action::Header(name, _) if name == "set-cookie"));
    }

    #[test]
    fn everything_that_a_peer_can_do() {
        assert_eq!(one(">! binary 00 ff7f"), Action::Send(Content::Binary(vec![0, 255, 127])));
        assert_eq!(one("<! close"), Action::Expect(Content::Close(1005, String::new())));
        assert_eq!(
            one("<! close 1008 not here"),
            Action::Expect(Content::Close(1008, "not here".to_owned()))
        );
        assert_eq!(one("<! pong x"), Action::Expect(Content::Pong(b"x".to_vec())));
        assert_eq!(one("<! nothing 50ms"), Action::Silence(Duration::from_millis(50)));
        assert_eq!([one("= move"), one(">! vanish")], [Action::Move, Action::Vanish]);
        assert_eq!(one("= wait 1s"), Action::Wait(Duration::from_secs(1)));
        assert_eq!(one("= time passes 30s"), Action::Pass(Duration::from_secs(30)));
        assert_eq!(one("= at 1500ms"), Action::At(Duration::from_millis(1500)));
        assert_eq!(one("= publish news it rains"), Action::Publish("news".into(), "it rains".into()));
        assert_eq!(one("= log a warning"), Action::Log("a warning".to_owned()));
        assert_eq!(
            [one(">! stop reading"), one(">! read again")],
            [Action::Stall(true), Action::Stall(false)]
        );
        assert_eq!(one(">! text \"a\\nb\""), Action::Send(Content::Text("a\nb".to_owned())));
        assert_eq!(one("<! large 1K"), Action::Expect(Content::Text("x".repeat(1024))));
        assert_eq!(one(">! large 2 binary"), Action::Send(Content::Binary(b"xx".to_vec())));
        let piece = Content::Fragment { bytes: vec![255], is_text: false, is_first: true, is_last: false };
        assert_eq!(one(">! binary fragment ff"), Action::Send(piece));
        let pieces =
            actions(">! fragment a\n>! fragment b\n>! last c\n>! fragment d\n>! vanish\n>! fragment e");
        let flags = pieces.into_iter().filter_map(|(_, action)| match action {
            Action::Send(Content::Fragment { is_first, is_last, .. }) => Some((is_first, is_last)),
            _ => None,
        });
        assert!(flags.eq([(true, false), (false, false), (false, true), (true, false), (true, false)]));
    }

    #[test]
    fn errors_have_line_and_column() {
        for (script, place, why) in [
            ("hello", (1, 1), "expected > or <"),
            ("> a\n\nb c> d", (3, 1), "a name has"),
            (">! shout", (1, 4), "a line of text is sent with > alone"),
            ("<! nothing", (1, 11), "expected a time"),
            (">! binary 0", (1, 11), "two hexadecimal digits"),
            ("\u{e9}> a\n", (1, 1), "a name has"),
            (">! binary 0 \u{e9}y", (1, 13), "hexadecimal"),
            (">! text a", (1, 9), "a string as in JSON"),
            (">! close 999", (1, 10), "from 1000 to 4999"),
            (">! last x", (1, 4), "before the last"),
            ("> a\n  Origin: x", (2, 1), "a header must follow"),
            ("<! status ok", (1, 11), "a number"),
            ("a= move", (1, 2), "expected > or <"),
        ] {
            let error = parse(script).unwrap_err();
            assert!((error.line, error.column) == place && error.why.contains(why), "{script}: {error}");
        }
    }
}
