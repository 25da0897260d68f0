//! Conditional requests (RFC 9110 13).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::response::http_date;
use crate::proto::http1::head::Head;

/// Resolution of time stamps: two changes within this time may leave the same one.
const STAMP_GRAIN: Duration = Duration::from_secs(1);

/// The validators of a file: ETag and Last-Modified.
pub struct Validators {
    /// With quotes, without the `W/` of a weak one.
    tag: String,
    strong: bool,
    /// In whole seconds, like Last-Modified.
    modified: SystemTime,
}

/// Result of the preconditions of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Serve the request.
    Met,
    /// Respond with 304.
    NotModified,
    /// Respond with 412.
    Failed,
}

impl Validators {
    /// `identity` differs between files of the same name; `modified` is the modification time.
    pub fn new(identity: u64, size: u64, modified: SystemTime, now: SystemTime) -> Self {
        let stamp = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        // RFC 9110 8.8.1: a time stamp is strong if no later change can have the same.
        let strong = now.duration_since(modified).is_ok_and(|age| age > STAMP_GRAIN);
        Self {
            tag: format!("\"{identity:x}-{size:x}-{:x}\"", stamp.as_nanos()),
            strong,
            // RFC 9110 8.8.2.1: not later than the date of the response.
            modified: UNIX_EPOCH + Duration::from_secs(stamp.as_secs()).min(since_epoch(now)),
        }
    }

    /// The value of the ETag header.
    pub fn etag(&self) -> String {
        format!("{}{}", if self.strong { "" } else { "W/" }, self.tag)
    }

    /// The value of the Last-Modified header.
    pub fn last_modified(&self) -> String {
        http_date(self.modified)
    }

    /// Evaluates the preconditions of a GET or HEAD in the order of RFC 9110 13.2.2.
    pub fn evaluate(&self, head: &Head) -> Precondition {
        if head.header("If-Match").is_some() {
            if !self.any(head, "If-Match", |tag| self.strong && !tag.weak) {
                return Precondition::Failed;
            }
        } else if date(head, "If-Unmodified-Since").is_some_and(|since| self.modified > since) {
            return Precondition::Failed;
        }
        if head.header("If-None-Match").is_some() {
            if self.any(head, "If-None-Match", |_| true) {
                return Precondition::NotModified;
            }
        } else if date(head, "If-Modified-Since").is_some_and(|since| self.modified <= since) {
            return Precondition::NotModified;
        }
        Precondition::Met
    }

    /// Whether If-Range, if present, allows Range (RFC 9110 13.1.5). Both kinds of validator must be strong.
    pub fn allows_range(&self, head: &Head) -> bool {
        let Some(value) = head.header("If-Range") else { return true };
        if !self.strong {
            return false;
        }
        value == self.tag.as_bytes() || date(head, "If-Range").is_some_and(|since| since == self.modified)
    }

    /// Whether a header has `*`, or this tag among those that are compared (RFC 9110 8.8.3.2).
    fn any(&self, head: &Head, name: &str, is_compared: impl Fn(&Tag) -> bool) -> bool {
        let is_this = |tag: Tag| is_compared(&tag) && tag.quoted == self.tag.as_bytes();
        head.header_all(name).any(|list| list == b"*" || Tags(list).any(is_this))
    }
}

struct Tag<'a> {
    weak: bool,
    quoted: &'a [u8],
}

/// The entity tags of a list, up to the first malformed one.
struct Tags<'a>(&'a [u8]);

impl<'a> Iterator for Tags<'a> {
    type Item = Tag<'a>;

    fn next(&mut self) -> Option<Tag<'a>> {
        let separator = |byte: &u8| matches!(byte, b' ' | b'\t' | b',');
        let start = self.0.iter().position(|byte| !separator(byte))?;
        let rest = self.0.get(start..)?;
        let (weak, rest) = rest.strip_prefix(b"W/").map_or((false, rest), |rest| (true, rest));
        let inside = rest.strip_prefix(b"\"")?;
        let end = inside.iter().position(|byte| *byte == b'"')? + 2;
        let (quoted, rest) = rest.split_at_checked(end)?;
        self.0 = rest;
        Some(Tag { weak, quoted })
    }
}

/// The date in a header; a malformed one is ignored (RFC 9110 13.1.3).
fn date(head: &Head, name: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(std::str::from_utf8(head.header(name)?).ok()?).ok()
}

fn since_epoch(time: SystemTime) -> Duration {
    Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}
