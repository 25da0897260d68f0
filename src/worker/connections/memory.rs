//! What connections hold in memory, kept within the bounds of the worker: see [`ReceiveBudget`].

use crate::proto::ws::connection::Event;
use crate::time::Instant;
use crate::worker::base::heap;
use crate::worker::conn::open::Open;
use crate::worker::conn::receive_budget::BudgetDecision;
use crate::worker::conn::table::{Conn, Pause};
use crate::worker::connections::{Conns, Core};

/// RFC 6455 7.4, registered by IANA: Try Again Later.
const TRY_AGAIN_LATER: u16 = 1013;

impl Core {
    /// Something was compressed for a connection, with a context that it keeps. If all contexts together are too large
    /// now, the longest idle lose theirs.
    #[inline(never)]
    pub fn count_context(&mut self, id: u64, now: Instant) {
        self.update_context(id, false, now);
        self.heap_trim.note(self.contexts.sum());
        self.drop_surplus_contexts(now);
    }

    /// Drops contexts of connections that were not sent anything compressed for too long, or for the longest time of
    /// all. One that is in the middle of a message keeps its own, and is the last to be asked again.
    pub fn drop_surplus_contexts(&mut self, now: Instant) {
        while let Some(id) = self.contexts.surplus(now)
            && self.update_context(id, true, now)
        {}
    }

    /// Counts the context of a connection as it is, or once it is dropped; whether it was.
    fn update_context(&mut self, id: u64, is_surplus: bool, now: Instant) -> bool {
        let Some(open) = self.table.get(id).and_then(Conn::open) else { return false };
        let is_dropped = is_surplus && open.proto.drop_sending_context(&mut self.codecs);
        let bytes = open.proto.context_bytes().0;
        self.contexts.update(id, &mut open.extra().context, bytes, now);
        is_dropped
    }
}

impl Conns {
    /// Counts the memory that a connection's incomplete message takes now. If there is too little, reading pauses or
    /// the connection is closed.
    #[inline(never)]
    pub fn count_share(&self, id: u64) {
        let now = self.now();
        let verdict = {
            let core = &mut *self.core.borrow_mut();
            let Some(open) = core.table.get(id).and_then(Conn::open) else { return };
            let held = open.proto.held();
            let verdict = core.receive_budget.update(id, &mut open.extra().share, held, now);
            core.heap_trim.note(core.receive_budget.sum());
            self.note_budget(core);
            verdict
        };
        match verdict {
            BudgetDecision::Read => {}
            BudgetDecision::Wait => self.pause(id, Pause::Memory),
            BudgetDecision::Refuse => self.refuse_message(id),
        }
    }

    /// The connection has ended: nothing of what it holds counts.
    pub fn release_memory(&self, id: u64) {
        let core = &mut *self.core.borrow_mut();
        let counted = core.table.get(id).and_then(Conn::open).and_then(Open::take_counted);
        let Some((share, mut context)) = counted else { return };
        let now = self.now();
        core.receive_budget.release(id, share, now);
        core.contexts.update(id, &mut context, 0, now);
        self.note_budget(core);
    }

    fn note_budget(&self, core: &Core) {
        self.metrics.lane.present().receiving.set(core.receive_budget.sum() as u64);
        // Those that wait for memory go on with the chores.
        if core.receive_budget.has_released() {
            self.life.request_chores();
        }
    }

    /// Once a heartbeat, and when memory was released that others wait for: connections for which there is memory again
    /// go on, the oldest that others have waited for too long is closed, and memory that is free goes back to the
    /// system.
    pub fn trim_memory(&self) {
        let now = self.now();
        let (released, overdue, is_trim_due) = {
            let core = &mut *self.core.borrow_mut();
            core.drop_surplus_contexts(now);
            let used = core.receive_budget.sum() + core.contexts.sum() + self.count_all_queues(0, 0);
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
        const WHY: &str = "no memory for its message (receive_total)";
        let failed = self.with_protocol(id, |open, io| open.proto.give_up(TRY_AGAIN_LATER, WHY, io));
        if let Some(Event::Failed { code, why }) = failed {
            log::warn!("connection {id:x}: {why}; closed with {code}");
            self.failed(id, code);
        }
        self.count_share(id);
        self.resume(id, Pause::Memory);
    }
}
