//! The subscriptions of connections as they travel to another process, beside the records: a connection without any costs
//! nothing here. They lie apart from the heap and have a checksum, so that a crash can send them along.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;

use crate::worker::base::memory::{self, Pages};
use crate::worker::conn::record::NOTHING;

/// Bytes that are read at a time to check them.
const PIECE: usize = 4096;

/// Of one connection; all zero: none.
#[repr(C)]
struct TopicRecord {
    /// A boxed slice that is owned; null for none.
    first: *mut u8,
    size: u32,
    checksum: u32,
}

impl TopicRecord {
    fn raw(&self) -> Option<*mut [u8]> {
        (!self.first.is_null()).then(|| std::ptr::slice_from_raw_parts_mut(self.first, self.size as usize))
    }
}

/// By slot, as the table of connections.
pub struct TopicRecords {
    pages: Pages,
    count: usize,
    /// How many connections have subscriptions.
    used: usize,
}

impl TopicRecords {
    /// Maps room for `count` connections.
    pub fn map(count: usize) -> io::Result<Self> {
        let size = count.checked_mul(size_of::<TopicRecord>()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(TopicRecords { pages: Pages::map(size)?, count, used: 0 })
    }

    /// Where they lie, for the rescue.
    pub fn raw(&self) -> RawTopicRecords {
        RawTopicRecords { first: self.pages.first().cast(), count: self.count }
    }

    /// Whether there are any in a slot.
    #[inline]
    pub fn has(&self, slot: u32) -> bool {
        if self.used == 0 || slot as usize >= self.count {
            return false;
        }
        // SAFETY: within the mapping; zeroed pages are a valid record, and &self keeps writers away.
        let record = unsafe { self.pages.first().cast::<TopicRecord>().add(slot as usize).as_ref() };
        !record.first.is_null()
    }

    /// Replaces the subscriptions in a slot; empty for none.
    pub fn set(&mut self, slot: u32, bytes: Vec<u8>) {
        if bytes.is_empty() && self.used == 0 || slot as usize >= self.count {
            return;
        }
        // SAFETY: within the mapping; zeroed pages are a valid record, and &mut self makes this the only reference.
        let record = unsafe { self.pages.first().cast::<TopicRecord>().add(slot as usize).as_mut() };
        if let Some(old) = record.raw() {
            // SAFETY: made of a box below, with its own length, and forgotten in the next statement.
            drop(unsafe { Box::from_raw(old) });
            (record.first, record.size) = (std::ptr::null_mut(), 0);
            self.used -= 1;
        }
        if let Ok(size @ 1..) = u32::try_from(bytes.len()) {
            record.checksum = crc32fast::hash(&bytes);
            (record.first, record.size) = (Box::into_raw(bytes.into_boxed_slice()).cast(), size);
            self.used += 1;
        }
    }
}

/// What the rescue knows of them: it trusts nothing that it reads.
#[derive(Clone, Copy)]
pub struct RawTopicRecords {
    first: NonNull<TopicRecord>,
    count: usize,
}

impl RawTopicRecords {
    /// Where the subscriptions in a slot are, for the kernel to read. Nothing if there are none, or if they are not as they
    /// were. Cannot fault. Async-signal-safe.
    pub fn place(self, slot: usize) -> *const [u8] {
        if slot >= self.count {
            return NOTHING;
        }
        // SAFETY: within the mapping, which lives as long as the process and holds plain numbers.
        let record = unsafe { self.first.add(slot).read() };
        let Some(bytes) = record.raw() else { return NOTHING };
        let (mut hasher, mut piece, mut at) = (crc32fast::Hasher::new(), [0; PIECE], 0);
        while at < bytes.len() {
            let size = PIECE.min(bytes.len() - at);
            let Some(room) = piece.get_mut(..size) else { return NOTHING };
            if !memory::read(record.first as u64 + at as u64, room) {
                return NOTHING;
            }
            hasher.update(room);
            at += size;
        }
        if hasher.finalize() == record.checksum { bytes } else { NOTHING }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_finds_them_unless_they_are_damaged() {
        let mut records = TopicRecords::map(3).unwrap();
        let raw = records.raw();
        records.set(1, vec![7; 10_000]);
        assert_eq!([0, 1, 2, 3].map(|slot| raw.place(slot).len()), [0, 10_000, 0, 0]);
        records.set(1, vec![8; 10]);
        let mut copy = [0; 10];
        assert!(memory::read(raw.place(1).cast::<u8>() as u64, &mut copy) && copy == [8; 10]);
        // SAFETY: the record of slot 1, as above.
        unsafe { raw.first.add(1).as_mut() }.checksum += 1;
        assert_eq!(raw.place(1).len(), 0);
        // SAFETY: as above; what it pointed to is lost.
        unsafe { raw.first.add(2).as_mut() }.first = std::ptr::without_provenance_mut(64);
        // SAFETY: as above.
        unsafe { raw.first.add(2).as_mut() }.size = u32::MAX;
        assert_eq!(raw.place(2).len(), 0);
        records.set(1, Vec::new());
        assert_eq!(records.used, 0);
    }
}
