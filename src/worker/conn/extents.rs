//! Where bytes lie that travel with a connection to another process, beside its record: by slot, apart from the heap
//! and with a checksum, so that a crash can send them along. What has none costs nothing.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;

use crate::worker::base::memory::{self, Slots, Zeroed};
use crate::worker::conn::record::NOTHING;

/// Of one connection; all zero: none.
#[repr(C)]
struct Extent {
    first: *const u8,
    size: u32,
    checksum: u32,
}

// SAFETY: a null pointer and numbers.
unsafe impl Zeroed for Extent {}

/// By slot, as the table of connections. Knows where the bytes are, and does not own them.
pub struct Extents(Slots<Extent>);

impl Extents {
    pub fn map(count: usize) -> io::Result<Self> {
        Slots::map(count).map(Extents)
    }

    /// Where they lie, for the rescue.
    pub fn raw(&self) -> RawExtents {
        let (first, count) = self.0.raw();
        RawExtents { first, count }
    }

    /// Notes where the bytes of a slot are; empty, or more than 4 GiB, for none. If they do not stay as they are until
    /// something else is noted, the rescue takes them for damaged.
    #[inline]
    pub fn note(&mut self, slot: u32, bytes: &[u8]) {
        let Some(extent) = self.0.get_mut(slot) else { return };
        *extent = match u32::try_from(bytes.len()) {
            Ok(size @ 1..) => Extent { first: bytes.as_ptr(), size, checksum: crc32fast::hash(bytes) },
            _ => Extent { first: std::ptr::null(), size: 0, checksum: 0 },
        };
    }

    /// Notes where a copy of the bytes noted last is.
    #[inline]
    pub fn relocate(&mut self, slot: u32, copy: &[u8]) {
        let Some(extent) = self.0.get_mut(slot) else { return };
        debug_assert_eq!(extent.size as usize, copy.len());
        extent.first = copy.as_ptr();
    }
}

/// What the rescue knows of them: it trusts nothing that it reads.
#[derive(Clone, Copy)]
pub struct RawExtents {
    first: NonNull<Extent>,
    count: usize,
}

impl RawExtents {
    /// Where the bytes of a slot are, for the kernel to read; [`NOTHING`] if there are none. `None` if they are not as
    /// they were. Cannot fault. Async-signal-safe.
    pub fn find(self, slot: usize) -> Option<*const [u8]> {
        if slot >= self.count {
            return Some(NOTHING);
        }
        // SAFETY: within the mapping, which lives as long as the process and holds plain numbers.
        let extent = unsafe { self.first.add(slot).read() };
        if extent.first.is_null() {
            return Some(NOTHING);
        }
        let bytes = std::ptr::slice_from_raw_parts(extent.first, extent.size as usize);
        (memory::checksum(&[bytes]) == Some(extent.checksum)).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_finds_the_bytes_unless_they_are_damaged() {
        let mut extents = Extents::map(3).unwrap();
        let raw = extents.raw();
        let found = |slot: usize| raw.find(slot).map(|bytes| bytes.len());
        let mut bytes = vec![7; 10_000];
        extents.note(1, &bytes);
        assert_eq!([0, 1, 2, 3].map(found), [Some(0), Some(10_000), Some(0), Some(0)]);
        let mut copy = [0; 10];
        assert!(memory::read(raw.find(1).unwrap().cast::<u8>() as u64, &mut copy) && copy == [7; 10]);
        let copy = bytes.clone();
        bytes[9_999] = 8;
        assert_eq!(found(1), None);
        extents.relocate(1, &copy);
        assert_eq!(found(1), Some(10_000));
        extents.note(1, b"");
        assert_eq!(found(1), Some(0));
        // SAFETY: within the mapping.
        let extent = unsafe { raw.first.add(2).as_mut() };
        (extent.first, extent.size) = (std::ptr::without_provenance(64), u32::MAX);
        assert_eq!(found(2), None);
    }
}
