//! Blocking connections that move: their threads let go of them in one process, and begin again in the next.
//!
//! A thread lets go when it waits for a message and there is none. From the moment that it is asked to nothing is
//! read for it, so that this comes soon; what it has sent by then goes out before the connection moves. Only handlers
//! that declare themselves resumable are asked.

use std::io;
use std::sync::Arc;

use ::ws_handler::raw::*;

use super::conn::{Open, Pause, Phase};
use super::mailbox::{Mailbox, Opened};
use super::thread::{self, Beginning};
use super::{Service, Worker, facts};
use crate::proto::deflate::Params;

/// A connection whose thread was asked to let go of it.
pub struct LettingGo {
    conn: u64,
    /// The slot where it is to go on; None: where all go.
    to: Option<usize>,
}

impl Worker {
    /// The mailbox of a blocking connection.
    pub fn new_mailbox(&self, id: u64, service: &Service) -> Arc<Mailbox> {
        Mailbox::new(id, self.mailroom, service.handler.has_flag(WS_RESUMABLE))
    }

    /// Starts the thread of a blocking connection, and counts it.
    pub fn start_thread(
        &self,
        service: &Service,
        mailbox: Arc<Mailbox>,
        beginning: Beginning,
    ) -> io::Result<()> {
        thread::spawn(self.thread_host, service.handler, mailbox, beginning)?;
        self.threads.set(self.threads.get() + 1);
        Ok(())
    }

    /// Goes on with a blocking connection that has come from another process, or did not get there.
    pub fn begin_again(&self, id: u64, handler: u16, service: &Service) {
        let begun = match self.threads.get() < self.config.threads {
            true => self.resume_thread(id, handler, service),
            false => Err(io::Error::other("too many connections to blocking handlers")),
        };
        if let Err(error) = begun {
            log::error!("{}: connection {id:x} can not go on here: {error}", service.plugin.name);
            self.with_open(id, |_, open| (open.extra().mailbox, open.silent) = (None, true));
            self.close(id, Some(1012), b"", WS_BY_HOST);
        }
        self.resume(id, Pause::Move);
    }

    fn resume_thread(&self, id: u64, handler: u16, service: &Service) -> io::Result<()> {
        let mailbox = self.new_mailbox(id, service);
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
                    remote: facts::address(record.peer.address()),
                    local: local.as_ref().map(facts::local_address),
                };
                (opened, record.state().map(text).unwrap_or_default())
            })
        };
        let Some((mut opened, state)) = known else { return Ok(()) };
        mailbox.rest();
        self.with_open(id, |_, open| {
            opened.request = open.request().cloned();
            (open.extra().mailbox, open.silent) = (Some(Arc::clone(&mailbox)), false);
        });
        // From here on it is as movable as its thread says.
        self.flush(id);
        mailbox.open(opened);
        self.start_thread(service, mailbox, Beginning::Resumed(id, handler, state))
    }

    /// Has the thread of a connection let go of it, which then goes on in another slot, or where all go; if this
    /// worker is not leaving, only if the thread has nothing to do. False if it will not.
    pub fn let_thread_go(&self, id: u64, to: Option<usize>) -> bool {
        if self.letting_go.borrow().iter().any(|letting| letting.conn == id) {
            return false;
        }
        let mailbox = match self.core.borrow_mut().table.get(id) {
            Some(conn) if conn.has_unread() => return false,
            Some(conn) => conn
                .open()
                .filter(|open| is_serving(open) && open.proto.is_movable())
                .and_then(|open| open.mailbox().cloned()),
            None => return false,
        };
        if !mailbox
            .is_some_and(|mailbox| mailbox.is_resumable() && mailbox.leave(self.leaving.borrow().is_none()))
        {
            return false;
        }
        self.pause(id, Pause::Move);
        self.letting_go.borrow_mut().push(LettingGo { conn: id, to });
        true
    }

    /// Whether it is a blocking connection that can move once its thread has nothing to do.
    pub fn is_resumable(&self, id: u64) -> bool {
        let mailbox = self.with_open(id, |_, open| open.mailbox().cloned()).flatten();
        mailbox.is_some_and(|mailbox| mailbox.is_resumable())
    }

    /// The thread of a connection has let go of it, and left this state.
    pub fn was_let_go(&self, id: u64, state: &[u8]) {
        let serving = self.with_open(id, |_, open| {
            let serving = is_serving(open);
            if serving {
                // Its handler does not know of it any more.
                (open.extra().mailbox, open.silent) = (None, true);
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
    pub fn send_let_go(&self) {
        if self.letting_go.borrow().is_empty() {
            return;
        }
        let mut letting_go = self.letting_go.take();
        while let Some(to) =
            letting_go.iter().find(|letting| self.is_let_go(letting.conn)).map(|letting| letting.to)
        {
            let ids: Vec<u64> = letting_go
                .extract_if(.., |letting| letting.to == to && self.is_let_go(letting.conn))
                .map(|letting| letting.conn)
                .collect();
            self.send_away(&ids, to, usize::MAX);
        }
        // Without those that have come to their end meanwhile.
        letting_go.retain(|letting| self.with_open(letting.conn, |_, open| is_serving(open)) == Some(true));
        self.letting_go.borrow_mut().append(&mut letting_go);
    }

    fn is_let_go(&self, id: u64) -> bool {
        let core = &mut *self.core.borrow_mut();
        let known = core.table.get(id).map(|conn| &conn.phase);
        let is_silent = matches!(known, Some(Phase::Open(open)) if open.mailbox().is_none() && open.silent);
        is_silent && core.table.record(id).is_some_and(|record| record.is_movable())
    }
}

/// Neither over nor about to end.
fn is_serving(open: &Open) -> bool {
    !open.over && !open.is_closing()
}
