//! Guarded copies of messages, for strict hosts. A copy ends at an unmapped page and is unmapped when its callback has
//! returned, so a handler that reads past a message, or uses it later, crashes at once. The address tells which of the
//! two it was.
//!
//! The copies lie in a part of the address space that the kernel uses last. If it is not available (39-bit address
//! space, valgrind), handlers get the original.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// [`PLACES`] copies are in use by turns, one in each [`STRIDE`]; each ends [`EDGE`] before the end of its stride.
const BASE: usize = 0x5d00_0000_0000;
const STRIDE: usize = 1 << 30;
const PLACES: usize = 1024;
/// Unmapped addresses after a copy that identify a read past its end.
const EDGE: usize = 1 << 20;
const PAGE: usize = 64 << 10;

/// A mapped copy.
struct GuardedCopy {
    start: NonNull<u8>,
    /// Of the mapping: whole pages.
    size: usize,
}

thread_local! {
    /// The copy that the handler on this thread may read.
    static MAPPED: Cell<Option<GuardedCopy>> = const { Cell::new(None) };
}

impl Drop for GuardedCopy {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and the callback that may read it has returned.
        let _ = unsafe { munmap(self.start.cast(), self.size) }; // it fails for no mapping that exists
    }
}

impl GuardedCopy {
    fn of(bytes: &[u8]) -> Option<(Self, *const u8)> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let place = NEXT.fetch_add(1, Ordering::Relaxed) % PLACES;
        let size = bytes.len().max(1).next_multiple_of(PAGE);
        let start = (BASE + (place + 1) * STRIDE - EDGE).checked_sub(size)?;
        let (address, length) = (NonZeroUsize::new(start)?, NonZeroUsize::new(size)?);
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping that replaces no other.
        let mapped = unsafe { mmap_anonymous(Some(address), length, protection, flags) }.ok()?;
        let copy = GuardedCopy { start: mapped.cast(), size };
        // A kernel without MAP_FIXED_NOREPLACE takes the address as a hint.
        if copy.start.addr() != address {
            return None;
        }
        // SAFETY: `size` bytes are mapped, and writable; the bytes fit at their end and lie elsewhere.
        let data = unsafe { copy.start.add(size - bytes.len()) };
        // SAFETY: as above.
        unsafe { data.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        Some((copy, data.as_ptr()))
    }
}

/// Maps a copy of the message for the handler on this thread, until the next call or [`unmap`]. None if that is not
/// possible.
pub fn map(terminated: &[u8]) -> Option<*const u8> {
    unmap();
    let (copy, data) = GuardedCopy::of(terminated)?;
    MAPPED.set(Some(copy));
    Some(data)
}

/// Unmaps the copy of this thread.
pub fn unmap() {
    MAPPED.take();
}

/// Which misuse of a message a fault at this address shows, if any.
pub fn explain(address: u64) -> Option<&'static str> {
    let offset =
        usize::try_from(address).ok()?.checked_sub(BASE).filter(|offset| *offset < PLACES * STRIDE)?;
    Some(match offset % STRIDE >= STRIDE - EDGE {
        true => "past the end of a message",
        false => "a message whose callback has returned",
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_address_tells_how_a_message_was_misused() {
        let data = map(b"hello\0").unwrap() as usize as u64;
        assert_eq!(explain(data + 6), Some("past the end of a message"));
        assert_eq!(explain(data), Some("a message whose callback has returned"));
        assert_eq!([explain(0), explain(u64::MAX), explain(&raw const data as u64)], [None; 3]);
        let large = vec![1; 5_000_000];
        assert!(map(&large).is_some());
        unmap();
    }
}
