//! The format in which one process hands connections to another: crash rescue, balance, reload and upgrade use the
//! same.
//!
//! An entry is a fixed header, the record as it lies in memory, and the parts
//! that the record points to. Both sides are the same executable.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use ::ws_handler::raw::WS_STATE_MAX;

use crate::fleet::sockets::datagram::{self, MAX_FDS};
use crate::fleet::sockets::inbox::{FORMAT, MAX_BYTES, Parcel};
use crate::worker::base::memory::Zeroed;
use crate::worker::conn::extents::RawExtents;
use crate::worker::conn::record::{NOTHING, Record, flags};

/// What is to become of a connection that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::FromRepr)]
#[repr(u32)]
pub enum Purpose {
    /// Go on with the open WebSocket.
    Resume = 1,
    /// Begin with the request head, of which perhaps something was read already.
    Handshake = 2,
    /// A Close frame was sent, and no more is to come: wait for the peer to close its end.
    Linger = 3,
}

/// The header of an entry; native byte order.
#[repr(C)]
#[derive(Clone, Copy)]
struct EntryHeader {
    magic: u32,
    /// In the first entry of a datagram: how many entries it has, each with a descriptor. Else of no meaning.
    count: u32,
    purpose: u32,
    /// Sizes of spilled facts and strings, state, request head (before the handshake what was read of it),
    /// subscriptions, and what is still to be sent to the peer.
    parts: [u32; 5],
    /// Stamp of the last message of any topic that the connection has got, as far as its subscriptions were live.
    seen: u64,
}

const ENTRY_HEADER: usize = size_of::<EntryHeader>();

/// What travels beside the record of an open connection. Each null for nothing.
pub struct Beside {
    /// Its subscriptions.
    pub topics: *const [u8],
    /// The stamp of the last message that it has got by those.
    pub seen: u64,
    /// What waits in its send queue: whole frames.
    pub unsent: *const [u8],
}

/// Connections on their way into one inbox. Made beforehand; used without allocation or lock.
pub struct Shipment {
    parcel: Parcel,
    headers: [EntryHeader; MAX_FDS],
}

impl Shipment {
    pub fn new() -> Self {
        let header = EntryHeader { magic: FORMAT, count: 0, purpose: 0, parts: [0; 5], seen: 0 };
        Shipment { parcel: Parcel::new(), headers: [header; MAX_FDS] }
    }

    /// Adds a connection, with what travels beside its record; false if it has to be sent first, or its descriptor was
    /// closed: that would be an error for all that are in it.
    ///
    /// # Safety
    /// The record and what it points to must stay as they are until the shipment is sent, and its descriptor open.
    /// Parts that cannot be read are an error of [`send`](Self::send), nothing worse.
    pub unsafe fn add(&mut self, record: &Record, purpose: Purpose, beside: &Beside) -> bool {
        let parts = parts_of(record, purpose, beside);
        // SAFETY: promised by the caller.
        unsafe { self.put(record.fd, purpose, beside.seen, record.block(), parts) }
    }

    /// Adds a connection that has arrived in this process and was not adopted yet, as it came.
    ///
    /// # Safety
    /// As for [`add`](Self::add).
    pub unsafe fn add_arrival(&mut self, fd: RawFd, entry: &Entry) -> bool {
        let [spill, state, head] = entry.parts;
        let parts = [spill, state, head, entry.topics, entry.unsent].map(|part| &raw const *part);
        // SAFETY: promised by the caller.
        unsafe { self.put(fd, entry.purpose, entry.seen, entry.block, parts) }
    }

    unsafe fn put(
        &mut self,
        fd: RawFd,
        purpose: Purpose,
        seen: u64,
        block: &[u8],
        parts: [*const [u8]; 5],
    ) -> bool {
        let Some(header) = self.headers.get_mut(self.parcel.len()).filter(|_| is_open(fd)) else {
            return false;
        };
        (header.purpose, header.seen) = (purpose as u32, seen);
        header.parts = parts.map(|part| part.len() as u32);
        let header = std::ptr::slice_from_raw_parts((&raw const *header).cast::<u8>(), ENTRY_HEADER);
        let [a, b, c, d, e] = parts;
        // SAFETY: promised by the caller; the headers are ours and are not changed before the parcel is sent.
        unsafe { self.parcel.add(fd, &[header, block, a, b, c, d, e]) }
    }

    /// Whether an entry of so many bytes can be added before what is in it is sent.
    pub fn has_room(&self, size: usize) -> bool {
        self.parcel.has_room(size)
    }

    /// Sends what is in it. `WouldBlock`: the inbox is full, and it keeps its content.
    ///
    /// # Safety
    /// What was promised to [`add`](Self::add) must hold.
    pub unsafe fn send(&mut self, tx: RawFd) -> io::Result<()> {
        self.headers[0].count = self.parcel.len() as u32;
        // SAFETY: promised by the caller.
        unsafe { self.parcel.send(tx) }
    }

    /// What is in it: descriptors and purposes. Async-signal-safe.
    pub fn content(&self) -> impl Iterator<Item = (RawFd, Purpose)> {
        let purposes = self.headers.iter().filter_map(|header| Purpose::from_repr(header.purpose));
        self.parcel.fds().iter().copied().zip(purposes)
    }

    /// Empties it without sending.
    pub fn clear(&mut self) {
        self.parcel.clear();
    }
}

/// Bytes of a connection's entry, at most: its handler may attach another state until it is added. `None` if it cannot
/// be sent at all.
pub fn entry_size(record: &Record, purpose: Purpose, beside: &Beside) -> Option<usize> {
    let parts = parts_of(record, purpose, beside).iter().map(|part| part.len()).sum::<usize>();
    let size = ENTRY_HEADER + size_of::<Record>() + parts + WS_STATE_MAX + 1;
    (size <= MAX_BYTES && is_open(record.fd)).then_some(size)
}

fn parts_of(record: &Record, purpose: Purpose, beside: &Beside) -> [*const [u8]; 5] {
    let [spill, state, head] = record.part_places();
    match purpose {
        Purpose::Resume => [spill, state, head, beside.topics, beside.unsent],
        Purpose::Handshake => [spill, NOTHING, head, NOTHING, NOTHING],
        Purpose::Linger => [NOTHING; 5],
    }
}

/// Whether there is such a descriptor: a handler may have closed another's. Async-signal-safe.
fn is_open(fd: RawFd) -> bool {
    // SAFETY: only asks; a number that is no descriptor is EBADF.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// What waits in the send queue of a connection, as far as that can be sent along; `None` if it was damaged. Cannot
/// fault. Async-signal-safe.
pub fn unsent_of(record: &Record, id: u64, extents: RawExtents) -> Option<*const [u8]> {
    match record.flags() & flags::UNSENT {
        0 => Some(NOTHING),
        _ => extents.find(id as u32 as usize),
    }
}

/// Connections that have arrived in a datagram and are not in the table yet. Where a crash finds them.
pub struct Arrivals {
    bytes: [u8; MAX_BYTES],
    /// The entries that were not taken yet: start <= end <= [`MAX_BYTES`].
    entries: Range<usize>,
    fds: [RawFd; MAX_FDS],
    /// The descriptors that were not taken yet: start <= end <= [`MAX_FDS`].
    waiting: Range<usize>,
}

// SAFETY: numbers.
unsafe impl Zeroed for Arrivals {}

impl Arrivals {
    /// Receives the next datagram, after all of the last one were taken; returns the number of its descriptors, and the
    /// process that has sent it. `WouldBlock` when there is none. Allocates nothing: on a damaged heap that would be a
    /// crash, with all of them in nobody's hands.
    pub fn receive(&mut self, from: BorrowedFd<'_>) -> io::Result<(usize, i32)> {
        (self.entries, self.waiting) = (0..0, 0..0);
        let (size, sender) = datagram::receive_each(from, &mut self.bytes, MAX_FDS, |fd| {
            if let Some(place) = self.fds.get_mut(self.waiting.end) {
                *place = fd.into_raw_fd();
                self.waiting.end += 1;
            }
        })?;
        self.entries = 0..size.min(MAX_BYTES);
        Ok((self.waiting.len(), sender.unwrap_or_default()))
    }

    /// Forgets the first, and gives it to `take`, without an entry if that cannot be read. `None` when there is none.
    /// In this order: whatever happens in `take`, it does not have two owners.
    pub fn take_first<R>(&mut self, take: impl FnOnce(OwnedFd, Option<&Entry<'_>>) -> R) -> Option<R> {
        let fd = *self.fds.get(self.waiting.clone())?.first()?;
        let mut rest = self.bytes.get(self.entries.clone()).unwrap_or_default();
        let entry = next_entry(&mut rest);
        let left = if entry.is_some() { rest.len() } else { 0 };
        self.waiting.start += 1;
        self.entries.start = self.entries.end - left;
        // SAFETY: receive() was given this descriptor, and it is forgotten.
        Some(take(unsafe { OwnedFd::from_raw_fd(fd) }, entry.as_ref()))
    }

    /// All that were not taken yet and can be read, with their descriptors. Async-signal-safe.
    pub fn iter(&self) -> impl Iterator<Item = (RawFd, Entry<'_>)> {
        let mut rest = self.bytes.get(self.entries.clone()).unwrap_or_default();
        let waiting = self.fds.get(self.waiting.clone()).unwrap_or_default();
        waiting.iter().map_while(move |fd| Some((*fd, next_entry(&mut rest)?)))
    }
}

/// One entry as it arrived.
pub struct Entry<'a> {
    /// What is to become of it.
    pub purpose: Purpose,
    /// The record's own bytes.
    pub block: &'a [u8],
    /// What the record points to.
    pub parts: [&'a [u8]; 3],
    /// Its subscriptions.
    pub topics: &'a [u8],
    /// Stamp of the last message that it has got by those.
    pub seen: u64,
    /// Whole frames that are sent to the peer before anything else.
    pub unsent: &'a [u8],
}

/// Cuts the next entry off `bytes`; `None` if they are no entry.
fn next_entry<'a>(bytes: &mut &'a [u8]) -> Option<Entry<'a>> {
    fn take<'a>(bytes: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
        let (taken, rest) = bytes.split_at_checked(size)?;
        *bytes = rest;
        Some(taken)
    }
    // SAFETY: ENTRY_HEADER bytes, and a header consists of numbers, for which all bytes are valid.
    let header = unsafe { take(bytes, ENTRY_HEADER)?.as_ptr().cast::<EntryHeader>().read_unaligned() };
    if header.magic != FORMAT {
        return None;
    }
    let purpose = Purpose::from_repr(header.purpose)?;
    let block = take(bytes, size_of::<Record>())?;
    let mut parts = [&[][..]; 5];
    for (part, size) in parts.iter_mut().zip(header.parts) {
        *part = take(bytes, size as usize)?;
    }
    let [spill, state, head, topics, unsent] = parts;
    Some(Entry { purpose, block, parts: [spill, state, head], topics, seen: header.seen, unsent })
}

#[cfg(test)]
mod tests {
    use crate::fleet::sockets::inbox::next_fds;
    use crate::worker::base::memory::guard_zeroed;
    use crate::worker::conn::record::{Records, Strings};
    use std::os::fd::{AsFd, AsRawFd};

    use super::*;

    #[test]
    fn an_entry_arrives_as_it_was_sent() {
        let inbox = crate::fleet::sockets::inbox::create().unwrap();
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut records = Records::map(3).unwrap();
        let read = records.get_mut(2).unwrap();
        read.fd = ours.as_raw_fd();
        read.set_head(b"GET");
        read.seal();
        let read: *const Record = read;
        let record = records.get_mut(0).unwrap();
        record.fd = ours.as_raw_fd();
        let resource = "/long".repeat(50);
        let strings = Strings {
            resource: resource.as_bytes(),
            origin: None,
            user: Some(b"ann"),
            protocol: Some(b"chat"),
        };
        record.set_strings(strings).unwrap();
        record.set_state(b"17");
        record.seal();
        let mut shipment = Shipment::new();
        // SAFETY: sent at once, while record and socket live.
        unsafe {
            let beside = Beside { topics: b"news", seen: 17, unsent: b"\x81\x01a" };
            assert!(shipment.add(record, Purpose::Resume, &beside));
            assert!(shipment.add(record, Purpose::Linger, &beside));
            assert!(shipment.add(&*read, Purpose::Handshake, &beside));
            shipment.send(inbox.tx.as_raw_fd()).unwrap();
        }
        let arrivals: &mut Arrivals = guard_zeroed().unwrap();
        assert_eq!(next_fds(inbox.rx.as_fd()).unwrap(), 3);
        assert_eq!(arrivals.receive(inbox.rx.as_fd()).unwrap().0, 3);
        let purposes =
            |arrivals: &Arrivals| arrivals.iter().map(|(_, entry)| entry.purpose).collect::<Vec<_>>();
        assert_eq!(purposes(arrivals), [Purpose::Resume, Purpose::Linger, Purpose::Handshake]);
        let copy = records.get_mut(1).unwrap();
        let imported = arrivals.take_first(|_, entry| {
            let entry = entry.unwrap();
            let is_intact = copy.import(entry.block, entry.parts);
            (is_intact, entry.topics.to_vec(), entry.seen, entry.unsent.to_vec())
        });
        assert_eq!(imported, Some((true, b"news".to_vec(), 17, b"\x81\x01a".to_vec())));
        assert_eq!((copy.strings(), copy.terminated_state()), (strings, Some(&b"17\0"[..])));
        assert_eq!(purposes(arrivals), [Purpose::Linger, Purpose::Handshake]);

        // The others are sent on as they came.
        for (fd, entry) in arrivals.iter() {
            // SAFETY: sent below, while they wait in `arrivals`.
            assert!(unsafe { shipment.add_arrival(fd, &entry) });
        }
        // SAFETY: as above.
        unsafe { shipment.send(inbox.tx.as_raw_fd()).unwrap() };
        assert_eq!(next_fds(inbox.rx.as_fd()).unwrap(), 2);
        assert_eq!(arrivals.receive(inbox.rx.as_fd()).unwrap().0, 2);
        assert_eq!(purposes(arrivals), [Purpose::Linger, Purpose::Handshake]);
        arrivals.take_first(|_, _| ()).unwrap();
        let read = arrivals.take_first(|_, entry| entry.unwrap().parts[2].to_vec());
        assert_eq!(read, Some(b"GET".to_vec()));
        assert!(arrivals.take_first(|_, _| ()).is_none());
    }

    #[test]
    fn an_arrival_that_causes_a_crash_is_not_among_those_that_wait() {
        let inbox = crate::fleet::sockets::inbox::create().unwrap();
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut records = Records::map(1).unwrap();
        let record = records.get_mut(0).unwrap();
        record.fd = ours.as_raw_fd();
        let beside = Beside { topics: NOTHING, seen: 0, unsent: NOTHING };
        let mut shipment = Shipment::new();
        // SAFETY: sent at once, while record and socket live.
        unsafe {
            assert!(shipment.add(record, Purpose::Resume, &beside));
            assert!(shipment.add(record, Purpose::Linger, &beside));
            shipment.send(inbox.tx.as_raw_fd()).unwrap();
        }
        let arrivals: &mut Arrivals = guard_zeroed().unwrap();
        arrivals.receive(inbox.rx.as_fd()).unwrap();
        let crashed = std::panic::AssertUnwindSafe(|| arrivals.take_first(|_, _| panic!("a crash")));
        assert!(std::panic::catch_unwind(crashed).is_err());
        assert!(arrivals.iter().map(|(_, entry)| entry.purpose).eq([Purpose::Linger]));
    }

    #[test]
    fn bytes_that_are_no_entry_are_refused() {
        let mut junk: &[u8] = &[1; 500];
        assert!(next_entry(&mut junk).is_none());
        let mut short: &[u8] = &FORMAT.to_ne_bytes();
        assert!(next_entry(&mut short).is_none());
    }
}
