//! What other threads want of the event loop, carried out there.

use ::ws_handler::raw::*;

use crate::ffi::host::{Callback, Task};
use crate::proto::ws::connection::Send;
use crate::worker::Worker;
use crate::worker::commands::queue::{Command, Outbound, cost};
use crate::worker::conn::table::Pause;

impl Worker {
    /// Carries out what other threads want.
    pub fn run_commands(&self) {
        for command in self.commands.take() {
            match command {
                Command::Verdict(conn) => self.finish_handshake(conn),
                Command::Send { conn, kind, outbound, flags } => {
                    self.send_outbound(conn, kind, outbound, flags)
                }
                Command::Ping(conn, payload) => self.send_ping_for_thread(conn, &payload),
                Command::Pause(conn, paused) => {
                    self.pause_for_handler(conn, paused);
                    self.commands.completed(conn);
                }
                Command::Post(conn, task) => self.run_posted(conn, task),
                Command::Close { conn, code, reason } => {
                    self.close(conn, code, &reason, WS_BY_HANDLER);
                    self.commands.completed(conn);
                }
                Command::Abort(conn) => self.abort(conn),
                Command::State(conn, state) => {
                    self.attach_state(conn, &state);
                    self.commands.completed(conn);
                }
                Command::Detached(conn, state) => self.thread_detached(conn, &state),
                Command::Room(conn) => self.channel_has_room(conn),
                Command::ThreadEnded => self.threads.set(self.threads.get().saturating_sub(1)),
            }
        }
    }

    /// What another thread sends.
    pub fn send_outbound(&self, id: u64, kind: u32, outbound: Outbound, flags: u32) {
        // From the count of what is on its way to the list of those that can not move, without a gap.
        Self::mark_dirty(&mut self.core.borrow_mut(), id);
        self.commands.count_queued(id, cost(outbound.bytes()), 0);
        let how = Send { more: flags & WS_MORE != 0, compress: flags & WS_UNCOMPRESSED == 0, trusted: false };
        let trusted = !how.more && kind == WS_TEXT;
        let result = match outbound {
            Outbound::Copied(bytes) => {
                let how = Send { trusted: trusted && self.is_unfragmented(id), ..how };
                self.send_bytes(id, kind, &bytes, how, false)
            }
            Outbound::Owned(bytes) => self.send_owned_bytes(id, kind, bytes, how, false),
        };
        // The thread was told that all is well: only a fragmented text that proves wrong comes here.
        if result == WS_E_INVALID {
            log::error!(
                "connection {id:x}: a fragmented text from another thread was not UTF-8; closed with 1011"
            );
            self.close(id, Some(1011), b"", WS_BY_HANDLER);
        }
    }

    fn is_unfragmented(&self, id: u64) -> bool {
        self.with_open(id, |_, open| open.proto.is_movable()).unwrap_or(false)
    }

    /// A Ping from another thread.
    pub fn send_ping_for_thread(&self, id: u64, payload: &[u8]) {
        Self::mark_dirty(&mut self.core.borrow_mut(), id);
        self.commands.count_queued(id, cost(payload), 0);
        self.send_ping(id, payload, false);
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
                self.commands.uncount_post(id);
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
