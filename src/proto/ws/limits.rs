//! The limits of one connection: what it may cost in memory, and how long it
//! may be silent. Plain values; `connection` and `message` keep them.

use std::time::Duration;

/// Limits of a connection. Sizes are bytes; a time or a rate of 0 turns the
/// limit off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message, after decompression, whether it is gathered or
    /// delivered as a stream. More fails the connection with 1009.
    pub message: usize,
    /// Largest payload of one frame as it stands on the wire. More fails the
    /// connection with 1009 as soon as the header is read.
    pub frame: usize,
    /// Time without a data message in either direction after which the
    /// connection is closed with 1001.
    pub idle: Duration,
    /// Time without any byte from the peer after which a Ping is sent.
    pub ping_interval: Duration,
    /// Time from such a Ping within which some byte must come.
    pub pong_deadline: Duration,
    /// Time from one side's Close frame to the other's.
    pub close_deadline: Duration,
    /// Pings that the peer may send in a second. More fails the connection
    /// with 1008.
    pub pings_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message: 16 << 20,
            frame: 16 << 20,
            idle: Duration::ZERO,
            ping_interval: Duration::from_secs(30),
            pong_deadline: Duration::from_secs(20),
            close_deadline: Duration::from_secs(5),
            pings_per_second: 20,
        }
    }
}
