//! Taking up connections that other processes have sent: crash rescue, balance, reload and upgrade all end here.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use ::ws_handler::raw::*;
use socket2::Socket;

use crate::proto::http1::head::{self, Parsed};
use crate::proto::ws::connection::Connection;
use crate::proto::ws::deflate::codec::Deflate;
use crate::proto::ws::deflate::negotiate::Params;
use crate::proto::ws::handshake;
use crate::worker::Worker;
use crate::worker::base::metrics::{NO_HANDLER, OpenCount};
use crate::worker::conn::handoff::{Entry, Purpose};
use crate::worker::conn::handshake::Request;
use crate::worker::conn::record::{Record, flags};
use crate::worker::conn::table::{Conn, NEVER, Open, Phase};
use crate::worker::crash::rescue;
use crate::worker::crash::signals::uninterrupted;
use crate::worker::handshake::request::{LINGER, unavailable};

/// What follows once all connections of a datagram are in the table.
enum Next {
    /// This handler is told that the connection is open.
    Open(u16),
    /// The part of the request that was read is processed.
    Read,
}

impl Worker {
    /// Takes up all connections that lie in this slot's inbox.
    pub fn empty_inbox(&self) {
        loop {
            match uninterrupted(|| self.arrivals.borrow_mut().receive(&self.inbox)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return log::error!("inbox: {error}"),
            }
            // All of them are in the table before a handler hears of one, and may crash.
            let mut moved = Vec::new();
            while let Some(taken) = self.take_up_first() {
                moved.extend(taken);
                rescue::begin_work();
            }
            for (id, next) in moved {
                match next {
                    Next::Read => self.read_arrived(id),
                    Next::Open(handler) if self.stop_at.get().is_none() => self.notify_open(id, handler),
                    Next::Open(_) => {
                        // The handler never hears of it here.
                        self.with_open(id, |_, open| open.silent = true);
                        self.close(id, Some(1001), b"", WS_BY_HOST);
                    }
                }
                self.flush(id);
                rescue::begin_work();
            }
        }
    }

    /// Takes up the first connection of the datagram; `None` when all were taken. A crash finds it either there or in
    /// the table.
    fn take_up_first(&self) -> Option<Option<(u64, Next)>> {
        uninterrupted(|| {
            self.arrivals.borrow_mut().take_first(|fd, entry| match entry {
                Some(entry) => self.take_up(fd, entry),
                None => {
                    log::error!("inbox: malformed handoff entry; connection dropped");
                    None
                }
            })
        })
    }

    /// Goes on with what another process has read of a request.
    fn read_arrived(&self, id: u64) {
        if let Some(record) = self.core.borrow_mut().table.record(id) {
            record.set_flags(flags::TAKEN);
            record.forget_head();
        }
        self.read_head(id, b"");
    }

    /// Takes a connection up, without calling its handler; returns its id and what is to follow.
    fn take_up(&self, fd: OwnedFd, entry: &Entry) -> Option<(u64, Next)> {
        let socket = Socket::from(fd);
        let admitted = entry.purpose == Purpose::Linger && self.per_connection.is_some() || self.admit();
        self.metrics.place.moved_in.add_shared(1);
        match entry.purpose {
            Purpose::Handshake => {
                let known = Record::handshake_in(entry.block);
                let found = || (socket.peer_addr().ok().and_then(|address| address.as_socket()), false, 0);
                let (peer, has_proxy_header, mark) =
                    known.map_or_else(found, |(peer, was_read, mark)| (peer.address(), was_read, mark));
                let id = self.start_connection(socket, peer, self.admission.take_over(peer, mark))?;
                if !admitted {
                    self.reply(id, unavailable("this process has its connection already"));
                    return None;
                }
                if has_proxy_header && let Some(record) = self.core.borrow_mut().table.record(id) {
                    record.set_proxy_header();
                    record.seal();
                }
                if entry.parts[2].is_empty() {
                    return None;
                }
                self.keep_head(id, entry.parts[2].to_vec());
                Some((id, Next::Read))
            }
            Purpose::Linger => {
                let raw = socket.as_raw_fd();
                let mut conn = Conn::new(socket, NEVER);
                conn.phase = Phase::Linger(self.now.get().saturating_add(LINGER));
                if let Some(id) = self.add(conn) {
                    if let Some(record) = self.core.borrow_mut().table.record(id) {
                        // For the access log. Of one that pointed to more nothing is known.
                        record.import(entry.block, entry.parts);
                        record.mark = self.admission.take_over(record.peer.address(), record.mark).keep();
                        record.generation = (id >> 32) as u32;
                        record.fd = raw;
                        record.seal();
                        record.set_flags(flags::TAKEN);
                    }
                    self.log_cut(id);
                    self.arm(id);
                }
                None
            }
            Purpose::Resume => {
                self.resume_moved(socket, entry).map(|(id, handler)| (id, Next::Open(handler)))
            }
        }
    }

    /// Goes on with a WebSocket that another process had.
    fn resume_moved(&self, socket: Socket, entry: &Entry) -> Option<(u64, u16)> {
        let raw = socket.as_raw_fd();
        let id = self.add(Conn::new(socket, NEVER))?;
        let known = {
            let core = &mut *self.core.borrow_mut();
            core.table.record(id).and_then(|record| {
                record.import(entry.block, entry.parts).then(|| {
                    record.mark = self.admission.take_over(record.peer.address(), record.mark).keep();
                    record.generation = (id >> 32) as u32;
                    record.fd = raw;
                    record.set_resumed();
                    record.seal();
                    let params = (record.deflate != 0).then(|| Params::from_bits(record.deflate)).flatten();
                    let deflate =
                        params.map(|params| Deflate::new(params, record.threshold, record.level as u8));
                    // Who sent it may have known other handlers, or the same by other numbers.
                    let resource = record.strings().resource;
                    let path = resource.split(|byte| *byte == b'?').next().unwrap_or_default();
                    let handler = std::str::from_utf8(path).ok().and_then(|path| self.routes.find(path));
                    (handler, deflate)
                })
            })
        };
        let Some((handler, deflate)) = known else {
            log::error!("inbox: a damaged record; its connection is cut");
            self.remove(id);
            return None;
        };
        let Some(route) = handler.and_then(|handler| self.routes.handlers().get(usize::from(handler))) else {
            self.close_arrived(id, NO_HANDLER, deflate, 1001);
            return None;
        };
        let (handler, flags) = (handler.unwrap_or_default(), route.flags);
        if self.pool_of(handler) != self.pool {
            if !self.forward_arrived(id, self.pool_of(handler)) {
                self.close_arrived(id, handler, deflate, 1012);
            }
            return None;
        }
        if route.blocking && flags & WS_RESUMABLE == 0 {
            self.close_arrived(id, handler, deflate, 1012);
            return None;
        }
        let request = (!entry.parts[2].is_empty()).then(|| self.read_kept(entry.parts[2])).flatten();
        {
            let core = &mut *self.core.borrow_mut();
            if let (Some(request), Some(record)) = (&request, core.table.record(id)) {
                record.set_head(request.head.as_bytes());
                record.seal();
            }
            let conn = core.table.get(id)?;
            let protocol = Connection::new(self.now.get(), deflate, flags & WS_STREAM != 0);
            let mut open = Open::new(protocol, OpenCount::new(self.metrics.of(handler)));
            if request.is_some() {
                open.extra().request = request;
            }
            self.set_pace(&mut open);
            conn.handler = handler;
            conn.phase = Phase::Open(open);
            if let Some(record) = core.table.record(id) {
                record.handler = handler;
                record.seal();
            }
        }
        self.log_open(id, false);
        self.commands.set_open(id, handler);
        // From here on it can move again.
        self.flush(id);
        Some((id, handler))
    }

    /// Closes a connection that arrived and that no handler here serves.
    fn close_arrived(&self, id: u64, handler: u16, deflate: Option<Deflate>, code: u16) {
        self.log_open(id, false);
        {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return };
            let protocol = Connection::new(self.now.get(), deflate, false);
            let mut open = Open::new(protocol, OpenCount::new(self.metrics.of(handler)));
            open.silent = true;
            conn.handler = handler;
            conn.phase = Phase::Open(open);
        }
        self.close(id, Some(code), b"", WS_BY_HOST);
        self.flush(id);
    }

    /// The request of a connection whose handler keeps it.
    fn read_kept(&self, bytes: &[u8]) -> Option<Arc<Request>> {
        let Ok(Parsed::Head { head, .. }) = head::parse(bytes, &self.config.head) else { return None };
        let opening = handshake::check(&head).ok()?;
        Some(Arc::new(Request::new(head, opening)))
    }
}
