//! Who may come in: limits that hold over all processes, the client behind a proxy, allowed hosts and origins. What is
//! turned away is counted, and logged once a second at most for each reason.
//!
//! A connection is counted for its peer when it is accepted; one from a trusted proxy when the proxy has told whom it
//! relays. Proxies themselves have no limit but that of all connections.

use std::borrow::Cow;
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::Socket;

use crate::config::Config;
use crate::fleet::addresses::{Desk, Mark, Refusal, Ticket};
use crate::fleet::scoreboard::now;
use crate::http::{self, Response};
use crate::proto::http1::allow::HostRule;
use crate::proto::http1::head::Head;
use crate::proto::http1::{forwarded, proxy};
use crate::worker::Worker;
use crate::worker::conn::rate_limit::Pace;
use crate::worker::conn::record::flags;
use crate::worker::conn::table::{Conn, Open, Phase};

const SECOND: u64 = 1_000_000_000;
/// In a second, and of a process: connections over a limit that are answered with care, so that the client reads the
/// answer whatever it still sends. Further ones are closed at once.
const ANSWERS: u64 = 100;
/// Seconds after which it is worth trying again when others have to leave first.
const RETRY: &str = "10";
/// Bytes of what a client has sent that are shown in the log.
const SHOWN: usize = 100;

/// What one process knows of limits and doors.
pub struct Admission {
    config: Arc<Config>,
    desk: Desk,
    /// By reason: when (ns) it was last logged, and how often it was not since then.
    said: [Cell<(u64, u64)>; Refusal::ALL.len()],
    /// As `said`, for connections that could not be counted.
    uncounted: Cell<(u64, u64)>,
    /// Whether there is a limit of what peers may send in a second.
    has_pace: bool,
    /// The present second, and the number of explanations in it.
    answered: Cell<(u64, u64)>,
}

impl Admission {
    /// For the process that counts at this desk.
    pub fn new(config: Arc<Config>, desk: Desk) -> Self {
        if !desk.has_row() {
            log::warn!("the connections of this process are not counted: there are too many processes");
        }
        let said = Default::default();
        let (uncounted, answered) = Default::default();
        let has_pace = config.admission.messages != 0 || config.admission.bytes != 0;
        Self { config, desk, said, uncounted, has_pace, answered }
    }

    /// Whether a connection that was accepted may go on.
    pub fn admit(&self, peer: Option<SocketAddr>) -> Result<Ticket, Refusal> {
        let admission = &self.config.admission;
        let mut ticket = self.desk.take();
        if admission.total != 0 && self.desk.table().total() > u64::from(admission.total) {
            return Err(Refusal::Total);
        }
        self.name(&mut ticket, peer).map(|()| ticket)
    }

    /// Whose connection it is: whether there may be one more.
    fn name(&self, ticket: &mut Ticket, client: Option<SocketAddr>) -> Result<(), Refusal> {
        let admission = &self.config.admission;
        let Some(ip) = client.map(|client| client.ip()).filter(|ip| !admission.proxy.trusts(Some(*ip)))
        else {
            return Ok(());
        };
        let table = self.desk.table();
        if admission.per_address != 0 {
            let key = table.key(ip);
            if !self.desk.name(ticket, key) {
                self.send_last_frame(&self.uncounted, || format!("{ip}: no room to count its connections"));
            } else if table.of(key) > u64::from(admission.per_address) {
                return Err(Refusal::Address);
            }
        }
        let most = u64::from(admission.handshakes);
        if most != 0 && !self.desk.open(table.key(ip), now() / SECOND, most) {
            return Err(Refusal::Rate);
        }
        Ok(())
    }

    /// A connection is over, or has gone over to another client.
    pub fn end(&self, client: Option<SocketAddr>, mark: Mark) {
        self.desk.table().settle(mark, client.map(|client| client.ip()));
    }

    /// Counts a connection that another process had let in, and had counted there.
    pub fn take_over(&self, client: Option<SocketAddr>, mark: Mark) -> Ticket {
        let admission = &self.config.admission;
        self.end(client, mark);
        let mut ticket = self.desk.take();
        let ip = client.map(|client| client.ip()).filter(|_| admission.per_address != 0);
        if let Some(ip) = ip.filter(|ip| !admission.proxy.trusts(Some(*ip))) {
            self.desk.name(&mut ticket, self.desk.table().key(ip));
        }
        ticket
    }

    /// Counts a client that is turned away, and logs it perhaps.
    pub fn note(&self, refusal: Refusal, client: Option<SocketAddr>, detail: &str) {
        self.desk.table().refused(refusal);
        let Some(said) = self.said.get(refusal as usize) else { return };
        self.send_last_frame(said, || {
            let client = client.map_or_else(|| "a peer on a Unix socket".to_owned(), |ip| ip.to_string());
            format!("{client} was turned away: {}{detail}", reason(refusal))
        });
    }

    fn send_last_frame(&self, said: &Cell<(u64, u64)>, turns: impl FnOnce() -> String) {
        let (now, (last, left_out)) = (now(), said.get());
        if last != 0 && now.saturating_sub(last) < SECOND {
            return said.set((last, left_out + 1));
        }
        said.set((now, 0));
        match left_out {
            0 => log::warn!("{}", turns()),
            count => log::warn!("{}; {count} more like this since the last such line", turns()),
        }
    }

    /// Whether there is time for an answer that arrives for sure.
    pub fn may_answer(&self) -> bool {
        let second = now() / SECOND;
        let (last, answered) = self.answered.get();
        let answered = if last == second { answered } else { 0 };
        self.answered.set((second, answered + 1));
        answered < ANSWERS
    }
}

/// Answers a connection that is over a limit as far as that goes without waiting, and closes it.
pub fn cut(socket: &Socket, refusal: Refusal) {
    // Nothing was read: the method may be HEAD.
    let response = answer(refusal).without_content().into_bytes();
    // Whoever is over a limit does not need to hear of it.
    let _ = socket.send_with_flags(&response, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
}

fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Total => "too many connections",
        Refusal::Pool => "too many connections to the pool of this resource",
        Refusal::Address => "too many connections from its address",
        Refusal::Rate => "too many new connections from its address in this second",
        Refusal::Origin => "an origin that is not allowed here",
        Refusal::Host => "a host that is not served here",
        Refusal::Proxy => "a connection without a proper header of the PROXY protocol",
        Refusal::Forwarded => "a proxy does not tell properly whom it relays",
        Refusal::Messages => "more messages in a second than are allowed",
    }
}

/// The answer to a request, or to a connection before there is one.
fn answer(refusal: Refusal) -> Response {
    let (status, headers) = match refusal {
        Refusal::Total | Refusal::Pool => (503, &[("Retry-After", RETRY)][..]),
        Refusal::Address => (429, &[("Retry-After", RETRY)][..]),
        Refusal::Rate | Refusal::Messages => (429, &[("Retry-After", "1")][..]),
        Refusal::Origin => (403, &[][..]),
        Refusal::Host => (421, &[][..]),
        Refusal::Proxy | Refusal::Forwarded => (400, &[][..]),
    };
    http::error(status, reason(refusal), headers)
}

impl Worker {
    /// A connection is over a limit, and there is time to tell its peer.
    pub fn refuse_politely(&self, socket: Socket, refusal: Refusal) {
        if self.stop_at.get().is_some() {
            return self.release_one();
        }
        let deadline = self.now.get().saturating_add(self.config.handshake_time);
        if let Some(id) = self.add(Conn::new(socket, deadline)) {
            self.reply(id, answer(refusal));
        }
    }

    /// Turns a request away.
    fn refuse(&self, id: u64, refusal: Refusal, detail: &str) {
        self.admission.note(refusal, self.peer(id), detail);
        self.reply(id, answer(refusal));
    }

    /// What was read of a request without the header of the PROXY protocol that is to come first. `None`: more has to
    /// come, or the connection is over.
    pub fn take_proxy_header<'a>(&self, id: u64, read: Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>> {
        let trusted = &self.config.admission.proxy;
        if !trusted.protocol {
            return Some(read);
        }
        let is_due = {
            let core = &mut *self.core.borrow_mut();
            let record = core.table.record(id)?;
            !record.has_proxy_header() && trusted.trusts(record.peer.address().map(|peer| peer.ip()))
        };
        if !is_due {
            return Some(read);
        }
        match proxy::parse(&read) {
            Ok(proxy::Parsed::NeedMore) => {
                self.keep_head(id, read.into_owned());
                None
            }
            Ok(proxy::Parsed::Header { client, consumed }) => {
                self.meet(id, client, true).map_err(|refusal| self.refuse(id, refusal, "")).ok()?;
                Some(match read {
                    Cow::Borrowed(read) => Cow::Borrowed(read.get(consumed..).unwrap_or_default()),
                    Cow::Owned(read) => Cow::Owned(read.get(consumed..).unwrap_or_default().to_vec()),
                })
            }
            Err(bad) => {
                self.admission.note(Refusal::Proxy, self.peer(id), &format!(": {bad}"));
                self.remove(id);
                None
            }
        }
    }

    /// More of a request head has to come.
    pub fn keep_head(&self, id: u64, read: Vec<u8>) {
        let core = &mut *self.core.borrow_mut();
        if let Some(record) = core.table.record(id) {
            record.set_head(&read);
            record.seal();
            record.set_flags(flags::TAKEN | flags::FRESH);
        }
        if let Some(Conn { phase: Phase::Head(bytes, _), .. }) = core.table.get(id) {
            *bytes = read;
        }
    }

    /// The client behind a proxy is known: from here on it is the peer.
    fn meet(&self, id: u64, client: Option<SocketAddr>, by_header: bool) -> Result<(), Refusal> {
        let core = &mut *self.core.borrow_mut();
        let Some(record) = core.table.record(id) else { return Ok(()) };
        let mut admitted = Ok(());
        if client.is_some() {
            let mut ticket = self.admission.desk.take();
            admitted = self.admission.name(&mut ticket, client);
            if admitted.is_err() {
                ticket = self.admission.desk.take(); // it is only answered
            }
            self.admission.end(record.peer.address(), record.mark);
            (record.peer, record.mark) = (client.into(), ticket.keep());
        }
        if by_header {
            record.set_proxy_header();
        }
        record.seal();
        admitted
    }

    /// A request is there: who has sent it, and whether it is for this server. False: it was answered.
    pub fn check_request(&self, id: u64, head: &Head) -> bool {
        let admission = &self.config.admission;
        let peer = self.peer(id);
        let trusts = |peer: Option<SocketAddr>| admission.proxy.trusts(peer.map(|peer| peer.ip()));
        if admission.proxy.is_any() && trusts(peer) {
            let met = match forwarded::client(head, peer, |ip| admission.proxy.trusts(Some(ip))) {
                Ok(client) if client == peer => Ok(()),
                Ok(client) => self.meet(id, client, false).map_err(|refusal| (refusal, String::new())),
                Err(malformed) => Err((Refusal::Forwarded, format!(": {malformed}"))),
            };
            if let Err((refusal, detail)) = met {
                self.refuse(id, refusal, &detail);
                return false;
            }
        }
        let asked = head.host_and_port();
        let is_allowed = |host: &HostRule| asked.is_some_and(|asked| host.allows(asked));
        if !admission.hosts.is_empty() && !admission.hosts.iter().any(is_allowed) {
            self.refuse(id, Refusal::Host, &shown(head.authority().as_bytes()));
            return false;
        }
        true
    }

    /// RFC 9112 3.2.2: with a validation host, a target in absolute form must name it.
    pub fn check_authority(&self, head: &Head) -> Result<(), Response> {
        let absolute = !head.target().starts_with('/');
        let (host, port) = &self.config.validation;
        if !absolute || (host.is_none() && port.is_none()) {
            return Ok(());
        }
        let right = head.host_and_port().is_some_and(|asked| {
            host.as_ref().is_none_or(|host| host.eq_ignore_ascii_case(asked.host))
                && port.is_none_or(|port| asked.port.unwrap_or(80) == port)
        });
        if right { Ok(()) } else { Err(http::error(421, "this server does not serve that host", &[])) }
    }

    /// A handshake is about to begin: whether pages of its origin may, and whether the pool has room. False: it was
    /// answered.
    pub fn check_limits(&self, id: u64, handler: u16, head: &Head) -> bool {
        let admission = &self.config.admission;
        let route = self.routes.handlers().get(usize::from(handler));
        let origins = route.map_or(&admission.origins[..], |route| admission.origins_of(&route.resource));
        // What is no browser does not say where it comes from; whoever is no browser can say what it likes.
        let is_allowed = |origin: &[u8]| origins.iter().any(|rule| rule.allows(origin));
        let foreign = head.header_all("origin").find(|origin| !origins.is_empty() && !is_allowed(origin));
        if let Some(origin) = foreign {
            self.refuse(id, Refusal::Origin, &shown(origin));
            return false;
        }
        let pool = self.pool_of(handler);
        let most = self.config.pools.get(pool).and_then(|pool| pool.connections);
        if let Some(most) = most {
            // In its own pool it is counted already.
            let more = u64::from(pool != self.pool);
            if self.admission.desk.table().in_pool(pool) + more > u64::from(most) {
                self.refuse(id, Refusal::Pool, "");
                return false;
            }
        }
        true
    }

    /// From now on what the peer may send is limited, if there is a limit.
    pub fn set_pace(&self, open: &mut Open) {
        if self.admission.has_pace {
            let admission = &self.config.admission;
            open.extra().pace = Some(Pace::new(admission.messages, admission.bytes));
        }
    }

    /// A message, or a part of one, has come: whether it is one too many. Then the connection is being closed.
    #[inline]
    pub fn is_too_fast(&self, id: u64, is_first: bool, size: usize) -> bool {
        self.admission.has_pace && self.breaks_pace(id, is_first, size)
    }

    fn breaks_pace(&self, id: u64, is_first: bool, size: usize) -> bool {
        let now = self.now.get();
        let admits =
            |open: &mut Open| open.extra().pace.as_mut().is_none_or(|pace| pace.admits(is_first, size, now));
        if self.with_open(id, |_, open| admits(open)).unwrap_or(true) {
            return false;
        }
        self.admission.note(Refusal::Messages, self.peer(id), "");
        self.close(id, Some(1008), b"too many messages", ::ws_handler::raw::WS_BY_HOST);
        true
    }

    fn peer(&self, id: u64) -> Option<SocketAddr> {
        self.core.borrow_mut().table.record(id).and_then(|record| record.peer.address())
    }
}

/// What a client has sent, safe to be read in a log.
fn shown(text: &[u8]) -> String {
    format!(": {}", text.get(..SHOWN).unwrap_or(text).escape_ascii())
}
