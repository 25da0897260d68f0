//! Pools with a process for each connection. Such a pool has one worker, its parent (`worker::parent`), which has the
//! handlers loaded and serves nobody; here it is told to fork children, so that always some wait for a connection.
//! Children are workers in slots that are theirs alone. None is replaced as workers are: there are others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::Fleet;
use super::policy::slots as plan;
use super::workers::{Replaced, Worker};
use crate::config;
use crate::fleet::control::{Channel, Command, Report};
use crate::fleet::inbox::Inbox;
use crate::fleet::scoreboard::{self, Place, Slot, State};

/// A child that has not told its pid after this (ns) is given up.
const BIRTH: plan::Time = 10_000_000_000;
/// The wait (ns) after a child could not be forked.
const AGAIN: plan::Time = 1_000_000_000;

/// The children of all pools.
#[derive(Default)]
pub(super) struct Children {
    /// Slots that are for children only, with the pids of the parents of those that are in them.
    slots: BTreeMap<usize, Option<Pid>>,
    /// Ordered, and not heard of yet.
    unborn: Vec<Unborn>,
    /// By pool: no child is forked before this.
    not_before: BTreeMap<u16, plan::Time>,
    /// By slot: when connections that nobody takes out of its inbox are given up.
    abandoned: BTreeMap<usize, plan::Time>,
    /// Whether orphans come to this process.
    is_reaper: bool,
    is_stopping: bool,
}

struct Unborn {
    slot: usize,
    control: Channel,
    give_up: plan::Time,
}

impl Children {
    /// Whether a slot is for children.
    pub fn owns(&self, slot: usize) -> bool {
        self.slots.contains_key(&slot)
    }

    /// When something is to be looked at, if at all.
    pub fn deadline(&self) -> Option<plan::Time> {
        let births = self.unborn.iter().map(|unborn| unborn.give_up);
        births.chain(self.not_before.values().copied()).chain(self.abandoned.values().copied()).min()
    }

    /// The channels of those that have not been heard of.
    pub fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.unborn.iter().map(|unborn| &unborn.control)
    }

    /// Forgets all; in a forked worker.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Fleet {
    /// Sees to it that there are as many children as there should be; once in a turn of the supervisor.
    pub(super) fn keep_children(&mut self) {
        if self.children.is_stopping {
            return;
        }
        self.hear_of_births();
        self.give_up_abandoned();
        let now = scoreboard::now();
        self.children.not_before.retain(|_, at| *at > now);
        for pool in 0..self.config.pools.len() as u16 {
            let settings = self.config.pools.get(usize::from(pool));
            let is_wanted = |pool: &&config::Pool| pool.workers > 0 && !self.has_successor();
            let wanted = settings.filter(is_wanted).and_then(|pool| pool.children);
            match (self.parent_of(pool), wanted) {
                (_, None) => self.dismiss_idle(pool, None),
                (None, Some(_)) => {}
                (Some((slot, parent)), Some(wanted)) => {
                    self.dismiss_idle(pool, Some(parent));
                    if !self.children.not_before.contains_key(&pool)
                        && let Err(error) = self.fork_children(pool, (slot, parent), wanted)
                    {
                        log::error!("{}: no child: {error}", self.name(slot));
                        self.children.not_before.insert(pool, now.saturating_add(AGAIN));
                    }
                }
            }
        }
    }

    /// A child of this slot has died: if it has not got as far as to wait for a connection, the next one takes its time.
    pub(super) fn on_child_death(&mut self, slot: usize) {
        let has_served = self.scoreboard.slot(slot).is_none_or(|record| record.state() != State::Starting);
        if self.children.owns(slot) && !has_served {
            let pool = self.place_of(slot).pool;
            self.children.not_before.insert(pool, scoreboard::now().saturating_add(AGAIN));
        }
    }

    /// Drops connections for which there is no process for as long as an opening handshake may take.
    fn give_up_abandoned(&mut self) {
        let now = scoreboard::now();
        for slot in self.children.slots.keys().copied() {
            let Some(inbox) = self.inboxes.get(slot).filter(|inbox| inbox.has_mail()) else {
                self.children.abandoned.remove(&slot);
                continue;
            };
            let patience = now.saturating_add(self.config.handshake_time);
            let give_up = self.children.abandoned.entry(slot).or_insert(patience);
            if *give_up > now {
                continue;
            }
            if self.scoreboard.slot(slot).is_some_and(|record| record.state() != State::Empty) {
                *give_up = now.saturating_add(AGAIN); // somebody may take them yet
                continue;
            }
            // Closed unread; what it is about is between workers.
            let mut nothing = [0; 1];
            while let Ok((_, fds)) = inbox.receive(&mut nothing) {
                log::error!("{}: {} connections were cut: no process for them", self.name(slot), fds.len());
            }
            self.children.abandoned.remove(&slot);
        }
    }

    /// The inboxes of slots in which nobody is, and somebody could be soon: what arrives there waits for a child.
    pub(super) fn inboxes_of_nobody(&self) -> impl Iterator<Item = &Inbox> {
        let is_free = |slot: &&usize| {
            let record = self.scoreboard.slot(**slot);
            let pool = record.map(|record| record.place().pool).unwrap_or_default();
            let can_fork = !self.children.is_stopping
                && !self.children.not_before.contains_key(&pool)
                && self.parent_of(pool).is_some();
            can_fork && record.is_some_and(|record| record.state() == State::Empty)
        };
        self.children.slots.keys().filter(is_free).filter_map(|slot| self.inboxes.get(*slot))
    }

    /// All children are on their way out: the server stops.
    pub(super) fn release_children(&mut self) {
        self.children.is_stopping = true;
        // Whoever is not known yet notices that its channel has ended.
        self.children.unborn.clear();
        let kill_at = self.end_of_stop();
        for slot in self.children.slots.keys().copied() {
            if let Some(Worker { pid, control, .. }) = self.workers.get_mut(slot).and_then(Option::take) {
                self.replaced.push(Replaced { pid, slot, kill_at, control, is_followed: false });
            }
        }
    }

    /// Slot and pid of the process that forks the children of a pool, if it can.
    fn parent_of(&self, pool: u16) -> Option<(usize, Pid)> {
        let workers = self.workers.iter().enumerate();
        let mut found = workers.filter_map(|(slot, worker)| Some((slot, worker.as_ref()?.pid)));
        found.find(|(slot, _)| {
            let record = self.scoreboard.slot(*slot);
            let is_parent = |record: &Slot| {
                record.place() == Place { pool, number: 0 } && record.state() == State::Running
            };
            !self.children.owns(*slot) && record.is_some_and(is_parent)
        })
    }

    /// The slots of a pool's children.
    fn child_slots(&self, pool: u16) -> Vec<usize> {
        let is_of_pool =
            |slot: &usize| self.scoreboard.slot(*slot).is_some_and(|slot| slot.place().pool == pool);
        self.children.slots.keys().copied().filter(is_of_pool).collect()
    }

    /// Tells those to leave that wait for a connection and have another parent than this.
    fn dismiss_idle(&self, pool: u16, parent: Option<Pid>) {
        for slot in self.child_slots(pool) {
            let others =
                self.children.slots.get(&slot).copied().flatten().filter(|known| Some(*known) != parent);
            let Some(record) = self.scoreboard.slot(slot).filter(|_| others.is_some()) else { continue };
            // Nobody sends it a connection after this.
            if record.state() == State::Running && record.claim() {
                self.order(slot, Command::Stop);
            }
        }
    }

    /// Forks as many children as are missing.
    fn fork_children(&mut self, pool: u16, parent: (usize, Pid), wanted: config::Children) -> io::Result<()> {
        let slots = self.child_slots(pool);
        let state = |slot: &usize| self.scoreboard.slot(*slot).map_or(State::Empty, Slot::state);
        let (free, taken): (Vec<usize>, Vec<usize>) =
            slots.into_iter().partition(|slot| state(slot) == State::Empty);
        let has_mail = |slot: &&usize| self.inboxes.get(**slot).is_some_and(Inbox::has_mail);
        let orphaned: Vec<usize> = free.iter().filter(has_mail).copied().collect();
        let is_idle = |slot: &&usize| {
            let record = self.scoreboard.slot(**slot);
            record.is_some_and(|slot| slot.connections.load(Ordering::Relaxed) == 0)
                && matches!(state(slot), State::Starting | State::Running)
        };
        let idle = taken.iter().filter(is_idle).count();
        let missing = missing(wanted, taken.len(), idle, orphaned.len());
        let others = free.iter().filter(|slot| !orphaned.contains(slot)).copied();
        let mut places: VecDeque<usize> = orphaned.iter().copied().chain(others).collect();
        for _ in 0..missing {
            let slot = match places.pop_front() {
                Some(slot) => slot,
                None => self.slot_for_child(pool)?,
            };
            self.fork_child(parent, slot)?;
        }
        Ok(())
    }

    /// A slot that is for children of this pool from now on.
    fn slot_for_child(&mut self, pool: u16) -> io::Result<usize> {
        let numbers: BTreeSet<u16> =
            self.child_slots(pool).into_iter().map(|slot| self.place_of(slot).number).collect();
        let number =
            (1..u16::MAX).find(|number| !numbers.contains(number)).ok_or(io::ErrorKind::OutOfMemory)?;
        // Those of pools that are no more.
        let is_left_over = |slot: &usize| {
            let pool = self.config.pools.get(usize::from(self.place_of(*slot).pool));
            pool.is_none_or(|pool| pool.workers == 0 || pool.children.is_none())
                && self.scoreboard.slot(*slot).is_some_and(|slot| slot.state() == State::Empty)
        };
        let place = Place { pool, number };
        let slot = match self.children.slots.keys().copied().find(is_left_over) {
            Some(slot) => slot,
            None => self.new_slot()?,
        };
        if !self.scoreboard.assign(slot, place) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.children.slots.insert(slot, None);
        Ok(slot)
    }

    fn fork_child(&mut self, (parent, pid): (usize, Pid), slot: usize) -> io::Result<()> {
        if !self.children.is_reaper {
            // The parent forks twice, so that its children become those of the supervisor.
            set_child_subreaper(true)?;
            self.children.is_reaper = true;
        }
        let (ours, theirs) = Channel::pair()?;
        let (Some(record), Some(inbox)) = (self.scoreboard.slot(slot), self.inboxes.get(slot)) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let Some(Some(Worker { control: Some(control), .. })) = self.workers.get(parent) else {
            return Ok(());
        };
        self.counters.enter_place(record.place()).ok_or(io::ErrorKind::OutOfMemory)?.starts.add(1);
        let child = slot as u16;
        record.begin(scoreboard::now());
        let ordered = [inbox.tx(), inbox.rx(), theirs.as_fd()]
            .into_iter()
            .zip(0..)
            .try_for_each(|(fd, part)| control.send_command_with(Command::Child { slot: child, part }, fd));
        if let Err(error) = ordered {
            record.end();
            return Err(error);
        }
        self.children.slots.insert(slot, Some(pid));
        let give_up = scoreboard::now().saturating_add(BIRTH);
        self.children.unborn.push(Unborn { slot, control: ours, give_up });
        Ok(())
    }

    /// Children that have told their pids are workers like others; those that will not are given up.
    fn hear_of_births(&mut self) {
        let now = scoreboard::now();
        for unborn in std::mem::take(&mut self.children.unborn) {
            let slot = unborn.slot;
            match unborn.control.recv_report() {
                // Only a child of this process may be sent signals and be waited for.
                Ok(Some(Report::Born { pid })) if is_ours(pid) && !self.is_known(Pid::from_raw(pid)) => {
                    let pid = Pid::from_raw(pid);
                    log::debug!("{}[{pid}] is forked", self.name(slot));
                    if let Some(record) = self.scoreboard.slot(slot) {
                        record.pid.store(pid.as_raw(), Ordering::Relaxed);
                        self.put(Worker::new(pid, unborn.control), slot);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && unborn.give_up > now => {
                    self.children.unborn.push(unborn);
                }
                other => {
                    log::error!("{} was not forked: {other:?}", self.name(slot));
                    self.empty(slot);
                    self.children.slots.insert(slot, None);
                    let pool = self.place_of(slot).pool;
                    self.children.not_before.insert(pool, now.saturating_add(AGAIN));
                }
            }
        }
    }

    fn is_known(&self, pid: Pid) -> bool {
        self.workers.iter().flatten().any(|worker| worker.pid == pid)
            || self.replaced.iter().any(|replaced| replaced.pid == pid)
    }
}

/// How many are to be forked when there are so many, of whom some are idle, and connections wait in so many inboxes.
fn missing(wanted: config::Children, all: usize, idle: usize, orphaned: usize) -> usize {
    let room = wanted.most.saturating_sub(all);
    wanted.spare.saturating_sub(idle).min(room).max(orphaned)
}

/// Whether it is a child of this process.
fn is_ours(pid: i32) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    pid > 0 && waitid(Id::Pid(Pid::from_raw(pid)), flags).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_wait_as_are_wanted_and_there_is_room_for() {
        let wanted = config::Children { spare: 3, most: 5 };
        for (all, idle, orphaned, expected) in [
            (0, 0, 0, 3),
            (3, 3, 0, 0),
            (3, 2, 0, 1),
            (3, 0, 0, 2), // two more are the bound
            (5, 0, 0, 0),
            (6, 0, 0, 0), // one is being replaced
            (5, 0, 1, 1), // a connection that was saved waits for a process, whatever the bound
            (3, 1, 1, 2),
        ] {
            assert_eq!(missing(wanted, all, idle, orphaned), expected, "{all} {idle} {orphaned}");
        }
    }

    #[test]
    fn only_own_children_are_taken_for_children() {
        for pid in [0, -1, 1, std::process::id() as i32, i32::MAX] {
            assert!(!is_ours(pid), "{pid}");
        }
    }
}
