//! Blocking connections that move: their threads let go of them in one process, and begin again in the next.
//!
//! A thread lets go when it waits for a message and there is none. From the moment that it is asked to nothing is
//! read for it, so that this comes soon; what it has sent by then goes out before the connection moves. Only handlers
//! that declare themselves resumable are asked.

use std::io;
use std::sync::Arc;

use ::ws_handler::raw::*;

use crate::proto::ws::deflate::negotiate::Params;
use crate::worker::blocking::thread::{self, Beginning};
use crate::worker::conn::channel::{Opened, ThreadChannel};
use crate::worker::conn::info;
use crate::worker::conn::table::{Open, Pause, Phase};
use crate::worker::{Service, Worker};

/// A connection whose thread was asked to let go of it.
pub struct Detaching {
    conn: u64,
    /// The slot where it is to go on; None: where all go.
    to: Option<usize>,
}

impl Worker {
    /// The mailbox of a blocking connection.
    pub fn new_channel(&self, id: u64, service: &Service) -> Arc<ThreadChannel> {
        ThreadChannel::new(id, self.commands, service.handler.has_flag(WS_RESUMABLE))
    }

    /// Starts the thread of a blocking connection, and counts it.
    pub fn start_thread(
        &self,
        service: &Service,
        channel: Arc<ThreadChannel>,
        beginning: Beginning,
    ) -> io::Result<()> {
        thread::spawn(self.thread_host, service.handler, channel, beginning)?;
        self.threads.set(self.threads.get() + 1);
        Ok(())
    }

    /// Goes on with a blocking connection that has come from another process, or did not get there.
    pub fn resume_blocking(&self, id: u64, handler: u16, service: &Service) {
        let begun = match self.threads.get() < self.config.threads {
            true => self.resume_thread(id, handler, service),
            false => Err(io::Error::other("too many connections to blocking handlers")),
        };
        if let Err(error) = begun {
            log::error!("{}: connection {id:x} can not go on here: {error}", service.plugin.name);
            self.with_open(id, |_, open| (open.extra().channel, open.silent) = (None, true));
            self.close(id, Some(1012), b"", WS_BY_HOST);
        }
        self.resume(id, Pause::Move);
    }

    fn resume_thread(&self, id: u64, handler: u16, service: &Service) -> io::Result<()> {
        let channel = self.new_channel(id, service);
        let known = {
            let core = &mut *self.core.borrow_mut();
            let local = core.table.get(id).and_then(|conn| conn.socket.local_addr().ok());
            core.table.record(id).map(|record| {
                let text = |bytes: &[u8]| [bytes, b"\0"].concat();
                let strings = record.strings();
                let opened = Opened {
                    request: None,
                    resource: text(strings.resource),
                    origin: strings.origin.map(text),
                    protocol: strings.protocol.map(text),
                    deflate: (record.deflate != 0).then(|| Params::from_bits(record.deflate)).flatten(),
                    remote: info::address(record.peer.address()),
                    local: local.as_ref().map(info::local_address),
                };
                (opened, record.state().map(text).unwrap_or_default())
            })
        };
        let Some((mut opened, state)) = known else { return Ok(()) };
        channel.rest();
        self.with_open(id, |_, open| {
            opened.request = open.request().cloned();
            (open.extra().channel, open.silent) = (Some(Arc::clone(&channel)), false);
        });
        // From here on it is as movable as its thread says.
        self.flush(id);
        channel.open(opened);
        self.start_thread(service, channel, Beginning::Resumed(id, handler, state))
    }

    /// Has the thread of a connection let go of it, which then goes on in another slot, or where all go; if this
    /// worker is not leaving, only if the thread has nothing to do. False if it will not.
    pub fn detach_thread(&self, id: u64, to: Option<usize>) -> bool {
        if self.detaching.borrow().iter().any(|detached| detached.conn == id) {
            return false;
        }
        let channel = match self.core.borrow_mut().table.get(id) {
            Some(conn) if conn.has_unread() => return false,
            Some(conn) => conn
                .open()
                .filter(|open| is_serving(open) && open.proto.is_movable())
                .and_then(|open| open.channel().cloned()),
            None => return false,
        };
        if !channel
            .is_some_and(|channel| channel.is_resumable() && channel.leave(self.leaving.borrow().is_none()))
        {
            return false;
        }
        self.pause(id, Pause::Move);
        self.detaching.borrow_mut().push(Detaching { conn: id, to });
        true
    }

    /// Whether it is a blocking connection that can move once its thread has nothing to do.
    pub fn is_resumable(&self, id: u64) -> bool {
        let channel = self.with_open(id, |_, open| open.channel().cloned()).flatten();
        channel.is_some_and(|channel| channel.is_resumable())
    }

    /// The thread of a connection has let go of it, and left this state.
    pub fn thread_detached(&self, id: u64, state: &[u8]) {
        let serving = self.with_open(id, |_, open| {
            let serving = is_serving(open);
            if serving {
                // Its handler does not know of it any more.
                (open.extra().channel, open.silent) = (None, true);
            }
            (serving, open.proto.is_movable())
        });
        match serving {
            Some((true, true)) => {
                self.attach_state(id, state);
                self.flush(id);
            }
            // The handler has begun a message and waited for one.
            Some((true, false)) => self.close(id, Some(1012), b"", WS_BY_HOST),
            _ => {}
        }
    }

    /// Sends away what threads have let go of; once in a turn of the loop.
    pub fn send_detached(&self) {
        if self.detaching.borrow().is_empty() {
            return;
        }
        let mut detaching = self.detaching.take();
        while let Some(to) =
            detaching.iter().find(|detached| self.is_detached(detached.conn)).map(|detached| detached.to)
        {
            let ids: Vec<u64> = detaching
                .extract_if(.., |detached| detached.to == to && self.is_detached(detached.conn))
                .map(|detached| detached.conn)
                .collect();
            self.send_away(&ids, to, usize::MAX);
        }
        // Without those that have come to their end meanwhile.
        detaching.retain(|detached| self.with_open(detached.conn, |_, open| is_serving(open)) == Some(true));
        self.detaching.borrow_mut().append(&mut detaching);
    }

    fn is_detached(&self, id: u64) -> bool {
        let core = &mut *self.core.borrow_mut();
        let known = core.table.get(id).map(|conn| &conn.phase);
        let is_silent = matches!(known, Some(Phase::Open(open)) if open.channel().is_none() && open.silent);
        is_silent && core.table.record(id).is_some_and(|record| record.is_movable())
    }
}

/// Neither over nor about to end.
fn is_serving(open: &Open) -> bool {
    !open.over && !open.is_closing()
}
