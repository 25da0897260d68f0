//! What the bus counts, in shared memory: most of it of its engine. Atomics only.

#![allow(unsafe_code)]

use std::sync::atomic::AtomicU64;

use super::handler::Count;
use crate::fleet::memory::region::Shareable;

/// Since the server was started.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct BusCounters {
    /// 1 while there is a connection to the engine.
    pub connected: Count,
    /// Connections after the first.
    pub reconnects: Count,
    /// Messages that the engine has taken.
    pub sent: Count,
    /// Messages that came from it.
    pub received: Count,
    /// Messages that it was not given, or that may be lost on the way there.
    pub dropped_out: Count,
    /// Messages from it that were too long, or more than the bus could take in.
    pub dropped_in: Count,
    /// Lines of the log that were lost.
    pub log_lost: AtomicU64,
}

// SAFETY: atomic integers.
unsafe impl Shareable for BusCounters {}
