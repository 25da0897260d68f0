//! The protocol by which threads other than the event loop use a connection's slot: enter, count, leave a command. Pure
//! atomics and one lock; knows no connection. `tests/slot.rs` runs this file under loom.
//!
//! - A thread enters, and leaves its command in the queue, under the queue's lock. From then on the command is counted
//!   in the slot's gate until the loop has carried it out.
//! - The loop releases a connection only by [`Lease::close_if_quiet`], which succeeds only if no command is counted,
//!   and after which nobody can enter.
//! - Both words are tagged with the connection's generation: what belongs to a connection that has gone is never
//!   counted for the one that has the slot next.

use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering, PoisonError, fence};

/// Functions that may wait for one connection, see `ws_post`.
const MAX_POSTS: u32 = 1024;
/// Messages and Pings of one connection that may be under way, however small.
const MAX_SENDS: u32 = MAX_COMMANDS - 2 * MAX_POSTS;
/// Commands of any kind that are counted. Those that are neither sent nor posted are few: a Close is the last one, and
/// a new wish to pause replaces the one before.
const MAX_COMMANDS: u32 = 0x7fff;

/// Why a thread may not enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The connection is closing, moving or gone.
    Gone,
    /// The send queue is above its high mark.
    Full,
    /// Too many functions or commands wait.
    Limit,
    /// Not what may be sent now.
    Invalid,
}

/// The first word of a slot: who may enter, and what is under way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Gate(u64);

/// A field of the word: its shift and its largest value.
type Field = (u32, u64);
const COMMANDS: Field = (0, MAX_COMMANDS as u64);
const POSTS: Field = (15, 0x7ff);
const FRAGMENTS: Field = (26, 3);
const PAUSE: Field = (28, 3);
const FULL: Field = (30, 1);
const CLOSED: Field = (31, 1);
const GENERATION: Field = (32, u32::MAX as u64);

impl Gate {
    fn get(self, (shift, most): Field) -> u32 {
        (self.0 >> shift & most) as u32
    }

    fn with(self, (shift, most): Field, value: u32) -> Self {
        Gate(self.0 & !(most << shift) | (u64::from(value) & most) << shift)
    }

    fn is_open(self, generation: u32) -> bool {
        self.get(GENERATION) == generation && self.get(CLOSED) == 0
    }

    /// Type of the fragmented message that is being sent, or 0.
    pub fn fragments(self) -> u32 {
        self.get(FRAGMENTS)
    }

    /// A fragment of this type is sent, or (0) the end of a message.
    pub fn with_fragments(self, kind: u32) -> Self {
        self.with(FRAGMENTS, kind)
    }

    /// Nobody enters after this command.
    pub fn closed(self) -> Self {
        self.with(CLOSED, 1)
    }

    /// One function more waits.
    pub fn with_post(self) -> Result<Self, Refused> {
        match self.get(POSTS) {
            MAX_POSTS.. => Err(Refused::Limit),
            posts => Ok(self.with(POSTS, posts + 1)),
        }
    }
}

/// What threads know of one slot of the connection table.
pub struct ConnSlot {
    /// A [`Gate`].
    gate: AtomicU64,
    /// Generation, and below it the bytes in the send queue and on the way there.
    bytes: AtomicU64,
}

impl ConnSlot {
    /// A slot without a connection, which nobody enters: 0 is no generation.
    pub fn new() -> Self {
        ConnSlot { gate: AtomicU64::new(Gate(0).closed().0), bytes: AtomicU64::new(0) }
    }

    /// What the connection of this generation has of it.
    pub fn of(&self, generation: u32) -> Lease<'_> {
        Lease { slot: self, generation }
    }
}

/// What the connection of one generation has of a slot: nothing of another's is read or changed.
#[derive(Clone, Copy)]
pub struct Lease<'a> {
    slot: &'a ConnSlot,
    generation: u32,
}

impl Lease<'_> {
    /// Its gate, as it is now.
    pub fn gate(&self) -> Gate {
        Gate(self.slot.gate.load(Ordering::Acquire))
    }

    /// Changes the gate of this generation, open or not; returns it as it was. Nothing happens if `change` declines.
    fn change(&self, change: impl Fn(Gate) -> Option<Gate>) -> Option<Gate> {
        let change = |word| {
            let gate = Some(Gate(word)).filter(|gate| gate.get(GENERATION) == self.generation);
            gate.and_then(&change).map(|gate| gate.0)
        };
        self.slot.gate.fetch_update(Ordering::AcqRel, Ordering::Acquire, change).ok().map(Gate)
    }

    // ---------------------------------------------------- called by any thread

    /// Whether commands can be given.
    pub fn is_open(&self) -> bool {
        self.gate().is_open(self.generation)
    }

    /// Counts one command more, if `admit` lets it pass.
    fn enter(&self, admit: impl Fn(Gate) -> Result<Gate, Refused>) -> Result<(), Refused> {
        loop {
            let gate = self.gate();
            if !gate.is_open(self.generation) {
                return Err(Refused::Gone);
            }
            let commands = gate.get(COMMANDS);
            if commands == MAX_COMMANDS {
                return Err(Refused::Limit);
            }
            let next = admit(gate)?.with(COMMANDS, commands + 1);
            if self.slot.gate.compare_exchange(gate.0, next.0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Ok(());
            }
        }
    }

    /// Bytes in the send queue and on the way there; 0 if the connection is closing or gone.
    pub fn buffered(&self) -> usize {
        if self.is_open() { self.bytes() } else { 0 }
    }

    /// The same, also if it is closing.
    pub fn bytes(&self) -> usize {
        let bytes = self.slot.bytes.load(Ordering::Acquire);
        if (bytes >> 32) as u32 == self.generation { bytes as u32 as usize } else { 0 }
    }

    /// Whether the send queue has reached `high`. If so on_writable is pending: the loop calls it once that has
    /// drained.
    pub fn is_full(&self, high: usize) -> bool {
        let is_above = || {
            self.bytes() >= high || {
                let gate = self.gate();
                gate.is_open(self.generation) && gate.get(COMMANDS) >= MAX_SENDS
            }
        };
        if !self.is_open() || !is_above() {
            return false;
        }
        self.change(|gate| Some(gate.with(FULL, 1)));
        // Either the loop sees that on_writable is pending, or this thread that the queue has drained: see `add_bytes`.
        fence(Ordering::SeqCst);
        is_above()
    }

    /// Notes whether reading is to stop or to go on. True if a command is to say so, which is counted from now on: the
    /// loop has not been told of an earlier wish.
    pub fn set_pause(&self, paused: bool) -> Result<bool, Refused> {
        let wish = if paused { 1 } else { 2 };
        let replaced = self.change(|gate| {
            (gate.is_open(self.generation) && gate.get(PAUSE) != 0).then(|| gate.with(PAUSE, wish))
        });
        match replaced {
            Some(_) => Ok(false),
            None => self.enter(|gate| Ok(gate.with(PAUSE, wish))).map(|()| true),
        }
    }

    /// A posted function is called.
    pub fn end_post(&self) {
        self.change(|gate| Some(gate.with(POSTS, gate.get(POSTS).checked_sub(1)?)));
    }

    /// Nobody enters any more. Also called by the connection's own thread, when that releases it.
    pub fn close(&self) {
        self.change(|gate| (gate.get(CLOSED) == 0).then(|| gate.closed()));
    }

    // ------------------------------------------------------ called by the loop

    /// Lets threads enter for a connection of this generation, newer than the last one's, or the same once it is closed
    /// and quiet: what is in its send queue still counts.
    pub fn open(&self) {
        let tag = u64::from(self.generation) << 32;
        let change = |word: u64| ((word >> 32) as u32 != self.generation).then_some(tag);
        let _ = self.slot.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        // Not a plain store: loom cannot order that and `compare_exchange`.
        self.slot.gate.swap(tag, Ordering::AcqRel);
    }

    /// Closes the gate if no command is under way; false if one is.
    pub fn close_if_quiet(&self) -> bool {
        let closed = self.change(|gate| (gate.get(COMMANDS) == 0).then(|| gate.closed()));
        closed.is_some() || self.gate().get(GENERATION) != self.generation
    }

    /// Whether no command is under way. Async-signal-safe.
    pub fn is_quiet(&self) -> bool {
        let gate = self.gate();
        gate.get(GENERATION) != self.generation || gate.get(COMMANDS) == 0
    }

    /// A command has been carried out.
    pub fn leave(&self) {
        self.change(|gate| Some(gate.with(COMMANDS, gate.get(COMMANDS).checked_sub(1)?)));
    }

    /// Whether reading is to stop (true) or to go on, if a thread has said so since.
    pub fn take_pause(&self) -> Option<bool> {
        let before = self.change(|gate| (gate.get(PAUSE) != 0).then(|| gate.with(PAUSE, 0)));
        before.map(|gate| gate.get(PAUSE) == 1)
    }

    /// The bytes in the send queue, or on the way there, have changed.
    pub fn add_bytes(&self, before: usize, after: usize) {
        let [before, after] = [before, after].map(|size| u32::try_from(size).unwrap_or(u32::MAX));
        let change = |word: u64| {
            let bytes = (word as u32).wrapping_add(after).wrapping_sub(before);
            ((word >> 32) as u32 == self.generation).then_some(word >> 32 << 32 | u64::from(bytes))
        };
        let _ = self.slot.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        // See `is_full`.
        fence(Ordering::SeqCst);
    }

    /// The loop begins or continues a fragmented message of this type; returns the type of the one under way, or 0.
    /// `None`, and nothing has changed, if that is another type.
    pub fn begin_fragments(&self, kind: u32) -> Option<u32> {
        let may = |gate: Gate| [0, kind].contains(&gate.fragments());
        self.change(|gate| may(gate).then(|| gate.with_fragments(kind))).map(Gate::fragments)
    }

    /// The loop has ended its fragmented message, or has not begun one after all.
    pub fn end_fragments(&self) {
        self.change(|gate| Some(gate.with_fragments(0)));
    }

    /// Whether on_writable is pending; asked once the queue has drained.
    pub fn take_full(&self) -> bool {
        // The usual case costs one load.
        self.gate().get(FULL) != 0
            && self
                .change(|gate| (gate.get(FULL) != 0).then(|| gate.with(FULL, 0)))
                .is_some_and(|gate| gate.get(CLOSED) == 0)
    }
}

/// The queue of commands, in the order in which their threads entered.
pub struct EntryQueue<C>(Mutex<Vec<C>>);

impl<C> EntryQueue<C> {
    /// An empty one.
    pub fn new() -> Self {
        EntryQueue(Mutex::new(Vec::new()))
    }

    /// Leaves a command that needs no slot.
    pub fn push(&self, command: C) {
        self.lock().push(command);
    }

    /// Leaves a command about a connection, which brings so many bytes. One that is refused is given
    /// back.
    pub fn enter(
        &self,
        lease: Lease<'_>,
        admit: impl Fn(Gate) -> Result<Gate, Refused>,
        bytes: usize,
        command: C,
    ) -> Result<(), (Refused, C)> {
        let mut waiting = self.lock();
        match lease.enter(admit) {
            Ok(()) => {
                if bytes > 0 {
                    lease.add_bytes(0, bytes);
                }
                waiting.push(command);
                Ok(())
            }
            Err(refused) => Err((refused, command)),
        }
    }

    /// All commands so far.
    pub fn take(&self) -> Vec<C> {
        std::mem::take(&mut *self.lock())
    }

    /// Takes those out that are wanted now.
    pub fn extract(&self, is_wanted: impl Fn(&C) -> bool) -> Vec<C> {
        self.lock().extract_if(.., |command| is_wanted(command)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<C>> {
        // A panic elsewhere leaves the queue whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
