//! The results of `ws_handler.h` as Rust's.

use std::fmt;

use crate::raw;

/// Why a call was not carried out; the `WS_E_` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The connection is gone, or its closing has begun. Nothing to repair.
    Gone,
    /// The send queue is full and nothing was queued: wait for `on_writable`.
    Full,
    /// The time is over.
    Timeout,
    /// The server wants this connection to end soon.
    Draining,
    /// An argument is not allowed here.
    Invalid,
    /// Called from the wrong place.
    Place,
    /// A bound is reached.
    Limit,
    /// The host is older than this function.
    Unsupported,
    /// Some other failure.
    Failed,
    /// There is nothing of that name.
    Absent,
    /// The configuration does not allow it.
    Denied,
}

/// The result of a call to the host.
pub type Result<T = ()> = std::result::Result<T, Error>;

/// The result of a callback: `?` works on any error. An error is logged, and
/// the connection closed with 1011 (in the handshake: answered with 500);
/// but [`Error::Gone`] is taken for what it is, a peer that has left.
pub type Outcome<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

impl Error {
    /// The `WS_E_` value.
    pub fn code(self) -> i32 {
        match self {
            Error::Gone => raw::WS_E_GONE,
            Error::Full => raw::WS_E_FULL,
            Error::Timeout => raw::WS_E_TIMEOUT,
            Error::Draining => raw::WS_E_DRAINING,
            Error::Invalid => raw::WS_E_INVALID,
            Error::Place => raw::WS_E_PLACE,
            Error::Limit => raw::WS_E_LIMIT,
            Error::Unsupported => raw::WS_E_UNSUPPORTED,
            Error::Failed => raw::WS_E_FAILED,
            Error::Absent => raw::WS_E_ABSENT,
            Error::Denied => raw::WS_E_DENIED,
        }
    }

    /// The error of a `WS_E_` value; those of a newer host are `Failed`.
    pub(crate) fn from_code(code: i32) -> Error {
        match code {
            raw::WS_E_GONE => Error::Gone,
            raw::WS_E_FULL => Error::Full,
            raw::WS_E_TIMEOUT => Error::Timeout,
            raw::WS_E_DRAINING => Error::Draining,
            raw::WS_E_INVALID => Error::Invalid,
            raw::WS_E_PLACE => Error::Place,
            raw::WS_E_LIMIT => Error::Limit,
            raw::WS_E_UNSUPPORTED => Error::Unsupported,
            raw::WS_E_ABSENT => Error::Absent,
            raw::WS_E_DENIED => Error::Denied,
            _ => Error::Failed,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Gone => "the connection is gone",
            Error::Full => "the send queue is full",
            Error::Timeout => "the time is over",
            Error::Draining => "the server wants the connection to end",
            Error::Invalid => "an argument is not allowed here",
            Error::Place => "called from the wrong place",
            Error::Limit => "a bound is reached",
            Error::Unsupported => "the host is older than this function",
            Error::Failed => "failed",
            Error::Absent => "there is nothing of that name",
            Error::Denied => "the configuration does not allow it",
        })
    }
}

impl std::error::Error for Error {}

/// `Ok` for results >= 0.
pub(crate) fn check(result: i32) -> Result {
    if result >= 0 { Ok(()) } else { Err(Error::from_code(result)) }
}
