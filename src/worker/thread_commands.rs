//! The commands of other threads, carried out by the loop.

use ::ws_handler::raw::*;

use crate::worker::Worker;
use crate::worker::commands::queue::{Counted, ThreadCommand};
use crate::worker::conn::table::Pause;

impl Worker {
    pub fn run_commands(&self) {
        self.conns.batch.borrow_mut().extend(self.conns.commands.take());
        // One by one: a handler that is called meanwhile may take some out.
        while let Some(command) = self.next_command() {
            self.run_command(command);
        }
    }

    fn next_command(&self) -> Option<ThreadCommand> {
        self.conns.batch.borrow_mut().pop_front()
    }

    fn run_command(&self, command: ThreadCommand) {
        match command {
            ThreadCommand::Counted(conn, counted) => {
                self.run_counted(conn, counted);
                self.conns.commands.at(conn).leave();
            }
            ThreadCommand::Verdict(conn) => self.handshakes.finish_handshake(conn),
            ThreadCommand::Detached(conn, state) => self.transfer.thread_detached(conn, &state),
            ThreadCommand::CaughtUp(conn) => self.conns.finish_input(conn),
            ThreadCommand::Room(conn) => {
                self.conns.resume(conn, Pause::ThreadChannel);
                self.conns.arm(conn);
            }
            ThreadCommand::ThreadEnded => {
                self.session.threads.ended();
                self.conns.life.request_chores();
            }
            ThreadCommand::Authenticated(conn, outcome) => {
                if self.handshakes.authenticated(conn, outcome) {
                    self.read_head(conn, b"");
                }
            }
            ThreadCommand::Topics => {} // once in a turn
            ThreadCommand::Posted => self.handlers.run_posted(),
        }
    }

    fn run_counted(&self, id: u64, counted: Counted) {
        match counted {
            Counted::Send { kind, outbound, flags } => self.conns.send_outbound(id, kind, outbound, flags),
            Counted::Ping(payload) => {
                self.conns.take_over(id, &payload);
                self.conns.send_ping(id, &payload, false);
            }
            Counted::Raw(octets) => {
                self.conns.take_over(id, &octets);
                self.conns.send_raw(id, &octets, false);
            }
            Counted::Pause => {
                if let Some(paused) = self.conns.commands.at(id).take_pause() {
                    self.conns.pause_for_handler(id, paused);
                }
            }
            Counted::Post(task) => self.session.run_posted(id, task),
            Counted::Close { code, reason } => self.conns.close(id, code, &reason, WS_BY_HANDLER),
            Counted::Abort => self.conns.abort(id),
            Counted::Topics => self.link.renew(id),
            Counted::State => {
                if let Some(state) = self.conns.channel(id).and_then(|channel| channel.take_state()) {
                    self.conns.edit_record(id, |record| record.set_state(&state));
                }
            }
        }
    }
}
