//! The event loop: waits for sockets, commands, deadlines and the supervisor,
//! and hands each to its room.

use std::io;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::ffi::host::{defer_releases, monotonic, run_releases};
use crate::fleet::control;
use crate::fleet::scoreboard::State;
use crate::worker::base::timers::{FOREVER, MS, Timers};
use crate::worker::conn::receive;
use crate::worker::conn::table::{Conn, NEVER, Phase};
use crate::worker::crash::rescue;
use crate::worker::{Core, Worker};

/// Events taken at a time.
const EVENTS: usize = 512;
/// The loop goes around at least so often (ms), which shows that it is alive.
const HEARTBEAT: u64 = 1000;

/// How often (ns) a worker that is to leave looks for connections that are still to arrive.
const ARRIVING: u64 = 2_000_000;

const WAKEUP: u64 = 0;
const CONTROL: u64 = 1;
const SIGNAL: u64 = 2;
/// Of the inbox.
pub const INBOX: u64 = 3;
/// Of the first listening socket; the others follow.
pub const LISTENER: u64 = 1 << 31;
/// Of connections: their ids.
const CONNECTION: u64 = 1 << 32;

/// That a socket has ended is read behind what came before.
const ENDS: EpollFlags = EpollFlags::EPOLLRDHUP.union(EpollFlags::EPOLLHUP).union(EpollFlags::EPOLLERR);

impl Worker {
    /// Turns until the worker is told to leave.
    pub fn run(&'static self) -> io::Result<()> {
        // Blocked since the fork.
        let terminate = SigSet::from(Signal::SIGTERM);
        let signals = SignalFd::with_flags(&terminate, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        self.poll.add_edge(self.commands.wakeup(), WAKEUP)?;
        self.poll.add(&self.control, CONTROL)?;
        self.poll.add(&signals, SIGNAL)?;
        let mut buffer = receive::Buffer::new();
        let buffer = buffer.bytes();
        let mut events = [EpollEvent::empty(); EVENTS];
        defer_releases();
        loop {
            rescue::end_work();
            let count = match self.poll.wait(&mut events, self.poll_timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            self.now.set(monotonic());
            self.slot.heartbeat.store(self.now.get(), Ordering::Relaxed);
            for event in events.iter().take(count) {
                rescue::begin_work();
                match event.data() {
                    WAKEUP => self.run_commands(),
                    INBOX => self.empty_inbox(),
                    CONTROL => {
                        if self.read_control() {
                            return Ok(());
                        }
                    }
                    SIGNAL => {
                        while let Ok(Some(_)) = signals.read_signal() {
                            self.stop(1001);
                        }
                    }
                    listener @ LISTENER..CONNECTION => {
                        self.accept_from((listener - LISTENER) as usize, self.accept_budget(count));
                    }
                    conn => self.socket_ready(conn, event.events(), buffer),
                }
                self.settle();
            }
            rescue::begin_work();
            self.serve_turns(buffer);
            self.poll_listeners();
            self.deadlines();
            self.migrate_more();
            self.send_detached();
            self.settle();
            // Whose bytes are released may send again.
            if run_releases() {
                self.settle();
            }
            self.watch_probes();
            self.metrics.count_turn(self.now.get());
            if self.may_leave() {
                self.leave();
                return Ok(());
            }
        }
    }

    /// How long to wait: to the next deadline, but no longer than a heartbeat, and not at all while somebody waits for
    /// a turn.
    fn poll_timeout(&self) -> EpollTimeout {
        let next = match &*self.core.borrow() {
            Core { turns, .. } if !turns.is_empty() => return EpollTimeout::ZERO,
            core => core.timers.next().unwrap_or(NEVER),
        };
        let next = next.min(self.stop_at.get().unwrap_or(NEVER));
        let arriving = self.stop_at.get().is_some() && self.slot.crash.is_sending();
        let next = if arriving { next.min(self.now.get().saturating_add(ARRIVING)) } else { next };
        let next = next.min(self.next_migration().unwrap_or(NEVER));
        let ms = next.saturating_sub(self.now.get()).div_ceil(1_000_000).min(HEARTBEAT);
        EpollTimeout::try_from(ms as i32).unwrap_or(EpollTimeout::ZERO)
    }

    fn socket_ready(&self, id: u64, events: EpollFlags, buffer: &mut [u8]) {
        if events.contains(EpollFlags::EPOLLOUT) {
            if self.writes_in_turn(id) {
                return;
            }
            self.flush(id);
        }
        if events.contains(EpollFlags::EPOLLIN) {
            if self.readable(id, false, buffer) || events.intersects(ENDS) {
                self.watch_again(id);
            }
        } else if events.intersects(ENDS) && !self.is_waiting(id) {
            self.connection_lost(id);
        }
    }

    /// Does what events have left to do: handlers hear of ends, what was queued is written.
    pub fn settle(&self) {
        loop {
            let (over, dirty) = {
                let core = &mut *self.core.borrow_mut();
                if core.over.is_empty() && core.dirty.is_empty() {
                    return;
                }
                (core.over.pop(), core.dirty.pop())
            };
            if let Some(id) = over {
                self.notify_closed(id);
            }
            if let Some(id) = dirty {
                self.flush(id);
            }
        }
    }

    /// True if the worker is to leave at once.
    fn read_control(&self) -> bool {
        loop {
            match self.control.recv_command() {
                Ok(Some((order, fd))) => match order {
                    control::Command::Stop => self.stop(1001),
                    control::Command::Shed { to, count } => self.rebalance(to.into(), count.into()),
                    control::Command::HandOver { to } => self.migrate(to.into(), fd),
                    control::Command::Drain => self.move_all(None, None),
                    control::Command::Tx { slot } => self.learn_tx(slot.into(), fd),
                    control::Command::Begin => {
                        if let Err(error) = self.begin() {
                            log::error!("can not begin: {error}");
                            return true;
                        }
                    }
                    control::Command::Log(book) => {
                        let fd = fd.ok_or_else(|| io::Error::other("no descriptor came with it"));
                        if let Err(error) = fd.and_then(|fd| crate::log::replace(book, fd)) {
                            log::warn!("the log goes on in the old file: {error}");
                        }
                    }
                    control::Command::List { ticket } => self.list(ticket, fd),
                    control::Command::Close { ticket, conn, code } => self.close_by_order(ticket, conn, code),
                    control::Command::Quit => return true,
                    control::Command::Child { .. } => log::warn!("from the supervisor: not a parent"),
                },
                // The supervisor has vanished: nobody would restart or stop this worker.
                Ok(None) => {
                    if self.stop_at.get().is_none() {
                        log::warn!("the supervisor is gone: leaving");
                    }
                    // Its end stays readable: not watched any more.
                    self.poll.forget(&self.control);
                    self.stop(1001);
                    return false;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => {
                    log::warn!("from the supervisor: {error}");
                    return false;
                }
            }
        }
    }

    /// Begins to leave: closes all connections with this code.
    pub fn stop(&self, code: u16) {
        if self.stop_at.get().is_some() {
            return;
        }
        self.end_migration();
        self.acceptor.close();
        self.slot.set_state(State::Stopping);
        self.stop_at.set(Some(self.now.get().saturating_add(self.config.stop_time)));
        self.empty_inbox();
        let ids = self.core.borrow().table.ids();
        for id in ids {
            let is_open = match self.core.borrow_mut().table.get(id).map(|conn| &conn.phase) {
                Some(Phase::Open(_)) => true,
                Some(Phase::Reply(..) | Phase::Linger(_)) | None => continue,
                Some(Phase::Head(..) | Phase::Opening(..)) => false,
            };
            if is_open {
                self.close(id, Some(code), b"", ::ws_handler::raw::WS_BY_HOST);
            } else {
                self.drop_unopened(id);
            }
        }
    }

    /// Whether all is done, or the time for it is over.
    fn may_leave(&self) -> bool {
        let Some(at) = self.stop_at.get() else { return self.has_migrated() || self.is_done() };
        // Connections of a worker that has crashed are still to be closed.
        let arriving = self.slot.crash.is_sending();
        self.empty_inbox();
        let done = self.core.borrow().table.len() == 0 && self.threads.get() == 0 && !arriving;
        done || self.now.get() >= at
    }

    /// The last thing: handlers hear that the worker stops.
    fn leave(&self) {
        self.end_migration();
        let ids = self.core.borrow().table.ids();
        ids.into_iter().for_each(|id| self.log_close(id, ::ws_handler::raw::WS_BY_HOST, 1006));
        let (connections, threads) = (self.core.borrow().table.len(), self.threads.get());
        if connections > 0 || threads > 0 {
            log::warn!(
                "leaving with {connections} connections and {threads} handler threads that did not end in time"
            );
        }
        if threads == 0 {
            for service in self.services.iter().flatten() {
                service.handler.worker_stop();
            }
        }
    }

    /// Asks the connections whose timers have come up what is due.
    fn deadlines(&self) {
        loop {
            let due = self.core.borrow_mut().timers.due(self.now.get());
            let Some((at, slot)) = due else { return };
            rescue::begin_work();
            if let Some(id) = self.come_up(at, slot) {
                self.on_deadline(id);
                self.arm(id);
            }
        }
    }

    /// The connection that a timer has come up for, unless the entry was stale.
    fn come_up(&self, at: u64, slot: u32) -> Option<u64> {
        let core = &mut *self.core.borrow_mut();
        let id = core.table.id_of(slot)?;
        core.table.get(id).filter(|conn| conn.timer_at == at)?.timer_at = NEVER;
        Some(id)
    }

    /// Sees to it that the connection's next deadline is in the timers.
    pub fn arm(&self, id: u64) {
        let core = &mut *self.core.borrow_mut();
        if let Some(conn) = core.table.get(id) {
            self.arm_conn(id, conn, &mut core.timers);
        }
    }

    /// The same for a connection at hand.
    pub fn arm_conn(&self, id: u64, conn: &mut Conn, timers: &mut Timers) {
        // At least a millisecond ahead: a deadline can not make the loop spin.
        let soon = self.now.get() + 1_000_000;
        let at = conn.next_deadline(&self.config.limits, self.stall_time()).max(soon).div_ceil(MS);
        if at < conn.timer_at.min(FOREVER) {
            conn.timer_at = at;
            timers.enter(at, id as u32);
        }
    }
}
