//! The timers that a handler sets for one connection (`ws_set_timer`), in both styles. Reads no clock.

use std::time::Duration;

use ::ws_handler::raw::WS_E_LIMIT;

use crate::ffi::host::Task;
use crate::time::Instant;

/// Timers of one connection, see `ws_set_timer`.
const MOST: usize = 16;

/// See the module.
#[derive(Default)]
pub struct HandlerTimers {
    /// When, number, what; at most [`MOST`].
    waiting: Vec<(Instant, i64, Task)>,
    /// The last number given.
    made: i64,
}

impl HandlerTimers {
    /// Sets a timer; returns its number, or `WS_E_LIMIT`.
    pub fn set(&mut self, now: Instant, delay_ms: u64, task: Task) -> i64 {
        if self.waiting.len() == MOST {
            return i64::from(WS_E_LIMIT);
        }
        self.made += 1;
        self.waiting.push((now + Duration::from_millis(delay_ms), self.made, task));
        self.made
    }

    /// Clears a timer; false if it is not set.
    pub fn clear(&mut self, timer: i64) -> bool {
        let index = self.waiting.iter().position(|(_, number, _)| *number == timer);
        index.map(|index| self.waiting.swap_remove(index)).is_some()
    }

    /// When the next one expires.
    pub fn next(&self) -> Instant {
        self.waiting.iter().map(|(at, ..)| *at).min().unwrap_or(Instant::NEVER)
    }

    /// Removes the one that expired first, of those with the same time the one that was set first. What a callback sets does
    /// not expire for the same `now`, so that others get their turn.
    pub fn pop(&mut self, now: Instant) -> Option<Task> {
        let expired = self.waiting.iter().enumerate().filter(|(_, (at, ..))| *at <= now);
        let (index, _) = expired.min_by_key(|(_, (at, number, _))| (*at, *number))?;
        Some(self.waiting.swap_remove(index).2)
    }
}
