//! What gateways count, in shared memory. Atomics only, as in the scoreboard.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::region::Shareable;

/// Why a handshake did not come to its end; the names are those of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It took too long.
    Timeout,
    /// The peer went away.
    Closed,
    /// A certificate of the client that is missing or not accepted.
    Certificate,
    /// The peer broke the protocol, or has nothing in common with the server.
    Protocol,
    /// No worker took the connection.
    Unavailable,
    /// There were too many handshakes at a time.
    Overload,
}

impl Failure {
    /// All, in the order of the counters.
    pub const ALL: [Self; 6] =
        [Self::Timeout, Self::Closed, Self::Certificate, Self::Protocol, Self::Unavailable, Self::Overload];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::Certificate => "certificate",
            Self::Protocol => "protocol",
            Self::Unavailable => "unavailable",
            Self::Overload => "overload",
        }
    }
}

/// What all gateways have counted.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct GatewayCounters {
    full: AtomicU64,
    resumed: AtomicU64,
    failures: [AtomicU64; Failure::ALL.len()],
    streams: AtomicU64,
    /// Seconds since the epoch; 0: there is no certificate.
    expires: AtomicU64,
    /// Lines of the log that were lost.
    pub log_lost: AtomicU64,
}

impl GatewayCounters {
    /// A handshake came to its end.
    pub fn count_handshake(&self, is_resumed: bool) {
        let counter = if is_resumed { &self.resumed } else { &self.full };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// One did not.
    pub fn count_failure(&self, failure: Failure) {
        self.failures.get(failure as usize).map(|counter| counter.fetch_add(1, Ordering::Relaxed));
    }

    /// A stream of HTTP/2 was opened.
    pub fn count_stream(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    /// When the first certificate expires.
    pub fn set_expiry(&self, seconds: u64) {
        self.expires.store(seconds, Ordering::Relaxed);
    }

    /// Handshakes, full and resumed.
    pub fn handshakes(&self) -> [u64; 2] {
        [&self.full, &self.resumed].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// Handshakes that failed, by reason.
    pub fn failures(&self) -> impl Iterator<Item = (Failure, u64)> {
        Failure::ALL.into_iter().zip(&self.failures).map(|(why, count)| (why, count.load(Ordering::Relaxed)))
    }

    /// Streams of HTTP/2.
    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// When the first certificate expires, if there is one; seconds since the epoch.
    pub fn expiry(&self) -> Option<u64> {
        Some(self.expires.load(Ordering::Relaxed)).filter(|seconds| *seconds > 0)
    }
}

// SAFETY: atomic integers.
unsafe impl Shareable for GatewayCounters {}
