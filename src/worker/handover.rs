//! Letting go of connections while all is well: some of them to another slot
//! (balance), or all of them to the process that replaces this one.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use ::ws_handler::raw::*;

use super::Worker;
use super::conn::Phase;
use super::greet::unavailable;
use super::moving::Purpose;
use super::record::standing;
use crate::ffi::host::Callback;
use crate::fleet::control::Report;
use crate::fleet::scoreboard::State;

/// How often (ns) connections that could not move yet are looked at again.
const AGAIN: u64 = 20_000_000;

impl Worker {
    /// Moves up to `count` connections to another slot.
    pub fn shed(&self, to: usize, count: usize) {
        if self.leaving.get().is_some() || self.stop_at.get().is_some() {
            return;
        }
        let ids = self.core.borrow().table.ids();
        let moved = self.send_away(&ids, to, count);
        log::debug!("{moved} connections moved to worker {to}");
    }

    /// Hands a request over to the least loaded worker of the pool that serves it, with what was read of it.
    pub fn pass_on(&self, id: u64, handler: u16, read: &[u8]) {
        let pool = self.pool_of(handler);
        // What lies in the inbox of a worker that is starting is taken up as soon as it is ready.
        let eagerness = |slot: usize| {
            let slot = self.scoreboard.slot(slot)?;
            let load = slot.connections.load(Ordering::Relaxed);
            match slot.state() {
                State::Running => Some((0, load)),
                State::Starting => Some((1, load)),
                State::Stopping | State::Empty => None,
            }
        };
        let slots = (0..self.config.slots()).filter(|slot| self.config.pool_of_slot(*slot).0 == pool);
        let to = slots.filter_map(|slot| Some((eagerness(slot)?, slot))).min().map(|(_, slot)| slot);
        let Some(inlet) = to.and_then(|to| self.inboxes.get(to)).map(|inbox| inbox.inlet().as_raw_fd())
        else {
            return self.reply(id, unavailable("no worker of the pool that serves this resource is running"));
        };
        let packed = {
            let core = &mut *self.core.borrow_mut();
            core.table.record(id).is_some_and(|record| {
                // SAFETY: the record stays in place until it is sent below, and `read` is borrowed until then.
                unsafe { self.shipment.borrow_mut().add_greeting(record, record.fd, read) }
            })
        };
        if !packed || self.dispatch(inlet, &mut vec![id]) == 0 {
            self.reply(id, unavailable("the pool that serves this resource does not keep up"));
        }
    }

    /// Begins to hand all connections over to the process that will replace this one, and to leave.
    pub fn hand_over(&self) {
        if self.leaving.get().is_some() || self.stop_at.get().is_some() {
            return;
        }
        self.gate.close();
        // From here on the slot's place in the scoreboard, and what comes into its inbox, are the other process's.
        self.detached.set(true);
        if let Some(inbox) = self.inboxes.get(self.index) {
            self.poll.forget(inbox.outlet());
        }
        if let Err(error) = self.control.send_report(Report::Leaving) {
            log::error!("to the supervisor: {error}");
        }
        self.leaving.set(Some(self.now.get().saturating_add(self.config.stop_time)));
        self.hand_over_more();
        // Those that are left can not move, or not yet.
        let ids = self.core.borrow().table.ids();
        ids.into_iter().for_each(|id| self.drain(id));
    }

    /// Tells a handler that the server wants a connection to end.
    fn drain(&self, id: u64) {
        let left = self.with_open(id, |handler, open| {
            (open.closing.0 == 0 && !open.over).then(|| (handler, open.mailbox.clone()))
        });
        match left.flatten() {
            Some((_, Some(mailbox))) => mailbox.drain(),
            Some((handler, None)) => {
                let Some(service) = self.service(handler) else { return };
                if service.handler.has(Callback::Drain) {
                    self.attributed(handler, Callback::Drain, id, || service.handler.drain(id));
                }
            }
            None => {}
        }
    }

    /// When to look again, while connections are being handed over.
    pub fn next_hand_over(&self) -> Option<u64> {
        self.leaving.get().map(|deadline| deadline.min(self.now.get().saturating_add(AGAIN)))
    }

    /// Hands over what has become movable; closes what has not with 1012 when the time is over.
    pub fn hand_over_more(&self) {
        let Some(deadline) = self.leaving.get() else { return };
        let ids = self.core.borrow().table.ids();
        self.send_away(&ids, self.index, usize::MAX);
        if self.core.borrow().table.len() == 0 || self.now.get() >= deadline {
            self.leaving.set(None);
            self.stop(1012);
        }
    }

    /// Sends those that are movable to a slot's inbox; returns how many went.
    fn send_away(&self, ids: &[u64], to: usize, count: usize) -> usize {
        let Some(inlet) = self.inboxes.get(to).map(|inbox| inbox.inlet().as_raw_fd()) else { return 0 };
        let mut moved = 0;
        let mut batch = Vec::new();
        for &id in ids {
            if moved + batch.len() == count {
                break;
            }
            let Some(purpose) = self.purpose_of(id) else { continue };
            if purpose == Purpose::Resume && !self.let_go(id) {
                continue;
            }
            if !self.pack(id, purpose) {
                moved += self.dispatch(inlet, &mut batch);
                if !self.pack(id, purpose) {
                    self.keep_after_all(id);
                    continue;
                }
            }
            batch.push(id);
        }
        moved + self.dispatch(inlet, &mut batch)
    }

    /// How a connection can move; `None`: not now.
    fn purpose_of(&self, id: u64) -> Option<Purpose> {
        let stands = self.core.borrow_mut().table.record(id)?.standing();
        if stands & standing::FRESH != 0 {
            return Some(Purpose::Greet);
        }
        let movable = stands & standing::MOVABLE != 0 && self.mailroom.buffered(id) == 0;
        movable.then_some(Purpose::Resume)
    }

    /// Tells the handler that the connection goes on elsewhere; false if that made it immovable.
    fn let_go(&self, id: u64) -> bool {
        let Some(handler) = self.with_open(id, |handler, open| (!open.over).then_some(handler)).flatten()
        else {
            return false;
        };
        self.mailroom.set_gone(id);
        if let Some(service) = self.service(handler).filter(|service| service.handler.has(Callback::Close)) {
            self.with_open(id, |_, open| open.over = true);
            self.attributed(handler, Callback::Close, id, || service.handler.close(id, WS_BY_MOVE, 0));
            self.with_open(id, |_, open| open.over = false);
        }
        true
    }

    /// The connection could not be sent: it goes on here, as if it had come from elsewhere.
    fn keep_after_all(&self, id: u64) {
        let handler = {
            let core = &mut *self.core.borrow_mut();
            if let Some(record) = core.table.record(id) {
                record.set_resumed();
                record.seal();
            }
            match core.table.get(id) {
                Some(conn) if matches!(conn.phase, Phase::Open(_)) => conn.handler,
                _ => return,
            }
        };
        self.mailroom.set_open(id);
        self.with_open(id, |_, open| open.user = std::ptr::null_mut());
        self.say_open(id, handler);
    }

    fn pack(&self, id: u64, purpose: Purpose) -> bool {
        let core = &mut *self.core.borrow_mut();
        let Some(record) = core.table.record(id) else { return false };
        // SAFETY: records stay in place; this one is cleared only after the shipment was sent or emptied.
        unsafe { self.shipment.borrow_mut().add(record, record.fd, purpose) }
    }

    /// Sends the batch and forgets its connections, or keeps them if there is no room at the other end.
    fn dispatch(&self, inlet: i32, batch: &mut Vec<u64>) -> usize {
        let sent = {
            let mut shipment = self.shipment.borrow_mut();
            // SAFETY: all in the batch are still in the table, with their descriptors open.
            let sent = unsafe { shipment.send(inlet) };
            shipment.clear();
            sent
        };
        let count = batch.len();
        for id in batch.drain(..) {
            match &sent {
                Ok(()) => {
                    // The socket lives on elsewhere, so that closing it here would leave it watched (epoll(7)).
                    if let Some(conn) = self.core.borrow_mut().table.get(id) {
                        self.poll.forget(&conn.socket);
                    }
                    self.remove(id);
                }
                Err(_) => self.keep_after_all(id),
            }
        }
        if sent.is_ok() { count } else { 0 }
    }
}
