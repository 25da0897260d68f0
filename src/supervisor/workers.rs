//! Workers: started, told to stop, reaped. Which ones and when is decided in `policy::slots`.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::death::Cause;
use super::policy::slots::Event;
use super::policy::upgrade;
use super::processes::{EXIT, Errand, GRACE, Process, Role};
use super::{Flow, Supervisor, logs, spawn};
use crate::clock;
use crate::fleet::memory::counters::{HandlerEntry, OTHER, PlaceCounters};
use crate::fleet::memory::scoreboard::{MAX_SLOTS, Place};
use crate::fleet::sockets::control::Command;
use crate::fleet::sockets::handover::Received;
use crate::time::Instant;

impl Supervisor {
    pub(super) fn place_of(&self, slot: usize) -> Place {
        self.shared.scoreboard.place(slot).unwrap_or_default()
    }

    /// What a worker is called in the log.
    pub(super) fn name(&self, slot: usize) -> String {
        let Place { pool, number } = self.place_of(slot);
        // A pool that a reload adds is in force once all new workers are ready.
        let is_new = usize::from(pool) >= self.generation.config.pools.len();
        let generation = self.rolling.of_standbys().filter(|_| is_new).unwrap_or(&self.generation);
        generation.config.worker_name(pool, number)
    }

    pub(super) fn start_worker(&mut self, slot: usize) -> Flow {
        let generation = self.generation.clone();
        match spawn::worker(self, Role::Worker, slot, &generation)? {
            Ok(pid) => {
                log::debug!("{}[{pid}] is starting", self.name(slot));
                self.maintenance.begin_rebalance(clock::now());
            }
            Err(error) => {
                log::error!("{}: cannot fork: {error}", self.name(slot));
                self.slots.on(Event::Died(slot), clock::now());
            }
        }
        ControlFlow::Continue(())
    }

    /// A slot for a new worker in this place, in which no process is.
    pub(super) fn free_slot(&mut self, place: Place) -> io::Result<usize> {
        let is_free = |slot: &usize| {
            // What waits in an inbox is for a worker of the same pool.
            let is_same_pool = self.place_of(*slot).pool == place.pool;
            !self.slots.is_taken(*slot)
                && !self.processes.is_in_use(*slot)
                && !self.pools.owns(*slot)
                && (is_same_pool || !self.processes.has_mail(*slot))
        };
        let slot = (0..MAX_SLOTS).find(is_free).ok_or(io::ErrorKind::OutOfMemory)?;
        self.give_slot(slot, place)?;
        Ok(slot)
    }

    /// Gives a slot without a process, or the next one that was never used, to a place.
    pub(super) fn give_slot(&mut self, slot: usize, place: Place) -> io::Result<()> {
        let is_new = slot == self.processes.slots();
        let is_other_pool = self.place_of(slot).pool != place.pool;
        self.shared.assign(slot, place)?;
        if is_new {
            self.processes.add_slot()?;
        } else if is_other_pool {
            self.processes.renew_inbox(slot)?;
        }
        if is_new || is_other_pool {
            self.tell_of_inbox(slot, place);
        }
        Ok(())
    }

    /// Another inbox for a slot.
    pub(super) fn renew_inbox(&mut self, slot: usize) -> io::Result<()> {
        self.processes.renew_inbox(slot)?;
        self.tell_of_inbox(slot, self.place_of(slot));
        Ok(())
    }

    /// Those that may send to a slot of this place get to know of its inbox.
    fn tell_of_inbox(&self, slot: usize, place: Place) {
        let tx = self.processes.inbox(slot).map(|inbox| inbox.tx.as_fd());
        for pid in self.processes.with_channel().into_iter().filter(|pid| self.reaches(*pid, place)) {
            // One that does not read any more is on its way out.
            let _ = self.processes.command(pid, Command::Tx { slot: slot as u16 }, tx);
        }
    }

    /// Whether a process may send connections to the worker of this place.
    fn reaches(&self, pid: Pid, place: Place) -> bool {
        let slot = self.processes.get(pid).and_then(|process| process.slot);
        let pool = slot.map(|slot| usize::from(self.place_of(slot).pool));
        pool.is_some_and(|pool| self.generation.config.reaches(pool, place.pool.into()))
    }

    /// Sends a command to the worker of a slot.
    pub(super) fn command(&self, slot: usize, command: Command, fd: Option<BorrowedFd<'_>>) {
        let Some(pid) = self.processes.holder(slot) else { return };
        if let Err(error) = self.processes.command(pid, command, fd) {
            log::debug!("{}[{pid}]: {error}", self.name(slot)); // it is gone, or will be killed
        }
    }

    /// Tells the worker of a slot to stop or quit, in time.
    pub(super) fn stop_worker(&mut self, slot: usize, command: Command) {
        self.processes.holder(slot).into_iter().for_each(|pid| self.stop_process(pid, command));
    }

    /// Tells a process to stop or quit, in time.
    pub(super) fn stop_process(&mut self, pid: Pid, command: Command) {
        let _ = self.processes.command(pid, command, None); // it is gone, or will be killed
        let end = self.end_of_stop();
        self.processes.get_mut(pid).into_iter().for_each(|process| match command {
            Command::Quit => process.kill_at(clock::now() + GRACE),
            _ => process.hurry(end, EXIT),
        });
    }

    /// What processes are told when the server stops.
    pub(super) fn stop_command(&self) -> Command {
        if self.slots.stops_at_once() { Command::Quit } else { Command::Stop }
    }

    /// The server stops: those that leave anyway have to be quick.
    pub(super) fn hurry(&mut self) {
        let leaves = |role| matches!(role, Role::Draining | Role::Crashed | Role::Leaving(_));
        let leaving = self.processes.iter().filter(|(_, process)| leaves(process.role));
        for pid in leaving.map(|(pid, _)| pid).collect::<Vec<_>>() {
            self.stop_process(pid, self.stop_command());
        }
    }

    /// What the log calls a process, with its pid.
    pub(super) fn process_name(&self, pid: Pid) -> String {
        let name = match self.processes.get(pid).map(|process| (process.role, process.slot)) {
            Some((_, Some(slot))) => self.name(slot),
            Some((Role::Successor, _)) => "upgrade: the new executable".to_owned(),
            Some((Role::Auxiliary(kind) | Role::Leaving(kind), _)) => kind.name().to_owned(),
            Some((Role::Errand(errand), _)) => errand.name().to_owned(),
            _ => "process".to_owned(),
        };
        format!("{name}[{pid}]")
    }

    /// Signals processes whose deadline has passed.
    pub(super) fn signal_late(&mut self, now: Instant) {
        for (pid, to, signal) in self.processes.late(now) {
            log::error!("{} did not {to}; sending {signal}", self.process_name(pid));
            let Some(role) = self.processes.get(pid).map(|process| process.role) else { continue };
            let serves_clients = !matches!(role, Role::Errand(_) | Role::Successor);
            if signal == Signal::SIGKILL && serves_clients {
                self.slots.on(Event::Killed, now);
            }
            match role {
                Role::Successor => self.on_upgrade(upgrade::Event::Late(to)),
                // Perhaps not even SIGKILL ends it before the disk answers.
                Role::Errand(Errand::Reload) => {
                    let why = "a file system or name server does not answer";
                    self.errand_ended(Errand::Reload, pid, Err(why.to_owned()));
                }
                _ => {}
            }
        }
    }

    /// Collects all children that have ended. What a child said before its end is read first.
    pub(super) fn reap(&mut self) {
        while let Some(pid) = spawn::ended_child() {
            if self.processes.get(pid).is_none() {
                self.read_forked();
            }
            self.read_log(pid, logs::LAST);
            self.read_reports(pid, usize::MAX); // what its channel holds
            let Some(cause) = Cause::reap(pid) else { return log::error!("cannot reap process {pid}") };
            self.ended(pid, cause);
        }
    }

    fn ended(&mut self, pid: Pid, cause: Cause) {
        self.shared.breakers.release(pid.as_raw(), self.generation.routes.handlers().len());
        self.shared.addresses.release(pid.as_raw());
        let lost = self.shared.counters.release(pid.as_raw());
        self.shared.scoreboard.slots().for_each(|(_, record)| record.crash.end_sending(pid.as_raw()));
        // Or it is a child of a child, which came to this process when its parent ended.
        let Some(mut process) = self.processes.remove(pid) else { return };
        if let Some(log) = process.log.take() {
            // What it has forked writes there, too: one of its pool keeps it.
            let pool = |process: &Process| process.slot.map(|slot| self.place_of(slot).pool);
            let is_heir = |other: &Process| {
                let is_forked = matches!(other.role, Role::PerConnection(_));
                is_forked && other.log.is_none() && pool(other) == pool(&process)
            };
            let heir = self.processes.iter().find(|(_, other)| is_heir(other)).map(|(heir, _)| heir);
            if let Some(heir) = heir.and_then(|heir| self.processes.get_mut(heir)) {
                heir.log = Some(log);
            }
        }
        if lost > 0
            && let Some(slot) = process.slot
        {
            let name = self.name(slot);
            log::warn!("{name}[{pid}]: up to {lost} published messages had not reached the bus and are lost");
            self.count_in_place(slot, |counters| counters.topics_lost.add_shared(lost));
        }
        match (process.role, process.slot) {
            (Role::Auxiliary(_), _) => self.auxiliary_ended(pid, cause),
            (Role::Leaving(kind), _) => match cause {
                Cause::Ended(0) => log::debug!("{}[{pid}] exited", kind.name()),
                _ => log::warn!("{}[{pid}] {cause} while it was leaving", kind.name()),
            },
            (Role::Errand(errand), _) => {
                let result = match cause {
                    Cause::Ended(_) => Ok(process.result),
                    _ => Err(format!("the process that was {} {cause}", errand.name())),
                };
                self.errand_ended(errand, pid, result);
            }
            (Role::Successor, _) => self.successor_ended(cause.to_string()),
            (Role::Standby, Some(slot)) => {
                let death = self.on_death((slot, pid), &process, cause);
                let why = death.map_or_else(|| cause.to_string(), |(why, _)| why);
                self.standby_failed(slot, pid, &why);
            }
            (Role::Worker, Some(slot)) => {
                let death = self.on_death((slot, pid), &process, cause);
                // One that was to leave is not restarted, unless its inbox has something: the next one is to leave.
                let leaves = process.is_retiring || self.rolling.policy.is_retiring(slot);
                match leaves && !self.processes.has_mail(slot) {
                    true => self.left(slot),
                    false => self.slots.on(death.map_or(Event::Died(slot), |(_, event)| event), clock::now()),
                }
            }
            (Role::PerConnection(_), Some(slot)) => {
                self.on_death((slot, pid), &process, cause);
                self.on_per_connection_death(slot);
            }
            (Role::Draining, Some(slot)) => match cause {
                Cause::Ended(0) => log::info!("{}[{pid}] exited, replaced", self.name(slot)),
                _ => drop(self.on_death((slot, pid), &process, cause)),
            },
            (Role::Crashed, Some(slot)) => self.tell_rescue(slot, pid),
            (Role::Dismissed, _) | (_, None) => {}
        }
        // The record of its slot is that of nobody, unless another process has it already.
        let record = process.slot.and_then(|slot| self.shared.scoreboard.slot(slot));
        if let Some(record) = record.filter(|record| record.generation() == process.generation) {
            record.end();
            self.shared.scoreboard.changed();
        }
    }

    fn errand_ended(&mut self, errand: Errand, pid: Pid, result: Result<Received, String>) {
        match errand {
            Errand::Reload => self.reload_prepared(pid, result),
            Errand::OpenLogs => self.logs_were_opened(result.unwrap_or_default()),
            Errand::WatchCertificates => self.certificates_changed(result.unwrap_or_default()),
            Errand::Tidy(_) => {}
        }
        self.reopen_logs_if_wanted();
    }

    /// Counts something of the worker whose slot this is.
    pub(super) fn count_in_place(&self, slot: usize, count: impl FnOnce(&PlaceCounters)) {
        let record = self.shared.scoreboard.slot(slot);
        record.and_then(|record| self.shared.counters.place(record.place())).map(count);
    }

    pub(super) fn count_handler(&self, handler: u16, count: impl FnOnce(&HandlerEntry)) {
        let route = self.generation.routes.handlers().get(usize::from(handler));
        let entry = route.map_or(OTHER, |route| self.shared.counters.entry_of(&route.resource));
        self.shared.counters.entry(entry).map(count);
    }
}
