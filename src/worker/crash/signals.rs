//! Signals within a worker: their handlers, the stacks that these run on, and how the other threads are stopped.
//! Everything that runs in a signal handler here is async-signal-safe.
//!
//! Raw sigaction(2) rather than a library: handlers need the alternate stack, siginfo and the registers.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::io;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use crate::clock;
use crate::time::Instant;
use crate::worker::base::memory::Pages;

/// Signals that say that the code has crashed; the rescue handles them.
pub const CRASHES: [c_int; 8] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGXCPU,
];
/// Signals that would end or stop the process, although they say nothing about it: a timer of a library, a terminal, a
/// mistake. SIGALRM is not among them: it tells of the end of the supervisor.
const STRAY: [c_int; 14] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGPIPE,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXFSZ,
];

/// A thread's stack for signal handlers.
const STACK: usize = 64 * 1024;
/// How long to wait for the event loop to finish what it is doing.
const FINISH_TIME: Duration = Duration::from_millis(50);
/// How long to wait for the other threads to stop.
const STOP_TIME: Duration = Duration::from_millis(100);
/// How long to wait in addition for the event loop to leave [`uninterrupted`].
const UNINTERRUPTED_TIME: Duration = Duration::from_secs(2);
/// When to look for threads that were not told to stop.
const TELL_AGAIN: Duration = Duration::from_millis(2);

/// The threads of this process: a descriptor of `/proc/self/task`, opened while there were descriptors.
static TASKS: AtomicI32 = AtomicI32::new(-1);
static STOPPING: AtomicBool = AtomicBool::new(false);
/// The event loop is in a piece of its work.
static BUSY: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicU32 = AtomicU32::new(0);
/// How deep the event loop is in [`uninterrupted`].
static UNINTERRUPTED: AtomicU32 = AtomicU32::new(0);

/// Makes stray signals do nothing. To be called before any code of a handler runs, whose own handlers then replace
/// these. A function rather than SIG_IGN: programs that a handler starts begin with the default.
pub fn disarm_stray() -> io::Result<()> {
    let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
    STRAY.into_iter().chain(real_time).try_for_each(|signal| match on_signal(signal, nothing) {
        // One that what runs this process keeps for itself, as valgrind does.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    })
}

/// Puts the handler of a signal back; whether it was another one.
pub fn put_back(signal: c_int, action: Action) -> bool {
    // SAFETY: all zero is a valid sigaction, which is only written to.
    let mut current: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: changes nothing; a live sigaction.
    unsafe { libc::sigaction(signal, null(), &mut current) };
    current.sa_sigaction != action as *const () as usize && on_signal(signal, action).is_ok()
}

/// Puts the calling thread's signal stack back; whether it was another one.
pub fn put_stack_back() -> bool {
    OWN_STACK.with_borrow(|own| {
        let Some(own) = own.as_ref().map(|own| stack_of(&own.0)) else { return false };
        let mut current = own;
        // SAFETY: changes nothing; a live stack_t.
        unsafe { libc::sigaltstack(null(), &mut current) };
        // SAFETY: the pages are kept for as long as they are the thread's stack.
        current.ss_sp != own.ss_sp && unsafe { libc::sigaltstack(&own, null_mut()) } == 0
    })
}

/// Has the calling thread receive the signals of a crash; the first one that it had blocked.
pub fn unblock_crashes() -> Option<Signal> {
    let crashes = CRASHES.into_iter().filter_map(|signal| Signal::try_from(signal).ok());
    let blocked = SigSet::thread_get_mask().ok()?;
    let blocked: SigSet = crashes.filter(|signal| blocked.contains(*signal)).collect();
    blocked.thread_unblock().ok()?;
    blocked.iter().next()
}

/// Makes ready what the functions of this module need, on the main thread.
pub fn install() -> io::Result<()> {
    put_stack_back();
    TASKS.store(open_tasks(), Ordering::Relaxed);
    on_signal(stop_signal(), stopped)
}

/// Gives the calling thread a stack on which a stack overflow can be handled, until it ends.
pub fn use_signal_stack() -> io::Result<()> {
    let own = SignalStack(Pages::map(STACK)?);
    // SAFETY: the pages are kept for as long as they are the thread's stack.
    match unsafe { libc::sigaltstack(&stack_of(&own.0), null_mut()) } {
        0 => OWN_STACK.set(Some(own)),
        _ => return Err(io::Error::last_os_error()),
    }
    Ok(())
}

/// The calling thread's stack for signal handlers.
struct SignalStack(Pages);

impl Drop for SignalStack {
    fn drop(&mut self) {
        let none = libc::stack_t { ss_sp: null_mut(), ss_flags: libc::SS_DISABLE, ss_size: STACK };
        // SAFETY: disabling needs no memory. If the thread has another stack by now it ends all the same.
        unsafe { libc::sigaltstack(&none, null_mut()) };
    }
}

fn stack_of(pages: &Pages) -> libc::stack_t {
    libc::stack_t { ss_sp: pages.first().as_ptr().cast(), ss_flags: 0, ss_size: STACK }
}

thread_local! {
    static OWN_STACK: RefCell<Option<SignalStack>> = const { RefCell::new(None) };
}

pub type Action = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Installs a signal handler, which must be async-signal-safe.
pub fn on_signal(signal: c_int, action: Action) -> io::Result<()> {
    // SAFETY: all zero is a valid sigaction.
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    new.sa_sigaction = action as *const () as usize;
    new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the functions given here are async-signal-safe.
    match unsafe { libc::sigaction(signal, &new, null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The event loop begins its next piece of work. Between two pieces all connections are consistent: a crash of another
/// thread stops the loop here.
pub fn begin_work() {
    BUSY.store(true, Ordering::SeqCst);
    if STOPPING.load(Ordering::SeqCst) {
        stop_here();
    }
}

pub fn end_work() {
    BUSY.store(false, Ordering::SeqCst);
}

fn stop_here() -> ! {
    end_work();
    park_until_exit()
}

/// Runs `work` on the event loop so that a crash on another thread does not stop it in the middle: what it moves is in
/// one place or the other whenever the rescue looks. Must be short, and must not call a handler.
pub fn uninterrupted<R>(work: impl FnOnce() -> R) -> R {
    UNINTERRUPTED.fetch_add(1, Ordering::SeqCst);
    let result = work();
    if UNINTERRUPTED.fetch_sub(1, Ordering::SeqCst) == 1 && STOPPING.load(Ordering::SeqCst) {
        // The signal, if it came before, comes once more.
        stop_here();
    }
    result
}

/// Stops all threads but this one, also those that handlers made; the event loop, if it can, between two pieces of its
/// work. Gives up after a while: a thread that has blocked the signal goes on.
pub fn stop_other_threads(pid: i32, me: i32) {
    STOPPING.store(true, Ordering::SeqCst);
    let finished_by = clock::now() + FINISH_TIME;
    while me != pid && BUSY.load(Ordering::SeqCst) && clock::now() < finished_by {
        sleep_briefly();
    }
    let give_up = clock::now() + STOP_TIME;
    let mut told_at = Instant::default();
    loop {
        let now = clock::now();
        // Again and again: threads begin and end meanwhile. In one that has stopped the signal stays pending.
        let tell = now.since(told_at) > TELL_AGAIN;
        let mut others = 0;
        each_thread(|tid| {
            if tid != me {
                others += 1;
                if tell {
                    // SAFETY: a thread that has just ended is ESRCH, nothing worse.
                    unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, stop_signal()) };
                }
            }
        });
        let is_held_back = me != pid && UNINTERRUPTED.load(Ordering::SeqCst) > 0;
        let give_up = give_up + if is_held_back { UNINTERRUPTED_TIME } else { Duration::ZERO };
        // None runs that could begin another.
        if STOPPED.load(Ordering::Acquire) >= others || now >= give_up {
            return;
        }
        if tell {
            told_at = now;
        }
        sleep_briefly();
    }
}

/// Waits for a moment. Async-signal-safe.
fn sleep_briefly() {
    let pause = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
    // SAFETY: a live timespec.
    unsafe { libc::nanosleep(&pause, null_mut()) };
}

/// Waits until the process ends. Async-signal-safe.
pub fn park_until_exit() -> ! {
    loop {
        // SAFETY: waits.
        unsafe { libc::pause() };
    }
}

fn open_tasks() -> c_int {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: open(2) is async-signal-safe; the path ends in NUL.
    unsafe { libc::open(c"/proc/self/task".as_ptr(), flags) }
}

/// Calls with each thread's id.
fn each_thread(mut call: impl FnMut(i32)) {
    if list_threads(TASKS.load(Ordering::Relaxed), &mut call) == 0 {
        // A handler has closed the descriptor; another file may have its number by now.
        TASKS.store(open_tasks(), Ordering::Relaxed);
        list_threads(TASKS.load(Ordering::Relaxed), &mut call);
    }
}

/// The same from this descriptor; returns how many there are.
fn list_threads(tasks: c_int, call: &mut impl FnMut(i32)) -> usize {
    let mut buffer = [0_u8; 4096];
    let mut count = 0;
    // SAFETY: moves the position of our descriptor, or fails.
    unsafe { libc::lseek(tasks, 0, libc::SEEK_SET) };
    loop {
        // SAFETY: a live buffer of that size.
        let size = unsafe { libc::syscall(libc::SYS_getdents64, tasks, buffer.as_mut_ptr(), buffer.len()) };
        let Some(size) = usize::try_from(size).ok().filter(|size| *size > 0) else { return count };
        let mut at = 0;
        // struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name.
        while at + 19 < size {
            let length = usize::from(u16::from_ne_bytes([buffer[at + 16], buffer[at + 17]]));
            let name = buffer.get(at + 19..at + length).and_then(|name| name.split(|byte| *byte == 0).next());
            // Not "." and "..".
            if let Some(tid) = name.and_then(|name| str::from_utf8(name).ok()?.parse().ok()) {
                count += 1;
                call(tid);
            }
            at += length.max(1);
        }
    }
}

/// Stops a thread for good; real-time signals are free for programs.
pub fn stop_signal() -> c_int {
    libc::SIGRTMIN() + 5
}

/// The handler of [`stop_signal`].
pub extern "C" fn stopped(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    // Nobody is to stop: a handler has raised it.
    if !STOPPING.load(Ordering::SeqCst) {
        return;
    }
    // SAFETY: both have no preconditions.
    let is_loop = unsafe { libc::gettid() == libc::getpid() };
    if is_loop && UNINTERRUPTED.load(Ordering::SeqCst) > 0 {
        return;
    }
    STOPPED.fetch_add(1, Ordering::AcqRel);
    park_until_exit();
}

extern "C" fn nothing(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}
