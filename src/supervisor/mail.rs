//! Connections in the inbox of a slot whose worker does not read it: it crashed and its replacement does not start, or it
//! has just left. Another worker is given the receiving end and takes them up.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::unistd::Pid;

use super::Supervisor;
use super::policy::rolling_restart::{self, Step};
use super::policy::slots::Event;
use super::processes::Process;
use super::role::Role;
use crate::clock;
use crate::fleet::control::Command;
use crate::fleet::inbox::Receiver;
use crate::fleet::scoreboard::State;
use crate::time::Instant;

/// The slot's own worker has this long to start.
const PATIENCE: Duration = Duration::from_millis(500);
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
    pub(super) fn unread_inboxes(&self) -> impl Iterator<Item = &Receiver> {
        let unread =
            self.unread_slots().into_iter().filter(|slot| !self.maintenance.mail.0.contains_key(slot));
        unread.filter_map(|slot| self.processes.inbox(slot)).map(|inbox| inbox.rx())
    }

    fn unread_slots(&self) -> BTreeSet<usize> {
        let read = self.processes.iter().filter(|(pid, process)| self.reads_inbox(*pid, process));
        let read: BTreeSet<usize> = read.filter_map(|(_, process)| process.slot).collect();
        let is_unread = |slot: &usize| !read.contains(slot) && !self.pools.owns(*slot);
        (0..self.processes.slots()).filter(is_unread).collect()
    }

    fn reads_inbox(&self, pid: Pid, process: &Process) -> bool {
        match (process.role, process.slot.and_then(|slot| self.shared.scoreboard.slot(slot))) {
            (Role::Worker, Some(record)) => {
                process.slot.and_then(|slot| self.processes.holder(slot)) == Some(pid)
                    && matches!(record.state(), State::Running | State::Stopping)
            }
            (role, _) => role == Role::Draining,
        }
    }

    /// Asks workers to take up what nobody else does.
    pub(super) fn take_up_mail(&mut self) {
        let now = clock::now();
        let mut unread = self.unread_slots();
        unread.retain(|slot| self.host.leaving.is_none() && self.processes.has_mail(*slot));
        self.maintenance.mail.0.retain(|slot, _| unread.contains(slot));
        for slot in unread {
            let patience = if self.slots.is_taken(slot) { PATIENCE } else { Duration::ZERO };
            let (at, asked) = *self.maintenance.mail.0.entry(slot).or_insert((now + patience, 0));
            if at > now {
                continue;
            }
            self.maintenance.mail.0.insert(slot, (now + AGAIN, asked + 1));
            let others = self.takers(slot);
            let Some((taker, pid)) = asked.checked_rem(others.len()).and_then(|index| others.get(index))
            else {
                if !self.slots.is_taken(slot) && !self.slots.is_stopping() {
                    self.call_back(slot);
                }
                continue;
            };
            log::debug!("{} takes up connections of {}", self.name(*taker), self.name(slot));
            let rx = self.processes.inbox(slot).map(|inbox| inbox.rx().as_fd());
            let _ = self.processes.command(*pid, Command::TakeUp, rx); // the next one is asked
        }
    }

    /// All workers have left: one comes back for as long as it takes to hand over what is in the inbox.
    fn call_back(&mut self, slot: usize) {
        self.slots.on(Event::Wanted(slot), clock::now());
        let step = Step { start: None, retire: Some(slot) };
        self.rolling.policy.on(rolling_restart::Event::Step(step));
    }

    /// Workers that can serve what was sent to a slot, the best first: of its pool, else those that pass it on.
    fn takers(&self, slot: usize) -> Vec<(usize, Pid)> {
        let pool = self.place_of(slot).pool;
        let mut found = Vec::new();
        for (pid, process) in self.processes.iter().filter(|(pid, process)| self.reads_inbox(*pid, process)) {
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
