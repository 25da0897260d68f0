//! How a connection becomes open, by a handshake or after a move, and how its handler gets to know.

use std::io;
use std::sync::Arc;

use ::ws_handler::raw::*;

use crate::ffi::call::Handler;
use crate::ffi::place::{self, Callback};
use crate::proto::ws::connection::Connection;
use crate::worker::base::metrics::OpenCount;
use crate::worker::blocking::thread::ThreadStart;
use crate::worker::conn::channel::ThreadChannel;
use crate::worker::conn::handshake::Carried;
use crate::worker::conn::info::{OwnedInfo, Stage};
use crate::worker::conn::open::Open;
use crate::worker::conn::request::Request;
use crate::worker::conn::table::{Conn, Pause, Phase};
use crate::worker::session::Session;

/// What a connection that becomes open brings along.
#[derive(Default)]
pub struct OpenOptions {
    /// It opens by a handshake here, and was not open elsewhere.
    pub is_new: bool,
    /// It is closed at once: its handler is not to know of it.
    pub silent: bool,
    /// If the handler keeps it.
    pub request: Option<Arc<Request>>,
    /// To the thread of a blocking handler that has had part in the handshake.
    pub channel: Option<Arc<ThreadChannel>>,
    pub carried: Carried,
}

impl Session {
    /// A connection becomes an open one to this handler, as its record says. What is in its send queue goes first; it
    /// is not flushed yet.
    pub fn open(&self, id: u64, handler: u16, options: OpenOptions) {
        let OpenOptions { is_new, silent, request, channel, carried } = options;
        let is_stream =
            self.handlers.service(handler).is_some_and(|service| service.handler.has_flag(WS_STREAM));
        {
            let core = &mut *self.conns.core.borrow_mut();
            let Some((conn, record)) = core.table.both(id) else { return };
            let now = self.conns.now();
            let proto = Connection::new(now, record.codec(), is_stream);
            let mut open = Open::new(proto, OpenCount::new(self.conns.metrics.of(handler)));
            open.silent = silent;
            if let Some(request) = request {
                record.set_head(request.head.as_bytes());
                open.extra().request = Some(request);
            }
            if let Some(channel) = channel {
                open.set_channel(channel);
            }
            open.take_over(carried);
            self.admission.limit_rate(&mut open, self.conns.settings(handler));
            if let Some(unread) = conn.take_unread() {
                open.set_unread(unread);
            }
            (conn.handler, record.handler) = (handler, handler);
            record.seal();
            conn.phase = Phase::Open(open);
            if conn.set_pause(Pause::Handshake, false, now) && conn.has_unread() {
                core.turns.join(id, conn); // what followed the request
            }
        }
        self.conns.log(id, |log, record, now| log.open(id, record, now, is_new));
        if !silent {
            self.conns.commands.set_open(id, handler);
        }
    }

    /// Calls on_open; for a blocking handler, resumes the connection on a new thread.
    pub fn notify_open(&self, id: u64, handler: u16) {
        let Some(service) = self.handlers.service(handler) else {
            return self.conns.close(id, Some(1012), b"", WS_BY_HOST);
        };
        if self.conns.recorder.records(handler) {
            self.conns.record_open(id);
        }
        if service.handler.is_blocking() {
            if let Err(error) = self.resume_thread(id, handler, service.handler) {
                log::error!(
                    "{}: connection {id:x} cannot be resumed: {error}; closed with 1012",
                    service.plugin.name
                );
                self.conns.with_open(id, |_, open| (open.extra().channel, open.silent) = (None, true));
                self.conns.close(id, Some(1012), b"", WS_BY_HOST);
            }
            return self.conns.resume(id, Pause::Move);
        }
        let result = self.handlers.tell(handler, Callback::Open, id, |handler| handler.open(id));
        if let Some(result @ ..0) = result {
            place::note_result(Callback::Open, id, result, "closed with 1011");
            self.conns.close(id, Some(1011), b"", WS_BY_HANDLER);
        }
    }

    /// Gives a connection that is open already to a thread: it has come from another process, or could not be moved.
    fn resume_thread(&self, conn: u64, number: u16, handler: Handler) -> io::Result<()> {
        if self.threads.is_full() {
            return Err(io::Error::other("too many connections to blocking handlers"));
        }
        let channel = self.threads.new_channel(conn, handler);
        // The thread does not begin yet: until then there is nothing that could be lost.
        self.conns.commands.set_idle(conn, true);
        let info = {
            let core = &mut *self.conns.core.borrow_mut();
            let Some((Conn { phase: Phase::Open(open), socket, .. }, record)) = core.table.both(conn) else {
                return Ok(());
            };
            open.set_channel(Arc::clone(&channel));
            open.silent = false;
            OwnedInfo::new(Stage::Open, record, socket, open.request().cloned())
        };
        // From here on its thread decides whether it can move.
        self.conns.flush(conn);
        self.threads.start(ThreadStart { conn, number, handler, channel, info, handshake: None })
    }
}
