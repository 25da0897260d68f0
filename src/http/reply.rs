//! Replies: a head that is complete, and a body for the caller to write.

use std::borrow::Cow;
use std::fmt::Write;
use std::fs::File;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::proto::ws::handshake::reason_phrase;

/// An answer to one request; the connection is closed after it.
#[derive(Debug)]
pub struct Reply {
    /// From the status line to the blank line.
    pub head: Vec<u8>,
    /// What to write after the head.
    pub body: Body,
}

/// The body of a reply. Its length is the one that the head announces, or it is empty (HEAD).
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

impl Reply {
    pub(super) fn new(now: SystemTime, status: u16, headers: &[(&str, &str)], body: Body) -> Self {
        let has = |name: &str| headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name));
        let mut head = format!("HTTP/1.1 {status} {}\r\nDate: {}\r\n", reason_phrase(status), http_date(now));
        // RFC 9110 7.8: Upgrade is always named as a connection option.
        let connection = if has("Upgrade") { "Upgrade, close" } else { "close" };
        let _ = write!(head, "Connection: {connection}\r\nX-Content-Type-Options: nosniff\r\n");
        // RFC 9110 15.4.5: a 304 describes another reply's content and has none of its own.
        if status != 304 {
            let _ = write!(head, "Content-Length: {}\r\n", body.length());
        }
        for (name, value) in headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        Self { head: head.into_bytes(), body }
    }

    /// The status of the head; 0 if it has none.
    pub fn status(&self) -> u16 {
        let digits = self.head.get(9..12).and_then(|digits| str::from_utf8(digits).ok());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    /// RFC 9110 9.3.2: HEAD gets the same header fields and no content.
    pub(super) fn without_body(self) -> Self {
        Self { body: Body::Empty, ..self }
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

pub(super) fn error_at(now: SystemTime, status: u16, why: &str, headers: &[(&str, &str)]) -> Reply {
    let text = format!("{status} {}: {why}\n", reason_phrase(status));
    let headers = [&[("Content-Type", "text/plain; charset=utf-8")], headers].concat();
    Reply::new(now, status, &headers, Body::Bytes(text.into_bytes().into()))
}

pub(super) fn redirect(now: SystemTime, status: u16, location: &str) -> Reply {
    error_at(now, status, "it is at the place that Location names", &[("Location", location)])
}

/// RFC 9110 5.6.7. Times that the format can not tell are moved to the next that it can.
pub(super) fn http_date(time: SystemTime) -> String {
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799); // 9999-12-31 23:59:59
    httpdate::fmt_http_date(time.clamp(UNIX_EPOCH, last))
}
