//! The worker's part of the circuit breakers (`fleet::breakers`): an open breaker refuses requests; a half-open one
//! lets one connection at a time through as a probe. The breaker closes once the probe has been open for a moment, or a
//! message of it was handled. If the probe ends before that, the next request is the probe.

use std::time::Duration;

use crate::fleet::memory::breakers::Decision;
use crate::time::Instant;
use crate::worker::conn::table::Phase;
use crate::worker::handshake::Handshakes;

/// How long a probe must stay open.
const MOMENT: Duration = Duration::from_secs(1);

pub struct RunningProbe {
    handler: u16,
    conn: u64,
    /// What the breaker is closed with.
    until: Instant,
    open_since: Option<Instant>,
}

enum Finding {
    Nothing,
    Well,
    Over,
}

impl Handshakes {
    /// Whether a request may get to its handler; else the seconds after which to try again.
    pub fn check_breaker(&self, handler: u16, conn: u64) -> Result<(), u64> {
        let Some(breaker) = self.breakers.get(self.conns.presence.pool, handler) else { return Ok(()) };
        match breaker.enter(self.conns.presence.pid, self.conns.life.turn().instant()) {
            Decision::Free => Ok(()),
            Decision::Refused { seconds } => Err(seconds),
            Decision::Probe { until, first } => {
                let level = if first { log::Level::Info } else { log::Level::Debug };
                log::log!(level, "{}: probed by connection {conn:x}", self.handlers.handler_name(handler));
                self.probes.borrow_mut().push(RunningProbe { handler, conn, until, open_since: None });
                self.conns.life.request_chores();
                Ok(())
            }
        }
    }

    pub fn has_probes(&self) -> bool {
        !self.probes.borrow().is_empty()
    }

    /// Checks the probes; in each turn of the loop while there are any.
    pub fn watch_probes(&self) {
        self.probes.borrow_mut().retain_mut(|probe| {
            let finding = self.look_at(probe);
            let breaker = self.breakers.get(self.conns.presence.pool, probe.handler);
            match (finding, breaker) {
                (Finding::Nothing, _) => return true,
                (Finding::Over, Some(breaker)) => breaker.release(self.conns.presence.pid),
                (Finding::Well, Some(breaker)) => {
                    if breaker.close(self.conns.presence.pid, probe.until) {
                        log::info!(
                            "{}: probe succeeded; handler back in service",
                            self.handlers.handler_name(probe.handler)
                        );
                    }
                }
                (_, None) => {}
            }
            false
        });
    }

    fn look_at(&self, probe: &mut RunningProbe) -> Finding {
        let now = self.conns.life.turn().instant();
        let core = &mut *self.conns.core.borrow_mut();
        match core.table.get(probe.conn).map(|conn| &conn.phase) {
            None | Some(Phase::Reply(..) | Phase::Linger(_)) => Finding::Over,
            Some(Phase::Head(..) | Phase::Opening(..)) => Finding::Nothing,
            Some(Phase::Open(open)) => {
                let since = *probe.open_since.get_or_insert(now);
                // The thread of a blocking handler may not have taken the message yet.
                let handled = open.last_opcode != 0 && open.channel().is_none();
                let well = handled || now.since(since) >= MOMENT;
                if well { Finding::Well } else { Finding::Nothing }
            }
        }
    }
}
