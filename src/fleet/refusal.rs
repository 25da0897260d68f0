//! Why clients are turned away, for limits, logs and metrics. A value.

use strum::{IntoStaticStr, VariantArray};

/// Why a client is turned away. As a string: a word for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(usize)]
pub enum Refusal {
    /// Too many connections of all addresses.
    Total,
    /// Too many connections of a pool.
    Pool,
    /// Too many connections of its address.
    Address,
    /// Too many new connections of its address in this second.
    Rate,
    /// An origin that is not allowed.
    Origin,
    /// A host that is not allowed.
    Host,
    /// No proper header of the PROXY protocol.
    Proxy,
    /// Forwarded or X-Forwarded-For cannot be understood.
    Forwarded,
    /// Too many messages, or bytes of messages, in a second.
    Messages,
    /// Too many failed logins of its address in this minute.
    Logins,
    /// Too many connections to the handler.
    Handler,
    /// The server drains.
    Draining,
}
