//! Busy connections wait in a queue: they are served after the others, first come first served, for a bounded time in
//! each turn of the loop. What is not read stays in the socket.

use std::collections::VecDeque;
use std::time::Duration;

use crate::worker::conn::receive::AT_ONCE;
use crate::worker::conn::table::Conn;
use crate::worker::conn::turn::rest;

/// Time for the queue in a turn of the loop; or as long as the others have taken in it, up to [`MOST_SHARE`].
pub const SHARE: Duration = Duration::from_micros(100);
/// See [`SHARE`].
pub const MOST_SHARE: Duration = Duration::from_millis(1);
/// This many waiting connections stay watched: being found ready again costs less than two epoll_ctl calls.
const FEW: usize = 16;

/// Connections that wait for their turn, each once.
#[derive(Default)]
pub struct TurnQueue(VecDeque<u64>);

impl TurnQueue {
    /// How many bytes to read from a connection now. `None`: it was put into the queue and is read in its turn.
    #[inline]
    pub fn room_for(&mut self, id: u64, conn: &mut Conn, in_turn: bool) -> Option<usize> {
        if conn.turn.is_at_once() {
            return Some(AT_ONCE);
        }
        let to_come = conn.open().map_or(0, |open| open.proto.to_come());
        if in_turn {
            return Some(conn.turn.room(to_come, conn.queued()));
        }
        let rest = rest(to_come, AT_ONCE).filter(|_| !conn.has_unread());
        if rest.is_none() {
            self.join(id, conn);
        }
        rest
    }

    /// Puts a connection into the queue, if it is not there yet. The caller updates what epoll watches.
    pub fn join(&mut self, id: u64, conn: &mut Conn) {
        if !conn.turn.is_waiting() {
            conn.turn.wait(self.0.len() < FEW);
            self.0.push_back(id);
        }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn pop(&mut self) -> Option<u64> {
        self.0.pop_front()
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
