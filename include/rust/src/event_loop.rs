//! What a handler has in a worker without a connection: timers, posted tasks,
//! watched descriptors. All of it runs on the worker's event loop and must not wait.

use std::cell::RefCell;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use crate::error::{Error, Result, check};
use crate::host::{given, host};
use crate::panics::contain;
use crate::raw::{self, ws_conn};

/// A function that runs again and again, and may end itself meanwhile.
type Again<A> = RefCell<Box<dyn FnMut(A)>>;

/// Runs `task` soon on the worker's event loop, at the latest before `on_worker_stop`. From any thread.
///
/// # Errors
/// `Limit` (1,024 are waiting): the task is dropped at once.
pub fn post(task: impl FnOnce() + Send + 'static) -> Result {
    let task: Box<Box<dyn FnOnce() + Send>> = Box::new(Box::new(task));
    let task = Box::into_raw(task);
    // SAFETY: run_posted takes the box over, and is called exactly once after WS_OK.
    let result = check(unsafe { (host().post)(given(), 0, Some(run_posted), task.cast()) });
    if result.is_err() {
        // SAFETY: the host has refused it, so this is the only pointer.
        drop(unsafe { Box::from_raw(task) });
    }
    result
}

unsafe extern "C" fn run_posted(_: ws_conn, arg: *mut c_void) {
    // SAFETY: the box of post(), given back exactly once.
    let task = unsafe { Box::from_raw(arg.cast::<Box<dyn FnOnce() + Send>>()) };
    contain(0, "a posted task", task);
}

/// A timer of the worker that runs again and again; dropped, it ends. It cannot leave the thread of the event loop.
pub struct Interval {
    id: i64,
    run: ManuallyDrop<Rc<Again<()>>>,
}

impl Interval {
    /// Runs `task` every `period` (at least a millisecond). Calls that could not come in time are left out.
    ///
    /// # Errors
    /// `Limit` (more than 256), `Place`: not on the thread of the event loop.
    pub fn new(period: Duration, mut task: impl FnMut() + 'static) -> Result<Interval> {
        let run: Rc<Again<()>> = Rc::new(RefCell::new(Box::new(move |()| task())));
        let ms = u64::try_from(period.as_millis()).unwrap_or(u64::MAX).max(1);
        let arg = Rc::as_ptr(&run).cast_mut().cast();
        // SAFETY: this value holds it until the host can no longer call.
        let id = unsafe { (host().set_timer)(given(), 0, ms, ms, Some(run_interval), arg) };
        match id {
            1.. => Ok(Interval { id, run: ManuallyDrop::new(run) }),
            error => Err(Error::from_code(i32::try_from(error).unwrap_or(raw::WS_E_FAILED))),
        }
    }
}

impl Drop for Interval {
    fn drop(&mut self) {
        // SAFETY: takes values.
        if unsafe { (host().clear_timer)(given(), 0, self.id) } == raw::WS_OK {
            // SAFETY: not used any more, neither here nor by the host.
            unsafe { ManuallyDrop::drop(&mut self.run) };
        }
    }
}

unsafe extern "C" fn run_interval(_: ws_conn, arg: *mut c_void) {
    // SAFETY: the host calls it while the interval holds it.
    unsafe { run_again::<()>("an interval of the worker", arg, ()) }
}

/// A descriptor that is watched by the event loop; dropped, it is watched no more. The descriptor stays the caller's:
/// drop this before it is closed.
pub struct Watch {
    fd: RawFd,
    run: ManuallyDrop<Rc<Again<u32>>>,
}

impl Watch {
    /// Runs `ready` with `WS_FD_...` whenever the descriptor is ready for `events`.
    ///
    /// # Errors
    /// `Invalid` (not a descriptor that can be watched, or watched already; other events), `Limit` (more than 256),
    /// `Place`: not on the thread of the event loop.
    pub fn new(fd: RawFd, events: u32, ready: impl FnMut(u32) + 'static) -> Result<Watch> {
        let run: Rc<Again<u32>> = Rc::new(RefCell::new(Box::new(ready)));
        if WATCHED.with_borrow(|watched| watched.contains(&fd)) {
            return Err(Error::Invalid);
        }
        let arg = Rc::as_ptr(&run).cast_mut().cast();
        // SAFETY: this value holds it until the host can no longer call.
        check(unsafe { (host().watch_fd)(given(), fd, events, Some(run_ready), arg) })?;
        WATCHED.with_borrow_mut(|watched| watched.push(fd));
        Ok(Watch { fd, run: ManuallyDrop::new(run) })
    }

    /// Changes what it is watched for.
    ///
    /// # Errors
    /// As of [`Watch::new`].
    pub fn set_events(&self, events: u32) -> Result {
        let arg = Rc::as_ptr(&self.run).cast_mut().cast();
        // SAFETY: as in new().
        check(unsafe { (host().watch_fd)(given(), self.fd, events, Some(run_ready), arg) })
    }
}

thread_local! {
    /// One watch for each descriptor: another would replace its function, and then be unwatched with it.
    static WATCHED: RefCell<Vec<RawFd>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = WATCHED.try_with(|watched| watched.borrow_mut().retain(|fd| *fd != self.fd));
        // SAFETY: takes values.
        if unsafe { (host().unwatch_fd)(given(), self.fd) } == raw::WS_OK {
            // SAFETY: not used any more, neither here nor by the host.
            unsafe { ManuallyDrop::drop(&mut self.run) };
        }
    }
}

unsafe extern "C" fn run_ready(_: i32, events: u32, arg: *mut c_void) {
    // SAFETY: the host calls it while the watch holds it.
    unsafe { run_again("the function of a descriptor", arg, events) }
}

/// # Safety
/// `arg` points to what an [`Rc`] of this type holds.
unsafe fn run_again<A>(place: &str, arg: *mut c_void, with: A) {
    let run: *const Again<A> = arg.cast_const().cast();
    // SAFETY: promised by the caller; this holds it for the call, in which its owner may be dropped.
    let run = unsafe {
        Rc::increment_strong_count(run);
        Rc::from_raw(run)
    };
    contain(0, place, move || {
        if let Ok(mut task) = run.try_borrow_mut() {
            task(with);
        }
        drop(run);
    });
}
