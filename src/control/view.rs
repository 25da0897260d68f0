//! The server as the supervisor knows it when a request comes: the processes, and where to read what they are doing.
//! Tells what the scoreboard, the circuit breakers and /proc say, so that it is known also when all workers hang.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::unistd::Pid;

use crate::clock;
use crate::config::Config;
use crate::ctl::answer::{Draining, Executes, Handler, Pool, Quarantine, Status, Totals, Worker, seconds};
use crate::ctl::request::Id;
use crate::ffi::callback_name;
use crate::fleet::memory::breakers::{BreakerState, CircuitBreaker};
use crate::fleet::memory::counters::handler::Traffic;
use crate::fleet::memory::scoreboard::{Place, State};
use crate::fleet::memory::shared::Shared;
use crate::fleet::process::proc;
use crate::fleet::routes::Routes;
use crate::fleet::sockets::control::Channel;
use crate::fleet::sockets::listener::Listener;
use crate::time::Instant;

/// After this time a worker is said to hang; its event loop goes around at least once a second, unless a handler keeps
/// it.
const HUNG: Duration = Duration::from_secs(5);

/// What a request can see of the server.
pub struct View<'a> {
    pub config: &'a Config,
    pub routes: &'a Routes,
    pub listeners: &'a [Arc<Listener>],
    /// What workers do and count, and whether handlers are served.
    pub shared: Shared,
    /// The processes in slots, and the slots that wait for one; then those that are leaving.
    pub processes: Vec<Process<'a>>,
    /// The process of the bus, if there is one, and where it takes commands.
    pub bus: Option<(i32, &'a Channel)>,
    pub is_upgrading: bool,
    /// The longest that the supervisor has not listened, since the server was ready.
    pub longest_turn: Duration,
    /// How the server drains, if it does.
    pub draining: Option<Draining>,
}

/// A worker, or the slot of one that is to come back.
pub struct Process<'a> {
    pub slot: usize,
    /// None: the slot waits for a new process.
    pub pid: Option<Pid>,
    /// Whether it was replaced and has not ended yet.
    pub is_leaving: bool,
    /// Where it takes commands; None if it does not.
    pub channel: Option<&'a Channel>,
}

impl<'a> View<'a> {
    /// All that is known without asking workers.
    pub fn status(&self, started: Instant, now: Instant) -> Status {
        let leaving = self.processes.iter().filter(|process| process.is_leaving);
        let leaving = leaving.filter_map(|process| {
            let worker = self.worker(process, now)?;
            Some(Worker { state: "leaving".to_owned(), ..worker })
        });
        let present = self.processes.iter().filter(|process| !process.is_leaving);
        let mut workers: Vec<(Place, Worker)> = present
            .filter_map(|process| {
                Some((self.shared.scoreboard.place(process.slot)?, self.worker(process, now)?))
            })
            .collect();
        workers.sort_by_key(|(place, _)| *place);
        let workers: Vec<Worker> = workers.into_iter().map(|(_, worker)| worker).collect();
        let pools = self.config.pools.iter().filter_map(|pool| {
            let ours = || workers.iter().filter(|worker| worker.pool == pool.name);
            // A pool that is gone keeps its number.
            (ours().next().is_some() || pool.workers > 0).then(|| Pool {
                name: pool.name.clone(),
                workers: ours().count(),
                running: ours().filter(|worker| worker.state == "running").count(),
                connections: ours().map(|worker| u64::from(worker.connections)).sum(),
            })
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: Pid::this().as_raw(),
            uptime: seconds(now.since(started)),
            longest_turn: self.longest_turn.as_secs_f64(),
            draining: self.draining.clone(),
            listen: self.listeners.iter().map(|listener| listener.address.to_string()).collect(),
            leaving: leaving.collect(),
            pools: pools.collect(),
            handlers: self.handlers(),
            workers,
        }
    }

    /// The process of this pid that takes commands, and where.
    pub fn channel_to(&self, pid: i32) -> Option<(usize, &'a Channel)> {
        self.channels().find(|(known, ..)| *known == pid).map(|(_, slot, channel)| (slot, channel))
    }

    /// All processes that have connections and take commands: pid, slot, channel.
    pub fn channels(&self) -> impl Iterator<Item = (i32, usize, &'a Channel)> {
        self.processes
            .iter()
            .filter_map(|process| Some((process.pid?.as_raw(), process.slot, process.channel?)))
    }

    /// Those of them that may have connections, and read commands: they do not load handlers any more.
    pub fn serving(&self) -> impl Iterator<Item = (i32, &'a Channel)> {
        let starting = |pid| {
            self.shared
                .scoreboard
                .slots()
                .any(|(_, slot)| slot.pid() == pid && slot.state() == State::Starting)
        };
        self.channels().filter(move |(pid, ..)| !starting(*pid)).map(|(pid, _, channel)| (pid, channel))
    }

    /// Whether a process that was asked for something can still reply.
    pub fn is_there(&self, pid: i32) -> bool {
        self.channel_to(pid).is_some() || self.bus.is_some_and(|(bus, _)| bus == pid)
    }

    fn worker(&self, process: &Process<'_>, now: Instant) -> Option<Worker> {
        let record = self.shared.scoreboard.slot(process.slot)?;
        let (name, pool) = (self.short_name(process.slot), self.pool_name(process.slot));
        let Some(pid) = process.pid else {
            return Some(Worker { name, pool, state: "empty".to_owned(), ..Worker::default() });
        };
        let worker = Worker {
            name,
            pid: pid.as_raw(),
            pool,
            memory: proc::resident(pid.as_raw()).unwrap_or(0),
            cpu: proc::processor_time(pid.as_raw()).unwrap_or_default().as_secs_f64(),
            totals: self.shared.counters.traffic_of(pid.as_raw()).map(totals).unwrap_or_default(),
            ..Worker::default()
        };
        // After a crash the record is already that of the replacement.
        if record.pid() != pid.as_raw() {
            return Some(worker);
        }
        let is_parent = self
            .shared
            .scoreboard
            .place(process.slot)
            .is_some_and(|at| self.config.is_parent(at.pool, at.number));
        let is_hung = !is_parent && record.silence(now).is_some_and(|silence| silence >= HUNG);
        Some(Worker {
            state: if is_hung { "hung" } else { state_text(record.state()) }.to_owned(),
            connections: record.connections.load(Ordering::Relaxed),
            age: seconds(now.since(record.started())),
            heartbeat: seconds(now.since(record.heartbeat())),
            executes: self.executes(process.slot, pid.as_raw(), now),
            ..worker
        })
    }

    fn pool_name(&self, slot: usize) -> String {
        let pool = self
            .shared
            .scoreboard
            .place(slot)
            .and_then(|place| self.config.pools.get(usize::from(place.pool)));
        pool.map_or_else(String::new, |pool| pool.name.clone())
    }

    /// `POOL/NUMBER`.
    pub fn short_name(&self, slot: usize) -> String {
        let Place { pool, number } = self.shared.scoreboard.place(slot).unwrap_or_default();
        let name = self.config.worker_name(pool, number);
        name.strip_prefix("worker ").unwrap_or(&name).to_owned()
    }

    /// The callback that the process in a slot is in.
    pub fn executes(&self, slot: usize, pid: i32, now: Instant) -> Option<Executes> {
        let record = self.shared.scoreboard.slot(slot).filter(|record| record.pid() == pid)?;
        let (handler, callback, conn) = record.call.current()?;
        let route = self.routes.get(handler);
        Some(Executes {
            handler: route.map_or("?", |route| &route.name).to_owned(),
            resource: route.map_or("?", |route| &route.resource).to_owned(),
            callback: callback_name(callback).to_owned(),
            connection: (conn != 0).then(|| Id { pid, conn }.to_string()),
            time: seconds(now.since(record.call.since())),
        })
    }

    /// All handlers, in the order of their numbers.
    pub fn handlers(&self) -> Vec<Handler> {
        self.routes.in_service().filter_map(|(number, _)| self.handler(number)).collect()
    }

    /// A handler by its number.
    pub fn handler(&self, number: u16) -> Option<Handler> {
        let route = self.routes.get(number)?;
        let resources = self.routes.resources().filter(|(_, handler)| *handler == number);
        let pool = self.config.pools.get(self.config.pool_of(&route.resource));
        let counters = self.shared.counters.total(self.shared.counters.entry_of(&route.resource));
        Some(Handler {
            name: route.name.clone(),
            version: route.version.clone(),
            resources: resources.map(|(resource, _)| resource.to_owned()).collect(),
            style: if route.blocking { "blocking" } else { "event" }.to_owned(),
            pool: pool.map_or_else(String::new, |pool| pool.name.clone()),
            file: route.file.display().to_string(),
            connections: counters.open.get(),
            totals: totals(counters.traffic()),
            quarantine: self
                .shared
                .breakers
                .get(self.config.pool_of(&route.resource), number)
                .and_then(quarantine),
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

fn quarantine(breaker: CircuitBreaker) -> Option<Quarantine> {
    let now = clock::now();
    let probing = match breaker.state(now) {
        BreakerState::Closed => return None,
        BreakerState::Open => false,
        BreakerState::HalfOpen => true,
    };
    let left = breaker.time_left(now).filter(|_| !probing);
    Some(Quarantine { probing, seconds: left.map(seconds) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fleet::memory::breakers::Breakers;
    use crate::fleet::memory::layout::{Audience, Memory};

    #[test]
    fn a_gate_tells_how_long_it_is_shut() {
        let memory = Memory::create();
        let breakers = Breakers::create(memory, 1).unwrap();
        memory.open(0, &Audience::ALL).unwrap();
        let breaker = breakers.get(0, 0).unwrap();
        assert!(quarantine(breaker).is_none());
        breaker.open(clock::now() + Duration::from_secs(100));
        let shut = quarantine(breaker).unwrap();
        assert!(!shut.probing && shut.seconds.is_some_and(|left| (90.0..=100.0).contains(&left)));
        breaker.open(Instant::from_nanos(1));
        assert!(quarantine(breaker).is_some_and(|breaker| breaker.probing && breaker.seconds.is_none()));
        breaker.open(Instant::NEVER);
        assert!(quarantine(breaker).is_some_and(|breaker| !breaker.probing && breaker.seconds.is_none()));
    }
}
