//! Messages as a strict host gives them to handlers: a copy that ends where nothing is mapped, and that is gone when its time
//! is over. Who reads past a message, or keeps its address, crashes there and then; the address tells which of the two.
//!
//! The copies lie in a part of the address space that the kernel uses last. Where it cannot be used (an address space of 39
//! bits, valgrind) handlers are given the original.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Where the copies are: [`PLACES`], one in each [`STRIDE`], each up to [`EDGE`] before its end.
const BASE: usize = 0x5d00_0000_0000;
const STRIDE: usize = 1 << 30;
const PLACES: usize = 1024;
/// Addresses behind a copy that tell of it.
const EDGE: usize = 1 << 20;
const PAGE: usize = 64 << 10;

/// A copy.
struct Copy {
    start: NonNull<u8>,
    /// Of the mapping: whole pages.
    size: usize,
}

thread_local! {
    /// The one that the handler on this thread may read.
    static GIVEN: Cell<Option<Copy>> = const { Cell::new(None) };
}

impl Drop for Copy {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and the time in which the handler may read it is over.
        let _ = unsafe { munmap(self.start.cast(), self.size) }; // it fails for no mapping that exists
    }
}

impl Copy {
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
        let copy = Copy { start: mapped.cast(), size };
        // A kernel that does not know the flag takes the address for a wish.
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

/// A copy of the message for the handler on this thread, until the next one or [`take_back`]; None: there can be none.
pub fn give(terminated: &[u8]) -> Option<*const u8> {
    take_back();
    let (copy, data) = Copy::of(terminated)?;
    GIVEN.set(Some(copy));
    Some(data)
}

/// The handler on this thread may read its message no more.
pub fn take_back() {
    GIVEN.take();
}

/// What a crash at this address says of a message.
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
    fn an_address_tells_what_was_done_to_a_message() {
        let data = give(b"hello\0").unwrap() as usize as u64;
        assert_eq!(explain(data + 6), Some("past the end of a message"));
        assert_eq!(explain(data), Some("a message whose callback has returned"));
        assert_eq!([explain(0), explain(u64::MAX), explain(&raw const data as u64)], [None; 3]);
        let large = vec![1; 5_000_000];
        assert!(give(&large).is_some());
        take_back();
    }
}
