//! The protocol without I/O: bytes and `now` in, events and bytes out.
//!
//! No file descriptor, clock, thread or plugin is seen here. The caller
//! reads the clock. Short input is "need
//! more", not an error. **Call [`ws::connection::Connection::receive`] until it says
//! `NeedMore`**; what it and its sisters append to `out` is to be written.

#![forbid(unsafe_code)]

#[cfg(any(test, fuzzing))]
#[allow(missing_docs, clippy::unwrap_used)]
pub mod fuzzing;
pub mod http1;
pub mod ws;
