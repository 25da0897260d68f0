//! What a crash leaves in the scoreboard: written by the crashing process from its signal handler, read by the
//! supervisor. Plain values and atomic integers only, since a handler may write over them.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::cell::SharedCell;
use crate::fleet::peer::Peer;

/// The last crash of a process in a slot.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Crash {
    facts: SharedCell<CrashFacts, 31>,
    /// Number plus 1 of the handler that ran last before a crash that names nobody; 0: none.
    last: AtomicU32,
    /// Of such crashes in a row, how many it was the last in.
    same_last: AtomicU32,
    moved: AtomicU32,
    cut: AtomicU32,
    /// Crashes in a row of young processes with no connection to blame.
    nameless: AtomicU32,
    /// The process that is sending its connections to the inbox; 0: none.
    sender: AtomicI32,
}

/// In place of a signal: a handler called exit().
pub const EXIT: i32 = 0;
/// In place of a signal: a handler did not come back in its time.
pub const HANG: i32 = -1;

/// What is known of a crash, but for strings and the bytes of the message, which lie in the crash report. Whatever is
/// in memory is a value.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CrashFacts {
    /// The signal, [`EXIT`] or [`HANG`].
    pub signal: i32,
    /// The callback that the crashing thread was in, as `ffi` counts them.
    pub callback: u32,
    /// The address that could not be used, where the signal tells one.
    pub address: u64,
    /// The connection that it was in; 0: none.
    pub conn: u64,
    /// Number of the handler plus 1; 0: none.
    handler: u32,
    /// Type of the message that was being handled; 0: none.
    pub kind: u32,
    /// Bytes of its payload.
    pub size: u64,
    /// How many of them are in the crash report.
    pub kept: u32,
    /// 1: there is a hash.
    pub is_hashed: u32,
    /// That of the message.
    pub hash: u32,
    /// Sizes plus 1 of the strings in the crash report; 0: absent.
    pub strings: [u32; 3],
    /// The code that crashed; if it is a library's, the handler's code that called it.
    pub code: Spot,
    /// The library's code.
    pub via: Spot,
    pub peer: Peer,
    reserved: u32,
}

impl CrashFacts {
    /// On this signal, at this address; in this callback of this connection. Async-signal-safe.
    pub fn new((signal, address): (i32, u64), (callback, conn): (u32, u64)) -> Self {
        Self { signal, address, callback, conn, ..Self::new_zeroed() }
    }

    /// Number of the handler; None outside of handlers.
    pub fn handler(&self) -> Option<u16> {
        without_none(self.handler)
    }

    pub fn in_handler(self, handler: Option<u16>) -> Self {
        Self { handler: with_none(handler), ..self }
    }
}

/// A place in the code, for people and `addr2line`. All zero: none.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Spot {
    /// From where the module was loaded, as the file's own addresses are; without a module the address itself.
    pub offset: u64,
    /// Bytes of the name.
    size: u64,
    name: [u8; NAME],
}

/// Bytes kept of the name of a module.
const NAME: usize = 64;

impl Spot {
    /// `module` is the base name of the mapped file; empty where there is none. Async-signal-safe.
    pub fn new(module: &[u8], offset: u64) -> Self {
        let mut name = [0; NAME];
        let size = name.iter_mut().zip(module).map(|(to, byte)| *to = *byte).count() as u64;
        Self { offset, size, name }
    }

    /// The place at this offset of the same module. Async-signal-safe.
    pub fn at(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    /// It, unless there is none.
    pub fn known(self) -> Option<Self> {
        (self.size != 0 || self.offset != 0).then_some(self)
    }

    /// The base name of the mapped file; empty where there is none.
    pub fn module(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.name.get(..self.size as usize).unwrap_or(&self.name))
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.module() {
            "" => write!(f, "{:#x}", self.offset),
            module => write!(f, "{module}+{:#x}", self.offset),
        }
    }
}

impl fmt::Debug for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// After so many crashes in a row that name nobody the connections of a handler whose code it was, or that ran last
/// before each, are given up.
pub const UNATTRIBUTED: u32 = 3;

impl Crash {
    /// Notes a crash. Async-signal-safe. [worker]
    pub fn note(&self, facts: &CrashFacts) {
        self.facts.store(facts);
        self.note_result(0, 0);
    }

    /// What was noted. [supervisor]
    pub fn facts(&self) -> CrashFacts {
        self.facts.load()
    }

    /// Notes which handler ran last before a crash that names nobody. Async-signal-safe. [worker]
    pub fn note_last(&self, handler: Option<u16>) {
        let handler = with_none(handler);
        let is_same = self.last.swap(handler, Ordering::Relaxed) == handler && handler != 0;
        let before = if is_same { self.same_last.load(Ordering::Relaxed) } else { 0 };
        self.same_last.store(before.saturating_add(handler.min(1)), Ordering::Relaxed);
    }

    /// The suspected handler. Async-signal-safe.
    pub fn suspect(&self) -> Option<u16> {
        self.last().filter(|(_, count)| *count > UNATTRIBUTED).map(|(handler, _)| handler)
    }

    /// Crashes in a row that name nobody: the handler that ran last before each, and how many there were. [supervisor]
    pub fn last(&self) -> Option<(u16, u32)> {
        Some((without_none(self.last.load(Ordering::Relaxed))?, self.same_last.load(Ordering::Relaxed)))
    }

    /// Notes how many connections were saved, and how many were not. Async-signal-safe. [worker]
    pub fn note_result(&self, moved: u32, cut: u32) {
        self.moved.store(moved, Ordering::Relaxed);
        self.cut.store(cut, Ordering::Release);
    }

    /// Counts a crash; returns how many in a row were nameless, each soon after the process began. Async-signal-safe.
    /// [worker]
    pub fn count_nameless(&self, nameless: bool, young: bool) -> u32 {
        let before = if young { self.nameless.load(Ordering::Relaxed) } else { 0 };
        let count = if nameless { before.saturating_add(1) } else { 0 };
        self.nameless.store(count, Ordering::Relaxed);
        count
    }

    /// This process begins to send its connections to the inbox. Async-signal-safe. [worker]
    pub fn begin_sending(&self, pid: i32) {
        self.sender.store(pid, Ordering::Release);
    }

    /// It has sent them, or it is dead. Async-signal-safe. [worker, supervisor]
    pub fn end_sending(&self, pid: i32) {
        // A later one may have begun meanwhile.
        let _ = self.sender.compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Forgets the crash if its sender does not exist: a handler has overwritten the record. [supervisor]
    pub fn mend(&self, is_there: impl Fn(i32) -> bool) {
        let sender = self.sender.load(Ordering::Acquire);
        if sender == 0 || is_there(sender) {
            return;
        }
        self.note(&CrashFacts::new_zeroed());
        [&self.last, &self.same_last, &self.nameless]
            .iter()
            .for_each(|word| word.store(0, Ordering::Relaxed));
        self.end_sending(sender);
    }

    /// Whether more connections are to come into the inbox. [worker]
    pub fn is_sending(&self) -> bool {
        self.sender.load(Ordering::Acquire) != 0
    }

    /// Connections that were saved, and that were not. [supervisor]
    pub fn result(&self) -> (u32, u32) {
        (self.moved.load(Ordering::Relaxed), self.cut.load(Ordering::Acquire))
    }
}

fn with_none(handler: Option<u16>) -> u32 {
    handler.map_or(0, |handler| u32::from(handler) + 1)
}

fn without_none(handler: u32) -> Option<u16> {
    handler.checked_sub(1)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read() {
        let crash = Crash::default();
        assert_eq!((crash.facts().handler(), crash.facts().code.known()), (None, None));
        let code = Spot::new(b"crash_wsh.so", 0x11a3);
        let noted = CrashFacts { code, ..CrashFacts::new((11, 16), (6, 5)) }.in_handler(Some(7));
        crash.note_result(3, 4);
        crash.note(&noted);
        let facts = crash.facts();
        assert_eq!((facts.signal, facts.address, facts.conn, facts.handler()), (11, 16, 5, Some(7)));
        assert_eq!((facts.code.known(), facts.via.known(), crash.result()), (Some(code), None, (0, 0)));
    }

    #[test]
    fn places_are_shown_as_addr2line_takes_them() {
        assert_eq!(Spot::new(b"crash_wsh.so", 0x11a3).to_string(), "crash_wsh.so+0x11a3");
        assert_eq!(Spot::new(b"", 0xdead000).to_string(), "0xdead000");
        let long = "n".repeat(NAME + 1);
        assert_eq!(Spot::new(long.as_bytes(), 1).module(), long[..NAME]);
        let damaged = Spot { size: u64::MAX, ..Spot::new(b"", 1) };
        assert_eq!(damaged.module().len(), NAME);
    }

    #[test]
    fn a_handler_is_suspected_that_ran_last_before_each_of_some_crashes() {
        let crash = Crash::default();
        for handler in [Some(1), Some(2), Some(2), Some(2)] {
            crash.note_last(handler);
        }
        assert_eq!((crash.last(), crash.suspect()), (Some((2, 3)), None));
        crash.note_last(Some(2));
        assert_eq!(crash.suspect(), Some(2));
        crash.note_last(None);
        assert_eq!((crash.last(), crash.suspect()), (None, None));
    }
}
