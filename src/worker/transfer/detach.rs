//! Blocking connections that move: their threads release them in one process, and begin again in the next.
//!
//! A thread releases its connection when it waits for a message and there is none. Once it is asked to nothing more is
//! read for it, so that this comes soon; what it has sent by then goes out before the connection moves. Only handlers
//! that declare themselves resumable are asked.

use ::ws_handler::raw::*;

use crate::time::Instant;
use crate::worker::conn::open::Open;
use crate::worker::conn::record::Record;
use crate::worker::conn::table::{Conn, Pause};
use crate::worker::transfer::Transfer;
use crate::worker::transfer::pacing::AGAIN;

/// A connection whose thread was asked to release it.
pub struct Detaching {
    conn: u64,
    /// The slot where it is to go on; None: where all go.
    to: Option<usize>,
}

impl Transfer {
    /// Asks the thread of a connection to release it, which then goes on in another slot, or where all go; if this
    /// worker is not leaving, only if the thread has nothing to do. False if it will not.
    pub fn detach_thread(&self, id: u64, to: Option<usize>) -> bool {
        if self.detaching.borrow().iter().any(|detached| detached.conn == id) {
            return false;
        }
        let channel = match self.conns.core.borrow_mut().table.get(id) {
            Some(conn) if conn.has_unread() => return false,
            Some(conn) => conn
                .open()
                .filter(|open| is_serving(open) && open.proto.is_movable())
                .and_then(|open| open.channel().cloned()),
            None => return false,
        };
        if !channel
            .is_some_and(|channel| channel.is_resumable() && channel.leave(self.leaving.borrow().is_none()))
        {
            return false;
        }
        self.conns.pause(id, Pause::Move);
        self.detaching.borrow_mut().push(Detaching { conn: id, to });
        self.conns.life.request_chores();
        true
    }

    /// The thread of a connection has released it, and left this state.
    pub fn thread_detached(&self, id: u64, state: &[u8]) {
        let serving = self.conns.with_open(id, |_, open| {
            let serving = is_serving(open);
            if serving {
                // Its handler does not know of it any more.
                (open.extra().channel, open.silent) = (None, true);
            }
            (serving, open.proto.is_movable())
        });
        match serving {
            Some((true, true)) => {
                self.conns.edit_record(id, |record| record.set_state(state));
                self.conns.flush(id);
            }
            // The handler has begun a message and waited for one.
            Some((true, false)) => self.conns.close(id, Some(1012), b"", WS_BY_HOST),
            _ => {}
        }
    }

    /// Sends away what threads have released. Returns when to look again, if some have not yet.
    pub fn send_detached(&self) -> Option<Instant> {
        if self.detaching.borrow().is_empty() {
            return None;
        }
        let mut detaching = self.detaching.take();
        let mut left = Vec::new();
        while let Some(to) =
            detaching.iter().find(|detached| self.is_detached(detached.conn)).map(|detached| detached.to)
        {
            let ids: Vec<u64> = detaching
                .extract_if(.., |detached| detached.to == to && self.is_detached(detached.conn))
                .map(|detached| detached.conn)
                .collect();
            if self.tx_to(to).is_none() {
                // There is no process any more that takes them: they go on here, as if they had arrived.
                ids.into_iter().for_each(|id| self.keep(id));
                continue;
            }
            self.send_away(&ids, to, usize::MAX);
            // Those for which the inbox has no room.
            left.extend(
                ids.into_iter().filter(|id| self.is_detached(*id)).map(|conn| Detaching { conn, to }),
            );
        }
        detaching.append(&mut left);
        // Without those that have come to their end meanwhile.
        detaching
            .retain(|detached| self.conns.with_open(detached.conn, |_, open| is_serving(open)) == Some(true));
        self.detaching.borrow_mut().append(&mut detaching);
        (!self.detaching.borrow().is_empty()).then(|| self.conns.now() + AGAIN)
    }

    fn is_detached(&self, id: u64) -> bool {
        let is_released = |(conn, record): (&mut Conn, &mut Record)| {
            record.is_movable() && conn.open().is_some_and(|open| open.channel().is_none() && open.silent)
        };
        self.conns.core.borrow_mut().table.both(id).is_some_and(is_released) && self.link.is_quiet(id)
    }
}

/// Neither over nor about to end.
fn is_serving(open: &Open) -> bool {
    !open.over && !open.is_closing()
}
