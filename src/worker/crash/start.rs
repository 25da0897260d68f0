//! The start of a worker: handlers are loaded, on_worker_start runs, and until the rescue is prepared the threads that
//! they have made. There is nothing to rescue yet, but a crash is reported with handler, callback and code; a handler
//! that exceeds its timeout is made to crash. A zygote, which never has a connection, stays in this state.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;
use std::{io, mem};

use crate::clock;
use crate::ffi::place::Callback;
use crate::fleet::memory::crash::CrashFacts;
use crate::fleet::memory::scoreboard::Slot;
use crate::fleet::peer::Peer;
use crate::fleet::sockets::control::CRASHED;
use crate::worker::crash::modules::Modules;
use crate::worker::crash::report::{Collector, Registers};
use crate::worker::crash::{rescue, traps};

/// What a death at the start needs; made before any code of a handler runs.
pub struct StartWatch {
    /// The process that this belongs to.
    pub pid: i32,
    slot: &'static Slot,
    /// With a list of modules of its own: this process may be listing them while a thread dies.
    collector: Collector,
    control: RawFd,
    /// The files of handlers with their indexes in the routes.
    handlers: Vec<(u16, PathBuf)>,
    /// Sends the signal for a hang to the main thread.
    timer: libc::timer_t,
}

/// Null when it was forgotten.
static WATCH: AtomicPtr<StartWatch> = AtomicPtr::new(null_mut());

impl StartWatch {
    /// Begins to watch, on the main thread.
    pub fn begin(
        slot: &'static Slot,
        collector: Collector,
        control: RawFd,
        handlers: Vec<(u16, PathBuf)>,
    ) -> io::Result<&'static Self> {
        traps::install()?;
        let (pid, timer) = (std::process::id() as i32, hang_timer()?);
        let watch = Box::leak(Box::new(Self { pid, slot, collector, control, handlers, timer }));
        WATCH.store(watch, Ordering::Release);
        Ok(watch)
    }

    /// While the worker is starting. Async-signal-safe.
    pub fn current() -> Option<&'static Self> {
        // SAFETY: set to what is never freed.
        unsafe { WATCH.load(Ordering::Acquire).as_ref() }
    }

    /// A handler is called, and has so long; zero: forever.
    pub fn enter(&self, handler: u16, callback: Callback, limit: Duration) {
        self.slot.call.set_current(0, Peer::NONE, clock::now());
        self.slot.call.begin(handler, callback as u32);
        self.arm(limit);
    }

    /// All handlers have started, and are listed in `modules`. Their threads are watched until the rescue is prepared.
    pub fn end(&self, modules: &Modules) {
        self.arm(Duration::ZERO);
        self.slot.call.end();
        modules.fill(&self.handlers);
    }

    /// Notes a death, and tells the supervisor. Async-signal-safe.
    pub fn note_death(&self, signal: c_int, address: u64, registers: Registers, is_loop: bool) {
        self.collector.modules.fill(&self.handlers);
        let mut facts = CrashFacts::new((signal, address), (0, 0));
        let call = self.slot.call.current().filter(|_| is_loop);
        // After the last call what lies on the stack of the main thread is stale.
        let is_host = is_loop && call.is_none();
        let registers = Registers { stack: if is_host { 0 } else { registers.stack }, ..registers };
        let whose_code = self.collector.collect(registers, self.slot.call, None, &mut facts);
        let handler;
        (handler, facts.callback) = match call {
            Some((handler, callback, _)) => (Some(handler), callback),
            None => (whose_code, 0), // another thread
        };
        self.slot.crash.note(&facts.in_handler(handler));
        // If it cannot be told it will notice the death.
        rescue::send(self.control, CRASHED, 0);
    }

    fn arm(&self, time: Duration) {
        // SAFETY: all zero is a valid itimerspec.
        let mut spec: libc::itimerspec = unsafe { mem::zeroed() };
        spec.it_value.tv_sec = time.as_secs() as libc::time_t;
        spec.it_value.tv_nsec = time.subsec_nanos().into();
        // SAFETY: our own timer, and a live itimerspec. A time that the kernel refuses limits nothing.
        unsafe { libc::timer_settime(self.timer, 0, &spec, null_mut()) };
    }
}

/// A timer that sends the signal of a hang to the calling thread.
fn hang_timer() -> io::Result<libc::timer_t> {
    // SAFETY: all zero is a valid sigevent, and timer_create(2) writes the timer.
    unsafe {
        let mut event: libc::sigevent = mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = traps::hang_signal();
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer: libc::timer_t = null_mut();
        match libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) {
            0 => Ok(timer),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The process exits in an orderly way: its end is not a crash.
pub fn forget() {
    WATCH.store(null_mut(), Ordering::Release);
}
