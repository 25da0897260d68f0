//! Handlers for the wshd WebSocket server, in Rust.
//!
//! A handler is a type with one value per connection. In the event style it
//! implements [`Handler`], and its methods run on the worker's event loop:
//!
//! ```
//! use ws_handler::{Conn, Current, Handler, Message, Outcome};
//!
//! struct Echo;
//!
//! impl Handler for Echo {
//!     fn on_open(_conn: &Current) -> Outcome<Self> {
//!         Ok(Echo)
//!     }
//!
//!     fn on_message(&mut self, conn: &Current, msg: Message) -> Outcome {
//!         Ok(conn.send(msg)?)
//!     }
//! }
//!
//! ws_handler::export!(Echo, name(c"echo"));
//! ```
//!
//! In the blocking style it implements [`BlockingHandler`], and each connection
//! has a thread; see there. Either is built as a `cdylib` named `NAME_wsh.so`.
//!
//! The places of `ws_handler.h` are types here: a function that may be called
//! from any thread belongs to [`Conn`], which can be copied and sent; one that
//! belongs in a callback of the connection to [`Current`], which cannot leave
//! it; and those of the handshake to [`Handshake`]. What the host lends cannot
//! outlive the callback.
//!
//! Panics do not leave the handler (when built with `panic = "unwind"`): they are
//! logged with file and line, and the connection is closed with 1011. This crate opens no sockets,
//! starts no threads, and depends on nothing but the standard library.

mod bytes;
mod conn;
mod error;
mod handshake;
mod host;
mod panics;
mod session;
mod stubs;
mod style;
mod topic;

pub mod event_loop;
#[doc(hidden)]
pub mod export;
pub mod raw;
#[cfg(feature = "test")]
pub mod test;

#[cfg(test)]
mod fake;
#[cfg(doctest)]
mod refused;
#[cfg(test)]
mod tests;

pub use bytes::{Bytes, Kind, Message, Sendable};
pub use conn::{Blocking, Conn, Current, TimerId};
pub use error::{Error, Outcome, Result};
pub use handshake::{DeflateOptions, Handshake, LateHandshake, Reply};
pub use host::{Level, config, extension, host_version, list, log, now, settings, worker, workers};
pub use raw::{WS_DROP, WS_NOT_SELF};
pub use raw::{WS_FD_HANGUP, WS_FD_READ, WS_FD_WRITE, WS_MORE, WS_UNCOMPRESSED};
pub use raw::{WS_KEEP_REQUEST, WS_NO_EXTENSIONS, WS_RESUMABLE, WS_STREAM};
pub use style::{BlockingHandler, By, Handler};
pub use topic::{publish, publish_flags, subscribers};

/// Close codes by name (RFC 6455, 7.4.1, and the IANA registry).
pub mod close_code {
    pub use crate::raw::{
        WS_CLOSE_GOING_AWAY as GOING_AWAY, WS_CLOSE_INTERNAL_ERROR as INTERNAL_ERROR,
        WS_CLOSE_INVALID_DATA as INVALID_DATA, WS_CLOSE_NO_CODE as NO_CODE, WS_CLOSE_NORMAL as NORMAL,
        WS_CLOSE_POLICY as POLICY, WS_CLOSE_PROTOCOL_ERROR as PROTOCOL_ERROR, WS_CLOSE_RESTART as RESTART,
        WS_CLOSE_TOO_BIG as TOO_BIG, WS_CLOSE_TRY_LATER as TRY_LATER, WS_CLOSE_UNSUPPORTED as UNSUPPORTED,
    };
}
