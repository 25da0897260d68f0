//! What handlers have in a worker beside connections: timers, posted functions, watched descriptors. Calls nobody: what
//! is due is taken by `handlers`, which does.
//!
//! All of it belongs to the process. It may be made while handlers are loaded, before there is an event loop; a process
//! that was forked since has it too.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use ::ws_handler::raw::*;

use crate::clock;
use crate::ffi::host::{EventLoop, Ready, Task, Worker};
use crate::time::Instant;
use crate::worker::base::poll::{HANDLER_FDS, Poll};
use crate::worker::base::watch_set::{ReadyFd, WatchSet};
use crate::worker::commands::queue::{CommandQueue, ThreadCommand};
use crate::worker::conn::handler_timers::HandlerTimers;

const MOST_TIMERS: usize = 256;
const MOST_WATCHED: usize = 256;
/// Functions of one handler that wait.
const MOST_POSTS: usize = 1024;

/// Posted functions, and what else any thread may ask.
pub struct Posts {
    names: Vec<String>,
    workers: u32,
    /// Handler and function, in order; at most [`MOST_POSTS`] of each handler. `None` once the worker stops.
    waiting: Mutex<Option<VecDeque<(u16, Task)>>>,
    /// Index plus 1 of the handler that the event loop has called about no connection; 0: none.
    called: AtomicU32,
    /// Wakes the event loop, once there is one.
    commands: OnceLock<&'static CommandQueue>,
}

impl Posts {
    /// For handlers of these names, in a pool of so many workers.
    pub fn new(names: Vec<String>, workers: u32) -> Self {
        let waiting = Mutex::new(Some(VecDeque::new()));
        Posts { names, workers, waiting, called: AtomicU32::new(0), commands: OnceLock::new() }
    }

    /// There is an event loop now.
    pub fn begin(&self, commands: &'static CommandQueue) {
        let _ = self.commands.set(commands);
        if self.lock().as_ref().is_some_and(|waiting| !waiting.is_empty()) {
            commands.give(ThreadCommand::Posted);
        }
    }

    pub fn take(&self) -> VecDeque<(u16, Task)> {
        self.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The same for the last time: others are refused from now on.
    pub fn close(&self) -> VecDeque<(u16, Task)> {
        self.lock().take().unwrap_or_default()
    }

    /// The event loop calls this handler, or none, about no connection.
    pub fn set_called(&self, handler: Option<u16>) {
        self.called.store(handler.map_or(0, |handler| u32::from(handler) + 1), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Option<VecDeque<(u16, Task)>>> {
        // A panic elsewhere leaves the queue whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker for Posts {
    fn post(&self, handler: u16, task: Task) -> i32 {
        {
            let mut waiting = self.lock();
            let Some(waiting) = &mut *waiting else { return WS_E_GONE };
            if waiting.iter().filter(|(other, _)| *other == handler).count() >= MOST_POSTS {
                return WS_E_LIMIT;
            }
            waiting.push_back((handler, task));
        }
        if let Some(commands) = self.commands.get() {
            commands.give(ThreadCommand::Posted);
        }
        WS_OK
    }

    fn workers(&self) -> u32 {
        self.workers
    }

    fn handler_name(&self, conn: ws_conn) -> String {
        let called = || u16::try_from(self.called.load(Ordering::Relaxed).checked_sub(1)?).ok();
        let handler = match conn {
            0 => called(),
            _ => self.commands.get().map(|commands| commands.handler_named(conn)),
        };
        let name = handler.and_then(|handler| self.names.get(usize::from(handler)));
        name.map_or("a handler", String::as_str).to_owned()
    }
}

struct Watched {
    handler: u16,
    events: u32,
    ready: Ready,
    /// Tells events of this one from those of an earlier one of that number.
    serial: u32,
}

/// Timers and descriptors, on the thread of the event loop.
pub struct LoopTasks {
    timers: RefCell<BTreeMap<u16, HandlerTimers>>,
    next: Cell<Instant>,
    /// By descriptor; at most [`MOST_WATCHED`] of each handler.
    watched: RefCell<BTreeMap<RawFd, Watched>>,
    /// What they are watched with, once there were any. The loop watches it as one descriptor.
    set: RefCell<Option<WatchSet>>,
    poll: Cell<Option<&'static Poll>>,
    serials: Cell<u32>,
}

impl LoopTasks {
    pub fn new() -> Self {
        LoopTasks {
            timers: RefCell::default(),
            next: Cell::new(Instant::NEVER),
            watched: RefCell::default(),
            set: RefCell::default(),
            poll: Cell::new(None),
            serials: Cell::new(0),
        }
    }

    /// This is the process, and the poll of its loop. A set from before a fork is another process's, too.
    pub fn begin(&self, poll: &'static Poll) -> io::Result<()> {
        self.poll.set(Some(poll));
        self.renew()
    }

    /// Watches all of them anew.
    pub fn renew(&self) -> io::Result<()> {
        self.set.take();
        let watched = self.watched.borrow();
        if watched.is_empty() {
            return Ok(());
        }
        let set = self.new_set()?;
        for (fd, watched) in watched.iter() {
            // One that was closed is not there any more.
            let _ = set.set(*fd, watched.serial, watched.events);
        }
        self.set.replace(Some(set));
        Ok(())
    }

    fn new_set(&self) -> io::Result<WatchSet> {
        let set = WatchSet::new()?;
        if let Some(poll) = self.poll.get() {
            poll.add(&set, HANDLER_FDS)?;
        }
        Ok(set)
    }

    #[inline]
    pub fn next_timer(&self) -> Instant {
        self.next.get()
    }

    /// Takes a timer that has expired: its handler, and what to call.
    pub fn pop_timer(&self, now: Instant) -> Option<(u16, Task)> {
        let mut timers = self.timers.borrow_mut();
        let due = timers.iter_mut().min_by_key(|(_, timers)| timers.next());
        let popped = due.and_then(|(handler, timers)| Some((*handler, timers.pop(now)?)));
        self.next.set(next_of(&timers));
        popped
    }

    pub fn ready(&self) -> Vec<ReadyFd> {
        let ready = self.set.borrow().as_ref().map(WatchSet::ready).unwrap_or_default();
        // Closed while it was watched, and open in another process: epoll would report it for good.
        if ready.iter().any(|ready| self.watcher(*ready).is_none())
            && let Err(error) = self.renew()
        {
            log::error!("cannot watch the descriptors of handlers: {error}");
        }
        ready
    }

    /// Whom a ready descriptor is for; `None` if it is not watched any more.
    pub fn watcher(&self, ready: ReadyFd) -> Option<(u16, Ready)> {
        let watched = self.watched.borrow();
        let found = watched.get(&ready.fd).filter(|watched| watched.serial == ready.serial);
        found.map(|watched| (watched.handler, watched.ready))
    }
}

fn next_of(timers: &BTreeMap<u16, HandlerTimers>) -> Instant {
    timers.values().map(HandlerTimers::next).min().unwrap_or(Instant::NEVER)
}

impl EventLoop for LoopTasks {
    fn set_timer(&self, handler: u16, delay_ms: u64, period_ms: u64, task: Task) -> i64 {
        let mut timers = self.timers.borrow_mut();
        let own = timers.entry(handler).or_default();
        let made = own.set(MOST_TIMERS, clock::now(), delay_ms, period_ms, task);
        self.next.set(next_of(&timers));
        made
    }

    fn clear_timer(&self, handler: u16, timer: i64) -> i32 {
        let mut timers = self.timers.borrow_mut();
        let cleared = timers.get_mut(&handler).map_or(WS_E_INVALID, |own| own.clear(timer));
        self.next.set(next_of(&timers));
        cleared
    }

    fn watch(&self, handler: u16, fd: RawFd, events: u32, ready: Ready) -> i32 {
        let mut all = self.watched.borrow_mut();
        match all.get(&fd) {
            Some(known) if known.handler != handler => return WS_E_INVALID,
            None if all.values().filter(|known| known.handler == handler).count() >= MOST_WATCHED => {
                return WS_E_LIMIT;
            }
            _ => {}
        }
        let serial = self.serials.get().wrapping_add(1);
        self.serials.set(serial);
        let mut set = self.set.borrow_mut();
        if set.is_none() {
            *set = self.new_set().ok();
        }
        match set.as_ref().map(|set| set.set(fd, serial, events)) {
            Some(Ok(())) => {
                all.insert(fd, Watched { handler, events, ready, serial });
                WS_OK
            }
            _ => WS_E_INVALID,
        }
    }

    fn unwatch(&self, handler: u16, fd: RawFd) -> i32 {
        let mut all = self.watched.borrow_mut();
        if all.get(&fd).is_none_or(|known| known.handler != handler) {
            return WS_E_INVALID;
        }
        all.remove(&fd);
        if let Some(set) = self.set.borrow().as_ref() {
            // If it was closed before: see `ready`.
            set.remove(fd);
        }
        WS_OK
    }
}
