//! The scoreboard: shared memory with one record per slot, made before the first fork. Atomics only: whatever a
//! process does, or however it dies, no other process can be made to wait or to read a torn value.

#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use super::bulletin::Bulletin;
use super::current_call::CurrentCall;

/// The shared records. Lives until the last process that has it mapped ends; never freed before.
pub struct Scoreboard {
    header: &'static Header,
    slots: &'static [Slot],
}

/// The most slots that there can be: twice the workers that can be configured, since pools come and go.
pub const MAX_SLOTS: usize = 2048;

impl Scoreboard {
    /// Makes a scoreboard with room for `capacity` records, none of which is in use. [supervisor, before fork]
    pub fn create(capacity: usize) -> io::Result<&'static Self> {
        let size = capacity
            .checked_mul(size_of::<Slot>())
            .and_then(|bytes| bytes.checked_add(size_of::<Header>()))
            .and_then(NonZeroUsize::new)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces no other memory.
        let base = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_SHARED)? }.as_ptr();
        // SAFETY: the mapping is page-aligned, zeroed (a valid Header: atomics only), and never unmapped.
        let header = unsafe { &*base.cast::<Header>() };
        // SAFETY: `size` has room for `capacity` records behind the header, whose size is a multiple of their
        // alignment; zeroed memory is a valid Slot, and the mapping is never unmapped.
        let slots = unsafe {
            std::slice::from_raw_parts(base.byte_add(size_of::<Header>()).cast::<Slot>(), capacity)
        };
        Ok(Box::leak(Box::new(Self { header, slots })))
    }

    /// All records that were ever in use, by slot number.
    pub fn slots(&self) -> &[Slot] {
        self.slots.get(..self.header.used.load(Ordering::Acquire) as usize).unwrap_or(self.slots)
    }

    /// The record of a slot, if there is such a slot.
    pub fn slot(&self, index: usize) -> Option<&Slot> {
        self.slots().get(index)
    }

    /// The most slots that there can be.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Gives a place in a pool to a slot, which is one that was in use before or the next one. False: there is no
    /// room. [supervisor]
    pub fn assign(&self, slot: usize, place: Place) -> bool {
        let Some(record) = self.slots.get(slot) else { return false };
        record.place.store(u32::from(place.pool) << 16 | u32::from(place.number), Ordering::Relaxed);
        let used = u32::try_from(slot).unwrap_or(u32::MAX).saturating_add(1);
        self.header.used.fetch_max(used, Ordering::Release);
        true
    }

    /// Notes whether another server has the listening sockets, too: one that replaces this server, or is replaced by it.
    /// [supervisor]
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

    /// A word that is different after each [`Scoreboard::changed`].
    pub fn tick(&self) -> u32 {
        self.header.tick.load(Ordering::SeqCst)
    }

    /// Says that a load has changed. Two atomic operations, and a system call only if a process waits.
    pub fn changed(&self) {
        self.header.tick.fetch_add(1, Ordering::SeqCst);
        // Who waits sets the flag again, so a waiter that was killed leaves no trace for longer than one change.
        if self.header.waiting.swap(0, Ordering::SeqCst) != 0 {
            futex(&self.header.tick, libc::FUTEX_WAKE, i32::MAX as u32, std::ptr::null());
        }
    }

    /// All workers have as many connections as they may; true if that is new. [worker]
    pub fn begin_saturation(&self) -> bool {
        let begin = |count: u32| count.is_multiple_of(2).then(|| count.wrapping_add(1));
        self.header.saturation.fetch_update(Ordering::Relaxed, Ordering::Relaxed, begin).is_ok()
    }

    /// They do not any more; true if that is new. [worker]
    pub fn end_saturation(&self) -> bool {
        let end = |count: u32| (count % 2 == 1).then(|| count.wrapping_add(1));
        self.header.saturation.fetch_update(Ordering::Relaxed, Ordering::Relaxed, end).is_ok()
    }

    /// Whether they do, and how often that has begun.
    pub fn saturation(&self) -> (bool, u32) {
        let count = self.header.saturation.load(Ordering::Relaxed);
        (count % 2 == 1, count.div_ceil(2))
    }

    /// Waits until the tick is no longer `seen`, at most `timeout`. May return early.
    pub fn wait(&self, seen: u32, timeout: Duration) {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        self.header.waiting.store(1, Ordering::SeqCst);
        // The kernel compares the tick with `seen` once more before it sleeps: no change is missed in between.
        futex(&self.header.tick, libc::FUTEX_WAIT, seen, &timeout);
    }
}

/// What one worker says about itself, and the supervisor about it. Each on cache lines of its own. Times are ns of
/// [`now`].
#[repr(C, align(128))]
#[derive(Debug)]
pub struct Slot {
    /// The process in this slot, 0 for none. Written by the supervisor.
    pub pid: AtomicI32,
    state: AtomicU32,
    /// Number of the [`Fault`]; 0: none.
    fault: AtomicU32,
    /// Pool and number, 16 bits each.
    place: AtomicU32,
    /// Counts the processes that this slot has had. Written by the supervisor.
    generation: AtomicU32,
    /// Open connections.
    pub connections: AtomicU32,
    /// When the process was forked. Written by the supervisor.
    pub started: AtomicU64,
    /// When the event loop last went around.
    pub heartbeat: AtomicU64,
    /// What is being executed right now.
    pub call: CurrentCall,
    /// The last crash of a process in this slot.
    pub crash: Crash,
}

impl Slot {
    /// Which worker this is the slot of.
    pub fn place(&self) -> Place {
        let place = self.place.load(Ordering::Relaxed);
        Place { pool: (place >> 16) as u16, number: place as u16 }
    }

    /// How many processes this slot has had. [supervisor]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Where the process in this slot stands.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            1 => State::Starting,
            2 => State::Running,
            3 => State::Stopping,
            4 => State::Standby,
            _ => State::Empty,
        }
    }

    /// Changes the state.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u32, Ordering::Release);
    }

    /// Why the process in this slot cannot take connections, if it cannot.
    pub fn fault(&self) -> Option<Fault> {
        match self.fault.load(Ordering::Relaxed) {
            1 => Some(Fault::Descriptors),
            2 => Some(Fault::System),
            3 => Some(Fault::Listener),
            _ => None,
        }
    }

    /// Says so. [worker]
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.fault.store(fault.map_or(0, |fault| fault as u32), Ordering::Relaxed);
    }

    /// Whether it serves, and can take connections.
    pub fn takes_connections(&self) -> bool {
        self.state() == State::Running && self.fault().is_none()
    }

    /// Makes the record that of a new process. [supervisor, before fork]
    pub fn begin(&self, now: u64) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.connections.store(0, Ordering::Relaxed);
        self.started.store(now, Ordering::Relaxed);
        self.heartbeat.store(now, Ordering::Relaxed);
        self.call.end();
        self.call.delivered();
        self.set_fault(None);
        self.set_state(State::Starting);
    }

    /// Reserves a process that serves one connection only, for that one. False: it has one. [worker, supervisor]
    pub fn claim(&self) -> bool {
        self.connections.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The connection for which it was reserved does not come. [worker]
    pub fn release(&self) {
        let _ = self.connections.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Makes the record empty after its process has ended. [supervisor]
    pub fn end(&self) {
        self.pid.store(0, Ordering::Relaxed);
        self.connections.store(0, Ordering::Relaxed);
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

/// A process that is not ready this long after it was forked is ended. A crashed one waits as long for its replacement to
/// take its connections up.
pub const START: Duration = Duration::from_secs(60);

/// Where the process in a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fault {
    /// It has no descriptor left.
    Descriptors = 1,
    /// The system has no descriptor or no memory left: no other process would do better.
    System = 2,
    /// A listening socket cannot be accepted from any more.
    Listener = 3,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Descriptors => "it is out of file descriptors",
            Fault::System => "the system is out of file descriptors or memory",
            Fault::Listener => "it has lost a listening socket",
        })
    }
}

/// The facts of a crash, written by the crashing process and read by the supervisor.
#[derive(Debug)]
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
    /// Crashes go on that name nobody, and this handler ran last before each.
    pub suspect: Option<u16>,
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

    /// Who is suspected. Async-signal-safe.
    pub fn suspect(&self) -> Option<u16> {
        without_none(&self.last).filter(|_| self.alike.load(Ordering::Relaxed) > UNATTRIBUTED)
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
            suspect: self.suspect(),
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

/// The words that all slots share.
#[repr(C, align(128))]
struct Header {
    /// Slots that are, or were, in use.
    used: AtomicU32,
    tick: AtomicU32,
    /// 1: a process sleeps on `tick`, or did.
    waiting: AtomicU32,
    /// How often saturation has begun and ended; odd: it lasts.
    saturation: AtomicU32,
    /// 1: another server has the listening sockets, too.
    shared_sockets: AtomicU32,
    bulletin: Bulletin,
}

fn futex(word: &AtomicU32, operation: libc::c_int, value: u32, timeout: *const libc::timespec) {
    // SAFETY: `word` is a live, aligned 32-bit word and `timeout` null or a live timespec. The result does not
    // matter: a wait may end early and a wake may wake nobody.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, timeout, 0, 0) };
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use nix::sys::prctl::set_pdeathsig;
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Pid, fork};

    use super::*;
    use crate::fleet::alone::is_alone;
    use crate::fleet::peer::Peer;

    /// Runs `work` in a child process, which uses no memory but its own and the scoreboard.
    fn in_child(work: impl FnOnce()) -> Pid {
        // SAFETY: the child calls functions without locks and allocations only, then ends.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let _ = set_pdeathsig(Signal::SIGKILL); // also if the test fails
                work();
                // SAFETY: ends the child without running anything of the test harness.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// With so many slots in use.
    fn board(slots: usize) -> &'static Scoreboard {
        let board = Scoreboard::create(slots).unwrap();
        assert!((0..slots).all(|slot| board.assign(slot, Place::default())));
        board
    }

    #[test]
    fn slots_come_into_use_with_their_places_and_no_more_than_there_is_room_for() {
        let board = Scoreboard::create(2).unwrap();
        assert!(board.slots().is_empty() && board.slot(0).is_none());
        let place = Place { pool: 7, number: 513 };
        assert!(board.assign(0, Place::default()) && board.assign(1, place) && !board.assign(2, place));
        assert_eq!(board.slots().iter().map(Slot::place).collect::<Vec<_>>(), [Place::default(), place]);
        assert!(board.assign(0, place));
        assert_eq!((board.slots().len(), board.slot(0).unwrap().place()), (2, place));
    }

    #[test]
    fn both_sides_of_a_fork_see_the_same_records() {
        if !is_alone() {
            return;
        }
        let board = board(3);
        assert_eq!(board.slots().len(), 3);
        assert!(board.slot(3).is_none());
        let child = in_child(|| {
            let slot = board.slot(2).unwrap();
            slot.connections.fetch_add(5, Ordering::Relaxed);
            slot.heartbeat.store(u64::MAX, Ordering::Relaxed);
            slot.call.set_current(0xabcd, Peer::NONE, 1);
            slot.call.begin(7, 6);
            slot.set_state(State::Running);
        });
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        let slot = board.slot(2).unwrap();
        assert_eq!(slot.connections.load(Ordering::Relaxed), 5);
        assert_eq!(slot.heartbeat.load(Ordering::Relaxed), u64::MAX);
        assert_eq!(slot.call.current(), Some((7, 6, 0xabcd)));
        assert_eq!(slot.state(), State::Running);
        assert_eq!(board.slot(1).unwrap().state(), State::Empty);
    }

    #[test]
    fn a_new_process_begins_with_a_clean_record() {
        let board = board(1);
        let slot = board.slot(0).unwrap();
        slot.begin(10);
        slot.connections.store(9, Ordering::Relaxed);
        slot.call.set_current(2, Peer::NONE, 3);
        slot.call.begin(0, 1);
        slot.end();
        assert_eq!((slot.state(), slot.call.current()), (State::Empty, None));
        slot.begin(20);
        assert_eq!(slot.state(), State::Starting);
        assert_eq!(slot.generation(), 2);
        assert_eq!(slot.connections.load(Ordering::Relaxed), 0);
        assert_eq!(slot.heartbeat.load(Ordering::Relaxed), 20);
    }

    #[test]
    fn a_change_in_another_process_ends_the_wait() {
        if !is_alone() {
            return;
        }
        let board = Scoreboard::create(1).unwrap();
        let seen = board.tick();
        let child = in_child(|| {
            // The parent may not wait yet: then its wait must not begin.
            board.changed();
        });
        let begun = Instant::now();
        while board.tick() == seen && begun.elapsed() < Duration::from_secs(20) {
            board.wait(seen, Duration::from_secs(20));
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
        waitpid(child, None).unwrap();
    }

    #[test]
    fn a_waiter_is_woken_and_one_that_was_killed_costs_no_more() {
        if !is_alone() {
            return;
        }
        let board = Scoreboard::create(1).unwrap();
        let seen = board.tick();
        let is_waiting = || board.header.waiting.load(Ordering::SeqCst) != 0;
        let child = in_child(|| board.wait(seen, Duration::from_secs(600)));
        while !is_waiting() {
            std::thread::yield_now();
        }
        board.changed();
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));

        let seen = board.tick();
        let child = in_child(|| board.wait(seen, Duration::from_secs(600)));
        while !is_waiting() {
            std::thread::yield_now();
        }
        kill(child, Signal::SIGKILL).unwrap();
        waitpid(child, None).unwrap();
        board.changed();
        assert!(!is_waiting());
    }

    #[test]
    fn a_wait_ends_at_its_time() {
        let board = Scoreboard::create(1).unwrap();
        let begun = Instant::now();
        board.wait(board.tick(), Duration::from_millis(30));
        assert!(begun.elapsed() >= Duration::from_millis(30));
        board.wait(board.tick().wrapping_sub(1), Duration::from_secs(600)); // it has changed already
    }

    #[test]
    fn records_do_not_share_cache_lines() {
        assert_eq!((size_of::<Slot>() % 128, align_of::<Slot>()), (0, 128));
        assert_eq!(size_of::<Header>(), 128);
    }
}
