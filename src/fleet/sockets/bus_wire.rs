//! What workers and the bus say to each other: frames on a stream socket, each a length and what it says. Either side
//! reads the other's as a stranger's. Knows no socket.
//!
//! A worker numbers the topics that it subscribes to, and never gives a number twice; a topic is named by scope and
//! name, with a NUL in between. The bus stamps each message with the time (ns of the monotonic clock) at which it took
//! it in, later than the stamp before: a subscriber that has seen all up to a stamp can go on from there on any worker.
//!
//! A bus that makes room for another one shuts its receiving side: what was sent until then it takes in, and what comes
//! later fails at the worker, which keeps it for the next bus.

mod stream;

use std::str;

pub use stream::{Incoming, Outgoing, TooLong};

/// The version of all this, which a worker says when it connects.
pub const FORMAT: u32 = 0x7773_6205;
/// Bytes of a topic's name, and of a scope's, at most.
pub const MAX_NAME: usize = 255;
/// Bytes of a message at most.
pub const MAX_MESSAGE: usize = 1024 * 1024;
/// Bytes of a frame at most, without its length.
const MAX_FRAME: usize = MAX_MESSAGE + 2 * MAX_NAME + 64;
/// Bytes before the content of a frame: its length.
const LENGTH: usize = 4;

/// A message as a handler published it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication<'a> {
    /// The subscriber that is not to get it, by the number that it has everywhere; 0: none.
    pub but: u64,
    /// `WS_TEXT` or `WS_BINARY`.
    pub kind: u8,
    /// Whether to compress it for those that have agreed on that.
    pub compress: bool,
    /// UTF-8 if it is text.
    pub payload: &'a [u8],
}

/// How a message is compressed: window bits and level.
pub type Form = (u8, u8);

/// From a worker to the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Messages of this topic are wanted from now on, and before those the ones with a later stamp than `from`.
    Subscribe {
        /// The worker's number for it. One that it has subscribed to already: only the earlier messages are wanted.
        topic: u32,
        /// Comes back with the earlier messages.
        ticket: u32,
        /// A stamp.
        from: u64,
        /// Scope, NUL, name.
        key: &'a str,
    },
    /// No more of this topic.
    Unsubscribe {
        /// The worker's number for it.
        topic: u32,
    },
    /// A message for all that are subscribed to the topic.
    Publish {
        /// When it was published; ns of the monotonic clock.
        time: u64,
        /// Scope, NUL, name.
        key: &'a str,
        /// The message.
        message: Publication<'a>,
    },
    /// Subscribers of this topic want messages of at least so many bytes compressed like this: where other workers want
    /// that too, the bus does it for all.
    Compress {
        /// The worker's number for it.
        topic: u32,
        /// How.
        form: Form,
        /// Bytes.
        least: u32,
    },
    /// So many subscribers of this topic are on this worker now.
    Count {
        /// The worker's number for it.
        topic: u32,
        /// How many.
        count: u32,
    },
}

/// From the bus to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// A message.
    Message {
        /// The worker's number.
        topic: u32,
        /// 0, or that of a request for earlier messages, which this is one of.
        ticket: u32,
        /// When the bus took it in.
        stamp: u64,
        /// The message.
        message: Publication<'a>,
    },
    /// The message in the next frame, compressed.
    Compressed {
        /// How.
        form: Form,
        /// What it is compressed to.
        payload: &'a [u8],
    },
    /// All earlier messages that there still are were sent.
    Replayed {
        /// The worker's number.
        topic: u32,
        /// Of the request.
        ticket: u32,
        /// That of the last message of all: the following are not among those that were sent.
        stamp: u64,
        /// Messages that there are no more. At least so many.
        missed: u32,
    },
    /// Messages that it does not get: it did not keep up, or they are not kept any more.
    Missed {
        /// The worker's number.
        topic: u32,
        /// As of a message.
        ticket: u32,
        /// Of the last of them.
        stamp: u64,
        /// How many. At least so many.
        count: u32,
    },
    /// So many messages of this worker have been taken in since it connected.
    Taken {
        /// How many.
        count: u64,
    },
    /// So many subscribers of this topic are on other workers.
    Others {
        /// The worker's number.
        topic: u32,
        /// How many.
        count: u32,
    },
    /// The worker was sent, or told that it has missed, all that is for it up to this stamp.
    Passed {
        /// A stamp.
        stamp: u64,
    },
}

/// What the bus knows of the past, as it is left to the one that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept<'a> {
    /// A message that is kept.
    Message {
        /// When it was taken in.
        stamp: u64,
        /// Scope, NUL, name.
        key: &'a str,
        /// The message.
        message: Publication<'a>,
    },
    /// Messages of this topic that are not kept any more.
    Forgotten {
        /// That of the last one.
        stamp: u64,
        /// Scope, NUL, name.
        key: &'a str,
    },
    /// The same of all topics that are not named.
    Floor {
        /// That of the last one.
        stamp: u64,
    },
}

impl Kept<'_> {
    /// Its stamp.
    pub fn stamp(&self) -> u64 {
        let (Kept::Message { stamp, .. } | Kept::Forgotten { stamp, .. } | Kept::Floor { stamp }) = self;
        *stamp
    }

    /// Appends its frame.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        let frame = Frame::begin(out);
        match *self {
            Kept::Message { stamp, key, message } => frame.byte(b'K').u64(stamp).key(key).message(message),
            Kept::Forgotten { stamp, key } => frame.byte(b'G').u64(stamp).rest(key.as_bytes()),
            Kept::Floor { stamp } => frame.byte(b'L').u64(stamp),
        }
        .end();
    }

    /// What the content of a frame says; `None` if it is nonsense.
    pub fn read(content: &[u8]) -> Option<Kept<'_>> {
        let (kind, mut rest) = content.split_first()?;
        let rest = &mut rest;
        let stamp = u64(rest)?;
        let kept = match kind {
            b'K' => {
                let size = usize::from(u16::from_ne_bytes(*take_array(rest)?));
                Kept::Message { stamp, key: checked_key(take(rest, size)?)?, message: message(rest)? }
            }
            b'G' => Kept::Forgotten { stamp, key: checked_key(std::mem::take(rest))? },
            b'L' => Kept::Floor { stamp },
            _ => return None,
        };
        rest.is_empty().then_some(kept)
    }
}

/// Scope and name of a topic in one. Neither has a NUL.
pub fn key_of(scope: &str, name: &str) -> String {
    [scope, "\0", name].concat()
}

/// The scope of a key, and the topic's name.
pub fn split_key(key: &str) -> Option<(&str, &str)> {
    key.split_once('\0')
}

/// Whether a topic can have this name: 1 to [`MAX_NAME`] bytes of UTF-8 without control characters.
pub fn checked_name(name: &[u8]) -> Option<&str> {
    let name = str::from_utf8(name).ok()?;
    let fits = !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control);
    fits.then_some(name)
}

fn checked_key(key: &[u8]) -> Option<&str> {
    let key = str::from_utf8(key).ok()?;
    let (scope, name) = split_key(key)?;
    (checked_name(scope.as_bytes()).is_some() && checked_name(name.as_bytes()).is_some()).then_some(key)
}

impl Request<'_> {
    /// Appends its frame.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        let frame = Frame::begin(out);
        match *self {
            Request::Subscribe { topic, ticket, from, key } => {
                frame.byte(b'S').u32(topic).u32(ticket).u64(from).rest(key.as_bytes())
            }
            Request::Unsubscribe { topic } => frame.byte(b'U').u32(topic),
            Request::Publish { time, key, message } => frame.byte(b'P').u64(time).key(key).message(message),
            Request::Compress { topic, form, least } => frame.byte(b'Z').u32(topic).form(form).u32(least),
            Request::Count { topic, count } => frame.byte(b'C').u32(topic).u32(count),
        }
        .end();
    }

    /// What the content of a frame says; `None` if it is nonsense.
    pub fn read(content: &[u8]) -> Option<Request<'_>> {
        let (kind, mut rest) = content.split_first()?;
        let rest = &mut rest;
        let request = match kind {
            b'S' => {
                let (topic, ticket, from) = (u32(rest)?, u32(rest)?, u64(rest)?);
                Request::Subscribe { topic, ticket, from, key: checked_key(std::mem::take(rest))? }
            }
            b'U' => Request::Unsubscribe { topic: u32(rest)? },
            b'P' => {
                let time = u64(rest)?;
                let size = usize::from(u16::from_ne_bytes(*take_array(rest)?));
                Request::Publish { time, key: checked_key(take(rest, size)?)?, message: message(rest)? }
            }
            b'Z' => Request::Compress { topic: u32(rest)?, form: form(rest)?, least: u32(rest)? },
            b'C' => Request::Count { topic: u32(rest)?, count: u32(rest)? },
            _ => return None,
        };
        rest.is_empty().then_some(request)
    }
}

impl Request<'_> {
    /// When the message in a frame was published; `None` if it is another frame.
    pub fn time_of(content: &[u8]) -> Option<u64> {
        let (b'P', mut rest) = content.split_first()? else { return None };
        u64(&mut rest)
    }
}

impl Notice<'_> {
    /// Appends its frame.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        let frame = Frame::begin(out);
        match *self {
            Notice::Message { topic, ticket, stamp, message } => {
                frame.byte(b'M').u32(topic).u32(ticket).u64(stamp).message(message)
            }
            Notice::Compressed { form, payload } => frame.byte(b'Z').form(form).rest(payload),
            Notice::Replayed { topic, ticket, stamp, missed } => {
                frame.byte(b'R').u32(topic).u32(ticket).u64(stamp).u32(missed)
            }
            Notice::Missed { topic, ticket, stamp, count } => {
                frame.byte(b'D').u32(topic).u32(ticket).u64(stamp).u32(count)
            }
            Notice::Taken { count } => frame.byte(b'T').u64(count),
            Notice::Others { topic, count } => frame.byte(b'O').u32(topic).u32(count),
            Notice::Passed { stamp } => frame.byte(b'P').u64(stamp),
        }
        .end();
    }

    /// What the content of a frame says; `None` if it is nonsense.
    pub fn read(content: &[u8]) -> Option<Notice<'_>> {
        let (kind, mut rest) = content.split_first()?;
        let rest = &mut rest;
        let notice = match kind {
            b'M' => Notice::Message {
                topic: u32(rest)?,
                ticket: u32(rest)?,
                stamp: u64(rest)?,
                message: message(rest)?,
            },
            b'Z' => Notice::Compressed { form: form(rest)?, payload: std::mem::take(rest) },
            b'R' => Notice::Replayed {
                topic: u32(rest)?,
                ticket: u32(rest)?,
                stamp: u64(rest)?,
                missed: u32(rest)?,
            },
            b'D' => {
                Notice::Missed { topic: u32(rest)?, ticket: u32(rest)?, stamp: u64(rest)?, count: u32(rest)? }
            }
            b'T' => Notice::Taken { count: u64(rest)? },
            b'O' => Notice::Others { topic: u32(rest)?, count: u32(rest)? },
            b'P' => Notice::Passed { stamp: u64(rest)? },
            _ => return None,
        };
        rest.is_empty().then_some(notice)
    }
}

/// A frame that is being written.
struct Frame<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Frame<'a> {
    fn begin(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; LENGTH]);
        Frame { out, start }
    }

    fn rest(self, bytes: &[u8]) -> Self {
        self.out.extend_from_slice(bytes);
        self
    }

    fn byte(self, byte: u8) -> Self {
        self.rest(&[byte])
    }

    fn u32(self, number: u32) -> Self {
        self.rest(&number.to_ne_bytes())
    }

    fn u64(self, number: u64) -> Self {
        self.rest(&number.to_ne_bytes())
    }

    fn form(self, (bits, level): Form) -> Self {
        self.byte(bits).byte(level)
    }

    fn key(self, key: &str) -> Self {
        // A key has at most two names and a NUL.
        self.rest(&(key.len() as u16).to_ne_bytes()).rest(key.as_bytes())
    }

    fn message(self, message: Publication<'_>) -> Self {
        let frame = self.u64(message.but).byte(message.kind).byte(message.compress.into());
        frame.rest(message.payload)
    }

    fn end(self) {
        let length = (self.out.len() - self.start - LENGTH) as u32;
        if let Some(place) = self.out.get_mut(self.start..self.start + LENGTH) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }
}

fn take<'a>(bytes: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(size)?;
    *bytes = rest;
    Some(taken)
}

fn take_array<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(taken)
}

fn u32(bytes: &mut &[u8]) -> Option<u32> {
    take_array(bytes).map(|bytes| u32::from_ne_bytes(*bytes))
}

fn u64(bytes: &mut &[u8]) -> Option<u64> {
    take_array(bytes).map(|bytes| u64::from_ne_bytes(*bytes))
}

fn form(bytes: &mut &[u8]) -> Option<Form> {
    let [bits @ 9..=15, level @ 1..=9] = *take_array(bytes)? else { return None };
    Some((bits, level))
}

/// All that is left. That text is UTF-8 is for the reader to see.
fn message<'a>(bytes: &mut &'a [u8]) -> Option<Publication<'a>> {
    let but = u64(bytes)?;
    let [kind @ 1..=2, compress @ 0..=1] = *take_array(bytes)? else { return None };
    let payload = std::mem::take(bytes);
    let is_short = payload.len() <= MAX_MESSAGE;
    is_short.then_some(Publication { but, kind, compress: compress == 1, payload })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
