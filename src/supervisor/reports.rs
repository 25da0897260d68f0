//! What workers say on their channels, by the role that they have when it is read.

use std::io;
use std::time::Duration;

use nix::unistd::Pid;

use super::policy::slots::Event;
use super::processes::{GRACE, Process, Role};
use super::{Supervisor, errand};
use crate::clock;
use crate::exit::Exit;
use crate::fleet::memory::scoreboard::START;
use crate::fleet::routes::Route;
use crate::fleet::sockets::control::Report;
use crate::time::Instant;

/// Reports that are read of a process before others get their turn.
pub(super) const AT_ONCE: usize = 256;

/// A crashed process has this long to hand over its connections and write a core dump.
const LAST_WORDS: Duration = Duration::from_secs(START.as_secs() + 30);

impl Supervisor {
    /// At most so many things that a process has to say. One that says what it never should is ended, and replaced like
    /// one that has died.
    pub(super) fn read_reports(&mut self, pid: Pid, most: usize) {
        let now = clock::now();
        for _ in 0..most {
            let Some(process) = self.processes.get_mut(pid) else { return };
            let Some(channel) = &process.channel else { return };
            match process.role {
                Role::Errand(_) => return errand::read(process),
                Role::Successor => return self.read_successor(pid),
                _ => {}
            }
            match channel.recv_report() {
                Ok(Some(_)) if !process.reports.admits(1, now) => {
                    return self.end_for(pid, "reports far too much");
                }
                Ok(Some(Report::Leaving)) if process.role == Role::Worker && !process.is_retiring => {
                    return self.end_for(pid, "reports that it leaves, without having been told to");
                }
                Ok(Some(report)) => match (process.role, process.slot) {
                    (role, Some(slot)) => self.on_report(pid, (role, slot), report),
                    (_, None) => self.on_auxiliary_report(pid, report),
                },
                // It exits, or has executed another program; then it is not what it was any more.
                Ok(None) => {
                    process.channel = None;
                    return process.hurry(clock::now() + GRACE, "exit after it closed its channel");
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.end_for(pid, &error.to_string()),
            }
        }
    }

    /// Ends a process that cannot be relied on.
    fn end_for(&mut self, pid: Pid, why: &str) {
        let Some(process) = self.processes.get_mut(pid) else { return };
        process.channel = None;
        log::error!("{} {why}; ending it", self.process_name(pid));
        self.processes.terminate(pid, clock::now());
    }

    fn on_auxiliary_report(&mut self, pid: Pid, report: Report) {
        match report {
            Report::Ready { .. } => self.auxiliaries.on_start(pid, Ok(()), &mut self.processes),
            Report::Failed(why) => self.auxiliaries.on_start(pid, Err(why), &mut self.processes),
            Report::Alive => {
                self.processes.get_mut(pid).into_iter().for_each(|process| process.answered += 1)
            }
            report => self.host.control.on_reply(pid.as_raw(), report),
        }
    }

    fn on_report(&mut self, pid: Pid, (role, slot): (Role, usize), report: Report) {
        let now = clock::now();
        match (report, role) {
            (Report::Ready { broken, loaded }, Role::Standby) => {
                self.on_standby_ready(pid, slot, (loaded, broken))
            }
            (Report::Ready { broken, loaded }, Role::Worker | Role::PerConnection(_)) => {
                log::debug!("{} is ready with {loaded} handlers", self.name(slot));
                self.on_ready(pid, slot, broken);
            }
            (Report::Crashed, _) => {
                let is_late = self.processes.get(pid).is_some_and(Process::is_late);
                self.processes.set_role(pid, Role::Crashed);
                if let Some(process) = self.processes.get_mut(pid) {
                    process.channel = None;
                    process.set_deadline(now + LAST_WORDS, "exit in time after its crash");
                }
                if self.slots.is_stopping() {
                    self.stop_process(pid, self.stop_command());
                }
                let (line, event) = self.on_crash(slot, pid, role);
                match role {
                    // The time to stop is over: nobody takes up what it had.
                    Role::Worker if is_late && self.slots.is_stopping() => {
                        self.slots.on(Event::Died(slot), now);
                    }
                    Role::Worker => self.slots.on(event, now),
                    // Its end may take as long as a core dump: another one may start in its place by then.
                    Role::Standby => self.standby_failed(slot, pid, &line),
                    Role::PerConnection(_) => self.on_per_connection_death(slot),
                    _ => {}
                }
            }
            (Report::Leaving, Role::Worker) => {
                self.processes.set_role(pid, Role::Draining);
                let deadline = self.drain_deadline(Some(self.place_of(slot).pool));
                if let Some(process) = self.processes.get_mut(pid) {
                    process.set_deadline(deadline, "exit in time after it was replaced");
                }
                self.count_in_place(slot, |counters| counters.replaced.add_shared(1));
                self.left(slot);
            }
            (Report::Topics, _) => self.generation.bus.set_used(),
            (Report::Faulty, Role::Worker) => self.replace_faulty(slot, now),
            // A reply to a request; else nothing that matters.
            (report, _) => self.host.control.on_reply(pid.as_raw(), report),
        }
    }

    fn on_ready(&mut self, pid: Pid, slot: usize, broken: u16) {
        let stopping = self.slots.is_stopping();
        if let Some(process) = self.processes.get_mut(pid).filter(|_| !stopping) {
            process.clear_deadline();
        }
        // A server that serves goes on with what it can serve.
        if broken > 0 && self.generation.config.strict_handlers && !self.slots.were_ready() {
            log::error!("{}: broken handlers: {broken} (strict_handlers)", self.name(slot));
            return self.stop(Exit::Config, true);
        }
        self.slots.on(Event::Ready(slot), clock::now());
        if self.rolling.policy.is_retiring(slot) {
            self.tell_to_leave(slot); // one before it had been told to
        }
    }

    /// Until when a process may live that is replaced while it has connections: of this pool, or of any.
    pub(super) fn drain_deadline(&self, pool: Option<u16>) -> Instant {
        let config = &self.generation.config;
        let is_ours =
            |route: &&Route| pool.is_none_or(|pool| config.pool_of(&route.resource) == usize::from(pool));
        let ours = self.generation.routes.handlers().iter().filter(is_ours);
        let drain = ours.map(|route| config.handler(&route.resource).drain.unwrap_or(Duration::MAX)).max();
        let end = self.end_of_stop() + drain.unwrap_or_default();
        if self.slots.is_stopping() { end.min(self.end_of_stop()) } else { end }
    }
}
