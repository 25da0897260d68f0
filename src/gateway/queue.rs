//! The sending end of the queue of connections for workers. A connection is one end of a socket pair, or the peer's
//! socket itself, with the facts about it. If the queue is full, it waits for a bounded time.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Type};
use tokio::io::Interest;
use tokio::time::{sleep, timeout};

use super::socket::{Socket, Watched, watch};
use crate::fleet::sockets::facts::GatewayFacts;
use crate::fleet::sockets::gateway_queue::Preamble;

/// How long a connection may wait for room in the queue.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Delay before another attempt when too many descriptors are in flight (unix(7), ETOOMANYREFS): no event reports the
/// end of that.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// The sending end.
pub struct Queue(Watched<Arc<OwnedFd>>);

impl Queue {
    /// Must be called in the runtime of this process.
    pub fn new(tx: Arc<OwnedFd>) -> io::Result<Self> {
        watch(tx, Interest::WRITABLE).map(Self)
    }

    /// Opens a socket pair to a worker for this client; returns our end.
    pub async fn connect(&self, client: Option<SocketAddr>, facts: GatewayFacts<'_>) -> io::Result<Socket> {
        let pair = socket2::Socket::pair(Domain::UNIX, Type::STREAM.nonblocking(), None);
        let failed = |error| io::Error::other(format!("cannot create a socket pair: {error}"));
        let (ours, theirs) = pair.map_err(failed)?;
        self.push(theirs.as_fd(), client, facts).await?;
        Socket::new(ours)
    }

    /// Puts a connection into the queue.
    pub async fn push(
        &self,
        connection: impl AsFd,
        client: Option<SocketAddr>,
        facts: GatewayFacts<'_>,
    ) -> io::Result<()> {
        let facts = facts.to_bytes().ok_or(io::ErrorKind::FileTooLarge)?;
        let preamble = Preamble { peer: client, facts: &facts };
        let full = |_| io::Error::new(io::ErrorKind::TimedOut, "no worker took the connection in time");
        timeout(TIMEOUT, self.send(preamble, connection.as_fd())).await.map_err(full)?
    }

    async fn send(&self, preamble: Preamble<'_>, connection: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
        loop {
            let mut guard = self.0.writable().await?;
            match guard.try_io(|tx| preamble.send(tx.get_ref().0.as_fd(), connection)) {
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    sleep(RETRY_AFTER).await
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}
