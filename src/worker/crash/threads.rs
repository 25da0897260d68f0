//! All threads of a worker: each gets a stack for signal handlers, so that an overflow of its own stack is rescued, and
//! the function that it began with is known, which tells whose thread it is.
//!
//! `pthread_create` interposes the C library's, since what a handler calls is found in the executable first
//! (build.rs exports it). Threads that the C library makes by itself (thrd_create, timers) pass it by.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::transmute;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::worker::crash::signals::use_signal_stack;

// A thread that is cancelled, or calls pthread_exit, unwinds.
type Function = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;
type Create =
    unsafe extern "C" fn(*mut libc::pthread_t, *const libc::pthread_attr_t, Function, *mut c_void) -> c_int;

thread_local! {
    static BEGAN_WITH: Cell<u64> = const { Cell::new(0) };
}

/// The function that the calling thread began with; 0 if that is not known. Async-signal-safe.
pub fn began_with() -> u64 {
    BEGAN_WITH.get()
}

struct StartRoutine {
    function: Function,
    argument: *mut c_void,
}

/// In place of the C library's.
///
/// # Safety
/// As pthread_create(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    function: Function,
    argument: *mut c_void,
) -> c_int {
    let Some(create) = of_the_library() else { return libc::EAGAIN };
    let beginning = Box::into_raw(Box::new(StartRoutine { function, argument }));
    // SAFETY: as promised by the caller; `begin` takes the beginning over.
    let result = unsafe { create(thread, attributes, begin, beginning.cast()) };
    if result != 0 {
        // SAFETY: no thread has it.
        drop(unsafe { Box::from_raw(beginning) });
    }
    result
}

fn of_the_library() -> Option<Create> {
    static CREATE: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
    let mut create = CREATE.load(Ordering::Relaxed);
    if create.is_null() {
        // SAFETY: the name ends in NUL.
        create = unsafe { libc::dlsym(libc::RTLD_NEXT, c"pthread_create".as_ptr()) };
        CREATE.store(create, Ordering::Relaxed);
    }
    // SAFETY: the C library's function of that name has this type; null is None.
    unsafe { transmute::<*mut c_void, Option<Create>>(create) }
}

/// What every thread does first. Nothing is left to be dropped when the function begins.
unsafe extern "C-unwind" fn begin(beginning: *mut c_void) -> *mut c_void {
    // SAFETY: pthread_create() has given it to this thread.
    let StartRoutine { function, argument } = *unsafe { Box::from_raw(beginning.cast::<StartRoutine>()) };
    BEGAN_WITH.set(function as usize as u64);
    // Without it, when memory is short, an overflow costs more connections than one.
    let _ = use_signal_stack();
    // SAFETY: as promised by the caller of pthread_create().
    unsafe { function(argument) }
}
