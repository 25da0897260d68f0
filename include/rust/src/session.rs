//! What stands behind `ws_user()`: the handler's value of one connection, what
//! was attached to it, and its timers.
//!
//! The host owns the session (`ws_set_user_owned`): it is made when the first of
//! these is needed, perhaps in `do_extra_handshake`, and released on the
//! connection's thread after `on_close`, or if the connection never opens.

use std::any::Any;
use std::cell::{OnceCell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::conn::{Conn, Current, TimerId};
use crate::error::{Error, Result, check};
use crate::host::{given, host};
use crate::panics::{contain, contain_and_close};
use crate::raw::{self, ws_conn};

type SendTask = Box<dyn FnOnce(&Current) + Send>;

/// What a handshake attaches for `on_open`, perhaps from another thread.
#[derive(Clone, Default)]
pub(crate) struct Attachment(Arc<Mutex<Option<Box<dyn Any + Send>>>>);

impl Attachment {
    pub(crate) fn set(&self, value: Box<dyn Any + Send>) -> Option<Box<dyn Any + Send>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(value)
    }

    pub(crate) fn take<T: 'static>(&self) -> Option<T> {
        let mut attached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match attached.take()?.downcast() {
            Ok(value) => Some(*value),
            Err(other) => {
                *attached = Some(other);
                None
            }
        }
    }
}

/// One connection of this handler.
#[derive(Default)]
pub(crate) struct Session {
    /// `RefCell<H>` in the event style, `H` in the blocking one; from on_open to
    /// on_close.
    pub(crate) handler: OnceCell<Box<dyn Any>>,
    pub(crate) attachment: Attachment,
    timers: RefCell<Vec<Timer>>,
}

struct Timer {
    /// None until the host has given it.
    id: Option<TimerId>,
    /// Also the argument that the host was given.
    run: Rc<Run>,
}

/// What a timer runs. Each call of the host holds it, so that it may clear itself.
struct Run(RefCell<Option<Task>>);

enum Task {
    Once(Box<dyn FnOnce(&Current)>),
    Again(Box<dyn FnMut(&Current)>),
}

impl Session {
    /// The session of a connection, on its thread: made if there is none.
    pub(crate) fn of<'a>(current: &'a Current) -> Result<&'a Session> {
        if let Some(session) = current.session() {
            return Ok(session);
        }
        let session = Box::into_raw(Box::<Session>::default());
        // SAFETY: the host releases it, exactly once, whatever the result.
        check(unsafe { (host().set_user)(current.conn().0, session.cast(), Some(release)) })?;
        current.session().ok_or(Error::Gone)
    }

    pub(crate) fn event_handler<H: 'static>(&self) -> Option<&RefCell<H>> {
        self.handler.get()?.downcast_ref()
    }

    pub(crate) fn set_timer(
        &self,
        conn: Conn,
        delay: Duration,
        task: impl FnOnce(&Current) + 'static,
    ) -> Result<TimerId> {
        self.add_timer(conn, (millis(delay), 0), Task::Once(Box::new(task)))
    }

    pub(crate) fn set_interval(
        &self,
        conn: Conn,
        period: Duration,
        task: impl FnMut(&Current) + 'static,
    ) -> Result<TimerId> {
        let period = millis(period).max(1);
        self.add_timer(conn, (period, period), Task::Again(Box::new(task)))
    }

    fn add_timer(&self, conn: Conn, (delay, period): (u64, u64), task: Task) -> Result<TimerId> {
        let run = Rc::new(Run(RefCell::new(Some(task))));
        let arg = Rc::as_ptr(&run).cast_mut().cast();
        // SAFETY: the list holds it until the host can no longer call: it has run,
        // was cleared, or the session is released.
        let id = unsafe { (host().set_timer)(given(), conn.0, delay, period, Some(run_timer), arg) };
        if id <= 0 {
            return Err(Error::from_code(i32::try_from(id).unwrap_or(raw::WS_E_FAILED)));
        }
        self.timers.borrow_mut().push(Timer { id: Some(TimerId(id)), run });
        Ok(TimerId(id))
    }

    /// Drops the task of a timer that was cleared.
    pub(crate) fn forget_timer(&self, id: TimerId) {
        drop(self.take_timer(|timer| timer.id == Some(id)));
    }

    /// Taken out first and dropped by the caller: dropping it runs code of the handler.
    fn take_timer(&self, wanted: impl Fn(&Timer) -> bool) -> Option<Timer> {
        let mut timers = self.timers.borrow_mut();
        let at = timers.iter().position(wanted)?;
        Some(timers.swap_remove(at))
    }
}

unsafe extern "C" fn release(session: *mut c_void) {
    // SAFETY: the box of of(), given back exactly once, on the connection's thread.
    let session = unsafe { Box::from_raw(session.cast::<Session>()) };
    contain(0, "dropping what a connection had", move || drop(session));
}

fn millis(delay: Duration) -> u64 {
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)
}

unsafe extern "C" fn run_timer(conn: ws_conn, arg: *mut c_void) {
    contain_and_close(conn, "a timer", || {
        // SAFETY: the host calls timers in a callback of their connection.
        let current = unsafe { Current::new(conn) };
        let session = current.session().ok_or(Error::Gone)?;
        let wanted = |timer: &Timer| Rc::as_ptr(&timer.run).cast::<c_void>() == arg.cast_const();
        let run =
            session.timers.borrow().iter().find(|timer| wanted(timer)).map(|timer| Rc::clone(&timer.run));
        let run = run.ok_or(Error::Gone)?;
        let task = run.0.borrow_mut().take();
        match task {
            Some(Task::Once(task)) => {
                drop(session.take_timer(wanted));
                task(&current);
            }
            Some(Task::Again(mut task)) => {
                task(&current);
                *run.0.borrow_mut() = Some(Task::Again(task));
            }
            // It has panicked before.
            None => {}
        }
        Ok(())
    });
}

/// `ws_post()` with a closure.
pub(crate) fn post(conn: Conn, task: SendTask) -> Result {
    let task = Box::into_raw(Box::new(task));
    // SAFETY: run_posted takes the box over, and is called exactly once after WS_OK.
    let result = check(unsafe { (host().post)(given(), conn.0, Some(run_posted), task.cast()) });
    if result.is_err() {
        // SAFETY: the host has refused it, so this is the only pointer.
        drop(unsafe { Box::from_raw(task) });
    }
    result
}

unsafe extern "C" fn run_posted(conn: ws_conn, arg: *mut c_void) {
    // SAFETY: the box of post(), given back exactly once.
    let task = unsafe { Box::from_raw(arg.cast::<SendTask>()) };
    contain_and_close(conn, "a posted task", move || {
        // SAFETY: on the thread of the connection, or the connection is gone, and
        // then nothing but its version is asked.
        let current = unsafe { Current::new(conn) };
        if current.version() != 0 {
            task(&current);
        }
        Ok(())
    });
}
