//! Checks before a handler is called: PROXY header, host, origin, limits.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::SystemTime;

use socket2::Socket;

use crate::config::Unmatched;
use crate::fleet::refusal::Refusal;
use crate::http::{self, Response};
use crate::proto::http1::allow::HostRule;
use crate::proto::http1::head::Head;
use crate::proto::http1::{forwarded, proxy};
use crate::proto::ws::handshake::is_upgrade;
use crate::worker::conn::handshake::{Finished, Handshake};
use crate::worker::handshake::Handshakes;
use crate::worker::handshake::outcome::Unserved;
use crate::worker::listen::admission::{answer, answer_unread};

/// Most bytes of client data shown in the log.
const SHOWN: usize = 100;

impl Handshakes {
    /// Answers a connection that exceeds a limit.
    pub fn refuse_with_response(&self, socket: Socket, refusal: Refusal) {
        if let Ok(id) = self.add(socket) {
            self.conns.reply(id, answer_unread(refusal));
        }
    }

    pub fn refuse(&self, id: u64, refusal: Refusal, detail: &str) -> Unserved {
        self.admission.note(refusal, self.conns.peer(id), detail);
        self.conns.reply(id, answer(refusal));
        Unserved::Answered
    }

    /// Strips the header of the PROXY protocol where one is due. `None`: more has to come, or the connection was
    /// dropped.
    pub fn take_proxy_header<'a>(&self, id: u64, read: Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>> {
        let trusted = &self.conns.config.admission.proxy;
        if !trusted.is_any() {
            return Some(read);
        }
        let is_due = {
            let core = &mut *self.conns.core.borrow_mut();
            let record = core.table.record(id)?;
            !record.has_proxy_header() && trusted.trusts(record.peer.address().map(|peer| peer.ip()))
        };
        if !is_due {
            return Some(read);
        }
        match proxy::parse(&read) {
            Ok(None) => {
                self.conns.keep_head(id, read.into_owned());
                None
            }
            Ok(Some((client, consumed))) => {
                self.set_client(id, client, true).map_err(|refusal| self.refuse(id, refusal, "")).ok()?;
                Some(match read {
                    Cow::Borrowed(read) => Cow::Borrowed(read.get(consumed..).unwrap_or_default()),
                    Cow::Owned(read) => Cow::Owned(read.get(consumed..).unwrap_or_default().to_vec()),
                })
            }
            Err(bad) => {
                self.admission.note(Refusal::Proxy, self.conns.peer(id), &format!(": {bad}"));
                self.conns.remove(id);
                None
            }
        }
    }

    /// Makes the client behind a proxy the peer of this connection.
    pub fn set_client(&self, id: u64, client: Option<SocketAddr>, by_header: bool) -> Result<(), Refusal> {
        let core = &mut *self.conns.core.borrow_mut();
        let Some(record) = core.table.record(id) else { return Ok(()) };
        let mut admitted = Ok(());
        if client.is_some() {
            let mut permit = self.admission.limiter.take();
            admitted = self.admission.name(&mut permit, client);
            if admitted.is_err() {
                permit = self.admission.limiter.take(); // it is only answered
            }
            self.admission.end(record.peer.address(), record.mark);
            (record.peer, record.mark) = (client.into(), permit.keep());
        }
        if by_header {
            record.set_proxy_header();
        }
        record.seal();
        admitted
    }

    /// Answers a request that is a health check of a load balancer, before hosts, users and handlers are looked at, and
    /// without a line in the access log; whether it was one.
    pub fn answer_health_check(&self, id: u64, head: &Head) -> bool {
        let is_check = self.conns.config.health.as_deref() == Some(head.path()) && !is_upgrade(head);
        if is_check {
            self.conns.access_log.keep_out(id);
            self.conns
                .reply(id, http::health(head, self.conns.presence.scoreboard.is_ready(), SystemTime::now()));
        }
        is_check
    }

    /// Finds the client behind a proxy, and checks the host.
    pub fn check_request(&self, id: u64, head: &Head) -> Result<(), Unserved> {
        let admission = &self.conns.config.admission;
        let peer = self.conns.peer(id);
        let trusts = |peer: Option<SocketAddr>| admission.proxy.trusts(peer.map(|peer| peer.ip()));
        if admission.proxy.is_any() && trusts(peer) {
            let met = match forwarded::client(head, peer, |ip| admission.proxy.trusts(Some(ip))) {
                Ok(client) if client == peer => Ok(()),
                Ok(client) => self.set_client(id, client, false).map_err(|refusal| (refusal, String::new())),
                Err(malformed) => Err((Refusal::Forwarded, format!(": {malformed}"))),
            };
            if let Err((refusal, detail)) = met {
                return Err(self.refuse(id, refusal, &detail));
            }
        }
        let asked = head.host_and_port();
        let is_allowed = |host: &HostRule| asked.is_some_and(|asked| host.allows(asked));
        if !admission.hosts.is_empty() && !admission.hosts.iter().any(is_allowed) {
            return Err(self.refuse(id, Refusal::Host, &shown(head.authority().as_bytes())));
        }
        Ok(())
    }

    /// RFC 9112 3.2.2: with a validation host, a target in absolute form must name it.
    pub fn check_authority(&self, head: &Head) -> Result<(), Response> {
        let absolute = !head.target().starts_with('/');
        let (host, port) = &self.conns.config.validation;
        if !absolute || (host.is_none() && port.is_none()) {
            return Ok(());
        }
        let right = head.host_and_port().is_some_and(|asked| {
            host.as_ref().is_none_or(|host| host.eq_ignore_ascii_case(asked.host))
                && port.is_none_or(|port| asked.port.unwrap_or(80) == port)
        });
        if right { Ok(()) } else { Err(http::error(421, "this server does not serve that host", &[])) }
    }

    /// Whether the handshake is refused because no subprotocol was chosen.
    pub fn is_unmatched(&self, handshake: &Handshake, finished: &Finished) -> bool {
        let policy = self.conns.settings(handshake.handler).subprotocol;
        let is_offered = !handshake.request.opening.protocols.is_empty();
        policy == Unmatched::Refuse && is_offered && finished.protocol.is_none()
    }

    /// Checks the origin, and the limits of connections to the handler and its pool.
    pub fn check_limits(&self, id: u64, handler: u16, head: &Head) -> Result<(), Unserved> {
        let settings = self.conns.settings(handler);
        let origins = &settings.origins;
        // A client that is not a browser may send no Origin, or any it likes.
        let is_allowed = |origin: &[u8]| origins.iter().any(|rule| rule.allows(origin));
        let foreign = head.header_all("origin").find(|origin| !origins.is_empty() && !is_allowed(origin));
        if let Some(origin) = foreign {
            return Err(self.refuse(id, Refusal::Origin, &shown(origin)));
        }
        if settings.connections.is_some_and(|most| self.conns.metrics.open_of(handler) >= u64::from(most)) {
            return Err(self.refuse(id, Refusal::Handler, ""));
        }
        let pool = self.handlers.pool_of(handler);
        let most = self.conns.config.pools.get(pool).and_then(|pool| pool.connections);
        if let Some(most) = most {
            // In this pool the connection is counted already.
            let more = u64::from(pool != self.conns.presence.pool);
            if self.admission.limiter.table().in_pool(pool) + more > u64::from(most) {
                return Err(self.refuse(id, Refusal::Pool, ""));
            }
        }
        Ok(())
    }
}

/// Client data, escaped for the log.
fn shown(text: &[u8]) -> String {
    format!(": {}", text.get(..SHOWN).unwrap_or(text).escape_ascii())
}
