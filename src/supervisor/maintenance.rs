//! What is looked at regularly: loads are evened out after a worker has started, workers that are worn out are replaced, and
//! those that hang are ended. What is too much is decided in `policy`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::unistd::Pid;

use super::certificates::{self, Certificates};
use super::generation::Generation;
use super::mail::Mail;
use super::policy::backoff::{Backoff, Rule};
use super::policy::liveness::{self, Limits};
use super::policy::rebalance;
use super::policy::rolling_restart::{Event, Step};
use super::role::Role;
use super::rolling::Reload;
use super::{Supervisor, logs};
use crate::config::Wear;
use crate::fleet::control::Command;
use crate::fleet::proc;
use crate::fleet::scoreboard::State;
use crate::time::Instant;

/// How often loads are compared after a worker has started, and for how long.
const REBALANCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// How often workers are asked whether they are worn out.
const LOOK: Duration = Duration::from_secs(1);

/// How workers are replaced that cannot take connections. A handler may use up descriptors wherever it runs: replacing its
/// worker again and again helps nobody.
const FAULTS: Rule = Rule {
    free: 2,
    first: Duration::from_secs(5),
    longest: Duration::from_secs(300),
    forgiven: Duration::from_secs(60),
};

/// When what is looked at.
pub(super) struct Maintenance {
    /// Until when loads are compared.
    rebalance_until: Instant,
    /// When loads or wear are looked at next.
    look_at: Instant,
    /// When heartbeats are looked at next.
    pulse_at: Instant,
    faults: Backoff,
    /// Before this no worker is replaced because of a fault.
    faults_until: Instant,
    /// When it was last looked whether a server that drains has connections.
    pub drain_looked_at: Instant,
    pub logs: logs::Files,
    pub mail: Mail,
    pub certificates: Certificates,
}

impl Default for Maintenance {
    fn default() -> Self {
        Self {
            rebalance_until: Instant::default(),
            look_at: Instant::default(),
            pulse_at: Instant::default(),
            faults: Backoff::new(FAULTS),
            faults_until: Instant::default(),
            drain_looked_at: Instant::default(),
            logs: logs::Files::default(),
            mail: Mail::default(),
            certificates: Certificates::default(),
        }
    }
}

impl Maintenance {
    /// A worker has started.
    pub fn begin_rebalance(&mut self, now: Instant) {
        self.rebalance_until = now + REBALANCE.1;
        self.look_at = now;
    }
}

impl Supervisor {
    /// When [`maintain`](Self::maintain) has something to do.
    pub(super) fn maintenance_due(&self, now: Instant) -> Option<Instant> {
        if self.slots.is_stopping() {
            return None;
        }
        let looks = self.is_look_wanted(now).then_some(self.maintenance.look_at);
        let files = self.next_look_at_logs().into_iter().chain(self.next_look_at_certificates());
        looks.into_iter().chain([self.maintenance.pulse_at]).chain(files).min()
    }

    fn is_look_wanted(&self, now: Instant) -> bool {
        self.maintenance.rebalance_until > now || self.generation.config.wear.is_bounded()
    }

    /// Looks at what is due.
    pub(super) fn maintain(&mut self, now: Instant) {
        if self.slots.is_stopping() {
            return;
        }
        if self.is_look_wanted(now) && self.maintenance.look_at <= now {
            self.look_after_workers(now);
        }
        if self.maintenance.pulse_at <= now {
            self.maintenance.pulse_at = now + liveness::INTERVAL;
            self.end_damaged_workers(now);
            self.limits().into_iter().for_each(|limits| self.end_hung_workers(limits, now));
        }
        self.look_after_logs(now);
        self.look_at_certificates(now);
    }

    /// Has workers move connections to each other until they are balanced, and replaces those that are worn out.
    fn look_after_workers(&mut self, now: Instant) {
        if self.maintenance.rebalance_until > now {
            self.maintenance.look_at = now + REBALANCE.0;
            if self.rolling.policy.is_idle() {
                self.rebalance();
            }
        } else {
            self.maintenance.look_at = now + LOOK;
        }
        // One at a time, so that there is always a worker to accept.
        if self.rolling.policy.is_idle() && self.processes.in_role(Role::Draining).next().is_none() {
            let worn = self.processes.in_role(Role::Worker).find_map(|pid| self.wear_of(pid, now));
            if let Some((slot, why)) = worn {
                log::info!("{} is replaced: {why}", self.name(slot));
                let step = Step { start: Some(self.place_of(slot)), retire: Some(slot) };
                self.rolling.policy.on(Event::Step(step));
            }
        }
    }

    /// A worker cannot take connections. It says so again while it cannot.
    pub(super) fn replace_faulty(&mut self, slot: usize, now: Instant) {
        let fault = self.shared.scoreboard.slot(slot).and_then(|record| record.fault());
        let Some(fault) = fault.filter(|_| self.rolling.policy.is_idle() && !self.slots.is_stopping()) else {
            return;
        };
        if now < self.maintenance.faults_until {
            return;
        }
        let wait = self.maintenance.faults.failed(now.since(self.maintenance.faults_until));
        self.maintenance.faults_until = now + wait;
        log::warn!("{} is replaced: {fault}", self.name(slot));
        let step = Step { start: Some(self.place_of(slot)), retire: Some(slot) };
        self.rolling.policy.on(Event::Step(step));
    }

    /// One move in each pool that is out of balance.
    fn rebalance(&self) {
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
            age: now.since(Instant::from_nanos(record.started())),
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

    /// Ends workers whose record in the scoreboard was overwritten. The next process in the slot makes it anew.
    fn end_damaged_workers(&mut self, now: Instant) {
        let mut damaged = Vec::new();
        for (pid, process) in self.processes.iter_mut() {
            let judged = matches!(process.role, Role::Worker | Role::PerConnection(_) | Role::Draining);
            let Some(slot) = process.slot.filter(|_| judged && !process.is_late()) else { continue };
            let record = self.shared.scoreboard.slot(slot);
            if record.is_some_and(|record| record.generation() == process.generation && record.is_damaged()) {
                process.hurry(now);
                damaged.push((pid, slot));
            }
        }
        for (pid, slot) in damaged {
            log::error!(
                "{}[{pid}]: a handler of its pool has overwritten shared memory; ending it",
                self.name(slot)
            );
        }
    }

    /// Ends workers whose event loop does not turn although nothing that they may do takes so long.
    fn end_hung_workers(&mut self, limits: Limits, now: Instant) {
        let mut hung = Vec::new();
        for (pid, process) in self.processes.iter_mut() {
            let judged = matches!(process.role, Role::Worker | Role::PerConnection(_) | Role::Draining);
            let Some(slot) = process.slot.filter(|_| judged && !process.is_late()) else { continue };
            let Some(record) = self.shared.scoreboard.slot(slot) else { continue };
            let is_its_own = record.generation() == process.generation;
            let serves = matches!(record.state(), State::Running | State::Stopping);
            if !is_its_own
                || !serves
                || self.generation.config.is_parent(record.place().pool, record.place().number)
            {
                continue;
            }
            let beat = record.heartbeat.load(Ordering::Relaxed);
            let in_handler = record.call.current().is_some();
            hung.extend(process.pulse.look(beat, in_handler, limits, now).map(|silent| (pid, slot, silent)));
        }
        for (pid, slot, silent) in hung {
            // Whoever debugs a worker may take all the time.
            if is_traced(pid) {
                continue;
            }
            log::error!("{}[{pid}] has not responded for {silent:?}; ending it", self.name(slot));
            self.processes.get_mut(pid).into_iter().for_each(|process| process.hurry(now));
        }
    }

    /// When files are looked at.
    fn next_look_at_certificates(&self) -> Option<Instant> {
        let is_read = self.generation.gateway_listeners().next().is_some();
        is_read.then_some(self.maintenance.certificates.look_at)
    }

    /// Looks at the files, and begins to replace the gateways if it is time to.
    fn look_at_certificates(&mut self, now: Instant) {
        if self.next_look_at_certificates().is_none_or(|at| at > now) {
            return;
        }
        self.maintenance.certificates.look_at = now + certificates::LOOK;
        let is_idle = self.rolling.is_idle();
        let is_free = is_idle && self.host.daemon.is_ready() && !self.upgrade.is_under_way();
        let stamps = certificates::stamps(&self.generation.config);
        if is_free && self.maintenance.certificates.look(stamps.clone(), &self.generation.certificates) {
            log::info!("certificates have changed: new gateways read them");
            let generation = Generation { certificates: stamps, ..self.generation.clone() };
            self.auxiliaries.try_out(&self.generation, &generation);
            self.rolling.reload = Some(Reload::Starting(generation));
        }
    }
}

/// Whether a debugger has attached to a process (proc_pid_status(5)).
fn is_traced(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}
