//! The timers that a handler sets for one connection (`ws_set_timer`), in both styles. Reads no clock.

use std::time::Duration;

use ::ws_handler::raw::{WS_E_INVALID, WS_E_LIMIT, WS_OK};

use crate::ffi::host::Task;
use crate::time::Instant;

/// Timers of one connection, see `ws_set_timer`.
pub const OF_A_CONNECTION: usize = 16;

#[derive(Default)]
pub struct HandlerTimers {
    waiting: Vec<Timer>,
    last_number: i64,
}

struct Timer {
    at: Instant,
    number: i64,
    /// Zero: it expires once.
    period: Duration,
    task: Task,
}

impl HandlerTimers {
    /// Sets a timer, one that comes again with a period that is not 0; returns its number, or `WS_E_LIMIT` if there are
    /// as many as there may be.
    pub fn set(&mut self, most: usize, now: Instant, delay_ms: u64, period_ms: u64, task: Task) -> i64 {
        if self.waiting.len() >= most {
            return i64::from(WS_E_LIMIT);
        }
        self.last_number += 1;
        let (at, period) = (now + Duration::from_millis(delay_ms), Duration::from_millis(period_ms));
        self.waiting.push(Timer { at, number: self.last_number, period, task });
        self.last_number
    }

    /// Clears a timer; `WS_OK`, or `WS_E_INVALID` if it is not set.
    pub fn clear(&mut self, timer: i64) -> i32 {
        let index = self.waiting.iter().position(|known| known.number == timer);
        index.map(|index| self.waiting.swap_remove(index)).map_or(WS_E_INVALID, |_| WS_OK)
    }

    /// When the next one expires.
    pub fn next(&self) -> Instant {
        self.waiting.iter().map(|timer| timer.at).min().unwrap_or(Instant::NEVER)
    }

    /// Removes the one that expired first, of those with the same time the one that was set first. What a callback sets
    /// does not expire for the same `now`, so that others get their turn.
    pub fn pop(&mut self, now: Instant) -> Option<Task> {
        let expired = self.waiting.iter().enumerate().filter(|(_, timer)| timer.at <= now);
        let (index, _) = expired.min_by_key(|(_, timer)| (timer.at, timer.number))?;
        let timer = self.waiting.get_mut(index)?;
        let task = timer.task;
        if timer.period.is_zero() {
            self.waiting.swap_remove(index);
        } else {
            // Those that could not come in time are left out.
            let missed = now.since(timer.at).as_nanos() / timer.period.as_nanos();
            timer.at = timer.at + timer.period.saturating_mul(u32::try_from(missed + 1).unwrap_or(u32::MAX));
        }
        Some(task)
    }
}
