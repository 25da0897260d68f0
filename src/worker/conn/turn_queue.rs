//! The queue of connections that wait for their turn.

use std::collections::VecDeque;
use std::time::Duration;

use crate::worker::conn::receive::AT_ONCE;
use crate::worker::conn::table::Conn;

/// The rest of a frame is read at once only if it has at least this many bytes.
const SCRAP: usize = 128;
/// Reads of what is left of a frame, at most: what is gathered grows by a factor, from 1 KiB to [`MOST`].
pub const READS: usize = 4;
/// Time for the queue in a turn of the loop; or as long as the others have taken in it, up to [`MOST_SHARE`].
pub const SHARE: Duration = Duration::from_micros(100);
/// See [`SHARE`].
pub const MOST_SHARE: Duration = Duration::from_millis(1);
/// This many waiting connections stay watched: being found ready again costs less than two epoll_ctl calls.
const FEW: usize = 16;

/// The rest of a frame, if it is worth a read by itself and no larger than `most`: it does not wait for the next turn. Until
/// it has come the connection cannot move, even though the process crashes.
pub fn rest(to_come: u64, most: usize) -> Option<usize> {
    usize::try_from(to_come).ok().filter(|rest| (SCRAP..=most).contains(rest))
}

/// Connections that wait for their turn, each once.
#[derive(Default)]
pub struct TurnQueue(VecDeque<u64>);

impl TurnQueue {
    /// How many bytes to read from a connection now. `None`: it is not its turn yet, and it has joined those who wait.
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

    /// How many wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Removes the first one.
    pub fn pop(&mut self) -> Option<u64> {
        self.0.pop_front()
    }

    /// Whether none waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
