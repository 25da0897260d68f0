//! Connections in the inbox of a slot whose worker does not read it: it crashed and its replacement does not start, or
//! it has just left. Another worker is given the receiving end and takes them up. Those for which a per-connection
//! process is to be forked are closed if there is none in the time that an opening handshake may take.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::unistd::Pid;

use super::Supervisor;
use super::policy::rolling_restart::{self, Step};
use super::policy::slots::Event;
use super::processes::{Process, Role};
use crate::clock;
use crate::fleet::memory::scoreboard::State;
use crate::fleet::sockets::control::Command;
use crate::fleet::sockets::datagram::{self, MAX_FDS};
use crate::fleet::sockets::inbox;
use crate::time::Instant;

/// The slot's own worker has this long to start.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Datagrams that are taken out of an inbox before other work is done.
const AT_ONCE: usize = 64;
/// After this another worker is asked, if there is still something.
const AGAIN: Duration = Duration::from_millis(100);

/// By slot: when a worker is asked next, and how many were.
#[derive(Default)]
pub(super) struct Mail(BTreeMap<usize, (Instant, usize)>);

impl Mail {
    /// When [`Supervisor::take_up_mail`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.values().map(|(at, _)| *at).min()
    }
}

impl Supervisor {
    /// Inboxes to wait for: of slots whose worker does not read, without those that are known to have something.
    pub(super) fn unread_inboxes(&self) -> impl Iterator<Item = &OwnedFd> {
        let is_watched = move |slot: &usize| {
            !self.maintenance.mail.0.contains_key(slot) && (!self.pools.owns(*slot) || self.is_empty(*slot))
        };
        let unread = self.unread_slots().into_iter().filter(is_watched);
        unread.filter_map(|slot| self.processes.inbox(slot)).map(|inbox| &inbox.rx)
    }

    /// None once all workers have left: nobody takes up anything any more.
    fn unread_slots(&self) -> BTreeSet<usize> {
        if self.slots.exit().is_some() {
            return BTreeSet::new();
        }
        let read = self.processes.iter().filter(|(_, process)| self.reads_inbox(process));
        let read: BTreeSet<usize> = read.filter_map(|(_, process)| process.slot).collect();
        (0..self.processes.slots()).filter(|slot| !read.contains(slot)).collect()
    }

    fn reads_inbox(&self, process: &Process) -> bool {
        match (process.role, process.slot.and_then(|slot| self.shared.scoreboard.slot(slot))) {
            (Role::Worker, Some(record)) => matches!(record.state(), State::Running | State::Stopping),
            (role, _) => role == Role::Draining,
        }
    }

    /// Asks workers to take up what nobody else does.
    pub(super) fn take_up_mail(&mut self) {
        let now = clock::now();
        let handshake = self.generation.config.handshake_timeout;
        let mut unread = self.unread_slots();
        unread.retain(|slot| self.processes.has_mail(*slot));
        self.maintenance.mail.0.retain(|slot, _| unread.contains(slot));
        for slot in unread {
            // Whoever comes into the slot next would be sent nothing.
            if self.is_shut_down(slot) {
                match self.renew_inbox(slot) {
                    Ok(()) => continue,
                    Err(error) => log::error!("{}: cannot make another inbox: {error}", self.name(slot)),
                }
            }
            let timeout = match self.slots.is_taken(slot) {
                _ if self.pools.owns(slot) => handshake,
                true => TIMEOUT,
                false => Duration::ZERO,
            };
            let (at, asked) = *self.maintenance.mail.0.entry(slot).or_insert((now + timeout, 0));
            if at > now {
                continue;
            }
            self.maintenance.mail.0.insert(slot, (now + AGAIN, asked + 1));
            if self.pools.owns(slot) {
                self.close_mail(slot);
                continue;
            }
            let others = self.takers(slot);
            let Some((taker, pid)) = asked.checked_rem(others.len()).and_then(|index| others.get(index))
            else {
                if !self.slots.is_taken(slot) && !self.slots.is_stopping() {
                    self.restart_to_drain(slot);
                }
                continue;
            };
            log::debug!("{} takes up connections of {}", self.name(*taker), self.name(slot));
            let rx = self.processes.inbox(slot).map(|inbox| inbox.rx.as_fd());
            let _ = self.processes.command(*pid, Command::TakeUp, rx); // the next one is asked
        }
    }

    /// Whether no process is in a slot, nor will soon be.
    fn is_empty(&self, slot: usize) -> bool {
        self.shared.scoreboard.slot(slot).is_some_and(|record| record.state() == State::Empty)
    }

    /// Whether a handler has shut down the inbox of a slot in which no process is any more.
    fn is_shut_down(&self, slot: usize) -> bool {
        let inbox = self.processes.inbox(slot).filter(|_| self.is_empty(slot));
        let next = inbox.map(|inbox| inbox::next_fds(inbox.rx.as_fd()));
        matches!(next, Some(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof)
    }

    /// Closes connections for which there is no process, unless one has come that may take them yet.
    fn close_mail(&self, slot: usize) {
        let Some(inbox) = self.processes.inbox(slot).filter(|_| self.is_empty(slot)) else { return };
        // Unread: their content is between workers. Who fills it meanwhile does not keep the supervisor busy.
        let receive = |_| datagram::receive_all(inbox.rx.as_fd(), &mut [0; 1], MAX_FDS).ok();
        let received = (0..AT_ONCE).map_while(receive);
        let closed: usize = received.map(|datagram| datagram.fds.len()).sum();
        log::error!("{}: no process for {closed} connections; closed", self.name(slot));
    }

    /// All workers have left: one comes back for as long as it takes to hand over what is in the inbox.
    fn restart_to_drain(&mut self, slot: usize) {
        self.slots.on(Event::Wanted(slot), clock::now());
        let step = Step { start: None, retire: Some(slot) };
        self.rolling.policy.on(rolling_restart::Event::Step(step));
    }

    /// Workers that can serve what was sent to a slot, the best first: of its pool, else those that pass it on.
    fn takers(&self, slot: usize) -> Vec<(usize, Pid)> {
        let pool = self.place_of(slot).pool;
        let mut found = Vec::new();
        for (pid, process) in self.processes.iter().filter(|(_, process)| self.reads_inbox(process)) {
            let Some(other) = process.slot.filter(|other| *other != slot) else { continue };
            let Some(record) = self.shared.scoreboard.slot(other) else { continue };
            let place = record.place();
            if (place.pool == pool || place.pool == 0)
                && !self.generation.config.is_parent(place.pool, place.number)
            {
                let load = record.connections.load(Ordering::Relaxed);
                found.push(((place.pool != pool, !record.takes_connections(), load), (other, pid)));
            }
        }
        found.sort_by_key(|(rank, _)| *rank);
        found.into_iter().map(|(_, taker)| taker).collect()
    }
}
