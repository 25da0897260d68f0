//! What is looked at regularly: loads are evened out after a worker has started, workers that are worn out are
//! replaced, and those that hang are ended. What is too much is decided in `policy`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::unistd::Pid;

use super::generation::FileStamp;
use super::mail::Mail;
use super::policy::backoff::{Retry, Rule};
use super::policy::liveness::{self, Limits};
use super::policy::rebalance;
use super::policy::rolling_restart::{Event, Step};
use super::processes::Role;
use super::{Supervisor, logs};
use crate::config::Wear;
use crate::fleet::memory::scoreboard::{Fault, Place, State};
use crate::fleet::process::proc;
use crate::fleet::sockets::control::Command;
use crate::time::Instant;

/// How often loads are compared after a worker has started, and for how long.
const REBALANCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// How workers are replaced that cannot take connections, or are worn out while new ones fail. A handler may use up
/// descriptors wherever it runs: replacing its worker again and again helps nobody.
const FAULTS: Rule = Rule {
    free: 2,
    first: Duration::from_secs(5),
    longest: Duration::from_secs(300),
    forgiven: Duration::from_secs(60),
};

/// When what is looked at.
#[derive(Default)]
pub(super) struct Maintenance {
    /// Until when loads are compared, and when they are compared next.
    rebalance_until: Instant,
    rebalance_at: Instant,
    /// When all else is looked at next.
    tick_at: Instant,
    /// When a worker may be replaced because of a fault or wear.
    faults: Retry,
    /// Listening sockets that were shut down, and cannot listen again.
    pub deaf: String,
    pub logs: logs::Files,
    pub mail: Mail,
    /// Files of certificates that were tried out last, if no reload has come since.
    pub certificates: Option<Vec<FileStamp>>,
}

impl Maintenance {
    /// A worker has started.
    pub fn begin_rebalance(&mut self, now: Instant) {
        self.rebalance_until = now + REBALANCE.1;
        self.rebalance_at = now;
    }

    /// A worker has a fault, or one that was to come in the place of another one has failed.
    pub fn replacement_failed(&mut self, now: Instant) {
        self.faults.failed(&FAULTS, now);
    }

    /// When [`Supervisor::maintain`] has something to do.
    pub fn deadline(&self, now: Instant) -> Instant {
        if self.rebalance_until > now { self.rebalance_at.min(self.tick_at) } else { self.tick_at }
    }
}

impl Supervisor {
    pub(super) fn maintain(&mut self, now: Instant) {
        let due = |at: &mut Instant, period| *at <= now && std::mem::replace(at, now + period) <= now;
        if self.maintenance.rebalance_until > now && due(&mut self.maintenance.rebalance_at, REBALANCE.0) {
            self.rebalance();
        }
        if due(&mut self.maintenance.tick_at, liveness::INTERVAL) && !self.slots.is_stopping() {
            self.replace_worn(now);
            self.end_sick(now);
            self.repair_listeners();
            self.look_after_logs();
            self.watch_certificates();
        }
    }

    fn is_replacing_due(&self, now: Instant) -> bool {
        let may_replace = self.rolling.policy.is_idle() && self.may_replace().is_ok();
        may_replace && self.maintenance.faults.not_before() <= now
    }

    /// Replaces a worker in its place.
    fn replace(&mut self, slot: usize) {
        let step = Step { start: Some(self.place_of(slot)), retire: Some(slot) };
        self.rolling.policy.on(Event::Step(step));
    }

    /// Replaces a worker that is worn out: one at a time, so that there is always one to accept.
    fn replace_worn(&mut self, now: Instant) {
        let is_alone = self.processes.in_role(Role::Draining).next().is_none();
        if !is_alone || !self.generation.config.wear.is_bounded() || !self.is_replacing_due(now) {
            return;
        }
        let worn = self.processes.in_role(Role::Worker).find_map(|pid| self.wear_of(pid, now));
        if let Some((slot, why)) = worn {
            log::info!("{} is replaced: {why}", self.name(slot));
            self.replace(slot);
        }
    }

    /// A worker cannot take connections. It says so again while it cannot.
    pub(super) fn replace_faulty(&mut self, slot: usize, now: Instant) {
        let fault = self.shared.scoreboard.slot(slot).and_then(|record| record.fault());
        let Some(fault) = fault.filter(|_| self.is_replacing_due(now)) else { return };
        self.maintenance.replacement_failed(now);
        log::warn!("{} is replaced: {fault}", self.name(slot));
        if fault == Fault::Inbox
            && let Err(error) = self.renew_inbox(slot)
        {
            log::error!("cannot make another inbox: {error}");
        }
        self.replace(slot);
    }

    /// One move in each pool that is out of balance.
    fn rebalance(&self) {
        if !self.rolling.policy.is_idle() || self.slots.is_stopping() {
            return;
        }
        let pools =
            self.generation.config.pools.iter().enumerate().filter(|(_, pool)| pool.children.is_none());
        for (pool, _) in pools {
            let load = |slot: usize| {
                let slot = self.shared.scoreboard.slot(slot)?;
                let serves = slot.takes_connections() && usize::from(slot.place().pool) == pool;
                serves.then(|| slot.connections.load(Ordering::Relaxed))
            };
            let loads: Vec<Option<u32>> = (0..self.processes.slots()).map(load).collect();
            if let Some((from, to, count)) = rebalance::next_move(&loads) {
                self.command(from, Command::Rebalance { to: to as u16, count: count as u16 }, None);
            }
        }
    }

    /// The slot of a worker and why it is to be replaced, if it is.
    fn wear_of(&self, pid: Pid, now: Instant) -> Option<(usize, String)> {
        let slot = self.processes.get(pid)?.slot?;
        let record = self.shared.scoreboard.slot(slot).filter(|record| record.state() == State::Running)?;
        let wear = &self.generation.config.wear;
        let used = Wear {
            memory: if wear.memory == 0 { 0 } else { proc::resident(pid.as_raw()).unwrap_or(0) },
            age: now.since(record.started()),
            messages: self.shared.counters.traffic_of(pid.as_raw()).map_or(0, |traffic| traffic.messages_in),
        };
        rebalance::worn(wear, &used).map(|why| (slot, why))
    }

    /// How long workers may be silent, if they are judged.
    fn limits(&self) -> Option<Limits> {
        let config = &self.generation.config;
        // The longest that a handler may have; 0: forever.
        let times = || config.handler_of.values().chain([&config.handler]).map(|handler| handler.timeout);
        let handler = times().min().filter(|time| !time.is_zero()).and_then(|_| times().max());
        let handler = handler.unwrap_or_default();
        let limits = Limits { silence: config.worker_timeout, handler };
        (!limits.silence.is_zero()).then_some(limits)
    }

    /// Ends workers whose record in the scoreboard was overwritten (the next process in the slot makes it anew), and
    /// processes that are silent although nothing that they may do takes so long: workers whose event loop does not
    /// turn, auxiliary processes that answer no ping.
    fn end_sick(&mut self, now: Instant) {
        let (limits, config) = (self.limits(), &self.generation.config);
        let mut sick = Vec::new();
        for (pid, process) in self.processes.iter_mut().filter(|(_, process)| !process.is_late()) {
            let (beat, in_handler) = match (process.role, process.slot) {
                (Role::Worker | Role::PerConnection(_) | Role::Draining, Some(slot)) => {
                    let record = self.shared.scoreboard.slot(slot);
                    let record = record.filter(|record| record.generation() == process.generation);
                    let Some(record) = record else { continue };
                    if record.is_damaged() {
                        sick.push((pid, ": a handler of its pool has overwritten shared memory".to_owned()));
                        continue;
                    }
                    let Place { pool, number } = record.place();
                    let turns = matches!(record.state(), State::Running | State::Stopping);
                    if !turns || config.is_parent(pool, number) {
                        continue;
                    }
                    (record.heartbeat().as_nanos(), record.call.current().is_some())
                }
                (Role::Auxiliary(_) | Role::Leaving(_), _)
                    if limits.is_some() && process.has_no_deadline() =>
                {
                    let Some(channel) = &process.channel else { continue };
                    let _ = channel.send_command(Command::Ping); // or it has not read many
                    (process.answered, false)
                }
                _ => continue,
            };
            let silent = limits.and_then(|limits| process.pulse.look(beat, in_handler, limits, now));
            if let Some(silent) = silent.filter(|_| !is_traced(pid)) {
                sick.push((pid, format!(" has not responded for {silent:.0?}")));
            }
        }
        for (pid, why) in sick {
            self.processes.get_mut(pid).into_iter().for_each(|process| process.hurry(now, "respond in time"));
            log::error!("{}{why}; ending it", self.process_name(pid));
        }
    }
}

/// Whether a debugger has attached to a process (proc_pid_status(5)).
fn is_traced(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}
