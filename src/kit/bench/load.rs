//! The load: connections that send messages when they are due and measure the time to the answers.
//!
//! With a rate, each message is due at a fixed time, and its latency counts from then, even if the server stalls and
//! the message is sent late (coordinated omission). Messages that are never answered count with the time that they have
//! waited.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use clap::{Args, value_parser};
use hdrhistogram::Histogram;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, Message};

use crate::clock;
use crate::kit::client::{Connection, would_block};
use crate::kit::value::{size, time};
use crate::time::Instant;

/// Latencies are recorded with three digits up to this; longer ones count as this.
const LONGEST: Duration = Duration::from_secs(3600);
/// Interval of progress reports.
const PROGRESS: Duration = Duration::from_millis(100);
/// The timer's data in epoll, where connections have their index.
const TIMER: u64 = u64::MAX;

/// The messages of a measurement.
#[derive(Args, Clone, Copy, Debug)]
pub struct Plan {
    /// Payload of a message
    #[arg(short = 'z', long, value_name = "SIZE", default_value = "64", value_parser = size)]
    pub size: usize,
    /// Messages of a connection that may be unanswered at a time
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub depth: u32,
    /// Messages per second of all connections; without it each answer is followed by the next message
    #[arg(short, long, value_name = "COUNT", value_parser = value_parser!(u64).range(1..=100_000_000))]
    pub rate: Option<u64>,
    /// How long to send messages
    #[arg(short = 't', long, value_name = "TIME", default_value = "10s", value_parser = time)]
    pub duration: Duration,
    /// Send binary messages
    #[arg(short, long)]
    binary: bool,
}

impl Plan {
    /// When message `number` of all connections is due, after the start; 0 without a rate.
    fn due(&self, number: u64) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let nanos = u128::from(number) * 1_000_000_000 / u128::from(rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// The result.
pub struct Measured {
    /// Nanoseconds.
    pub latencies: Histogram<u64>,
    /// Messages that were answered.
    pub answers: u64,
    /// Messages that were due and not answered.
    pub unanswered: u64,
    /// Connections that ended.
    pub closed: u32,
    /// Why the first of them ended.
    pub cause: Option<String>,
    /// From the first message to the end of sending, or to the last answer if that came later.
    pub elapsed: Duration,
}

/// Connections under load.
pub struct Load {
    plan: Plan,
    /// How long to wait for the last answers.
    timeout: Duration,
    epoll: Epoll,
    timer: TimerFd,
    peers: Vec<Peer>,
    /// With a rate, the number of the next message; the connections take turns.
    next: u64,
    message: Message,
    latencies: Histogram<u64>,
    answers: u64,
    /// When the last one came.
    answered: Instant,
    closed: u32,
    /// Why the first connection ended.
    cause: Option<String>,
}

struct Peer {
    /// None when it has ended.
    connection: Option<Connection>,
    /// When the unanswered messages were due, in order; at most `depth`.
    open: VecDeque<Instant>,
    sent: u64,
    /// The socket is full.
    is_blocked: bool,
}

impl Load {
    /// Has no connections yet.
    pub fn new(plan: Plan, timeout: Duration) -> io::Result<Self> {
        let letters = (b'a'..=b'z').cycle().take(plan.size).collect::<Vec<u8>>();
        let message = match plan.binary {
            true => Message::binary(letters),
            false => Message::text(String::from_utf8_lossy(&letters).as_ref()),
        };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let latencies =
            Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3).map_err(io::Error::other)?;
        Ok(Load {
            plan,
            timeout,
            epoll,
            timer,
            peers: Vec::new(),
            next: 0,
            message,
            latencies,
            answers: 0,
            answered: Instant::default(),
            closed: 0,
            cause: None,
        })
    }

    /// Adds a connection.
    pub fn add(&mut self, connection: Connection) -> io::Result<()> {
        // Edge-triggered: read and written until it would block.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(connection.get_ref(), EpollEvent::new(flags, self.peers.len() as u64))?;
        self.peers.push(Peer {
            connection: Some(connection),
            open: VecDeque::with_capacity(self.plan.depth.min(1024) as usize),
            sent: 0,
            is_blocked: false,
        });
        Ok(())
    }

    /// Runs to the end. Calls `progress` with the time, answers and latencies so far; it returns whether to continue.
    pub fn run(
        mut self,
        progress: &mut dyn FnMut(Duration, u64, &Histogram<u64>) -> bool,
    ) -> io::Result<Measured> {
        let begun = clock::now();
        let end = begun + self.plan.duration;
        let give_up = end + self.timeout;
        let mut next_look = begun;
        let mut events = vec![EpollEvent::empty(); 1024];
        for index in 0..self.peers.len() {
            self.serve(index, begun, end);
        }
        loop {
            let now = clock::now();
            let is_done = now >= end && self.peers.iter().all(|peer| peer.open.is_empty());
            if is_done || now >= give_up || self.closed as usize == self.peers.len() {
                break;
            }
            if now >= next_look {
                if !progress(now.since(begun), self.answers, &self.latencies) {
                    break;
                }
                next_look = now + PROGRESS;
            }
            let wake = next_look.min(if now < end { end } else { give_up }).min(self.next_due(begun, end));
            self.set_timer(wake.since(now))?;
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                count => count?,
            };
            for event in events.iter().take(count) {
                if event.data() != TIMER {
                    self.serve(event.data() as usize, begun, end);
                }
            }
            let now = clock::now();
            while self.next_due(begun, end) <= now {
                self.send((self.next % self.peers.len() as u64) as usize, begun, end);
                self.next += 1;
            }
        }
        Ok(self.result(begun, end))
    }

    /// Reads the answers on a connection, and sends the next messages.
    fn serve(&mut self, index: usize, begun: Instant, end: Instant) {
        loop {
            let Some(peer) = self.peers.get_mut(index) else { return };
            let Some(connection) = &mut peer.connection else { return };
            match connection.read() {
                Ok(Message::Text(_) | Message::Binary(_)) => {
                    let Some(due) = peer.open.pop_front() else { continue }; // not an answer
                    self.answered = clock::now();
                    self.latencies.saturating_record(self.answered.since(due).as_nanos() as u64);
                    self.answers += 1;
                }
                Ok(Message::Close(frame)) => {
                    let cause =
                        frame.map_or("close without a code".to_owned(), |CloseFrame { code, reason }| {
                            format!("close {} {:?}", u16::from(code), reason.as_str())
                        });
                    self.cause.get_or_insert(cause);
                }
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return self.end(index, &error),
            }
        }
        self.send(index, begun, end);
    }

    /// Sends the messages that are due on a connection, up to its depth.
    fn send(&mut self, index: usize, begun: Instant, end: Instant) {
        let now = clock::now();
        let count = self.peers.len() as u64;
        let Some(peer) = self.peers.get_mut(index) else { return };
        let Some(connection) = &mut peer.connection else { return };
        let mut has_written = peer.is_blocked;
        if has_written {
            let flushed = connection.flush();
            peer.is_blocked = would_block(&flushed);
        }
        while !peer.is_blocked && peer.open.len() < self.plan.depth as usize {
            let due = match self.plan.rate {
                // A message that was due is sent even if it is late.
                Some(_) => begun + self.plan.due(peer.sent * count + index as u64),
                None => now,
            };
            if due > now || due >= end {
                break;
            }
            match connection.write(self.message.clone()) {
                Ok(()) => {}
                // It is in the connection's buffer.
                result if would_block(&result) => peer.is_blocked = true,
                Err(error) => return self.end(index, &error),
            }
            peer.open.push_back(due);
            peer.sent += 1;
            has_written = true;
        }
        if has_written && !peer.is_blocked {
            match connection.flush() {
                Ok(()) => {}
                result if would_block(&result) => peer.is_blocked = true,
                Err(error) => self.end(index, &error),
            }
        }
    }

    fn end(&mut self, index: usize, error: &Error) {
        self.cause.get_or_insert_with(|| error.to_string());
        if let Some(peer) = self.peers.get_mut(index)
            && peer.connection.take().is_some()
        {
            self.closed += 1;
        }
    }

    /// When the next message is due.
    fn next_due(&self, begun: Instant, end: Instant) -> Instant {
        let due = self.plan.rate.map(|_| begun + self.plan.due(self.next));
        due.filter(|due| *due < end).unwrap_or(Instant::NEVER)
    }

    fn set_timer(&self, after: Duration) -> io::Result<()> {
        // Zero would disarm it.
        let after = TimeSpec::from_duration(after.max(Duration::from_nanos(1)));
        Ok(self.timer.set(Expiration::OneShot(after), TimerSetTimeFlags::empty())?)
    }

    fn result(mut self, begun: Instant, end: Instant) -> Measured {
        let now = clock::now();
        let count = self.peers.len() as u64;
        let mut unanswered = 0;
        for (index, peer) in self.peers.iter().enumerate() {
            let numbers = self.plan.rate.into_iter().flat_map(|_| peer.sent..);
            let unsent = numbers.map(|number| begun + self.plan.due(number * count + index as u64));
            let unsent = unsent.take_while(|due| *due < end.min(now));
            for due in peer.open.iter().copied().chain(unsent) {
                self.latencies.saturating_record(now.since(due).as_nanos() as u64);
                unanswered += 1;
            }
        }
        let Load { latencies, answers, closed, cause, .. } = self;
        let elapsed = self.answered.max(end.min(now)).since(begun);
        Measured { latencies, answers, unanswered, closed, cause, elapsed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_due_at_the_rate() {
        let plan =
            Plan { rate: Some(1000), depth: 1, duration: Duration::from_secs(1), size: 0, binary: false };
        assert_eq!([0, 1, 42].map(|number| plan.due(number).as_millis()), [0, 1, 42]);
        assert_eq!(Plan { rate: Some(1), ..plan }.due(u64::MAX), Duration::from_nanos(u64::MAX));
        assert_eq!(Plan { rate: None, ..plan }.due(7), Duration::ZERO);
    }
}
