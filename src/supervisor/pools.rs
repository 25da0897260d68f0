//! Pools with a process for each connection. Such a pool has one worker, its parent (`worker::process::zygote`), which
//! has the handlers loaded and serves nobody; here it is told to fork, so that always some processes wait for a
//! connection. Those are in slots that are theirs alone. How many there are is decided in `policy::pools`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::unistd::Pid;
use rustix::net::sockopt::set_socket_passcred;

use super::Supervisor;
use super::policy::backoff::Retry;
use super::policy::pools::{Count, RETRY};
use super::processes::{Process, Role, is_ours};

use crate::clock;
use crate::config::Processes;
use crate::fleet::memory::scoreboard::{Place, Slot, State};
use crate::fleet::sockets::control::{Channel, Command};
use crate::fleet::sockets::datagram;
use crate::time::Instant;

/// A process that has not told its pid after this is given up.
const FORK_TIMEOUT: Duration = Duration::from_secs(10);

/// The processes of all such pools, as far as they are not in the table.
#[derive(Default)]
pub(super) struct Pools {
    /// Slots that are for such processes only.
    slots: BTreeSet<usize>,
    /// Asked for, and not heard of yet: they have no pid.
    pending: Vec<Pending>,
    /// By pool.
    retries: BTreeMap<u16, Retry>,
}

struct Pending {
    slot: usize,
    generation: u32,
    parent: Pid,
    channel: Channel,
    give_up: Instant,
}

impl Pools {
    /// Whether a slot is for per-connection processes.
    pub fn owns(&self, slot: usize) -> bool {
        self.slots.contains(&slot)
    }

    /// When [`Supervisor::ask_for_processes`] has something to do.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let births = self.pending.iter().map(|pending| pending.give_up);
        let retries = self.retries.values().map(Retry::not_before).filter(|at| *at > now);
        births.chain(retries).min()
    }

    fn failed(&mut self, pool: u16, now: Instant) {
        self.retries.entry(pool).or_default().failed(&RETRY, now);
    }

    /// The channels of processes that are not in the table yet.
    pub fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.pending.iter().map(|pending| &pending.channel)
    }
}

impl Supervisor {
    /// Keeps the configured number of processes waiting; once in a turn.
    pub(super) fn ask_for_processes(&mut self) {
        self.give_up_pending();
        if self.slots.is_stopping() {
            return;
        }
        let now = clock::now();
        for pool in 0..self.generation.config.pools.len() as u16 {
            let settings = self.generation.config.pools.get(usize::from(pool));
            let wanted = settings.filter(|pool| pool.workers > 0 && !self.upgrade.is_superseded());
            match (self.parent_of(pool), wanted.and_then(|pool| pool.children)) {
                (_, None) => self.dismiss_idle(pool, None),
                (None, Some(_)) => {}
                (Some((slot, parent)), Some(wanted)) => {
                    self.dismiss_idle(pool, Some(parent));
                    let may_fork =
                        self.pools.retries.get(&pool).is_none_or(|retry| retry.not_before() <= now);
                    // One that has as many commands as it can hold is asked for the rest later.
                    if may_fork
                        && let Err(error) = self.ask_parent(pool, parent, wanted)
                        && error.kind() != io::ErrorKind::WouldBlock
                    {
                        log::error!("{}[{parent}]: cannot fork: {error}", self.name(slot));
                        self.pools.failed(pool, now);
                    }
                }
            }
        }
    }

    /// A process of such a pool has died: if it has not got as far as to wait for a connection, or has left its inbox
    /// unread, the next one takes its time. To be called before its record is cleared.
    pub(super) fn on_per_connection_death(&mut self, slot: usize) {
        let is_starting = |record: Slot| record.state() == State::Starting;
        if self.shared.scoreboard.slot(slot).is_some_and(is_starting) || self.processes.has_mail(slot) {
            let pool = self.place_of(slot).pool;
            self.pools.failed(pool, clock::now());
        }
    }

    /// All per-connection processes are on their way out: the server stops.
    pub(super) fn stop_pools(&mut self) {
        let is_ours = |process: &Process| matches!(process.role, Role::PerConnection(_));
        let ours = self.processes.iter().filter(|(_, process)| is_ours(process));
        for pid in ours.map(|(pid, _)| pid).collect::<Vec<_>>() {
            self.stop_process(pid, self.stop_command());
        }
    }

    /// Slot and pid of the process that forks those of a pool, if it can.
    fn parent_of(&self, pool: u16) -> Option<(usize, Pid)> {
        self.processes.in_role(Role::Worker).find_map(|pid| {
            let slot = self.processes.get(pid).filter(|process| !process.is_retiring)?.slot?;
            let record = self.shared.scoreboard.slot(slot)?;
            let is_parent = record.place() == Place { pool, number: 0 } && record.state() == State::Running;
            is_parent.then_some((slot, pid))
        })
    }

    /// The slots of a pool's per-connection processes.
    fn slots_of(&self, pool: u16) -> Vec<usize> {
        self.pools.slots.iter().copied().filter(|slot| self.place_of(*slot).pool == pool).collect()
    }

    /// Tells those to leave that wait for a connection and have another parent than this.
    fn dismiss_idle(&mut self, pool: u16, parent: Option<Pid>) {
        let idle = self.processes.iter().filter_map(|(_, process)| {
            let is_others = matches!(process.role, Role::PerConnection(known) if Some(known) != parent);
            let slot = process.slot.filter(|slot| is_others && self.place_of(*slot).pool == pool)?;
            let record = self.shared.scoreboard.slot(slot)?;
            // Nobody sends it a connection after this.
            (record.state() == State::Running && record.claim()).then_some(slot)
        });
        for slot in idle.collect::<Vec<_>>() {
            self.stop_worker(slot, Command::Stop);
        }
    }

    /// Asks the parent for as many processes as are missing.
    fn ask_parent(&mut self, pool: u16, parent: Pid, wanted: Processes) -> io::Result<()> {
        let state =
            |slot: &usize| self.shared.scoreboard.slot(*slot).map_or(State::Empty, |slot| slot.state());
        let (free, taken): (Vec<usize>, Vec<usize>) =
            self.slots_of(pool).into_iter().partition(|slot| state(slot) == State::Empty);
        let (orphaned, others): (Vec<usize>, Vec<usize>) =
            free.into_iter().partition(|slot| self.processes.has_mail(*slot));
        let is_idle = |slot: &&usize| {
            let record = self.shared.scoreboard.slot(**slot);
            record.is_some_and(|slot| slot.is_idle())
                && matches!(state(slot), State::Starting | State::Running)
        };
        let idle = taken.iter().filter(is_idle).count();
        let missing = Count { all: taken.len(), idle, orphaned: orphaned.len() }.missing(wanted);
        let mut free: VecDeque<usize> = orphaned.into_iter().chain(others).collect();
        for _ in 0..missing {
            let slot = match free.pop_front() {
                Some(slot) => slot,
                None => self.slot_for(pool)?,
            };
            self.ask_for(parent, slot)?;
        }
        Ok(())
    }

    /// A slot that is for per-connection processes of this pool from now on.
    fn slot_for(&mut self, pool: u16) -> io::Result<usize> {
        let numbers: BTreeSet<u16> =
            self.slots_of(pool).into_iter().map(|slot| self.place_of(slot).number).collect();
        let number =
            (1..u16::MAX).find(|number| !numbers.contains(number)).ok_or(io::ErrorKind::OutOfMemory)?;
        // Those of pools that are no more.
        let is_left_over = |slot: &usize| {
            let pool = self.generation.config.pools.get(usize::from(self.place_of(*slot).pool));
            pool.is_none_or(|pool| pool.workers == 0 || pool.children.is_none())
                && self.shared.scoreboard.slot(*slot).is_some_and(|slot| slot.state() == State::Empty)
                && !self.processes.has_mail(*slot)
        };
        let left_over = self.pools.slots.iter().copied().find(is_left_over);
        let slot = left_over.unwrap_or(self.processes.slots());
        self.give_slot(slot, Place { pool, number })?;
        self.pools.slots.insert(slot);
        Ok(slot)
    }

    fn ask_for(&mut self, parent: Pid, slot: usize) -> io::Result<()> {
        let (ours, theirs) = Channel::pair()?;
        set_socket_passcred(&ours, true)?;
        let (Some(record), Some(inbox)) = (self.shared.scoreboard.slot(slot), self.processes.inbox(slot))
        else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let counters = self.shared.counters.enter_place(record.place());
        counters?.starts.add(1);
        record.begin(clock::now());
        let channel = self.processes.get(parent).and_then(|parent| parent.channel.as_ref());
        let fds = [inbox.tx.as_fd(), inbox.rx.as_fd(), theirs.as_fd()];
        let asked = channel
            .ok_or_else(|| io::ErrorKind::BrokenPipe.into())
            .and_then(|channel| channel.send_command_with(Command::Child { slot: slot as u16 }, &fds));
        if let Err(error) = asked {
            record.end();
            return Err(error);
        }
        let (generation, give_up) = (record.generation(), clock::now() + FORK_TIMEOUT);
        self.pools.pending.push(Pending { slot, generation, parent, channel: ours, give_up });
        Ok(())
    }

    /// Processes that have told their pids go into the table.
    pub(super) fn read_forked(&mut self) {
        for pending in std::mem::take(&mut self.pools.pending) {
            let Pending { slot, generation, parent, .. } = pending;
            // It says that it is there; who it is the kernel says: a handler's code runs in its parent.
            let told = datagram::receive_all(pending.channel.as_fd(), &mut [0; 64], 0);
            match told.map(|told| (told.size, told.sender.map(Pid::from_raw))) {
                // Only a child of this process may be sent signals and be waited for.
                Ok((1.., Some(pid))) if is_ours(pid.as_raw()) && self.processes.get(pid).is_none() => {
                    log::debug!("{}[{pid}] is forked", self.name(slot));
                    let role = Role::PerConnection(parent);
                    let mut process = Process::new(role, Some(slot), generation, Some(pending.channel));
                    process.is_walled = self.processes.get(parent).is_none_or(|parent| parent.is_walled);
                    self.enter(pid, process);
                    if self.slots.is_stopping() {
                        self.stop_worker(slot, self.stop_command());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.pools.pending.push(pending),
                // Its parent leaves, or is gone, which has been said: the next one is asked.
                Ok((0, _)) if self.slots.is_stopping() || !self.is_parent(parent, slot) => self.give_up(slot),
                other => {
                    let why = match other {
                        Ok((1.., _)) => "another process has answered".to_owned(),
                        Ok((0, _)) => "its parent closed the channel".to_owned(),
                        Err(error) => error.to_string(),
                    };
                    log::error!("{}: cannot fork: {why}", self.name(slot));
                    self.fork_failed(slot);
                }
            }
        }
    }

    fn give_up_pending(&mut self) {
        let now = clock::now();
        let late: Vec<_> = self.pools.pending.extract_if(.., |pending| pending.give_up <= now).collect();
        for Pending { slot, parent, .. } in late {
            log::error!("{}: cannot fork: not done within {FORK_TIMEOUT:?}", self.name(slot));
            // It hangs, and would not fork the next one, either.
            let parent = self.processes.get_mut(parent);
            parent.into_iter().for_each(|parent| parent.hurry(now, "fork in time"));
            self.fork_failed(slot);
        }
    }

    fn is_parent(&self, pid: Pid, slot: usize) -> bool {
        self.parent_of(self.place_of(slot).pool).is_some_and(|(_, parent)| parent == pid)
    }

    /// No process comes into this slot.
    fn give_up(&self, slot: usize) {
        if let Some(record) = self.shared.scoreboard.slot(slot) {
            record.end();
        }
    }

    fn fork_failed(&mut self, slot: usize) {
        self.give_up(slot);
        let pool = self.place_of(slot).pool;
        self.pools.failed(pool, clock::now());
    }
}
