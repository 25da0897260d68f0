//! Crash reports: shared memory of a pool with room for each slot, in which a crashing process leaves strings and the
//! beginning of the message, beside the facts in the scoreboard. Written from a signal handler; read by the supervisor
//! after it was told. Atomics only, as in the scoreboard.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};

use super::crash::{CrashFacts, Spot};
use super::layout::{Audience, Memory, PerPool};

/// The room of one slot.
#[derive(Clone, Copy, Debug)]
pub struct CrashReport {
    /// Resource, origin and subprotocol, one after the other.
    strings: &'static [AtomicU8],
    /// The beginning of the message.
    bytes: &'static [AtomicU8],
}

/// A message that was being handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageExcerpt {
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
pub struct CrashDetails {
    /// The code that crashed; if it is a library's, the handler's code that called it.
    pub code: Option<Spot>,
    /// The library's code.
    pub via: Option<Spot>,
    pub peer: Option<SocketAddr>,
    /// Path and query.
    pub resource: Option<Vec<u8>>,
    pub origin: Option<Vec<u8>>,
    /// The chosen subprotocol.
    pub protocol: Option<Vec<u8>>,
    pub message: Option<MessageExcerpt>,
}

/// The reports of all slots, by pool.
#[derive(Debug)]
pub struct CrashReports {
    /// For each slot, strings and then bytes.
    rooms: PerPool<AtomicU8>,
    strings: usize,
    bytes: usize,
}

impl CrashReports {
    /// For so many slots, with room for so many bytes of strings and of a message each. They live until the last
    /// process ends. [supervisor, before fork]
    pub fn create(
        memory: &'static Memory,
        slots: usize,
        strings: usize,
        bytes: usize,
    ) -> io::Result<&'static Self> {
        let room = strings.checked_add(bytes).and_then(|room| room.checked_mul(slots));
        let room = room.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Box::leak(Box::new(Self { rooms: memory.per_pool(Audience::Private, room)?, strings, bytes })))
    }

    /// That of a slot of this pool, if this process can see it.
    pub fn get(&self, pool: usize, slot: usize) -> Option<CrashReport> {
        let size = self.strings + self.bytes;
        let room = self.rooms.get(pool)?.get(slot.checked_mul(size)?..)?.get(..size)?;
        let (strings, bytes) = room.split_at(self.strings);
        Some(CrashReport { strings, bytes })
    }
}

impl CrashReport {
    /// Keeps resource, origin and subprotocol; those that do not fit are left out. Their sizes, as in [`CrashFacts`].
    /// Async-signal-safe. [worker, when it crashes]
    pub fn keep_strings(&self, strings: [Option<&[u8]>; 3]) -> [u32; 3] {
        let mut at = 0;
        strings.map(|string| {
            let room = string.and_then(|string| self.strings.get(at..at + string.len()));
            let (Some(room), Some(string)) = (room, string) else { return 0 };
            at += copy(room, string);
            string.len() as u32 + 1
        })
    }

    /// Keeps bytes of the message from this one on; returns for how many there was room. Async-signal-safe. [worker,
    /// when it crashes]
    pub fn keep_bytes(&self, at: u32, bytes: &[u8]) -> u32 {
        self.bytes.get(at as usize..).map_or(0, |room| copy(room, bytes)) as u32
    }

    /// All that was left, with these facts. [supervisor]
    pub fn read(&self, facts: &CrashFacts) -> CrashDetails {
        let mut at = 0;
        let [resource, origin, protocol] = facts.strings.map(|size| {
            let size = size.checked_sub(1)? as usize;
            let string = self.strings.get(at..at + size)?;
            at += size;
            Some(load(string))
        });
        let message = (facts.kind != 0).then(|| MessageExcerpt {
            kind: facts.kind,
            size: facts.size,
            hash: (facts.is_hashed != 0).then_some(facts.hash),
            bytes: self.bytes.get(..facts.kept as usize).map(load).unwrap_or_default(),
        });
        let (code, via, peer) = (facts.code.known(), facts.via.known(), facts.peer.address());
        CrashDetails { code, via, peer, resource, origin, protocol, message }
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

    #[test]
    fn what_is_kept_is_read() {
        let slots = create(3, 32, 8);
        let mut noted = CrashFacts::new((11, 0), (0, 0));
        assert_eq!(slots[1].read(&noted), CrashDetails::default());
        let (code, via) = (Spot::new(b"crash_wsh.so", 0x11a3), Spot::new(b"libc.so.6", 0x8a));
        (noted.code, noted.via) = (code, via);
        noted.peer = Some("192.0.2.1:80".parse().unwrap()).into();
        noted.strings = slots[1].keep_strings([Some(b"/a?b"), None, Some(b"chat")]);
        (noted.kind, noted.size, noted.hash, noted.is_hashed) = (1, 11, 7, 1);
        noted.kept = slots[1].keep_bytes(0, b"hello");
        noted.kept += slots[1].keep_bytes(noted.kept, b" world");
        let message = MessageExcerpt { kind: 1, size: 11, hash: Some(7), bytes: b"hello wo".to_vec() };
        let expected = CrashDetails {
            code: Some(code),
            via: Some(via),
            peer: Some("192.0.2.1:80".parse().unwrap()),
            resource: Some(b"/a?b".to_vec()),
            origin: None,
            protocol: Some(b"chat".to_vec()),
            message: Some(message),
        };
        assert_eq!(slots[1].read(&noted), expected);
        let others = [0, 2].map(|slot: usize| slots[slot].read(&noted).resource);
        assert_eq!(others, [Some(vec![0; 4]), Some(vec![0; 4])]);
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_sizes_beyond_the_room_are_none() {
        let crash_report = &create(1, 6, 0)[0];
        let mut noted = CrashFacts::new((11, 0), (0, 0));
        noted.strings = crash_report.keep_strings([Some(b"/long resource"), Some(b"origin"), Some(b"no")]);
        (noted.kind, noted.size) = (2, 5);
        assert_eq!(crash_report.keep_bytes(0, b"bytes"), 0);
        let facts = crash_report.read(&noted);
        assert_eq!((facts.resource, facts.origin, facts.protocol), (None, Some(b"origin".to_vec()), None));
        assert_eq!(facts.message, Some(MessageExcerpt { kind: 2, size: 5, hash: None, bytes: vec![] }));
        (noted.strings, noted.kept) = ([8, u32::MAX, 7], u32::MAX);
        let facts = crash_report.read(&noted);
        assert_eq!((facts.resource, facts.origin, facts.protocol), (None, None, Some(b"origin".to_vec())));
        assert!(facts.message.unwrap().bytes.is_empty());
    }
}
