//! What connections hold in memory, kept within the bounds of the worker: see [`ReceiveBudget`].

use crate::proto::ws::connection::Event;
use crate::worker::base::heap;
use crate::worker::conn::connections::Conns;
use crate::worker::conn::receive_budget::Verdict;
use crate::worker::conn::table::{Conn, Pause};

/// RFC 6455 7.4, registered by IANA: Try Again Later.
const TRY_AGAIN_LATER: u16 = 1013;

impl Conns {
    /// Counts the memory that a connection's incomplete message takes now. If there is too little, reading pauses or the
    /// connection is closed.
    #[inline(never)]
    pub fn count_share(&self, id: u64) {
        let now = self.life.now.get();
        let verdict = {
            let core = &mut *self.core.borrow_mut();
            let Some(open) = core.table.get(id).and_then(Conn::open) else { return };
            let held = open.proto.held();
            let verdict = core.receive_budget.update(id, &mut open.extra().share, held, now);
            self.metrics.set_receiving(core.receive_budget.sum());
            core.heap_trim.note(core.receive_budget.sum());
            verdict
        };
        match verdict {
            Verdict::Read => {}
            Verdict::Wait => self.pause(id, Pause::Memory),
            Verdict::Refuse => self.refuse_message(id),
        }
    }

    /// The connection has ended, or is no longer open.
    pub fn release_share(&self, id: u64, conn: &mut Conn) {
        if let Some(open) = conn.open().filter(|open| open.share().bytes() > 0) {
            let core = &mut *self.core.borrow_mut();
            core.receive_budget.release(id, open.share(), self.life.now.get());
            self.metrics.set_receiving(core.receive_budget.sum());
        }
    }

    /// Does what is due once in a turn: connections for which there is memory again go on, the oldest that others have
    /// waited for too long is closed, and memory that is free goes back to the system.
    pub fn tend_memory(&self) {
        let now = self.life.now.get();
        let (released, overdue, is_trim_due) = {
            let core = &mut *self.core.borrow_mut();
            let used = core.receive_budget.sum() + self.metrics.queued() as usize;
            let is_trim_due = core.heap_trim.is_due(used, now);
            (core.receive_budget.take_released(), core.receive_budget.overdue(now), is_trim_due)
        };
        for id in released {
            self.resume(id, Pause::Memory);
        }
        if let Some(id) = overdue {
            self.refuse_message(id);
            self.flush(id);
        }
        if is_trim_due {
            heap::trim();
        }
    }

    /// Closes a connection whose incomplete message there is no memory for.
    #[cold]
    fn refuse_message(&self, id: u64) {
        const WHY: &str = "no memory for its message (--receive-total)";
        let failed = self.with_protocol(id, |open, io| open.proto.give_up(TRY_AGAIN_LATER, WHY, io));
        if let Some(Event::Failed { code, why }) = failed {
            log::warn!("connection {id:x}: {why}; closed with {code}");
            self.failed(id, code);
        }
        self.count_share(id);
        self.resume(id, Pause::Memory);
    }
}
