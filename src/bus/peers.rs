//! The workers' connections, and the frames received on them that are not accepted yet. Frames of all workers are
//! accepted in the order in which they were sent: a publisher may have moved from one worker to another in between.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::os::fd::OwnedFd;

use nix::sys::epoll::Epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::fleet::sockets::bus_wire::{Incoming, Outgoing, Request, TooLong};
use crate::time::Instant;

/// Bytes received at a time.
const READ: usize = 64 * 1024;
/// Maximum reads in a turn: more than a socket holds.
const READS: usize = 64;

/// The connection of a worker.
pub struct Peer {
    pub socket: OwnedFd,
    pub pool: u16,
    incoming: Incoming,
    /// Whether the poll waits until the socket is writable.
    pub is_full: bool,
    /// Nothing more can be received.
    pub has_ended: bool,
    /// Nothing more can be sent; the worker may have died. What it has sent is still accepted.
    pub is_unwritable: bool,
}

impl Peer {
    /// A new connection.
    pub fn new(socket: OwnedFd, pool: u16) -> Self {
        let incoming = Incoming::default();
        Peer { socket, pool, incoming, is_full: false, has_ended: false, is_unwritable: false }
    }

    /// Receives everything sent so far. At the end of the stream, removes the socket from the poll.
    pub fn receive(&mut self, poll: &Epoll) {
        for _ in 0..READS {
            let received = recv(&self.socket, self.incoming.room(READ), RecvFlags::DONTWAIT);
            let count = received.as_ref().map_or(0, |(count, _)| *count);
            self.incoming.received(count, READ);
            match received {
                Ok((READ, _)) | Err(Errno::INTR) => {}
                Ok((1.., _)) | Err(Errno::AGAIN) => return,
                Ok(_) | Err(_) => {
                    self.has_ended = true;
                    let _ = poll.delete(&self.socket); // it was watched until now
                    return;
                }
            }
        }
    }

    /// Sends as much as the socket takes.
    pub fn send(&mut self, out: &mut Outgoing) {
        while !out.is_empty() && !self.is_unwritable {
            match send(&self.socket, out.unsent(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => out.advance(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.is_unwritable = true,
            }
        }
    }

    /// Shuts the receiving side down: what was sent before can still be received.
    pub fn shutdown_receive(&self) {
        if let Err(error) = shutdown(&self.socket, Shutdown::Read) {
            log::debug!("shutdown: {error}"); // the worker has exited
        }
    }

    /// When its next frame was sent; 0: the frame has no time, since it publishes no message.
    fn next_time(&self) -> Option<u64> {
        match self.incoming.peek_frame() {
            Ok(content) => content.map(|content| Request::time_of(content).unwrap_or(0)),
            Err(TooLong) => Some(0),
        }
    }
}

/// All connections, by token.
#[derive(Default)]
pub struct Peers {
    pub all: BTreeMap<u64, Peer>,
}

/// What was received from the worker with a token.
pub enum Received<'a> {
    /// A frame.
    Frame(u64, &'a [u8]),
    /// Not a frame.
    Malformed(u64),
}

impl Peers {
    /// Passes the frames sent by `until`, all of which must have been received, to `take`, in order. A connection whose
    /// frame it rejects is dropped. Returns whether later frames are left. A time after `now` is invalid, and taken for
    /// `until`.
    pub fn take_in(
        &mut self,
        until: Instant,
        now: Instant,
        mut take: impl FnMut(u16, Received<'_>) -> bool,
    ) -> bool {
        let (until, now) = (until.as_nanos(), now.as_nanos());
        let next = |token: u64, peer: &Peer| {
            let time = peer.next_time()?;
            Some(Reverse((if time > now { until } else { time }, token)))
        };
        let mut heads: BinaryHeap<Reverse<(u64, u64)>> =
            self.all.iter().filter_map(|(token, peer)| next(*token, peer)).collect();
        while let Some(Reverse((time, token))) = heads.pop() {
            if time > until {
                return true;
            }
            let Some(peer) = self.all.get_mut(&token) else { continue };
            let pool = peer.pool;
            let received = match peer.incoming.next_frame() {
                Ok(None) => continue,
                Ok(Some(content)) => Received::Frame(token, content),
                Err(TooLong) => Received::Malformed(token),
            };
            if take(pool, received) {
                heads.extend(next(token, peer));
            } else {
                self.all.remove(&token);
            }
        }
        false
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use nix::sys::epoll::{EpollCreateFlags, EpollEvent, EpollFlags};

    use super::*;
    use crate::fleet::sockets::bus_wire::Publication;

    struct Worker(UnixStream);

    impl Worker {
        fn send(&mut self, requests: impl IntoIterator<Item = Request<'static>>) {
            let mut bytes = Vec::new();
            requests.into_iter().for_each(|request| request.append_to(&mut bytes));
            self.0.write_all(&bytes).unwrap();
        }

        fn publish(&mut self, times: impl IntoIterator<Item = u64>) {
            let message = Publication { but: 0, kind: 1, compress: false, payload: b"x" };
            let publish = |time| Request::Publish { time, key: "/chat\0room", message };
            self.send(times.into_iter().map(publish));
        }
    }

    fn workers(poll: &Epoll) -> (Peers, [Worker; 2]) {
        let mut peers = Peers::default();
        let workers = [1, 2].map(|token| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            poll.add(&ours, EpollEvent::new(EpollFlags::EPOLLIN, token)).unwrap();
            peers.all.insert(token, Peer::new(ours.into(), 0));
            Worker(theirs)
        });
        (peers, workers)
    }

    /// The frames taken in: token and time of each, and whether some are left.
    fn taken_in(peers: &mut Peers, poll: &Epoll, until: u64, now: u64) -> (Vec<(u64, u64)>, bool) {
        let mut taken = Vec::new();
        peers.all.values_mut().for_each(|peer| peer.receive(poll));
        let [until, now] = [until, now].map(Instant::from_nanos);
        let is_left = peers.take_in(until, now, |_, received| {
            let (frame, is_valid) = match received {
                Received::Frame(token, content) => ((token, Request::time_of(content).unwrap_or(0)), true),
                Received::Malformed(token) => ((token, u64::MAX), false),
            };
            taken.push(frame);
            is_valid
        });
        (taken, is_left)
    }

    #[test]
    fn frames_of_all_workers_are_accepted_in_the_order_of_their_times() {
        let poll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let (mut peers, [mut one, mut two]) = workers(&poll);
        // The publisher of 10, 20, 30 moves between the workers.
        two.publish([10]);
        one.publish([20]);
        two.publish([30]);
        one.send([Request::Unsubscribe { topic: 1 }]);
        one.publish([40]);
        let expected = vec![(2, 10), (1, 20), (1, 0), (2, 30)];
        assert_eq!(taken_in(&mut peers, &poll, 35, 50), (expected, true));
        assert_eq!(taken_in(&mut peers, &poll, 60, 60), (vec![(1, 40)], false));
    }

    #[test]
    fn a_malformed_frame_ends_its_own_connection_only() {
        let poll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let (mut peers, [mut one, mut two]) = workers(&poll);
        one.publish([100]);
        two.publish([7]);
        assert_eq!(taken_in(&mut peers, &poll, 50, 50), (vec![(2, 7), (1, 100)], false), "another clock");
        two.0.write_all(&[255; 4]).unwrap();
        assert_eq!(taken_in(&mut peers, &poll, 50, 50), (vec![(2, u64::MAX)], false));
        assert_eq!(peers.all.len(), 1);
    }

    #[test]
    fn only_frames_sent_before_the_shutdown_are_accepted() {
        let poll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let (mut peers, [mut one, two]) = workers(&poll);
        one.publish(1..2000);
        peers.all.values().for_each(Peer::shutdown_receive);
        assert!(one.0.write_all(b"more").is_err());
        drop(two);
        let (taken, is_left) = taken_in(&mut peers, &poll, 5000, 5000);
        assert_eq!((taken.len(), is_left), (1999, false));
        assert_eq!(taken_in(&mut peers, &poll, 5000, 5000), (vec![], false));
        assert!(peers.all.values().all(|peer| peer.has_ended));
    }
}
