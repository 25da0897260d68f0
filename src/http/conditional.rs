//! Conditional requests, RFC 9110 13: what the client holds against what is there.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::response::http_date;
use crate::proto::http1::head::Head;

/// How long after a change a further one might leave the same time stamp.
const STAMP_GRAIN: Duration = Duration::from_secs(1);

/// What tells one state of a file from another.
pub struct Validators {
    /// With quotes, without the `W/` of a weak one.
    tag: String,
    strong: bool,
    /// In whole seconds, as Last-Modified tells it.
    modified: SystemTime,
}

/// What to do with the request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer it as usual.
    Proceed,
    /// 304
    NotModified,
    /// 412
    Failed,
}

impl Validators {
    /// `identity` is whatever changes when the name is given to another file; `modified` the time of the last change.
    pub fn new(identity: u64, size: u64, modified: SystemTime, now: SystemTime) -> Self {
        let stamp = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        // RFC 9110 8.8.1: a time stamp is strong once it cannot be given to a second state any more.
        let strong = now.duration_since(modified).is_ok_and(|age| age > STAMP_GRAIN);
        Self {
            tag: format!("\"{identity:x}-{size:x}-{:x}\"", stamp.as_nanos()),
            strong,
            // RFC 9110 8.8.2.1: never later than the date of the reply.
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

    /// The preconditions of a GET or HEAD in the order of RFC 9110 13.2.2.
    pub fn evaluate(&self, head: &Head) -> Verdict {
        if head.header("If-Match").is_some() {
            if !self.any(head, "If-Match", Comparison::Strong) {
                return Verdict::Failed;
            }
        } else if date(head, "If-Unmodified-Since").is_some_and(|since| self.modified > since) {
            return Verdict::Failed;
        }
        if head.header("If-None-Match").is_some() {
            if self.any(head, "If-None-Match", Comparison::Weak) {
                return Verdict::NotModified;
            }
        } else if date(head, "If-Modified-Since").is_some_and(|since| self.modified <= since) {
            return Verdict::NotModified;
        }
        Verdict::Proceed
    }

    /// RFC 9110 13.1.5: whether If-Range, if there, lets the Range header count. Both kinds of validator must be
    /// strong.
    pub fn allows_range(&self, head: &Head) -> bool {
        let Some(value) = head.header("If-Range") else { return true };
        if !self.strong {
            return false;
        }
        value == self.tag.as_bytes() || date(head, "If-Range").is_some_and(|since| since == self.modified)
    }

    fn any(&self, head: &Head, name: &str, comparison: Comparison) -> bool {
        head.header_all(name).any(|list| list == b"*" || Tags(list).any(|tag| self.matches(tag, comparison)))
    }

    /// RFC 9110 8.8.3.2
    fn matches(&self, tag: Tag, comparison: Comparison) -> bool {
        let comparable = match comparison {
            Comparison::Strong => self.strong && !tag.weak,
            Comparison::Weak => true,
        };
        comparable && tag.quoted == self.tag.as_bytes()
    }
}

#[derive(Clone, Copy)]
enum Comparison {
    Strong,
    Weak,
}

struct Tag<'a> {
    weak: bool,
    quoted: &'a [u8],
}

/// The entity tags of a list, up to the first that is malformed.
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

/// A header that holds a date, or none if it is malformed: RFC 9110 13.1.3 wants such ones ignored.
fn date(head: &Head, name: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(std::str::from_utf8(head.header(name)?).ok()?).ok()
}

fn since_epoch(time: SystemTime) -> Duration {
    Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}
