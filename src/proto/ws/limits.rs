//! The limits of one connection: what it may cost in memory, and how long it
//! may be silent. Plain values; `connection` and `message` keep them.

/// Limits of a connection. Sizes are bytes, times are nanoseconds; a time or
/// a rate of 0 turns the limit off.
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
    pub idle: u64,
    /// Time without any byte from the peer after which a Ping is sent.
    pub ping_interval: u64,
    /// Time from such a Ping within which some byte must come.
    pub pong_deadline: u64,
    /// Time from one side's Close frame to the other's.
    pub close_deadline: u64,
    /// Pings that the peer may send in a second. More fails the connection
    /// with 1008.
    pub pings_per_second: u32,
}

/// Nanoseconds of a second.
pub(crate) const SECOND: u64 = 1_000_000_000;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message: 16 << 20,
            frame: 16 << 20,
            idle: 0,
            ping_interval: 30 * SECOND,
            pong_deadline: 20 * SECOND,
            close_deadline: 5 * SECOND,
            pings_per_second: 20,
        }
    }
}
