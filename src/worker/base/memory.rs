//! Memory of this process: read without the risk of a fault, and mapped apart from the heap, between pages that
//! nobody can touch.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// At least the page size of every supported machine.
const GUARD: usize = 64 * 1024;
/// Bytes that are read at a time to check them.
const PIECE: usize = 16 * 1024;

/// Copies memory of this process from an address that may be anything; false if not all of it can be read.
/// Async-signal-safe.
pub fn read(address: u64, to: &mut [u8]) -> bool {
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    let remote = libc::iovec { iov_base: address as *mut _, iov_len: to.len() };
    // SAFETY: writes into `to` only; the kernel checks the other address, and refuses instead of faulting.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    usize::try_from(read) == Ok(to.len())
}

/// The checksum (CRC-32) of memory that may be anything, one part after the other; `None` if not all of it can be read.
/// Async-signal-safe.
pub fn checksum(parts: &[*const [u8]]) -> Option<u32> {
    let (mut hasher, mut piece) = (crc32fast::Hasher::new(), [0; PIECE]);
    for part in parts {
        let mut at = 0;
        while at < part.len() {
            let room = piece.get_mut(..PIECE.min(part.len() - at))?;
            read((part.cast::<u8>() as u64).wrapping_add(at as u64), room).then_some(())?;
            hasher.update(room);
            at += room.len();
        }
    }
    Some(hasher.finalize())
}

/// Pages between two guards: an overflow from either side faults before it reaches them. Zeroed, and without cost
/// until they are used.
pub struct Pages {
    /// Of the first guard.
    base: NonNull<c_void>,
    /// Without the guards; a multiple of [`GUARD`].
    size: usize,
}

impl Pages {
    pub fn map(size: usize) -> io::Result<Pages> {
        let size = size.checked_next_multiple_of(GUARD).ok_or(io::ErrorKind::InvalidInput)?;
        let whole =
            size.checked_add(2 * GUARD).and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces no other memory.
        let base = unsafe { mmap_anonymous(None, whole, ProtFlags::PROT_NONE, flags)? };
        let pages = Pages { base, size };
        // SAFETY: within the mapping just made, which nobody uses yet.
        unsafe { mprotect(pages.first().cast(), size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)? };
        Ok(pages)
    }

    /// The first byte between the guards, aligned to a page.
    pub fn first(&self) -> NonNull<u8> {
        // SAFETY: the guard is part of the mapping.
        unsafe { self.base.cast::<u8>().add(GUARD) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of which nothing is borrowed any more.
        let _ = unsafe { munmap(self.base, self.size + 2 * GUARD) };
    }
}

/// A value for which all zero is valid: it owns nothing then.
///
/// # Safety
/// It must be so.
pub unsafe trait Zeroed {}

// SAFETY: numbers.
unsafe impl<const N: usize> Zeroed for [u8; N] {}

/// So many values between guards, each all zero at first.
pub struct Slots<T> {
    pages: Pages,
    count: usize,
    of: PhantomData<T>,
}

impl<T: Zeroed> Slots<T> {
    pub fn map(count: usize) -> io::Result<Self> {
        const { assert!(align_of::<T>() <= 4096) };
        let size = count.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Slots { pages: Pages::map(size)?, count, of: PhantomData })
    }

    /// Where they lie, and how many, for the rescue.
    pub fn raw(&self) -> (NonNull<T>, usize) {
        (self.pages.first().cast(), self.count)
    }

    #[inline]
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        let (first, count) = self.raw();
        // SAFETY: within the mapping, whose zeros are valid; &mut self makes this the only reference.
        (slot as usize).lt(&count).then(|| unsafe { first.add(slot as usize).as_mut() })
    }
}

/// A value of zeros between guards, for the life of the process; without cost until it is used.
pub fn guard_zeroed<T: Zeroed>() -> io::Result<&'static mut T> {
    let slots: &'static mut Slots<T> = Box::leak(Box::new(Slots::map(1)?));
    slots.get_mut(0).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Moves a value between guards, for the life of the process.
pub fn guard<T>(value: T) -> io::Result<&'static mut T> {
    guard_all(std::iter::once(value))?.first_mut().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Moves some values between guards, one after the other, for the life of the process.
pub fn guard_all<T>(values: impl ExactSizeIterator<Item = T>) -> io::Result<&'static mut [T]> {
    const { assert!(align_of::<T>() <= 4096) };
    let count = values.len();
    let size = count.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
    let pages = Pages::map(size.max(1))?;
    let first = pages.first().cast::<T>();
    std::mem::forget(pages); // it stays mapped
    let mut made = 0;
    for (index, value) in values.take(count).enumerate() {
        // SAFETY: within the pages, which have room for `count` values and the alignment of a page.
        unsafe { first.add(index).write(value) };
        made = index + 1;
    }
    // SAFETY: so many values were written; nobody else has this memory, and it is never unmapped.
    Ok(unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), made) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_not_read() {
        let word = 7_u64;
        let mut to = [0; 8];
        assert!(read(&raw const word as u64, &mut to));
        assert_eq!(u64::from_ne_bytes(to), 7);
        for address in [0, 8, u64::MAX - 7] {
            assert!(!read(address, &mut to));
        }
    }

    #[test]
    fn what_is_guarded_cannot_be_reached_from_beside_it() {
        let numbers = guard_all((0..20_000_u32).map(|number| number * 3)).unwrap();
        assert!(numbers.iter().zip(0..).all(|(number, index)| *number == index * 3));
        let (first, size) = (numbers.as_ptr() as u64, size_of_val(numbers) as u64);
        let mut byte = [0];
        assert!(read(first, &mut byte) && read(first + size - 1, &mut byte));
        assert!(!read(first - 1, &mut byte));
        assert!(!read(first + size.next_multiple_of(GUARD as u64), &mut byte));
        assert_eq!(*guard("alone").unwrap(), "alone");
    }

    #[test]
    fn pages_are_given_back() {
        let pages = Pages::map(1).unwrap();
        let first = pages.first().as_ptr() as u64;
        assert!(read(first, &mut [1]));
        drop(pages);
        assert!(!read(first, &mut [0]));
    }
}
