//! Deadlines of a connection, in virtual time: keepalive Pings, silent and idle peers, unanswered Close frames,
//! too many Pings, paused reading. Two ends exchange frames in memory; nothing sleeps.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use wshd::proto::ws::connection::{Connection, Deadline, Event, Io, Kind, Send};
use wshd::proto::ws::deflate::codec::Codecs;
use wshd::proto::ws::limits::Limits;
use wshd::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
const NEVER: Instant = Instant::NEVER;

/// A connection, the clock, and the peer's end of the wire.
struct Pair {
    now: Instant,
    limits: Limits,
    server: Connection,
    codecs: Codecs,
    /// What the server has sent and the peer has not read.
    wire: Vec<u8>,
}

impl Pair {
    fn new(limits: Limits) -> Self {
        let now = Instant::default() + 1000 * SECOND;
        let server = Connection::new(now, None, false);
        Pair { now, limits, server, codecs: Codecs::new(), wire: Vec::new() }
    }

    fn with<T>(&mut self, call: impl FnOnce(&mut Connection, &mut Io) -> T) -> T {
        let mut io =
            Io { now: self.now, limits: &self.limits, codecs: &mut self.codecs, out: &mut self.wire };
        call(&mut self.server, &mut io)
    }

    /// The peer sends a frame (opcode and FIN as given, key of zeros).
    fn peer_sends(&mut self, first: u8, payload: &[u8]) -> Event {
        let mut input = vec![first, 0x80 | payload.len() as u8, 0, 0, 0, 0];
        input.extend_from_slice(payload);
        self.with(|server, io| server.receive(&mut input, &mut 0, io))
    }

    /// What the peer reads: its frames are all short.
    fn peer_reads(&mut self) -> Vec<(u8, Vec<u8>)> {
        let (mut frames, mut rest) = (Vec::new(), &self.wire[..]);
        while let [first, len, tail @ ..] = rest {
            let (payload, tail) = tail.split_at(usize::from(*len));
            frames.push((*first, payload.to_vec()));
            rest = tail;
        }
        self.wire.clear();
        frames
    }

    /// Advances to the next deadline, which must be `seconds` from now.
    #[track_caller]
    fn deadline_after(&mut self, seconds: u32) -> Deadline {
        let deadline = self.server.deadline(&self.limits);
        assert_eq!(deadline, self.now + seconds * SECOND, "in {} s", deadline.since(self.now).as_secs());
        self.now = Instant::from_nanos(deadline.as_nanos() - 1);
        assert_eq!(self.with(Connection::on_deadline), Deadline::Later, "a nanosecond early");
        assert!(self.wire.is_empty());
        self.now = deadline;
        self.with(Connection::on_deadline)
    }

    fn pass(&mut self, seconds: u32) {
        self.now = self.now + seconds * SECOND;
    }
}

fn limits() -> Limits {
    Limits {
        ping_interval: 30 * SECOND,
        pong_deadline: 20 * SECOND,
        close_deadline: 5 * SECOND,
        ..Limits::default()
    }
}

#[test]
fn keepalive_pings_while_pongs_come() {
    let mut pair = Pair::new(limits());
    for _ in 0..3 {
        assert_eq!(pair.deadline_after(30), Deadline::Pinged);
        let frames = pair.peer_reads();
        assert_eq!((frames.len(), frames[0].0, frames[0].1.len()), (1, 0x89, 8));
        assert_eq!(pair.server.deadline(&pair.limits), pair.now + 20 * SECOND);
        // Its Pong is not passed to the handler. Even an immediate one counts.
        assert_eq!(pair.peer_sends(0x8a, &frames[0].1), Event::NeedMore);
    }
}

#[test]
fn received_octets_postpone_the_ping() {
    let mut pair = Pair::new(limits());
    pair.pass(29);
    assert!(matches!(pair.peer_sends(0x81, b"a"), Event::Message { .. }));
    assert_eq!(pair.deadline_after(30), Deadline::Pinged);
}

#[test]
fn a_timer_that_is_early_finds_nothing_due() {
    let mut pair = Pair::new(limits());
    let first = pair.server.deadline(&pair.limits);
    pair.pass(10);
    pair.peer_sends(0x81, b"a");
    pair.now = first;
    assert_eq!(pair.with(Connection::on_deadline), Deadline::Later);
    assert_eq!(pair.server.deadline(&pair.limits), first + 10 * SECOND);
}

#[test]
fn a_silent_peer_is_dropped() {
    let mut pair = Pair::new(limits());
    assert_eq!(pair.deadline_after(30), Deadline::Pinged);
    pair.peer_reads();
    assert_eq!(pair.deadline_after(20), Deadline::PeerSilent);
    assert!(pair.server.is_finished() && pair.wire.is_empty());
    assert_eq!(pair.server.deadline(&pair.limits), NEVER);
}

#[test]
fn any_octet_is_a_sign_of_life() {
    let mut pair = Pair::new(limits());
    assert_eq!(pair.deadline_after(30), Deadline::Pinged);
    pair.peer_reads();
    pair.pass(19);
    // The first octet of an incomplete frame.
    assert_eq!(pair.with(|server, io| server.receive(&mut [0x81], &mut 0, io)), Event::NeedMore);
    assert_eq!(pair.deadline_after(30), Deadline::Pinged);
}

#[test]
fn an_empty_read_is_not_a_sign_of_life() {
    let mut pair = Pair::new(limits());
    pair.pass(10);
    assert_eq!(pair.with(|server, io| server.receive(&mut [], &mut 0, io)), Event::NeedMore);
    assert_eq!(pair.deadline_after(20), Deadline::Pinged);
}

#[test]
fn disabled_deadlines_never_come() {
    let mut pair = Pair::new(Limits { ping_interval: Duration::ZERO, ..limits() });
    assert_eq!(pair.server.deadline(&pair.limits), NEVER);
    // Without a deadline for Pongs the Pings continue.
    pair = Pair::new(Limits { pong_deadline: Duration::ZERO, ..limits() });
    assert_eq!(pair.deadline_after(30), Deadline::Pinged);
    pair.peer_reads();
    assert_eq!(pair.deadline_after(30), Deadline::Pinged);
    pair = Pair::new(Limits { close_deadline: Duration::ZERO, ..limits() });
    pair.with(|server, io| server.close(None, b"", io)).unwrap();
    assert_eq!(pair.server.deadline(&pair.limits), NEVER);
}

#[test]
fn round_trips_of_our_own_pings() {
    let mut pair = Pair::new(limits());
    pair.with(|server, io| server.ping(b"one", io)).unwrap();
    pair.pass(1);
    pair.with(|server, io| server.ping(b"two", io)).unwrap();
    pair.pass(2);
    assert_eq!(pair.peer_sends(0x8a, b"one"), Event::NeedMore);
    let Event::Pong { rtt, .. } = pair.peer_sends(0x8a, b"two") else { panic!("no Pong") };
    assert_eq!(rtt, 2 * SECOND);
}

#[test]
fn keepalive_and_own_ping_do_not_mix() {
    let mut pair = Pair::new(limits());
    pair.with(|server, io| server.ping(b"own", io)).unwrap();
    pair.peer_reads();
    assert_eq!(pair.deadline_after(30), Deadline::Pinged);
    let keepalive = pair.peer_reads().remove(0).1;
    assert_eq!(pair.peer_sends(0x8a, &keepalive), Event::NeedMore);
    assert!(matches!(pair.peer_sends(0x8a, b"own"), Event::Pong { .. }));
}

#[test]
fn idle_counts_messages_in_both_directions_and_nothing_else() {
    let mut pair = Pair::new(Limits { idle: 100 * SECOND, ping_interval: Duration::ZERO, ..limits() });
    pair.pass(60);
    assert!(matches!(pair.peer_sends(0x82, b"a"), Event::Message { .. }));
    assert_eq!(pair.server.deadline(&pair.limits), pair.now + 100 * SECOND);
    pair.pass(60);
    pair.with(|server, io| server.send(Kind::Text, b"b", Send::default(), io)).unwrap();
    pair.pass(60);
    assert!(matches!(pair.peer_sends(0x89, b""), Event::Ping { .. }));
    pair.peer_reads();
    assert_eq!(pair.deadline_after(40), Deadline::Idle);
    assert_eq!(pair.peer_reads(), [(0x88, vec![0x03, 0xe9])]);
    assert_eq!(pair.server.close_sent(), Some(1001));
    // The closing handshake continues as usual.
    pair.pass(1);
    assert!(matches!(pair.peer_sends(0x88, &[0x03, 0xe9]), Event::Closed { code: 1001, .. }));
    assert_eq!(pair.server.deadline(&pair.limits), NEVER);
}

#[test]
fn our_close_has_a_deadline() {
    let mut pair = Pair::new(limits());
    pair.pass(7);
    pair.with(|server, io| server.close(Some(1000), b"", io)).unwrap();
    pair.peer_reads();
    // Other frames do not extend it.
    pair.pass(4);
    assert_eq!(pair.peer_sends(0x81, b"late"), Event::NeedMore);
    assert_eq!(pair.deadline_after(1), Deadline::CloseTimedOut);
    assert!(pair.server.is_finished());
}

#[test]
fn the_peers_close_has_a_deadline() {
    let mut pair = Pair::new(limits());
    assert!(matches!(pair.peer_sends(0x88, b""), Event::CloseReceived { code: 1005, .. }));
    assert_eq!(pair.deadline_after(5), Deadline::CloseTimedOut);
    assert!(pair.server.is_finished());
}

#[test]
fn pings_per_second() {
    let mut pair = Pair::new(Limits { pings_per_second: 4, ping_interval: Duration::ZERO, ..limits() });
    // Four at once, and four in each second after.
    for _ in 0..4 {
        assert!(matches!(pair.peer_sends(0x89, b"p"), Event::Ping { .. }));
    }
    for _ in 0..40 {
        pair.now = pair.now + SECOND / 4;
        assert!(matches!(pair.peer_sends(0x89, b"p"), Event::Ping { .. }));
    }
    assert_eq!(pair.peer_reads().len(), 44);
    pair.now = pair.now + (SECOND / 4 - Duration::from_nanos(1));
    assert!(matches!(pair.peer_sends(0x89, b"p"), Event::Failed { code: 1008, .. }));
    assert_eq!(pair.peer_reads(), [(0x88, vec![0x03, 0xf0])]);
}

#[test]
fn pings_without_limit() {
    let mut pair = Pair::new(Limits { pings_per_second: 0, ..limits() });
    for _ in 0..1000 {
        assert!(matches!(pair.peer_sends(0x89, b"p"), Event::Ping { .. }));
    }
    assert_eq!(pair.peer_reads().len(), 1000);
}

#[test]
fn silence_does_not_count_while_paused() {
    let mut pair = Pair::new(Limits { idle: 200 * SECOND, ..limits() });
    assert_eq!(pair.deadline_after(30), Deadline::Pinged);
    pair.peer_reads();
    pair.server.set_paused(true, pair.now);
    assert_eq!(pair.server.deadline(&pair.limits), NEVER);
    pair.pass(1000);
    assert_eq!(pair.with(Connection::on_deadline), Deadline::Later);
    pair.server.set_paused(false, pair.now);
    // As if data had just arrived: neither the old Ping nor the old silence counts.
    assert_eq!(pair.deadline_after(30), Deadline::Pinged);
    pair.peer_reads();
    assert_eq!(pair.deadline_after(20), Deadline::PeerSilent);
}

#[test]
fn resuming_without_a_pause_changes_nothing() {
    let mut pair = Pair::new(limits());
    pair.pass(10);
    pair.server.set_paused(false, pair.now);
    assert_eq!(pair.deadline_after(20), Deadline::Pinged);
}

#[test]
fn the_close_deadline_counts_while_paused() {
    let mut pair = Pair::new(limits());
    pair.server.set_paused(true, pair.now);
    pair.with(|server, io| server.close(Some(1000), b"", io)).unwrap();
    pair.peer_reads();
    assert_eq!(pair.deadline_after(5), Deadline::CloseTimedOut);
}
