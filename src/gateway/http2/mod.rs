//! HTTP/2 (RFC 9113): each stream becomes a connection to a worker, which gets the equivalent HTTP/1.1 request. An
//! extended CONNECT (RFC 8441) opens a WebSocket. Flow control is backpressure: bytes beyond the peer's window stay in
//! the socket pair and in the worker's queue.

mod body;
mod chunks;
mod request;
mod response;
mod stream;

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep, timeout};

use super::clients::{Client, Refused};
use super::server::{OwnedFacts, Server};

/// Maximum concurrent streams of a connection.
const STREAMS: u32 = 256;
/// Flow-control window of a stream; bytes. The default of RFC 9113 section 6.5.2.
const STREAM_WINDOW: u32 = 65_535;
/// Flow-control window of a connection; bytes.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Maximum bytes buffered for sending on a stream.
const SEND_BUFFER: usize = 64 * 1024;
/// Maximum streams reset before they were accepted.
const PENDING_RESETS: usize = 20;
/// Maximum streams that a peer may reset before the response, beyond the number of responses: more is an attack
/// (CVE-2023-44487).
const RESETS: u32 = 100;
/// A connection without a stream is closed after this time.
const IDLE: Duration = Duration::from_secs(60);
/// Time to send what is left when a connection is closed.
const CLOSE: Duration = Duration::from_secs(2);

/// What the streams of a connection share.
pub struct Connection {
    /// Shared by all connections.
    pub server: Arc<Server>,
    /// The client's address.
    pub client: Option<SocketAddr>,
    /// Facts about the connection.
    pub facts: OwnedFacts,
    /// Streams that got a response, and streams that the peer has reset before.
    answered: AtomicU32,
    reset: AtomicU32,
}

impl Connection {
    /// Counts a stream that got a response.
    pub fn count_answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a stream that the peer has reset before the response.
    pub fn count_reset(&self) {
        self.reset.fetch_add(1, Ordering::Relaxed);
    }

    fn is_abused(&self) -> bool {
        let answered = self.answered.load(Ordering::Relaxed);
        self.reset.load(Ordering::Relaxed) > RESETS.saturating_add(answered)
    }
}

/// Serves a connection to its end.
pub async fn serve<T>(server: &Arc<Server>, io: T, client: Client, facts: OwnedFacts) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &server.config.head;
    let mut builder = Builder::new();
    builder
        .enable_connect_protocol()
        .max_concurrent_streams(STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(limits.bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS);
    let limit = server.config.handshake_timeout;
    let connected = timeout(limit, builder.handshake::<_, Bytes>(io)).await;
    let mut h2 = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(failed)?;
    let shared = Arc::new(Connection {
        server: Arc::clone(server),
        client: client.address,
        facts,
        answered: AtomicU32::new(0),
        reset: AtomicU32::new(0),
    });
    let mut draining = server.draining.clone();
    let mut told_to_drain = pin!(async move { draining.wait_for(|is_draining| *is_draining).await.is_ok() });
    let mut is_draining = false;
    // While there is no stream: the connection is counted here.
    let mut idle: Option<(Client, Pin<Box<Sleep>>)> = Some((client, Box::pin(sleep(IDLE))));
    loop {
        let next = poll_fn(|cx| {
            if !is_draining && told_to_drain.as_mut().poll(cx).is_ready() {
                is_draining = true;
                h2.graceful_shutdown();
            }
            if let Poll::Ready(accepted) = h2.poll_accept(cx) {
                return Poll::Ready(Next::Accepted(accepted));
            }
            if shared.is_abused() {
                return Poll::Ready(Next::Abused);
            }
            match Arc::strong_count(&shared) {
                1 => {
                    let (_, timer) = match &mut idle {
                        Some(idle) => idle,
                        None => match server.clients.admit_again(shared.client) {
                            Ok(client) => idle.insert((client, Box::pin(sleep(IDLE)))),
                            Err(Refused) => return Poll::Ready(Next::Idle),
                        },
                    };
                    timer.as_mut().poll(cx).map(|()| Next::Idle)
                }
                _ => {
                    idle = None;
                    Poll::Pending
                }
            }
        });
        match next.await {
            Next::Accepted(Some(Ok((request, respond)))) => {
                idle = None;
                server.counters.streams.add_shared(1);
                tokio::spawn(stream::serve(Arc::clone(&shared), request, respond));
            }
            Next::Accepted(Some(Err(error))) => return Err(failed(error)),
            Next::Accepted(None) => return Ok(()),
            Next::Abused => {
                log::warn!(
                    "HTTP/2 client reset more than {RESETS} streams before the response; connection closed"
                );
                h2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                break;
            }
            Next::Idle => {
                h2.abrupt_shutdown(Reason::NO_ERROR);
                break;
            }
        }
    }
    let closed = poll_fn(|cx| h2.poll_closed(cx));
    let _ = timeout(CLOSE, closed).await; // dropping it closes it in any case
    Ok(())
}

/// The next event of a connection.
enum Next<T> {
    Accepted(T),
    Abused,
    Idle,
}

fn failed(error: h2::Error) -> io::Error {
    io::Error::other(error)
}
