//! Forking, and which child has ended. In the parent the child is in the table of processes; in the child the
//! supervisor's loop ends, with what the child is to become: all else that the supervisor has is dropped by leaving its
//! scope.

#![allow(unsafe_code)]

use std::io;
use std::ops::ControlFlow;
use std::os::fd::RawFd;
use std::sync::Arc;

use nix::unistd::{ForkResult, Pid, fork, getpid};

use super::child::{Child, Serve, Task};
use super::generation::Generation;
use super::processes::{Kind, Process, READY, Role, is_ours};
use super::relay::LineSource;
use super::{Flow, LoopEnd, Supervisor};
use crate::clock;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::fleet::memory::scoreboard::{START, State};
use crate::fleet::sockets::control::Channel;
use crate::fleet::sockets::inbox;
use crate::gateway::{self, Gateway};
use crate::{bus, cgi, metrics, worker};

/// Closes what the program was started with beyond the standard streams: a lock or pipe of the shell would be
/// held by all processes of the server. Those that are meant for it are kept. Call it before anything is opened.
pub fn close_inherited(kept: &[RawFd]) {
    let mut kept: Vec<libc::c_uint> = kept.iter().filter_map(|kept| (*kept).try_into().ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for kept in kept.into_iter().chain([libc::c_uint::MAX]) {
        if first < kept {
            // SAFETY: nothing in this process has opened a descriptor yet, so nothing refers to those that are closed.
            // Where the system call does not exist they stay open, which is untidy only.
            unsafe { libc::close_range(first, kept - 1, 0) };
        }
        first = kept.saturating_add(1);
    }
}

/// Forks a worker of a generation into a slot: one that serves at once, or a standby.
pub(super) fn worker(
    supervisor: &mut Supervisor,
    role: Role,
    slot: usize,
    generation: &Generation,
) -> Flow<io::Result<Pid>> {
    let parent = getpid();
    // A reload tries out all handlers anew.
    let skipped = match role == Role::Standby && generation.is_reread(&supervisor.generation) {
        true => Vec::new(),
        false => supervisor.postmortem.quarantine.not_starting().collect(),
    };
    let forked = Channel::pair().and_then(|channels| {
        let record = supervisor.shared.scoreboard.slot(slot).ok_or(io::ErrorKind::NotFound)?;
        let counters = supervisor.shared.counters.enter_place(record.place())?;
        let is_boundary = !generation.config.reaches(record.place().pool.into(), 0);
        let log = is_boundary.then(LineSource::pair).transpose()?.unzip();
        record.begin(clock::now());
        supervisor.shared.mend(usize::from(record.place().pool), is_ours);
        counters.starts.add(1);
        if role == Role::Standby {
            record.set_state(State::Standby);
        }
        let forked = fork_child().inspect_err(|_| record.end())?;
        Ok((channels, record, log, forked))
    });
    let ((ours, theirs), record, (source, log), forked) = match forked {
        Ok(forked) => forked,
        Err(error) => return ControlFlow::Continue(Err(error)),
    };
    if let ForkResult::Parent { child } = forked {
        let mut process = Process::new(role, Some(slot), record.generation(), Some(ours));
        (process.is_walled, process.log, process.skipped) = (source.is_some(), source, skipped);
        supervisor.enter(child, process);
        return ControlFlow::Continue(Ok(child));
    }
    let Generation { routes, bus, .. } = generation.clone();
    let pool = usize::from(record.place().pool);
    let config = Arc::new(generation.config.with_settings_of(Some(pool)));
    // Only the default pool accepts; to the others connections come through their inboxes.
    let accepts = pool == 0;
    let listeners = if accepts { generation.worker_listeners() } else { Vec::new() };
    let gateways = accepts.then(|| supervisor.auxiliaries.gateways.queue.rx.try_clone()).transpose();
    let shared = supervisor.shared;
    let inboxes = supervisor.processes.take_inboxes();
    // Without a descriptor to spare a worker answers for the programs: 503.
    let cgi = generation.cgi.as_ref().filter(|_| accepts).and_then(|inbox| inbox.tx.try_clone().ok());
    let rendezvous = bus.tx(config.pools.get(pool).map_or("", |pool| &pool.name));
    let reaches = |other: usize| {
        shared.scoreboard.place(other).is_some_and(|place| config.reaches(pool, usize::from(place.pool)))
    };
    let start = inbox::split(inboxes, slot, reaches).and_then(|both| Ok((both, rendezvous?, gateways?)));
    let start = start.map(|((inbox, txs), rendezvous, gateways)| worker::Start {
        config: Arc::clone(&config),
        routes,
        skipped,
        listeners,
        gateways,
        shared,
        slot,
        control: theirs,
        inbox,
        rendezvous,
        txs,
        cgi,
        standby: role == Role::Standby,
    });
    let task = Task::Worker { place: record.place(), log, start: Box::new(start) };
    supervisor.become_child(parent, config, task)
}

/// Forks an auxiliary process of a generation.
pub(super) fn auxiliary(
    supervisor: &mut Supervisor,
    kind: Kind,
    generation: &Generation,
) -> Flow<io::Result<Pid>> {
    let parent = getpid();
    let theirs = match Channel::pair().and_then(|channels| Ok((channels, fork_child()?))) {
        Err(error) => return ControlFlow::Continue(Err(error)),
        Ok(((ours, _), ForkResult::Parent { child })) => {
            supervisor.enter(child, Process::new(Role::Auxiliary(kind), None, 0, Some(ours)));
            return ControlFlow::Continue(Ok(child));
        }
        Ok(((_, theirs), ForkResult::Child)) => theirs,
    };
    let Generation { config: whole, routes, metrics, bus, cgi: inbox, .. } = generation.clone();
    let config = Arc::new(whole.with_settings_of(None));
    let shared = supervisor.shared;
    let serve: Serve = match kind {
        Kind::Metrics => {
            let start = metrics::Start {
                config: Arc::clone(&config),
                routes,
                listeners: metrics,
                shared,
                supervisor: parent.as_raw(),
                started: supervisor.host.started,
            };
            Box::new(move |channel, confine| {
                confine().and_then(|()| metrics::run(start, channel)).map_err(Failure::from)
            })
        }
        Kind::Gateway => {
            let gateways = &supervisor.auxiliaries.gateways;
            let start = gateways.queue.tx.try_clone().map(|queue| gateway::Start {
                config: Arc::clone(&config),
                listeners: generation.gateway_listeners().cloned().collect(),
                queue,
                counters: shared.gateways,
                salt: gateways.salt,
            });
            Box::new(move |channel, confine| {
                // Keys are read with the rights of the supervisor.
                let gateway = Gateway::load(start?).map_err(|why| Failure(Exit::Config, why))?;
                confine().and_then(|()| gateway.run(channel)).map_err(Failure::from)
            })
        }
        Kind::Bus => {
            let start = bus.start(&whole, &routes, shared.bus);
            Box::new(move |channel, confine| {
                confine().and_then(|()| bus::run(start?, channel)).map_err(Failure::from)
            })
        }
        Kind::Cgi => {
            let inbox = inbox.ok_or_else(|| io::ErrorKind::NotFound.into());
            let inbox = inbox.and_then(|inbox| inbox.rx.try_clone());
            let (config, addresses) = (Arc::clone(&config), shared.addresses);
            Box::new(move |channel, confine| {
                let start = confine().and_then(|()| Ok(cgi::Start { config, inbox: inbox?, addresses }));
                let served = start.and_then(|start| cgi::run(start, channel));
                served.map_err(|error| Failure(Exit::Start, error.to_string()))
            })
        }
    };
    supervisor.become_child(parent, config, Task::Auxiliary(kind, theirs, serve))
}

impl Supervisor {
    /// A child that was forked is in the table from now on.
    pub(super) fn enter(&mut self, pid: Pid, mut process: Process) {
        let record = process.slot.and_then(|slot| self.shared.scoreboard.slot(slot));
        record.inspect(|record| record.set_pid(pid.as_raw()));
        process.set_deadline(clock::now() + START, READY);
        self.processes.insert(pid, process);
        self.join_recording(pid);
    }

    /// A process that may have connections from now on takes part in a recording; a standby does when it begins.
    pub(super) fn join_recording(&self, pid: Pid) {
        let process = self.processes.get(pid).filter(|process| process.role != Role::Standby);
        if let Some(Process { slot: Some(slot), channel: Some(channel), .. }) = process {
            self.host.control.join_recording(self.place_of(*slot).pool, channel);
        }
    }

    fn become_child<T>(&self, supervisor: Pid, config: Arc<Config>, task: Task) -> Flow<T> {
        let (is_detached, shared) = (self.host.daemon.is_detached(), self.shared);
        let child = Child { supervisor, is_detached, shared, config, task };
        ControlFlow::Break(LoopEnd::Child(Box::new(child)))
    }
}

/// A child that has ended and is not reaped, so that its pid is still its own.
pub(super) fn ended_child() -> Option<Pid> {
    // SAFETY: integers and pointers, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: writes to the variable only, and returns.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &mut info, flags) };
    // SAFETY: waitid has set the field: to 0 if no child has ended.
    let pid = unsafe { info.si_pid() };
    (result == 0 && pid != 0).then(|| Pid::from_raw(pid))
}

/// Forks a child that may do whatever a process may do.
pub(super) fn fork_child() -> io::Result<ForkResult> {
    // SAFETY: the supervisor has one thread.
    Ok(unsafe { fork() }?)
}
