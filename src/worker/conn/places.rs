//! Where bytes lie that travel with a connection to another process, beside its record: by slot, apart from the heap and with
//! a checksum, so that a crash can send them along. What has none costs nothing.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;

use crate::worker::base::memory::{self, Pages};
use crate::worker::conn::record::NOTHING;

/// Bytes that are read at a time to check them.
const PIECE: usize = 4096;

/// Of one connection; all zero: none.
#[repr(C)]
struct Place {
    first: *const u8,
    size: u32,
    checksum: u32,
}

/// By slot, as the table of connections. Knows where the bytes are, and does not own them.
pub struct Places {
    pages: Pages,
    count: usize,
}

impl Places {
    pub fn map(count: usize) -> io::Result<Self> {
        let size = count.checked_mul(size_of::<Place>()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Places { pages: Pages::map(size)?, count })
    }

    /// Where they lie, for the rescue.
    pub fn raw(&self) -> RawPlaces {
        RawPlaces { first: self.pages.first().cast(), count: self.count }
    }

    /// Notes where the bytes of a slot are; empty, or more than 4 GiB, for none. If they do not stay as they are until
    /// something else is noted, the rescue takes them for damaged.
    #[inline]
    pub fn note(&mut self, slot: u32, bytes: &[u8]) {
        let Some(place) = self.get_mut(slot) else { return };
        *place = match u32::try_from(bytes.len()) {
            Ok(size @ 1..) => Place { first: bytes.as_ptr(), size, checksum: crc32fast::hash(bytes) },
            _ => Place { first: std::ptr::null(), size: 0, checksum: 0 },
        };
    }

    /// Notes where a copy of the bytes noted last is.
    #[inline]
    pub fn relocate(&mut self, slot: u32, copy: &[u8]) {
        let Some(place) = self.get_mut(slot) else { return };
        debug_assert_eq!(place.size as usize, copy.len());
        place.first = copy.as_ptr();
    }

    #[inline]
    fn get_mut(&mut self, slot: u32) -> Option<&mut Place> {
        if slot as usize >= self.count {
            return None;
        }
        // SAFETY: within the mapping; zeroed pages are a valid place, and &mut self makes this the only reference.
        Some(unsafe { self.pages.first().cast::<Place>().add(slot as usize).as_mut() })
    }
}

/// What the rescue knows of them: it trusts nothing that it reads.
#[derive(Clone, Copy)]
pub struct RawPlaces {
    first: NonNull<Place>,
    count: usize,
}

impl RawPlaces {
    /// Where the bytes of a slot are, for the kernel to read; [`NOTHING`] if there are none. `None` if they are not as they
    /// were. Cannot fault. Async-signal-safe.
    pub fn find(self, slot: usize) -> Option<*const [u8]> {
        if slot >= self.count {
            return Some(NOTHING);
        }
        // SAFETY: within the mapping, which lives as long as the process and holds plain numbers.
        let place = unsafe { self.first.add(slot).read() };
        if place.first.is_null() {
            return Some(NOTHING);
        }
        let (size, mut hasher, mut piece, mut at) =
            (place.size as usize, crc32fast::Hasher::new(), [0; PIECE], 0);
        while at < size {
            let room = piece.get_mut(..PIECE.min(size - at))?;
            if !memory::read((place.first as u64).wrapping_add(at as u64), room) {
                return None;
            }
            hasher.update(room);
            at += room.len();
        }
        let is_intact = hasher.finalize() == place.checksum;
        is_intact.then(|| std::ptr::slice_from_raw_parts(place.first, size))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_finds_the_bytes_unless_they_are_damaged() {
        let mut places = Places::map(3).unwrap();
        let raw = places.raw();
        let found = |slot: usize| raw.find(slot).map(|bytes| bytes.len());
        let mut bytes = vec![7; 10_000];
        places.note(1, &bytes);
        assert_eq!([0, 1, 2, 3].map(found), [Some(0), Some(10_000), Some(0), Some(0)]);
        let mut copy = [0; 10];
        assert!(memory::read(raw.find(1).unwrap().cast::<u8>() as u64, &mut copy) && copy == [7; 10]);
        let copy = bytes.clone();
        bytes[9_999] = 8;
        assert_eq!(found(1), None);
        places.relocate(1, &copy);
        assert_eq!(found(1), Some(10_000));
        places.note(1, b"");
        assert_eq!(found(1), Some(0));
        // SAFETY: within the mapping.
        let place = unsafe { raw.first.add(2).as_mut() };
        (place.first, place.size) = (std::ptr::without_provenance(64), u32::MAX);
        assert_eq!(found(2), None);
    }
}
