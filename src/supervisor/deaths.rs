//! When workers die: it is logged and recorded, and the handler that is to blame is quarantined if it happens too
//! often. Replaces nobody; that is the plan's.

use std::io;
use std::time::{Duration, SystemTime};

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde_json::Value;

use super::Fleet;
use super::crash::{self, Cause, Death};
use super::policy::quarantine::{Quarantine, Sentence};
use super::workers::Replaced;
use crate::config::{self, Config};
use crate::fleet::breakers::{self, CircuitBreaker, Standing};
use crate::fleet::crash_report::{self, CrashReport, Facts, Message};
use crate::fleet::current_call::CurrentCall;
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::{self, MAX_SLOTS, State};

/// What is known of deaths, and what comes of them.
pub(super) struct Deaths {
    quarantine: Quarantine,
    /// By handler.
    pub breakers: &'static [CircuitBreaker],
    /// By slot.
    pub crash_report: &'static [CrashReport],
    /// To be written when there is time: when, which process, what.
    records: Vec<(SystemTime, Pid, Value)>,
}

impl Deaths {
    /// Nobody has died yet. Makes what is shared with workers, before the first fork.
    pub fn new(config: &Config) -> io::Result<Self> {
        // Strings of a request are never longer than its head.
        let room = config.crash_records.as_ref().map_or((0, 0), |records| (config.head.bytes, records.bytes));
        Ok(Self {
            quarantine: Quarantine::new(config.quarantine),
            breakers: breakers::create(Routes::MAX)?,
            crash_report: crash_report::create(MAX_SLOTS, room.0, room.1)?,
            records: Vec::new(),
        })
    }

    /// Nothing is held against this handler any more.
    pub fn forgive(&mut self, handler: u16) {
        self.quarantine.forgive(handler);
    }
}

impl Deaths {
    /// From now on these rules hold for quarantine.
    pub fn set_rules(&mut self, rules: config::Quarantine) {
        self.quarantine.set_rules(rules);
    }
}

impl Fleet {
    /// A process of this slot has crashed, and said so. To be called before its replacement is forked.
    pub(super) fn on_crash(&mut self, slot: usize, pid: Pid) {
        // Its connections go on elsewhere, or nowhere, though it may take long to write a core dump.
        self.counters.forget(pid.as_raw());
        // What it has goes over to others, which count it.
        self.addresses.clear(pid.as_raw());
        let Some(record) = self.scoreboard.slot(slot) else { return };
        let crash = record.crash.facts();
        let facts = self.deaths.crash_report.get(slot).map(CrashReport::facts).unwrap_or_default();
        let cause = Cause::of_crash(crash.signal, crash.address);
        self.tell(slot, pid, cause, crash.handler, (crash.callback, crash.conn), facts);
    }

    /// The process of this slot has ended without a word. To be called before its record is cleared.
    pub(super) fn on_death(&mut self, slot: usize, pid: Pid, status: WaitStatus) {
        let current_call = self.scoreboard.slot(slot).map(|record| &record.call);
        let current = current_call.and_then(|current_call| current_call.current());
        let has_left = self.scoreboard.slot(slot).is_none_or(|record| record.state() == State::Stopping);
        let cause = match status {
            WaitStatus::Exited(_, 0) if current.is_none() && has_left => {
                return log::debug!("{}[{pid}] has left", self.name(slot));
            }
            WaitStatus::Exited(_, status) => Cause::Ended(status),
            WaitStatus::Signaled(_, signal, _) => Cause::Killed(signal),
            other => return log::error!("{}[{pid}] is gone: {other:?}", self.name(slot)),
        };
        let (handler, callback, conn) =
            current.map_or((None, 0, 0), |(handler, callback, conn)| (Some(handler), callback, conn));
        let facts = current_call
            .filter(|_| current.is_some())
            .map(|current_call| self.facts_of(current_call))
            .unwrap_or_default();
        self.tell(slot, pid, cause, handler, (callback, conn), facts);
    }

    /// What the scoreboard tells of a process that left nothing else: the peer, and the beginning of the message.
    fn facts_of(&self, current_call: &CurrentCall) -> Facts {
        let message = current_call.message().map(|message| {
            let mut bytes = current_call.first_bytes();
            let hash = (bytes.len() as u64 == message.size).then(|| crash_report::hash(&bytes));
            bytes.truncate(self.config.crash_records.as_ref().map_or(0, |records| records.bytes));
            Message { kind: message.kind, size: message.size, hash, bytes }
        });
        Facts { peer: current_call.peer().address(), message, ..Facts::default() }
    }

    /// A process that was replaced because of a crash has ended.
    pub(super) fn tell_rescue(&self, replaced: &Replaced) {
        let Replaced { pid, slot, .. } = *replaced;
        let (moved, cut) = self.scoreboard.slot(slot).map_or((0, 0), |record| record.crash.result());
        self.count_in_place(slot, |counters| counters.moved_out.add_shared(moved.into()));
        log::warn!(
            "{}[{pid}] has ended: {moved} connections went on elsewhere, {cut} did not",
            self.name(slot)
        );
    }

    /// A process has ended, however: what it was probing is nobody's any more.
    pub(super) fn release_gates(&self, pid: Pid) {
        self.deaths.breakers.iter().for_each(|breaker| breaker.release(pid.as_raw()));
    }

    /// Writes the records of crashes that are not written yet.
    pub(super) fn write_records(&mut self) {
        let Some(settings) = &self.config.crash_records else { return };
        for (time, pid, record) in self.deaths.records.drain(..) {
            match crash::write(&settings.dir, &record, time, pid.as_raw()) {
                Ok(path) => log::info!("the record of the end of process {pid} is {}", path.display()),
                Err(error) => log::error!("{}: the record of a crash: {error}", settings.dir.display()),
            }
        }
    }

    fn tell(
        &mut self,
        slot: usize,
        pid: Pid,
        cause: Cause,
        handler: Option<u16>,
        (callback, conn): (u32, u64),
        facts: Facts,
    ) {
        self.count_death(slot, cause, handler);
        let worker = self.name(slot);
        let route = handler.and_then(|handler| self.routes.handlers().get(usize::from(handler)));
        let death =
            Death { worker: &worker, pid: pid.as_raw(), cause, handler: route, callback, conn, facts };
        log::error!("{worker}[{pid}] {}", death.line());
        if self.config.crash_records.is_some() {
            let now = SystemTime::now();
            let record = death.record(now);
            self.deaths.records.push((now, pid, record));
        }
        if let Some(handler) = handler {
            self.judge(handler);
        }
    }

    /// Somebody has died in this handler.
    fn judge(&mut self, handler: u16) {
        let now = scoreboard::now();
        let Some(breaker) = self.deaths.breakers.get(usize::from(handler)) else { return };
        let standing = breaker.standing(now);
        let Some(Sentence { time, deaths }) = self.deaths.quarantine.on_death(handler, standing, now) else {
            return;
        };
        breaker.shut(now.saturating_add(time));
        let Some(route) = self.routes.handlers().get(usize::from(handler)) else { return };
        self.count_handler(handler, |entry| entry.quarantines.add(1));
        let why = match standing {
            Standing::Probing => "a worker died in it when it was probed".to_owned(),
            _ => format!(
                "{deaths} worker{} died in it within {:?}",
                if deaths == 1 { "" } else { "s" },
                Duration::from_nanos(self.config.quarantine.window)
            ),
        };
        let time = Duration::from_nanos(time);
        log::warn!("{}: {why}: quarantined, {} answers 503 for {time:?}", route.name, route.resource);
    }
}
