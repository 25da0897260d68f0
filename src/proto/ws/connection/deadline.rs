//! A connection in time: keepalive Pings, silent and idle peers, unanswered
//! Close frames. Nothing here runs while octets come: `receive` only notes when.

use super::{CloseState, Connection, Io, control};
use crate::proto::ws::close::GOING_AWAY;
use crate::proto::ws::frame::Opcode;
use crate::proto::ws::limits::Limits;
use crate::time::Instant;
use std::time::Duration;

/// What `Connection::on_deadline` did or found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// Nothing is due.
    Later,
    /// A keepalive Ping was appended.
    Pinged,
    /// No message for too long: a Close frame with 1001 was appended; the closing handshake has begun. After
    /// `defer_failures` it has not, and it is for the caller to close once what came before is answered.
    Idle,
    /// Nothing came after a keepalive Ping: the socket is to be dropped.
    PeerSilent,
    /// One side's Close frame was not answered: the socket is to be dropped.
    CloseTimedOut,
}

impl Connection {
    /// When `on_deadline()` has something to do; [`Instant::NEVER`] if nothing. It only moves away while octets come,
    /// so a timer may be set once and be asked for anew when it runs out.
    pub fn deadline(&self, limits: &Limits) -> Instant {
        let (silent, idle, ping) = self.deadlines(limits);
        silent.min(idle).min(ping)
    }

    /// Whether no deadline but those of an idle connection runs.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.close_state == CloseState::Open && !self.awaiting_pong && !self.paused
    }

    /// Does what is due at `io.now`.
    pub fn on_deadline(&mut self, io: &mut Io) -> Deadline {
        let (silent, idle, ping) = self.deadlines(io.limits);
        if io.now >= silent {
            let open = self.close_state == CloseState::Open;
            self.finish(io.codecs);
            return if open { Deadline::PeerSilent } else { Deadline::CloseTimedOut };
        }
        if io.now >= idle {
            if !self.deferring {
                self.append_close(Some(GOING_AWAY), b"", io.out);
                (self.close_state, self.since) = (CloseState::CloseSent, io.now);
            }
            return Deadline::Idle;
        }
        if io.now >= ping {
            // Its payload is its time, by which its Pong is recognised.
            control(io.out, Opcode::Ping, &io.now.as_nanos().to_be_bytes());
            self.since = io.now;
            self.awaiting_pong = true;
            return Deadline::Pinged;
        }
        Deadline::Later
    }

    /// Reading is paused, or goes on: limits on silence do not count meanwhile, the close deadline does.
    pub fn set_paused(&mut self, paused: bool, now: Instant) {
        if self.paused && !paused {
            self.last_received = now;
            self.last_message = now;
            self.awaiting_pong = false;
        }
        self.paused = paused;
    }

    /// When the peer counts as gone, when as idle, and when it is to be pinged.
    fn deadlines(&self, limits: &Limits) -> (Instant, Instant, Instant) {
        const NEVER: Instant = Instant::NEVER;
        let after = |from: Instant, limit: Duration| if limit.is_zero() { NEVER } else { from + limit };
        match self.close_state {
            CloseState::Finished => (NEVER, NEVER, NEVER),
            CloseState::CloseSent | CloseState::CloseReceived => {
                (after(self.since, limits.close_deadline), NEVER, NEVER)
            }
            CloseState::Open if self.paused => (NEVER, NEVER, NEVER),
            CloseState::Open => {
                let idle = after(self.last_message, limits.idle);
                // Any octet is a sign of life, not just the Pong.
                if self.awaiting_pong && self.last_received <= self.since && !limits.pong_deadline.is_zero() {
                    (after(self.since, limits.pong_deadline), idle, NEVER)
                } else {
                    (NEVER, idle, after(self.last_received.max(self.since), limits.ping_interval))
                }
            }
        }
    }
}
