//! Descriptors in the event loop of the runtime, and stream sockets of any family.

#![allow(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::fleet::sockets::datagram;

/// The owner of a descriptor that the event loop watches.
pub type Watched<T> = AsyncFd<Owner<T>>;

/// The owner of a descriptor.
pub struct Owner<T>(pub T);

impl<T: AsFd> AsFd for Owner<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T: AsFd> AsRawFd for Owner<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches a non-blocking descriptor.
pub fn watch<T: AsFd>(owner: T, interest: Interest) -> io::Result<Watched<T>> {
    // SAFETY: AsyncFd takes the owner, which keeps this descriptor open and is not changed while it is in there.
    Ok(unsafe { AsyncFd::register_with_interest(Owner(owner), interest)? })
}

/// A stream socket that never blocks.
pub struct Socket(Watched<socket2::Socket>);

impl Socket {
    /// `socket` is non-blocking.
    pub fn new(socket: socket2::Socket) -> io::Result<Self> {
        watch(socket, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// Reads into `buffer`; 0 at the end.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            match guard.try_io(|socket| (&socket.get_ref().0).read(buffer)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Ok(count)) => {
                    if (1..buffer.len()).contains(&count) {
                        guard.clear_ready(); // edge-triggered: new bytes are a new event
                    }
                    return Poll::Ready(Ok(count));
                }
                Ok(failed) => return Poll::Ready(failed),
                Err(_would_block) => {}
            }
        }
    }

    /// Writes some of `bytes`.
    pub fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|socket| (&socket.get_ref().0).write(bytes)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    /// Peeks at the received bytes until `enough` returns a result; `None` at the end of the stream, or if `buffer` is
    /// full.
    pub async fn peek<R>(
        &self,
        buffer: &mut [u8],
        mut enough: impl FnMut(&[u8]) -> Option<R>,
    ) -> io::Result<Option<R>> {
        loop {
            let mut guard = self.0.readable().await?;
            let count = match guard.try_io(|socket| {
                let (count, _) = recv(socket.get_ref(), &mut *buffer, RecvFlags::PEEK)?;
                Ok(count)
            }) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(count) => count?,
                Err(_would_block) => continue,
            };
            if let Some(result) = enough(buffer.get(..count).unwrap_or_default()) {
                return Ok(Some(result));
            }
            // Not: no more than before. The event of bytes that the last peek has returned may come after it.
            if count == buffer.len() || guard.ready().is_read_closed() {
                return Ok(None);
            }
            guard.clear_ready(); // edge-triggered: new bytes are a new event
        }
    }

    /// Ready when there is something to read, or the end. Reads nothing.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(cx).map_ok(|mut guard| guard.retain_ready())
    }

    /// Reads into `buffer`; 0 at the end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_read(cx, buffer)).await
    }

    /// Writes all of `bytes`.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = std::future::poll_fn(|cx| self.poll_write(cx, bytes)).await?;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Shuts the writing side down: the other side reads the end.
    pub fn end(&self) {
        let _ = self.0.get_ref().0.shutdown(Shutdown::Write); // fails if it is closed already
    }

    /// Bytes written that the other side has not acknowledged (TCP) or read (Unix); 0 if unknown.
    pub fn unacknowledged(&self) -> usize {
        datagram::unacknowledged(self.as_fd()).unwrap_or(0)
    }

    /// Whether the other side has closed both directions.
    pub fn is_gone(&self) -> bool {
        datagram::is_hung_up(self.as_fd())
    }

    /// Its local address as text.
    pub fn local(&self) -> Option<Vec<u8>> {
        let address = self.0.get_ref().0.local_addr().ok()?;
        match address.as_socket() {
            Some(address) => Some(address.to_string().into_bytes()),
            None => Some(address.as_pathname()?.as_os_str().as_encoded_bytes().to_vec()),
        }
    }

    /// The socket itself.
    pub fn into_inner(self) -> socket2::Socket {
        self.0.into_inner().0
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().0.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use socket2::{Domain, Type};
    use tokio::runtime::Builder;
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn a_late_event_is_not_the_end_of_a_peek() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) =
                socket2::Socket::pair(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
            let socket = Socket::new(ours).unwrap();
            (&theirs).write_all(b"1").unwrap();
            std::future::poll_fn(|cx| socket.poll_readable(cx)).await.unwrap();
            // The first peek returns this, too; its event comes later.
            (&theirs).write_all(b"2").unwrap();
            let write_later = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                (&theirs).write_all(b"3").unwrap();
            };
            let mut buffer = [0; 10];
            let peek = socket.peek(&mut buffer, |seen| (seen == b"123").then_some(()));
            let (peeked, ()) = tokio::join!(peek, write_later);
            assert_eq!(peeked.unwrap(), Some(()));
            theirs.shutdown(Shutdown::Write).unwrap();
            let peek = socket.peek(&mut buffer, |seen| (seen.len() == 4).then_some(()));
            let peeked = timeout(Duration::from_secs(10), peek).await.unwrap();
            assert_eq!(peeked.unwrap(), None, "the end");
        });
    }
}
