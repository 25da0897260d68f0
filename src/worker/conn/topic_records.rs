//! The subscriptions of connections as they travel to another process, beside the records.
#![allow(unsafe_code)]

use std::io;

use crate::worker::conn::places::{Places, RawPlaces};
use crate::worker::conn::record::NOTHING;

/// By slot, as the table of connections: places of boxes that are owned here.
pub struct TopicRecords {
    places: Places,
    /// How many connections have subscriptions.
    used: usize,
}

impl TopicRecords {
    /// Maps room for `count` connections.
    pub fn map(count: usize) -> io::Result<Self> {
        Ok(TopicRecords { places: Places::map(count)?, used: 0 })
    }

    /// Where they lie, for the rescue.
    pub fn raw(&self) -> RawPlaces {
        self.places.raw()
    }

    /// Whether there are any in a slot.
    #[inline]
    pub fn has(&self, slot: u32) -> bool {
        self.used > 0 && !self.places.get(slot).is_null()
    }

    /// Replaces the subscriptions in a slot; empty for none.
    pub fn set(&mut self, slot: u32, bytes: Vec<u8>) {
        if bytes.is_empty() && self.used == 0 || !self.places.has_slot(slot) {
            return;
        }
        let old = self.places.get(slot);
        let new = match bytes.len() {
            0 => NOTHING.cast_mut(),
            _ => Box::into_raw(bytes.into_boxed_slice()),
        };
        // SAFETY: a box that was just made, or nothing to read.
        unsafe { self.places.set(slot, new) };
        self.used += usize::from(!self.places.get(slot).is_null());
        if !old.is_null() {
            self.used -= 1;
            // SAFETY: made of a box above, with its own length, and forgotten above.
            drop(unsafe { Box::from_raw(old) });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_that_were_set_count() {
        let mut records = TopicRecords::map(3).unwrap();
        let size = |records: &TopicRecords, slot| records.raw().find(slot).unwrap().len();
        records.set(1, vec![7; 10_000]);
        assert_eq!([0, 1, 2].map(|slot| size(&records, slot)), [0, 10_000, 0]);
        records.set(1, vec![8; 10]);
        assert_eq!((size(&records, 1), records.used), (10, 1));
        assert!(records.has(1) && !records.has(0));
        records.set(1, Vec::new());
        assert_eq!((size(&records, 1), records.used), (0, 0));
    }
}
