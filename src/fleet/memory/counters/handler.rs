//! What is counted of one handler: numbers, requests by status, ends by code, and times in buckets. Atomics only.
//! Shares nothing by itself; `counters` puts it into shared memory.

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A number that only grows, or that says how much there is.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds, where one thread writes only: no locked instruction.
    #[inline]
    pub fn add(&self, number: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(number), Ordering::Relaxed);
    }

    /// Adds, where several threads or processes may.
    pub fn add_shared(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// How much there is less of now; one thread writes only.
    pub fn subtract(&self, number: u64) {
        self.add(number.wrapping_neg());
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn clear(&self) {
        self.set(0);
    }
}

/// Upper bounds of the buckets of times; ns. One more bucket has no bound.
pub const BOUNDS: [u64; 7] =
    [10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000];

/// How long something took, in buckets. Several threads may add.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Times {
    /// By the bound that is the first not to be exceeded.
    buckets: [Count; BOUNDS.len() + 1],
    sum: Count,
}

impl Times {
    /// It took so long; ns.
    pub fn add(&self, time: u64) {
        let bucket = BOUNDS.iter().position(|bound| time <= *bound).unwrap_or(BOUNDS.len());
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.add_shared(1);
        }
        self.sum.add_shared(time);
    }

    pub(super) fn clear(&self) {
        self.buckets.iter().chain([&self.sum]).for_each(Count::clear);
    }

    /// Adds all of another one.
    fn add_all(&self, other: &Times) {
        self.buckets.iter().zip(&other.buckets).for_each(|(to, from)| to.add(from.get()));
        self.sum.add(other.sum.get());
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Count::get).sum()
    }

    /// How many took no longer than each of the bounds, how many there were in all, and the sum in ns.
    pub fn read(&self) -> ([u64; BOUNDS.len() + 1], u64) {
        let mut below = 0;
        let counts = std::array::from_fn(|bucket| {
            below += self.buckets.get(bucket).map_or(0, Count::get);
            below
        });
        (counts, self.sum.get())
    }
}

/// The statuses that are counted by themselves; others are 0.
pub const STATUSES: [u16; 31] = [
    101, 200, 206, 301, 302, 303, 304, 307, 308, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 413, 414,
    416, 421, 426, 429, 431, 500, 501, 502, 503, 505,
];

/// What a Close code is counted as.
#[rustfmt::skip]
pub const CLOSE_CODES: [&str; 19] = [
    "1000", "1001", "1002", "1003", "1004", "1005", "1006", "1007", "1008", "1009", "1010", "1011", "1012", "1013", "1014",
    "1015", "3000-3999", "4000-4999", "other",
];

/// Who may close a connection, as numbered in `ws_handler.h`, from 1 on.
pub const CLOSERS: [&str; 3] = ["peer", "handler", "server"];

/// As many callbacks as `ffi` counts, none included.
pub const CALLBACKS: usize = 13;

/// What is counted of messages that are published.
#[derive(Debug, Default)]
#[repr(C)]
pub struct TopicCounters {
    /// Published here. Any thread.
    pub published: Count,
    /// Not published since what goes to the bus had reached its bound. Any thread.
    pub refused: Count,
    /// Sent to subscribers.
    pub delivered: Count,
    /// Not sent to subscribers that did not keep up, or lost on the way.
    pub dropped: Count,
}

impl TopicCounters {
    fn all(&self) -> [&Count; 4] {
        [&self.published, &self.refused, &self.delivered, &self.dropped]
    }
}

/// Messages and payload bytes, received and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Traffic {
    pub messages_in: u64,
    pub bytes_in: u64,
    pub messages_out: u64,
    pub bytes_out: u64,
}

impl Traffic {
    /// Each number made of the two that there are.
    pub(super) fn each(self, other: Self, of: fn(u64, u64) -> u64) -> Self {
        Self {
            messages_in: of(self.messages_in, other.messages_in),
            bytes_in: of(self.bytes_in, other.bytes_in),
            messages_out: of(self.messages_out, other.messages_out),
            bytes_out: of(self.bytes_out, other.bytes_out),
        }
    }
}

/// What one process, or those that had its lane before, did for one handler. Written by the event loop of that
/// process, but where it says otherwise.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct HandlerCounters {
    pub messages_in: Count,
    /// Of payload; the same below.
    pub bytes_in: Count,
    pub messages_out: Count,
    pub bytes_out: Count,
    /// WebSockets that are open now.
    pub open: Count,
    /// Messages and Pings that were not sent because the queue was full. Any thread.
    pub refused: Count,
    pub topics: TopicCounters,
    statuses: [Count; STATUSES.len() + 1],
    closes: [[Count; CLOSE_CODES.len()]; CLOSERS.len()],
    times: [Times; CALLBACKS],
}

impl HandlerCounters {
    /// A message, or a piece of one, was received.
    #[inline]
    pub fn received(&self, bytes: usize, last: bool) {
        self.messages_in.add(last.into());
        self.bytes_in.add(bytes as u64);
    }

    /// A message, or a piece of one, was sent.
    #[inline]
    pub fn sent(&self, bytes: usize, last: bool) {
        self.messages_out.add(last.into());
        self.bytes_out.add(bytes as u64);
    }

    pub fn traffic(&self) -> Traffic {
        Traffic {
            messages_in: self.messages_in.get(),
            bytes_in: self.bytes_in.get(),
            messages_out: self.messages_out.get(),
            bytes_out: self.bytes_out.get(),
        }
    }

    /// A request was answered with this status; 0: not at all.
    pub fn count_status(&self, status: u16) {
        self.of_status(status).add(1);
    }

    /// Requests answered with this status; for 0, with another than [`STATUSES`], or not at all.
    pub fn status(&self, status: u16) -> u64 {
        self.of_status(status).get()
    }

    fn of_status(&self, status: u16) -> &Count {
        let index = STATUSES.iter().position(|known| *known == status);
        &self.statuses[index.unwrap_or(STATUSES.len())]
    }

    /// Requests answered, or not, in all.
    pub fn answered(&self) -> u64 {
        self.statuses.iter().map(Count::get).sum()
    }

    /// A WebSocket was closed by this one (`WS_BY_...`) with this code.
    pub fn count_close(&self, by: u32, code: u16) {
        let code = match code {
            1000..=1015 => usize::from(code - 1000),
            3000..=3999 => 16,
            4000..=4999 => 17,
            _ => 18,
        };
        let closer = by.checked_sub(1).and_then(|by| self.closes.get(by as usize));
        if let Some(count) = closer.and_then(|codes| codes.get(code)) {
            count.add(1);
        }
    }

    /// How often one of [`CLOSERS`] closed with one of [`CLOSE_CODES`].
    pub fn closed(&self, closer: usize, code: usize) -> u64 {
        self.closes.get(closer).and_then(|codes| codes.get(code)).map_or(0, Count::get)
    }

    /// How long calls of this callback took, as `ffi` counts them. Any thread.
    pub fn times(&self, callback: u32) -> Option<&Times> {
        self.times.get(callback as usize)
    }

    /// All but the times.
    fn counts(&self) -> impl Iterator<Item = &Count> {
        let HandlerCounters { messages_in, bytes_in, messages_out, bytes_out, open, refused, .. } = self;
        let single = [messages_in, bytes_in, messages_out, bytes_out, open, refused];
        let by_reason = self.statuses.iter().chain(self.closes.iter().flatten());
        single.into_iter().chain(self.topics.all()).chain(by_reason)
    }

    pub(super) fn clear(&self) {
        self.counts().for_each(Count::clear);
        self.times.iter().for_each(Times::clear);
    }

    /// Adds all of another one.
    pub(super) fn add_all(&self, other: &HandlerCounters) {
        self.counts().zip(other.counts()).for_each(|(to, from)| to.add(from.get()));
        self.times.iter().zip(&other.times).for_each(|(to, from)| to.add_all(from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_close_codes_have_their_places() {
        let counters = HandlerCounters::default();
        [101, 599, 0, 101].into_iter().for_each(|status| counters.count_status(status));
        assert_eq!((counters.status(101), counters.status(418), counters.status(505)), (2, 2, 0));
        for code in [1000, 1015, 1016, 999, 2999, 3000, 3999, 4000, 4999, 5000] {
            counters.count_close(3, code);
        }
        counters.count_close(4, 1000);
        let counted: Vec<_> = (0..19).map(|code| counters.closed(2, code)).collect();
        assert_eq!(counted, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 4]);
        assert_eq!((0..19).map(|code| counters.closed(0, code) + counters.closed(1, code)).sum::<u64>(), 0);
    }

    #[test]
    fn times_are_counted_up_to_their_bounds() {
        let times = Times::default();
        [0, 10_000, 10_001, 1_000_000_000, 99_000_000_000].into_iter().for_each(|time| times.add(time));
        assert_eq!(times.read(), ([2, 3, 3, 3, 3, 4, 4, 5], 100_000_020_001));
    }
}
