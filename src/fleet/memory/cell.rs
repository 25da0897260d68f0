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
    pub fn store(&self, value: &T) {
        const { assert!(size_of::<T>().div_ceil(size_of::<u64>()) == WORDS) };
        let mut words = [[0; size_of::<u64>()]; WORDS];
        if let Some(bytes) = words.as_flattened_mut().get_mut(..size_of::<T>()) {
            bytes.copy_from_slice(value.as_bytes());
        }
        for (to, word) in self.words.iter().zip(words) {
            to.store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
    }

    pub fn load(&self) -> T {
        let words = self.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        T::read_from_prefix(words.as_bytes()).map_or_else(|_| T::new_zeroed(), |(value, _)| value) // it fits
    }
}

impl<T, const WORDS: usize> Default for SharedCell<T, WORDS> {
    fn default() -> Self {
        Self { words: [const { AtomicU64::new(0) }; WORDS], content: PhantomData }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::fleet::peer::Peer;

    #[test]
    fn a_peer_of_each_family_comes_back_as_it_was() {
        let cell = SharedCell::<Peer, 3>::default();
        assert_eq!(cell.load().address(), None);
        for text in ["192.0.2.1:80", "[2001:db8::1]:443", "[::ffff:192.0.2.1]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            cell.store(&Some(address).into());
            assert_eq!(cell.load().address(), Some(address));
        }
        cell.store(&Peer::from(None));
        assert_eq!(cell.load(), Peer::NONE);
    }
}
