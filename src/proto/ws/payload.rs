//! What a message consists of: its type, and a payload that lies where it came in, or was gathered.

use crate::proto::ws::frame::Opcode;
use std::ops::Range;

/// The type of a message: its opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// UTF-8.
    Text = 1,
    /// Any octets.
    Binary = 2,
}

impl Kind {
    /// Of the first frame.
    #[inline]
    pub fn opcode(self) -> Opcode {
        match self {
            Kind::Text => Opcode::Text,
            Kind::Binary => Opcode::Binary,
        }
    }
}

/// Where a payload lies.
#[derive(PartialEq, Eq)]
pub enum Body {
    /// Unmasked in place, in the input that was passed in.
    Input(Range<usize>),
    /// Gathered. Its capacity exceeds its length: a NUL can be appended without moving it.
    Owned(Vec<u8>),
}

impl Body {
    /// The octets; `input` is what was passed to the call that returned this.
    pub fn octets<'a>(&'a self, input: &'a [u8]) -> &'a [u8] {
        match self {
            Body::Input(range) => input.get(range.clone()).unwrap_or_default(),
            Body::Owned(gathered) => gathered,
        }
    }

    /// How many octets.
    pub fn len(&self) -> usize {
        match self {
            Body::Input(range) => range.len(),
            Body::Owned(gathered) => gathered.len(),
        }
    }

    /// Whether there is not a single octet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The place and the length, never the content.
impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Body::Input(range) => write!(f, "Input({range:?})"),
            Body::Owned(gathered) => write!(f, "Owned({} octets)", gathered.len()),
        }
    }
}
