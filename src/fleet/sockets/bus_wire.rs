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
pub const FORMAT: u32 = 0x7773_6206;
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

/// From a worker to the bus. `topic` is the worker's number for it, `key` scope, NUL and name; times are ns of the
/// monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Messages of this topic are wanted from now on, and before those the ones with a later stamp than `from`, with
    /// which the ticket comes back. Of a topic that it has subscribed to already only the earlier ones are wanted.
    Subscribe { topic: u32, ticket: u32, from: u64, key: &'a str },
    /// No more of this topic.
    Unsubscribe { topic: u32 },
    /// A message for all that are subscribed to the topic, and when it was published.
    Publish { time: u64, key: &'a str, message: Publication<'a> },
    /// Subscribers of this topic want messages of at least so many bytes compressed like this: where other workers want
    /// that too, the bus does it for all.
    Compress { topic: u32, form: Form, least: u32 },
    /// So many subscribers of this topic are on this worker now.
    Count { topic: u32, count: u32 },
}

/// From the bus to a worker. `topic` is the worker's number for it; `ticket` is 0, or that of a request for earlier
/// messages, which it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// A message, stamped when the bus took it in.
    Message { topic: u32, ticket: u32, stamp: u64, message: Publication<'a> },
    /// The message in the next frame, compressed.
    Compressed { form: Form, payload: &'a [u8] },
    /// All earlier messages that there still are were sent; at least `missed` are there no more. `stamp` is that of the
    /// last message of all: the following are not among those that were sent.
    Replayed { topic: u32, ticket: u32, stamp: u64, missed: u32 },
    /// At least `count` messages that it does not get, the last with this stamp: it did not keep up, or they are not
    /// kept any more.
    Missed { topic: u32, ticket: u32, stamp: u64, count: u32 },
    /// So many messages of this worker have been taken in since it connected.
    Taken { count: u64 },
    /// So many subscribers of this topic are on other workers.
    Others { topic: u32, count: u32 },
    /// The worker was sent, or told that it has missed, all that is for it up to this stamp.
    Passed { stamp: u64 },
}

/// What the bus knows of the past, as it is left to the one that follows. `key` is scope, NUL and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept<'a> {
    /// A message that is kept, stamped when it was taken in.
    Message { stamp: u64, key: &'a str, message: Publication<'a> },
    /// Messages of this topic up to this stamp are not kept any more.
    Forgotten { stamp: u64, key: &'a str },
    /// The same of all topics that are not named.
    Floor { stamp: u64 },
}

impl Kept<'_> {
    pub fn stamp(&self) -> u64 {
        let (Kept::Message { stamp, .. } | Kept::Forgotten { stamp, .. } | Kept::Floor { stamp }) = self;
        *stamp
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

impl Request<'_> {
    /// When the message in a frame was published; `None` if it is another frame.
    pub fn time_of(content: &[u8]) -> Option<u64> {
        let (b'P', mut rest) = content.split_first()? else { return None };
        Field::take(&mut rest)
    }
}

/// How these are written and read: a byte for the kind, then the fields.
macro_rules! frames {
    ($name:ident { $($kind:literal $variant:ident { $($field:ident),* })* }) => {
        impl<'a> $name<'a> {
            /// Appends its frame.
            pub fn append_to(&self, out: &mut Vec<u8>) {
                let start = out.len();
                out.extend_from_slice(&[0; LENGTH]);
                match self {
                    $($name::$variant { $($field),* } => {
                        out.push($kind);
                        $($field.put(out);)*
                    })*
                }
                let length = (out.len() - start - LENGTH) as u32;
                if let Some(place) = out.get_mut(start..start + LENGTH) {
                    place.copy_from_slice(&length.to_ne_bytes());
                }
            }

            /// What the content of a frame says; `None` if it is nonsense.
            pub fn read(content: &'a [u8]) -> Option<Self> {
                let (kind, mut rest) = content.split_first()?;
                let read = match kind {
                    $($kind => $name::$variant { $($field: Field::take(&mut rest)?),* },)*
                    _ => return None,
                };
                rest.is_empty().then_some(read)
            }
        }
    };
}

frames!(Request {
    b'S' Subscribe { topic, ticket, from, key }
    b'U' Unsubscribe { topic }
    b'P' Publish { time, key, message }
    b'Z' Compress { topic, form, least }
    b'C' Count { topic, count }
});

frames!(Notice {
    b'M' Message { topic, ticket, stamp, message }
    b'Z' Compressed { form, payload }
    b'R' Replayed { topic, ticket, stamp, missed }
    b'D' Missed { topic, ticket, stamp, count }
    b'T' Taken { count }
    b'O' Others { topic, count }
    b'P' Passed { stamp }
});

frames!(Kept {
    b'K' Message { stamp, key, message }
    b'G' Forgotten { stamp, key }
    b'L' Floor { stamp }
});

/// A part of a frame.
trait Field<'a>: Sized {
    fn put(&self, out: &mut Vec<u8>);
    /// Cuts it off; `None` if it is nonsense.
    fn take(bytes: &mut &'a [u8]) -> Option<Self>;
}

fn take_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

impl Field<'_> for u32 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_ne_bytes());
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        take_array(bytes).map(u32::from_ne_bytes)
    }
}

impl Field<'_> for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_ne_bytes());
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        take_array(bytes).map(u64::from_ne_bytes)
    }
}

impl Field<'_> for Form {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.0, self.1]);
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let [bits @ 9..=15, level @ 1..=9] = take_array(bytes)? else { return None };
        Some((bits, level))
    }
}

/// A key, which has at most two names and a NUL.
impl<'a> Field<'a> for &'a str {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.len() as u16).to_ne_bytes());
        out.extend_from_slice(self.as_bytes());
    }

    fn take(bytes: &mut &'a [u8]) -> Option<Self> {
        let size = u16::from_ne_bytes(take_array(bytes)?);
        let (key, rest) = bytes.split_at_checked(usize::from(size))?;
        *bytes = rest;
        let key = str::from_utf8(key).ok()?;
        let (scope, name) = split_key(key)?;
        let is_checked = |name: &str| checked_name(name.as_bytes()).is_some();
        (is_checked(scope) && is_checked(name)).then_some(key)
    }
}

/// All that is left.
impl<'a> Field<'a> for &'a [u8] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn take(bytes: &mut &'a [u8]) -> Option<Self> {
        Some(std::mem::take(bytes))
    }
}

/// That text is UTF-8 is for the reader to see.
impl<'a> Field<'a> for Publication<'a> {
    fn put(&self, out: &mut Vec<u8>) {
        self.but.put(out);
        out.extend_from_slice(&[self.kind, self.compress.into()]);
        self.payload.put(out);
    }

    fn take(bytes: &mut &'a [u8]) -> Option<Self> {
        let but = Field::take(bytes)?;
        let [kind @ 1..=2, compress @ 0..=1] = take_array(bytes)? else { return None };
        let payload: &[u8] = Field::take(bytes)?;
        let is_short = payload.len() <= MAX_MESSAGE;
        is_short.then_some(Publication { but, kind, compress: compress == 1, payload })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
