//! Copies the bytes of a stream in both directions. It reads from one side only after the other has accepted what was
//! read before, and holds no memory while the stream is idle.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};

use crate::gateway::relay::{SCRATCH, Scratch};
use crate::gateway::socket::Socket;

/// Bytes sent at a time: a frame (RFC 9113 section 4.2).
const PIECE: usize = 16 * 1024;
/// Pieces in one turn, before other streams get theirs.
const TURN: usize = 16;

/// When the stream is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// When both sides have ended: it is a WebSocket.
    OfBoth,
    /// At the end of the response: its remaining bytes, if it has a Content-Length.
    OfResponse(Option<u64>),
}

/// A stream after the head of the response.
pub struct Body {
    worker: Socket,
    receive: RecvStream,
    send: SendStream<Bytes>,
    /// From the peer, not written to the worker yet.
    undelivered: Bytes,
    /// From the worker, not sent to the peer yet.
    unsent: Bytes,
    end: End,
    has_peer_ended: bool,
    has_worker_ended: bool,
}

/// Progress of a direction.
#[derive(PartialEq, Eq)]
enum Step {
    Moved,
    Waits,
}

impl Body {
    /// `rest` followed the head of the worker's response.
    pub fn new(
        worker: Socket,
        receive: RecvStream,
        send: SendStream<Bytes>,
        rest: Vec<u8>,
        end: End,
    ) -> Self {
        let (has_peer_ended, has_worker_ended) = (false, false);
        let undelivered = Bytes::new();
        Self {
            worker,
            receive,
            send,
            undelivered,
            unsent: rest.into(),
            end,
            has_peer_ended,
            has_worker_ended,
        }
    }

    /// Runs to the end of the stream. An error resets it, so that the peer does not take it for complete. If the
    /// response is complete and the peer still sends, h2 resets it with NO_ERROR once everything was sent (RFC 9113
    /// section 8.1).
    pub async fn run(mut self) {
        if poll_fn(|cx| self.poll(cx)).await.is_err() {
            self.send.send_reset(Reason::CANCEL);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..TURN {
            // The peer has reset the stream, or the connection is gone.
            if self.send.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let outward = match self.poll_outward(cx) {
                Poll::Ready(result) => result.map(|()| Step::Moved)?,
                Poll::Pending => Step::Waits,
            };
            let inward = match self.poll_inward(cx) {
                Poll::Ready(result) => result.map(|()| Step::Moved)?,
                Poll::Pending => Step::Waits,
            };
            if self.has_worker_ended && (self.has_peer_ended || self.end != End::OfBoth) {
                return Poll::Ready(Ok(()));
            }
            if outward == Step::Waits && inward == Step::Waits {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// From the peer to the worker.
    fn poll_inward(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.undelivered.is_empty() {
            let Ok(count) = ready!(self.worker.poll_write(cx, &self.undelivered)) else {
                // The worker reads nothing more; what it has sent can still be read.
                self.release(self.undelivered.len())?;
                self.undelivered = Bytes::new();
                self.has_peer_ended = true;
                return Poll::Ready(Ok(()));
            };
            self.undelivered.advance(count);
            return Poll::Ready(self.release(count));
        }
        if self.has_peer_ended {
            return Poll::Pending;
        }
        match ready!(self.receive.poll_data(cx)) {
            Some(Ok(data)) => self.undelivered = data,
            Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            None => {
                self.has_peer_ended = true;
                self.worker.end();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn release(&mut self, count: usize) -> io::Result<()> {
        self.receive.flow_control().release_capacity(count).map_err(io::Error::other)
    }

    /// From the worker to the peer.
    fn poll_outward(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_worker_ended {
            return Poll::Pending;
        }
        // Capacity of the connection is reserved only if there is something to send.
        if self.unsent.is_empty() {
            ready!(self.worker.poll_readable(cx))?;
        }
        self.send.reserve_capacity(PIECE);
        let room = loop {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(0)) => {}
                Some(Ok(room)) => break room.min(PIECE),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        };
        let piece = if self.unsent.is_empty() {
            SCRATCH.with_borrow_mut(|Scratch { buffer, .. }| {
                let buffer = buffer.get_mut(..room).unwrap_or_default();
                let count = self.worker.poll_read(cx, buffer);
                count.map(|count| {
                    count.map(|count| Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default()))
                })
            })
        } else {
            Poll::Ready(Ok(self.unsent.split_to(room.min(self.unsent.len()))))
        };
        let Poll::Ready(piece) = piece else {
            self.send.reserve_capacity(0);
            return Poll::Pending;
        };
        // An error is an end, too: the worker has closed the pair with unread bytes in it.
        let mut piece = piece.unwrap_or_default();
        let mut is_last = piece.is_empty();
        if let End::OfResponse(Some(left)) = &mut self.end {
            piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= piece.len() as u64;
            if is_last && *left > 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            is_last |= *left == 0;
        }
        self.has_worker_ended = is_last;
        self.send.send_data(piece, is_last).map_err(io::Error::other)?;
        self.send.reserve_capacity(0);
        Poll::Ready(Ok(()))
    }
}
