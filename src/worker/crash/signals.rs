//! Signals within a worker: handlers and the stacks they run on, and threads that
//! are stopped by them. What runs in a signal handler here is
//! async-signal-safe.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::ffi::host::monotonic;

/// A thread's stack for signal handlers.
const STACK: usize = 64 * 1024;
/// How long to wait for the other threads to stop; ns.
const STOP_TIME: u64 = 100_000_000;
/// When to look for threads that were not told to stop; ns.
const TELL_AGAIN: u64 = 2_000_000;

/// Threads that have stopped.
static STOPPED: AtomicU32 = AtomicU32::new(0);

/// Makes ready what the functions of this module need, on the main thread.
pub fn install() -> io::Result<()> {
    use_signal_stack()?;
    on_signal(stop_signal(), stopped)
}

/// Gives the calling thread a stack on which a stack overflow can be handled. It stays until the process ends or
/// the thread's memory is given back with it.
pub fn use_signal_stack() -> io::Result<()> {
    thread_local! {
        static OWN: UnsafeCell<Option<Box<[MaybeUninit<u8>]>>> = const { UnsafeCell::new(None) };
    }
    OWN.with(|own| {
        // SAFETY: only this thread, only here.
        let stack = unsafe { &mut *own.get() }.get_or_insert_with(|| Box::new_uninit_slice(STACK));
        let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK };
        // SAFETY: the memory lives as long as the thread.
        match unsafe { libc::sigaltstack(&stack, null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    })
}

/// The calling thread ends: its signal stack is not used any more.
pub fn leave_signal_stack() {
    let none = libc::stack_t { ss_sp: null_mut(), ss_flags: libc::SS_DISABLE, ss_size: STACK };
    // SAFETY: disabling needs no memory.
    unsafe { libc::sigaltstack(&none, null_mut()) };
}

/// What a signal handler is.
pub type Action = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Installs a signal handler, which must be async-signal-safe.
pub fn on_signal(signal: c_int, action: Action) -> io::Result<()> {
    // SAFETY: all zero is a valid sigaction.
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    new.sa_sigaction = action as *const () as usize;
    new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the functions given here are async-signal-safe.
    match unsafe { libc::sigaction(signal, &new, null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Stops all threads but this one, also those that handlers made. Gives up after a while: a thread that has
/// blocked the signal goes on.
pub fn stop_other_threads(pid: i32, me: i32) {
    let give_up = monotonic() + STOP_TIME;
    let mut told_at = 0;
    loop {
        let now = monotonic();
        // Again and again: threads begin and end meanwhile. One that has stopped keeps the signal waiting.
        let tell = now - told_at > TELL_AGAIN;
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
        // None runs that could begin another.
        if STOPPED.load(Ordering::Acquire) >= others || now >= give_up {
            return;
        }
        if tell {
            told_at = now;
        }
        nap();
    }
}

/// Waits for a moment. Async-signal-safe.
pub fn nap() {
    let pause = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
    // SAFETY: a live timespec.
    unsafe { libc::nanosleep(&pause, null_mut()) };
}

/// Calls with each thread's id.
fn each_thread(mut call: impl FnMut(i32)) {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: open(2) is async-signal-safe; the path ends in NUL.
    let dir = unsafe { libc::open(c"/proc/self/task".as_ptr(), flags) };
    if dir < 0 {
        return;
    }
    let mut buffer = [0_u8; 4096];
    loop {
        // SAFETY: a live buffer of that size.
        let size = unsafe { libc::syscall(libc::SYS_getdents64, dir, buffer.as_mut_ptr(), buffer.len()) };
        let Ok(size) = usize::try_from(size) else { break };
        if size == 0 {
            break;
        }
        let mut at = 0;
        // struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name.
        while at + 19 < size {
            let length = usize::from(u16::from_ne_bytes([buffer[at + 16], buffer[at + 17]]));
            let name = buffer.get(at + 19..at + length).unwrap_or_default();
            let digits = name.iter().take_while(|byte| byte.is_ascii_digit());
            let tid =
                digits.fold(0_i32, |tid, digit| tid.wrapping_mul(10).wrapping_add(i32::from(digit - b'0')));
            if tid != 0 {
                call(tid);
            }
            at += length.max(1);
        }
    }
    // SAFETY: our own descriptor.
    unsafe { libc::close(dir) };
}

/// Stops a thread for good; real-time signals are free for programs.
fn stop_signal() -> c_int {
    libc::SIGRTMIN() + 5
}

extern "C" fn stopped(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    STOPPED.fetch_add(1, Ordering::AcqRel);
    loop {
        // SAFETY: waits.
        unsafe { libc::pause() };
    }
}
