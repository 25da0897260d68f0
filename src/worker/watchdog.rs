//! Watches over handlers that do not come back: one that runs for longer than
//! its time without a call to the host is named in the log and brought down by
//! the rescue, on the very thread that hangs. Waiting in the host's own calls
//! does not count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::unistd::{Pid, gettid};

use super::rescue;
use crate::ffi::host::{Callback, monotonic};
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::Slot;

/// What a handler's thread shows of itself.
pub struct Pulse {
    thread: Pid,
    handler: u16,
    conn: u64,
    /// Since when (ns) the handler's own code runs; 0 while it does not.
    since: AtomicU64,
}

/// The pulses of all blocking threads.
static PULSES: Mutex<Vec<Arc<Pulse>>> = Mutex::new(Vec::new());

impl Pulse {
    /// Of the calling thread, which serves this connection.
    pub fn begin(handler: u16, conn: u64) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse { thread: gettid(), handler, conn, since: AtomicU64::new(monotonic()) });
        pulses().push(Arc::clone(&pulse));
        pulse
    }

    /// Runs one of the host's own calls, which may wait.
    pub fn pausing<R>(&self, call: impl FnOnce() -> R) -> R {
        self.since.store(0, Ordering::Relaxed);
        let result = call();
        self.since.store(monotonic(), Ordering::Relaxed);
        result
    }

    /// The thread ends.
    pub fn end(self: &Arc<Pulse>) {
        pulses().retain(|pulse| !Arc::ptr_eq(pulse, self));
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
            if let Some((handler, callback, conn)) = self.slot.doing.current()
                && late(self.slot.doing.since.load(Ordering::Relaxed))
            {
                let callback = Callback::from_number(callback);
                self.bring_down(self.event_loop, handler, callback.name(), conn);
            }
            let hung = pulses().iter().find(|pulse| late(pulse.since.load(Ordering::Relaxed))).cloned();
            if let Some(pulse) = hung {
                self.bring_down(pulse.thread, pulse.handler, "its thread", pulse.conn);
            }
        }
    }

    fn bring_down(&self, thread: Pid, handler: u16, callback: &str, conn: u64) {
        let name = self.routes.handlers().get(usize::from(handler)).map_or("a handler", |route| &route.name);
        let limit = Duration::from_nanos(self.limit);
        log::error!(
            "{name}: {callback} for connection {conn:x} has not come back for {limit:?}: brought down"
        );
        rescue::bring_down(thread, conn);
        // The rescue stops this thread too; if the signal is blocked there is no more to do than to try again.
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn pulses() -> MutexGuard<'static, Vec<Arc<Pulse>>> {
    // A panic while it is held leaves a list that is still whole.
    PULSES.lock().unwrap_or_else(PoisonError::into_inner)
}
