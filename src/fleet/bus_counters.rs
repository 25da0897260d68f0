//! What the bus counts of its engine, in shared memory that is made before the first fork. Atomics only.

#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

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
}

/// Counters for a fleet. [supervisor, before the first fork]
pub fn create() -> io::Result<&'static BusCounters> {
    let size = NonZeroUsize::new(size_of::<BusCounters>()).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces no other memory.
    let base = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_SHARED)? };
    // SAFETY: page-aligned, of this size, zeroed (valid BusCounters: atomics only), and never unmapped.
    Ok(unsafe { base.cast::<BusCounters>().as_ref() })
}
