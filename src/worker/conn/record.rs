//! What is known of each open connection, packed, in a mapping of its own.
//!
//! A record is all that another process needs to go on with a connection that
//! stands between two messages. It lies apart from the heap, where a handler's
//! wild write is less likely to reach it, and has a checksum, so that damage is
//! noticed.
#![allow(unsafe_code)]

pub mod foreign;

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::fleet::memory::addresses::Mark;
use crate::fleet::peer::Peer;
use crate::proto::ws::deflate::codec::Deflate;
use crate::proto::ws::deflate::negotiate::Params;
use crate::worker::base::memory::{self, Slots, Zeroed};
use crate::worker::conn::owned::Owned;

/// Bytes of resource, origin, user and subprotocol that fit into the record itself.
const INLINE: usize = 16;

/// What can be done with a connection if the process crashes right now: bits of `Record::flags`.
pub mod flags {
    /// An open WebSocket that another process can adopt as it is.
    pub const MOVABLE: u32 = 1;
    /// What was sent ends at a frame boundary: a Close frame can follow.
    pub const BOUNDARY: u32 = 2;
    /// Accepted; what was read of its request is the record's head.
    pub const FRESH: u32 = 4;
    /// There is a connection.
    pub const TAKEN: u32 = 8;
    /// Its handler decides about the request, which is the record's head; nothing was answered yet.
    pub const OPENING: u32 = 16;
    /// It has a blocking thread: it is movable only while that has nothing to do, which the command queue knows.
    pub const THREAD: u32 = 32;
    /// As `OPENING`, but more than the request was read, which no other process can know.
    pub const AHEAD: u32 = 64;
    /// What waits in the send queue is whole frames, and noted in the place of its slot: it is sent before anything
    /// else.
    pub const UNSENT: u32 = 128;
}

/// One connection. All zero: no connection.
#[repr(C)]
pub struct Record {
    /// See [`flags`]; changes all the time and is not under the checksum: the upper half are the lower half's
    /// bits turned over.
    flags: AtomicU32,
    /// Over everything after it.
    checksum: u32,
    /// Over the bytes that `spill`, `state` and `head` point to.
    parts: u32,
    /// The upper half of the connection's id.
    pub generation: u32,
    /// The connection's descriptor.
    pub fd: i32,
    /// `Params::to_bits` of permessage-deflate; 0 without compression.
    pub deflate: u32,
    /// Shorter messages are not compressed.
    pub threshold: u32,
    /// The compressor's.
    pub level: u8,
    /// Bytes of the user's name; 0: none.
    user: u8,
    /// Index of the handler in the routes.
    pub handler: u16,
    /// `RESUMED`, `HAS_ORIGIN`, `HAS_PROTOCOL`, `HAS_PROXY_HEADER`, `HAS_FACTS`.
    attributes: u16,
    resource: u16,
    origin: u16,
    protocol: u16,
    /// Changed ones are to be sealed.
    pub peer: Peer,
    head_size: u32,
    /// The kept request head: bytes that the connection owns.
    head: *const u8,
    /// Where it is counted.
    pub mark: Mark,
    state: Owned,
    /// What does not fit into `inline`: with `HAS_FACTS` the gateway's facts, their size (u32) in front, then the
    /// strings.
    spill: Owned,
    inline: [u8; INLINE],
}

const RESUMED: u16 = 1;
const HAS_ORIGIN: u16 = 2;
const HAS_PROTOCOL: u16 = 4;
const HAS_PROXY_HEADER: u16 = 8;
const HAS_FACTS: u16 = 16;

/// No bytes.
pub const NOTHING: *const [u8] = std::ptr::slice_from_raw_parts(std::ptr::null(), 0);
/// Where the checksum begins to count.
const COVERED: usize = offset_of!(Record, parts);

/// The strings of a connection; each can be followed by a NUL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strings<T> {
    /// Path and query.
    pub resource: T,
    pub origin: Option<T>,
    /// The authenticated user, if that was asked.
    pub user: Option<T>,
    pub protocol: Option<T>,
}

impl<T> Strings<T> {
    pub fn map<U>(self, f: impl Fn(T) -> U) -> Strings<U> {
        Strings {
            resource: f(self.resource),
            origin: self.origin.map(&f),
            user: self.user.map(&f),
            protocol: self.protocol.map(&f),
        }
    }
}

impl Strings<Vec<u8>> {
    pub fn as_slices(&self) -> Strings<&[u8]> {
        let Strings { resource, origin, user, protocol } = self;
        Strings { resource, origin: origin.as_deref(), user: user.as_deref(), protocol: protocol.as_deref() }
    }
}

/// The facts at the beginning of what a record has spilled.
fn facts_in(attributes: u16, spill: &[u8]) -> Option<&[u8]> {
    let (size, rest) = spill.split_first_chunk().filter(|_| attributes & HAS_FACTS != 0)?;
    rest.get(..u32::from_ne_bytes(*size) as usize)
}

/// A string of the request was longer than a record can describe: 64 KiB, of a user 255 bytes.
#[derive(Debug)]
pub struct TooLong;

impl Record {
    /// Sets what stays the same for the connection's life. The checksum is made by [`seal`](Self::seal).
    pub fn set_strings(&mut self, strings: Strings<&[u8]>) -> Result<(), TooLong> {
        let origin = strings.origin.unwrap_or_default();
        let protocol = strings.protocol.unwrap_or_default();
        let length = |part: &[u8]| u16::try_from(part.len()).map_err(|_| TooLong);
        (self.resource, self.origin, self.protocol) =
            (length(strings.resource)?, length(origin)?, length(protocol)?);
        self.user = strings.user.map_or(0, <[u8]>::len).try_into().map_err(|_| TooLong)?;
        self.attributes &= !(HAS_ORIGIN | HAS_PROTOCOL);
        self.attributes |= if strings.origin.is_some() { HAS_ORIGIN } else { 0 };
        self.attributes |= if strings.protocol.is_some() { HAS_PROTOCOL } else { 0 };
        let parts = [Some(strings.resource), Some(origin), strings.user, Some(protocol)];
        let size = parts.iter().flatten().map(|part| part.len() + 1).sum();
        let mut text = Vec::with_capacity(size);
        for part in parts.into_iter().flatten() {
            text.extend_from_slice(part);
            text.push(0);
        }
        let facts = self.facts_end();
        match self.inline.get_mut(..text.len()) {
            Some(room) if facts == 0 => {
                self.spill = Owned::NOTHING;
                room.copy_from_slice(&text);
            }
            _ => {
                let facts = self.spill.get().and_then(|spill| spill.get(..facts)).unwrap_or_default();
                self.spill = Owned::new([facts, &text].concat());
            }
        }
        Ok(())
    }

    /// Sets what a gateway knows of the connection, before the strings are set.
    pub fn set_facts(&mut self, facts: &[u8]) {
        let size = (facts.len() as u32).to_ne_bytes();
        self.spill = Owned::new([&size, facts].concat());
        self.attributes |= HAS_FACTS;
    }

    /// What a gateway knows of the connection, if it comes from one.
    pub fn facts(&self) -> Option<&[u8]> {
        facts_in(self.attributes, self.spill.get()?)
    }

    /// Bytes at the beginning of `spill` that are not strings.
    fn facts_end(&self) -> usize {
        self.facts().map_or(0, |facts| size_of::<u32>() + facts.len())
    }

    pub fn strings(&self) -> Strings<&[u8]> {
        self.texts(0)
    }

    /// The strings, each with the NUL behind it.
    pub fn terminated_strings(&self) -> Strings<&[u8]> {
        self.texts(1)
    }

    fn texts(&self, nul: usize) -> Strings<&[u8]> {
        let text: &[u8] =
            self.spill.get().and_then(|spill| spill.get(self.facts_end()..)).unwrap_or(&self.inline);
        let part = |at: usize, size: u16| text.get(at..at + usize::from(size) + nul).unwrap_or_default();
        let origin_at = usize::from(self.resource) + 1;
        let user_at = origin_at + usize::from(self.origin) + 1;
        Strings {
            resource: part(0, self.resource),
            origin: (self.attributes & HAS_ORIGIN != 0).then(|| part(origin_at, self.origin)),
            user: (self.user != 0).then(|| part(user_at, self.user.into())),
            protocol: (self.attributes & HAS_PROTOCOL != 0).then(|| part(self.protocol_at(), self.protocol)),
        }
    }

    fn protocol_at(&self) -> usize {
        let user = if self.user == 0 { 0 } else { usize::from(self.user) + 1 };
        usize::from(self.resource) + usize::from(self.origin) + 2 + user
    }

    /// Sets the subprotocol alone: the other strings stay where they are, since handlers may hold on to them. It is
    /// cut to the room that [`set_strings`](Self::set_strings) has made.
    pub fn set_protocol(&mut self, protocol: Option<&[u8]>) {
        let at = self.facts_end() + self.protocol_at();
        let text: &mut [u8] = self.spill.get_mut().unwrap_or(&mut self.inline);
        let room =
            text.get_mut(at..).and_then(|rest| rest.split_last_mut()).map_or(&mut [][..], |(_, room)| room);
        let name = protocol.unwrap_or_default();
        let length = name.len().min(room.len());
        room.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
        if let Some(end) = text.get_mut(at + length) {
            *end = 0;
        }
        self.protocol = length as u16;
        self.attributes = self.attributes & !HAS_PROTOCOL | if protocol.is_some() { HAS_PROTOCOL } else { 0 };
    }

    pub fn params(&self) -> Option<Params> {
        (self.deflate != 0).then(|| Params::from_bits(self.deflate)).flatten()
    }

    /// Compression as it was agreed on, afresh.
    pub fn codec(&self) -> Option<Deflate> {
        self.params().map(|params| Deflate::new(params, self.threshold, self.level))
    }

    /// Whether the header of the PROXY protocol was read: the peer is whom it named.
    pub fn has_proxy_header(&self) -> bool {
        self.attributes & HAS_PROXY_HEADER != 0
    }

    pub fn set_proxy_header(&mut self) {
        self.attributes |= HAS_PROXY_HEADER;
    }

    /// Attaches the handler's state; an empty one detaches. It may be a part of the one that is attached.
    pub fn set_state(&mut self, state: &[u8]) {
        self.state = match state {
            [] => Owned::NOTHING,
            _ => Owned::new([state, b"\0"].concat()),
        };
    }

    /// The attached state, with the NUL behind it.
    pub fn terminated_state(&self) -> Option<&[u8]> {
        self.state.get()
    }

    pub fn is_resumed(&self) -> bool {
        self.attributes & RESUMED != 0
    }

    pub fn set_resumed(&mut self) {
        self.attributes |= RESUMED;
    }

    /// Points to the request head, which must stay where it is until it is forgotten or the record cleared.
    pub fn set_head(&mut self, head: &[u8]) {
        (self.head, self.head_size) = (head.as_ptr(), u32::try_from(head.len()).unwrap_or(0));
    }

    /// Forgets the request head, which may change or be freed from now on. Seals the record.
    pub fn forget_head(&mut self) {
        if self.head_size != 0 {
            (self.head, self.head_size) = (std::ptr::null(), 0);
            self.seal();
        }
    }

    /// The flags; only that there is a connection if they were overwritten.
    pub fn flags(&self) -> u32 {
        let word = self.flags.load(Ordering::Relaxed);
        let flags = word & 0xffff;
        match word {
            0 => 0,
            _ if word >> 16 == !flags & 0xffff => flags,
            _ => flags::TAKEN,
        }
    }

    /// Whether another process can take the connection up as it is, unless something is on the way to it.
    pub fn is_movable(&self) -> bool {
        self.flags() & (flags::MOVABLE | flags::THREAD) == flags::MOVABLE
    }

    pub fn set_flags(&self, flags: u32) {
        self.flags.store(flags | !flags << 16, Ordering::Relaxed);
    }

    /// What was sent may end within a frame, or the connection is at its end: a crash cuts it.
    pub fn cut(&self) {
        self.set_flags(flags::TAKEN);
    }

    /// A crash leaves the connection alone: it is another process's, or has ended and its peer may still be sending.
    pub fn leave_alone(&self) {
        self.set_flags(0);
    }

    /// The connection is being worked on, or its send queue is about to change: it cannot move, nor can what was in the
    /// queue be sent.
    #[inline]
    pub fn pin(&self) {
        self.set_flags(self.flags() & !(flags::MOVABLE | flags::UNSENT));
    }

    /// There is no connection any more.
    pub fn clear(&mut self) {
        // SAFETY: see Zeroed. What it owned is dropped.
        *self = unsafe { std::mem::zeroed() };
    }

    /// Makes the checksums, after every change.
    pub fn seal(&mut self) {
        self.parts = sum(&self.parts());
        self.checksum = sum(&[self.covered()]);
    }

    /// Whether the record is as it was when it was sealed. Cannot fault, whatever it points to; the record itself is
    /// checked first. Async-signal-safe.
    pub fn is_intact(&self) -> bool {
        self.checksum == sum(&[self.covered()]) && memory::checksum(&self.part_places()) == Some(self.parts)
    }

    /// A copy with bytes of its own, but not the request head. The record must be sealed.
    pub fn duplicate(&self) -> Box<Record> {
        // SAFETY: see Zeroed.
        let mut copy: Box<Record> = Box::new(unsafe { std::mem::zeroed() });
        let is_sound = copy.import(self.block(), self.parts());
        debug_assert!(is_sound);
        copy
    }

    /// The record's own bytes, for another process.
    pub fn block(&self) -> &[u8] {
        // SAFETY: a Record is a plain block of memory of this size without padding, made from
        // zeroed pages, so that every byte of it is initialised.
        unsafe { std::slice::from_raw_parts((&raw const *self).cast::<u8>(), size_of::<Record>()) }
    }

    /// The bytes that the record points to: spilled strings, state, request head.
    fn parts(&self) -> [&[u8]; 3] {
        let head = match self.head_size {
            0 => &[],
            // SAFETY: set_head() was given these bytes, which stay until the record is cleared.
            size => unsafe { std::slice::from_raw_parts(self.head, size as usize) },
        };
        [self.spill.get().unwrap_or_default(), self.state.get().unwrap_or_default(), head]
    }

    /// Where they are, for the kernel to read.
    pub fn part_places(&self) -> [*const [u8]; 3] {
        let owned = |bytes: &Owned| bytes.raw().map_or(NOTHING, <*mut [u8]>::cast_const);
        let head = std::ptr::slice_from_raw_parts(self.head, self.head_size as usize);
        [owned(&self.spill), owned(&self.state), head]
    }

    fn covered(&self) -> &[u8] {
        self.block().get(COVERED..).unwrap_or_default()
    }
}

fn sum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// All records of a worker, in pages of their own that cost nothing until used.
pub type Records = Slots<Record>;

// SAFETY: zero numbers and null pointers, and nothing is owned.
unsafe impl Zeroed for Record {}

// SAFETY: what it points to is its own, or, the request head, is read on the thread that has set it.
unsafe impl Send for Record {}

#[cfg(test)]
mod tests;
