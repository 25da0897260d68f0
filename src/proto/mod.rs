//! The WebSocket protocol without I/O: bytes and `now` in, events and bytes out.
//!
//! No file descriptor, clock, thread or plugin is seen here. Times are
//! nanoseconds of a monotonic clock that the caller reads. Short input is "need
//! more", not an error. **Call [`connection::Connection::receive`] until it says
//! `NeedMore`**; what it and its sisters append to `out` is to be written.
//!
//! In the order in which a connection meets them:
//!
//! - [`proxy`][]: the header with which a proxy begins (PROXY protocol)
//! - [`head`][]: the request head (RFC 9112)
//! - [`forwarded`][]: the client as a proxy tells it (RFC 7239)
//! - [`allow`][]: allowed origins and hosts
//! - [`extension`][]: the grammar of Sec-WebSocket-Extensions (RFC 6455 9.1)
//! - [`deflate`][]: negotiating permessage-deflate (RFC 7692 5, 7.1)
//! - [`handshake`][]: the opening handshake and its answers (RFC 6455 4.2)
//! - [`limits`][]: what a connection may cost, and how long it may be silent
//! - [`frame`][]: frame headers on the wire (RFC 6455 5.2)
//! - [`mask`][]: masking (RFC 6455 5.3)
//! - [`utf8`][]: UTF-8 checked as it arrives (RFC 6455 8.1)
//! - [`codec`][]: compressing and inflating messages (RFC 7692 7.2)
//! - [`payload`][]: the type of a message, and where its payload lies
//! - [`message`][]: frames to messages (RFC 6455 5.4)
//! - [`close`][]: codes and bodies of Close frames (RFC 6455 5.5.1, 7.4)
//! - [`connection`][]: the state machine on top: messages, pings, closing, time

#![forbid(unsafe_code)]

pub mod allow;
pub mod close;
pub mod codec;
pub mod connection;
pub mod deflate;
pub mod extension;
pub mod forwarded;
pub mod frame;
#[cfg(any(test, fuzzing, feature = "fuzz"))]
#[allow(missing_docs, clippy::unwrap_used)]
pub mod fuzzing;
pub mod handshake;
pub mod head;
pub mod limits;
pub mod mask;
pub mod message;
pub mod payload;
pub mod proxy;
pub mod utf8;
