//! Formats all HTTP responses except 101, which is in `proto::ws::handshake`. Each response has `Connection: close`.

use std::borrow::Cow;
use std::fs::File;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::http::StatusCode;

use crate::proto::http1::field::{is_token, is_value};

/// The field of RFC 6797 section 6.1.
pub const HSTS: &str = "Strict-Transport-Security";

/// The response to one request.
#[derive(Debug)]
pub struct Response {
    status: u16,
    head: Vec<u8>,
    body: Body,
}

/// The content of a response. It has the length in the head, or is omitted (HEAD).
#[derive(Debug)]
pub enum Body {
    /// Nothing follows the head.
    Empty,
    /// These bytes.
    Bytes(Cow<'static, [u8]>),
    /// `length` bytes of a regular file from `offset` on. The file may shrink meanwhile.
    File {
        /// Open for reading.
        file: File,
        /// In bytes from the file's start.
        offset: u64,
        /// In bytes.
        length: u64,
    },
}

/// Fields that a response has at most once: the first one given is sent.
const ONCE: [&str; 8] = [
    "Content-Type",
    "Content-Range",
    "Date",
    "ETag",
    "Last-Modified",
    "Location",
    "Retry-After",
    "Sec-WebSocket-Version",
];

impl Response {
    /// Writes the head. `fields` follow those that every response has; invalid ones are omitted.
    pub fn new(now: SystemTime, status: u16, fields: &[(&str, &str)], body: Body) -> Self {
        // RFC 9110 15.3.5, 15.4.5: 204 and 304 have no content; Content-Length would be that of the 200.
        let body = if matches!(status, 204 | 304) { None } else { Some(body) };
        let head = head(now, status, fields, body.as_ref().map(Body::length));
        Self { status, head, body: body.unwrap_or(Body::Empty) }
    }

    /// A response whose content the caller sends. `fields` include its framing.
    pub fn streamed(now: SystemTime, status: u16, fields: &[(&str, &str)]) -> Self {
        Self { status, head: head(now, status, fields, None), body: Body::Empty }
    }

    /// A response with a line of text: status and reason.
    pub(super) fn error(now: SystemTime, status: u16, why: &str, fields: &[(&str, &str)]) -> Self {
        let text = format!("{status} {}: {why}\n", reason_phrase(status));
        let fields = [&[("Content-Type", "text/plain; charset=utf-8")], fields].concat();
        Self::new(now, status, &fields, Body::Bytes(text.into_bytes().into()))
    }

    /// A redirect to `location`.
    pub fn redirect(now: SystemTime, status: u16, location: &str) -> Self {
        Self::error(now, status, "see Location", &[("Location", location)])
    }

    /// Adds a field, unless it is invalid.
    pub fn with_field(mut self, name: &str, value: &str) -> Self {
        if is_token(name.as_bytes()) && is_value(value.as_bytes()) {
            self.head.truncate(self.head.len() - 2); // the empty line
            write(&mut self.head, &[name, ": ", value, "\r\n\r\n"]);
        }
        self
    }

    /// Adds this Strict-Transport-Security, if there is one.
    pub fn with_hsts(self, hsts: Option<&str>) -> Self {
        match hsts {
            Some(hsts) => self.with_field(HSTS, hsts),
            None => self,
        }
    }

    /// The response to HEAD: the same fields, no content (RFC 9110 9.3.2). See [`takes_content`].
    pub fn without_content(self) -> Self {
        Self { body: Body::Empty, ..self }
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Bytes of content.
    pub fn content_length(&self) -> u64 {
        self.body.length()
    }

    /// The head: from the status line to the empty line.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The content to write after the head.
    pub fn into_body(self) -> Body {
        self.body
    }

    /// Head and content; the content is not a file.
    pub fn into_bytes(mut self) -> Vec<u8> {
        debug_assert!(!matches!(self.body, Body::File { .. }));
        if let Body::Bytes(bytes) = &self.body {
            self.head.extend_from_slice(bytes);
        }
        self.head
    }
}

impl Body {
    fn length(&self) -> u64 {
        match self {
            Body::Empty => 0,
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { length, .. } => *length,
        }
    }
}

/// From the status line to the empty line.
fn head(now: SystemTime, status: u16, fields: &[(&str, &str)], length: Option<u64>) -> Vec<u8> {
    let has = |name: &str| fields.iter().any(|(field, _)| field.eq_ignore_ascii_case(name));
    let mut head = Vec::with_capacity(512);
    write(&mut head, &["HTTP/1.1 ", &status.to_string(), " ", reason_phrase(status), "\r\n"]);
    // RFC 9110 6.6.1: an origin server with a clock sends Date.
    if !has("Date") {
        write(&mut head, &["Date: ", &http_date(now), "\r\n"]);
    }
    // RFC 9110 7.8: Connection must name Upgrade.
    let upgrades = has("Upgrade") || status == 426;
    write(&mut head, &["Connection: ", if upgrades { "Upgrade, close" } else { "close" }, "\r\n"]);
    // RFC 9110 15.5.22: 426 has Upgrade; RFC 6455 4.4: and the version.
    for (name, value) in [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")] {
        if status == 426 && !has(name) {
            write(&mut head, &[name, ": ", value, "\r\n"]);
        }
    }
    if !has("X-Content-Type-Options") {
        write(&mut head, &["X-Content-Type-Options: nosniff\r\n"]);
    }
    if let Some(length) = length {
        write(&mut head, &["Content-Length: ", &length.to_string(), "\r\n"]);
    }
    for (at, (name, value)) in fields.iter().enumerate() {
        let same = |other: &str| other.eq_ignore_ascii_case(name);
        let again =
            ONCE.iter().any(|once| same(once)) && fields.iter().take(at).any(|(earlier, _)| same(earlier));
        if !again && is_token(name.as_bytes()) && is_value(value.as_bytes()) {
            write(&mut head, &[name, ": ", value, "\r\n"]);
        }
    }
    write(&mut head, &["\r\n"]);
    head
}

/// Whether the response to this request, which may be malformed or incomplete, may have content: not if the method is,
/// or may become, HEAD.
pub fn takes_content(request: &[u8]) -> bool {
    let mut method = request.iter().skip_while(|byte| matches!(byte, b'\r' | b'\n'));
    b"HEAD ".iter().any(|expected| method.next().is_some_and(|byte| byte != expected))
}

/// The date format of RFC 9110 5.6.7. Times outside its range are clamped to it.
pub(super) fn http_date(time: SystemTime) -> String {
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799); // 9999-12-31 23:59:59
    httpdate::fmt_http_date(time.clamp(UNIX_EPOCH, last))
}

fn write(out: &mut Vec<u8>, parts: &[&str]) {
    parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
}

/// The registered phrase for a status code; a general one for codes that have none.
pub fn reason_phrase(status: u16) -> &'static str {
    let registered = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    registered.unwrap_or(match status / 100 {
        1 => "Informational",
        2 => "Success",
        3 => "Redirection",
        4 => "Client Error",
        _ => "Server Error",
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn written(status: u16, fields: &[(&str, &str)], body: &'static [u8]) -> String {
        let response = Response::new(UNIX_EPOCH, status, fields, Body::Bytes(body.into()));
        let text = String::from_utf8(response.into_bytes()).unwrap();
        text.replace("Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n", "D;")
            .replace("X-Content-Type-Options: nosniff\r\n", "N;")
    }

    #[test]
    fn a_response_is_complete() {
        assert_eq!(
            written(404, &[("Content-Type", "text/plain"), ("Vary", "A"), ("Vary", "B")], b"gone\n"),
            "HTTP/1.1 404 Not Found\r\nD;Connection: close\r\nN;Content-Length: 5\r\nContent-Type: text/plain\r\n\
             Vary: A\r\nVary: B\r\n\r\ngone\n"
        );
    }

    #[test]
    fn statuses_without_content() {
        for (status, phrase) in [(204, "No Content"), (304, "Not Modified")] {
            let expected = format!("HTTP/1.1 {status} {phrase}\r\nD;Connection: close\r\nN;\r\n");
            assert_eq!(written(status, &[], b"x"), expected);
        }
    }

    #[test]
    fn a_426_has_upgrade_and_version() {
        let expected = "HTTP/1.1 426 Upgrade Required\r\nD;Connection: Upgrade, close\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Version: 13\r\nN;Content-Length: 0\r\n\r\n";
        assert_eq!(written(426, &[], b""), expected);
        let given = written(426, &[("sec-websocket-version", "13, 14"), ("Upgrade", "h2c, websocket")], b"");
        assert!(
            given.contains("\r\nsec-websocket-version: 13, 14\r\nUpgrade: h2c, websocket\r\n"),
            "{given}"
        );
        assert_eq!(given.matches("pgrade: ").count(), 1, "{given}");
        assert_eq!(given.to_lowercase().matches("version: ").count(), 1, "{given}");
    }

    #[test]
    fn repeated_and_invalid_fields_are_omitted() {
        let fields = [
            ("content-type", "a/b"),
            ("Content-Type", "c/d"),
            ("A\r\n", "b"),
            ("A", "b\nc"),
            ("DATE", "then"),
        ];
        let expected = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nN;Content-Length: 1\r\ncontent-type: a/b\r\n\
                        DATE: then\r\n\r\nx";
        assert_eq!(written(403, &fields, b"x"), expected);
    }

    #[test]
    fn head_and_its_prefixes_take_no_content() {
        for request in ["", "\r\n", "H", "HEAD", "HEAD ", "\r\nHEAD /a HTTP/1.1\r\n", "HEAD \x01"] {
            assert!(!takes_content(request.as_bytes()), "{request:?}");
        }
        for request in ["G", "GET / HTTP/1.1", "HEADS ", "HEAP", "head / ", "\x16"] {
            assert!(takes_content(request.as_bytes()), "{request:?}");
        }
    }
}
