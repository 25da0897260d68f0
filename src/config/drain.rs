//! Draining before the server stops.

use std::time::Duration;

/// How the server drains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drain {
    /// How long connections are accepted after health checks have begun to fail.
    pub delay: Duration,
    /// Time over which connections are closed after SIGTERM; zero: the server stops at once.
    pub before_stop: Duration,
    /// Code of the Close frames.
    pub code: u16,
}
