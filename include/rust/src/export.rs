//! Behind [`crate::export!`]: the handler's table and the functions in it.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::ptr;
use std::time::Duration;

use crate::bytes::{Bytes, Message, slice};
use crate::conn::{Blocking, Current};
use crate::error::{Error, Outcome};
use crate::handshake::Handshake;
use crate::host::{self, host};
use crate::panics::{self, contain, contain_and_close, contain_result};
use crate::raw::{self, ws_conn, ws_handler, ws_handshake, ws_host, ws_message};
use crate::session::Session;
use crate::style::{BlockingHandler, By, Handler};

/// Makes a type that implements [`Handler`] (or, after `blocking`,
/// [`BlockingHandler`]) the handler of this `cdylib`. What follows sets members of
/// the table: `name`, `version`, `protocols` take a `c"string"`, `flags` takes
/// `WS_KEEP_REQUEST`, `WS_STREAM`, `WS_NO_EXTENSIONS`, `WS_RESUMABLE`.
///
/// ```
/// # use ws_handler::*;
/// # struct Chat;
/// # impl Handler for Chat {
/// #     fn on_open(_: &Current) -> Outcome<Self> { Ok(Chat) }
/// #     fn on_message(&mut self, _: &Current, _: Message) -> Outcome { Ok(()) }
/// # }
/// ws_handler::export!(Chat, name(c"chat"), protocols(c"chat.v2, chat.v1"), flags(WS_KEEP_REQUEST));
/// ```
#[macro_export]
macro_rules! export {
    (blocking $handler:ty $(, $member:ident($value:expr))* $(,)?) => {
        $crate::export!(@ $crate::export::Table::blocking::<$handler>() $(.$member($value))*);
    };
    (@ $table:expr) => {
        /// The one symbol that a handler exports.
        ///
        /// # Safety
        /// Called by the host, once, with its table.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn ws_handler_entry_v1(
            host: *const $crate::raw::ws_host,
        ) -> *const $crate::raw::ws_handler {
            static TABLE: $crate::export::Table = $table;
            // SAFETY: as promised by the host.
            unsafe { TABLE.enter(host) }
        }
    };
    ($handler:ty $(, $member:ident($value:expr))* $(,)?) => {
        $crate::export!(@ $crate::export::Table::event::<$handler>() $(.$member($value))*);
    };
}

/// The handler's table.
pub struct Table(ws_handler);

// SAFETY: it is never written, and its strings are static.
unsafe impl Sync for Table {}

impl Table {
    /// The table of an event handler.
    pub const fn event<H: Handler>() -> Table {
        Table(ws_handler {
            on_worker_start: Some(event_worker_start::<H>),
            on_worker_stop: Some(event_worker_stop::<H>),
            do_extra_handshake: Some(event_handshake::<H>),
            on_open: Some(event_open::<H>),
            on_message: Some(event_message::<H>),
            passive_closing_handshake: Some(event_passive::<H>),
            on_close: Some(event_close::<H>),
            on_pong: Some(event_pong::<H>),
            on_writable: Some(event_writable::<H>),
            on_drain: Some(event_drain::<H>),
            ..EMPTY
        })
    }

    /// The table of a blocking handler.
    pub const fn blocking<H: BlockingHandler>() -> Table {
        Table(ws_handler {
            on_worker_start: Some(blocking_worker_start::<H>),
            on_worker_stop: Some(blocking_worker_stop::<H>),
            do_extra_handshake: Some(blocking_handshake::<H>),
            on_open: Some(blocking_open::<H>),
            transfer_data: Some(blocking_transfer_data::<H>),
            passive_closing_handshake: Some(blocking_passive::<H>),
            on_close: Some(blocking_close::<H>),
            on_pong: Some(blocking_pong::<H>),
            ..EMPTY
        })
    }

    /// Sets the name.
    pub const fn name(mut self, name: &'static CStr) -> Table {
        self.0.name = name.as_ptr();
        self
    }

    /// Sets the version.
    pub const fn version(mut self, version: &'static CStr) -> Table {
        self.0.version = version.as_ptr();
        self
    }

    /// Sets the subprotocols, in order of preference.
    pub const fn protocols(mut self, protocols: &'static CStr) -> Table {
        self.0.protocols = protocols.as_ptr();
        self
    }

    /// Sets the flags.
    pub const fn flags(mut self, flags: u32) -> Table {
        self.0.flags = flags;
        self
    }

    /// The work of the entry point.
    ///
    /// # Safety
    /// `host` is the host's table, which lives as long as the process.
    pub unsafe fn enter(&'static self, host: *const ws_host) -> *const ws_handler {
        panics::set_hook();
        // SAFETY: promised by the caller.
        if unsafe { host::set_host(host) } { &self.0 } else { ptr::null() }
    }
}

const EMPTY: ws_handler = ws_handler {
    size: size_of::<ws_handler>(),
    abi: raw::WS_ABI,
    flags: 0,
    name: ptr::null(),
    version: ptr::null(),
    protocols: ptr::null(),
    on_worker_start: None,
    on_worker_stop: None,
    do_extra_handshake: None,
    on_open: None,
    transfer_data: None,
    on_message: None,
    passive_closing_handshake: None,
    on_close: None,
    on_pong: None,
    on_writable: None,
    on_drain: None,
};

// ------------------------------------------------------- what the styles share
//
// The functions below are called by the host only, on the thread of the
// connection and with arguments as ws_handler.h says. That is what each SAFETY
// sentence here rests on.

unsafe fn handshake(
    conn: ws_conn,
    hs: *mut ws_handshake,
    body: impl FnOnce(&Current, &Handshake) -> Outcome<crate::Reply>,
) -> i32 {
    contain_result(conn, "do_extra_handshake", || {
        // SAFETY: a callback of this connection is running.
        let current = unsafe { Current::new(conn) };
        Handshake::lend(hs, &current, |handshake| body(&current, handshake)).map(|reply| reply.0)
    })
}

unsafe fn open(conn: ws_conn, body: impl FnOnce(&Current) -> Outcome<Box<dyn Any>>) -> i32 {
    contain_result(conn, "on_open", || {
        // SAFETY: a callback of this connection is running.
        let current = unsafe { Current::new(conn) };
        let session = Session::of(&current)?;
        let handler = body(&current)?;
        session.handler.set(handler).map_or(Err(Error::Failed.into()), |()| Ok(raw::WS_OK))
    })
}

unsafe fn close(conn: ws_conn, body: impl FnOnce(&Current, Box<dyn Any>)) {
    contain(conn, "on_close", || {
        // SAFETY: a callback of this connection is running.
        let current = unsafe { Current::new(conn) };
        // SAFETY: null, or the session, to which nobody else has a reference: no
        // other callback is running, and the Current above has given none.
        let handler = unsafe {
            let session = (host().user)(conn).cast::<Session>();
            session.as_mut().and_then(|session| session.handler.take())
        };
        // None if on_open has failed.
        if let Some(handler) = handler {
            body(&current, handler);
        }
    });
}

// ------------------------------------------------------------------ event style

/// Runs a method of the handler.
unsafe fn call<H: Handler>(conn: ws_conn, body: impl FnOnce(&mut H, &Current) -> Outcome) -> Outcome {
    // SAFETY: a callback of this connection is running.
    let current = unsafe { Current::new(conn) };
    let session = current.session().ok_or(Error::Gone)?;
    let handler = session.event_handler::<H>().ok_or(Error::Failed)?;
    body(&mut *handler.try_borrow_mut().map_err(|_| Error::Place)?, &current)
}

/// The same; a failure closes with 1011.
unsafe fn event<H: Handler>(conn: ws_conn, place: &str, body: impl FnOnce(&mut H, &Current) -> Outcome) {
    // SAFETY: called by the host.
    contain_and_close(conn, place, || unsafe { call(conn, body) });
}

unsafe extern "C" fn event_worker_start<H: Handler>() -> i32 {
    contain_result(0, "on_worker_start", || H::on_worker_start().map(|()| raw::WS_OK))
}

unsafe extern "C" fn event_worker_stop<H: Handler>() {
    contain(0, "on_worker_stop", H::on_worker_stop);
}

unsafe extern "C" fn event_handshake<H: Handler>(conn: ws_conn, hs: *mut ws_handshake) -> i32 {
    // SAFETY: called by the host.
    unsafe { handshake(conn, hs, H::do_extra_handshake) }
}

unsafe extern "C" fn event_open<H: Handler>(conn: ws_conn) -> i32 {
    // SAFETY: called by the host.
    unsafe { open(conn, |current| Ok(Box::new(RefCell::new(H::on_open(current)?)))) }
}

unsafe extern "C" fn event_message<H: Handler>(conn: ws_conn, msg: *const ws_message) {
    // SAFETY: called by the host; the message is valid until this returns.
    unsafe {
        event::<H>(conn, "on_message", |handler, current| {
            handler.on_message(current, Message::from_raw(&*msg))
        });
    }
}

unsafe extern "C" fn event_passive<H: Handler>(conn: ws_conn) -> i32 {
    contain_result(conn, "passive_closing_handshake", || {
        // SAFETY: called by the host.
        unsafe { call(conn, H::passive_closing_handshake) }.map(|()| raw::WS_OK)
    })
}

unsafe extern "C" fn event_close<H: Handler>(conn: ws_conn, by: u32, code: u32) {
    // SAFETY: called by the host.
    unsafe {
        close(conn, |current, handler| {
            if let Ok(handler) = handler.downcast::<RefCell<H>>() {
                handler.into_inner().on_close(current, By::from_raw(by), code);
            }
        });
    }
}

unsafe extern "C" fn event_pong<H: Handler>(conn: ws_conn, data: *const c_char, size: usize, rtt: u64) {
    // SAFETY: called by the host; the data is valid until this returns.
    unsafe {
        event::<H>(conn, "on_pong", |handler, current| {
            handler.on_pong(current, Bytes(slice(data, size)), Duration::from_nanos(rtt))
        });
    }
}

unsafe extern "C" fn event_writable<H: Handler>(conn: ws_conn) {
    // SAFETY: called by the host.
    unsafe { event::<H>(conn, "on_writable", H::on_writable) }
}

unsafe extern "C" fn event_drain<H: Handler>(conn: ws_conn) {
    // SAFETY: called by the host.
    unsafe { event::<H>(conn, "on_drain", H::on_drain) }
}

// --------------------------------------------------------------- blocking style

/// The handler of a connection.
fn blocking<'a, H: BlockingHandler>(current: &'a Current) -> crate::Result<&'a H> {
    let handler = current.session().and_then(|session| session.handler.get());
    handler.and_then(|handler| handler.downcast_ref()).ok_or(Error::Gone)
}

unsafe extern "C" fn blocking_worker_start<H: BlockingHandler>() -> i32 {
    contain_result(0, "on_worker_start", || H::on_worker_start().map(|()| raw::WS_OK))
}

unsafe extern "C" fn blocking_worker_stop<H: BlockingHandler>() {
    contain(0, "on_worker_stop", H::on_worker_stop);
}

unsafe extern "C" fn blocking_handshake<H: BlockingHandler>(conn: ws_conn, hs: *mut ws_handshake) -> i32 {
    // SAFETY: called by the host.
    unsafe { handshake(conn, hs, H::do_extra_handshake) }
}

unsafe extern "C" fn blocking_open<H: BlockingHandler>(conn: ws_conn) -> i32 {
    // SAFETY: called by the host.
    unsafe { open(conn, |current| Ok(Box::new(H::on_open(current)?))) }
}

unsafe extern "C" fn blocking_transfer_data<H: BlockingHandler>(conn: ws_conn) -> i32 {
    contain_result(conn, "transfer_data", || {
        // SAFETY: a callback of this connection is running. The handler is looked
        // up through a Current of its own, since `receiver` is lent mutably.
        let (current, mut receiver) = unsafe { (Current::new(conn), Blocking::new(Current::new(conn))) };
        match blocking::<H>(&current)?.transfer_data(&mut receiver) {
            Err(error) if is_the_end(error.as_ref()) => Ok(raw::WS_OK),
            result => result.map(|()| raw::WS_OK),
        }
    })
}

/// Did the connection end, or was it asked to?
fn is_the_end(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(Error::Gone | Error::Draining))
}

unsafe extern "C" fn blocking_passive<H: BlockingHandler>(conn: ws_conn) -> i32 {
    contain_result(conn, "passive_closing_handshake", || {
        // SAFETY: a callback of this connection is running.
        let current = unsafe { Current::new(conn) };
        blocking::<H>(&current)?.passive_closing_handshake(&current).map(|()| raw::WS_OK)
    })
}

unsafe extern "C" fn blocking_close<H: BlockingHandler>(conn: ws_conn, by: u32, code: u32) {
    // SAFETY: called by the host.
    unsafe {
        close(conn, |current, handler| {
            if let Ok(handler) = handler.downcast::<H>() {
                handler.on_close(current, By::from_raw(by), code);
            }
        });
    }
}

unsafe extern "C" fn blocking_pong<H: BlockingHandler>(
    conn: ws_conn,
    data: *const c_char,
    size: usize,
    rtt: u64,
) {
    contain_and_close(conn, "on_pong", || {
        // SAFETY: a callback of this connection is running; the data is valid
        // until it returns.
        let (current, data) = unsafe { (Current::new(conn), Bytes(slice(data, size))) };
        blocking::<H>(&current)?.on_pong(&current, data, Duration::from_nanos(rtt))
    });
}
