//! The server drains: the connections of this worker are closed one after another, evenly over the time that the
//! supervisor has given ([`Readiness::Closing`]). Nobody tells the worker: it looks with its chores.

use std::collections::VecDeque;
use std::time::Duration;

use crate::fleet::memory::bulletin::Readiness;
use crate::time::Instant;
use crate::worker::Worker;

impl Worker {
    /// Closes connections whose time has come; returns when the next one's comes.
    pub fn close_over_time(&self) -> Option<Instant> {
        let Readiness::Closing { until, code } = self.conns.presence.scoreboard.bulletin().readiness() else {
            self.spread.take();
            return None;
        };
        if self.conns.life.is_stopping() {
            return None;
        }
        let now = self.conns.now();
        let mut spread = self.spread.take().unwrap_or_else(|| {
            let ids = self.conns.ids();
            ids.iter().for_each(|id| self.transfer.drain(*id));
            Spread::new(ids.into(), now, until, std::process::id())
        });
        spread.change(now, until);
        while let Some(id) = spread.take_due(now) {
            let is_open = self.conns.with_open(id, |_, open| !open.over && !open.is_closing());
            if is_open == Some(true) {
                self.conns.close_after_messages(id, code);
            }
        }
        let next = Some(spread.next).filter(|next| !next.is_never());
        self.spread.replace(Some(spread));
        next
    }
}

/// Connections that are closed one after another, evenly over a time. Of many processes with few connections each
/// closes its first one at another moment.
pub struct Spread {
    ids: VecDeque<u64>,
    /// Of the interval of a connection: when in it that is closed; 0 < phase <= 1.
    phase: f64,
    until: Instant,
    /// When the first one is closed.
    next: Instant,
}

impl Spread {
    /// `seed` is different for each process.
    fn new(ids: VecDeque<u64>, now: Instant, until: Instant, seed: u32) -> Self {
        // Multiples of the golden ratio are spread evenly, however many there are.
        let phase = f64::from(seed.wrapping_mul(0x9e37_79b9).max(1)) / f64::from(u32::MAX);
        let mut spread = Self { ids, phase, until, next: Instant::NEVER };
        spread.schedule(now);
        spread
    }

    /// The time is another one.
    fn change(&mut self, now: Instant, until: Instant) {
        if self.until != until {
            self.until = until;
            self.schedule(now);
        }
    }

    fn schedule(&mut self, now: Instant) {
        self.next = match self.ids.len() {
            0 => Instant::NEVER,
            left => now + self.until.since(now).div_f64(left as f64).mul_f64(self.phase),
        };
    }

    /// The next connection whose time has come.
    fn take_due(&mut self, now: Instant) -> Option<u64> {
        if self.next > now {
            return None;
        }
        let id = self.ids.pop_front()?;
        // The last one is closed in the same phase of its interval as the first one.
        let left = self.ids.len() as f64;
        let interval = match self.ids.len() {
            0 => Duration::MAX,
            _ => self.until.since(self.next).div_f64(left + 1.0 - self.phase),
        };
        self.next = self.next + interval;
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::default() + Duration::from_millis(ms)
    }

    /// When each connection is closed, by a loop that turns every 10 ms.
    fn times(spread: &mut Spread, ms: std::ops::Range<u64>) -> Vec<u64> {
        let mut times = Vec::new();
        for now in ms.step_by(10) {
            while spread.take_due(at(now)).is_some() {
                times.push(now);
            }
        }
        times
    }

    #[test]
    fn connections_are_closed_evenly_and_none_is_left_at_the_end() {
        for seed in [1, 4711, 4712, u32::MAX] {
            let mut spread = Spread::new((0..100).collect(), at(1000), at(11_000), seed);
            let times = times(&mut spread, 1000..11_010);
            assert_eq!(times.len(), 100, "seed {seed}");
            for (number, time) in times.iter().enumerate() {
                let ideal = 1000 + number as u64 * 100;
                assert!((ideal..=ideal + 120).contains(time), "seed {seed}: {number} at {time}");
            }
            assert!(spread.next.is_never());
        }
    }

    #[test]
    fn processes_with_one_connection_each_close_it_at_different_times() {
        let mut first: Vec<u64> = (4000..4100)
            .map(|pid| times(&mut Spread::new([7].into(), at(0), at(10_000), pid), 0..10_010)[0])
            .collect();
        first.sort_unstable();
        let gaps = first.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.max() < Some(500), "{first:?}");
    }

    #[test]
    fn another_time_holds_for_those_that_are_left() {
        let mut spread = Spread::new((0..10).collect(), at(0), at(100_000), 1 << 30);
        assert!(times(&mut spread, 0..20_000).len() < 4);
        spread.change(at(20_000), at(21_000));
        let left = spread.ids.len();
        assert_eq!(times(&mut spread, 20_000..21_010).len(), left);
        let mut none = Spread::new(VecDeque::new(), at(0), at(1000), 3);
        assert_eq!((none.next, none.take_due(at(2000))), (Instant::NEVER, None));
    }
}
