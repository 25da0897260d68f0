//! Commands of the supervisor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use ::ws_handler::raw::WS_BY_HOST;

use crate::ffi::host::run_releases;
use crate::fleet::memory::bulletin::Readiness;
use crate::fleet::memory::scoreboard::{Slot, State};
use crate::fleet::sockets::control::{Command, Report};
use crate::proto::ws::close;
use crate::time::Instant;
use crate::worker::Worker;
use crate::worker::base::lifecycle::Stop;
use crate::worker::conn::table::Phase;
use crate::worker::connections::listing;

impl Worker {
    /// Runs all commands that have arrived. True if the worker is to leave at once.
    pub fn read_control(&self) -> bool {
        let leaves = self.run_control();
        self.descriptors.refill();
        leaves
    }

    fn run_control(&self) -> bool {
        loop {
            // A descriptor may come with it.
            self.descriptors.make_room_for_command();
            match self.conns.presence.control.recv_command() {
                Ok(Some((command, fd))) => match command {
                    Command::Stop => self.stop(match self.conns.presence.scoreboard.bulletin().readiness() {
                        Readiness::Closing { code, .. } => code,
                        _ => close::GOING_AWAY,
                    }),
                    Command::Rebalance { to, count } => self.transfer.rebalance(to.into(), count.into()),
                    Command::Migrate { to } => self.migrate(to.into(), fd),
                    Command::Drain => self.move_all(None, None),
                    Command::Tx { slot } => self.transfer.learn_tx(slot.into(), fd),
                    Command::TakeUp => match fd {
                        Some(fd) => self.transfer.empty(fd.as_fd()),
                        None => log::warn!("cannot adopt connections: no inbox came with the command"),
                    },
                    Command::Begin => {
                        if let Err(error) = self.begin() {
                            log::error!("cannot start serving: {error}");
                            return true;
                        }
                    }
                    Command::List { ticket } => {
                        self.conns.presence.report(listing::list(self.conns, ticket, fd))
                    }
                    Command::CloseAll { ticket, code } => {
                        let ids = listing::matching(self.conns, fd);
                        let count = ids.into_iter().filter(|id| self.begin_close(*id, code)).count() as u64;
                        self.conns.presence.report(Report::ClosingAll { ticket, count });
                    }
                    Command::Close { ticket, conn, code } => {
                        let begun = self.begin_close(conn, code);
                        self.conns.presence.report(Report::Closing { ticket, begun });
                    }
                    Command::Record { handler, longest, begun } => match fd {
                        Some(socket) => self.conns.recorder.start(handler, longest, begun, socket),
                        None => self.conns.recorder.stop(),
                    },
                    Command::Quit => return true,
                    Command::Child { .. } => {
                        log::warn!("the supervisor asked for a fork, but this is not a zygote; ignored")
                    }
                    Command::Log(_) | Command::LogLevel(_) | Command::Ping => {} // the channel sees to them
                    Command::Publish { .. } => {
                        log::warn!("the supervisor asked to publish, but this is not the bus; ignored")
                    }
                },
                // The supervisor has died: nobody would restart or stop this worker.
                Ok(None) => {
                    if !self.conns.life.is_stopping() {
                        log::warn!("the supervisor has died; stopping");
                    }
                    // The closed channel stays readable: stop watching it.
                    self.conns.poll.forget(self.conns.presence.control);
                    self.stop(1001);
                    return false;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => {
                    log::warn!("cannot read a command of the supervisor: {error}");
                    return false;
                }
            }
        }
    }

    /// Begins to hand all connections over to another slot, or to the inbox with this end, and to leave.
    fn migrate(&self, to: usize, tx: Option<OwnedFd>) {
        match self.transfer.target(to, tx) {
            Some((tx, slot)) => self.move_all(Some(tx), slot),
            // The limit of descriptors may be so low that none can come with a command. Others wait for it to leave.
            None => {
                log::error!(
                    "the inbox of slot {to}, to which connections were to move, is not known; closing them"
                );
                self.move_all(None, None);
            }
        }
    }

    /// Begins to leave: connections go to this inbox; those that cannot are closed in the time that their handlers
    /// have.
    fn move_all(&self, tx: Option<Rc<OwnedFd>>, to: Option<Slot>) {
        if self.conns.life.is_stopping() {
            return;
        }
        if self.transfer.is_leaving() {
            return self.transfer.redirect(tx, to);
        }
        // Accepted connections move too.
        self.stop_accepting();
        self.conns.presence.slot.set_state(State::Stopping);
        self.conns.presence.report(Report::Leaving);
        self.transfer.begin_leaving(tx, to);
    }

    /// Begins to close a connection; whether it exists.
    fn begin_close(&self, conn: u64, code: u16) -> bool {
        let is_open = match self.conns.core.borrow_mut().table.get(conn).map(|conn| &conn.phase) {
            Some(Phase::Open(open)) if !open.is_closing() && !open.over && close::may_travel(code) => true,
            Some(Phase::Head(..) | Phase::Opening(..) | Phase::Reply(..)) => false,
            _ => return false,
        };
        if is_open {
            self.conns.close(conn, Some(code), b"", WS_BY_HOST);
        } else {
            self.handshakes.drop_unopened(conn);
        }
        true
    }

    /// Begins to stop: closes all connections with this code.
    pub fn stop(&self, code: u16) {
        if self.conns.life.is_stopping() {
            return;
        }
        self.transfer.end_migration();
        self.acceptor.close();
        self.conns.presence.slot.set_state(State::Stopping);
        // A handler may have kept this worker from reading the command; the time of the server does not wait.
        let until = match self.conns.presence.scoreboard.bulletin().readiness() {
            Readiness::Closing { until, .. } => until,
            _ => Instant::NEVER,
        };
        let now = self.conns.now();
        let leave_at = (now + self.conns.config.stop_timeout).min(until);
        self.conns.life.stop.set(Some(Stop::new(now, leave_at)));
        self.conns.life.request_chores();
        self.transfer.empty_inbox();
        // What threads were told WS_OK for goes out before the Close frames.
        self.run_commands();
        let ids = self.conns.ids();
        for id in ids {
            let is_open = match self.conns.core.borrow_mut().table.get(id).map(|conn| &conn.phase) {
                Some(Phase::Open(_)) => true,
                Some(Phase::Reply(..) | Phase::Linger(_)) | None => continue,
                Some(Phase::Head(..) | Phase::Opening(..)) => false,
            };
            if is_open {
                self.conns.close_after_messages(id, code);
            } else {
                self.handshakes.drop_unopened(id);
            }
        }
    }

    /// In a stop: ends the connections whose peers have had the time to answer.
    pub fn cut_late(&self) {
        if self.conns.life.stop.get().is_some_and(|stop| self.conns.now() >= stop.cut_at) {
            self.cut_connections();
        }
    }

    fn cut_connections(&self) {
        for id in self.conns.ids() {
            if self.conns.with_open(id, |_, _| ()).is_some() {
                self.conns.end(id, WS_BY_HOST, 1006);
            }
        }
    }

    /// Whether everything is done, or the stop timeout has expired.
    pub fn may_leave(&self) -> bool {
        let is_empty = || self.conns.len() == 0 && self.session.threads.running() == 0;
        let Some(stop) = self.conns.life.stop.get() else {
            // The one connection of a per-connection process may have come and gone.
            return self.transfer.has_migrated() || self.conns.presence.is_taken() && is_empty();
        };
        // Connections of a crashed worker may still arrive and have to be closed.
        let arriving = self.conns.presence.slot.crash.is_sending();
        self.transfer.empty_inbox();
        is_empty() && !arriving || self.conns.now() >= stop.leave_at
    }

    /// Calls on_close of connections that are left, and on_worker_stop of all handlers.
    pub fn leave(&self) {
        self.transfer.end_migration();
        self.cut_connections();
        let (connections, threads) = (self.conns.len(), self.session.threads.running());
        if connections > 0 || threads > 0 {
            log::warn!(
                "leaving with {connections} connections and {threads} handler threads that did not end in time"
            );
        }
        // Of connections that have ended in this turn: on_close, and what is released.
        self.run_commands();
        self.session.settle();
        run_releases();
        if threads == 0 {
            self.handlers.stop();
        }
        self.link.finish();
    }
}
