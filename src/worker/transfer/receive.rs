//! Adopts connections that other processes have sent: crash rescue, balance, reload and upgrade all end here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ::ws_handler::raw::*;
use socket2::Socket;

use crate::auth::User;
use crate::config::ListenerSettings;
use crate::fleet::memory::addresses::Permit;
use crate::fleet::memory::scoreboard::Fault;
use crate::fleet::sockets::control::Report;
use crate::proto::http1::head::{self, Parsed};
use crate::proto::ws::handshake;
use crate::time::Instant;
use crate::worker::base::metrics::NO_HANDLER;
use crate::worker::conn::handoff::{Entry, Purpose};
use crate::worker::conn::record::Record;
use crate::worker::conn::record::foreign::Arrival;
use crate::worker::conn::request::Request;
use crate::worker::conn::table::{Conn, LINGER, Phase};
use crate::worker::crash::{rescue, signals};
use crate::worker::handshake::outcome::unavailable;
use crate::worker::session::opening::OpenOptions;
use crate::worker::transfer::Transfer;

/// Datagrams that are taken out of an inbox before other work is done.
const AT_ONCE: usize = 64;

impl Transfer {
    /// Adopts all connections that lie in this slot's inbox.
    pub fn empty_inbox(&self) {
        self.empty(self.intake.inbox.rx.as_fd());
    }

    /// The same for this inbox. At most [`AT_ONCE`] datagrams are taken; the rest waits for the next turn, so that a
    /// sender cannot starve the connections of this worker.
    pub fn empty(&self, inbox: BorrowedFd<'_>) {
        for _ in 0..AT_ONCE {
            match self.intake.receive(inbox) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return self.lose(inbox),
                Err(error) => return log::error!("cannot read the inbox: {error}"),
            }
            // All of them are in the table before a handler is called, which may crash.
            let mut moved = Vec::new();
            while let Some(adopted) = self.intake.take_first(|fd, entry| self.adopt(fd, entry)) {
                moved.extend(adopted);
                signals::begin_work();
            }
            for id in moved {
                match self.conns.with_open(id, |handler, _| handler) {
                    // The part of the request that was read is processed.
                    None => {
                        if let Some((elsewhere, read)) = self.handshakes.read_head(id, b"") {
                            self.forward_request(id, &elsewhere, &read);
                        }
                    }
                    Some(handler) if !self.conns.life.is_stopping() => self.session.notify_open(id, handler),
                    Some(_) => {
                        // Its handler is not called in this process.
                        self.conns.with_open(id, |_, open| open.silent = true);
                        self.conns.close(id, Some(1001), b"", WS_BY_HOST);
                    }
                }
                self.conns.flush(id);
                signals::begin_work();
            }
        }
    }

    /// Somebody has shut this inbox down: if it is that of this slot, another one has to receive.
    fn lose(&self, inbox: BorrowedFd<'_>) {
        if inbox.as_raw_fd() == self.intake.inbox.rx.as_raw_fd() && self.intake.lose() {
            log::error!("a handler has shut down the inbox: no connections of other processes arrive");
            self.conns.presence.slot.set_fault(Some(Fault::Inbox));
        }
    }

    /// Whether a connection that arrives is served here: the first one, where there may be one only.
    fn admit(&self, purpose: Purpose) -> bool {
        let presence = self.conns.presence;
        if purpose == Purpose::Linger && presence.is_per_connection() {
            return true;
        }
        let is_admitted = presence.arrived();
        if is_admitted && presence.is_per_connection() {
            presence.report(Report::Taken);
        }
        is_admitted
    }

    /// Adopts a connection, without calling its handler; returns its id if it goes on here.
    fn adopt(&self, fd: OwnedFd, entry: &Entry) -> Option<u64> {
        match self.take_in(Socket::from(fd), entry) {
            Ok(adopted) => {
                self.conns.metrics.place.moved_in.add_shared(1);
                adopted
            }
            Err(refused) => {
                rescue::turn_away(refused.as_raw_fd(), entry.purpose, entry.unsent);
                None
            }
        }
    }

    /// The same; the socket if there is no room for it, or it has come for a handshake while this worker stops.
    fn take_in(&self, socket: Socket, entry: &Entry) -> Result<Option<u64>, Socket> {
        let admitted = self.admit(entry.purpose);
        let known = Record::arrival_in(entry.block, entry.parts[0]);
        let found = || socket.peer_addr().ok().and_then(|address| address.as_socket());
        let arrival = known.unwrap_or_else(|| Arrival { peer: found(), ..Arrival::default() });
        // Counted here from now on; not at all if it is turned away.
        let permit = self.session.admission.take_over(arrival.peer, arrival.mark);
        match entry.purpose {
            Purpose::Handshake => {
                // Where it came in is not known here, but whether the header was read.
                let expects_header = self.conns.config.listeners().any(|listener| listener.proxy_protocol);
                let listener =
                    ListenerSettings { proxy_protocol: expects_header, ..self.conns.config.listener.clone() };
                let id = self.handshakes.start_connection(socket, &arrival, permit, &listener)?;
                if !admitted {
                    self.conns.reply(id, unavailable("this process has its connection already"));
                    return Ok(None);
                }
                self.conns.keep_head(id, entry.parts[2].to_vec());
                Ok(Some(id))
            }
            Purpose::Linger => {
                let mut conn = Conn::new(socket, Instant::NEVER);
                conn.phase = Phase::Linger(self.conns.now() + LINGER);
                let id = self.conns.add(conn)?;
                self.conns.edit_record(id, |record| {
                    // For the access log. Of one that pointed to more only the peer is known.
                    record.import(entry.block, entry.parts);
                    (record.peer, record.mark) = (arrival.peer.into(), permit.keep());
                    record.leave_alone();
                });
                self.conns.log(id, |log, record, _| log.cut(id, record));
                self.conns.arm(id);
                Ok(None)
            }
            Purpose::Resume => {
                let id = self.conns.add(Conn::new(socket, Instant::NEVER))?;
                Ok(self.resume_moved(id, entry, permit).then_some(id))
            }
        }
    }

    /// Goes on with a WebSocket that another process had; whether its handler is to be told.
    fn resume_moved(&self, id: u64, entry: &Entry, permit: Permit) -> bool {
        let known = {
            let core = &mut *self.conns.core.borrow_mut();
            core.table.record(id).and_then(|record| {
                record.import(entry.block, entry.parts).then(|| {
                    record.mark = permit.keep();
                    record.set_resumed();
                    record.seal();
                    // The sender may have had other handlers, or other numbers for them.
                    let resource = record.strings().resource;
                    let path = resource.split(|byte| *byte == b'?').next().unwrap_or_default();
                    std::str::from_utf8(path).ok().and_then(|path| self.conns.routes.find(path))
                })
            })
        };
        let Some(handler) = known else {
            self.intake.complain("damaged record; connection dropped");
            self.conns.remove(id);
            return false;
        };
        self.conns.put_unsent(id, entry.unsent);
        let Some(route) = handler.and_then(|handler| self.conns.routes.get(handler)) else {
            self.close_arrived(id, NO_HANDLER, 1001);
            return false;
        };
        let (handler, flags) = (handler.unwrap_or_default(), route.flags);
        let pool = self.handlers.pool_of(handler);
        if pool != self.conns.presence.pool {
            self.link.pass(id, entry.topics, entry.seen);
            let to = self.least_loaded(pool);
            if !to.is_some_and(|to| self.forward(&to, id, Purpose::Resume, pool)) {
                self.close_arrived(id, handler, 1012);
            }
            return false;
        }
        if route.blocking && flags & WS_RESUMABLE == 0 {
            self.close_arrived(id, handler, 1012);
            return false;
        }
        let request =
            (!entry.parts[2].is_empty()).then(|| self.read_kept(id, handler, entry.parts[2])).flatten();
        self.session.open(id, handler, OpenOptions { request, ..OpenOptions::default() });
        if !entry.topics.is_empty() {
            self.link.arrive(id, handler, entry.topics, entry.seen);
        }
        // From here on it can move again.
        self.conns.flush(id);
        true
    }

    /// Closes a connection that arrived and that no handler here serves.
    fn close_arrived(&self, id: u64, handler: u16, code: u16) {
        self.session.open(id, handler, OpenOptions { silent: true, ..OpenOptions::default() });
        self.conns.close(id, Some(code), b"", WS_BY_HOST);
        self.conns.flush(id);
    }

    /// The request of a connection whose handler keeps it.
    pub fn read_kept(&self, id: u64, handler: u16, bytes: &[u8]) -> Option<Arc<Request>> {
        let Ok(Parsed::Head { head, .. }) = head::parse(bytes, &self.conns.config.head) else { return None };
        let opening = handshake::check(&head).ok()?;
        let core = &mut *self.conns.core.borrow_mut();
        let user =
            core.table.record(id).and_then(|record| User::new(str::from_utf8(record.strings().user?).ok()?));
        Some(Arc::new(Request::new(head, opening, user, self.handshakes.policy_of(Some(handler)))))
    }
}
