//! When workers die: it is logged and recorded, and the handler that is to blame is quarantined if it happens too
//! often. Replaces nobody; that is the plan's.

use std::time::SystemTime;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde_json::Value;

use super::Supervisor;
use super::death::{self, Cause, Death};
use super::policy::quarantine::{Quarantine, Verdict};
use super::policy::slots::Event;
use super::processes::{Process, Role};
use crate::clock;
use crate::config;
use crate::ffi::is_start;
use crate::fleet::breakers::{BreakerState, UNTIL_LIFTED};
use crate::fleet::counters::DEATHS;
use crate::fleet::crash_report::{self, CrashReport, Facts, Message};
use crate::fleet::current_call::CurrentCall;
use crate::fleet::scoreboard::State;

/// What workers have died of, and what comes of it.
pub(super) struct Postmortem {
    pub quarantine: Quarantine,
    /// To be written when there is time: when, which process, what.
    records: Vec<(SystemTime, Pid, Value)>,
}

impl Postmortem {
    /// Nobody has died yet.
    pub fn new(rules: config::Quarantine) -> Self {
        Self { quarantine: Quarantine::new(rules), records: Vec::new() }
    }
}

impl Supervisor {
    /// A process of this slot has crashed, and said so; whether in a call about a connection. To be called before its
    /// replacement is forked.
    pub(super) fn on_crash(&mut self, slot: usize, pid: Pid, role: Role) -> bool {
        // Its connections go on elsewhere, or nowhere, though it may take long to write a core dump.
        self.shared.counters.forget(pid.as_raw());
        // What it has goes over to others, which count it.
        self.shared.addresses.clear(pid.as_raw());
        let Some(record) = self.shared.scoreboard.slot(slot) else { return false };
        let crash = record.crash.facts();
        let facts = self.shared.crash_reports.get(slot).map(CrashReport::facts).unwrap_or_default();
        let cause = Cause::of_crash(crash.signal, crash.address);
        self.tell((slot, pid), role, cause, crash.handler, (crash.callback, crash.conn), facts);
        crash.conn != 0
    }

    /// The process of this slot has ended without a word: how, unless it has just left. To be called before its record is
    /// cleared.
    pub(super) fn on_death(
        &mut self,
        (slot, pid): (usize, Pid),
        process: &Process,
        status: WaitStatus,
    ) -> Option<String> {
        let current_call = self.shared.scoreboard.slot(slot).map(|record| &record.call);
        let current = current_call.and_then(|current_call| current_call.current());
        let state = self.shared.scoreboard.slot(slot).map(|record| record.state());
        let has_left = state.is_none_or(|state| state == State::Stopping);
        let cause = match status {
            WaitStatus::Exited(_, 0) if current.is_none() && has_left => {
                log::debug!("{}[{pid}] has left", self.name(slot));
                return None;
            }
            WaitStatus::Exited(_, status) => Cause::Ended(status),
            WaitStatus::Signaled(_, signal, _) => Cause::Killed(signal),
            other => {
                log::error!("{}[{pid}] is gone: {other:?}", self.name(slot));
                return None;
            }
        };
        let (handler, callback, conn) =
            current.map_or((None, 0, 0), |(handler, callback, conn)| (Some(handler), callback, conn));
        let facts = current_call
            .filter(|_| current.is_some())
            .map(|current_call| self.facts_of(current_call))
            .unwrap_or_default();
        let line = self.tell((slot, pid), process.role, cause, handler, (callback, conn), facts);
        // Whoever was killed from outside would have started.
        let is_its_own = process.is_late() || cause != Cause::Killed(Signal::SIGKILL);
        let handler = handler.filter(|_| process.role == Role::Worker && is_start(callback) && is_its_own);
        handler.into_iter().for_each(|handler| self.judge_at_start(handler));
        Some(line)
    }

    /// What the scoreboard tells of a process that left nothing else: the peer, and the beginning of the message.
    fn facts_of(&self, current_call: &CurrentCall) -> Facts {
        let message = current_call.message().map(|message| {
            let mut bytes = current_call.first_bytes();
            let hash = (bytes.len() as u64 == message.size).then(|| crash_report::hash(&bytes));
            bytes.truncate(self.generation.config.crash_records.as_ref().map_or(0, |records| records.bytes));
            Message { kind: message.kind, size: message.size, hash, bytes }
        });
        Facts { peer: current_call.peer().address(), message, ..Facts::default() }
    }

    /// A process that crashed has ended.
    pub(super) fn tell_rescue(&self, slot: usize, pid: Pid) {
        let (moved, lost) = self.shared.scoreboard.slot(slot).map_or((0, 0), |record| record.crash.result());
        self.count_in_place(slot, |counters| counters.moved_out.add_shared(moved.into()));
        log::warn!(
            "{}[{pid}] has ended after its crash: moved {moved} connections, lost {lost}",
            self.name(slot)
        );
    }

    /// Nothing is held against a handler any more.
    pub(super) fn forgive(&mut self, handler: u16) {
        self.shared.breakers.get(usize::from(handler)).into_iter().for_each(|breaker| breaker.lift());
        self.postmortem.quarantine.forgive(handler);
    }

    /// Writes the records of crashes that are not written yet.
    pub(super) fn write_records(&mut self) {
        let Some(settings) = &self.generation.config.crash_records else { return };
        for (time, pid, record) in self.postmortem.records.drain(..) {
            match death::write(&settings.dir, &record, time, pid.as_raw()) {
                Ok(path) => log::info!("the record of the end of process {pid} is {}", path.display()),
                Err(error) => log::error!("{}: the record of a crash: {error}", settings.dir.display()),
            }
        }
    }

    /// A process of this slot has died, perhaps in a handler.
    fn count_death(&self, slot: usize, cause: Cause, handler: Option<u16>) {
        let cause = DEATHS.iter().position(|name| *name == cause.name());
        self.count_in_place(slot, |counters| {
            if let Some(count) = cause.and_then(|cause| counters.deaths.get(cause)) {
                count.add_shared(1);
            }
        });
        if let Some(handler) = handler {
            self.count_handler(handler, |entry| entry.crashes.add(1));
        }
    }

    /// Logs and records a death, and judges the handler; returns how the process died.
    fn tell(
        &mut self,
        (slot, pid): (usize, Pid),
        role: Role,
        cause: Cause,
        handler: Option<u16>,
        (callback, conn): (u32, u64),
        facts: Facts,
    ) -> String {
        self.count_death(slot, cause, handler);
        let worker = self.name(slot);
        let route = handler.and_then(|handler| self.generation.routes.handlers().get(usize::from(handler)));
        let death =
            Death { worker: &worker, pid: pid.as_raw(), cause, handler: route, callback, conn, facts };
        let line = death.line();
        log::error!("{worker}[{pid}] {line}");
        if self.generation.config.crash_records.is_some() {
            let now = SystemTime::now();
            let record = death.record(now);
            self.postmortem.records.push((now, pid, record));
        }
        // What a standby dies of is not served.
        if let Some(handler) = handler.filter(|_| role != Role::Standby && !is_start(callback)) {
            self.judge(handler);
        }
        line
    }

    /// A worker has died in this handler before it could serve: the next one starts without it.
    fn judge_at_start(&mut self, handler: u16) {
        let quarantine = &mut self.postmortem.quarantine;
        let is_known = quarantine.does_not_start(handler) || self.slots.is_stopping();
        if is_known || !quarantine.on_death_at_start(handler) {
            return;
        }
        self.shared
            .breakers
            .get(usize::from(handler))
            .into_iter()
            .for_each(|breaker| breaker.open(UNTIL_LIFTED));
        self.count_handler(handler, |entry| entry.quarantines.add(1));
        let Some(route) = self.generation.routes.handlers().get(usize::from(handler)) else { return };
        log::error!(
            "{}: no worker starts with it: quarantined until a reload, {} answers 503",
            route.name,
            route.resource
        );
        if self.generation.config.strict_handlers && !self.slots.is_announced() {
            log::error!("{}: broken (strict_handlers)", route.name);
            self.stop(Event::Broken);
        }
    }

    /// Whether the process of this slot died at the start in a handler that is not loaded again. To be called before its
    /// record is cleared.
    pub(super) fn was_ended_at_start(&self, slot: usize) -> bool {
        let current = self.shared.scoreboard.slot(slot).and_then(|record| record.call.current());
        current.is_some_and(|(handler, callback, _)| {
            is_start(callback) && self.postmortem.quarantine.does_not_start(handler)
        })
    }

    /// A process has died in this handler.
    fn judge(&mut self, handler: u16) {
        let now = clock::now();
        let Some(breaker) = self.shared.breakers.get(usize::from(handler)) else { return };
        let state = breaker.state(now.as_nanos());
        let Some(Verdict { time, deaths }) = self.postmortem.quarantine.on_death(handler, state, now) else {
            return;
        };
        breaker.open((now + time).as_nanos());
        let Some(route) = self.generation.routes.handlers().get(usize::from(handler)) else { return };
        self.count_handler(handler, |entry| entry.quarantines.add(1));
        let why = match state {
            BreakerState::HalfOpen => "a worker died in it when it was probed".to_owned(),
            _ => format!(
                "{deaths} worker{} died in it within {:?}",
                if deaths == 1 { "" } else { "s" },
                self.generation.config.quarantine.window
            ),
        };
        log::warn!("{}: {why}: quarantined, {} answers 503 for {time:?}", route.name, route.resource);
    }
}
