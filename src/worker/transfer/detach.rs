//! Blocking connections that move: their threads release them in one process, and begin again in the next.
//!
//! A thread releases its connection when it waits for a message and there is none. Once it is asked to nothing more is
//! read for it, so that this comes soon; what it has sent by then goes out before the connection moves. Only handlers
//! that declare themselves resumable are asked.

use std::collections::BTreeMap;

use ::ws_handler::raw::*;

use crate::time::Instant;
use crate::worker::conn::open::Open;
use crate::worker::conn::record::Record;
use crate::worker::conn::table::{Conn, Pause};
use crate::worker::transfer::Transfer;
use crate::worker::transfer::pacing::AGAIN;

/// Connections whose threads were asked to release them, each with the slot where it is to go on; None: where all go.
pub type Detaching = BTreeMap<u64, Option<usize>>;

impl Transfer {
    /// Asks the thread of a connection to release it, which then goes on in another slot, or where all go; if this
    /// worker is not leaving, only if the thread has nothing to do. False if it will not.
    pub fn detach_thread(&self, id: u64, to: Option<usize>) -> bool {
        if self.detaching.borrow().contains_key(&id) {
            return false;
        }
        let channel = self.conns.with_open(id, |_, open| {
            let may_move = is_serving(open) && open.proto.is_movable() && !open.has_unread();
            open.channel().filter(|_| may_move).cloned()
        });
        let will = channel
            .flatten()
            .is_some_and(|channel| channel.is_resumable() && channel.leave(!self.is_leaving()));
        if will {
            self.conns.pause(id, Pause::Move);
            self.detaching.borrow_mut().insert(id, to);
            self.conns.life.request_chores();
        }
        will
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
        let mut detached = BTreeMap::<Option<usize>, Vec<u64>>::new();
        self.detaching.borrow_mut().retain(|id, to| {
            let is_detached = self.is_detached(*id);
            if is_detached {
                detached.entry(*to).or_default().push(*id);
            }
            // Without those that have come to their end meanwhile.
            !is_detached && self.conns.with_open(*id, |_, open| is_serving(open)) == Some(true)
        });
        for (to, ids) in detached {
            if self.tx_to(to).is_none() {
                // There is no process any more that takes them: they go on here, as if they had arrived.
                ids.into_iter().for_each(|id| self.keep(id));
                continue;
            }
            self.send_away(&ids, to, usize::MAX);
            // Those for which the inbox has no room.
            let left = ids.into_iter().filter(|id| self.is_detached(*id)).map(|id| (id, to));
            self.detaching.borrow_mut().extend(left);
        }
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
