//! What the bus counts, in shared memory: most of it of its engine. Atomics only.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::region::Shareable;

/// A number.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Number(AtomicU64);

impl Number {
    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// This instead.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Since the server was started.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct BusCounters {
    /// 1 while there is a connection to the engine.
    pub connected: Number,
    /// Connections after the first.
    pub reconnects: Number,
    /// Messages that the engine has taken.
    pub sent: Number,
    /// Messages that came from it.
    pub received: Number,
    /// Messages that it was not given, or that may be lost on the way there.
    pub dropped_out: Number,
    /// Messages from it that were too long, or more than the bus could take in.
    pub dropped_in: Number,
    /// Lines of the log that were lost.
    pub log_lost: AtomicU64,
}

// SAFETY: atomic integers.
unsafe impl Shareable for BusCounters {}
