//! Admission of connections: limits that hold over all processes, the client behind a proxy, allowed hosts and origins.
//! What is turned away is counted, and logged once a second at most for each reason.
//!
//! A connection is counted for its peer when it is accepted; one from a trusted proxy when the proxy has told whom it
//! relays. Proxies themselves have no limit but that of all connections.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use socket2::Socket;
use strum::VariantArray;

use crate::clock;
use crate::config::{Config, HandlerSettings};
use crate::fleet::memory::addresses::{Limiter, Mark, Permit};
use crate::fleet::refusal::Refusal;
use crate::http::{self, Body, Response};
use crate::log::Limit;
use crate::worker::conn::open::Open;
use crate::worker::conn::rate_limit::RateLimit;

const SECOND: Duration = Duration::from_secs(1);
/// In a second, and of a process: connections over a limit that get a lingering close, so that the client reads the
/// answer whatever it still sends. Further ones are closed at once.
const ANSWERS: u64 = 100;
/// When it is worth trying again: after others have left, in the next second, or in the next minute.
const RETRY: &[(&str, &str)] = &[("Retry-After", "10")];
const SOON: &[(&str, &str)] = &[("Retry-After", "1")];
const IN_A_MINUTE: &[(&str, &str)] = &[("Retry-After", "60")];

/// What one process knows of the limits.
pub struct Admission {
    config: Arc<Config>,
    pub limiter: Limiter,
    /// Lines for each reason to turn a client away.
    refusals: [Limit; Refusal::VARIANTS.len()],
    /// Lines for connections that could not be counted.
    uncounted: Limit,
    /// Lines for logins that have failed.
    failed_logins: Limit,
    /// Whether there is a limit of what peers may send in a second.
    has_pace: bool,
    /// The present second, and the number of explanations in it.
    answered: Cell<(u32, u64)>,
}

impl Admission {
    /// For the process that counts at this limiter.
    pub fn new(config: Arc<Config>, limiter: Limiter) -> Self {
        if !limiter.has_row() {
            log::warn!("too many processes: limits of connections do not count those of this one");
        }
        let limit = || Limit::new(1, SECOND);
        let is_limited = |handler: &HandlerSettings| handler.message_rate != 0 || handler.byte_rate != 0;
        let has_pace = config.handler_of.values().chain([&config.handler]).any(is_limited);
        Self {
            config,
            limiter,
            refusals: std::array::from_fn(|_| limit()),
            uncounted: limit(),
            failed_logins: limit(),
            has_pace,
            answered: Cell::default(),
        }
    }

    pub fn admit(&self, peer: Option<SocketAddr>, is_draining: bool) -> Result<Permit, Refusal> {
        let admission = &self.config.admission;
        if is_draining {
            return Err(Refusal::Draining);
        }
        let mut permit = self.limiter.take();
        if admission.total != 0 && self.limiter.table().total() > u64::from(admission.total) {
            return Err(Refusal::Total);
        }
        self.name(&mut permit, peer).map(|()| permit)
    }

    /// Whose connection it is: whether there may be one more.
    pub fn name(&self, permit: &mut Permit, client: Option<SocketAddr>) -> Result<(), Refusal> {
        let admission = &self.config.admission;
        let Some(ip) = self.limited(client) else { return Ok(()) };
        let table = self.limiter.table();
        if admission.per_address != 0 {
            let key = table.key(ip);
            if !self.limiter.name(permit, key) {
                self.warn(&self.uncounted, || format!("{ip}: no room to count its connections"));
            } else if table.of(key) > u64::from(admission.per_address) {
                return Err(Refusal::Address);
            }
        }
        let most = u64::from(admission.handshakes);
        if most != 0 && !self.limiter.open(table.key(ip), u64::from(clock::now().seconds()), most) {
            return Err(Refusal::Rate);
        }
        Ok(())
    }

    /// Whether an address may try to log in, or has failed too often.
    pub fn may_log_in(&self, client: Option<SocketAddr>) -> Result<(), Refusal> {
        let most = u64::from(self.config.authentication.failures);
        let table = self.limiter.table();
        let failed = |client: SocketAddr| table.failed(table.key(client.ip()), minute());
        match client.filter(|_| most != 0) {
            Some(client) if failed(client) >= most => Err(Refusal::Logins),
            _ => Ok(()),
        }
    }

    /// A login from there has failed, for this reason.
    pub fn login_failed(&self, client: Option<SocketAddr>, why: &str) {
        self.warn(&self.failed_logins, || format!("{}: login failed: {why}", name_of(client)));
        if let Some(client) = client.filter(|_| self.config.authentication.failures != 0) {
            self.limiter.fail(self.limiter.table().key(client.ip()), minute());
        }
    }

    /// A connection is over, or has gone over to another client.
    pub fn end(&self, client: Option<SocketAddr>, mark: Mark) {
        self.limiter.settle(mark, client.map(|client| client.ip()));
    }

    /// Counts a connection that another process had let in, and had counted there.
    pub fn take_over(&self, client: Option<SocketAddr>, mark: Mark) -> Permit {
        self.end(client, mark);
        let mut permit = self.limiter.take();
        if let Some(ip) = self.limited(client).filter(|_| self.config.admission.per_address != 0) {
            self.limiter.name(&mut permit, self.limiter.table().key(ip));
        }
        permit
    }

    /// The address that limits hold for: not that of a trusted proxy.
    fn limited(&self, client: Option<SocketAddr>) -> Option<IpAddr> {
        client.map(|client| client.ip()).filter(|ip| !self.config.admission.proxy.trusts(Some(*ip)))
    }

    /// Counts a client that is turned away, and logs it perhaps.
    pub fn note(&self, refusal: Refusal, client: Option<SocketAddr>, detail: &str) {
        self.limiter.refused(refusal);
        // Load balancers go on asking; the log has said that the server drains.
        let limit = self.refusals.get(refusal as usize).filter(|_| refusal != Refusal::Draining);
        let Some(limit) = limit else { return };
        self.warn(limit, || format!("{} was turned away: {}{detail}", name_of(client), described(refusal).2));
    }

    fn warn(&self, limit: &Limit, line: impl FnOnce() -> String) {
        if let Some(left_out) = limit.admit(clock::now()) {
            log::warn!("{}{left_out}", line());
        }
    }

    /// Limits how fast the peer of a connection that opens may send, if that is limited.
    pub fn limit_rate(&self, open: &mut Open, handler: &HandlerSettings) {
        if handler.message_rate != 0 || handler.byte_rate != 0 {
            open.extra().pace = Some(RateLimit::new(handler.message_rate, handler.byte_rate));
        }
    }

    /// Whether there is a limit of what peers may send.
    #[inline]
    pub fn limits_rate(&self) -> bool {
        self.has_pace
    }

    /// Whether there is time for an answer that arrives for sure.
    pub fn may_answer(&self) -> bool {
        let second = clock::now().seconds();
        let (last, answered) = self.answered.get();
        let answered = if last == second { answered } else { 0 };
        self.answered.set((second, answered + 1));
        answered < ANSWERS
    }
}

fn name_of(client: Option<SocketAddr>) -> String {
    client.map_or_else(|| "a peer on a Unix socket".to_owned(), |client| client.to_string())
}

fn minute() -> u64 {
    u64::from(clock::now().seconds() / 60)
}

/// Answers a connection that is over a limit as far as that goes without waiting, and closes it.
pub fn cut(socket: &Socket, refusal: Refusal) {
    let response = answer_unread(refusal).into_bytes();
    // If it does not fit, the connection is closed without an answer.
    let _ = socket.send_with_flags(&response, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
}

/// The answer to a request.
pub fn answer(refusal: Refusal) -> Response {
    let (status, fields, why) = described(refusal);
    http::error(status, why, fields)
}

/// The same for a request of which nothing was read: its method may be HEAD, so there is no content and none is
/// announced.
pub fn answer_unread(refusal: Refusal) -> Response {
    let (status, fields, _) = described(refusal);
    Response::new(SystemTime::now(), status, fields, Body::Empty)
}

/// Status, header fields and reason.
fn described(refusal: Refusal) -> (u16, &'static [(&'static str, &'static str)], &'static str) {
    match refusal {
        Refusal::Total => (503, RETRY, "too many connections"),
        Refusal::Pool => (503, RETRY, "too many connections to the pool of this resource"),
        Refusal::Handler => (503, RETRY, "too many connections to this handler"),
        Refusal::Draining => (503, RETRY, "draining"),
        Refusal::Address => (429, RETRY, "too many connections from its address"),
        Refusal::Rate => (429, SOON, "too many new connections from its address in this second"),
        Refusal::Messages => (429, SOON, "more messages in a second than are allowed"),
        Refusal::Logins => (429, IN_A_MINUTE, "too many failed logins from its address in this minute"),
        Refusal::Origin => (403, &[], "an origin that is not allowed here"),
        Refusal::Host => (421, &[], "a host that is not served here"),
        Refusal::Proxy => (400, &[], "no valid header of the PROXY protocol"),
        Refusal::Forwarded => (400, &[], "a proxy has named its client in a malformed field"),
    }
}
