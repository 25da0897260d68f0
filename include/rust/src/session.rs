//! What stands behind `ws_user()`: the handler's value of one connection and its
//! timers; and the door through which panics do not leave.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::conn::{Conn, Current, TimerId};
use crate::error::{Error, Result, check};
use crate::host::{Level, host, log_conn};
use crate::raw::{self, ws_conn};

type Task = Box<dyn FnOnce(&Current)>;
type SendTask = Box<dyn FnOnce(&Current) + Send>;

/// One connection of this handler.
pub(crate) struct Session {
    /// `RefCell<H>` in the event style, `H` in the blocking one.
    pub(crate) handler: Box<dyn Any>,
    /// By the argument that the host was given: which timer, and its task.
    timers: RefCell<Vec<(TimerId, *mut Timer)>>,
}

struct Timer {
    task: Task,
}

impl Session {
    pub(crate) fn new(handler: Box<dyn Any>) -> Session {
        Session { handler, timers: RefCell::default() }
    }

    pub(crate) fn event_handler<H: 'static>(&self) -> Option<&RefCell<H>> {
        self.handler.downcast_ref()
    }

    pub(crate) fn set_timer(&self, conn: Conn, delay: Duration, task: Task) -> Result<TimerId> {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let timer = Box::into_raw(Box::new(Timer { task }));
        // SAFETY: run_timer takes the box over; it is dropped by forget_timer or
        // with the session only after the host can no longer call.
        let id = unsafe { (host().set_timer)(conn.0, delay_ms, Some(run_timer), timer.cast()) };
        if id > 0 {
            self.timers.borrow_mut().push((TimerId(id), timer));
            return Ok(TimerId(id));
        }
        // SAFETY: the host has refused it, so this is the only pointer.
        drop(unsafe { Box::from_raw(timer) });
        Err(Error::from_code(i32::try_from(id).unwrap_or(raw::WS_E_FAILED)))
    }

    /// Drops the task of a timer that was cleared.
    pub(crate) fn forget_timer(&self, id: TimerId) {
        let found = take(&mut self.timers.borrow_mut(), |timer| timer.0 == id);
        if let Some((_, timer)) = found {
            // SAFETY: it was in the list, so neither run nor dropped.
            drop(unsafe { Box::from_raw(timer) });
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for (_, timer) in self.timers.take() {
            // SAFETY: it was in the list, so neither run nor dropped.
            drop(unsafe { Box::from_raw(timer) });
        }
    }
}

unsafe extern "C" fn run_timer(conn: ws_conn, arg: *mut c_void) {
    let timer: *mut Timer = arg.cast();
    contain_and_close(conn, "a timer", || {
        // SAFETY: the host calls timers in a callback of their connection.
        let current = unsafe { Current::new(conn) };
        let session = current.session().ok_or(Error::Gone)?;
        take(&mut session.timers.borrow_mut(), |(_, known)| *known == timer).ok_or(Error::Gone)?;
        // SAFETY: it was in the list, so neither run nor dropped.
        let timer = unsafe { Box::from_raw(timer) };
        (timer.task)(&current);
        Ok(())
    });
}

/// `ws_post()` with a closure.
pub(crate) fn post(conn: Conn, task: SendTask) -> Result {
    let task = Box::into_raw(Box::new(task));
    // SAFETY: run_posted takes the box over, and is called exactly once after WS_OK.
    let result = check(unsafe { (host().post)(conn.0, Some(run_posted), task.cast()) });
    if result.is_err() {
        // SAFETY: the host has refused it, so this is the only pointer.
        drop(unsafe { Box::from_raw(task) });
    }
    result
}

unsafe extern "C" fn run_posted(conn: ws_conn, arg: *mut c_void) {
    // SAFETY: the box of post(), given back exactly once.
    let task = unsafe { Box::from_raw(arg.cast::<SendTask>()) };
    contain_and_close(conn, "a posted task", || {
        // SAFETY: on the thread of the connection, or the connection is gone, and
        // then nothing but its version is asked.
        let current = unsafe { Current::new(conn) };
        if current.version() != 0 {
            task(&current);
        }
        Ok(())
    });
}

/// Runs `body`, and logs a panic instead of passing it on.
pub(crate) fn contain<R>(conn: ws_conn, place: &str, body: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => Some(result),
        Err(payload) => {
            let text = payload
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("of an unknown type");
            log_conn(conn, Level::Error, &format!("panic in {place}: {text}"));
            std::mem::forget(payload); // dropping it could panic again
            None
        }
    }
}

/// Runs the body of a callback with a result: 0, or a negative one that was logged.
pub(crate) fn contain_result(conn: ws_conn, place: &str, body: impl FnOnce() -> crate::Outcome<i32>) -> i32 {
    match contain(conn, place, body) {
        Some(Ok(result)) => result,
        Some(Err(error)) => {
            let code = error.downcast_ref::<Error>().map_or(raw::WS_E_FAILED, |error| error.code());
            if code != raw::WS_E_GONE {
                log_conn(conn, Level::Error, &format!("error in {place}: {error}"));
            }
            code
        }
        None => raw::WS_E_FAILED,
    }
}

/// Runs the body of a callback without a result: a failure closes with 1011.
pub(crate) fn contain_and_close(conn: ws_conn, place: &str, body: impl FnOnce() -> crate::Outcome) {
    let result = contain_result(conn, place, || body().map(|()| raw::WS_OK));
    if result < 0 && result != raw::WS_E_GONE {
        let _ = Conn(conn).close(raw::WS_CLOSE_INTERNAL_ERROR, "");
    }
}

fn take<T>(items: &mut Vec<T>, wanted: impl Fn(&T) -> bool) -> Option<T> {
    items.iter().position(wanted).map(|at| items.swap_remove(at))
}
