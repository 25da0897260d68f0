//! Messages for many connections at once: each connection's share of the work.

use std::cell::Cell;
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::proto::ws::connection::{Broadcast, Kind, SendError, SharedFrame};
use crate::worker::base::poll::WRITABLE;
use crate::worker::conn::table::Phase;
use crate::worker::connections::sending::counted_of;
use crate::worker::connections::{Conns, Core};

/// What became of a message on one of the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// It is in the send queue or further.
    Sent,
    /// The send queue is above its high mark; on_writable is pending.
    Full,
    /// A message is partly sent, and this one can follow only when that has ended.
    Unfinished,
    /// The connection is closing or gone.
    Gone,
}

/// Bytes of frames that many send queues have: they count once.
#[derive(Default)]
pub struct SharedFrames {
    /// Changed by the frames themselves, as they come and go.
    bytes: Rc<Cell<usize>>,
    counted: Cell<usize>,
}

impl SharedFrames {
    /// What was counted before, and what is counted from now on.
    pub fn count(&self) -> (usize, usize) {
        let bytes = self.bytes.get();
        (self.counted.replace(bytes), bytes)
    }
}

impl Conns {
    /// A message for many connections; text must be UTF-8.
    pub fn broadcast(&self, kind: Kind, payload: &[u8], compress: bool) -> Broadcast {
        Broadcast::new(kind, payload.into(), compress, Rc::clone(&self.shared_frames.bytes))
    }

    /// Sends a message that many connections get. What the socket takes at once is written here; the rest waits in the
    /// send queue, which refers to the same bytes as all others.
    pub fn share(&self, id: u64, message: &mut Broadcast) -> Sharing {
        let core = &mut *self.core.borrow_mut();
        let Some((conn, record)) = core.table.both(id) else { return Sharing::Gone };
        if self.is_full(id, conn, record) {
            return Sharing::Full;
        }
        let now = self.now();
        let Phase::Open(open) = &mut conn.phase else { return Sharing::Gone };
        if open.over {
            return Sharing::Gone;
        }
        let has_context = open.proto.context_bytes().0 > 0;
        let frame = match open.proto.share(message, now, &mut core.codecs) {
            Ok(frame) => frame,
            Err(SendError::WrongKind) => return Sharing::Unfinished,
            Err(_) => return Sharing::Gone,
        };
        let counters = open.counted.counters();
        if let Some(queue) = &mut conn.queue {
            queue.push_shared(frame);
            record.pin();
            if conn.watched & WRITABLE != 0 {
                // It goes out when the socket takes bytes again.
                self.count_queue(id, conn, counted_of(conn));
            } else {
                core.mark_dirty(id);
            }
        } else {
            // Should another thread crash during the write, no Close frame can follow.
            let stands = record.flags();
            record.cut();
            let sent = loop {
                match send(&conn.socket, &frame, SendFlags::NOSIGNAL) {
                    Err(Errno::INTR) => {}
                    sent => break sent.unwrap_or(0), // a socket that fails is found out by the flush
                }
            };
            record.set_flags(stands);
            if sent < frame.len() {
                put_rest(core, id, frame, sent);
            }
        }
        if has_context {
            core.count_context(id, now);
        }
        counters.sent(message.size(), true);
        counters.topics.delivered.add(1);
        self.access_log.sent(id, message.size(), true);
        Sharing::Sent
    }
}

/// The kernel has not taken all of a frame.
#[cold]
fn put_rest(core: &mut Core, id: u64, frame: Rc<SharedFrame>, sent: usize) {
    if let Some((conn, record)) = core.table.both(id) {
        let mut queue = core.queue_pool.take();
        queue.push_rest(frame, sent);
        conn.queue = Some(queue);
        if sent > 0 {
            record.cut();
        }
    }
    core.mark_dirty(id);
}
