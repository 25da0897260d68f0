//! Copies the bytes of a stream in both directions. It reads from one side only after the other has accepted what was
//! read before, and holds no memory while the stream is idle.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::time::{Sleep, sleep};

use super::chunks::Chunks;
use crate::gateway::relay::{CHECK, LINGER, SCRATCH, STALL, Scratch};
use crate::gateway::socket::Socket;

/// Bytes sent at a time: a frame (RFC 9113 section 4.2).
const PIECE: usize = 16 * 1024;
/// Pieces in one turn, before other streams get theirs.
const TURN: usize = 16;

/// Where the stream is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// When both sides have ended.
    WebSocket,
    /// At the end of the response: its remaining bytes, if it has a Content-Length.
    Response(Option<u64>),
    /// At the end of its last chunk.
    Chunked(Chunks),
}

/// From the peer to the worker.
pub struct Inward {
    receive: RecvStream,
    /// Not written to the worker yet.
    undelivered: Bytes,
    /// Whether the end is passed on. That of a request is not: for HTTP/1.1 it would mean that the client has gone.
    passes_end: bool,
    has_ended: bool,
}

impl Inward {
    /// `passes_end`: it is a WebSocket.
    pub fn new(receive: RecvStream, passes_end: bool) -> Self {
        Self { receive, undelivered: Bytes::new(), passes_end, has_ended: false }
    }

    /// Takes one step.
    pub fn poll(&mut self, worker: &Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.undelivered.is_empty() {
            let Ok(count) = ready!(worker.poll_write(cx, &self.undelivered)) else {
                // The worker reads nothing more; what it has sent can still be read.
                self.release(self.undelivered.len())?;
                self.undelivered = Bytes::new();
                self.has_ended = true;
                return Poll::Ready(Ok(()));
            };
            self.undelivered.advance(count);
            return Poll::Ready(self.release(count));
        }
        if self.has_ended {
            return Poll::Pending;
        }
        match ready!(self.receive.poll_data(cx)) {
            Some(Ok(data)) => self.undelivered = data,
            Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            None => {
                self.has_ended = true;
                if self.passes_end {
                    worker.end();
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn release(&mut self, count: usize) -> io::Result<()> {
        self.receive.flow_control().release_capacity(count).map_err(io::Error::other)
    }
}

/// A stream after the head of the response.
pub struct Body {
    worker: Socket,
    inward: Inward,
    send: SendStream<Bytes>,
    /// From the worker, not sent to the peer yet.
    unsent: Bytes,
    end: End,
    has_worker_ended: bool,
    /// Something of the worker waits for the peer's windows.
    is_blocked: bool,
    /// Deadline of the peer's end, or the next check of a stream that waits for the peer's windows.
    timer: Option<Pin<Box<Sleep>>>,
    /// Time for which it has waited for the windows, as of the last check.
    stalled: Duration,
}

/// Progress of a direction.
#[derive(PartialEq, Eq)]
enum Step {
    Moved,
    Waits,
}

impl Body {
    /// `rest` followed the head of the worker's response.
    pub fn new(worker: Socket, inward: Inward, send: SendStream<Bytes>, rest: Vec<u8>, end: End) -> Self {
        let (has_worker_ended, is_blocked, timer, stalled) = (false, false, None, Duration::ZERO);
        Self { worker, inward, send, unsent: rest.into(), end, has_worker_ended, is_blocked, timer, stalled }
    }

    /// Runs to the end of the stream. An error resets it, so that the peer does not take it for complete. If it is
    /// complete and the peer still sends, h2 resets it with NO_ERROR once everything was sent (RFC 9113 section 8.1).
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
                Poll::Ready(result) => {
                    (self.timer, self.stalled) = (None, Duration::ZERO);
                    result.map(|()| Step::Moved)?
                }
                Poll::Pending => Step::Waits,
            };
            let inward = match self.inward.poll(&self.worker, cx) {
                Poll::Ready(result) => result.map(|()| Step::Moved)?,
                Poll::Pending => Step::Waits,
            };
            if self.has_worker_ended && (self.inward.has_ended || self.end != End::WebSocket) {
                return Poll::Ready(Ok(()));
            }
            if outward == Step::Waits && inward == Step::Waits {
                return self.poll_timer(cx);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// After the worker's end: completes the stream at the deadline of the peer's end. Before: fails if the worker has
    /// closed the pair and the peer does not open its windows.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_worker_ended && !self.is_blocked {
            self.timer = None;
            return Poll::Pending;
        }
        loop {
            let time = if self.has_worker_ended { LINGER } else { CHECK };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(time)));
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
            if self.has_worker_ended {
                return Poll::Ready(Ok(()));
            }
            self.stalled += CHECK;
            if self.stalled >= STALL && self.worker.is_gone() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
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
        self.is_blocked = true;
        let room = loop {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(0)) => {}
                Some(Ok(room)) => break room.min(PIECE),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        };
        self.is_blocked = false;
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
        let has_ended = piece.is_empty();
        let is_complete = match &mut self.end {
            End::WebSocket | End::Response(None) => has_ended,
            End::Response(Some(left)) => {
                piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= piece.len() as u64;
                *left == 0
            }
            End::Chunked(chunks) => {
                let malformed = |_| io::Error::from(io::ErrorKind::InvalidData);
                piece = chunks.decode(&piece).map_err(malformed)?.into();
                *chunks == Chunks::Complete
            }
        };
        if has_ended && !is_complete {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.has_worker_ended = is_complete;
        if is_complete || !piece.is_empty() {
            self.send.send_data(piece, is_complete).map_err(io::Error::other)?;
        }
        self.send.reserve_capacity(0);
        Poll::Ready(Ok(()))
    }
}
