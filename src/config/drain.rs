//! How a server that drains sends its clients away.

use std::time::Duration;

/// How the server sends its clients away before it stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drain {
    /// From failing health checks to accepting nothing more; zero: at once.
    pub delay: Duration,
    /// SIGTERM drains over this time first; zero: not at all.
    pub before_stop: Duration,
    /// Of the Close frames.
    pub code: u16,
}
