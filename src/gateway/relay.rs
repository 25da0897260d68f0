//! Relays between a TLS connection and a worker. Each direction reads what is available, writes it at once, and reads
//! no more until that is written: memory is bounded, and an idle connection holds none.
//!
//! The worker sees the same as of a plain connection: close_notify and FIN end the stream, a TLS error or a reset
//! closes the pair. When the worker ends its stream, the peer gets close_notify and FIN.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::session::Session;
use super::socket::Socket;

/// Bytes read at a time.
const BATCH: usize = 64 * 1024;
/// Maximum bytes of a partly received message.
const UNREAD: usize = 80 * 1024;
/// Batches in one turn, before other connections get theirs.
const TURN: usize = 16;
/// Time for the peer to close its end after the worker has ended.
pub const LINGER: Duration = Duration::from_secs(2);
/// Time without progress of the peer after which it is given up, once the worker has ended.
pub const STALL: Duration = Duration::from_secs(30);
/// Interval of checks whether the peer makes progress and the worker is still there.
pub const CHECK: Duration = Duration::from_secs(5);

/// Buffers that all connections of the process use in turn.
pub struct Scratch {
    /// Bytes read.
    pub buffer: Vec<u8>,
    /// Bytes decrypted.
    pub plain: Vec<u8>,
    /// Bytes encrypted.
    pub encrypted: Vec<u8>,
}

thread_local! {
    /// The buffers of this thread's connections.
    pub static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        buffer: vec![0; BATCH + UNREAD],
        plain: Vec::new(),
        encrypted: Vec::new(),
    });
}

/// Receives from a TLS connection, and passes the decrypted bytes to `take`. Ready with true: the peer has ended.
pub fn poll_receive(
    socket: &Socket,
    session: &mut Session,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]),
) -> Poll<io::Result<bool>> {
    SCRATCH.with_borrow_mut(|Scratch { buffer, plain, .. }| {
        let before = session.unread().len();
        let room = buffer.get_mut(before..before + BATCH).unwrap_or_default();
        let count = match socket.poll_read(cx, room) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Ok(true)),
            Poll::Ready(Ok(count)) => count,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        };
        let received = buffer.get_mut(..before + count).unwrap_or_default();
        plain.clear();
        let result = session.receive(received, plain);
        take(plain);
        Poll::Ready(result.map(|()| session.is_ended()).map_err(io::Error::other))
    })
}

/// Writes the session's unsent bytes. Pending: some are left.
pub fn poll_send(socket: &Socket, session: &mut Session, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    while !session.unsent().is_empty() {
        match socket.poll_write(cx, session.unsent()) {
            Poll::Ready(Ok(count)) => session.sent(count),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
    }
    Poll::Ready(Ok(()))
}

/// One connection and its worker.
pub struct Relay {
    peer: Socket,
    session: Box<Session>,
    worker: Socket,
    /// Decrypted, not written to the worker yet.
    undelivered: Vec<u8>,
    /// Unsent bytes wait until the peer's socket is writable.
    is_blocked: bool,
    /// Nothing more is read from the peer: it has ended, or the worker reads no more.
    has_peer_ended: bool,
    /// The end was passed on to the worker.
    has_told_worker: bool,
    /// The worker has ended, and close_notify is sent or among the unsent bytes.
    has_worker_ended: bool,
    /// Deadline of the end, or the next check of a blocked connection.
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes that the peer had not acknowledged at the last check, and the time for which it has acknowledged none.
    stalled: (usize, Duration),
}

/// Progress of a direction.
#[derive(PartialEq, Eq)]
enum Step {
    Moved,
    /// Waits for a socket.
    Waits,
}

impl Relay {
    /// `received` was received in the TLS connection and is not relayed yet.
    pub fn new(peer: Socket, session: Box<Session>, worker: Socket, received: Vec<u8>) -> Self {
        let has_peer_ended = session.is_ended();
        let (is_blocked, has_told_worker, has_worker_ended, timer) = (false, false, false, None);
        let stalled = (0, Duration::ZERO);
        Self {
            peer,
            session,
            worker,
            undelivered: received,
            is_blocked,
            has_peer_ended,
            has_told_worker,
            has_worker_ended,
            timer,
            stalled,
        }
    }

    /// Relays until both ends are closed, or one has failed.
    pub async fn run(mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..TURN {
            let outward = self.step_outward(cx)?;
            let inward = self.step_inward(cx)?;
            if self.is_over() {
                return Poll::Ready(Ok(()));
            }
            if outward == Step::Waits && inward == Step::Waits {
                return self.poll_timer(cx);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_over(&self) -> bool {
        self.has_worker_ended && self.has_peer_ended && self.session.unsent().is_empty()
    }

    /// From the peer to the worker.
    fn step_inward(&mut self, cx: &mut Context<'_>) -> io::Result<Step> {
        if !self.undelivered.is_empty() {
            return Ok(match self.worker.poll_write(cx, &self.undelivered) {
                Poll::Ready(Ok(count)) if count == self.undelivered.len() => {
                    self.undelivered = Vec::new();
                    Step::Moved
                }
                Poll::Ready(Ok(count)) => {
                    self.undelivered.drain(..count);
                    Step::Moved
                }
                Poll::Ready(Err(_)) => self.discard(),
                Poll::Pending => Step::Waits,
            });
        }
        if self.has_peer_ended {
            if !std::mem::replace(&mut self.has_told_worker, true) {
                self.worker.end();
            }
            return Ok(Step::Waits);
        }
        let Self { peer, session, worker, undelivered, has_told_worker, .. } = self;
        let mut is_worker_gone = false;
        let received = poll_receive(peer, session, cx, |plain| {
            // Without a waker: the next step writes what is left.
            if plain.is_empty() || *has_told_worker {
                return;
            }
            match worker.poll_write(&mut Context::from_waker(Waker::noop()), plain) {
                Poll::Ready(Ok(count)) => *undelivered = plain.get(count..).unwrap_or_default().to_vec(),
                Poll::Ready(Err(_)) => is_worker_gone = true,
                Poll::Pending => *undelivered = plain.to_vec(),
            }
        });
        match received {
            Poll::Pending => Ok(Step::Waits),
            Poll::Ready(received) => {
                if is_worker_gone {
                    self.discard();
                }
                match received {
                    Ok(is_end) => self.has_peer_ended |= is_end,
                    Err(error) => {
                        // The alert, if it can be sent at once.
                        let _ = poll_send(&self.peer, &mut self.session, cx);
                        return Err(error);
                    }
                }
                Ok(Step::Moved)
            }
        }
    }

    /// The worker reads no more: discards what it was to get.
    fn discard(&mut self) -> Step {
        self.undelivered = Vec::new();
        (self.has_peer_ended, self.has_told_worker) = (true, true);
        Step::Moved
    }

    /// From the worker to the peer.
    fn step_outward(&mut self, cx: &mut Context<'_>) -> io::Result<Step> {
        if self.is_blocked {
            return Ok(match poll_send(&self.peer, &mut self.session, cx)? {
                Poll::Ready(()) => {
                    (self.is_blocked, self.timer) = (false, None);
                    if self.has_worker_ended {
                        self.end();
                    }
                    Step::Moved
                }
                Poll::Pending => Step::Waits,
            });
        }
        if self.has_worker_ended {
            return Ok(Step::Waits);
        }
        let Self { peer, session, worker, .. } = self;
        let count = SCRATCH.with_borrow_mut(|Scratch { buffer, encrypted, .. }| {
            let room = buffer.get_mut(..BATCH).unwrap_or_default();
            let count = match worker.poll_read(cx, room) {
                Poll::Ready(Ok(count)) => count,
                // The worker has closed the pair with unread bytes in it.
                Poll::Ready(Err(_)) => 0,
                Poll::Pending => return Ok(None),
            };
            // Unsent bytes of TLS itself go first: a ticket, or the reply to a key update.
            encrypted.clear();
            encrypted.extend_from_slice(session.unsent());
            session.keep_unsent(&[]);
            session.swap_unsent(encrypted);
            let result = match count {
                0 => session.send_end(),
                count => session.send(buffer.get(..count).unwrap_or_default()),
            };
            session.swap_unsent(encrypted);
            result.map_err(io::Error::other)?;
            let written = match peer.poll_write(cx, encrypted) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            session.keep_unsent(encrypted.get(written..).unwrap_or_default());
            Ok::<_, io::Error>(Some(count))
        })?;
        match count {
            None => Ok(Step::Waits),
            Some(count) => {
                self.is_blocked = !self.session.unsent().is_empty();
                if count == 0 {
                    self.has_worker_ended = true;
                    self.end();
                }
                Ok(Step::Moved)
            }
        }
    }

    /// The worker has ended: shuts the peer's connection down once everything was sent, and sets the deadline.
    fn end(&mut self) {
        if self.session.unsent().is_empty() {
            self.peer.end();
            self.timer = Some(Box::pin(sleep(LINGER)));
        }
    }

    /// Fails at the deadline of the end, or if the worker is gone and the peer reads nothing for [`STALL`]. A slow peer
    /// gets all that the worker has sent.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_blocked && self.timer.is_none() {
            self.stalled = (self.unacknowledged(), Duration::ZERO);
            self.timer = Some(Box::pin(sleep(CHECK)));
        }
        loop {
            let Some(timer) = &mut self.timer else { return Poll::Pending };
            ready!(timer.as_mut().poll(cx));
            if !self.is_blocked {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let (before, now) = (self.stalled.0, self.unacknowledged());
            self.stalled = (now, if now == before { self.stalled.1 + CHECK } else { Duration::ZERO });
            if self.stalled.1 >= STALL && (self.has_worker_ended || self.worker.is_gone()) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.timer = Some(Box::pin(sleep(CHECK)));
        }
    }

    fn unacknowledged(&self) -> usize {
        self.session.unsent().len() + self.peer.unacknowledged()
    }
}
