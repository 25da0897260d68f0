//! What a crashing process leaves for the log line and the crash record: the place in the code, the connection and the
//! message. Runs in the rescue, under its rules; what cannot be read is left out.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::c_void;

use crate::fleet::memory::crash::CrashFacts;
use crate::fleet::memory::crash_report::{self, CrashReport};
use crate::fleet::memory::current_call::{CurrentCall, CurrentMessage};
use crate::worker::base::memory;
use crate::worker::conn::record::Record;
use crate::worker::crash::modules::{CodePlace, Modules};
use crate::worker::crash::threads;

/// Bytes of a message that are copied at a time.
const PIECE: usize = 4096;

/// Where the crashing thread was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// The instruction; 0 for none in particular.
    pub code: u64,
    /// The end of the stack; 0: no handler's code runs on it, what lies there is stale.
    pub stack: u64,
}

impl Registers {
    /// Out of what the kernel gives to a signal handler.
    ///
    /// # Safety
    /// `context` must be the third argument of a signal handler.
    pub unsafe fn of(context: *const c_void) -> Self {
        // SAFETY: promised by the caller.
        let Some(context) = (unsafe { context.cast::<libc::ucontext_t>().as_ref() }) else {
            return Self::default();
        };
        let registers = &context.uc_mcontext;
        #[cfg(target_arch = "x86_64")]
        let (code, stack) =
            (registers.gregs[libc::REG_RIP as usize] as u64, registers.gregs[libc::REG_RSP as usize] as u64);
        #[cfg(target_arch = "aarch64")]
        let (code, stack) = (registers.pc, registers.sp);
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let (code, stack) = (0, (&raw const *registers) as u64);
        Self { code, stack }
    }

    /// Of the caller, where there is no signal.
    pub fn here() -> Self {
        let local = 0_u8;
        Self { code: 0, stack: &raw const local as u64 }
    }
}

thread_local! {
    static HELD: Cell<Option<CurrentMessage>> = const { Cell::new(None) };
}

/// The message that the calling thread's blocking handler has from now on. It may be freed without notice: a crash
/// reads it as if it could be anything.
pub fn hold(kind: u32, payload: &[u8]) {
    HELD.set(Some(CurrentMessage { kind, size: payload.len() as u64, data: payload.as_ptr() as u64 }));
}

pub struct Collector {
    pub modules: &'static Modules,
    pub crash_report: CrashReport,
}

impl Collector {
    /// Collects what there is about the connection in `facts`, whose `record` must be intact; returns whose code was
    /// running, if it is a handler's. Async-signal-safe.
    pub fn collect(
        &self,
        at: Registers,
        current_call: &CurrentCall,
        record: Option<&Record>,
        facts: &mut CrashFacts,
    ) -> Option<u16> {
        let (code, via) = self.find_code(at);
        facts.code = code.map_or(facts.code, |code| code.spot);
        facts.via = via.map_or(facts.via, |via| via.spot);
        if let Some(record) = record {
            facts.peer = record.peer;
            let strings = record.strings();
            facts.strings =
                self.crash_report.keep_strings([Some(strings.resource), strings.origin, strings.protocol]);
        }
        let conn = facts.conn;
        let of_loop =
            || current_call.message().filter(|_| current_call.current().is_some_and(|(.., at)| at == conn));
        if let Some(message) = HELD.get().or_else(of_loop) {
            self.copy(message, facts);
        }
        let of_thread = || self.modules.place(threads::began_with()).handler;
        code.and_then(|code| code.handler).or_else(of_thread)
    }

    /// The handler's code, and the library's that it had called.
    fn find_code(&self, at: Registers) -> (Option<CodePlace>, Option<CodePlace>) {
        let code = (at.code != 0).then(|| self.modules.place(at.code));
        if code.is_some_and(|code| code.handler.is_some()) {
            return (code, None);
        }
        match Some(at.stack).filter(|stack| *stack != 0).and_then(|stack| self.modules.caller(stack)) {
            Some(caller) => (Some(caller), code),
            None => (code, None),
        }
    }

    fn copy(&self, message: CurrentMessage, facts: &mut CrashFacts) {
        (facts.kind, facts.size) = (message.kind, message.size);
        let mut piece = [0_u8; PIECE];
        loop {
            let at = u64::from(facts.kept);
            let Some(room) = piece.get_mut(..(message.size - at).min(PIECE as u64) as usize) else { return };
            if !room.is_empty() && !memory::read(message.data.wrapping_add(at), room) {
                return;
            }
            if at == 0 {
                (facts.hash, facts.is_hashed) = (crash_report::hash(room), 1);
            }
            let kept = self.crash_report.keep_bytes(facts.kept, room);
            facts.kept += kept;
            if kept == 0 || (kept as usize) < room.len() {
                return;
            }
        }
    }
}
