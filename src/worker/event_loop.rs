//! The event loop: waits for sockets, commands, deadlines and the supervisor, and dispatches each.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollTimeout};

use crate::clock;
use crate::ffi::host::{defer_releases, run_releases};
use crate::time::Instant;
use crate::worker::Worker;
use crate::worker::base::poll::{BUS, CONNECTION, HANDLER_FDS, INBOX, LISTENER, RINGS};
use crate::worker::conn::receive;
use crate::worker::crash::{signals, traps};

const EVENTS: usize = 512;
/// Longest wait of the loop: its heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A deadline that is so near is measured from the end of the turn.
const NEAR: Duration = Duration::from_millis(100);
/// Poll interval for connections that are still to arrive while the worker stops.
const ARRIVING: Duration = Duration::from_millis(2);

const WAKEUP: u64 = 0;
const CONTROL: u64 = 1;
const SIGNAL: u64 = 2;

impl Worker {
    pub fn run(&'static self) -> io::Result<()> {
        self.watch_sources()?;
        let mut buffer = receive::Buffer::new();
        let buffer = buffer.bytes();
        let mut events = [EpollEvent::empty(); EVENTS];
        defer_releases();
        loop {
            signals::end_work();
            let count = match self.conns.poll.wait(&mut events, self.poll_timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            let now = clock::now();
            self.conns.life.begin_turn(now);
            self.conns.presence.slot.beat(now);
            self.conns.begin_gathering(count);
            for event in events.iter().take(count) {
                signals::begin_work();
                match event.data() {
                    WAKEUP => self.run_commands(),
                    INBOX => self.transfer.empty_inbox(),
                    BUS => self.link.ready(),
                    CONTROL => {
                        if self.read_control() {
                            self.conns.end_gathering();
                            return Ok(());
                        }
                    }
                    SIGNAL => {
                        while let Ok(Some(_)) = self.signals.read_signal() {
                            self.stop(1001);
                        }
                    }
                    HANDLER_FDS => self.handlers.serve_descriptors(),
                    listener @ LISTENER..CONNECTION => {
                        self.accept_from((listener - LISTENER) as usize, self.acceptor.budget(count, now));
                    }
                    conn => self.socket_ready(conn, event.events(), buffer),
                }
                self.session.settle();
            }
            if self.conns.end_gathering() {
                self.session.settle();
            }
            signals::begin_work();
            self.serve_turns(buffer);
            if self.link.serve() {
                self.session.settle();
            }
            if self.acceptor.renew_poll() {
                self.watch_sources()?;
                self.transfer.intake.rewatch();
                self.link.rewatch();
                self.handlers.tasks.renew()?;
                self.conns.watch_all();
            }
            self.deadlines();
            // Both may send.
            if self.handlers.run_timers() | run_releases() {
                self.session.settle();
            }
            if self.conns.life.are_chores_due() && self.do_chores() {
                self.leave();
                return Ok(());
            }
            self.conns.metrics.count_turn(self.conns.life.turn());
        }
    }

    /// Does what no event triggers: once a heartbeat, at the end of a turn in which it was requested, and when a part
    /// of it is due. Returns whether the worker may leave.
    #[cold]
    fn do_chores(&self) -> bool {
        self.conns.life.begin_chores();
        self.look_for_connections();
        let due = [
            self.transfer.migrate_more(),
            self.close_over_time(),
            self.transfer.serve_waiting(),
            self.transfer.send_detached(),
        ];
        self.cut_late();
        self.conns.trim_memory();
        self.conns.metrics.lane.present().threads.set(self.session.threads.running().into());
        self.session.settle();
        let has_probes = self.handshakes.watch_probes();
        let now = self.conns.now();
        traps::check_signals(now);
        let may_leave = self.may_leave();
        let arriving = self.conns.life.is_stopping() && self.conns.presence.slot.crash.is_sending();
        let stop = self.conns.life.stop.get().map(|stop| stop.next(now));
        let others = [stop, arriving.then(|| now + ARRIVING), self.link.due()];
        let next = due.into_iter().chain(others).flatten().min();
        let more = next.is_some() || has_probes;
        let heartbeat = now + HEARTBEAT;
        self.conns.life.end_chores(next.map_or(heartbeat, |next| next.min(heartbeat)), more);
        may_leave
    }

    fn watch_sources(&self) -> io::Result<()> {
        self.conns.poll.add_for(self.conns.commands.wakeup(), WAKEUP, RINGS)?;
        self.conns.poll.add(self.conns.presence.control, CONTROL)?;
        self.conns.poll.add(&self.signals, SIGNAL)
    }

    /// Time until the next deadline, at most a heartbeat; zero while a connection waits for its turn.
    fn poll_timeout(&self) -> EpollTimeout {
        let next = {
            let core = self.conns.core.borrow();
            if !core.turns.is_empty() || self.link.has_work() {
                return EpollTimeout::ZERO;
            }
            core.timers.next().unwrap_or(Instant::NEVER)
        };
        let next = next.min(self.conns.life.chores_at()).min(self.handlers.tasks.next_timer());
        let mut left = next.since(self.conns.now());
        // The turn has taken time, which counts if the deadline is near.
        if left < NEAR {
            left = next.since(clock::now());
        }
        // In 64 bits: a division of 128 is a call.
        let ms = (left.min(HEARTBEAT).as_nanos() as u64).div_ceil(1_000_000);
        EpollTimeout::try_from(ms as i32).unwrap_or(EpollTimeout::ZERO)
    }
}
