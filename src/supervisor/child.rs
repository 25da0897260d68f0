//! A forked child's way from the supervisor's code to the worker's, always in this order: shared memory, process group,
//! standard streams, signals, [`Confinement`], end with the parent, title, work, leave. No exec: a worker inherits the
//! configuration as it was parsed.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getppid, setpgid};

use super::processes::{GRACE, Kind};
use crate::config::Config;
use crate::confine::Confinement;
use crate::exit::{Exit, Failure};
use crate::fleet::memory::layout::Part;
use crate::fleet::memory::scoreboard::Place;
use crate::fleet::memory::shared::Shared;
use crate::fleet::process::title;
use crate::fleet::process::wipe;
use crate::fleet::sockets::control::{Channel, Report};
use crate::service::{self, daemonize};
use crate::{log as sink, metrics, worker};

/// Signals that a terminal sends to the whole process group, or that are requests to the supervisor only.
const NOT_FOR_WORKERS: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// A forked child before it does anything.
pub(super) struct Child {
    /// Whose child it is.
    pub supervisor: Pid,
    /// Whether its standard output and error are to go nowhere.
    pub is_detached: bool,
    pub shared: Shared,
    /// Without the settings of handlers that it does not serve.
    pub config: Arc<Config>,
    pub task: Task,
}

/// What it is to become.
pub(super) enum Task {
    /// The worker of this place; an error if it has no inbox.
    Worker {
        place: Place,
        /// Where its lines of the log go, if it is to have no file.
        log: Option<OwnedFd>,
        start: Box<io::Result<worker::Start>>,
    },
    Auxiliary(Kind, Channel, Serve),
}

/// What an auxiliary process does until it has nothing left to do; an error tells with which exit code it cannot, and
/// why. What it is handed gives up what is not needed to serve.
pub(super) type Serve = Box<dyn FnOnce(&Channel, &dyn Fn() -> io::Result<()>) -> Result<(), Failure>>;

impl Child {
    /// To its end.
    pub fn run(self) -> ! {
        // A panic has printed its message.
        let code = catch_unwind(AssertUnwindSafe(|| self.work())).unwrap_or(Exit::Internal.code());
        exit_child(code)
    }

    fn work(self) -> i32 {
        wipe::stop(); // what the supervisor had is overwritten
        let Self { supervisor, is_detached, shared, config, task } = self;
        let timeout = config.stop_timeout + GRACE;
        let timeout = u32::try_from(timeout.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u32::MAX);
        match task {
            Task::Worker { place, log, start } => {
                let name = config.worker_name(place.pool, place.number);
                let start = (*start).and_then(|start| {
                    let files = start.routes.handlers().iter().map(|route| &route.file);
                    let pool = usize::from(place.pool);
                    let confinement = Confinement::of(&config, pool);
                    count_losses(shared, place);
                    shared
                        .restrict_to(Part::Worker { pool, reaches: &|other| config.reaches(pool, other) })?;
                    prepare(is_detached)?;
                    log.map_or(Ok(()), relay_output)?;
                    confinement.map_or(Ok(()), |to| to.with_files(&config, files).enter())?;
                    end_with(supervisor, timeout)?;
                    Ok(start)
                });
                let start = match start {
                    Ok(start) => start,
                    Err(error) => {
                        log::error!("{name} cannot start: {error}");
                        return Exit::Internal.code();
                    }
                };
                set_name(&name);
                if !config.is_parent(place.pool, place.number) {
                    return worker::run(start);
                }
                worker::run_zygote(start, &move |slot| {
                    let Place { pool, number } = shared.scoreboard.place(slot).unwrap_or_default();
                    set_name(&config.worker_name(pool, number));
                    count_losses(shared, Place { pool, number });
                    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
                    come_under(supervisor);
                    end_with(supervisor, timeout)
                })
            }
            Task::Auxiliary(kind, channel, serve) => {
                // Confined as the workers of the default pool, or as programs. SIGTERM stays blocked: they read
                // commands.
                let default = Confinement::of(&config, 0);
                let (part, lost, confinement) = match kind {
                    Kind::Metrics => (Part::Metrics, &metrics::LOG_LOST, default),
                    Kind::Gateway => {
                        (Part::Gateway, &shared.gateways.log_lost, Confinement::of_gateways(&config))
                    }
                    Kind::Bus => (Part::Bus, &shared.bus.log_lost, default),
                    Kind::Cgi => {
                        (Part::Programs, shared.programs_log_lost, Confinement::of_programs(&config))
                    }
                };
                let confine = || {
                    confinement.as_ref().map_or(Ok(()), |to| to.enter())?;
                    end_with(supervisor, timeout)
                };
                sink::count_losses(Some(lost));
                let prepared =
                    shared.restrict_to(part).and_then(|()| prepare(is_detached)).map_err(Failure::from);
                set_name(kind.name());
                match prepared.and_then(|()| serve(&channel, &confine)) {
                    Ok(()) => Exit::Ok.code(),
                    Err(Failure(exit, why)) => {
                        // Logged by the supervisor, with what comes of it.
                        let _ = channel.send_report(&Report::failed(why));
                        exit.code()
                    }
                }
            }
        }
    }
}

/// Ends a forked child.
pub(super) fn exit_child(code: i32) -> ! {
    // SAFETY: exit handlers are the supervisor's, or those of plugins whose threads may still run: none is called.
    unsafe { libc::_exit(code) }
}

/// This process has no file of the log from here on, and none of what the server was started with.
fn relay_output(log: OwnedFd) -> io::Result<()> {
    dup2_stdout(&log)?;
    dup2_stderr(&log)?;
    sink::relay(log)
}

fn set_name(name: &str) {
    title::set(name);
    sink::set_process(name);
}

/// The lines of the log that this process loses count for the worker of that place: what the supervisor writes is out
/// of reach soon.
fn count_losses(shared: Shared, place: Place) {
    sink::count_losses(shared.counters.place(place).map(|counters| &counters.log_lost));
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

fn prepare(is_detached: bool) -> io::Result<()> {
    if is_detached {
        // Who waits for the server to be ready may wait for the end of its output, too.
        daemonize::leave_streams()?;
    }
    // kill(0, SIGKILL) in a handler, or in what it has started, ends this process alone.
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    // A handler that reads standard input must not take it from the terminal.
    dup2_stdin(service::open_null()?)?;
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
fn end_with(supervisor: Pid, timeout: u32) -> io::Result<()> {
    // The channel's end tells the worker to leave; a worker that is stuck in a handler does not read it.
    TIMEOUT.store(timeout, Ordering::Relaxed);
    SUPERVISOR.store(supervisor.as_raw(), Ordering::Relaxed);
    // SAFETY: the function does what a signal handler may do only.
    unsafe { signal(Signal::SIGALRM, SigHandler::Handler(on_orphaned))? };
    set_pdeathsig(Signal::SIGALRM)?;
    match getppid() == supervisor {
        true => Ok(()),
        false => Err(io::Error::other("the supervisor has exited")),
    }
}

/// Seconds that a worker has to leave after the supervisor has exited.
static TIMEOUT: AtomicU32 = AtomicU32::new(0);

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
        libc::alarm(TIMEOUT.load(Ordering::Relaxed));
    }
}
