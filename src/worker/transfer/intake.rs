//! This slot's inbox: whether the event loop waits for what comes, and the datagram whose connections are being
//! adopted.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::clock;
use crate::fleet::sockets::inbox;
use crate::fleet::sockets::queue::SocketQueue;
use crate::log::Limit;
use crate::worker::base::descriptors::Descriptors;
use crate::worker::base::poll::{INBOX, Poll};
use crate::worker::conn::handoff::{Arrivals, Entry};
use crate::worker::crash::signals::uninterrupted;

/// Time between two lines about what was no connection.
const JUNK_INTERVAL: Duration = Duration::from_secs(10);

pub struct Intake {
    pub inbox: SocketQueue,
    poll: &'static Poll,
    /// Room for descriptors that come.
    descriptors: &'static Descriptors,
    /// Whether the event loop waits for them: not before this worker serves, nor while there is no room for them.
    is_watched: Cell<bool>,
    /// Somebody has shut it down: nothing comes any more.
    is_lost: Cell<bool>,
    /// Connections that have come and are not in the table yet.
    arrivals: RefCell<&'static mut Arrivals>,
    /// The process that has sent them.
    sender: Cell<i32>,
    /// Of lines about what has come that was no connection: the sender may send many.
    junk: Limit,
}

impl Intake {
    pub fn new(
        inbox: SocketQueue,
        poll: &'static Poll,
        descriptors: &'static Descriptors,
        arrivals: &'static mut Arrivals,
    ) -> Self {
        let (is_watched, is_lost) = (Cell::new(false), Cell::new(false));
        let (arrivals, sender) = (RefCell::new(arrivals), Cell::default());
        let junk = Limit::new(1, JUNK_INTERVAL);
        Intake { inbox, poll, descriptors, is_watched, is_lost, arrivals, sender, junk }
    }

    /// Has the event loop wait for connections from other processes.
    pub fn watch(&self) {
        if self.is_watched.get() || self.is_lost.get() {
            return;
        }
        match self.poll.add(&self.inbox.rx, INBOX) {
            Ok(()) => self.is_watched.set(true),
            Err(error) => log::error!("cannot watch the inbox: {error}; trying again"),
        }
    }

    /// The same after the poll has forgotten all.
    pub fn rewatch(&self) {
        if self.is_watched.replace(false) {
            self.watch();
        }
    }

    /// Nothing comes any more. False: that was known.
    pub fn lose(&self) -> bool {
        self.unwatch();
        !self.is_lost.replace(true)
    }

    fn unwatch(&self) {
        if self.is_watched.replace(false) {
            self.poll.forget(&self.inbox.rx);
        }
    }

    /// Receives a datagram. Where there are not enough descriptors for those in it, it stays for later, or for another
    /// worker.
    pub fn receive(&self, from: BorrowedFd<'_>) -> io::Result<()> {
        let count = inbox::next_fds(from)?;
        if !self.descriptors.make_room(count) {
            self.unwatch();
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let received = uninterrupted(|| self.arrivals.borrow_mut().receive(from));
        self.descriptors.refill();
        let (received, sender) = received?;
        self.sender.set(sender);
        let lost = count.saturating_sub(received);
        if lost > 0 {
            self.complain(&format!(
                "{lost} of {count} connections are missing: forged, or another thread took the last descriptors"
            ));
        }
        Ok(())
    }

    /// Logs what has come that was no connection.
    pub fn complain(&self, what: &str) {
        if let Some(left_out) = self.junk.admit(clock::now()) {
            log::error!("inbox: from process {}: {what}{left_out}", self.sender.get());
        }
    }

    /// Has the first connection of the datagram adopted; `None` when all were. A crash of another thread finds it
    /// either there or in the table.
    pub fn take_first<R>(&self, adopt: impl FnOnce(OwnedFd, &Entry<'_>) -> Option<R>) -> Option<Option<R>> {
        uninterrupted(|| {
            self.arrivals.borrow_mut().take_first(|fd, entry| match entry {
                Some(entry) => adopt(fd, entry),
                None => {
                    self.complain("malformed handoff entry; connection dropped");
                    None
                }
            })
        })
    }
}
