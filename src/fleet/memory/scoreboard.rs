//! The scoreboard: shared memory with one record for each slot, made before the first fork. Atomics only: whatever a
//! process does, or however it dies, no other process can be made to wait or to read a torn value.
//!
//! What the supervisor decides, such as which process is in a slot, only the supervisor can write. What a worker says
//! lies in the memory of its pool; of other pools it sees those that it may send connections to, and of these only how
//! loaded they are.

#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::thread::futex::{self, Timespec};
use strum::FromRepr;

use super::bulletin::Bulletin;
use super::crash::Crash;
use super::current_call::CurrentCall;
use super::layout::{Audience, Memory, Owner, PerPool};
use super::region::Shareable;
use crate::time::Instant;

/// The shared records. Lives until the last process that has it mapped ends; never freed before.
pub struct Scoreboard {
    header: &'static SharedWords,
    assignments: &'static [Assignment],
    /// Of the default pool only.
    throttles: PerPool<Throttle>,
    loads: PerPool<Load>,
    /// 1: a process that serves one connection only is reserved for one that is on its way.
    claims: PerPool<AtomicU32>,
    works: PerPool<Work>,
    /// In place of what this process cannot see; all zero.
    hidden: &'static Work,
}

/// The most slots that there can be: twice the workers that can be configured, since pools come and go.
pub const MAX_SLOTS: usize = 2048;

impl Scoreboard {
    /// Makes a scoreboard with room for [`MAX_SLOTS`] records, none of which is in use. [supervisor, before fork]
    pub fn create(memory: &'static Memory) -> io::Result<&'static Self> {
        Ok(Box::leak(Box::new(Self {
            header: memory.value(Owner::Supervisor)?,
            assignments: memory.table(Owner::Supervisor, MAX_SLOTS)?,
            throttles: memory.per_pool(Audience::Metrics, 1)?,
            loads: memory.per_pool(Audience::Senders, MAX_SLOTS)?,
            claims: memory.per_pool(Audience::WritingSenders, MAX_SLOTS)?,
            works: memory.per_pool(Audience::Private, MAX_SLOTS)?,
            hidden: Box::leak(Box::default()),
        })))
    }

    /// All records that were ever in use and that this process can see, with their numbers.
    pub fn slots(&self) -> impl Iterator<Item = (usize, Slot)> {
        (0..self.used()).filter_map(|index| Some((index, self.slot(index)?)))
    }

    /// The record of a slot, if there is such a slot and this process can see it.
    pub fn slot(&self, index: usize) -> Option<Slot> {
        let assignment = self.assignments.get(..self.used())?.get(index)?;
        let pool = usize::from(assignment.place().pool);
        let load = self.loads.get(pool)?.get(index)?;
        let work = self.works.get(pool).and_then(|works| works.get(index)).unwrap_or(self.hidden);
        Some(Slot {
            assignment,
            load,
            claim: self.claims.get(pool)?.get(index)?,
            connections: &load.connections,
            call: &work.call,
            crash: &work.crash,
        })
    }

    /// Which worker a slot is that of, if there is such a slot.
    pub fn place(&self, index: usize) -> Option<Place> {
        self.assignments.get(..self.used())?.get(index).map(Assignment::place)
    }

    fn used(&self) -> usize {
        MAX_SLOTS.min(self.header.used.load(Ordering::Acquire) as usize)
    }

    /// Gives a place in a pool to a slot, which is one that was in use before or the next one. Whatever its record says
    /// is forgotten. [supervisor, which has opened the pool]
    pub fn assign(&self, slot: usize, place: Place) -> io::Result<()> {
        let assignment = self.assignments.get(slot).ok_or(io::ErrorKind::OutOfMemory)?;
        assignment.place.store(u32::from(place.pool) << 16 | u32::from(place.number), Ordering::Relaxed);
        let used = u32::try_from(slot).unwrap_or(u32::MAX).saturating_add(1);
        self.header.used.fetch_max(used, Ordering::Release);
        self.slot(slot).ok_or(io::ErrorKind::NotFound)?.end();
        Ok(())
    }

    /// Notes whether another server has the listening sockets, too: one that replaces this server, or is replaced by
    /// it. [supervisor]
    pub fn share_sockets(&self, are_shared: bool) {
        self.header.shared_sockets.store(are_shared.into(), Ordering::SeqCst);
    }

    /// Whether one has: then they are closed, but not shut down.
    pub fn are_sockets_shared(&self) -> bool {
        self.header.shared_sockets.load(Ordering::SeqCst) != 0
    }

    /// What the supervisor tells all.
    pub fn bulletin(&self) -> &Bulletin {
        &self.header.bulletin
    }

    /// A word that is different after each [`Scoreboard::changed`]. [worker of the default pool]
    pub fn tick(&self) -> u32 {
        self.throttle().map_or(0, |throttle| throttle.tick.load(Ordering::SeqCst))
    }

    /// Says that a load has changed. Two atomic operations, and a system call only if a process waits. Nobody waits for
    /// the workers of other pools than the default pool, from which this does nothing.
    pub fn changed(&self) {
        let Some(throttle) = self.throttle() else { return };
        throttle.tick.fetch_add(1, Ordering::SeqCst);
        // A waiter sets the flag again: that of one that was killed is cleared by the next change.
        if throttle.waiting.swap(0, Ordering::SeqCst) != 0 {
            let _ = futex::wake(&throttle.tick, futex::Flags::empty(), i32::MAX as u32); // some have gone, perhaps
        }
    }

    /// Whether all workers have as many connections as they may; true if that is new. [worker of the default pool]
    pub fn set_saturated(&self, is_saturated: bool) -> bool {
        let change = |count: u32| ((count % 2 == 1) != is_saturated).then(|| count.wrapping_add(1));
        self.throttle().is_some_and(|throttle| {
            throttle.saturation.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
        })
    }

    /// Whether they have, and how often that has begun.
    pub fn saturation(&self) -> (bool, u32) {
        let count = self.throttle().map_or(0, |throttle| throttle.saturation.load(Ordering::Relaxed));
        (count % 2 == 1, count.div_ceil(2))
    }

    /// That of the default pool, if this process can see it.
    fn throttle(&self) -> Option<&'static Throttle> {
        self.throttles.get(0)?.first()
    }

    /// Waits until the tick is no longer `seen`, at most `timeout`. May return early. [worker of the default pool]
    pub fn wait(&self, seen: u32, timeout: Duration) {
        let Some(throttle) = self.throttle() else { return };
        let timeout = Timespec::try_from(timeout).ok();
        throttle.waiting.store(1, Ordering::SeqCst);
        // The kernel compares the tick with `seen` once more before it sleeps: no change is missed in between.
        let _ = futex::wait(&throttle.tick, futex::Flags::empty(), seen, timeout.as_ref());
    }
}

/// What the supervisor has decided about a slot. Times are ns of [`now`](crate::clock::now).
#[derive(Debug)]
#[repr(C, align(64))]
struct Assignment {
    /// The process in this slot; 0: none.
    pid: AtomicI32,
    /// Pool and number, 16 bits each.
    place: AtomicU32,
    /// Counts the processes that this slot has had.
    generation: AtomicU32,
    /// When the process was forked.
    started: AtomicU64,
}

// SAFETY: atomic integers.
unsafe impl Shareable for Assignment {}

impl Assignment {
    fn place(&self) -> Place {
        let place = self.place.load(Ordering::Relaxed);
        Place { pool: (place >> 16) as u16, number: place as u16 }
    }
}

/// How loaded a worker is, by its own account.
#[derive(Debug)]
#[repr(C, align(128))]
struct Load {
    state: AtomicU32,
    /// Number of the [`Fault`]; 0: none.
    fault: AtomicU32,
    connections: AtomicU32,
    heartbeat: AtomicU64,
}

// SAFETY: atomic integers.
unsafe impl Shareable for Load {}

/// What a worker is doing.
#[derive(Debug, Default)]
#[repr(C, align(128))]
struct Work {
    call: CurrentCall,
    crash: Crash,
}

// SAFETY: atomic integers.
unsafe impl Shareable for Work {}

/// The record of a slot, as far as this process can see it. What it cannot see is all zero.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    assignment: &'static Assignment,
    load: &'static Load,
    claim: &'static AtomicU32,
    pub connections: &'static AtomicU32,
    /// What is being executed right now.
    pub call: &'static CurrentCall,
    /// The last crash of a process in this slot.
    pub crash: &'static Crash,
}

impl Slot {
    /// Which worker this is the slot of.
    pub fn place(&self) -> Place {
        self.assignment.place()
    }

    /// The process in this slot; 0: none.
    pub fn pid(&self) -> i32 {
        self.assignment.pid.load(Ordering::Relaxed)
    }

    /// Its process is known. [supervisor]
    pub fn set_pid(&self, pid: i32) {
        self.assignment.pid.store(pid, Ordering::Relaxed);
    }

    /// How many processes this slot has had.
    pub fn generation(&self) -> u32 {
        self.assignment.generation.load(Ordering::Relaxed)
    }

    /// When its process was forked.
    pub fn started(&self) -> Instant {
        Instant::from_nanos(self.assignment.started.load(Ordering::Relaxed))
    }

    /// When its event loop last went around.
    pub fn heartbeat(&self) -> Instant {
        Instant::from_nanos(self.load.heartbeat.load(Ordering::Relaxed))
    }

    /// The event loop goes around. [event loop]
    pub fn beat(&self, now: Instant) {
        self.load.heartbeat.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// For how long it has not, where there should be one.
    pub fn silence(&self, now: Instant) -> Option<Duration> {
        matches!(self.state(), State::Running | State::Stopping).then(|| now.since(self.heartbeat()))
    }

    /// Where the process in this slot stands.
    pub fn state(&self) -> State {
        State::from_repr(self.load.state.load(Ordering::Acquire)).unwrap_or(State::Empty)
    }

    /// Whether its record is corrupt: a handler has written over the memory of its pool. Not to be asked without a
    /// process. [supervisor]
    pub fn is_damaged(&self) -> bool {
        let fault = self.load.fault.load(Ordering::Relaxed);
        self.state() == State::Empty || fault != 0 && self.fault().is_none()
    }

    pub fn set_state(&self, state: State) {
        self.load.state.store(state as u32, Ordering::Release);
    }

    /// Why the process in this slot cannot take connections, if it cannot.
    pub fn fault(&self) -> Option<Fault> {
        Fault::from_repr(self.load.fault.load(Ordering::Relaxed))
    }

    /// Says so. [worker]
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.load.fault.store(fault.map_or(0, |fault| fault as u32), Ordering::Relaxed);
    }

    /// Whether it serves, and can take connections.
    pub fn takes_connections(&self) -> bool {
        self.state() == State::Running && self.fault().is_none()
    }

    /// Makes the record that of a new process. [supervisor, before fork]
    pub fn begin(&self, now: Instant) {
        self.assignment.generation.fetch_add(1, Ordering::Relaxed);
        self.connections.store(0, Ordering::Relaxed);
        self.claim.store(0, Ordering::Relaxed);
        self.assignment.started.store(now.as_nanos(), Ordering::Relaxed);
        self.beat(now);
        self.call.end();
        self.call.delivered();
        self.set_fault(None);
        self.set_state(State::Starting);
    }

    /// Reserves a process that serves one connection only, for that one. False: it has one. [worker, supervisor]
    pub fn claim(&self) -> bool {
        self.is_idle() && self.claim.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether such a process has no connection, and none is on its way.
    pub fn is_idle(&self) -> bool {
        self.connections.load(Ordering::Acquire) == 0 && self.claim.load(Ordering::Acquire) == 0
    }

    /// The connection for which it was reserved does not come. [worker]
    pub fn release(&self) {
        let _ = self.claim.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Makes the record empty after its process has ended. [supervisor]
    pub fn end(&self) {
        self.set_pid(0);
        self.connections.store(0, Ordering::Relaxed);
        self.claim.store(0, Ordering::Relaxed);
        self.call.end();
        self.set_fault(None);
        self.set_state(State::Empty);
    }
}

/// A worker's place: `default/3` is number 3 of pool 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of the pool in the configuration.
    pub pool: u16,
    /// Number of the worker in its pool.
    pub number: u16,
}

/// A process that is not ready this long after it was forked is ended. A crashed one waits as long for its replacement
/// to take its connections up.
pub const START: Duration = Duration::from_secs(60);

/// Where the process in a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRepr)]
#[repr(u32)]
pub enum State {
    /// There is none.
    Empty = 0,
    /// Forked, and loading handlers.
    Starting = 1,
    /// Accepts connections.
    Running = 2,
    /// Accepts none any more, and leaves.
    Stopping = 3,
    /// Ready to serve, and waits to be told to.
    Standby = 4,
}

/// Why a worker cannot take connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRepr)]
#[repr(u32)]
pub enum Fault {
    /// It has no descriptor left.
    Descriptors = 1,
    /// The system has no descriptor or no memory left: no other process would do better.
    System = 2,
    /// A listening socket cannot be accepted from any more.
    Listener = 3,
    /// Somebody has shut down its inbox.
    Inbox = 4,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Descriptors => "it is out of file descriptors",
            Fault::System => "the system is out of file descriptors or memory",
            Fault::Listener => "it has lost a listening socket",
            Fault::Inbox => "a handler has shut down its inbox",
        })
    }
}

/// The words that all slots share. [supervisor]
#[derive(Debug)]
#[repr(C, align(128))]
struct SharedWords {
    /// Slots that are, or were, in use.
    used: AtomicU32,
    /// 1: another server has the listening sockets, too.
    shared_sockets: AtomicU32,
    bulletin: Bulletin,
}

// SAFETY: atomic integers.
unsafe impl Shareable for SharedWords {}

/// What the workers of the default pool share the listening sockets by.
#[derive(Debug)]
#[repr(C, align(128))]
struct Throttle {
    tick: AtomicU32,
    /// 1: a process sleeps on `tick`, or did.
    waiting: AtomicU32,
    /// How often saturation has begun and ended; odd: it lasts.
    saturation: AtomicU32,
}

// SAFETY: atomic integers.
unsafe impl Shareable for Throttle {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
