//! Accepting connections, on the event loop: the listening sockets are in its poll with EPOLLEXCLUSIVE, so that a
//! connection wakes one of the workers that have nothing to do. A worker that is ahead of the others takes them out of
//! its poll; a thread, the accept throttle, puts them back.
//!
//! Why no connection waits while a worker could take it:
//! - Each that comes wakes one of the sleeping workers that have the sockets in their poll, and that one accepts at
//!   least one connection from there before it takes them out, however far ahead it is by then. With several in the
//!   queue as many were woken, and one that accepts more than one does the work of the others.
//! - If none of those sleeps, all of them find the socket ready when they poll next: it is level-triggered.
//! - If no poll has it, the least loaded worker may accept, and its throttle hears of each change of a load. What is
//!   put into a poll and is ready already is an event at once.
//! - A worker that is woken, and dies, leaves, hangs or has no descriptor before it accepts, takes the wake-up with it.
//!   So each worker that has the sockets in its poll looks for itself once in a second.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::fstat;
use socket2::{SockRef, Socket};

use crate::clock;
use crate::fleet::memory::scoreboard::Fault;
use crate::fleet::sockets::gateway_queue::{MAX_PREAMBLE, Preamble};
use crate::fleet::sockets::listener::{Listener, is_of_connection};
use crate::time::Instant;
use crate::worker::base::descriptors::Descriptors;
use crate::worker::base::poll::{LISTENER, Poll, SHARED};
use crate::worker::conn::record::foreign::Arrival;
use crate::worker::listen::share::FairShare;

/// Connections accepted at a time: others have their turn in between.
pub const AT_A_TIME: usize = 16;
/// How often to accept until there is nothing left.
const ALL: Duration = Duration::from_millis(1);
/// How often to look for connections without having been woken.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait before looking again if no load changes.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Time until the next attempt when epoll has no room.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Where connections come in: the listening sockets of a worker. Shared by its event loop and its throttle.
pub struct Acceptor {
    sockets: Vec<ListenSocket>,
    /// [`MAX_PREAMBLE`] bytes, whose pages cost nothing until used.
    preamble: Mutex<Vec<u8>>,
    poll: &'static Poll,
    descriptors: &'static Descriptors,
    /// How much of all connections this worker takes.
    pub share: FairShare,
    state: Mutex<AcceptState>,
    changed: Condvar,
    /// When the loop last looked for itself, and when it last tried to accept all; ns.
    looked: AtomicU64,
    tried_all: AtomicU64,
    /// The poll has a socket that cannot be taken out of it.
    is_stale: AtomicBool,
}

struct ListenSocket {
    source: Source,
    /// Its inode: a handler may close the descriptor, and have another file there.
    inode: Option<u64>,
    failed: AtomicBool,
    /// It is not in the poll, since the server drains.
    suspended: AtomicBool,
}

impl ListenSocket {
    fn new(source: Source) -> Self {
        Self { inode: inode(&source), source, failed: false.into(), suspended: false.into() }
    }

    fn is_intact(&self) -> bool {
        self.inode.is_some() && inode(&self.source) == self.inode
    }

    fn is_usable(&self) -> bool {
        !self.failed.load(Ordering::Relaxed) && !self.suspended.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AcceptState {
    /// The sockets are in the poll.
    Accepting,
    /// They are not: the throttle puts them back when this worker may accept, but not before this time has passed.
    Paused(Duration),
    /// They are not, and stay away.
    Closed,
}

impl Acceptor {
    /// Not accepting yet: its [throttle](Self::throttle) will begin.
    pub fn new(
        listeners: &[Arc<Listener>],
        gateways: Option<OwnedFd>,
        poll: &'static Poll,
        descriptors: &'static Descriptors,
        share: FairShare,
    ) -> Self {
        let listeners = listeners.iter().map(|listener| Source::Listener(Arc::clone(listener)));
        Self {
            sockets: listeners.chain(gateways.map(Source::Gateways)).map(ListenSocket::new).collect(),
            preamble: Mutex::new(vec![0; MAX_PREAMBLE]),
            poll,
            descriptors,
            share,
            state: Mutex::new(AcceptState::Paused(Duration::ZERO)),
            changed: Condvar::new(),
            looked: AtomicU64::new(clock::now().as_nanos()),
            tried_all: AtomicU64::default(),
            is_stale: false.into(),
        }
    }

    pub fn exists(&self) -> bool {
        !self.sockets.is_empty()
    }

    /// The throttle, on a thread of its own: starts accepting whenever that is paused and this worker may
    /// accept. Until it is closed.
    pub fn throttle(&self) {
        while let Some(pause) = self.wait_until_paused() {
            std::thread::sleep(pause);
            loop {
                let seen = self.share.scoreboard.tick();
                if self.is(AcceptState::Closed) || self.share.may_take() {
                    break;
                }
                self.share.scoreboard.wait(seen, LOOK_AGAIN);
            }
            self.open();
        }
    }

    /// Waits until accepting is paused: for how long at least; `None` once the sockets are closed.
    fn wait_until_paused(&self) -> Option<Duration> {
        let is_open = |state: &mut AcceptState| *state == AcceptState::Accepting;
        let state = self.changed.wait_while(self.lock(), is_open);
        match *state.unwrap_or_else(PoisonError::into_inner) {
            AcceptState::Paused(pause) => Some(pause),
            AcceptState::Accepting | AcceptState::Closed => None,
        }
    }

    fn open(&self) {
        let mut state = self.lock();
        if !matches!(*state, AcceptState::Paused(_)) {
            return;
        }
        *state = AcceptState::Accepting;
        for (socket, token) in self.sockets.iter().zip(LISTENER..) {
            if !socket.is_usable() {
                continue;
            }
            match self.poll.add_for(&socket.source, token, SHARED) {
                Ok(()) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOSPC)) => {
                    log::warn!("cannot watch {}: epoll: {error}; trying again", socket.source);
                    self.empty_poll();
                    *state = AcceptState::Paused(RETRY_AFTER);
                    return;
                }
                Err(error) => self.lose(socket, &error),
            }
        }
    }

    /// Accepts no more until the throttle finds that this worker may. [event loop]
    fn pause(&self) {
        let mut state = self.lock();
        if *state == AcceptState::Accepting {
            *state = AcceptState::Paused(Duration::ZERO);
            self.is_stale.fetch_or(!self.empty_poll(), Ordering::Relaxed);
            self.changed.notify_one();
        }
    }

    pub fn close(&self) {
        let mut state = self.lock();
        if *state == AcceptState::Accepting {
            self.is_stale.fetch_or(!self.empty_poll(), Ordering::Relaxed);
        }
        *state = AcceptState::Closed;
        self.changed.notify_one();
    }

    /// False: a socket cannot be taken out of the poll.
    fn empty_poll(&self) -> bool {
        let sockets = self.sockets.iter().filter(|socket| socket.is_usable());
        sockets.filter(|socket| !self.poll.forget(&socket.source)).count() == 0
    }

    /// The listening socket with this number; `None`: there is none, or gateways leave connections there.
    pub fn listener(&self, number: usize) -> Option<&Listener> {
        match &self.sockets.get(number)?.source {
            Source::Listener(listener) => Some(listener),
            Source::Gateways(_) => None,
        }
    }

    pub fn sockets(&self) -> usize {
        self.sockets.len()
    }

    pub fn is_accepting(&self) -> bool {
        self.is(AcceptState::Accepting)
    }

    /// Whether it is time to accept although nobody was woken. [event loop]
    pub fn is_poll_due(&self, now: Instant) -> bool {
        is_due(&self.looked, LOOK, now)
    }

    /// How many connections to accept in a turn of the loop with so many events. Where there is none left, accept4
    /// takes as long as where there is one: so in short turns a few, which are likely to be there. [event loop]
    pub fn budget(&self, events: usize, now: Instant) -> usize {
        if is_due(&self.tried_all, ALL, now) { AT_A_TIME } else { (events / 4).clamp(1, AT_A_TIME) }
    }

    /// Gives `take` the next connection that waits at a socket, and what is known of it. False: there is none.
    /// [event loop]
    pub fn accept(&self, number: usize, take: impl FnOnce(Socket, &Arrival<'_>)) -> bool {
        if self.is(AcceptState::Closed) {
            return false;
        }
        let Some(socket) = self.sockets.get(number).filter(|socket| socket.is_usable()) else {
            return false;
        };
        if self.suspend_if_draining(socket) {
            return false;
        }
        let mut preamble = self.preamble.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..AT_A_TIME {
            let accepted = match &socket.source {
                Source::Listener(listener) => accept(listener),
                Source::Gateways(queue) => self.receive(queue, &mut preamble),
            };
            match accepted {
                Ok((connection, arrival)) => {
                    take(connection, &arrival);
                    return true;
                }
                Err(Errno::EAGAIN) => return false,
                Err(error) if is_of_connection(error as i32) => {}
                Err(error @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)) => {
                    self.descriptors.ran_out(error);
                    self.pause();
                    return false;
                }
                // It was shut down: by the supervisor, or by a handler, and the supervisor listens on it again.
                Err(Errno::EINVAL) if socket.is_intact() => {
                    self.suspend(socket);
                    return false;
                }
                Err(error) => {
                    self.lose(socket, &error);
                    self.is_stale.store(true, Ordering::Relaxed);
                    return false;
                }
            }
        }
        false
    }

    /// While the server drains nothing is accepted but what gateways have accepted, and what has to be refused here.
    /// [event loop]
    fn suspend_if_draining(&self, socket: &ListenSocket) -> bool {
        let may_suspend =
            matches!(&socket.source, Source::Listener(listener) if !listener.is_refused_by_workers());
        let is_suspended = may_suspend && !self.share.scoreboard.bulletin().readiness().accepts();
        if is_suspended {
            self.suspend(socket);
        }
        is_suspended
    }

    /// Until [`Acceptor::resume`].
    fn suspend(&self, socket: &ListenSocket) {
        let _state = self.lock(); // the throttle may be putting it into the poll
        self.poll.forget(&socket.source);
        socket.suspended.store(true, Ordering::Relaxed);
    }

    /// Once in a second: the server may have resumed. [event loop]
    pub fn resume(&self) {
        if !self.share.scoreboard.bulletin().readiness().accepts() {
            return;
        }
        let state = self.lock();
        for (socket, token) in self.sockets.iter().zip(LISTENER..) {
            let was_suspended = socket.suspended.swap(false, Ordering::Relaxed);
            if was_suspended
                && *state == AcceptState::Accepting
                && let Err(error) = self.poll.add_for(&socket.source, token, SHARED)
            {
                log::warn!("cannot watch {}: epoll: {error}; trying again", socket.source);
                socket.suspended.store(true, Ordering::Relaxed);
            }
        }
    }

    fn receive<'a>(&self, queue: &OwnedFd, preamble: &'a mut [u8]) -> Result<(Socket, Arrival<'a>), Errno> {
        // Without a free descriptor the connection would be lost (recvmsg(2), MSG_CTRUNC).
        if !self.descriptors.make_room(1) {
            return Err(Errno::EMFILE);
        }
        let received = Preamble::receive(queue, preamble);
        self.descriptors.refill();
        match received {
            // The gateway has read the header of a proxy, if there was to be one.
            Ok((Preamble { peer, facts }, connection)) => {
                Ok((connection.into(), Arrival { peer, has_proxy_header: true, facts: Some(facts), mark: 0 }))
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                log::error!("{GATEWAYS}: malformed preamble; connection dropped");
                Err(Errno::EINTR)
            }
            // The supervisor has died: nobody can send.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Errno::EINVAL),
            Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(0))),
        }
    }

    fn lose(&self, socket: &ListenSocket, error: &dyn fmt::Display) {
        log::error!("accept on {}: {error}; this worker no longer accepts connections on it", socket.source);
        socket.failed.store(true, Ordering::Relaxed);
        self.share.slot.set_fault(Some(Fault::Listener));
    }

    /// A socket whose descriptor a handler has closed cannot be taken out of a poll (epoll(7), Q6), and would be ready
    /// forever: so all that is in the poll is forgotten. True: it is, and has to be added anew. [event loop]
    pub fn renew_poll(&self) -> bool {
        if !self.is_stale.load(Ordering::Relaxed) {
            return false;
        }
        self.is_stale.store(false, Ordering::Relaxed);
        let mut state = self.lock();
        self.descriptors.make_room_for_command();
        let renewed = self.poll.renew();
        self.descriptors.refill();
        if let Err(error) = &renewed {
            log::error!("epoll: {error}; the event loop is busy until this worker is replaced");
        } else if *state == AcceptState::Accepting {
            *state = AcceptState::Paused(Duration::ZERO);
            self.changed.notify_one();
        }
        renewed.is_ok()
    }

    /// Whether this worker may take one more; if not, it accepts no more until it may. [event loop]
    pub fn may_go_on(&self) -> bool {
        let may = self.share.may_take();
        if !may {
            if self.share.is_full() {
                self.share.watch_saturation();
            }
            self.pause();
        }
        may
    }

    fn is(&self, state: AcceptState) -> bool {
        *self.lock() == state
    }

    fn lock(&self) -> MutexGuard<'_, AcceptState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What connections are taken from. All workers of the pool share it.
enum Source {
    Listener(Arc<Listener>),
    /// The receiving end of the queue in which gateways leave connections.
    Gateways(OwnedFd),
}

/// The name of the queue in the log.
const GATEWAYS: &str = "the queue of the gateways";

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Source::Listener(listener) => listener.as_fd(),
            Source::Gateways(queue) => queue.as_fd(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Listener(listener) => listener.address.fmt(f),
            Source::Gateways(_) => f.write_str(GATEWAYS),
        }
    }
}

/// Whether so much time has passed since the instant in `last`, which then is the present one.
fn is_due(last: &AtomicU64, interval: Duration, now: Instant) -> bool {
    let is_due = now.since(Instant::from_nanos(last.load(Ordering::Relaxed))) >= interval;
    if is_due {
        last.store(now.as_nanos(), Ordering::Relaxed);
    }
    is_due
}

fn inode(source: &Source) -> Option<u64> {
    fstat(source).ok().map(|status| status.st_ino)
}

/// The next connection, and the peer's address if that is one of IP.
fn accept<'a>(listener: &Listener) -> Result<(Socket, Arrival<'a>), Errno> {
    let accepted = SockRef::from(listener).accept4(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
    let (socket, address) = accepted.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    Ok((socket, Arrival { peer: address.as_socket(), ..Arrival::default() }))
}
