//! Forking. In the parent the child is in the table of processes; in the child the supervisor's loop ends, with what the
//! child is to become: all else that the supervisor has is dropped by leaving its scope.

#![allow(unsafe_code)]

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork, getpid};

use super::child::{Auxiliary, Child, Task};
use super::generation::Generation;
use super::processes::{Process, is_ours};
use super::relay::Source;
use super::role::{Errand, Kind, Role};

use super::{Flow, Outcome, Supervisor};
use crate::clock;
use crate::exit::Exit;
use crate::fleet::control::Channel;
use crate::fleet::scoreboard::{START, State};
use crate::fleet::{inbox, process_title};
use crate::{cgi, gateway, metrics, worker};

/// How long an errand may take, or be silent.
pub(super) const ERRAND: Duration = Duration::from_secs(10);

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
    // A reload tries out all handlers anew.
    let skipped = match role == Role::Standby && generation.is_reread(&supervisor.generation) {
        true => Vec::new(),
        false => supervisor.postmortem.quarantine.not_starting().collect(),
    };
    let forked = Channel::pair().and_then(|channels| {
        let record = supervisor.shared.scoreboard.slot(slot).ok_or(io::ErrorKind::NotFound)?;
        record.begin(clock::now().as_nanos());
        supervisor.shared.mend(usize::from(record.place().pool), is_ours);
        supervisor.shared.counters.enter_place(record.place())?.starts.add(1);
        let is_boundary = !generation.config.reaches(record.place().pool.into(), 0);
        let log = is_boundary.then(|| Source::pair(clock::now())).transpose()?.unzip();
        if role == Role::Standby {
            record.set_state(State::Standby);
        }
        match fork_child() {
            Ok(child) => Ok((channels, record, log, child)),
            Err(error) => {
                record.end();
                Err(error)
            }
        }
    });
    let ((ours, theirs), record, (source, log), child) = match forked {
        Ok(forked) => forked,
        Err(error) => return ControlFlow::Continue(Err(error)),
    };
    let parent = match child {
        Forked::Child { supervisor } => supervisor,
        Forked::Parent { child } => {
            record.set_pid(child.as_raw());
            let mut process = Process::new(role, Some(slot), record.generation(), Some(ours));
            process.set_deadline(clock::now() + START);
            (process.log, process.skipped) = (source, skipped);
            process
                .channel
                .iter()
                .for_each(|channel| supervisor.host.control.join_recording(record.place().pool, channel));
            supervisor.processes.insert(child, process);
            return ControlFlow::Continue(Ok(child));
        }
    };
    let Generation { routes, bus, .. } = generation.clone();
    let pool = usize::from(record.place().pool);
    let config = Arc::new(generation.config.with_settings_of(Some(pool)));
    // Only the default pool accepts; to the others connections come through their inboxes.
    let accepts = pool == 0;
    let listeners = if accepts { generation.worker_listeners() } else { Vec::new() };
    let gateways = accepts.then(|| Arc::clone(supervisor.auxiliaries.gateways.queue.rx()));
    let shared = supervisor.shared;
    let inboxes = supervisor.processes.take_inboxes();
    // Without a descriptor to spare a worker answers for the programs: 503.
    let cgi =
        generation.cgi.as_ref().filter(|_| accepts).and_then(|inbox| inbox.tx().try_clone_to_owned().ok());
    let rendezvous = bus.tx(config.pools.get(pool).map_or("", |pool| &pool.name));
    let reaches = |other: usize| {
        shared.scoreboard.place(other).is_some_and(|place| config.reaches(pool, usize::from(place.pool)))
    };
    let start = inbox::split(inboxes, slot, reaches).and_then(|both| Ok((both, rendezvous?)));
    let start = start.map(|((inbox, txs), rendezvous)| worker::Start {
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
    become_child(Child {
        supervisor: parent,
        is_detached: supervisor.host.daemon.is_detached(),
        shared,
        config,
        task: Task::Worker { place: record.place(), log, start },
    })
}

/// Forks an auxiliary process of a generation.
pub(super) fn auxiliary(
    supervisor: &mut Supervisor,
    kind: Kind,
    generation: &Generation,
) -> Flow<io::Result<Pid>> {
    let forked = Channel::pair().and_then(|channels| Ok((channels, fork_child()?)));
    let ((ours, theirs), parent) = match forked {
        Err(error) => return ControlFlow::Continue(Err(error)),
        Ok(((ours, _), Forked::Parent { child })) => {
            let mut process = Process::new(Role::Auxiliary(kind), None, 0, Some(ours));
            process.set_deadline(clock::now() + START);
            supervisor.processes.insert(child, process);
            return ControlFlow::Continue(Ok(child));
        }
        Ok((channels, Forked::Child { supervisor })) => (channels, supervisor),
    };
    drop(ours);
    let Generation { config: whole, routes, metrics, bus, cgi: inbox, .. } = generation.clone();
    let config = Arc::new(whole.with_settings_of(None));
    let shared = supervisor.shared;
    let start = match kind {
        Kind::Metrics => Auxiliary::Metrics(metrics::Start {
            config: Arc::clone(&config),
            routes,
            listeners: metrics,
            shared,
            supervisor: parent.as_raw(),
            started: supervisor.host.started,
        }),
        Kind::Gateway => Auxiliary::Gateway(gateway::Start {
            config: Arc::clone(&config),
            listeners: generation.gateway_listeners().cloned().collect(),
            queue: Arc::clone(supervisor.auxiliaries.gateways.queue.tx()),
            counters: shared.gateways,
            salt: supervisor.auxiliaries.gateways.salt,
        }),
        Kind::Bus => Auxiliary::Bus(bus.start_with_engine(&whole, &routes, shared.bus)),
        Kind::Cgi => Auxiliary::Cgi(inbox.ok_or_else(|| io::ErrorKind::NotFound.into()).and_then(|inbox| {
            let inbox = inbox.rx().as_fd().try_clone_to_owned()?;
            Ok(cgi::Start { config: Arc::clone(&config), inbox, addresses: shared.addresses })
        })),
    };
    become_child(Child {
        supervisor: parent,
        is_detached: supervisor.host.daemon.is_detached(),
        shared,
        config,
        task: Task::Auxiliary(kind, theirs, start),
    })
}

/// Forks a child that does this, with the log as it is, and exits; with code 0 if it is done. One that takes longer than
/// [`ERRAND`] has to say that it goes on.
pub(super) fn errand(
    supervisor: &mut Supervisor,
    errand: Errand,
    work: impl FnOnce(&Channel) -> bool,
) -> io::Result<Pid> {
    let (ours, theirs) = Channel::pair()?;
    match fork_child()? {
        Forked::Parent { child } => {
            let mut process = Process::new(Role::Errand(errand), None, 0, Some(ours));
            process.set_deadline(clock::now() + ERRAND);
            supervisor.processes.insert(child, process);
            Ok(child)
        }
        Forked::Child { .. } => {
            let _ = set_pdeathsig(Signal::SIGKILL);
            process_title::set(errand.name());
            // A panic has printed its message.
            let is_done = catch_unwind(AssertUnwindSafe(|| work(&theirs))).unwrap_or(false);
            let code = if is_done { Exit::Ok } else { Exit::Internal }.code();
            // SAFETY: ends the child here: what the process has around it is the supervisor's.
            unsafe { libc::_exit(code) }
        }
    }
}

fn become_child<T>(child: Child) -> Flow<T> {
    ControlFlow::Break(Outcome::Child(Box::new(child)))
}

/// After a fork.
pub(super) enum Forked {
    /// The supervisor goes on.
    Parent { child: Pid },
    /// This is the child of that supervisor.
    Child { supervisor: Pid },
}

/// Forks a child that may do whatever a process may do.
pub(super) fn fork_child() -> io::Result<Forked> {
    let supervisor = getpid();
    // SAFETY: the supervisor has one thread.
    Ok(match unsafe { fork() }? {
        ForkResult::Parent { child } => Forked::Parent { child },
        ForkResult::Child => Forked::Child { supervisor },
    })
}
