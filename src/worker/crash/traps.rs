//! The ways in which a handler can end the process: signals, a call that hangs,
//! exit(), a forked child that returns. All but the last lead to the rescue.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::ffi::place::{CallContext, handler_name, place, watch_forks};
use crate::fleet::memory::crash::{EXIT, HANG};
use crate::time::Instant;
use crate::worker::crash::report::Registers;
use crate::worker::crash::rescue::rescue;
use crate::worker::crash::signals::{self, Action, CRASHES, on_signal};

/// How often changed signals are looked for.
const CHECK: Duration = Duration::from_secs(1);

/// The thread that the watchdog has found hanging, and the connection that its call is about.
static HUNG: (AtomicI32, AtomicU64) = (AtomicI32::new(0), AtomicU64::new(0));

/// Has signals and exit() lead to the rescue, and children of handlers end, from before the first handler is loaded.
pub fn install() -> io::Result<()> {
    signals::use_signal_stack()?;
    catch_signals()?;
    watch_forks(child_returns)?;
    // SAFETY: registers a function that lives as long as the process.
    match unsafe { libc::atexit(exited) } {
        0 => Ok(()),
        _ => Err(io::Error::other("atexit: no memory")),
    }
}

/// The rescue is prepared: has all of them lead there, whatever handlers have done to signals at their start.
pub fn complete() -> io::Result<()> {
    signals::install()?;
    catch_signals()
}

fn catch_signals() -> io::Result<()> {
    CRASHES.into_iter().try_for_each(|signal| on_signal(signal, crashed))?;
    on_signal(hang_signal(), hung)
}

/// Puts back what handlers have changed about the signals of the rescue; once in a while on the event loop.
pub fn check_signals(now: Instant) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static TOLD: AtomicBool = AtomicBool::new(false);
    if now.as_nanos() < NEXT.load(Ordering::Relaxed) {
        return;
    }
    NEXT.store((now + CHECK).as_nanos(), Ordering::Relaxed);
    let name = |signal| Signal::try_from(signal).map_or("a real-time signal", Signal::as_str);
    let own: [(c_int, Action); 2] = [(hang_signal(), hung), (signals::stop_signal(), signals::stopped)];
    let actions = CRASHES.into_iter().map(|signal| (signal, crashed as Action)).chain(own);
    let mut changed: Vec<String> = actions
        .filter(|(signal, action)| signals::put_back(*signal, *action))
        .map(|(signal, _)| format!("the action of {}", name(signal)))
        .collect();
    changed.extend(signals::unblock_crashes().map(|signal| format!("{signal} blocked")));
    changed.extend(signals::put_stack_back().then(|| "the signal stack".to_owned()));
    if !changed.is_empty() && !TOLD.swap(true, Ordering::Relaxed) {
        log::warn!(
            "a handler has changed signals of the host, which were put back: {}; a crash before that would have cost \
             all connections of this worker (SIGNALS in ws_handler(3))",
            changed.join(", ")
        );
    }
}

/// Crashes the process on the thread that gets it.
pub fn hang_signal() -> c_int {
    libc::SIGRTMIN() + 6
}

/// Has the rescue run on a thread of this process that hangs in a handler, called for this connection.
pub fn kill_hung(thread: Pid, conn: u64) {
    HUNG.1.store(conn, Ordering::Release);
    HUNG.0.store(thread.as_raw(), Ordering::Release);
    // SAFETY: a thread that has just ended is ESRCH, nothing worse.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.as_raw(), hang_signal()) };
}

extern "C" fn hung(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // Of the timer: the time of a handler that is starting is over.
    // SAFETY: the kernel gives a valid siginfo.
    let is_start_over = unsafe { (*info).si_code } == libc::SI_TIMER;
    // SAFETY: gettid has no preconditions.
    let is_meant = HUNG.0.load(Ordering::Acquire) == unsafe { libc::gettid() };
    // Between the watchdog's look and this signal the handler may have returned. Or a handler has raised it.
    if !is_start_over && (!is_meant || place().1 != HUNG.1.load(Ordering::Acquire)) {
        return;
    }
    // SAFETY: the kernel gives a valid context.
    rescue(HANG, 0, unsafe { Registers::of(context) });
    // A core dump shows where it hung.
    die_of(libc::SIGABRT);
}

extern "C" fn crashed(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a valid siginfo.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as u64) };
    let is_fault = code > 0 && [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL].contains(&signal);
    // SAFETY: the kernel gives a valid context.
    let mut registers = unsafe { Registers::of(context) };
    if signal == libc::SIGTRAP && cfg!(target_arch = "x86_64") {
        registers.code = registers.code.saturating_sub(1); // it points behind the breakpoint
    }
    rescue(signal, if is_fault { address } else { 0 }, registers);
    match is_fault {
        // With the default action the instruction faults once more, and a core dump shows it.
        // SAFETY: async-signal-safe, and the default action installs no code.
        true => _ = unsafe { libc::signal(signal, libc::SIG_DFL) },
        false => die_of(signal),
    }
}

/// The process ends by this signal once its handler has returned.
fn die_of(signal: c_int) {
    // SAFETY: both are async-signal-safe.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Runs when a handler calls exit().
extern "C" fn exited() {
    if rescue(EXIT, 0, Registers::here()) {
        // SAFETY: ends the process before destructors free what other threads use.
        unsafe { libc::_exit(crate::exit::Exit::Internal.code()) }
    }
}

/// exit without exit handlers, in place of the C library's: what a handler calls is found in the executable first
/// (build.rs exports it). Other callers just end the process.
#[unsafe(no_mangle)]
extern "C" fn _exit(status: c_int) -> ! {
    let status = if rescue(EXIT, 0, Registers::here()) { crate::exit::Exit::Internal.code() } else { status };
    loop {
        // SAFETY: ends the process.
        unsafe { libc::syscall(libc::SYS_exit_group, status) };
    }
}

/// The same under its name in C99.
#[unsafe(export_name = "_Exit")]
extern "C" fn exit_c99(status: c_int) -> ! {
    _exit(status)
}

/// A child that a handler has forked has returned from its callback: it must not serve its parent's connections.
fn child_returns((callback, conn): CallContext) -> ! {
    // SAFETY: the default action installs no code, and the alarm ends a child that cannot write to the log: a thread
    // that it does not have may have held a lock.
    unsafe {
        libc::signal(libc::SIGALRM, libc::SIG_DFL);
        libc::alarm(1);
    }
    let whose = if conn == 0 { String::new() } else { format!(" for connection {conn:x}") };
    log::error!(
        "{}: a child of fork() returned from {}{whose}; ended it: a child must call exec or _exit",
        handler_name(conn),
        callback.name()
    );
    // SAFETY: ends the child without running exit handlers, which are its parent's.
    unsafe { libc::_exit(crate::exit::Exit::Internal.code()) }
}
