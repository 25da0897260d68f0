//! What a worker is executing right now, in the scoreboard: who is to blame when it does not come back, or when it
//! ends without a word. A few stores for each call into a handler; atomics only, so that nobody waits.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::cell::SharedCell;
use crate::fleet::peer::Peer;
use crate::time::Instant;

/// Bytes of a message that are kept beside it, so that they can be told after a death that left no time.
pub const KEPT: usize = 64;

/// The bits of `callback` that are the callback.
const CALLBACK: u32 = 0xff;

/// The call into a handler that a worker's event loop is in.
#[derive(Debug, Default)]
#[repr(C)]
pub struct CurrentCall {
    /// Number of the handler in `Routes` plus 1; 0: no call.
    pub handler: AtomicU32,
    /// Number of the callback, as the `ffi` counts them; above it the handler's, as above, which stays after the call.
    callback: AtomicU32,
    /// Since when.
    since: AtomicU64,
    /// The connection's id; 0: none.
    pub conn: AtomicU64,
    /// Type of the message that is being delivered; 0: none.
    kind: AtomicU32,
    /// 1: it is a whole one; 0: a part of one.
    whole: AtomicU32,
    /// Bytes of its payload.
    size: AtomicU64,
    /// Where it lies in the worker's memory.
    data: AtomicU64,
    /// Of the connection.
    peer: SharedCell<Peer, 3>,
    /// The first bytes of the message, little-endian.
    first: [AtomicU64; KEPT / 8],
}

/// A message that is being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurrentMessage {
    /// `WS_TEXT` or `WS_BINARY`.
    pub kind: u32,
    /// Bytes of its payload.
    pub size: u64,
    /// Its address in the worker.
    pub data: u64,
}

impl CurrentCall {
    /// The calls that follow are about this connection. [worker, event loop]
    pub fn set_current(&self, conn: u64, peer: Peer, now: Instant) {
        self.since.store(now.as_nanos(), Ordering::Relaxed);
        self.conn.store(conn, Ordering::Relaxed);
        self.peer.store(&peer);
    }

    /// When the connection became the current one.
    pub fn since(&self) -> Instant {
        Instant::from_nanos(self.since.load(Ordering::Relaxed))
    }

    /// A call begins. [worker, event loop]
    pub fn begin(&self, handler: u16, callback: u32) {
        let handler = u32::from(handler) + 1;
        self.callback.store(callback & CALLBACK | handler << CALLBACK.count_ones(), Ordering::Relaxed);
        self.handler.store(handler, Ordering::Release);
    }

    /// The call has come back.
    pub fn end(&self) {
        self.handler.store(0, Ordering::Release);
    }

    /// The call that begins next is given a message of so many bytes, with which `from` begins. [worker, event loop]
    #[inline]
    pub fn deliver(&self, kind: u32, is_whole: bool, from: &[u8], size: usize) {
        self.whole.store(is_whole.into(), Ordering::Relaxed);
        self.size.store(size as u64, Ordering::Relaxed);
        self.data.store(from.as_ptr() as u64, Ordering::Relaxed);
        match from.first_chunk::<KEPT>() {
            // Usually there is more than the message: a copy of a fixed size is the quickest.
            Some(first) => self.keep(first),
            None => {
                let mut first = [0; KEPT];
                first.iter_mut().zip(from).for_each(|(to, byte)| *to = *byte);
                self.keep(&first);
            }
        }
        self.kind.store(kind, Ordering::Relaxed);
    }

    #[inline]
    fn keep(&self, first: &[u8; KEPT]) {
        let (words, _) = first.as_chunks::<8>();
        for (to, word) in self.first.iter().zip(words) {
            to.store(u64::from_le_bytes(*word), Ordering::Relaxed);
        }
    }

    /// The message is gone. [worker, event loop]
    pub fn delivered(&self) {
        self.kind.store(0, Ordering::Relaxed);
    }

    /// Whether these very bytes are being delivered, as a whole message of this type. [worker, event loop]
    #[inline]
    pub fn is_delivering(&self, kind: u32, bytes: &[u8]) -> bool {
        self.kind.load(Ordering::Relaxed) == kind
            && self.whole.load(Ordering::Relaxed) == 1
            && self.data.load(Ordering::Relaxed) == bytes.as_ptr() as u64
            && self.size.load(Ordering::Relaxed) == bytes.len() as u64
    }

    /// The message that is being delivered. May be torn while the worker lives.
    pub fn message(&self) -> Option<CurrentMessage> {
        let kind = Some(self.kind.load(Ordering::Relaxed)).filter(|kind| *kind != 0)?;
        let (size, data) = (self.size.load(Ordering::Relaxed), self.data.load(Ordering::Relaxed));
        Some(CurrentMessage { kind, size, data })
    }

    /// The first [`KEPT`] bytes of the message. [supervisor, after the worker's death]
    pub fn first_bytes(&self) -> Vec<u8> {
        let size = self.size.load(Ordering::Relaxed).min(KEPT as u64) as usize;
        let words = self.first.iter().map(|word| word.load(Ordering::Relaxed).to_le_bytes());
        words.flatten().take(size).collect()
    }

    /// The peer of the connection. [supervisor, after the worker's death]
    pub fn peer(&self) -> Peer {
        self.peer.load()
    }

    /// The handler of the call in progress, or else of the last one. Async-signal-safe.
    pub fn last(&self) -> Option<u16> {
        let last = self.callback.load(Ordering::Relaxed) >> CALLBACK.count_ones();
        last.checked_sub(1)?.try_into().ok()
    }

    /// The call in progress: number of the handler, callback, connection. May be torn while the worker lives.
    pub fn current(&self) -> Option<(u16, u32, u64)> {
        let handler = self.handler.load(Ordering::Acquire).checked_sub(1)?;
        let callback = self.callback.load(Ordering::Relaxed) & CALLBACK;
        Some((handler.try_into().ok()?, callback, self.conn.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_delivered_is_known_with_its_first_bytes() {
        let current_call = CurrentCall::default();
        assert_eq!((current_call.current(), current_call.message(), current_call.last()), (None, None, None));
        let payload: Vec<u8> = (1..=100).collect();
        for size in [0, 1, 7, 8, 9, 63, 64, 65, 99] {
            current_call.deliver(1, true, &payload[..(size + 30).min(100)], size);
            let message = current_call.message().unwrap();
            assert!(current_call.is_delivering(1, &payload[..size]));
            assert!(!current_call.is_delivering(2, &payload[..size]));
            assert!(
                !current_call.is_delivering(1, &payload[..size + 1])
                    && !current_call.is_delivering(1, &payload[1..])
            );
            assert_eq!((message.kind, message.size), (1, size as u64));
            assert_eq!(current_call.first_bytes(), payload[..size.min(KEPT)], "{size}");
        }
        current_call.deliver(1, false, &payload, 100);
        assert!(!current_call.is_delivering(1, &payload));
        let address = "192.0.2.1:80".parse().unwrap();
        current_call.set_current(0xabcd, Some(address).into(), Instant::from_nanos(1));
        current_call.begin(7, 6);
        assert_eq!(
            (current_call.current(), current_call.peer().address()),
            (Some((7, 6, 0xabcd)), Some(address))
        );
        current_call.delivered();
        current_call.end();
        assert_eq!(current_call.last(), Some(7));
        assert_eq!((current_call.current(), current_call.message()), (None, None));
    }
}
