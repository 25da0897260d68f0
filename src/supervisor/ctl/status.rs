//! How the server is, for `wshd ctl status`: from the scoreboard, the gates and /proc. Asks no worker, so that it is
//! told also when all of them hang.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::Value;

use crate::ctl::answer::{Executes, Handler, Pool, Quarantine, Status, Totals, Worker, seconds};
use crate::ctl::request::Id;
use crate::ffi::probe::callback_name;
use crate::fleet::breakers::{CircuitBreaker, Standing};
use crate::fleet::counters::Traffic;
use crate::fleet::memory;
use crate::fleet::scoreboard::{self, Place, State};
use crate::supervisor::Fleet;

impl Fleet {
    /// All that is known without asking workers.
    pub(super) fn status(&self) -> Result<Value, String> {
        let slots = (0..self.workers.len()).filter(|slot| self.is_in_use(*slot));
        let mut workers: Vec<(Place, Worker)> =
            slots.filter_map(|slot| Some((self.place(slot)?, self.present(slot)?))).collect();
        workers.sort_by_key(|(place, _)| *place);
        let workers: Vec<Worker> = workers.into_iter().map(|(_, worker)| worker).collect();
        let leaving = self.replaced.iter().filter_map(|replaced| {
            let worker = self.worker(replaced.slot, replaced.pid)?;
            Some(Worker { state: "leaving".to_owned(), ..worker })
        });
        let pools = self.config.pools.iter().filter_map(|pool| {
            let ours = || workers.iter().filter(|worker| worker.pool == pool.name);
            // One that is gone keeps its number.
            (ours().next().is_some() || pool.workers > 0).then(|| Pool {
                name: pool.name.clone(),
                workers: ours().count(),
                running: ours().filter(|worker| worker.state == "running").count(),
                connections: ours().map(|worker| u64::from(worker.connections)).sum(),
            })
        });
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: Pid::this().as_raw(),
            uptime: seconds(scoreboard::now().saturating_sub(self.control.started)),
            listen: self.listeners.iter().map(|listener| listener.address.to_string()).collect(),
            leaving: leaving.collect(),
            pools: pools.collect(),
            handlers: self.handlers(),
            workers,
        };
        serde_json::to_value(status).map_err(|error| error.to_string())
    }

    /// The worker in a slot, or that there is none now.
    fn present(&self, slot: usize) -> Option<Worker> {
        match self.workers.get(slot)? {
            Some(worker) => self.worker(slot, worker.pid),
            None => {
                let (name, pool) = (self.short_name(slot), self.pool_name(slot));
                Some(Worker { name, pool, state: "empty".to_owned(), ..Worker::default() })
            }
        }
    }

    /// A process that is, or was, in a slot.
    fn worker(&self, slot: usize, pid: Pid) -> Option<Worker> {
        let record = self.scoreboard.slot(slot)?;
        let process = Worker {
            name: self.short_name(slot),
            pid: pid.as_raw(),
            pool: self.pool_name(slot),
            memory: memory::resident(pid.as_raw()).unwrap_or(0),
            cpu: processor_time(pid).unwrap_or_default().as_secs_f64(),
            totals: self.counters.traffic_of(pid.as_raw()).map(totals).unwrap_or_default(),
            ..Worker::default()
        };
        // After a crash the record is that of another one already.
        if record.pid.load(Ordering::Relaxed) != pid.as_raw() {
            return Some(process);
        }
        let now = scoreboard::now();
        let since = |time: &AtomicU64| seconds(now.saturating_sub(time.load(Ordering::Relaxed)));
        Some(Worker {
            state: state_text(record.state()).to_owned(),
            connections: record.connections.load(Ordering::Relaxed),
            age: since(&record.started),
            heartbeat: since(&record.heartbeat),
            executes: self.executes(slot, pid.as_raw()),
            ..process
        })
    }

    fn pool_name(&self, slot: usize) -> String {
        let pool = self.place(slot).and_then(|place| self.config.pools.get(usize::from(place.pool)));
        pool.map_or_else(String::new, |pool| pool.name.clone())
    }

    /// Whether somebody is in this slot, or comes back there; else its worker has left it for good.
    fn is_in_use(&self, slot: usize) -> bool {
        let is_there = self.workers.get(slot).is_some_and(Option::is_some);
        let leaves = self.replaced.iter().any(|replaced| replaced.slot == slot);
        let waits = self.roll.slots().any(|standby| standby == slot);
        is_there || !(leaves || waits || self.vacant.contains(&slot))
    }

    /// `POOL/NUMBER`.
    pub(super) fn short_name(&self, slot: usize) -> String {
        let name = self.name(slot);
        name.strip_prefix("worker ").unwrap_or(&name).to_owned()
    }

    /// The callback that the process in a slot is in.
    pub(super) fn executes(&self, slot: usize, pid: i32) -> Option<Executes> {
        let record = self.scoreboard.slot(slot).filter(|record| record.pid.load(Ordering::Relaxed) == pid)?;
        let current_call = &record.call;
        let since = current_call.since.load(Ordering::Relaxed);
        let (handler, callback, conn) = current_call.current()?;
        let route = self.routes.handlers().get(usize::from(handler));
        Some(Executes {
            handler: route.map_or("?", |route| &route.name).to_owned(),
            resource: route.map_or("?", |route| &route.resource).to_owned(),
            callback: callback_name(callback).to_owned(),
            connection: (conn != 0).then(|| Id { pid, conn }.to_string()),
            time: seconds(scoreboard::now().saturating_sub(since)),
        })
    }

    /// All handlers, in the order of their numbers.
    pub(super) fn handlers(&self) -> Vec<Handler> {
        self.routes.in_service().filter_map(|(number, _)| self.handler(number)).collect()
    }

    /// A handler by its number.
    pub(super) fn handler(&self, number: u16) -> Option<Handler> {
        let route = self.routes.handlers().get(usize::from(number))?;
        let resources = self.routes.resources().filter(|(_, handler)| *handler == number);
        let pool = self.config.pools.get(self.config.pool_of(&route.resource));
        let counters = self.counters.total(self.counters.entry_of(&route.resource));
        Some(Handler {
            name: route.name.clone(),
            version: route.version.clone(),
            resources: resources.map(|(resource, _)| resource.to_owned()).collect(),
            style: if route.blocking { "blocking" } else { "event" }.to_owned(),
            pool: pool.map_or_else(String::new, |pool| pool.name.clone()),
            file: path_text(&route.file),
            connections: counters.open.get(),
            totals: Totals {
                messages_in: counters.messages_in.get(),
                messages_out: counters.messages_out.get(),
                bytes_in: counters.bytes_in.get(),
                bytes_out: counters.bytes_out.get(),
            },
            quarantine: self.deaths.breakers.get(usize::from(number)).and_then(quarantine),
        })
    }
}

fn state_text(state: State) -> &'static str {
    match state {
        State::Empty => "empty",
        State::Starting => "starting",
        State::Standby => "waiting",
        State::Running => "running",
        State::Stopping => "stopping",
    }
}

fn totals(traffic: Traffic) -> Totals {
    let Traffic { messages_in, bytes_in, messages_out, bytes_out } = traffic;
    Totals { messages_in, messages_out, bytes_in, bytes_out }
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

fn quarantine(breaker: &CircuitBreaker) -> Option<Quarantine> {
    let now = scoreboard::now();
    let probing = match breaker.standing(now) {
        Standing::Open => return None,
        Standing::Shut => false,
        Standing::Probing => true,
    };
    Some(Quarantine { probing, seconds: breaker.time_left(now).filter(|_| !probing).map(seconds) })
}

/// Processor time that a process has used, in user mode and in the kernel; None if it is gone.
fn processor_time(pid: Pid) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in front, in brackets, may contain anything (proc_pid_stat(5)); behind it come fields 3 and up.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()?.saturating_add(ticks()?);
    let per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
    Some(Duration::from_millis(ticks.saturating_mul(1000) / u64::try_from(per_second).ok()?.max(1)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_grows_with_work() {
        let before = processor_time(Pid::this()).unwrap();
        let begun = std::time::Instant::now();
        while processor_time(Pid::this()).unwrap() < before + Duration::from_millis(20) {
            assert!(begun.elapsed() < Duration::from_secs(30));
        }
        assert_eq!(processor_time(Pid::from_raw(i32::MAX)), None);
    }

    #[test]
    fn a_gate_tells_how_long_it_is_shut() {
        let breaker = CircuitBreaker::default();
        assert!(quarantine(&breaker).is_none());
        breaker.shut(scoreboard::now() + 100_000_000_000);
        let shut = quarantine(&breaker).unwrap();
        assert!(!shut.probing && shut.seconds.is_some_and(|left| (90.0..=100.0).contains(&left)));
        breaker.shut(1);
        assert!(quarantine(&breaker).is_some_and(|breaker| breaker.probing && breaker.seconds.is_none()));
        breaker.shut(crate::fleet::breakers::UNTIL_LIFTED);
        assert!(quarantine(&breaker).is_some_and(|breaker| !breaker.probing && breaker.seconds.is_none()));
    }
}
