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

    /// Checks the probes; in each turn of the loop while there are any, which is returned.
    pub fn watch_probes(&self) -> bool {
        let pid = self.conns.presence.pid;
        let probes = &mut *self.probes.borrow_mut();
        probes.retain_mut(|probe| {
            let Some(has_succeeded) = self.outcome(probe) else { return true };
            match self.breakers.get(self.conns.presence.pool, probe.handler) {
                Some(breaker) if !has_succeeded => breaker.release(pid),
                Some(breaker) if breaker.close(pid, probe.until) => {
                    let name = self.handlers.handler_name(probe.handler);
                    log::info!("{name}: probe succeeded; handler back in service");
                }
                _ => {}
            }
            false
        });
        !probes.is_empty()
    }

    /// Whether a probe has succeeded; `None` as long as it may.
    fn outcome(&self, probe: &mut RunningProbe) -> Option<bool> {
        let now = self.conns.life.turn().instant();
        let core = &mut *self.conns.core.borrow_mut();
        match core.table.get(probe.conn).map(|conn| &conn.phase) {
            None | Some(Phase::Reply(..) | Phase::Linger(_)) => Some(false),
            Some(Phase::Head(..) | Phase::Opening(..)) => None,
            Some(Phase::Open(open)) => {
                let since = *probe.open_since.get_or_insert(now);
                // The thread of a blocking handler may not have taken the message yet.
                let handled = open.last_opcode != 0 && open.channel().is_none();
                (handled || now.since(since) >= MOMENT).then_some(true)
            }
        }
    }
}
