//! The processes of the fleet: they are forked, given orders, heard, and reaped. What that means is the plan's.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::edition::Step;
use super::policy::slots::{self as plan, Event};
use super::{Fleet, spawn};
use crate::fleet::control::{Channel, Command, Report};
use crate::fleet::inbox::Inbox;
use crate::fleet::scoreboard::{self, MAX_SLOTS, Place, Slot, State};

/// A crashed process has this long (ns) to hand over its connections and write a core dump.
const LAST_WORDS: plan::Time = 30_000_000_000;

/// The process in a slot.
pub(super) struct Worker {
    pub pid: Pid,
    /// None after the worker's end was closed.
    pub control: Option<Channel>,
}

impl Worker {
    /// One that was just forked, or has waited.
    pub fn new(pid: Pid, control: Channel) -> Self {
        Self { pid, control: Some(control) }
    }
}

/// A process that is on its way out, and counts no more.
pub(super) struct Replaced {
    pub pid: Pid,
    pub slot: usize,
    /// When it is killed.
    pub kill_at: plan::Time,
    /// None if it has crashed: it does not listen.
    pub control: Option<Channel>,
    /// Whether another process is to take up in its slot what it leaves.
    pub is_followed: bool,
}

impl Fleet {
    /// Which worker a slot is that of, if there is such a slot.
    pub(super) fn place(&self, slot: usize) -> Option<Place> {
        self.scoreboard.slot(slot).map(Slot::place)
    }

    /// The same of a slot that there is.
    pub(super) fn place_of(&self, slot: usize) -> Place {
        self.place(slot).unwrap_or_default()
    }

    /// What a worker is called in the log.
    pub(super) fn name(&self, slot: usize) -> String {
        let Place { pool, number } = self.place_of(slot);
        self.config.worker_name(pool, number)
    }

    /// Forks a worker into a slot, which then serves.
    pub(super) fn spawn(&mut self, slot: usize) -> Result<(), Event> {
        match spawn::spawn(self, slot, &self.edition(), false) {
            Ok((pid, control)) => {
                log::debug!("{}[{pid}] is starting", self.name(slot));
                self.adopt(Worker::new(pid, control), slot);
                Ok(())
            }
            Err(error) => {
                log::error!("{} can not be forked: {error}", self.name(slot));
                Err(Event::Died(slot))
            }
        }
    }

    /// The worker of a slot from now on.
    pub(super) fn adopt(&mut self, worker: Worker, slot: usize) {
        self.put(worker, slot);
        self.upkeep.begin_balance();
    }

    /// The process in a slot from now on.
    pub(super) fn put(&mut self, worker: Worker, slot: usize) {
        if self.workers.len() <= slot {
            self.workers.resize_with(slot + 1, || None);
        }
        self.workers[slot] = Some(worker);
    }

    /// A slot in which nobody is, for a new worker in this place; all others get to know of its inbox.
    pub(super) fn free_slot(&mut self, place: Place) -> io::Result<usize> {
        let is_taken = |slot: &usize| {
            self.taken.contains(slot)
                || self.workers.get(*slot).is_some_and(Option::is_some)
                || self.replaced.iter().any(|replaced| replaced.slot == *slot)
                || self.roll.slots().any(|standby| standby == *slot)
                || self.children.owns(*slot)
                || self.scoreboard.slot(*slot).is_some_and(|record| record.state() != State::Empty)
        };
        let slot = (0..MAX_SLOTS).find(|slot| !is_taken(slot)).ok_or(io::ErrorKind::OutOfMemory)?;
        if slot == self.inboxes.len() {
            self.new_slot()?;
        }
        self.vacant.remove(&slot);
        if !self.scoreboard.assign(slot, place) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(slot)
    }

    /// A slot that was never used; all others get to know of its inbox.
    pub(super) fn new_slot(&mut self) -> io::Result<usize> {
        let slot = self.inboxes.len();
        if slot >= MAX_SLOTS {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.inboxes.push(Inbox::new()?);
        let workers = self.workers.iter().flatten().filter_map(|worker| worker.control.as_ref());
        let replaced = self.replaced.iter().filter_map(|replaced| replaced.control.as_ref());
        let tx = self.inboxes.get(slot).map(Inbox::tx);
        for (channel, tx) in workers.chain(replaced).chain(self.roll.channels()).zip(tx.iter().cycle()) {
            // One that does not read any more is on its way out.
            let _ = channel.send_command_with(Command::Tx { slot: slot as u16 }, *tx);
        }
        Ok(slot)
    }

    /// Sends an order to the worker of a slot.
    pub(super) fn order(&self, slot: usize, command: Command) {
        self.order_with(slot, command, None);
    }

    /// The same with a descriptor.
    pub(super) fn order_with(&self, slot: usize, command: Command, fd: Option<BorrowedFd<'_>>) {
        let Some(Some(Worker { control: Some(control), .. })) = self.workers.get(slot) else { return };
        let sent = match fd {
            Some(fd) => control.send_command_with(command, fd),
            None => control.send_command(command),
        };
        if let Err(error) = sent {
            log::debug!("{}: {error}", self.name(slot)); // it is gone, or will be killed
        }
    }

    /// Kills the worker of a slot, which had its time.
    pub(super) fn kill(&self, slot: usize) {
        let Some(Some(worker)) = self.workers.get(slot) else { return };
        log::error!("{}[{}] did not come back in time and is killed", self.name(slot), worker.pid);
        // Not reaped yet, so the pid is still its own.
        let _ = kill(worker.pid, Signal::SIGKILL);
    }

    /// Until when whoever is told to stop now may live; ns.
    pub(super) fn end_of_stop(&self) -> plan::Time {
        scoreboard::now().saturating_add(self.config.stop_time).saturating_add(plan::GRACE)
    }

    /// Tells those that leave anyway to be quick: the server stops.
    pub(super) fn hurry_replaced(&mut self, command: Command) {
        let kill_at = self.end_of_stop();
        for replaced in &mut self.replaced {
            if let Some(control) = &replaced.control {
                let _ = control.send_command(command); // it is gone, or will be killed
                replaced.kill_at = replaced.kill_at.min(kill_at);
            }
        }
    }

    /// Kills replaced processes that do not come to their end.
    pub(super) fn kill_replaced(&mut self) {
        let now = scoreboard::now();
        let config = &self.config;
        for late in self.replaced.iter_mut().filter(|replaced| replaced.kill_at <= now) {
            let Place { pool, number } = self.scoreboard.slot(late.slot).map(Slot::place).unwrap_or_default();
            let name = config.worker_name(pool, number);
            log::error!("{name}[{}] was replaced, does not end and is killed", late.pid);
            // Not reaped yet, so the pid is still its own.
            let _ = kill(late.pid, Signal::SIGKILL);
            late.kill_at = plan::Time::MAX;
        }
    }

    /// Waits for processes that were replaced, so that none is left; not for longer than they have.
    pub(super) fn see_off(&mut self) {
        match self.predecessor {
            None => self.metrics.end(),
            Some(_) => self.metrics.hand_over(), // the sockets are the old server's still
        }
        let give_up = self.end_of_stop();
        self.hurry_replaced(Command::Stop);
        while !(self.replaced.is_empty() && self.roll.is_over()) && scoreboard::now() < give_up {
            self.wait(Some(give_up), &mut VecDeque::new());
        }
        for left in &self.replaced {
            // Not reaped yet, so the pid is still its own.
            let _ = kill(left.pid, Signal::SIGKILL);
        }
    }

    /// What the worker of a slot has to say, all of it.
    pub(super) fn read_reports(&mut self, slot: usize, events: &mut VecDeque<Event>) {
        loop {
            let Some(Some(worker)) = self.workers.get_mut(slot) else { return };
            let Some(control) = &worker.control else { return };
            let pid = worker.pid;
            match control.recv_report() {
                Ok(Some(Report::Ready { loaded, broken })) => {
                    log::debug!("{} is ready with {loaded} handlers", self.name(slot));
                    self.on_ready(slot, broken, events);
                }
                Ok(Some(Report::Crashed)) => {
                    let kill_at = scoreboard::now().saturating_add(LAST_WORDS);
                    self.replaced.push(Replaced { pid, slot, kill_at, control: None, is_followed: true });
                    self.workers[slot] = None;
                    self.on_crash(slot, pid);
                    events.push_back(Event::Crashed(slot));
                }
                Ok(Some(Report::Leaving)) => {
                    let control = worker.control.take();
                    self.count_in_place(slot, |counters| counters.replaced.add_shared(1));
                    let kill_at = self.patience_with(slot);
                    self.roll.has_left(slot);
                    self.replaced.push(Replaced { pid, slot, kill_at, control, is_followed: false });
                    self.workers[slot] = None;
                    events.push_back(Event::Left(slot));
                }
                Ok(Some(report @ (Report::Listed { .. } | Report::Closing { .. }))) => {
                    self.control.hear(worker.pid.as_raw(), report);
                }
                Ok(Some(Report::Taken | Report::Born { .. })) => {}
                Ok(None) => worker.control = None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    if error.kind() != io::ErrorKind::InvalidData {
                        worker.control = None;
                    }
                    log::error!("{}: {error}", self.name(slot));
                }
            }
        }
    }

    fn on_ready(&mut self, slot: usize, broken: u16, events: &mut VecDeque<Event>) {
        if broken > 0 && self.config.strict_handlers {
            log::error!("{}: {broken} handlers are broken", self.name(slot));
            events.push_back(Event::Broken);
        }
        events.push_back(Event::Ready(slot));
        self.order_to_leave(slot);
    }

    /// Until when a worker that hands its connections over may live; ns.
    fn patience_with(&self, slot: usize) -> plan::Time {
        let pool = self.place_of(slot).pool;
        let routes = self.routes.handlers().iter();
        let ours = routes.filter(|route| self.config.pool_of(&route.resource) == usize::from(pool));
        let drain =
            ours.map(|route| self.config.drain_time(&route.resource).unwrap_or(plan::Time::MAX)).max();
        self.end_of_stop().saturating_add(drain.unwrap_or(0))
    }

    /// What those that are replaced have to say: that they crash even so.
    pub(super) fn read_replaced(&mut self, events: &mut VecDeque<Event>) {
        for index in 0..self.replaced.len() {
            while let Some(replaced) = self.replaced.get_mut(index) {
                let said = replaced.control.as_ref().map(Channel::recv_report);
                match said {
                    Some(Ok(Some(Report::Crashed))) => {
                        let (slot, pid) = (replaced.slot, replaced.pid);
                        (replaced.control, replaced.is_followed) = (None, true);
                        replaced.kill_at = scoreboard::now().saturating_add(LAST_WORDS);
                        self.on_crash(slot, pid);
                        // What it saves lies in its inbox: somebody takes it up there and hands it over again.
                        self.roll.push(Step { start: None, retire: Some(slot) });
                        events.push_back(Event::Orphaned(slot));
                    }
                    Some(Ok(Some(report))) => self.control.hear(replaced.pid.as_raw(), report),
                    // Its end; it is reaped soon.
                    Some(Ok(None)) => replaced.control = None,
                    Some(Err(_)) | None => break,
                }
            }
        }
    }

    /// Collects all children that have ended.
    pub(super) fn reap(&mut self, events: &mut VecDeque<Event>) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else { return };
            self.release_gates(pid);
            self.roll.has_ended(pid);
            self.addresses.release(pid.as_raw());
            self.counters.release(pid.as_raw());
            if self.metrics.ended(pid, status) {
                continue;
            }
            self.scoreboard.slots().iter().for_each(|record| record.crash.end_sending(pid.as_raw()));
            let is_in = |worker: &Option<Worker>| worker.as_ref().is_some_and(|worker| worker.pid == pid);
            if let Some(slot) = self.workers.iter().position(is_in) {
                self.read_reports(slot, events); // what it said before it died: it may have been replaced by that
            }
            self.read_replaced(events);
            let cause = cause_of_death(status);
            if self.lose_standby(pid, &cause) || self.lose_successor(pid, &cause) {
                continue;
            }
            if let Some(index) = self.replaced.iter().position(|replaced| replaced.pid == pid) {
                let replaced = self.replaced.swap_remove(index);
                self.tell_end(&replaced, status);
                continue;
            }
            let Some(slot) = self.workers.iter().position(is_in) else { continue };
            self.workers[slot] = None;
            self.on_death(slot, pid, status);
            self.on_child_death(slot);
            self.empty(slot);
            events.push_back(Event::Died(slot));
        }
    }

    /// A process that was replaced has ended.
    fn tell_end(&mut self, replaced: &Replaced, status: WaitStatus) {
        let Replaced { pid, slot, .. } = *replaced;
        // Whoever crashed said so; it has been told by whom it was replaced.
        let has_left = matches!(status, WaitStatus::Exited(_, 0));
        match has_left {
            true => log::info!("{}[{pid}] has left, replaced", self.name(slot)),
            false => self.tell_rescue(replaced),
        }
        if self.children.owns(slot) {
            return self.empty(slot);
        }
        if !replaced.is_followed {
            self.leave_vacant(slot);
        }
    }

    /// Nobody is to be in this slot.
    pub(super) fn leave_vacant(&mut self, slot: usize) {
        self.empty(slot);
        self.vacant.insert(slot);
    }

    /// Somebody may have sent connections to a worker that was just leaving: they are taken up all the same.
    pub(super) fn look_into_vacant_inboxes(&mut self, events: &mut VecDeque<Event>) {
        let has_mail = |slot: &usize| self.inboxes.get(*slot).is_some_and(Inbox::has_mail);
        let Some(slot) = self.vacant.iter().copied().find(has_mail) else { return };
        log::debug!("{} has left, and something has arrived for it", self.name(slot));
        self.vacant.remove(&slot);
        self.roll.push(Step { start: None, retire: Some(slot) });
        events.push_back(Event::Orphaned(slot));
    }

    /// Nobody is in this slot.
    pub(super) fn empty(&self, slot: usize) {
        if let Some(record) = self.scoreboard.slot(slot) {
            record.end();
            self.scoreboard.changed();
        }
    }
}

/// How a process ended, for people.
fn cause_of_death(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("it ended with exit code {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("it was ended by {signal}"),
        other => format!("it is gone: {other:?}"),
    }
}
