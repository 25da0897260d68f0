//! The WebSocket protocol (RFC 6455, RFC 7692), in the order in which a connection meets it.
//!
//! - [`handshake`][]: the opening handshake and its answers (RFC 6455 4.2)
//! - [`extension`][]: the grammar of Sec-WebSocket-Extensions (RFC 6455 9.1)
//! - [`deflate`][]: permessage-deflate, negotiated and applied (RFC 7692)
//! - [`limits`][]: what a connection may cost, and how long it may be silent
//! - [`frame`][]: frame headers on the wire (RFC 6455 5.2)
//! - [`mask`][]: masking (RFC 6455 5.3)
//! - [`utf8`][]: UTF-8 checked as it arrives (RFC 6455 8.1)
//! - [`payload`][]: the type of a message, and where its payload lies
//! - [`message`][]: frames to messages (RFC 6455 5.4)
//! - [`close`][]: codes and bodies of Close frames (RFC 6455 5.5.1, 7.4)
//! - [`connection`][]: the state machine on top: messages, pings, closing, time

pub(crate) mod close;
pub mod connection;
pub mod deflate;
pub mod extension;
pub mod frame;
pub mod handshake;
pub mod limits;
pub mod mask;
pub(crate) mod message;
pub(crate) mod payload;
pub mod utf8;
