//! A connection: as an id for any thread, in its callback, and with `receive`.

use std::ffi::{CStr, c_char, c_void};
use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::ops::Deref;
use std::time::Duration;

use crate::bytes::{Bytes, Kind, Message, Sendable};
use crate::error::{Error, Result, check};
use crate::host::{Level, given, host, log_conn, optional, pair};
use crate::panics::contain;
use crate::raw::{self, ws_conn};
use crate::session::{self, Session};

/// A connection as a value: copied, compared, kept and sent to other threads.
/// After the connection has ended its methods return [`Error::Gone`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conn(pub(crate) ws_conn);

impl Conn {
    /// The id.
    pub fn raw(self) -> ws_conn {
        self.0
    }

    /// Sends text (`&str`, `String`), bytes (`&[u8]`, `Vec<u8>`, `[u8; N]`), or a
    /// [`Message`]. A fragment that is not its message's last is sent as one.
    ///
    /// # Errors
    /// `Full`: nothing was queued; in the event style `on_writable` follows, on
    /// the thread of a blocking connection the call waits instead. `Invalid`: not
    /// of the type of the fragments before. `Gone`.
    pub fn send(self, message: impl Sendable) -> Result {
        let message = message.as_message();
        self.send_flags(message.kind, message.data, if message.last { 0 } else { raw::WS_MORE })
    }

    /// Sends with flags: [`crate::WS_MORE`] for a fragment (RFC 6455, 5.4) whose message continues
    /// with the next send of the same kind, [`crate::WS_UNCOMPRESSED`].
    ///
    /// # Errors
    /// As of [`Conn::send`]; also `Invalid` for a text that is not UTF-8.
    pub fn send_flags(self, kind: Kind, data: &[u8], flags: u32) -> Result {
        // SAFETY: the data is valid for the call, in which the host copies it.
        check(unsafe { (host().send)(self.0, kind.raw(), data.as_ptr().cast(), data.len(), flags) })
    }

    /// Sends without a copy. The data is dropped when it is no longer needed,
    /// perhaps on another thread.
    ///
    /// # Errors
    /// As of [`Conn::send_flags`].
    pub fn send_owned<D: AsRef<[u8]> + Send + 'static>(self, kind: Kind, data: D, flags: u32) -> Result {
        unsafe extern "C" fn release<D>(arg: *mut c_void) {
            // SAFETY: arg is the box below, and the host calls this exactly once.
            let data = unsafe { Box::from_raw(arg.cast::<D>()) };
            contain(0, "dropping sent data", move || drop(data));
        }
        let arg = Box::into_raw(Box::new(data));
        // SAFETY: nobody else has it, and it stays where it is. Asked once: another
        // answer might be about other bytes.
        let bytes: &[u8] = unsafe { (*arg).as_ref() };
        let (start, size) = (bytes.as_ptr(), bytes.len());
        // SAFETY: the bytes are borrowed from the box, which is not touched until
        // release() is called.
        check(unsafe {
            (host().send_owned)(self.0, kind.raw(), start.cast(), size, flags, Some(release::<D>), arg.cast())
        })
    }

    /// Sends octets past the protocol, in place of the reply until the handshake is
    /// finished: for handlers that test clients.
    ///
    /// # Errors
    /// `Denied` without the setting `raw`, `Full`, `Gone`.
    pub fn send_raw(self, octets: &[u8]) -> Result {
        // SAFETY: the octets are valid for the call.
        check(unsafe { (host().send_raw)(given(), self.0, octets.as_ptr().cast(), octets.len()) })
    }

    /// Sends a Ping (RFC 6455, 5.5.2) with at most 125 bytes; `on_pong` follows.
    ///
    /// # Errors
    /// `Invalid` (too long), `Full`, `Gone`.
    pub fn ping(self, data: &[u8]) -> Result {
        // SAFETY: the data is valid for the call.
        check(unsafe { (host().ping)(self.0, data.as_ptr().cast(), data.len()) })
    }

    /// Bytes in the send queue, not yet written to the socket; 0 if it is gone.
    pub fn buffered(self) -> usize {
        // SAFETY: takes an id.
        unsafe { (host().buffered)(self.0) }
    }

    /// Stops reading from the peer, so that its sending slows down.
    ///
    /// # Errors
    /// `Gone`.
    pub fn pause(self) -> Result {
        // SAFETY: takes an id.
        check(unsafe { (host().pause)(self.0) })
    }

    /// Resumes reading.
    ///
    /// # Errors
    /// `Gone`.
    pub fn resume(self) -> Result {
        // SAFETY: takes an id.
        check(unsafe { (host().resume)(self.0) })
    }

    /// Runs `task` soon on the thread of the connection; if the connection ends
    /// before, the task is dropped instead.
    ///
    /// # Errors
    /// `Limit` (1,024 are waiting), `Gone`: the task is dropped at once.
    pub fn post(self, task: impl FnOnce(&Current) + Send + 'static) -> Result {
        session::post(self, Box::new(task))
    }

    /// Begins the closing handshake (RFC 6455, 7.1.2), or in `passive_closing_handshake` chooses
    /// the answer. See [`crate::close_code`].
    ///
    /// # Errors
    /// `Invalid` (the code may not be sent, the reason is longer than 123 bytes),
    /// `Gone`.
    pub fn close(self, code: u32, reason: &str) -> Result {
        let (reason, size) = optional((!reason.is_empty()).then_some(reason));
        // SAFETY: the reason is valid for the call.
        check(unsafe { (host().close)(self.0, code, reason, size) })
    }

    /// Drops the connection at once.
    ///
    /// # Errors
    /// `Gone`.
    pub fn abort(self) -> Result {
        // SAFETY: takes an id.
        check(unsafe { (host().abort)(self.0) })
    }

    /// Writes a line to the server's log, marked with the connection.
    pub fn log(self, level: Level, text: impl Display) {
        log_conn(self.0, level, &text.to_string());
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conn({:#x})", self.0)
    }
}

/// The connection whose callback is running. It cannot be kept or sent
/// elsewhere; what can is its [`Conn`], to which it dereferences.
pub struct Current<'a> {
    conn: Conn,
    place: PhantomData<(&'a (), *mut ())>, // lives in the callback, on its thread
}

type Decoder = unsafe extern "C" fn(ws_conn, *const c_char, usize, *mut c_char, usize) -> i32;

/// A timer that was set; see [`Current::set_timer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId(pub(crate) i64);

impl Deref for Current<'_> {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.conn
    }
}

/// A getter of bytes that are valid until the callback returns.
macro_rules! lent {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* pub fn $name(&self) -> Option<Bytes<'_>> {
            // SAFETY: takes an id; the bytes are valid in this callback, which
            // self does not outlive (in transfer_data: until receive(), which
            // takes it mutably).
            unsafe { Bytes::from_raw((host().$name)(self.conn.0)) }
        })*
    };
}

impl Current<'_> {
    /// # Safety
    /// A callback of `conn` is running on this thread, for the lifetime chosen.
    pub(crate) unsafe fn new(conn: ws_conn) -> Self {
        Current { conn: Conn(conn), place: PhantomData }
    }

    /// The connection as a value that can be kept.
    pub fn conn(&self) -> Conn {
        self.conn
    }

    lent! {
        /// Path and query of the request (RFC 6455, 3), `/chat?room=1`.
        resource
        /// The resource up to its `?`.
        path
        /// The resource after its `?`; `None` without one.
        query
        /// Host and port that the client asked for; kept after the handshake only
        /// with `WS_KEEP_REQUEST`.
        authority
        /// The Origin header (RFC 6455, 10.2).
        origin
        /// The authenticated user; `None` if the server requires none.
        remote_user
        /// The method, `GET`; kept only with `WS_KEEP_REQUEST`.
        method
        /// The subprotocols that the client offers (RFC 6455, 11.3.4); see [`crate::list`]. Kept only
        /// with `WS_KEEP_REQUEST`.
        requested_protocols
        /// The extensions that the client offers (RFC 6455, 9.1); kept only with `WS_KEEP_REQUEST`.
        requested_extensions
        /// The chosen subprotocol.
        protocol
        /// The extensions in use, as in the reply's header.
        extensions
        /// The reason that the peer sent in its Close frame (RFC 6455, 7.1.6).
        close_reason
    }

    /// The first header of this name; kept only with `WS_KEEP_REQUEST`.
    pub fn header(&self, name: &str) -> Option<Bytes<'_>> {
        // SAFETY: the name is valid for the call; the bytes as in lent!.
        unsafe { Bytes::from_raw((host().header)(self.conn.0, name.as_ptr().cast(), name.len())) }
    }

    /// The headers in the order sent; kept only with `WS_KEEP_REQUEST`.
    pub fn headers(&self) -> impl Iterator<Item = (Bytes<'_>, Bytes<'_>)> {
        let conn = self.conn.0;
        (0..).map_while(move |index| {
            // SAFETY: both places are writable; the bytes as in lent!.
            unsafe { pair(|name, value| (host().header_at)(conn, index, name, value)) }
        })
    }

    /// The version of the protocol (RFC 6455, 4.4), 13; 0 if the connection is gone.
    pub fn version(&self) -> u32 {
        // SAFETY: takes an id.
        unsafe { (host().version)(self.conn.0) }
    }

    /// The peer's IP address and port; `None` on a Unix socket.
    pub fn remote_address(&self) -> Option<(IpAddr, u16)> {
        self.address(host().remote_address)
    }

    /// The local IP address and port; `None` on a Unix socket.
    pub fn local_address(&self) -> Option<(IpAddr, u16)> {
        self.address(host().local_address)
    }

    /// A fact about the peer's TLS connection, `raw::WS_TLS_...`.
    pub fn tls_fact(&self, which: u32) -> Option<Bytes<'_>> {
        // SAFETY: takes values; the bytes as in lent!.
        unsafe { Bytes::from_raw((host().tls_fact)(self.conn.0, which)) }
    }

    /// Is permessage-deflate in use?
    pub fn deflate(&self) -> bool {
        // SAFETY: takes an id.
        unsafe { (host().deflate)(self.conn.0) == 1 }
    }

    /// The kind of the last message received, if there was one.
    pub fn last_opcode(&self) -> Option<Kind> {
        // SAFETY: takes an id.
        match unsafe { (host().last_opcode)(self.conn.0) } {
            raw::WS_TEXT => Some(Kind::Text),
            raw::WS_BINARY => Some(Kind::Binary),
            _ => None,
        }
    }

    /// The first parameter of this name in the query, decoded; `None` also if it
    /// contains a NUL.
    pub fn query_param(&self, name: &str) -> Option<String> {
        self.decoded(host().query_param, name)
    }

    /// The first cookie of this name (RFC 6265, 4.2), decoded; kept only with `WS_KEEP_REQUEST`.
    pub fn cookie(&self, name: &str) -> Option<String> {
        self.decoded(host().cookie, name)
    }

    fn decoded(&self, ask: Decoder, name: &str) -> Option<String> {
        let mut text = vec![0; 256];
        loop {
            // SAFETY: the name is valid for the call, and so is the room for the text.
            let size = unsafe {
                ask(self.conn.0, name.as_ptr().cast(), name.len(), text.as_mut_ptr().cast(), text.len())
            };
            match size {
                raw::WS_E_LIMIT if text.len() < 1 << 20 => text.resize(text.len() * 4, 0),
                size => {
                    text.truncate(usize::try_from(size).ok()?);
                    return Some(String::from_utf8_lossy(&text).into_owned());
                }
            }
        }
    }

    /// What [`crate::Handshake::attach`] has attached, if it is a `T`; given once.
    pub fn take_attached<T: 'static>(&self) -> Option<T> {
        self.session()?.attachment.take()
    }

    /// Runs `task` once on this thread after `delay`, at the earliest after
    /// `on_open`; if the connection ends or moves to another process before, the
    /// task is dropped instead.
    ///
    /// # Errors
    /// `Limit` (more than 16), `Gone`.
    pub fn set_timer(&self, delay: Duration, task: impl FnOnce(&Current) + 'static) -> Result<TimerId> {
        Session::of(self)?.set_timer(self.conn, delay, task)
    }

    /// The same repeatedly, every `period` (at least a millisecond), until it
    /// is cleared or panics.
    ///
    /// # Errors
    /// As of [`Current::set_timer`].
    pub fn set_interval(&self, period: Duration, task: impl FnMut(&Current) + 'static) -> Result<TimerId> {
        Session::of(self)?.set_interval(self.conn, period, task)
    }

    /// Stops a timer, and drops its task.
    ///
    /// # Errors
    /// `Invalid`: it has run or never was. `Gone`.
    pub fn clear_timer(&self, timer: TimerId) -> Result {
        // SAFETY: takes values.
        check(unsafe { (host().clear_timer)(given(), self.conn.0, timer.0) })?;
        if let Some(session) = self.session() {
            session.forget_timer(timer);
        }
        Ok(())
    }

    /// In a timer or posted task of the event style: runs `f` on the handler of
    /// this connection. `None` if it is not an `H`, has gone, or is just running.
    pub fn with_handler<H: 'static, R>(&self, f: impl FnOnce(&mut H) -> R) -> Option<R> {
        self.session()?.event_handler::<H>()?.try_borrow_mut().ok().map(|mut handler| f(&mut handler))
    }

    /// The code that the peer sent (RFC 6455, 7.1.5): 1005 for a Close frame without one, 1006 for
    /// an end without Close frame, 0 while it is open.
    pub fn close_code(&self) -> u32 {
        // SAFETY: takes an id.
        unsafe { (host().close_code)(self.conn.0) }
    }

    /// Attaches bytes that follow the connection to other processes; at most
    /// `raw::WS_STATE_MAX`.
    ///
    /// # Errors
    /// `Limit` (too large), `Gone`.
    pub fn set_state(&self, data: &[u8]) -> Result {
        // SAFETY: the data is valid for the call.
        check(unsafe { (host().set_state)(self.conn.0, data.as_ptr().cast(), data.len()) })
    }

    /// A copy of the attached bytes.
    pub fn state(&self) -> Option<Vec<u8>> {
        // SAFETY: takes an id; the bytes are copied before anything else is called.
        unsafe { Bytes::from_raw((host().state)(self.conn.0)) }.map(|bytes| bytes.to_vec())
    }

    /// Was the connection opened in another process and moved to this one?
    pub fn is_resumed(&self) -> bool {
        // SAFETY: takes an id.
        unsafe { (host().is_resumed)(self.conn.0) == 1 }
    }

    pub(crate) fn session(&self) -> Option<&Session> {
        // SAFETY: this crate alone sets the pointer: to a session that lives until
        // after on_close, or null. self lives in a callback on that thread.
        unsafe { (host().user)(self.conn.0).cast::<Session>().as_ref() }
    }

    fn address(
        &self,
        ask: unsafe extern "C" fn(ws_conn, *mut raw::ws_address, usize) -> i32,
    ) -> Option<(IpAddr, u16)> {
        let mut address = MaybeUninit::<raw::ws_address>::zeroed();
        // SAFETY: the place is writable for the size given, and all zero is valid.
        let address = unsafe {
            check(ask(self.conn.0, address.as_mut_ptr(), size_of::<raw::ws_address>())).ok()?;
            address.assume_init()
        };
        // SAFETY: the host ends the text with NUL.
        let text = unsafe { CStr::from_ptr(address.text.as_ptr()) };
        Some((text.to_str().ok()?.parse().ok()?, u16::try_from(address.port).ok()?))
    }
}

/// The connection in `transfer_data`: [`Current`], with [`Blocking::receive`].
pub struct Blocking<'a>(Current<'a>);

impl<'a> Deref for Blocking<'a> {
    type Target = Current<'a>;

    fn deref(&self) -> &Current<'a> {
        &self.0
    }
}

impl<'a> Blocking<'a> {
    pub(crate) fn new(current: Current<'a>) -> Self {
        Blocking(current)
    }

    /// Waits for the next message. `None`: the connection is closing, return
    /// soon. The message is lent until the next call; to send while it is in
    /// use, take [`Current::conn`] before.
    ///
    /// # Errors
    /// `Draining`: returned once, messages can still be received. `Gone`.
    pub fn receive(&mut self) -> Result<Option<Message<'_>>> {
        self.receive_within(raw::WS_FOREVER)
    }

    /// The same, at most for `timeout`.
    ///
    /// # Errors
    /// Also `Timeout`.
    pub fn receive_timeout(&mut self, timeout: Duration) -> Result<Option<Message<'_>>> {
        self.receive_within(i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX))
    }

    fn receive_within(&mut self, timeout_ms: i64) -> Result<Option<Message<'_>>> {
        let mut message = MaybeUninit::<raw::ws_message>::zeroed();
        // SAFETY: the place is writable; all zero is valid too. What it points to
        // lives until the next call, for which self is borrowed again.
        unsafe {
            match (host().receive)(self.conn.0, message.as_mut_ptr(), timeout_ms) {
                raw::WS_MESSAGE => Ok(Some(Message::from_raw(&message.assume_init()))),
                raw::WS_CLOSED => Ok(None),
                error => Err(Error::from_code(error)),
            }
        }
    }
}
