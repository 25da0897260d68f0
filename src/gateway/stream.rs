//! HTTP/2 connections as byte streams for the crate `h2`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::relay::{poll_receive, poll_send};
use super::session::Session;
use super::socket::Socket;

/// Bytes encrypted at a time.
const BATCH: usize = 64 * 1024;

/// A connection with TLS.
pub struct TlsStream {
    peer: Socket,
    session: Box<Session>,
    /// Decrypted; not read yet from `at` on.
    received: Vec<u8>,
    at: usize,
}

impl TlsStream {
    /// `received` was received in the TLS connection and is not read yet.
    pub fn new(peer: Socket, session: Box<Session>, received: Vec<u8>) -> Self {
        Self { peer, session, received, at: 0 }
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { peer, session, received, at } = self.get_mut();
        loop {
            let waiting = received.get(*at..).unwrap_or_default();
            if !waiting.is_empty() {
                let count = waiting.len().min(buffer.remaining());
                buffer.put_slice(waiting.get(..count).unwrap_or_default());
                *at += count;
                if *at == received.len() {
                    (*received, *at) = (Vec::new(), 0);
                }
                return Poll::Ready(Ok(()));
            }
            if session.is_ended() {
                return Poll::Ready(Ok(()));
            }
            let mut has_data = false;
            let is_ended = ready!(poll_receive(peer, session, cx, |plain| {
                has_data = !plain.is_empty();
                let (now, later) = plain.split_at(plain.len().min(buffer.remaining()));
                buffer.put_slice(now);
                *received = later.to_vec();
            }));
            let is_ended = is_ended.inspect_err(|_| {
                let _ = poll_send(peer, session, cx); // the alert
            })?;
            if has_data || is_ended {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { peer, session, .. } = self.get_mut();
        ready!(poll_send(peer, session, cx))?;
        let bytes = bytes.get(..BATCH).unwrap_or(bytes);
        session.send(bytes).map_err(io::Error::other)?;
        match poll_send(peer, session, cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { peer, session, .. } = self.get_mut();
        poll_send(peer, session, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { peer, session, .. } = self.get_mut();
        session.send_end().map_err(io::Error::other)?;
        ready!(poll_send(peer, session, cx))?;
        peer.end();
        Poll::Ready(Ok(()))
    }
}

/// A connection without TLS.
pub struct PlainStream(pub Socket);

impl AsyncRead for PlainStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = ready!(self.0.poll_read(cx, buffer.initialize_unfilled()))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PlainStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.end();
        Poll::Ready(Ok(()))
    }
}
