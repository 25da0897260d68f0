//! Why clients are turned away, for limits, logs and metrics. A value.

/// Why a client is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl Refusal {
    /// All, in the order of their numbers.
    pub const ALL: [Refusal; 12] = [
        Refusal::Total,
        Refusal::Pool,
        Refusal::Address,
        Refusal::Rate,
        Refusal::Origin,
        Refusal::Host,
        Refusal::Proxy,
        Refusal::Forwarded,
        Refusal::Messages,
        Refusal::Logins,
        Refusal::Handler,
        Refusal::Draining,
    ];

    /// A word for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::Total => "total",
            Refusal::Pool => "pool",
            Refusal::Address => "address",
            Refusal::Rate => "rate",
            Refusal::Origin => "origin",
            Refusal::Host => "host",
            Refusal::Proxy => "proxy",
            Refusal::Forwarded => "forwarded",
            Refusal::Messages => "messages",
            Refusal::Logins => "logins",
            Refusal::Handler => "handler",
            Refusal::Draining => "draining",
        }
    }
}
