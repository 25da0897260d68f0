//! Crash rescue: when a handler brings the process down, its connection gets
//! close 1011 and the others move to the slot's inbox, from which the worker
//! that replaces this one takes them up.
//!
//! Runs in a signal handler, so: async-signal-safe calls only, memory that was
//! reserved beforehand only, and no lock. A second crash in here ends the
//! process at once.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::RawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};

use nix::unistd::Pid;

use crate::ffi::host::{Callback, monotonic, place};
use crate::fleet::scoreboard::{EXIT, HANG, Slot};
use crate::worker::commands::queue::CommandQueue;
use crate::worker::conn::handoff::{Purpose, Shipment};
use crate::worker::conn::record::{Record, flags};
use crate::worker::crash::report::{Collector, Registers};
use crate::worker::crash::signals::{self, nap, on_signal, stop_other_threads};

/// Signals that a crash raises.
const CRASHES: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT];
/// How long to wait for the event loop to finish what it is about; ns.
const FINISH_TIME: u64 = 50_000_000;
/// How long the replacement may take to make room in the inbox; ns.
const SEND_TIME: u64 = 5_000_000_000;

/// A process that crashes within this time (ns) of its start, with no connection to blame, was perhaps brought down
/// by one that has just moved into it.
const YOUNG: u64 = 10_000_000_000;
/// So many such crashes in a row, and the connections of the handler whose code it was are given up.
const UNATTRIBUTED: u32 = 3;

const CLOSE_1011: [u8; 4] = [0x88, 2, 0x03, 0xf3];
const CLOSE_1012: [u8; 4] = [0x88, 2, 0x03, 0xf4];

/// What the rescue needs, gathered while all was well.
pub struct RescueContext {
    /// The process that this is the kit of: a child that a handler forks has it, too.
    pub pid: i32,
    /// All records.
    pub records: (NonNull<Record>, usize),
    /// What is on its way to a connection.
    pub commands: &'static CommandQueue,
    /// Where the facts of the crash are written.
    pub slot: &'static Slot,
    /// Gathers more of them.
    pub collector: Collector,
    /// The inlet of this slot's inbox.
    pub tx: RawFd,
    /// The channel to the supervisor.
    pub control: RawFd,
    /// What `control` says when a worker has crashed.
    pub report: Vec<u8>,
    /// Room for one datagram.
    pub shipment: UnsafeCell<Box<Shipment>>,
}

static CONTEXT: AtomicPtr<RescueContext> = AtomicPtr::new(null_mut());
/// The thread that is in the rescue; 0 for none.
static RESCUER: AtomicI32 = AtomicI32::new(0);
/// The connection whose handler hangs.
static HUNG: AtomicU64 = AtomicU64::new(0);
/// A rescue is waiting for the event loop to finish what it is about.
static WANTED: AtomicBool = AtomicBool::new(false);
/// The event loop is about something.
static BUSY: AtomicBool = AtomicBool::new(false);

/// Installs the rescue for this process.
pub fn install(context: RescueContext) -> io::Result<()> {
    CONTEXT.store(Box::into_raw(Box::new(context)), Ordering::Release);
    signals::install()?;
    for signal in CRASHES {
        on_signal(signal, crashed)?;
    }
    on_signal(hang_signal(), hung)?;
    // SAFETY: registers a function that lives as long as the process.
    match unsafe { libc::atexit(exited) } {
        0 => Ok(()),
        _ => Err(io::Error::other("atexit: no memory")),
    }
}

/// The event loop begins with something, or goes on to the next: the moment at which a crash of another thread finds
/// all connections in order.
pub fn begin_work() {
    BUSY.store(true, Ordering::SeqCst);
    while WANTED.load(Ordering::SeqCst) {
        BUSY.store(false, Ordering::SeqCst);
        // SAFETY: waits, for the end.
        unsafe { libc::pause() };
    }
}

/// The event loop has nothing to do.
pub fn end_work() {
    BUSY.store(false, Ordering::SeqCst);
}

/// Brings the process down on the thread that gets it.
fn hang_signal() -> c_int {
    libc::SIGRTMIN() + 6
}

/// Has the rescue run on a thread of this process that hangs in a handler, called for this connection.
pub fn kill_hung(thread: Pid, conn: u64) {
    HUNG.store(conn, Ordering::Release);
    // SAFETY: a thread that has just ended is ESRCH, nothing worse.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.as_raw(), hang_signal()) };
}

extern "C" fn hung(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // Between the watchdog's look and this signal the handler may have come back.
    if place().1 != HUNG.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: the kernel gives a valid context.
    rescue(HANG, 0, unsafe { Registers::of(context) });
    // A core dump shows where it hung.
    // SAFETY: both are async-signal-safe.
    unsafe {
        libc::signal(libc::SIGABRT, libc::SIG_DFL);
        libc::raise(libc::SIGABRT);
    }
}

extern "C" fn crashed(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a valid siginfo.
    let address = unsafe { (*info).si_addr() } as u64;
    // SAFETY: the kernel gives a valid context.
    rescue(signal, address, unsafe { Registers::of(context) });
    // With the default action the instruction that crashed does so once more, and a core dump shows it.
    // SAFETY: both are async-signal-safe.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        if (*info).si_code <= 0 {
            // Sent by a call such as abort(), not by an instruction.
            libc::raise(signal);
        }
    }
}

/// Runs when a handler calls exit(): workers themselves leave with _exit.
extern "C" fn exited() {
    if rescue(EXIT, 0, Registers::here()) {
        // SAFETY: ends the process before destructors pull the ground from under other threads.
        unsafe { libc::_exit(crate::exit::Exit::Internal.code()) }
    }
}

/// Saves what can be saved; false if there is nothing. `signal` is [`EXIT`] or [`HANG`] where there is none.
fn rescue(signal: c_int, address: u64, registers: Registers) -> bool {
    // SAFETY: set once, to a kit that is never freed.
    let Some(context) = (unsafe { CONTEXT.load(Ordering::Acquire).as_ref() }) else { return false };
    // SAFETY: both have no preconditions.
    let (me, pid) = unsafe { (libc::gettid(), libc::getpid()) };
    // A child that a handler has forked dies on its own: the connections are its parent's.
    if pid != context.pid {
        return false;
    }
    match RESCUER.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        // A crash within the rescue: the process ends at once.
        Err(other) if other == me => return true,
        // Another thread was first, and will stop this one.
        Err(_) => loop {
            // SAFETY: waits.
            unsafe { libc::pause() };
        },
    }
    // Signals keep their handlers: other threads may crash until they have been stopped, and shall wait then.
    WANTED.store(true, Ordering::SeqCst);
    if me != pid {
        let give_up = monotonic() + FINISH_TIME;
        while BUSY.load(Ordering::SeqCst) && monotonic() < give_up {
            nap();
        }
    }
    stop_other_threads(pid, me);
    let (callback, culprit) = place();
    let slot = Some(culprit as u32 as usize).filter(|slot| culprit != 0 && *slot < context.records.1);
    // SAFETY: within the mapping.
    let record = slot.map(|slot| unsafe { context.records.0.add(slot).as_ref() });
    let record = record.filter(|record| record.is_intact());
    // The event loop's own code has crashed, or somebody has sent the signal: no handler is to blame.
    // SAFETY: getpid has no preconditions.
    let idle = callback == Callback::None && me == unsafe { libc::getpid() };
    let registers = Registers { stack: if idle { 0 } else { registers.stack }, ..registers };
    let whose_code = context.collector.collect(registers, &context.slot.call, culprit, record);
    // A thread that the handler has made serves no connection, but its code is known.
    let handler = record.map(|record| record.handler).or(whose_code);
    context.slot.crash.note(signal, address, handler, callback as u32, culprit);
    context.slot.crash.begin_sending(pid);
    // The supervisor forks the replacement now; if it can not be told it will notice the death.
    // SAFETY: a live buffer and an open descriptor.
    unsafe {
        libc::send(context.control, context.report.as_ptr().cast(), context.report.len(), libc::MSG_NOSIGNAL)
    };
    // SAFETY: only one thread gets here.
    let shipment = unsafe { &mut **context.shipment.get() };
    shipment.clear();
    let now = monotonic();
    let give_up = now + SEND_TIME;
    let young = now.saturating_sub(context.slot.started.load(Ordering::Relaxed)) < YOUNG;
    let given_up = context.slot.crash.count_nameless(culprit == 0, young) > UNATTRIBUTED;
    let blame = Blamed { culprit, handler: handler.filter(|_| given_up), all: given_up && handler.is_none() };
    let (mut moved, mut cut) = (0, 0);
    for slot in 0..context.records.1 {
        // SAFETY: within the mapping, which is never unmapped; all other threads have stopped.
        let record = unsafe { context.records.0.add(slot).as_ref() };
        let stands = record.flags();
        if stands & flags::TAKEN == 0 {
            continue;
        }
        let id = u64::from(record.generation) << 32 | slot as u64;
        let Some(purpose) = decide(context, record, stands, id, &blame) else {
            cut += 1;
            continue;
        };
        match purpose {
            Purpose::Linger => cut += 1,
            Purpose::Resume | Purpose::Handshake => moved += 1,
        }
        // SAFETY: nothing changes the records any more, and the descriptors stay open.
        unsafe {
            if !shipment.add(record, record.fd, purpose) {
                let lost = send(context, shipment, give_up);
                (moved, cut) = (moved - lost.min(moved), cut + lost);
                shipment.add(record, record.fd, purpose);
            }
        }
    }
    // SAFETY: as above.
    let lost = unsafe { send(context, shipment, give_up) };
    context.slot.crash.note_result(moved - lost.min(moved), cut + lost);
    context.slot.crash.end_sending(pid);
    // Writing a core dump takes its time: nobody shall wait for the end of a connection until then.
    // SAFETY: nothing in this process uses a descriptor any more, but for the standard streams.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    true
}

/// Who does not go on.
struct Blamed {
    /// The connection whose callback crashed; 0: none.
    culprit: u64,
    /// A handler of which it is not known which connection brings it down, again and again.
    handler: Option<u16>,
    /// Not even the handler is known.
    all: bool,
}

/// What to do with a connection; `None`: it is cut when the process ends. Says the last word to those that can
/// not go on.
fn decide(context: &RescueContext, record: &Record, stands: u32, id: u64, blame: &Blamed) -> Option<Purpose> {
    if !record.is_intact() {
        return None;
    }
    if id == blame.culprit {
        return last_frame(record, stands, &CLOSE_1011);
    }
    if stands & flags::FRESH != 0 {
        return Some(Purpose::Handshake);
    }
    if blame.all || blame.handler == Some(record.handler) {
        return last_frame(record, stands, &CLOSE_1012);
    }
    if stands & flags::OPENING != 0 {
        return Some(Purpose::Handshake);
    }
    let is_idle = stands & flags::THREAD == 0 || context.commands.is_idle(id);
    if stands & flags::MOVABLE != 0 && is_idle && context.commands.is_quiet(id) {
        return Some(Purpose::Resume);
    }
    last_frame(record, stands, &CLOSE_1012)
}

fn last_frame(record: &Record, stands: u32, close: &[u8]) -> Option<Purpose> {
    if stands & flags::BOUNDARY == 0 {
        return None;
    }
    // SAFETY: the descriptor is the connection's.
    let said = unsafe { send_last_frame(record.fd, close) };
    // The replacement waits for the peer's end, so that no reset overtakes the Close frame.
    said.then_some(Purpose::Linger)
}

/// Sends the last frame, and nothing after; false if it could not be sent.
///
/// # Safety
/// `fd` must be a connection's that nobody else uses.
unsafe fn send_last_frame(fd: RawFd, close: &[u8]) -> bool {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: a live buffer, and promised by the caller.
    unsafe {
        let sent = libc::send(fd, close.as_ptr().cast(), close.len(), flags);
        libc::shutdown(fd, libc::SHUT_WR);
        sent == close.len() as isize
    }
}

/// Returns how many connections could not be sent: those are told to connect again.
///
/// # Safety
/// As for `Shipment::send`.
unsafe fn send(context: &RescueContext, shipment: &mut Shipment, give_up: u64) -> u32 {
    loop {
        // SAFETY: promised by the caller.
        match unsafe { shipment.send(context.tx) } {
            Ok(()) => return 0,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            // The inbox is full, or too many descriptors are in flight: until the replacement has taken some out.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAGAIN | libc::ETOOMANYREFS | libc::ENOBUFS)
                ) && monotonic() < give_up =>
            {
                let mut fd = libc::pollfd { fd: context.tx, events: libc::POLLOUT, revents: 0 };
                // SAFETY: one live pollfd.
                unsafe { libc::poll(&mut fd, 1, 10) };
            }
            Err(_) => {
                let mut lost = 0;
                for (fd, purpose) in shipment.content() {
                    if purpose == Purpose::Resume {
                        // SAFETY: a live buffer; the descriptor is the connection's, between two messages.
                        unsafe { send_last_frame(fd, &CLOSE_1012) };
                    }
                    lost += u32::from(purpose != Purpose::Linger);
                }
                shipment.clear();
                return lost;
            }
        }
    }
}
