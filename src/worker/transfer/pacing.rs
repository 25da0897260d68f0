//! When a worker that leaves looks at all of its connections, and when it closes one of them. Pure, and cheap enough to
//! be asked in every turn of the loop.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::time::Instant;

/// How often connections that could not move yet are looked at again: at first, and after [`SOON`].
pub const AGAIN: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_millis(500);
/// See [`AGAIN`].
const SOON: Duration = Duration::from_secs(5);

pub struct Pacing {
    /// When the worker began to leave.
    since: Instant,
    /// When to look next for connections that can move.
    look_at: Instant,
    /// Deadline and id of the connections that have one.
    closing: BTreeSet<(Instant, u64)>,
}

impl Pacing {
    /// The worker begins to leave, and looks at once.
    pub fn new(now: Instant) -> Self {
        Self { since: now, look_at: now, closing: BTreeSet::new() }
    }

    pub fn next(&self) -> Instant {
        self.closing.first().map_or(self.look_at, |(at, _)| self.look_at.min(*at))
    }

    /// Whether to look at all connections now. The deadline of a connection is no reason to.
    pub fn take_look(&mut self, now: Instant) -> bool {
        let is_due = now >= self.look_at;
        if is_due {
            self.look_at = now + if now.since(self.since) < SOON { AGAIN } else { LATER };
        }
        is_due
    }

    /// A connection is to be closed at this time.
    pub fn close_at(&mut self, at: Instant, id: u64) {
        self.closing.insert((at, id));
    }

    /// The next connection whose time is over.
    pub fn take_due(&mut self, now: Instant) -> Option<u64> {
        let (_, id) = *self.closing.first().filter(|(at, _)| *at <= now)?;
        self.closing.pop_first();
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_kept_without_looking_at_all_connections_for_each() {
        const CONNECTIONS: u64 = 8_000;
        const TIME: u64 = 30_000;
        let ms = |ms: u64| Instant::default() + Duration::from_millis(ms);
        let deadline = |id: u64| ms(TIME * id / CONNECTIONS);
        let mut pacing = Pacing::new(ms(0));
        (1..=CONNECTIONS).for_each(|id| pacing.close_at(deadline(id), id));
        let (mut looks, mut closed, mut last_look) = (0, 0, ms(0));
        // A busy loop: a turn in each millisecond.
        for now in (0..=TIME).map(ms) {
            if pacing.take_look(now) {
                looks += 1;
                assert!(now.since(last_look) <= LATER, "what has become movable does not wait longer");
                last_look = now;
            }
            while let Some(id) = pacing.take_due(now) {
                assert_eq!(deadline(id), now);
                closed += 1;
            }
            assert!(pacing.next() > now);
        }
        assert_eq!(closed, CONNECTIONS);
        assert_eq!(looks, 5_000 / 20 + 25_000 / 500 + 1);
    }
}
