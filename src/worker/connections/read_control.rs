//! Read control: reading pauses for reasons and resumes when the last one is gone. What epoll watches follows from
//! that.

use crate::worker::base::poll::{ARRIVALS, READABLE, WRITABLE};
use crate::worker::conn::table::{Conn, Pause};
use crate::worker::conn::turn::QUEUED;
use crate::worker::connections::Conns;

impl Conns {
    pub fn pause(&self, id: u64, reason: Pause) {
        let core = &mut *self.core.borrow_mut();
        let Some(conn) = core.table.get(id) else { return };
        conn.set_pause(reason, true, self.now());
        self.watch_conn(id, conn);
    }

    pub fn resume(&self, id: u64, reason: Pause) {
        let core = &mut *self.core.borrow_mut();
        let Some(conn) = core.table.get(id) else { return };
        if conn.set_pause(reason, false, self.now()) {
            self.watch_conn(id, conn);
            self.arm_conn(id, conn, &mut core.timers);
            if conn.has_unread() {
                core.turns.join(id, conn);
            }
        }
    }

    /// A handler wants reading to stop, or to go on. Once a Close frame was sent that of the peer has to be read.
    pub fn pause_for_handler(&self, id: u64, paused: bool) {
        let is_closing = self.with_open(id, |_, open| open.proto.close_sent().is_some());
        match paused && is_closing == Some(false) {
            true => self.pause(id, Pause::Handler),
            false => self.resume(id, Pause::Handler),
        }
    }

    /// Sets bytes aside until the connection's next turn.
    pub fn wait_for_turn(&self, id: u64, rest: &[u8]) {
        let core = &mut *self.core.borrow_mut();
        let Some(conn) = core.table.get(id) else { return };
        if let Some(open) = conn.open().filter(|open| !open.over) {
            open.set_unread(rest.into());
            conn.set_pause(Pause::Slice, true, self.now());
            core.turns.join(id, conn);
        }
    }

    /// Keeps what was read of a request head until more comes: the connection can move with it.
    pub fn keep_head(&self, id: u64, read: Vec<u8>) {
        let core = &mut *self.core.borrow_mut();
        let Some((conn, record, unsent)) = core.table.all(id) else { return };
        let Some(head) = conn.head() else { return };
        head.read = read;
        record.set_head(&head.read);
        record.seal();
        self.settle_record(id, conn, record, unsent);
    }

    /// Whether a connection that can be written to has to wait for its turn.
    pub fn writes_in_turn(&self, id: u64) -> bool {
        let core = &mut *self.core.borrow_mut();
        let Some(conn) = core.table.get(id) else { return false };
        let waits = !conn.turn.is_at_once() || conn.queued() > QUEUED;
        if waits {
            core.turns.join(id, conn);
            self.watch_conn(id, conn);
        }
        waits
    }

    pub fn is_waiting(&self, id: u64) -> bool {
        self.core.borrow_mut().table.get(id).is_some_and(|conn| conn.turn.is_waiting())
    }

    /// Has epoll watch all connections, after it has forgotten them.
    pub fn watch_all(&self) {
        for id in self.ids() {
            if let Some(conn) = self.core.borrow_mut().table.get(id)
                && let Err(error) = self.poll.add_for(&conn.socket, id, conn.watched)
            {
                log::error!("connection {id:x}: cannot watch the socket: {error}");
            }
        }
    }

    pub fn watch(&self, id: u64) {
        if let Some(conn) = self.core.borrow_mut().table.get(id) {
            self.watch_conn(id, conn);
        }
    }

    #[inline]
    pub fn watch_conn(&self, id: u64, conn: &mut Conn) {
        let wanted = wanted(conn);
        if wanted != conn.watched {
            self.watch_for(id, conn, wanted);
        }
    }

    /// There may be more to read than was read: re-arms an edge-triggered watch.
    #[inline(never)]
    pub fn watch_again(&self, id: u64) {
        match self.core.borrow_mut().table.get(id) {
            Some(conn) if conn.watched & ARRIVALS != 0 => self.watch_for(id, conn, wanted(conn)),
            _ => {}
        }
    }

    #[inline(never)]
    pub fn watch_for(&self, id: u64, conn: &mut Conn, wanted: u8) {
        conn.watched = wanted;
        if let Err(error) = self.poll.watch(&conn.socket, id, wanted) {
            log::error!("connection {id:x}: cannot watch the socket: {error}");
        }
    }
}

#[inline]
fn wanted(conn: &Conn) -> u8 {
    if conn.turn.is_unwatched() {
        return 0;
    }
    match (!conn.is_paused(), conn.queued() > 0) {
        (true, false) if conn.turn.is_at_once() && conn.is_drained_by_short_reads => ARRIVALS,
        (true, false) => READABLE,
        (true, true) => READABLE | WRITABLE,
        (false, true) => WRITABLE,
        (false, false) => 0,
    }
}
