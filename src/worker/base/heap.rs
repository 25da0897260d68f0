//! Memory that was used for large data and is free goes back to the system.
#![allow(unsafe_code)]

use std::time::Duration;

use crate::time::Instant;

/// Less than this is not worth a look through the heap; bytes.
const MUCH: usize = 32 * 1024 * 1024;
/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Watches how many bytes are in use, and has the heap trimmed when many of them have been free for a while. The C
/// library keeps what is freed: its threshold for mappings of their own rises to 32 MiB with the first large one that
/// is freed.
#[derive(Default)]
pub struct HeapTrim {
    /// The most in use since the heap was trimmed; bytes.
    most: usize,
    /// The most in use since the last look; at most `most`.
    recent: usize,
    next: Instant,
}

impl HeapTrim {
    #[inline]
    pub fn note(&mut self, used: usize) {
        self.recent = self.recent.max(used);
        self.most = self.most.max(used);
    }

    /// Whether the heap is to be trimmed now, while `used` bytes are in use.
    #[inline]
    pub fn is_due(&mut self, used: usize, now: Instant) -> bool {
        self.note(used);
        if now < self.next || self.most < MUCH {
            return false;
        }
        self.next = now + INTERVAL;
        let is_due = self.most - self.recent >= MUCH;
        if is_due {
            self.most = self.recent;
        }
        self.recent = used;
        is_due
    }
}

pub fn trim() {
    // SAFETY: the allocator takes its own locks; nothing that is allocated moves.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(intervals: u32) -> Instant {
        Instant::from_nanos(1) + INTERVAL * intervals
    }

    #[test]
    fn the_heap_is_trimmed_once_much_has_been_free_for_an_interval() {
        let mut heap = HeapTrim::default();
        assert!(!heap.is_due(3 * MUCH, after(0)));
        // It was in use within the last interval.
        assert!(!heap.is_due(0, after(1)));
        assert!(heap.is_due(0, after(2)));
        assert!(!heap.is_due(0, after(4)), "nothing was used since");
    }

    #[test]
    fn what_is_used_again_and_again_stays() {
        let mut heap = HeapTrim::default();
        for round in 0..10 {
            heap.note(3 * MUCH);
            assert!(!heap.is_due(0, after(round)));
        }
    }
}
