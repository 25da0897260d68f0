//! A plain value in shared memory, copied word by word: any process may read or write it at any time, and nobody waits.
//! While it is written a reader may see a part of the old value. Async-signal-safe.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A `T` in so many words. All zero at first.
#[derive(Debug)]
#[repr(transparent)]
pub struct SharedCell<T, const WORDS: usize> {
    words: [AtomicU64; WORDS],
    content: PhantomData<T>,
}

impl<T: FromBytes + IntoBytes + Immutable, const WORDS: usize> SharedCell<T, WORDS> {
    /// Changes it.
    pub fn store(&self, value: &T) {
        const { assert!(size_of::<T>() == WORDS * size_of::<u64>()) };
        let (words, _) = value.as_bytes().as_chunks();
        for (to, word) in self.words.iter().zip(words) {
            to.store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
    }

    /// What is there.
    pub fn load(&self) -> T {
        let words = self.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        T::read_from_bytes(words.as_bytes()).unwrap_or_else(|_| T::new_zeroed()) // the sizes are the same
    }
}

impl<T, const WORDS: usize> Default for SharedCell<T, WORDS> {
    fn default() -> Self {
        Self { words: [const { AtomicU64::new(0) }; WORDS], content: PhantomData }
    }
}
