//! Crash reports: shared memory of a pool with one report for each slot, in which a crashing process leaves what the log line and
//! the crash record tell beyond the scoreboard: which code, which connection, which message. Written from a signal
//! handler; read by the supervisor after it was told. Atomics only, as in the scoreboard.

#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::memory::{Audience, Memory, PerPool};
use super::peer::{Peer, PeerCell};
use super::region::Shareable;

/// Bytes kept of the name of a module.
pub const NAME: usize = 64;

/// The report of one slot.
#[derive(Clone, Copy, Debug)]
pub struct CrashReport {
    fixed: &'static Fixed,
    /// Resource, origin and subprotocol, one after the other.
    strings: &'static [AtomicU8],
    /// The beginning of the message.
    bytes: &'static [AtomicU8],
}

/// The part that every slot has.
#[derive(Debug)]
#[repr(C, align(64))]
struct Fixed {
    code: Place,
    via: Place,
    peer: PeerCell,
    /// 0: no message.
    kind: AtomicU32,
    hash: AtomicU32,
    size: AtomicU64,
    /// Bytes of it that were kept.
    kept: AtomicU64,
    /// Sizes plus 1 of the strings; 0: absent.
    strings: [AtomicU32; 3],
}

// SAFETY: atomic integers.
unsafe impl Shareable for Fixed {}

/// A place in the code.
#[derive(Debug)]
#[repr(C)]
struct Place {
    /// Within the module; without one the address itself.
    offset: AtomicU64,
    /// 0: no place, 1: without module, else the size of its name plus 1.
    size: AtomicU32,
    name: [AtomicU8; NAME],
}

/// A place in the code, for people and `addr2line`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The base name of the mapped file; empty where there is none.
    pub module: String,
    /// From where the module was loaded, as the file's own addresses are; without a module the address itself.
    pub offset: u64,
}

impl std::fmt::Display for Spot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.module.as_str() {
            "" => write!(f, "{:#x}", self.offset),
            module => write!(f, "{module}+{:#x}", self.offset),
        }
    }
}

/// A message that was being handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `WS_TEXT` or `WS_BINARY`.
    pub kind: u32,
    /// Bytes of its payload.
    pub size: u64,
    /// CRC-32 of its first [`HASHED`] bytes, if they could be read.
    pub hash: Option<u32>,
    /// Its first bytes, as many as are kept.
    pub bytes: Vec<u8>,
}

/// Bytes of a message that its hash is made of.
pub const HASHED: usize = 1024;

/// The hash of a message that begins with these bytes. Async-signal-safe.
pub fn hash(first: &[u8]) -> u32 {
    crc32fast::hash(first.get(..HASHED).unwrap_or(first))
}

/// Everything that was left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The code that crashed; if it is a library's, the handler's code that called it.
    pub code: Option<Spot>,
    /// The library's code.
    pub via: Option<Spot>,
    /// Of the connection.
    pub peer: Option<SocketAddr>,
    /// Path and query.
    pub resource: Option<Vec<u8>>,
    /// The Origin header.
    pub origin: Option<Vec<u8>>,
    /// The chosen subprotocol.
    pub protocol: Option<Vec<u8>>,
    /// What was being handled.
    pub message: Option<Message>,
}

/// The reports of all slots, by pool.
#[derive(Debug)]
pub struct CrashReports {
    fixed: PerPool<Fixed>,
    /// For each slot, strings and then bytes.
    rooms: PerPool<AtomicU8>,
    strings: usize,
    bytes: usize,
}

impl CrashReports {
    /// For so many slots, with room for so many bytes of strings and of a message each. They live until the last process
    /// ends. [supervisor, before fork]
    pub fn create(
        memory: &'static Memory,
        slots: usize,
        strings: usize,
        bytes: usize,
    ) -> io::Result<&'static Self> {
        let room = strings.checked_add(bytes).and_then(|room| room.checked_mul(slots));
        let room = room.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Box::leak(Box::new(Self {
            fixed: memory.per_pool(Audience::Private, slots)?,
            rooms: memory.per_pool(Audience::Private, room)?,
            strings,
            bytes,
        })))
    }

    /// That of a slot of this pool, if this process can see it.
    pub fn get(&self, pool: usize, slot: usize) -> Option<CrashReport> {
        let size = self.strings + self.bytes;
        let room = self.rooms.get(pool)?.get(slot.checked_mul(size)?..)?.get(..size)?;
        let (strings, bytes) = room.split_at(self.strings);
        Some(CrashReport { fixed: self.fixed.get(pool)?.get(slot)?, strings, bytes })
    }
}

/// All of these are async-signal-safe. [worker, when it crashes]
impl CrashReport {
    /// Forgets what an earlier process has left.
    pub fn clear(&self) {
        let fixed = self.fixed;
        fixed.peer.store(Peer::NONE);
        let words = [&fixed.code.size, &fixed.via.size, &fixed.kind];
        words.into_iter().chain(&fixed.strings).for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// The code that crashed, and the library's code that it had called. A name without bytes: no module.
    pub fn note_code(&self, code: Option<(&[u8], u64)>, via: Option<(&[u8], u64)>) {
        for (place, spot) in [(&self.fixed.code, code), (&self.fixed.via, via)] {
            let Some((name, offset)) = spot else { continue };
            place.offset.store(offset, Ordering::Relaxed);
            let size = copy(&place.name, name);
            place.size.store(size as u32 + 1, Ordering::Relaxed);
        }
    }

    /// The peer of the connection.
    pub fn note_peer(&self, peer: Peer) {
        self.fixed.peer.store(peer);
    }

    /// Resource, origin and subprotocol; those that do not fit are left out.
    pub fn note_strings(&self, strings: [Option<&[u8]>; 3]) {
        let mut at = 0;
        for (size, string) in self.fixed.strings.iter().zip(strings) {
            let Some(string) = string else { continue };
            let Some(room) = self.strings.get(at..at + string.len()) else { continue };
            at += copy(room, string);
            size.store(string.len() as u32 + 1, Ordering::Relaxed);
        }
    }

    /// The message, of which no bytes are kept yet.
    pub fn note_message(&self, kind: u32, size: u64) {
        self.fixed.size.store(size, Ordering::Relaxed);
        self.fixed.hash.store(0, Ordering::Relaxed);
        self.fixed.kept.store(0, Ordering::Relaxed);
        self.fixed.kind.store(kind, Ordering::Relaxed);
    }

    /// The hash of its first [`HASHED`] bytes.
    pub fn note_hash(&self, hash: u32) {
        self.fixed.hash.store(hash, Ordering::Relaxed);
        self.fixed.kind.fetch_or(IS_HASHED, Ordering::Relaxed);
    }

    /// The next bytes of the message; false when there is no room for more.
    pub fn note_bytes(&self, bytes: &[u8]) -> bool {
        let at = self.fixed.kept.load(Ordering::Relaxed) as usize;
        let Some(room) = self.bytes.get(at..) else { return false };
        let kept = copy(room, bytes);
        self.fixed.kept.store((at + kept) as u64, Ordering::Relaxed);
        kept == bytes.len() && kept < room.len()
    }
}

/// In `kind`: there is a hash.
const IS_HASHED: u32 = 1 << 31;

impl CrashReport {
    /// What was left. [supervisor]
    pub fn facts(&self) -> Facts {
        let fixed = self.fixed;
        let mut at = 0;
        let mut string = |size: &AtomicU32| {
            let size = size.load(Ordering::Relaxed).checked_sub(1)? as usize;
            let string = self.strings.get(at..at + size)?;
            at += size;
            Some(load(string))
        };
        let [resource, origin, protocol] =
            [&fixed.strings[0], &fixed.strings[1], &fixed.strings[2]].map(&mut string);
        let kind = fixed.kind.load(Ordering::Relaxed);
        let kept = fixed.kept.load(Ordering::Relaxed) as usize;
        let message = (kind != 0).then(|| Message {
            kind: kind & !IS_HASHED,
            size: fixed.size.load(Ordering::Relaxed),
            hash: (kind & IS_HASHED != 0).then(|| fixed.hash.load(Ordering::Relaxed)),
            bytes: self.bytes.get(..kept).map(load).unwrap_or_default(),
        });
        Facts {
            code: fixed.code.spot(),
            via: fixed.via.spot(),
            peer: fixed.peer.load().address(),
            resource,
            origin,
            protocol,
            message,
        }
    }
}

impl Place {
    fn spot(&self) -> Option<Spot> {
        let size = self.size.load(Ordering::Relaxed).checked_sub(1)? as usize;
        let name = load(self.name.get(..size)?);
        let module = String::from_utf8_lossy(&name).into_owned();
        Some(Spot { module, offset: self.offset.load(Ordering::Relaxed) })
    }
}

/// Copies what fits; returns how many bytes that are.
fn copy(to: &[AtomicU8], from: &[u8]) -> usize {
    to.iter().zip(from).map(|(to, from)| to.store(*from, Ordering::Relaxed)).count()
}

fn load(from: &[AtomicU8]) -> Vec<u8> {
    from.iter().map(|byte| byte.load(Ordering::Relaxed)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn create(slots: usize, strings: usize, bytes: usize) -> Vec<CrashReport> {
        let memory = Memory::create();
        let reports = CrashReports::create(memory, slots, strings, bytes).unwrap();
        assert!(reports.get(1, 0).is_none());
        memory.open(1, &Audience::ALL).unwrap();
        assert!(reports.get(1, slots).is_none());
        (0..slots).map(|slot| reports.get(1, slot).unwrap()).collect()
    }

    fn spot(module: &str, offset: u64) -> Spot {
        Spot { module: module.to_owned(), offset }
    }

    #[test]
    fn what_is_noted_is_read() {
        let slots = create(3, 32, 8);
        let crash_report = &slots[1];
        assert_eq!(crash_report.facts(), Facts::default());
        crash_report.note_code(Some((b"crash_wsh.so", 0x11a3)), Some((b"libc.so.6", 0x8a)));
        crash_report.note_peer(Some("192.0.2.1:80".parse().unwrap()).into());
        crash_report.note_strings([Some(b"/a?b"), None, Some(b"chat")]);
        crash_report.note_message(1, 11);
        crash_report.note_hash(7);
        assert!(crash_report.note_bytes(b"hello"));
        assert!(!crash_report.note_bytes(b" world"), "there is room for 3 more");
        let facts = crash_report.facts();
        let message = Message { kind: 1, size: 11, hash: Some(7), bytes: b"hello wo".to_vec() };
        let expected = Facts {
            code: Some(spot("crash_wsh.so", 0x11a3)),
            via: Some(spot("libc.so.6", 0x8a)),
            peer: Some("192.0.2.1:80".parse().unwrap()),
            resource: Some(b"/a?b".to_vec()),
            origin: None,
            protocol: Some(b"chat".to_vec()),
            message: Some(message),
        };
        assert_eq!(facts, expected);
        assert_eq!((slots[0].facts(), slots[2].facts()), (Facts::default(), Facts::default()));
        crash_report.clear();
        assert_eq!(crash_report.facts(), Facts::default());
    }

    #[test]
    fn what_does_not_fit_is_cut_or_left_out() {
        let crash_report = &create(1, 6, 0)[0];
        let name = "n".repeat(NAME + 1);
        crash_report.note_code(Some((name.as_bytes(), 1)), Some((b"", 0xdead000)));
        crash_report.note_strings([Some(b"/long resource"), Some(b"origin"), Some(b"no")]);
        crash_report.note_message(2, 5);
        assert!(!crash_report.note_bytes(b"bytes"));
        let facts = crash_report.facts();
        assert_eq!(facts.code, Some(spot(&name[..NAME], 1)));
        assert_eq!(facts.via.unwrap().to_string(), "0xdead000");
        assert_eq!((facts.resource, facts.origin, facts.protocol), (None, Some(b"origin".to_vec()), None));
        let message = facts.message.unwrap();
        assert_eq!((message.kind, message.size, message.hash, message.bytes), (2, 5, None, vec![]));
    }

    #[test]
    fn places_are_shown_as_addr2line_takes_them() {
        assert_eq!(spot("crash_wsh.so", 0x11a3).to_string(), "crash_wsh.so+0x11a3");
        assert_eq!(spot("", 0xdead000).to_string(), "0xdead000");
    }
}
