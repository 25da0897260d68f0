//! Why clients are turned away, for limits, logs and metrics. A value.

use strum::{IntoStaticStr, VariantArray};

/// Why a client is turned away: see `worker::listen::admission`. As a string: a word for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(usize)]
pub enum Refusal {
    Total,
    Pool,
    Address,
    Rate,
    Origin,
    Host,
    Proxy,
    Forwarded,
    Messages,
    Logins,
    Handler,
    Draining,
}
