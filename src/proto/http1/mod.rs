//! HTTP/1.1 as far as a WebSocket server needs it, and what a proxy puts before or into it.
//!
//! - [`proxy`][]: the header with which a proxy begins (PROXY protocol)
//! - [`field`][]: the grammar of header fields (RFC 9110 5)
//! - [`head`][]: the request head (RFC 9112)
//! - [`forwarded`][]: the client as a proxy tells it (RFC 7239)
//! - [`target`][]: the request target (RFC 9112 3.2)
//! - [`authority`][]: host and port of a request (RFC 3986 3.2)
//! - [`allow`][]: allowed origins and hosts

pub(crate) mod allow;
pub(crate) mod authority;
pub(crate) mod field;
pub(crate) mod forwarded;
pub mod head;
pub mod proxy;
pub(crate) mod target;
