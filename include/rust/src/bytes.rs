//! What the host lends: bytes and messages.

use std::fmt;
use std::ops::Deref;
use std::str::Utf8Error;

use crate::raw;

/// Bytes lent by the host, mostly text. Compares with strings, prints as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// As text, if it is UTF-8.
    pub fn to_str(self) -> Result<&'a str, Utf8Error> {
        str::from_utf8(self.0)
    }

    /// Absent bytes are `None`.
    ///
    /// # Safety
    /// `bytes` comes from the host and is valid for `'a`.
    pub(crate) unsafe fn from_raw(bytes: raw::ws_bytes) -> Option<Bytes<'a>> {
        if bytes.data.is_null() {
            return None;
        }
        // SAFETY: not null, and by the caller's promise valid for 'a.
        Some(Bytes(unsafe { slice(bytes.data, bytes.size) }))
    }
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0
    }
}

impl PartialEq<str> for Bytes<'_> {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Bytes<'_> {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&String::from_utf8_lossy(self.0), f)
    }
}

impl fmt::Debug for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(self.0), f)
    }
}

/// The type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 text.
    Text,
    /// Bytes.
    Binary,
}

impl Kind {
    pub(crate) fn raw(self) -> u32 {
        match self {
            Kind::Text => raw::WS_TEXT,
            Kind::Binary => raw::WS_BINARY,
        }
    }
}

/// A message, or in a handler with [`crate::WS_STREAM`] a fragment of one.
/// `Message::from("text")` and `Message::from(&bytes[..])` make one to send.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Text or binary.
    pub kind: Kind,
    /// The payload.
    pub data: &'a [u8],
    /// The message begins here; true in a whole one.
    pub first: bool,
    /// The message ends here; true in a whole one.
    pub last: bool,
}

impl<'a> Message<'a> {
    /// The text of a text message. `None` if it is binary, or a fragment that is
    /// cut within a character.
    pub fn text(&self) -> Option<&'a str> {
        match self.kind {
            Kind::Text => str::from_utf8(self.data).ok(),
            Kind::Binary => None,
        }
    }

    /// # Safety
    /// `message` comes from the host and is valid for `'a`.
    pub(crate) unsafe fn from_raw(message: &raw::ws_message) -> Message<'a> {
        Message {
            kind: if message.type_ == raw::WS_TEXT { Kind::Text } else { Kind::Binary },
            // SAFETY: by the caller's promise.
            data: unsafe { slice(message.data, message.size) },
            first: message.flags & raw::WS_FIRST != 0,
            last: message.flags & raw::WS_LAST != 0,
        }
    }
}

impl<'a> From<&'a str> for Message<'a> {
    fn from(text: &'a str) -> Self {
        Message { kind: Kind::Text, data: text.as_bytes(), first: true, last: true }
    }
}

impl<'a> From<&'a String> for Message<'a> {
    fn from(text: &'a String) -> Self {
        text.as_str().into()
    }
}

/// What can be sent as a message: text, bytes, or a [`Message`].
pub trait Sendable {
    /// It as a message. Asked for once for each time that it is sent.
    fn as_message(&self) -> Message<'_>;
}

impl<T: Sendable + ?Sized> Sendable for &T {
    fn as_message(&self) -> Message<'_> {
        (**self).as_message()
    }
}

impl Sendable for str {
    fn as_message(&self) -> Message<'_> {
        self.into()
    }
}

impl Sendable for String {
    fn as_message(&self) -> Message<'_> {
        self.as_str().into()
    }
}

impl Sendable for [u8] {
    fn as_message(&self) -> Message<'_> {
        self.into()
    }
}

impl<const N: usize> Sendable for [u8; N] {
    fn as_message(&self) -> Message<'_> {
        self[..].into()
    }
}

impl Sendable for Vec<u8> {
    fn as_message(&self) -> Message<'_> {
        self[..].into()
    }
}

impl Sendable for Message<'_> {
    fn as_message(&self) -> Message<'_> {
        *self
    }
}

impl<'a> From<&'a [u8]> for Message<'a> {
    fn from(data: &'a [u8]) -> Self {
        Message { kind: Kind::Binary, data, first: true, last: true }
    }
}

/// The length, never the payload.
impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} message of {} bytes", self.kind, self.data.len())
    }
}

/// # Safety
/// `data` is null or valid for `size` bytes for `'a`.
pub(crate) unsafe fn slice<'a>(data: *const std::ffi::c_char, size: usize) -> &'a [u8] {
    if data.is_null() || size == 0 {
        return &[];
    }
    // SAFETY: not null, and by the caller's promise valid for 'a.
    unsafe { std::slice::from_raw_parts(data.cast(), size) }
}
