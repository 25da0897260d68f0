//! Dispatches events: a readable or writable socket, a connection's turn, a deadline, a command of another thread. The
//! room in charge does the rest.

use ::ws_handler::raw::{WS_BY_HANDLER, WS_BY_PEER};
use nix::sys::epoll::EpollFlags;
use rustix::io::Errno;

use crate::clock;
use crate::worker::Worker;
use crate::worker::commands::queue::{Counted, ThreadCommand};
use crate::worker::conn::receive;
use crate::worker::conn::record::flags;
use crate::worker::conn::table::{Conn, Pause, Phase};
use crate::worker::conn::turn::{MOST, READS, UNTIMED, rest};
use crate::worker::connections::turn_queue::{MOST_SHARE, SHARE};
use crate::worker::crash::signals;

/// Frames with at least this many bytes left are received directly into the message buffer.
const LARGE: usize = 16 * 1024;
/// The end of a stream, which is read behind the data before it, as is what stands behind urgent data.
const ENDS: EpollFlags = EpollFlags::EPOLLRDHUP.union(EpollFlags::EPOLLHUP).union(EpollFlags::EPOLLERR);

impl Worker {
    pub fn socket_ready(&self, id: u64, events: EpollFlags, buffer: &mut [u8]) {
        if events.contains(EpollFlags::EPOLLOUT) {
            if self.conns.writes_in_turn(id) {
                return;
            }
            self.conns.flush(id);
        }
        if events.contains(EpollFlags::EPOLLIN) {
            if self.readable(id, false, buffer) || events.intersects(ENDS.union(EpollFlags::EPOLLPRI)) {
                self.conns.watch_again(id);
            }
        } else if events.intersects(ENDS) && !self.conns.is_waiting(id) {
            self.connection_lost(id);
        }
    }

    /// Reads from a connection that is readable, or whose turn it is. `buffer` ends in one spare byte. Returns whether
    /// more may be there: the read was full, or interrupted.
    #[inline(always)]
    fn readable(&self, id: u64, in_turn: bool, buffer: &mut [u8]) -> bool {
        #[derive(Clone, Copy)]
        enum AfterRead {
            Head,
            Messages,
            Gathered,
            Nothing,
            ReplyStill,
        }
        let (received, asked, next, at_once, room) = {
            let core = &mut *self.conns.core.borrow_mut();
            let Some((conn, record)) = core.table.both(id) else { return false };
            let at_once = conn.turn.is_at_once();
            let Some(room) = core.turns.room_for(id, conn, in_turn) else {
                self.conns.watch_conn(id, conn);
                return false;
            };
            let next = match &conn.phase {
                Phase::Head(..) => AfterRead::Head,
                Phase::Open(_) => AfterRead::Messages,
                // Read and dropped, so that closing does not reset the connection before the peer has read the
                // last bytes.
                Phase::Opening(..) | Phase::Linger(_) => AfterRead::Nothing,
                Phase::Reply(..) => AfterRead::ReplyStill,
            };
            let share = || conn.open().map(|open| open.share()).unwrap_or_default();
            if core.receive_budget.has_to_wait(id, share) {
                conn.set_pause(Pause::Memory, true, self.conns.now());
                self.conns.watch_conn(id, conn);
            }
            if conn.is_paused() {
                return false;
            }
            // The connection cannot move until everything read now is processed.
            record.set_flags(record.flags() & !(flags::MOVABLE | flags::UNSENT | flags::FRESH));
            let intake = match &mut conn.phase {
                Phase::Open(open) if !at_once && !open.over => open.proto.intake(LARGE),
                _ => None,
            };
            match intake {
                Some((gathered, most)) => {
                    let asked = most.min(room);
                    (
                        receive::append(&conn.socket, gathered, asked),
                        asked,
                        AfterRead::Gathered,
                        at_once,
                        room,
                    )
                }
                None => {
                    let room = room.min(core.receive_budget.room());
                    (receive::receive(&conn.socket, &mut buffer[..room]), room, next, at_once, room)
                }
            }
        };
        match (received, next) {
            // A half-close after the request: the peer still expects the reply.
            (Ok(0), AfterRead::ReplyStill) => self.conns.pause(id, Pause::Ended),
            (Ok(0), _) => {
                if !self.conns.input_ended(id) {
                    self.handshakes.drop_unopened(id);
                }
            }
            (Ok(count), AfterRead::Head) => self.read_head(id, &buffer[..count]),
            (Ok(count), AfterRead::Messages) if count <= UNTIMED && at_once => {
                self.session.process(id, buffer, count, None)
            }
            (Ok(count), AfterRead::Messages | AfterRead::Gathered) => {
                let (begun, before) = (clock::now(), self.conns.delivered(id));
                match next {
                    AfterRead::Gathered => self.session.process_gathered(id, buffer, count),
                    _ => self.session.process(id, buffer, count, None),
                }
                let took = clock::now().since(begun);
                let delivered = self.conns.delivered(id).saturating_sub(before);
                if let Some(conn) = self.conns.core.borrow_mut().table.get(id) {
                    conn.turn.update(room, count, delivered, took);
                }
            }
            (Ok(_), AfterRead::Nothing | AfterRead::ReplyStill) => {}
            // Nothing to read: restore the record flags.
            (Err(Errno::AGAIN | Errno::INTR), _) => self.conns.flush(id),
            (Err(_), _) => self.connection_lost(id),
        }
        received == Ok(asked) || received == Err(Errno::INTR)
    }

    fn connection_lost(&self, id: u64) {
        match self.conns.with_open(id, |_, _| ()) {
            Some(()) => self.conns.end(id, WS_BY_PEER, 1006),
            None => self.handshakes.drop_unopened(id),
        }
    }

    /// Serves waiting connections: at least one, and more while time is left. Those that join meanwhile wait for the
    /// next turn of the loop.
    pub fn serve_turns(&self, buffer: &mut [u8]) {
        let waiting = self.conns.core.borrow().turns.len();
        if waiting == 0 {
            return;
        }
        let begun = clock::now();
        let until = begun + begun.since(self.conns.now()).clamp(SHARE, MOST_SHARE);
        for _ in 0..waiting {
            let Some(id) = self.conns.core.borrow_mut().turns.pop() else { return };
            signals::begin_work();
            self.serve_turn(id, buffer);
            self.session.settle();
            if clock::now() >= until {
                return;
            }
        }
    }

    /// Not inlined: keeps the path of connections that are served at once short.
    #[inline(never)]
    fn read_in_turn(&self, id: u64, buffer: &mut [u8]) -> bool {
        self.readable(id, true, buffer)
    }

    fn serve_turn(&self, id: u64, buffer: &mut [u8]) {
        let is_queued = match self.conns.core.borrow_mut().table.get(id) {
            Some(conn) => {
                conn.turn.begin();
                conn.queued() > 0
            }
            // Closed or moved since.
            None => return,
        };
        if is_queued {
            self.conns.flush(id);
        }
        if !self.session.process_unread(id, buffer) {
            let rest = || self.conns.with_open(id, |_, open| rest(open.proto.to_come(), MOST)).flatten();
            for _ in 0..=READS {
                if !self.read_in_turn(id, buffer) || rest().is_none() {
                    break;
                }
            }
        }
        self.conns.watch(id);
    }

    pub fn deadlines(&self) {
        loop {
            let due = self.conns.core.borrow_mut().timers.due(self.conns.now());
            let Some((at, slot)) = due else { return };
            signals::begin_work();
            if let Some(id) = self.conns.come_up(at, slot) {
                self.on_deadline(id);
                self.conns.arm(id);
                self.session.settle();
            }
        }
    }

    pub fn read_head(&self, id: u64, bytes: &[u8]) {
        if let Some((elsewhere, read)) = self.handshakes.read_head(id, bytes) {
            self.transfer.forward_request(id, &elsewhere, &read);
        }
    }

    fn on_deadline(&self, id: u64) {
        let is_open = |conn: &mut Conn| conn.open().is_some();
        let known = self.conns.core.borrow_mut().table.get(id).map(|conn| (is_open(conn), conn.deadline()));
        match known {
            Some((true, _)) => self.session.on_deadline(id),
            Some((false, by)) if by <= self.conns.now() => self.handshakes.timed_out(id),
            _ => {}
        }
    }

    /// Runs what other threads have asked for.
    pub fn run_commands(&self) {
        self.conns.batch.borrow_mut().extend(self.conns.commands.take());
        loop {
            // One by one: a handler that is called meanwhile may take some out.
            let next = self.conns.batch.borrow_mut().pop_front();
            let Some(command) = next else { return };
            self.run_command(command);
        }
    }

    fn run_command(&self, command: ThreadCommand) {
        match command {
            ThreadCommand::Counted(conn, counted) => {
                self.run_counted(conn, counted);
                self.conns.commands.at(conn).leave();
            }
            ThreadCommand::HandshakeEnded(conn) => self.handshakes.finish_handshake(conn),
            ThreadCommand::Detached(conn, state) => self.transfer.thread_detached(conn, &state),
            ThreadCommand::CaughtUp(conn) => self.conns.finish_input(conn),
            ThreadCommand::Room(conn) => self.conns.resume(conn, Pause::ThreadChannel),
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
            Counted::Send { kind, payload, flags } => self.conns.send_accepted(id, kind, payload, flags),
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
