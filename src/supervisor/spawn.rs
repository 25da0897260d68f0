//! Forking a worker. The child's way from fork to the worker's code, always in this order: close what is the
//! supervisor's, standard streams, signals, [`Confinement`], end of the parent, title, work, leave. No exec: a worker inherits the
//! configuration as it was parsed.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{ForkResult, Pid, dup2_stdin, fork, getpid, getppid, setpgid};

use super::Fleet;
use super::edition::Edition;
use super::metrics::Metrics;
use super::policy::slots as plan;
use crate::confine::Confinement;
use crate::control::Control;
use crate::exit::Exit;
use crate::fleet::control::Channel;
use crate::fleet::listener::Listener;
use crate::fleet::scoreboard::{self, Place, Slot, State};
use crate::fleet::{inbox, process_title};
use crate::service::daemonize;
use crate::service::notify::Notify;
use crate::worker;
use crate::{log as sink, metrics};

/// Signals that a terminal sends to the whole process group, or that are orders to the supervisor only.
const NOT_FOR_WORKERS: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// Closes what the program was started with beyond the standard streams: a lock or pipe of the shell would be
/// held by all processes of the fleet. Those that are meant for it are kept. Call it before anything is opened.
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

/// Forks the worker of a slot, which serves or, as a standby, waits for the order to begin; returns its pid and the
/// supervisor's end of its channel.
pub(super) fn spawn(
    fleet: &mut Fleet,
    slot: usize,
    edition: &Edition,
    standby: bool,
) -> io::Result<(Pid, Channel)> {
    let (ours, theirs) = Channel::pair()?;
    let record = fleet.scoreboard.slot(slot).ok_or(io::ErrorKind::NotFound)?;
    record.begin(scoreboard::now());
    if let Some(counters) = fleet.counters.enter_place(record.place()) {
        counters.starts.add(1);
    }
    if standby {
        record.set_state(State::Standby);
    }
    let supervisor = getpid();
    // SAFETY: the supervisor has one thread, so the child may do whatever a process may do.
    match unsafe { fork() } {
        Err(error) => {
            record.end();
            Err(error.into())
        }
        Ok(ForkResult::Parent { child }) => {
            record.pid.store(child.as_raw(), Ordering::Relaxed);
            Ok((child, ours))
        }
        Ok(ForkResult::Child) => {
            drop(ours);
            let code = catch_unwind(AssertUnwindSafe(|| {
                be_worker(fleet, slot, edition, (standby, theirs), supervisor)
            }));
            let code = code.unwrap_or(Exit::Internal.code()); // the panic has printed its message
            // SAFETY: ends the child here: destructors and exit handlers are the supervisor's or the plugins',
            // whose threads may still run.
            unsafe { libc::_exit(code) }
        }
    }
}

/// In a child: closes what is the supervisor's alone; returns whether that is detached from where it was started.
fn leave_to_the_supervisor(fleet: &mut Fleet) -> bool {
    // With a sibling's channel open, its end would not be seen when the supervisor vanishes.
    fleet.workers.clear();
    fleet.replaced.clear();
    fleet.roll.clear();
    fleet.children.clear();
    fleet.listeners.clear();
    fleet.predecessor = None;
    fleet.successor = None;
    fleet.control = Control::default();
    fleet.signals = None;
    fleet.notify = Notify::default();
    std::mem::take(&mut fleet.daemon).is_detached()
}

/// In the child, to its end.
fn be_worker(
    fleet: &mut Fleet,
    slot: usize,
    edition: &Edition,
    (standby, control): (bool, Channel),
    supervisor: Pid,
) -> i32 {
    let is_detached = leave_to_the_supervisor(fleet);
    fleet.metrics = Metrics::default();
    let Edition { config, routes, listeners, metrics, .. } = edition.clone();
    let Place { pool, number } = fleet.scoreboard.slot(slot).map(Slot::place).unwrap_or_default();
    // Only the default pool accepts; to the others connections come through their inboxes.
    let (listeners, useless) = if pool == 0 { (listeners, Vec::new()) } else { (Vec::new(), listeners) };
    let name = config.worker_name(pool, number);
    let patience = config.stop_time.saturating_add(plan::GRACE).div_ceil(1_000_000_000);
    let patience = patience.try_into().unwrap_or(u32::MAX);
    let handlers = routes.handlers().iter().map(|route| &route.file);
    let confinement = Confinement::of(&config, usize::from(pool)).map(|to| to.with_files(&config, handlers));
    let prepared = prepare(is_detached)
        .and_then(|()| metrics.iter().chain(&useless).try_for_each(|listener| close(listener)))
        .and_then(|()| confinement.map_or(Ok(()), |confinement| confinement.enter()))
        .and_then(|()| end_with(supervisor, patience));
    if let Err(error) = prepared {
        log::error!("{name} can not start: {error}");
        return Exit::Internal.code();
    }
    process_title::set(&format!("wshd: {name}"));
    sink::set_process(&name);
    let (inbox, txs) = match inbox::split(std::mem::take(&mut fleet.inboxes), slot) {
        Ok(split) => split,
        Err(error) => {
            log::error!("{name} can not start: {error}");
            return Exit::Internal.code();
        }
    };
    let is_parent = config.is_parent(pool, number);
    let start = worker::Start {
        config,
        routes,
        listeners,
        scoreboard: fleet.scoreboard,
        counters: fleet.counters,
        slot,
        control,
        inbox,
        txs,
        standby,
        breakers: fleet.deaths.breakers,
        crash_report: fleet.deaths.crash_report,
        addresses: fleet.addresses,
    };
    if !is_parent {
        return worker::run(start);
    }
    let (config, scoreboard) = (Arc::clone(&start.config), fleet.scoreboard);
    worker::run_zygote(start, &move |slot| {
        let Place { pool, number } = scoreboard.slot(slot).map(Slot::place).unwrap_or_default();
        let name = config.worker_name(pool, number);
        process_title::set(&format!("wshd: {name}"));
        sink::set_process(&name);
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        come_under(supervisor);
        end_with(supervisor, patience)
    })
}

/// Closes a listening socket in a child. Those who forked it still have the descriptor, on the stack below, and keep
/// it, as one of /dev/null.
fn close(listener: &Listener) -> io::Result<()> {
    let null = File::open("/dev/null")?;
    // SAFETY: both are open descriptors, and the second stays one.
    let result = unsafe { libc::dup3(null.as_raw_fd(), listener.as_fd().as_raw_fd(), libc::O_CLOEXEC) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Waits until the process in between has ended, and this one is a child of the supervisor; for a second at most.
fn come_under(supervisor: Pid) {
    for _ in 0..1000 {
        if getppid() == supervisor {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Forks the process that serves metrics; returns its pid.
pub(super) fn spawn_metrics(fleet: &mut Fleet) -> io::Result<Pid> {
    let supervisor = getpid();
    // SAFETY: the supervisor has one thread, so the child may do whatever a process may do.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = catch_unwind(AssertUnwindSafe(|| be_metrics(fleet, supervisor)));
            let code = code.unwrap_or(Exit::Internal.code()); // the panic has printed its message
            // SAFETY: ends the child here: destructors and exit handlers are the supervisor's.
            unsafe { libc::_exit(code) }
        }
    }
}

/// In the child, to its end. It runs as the workers of the default pool do.
fn be_metrics(fleet: &mut Fleet, supervisor: Pid) -> i32 {
    let is_detached = leave_to_the_supervisor(fleet);
    fleet.inboxes.clear();
    let prepared = prepare(is_detached)
        .and_then(|()| Confinement::of(&fleet.config, 0).map_or(Ok(()), |confinement| confinement.enter()))
        .and_then(|()| end_with(supervisor, 1));
    if let Err(error) = prepared {
        log::error!("metrics can not be served: {error}");
        return Exit::Internal.code();
    }
    // SIGTERM stays blocked: it can be seen how the workers stop.
    process_title::set("wshd: metrics");
    sink::set_process("metrics");
    metrics::run(metrics::Start {
        config: Arc::clone(&fleet.config),
        routes: Arc::clone(&fleet.routes),
        listeners: fleet.metrics.listeners.clone(),
        scoreboard: fleet.scoreboard,
        counters: fleet.counters,
        addresses: fleet.addresses,
        breakers: fleet.deaths.breakers,
        supervisor: supervisor.as_raw(),
        started: fleet.metrics.started,
    })
}

fn prepare(is_detached: bool) -> io::Result<()> {
    if is_detached {
        // Who waits for the server to be ready may wait for the end of its output, too.
        daemonize::leave_streams()?;
    }
    // kill(0, SIGKILL) in a handler, or in what it has started, ends this process alone.
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    // A handler that reads standard input must not take it from the terminal.
    dup2_stdin(File::open("/dev/null")?)?;
    for ignored in NOT_FOR_WORKERS {
        // SAFETY: ignoring a signal installs no code.
        unsafe { signal(ignored, SigHandler::SigIgn)? };
    }
    for crash in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: the default action installs no code; it replaces the handler of Rust's runtime.
        unsafe { signal(crash, SigHandler::SigDfl)? };
    }
    // Large messages come and go: their memory is kept instead of being mapped, zeroed and unmapped for each.
    // SAFETY: sets two numbers of the allocator, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 * 1024 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024 * 1024);
    }
    // What the supervisor blocks for its signalfd is not blocked here; SIGTERM is, before there is a second thread
    // that could get it: the event loop reads it.
    SigSet::from(Signal::SIGTERM).thread_set_mask()?;
    Ok(())
}

/// Has the worker end with the supervisor. After a change of the user, which takes this back (prctl(2)).
fn end_with(supervisor: Pid, patience: u32) -> io::Result<()> {
    // The channel's end tells the worker to leave; a worker that is stuck in a handler does not read it.
    PATIENCE.store(patience, Ordering::Relaxed);
    SUPERVISOR.store(supervisor.as_raw(), Ordering::Relaxed);
    // SAFETY: the function does what a signal handler may do only.
    unsafe { signal(Signal::SIGALRM, SigHandler::Handler(on_orphaned))? };
    set_pdeathsig(Signal::SIGALRM)?;
    match getppid() == supervisor {
        true => Ok(()),
        false => Err(io::Error::other("the supervisor has vanished")),
    }
}

/// Seconds that a worker has to leave after the supervisor has vanished.
static PATIENCE: AtomicU32 = AtomicU32::new(0);

/// The process whose end is waited for.
static SUPERVISOR: AtomicI32 = AtomicI32::new(0);

/// SIGALRM, first from the end of the supervisor, then from the alarm: the second one ends the process. One from
/// elsewhere does nothing while the supervisor lives.
extern "C" fn on_orphaned(_: libc::c_int) {
    // SAFETY: getppid is async-signal-safe.
    if unsafe { libc::getppid() } == SUPERVISOR.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: both calls are async-signal-safe (signal-safety(7)).
    unsafe {
        libc::signal(libc::SIGALRM, libc::SIG_DFL);
        libc::alarm(PATIENCE.load(Ordering::Relaxed));
    }
}
