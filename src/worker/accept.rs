//! Accept threads: one for each listening socket, in blocking `accept4`, which
//! the kernel wakes in turn. A worker that is ahead of the others holds back.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Pid, gettid};
use socket2::{SockRef, Socket};

use super::counting::Counting;
use super::doors::{self, Doors};
use super::mailroom::{Command, Mailroom};
use super::signals::interrupt;
use crate::fleet::addresses::Refusal;
use crate::fleet::listener::Listener;
use crate::fleet::scoreboard::{Scoreboard, Slot, State, now};

/// A worker whose loop has not turned for so long (ns) neither accepts nor is waited for.
const STALE: u64 = 3_000_000_000;
/// How long to hold back before looking again, should no load change meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often to interrupt the accept threads; a millisecond each.
const CLOSE_TRIES: u32 = 1000;
/// Pause when descriptors or memory have run out.
const BREATHE: Duration = Duration::from_millis(100);

/// The way in, for all accept threads of a worker; once closed it stays closed.
#[derive(Default)]
pub struct Gate {
    closed: AtomicBool,
    /// Threads that may be in accept.
    threads: Mutex<Vec<Pid>>,
}

impl Gate {
    /// Lets nothing more in. When it returns no accept thread runs any more, and what they have accepted lies in
    /// the mailroom.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for _ in 0..CLOSE_TRIES {
            let threads = self.threads().clone();
            if threads.is_empty() {
                return;
            }
            // One that was just about to call accept is missed, and gets the signal the next time.
            threads.into_iter().for_each(interrupt);
            std::thread::sleep(Duration::from_millis(1));
        }
        log::warn!("an accept thread does not end");
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<Pid>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an accept thread needs.
pub struct Acceptor {
    /// The listening socket.
    pub listener: Arc<Listener>,
    /// For the load of all workers.
    pub scoreboard: &'static Scoreboard,
    /// This worker's place in it.
    pub slot: usize,
    /// Most connections of this worker.
    pub connections: u32,
    /// Counts them.
    pub counting: &'static Counting,
    /// Where accepted connections go.
    pub mailroom: &'static Mailroom,
    /// Whether to accept at all.
    pub gate: &'static Gate,
    /// Whom to let in.
    pub doors: &'static Doors,
}

impl Acceptor {
    /// Accepts until the gate is closed or the socket fails for good.
    pub fn run(self) {
        let me = gettid();
        self.gate.threads().push(me);
        if let Some(slot) = self.scoreboard.slot(self.slot) {
            self.accept(slot);
        }
        self.gate.threads().retain(|thread| *thread != me);
    }

    fn accept(&self, slot: &Slot) {
        while self.hold_back(slot) {
            let (socket, peer) = match accept(&self.listener) {
                Ok(accepted) => accepted,
                // accept(2): errors of the connection that was waiting, not of the socket.
                Err(Errno::EINTR | Errno::EAGAIN | Errno::ECONNABORTED | Errno::EPROTO | Errno::EPERM) => {
                    continue;
                }
                Err(Errno::ENETDOWN | Errno::ENOPROTOOPT | Errno::EHOSTDOWN | Errno::ENONET) => continue,
                Err(Errno::EHOSTUNREACH | Errno::EOPNOTSUPP | Errno::ENETUNREACH) => continue,
                Err(error @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)) => {
                    log::warn!("accept on {}: {error}; trying again", self.listener.address);
                    std::thread::sleep(BREATHE);
                    continue;
                }
                Err(error) => {
                    log::error!(
                        "accept on {}: {error}; this worker accepts no more there",
                        self.listener.address
                    );
                    return;
                }
            };
            let ticket = match self.doors.admit(peer) {
                Ok(ticket) => ticket,
                Err(refusal) => {
                    self.turn_away(slot, socket, peer, refusal);
                    continue;
                }
            };
            slot.connections.fetch_add(1, Ordering::Relaxed);
            self.counting.place.accepted.add_shared(1);
            self.scoreboard.changed();
            // From here on a crash does not lose it (see is_just_accepted() for before).
            let place = self.mailroom.enter_lobby(&socket);
            if peer.is_some() {
                // Only a hint for latency; a socket that refuses it works all the same.
                let _ = SockRef::from(&socket).set_tcp_nodelay(true);
            }
            self.mailroom.give(Command::Accepted(socket, peer, ticket, place));
        }
    }

    /// A connection is over a limit. That costs little, and takes no more than half of the room for connections.
    fn turn_away(&self, slot: &Slot, socket: Socket, peer: Option<SocketAddr>, refusal: Refusal) {
        self.doors.note(refusal, peer, "");
        if load(slot) >= self.connections / 2 || !self.doors.may_explain() {
            return doors::cut(&socket, refusal);
        }
        slot.connections.fetch_add(1, Ordering::Relaxed);
        self.scoreboard.changed();
        self.mailroom.give(Command::TurnedAway(socket, refusal));
    }

    /// Waits until this worker may take a connection; false when the gate is closed.
    fn hold_back(&self, slot: &Slot) -> bool {
        loop {
            if self.gate.is_closed() {
                return false;
            }
            let seen = self.scoreboard.tick();
            // The workers of other pools have connections sent to them.
            let siblings = self.scoreboard.slots().iter().enumerate();
            let siblings = siblings.filter(|(_, sibling)| sibling.place().pool == slot.place().pool);
            let others = siblings.filter(|(index, _)| *index != self.slot);
            let now = now();
            let others = others.filter(|(_, other)| serves(other, now)).map(|(_, other)| load(other));
            let alive = slot.state() == State::Running && serves(slot, now);
            if alive && may_accept(load(slot), self.connections, others) {
                return true;
            }
            self.scoreboard.wait(seen, LOOK_AGAIN);
        }
    }
}

/// The next connection, and the peer's address if that is one of IP.
fn accept(listener: &Listener) -> Result<(Socket, Option<SocketAddr>), Errno> {
    let accepted = SockRef::from(listener).accept4(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
    let (socket, address) = accepted.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    Ok((socket, address.as_socket()))
}

fn serves(slot: &Slot, now: u64) -> bool {
    slot.state() == State::Running && now.saturating_sub(slot.heartbeat.load(Ordering::Relaxed)) < STALE
}

fn load(slot: &Slot) -> u32 {
    slot.connections.load(Ordering::Relaxed)
}

/// Whether a worker of this load may take one more: it must not be more than one
/// or a twentieth ahead of the least loaded.
fn may_accept(mine: u32, most: u32, others: impl Iterator<Item = u32>) -> bool {
    let least = others.min().unwrap_or(mine);
    mine < most && mine <= least + least / 20
}

#[cfg(test)]
mod tests {
    use super::may_accept;

    #[test]
    fn the_least_loaded_worker_accepts_and_one_far_ahead_does_not() {
        assert!(may_accept(0, 10, [5, 6, 7].into_iter()));
        assert!(may_accept(5, 10, [5, 6, 7].into_iter()));
        assert!(!may_accept(6, 10, [5, 6, 7].into_iter()));
        assert!(may_accept(104, 1000, [100, 120].into_iter()));
        assert!(!may_accept(106, 1000, [100, 120].into_iter()));
    }

    #[test]
    fn a_worker_alone_accepts_up_to_its_bound() {
        assert!(may_accept(9, 10, std::iter::empty()));
        assert!(!may_accept(10, 10, std::iter::empty()));
    }

    #[test]
    fn loads_stay_within_the_bar_however_unlucky_the_order() {
        // Always the most loaded worker that may accept gets the next connection.
        let mut loads = [0_u32; 4];
        for _ in 0..400 {
            let next = (0..4)
                .filter(|&i| may_accept(loads[i], 1000, (0..4).filter(|&j| j != i).map(|j| loads[j])))
                .max_by_key(|&i| loads[i]);
            loads[next.unwrap()] += 1;
        }
        let (most, least) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
        assert!(f64::from(*most) / f64::from(*least) <= 1.1, "{loads:?}");
    }
}
