//! Small replies are written at the end of the turn. A write wakes the peer's process, which then competes with the
//! loop for the processor, so the loop reads from all ready sockets first. In a crash an unwritten reply moves with its
//! connection, or is written by the rescue.

use std::io;
use std::time::Duration;

use crate::clock;
use crate::worker::base::memory::Slots;
use crate::worker::conn::record::flags;
use crate::worker::connections::Conns;

/// Most bytes of a reply that waits.
const MOST: usize = 4096;
/// Connections whose replies wait, at most: as many as there are spare send queues.
const CONNECTIONS: usize = 64;
/// A turn that takes longer than this writes what waits: some of its messages are slow.
const TIME: Duration = Duration::from_micros(200);
/// Connections between two looks at the clock.
const LOOK: usize = 4;

/// Connections whose replies wait.
pub struct Gathered {
    /// In the order in which they were made; no more than [`CONNECTIONS`].
    ids: Vec<u64>,
    /// Copies of their replies outside of the heap, so that a heap that a handler has damaged loses none of them.
    replies: Slots<[u8; MOST]>,
    /// There is more to read in this turn.
    is_on: bool,
}

impl Gathered {
    /// With room for `most` connections.
    pub fn map(most: u32) -> io::Result<Self> {
        let replies = Slots::map(CONNECTIONS.min(most as usize))?;
        Ok(Gathered { ids: Vec::with_capacity(CONNECTIONS), replies, is_on: false })
    }

    /// Copies the next reply to where it stays until it is written.
    fn keep(&mut self, reply: &[u8]) -> Option<&[u8]> {
        let room = self.replies.get_mut(self.ids.len() as u32)?.get_mut(..reply.len())?;
        room.copy_from_slice(reply);
        Some(room)
    }
}

impl Conns {
    /// A turn begins in which `count` sockets are ready.
    pub fn begin_gathering(&self, count: usize) {
        self.core.borrow_mut().gathered.is_on = count > 1;
    }

    /// What was read of a connection is processed: its replies go out, at once or at the end of the turn.
    pub fn finish_turn(&self, id: u64) {
        match self.gather(id) {
            None => self.flush(id),
            Some(true) => self.flush_gathered(),
            Some(false) => {}
        }
    }

    /// Leaves the replies of a connection for later, if they are small and it could move with them. Returns whether it
    /// is time to write them.
    fn gather(&self, id: u64) -> Option<bool> {
        let core = &mut *self.core.borrow_mut();
        if !core.gathered.is_on {
            return None;
        }
        let (conn, record, unsent) = core.table.all(id)?;
        let queue = conn.queue.as_ref()?;
        let is_new = queue.counted.all == 0 && queue.as_frames(MOST).is_some();
        if !is_new || !conn.turn.is_at_once() || conn.is_paused() {
            return None;
        }
        self.settle_record(id, conn, record, unsent);
        if record.flags() & (flags::MOVABLE | flags::UNSENT) != flags::MOVABLE | flags::UNSENT {
            return None;
        }
        let reply = conn.queue.as_ref()?.as_frames(MOST)?;
        unsent.relocate(id as u32, core.gathered.keep(reply)?);
        conn.dirty = false;
        let ids = &mut core.gathered.ids;
        ids.push(id);
        let is_late = || clock::now() > self.now() + TIME;
        Some(ids.len() >= CONNECTIONS || ids.len().is_multiple_of(LOOK) && is_late())
    }

    /// Nothing more is to be read in this turn. Returns whether replies have waited, and are written now.
    pub fn end_gathering(&self) -> bool {
        let have_waited = {
            let gathered = &mut self.core.borrow_mut().gathered;
            gathered.is_on = false;
            !gathered.ids.is_empty()
        };
        if have_waited {
            self.flush_gathered();
        }
        have_waited
    }

    /// Writes what waits.
    fn flush_gathered(&self) {
        let mut ids = std::mem::take(&mut self.core.borrow_mut().gathered.ids);
        ids.drain(..).for_each(|id| self.flush(id));
        self.core.borrow_mut().gathered.ids = ids;
    }
}
