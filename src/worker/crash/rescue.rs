//! Crash rescue: when a handler crashes the process, its connection gets close
//! 1011 and the others move to the slot's inbox, from which the worker that
//! replaces this one adopts them.
//!
//! Runs in a signal handler, so: async-signal-safe calls only, memory and
//! descriptors that were reserved beforehand only, and no lock. What it reads is
//! between guard pages or is read through the kernel, which does not fault. A
//! second crash in here ends the process at once.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::io;
use std::os::fd::RawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::time::Duration;

use crate::clock;
use crate::ffi::place::{Callback, place};
use crate::ffi::strict;
use crate::fleet::memory::crash::{CrashFacts, UNATTRIBUTED};
use crate::fleet::memory::scoreboard::{START, Slot};
use crate::fleet::sockets::control::CRASHED;
use crate::time::Instant;
use crate::worker::base::memory;
use crate::worker::base::progress::Progress;
use crate::worker::commands::queue::CommandQueue;
use crate::worker::conn::extents::RawExtents;
use crate::worker::conn::handoff::{Arrivals, Beside, Purpose, Shipment, unsent_of};
use crate::worker::conn::record::{NOTHING, Record, flags};
use crate::worker::crash::report::{Collector, Registers};
use crate::worker::crash::signals::{park_until_exit, stop_other_threads};
use crate::worker::crash::start::{self, StartWatch};

/// A process that crashes within this time of its start, with no connection to blame, may have been crashed by one
/// that has just moved into it.
const YOUNG: Duration = Duration::from_secs(10);
/// After this many such crashes in a row in which not even the handler is known, all connections are closed.
const MAX_UNATTRIBUTED: u32 = 6;

const CLOSE_1011: &[u8] = &[0x88, 2, 0x03, 0xf3];
const CLOSE_1012: &[u8] = &[0x88, 2, 0x03, 0xf4];
const STATUS_500: &[u8] =
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const STATUS_503: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What the rescue needs, collected while all is well.
pub struct RescueContext {
    /// The process that this belongs to: a child that a handler forks has a copy.
    pub pid: i32,
    pub records: (NonNull<Record>, usize),
    pub topics: RawExtents,
    pub unsent: RawExtents,
    /// Which messages they have got by those.
    pub progress: &'static Progress,
    /// Connections that were received and are not in the table yet.
    pub arrivals: NonNull<Arrivals>,
    /// What is on its way to a connection.
    pub commands: &'static CommandQueue,
    pub slot: &'static Slot,
    /// Collects the rest of the report.
    pub collector: Collector,
    /// The sending end of this slot's inbox.
    pub tx: RawFd,
    pub control: RawFd,
    pub shipment: UnsafeCell<Shipment>,
}

static CONTEXT: AtomicPtr<RescueContext> = AtomicPtr::new(null_mut());
/// The thread that is in the rescue; 0 for none.
static RESCUER: AtomicI32 = AtomicI32::new(0);

/// Makes the rescue ready in this process. The ways to it are opened by `traps`.
pub fn prepare(context: RescueContext) -> io::Result<()> {
    CONTEXT.store(memory::guard(context)?, Ordering::Release);
    if !memory::read(CLOSE_1011.as_ptr() as u64, &mut [0]) {
        log::warn!(
            "process_vm_readv(2) is not permitted: in a crash, connections are lost that have state, or whose \
             resource, origin, user and subprotocol are longer than 12 bytes together; allow it in the seccomp filter"
        );
    }
    Ok(())
}

/// The worker exits normally: from here on its end is not a crash.
pub fn dismiss() {
    start::forget();
    CONTEXT.store(null_mut(), Ordering::Release);
}

/// Saves what can be saved; false if there is nothing. `signal` is `EXIT` or `HANG` where there is none.
pub fn rescue(signal: c_int, address: u64, registers: Registers) -> bool {
    // SAFETY: set once, to a context that is never freed.
    let context = unsafe { CONTEXT.load(Ordering::Acquire).as_ref() };
    let starting = StartWatch::current();
    // SAFETY: both have no preconditions.
    let (me, pid) = unsafe { (libc::gettid(), libc::getpid()) };
    // A child that a handler has forked dies on its own: the connections are its parent's. After vfork(2) so is the
    // memory, in which nothing must change.
    let owner = context.map(|context| context.pid).or(starting.map(|watch| watch.pid));
    if owner != Some(pid) {
        return false;
    }
    match RESCUER.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        // A crash within the rescue: the process ends at once.
        Err(other) if other == me => return true,
        // Another thread was first, and will stop this one.
        Err(_) => park_until_exit(),
    }
    let Some(context) = context else {
        starting.inspect(|watch| watch.note_death(signal, address, registers, me == pid));
        return true;
    };
    // Signals keep their handlers: other threads may crash until they have been stopped, and must wait then.
    stop_other_threads(pid, me);
    let blame = context.report(signal, address, registers, me == pid);
    context.slot.crash.begin_sending(pid);
    // The supervisor forks the replacement now; if it cannot be told it will notice the death.
    send(context.control, CRASHED, 0);
    context.send_all(&blame);
    context.slot.crash.end_sending(pid);
    // Peers must not wait for their end of stream until the core dump is written.
    // SAFETY: nothing in this process uses a descriptor any more, except for the standard streams.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    true
}

/// Connections that do not go on.
struct Blame {
    /// The connection whose callback crashed; 0: none.
    culprit: u64,
    /// A handler that crashes again and again, with no connection to blame, or is suspected of it.
    handler: Option<u16>,
    /// Close all: no handler could be blamed, again and again.
    all: bool,
}

impl RescueContext {
    /// Leaves the report of the crash on this thread; returns who is to blame.
    fn report(&self, signal: c_int, address: u64, registers: Registers, is_loop: bool) -> Blame {
        let (callback, culprit) = place();
        // A function that was posted may run when its connection has gone, and another has the place.
        let is_of_culprit =
            |record: &&Record| record.generation == (culprit >> 32) as u32 && record.is_intact();
        let record = self.record(culprit as u32 as usize).filter(is_of_culprit);
        // The event loop's own code has crashed, or the signal was sent from outside: no handler is to blame.
        let idle = callback == Callback::None && is_loop;
        let registers = Registers { stack: if idle { 0 } else { registers.stack }, ..registers };
        let mut facts = CrashFacts::new((signal, address), (callback as u32, culprit));
        let whose_code = self.collector.collect(registers, self.slot.call, record, &mut facts);
        // A thread that the handler has made serves no connection, but its code is known.
        let handler = record.map(|record| record.handler).or(whose_code);
        self.slot.crash.note(&facts.in_handler(handler));
        let young = clock::now().since(self.slot.started()) < YOUNG;
        let count = self.slot.crash.count_nameless(culprit == 0, young);
        let is_nameless = culprit == 0 && handler.is_none();
        self.slot.crash.note_last(self.slot.call.last().filter(|_| is_nameless && young));
        let known = handler.filter(|_| count > UNATTRIBUTED);
        let suspect = known.or_else(|| self.slot.crash.suspect());
        Blame { culprit, handler: suspect, all: count > MAX_UNATTRIBUTED && is_nameless }
    }

    fn record(&self, slot: usize) -> Option<&Record> {
        // SAFETY: within the mapping, which is never unmapped; all other threads have stopped.
        (slot < self.records.1).then(|| unsafe { self.records.0.add(slot).as_ref() })
    }

    /// Sends all connections to the inbox but those that cannot go on.
    fn send_all(&self, blame: &Blame) {
        // SAFETY: only one thread gets here, once.
        let shipment = unsafe { &mut *self.shipment.get() };
        shipment.clear();
        let give_up = clock::now() + START;
        let (mut moved, mut lost, mut failed) = (0, 0, 0);
        // What is in the shipment goes first if there is no room for more.
        let mut put = |shipment: &mut Shipment, add: &dyn Fn(&mut Shipment) -> bool| {
            add(shipment) || {
                // SAFETY: nothing changes the records and arrivals any more, and the descriptors stay open.
                failed += unsafe { self.send(shipment, give_up) };
                add(shipment)
            }
        };
        // SAFETY: between guard pages that are never unmapped; the event loop has stopped, or is this thread.
        for (fd, entry) in unsafe { self.arrivals.as_ref() }.iter() {
            // SAFETY: nobody takes it any more.
            let is_added = put(shipment, &|shipment| unsafe { shipment.add_arrival(fd, &entry) });
            moved += u32::from(is_added && entry.purpose != Purpose::Linger);
        }
        let taken = |record: &&Record| record.flags() & flags::TAKEN != 0;
        for (slot, record) in
            (0..self.records.1).filter_map(|slot| Some((slot, self.record(slot).filter(taken)?)))
        {
            let id = u64::from(record.generation) << 32 | slot as u64;
            let (topics, unsent) = (self.topics.find(slot), unsent_of(record, id, self.unsent));
            let is_damaged = topics.is_none() || unsent.is_none();
            let (topics, unsent) = (topics.unwrap_or(NOTHING), unsent.unwrap_or(NOTHING));
            let Some(purpose) = self.decide(record, id, (unsent, is_damaged), blame) else {
                lost += 1;
                continue;
            };
            let beside = Beside { topics, seen: self.progress.seen_by(id), unsent };
            // SAFETY: nothing changes the records any more, and the descriptors stay open.
            let is_added = put(shipment, &|shipment| unsafe { shipment.add(record, purpose, &beside) });
            match purpose {
                Purpose::Resume | Purpose::Handshake if is_added => moved += 1,
                Purpose::Linger => lost += 1,
                // It has more state, or a longer request, than a datagram can carry.
                Purpose::Resume | Purpose::Handshake => {
                    end_with(record, unsent, CLOSE_1012, STATUS_503);
                    lost += 1;
                }
            }
        }
        // SAFETY: as above.
        failed += unsafe { self.send(shipment, give_up) };
        self.slot.crash.note_result(moved - failed, lost + failed);
    }

    /// What to do with a connection; `None`: it is cut when the process ends. Tells those that cannot go on, among them
    /// those of which what travels beside the record `is_damaged`.
    fn decide(
        &self,
        record: &Record,
        id: u64,
        (unsent, is_damaged): (*const [u8], bool),
        blame: &Blame,
    ) -> Option<Purpose> {
        let stands = record.flags();
        if !record.is_intact() {
            return None;
        }
        let end_with = |close, response| end_with(record, unsent, close, response);
        if id == blame.culprit {
            return end_with(strict::breach_close().unwrap_or(CLOSE_1011), STATUS_500);
        }
        if stands & flags::FRESH != 0 {
            return Some(Purpose::Handshake);
        }
        if blame.all || blame.handler == Some(record.handler) {
            return end_with(CLOSE_1012, STATUS_503);
        }
        if stands & flags::OPENING != 0 {
            return Some(Purpose::Handshake);
        }
        let is_idle = stands & flags::THREAD == 0 || self.commands.is_idle(id);
        if stands & flags::MOVABLE != 0 && is_idle && !is_damaged && self.commands.at(id).is_quiet() {
            return Some(Purpose::Resume);
        }
        end_with(CLOSE_1012, STATUS_503)
    }

    /// Sends what is in the shipment; returns how many connections could not be sent, of those that were to go on. They
    /// are told to connect again.
    ///
    /// # Safety
    /// As for `Shipment::send`.
    unsafe fn send(&self, shipment: &mut Shipment, give_up: Instant) -> u32 {
        loop {
            // SAFETY: promised by the caller.
            match unsafe { shipment.send(self.tx) } {
                Ok(()) => return 0,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // The inbox is full, too many descriptors are in flight, or memory is short: until the replacement has
                // taken some out.
                Err(error) if is_temporary(&error) && clock::now() < give_up => {
                    let is_full = error.raw_os_error() == Some(libc::EAGAIN);
                    let events = if is_full { libc::POLLOUT } else { 0 };
                    let mut fd = libc::pollfd { fd: self.tx, events, revents: 0 };
                    // SAFETY: one live pollfd.
                    unsafe { libc::poll(&mut fd, 1, 10) };
                }
                Err(_) => {
                    let mut lost = 0;
                    for (fd, purpose) in shipment.content() {
                        turn_away(fd, purpose, NOTHING);
                        lost += u32::from(purpose != Purpose::Linger);
                    }
                    shipment.clear();
                    return lost;
                }
            }
        }
    }
}

/// Whether what could not be sent may be sent later.
fn is_temporary(error: &io::Error) -> bool {
    let errors = [libc::EAGAIN, libc::ETOOMANYREFS, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|error| errors.contains(&error))
}

/// Ends a connection with what waits in its send queue and this Close frame, or with this response if its request was
/// not answered yet; `None` if neither can be sent. The replacement waits for the peer's end, so that no reset
/// overtakes it.
fn end_with(record: &Record, unsent: *const [u8], close: &[u8], response: &[u8]) -> Option<Purpose> {
    let stands = record.flags();
    let last = if stands & flags::BOUNDARY != 0 {
        close
    } else if stands & (flags::FRESH | flags::OPENING | flags::AHEAD) != 0 {
        response
    } else {
        return None;
    };
    send_last(record.fd, unsent, last).then_some(Purpose::Linger)
}

/// Tells a connection that has no place to go to that it is to connect again, after what was still to be sent to it.
/// Async-signal-safe.
pub fn turn_away(fd: RawFd, purpose: Purpose, unsent: *const [u8]) {
    let last = match purpose {
        Purpose::Resume => CLOSE_1012,
        Purpose::Handshake => STATUS_503,
        Purpose::Linger => return,
    };
    send_last(fd, unsent, last);
}

/// Sends what waits in the send queue of a connection, and its last bytes; false if not all could be sent.
fn send_last(fd: RawFd, unsent: *const [u8], last: &[u8]) -> bool {
    if unsent.len() != 0 && !send(fd, unsent, libc::MSG_MORE) {
        return false;
    }
    let is_sent = send(fd, last, 0);
    // SAFETY: nobody else uses the connection's descriptor.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
    is_sent
}

/// Sends bytes; false if not all of them could be sent. What cannot be read is an error, nothing worse.
/// Async-signal-safe.
pub fn send(fd: RawFd, bytes: *const [u8], flags: c_int) -> bool {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | flags;
    // SAFETY: the kernel reads the bytes, and refuses instead of faulting; nobody else uses the descriptor, as above.
    let sent = unsafe { libc::send(fd, bytes.cast(), bytes.len(), flags) };
    sent == bytes.len() as isize
}
