//! The commands of other threads, carried out by the loop.

use std::collections::VecDeque;

use ::ws_handler::raw::*;

use crate::ffi::host::{Callback, Task};
use crate::proto::ws::connection::Send;
use crate::worker::Worker;
use crate::worker::commands::queue::{Command, Counted, Outbound, cost};
use crate::worker::conn::table::Pause;

impl Worker {
    /// Carries out what other threads want.
    pub fn run_commands(&self) {
        self.batch.borrow_mut().extend(self.commands.take());
        // One by one: a handler that is called meanwhile may take some out.
        while let Some(command) = self.next_command() {
            self.run_command(command);
        }
    }

    fn next_command(&self) -> Option<Command> {
        self.batch.borrow_mut().pop_front()
    }

    /// Carries out what threads have sent on a connection, ahead of the rest.
    pub fn run_sends(&self, id: u64) {
        let taken = self.batch.take().into_iter();
        let (mut sends, rest): (VecDeque<_>, _) = taken.partition(|command| command.is_send_of(id));
        self.batch.replace(rest);
        sends.extend(self.commands.take_sends(id));
        sends.into_iter().for_each(|command| self.run_command(command));
    }

    fn run_command(&self, command: Command) {
        match command {
            Command::Counted(conn, counted) => {
                self.run_counted(conn, counted);
                self.commands.leave(conn);
            }
            Command::Verdict(conn) => self.finish_handshake(conn),
            Command::Detached(conn, state) => self.thread_detached(conn, &state),
            Command::Room(conn) => self.channel_has_room(conn),
            Command::ThreadEnded => self.threads.set(self.threads.get().saturating_sub(1)),
        }
    }

    fn run_counted(&self, id: u64, counted: Counted) {
        match counted {
            Counted::Send { kind, outbound, flags } => self.send_outbound(id, kind, outbound, flags),
            Counted::Ping(payload) => {
                self.take_over(id, cost(&payload));
                self.send_ping(id, &payload, false);
            }
            Counted::Pause => {
                if let Some(paused) = self.commands.take_pause(id) {
                    self.pause_for_handler(id, paused);
                }
            }
            Counted::Post(task) => self.run_posted(id, task),
            Counted::Close { code, reason } => self.close(id, code, &reason, WS_BY_HANDLER),
            Counted::Abort => self.abort(id),
            Counted::State => {
                let channel = self.with_open(id, |_, open| open.channel().cloned()).flatten();
                if let Some(state) = channel.and_then(|channel| channel.take_state()) {
                    self.attach_state(id, &state);
                }
            }
        }
    }

    /// Bytes that were on their way are counted by the send queue from now on. The connection can not move until it is
    /// flushed.
    fn take_over(&self, id: u64, cost: usize) {
        Self::mark_dirty(&mut self.core.borrow_mut(), id);
        self.commands.count_queued(id, cost, 0);
    }

    fn send_outbound(&self, id: u64, kind: u32, outbound: Outbound, flags: u32) {
        self.take_over(id, cost(outbound.bytes()));
        let how = Send { more: flags & WS_MORE != 0, compress: flags & WS_UNCOMPRESSED == 0, trusted: false };
        let trusted = !how.more && kind == WS_TEXT;
        let result = match outbound {
            Outbound::Copied(bytes) => {
                let how = Send { trusted: trusted && self.is_unfragmented(id), ..how };
                self.send_bytes(id, kind, &bytes, how, false)
            }
            Outbound::Owned(bytes) => self.send_owned_bytes(id, kind, bytes, how, false),
        };
        // The thread was told WS_OK: only a fragmented text that turns out not to be UTF-8 comes here.
        if result == WS_E_INVALID {
            log::error!(
                "connection {id:x}: a fragmented text from another thread is not UTF-8; closing with 1011"
            );
            self.close(id, Some(1011), b"", WS_BY_HANDLER);
        }
    }

    fn is_unfragmented(&self, id: u64) -> bool {
        self.with_open(id, |_, open| open.proto.is_movable()).unwrap_or(false)
    }

    /// A blocking thread has taken enough.
    pub fn channel_has_room(&self, id: u64) {
        self.resume(id, Pause::ThreadChannel);
        self.arm(id);
    }

    /// A posted function: called here, or left for the blocking thread; if the connection is gone, called all
    /// the same, so that what it holds can be freed.
    pub fn run_posted(&self, id: u64, task: Task) {
        let known = self.with_open(id, |handler, open| (handler, open.channel().cloned(), open.over));
        match known {
            Some((_, Some(channel), false)) => {
                if let Err(task) = channel.post(task) {
                    task.run(id);
                }
            }
            Some((handler, None, false)) => {
                self.commands.end_post(id);
                self.call_about(handler, Callback::Task, id, || task.run(id));
            }
            _ => task.run(id),
        }
    }

    /// A state that a blocking thread attaches.
    pub fn attach_state(&self, id: u64, state: &[u8]) {
        if let Some(record) = self.core.borrow_mut().table.record(id) {
            record.set_state(state);
            record.seal();
        }
    }
}
