//! Handlers that crash too often are quarantined by the supervisor (`fleet::breakers`). Here is the worker's part: no
//! request gets to such a handler, and after the time one connection at a time is let through and watched. Once it
//! has been open for a moment, or a message of its was handled, the handler is served again; when it ends before
//! that, the next request is the probe.

use crate::fleet::breakers::Decision;
use crate::worker::conn::table::Phase;
use crate::worker::handshake::Handshakes;

/// How long (ns) a probe must be open.
const MOMENT: u64 = 1_000_000_000;

/// A connection that was let through.
pub struct Probe {
    handler: u16,
    conn: u64,
    /// What the gate is opened with.
    until: u64,
    /// Since when it is open.
    open_since: Option<u64>,
}

/// What a probe has told.
enum Finding {
    Nothing,
    Well,
    Over,
}

impl Handshakes {
    /// Whether a request may get to its handler; else the seconds after which to try again.
    pub fn check_breaker(&self, handler: u16, conn: u64) -> Result<(), u64> {
        let Some(breaker) = self.breakers.get(usize::from(handler)) else { return Ok(()) };
        match breaker.enter(self.pid, self.life.now.get()) {
            Decision::Free => Ok(()),
            Decision::Refused { seconds } => Err(seconds),
            Decision::Probe { until, first } => {
                let level = if first { log::Level::Info } else { log::Level::Debug };
                log::log!(level, "{}: probed by connection {conn:x}", self.handlers.handler_name(handler));
                self.probes.borrow_mut().push(Probe { handler, conn, until, open_since: None });
                Ok(())
            }
        }
    }

    /// Sees what has become of the probes; once in a turn of the loop.
    pub fn watch_probes(&self) {
        self.probes.borrow_mut().retain_mut(|probe| {
            let finding = self.look_at(probe);
            let breaker = self.breakers.get(usize::from(probe.handler));
            match (finding, breaker) {
                (Finding::Nothing, _) => return true,
                (Finding::Over, Some(breaker)) => breaker.release(self.pid),
                (Finding::Well, Some(breaker)) => {
                    if breaker.open(self.pid, probe.until) {
                        log::info!(
                            "{}: the probe went well: served again",
                            self.handlers.handler_name(probe.handler)
                        );
                    }
                }
                (_, None) => {}
            }
            false
        });
    }

    fn look_at(&self, probe: &mut Probe) -> Finding {
        let now = self.life.now.get();
        let core = &mut *self.conns.core.borrow_mut();
        match core.table.get(probe.conn).map(|conn| &conn.phase) {
            None | Some(Phase::Reply(..) | Phase::Linger(_)) => Finding::Over,
            Some(Phase::Head(..) | Phase::Opening(..)) => Finding::Nothing,
            Some(Phase::Open(open)) => {
                let since = *probe.open_since.get_or_insert(now);
                // A blocking handler's thread may still have the message before it.
                let handled = open.last_opcode != 0 && open.channel().is_none();
                let well = handled || now.saturating_sub(since) >= MOMENT;
                if well { Finding::Well } else { Finding::Nothing }
            }
        }
    }
}
