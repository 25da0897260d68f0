//! What all connections of a gateway share, and how each begins: PROXY header, handshake, then a connection to a
//! worker.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::certificate;
use super::clients::{Client, Clients, Refused};
use super::http2;
use super::queue::Queue;
use super::relay::{Relay, poll_receive, poll_send};
use super::session::Session;
use super::socket::Socket;
use super::stream::{PlainStream, TlsStream};
use super::tls;
use crate::clock;
use crate::config::Config;
use crate::fleet::memory::counters::gateway::{Failure, GatewayCounters};
use crate::fleet::sockets::facts::GatewayFacts;
use crate::http::{self, Response};
use crate::log::Limit;
use crate::proto::http1::head::{self, Parsed};
use crate::proto::http1::proxy;

/// Maximum concurrent handshakes. One more aborts the oldest.
const HANDSHAKES: usize = 4096;
/// Maximum bytes of a PROXY header.
const PROXY_HEADER: usize = 4096;
/// The connection preface of an HTTP/2 client (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes discarded at a time after a response.
const DISCARDED: usize = 4096;
/// Time for a client to read a response and close its end.
const LINGER: Duration = Duration::from_secs(2);

/// A listener.
pub struct Frontend {
    /// What its connections speak.
    pub protocol: Protocol,
    /// Whether trusted proxies send a PROXY header first.
    pub has_proxy_header: bool,
}

/// What the connections of a listener speak, with what that needs.
pub enum Protocol {
    /// TLS.
    Tls {
        /// Its configuration.
        tls: tls::Acceptor,
        /// The value of Strict-Transport-Security.
        hsts: Option<String>,
    },
    /// HTTP/2 with prior knowledge, or HTTP/1.1.
    H2c,
    /// A redirect to https.
    Redirect {
        /// Host and port; none: the host of the request.
        to: Option<String>,
    },
}

/// Held as long as the connection is open: a permit of the maximum of connections, and a sender whose last drop ends a
/// draining gateway.
pub type Token = (OwnedSemaphorePermit, mpsc::Sender<()>);

/// What all connections share.
pub struct Server {
    /// Connections for workers.
    pub queue: Queue,
    /// The configuration.
    pub config: Arc<Config>,
    /// Shared with all processes.
    pub counters: &'static GatewayCounters,
    /// True: open no more streams.
    pub draining: watch::Receiver<bool>,
    /// Counts connections by client network.
    pub clients: Arc<Clients>,
    /// Permits for connections and streams.
    room: Arc<Semaphore>,
    handshakes: Handshakes,
    /// Log lines about connections and streams that did not get to a worker.
    failures: Limit,
}

/// Handshakes under way, by age.
#[derive(Default)]
struct Handshakes {
    next: AtomicU64,
    tasks: Mutex<BTreeMap<u64, AbortHandle>>,
}

impl Handshakes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, AbortHandle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection after the TLS handshake.
struct Opened {
    peer: Socket,
    session: Box<Session>,
    /// Application data received with the handshake.
    received: Vec<u8>,
    client: Client,
    /// The requested server name (SNI).
    name: Option<String>,
}

impl Server {
    /// Passes connections to the workers through `queue`. `room` has all its permits.
    pub fn new(
        queue: Queue,
        config: Arc<Config>,
        counters: &'static GatewayCounters,
        draining: watch::Receiver<bool>,
        room: Arc<Semaphore>,
    ) -> Self {
        let most = room.available_permits().min(HANDSHAKES);
        let clients = Arc::new(Clients::new(Arc::clone(&config), counters, most));
        let (handshakes, failures) = (Handshakes::default(), Limit::new(1, Duration::from_secs(1)));
        Self { queue, config, counters, draining, clients, room, handshakes, failures }
    }

    /// Serves a connection in a task of its own, which holds `token`. Closes it if the client has too many.
    pub fn begin(
        self: &Arc<Self>,
        frontend: &Arc<Frontend>,
        peer: Socket,
        client: Option<SocketAddr>,
        token: Token,
    ) {
        let Ok(client) = self.clients.admit(client) else { return };
        let (server, frontend) = (Arc::clone(self), Arc::clone(frontend));
        let number = self.handshakes.next.fetch_add(1, Ordering::Relaxed);
        let task = tokio::spawn(async move {
            if let Err(error) = server.serve(number, &frontend, peer, client, token).await {
                log::debug!("connection ended: {error}");
            }
            server.handshakes.lock().remove(&number);
        });
        let mut handshakes = self.handshakes.lock();
        handshakes.insert(number, task.abort_handle());
        if handshakes.len() > HANDSHAKES
            && let Some((_, oldest)) = handshakes.pop_first()
        {
            oldest.abort();
            self.counters.count_failure(Failure::Overload);
        }
    }

    /// The handshake of this connection has ended.
    fn end_handshake(&self, number: u64) {
        self.handshakes.lock().remove(&number);
    }

    async fn serve(
        self: &Arc<Self>,
        number: u64,
        frontend: &Frontend,
        peer: Socket,
        mut client: Client,
        token: Token,
    ) -> io::Result<()> {
        let limit = self.config.handshake_timeout;
        match &frontend.protocol {
            Protocol::Tls { tls, hsts } => {
                let opened =
                    timeout(limit, self.handshake(tls, frontend.has_proxy_header, peer, client)).await;
                self.end_handshake(number);
                let opened =
                    opened.unwrap_or_else(|_| Err((Some(Failure::Timeout), io::ErrorKind::TimedOut.into())));
                let opened = opened.map_err(|(failure, error)| {
                    failure.into_iter().for_each(|failure| self.counters.count_failure(failure));
                    error
                })?;
                let Opened { peer, session, received, client, name } = opened;
                let resumed = session.is_resumed();
                let handshakes = if resumed { &self.counters.resumed } else { &self.counters.full };
                handshakes.add_shared(1);
                let facts = OwnedFacts::new(&session, &peer, name, hsts.clone());
                if facts.is_http2 {
                    self.begin_http2(TlsStream::new(peer, session, received), client, facts, token);
                    return Ok(());
                }
                self.relay(peer, session, received, client, facts, token).await
            }
            Protocol::H2c => {
                let is_http2 = timeout(limit, async {
                    self.read_proxy_header(frontend.has_proxy_header, &peer, &mut client).await?;
                    let mut buffer = [0; PREFACE.len()];
                    let is_preface = |seen: &[u8]| match PREFACE.starts_with(seen) {
                        false => Some(false),
                        true => (seen.len() == PREFACE.len()).then_some(true),
                    };
                    peer.peek(&mut buffer, is_preface).await
                });
                let is_http2 = is_http2.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                self.end_handshake(number);
                let local = peer.local();
                match is_http2 {
                    None => Ok(()),
                    Some(false) => {
                        let facts = GatewayFacts { local: local.as_deref(), ..GatewayFacts::default() };
                        self.queue.push(peer.into_inner(), client.address, facts).await
                    }
                    Some(true) => {
                        let facts = OwnedFacts { local, is_http2: true, ..OwnedFacts::default() };
                        self.begin_http2(PlainStream(peer), client, facts, token);
                        Ok(())
                    }
                }
            }
            Protocol::Redirect { to } => {
                let redirected = timeout(limit, async {
                    self.read_proxy_header(frontend.has_proxy_header, &peer, &mut client).await?;
                    self.redirect(&peer, to.as_deref()).await
                });
                let result = redirected.await;
                self.end_handshake(number);
                result.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
            }
        }
    }

    /// Runs the TLS handshake. The error has the failure to count, unless that is counted already.
    async fn handshake(
        &self,
        tls: &tls::Acceptor,
        has_proxy_header: bool,
        peer: Socket,
        mut client: Client,
    ) -> Result<Opened, (Option<Failure>, io::Error)> {
        let closed = |error: io::Error| (Some(Failure::Closed), error);
        let named = self.read_proxy_header(has_proxy_header, &peer, &mut client).await;
        named.map_err(|error| match error.kind() {
            io::ErrorKind::QuotaExceeded => (None, error),
            _ => closed(error),
        })?;
        let session = Session::new(Arc::clone(&tls.config));
        let mut session =
            Box::new(session.map_err(|error| (Some(Failure::Protocol), io::Error::other(error)))?);
        let (mut received, mut name) = (Vec::new(), None);
        while !session.is_open() {
            let result = std::future::poll_fn(|cx| {
                poll_receive(&peer, &mut session, cx, |plain| received.extend_from_slice(plain))
            });
            let is_ended = result.await;
            // Taken before another connection gets its turn and replaces it.
            name = tls.resolver.take_asked().or(name);
            // In TLS 1.3 only a ticket is unsent then: it is sent with the first bytes of the worker.
            if is_ended.is_ok() && session.is_open() && session.version() == Some("TLSv1.3") {
                break;
            }
            // After an error, this sends the alert.
            let sent = std::future::poll_fn(|cx| poll_send(&peer, &mut session, cx)).await;
            let is_ended = is_ended.map_err(|error| (Some(failure_of(&error)), error))?;
            sent.map_err(closed)?;
            if is_ended && !session.is_open() {
                return Err(closed(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(Opened { peer, session, received, client, name })
    }

    /// Serves an HTTP/2 connection in a new task, since the task of the handshake needs more memory.
    fn begin_http2<T>(self: &Arc<Self>, stream: T, client: Client, facts: OwnedFacts, token: Token)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = Arc::clone(self);
        tokio::spawn(async move {
            let _token = token;
            if let Err(error) = http2::serve(&server, stream, client, facts).await {
                log::debug!("HTTP/2 connection ended: {error}");
            }
        });
    }

    /// Connects to a worker, and relays in a new task until the end of the connection.
    async fn relay(
        &self,
        peer: Socket,
        mut session: Box<Session>,
        received: Vec<u8>,
        client: Client,
        facts: OwnedFacts,
        token: Token,
    ) -> io::Result<()> {
        let worker = match self.queue.connect(client.address, facts.borrow()).await {
            Ok(worker) => worker,
            Err(error) => {
                self.unavailable(&error);
                let response =
                    http::error(503, "no worker is available", &[("Retry-After", "1")]).into_bytes();
                session.send(&response).and_then(|()| session.send_end()).map_err(io::Error::other)?;
                let sent = std::future::poll_fn(|cx| poll_send(&peer, &mut session, cx));
                timeout(LINGER, sent).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                end(&peer).await;
                return Ok(());
            }
        };
        let relay = Relay::new(peer, session, worker, received);
        tokio::spawn(async move {
            let _token = token;
            if let Err(error) = relay.run().await {
                log::debug!("connection ended: {error}");
            }
        });
        Ok(())
    }

    /// Counts and logs that a connection or stream did not get to a worker.
    pub fn unavailable(&self, error: &io::Error) {
        self.counters.count_failure(Failure::Unavailable);
        if let Some(left_out) = self.failures.admit(clock::now()) {
            log::warn!("a connection was refused: {error}{left_out}");
        }
    }

    /// A permit for a stream, which takes descriptors like a connection.
    pub fn admit_stream(&self) -> io::Result<SemaphorePermit<'_>> {
        let full = |_| io::Error::other("the gateway has no room for a stream; raise RLIMIT_NOFILE");
        self.room.try_acquire().map_err(full)
    }

    /// Reads the PROXY header of a trusted proxy, if the listener expects one. The client that it names may be refused
    /// (`QuotaExceeded`).
    async fn read_proxy_header(
        &self,
        is_expected: bool,
        peer: &Socket,
        client: &mut Client,
    ) -> io::Result<()> {
        let proxies = &self.config.admission.proxy;
        if !is_expected || !proxies.trusts(client.address.map(|address| address.ip())) {
            return Ok(());
        }
        let mut buffer = vec![0; PROXY_HEADER];
        let parsed = peer.peek(&mut buffer, |seen| proxy::parse(seen).transpose());
        let (named, consumed) = parsed.await?.ok_or(io::ErrorKind::UnexpectedEof)?.map_err(|bad| {
            log::warn!("malformed PROXY header from a trusted proxy: {bad}; connection dropped");
            io::Error::from(io::ErrorKind::InvalidData)
        })?;
        if named.is_some() {
            let named = self.clients.admit(named);
            *client = named.map_err(|Refused| io::Error::from(io::ErrorKind::QuotaExceeded))?;
        }
        let header = buffer.get_mut(..consumed).unwrap_or_default();
        match peer.read(header).await? {
            count if count == consumed => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Redirects one request to https.
    async fn redirect(&self, peer: &Socket, to: Option<&str>) -> io::Result<()> {
        let limits = &self.config.head;
        let mut buffer = vec![0; limits.bytes + 1];
        let response = peer.peek(&mut buffer, |seen| match head::parse(seen, limits) {
            Ok(Parsed::NeedMore) => None,
            Ok(Parsed::Head { head, .. }) => Some(redirection(&head, to)),
            Err(bad) => Some(bad.into()),
        });
        let Some(response) = response.await? else { return Ok(()) };
        peer.write_all(&response.into_bytes()).await?;
        end(peer).await;
        Ok(())
    }
}

/// Ends a connection after a response. Closing it with unread bytes would reset it before the client has read that.
async fn end(peer: &Socket) {
    peer.end();
    let mut buffer = vec![0; DISCARDED];
    let drain = async { while peer.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
    let _ = timeout(LINGER, drain).await;
}

fn redirection(head: &head::Head, to: Option<&str>) -> Response {
    let host = to.map(str::to_owned).or_else(|| head.host_and_port().map(|asked| asked.host.to_owned()));
    match host {
        Some(host) => {
            Response::redirect(SystemTime::now(), 308, &format!("https://{host}{}", head.resource()))
        }
        None => http::error(400, "the request has no Host", &[]),
    }
}

fn failure_of(error: &io::Error) -> Failure {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)) => {
            Failure::Certificate
        }
        Some(_) => Failure::Protocol,
        None => Failure::Closed,
    }
}

/// [`GatewayFacts`] that a connection owns.
#[derive(Clone, Default)]
pub struct OwnedFacts {
    is_tls: bool,
    is_resumed: bool,
    is_http2: bool,
    local: Option<Vec<u8>>,
    hsts: Option<String>,
    version: Option<&'static str>,
    cipher: Option<String>,
    server_name: Option<String>,
    alpn: Option<Vec<u8>>,
    subject: Option<String>,
    chain: Option<Vec<u8>>,
}

impl OwnedFacts {
    fn new(session: &Session, peer: &Socket, server_name: Option<String>, hsts: Option<String>) -> Self {
        let chain: Vec<u8> = session.chain().flatten().copied().collect();
        Self {
            is_tls: true,
            is_resumed: session.is_resumed(),
            is_http2: session.alpn() == Some(b"h2"),
            local: peer.local(),
            hsts,
            version: session.version(),
            cipher: session.cipher(),
            server_name,
            alpn: session.alpn().map(<[u8]>::to_vec),
            subject: session.chain().next().and_then(certificate::subject),
            chain: (!chain.is_empty()).then_some(chain),
        }
    }

    /// The value of Strict-Transport-Security.
    pub fn hsts(&self) -> Option<::http::HeaderValue> {
        self.hsts.as_deref().and_then(|hsts| ::http::HeaderValue::from_str(hsts).ok())
    }

    /// The form that is sent to workers.
    pub fn borrow(&self) -> GatewayFacts<'_> {
        GatewayFacts {
            is_tls: self.is_tls,
            is_resumed: self.is_resumed,
            is_http2: self.is_http2,
            local: self.local.as_deref(),
            hsts: self.hsts.as_deref().map(str::as_bytes),
            version: self.version.map(str::as_bytes),
            cipher: self.cipher.as_deref().map(str::as_bytes),
            server_name: self.server_name.as_deref().map(str::as_bytes),
            alpn: self.alpn.as_deref(),
            subject: self.subject.as_deref().map(str::as_bytes),
            chain: self.chain.as_deref(),
        }
    }
}
