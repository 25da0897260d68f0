//! Watches over handlers that do not come back: one that runs for longer than
//! its time without a call to the host is named in the log and brought down by
//! the rescue, on the very thread that hangs. Waiting in the host's own calls
//! does not count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::unistd::{Pid, gettid};

use crate::ffi::host::{Callback, monotonic};
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::Slot;
use crate::worker::crash::traps;

/// What a handler's thread shows of itself.
pub struct CallClock {
    thread: Pid,
    handler: u16,
    conn: u64,
    /// Since when (ns) the handler's own code runs; 0 while it does not.
    since: AtomicU64,
}

/// The pulses of all blocking threads.
static CLOCKS: Mutex<Vec<Arc<CallClock>>> = Mutex::new(Vec::new());

impl CallClock {
    /// Of the calling thread, which serves this connection.
    pub fn begin(handler: u16, conn: u64) -> Arc<CallClock> {
        let clock =
            Arc::new(CallClock { thread: gettid(), handler, conn, since: AtomicU64::new(monotonic()) });
        clocks().push(Arc::clone(&clock));
        clock
    }

    /// Runs one of the host's own calls, which may wait.
    pub fn pausing<R>(&self, call: impl FnOnce() -> R) -> R {
        self.since.store(0, Ordering::Relaxed);
        let result = call();
        self.since.store(monotonic(), Ordering::Relaxed);
        result
    }

    /// The thread ends.
    pub fn end(self: &Arc<CallClock>) {
        clocks().retain(|clock| !Arc::ptr_eq(clock, self));
    }
}

/// What the watchdog knows.
pub struct Watchdog {
    /// What the event loop executes.
    pub slot: &'static Slot,
    /// The event loop's thread.
    pub event_loop: Pid,
    /// For the names of handlers.
    pub routes: Arc<Routes>,
    /// How long (ns) a handler may run without a call.
    pub limit: u64,
}

impl Watchdog {
    /// Watches for as long as the process lives.
    pub fn run(self) {
        let pause =
            Duration::from_nanos(self.limit / 8).clamp(Duration::from_millis(5), Duration::from_secs(1));
        loop {
            std::thread::sleep(pause);
            let now = monotonic();
            let late = |since: u64| since != 0 && now.saturating_sub(since) >= self.limit;
            if let Some((handler, callback, conn)) = self.slot.call.current()
                && late(self.slot.call.since.load(Ordering::Relaxed))
            {
                let callback = Callback::from_number(callback);
                self.kill_hung(self.event_loop, handler, callback.name(), conn);
            }
            let hung = clocks().iter().find(|clock| late(clock.since.load(Ordering::Relaxed))).cloned();
            if let Some(clock) = hung {
                self.kill_hung(clock.thread, clock.handler, "its thread", clock.conn);
            }
        }
    }

    fn kill_hung(&self, thread: Pid, handler: u16, callback: &str, conn: u64) {
        let name = self.routes.handlers().get(usize::from(handler)).map_or("a handler", |route| &route.name);
        let limit = Duration::from_nanos(self.limit);
        log::error!(
            "{name}: {callback} for connection {conn:x} has not come back for {limit:?}: brought down"
        );
        traps::kill_hung(thread, conn);
        // The rescue stops this thread too; if the signal is blocked there is no more to do than to try again.
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn clocks() -> MutexGuard<'static, Vec<Arc<CallClock>>> {
    // A panic while it is held leaves a list that is still whole.
    CLOCKS.lock().unwrap_or_else(PoisonError::into_inner)
}
