//! Sends connections away while all is well: some of them to another slot
//! (balance), or all of them because this worker is to leave.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use ::ws_handler::raw::*;

use crate::ffi::place::Callback;
use crate::fleet::memory::scoreboard::{Slot, State};
use crate::fleet::sockets::inbox;
use crate::time::Instant;
use crate::worker::conn::handoff::{Beside, Purpose, entry_size, unsent_of};
use crate::worker::conn::open::Open;
use crate::worker::conn::record::{Record, flags};
use crate::worker::conn::table::{Pause, Table};
use crate::worker::crash::signals::{self, uninterrupted};
use crate::worker::handshake::outcome::Elsewhere;
use crate::worker::handshake::outcome::unavailable;
use crate::worker::transfer::Transfer;
use crate::worker::transfer::pacing::{self, Pacing};

/// What a worker that hands its connections over keeps in mind.
pub struct Leaving {
    /// The inbox that they are sent to; none if no process can take them up.
    tx: Option<Rc<OwnedFd>>,
    /// Whose that is; it does not leave before this worker has sent all.
    to: Option<Slot>,
    pacing: Pacing,
    /// The last connections could not be sent, although the inbox had room.
    is_refused: bool,
    /// Connections that cannot move, or not yet, and whose handlers know.
    told: HashSet<u64>,
    /// Since when there is no connection; handlers' threads may still be there.
    empty_since: Option<Instant>,
}

impl Transfer {
    pub fn rebalance(&self, to: usize, count: usize) {
        if self.is_leaving() || self.conns.life.is_stopping() {
            return;
        }
        // It may have been told to leave since, or have run out of descriptors.
        if self.conns.presence.scoreboard.slot(to).is_none_or(|slot| !slot.takes_connections()) {
            return;
        }
        if self.tx_to(Some(to)).is_none() {
            return log::error!("the inbox of slot {to} is not known");
        }
        let ids = self.conns.ids();
        let moved = self.send_away(&ids, Some(to), count);
        log::debug!("{moved} connections moved to slot {to}");
    }

    /// Hands a request over to the least loaded worker of the pool that serves it, or to the process that runs
    /// programs, with what was read of it.
    pub fn forward_request(&self, id: u64, elsewhere: &Elsewhere, read: &[u8]) {
        match elsewhere {
            Elsewhere::Pool(pool) if self.try_forward(id, *pool, read) => {}
            Elsewhere::Pool(pool) => self.wait_for_process(id, *pool, read),
            Elsewhere::Program(asked) => self.forward_to_program(id, asked, read),
        }
    }

    /// The same; false, and nothing is done, while no worker of the pool is free.
    pub fn try_forward(&self, id: u64, pool: usize, read: &[u8]) -> bool {
        let Some(to) = self.least_loaded(pool) else { return false };
        // Until it is sent, or answered.
        self.conns.edit_record(id, |record| record.set_head(read));
        if !self.forward(&to, id, Purpose::Handshake, pool) {
            self.conns.reply(id, unavailable("the pool that serves this resource does not keep up"));
        }
        true
    }

    /// The least loaded worker of a pool and the sending end of its inbox; in a pool with a process for each connection
    /// one that waits, which is reserved.
    pub fn least_loaded(&self, pool: usize) -> Option<(Slot, Rc<OwnedFd>)> {
        let slots =
            self.conns.presence.scoreboard.slots().filter(|(_, slot)| usize::from(slot.place().pool) == pool);
        // What lies in the inbox of a worker that is starting is adopted as soon as it is ready.
        let eagerness = |slot: &Slot| {
            let load = slot.connections.load(Ordering::Relaxed);
            match slot.state() {
                State::Running if slot.fault().is_none() => Some((0, load)),
                State::Starting => Some((1, load)),
                // It waits there for the one that is to replace this worker.
                State::Running => Some((2, load)),
                State::Stopping | State::Standby | State::Empty => None,
            }
        };
        let known = |index: usize| self.txs.borrow().get(&index).cloned();
        let slots = slots.filter_map(|(index, slot)| Some((eagerness(&slot)?, index, slot)));
        if self.conns.config.is_per_connection(pool) {
            // Not the parent, which is the first in its pool. One that is starting may not get that far, and what it
            // was sent would wait for another.
            let mut idle = slots.filter(|(eagerness, _, slot)| {
                *eagerness == (0, 0) && slot.is_idle() && slot.place().number > 0
            });
            return idle.find_map(|(_, index, slot)| {
                let tx = known(index)?;
                slot.claim().then_some((slot, tx))
            });
        }
        let (_, to, slot) = slots.min_by_key(|(eagerness, index, _)| (*eagerness, *index))?;
        Some((slot, known(to)?))
    }

    /// Sends a connection to the worker that was found for it in this pool, and forgets it; false if there is no room
    /// there.
    pub fn forward(&self, (slot, tx): &(Slot, Rc<OwnedFd>), id: u64, purpose: Purpose, pool: usize) -> bool {
        let sent = self.pack(id, purpose) && self.ship(tx.as_raw_fd(), &[id]);
        if sent {
            self.forget_moved(id, pool == self.conns.presence.pool);
        } else if self.conns.config.is_per_connection(pool) {
            slot.release();
        }
        sent
    }

    /// Where connections for this slot go, and whose inbox that is: `tx` if it came with the command (it leads to
    /// another server), else what is known of the slot.
    pub fn target(&self, to: usize, tx: Option<OwnedFd>) -> Option<(Rc<OwnedFd>, Option<Slot>)> {
        let slot = self.conns.presence.scoreboard.slot(to).filter(|_| tx.is_none());
        let known = || self.txs.borrow().get(&to).cloned();
        Some((tx.map(Rc::new).or_else(known)?, slot))
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.borrow().is_some()
    }

    /// Begins to leave: connections go to this inbox; those that cannot are closed in the time that their handlers
    /// have.
    pub fn begin_leaving(&self, tx: Option<Rc<OwnedFd>>, to: Option<Slot>) {
        let pacing = Pacing::new(self.conns.now());
        let (is_refused, told) = (false, HashSet::new());
        let leaving = Leaving { tx: None, to: None, pacing, is_refused, told, empty_since: None };
        self.leaving.replace(Some(leaving));
        self.redirect(tx, to);
        self.conns.life.request_chores();
        _ = self.migrate_more();
    }

    /// The receiver has gone: the remaining connections are sent to this inbox.
    pub fn redirect(&self, tx: Option<Rc<OwnedFd>>, to: Option<Slot>) {
        if let Some(leaving) = self.leaving.borrow_mut().as_mut() {
            leaving.to.into_iter().for_each(|old| old.crash.end_sending(self.conns.presence.pid));
            to.into_iter().for_each(|new| new.crash.begin_sending(self.conns.presence.pid));
            (leaving.tx, leaving.to) = (tx, to);
        }
    }

    /// Whether all is handed over. What arrives from here on lies in the inbox, where the supervisor finds it.
    pub fn has_migrated(&self) -> bool {
        let Some(since) = self.leaving.borrow().as_ref().and_then(|leaving| leaving.empty_since) else {
            return false;
        };
        if self.conns.len() > 0 {
            return false; // some have arrived in the same turn, and go on at the next look
        }
        let is_late = self.conns.now() >= since + self.conns.config.stop_timeout;
        !self.conns.presence.slot.crash.is_sending() && (self.session.threads.running() == 0 || is_late)
    }

    /// Nothing is handed over any more: those that are left are closed here.
    pub fn end_migration(&self) {
        self.redirect(None, None);
        self.leaving.take();
    }

    pub fn learn_tx(&self, slot: usize, tx: Option<OwnedFd>) {
        if self.conns.presence.is_per_connection() {
            return; // it has nothing to send
        }
        match tx {
            Some(tx) => drop(self.txs.borrow_mut().insert(slot, Rc::new(tx))),
            None => log::error!("no inbox of slot {slot} came with the command"),
        }
    }

    /// Tells a handler that the server wants a connection to end.
    pub fn drain(&self, id: u64) {
        let handler = self.conns.with_open(id, |handler, open| match open.channel() {
            _ if open.is_closing() || open.over => None,
            // A resumable one is waited for instead.
            Some(channel) if channel.is_resumable() => None,
            Some(channel) => {
                channel.drain();
                None
            }
            None => Some(handler),
        });
        if let Some(handler) = handler.flatten() {
            self.handlers.tell(handler, Callback::Drain, id, |handler| handler.drain(id));
        }
    }

    /// Hands over what has become movable; what has not is closed with 1012 when its time is over. Looks at all
    /// connections now and then only: a turn of the loop costs no more for those that are left. Returns when to go on.
    pub fn migrate_more(&self) -> Option<Instant> {
        let now = self.conns.now();
        let is_look_due = match self.leaving.borrow_mut().as_mut() {
            Some(leaving) => leaving.pacing.take_look(now),
            None => return None,
        };
        if is_look_due || self.has_emptied() {
            self.send_away(&self.conns.ids(), None, usize::MAX);
            let left = self.conns.ids();
            if let Some(leaving) = self.leaving.borrow_mut().as_mut() {
                leaving.empty_since = left.is_empty().then(|| leaving.empty_since.unwrap_or(now));
            }
            self.announce_end(&left);
        }
        let due = || self.leaving.borrow_mut().as_mut()?.pacing.take_due(now);
        while let Some(id) = due() {
            // It may have become movable since the last look.
            self.send_away(&[id], None, 1);
            if !self.waits_for_room(id) {
                self.conns.close_after_messages(id, 1012);
            } else if let Some(leaving) = self.leaving.borrow_mut().as_mut() {
                leaving.pacing.close_at(now + pacing::AGAIN, id);
            }
        }
        self.leaving.borrow().as_ref().map(|leaving| leaving.pacing.next())
    }

    /// Whether a connection that is still here can move as soon as the inbox has room.
    fn waits_for_room(&self, id: u64) -> bool {
        let is_accepted = |leaving: &Leaving| leaving.tx.is_some() && !leaving.is_refused;
        self.leaving.borrow().as_ref().is_some_and(is_accepted) && self.purpose_of(id).is_some()
    }

    /// Whether nothing but what a connection is doing keeps it here: a message, or its thread.
    fn will_be_movable(&self, id: u64) -> bool {
        let is_resumable = self.conns.channel(id).is_none_or(|channel| channel.is_resumable());
        let params = self.conns.core.borrow_mut().table.record(id).and_then(|record| record.params());
        let has_context = params.is_some_and(|params| !params.client_no_context_takeover());
        is_resumable && !has_context && self.tx_to(None).is_some()
    }

    /// Whether the last connection has gone since the last look.
    fn has_emptied(&self) -> bool {
        let is_noted = |leaving: &Leaving| leaving.empty_since.is_some();
        self.leaving.borrow().as_ref().is_some_and(|leaving| !is_noted(leaving)) && self.conns.len() == 0
    }

    /// Tells the handlers of connections that cannot move, or not yet, and spreads their ends over the time that
    /// they have. One that only waits for room in the inbox is not told.
    pub fn announce_end(&self, ids: &[u64]) {
        let is_open =
            |id: &u64| self.conns.with_open(*id, |handler, open| (!open.over).then_some(handler)).flatten();
        let is_told =
            |id: &u64| self.leaving.borrow().as_ref().is_none_or(|leaving| leaving.told.contains(id));
        let untold = ids.iter().filter(|id| !is_told(id) && !self.waits_for_room(**id));
        let open = untold.filter_map(|id| Some((*id, is_open(id)?)));
        let open: Vec<(u64, u16)> = open.collect();
        for (index, &(id, handler)) in open.iter().enumerate() {
            // One that can move once it is between two messages has all of the time.
            let part = if self.will_be_movable(id) { open.len() } else { index + 1 };
            if let Some(leaving) = self.leaving.borrow_mut().as_mut() {
                leaving.told.insert(id);
                if let Some(time) = self.conns.settings(handler).drain {
                    let at = self.conns.now() + time.mul_f64(part as f64 / open.len() as f64);
                    leaving.pacing.close_at(at, id);
                }
            }
            self.drain(id);
            signals::begin_work();
        }
    }

    /// Where connections for a slot are sent, or `None` for where all of them go.
    pub fn tx_to(&self, to: Option<usize>) -> Option<Rc<OwnedFd>> {
        match (&*self.leaving.borrow(), to) {
            (Some(leaving), _) => leaving.tx.clone(),
            (None, to) => self.txs.borrow().get(&to?).cloned(),
        }
    }

    /// Sends those that are movable to a slot, or where all go, and asks threads to release theirs; returns how many
    /// went or will go. Those for which the inbox has no room are not told of a move, and stay as they are.
    pub fn send_away(&self, ids: &[u64], to: Option<usize>, count: usize) -> usize {
        let Some(tx) = self.tx_to(to).filter(|tx| inbox::has_room(tx.as_fd())) else { return 0 };
        let mut moved = 0;
        let mut batch = Vec::new();
        for &id in ids {
            signals::begin_work();
            if moved + batch.len() == count {
                break;
            }
            let Some((purpose, size)) = self.purpose_of(id) else {
                moved += usize::from(self.detach_thread(id, to));
                continue;
            };
            if !self.shipment.borrow().has_room(size) {
                let sent = self.dispatch(tx.as_fd(), &mut batch);
                moved += sent;
                if sent == 0 || !inbox::has_room(tx.as_fd()) {
                    break;
                }
            }
            if purpose == Purpose::Resume && !self.detach(id) {
                continue;
            }
            match self.pack(id, purpose) {
                true => batch.push(id),
                false => self.keep(id),
            }
        }
        moved + self.dispatch(tx.as_fd(), &mut batch)
    }

    /// How a connection can move, and how many bytes that takes; `None`: not now.
    pub fn purpose_of(&self, id: u64) -> Option<(Purpose, usize)> {
        let core = &mut *self.conns.core.borrow_mut();
        let record = core.table.record(id)?;
        let purpose = if record.flags() & flags::FRESH != 0 {
            Purpose::Handshake
        } else if record.is_movable() && self.conns.commands.at(id).is_quiet() && self.link.is_quiet(id) {
            Purpose::Resume
        } else {
            return None;
        };
        let beside = self.beside(&mut core.table, id)?;
        Some((purpose, entry_size(core.table.record(id)?, purpose, &beside)?))
    }

    /// Calls on_close(WS_BY_MOVE); false if the connection cannot move after all. Calls for it return WS_E_GONE from
    /// here on, since a packed record must not change.
    pub fn detach(&self, id: u64) -> bool {
        let known = self.conns.with_open(id, |handler, open| (!open.over).then_some((handler, open.silent)));
        let Some((handler, silent)) = known.flatten() else { return false };
        if !self.conns.commands.at(id).close_if_quiet() {
            return false;
        }
        self.conns.with_open(id, |_, open| open.over = true);
        if silent {
            return true; // its thread has released it
        }
        self.handlers.tell(handler, Callback::Close, id, |handler| handler.close(id, WS_BY_MOVE, 0));
        true
    }

    /// The connection could not be sent: it is resumed here, as if it had arrived, or goes on as it was if it is not
    /// open.
    pub fn keep(&self, id: u64) {
        let begin_anew = |handler, open: &mut Open| {
            open.begin_anew();
            handler
        };
        let Some(handler) = self.conns.with_open(id, begin_anew) else { return };
        self.conns.edit_record(id, Record::set_resumed);
        self.conns.commands.set_open(id, handler);
        self.conns.resume(id, Pause::Handler);
        self.session.notify_open(id, handler);
    }

    pub fn pack(&self, id: u64, purpose: Purpose) -> bool {
        let core = &mut *self.conns.core.borrow_mut();
        let Some(beside) = self.beside(&mut core.table, id) else { return false };
        let Some(record) = core.table.record(id) else { return false };
        // SAFETY: records stay in place; this one is cleared only after the shipment was sent or emptied.
        unsafe { self.shipment.borrow_mut().add(record, purpose, &beside) }
    }

    /// What travels beside the record of a connection.
    fn beside(&self, table: &mut Table, id: u64) -> Option<Beside> {
        let (topics, seen, unsent) = (table.topics(id)?, self.progress.seen_by(id), table.unsent());
        Some(Beside { topics, seen, unsent: unsent_of(table.record(id)?, id, unsent)? })
    }

    /// Sends the batch and forgets its connections, or keeps them if there is no room at the other end.
    fn dispatch(&self, tx: BorrowedFd<'_>, batch: &mut Vec<u64>) -> usize {
        let (sent, count) = (self.ship(tx.as_raw_fd(), batch), batch.len());
        if let Some(leaving) = self.leaving.borrow_mut().as_mut().filter(|_| count > 0) {
            leaving.is_refused = !sent && inbox::has_room(tx);
        }
        for id in batch.drain(..) {
            if sent { self.forget_moved(id, true) } else { self.keep(id) }
        }
        if sent { count } else { 0 }
    }

    /// Sends the connections that were packed; they are unpacked in any case.
    fn ship(&self, tx: RawFd, ids: &[u64]) -> bool {
        let mut shipment = self.shipment.borrow_mut();
        let core = &mut *self.conns.core.borrow_mut();
        uninterrupted(|| {
            // SAFETY: all that was packed is still in the table, with its descriptors open.
            let sent = unsafe { shipment.send(tx) }.is_ok();
            shipment.clear();
            for id in ids.iter().filter(|_| sent) {
                // They are the receiver's: a rescue must not send them once more.
                core.table.record(*id).inspect(|record| record.leave_alone());
            }
            sent
        })
    }

    /// A connection has gone to another process. One of this pool counts it from when it arrives, and no other can say
    /// that it has: then it is not counted here any more.
    pub fn forget_moved(&self, id: u64, is_within_pool: bool) {
        self.conns.metrics.place.moved_out.add_shared(1);
        if let Some((conn, record)) = self.conns.core.borrow_mut().table.both(id) {
            // The socket lives on elsewhere, so that closing it here would leave it watched (epoll(7)).
            self.conns.poll.forget(&conn.socket);
            if is_within_pool {
                record.mark = 0; // it is the receiver's now
            }
        }
        self.conns.log(id, |log, record, now| log.moved(id, record, now));
        self.conns.remove(id);
    }
}
