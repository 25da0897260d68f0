//! When workers die: it is logged and recorded, and the handler that is to blame is quarantined if it happens too
//! often. Does not restart anything; `policy::slots` does.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::crash_record::{self, CrashRecord};
use super::death::{Cause, Death};
use super::generation::Generation;
use super::policy::quarantine::{Measure, Quarantine, Term};
use super::policy::slots::Event;
use super::processes::{Errand, Process, Role};
use super::{Supervisor, plural};
use crate::clock;
use crate::config;
use crate::exit::Exit;
use crate::ffi::is_start;
use crate::fleet::memory::breakers::{BreakerState, CircuitBreaker};
use crate::fleet::memory::counters::DEATHS;
use crate::fleet::memory::crash_report::{self, CrashDetails, MessageExcerpt};
use crate::fleet::memory::current_call::CurrentCall;
use crate::fleet::memory::scoreboard::State;
use crate::time::Instant;

/// A process without connections that is younger than this when a thread of a handler ends it has not served: the next
/// one would end alike.
const YOUNG: Duration = Duration::from_secs(1);

/// Of records that wait to be written there are at most as many as are kept.
const WRITING: Errand = Errand::Tidy("writing crash records");

/// Why a handler is suspected.
const SUSPECTED: &str = "suspected of unattributed crashes (it ran last)";

/// What workers have died of, and what comes of it.
pub(super) struct Postmortem {
    pub quarantine: Quarantine,
    /// Handlers that are to be isolated.
    suspects: BTreeSet<u16>,
    /// To be written when there is time.
    records: Vec<CrashRecord>,
}

impl Postmortem {
    pub fn new(rules: config::Quarantine) -> Self {
        Self { quarantine: Quarantine::new(rules), suspects: BTreeSet::new(), records: Vec::new() }
    }
}

impl Supervisor {
    /// A process of this slot has crashed, and said so; how, and what that means for the slot. To be called before its
    /// replacement is forked.
    pub(super) fn on_crash(&mut self, slot: usize, pid: Pid, role: Role) -> (String, Event) {
        // Its connections go on elsewhere, or nowhere, though it may take long to write a core dump.
        self.shared.counters.forget(pid.as_raw());
        // What it has goes over to others, which count it.
        self.shared.addresses.clear(pid.as_raw());
        let Some(record) = self.shared.scoreboard.slot(slot) else {
            return (String::new(), Event::Crashed(slot, false));
        };
        let crash = record.crash.facts();
        let is_own = |handler| self.own_handler((slot, role), Some(handler)).is_some();
        let suspect = record.crash.last().filter(|(handler, _)| is_own(*handler));
        let isolated = self.generation.isolated_in(usize::from(record.place().pool));
        let handler = self.own_handler((slot, role), crash.handler()).or(isolated);
        let facts = self.shared.crash_reports.get(usize::from(record.place().pool), slot);
        let facts = facts.map(|report| report.read(&crash)).unwrap_or_default();
        let cause = Cause::of_crash(crash.signal, crash.address);
        let age = clock::now().since(record.started());
        let has_served = record.connections.load(Ordering::Relaxed) > 0;
        let is_young = record.state() == State::Starting || age < YOUNG && !has_served;
        let is_at_start = is_start(crash.callback) || is_young && crash.conn == 0;
        let call = (crash.callback, crash.conn);
        let skipped = self.processes.get(pid).map(|process| process.skipped.clone()).unwrap_or_default();
        let line = self.tell((slot, pid, role), cause, handler, call, facts);
        let is_hindered = self.judge((slot, role, &skipped), handler, crash.conn, is_at_start);
        if let Some(suspect) = suspect.filter(|_| handler.is_none()) {
            self.suspect(suspect);
        }
        (line, if is_hindered { Event::Hindered(slot) } else { Event::Crashed(slot, crash.conn != 0) })
    }

    /// What a process is made of.
    fn generation_of(&self, role: Role) -> &Generation {
        let on_trial = self.rolling.of_standbys().filter(|_| role == Role::Standby);
        on_trial.unwrap_or(&self.generation)
    }

    /// A handler that a process of this slot may have died in: of its own pool. Its memory can say anything.
    fn own_handler(&self, (slot, role): (usize, Role), handler: Option<u16>) -> Option<u16> {
        let Generation { config, routes, .. } = self.generation_of(role);
        let pool = usize::from(self.place_of(slot).pool);
        handler.filter(|handler| {
            let route = routes.get(*handler);
            route.is_some_and(|route| config.pool_of(&route.resource) == pool)
        })
    }

    /// The process of this slot has ended without a report: how, and what that means for the slot, unless it has just
    /// left. To be called before its record is cleared.
    pub(super) fn on_death(
        &mut self,
        (slot, pid): (usize, Pid),
        process: &Process,
        cause: Cause,
    ) -> Option<(String, Event)> {
        let record = self.shared.scoreboard.slot(slot)?;
        let current = record.call.current();
        let has_left = record.state() == State::Stopping && current.is_none();
        if cause == Cause::Ended(0) && has_left {
            log::debug!("{}[{pid}] exited", self.name(slot));
            return None;
        }
        let (handler, callback, conn) =
            current.map_or((None, 0, 0), |(handler, callback, conn)| (Some(handler), callback, conn));
        let handler = self.own_handler((slot, process.role), handler);
        let facts = current.map(|_| self.facts_of(record.call)).unwrap_or_default();
        let line = self.tell((slot, pid, process.role), cause, handler, (callback, conn), facts);
        // Whoever was killed from outside would have started.
        let is_its_own = process.is_late() || cause != Cause::Killed(Signal::SIGKILL as i32);
        let handler = handler.filter(|_| is_its_own || !is_start(callback));
        let is_hindered =
            self.judge((slot, process.role, &process.skipped), handler, conn, is_start(callback));
        Some((line, if is_hindered { Event::Hindered(slot) } else { Event::Died(slot) }))
    }

    /// What the scoreboard tells of a process that left nothing else: the peer, and the beginning of the message.
    fn facts_of(&self, current_call: &CurrentCall) -> CrashDetails {
        let message = current_call.message().map(|message| {
            let mut bytes = current_call.first_bytes();
            let hash = (bytes.len() as u64 == message.size).then(|| crash_report::hash(&bytes));
            bytes.truncate(self.generation.config.crash_records.as_ref().map_or(0, |records| records.bytes));
            MessageExcerpt { kind: message.kind, size: message.size, hash, bytes }
        });
        CrashDetails { peer: current_call.peer().address(), message, ..CrashDetails::default() }
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
        self.breaker(handler).inspect(CircuitBreaker::lift);
        self.postmortem.quarantine.forgive(handler);
    }

    /// Writes the records of crashes that are not written yet: one process for all of them.
    pub(super) fn write_records(&mut self) {
        if self.postmortem.records.is_empty() || self.is_out(WRITING) {
            return;
        }
        let records = std::mem::take(&mut self.postmortem.records);
        let Some(dir) = self.generation.config.crash_records.as_ref().map(|records| records.dir.clone())
        else {
            return;
        };
        let write = |_: BorrowedFd<'_>| {
            for record in &records {
                match record.write(&dir) {
                    Ok(path) => log::info!("crash record of process {}: {}", record.pid, path.display()),
                    Err(error) => log::error!("{}: cannot write a crash record: {error}", dir.display()),
                }
            }
            Ok(())
        };
        if self.send_out(WRITING, write).is_err() {
            self.postmortem.records = records; // until one can be forked
        }
    }

    /// Counts, logs and records a death; returns how the process died.
    fn tell(
        &mut self,
        (slot, pid, role): (usize, Pid, Role),
        cause: Cause,
        handler: Option<u16>,
        (callback, conn): (u32, u64),
        facts: CrashDetails,
    ) -> String {
        if let Some(number) = DEATHS.iter().position(|name| *name == cause.name()) {
            self.count_in_place(slot, |counters| counters.deaths[number].add_shared(1));
        }
        if let Some(handler) = handler {
            self.count_handler(handler, |entry| entry.crashes.add(1));
        }
        let worker = self.name(slot);
        let route = handler.and_then(|handler| self.generation_of(role).routes.get(handler));
        let death =
            Death { worker: &worker, pid: pid.as_raw(), cause, handler: route, callback, conn, facts };
        let line = death.line();
        log::error!("{worker}[{pid}] {line}");
        match (&self.generation.config.crash_records, self.postmortem.records.len()) {
            (None, _) => {}
            (Some(_), ..crash_record::MOST) => {
                self.postmortem.records.push(CrashRecord::of(&death, SystemTime::now()));
            }
            _ => log::error!("{worker}[{pid}]: no crash record is kept; the disk does not keep up"),
        }
        line
    }

    /// Judges the handler in which a process has died; whether the next one will do without it.
    fn judge(
        &mut self,
        (slot, role, skipped): (usize, Role, &[u16]),
        handler: Option<u16>,
        conn: u64,
        at_start: bool,
    ) -> bool {
        // What a reload tries out is not served.
        let is_trial = role == Role::Standby && self.rolling.of_standbys().is_some();
        let Some(handler) = handler.filter(|_| !is_trial) else { return false };
        if at_start {
            self.judge_at_start(handler);
            // In one that it was started without it cannot have died.
            return self.postmortem.quarantine.does_not_start(handler) && !skipped.contains(&handler);
        }
        // A thread of its own would run again in the next process, whatever is served.
        if self.judge_in_service(handler) && conn == 0 && !self.pools.owns(slot) {
            self.judge_at_start(handler);
        }
        false
    }

    /// A worker has died in this handler before it could serve: the next one starts without it.
    fn judge_at_start(&mut self, handler: u16) {
        let quarantine = &mut self.postmortem.quarantine;
        let is_known = quarantine.does_not_start(handler) || self.slots.is_stopping();
        if is_known || !quarantine.on_death_at_start(handler) {
            return;
        }
        self.breaker(handler).inspect(|breaker| breaker.open(Instant::NEVER));
        self.count_handler(handler, |entry| entry.quarantines.add(1));
        let Some(route) = self.generation.routes.get(handler) else { return };
        log::error!(
            "{}: ends workers during their start; not loaded until a reload or \"wshd ctl quarantine {1} off\", {1} \
             answers 503",
            route.name,
            route.resource
        );
        if self.generation.config.strict_handlers && !self.slots.were_ready() {
            log::error!("{}: broken (strict_handlers)", route.name);
            self.stop(Exit::Config, true);
        }
    }

    /// A process has died in this handler while it served; whether that quarantines it.
    fn judge_in_service(&mut self, handler: u16) -> bool {
        let (state, now) = (self.breaker_state(handler), clock::now());
        let Some(verdict) = self.postmortem.quarantine.on_death(handler, state, now) else { return false };
        let why = match (state, verdict.deaths) {
            (BreakerState::HalfOpen, _) => "a worker died in it when it was probed".to_owned(),
            (_, deaths) => format!(
                "{} died in it within {:?}",
                plural(deaths, "worker"),
                self.generation.config.quarantine.window
            ),
        };
        self.open_breaker(handler, now, verdict, &why);
        true
    }

    /// Workers have died so many times in a row outside of handlers, and this one ran last.
    fn suspect(&mut self, (handler, deaths): (u16, u32)) {
        let (state, now) = (self.breaker_state(handler), clock::now());
        let is_alone = self.generation.is_alone(handler);
        match self.postmortem.quarantine.on_suspicion((handler, deaths), is_alone, state, now) {
            None => {}
            Some(Measure::Isolate) => drop(self.postmortem.suspects.insert(handler)),
            Some(Measure::Quarantine(verdict)) => {
                self.open_breaker(handler, now, verdict, SUSPECTED);
            }
        }
    }

    /// Has a suspect be served in a pool of its own, as soon as nothing else is being replaced.
    pub(super) fn isolate_suspects(&mut self) {
        if self.postmortem.suspects.is_empty() || self.busy(&[]).is_some() {
            return;
        }
        let Some(handler) = self.postmortem.suspects.pop_first() else { return };
        let generation = match self.generation.with_isolated(handler) {
            None => return,
            Some(Err(error)) => return log::error!("cannot isolate a suspected handler: {error}"),
            Some(Ok(generation)) => generation,
        };
        if let Some(route) = generation.routes.get(handler) {
            let pool = generation.config.pools.get(generation.config.pool_of(&route.resource));
            log::warn!(
                "{}: {SUSPECTED}; moved to a pool of its own, {}, until a reload",
                route.name,
                pool.map_or("", |pool| &pool.name)
            );
        }
        self.try_out(generation);
    }

    /// Whether a handler is served.
    pub(super) fn breaker(&self, handler: u16) -> Option<CircuitBreaker> {
        let route = self.generation.routes.get(handler)?;
        self.shared.breakers.get(self.generation.config.pool_of(&route.resource), handler)
    }

    fn breaker_state(&self, handler: u16) -> BreakerState {
        self.breaker(handler).map_or(BreakerState::Open, |breaker| breaker.state(clock::now()))
    }

    fn open_breaker(&self, handler: u16, now: Instant, Term { time, .. }: Term, why: &str) {
        self.breaker(handler).inspect(|breaker| breaker.open(now + time));
        self.count_handler(handler, |entry| entry.quarantines.add(1));
        if let Some(route) = self.generation.routes.get(handler) {
            log::warn!("{}: {why}: quarantined, {} answers 503 for {time:?}", route.name, route.resource);
        }
    }
}
