//! What gateways count, in shared memory. Atomics only, as in the scoreboard.

#![allow(unsafe_code)]

use std::sync::atomic::AtomicU64;

use strum::{IntoStaticStr, VariantArray};

use super::handler::Count;
use crate::fleet::memory::region::Shareable;

/// Why a handshake did not come to its end. As a string: as the metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
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
    /// Too many connections of its address waited in the gateway.
    Address,
    /// Too many new connections of its address in this second.
    Rate,
}

/// What all gateways have counted.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct GatewayCounters {
    /// Handshakes that came to their end with a new session.
    pub full: Count,
    /// The same with a session that was resumed.
    pub resumed: Count,
    failures: [Count; Failure::VARIANTS.len()],
    /// Streams of HTTP/2 that were opened.
    pub streams: Count,
    /// When the first certificate expires; seconds since the epoch, 0: there is none.
    pub expiry: Count,
    /// Lines of the log that were lost.
    pub log_lost: AtomicU64,
}

impl GatewayCounters {
    /// A handshake did not come to its end.
    pub fn count_failure(&self, failure: Failure) {
        self.failures.get(failure as usize).into_iter().for_each(|count| count.add_shared(1));
    }

    /// Handshakes that failed, by reason.
    pub fn failures(&self) -> impl Iterator<Item = (Failure, u64)> {
        Failure::VARIANTS.iter().copied().zip(self.failures.iter().map(Count::get))
    }
}

// SAFETY: atomic integers.
unsafe impl Shareable for GatewayCounters {}
