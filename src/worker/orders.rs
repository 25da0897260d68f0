//! What other threads want of the event loop, carried out there.

use ::ws_handler::raw::*;

use super::Worker;
use super::conn::Pause;
use super::mailroom::{Command, Parcel, cost};
use crate::ffi::host::{Callback, Task};
use crate::proto::connection::Send;

impl Worker {
    /// Carries out what other threads want.
    pub fn obey(&self) {
        for command in self.mailroom.take() {
            match command {
                Command::Verdict(conn) => self.conclude(conn),
                Command::Send { conn, kind, parcel, flags } => self.send_parcel(conn, kind, parcel, flags),
                Command::Ping(conn, payload) => self.send_ping_for_thread(conn, &payload),
                Command::Pause(conn, paused) => {
                    self.pause_for_handler(conn, paused);
                    self.mailroom.obeyed(conn);
                }
                Command::Post(conn, task) => self.run_posted(conn, task),
                Command::Close { conn, code, reason } => {
                    self.close(conn, code, &reason, WS_BY_HANDLER);
                    self.mailroom.obeyed(conn);
                }
                Command::Abort(conn) => self.abort(conn),
                Command::State(conn, state) => {
                    self.attach_state(conn, &state);
                    self.mailroom.obeyed(conn);
                }
                Command::LetGo(conn, state) => self.was_let_go(conn, &state),
                Command::Room(conn) => self.mailbox_has_room(conn),
                Command::ThreadEnded => self.threads.set(self.threads.get().saturating_sub(1)),
            }
        }
    }

    /// What another thread sends.
    pub fn send_parcel(&self, id: u64, kind: u32, parcel: Parcel, flags: u32) {
        // From the count of what is on its way to the list of those that can not move, without a gap.
        Self::mark_dirty(&mut self.core.borrow_mut(), id);
        self.mailroom.count_queued(id, cost(parcel.bytes()), 0);
        let how = Send { more: flags & WS_MORE != 0, compress: flags & WS_UNCOMPRESSED == 0, trusted: false };
        let trusted = !how.more && kind == WS_TEXT;
        let result = match parcel {
            Parcel::Copied(bytes) => {
                let how = Send { trusted: trusted && self.is_unfragmented(id), ..how };
                self.send_bytes(id, kind, &bytes, how, false)
            }
            Parcel::Owned(bytes) => self.send_owned_bytes(id, kind, bytes, how, false),
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
        self.mailroom.count_queued(id, cost(payload), 0);
        self.send_ping(id, payload, false);
    }

    /// A blocking thread has taken enough.
    pub fn mailbox_has_room(&self, id: u64) {
        self.resume(id, Pause::Mailbox);
        self.arm(id);
    }

    /// A posted function: called here, or left for the blocking thread; if the connection is gone, called all
    /// the same, so that what it holds can be freed.
    pub fn run_posted(&self, id: u64, task: Task) {
        let known = self.with_open(id, |handler, open| (handler, open.mailbox().cloned(), open.over));
        match known {
            Some((_, Some(mailbox), false)) => {
                if let Err(task) = mailbox.post(task) {
                    task.run(id);
                }
            }
            Some((handler, None, false)) => {
                self.mailroom.uncount_post(id);
                self.attributed(handler, Callback::Task, id, || task.run(id));
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
