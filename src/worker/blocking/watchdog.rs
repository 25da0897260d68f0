//! Finds handlers that hang: a thread that is in a handler's code and makes no call of the host for longer than its
//! time. It is named in the log, and the rescue ends the worker on that very thread.
//!
//! The event loop is judged by the clock on the wall: whoever waits there holds up all others. A blocking handler's
//! thread is judged by the processor time that it burns, since waiting for a condition of its own harms nobody; a limit
//! on its waiting is a setting of its own. Time is counted in ticks of this thread, so that it does not pass while the
//! process is stopped.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, gettid};

use crate::clock;
use crate::config::Config;
use crate::ffi::place::{self, Callback};
use crate::fleet::memory::scoreboard::Slot;
use crate::fleet::routes::Routes;
use crate::worker::crash::traps;

/// What the thread of a blocking handler shows of itself.
#[derive(Default)]
pub struct CallClock {
    /// 0 while no thread uses it.
    thread: AtomicI32,
    handler: AtomicU16,
    conn: AtomicU64,
    /// Changes with each call, of the host by the handler or the other way round.
    calls: AtomicU64,
    /// The handler's own code runs.
    is_running: AtomicBool,
}

/// The clocks of all blocking threads, those that have ended among them: they are used again.
static CLOCKS: Mutex<Vec<&'static CallClock>> = Mutex::new(Vec::new());
/// Changes with each call on the event loop.
static LOOP_CALLS: AtomicU64 = AtomicU64::new(0);

impl CallClock {
    /// Of the calling thread, which serves this connection.
    pub fn begin(handler: u16, conn: u64) -> &'static CallClock {
        let mut clocks = clocks();
        let free = clocks.iter().copied().find(|clock| clock.thread.load(Ordering::Relaxed) == 0);
        let clock = free.unwrap_or_else(|| {
            let made: &CallClock = Box::leak(Box::default());
            clocks.push(made);
            made
        });
        clock.handler.store(handler, Ordering::Relaxed);
        clock.conn.store(conn, Ordering::Relaxed);
        clock.is_running.store(true, Ordering::Relaxed);
        clock.thread.store(gettid().as_raw(), Ordering::Release);
        // From here on no other thread takes it for free.
        drop(clocks);
        place::count_calls(&clock.calls);
        place::count_call();
        clock
    }

    /// Runs one of the host's own calls, which may wait.
    pub fn pausing<R>(&self, call: impl FnOnce() -> R) -> R {
        self.is_running.store(false, Ordering::Relaxed);
        let result = call();
        place::count_call();
        self.is_running.store(true, Ordering::Relaxed);
        result
    }

    pub fn end(&self) {
        self.is_running.store(false, Ordering::Relaxed);
        self.thread.store(0, Ordering::Release);
    }
}

/// How long a thread has made no call.
#[derive(Clone, Copy, Default)]
struct Silence {
    /// The count of its calls when it was last seen to change.
    calls: u64,
    /// Time since.
    time: Duration,
    /// Processor time of the thread then.
    cpu: Duration,
}

impl Silence {
    /// A tick later: true if there was no call in it.
    fn goes_on(&mut self, calls: u64, is_running: bool, tick: Duration, cpu: impl Fn() -> Duration) -> bool {
        if !is_running {
            self.calls = 0; // what comes next is a change
        } else if self.calls != calls {
            *self = Silence { calls, time: Duration::ZERO, cpu: cpu() };
        } else {
            self.time += tick;
            return true;
        }
        false
    }
}

/// How long a handler may make no call; zero: forever.
struct CallLimits {
    run: Duration,
    wait: Duration,
}

pub struct Watchdog {
    slot: &'static Slot,
    event_loop: Pid,
    routes: Arc<Routes>,
    /// By index in the routes.
    limits: Vec<CallLimits>,
}

impl Watchdog {
    /// Of the calling thread, which runs the event loop, and of all blocking threads; `None` if nothing is limited.
    pub fn new(config: &Config, routes: &Arc<Routes>, slot: &'static Slot) -> Option<Self> {
        let limits = routes.handlers().iter().map(|route| CallLimits {
            run: config.handler(&route.resource).timeout,
            wait: config.handler_wait_timeout,
        });
        let limits: Vec<_> = limits.collect();
        place::count_calls(&LOOP_CALLS);
        let routes = Arc::clone(routes);
        let is_limited = limits.iter().any(|limits| !limits.run.is_zero() || !limits.wait.is_zero());
        is_limited.then(|| Watchdog { slot, event_loop: gettid(), routes, limits })
    }

    /// Watches for as long as the process lives.
    pub fn run(self) {
        let all = self.limits.iter().flat_map(|limits| [limits.run, limits.wait]);
        let shortest = all.filter(|limit| !limit.is_zero()).min().unwrap_or_default();
        let pause = (shortest / 8).clamp(Duration::from_millis(5), Duration::from_secs(1));
        let mut event_loop = Silence::default();
        let mut threads: Vec<Silence> = Vec::new();
        loop {
            let begun = clock::now();
            std::thread::sleep(pause);
            // If it took much longer the process, or the machine, was stopped.
            let tick = clock::now().since(begun).min(2 * pause);
            let call = self.slot.call.current();
            let calls = LOOP_CALLS.load(Ordering::Relaxed);
            if event_loop.goes_on(calls, call.is_some(), tick, Duration::default)
                && let Some((handler, callback, conn)) = call
                && exceeds(event_loop.time, self.limits(handler).run)
            {
                let callback = Callback::from_number(callback).name();
                self.kill_hung(
                    self.event_loop,
                    handler,
                    conn,
                    callback,
                    "made no call of the host",
                    event_loop.time,
                );
            }
            let clocks = clocks().clone();
            threads.resize(clocks.len(), Silence::default());
            for (clock, silence) in clocks.into_iter().zip(&mut threads) {
                self.judge(clock, silence, tick);
            }
        }
    }

    fn judge(&self, clock: &CallClock, silence: &mut Silence, tick: Duration) {
        let thread = clock.thread.load(Ordering::Acquire);
        let is_running = thread != 0 && clock.is_running.load(Ordering::Relaxed);
        if !silence.goes_on(clock.calls.load(Ordering::Relaxed), is_running, tick, || cpu_time(thread)) {
            return;
        }
        let handler = clock.handler.load(Ordering::Relaxed);
        let limits = self.limits(handler);
        // Without a limit, or before its time has passed, it cannot have burnt too much.
        let burnt = match exceeds(silence.time, limits.run) {
            true => cpu_time(thread).saturating_sub(silence.cpu),
            false => Duration::ZERO,
        };
        let (what, time) = match () {
            _ if exceeds(burnt, limits.run) => ("ran without a call of the host", burnt),
            _ if exceeds(silence.time, limits.wait) => ("waited outside the calls of the host", silence.time),
            _ => return,
        };
        let conn = clock.conn.load(Ordering::Relaxed);
        self.kill_hung(Pid::from_raw(thread), handler, conn, "its thread", what, time);
    }

    fn limits(&self, handler: u16) -> &CallLimits {
        const NONE: CallLimits = CallLimits { run: Duration::ZERO, wait: Duration::ZERO };
        self.limits.get(usize::from(handler)).unwrap_or(&NONE)
    }

    fn kill_hung(&self, thread: Pid, handler: u16, conn: u64, place: &str, what: &str, time: Duration) {
        let name = self.routes.get(handler).map_or("a handler", |route| &route.name);
        let ms = time.as_millis();
        log::error!("{name}: {place} for connection {conn:x} {what} for {ms} ms; killing the worker");
        traps::kill_hung(thread, conn);
        // The rescue stops this thread too. If the signal is blocked, the next look tries again.
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn exceeds(time: Duration, limit: Duration) -> bool {
    !limit.is_zero() && time >= limit
}

/// Processor time of a thread of this process; zero if it has ended.
fn cpu_time(thread: i32) -> Duration {
    // MAKE_THREAD_CPUCLOCK(tid, CPUCLOCK_SCHED) of the kernel, as pthread_getcpuclockid(3) has it.
    let clock = ClockId::from_raw(!thread << 3 | 0b110);
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

fn clocks() -> MutexGuard<'static, Vec<&'static CallClock>> {
    // A panic while it is held leaves a list that is still whole.
    CLOCKS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn a_call_and_a_return_end_the_silence() {
        let mut silence = Silence::default();
        let mut tick = |calls, is_running| {
            silence.goes_on(calls, is_running, Duration::from_millis(10), Duration::default);
            silence.time.as_millis()
        };
        assert_eq!([tick(7, true), tick(7, true), tick(7, true)], [0, 10, 20]);
        assert_eq!([tick(8, true), tick(8, true)], [0, 10]);
        tick(8, false);
        assert_eq!([tick(8, true), tick(8, true)], [0, 10]);
    }

    #[test]
    fn threads_that_begin_at_once_have_a_clock_each() {
        let barrier = Barrier::new(2);
        let begin = || {
            let clocks = (0..20_000).map(|_| {
                barrier.wait();
                let clock = CallClock::begin(0, 0);
                barrier.wait();
                clock.end();
                std::ptr::from_ref(clock).addr()
            });
            clocks.collect::<Vec<_>>()
        };
        let [one, other] = std::thread::scope(|scope| {
            [scope.spawn(begin), scope.spawn(begin)].map(|thread| thread.join().unwrap())
        });
        assert!(one.iter().zip(&other).all(|(one, other)| one != other));
    }

    #[test]
    fn a_thread_that_burns_has_processor_time_and_one_that_waits_has_little() {
        let spun = std::thread::spawn(|| {
            let thread = gettid().as_raw();
            let before = cpu_time(thread);
            while cpu_time(thread) - before < Duration::from_millis(20) {}
            let burnt = cpu_time(thread);
            std::thread::sleep(Duration::from_millis(100));
            cpu_time(thread) - burnt
        });
        assert!(spun.join().unwrap() < Duration::from_millis(50));
    }
}
