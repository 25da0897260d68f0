//! The facts of a crash, in the scoreboard: written by the crashing process from its signal handler, read by the supervisor.
//! Atomics only.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

/// The last crash of a process in a slot.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Crash {
    address: AtomicU64,
    conn: AtomicU64,
    signal: AtomicI32,
    callback: AtomicU32,
    /// Number of the handler plus 1; 0: none.
    handler: AtomicU32,
    /// The same of the one that ran last before a crash that names nobody.
    last: AtomicU32,
    /// Of such crashes in a row, how many it was the last in.
    alike: AtomicU32,
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

/// A crash as it was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashFacts {
    /// The signal, [`EXIT`] or [`HANG`].
    pub signal: i32,
    /// The address that could not be used, where the signal tells one.
    pub address: u64,
    /// The callback that the crashing thread was in, as `ffi` counts them.
    pub callback: u32,
    /// Its connection; 0: none.
    pub conn: u64,
    /// Number of the handler; None outside of handlers.
    pub handler: Option<u16>,
    /// Crashes in a row that name nobody: the handler that ran last before each, and how many there were.
    pub last: Option<(u16, u32)>,
}

/// After so many crashes in a row that name nobody the connections of a handler whose code it was, or that ran last before
/// each, are given up.
pub const UNATTRIBUTED: u32 = 3;

impl Crash {
    /// Notes a crash. Async-signal-safe. [worker]
    pub fn note(&self, signal: i32, address: u64, handler: Option<u16>, callback: u32, conn: u64) {
        self.signal.store(signal, Ordering::Relaxed);
        self.address.store(address, Ordering::Relaxed);
        self.callback.store(callback, Ordering::Relaxed);
        self.conn.store(conn, Ordering::Relaxed);
        self.handler.store(with_none(handler), Ordering::Relaxed);
        self.note_result(0, 0);
    }

    /// Notes which handler ran last before a crash that names nobody. Async-signal-safe. [worker]
    pub fn note_last(&self, handler: Option<u16>) {
        let handler = with_none(handler);
        let is_same = self.last.swap(handler, Ordering::Relaxed) == handler && handler != 0;
        let alike =
            if is_same { self.alike.load(Ordering::Relaxed).saturating_add(1) } else { handler.min(1) };
        self.alike.store(alike, Ordering::Relaxed);
    }

    /// The suspected handler. Async-signal-safe.
    pub fn suspect(&self) -> Option<u16> {
        self.last().filter(|(_, alike)| *alike > UNATTRIBUTED).map(|(handler, _)| handler)
    }

    fn last(&self) -> Option<(u16, u32)> {
        Some((without_none(&self.last)?, self.alike.load(Ordering::Relaxed)))
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
        self.note(0, 0, None, 0, 0);
        [&self.last, &self.alike, &self.nameless].iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.end_sending(sender);
    }

    /// Whether more connections are to come into the inbox. [worker]
    pub fn is_sending(&self) -> bool {
        self.sender.load(Ordering::Acquire) != 0
    }

    /// What was noted. [supervisor]
    pub fn facts(&self) -> CrashFacts {
        CrashFacts {
            signal: self.signal.load(Ordering::Relaxed),
            address: self.address.load(Ordering::Relaxed),
            callback: self.callback.load(Ordering::Relaxed),
            conn: self.conn.load(Ordering::Relaxed),
            handler: without_none(&self.handler),
            last: self.last(),
        }
    }

    /// Connections that were saved, and that were not. [supervisor]
    pub fn result(&self) -> (u32, u32) {
        (self.moved.load(Ordering::Relaxed), self.cut.load(Ordering::Acquire))
    }
}

fn with_none(handler: Option<u16>) -> u32 {
    handler.map_or(0, |handler| u32::from(handler) + 1)
}

fn without_none(handler: &AtomicU32) -> Option<u16> {
    handler.load(Ordering::Relaxed).checked_sub(1)?.try_into().ok()
}
