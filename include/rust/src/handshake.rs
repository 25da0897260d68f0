//! The opening handshake: what can be chosen for the reply, and the reply.

use crate::conn::Current;
use crate::error::{Error, Result, check};
use crate::host::{host, optional};
use crate::raw::{self, ws_handshake};
use crate::session::{Attachment, Session};

/// A handshake in progress (RFC 6455, 4.2), in `do_extra_handshake`.
pub struct Handshake<'a> {
    late: &'a LateHandshake,
    current: &'a Current<'a>,
}

/// How a handshake is answered: what `do_extra_handshake` returns.
#[must_use = "a handshake is answered by returning this from do_extra_handshake"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply(pub(crate) i32);

/// How to compress (RFC 7692, 7.1); begin with `DeflateOptions::default()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflateOptions {
    /// 9 to 15: largest window for sending.
    pub server_max_window_bits: u32,
    /// 9 to 15: largest window asked of the client.
    pub client_max_window_bits: u32,
    /// Each message is compressed on its own.
    pub server_no_context_takeover: bool,
    /// The same is asked of the client.
    pub client_no_context_takeover: bool,
    /// Shorter messages are sent uncompressed; bytes.
    pub threshold: u32,
    /// 1 (fast) to 9 (small).
    pub level: u32,
}

/// A handshake that is finished later, from any thread, within its time limit.
/// Dropped unfinished, it is rejected with 503.
pub struct LateHandshake {
    raw: *mut ws_handshake,
    attachment: Attachment,
    finished: bool,
}

// SAFETY: after WS_LATER the host takes these calls from any thread; the pointer
// is a handle that is never dereferenced here.
unsafe impl Send for LateHandshake {}

impl Reply {
    /// Accept.
    pub const ACCEPT: Reply = Reply(raw::WS_OK);
}

impl Handshake<'_> {
    /// Chooses one of the offered subprotocols (RFC 6455, 4.2.2).
    ///
    /// # Errors
    /// `Invalid`: it was not offered.
    pub fn set_protocol(&self, protocol: &str) -> Result {
        self.late.set_protocol(protocol)
    }

    /// No subprotocol, also where the first that is known was chosen.
    ///
    /// # Errors
    /// `Gone`: the peer has left.
    pub fn clear_protocol(&self) -> Result {
        self.late.clear_protocol()
    }

    /// Adds a header to the reply, be it 101 or an error.
    ///
    /// # Errors
    /// `Invalid` (not a header name, a control character, a header that the
    /// handshake itself writes), `Limit` (64 headers, 16 KiB).
    pub fn add_header(&self, name: &str, value: &str) -> Result {
        self.late.add_header(name, value)
    }

    /// How to negotiate permessage-deflate (RFC 7692, 7.1), if the client offers it.
    ///
    /// # Errors
    /// `Invalid`: a value out of its range.
    pub fn configure_deflate(&self, options: DeflateOptions) -> Result {
        self.late.configure_deflate(options)
    }

    /// No extension on this connection.
    ///
    /// # Errors
    /// `Gone`: the peer has left.
    pub fn refuse_extensions(&self) -> Result {
        self.late.refuse_extensions()
    }

    /// Accepts and then closes, so that a browser's script can see why.
    ///
    /// # Errors
    /// `Invalid`: the code may not be sent, or the reason is too long.
    pub fn accept_and_close(&self, code: u32, reason: &str) -> Result<Reply> {
        reply(self.late.accept_and_close_raw(code, reason))
    }

    /// Rejects (RFC 6455, 4.2.2) with a status from 300 to 599 and a short text.
    ///
    /// # Errors
    /// `Invalid`: another status.
    pub fn reject(&self, status: u32) -> Result<Reply> {
        reply(self.late.reject_raw(status, None, &[]))
    }

    /// Rejects with a body of a media type.
    ///
    /// # Errors
    /// Also `Limit`: more than 64 KiB.
    pub fn reject_body(&self, status: u32, media_type: &str, body: &[u8]) -> Result<Reply> {
        reply(self.late.reject_raw(status, Some(media_type), body))
    }

    /// Drops the connection without any reply.
    ///
    /// # Errors
    /// `Gone`: the peer has left.
    pub fn abort(&self) -> Result<Reply> {
        reply(self.late.abort_raw())
    }

    /// Attaches a value for `on_open`, which gets it from
    /// [`Current::take_attached`]: who the peer is. It replaces one that was
    /// attached before, and is dropped if the connection never opens.
    ///
    /// # Errors
    /// `Gone`: the peer has left.
    pub fn attach<T: Send + 'static>(&self, value: T) -> Result {
        let replaced = Session::of(self.current)?.attachment.set(Box::new(value));
        drop(replaced);
        Ok(())
    }

    /// Event style only: finish it later. Return the reply at once.
    ///
    /// # Errors
    /// `Gone`: the peer has left.
    pub fn later(&self) -> Result<(Reply, LateHandshake)> {
        let attachment = Session::of(self.current)?.attachment.clone();
        Ok((Reply(raw::WS_LATER), LateHandshake { raw: self.late.raw, attachment, finished: false }))
    }

    /// Runs `f` with the handshake of this handle.
    pub(crate) fn lend<R>(raw: *mut ws_handshake, current: &Current, f: impl FnOnce(&Handshake) -> R) -> R {
        let late = LateHandshake { raw, attachment: Attachment::default(), finished: true };
        f(&Handshake { late: &late, current })
    }
}

impl LateHandshake {
    /// As of [`Handshake::attach`].
    pub fn attach<T: Send + 'static>(&self, value: T) {
        drop(self.attachment.set(Box::new(value)));
    }

    /// Attaches bytes that follow the connection; see [`Current::set_state`].
    ///
    /// # Errors
    /// `Limit` (too large), `Gone`.
    pub fn set_state(&self, data: &[u8]) -> Result {
        // SAFETY: the data is valid for the call.
        check(unsafe { (host().attach_state)(self.raw, data.as_ptr().cast(), data.len()) })
    }

    /// No subprotocol, also where one was chosen before.
    ///
    /// # Errors
    /// `Gone`.
    pub fn clear_protocol(&self) -> Result {
        // SAFETY: absent bytes.
        check(unsafe { (host().set_protocol)(self.raw, std::ptr::null(), 0) })
    }

    /// As of [`Handshake::set_protocol`].
    ///
    /// # Errors
    /// `Invalid`; `Gone`: the time is over or the peer has left.
    pub fn set_protocol(&self, protocol: &str) -> Result {
        // SAFETY: the text is valid for the call.
        check(unsafe { (host().set_protocol)(self.raw, protocol.as_ptr().cast(), protocol.len()) })
    }

    /// As of [`Handshake::add_header`].
    ///
    /// # Errors
    /// `Invalid`, `Limit`, `Gone`.
    pub fn add_header(&self, name: &str, value: &str) -> Result {
        // SAFETY: both are valid for the call.
        check(unsafe {
            (host().add_header)(
                self.raw,
                name.as_ptr().cast(),
                name.len(),
                value.as_ptr().cast(),
                value.len(),
            )
        })
    }

    /// As of [`Handshake::configure_deflate`].
    ///
    /// # Errors
    /// `Invalid`, `Gone`.
    pub fn configure_deflate(&self, options: DeflateOptions) -> Result {
        let options = raw::ws_deflate_options {
            size: size_of::<raw::ws_deflate_options>(),
            server_max_window_bits: options.server_max_window_bits,
            client_max_window_bits: options.client_max_window_bits,
            server_no_context_takeover: options.server_no_context_takeover.into(),
            client_no_context_takeover: options.client_no_context_takeover.into(),
            threshold: options.threshold,
            level: options.level,
        };
        // SAFETY: the options are valid for the call and begin with their size.
        check(unsafe { (host().configure_deflate)(self.raw, &options) })
    }

    /// As of [`Handshake::refuse_extensions`].
    ///
    /// # Errors
    /// `Gone`.
    pub fn refuse_extensions(&self) -> Result {
        // SAFETY: a handle of the host.
        check(unsafe { (host().refuse_extensions)(self.raw) })
    }

    /// Accepts.
    ///
    /// # Errors
    /// `Gone`.
    pub fn accept(mut self) -> Result {
        self.finished = true;
        // SAFETY: a handle of the host.
        check(unsafe { (host().accept)(self.raw) })
    }

    /// As of [`Handshake::accept_and_close`].
    ///
    /// # Errors
    /// `Invalid`, `Gone`.
    pub fn accept_and_close(mut self, code: u32, reason: &str) -> Result {
        let result = check(self.accept_and_close_raw(code, reason));
        self.finished = result != Err(Error::Invalid);
        result
    }

    /// As of [`Handshake::reject`].
    ///
    /// # Errors
    /// `Invalid`, `Gone`.
    pub fn reject(mut self, status: u32) -> Result {
        let result = check(self.reject_raw(status, None, &[]));
        self.finished = result != Err(Error::Invalid);
        result
    }

    /// As of [`Handshake::reject_body`].
    ///
    /// # Errors
    /// `Invalid`, `Limit`, `Gone`.
    pub fn reject_body(mut self, status: u32, media_type: &str, body: &[u8]) -> Result {
        let result = check(self.reject_raw(status, Some(media_type), body));
        self.finished = !matches!(result, Err(Error::Invalid | Error::Limit));
        result
    }

    /// As of [`Handshake::abort`].
    ///
    /// # Errors
    /// `Gone`.
    pub fn abort(mut self) -> Result {
        self.finished = true;
        check(self.abort_raw())
    }

    fn accept_and_close_raw(&self, code: u32, reason: &str) -> i32 {
        let (reason, size) = optional((!reason.is_empty()).then_some(reason));
        // SAFETY: the reason is valid for the call.
        unsafe { (host().accept_and_close)(self.raw, code, reason, size) }
    }

    fn reject_raw(&self, status: u32, media_type: Option<&str>, body: &[u8]) -> i32 {
        let (type_, type_size) = optional(media_type);
        // SAFETY: type and body are valid for the call.
        unsafe { (host().reject)(self.raw, status, type_, type_size, body.as_ptr().cast(), body.len()) }
    }

    fn abort_raw(&self) -> i32 {
        // SAFETY: a handle of the host.
        unsafe { (host().abort_handshake)(self.raw) }
    }
}

impl std::fmt::Debug for LateHandshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LateHandshake").field(&self.raw).finish()
    }
}

impl Drop for LateHandshake {
    fn drop(&mut self) {
        if !self.finished {
            self.reject_raw(503, None, &[]);
        }
    }
}

/// The values of `WS_DEFLATE_DEFAULTS`.
impl Default for DeflateOptions {
    fn default() -> Self {
        DeflateOptions {
            server_max_window_bits: 15,
            client_max_window_bits: 15,
            server_no_context_takeover: false,
            client_no_context_takeover: true,
            threshold: 64,
            level: 1,
        }
    }
}

fn reply(result: i32) -> Result<Reply> {
    check(result).map(|()| Reply(result))
}
