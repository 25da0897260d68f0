//! Fairness between connections: how much is read of one at a time, and how many messages of it are processed, before
//! others are served. One that brought much at once, or whose bytes took long to process, is busy: it waits for its
//! turn.

use std::time::Duration;

use crate::time::Instant;
use crate::worker::conn::receive::AT_ONCE;

/// Bytes of a large message read at a time.
pub const MOST: usize = 1024 * 1024;
/// Reads of up to this size are not timed.
pub const UNTIMED: usize = 2048;
/// Bytes read at a time from a connection whose send queue is not empty: they may have to be set aside. A queue above
/// this is written to in turn.
pub const QUEUED: usize = 64 * 1024;
/// A read that took longer than this makes the connection busy.
const LONG: Duration = Duration::from_micros(30);
/// One read is to bring what takes no longer than this; more may come at once if it takes no more than a
/// nanosecond a byte, as large messages do.
const SLICE: Duration = Duration::from_micros(50);

/// How a connection takes its turns.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    flags: u8,
    /// The lower half: the binary logarithm of the bytes that it is read at a time while it brings much, above that of
    /// the least. The upper half: messages between two looks at the clock, 0 for one that takes longer than a slice,
    /// else one more than the binary logarithm. In one byte, which each idle connection has.
    steps: u8,
}

const BUSY: u8 = 1;
const WAITING: u8 = 2;
/// It is not watched while it waits.
const UNWATCHED: u8 = 4;

/// 1 KiB, and [`AT_ONCE`].
const STRIDES: std::ops::RangeInclusive<u8> = 10..=AT_ONCE.ilog2() as u8;

impl Turn {
    pub fn new() -> Self {
        let mut turn = Turn { flags: 0, steps: 0 };
        turn.set_stride(*STRIDES.end());
        turn.set_interval(1);
        turn
    }

    fn stride(self) -> u8 {
        STRIDES.start() + (self.steps & 0xf)
    }

    fn set_stride(&mut self, stride: u8) {
        let above = stride.clamp(*STRIDES.start(), *STRIDES.end()) - STRIDES.start();
        self.steps = self.steps & 0xf0 | above;
    }

    fn interval(self) -> u8 {
        (self.steps >> 4).checked_sub(1).map_or(0, |log| 1 << log)
    }

    fn set_interval(&mut self, messages: u8) {
        let log = messages.min(MOST_UNTIMED).checked_ilog2().map_or(0, |log| log as u8 + 1);
        self.steps = self.steps & 0x0f | log << 4;
    }

    pub fn is_waiting(self) -> bool {
        self.flags & WAITING != 0
    }

    /// Notes that it was put into the queue, and whether epoll still watches it.
    pub fn wait(&mut self, is_watched: bool) {
        self.flags |= if is_watched { WAITING } else { WAITING | UNWATCHED };
    }

    /// Its turn begins: it was removed from the queue.
    pub fn begin(&mut self) {
        self.flags &= !(WAITING | UNWATCHED);
    }

    /// Whether it is served as soon as it is readable.
    #[inline]
    pub fn is_at_once(self) -> bool {
        self.flags == 0
    }

    /// Whether it is not watched until its turn.
    #[inline]
    pub fn is_unwatched(self) -> bool {
        self.flags & UNWATCHED != 0
    }

    /// Bytes to read from one that brings much: of a frame, `to_come` are missing; `queued` wait to be sent.
    pub fn room(self, to_come: u64, queued: usize) -> usize {
        let stride = if queued > 0 { QUEUED.min(1 << self.stride()) } else { 1 << self.stride() };
        stride.max(usize::try_from(to_come).unwrap_or(usize::MAX)).min(MOST)
    }

    /// Updates after a read of `count` bytes into `room`, which completed messages of `delivered` bytes and took so
    /// long.
    pub fn update(&mut self, room: usize, count: usize, delivered: u64, took: Duration) {
        let brought = delivered.max(count as u64);
        // A full read means more data is waiting.
        let is_busy = count == room || brought >= AT_ONCE as u64 || took > LONG;
        self.flags = self.flags & !BUSY | if is_busy { BUSY } else { 0 };
        let is_quick = took <= Duration::from_nanos(brought);
        let stride = if took > SLICE && !is_quick {
            self.stride().saturating_sub((took.as_nanos() / SLICE.as_nanos()).ilog2() as u8 + 1)
        } else if count == room && (took < SLICE / 2 || is_quick) {
            self.stride() + 1
        } else {
            self.stride()
        };
        self.set_stride(stride);
    }
}

/// What was read at once may hold many messages: they are processed in slices of about so long, between which other
/// connections are served. One message may take longer.
const SLICE_TIME: Duration = Duration::from_micros(500);
/// Most messages that are processed without a look at the clock.
const MOST_UNTIMED: u8 = 16;

/// The time that the messages of one connection take, while there are more.
pub struct Slice {
    /// When the first of them began, or the clock was looked at first.
    begun: Option<Instant>,
    /// When the clock was last looked at.
    looked: Instant,
    /// Messages since then.
    messages: u8,
    /// The connection's, as far as it is known; 0 at first.
    interval: u8,
}

impl Slice {
    /// Begins, at this time if it is known.
    pub fn new(begun: Option<Instant>) -> Self {
        Slice { begun, looked: begun.unwrap_or_default(), messages: 0, interval: 0 }
    }

    /// One more message was processed, and more wait: whether to ask if the slice is over.
    #[inline]
    pub fn add_message(&mut self) -> bool {
        self.messages += 1;
        self.messages >= self.interval
    }

    /// Whether the messages that wait have to wait for the next slice.
    pub fn is_over(&mut self, turn: &mut Turn, now: impl FnOnce() -> Instant) -> bool {
        let is_over = self.messages >= turn.interval() && self.look(turn, now);
        self.interval = turn.interval();
        is_over
    }

    fn look(&mut self, turn: &mut Turn, now: impl FnOnce() -> Instant) -> bool {
        let Some(begun) = self.begun else {
            (self.looked, self.messages) = (now(), 0);
            self.begun = Some(self.looked);
            return turn.interval() == 0;
        };
        let now = now();
        let took = now.since(self.looked);
        turn.set_interval(match took / u32::from(self.messages) {
            each if each >= SLICE_TIME => 0,
            _ if took >= SLICE_TIME / 4 => turn.interval().div_ceil(2),
            _ => turn.interval().max(1) * 2,
        });
        (self.looked, self.messages) = (now, 0);
        now.since(begun) >= SLICE_TIME
    }
}

/// The rest of a frame is read at once only if it has at least this many bytes.
const SMALL_REST: usize = 128;
/// Reads of what is left of a frame, at most: what is gathered grows by a factor, from 1 KiB to [`MOST`].
pub const READS: usize = 4;

/// The rest of a frame, if it is worth a read by itself and no larger than `most`: it does not wait for the next turn.
/// Until it has come the connection cannot move, even though the process crashes.
pub fn rest(to_come: u64, most: usize) -> Option<usize> {
    usize::try_from(to_come).ok().filter(|rest| (SMALL_REST..=most).contains(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of a connection that has endless bytes, each of which takes so long: the last one's size and time.
    fn settled(picoseconds: u64, turn: &mut Turn) -> (usize, Duration) {
        let mut read = (0, Duration::ZERO);
        for _ in 0..20 {
            let room = if turn.is_at_once() { AT_ONCE } else { turn.room(0, 0) };
            read = (room, Duration::from_nanos(room as u64 * picoseconds / 1000));
            turn.update(room, read.0, 0, read.1);
            assert!(!turn.is_at_once(), "{picoseconds}: {room} bytes");
        }
        read
    }

    #[test]
    fn what_is_read_at_a_time_takes_no_longer_than_a_slice() {
        // Messages of a byte, of 20 bytes, of 1 KiB, of 1 MiB.
        for (picoseconds, is_all) in [(36_000, false), (10_000, false), (500, true), (300, true)] {
            let mut turn = Turn::new();
            let (room, took) = settled(picoseconds, &mut turn);
            assert_eq!(room == AT_ONCE, is_all, "{picoseconds}: {room}");
            assert!(took <= SLICE || is_all, "{picoseconds}: {took:?}");
            assert!(took >= SLICE / 4, "{picoseconds}: {took:?}, as much as it may");
        }
    }

    /// Messages that take so long each: how many are processed in each of some slices.
    fn slices(turn: &mut Turn, time: Duration, is_timed: bool) -> Vec<u64> {
        let mut now = Instant::from_nanos(1_000_000_000);
        let slice = |_| {
            let mut slice = Slice::new(is_timed.then_some(now));
            for count in 1..10_000 {
                now = now + time;
                if slice.add_message() && slice.is_over(turn, || now) {
                    return count;
                }
            }
            panic!("it does not end");
        };
        (0..20).map(slice).collect()
    }

    #[test]
    fn a_slow_handler_has_one_message_in_a_slice_and_a_quick_one_many() {
        let mut turn = Turn::new();
        let counts = slices(&mut turn, Duration::from_millis(5), false);
        assert!(counts[0] <= 2 && counts[1..].iter().all(|count| *count == 1), "{counts:?}");
        // It is quick again: the clock is looked at less and less often.
        let counts = slices(&mut turn, Duration::from_nanos(200), true);
        assert!(counts[2..].iter().all(|count| (2500..2550).contains(count)), "{counts:?}");
        assert_eq!(turn.interval(), MOST_UNTIMED);
        // And slow again: as many as were not timed before, once.
        let counts = slices(&mut turn, Duration::from_millis(5), true);
        assert!(
            counts[0] <= u64::from(MOST_UNTIMED) && counts[1..].iter().all(|count| *count == 1),
            "{counts:?}"
        );
    }

    #[test]
    fn a_read_that_took_very_long_is_not_repeated() {
        let mut turn = Turn::new();
        settled(300, &mut turn);
        turn.update(AT_ONCE, AT_ONCE, 0, Duration::from_millis(36));
        assert!(turn.room(0, 0) <= 16 * 1024);
        // What completes a large message may take as long as the message does.
        settled(300, &mut turn);
        turn.update(AT_ONCE, 200, 1 << 20, Duration::from_micros(400));
        assert_eq!(turn.room(0, 0), AT_ONCE);
        // Nor is one that was interrupted once forgiven too late.
        settled(300, &mut turn);
        turn.update(AT_ONCE, AT_ONCE, 0, Duration::from_micros(1500));
        assert_eq!(settled(300, &mut turn).0, AT_ONCE);
    }

    #[test]
    fn who_brings_little_is_served_at_once_again() {
        let mut turn = Turn::new();
        turn.update(AT_ONCE, AT_ONCE, 0, Duration::ZERO);
        assert!(!turn.is_at_once());
        turn.update(MOST, 100, AT_ONCE as u64, Duration::ZERO);
        assert!(!turn.is_at_once(), "the end of a large message");
        turn.update(MOST, 100, 0, LONG);
        assert!(turn.is_at_once());
        turn.update(AT_ONCE, 5000, 0, LONG + Duration::from_nanos(1));
        assert!(!turn.is_at_once(), "few bytes that took long");
    }

    #[test]
    fn the_rest_of_a_frame_comes_at_once_and_little_while_the_queue_is_not_empty() {
        let mut turn = Turn::new();
        settled(36_000, &mut turn);
        assert_eq!(turn.room(500_000, 0), 500_000);
        assert_eq!(turn.room(u64::MAX, 0), MOST);
        settled(300, &mut turn);
        assert_eq!((turn.room(0, 0), turn.room(0, 1)), (AT_ONCE, QUEUED));
    }
}
