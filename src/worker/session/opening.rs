//! Calls on_open: for a new connection, or one that was resumed after a move.

use std::io;
use std::sync::Arc;

use ::ws_handler::raw::*;

use crate::ffi::place::{self, Callback};
use crate::worker::blocking::thread::Beginning;
use crate::worker::conn::info::OwnedInfo;
use crate::worker::conn::table::{Pause, Phase};
use crate::worker::host::handlers::Service;
use crate::worker::session::Session;

impl Session {
    /// Calls on_open; for a blocking handler, resumes the connection on a new thread.
    pub fn notify_open(&self, id: u64, handler: u16) {
        let Some(service) = self.handlers.service(handler) else {
            return self.conns.close(id, Some(1012), b"", WS_BY_HOST);
        };
        if self.conns.recorder.records(handler) {
            self.conns.record_open(id);
        }
        if service.handler.is_blocking() {
            return self.resume_blocking(id, handler, service);
        }
        let result = self.handlers.tell(handler, Callback::Open, id, |handler| handler.open(id));
        if let Some(result @ ..0) = result {
            place::note_result(Callback::Open, id, result, "closed with 1011");
            self.conns.close(id, Some(1011), b"", WS_BY_HANDLER);
        }
    }

    /// Resumes a blocking connection that arrived from another process, or could not be moved.
    pub fn resume_blocking(&self, id: u64, handler: u16, service: &Service) {
        let begun = match !self.threads.is_full() {
            true => self.resume_thread(id, handler, service),
            false => Err(io::Error::other("too many connections to blocking handlers")),
        };
        if let Err(error) = begun {
            log::error!("{}: connection {id:x} cannot go on here: {error}", service.plugin.name);
            self.conns.with_open(id, |_, open| (open.extra().channel, open.silent) = (None, true));
            self.conns.close(id, Some(1012), b"", WS_BY_HOST);
        }
        self.conns.resume(id, Pause::Move);
    }

    pub fn resume_thread(&self, id: u64, handler: u16, service: &Service) -> io::Result<()> {
        let channel = self.threads.new_channel(id, service.handler);
        // The thread does not begin yet: until then there is nothing that could be lost.
        self.conns.commands.set_idle(id, true);
        let info = {
            let core = &mut *self.conns.core.borrow_mut();
            let Some((conn, record)) = core.table.both(id) else { return Ok(()) };
            let Phase::Open(open) = &mut conn.phase else { return Ok(()) };
            open.set_channel(Arc::clone(&channel));
            open.silent = false;
            OwnedInfo::new(record, &conn.socket, open.request().cloned(), true)
        };
        // From here on its thread decides whether it can move.
        self.conns.flush(id);
        let (number, handler) = (handler, service.handler);
        self.threads.start(Beginning { conn: id, number, handler, channel, info, handshake: None })
    }
}
