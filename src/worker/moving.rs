//! Moving a connection: what one process tells another about it, and taking it
//! up there. One form for all uses: crash rescue, balance, reload, upgrade.
//!
//! An entry is a fixed header, the record as it lies in memory, and the parts
//! that the record points to. Both sides are the same executable.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use ::ws_handler::raw::*;
use socket2::Socket;

use super::Worker;
use super::conn::{Conn, NEVER, Open, Phase};
use super::counting::{NO_HANDLER, OpenCount};
use super::greet::{LINGER, unavailable};
use super::opening::Request;
use super::record::Record;
use crate::fleet::inbox::{FORMAT, MAX_BYTES, MAX_FDS, Parcel};
use crate::proto::codec::Deflate;
use crate::proto::connection::Connection;
use crate::proto::deflate::Params;
use crate::proto::handshake;
use crate::proto::head::{self, Parsed};

/// What is to become of a connection that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Go on with the open WebSocket.
    Resume = 1,
    /// Begin with the request head, of which perhaps something was read already.
    Greet = 2,
    /// A Close frame was sent, and no more is to come: wait for the peer to close its end.
    Linger = 3,
}

impl Purpose {
    fn from_number(number: u32) -> Option<Self> {
        [Purpose::Resume, Purpose::Greet, Purpose::Linger]
            .into_iter()
            .find(|purpose| *purpose as u32 == number)
    }
}

/// The header of an entry; native byte order.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    magic: u32,
    purpose: u32,
    /// Sizes of spilled strings, state and request head; of a connection to greet, the last is what was read.
    parts: [u32; 3],
}

const HEADER: usize = size_of::<Header>();

/// Connections on their way into one inbox. Made beforehand; used without allocation or lock.
pub struct Shipment {
    parcel: Parcel,
    headers: [Header; MAX_FDS],
}

impl Shipment {
    /// An empty one. Large: to be boxed.
    pub fn new() -> Box<Self> {
        let header = Header { magic: FORMAT, purpose: 0, parts: [0; 3] };
        Box::new(Shipment { parcel: Parcel::new(), headers: [header; MAX_FDS] })
    }

    /// Adds a connection; false if it has to be sent first.
    ///
    /// # Safety
    /// The record and what it points to must stay as they are until the shipment is sent, and `fd` open.
    pub unsafe fn add(&mut self, record: &Record, fd: RawFd, purpose: Purpose) -> bool {
        let parts = match purpose {
            Purpose::Resume => record.parts(),
            Purpose::Greet => [&[], &[], record.parts()[2]],
            Purpose::Linger => [&[][..]; 3],
        };
        // SAFETY: promised by the caller.
        unsafe { self.add_parts(record, fd, purpose, parts) }
    }

    /// Adds a connection of whose request something was read.
    ///
    /// # Safety
    /// As for [`add`](Self::add), and `read` must stay as it is too.
    pub unsafe fn add_greeting(&mut self, record: &Record, fd: RawFd, read: &[u8]) -> bool {
        // SAFETY: promised by the caller.
        unsafe { self.add_parts(record, fd, Purpose::Greet, [&[], &[], read]) }
    }

    unsafe fn add_parts(&mut self, record: &Record, fd: RawFd, purpose: Purpose, parts: [&[u8]; 3]) -> bool {
        let Some(header) = self.headers.get_mut(self.parcel.len()) else { return false };
        header.purpose = purpose as u32;
        header.parts = parts.map(|part| part.len() as u32);
        // SAFETY: a Header is nothing but u32, without padding.
        let header = unsafe { std::slice::from_raw_parts((&raw const *header).cast::<u8>(), HEADER) };
        // SAFETY: promised by the caller; the headers are ours and are not changed before the parcel is sent.
        unsafe { self.parcel.add(fd, &[header, record.block(), parts[0], parts[1], parts[2]]) }
    }

    /// Sends what is in it. `WouldBlock`: the inbox is full, and it keeps its content.
    ///
    /// # Safety
    /// What was promised to [`add`](Self::add) must hold.
    pub unsafe fn send(&mut self, inlet: RawFd) -> io::Result<()> {
        // SAFETY: promised by the caller.
        unsafe { self.parcel.send(inlet) }
    }

    /// What is in it: descriptors, and what was to become of them. Async-signal-safe.
    pub fn content(&self) -> impl Iterator<Item = (RawFd, Purpose)> {
        let purposes = self.headers.iter().filter_map(|header| Purpose::from_number(header.purpose));
        self.parcel.fds().iter().copied().zip(purposes)
    }

    /// Empties it without sending.
    pub fn clear(&mut self) {
        self.parcel.clear();
    }
}

/// One entry as it arrived.
struct Entry<'a> {
    purpose: Purpose,
    block: &'a [u8],
    parts: [&'a [u8]; 3],
}

/// Cuts the next entry off `bytes`; `None` if they are no entry.
fn next_entry<'a>(bytes: &mut &'a [u8]) -> Option<Entry<'a>> {
    fn take<'a>(bytes: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
        let (taken, rest) = bytes.split_at_checked(size)?;
        *bytes = rest;
        Some(taken)
    }
    let header = take(bytes, HEADER)?;
    let word = |index: usize| {
        let word = header.get(index * 4..index * 4 + 4)?;
        Some(u32::from_ne_bytes(word.try_into().ok()?))
    };
    if word(0)? != FORMAT {
        return None;
    }
    let purpose = Purpose::from_number(word(1)?)?;
    let sizes = [word(2)?, word(3)?, word(4)?];
    let block = take(bytes, size_of::<Record>())?;
    let mut parts = [&[][..]; 3];
    for (part, size) in parts.iter_mut().zip(sizes) {
        *part = take(bytes, size as usize)?;
    }
    Some(Entry { purpose, block, parts })
}

impl Worker {
    /// Takes up all connections that lie in this slot's inbox.
    pub fn empty_inbox(&self) {
        let mut bytes = vec![0; MAX_BYTES];
        loop {
            let (count, fds) = match self.inbox.receive(&mut bytes) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return log::error!("inbox: {error}"),
            };
            let mut rest = bytes.get(..count).unwrap_or_default();
            // All of them are in the table before a handler hears of one, and may crash.
            let mut moved = Vec::new();
            for fd in fds {
                match next_entry(&mut rest) {
                    Some(entry) => moved.extend(self.take_up(fd, &entry)),
                    None => log::error!("inbox: an entry that nobody can read; its connection is cut"),
                }
            }
            for (id, handler) in moved {
                match self.stop_at.get() {
                    None => self.say_open(id, handler),
                    Some(_) => {
                        // The handler never hears of it here.
                        self.with_open(id, |_, open| open.silent = true);
                        self.close(id, Some(1001), b"", WS_BY_HOST);
                    }
                }
                self.flush(id);
            }
        }
    }

    /// Takes a connection up; if its handler is to hear of that: its id, and the handler.
    fn take_up(&self, fd: OwnedFd, entry: &Entry) -> Option<(u64, u16)> {
        let socket = Socket::from(fd);
        let admitted = entry.purpose == Purpose::Linger && self.single.is_some() || self.admit();
        self.counting.place.moved_in.add_shared(1);
        match entry.purpose {
            Purpose::Greet => {
                let known = Record::greeting_in(entry.block);
                let found = || (socket.peer_addr().ok().and_then(|address| address.as_socket()), false, 0);
                let (peer, has_proxy_header, mark) =
                    known.map_or_else(found, |(peer, was_read, mark)| (peer.address(), was_read, mark));
                let id = self.greet(socket, peer, self.doors.take_over(peer, mark))?;
                if !admitted {
                    self.reply(id, unavailable("this process has its connection already"));
                    return None;
                }
                if has_proxy_header && let Some(record) = self.core.borrow_mut().table.record(id) {
                    record.set_proxy_header();
                    record.seal();
                }
                if !entry.parts[2].is_empty() {
                    self.read_head(id, entry.parts[2]);
                }
                None
            }
            Purpose::Linger => {
                let raw = socket.as_raw_fd();
                let mut conn = Conn::new(socket, NEVER);
                conn.phase = Phase::Linger(self.now.get().saturating_add(LINGER));
                if let Some(id) = self.add(conn) {
                    if let Some(record) = self.core.borrow_mut().table.record(id) {
                        // For the access log. Of one that pointed to more nothing is known.
                        record.import(entry.block, entry.parts);
                        record.mark = self.doors.take_over(record.peer.address(), record.mark).keep();
                        record.generation = (id >> 32) as u32;
                        record.fd = raw;
                        record.seal();
                        record.set_standing(super::record::standing::TAKEN);
                    }
                    self.log_cut(id);
                    self.arm(id);
                }
                None
            }
            Purpose::Resume => self.resume_moved(socket, entry),
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
                    record.mark = self.doors.take_over(record.peer.address(), record.mark).keep();
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
            self.turn_away(id, NO_HANDLER, deflate, 1001);
            return None;
        };
        let (handler, flags) = (handler.unwrap_or_default(), route.flags);
        if self.pool_of(handler) != self.pool {
            if !self.send_on(id, self.pool_of(handler)) {
                self.turn_away(id, handler, deflate, 1012);
            }
            return None;
        }
        if route.blocking && flags & WS_RESUMABLE == 0 {
            self.turn_away(id, handler, deflate, 1012);
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
            let mut open = Open::new(protocol, OpenCount::new(self.counting.of(handler)));
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
        self.mailroom.set_open(id, handler);
        // From here on it can move again.
        self.flush(id);
        Some((id, handler))
    }

    /// Closes a connection that arrived and that no handler here serves.
    fn turn_away(&self, id: u64, handler: u16, deflate: Option<Deflate>, code: u16) {
        self.log_open(id, false);
        {
            let core = &mut *self.core.borrow_mut();
            let Some(conn) = core.table.get(id) else { return };
            let protocol = Connection::new(self.now.get(), deflate, false);
            let mut open = Open::new(protocol, OpenCount::new(self.counting.of(handler)));
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

#[cfg(test)]
mod tests {
    use super::super::record::{Records, Strings};
    use super::*;
    use crate::fleet::inbox::Inbox;

    #[test]
    fn an_entry_arrives_as_it_was_sent() {
        let inbox = Inbox::new().unwrap();
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut records = Records::map(2).unwrap();
        let record = records.get_mut(0).unwrap();
        let resource = "/long".repeat(50);
        let strings = Strings { resource: resource.as_bytes(), origin: None, protocol: Some(b"chat") };
        record.set_strings(strings).unwrap();
        record.set_state(b"17");
        record.seal();
        let mut shipment = Shipment::new();
        // SAFETY: sent at once, while record and socket live.
        unsafe {
            assert!(shipment.add(record, ours.as_raw_fd(), Purpose::Resume));
            assert!(shipment.add(record, ours.as_raw_fd(), Purpose::Linger));
            assert!(shipment.add_greeting(record, ours.as_raw_fd(), b"GET"));
            shipment.send(inbox.inlet().as_raw_fd()).unwrap();
        }
        let mut bytes = vec![0; MAX_BYTES];
        let (count, fds) = inbox.receive(&mut bytes).unwrap();
        assert_eq!(fds.len(), 3);
        let mut rest = &bytes[..count];
        let entry = next_entry(&mut rest).unwrap();
        assert_eq!(entry.purpose, Purpose::Resume);
        let copy = records.get_mut(1).unwrap();
        assert!(copy.import(entry.block, entry.parts));
        assert_eq!((copy.strings(), copy.state()), (strings, Some(&b"17"[..])));
        assert_eq!(next_entry(&mut rest).unwrap().purpose, Purpose::Linger);
        let greeting = next_entry(&mut rest).unwrap();
        assert_eq!((greeting.purpose, greeting.parts[2]), (Purpose::Greet, &b"GET"[..]));
        assert!(next_entry(&mut rest).is_none());
    }

    #[test]
    fn bytes_that_are_no_entry_are_refused() {
        let mut junk: &[u8] = &[1; 500];
        assert!(next_entry(&mut junk).is_none());
        let mut short: &[u8] = &FORMAT.to_ne_bytes();
        assert!(next_entry(&mut short).is_none());
    }
}
