//! Requests that wait for a process of a pool with a process for each connection: at most [`MOST`], each for
//! `process_timeout`. The head of such a request stays with its connection, so that it moves along if this worker
//! crashes or leaves.

use std::time::Duration;

use crate::time::Instant;
use crate::worker::conn::table::PartialHead;
use crate::worker::handshake::outcome::unavailable;
use crate::worker::transfer::Transfer;

const MOST: usize = 1024;
const AGAIN: Duration = Duration::from_millis(2);

pub struct Waiting {
    id: u64,
    pool: usize,
    give_up: Instant,
}

impl Transfer {
    /// No process of the pool is free: the request waits for one, or is answered with 503.
    pub fn wait_for_process(&self, id: u64, pool: usize, read: &[u8]) {
        let limit = self.conns.config.process_timeout;
        let waiting = &mut *self.waiting.borrow_mut();
        let is_known = waiting.iter().any(|known| known.id == id);
        if !self.conns.config.is_per_connection(pool)
            || limit.is_zero()
            || (!is_known && waiting.len() >= MOST)
        {
            return self
                .conns
                .reply(id, unavailable("no process of the pool that serves this resource is free"));
        }
        self.conns.keep_head(id, read.to_vec());
        if !is_known {
            let give_up = self.conns.now() + limit;
            waiting.push(Waiting { id, pool, give_up });
            self.conns.life.request_chores();
        }
    }

    /// Sends those that wait to processes that have become free, first come, first served. Returns when to try again,
    /// if some still wait.
    pub fn serve_waiting(&self) -> Option<Instant> {
        if self.waiting.borrow().is_empty() {
            return None;
        }
        let now = self.conns.now();
        let mut full: Vec<usize> = Vec::new();
        self.waiting.borrow_mut().retain(|&Waiting { id, pool, give_up }| {
            let may_be_free = !full.contains(&pool);
            let read = |head: &mut PartialHead| if may_be_free { head.read.clone() } else { Vec::new() };
            let Some(read) = self.conns.with_head(id, read) else { return false };
            if may_be_free {
                if self.try_forward(id, pool, &read) {
                    return false;
                }
                full.push(pool);
            }
            let is_over = give_up <= now;
            if is_over {
                self.conns.reply(id, unavailable("no process became free for this resource in time"));
            }
            !is_over
        });
        (!self.waiting.borrow().is_empty()).then(|| now + AGAIN)
    }
}
