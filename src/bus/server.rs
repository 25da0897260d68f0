//! The loop of the bus: connections of workers, the engine, and commands of the supervisor. [`hub`](super::hub) decides
//! which worker gets which message.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::baton::Baton;
use super::engine::Engine;
use super::hub::{Breach, Hub};
use super::peers::{Peer, Peers, Received};
use super::{Start, operator};
use crate::clock;
use crate::fleet::sockets::bus_wire::FORMAT;
use crate::fleet::sockets::control::{Channel, Command, Report};
use crate::fleet::sockets::datagram;
use crate::time::Instant;

/// Events handled at a time.
const EVENTS: usize = 64;
/// Interval of housekeeping.
const TICK: Duration = Duration::from_secs(1);
/// Delay before changed numbers of subscribers are reported.
const COUNTS: Duration = Duration::from_millis(50);
/// Interval of attempts to take the baton, and when leaving, of checks whether everything was sent.
const RETRY: Duration = Duration::from_millis(2);
/// When leaving, time for workers to receive what is queued for them; the next bus sends the rest again.
const LEAVE: Duration = Duration::from_secs(1);

const CONTROL: u64 = 0;
const SIGNAL: u64 = 1;
const ENGINE: u64 = 2;
/// Token of the first rendezvous; the others follow.
const RENDEZVOUS: u64 = 3;
/// Tokens from here on are those of workers.
const WORKER: u64 = 1 << 32;

/// See the module.
pub struct Server<'a> {
    channel: &'a Channel,
    signals: SignalFd,
    poll: Epoll,
    rendezvous: Vec<(u16, OwnedFd, usize)>,
    baton: Baton,
    hub: Hub,
    /// None: topics end at this machine.
    engine: Option<Engine>,
    peers: Peers,
    /// Received frames are left for the next turn.
    is_left: bool,
    last_token: u64,
    /// When to exit; set by the command to leave.
    leave_at: Option<Instant>,
    next_tick: Instant,
    /// When to report numbers of subscribers, if any have changed.
    counts_at: Option<Instant>,
}

impl<'a> Server<'a> {
    /// Starts the engine and watches all descriptors except those of workers.
    pub fn new(start: Start, channel: &'a Channel) -> io::Result<Self> {
        let Start { rendezvous, baton, limits, scopes, engine } = start;
        let poll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&SigSet::from(Signal::SIGTERM), flags)?;
        poll.add(channel, EpollEvent::new(EpollFlags::EPOLLIN, CONTROL))?;
        poll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNAL))?;
        let engine =
            engine.map(|(settings, counters)| Engine::start(settings, limits.age, counters)).transpose()?;
        if let Some(engine) = &engine {
            poll.add(engine, EpollEvent::new(EpollFlags::EPOLLIN, ENGINE))?;
        }
        Ok(Server {
            channel,
            signals,
            poll,
            rendezvous,
            baton,
            hub: Hub::new(limits, scopes),
            engine,
            peers: Peers::default(),
            is_left: false,
            last_token: WORKER,
            leave_at: None,
            next_tick: clock::now() + TICK,
            counts_at: None,
        })
    }

    /// Serves until the command to leave.
    pub fn serve(mut self) -> io::Result<()> {
        // All stamps must be later than those of the previous bus: no worker is accepted before that has exited.
        let mut is_open = false;
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            if !is_open && self.leave_at.is_none() && self.baton.take()? {
                is_open = true;
                self.hub.take_over(self.baton.found()?);
                for (index, (_, rx, _)) in (0..).zip(&self.rendezvous) {
                    self.poll.add(rx, EpollEvent::new(EpollFlags::EPOLLIN, RENDEZVOUS + index))?;
                }
            }
            if !self.serve_events(&mut events, self.timeout(is_open))? {
                return Ok(());
            }
            // After another poll, everything sent before this instant has been received.
            let until = clock::now();
            if !self.serve_events(&mut events, EpollTimeout::ZERO)? {
                return Ok(());
            }
            self.take_in(until);
            self.run_timers();
            self.hub.end_turn();
            self.write();
            if self.has_left() {
                self.engine.take().into_iter().for_each(Engine::finish);
                if is_open {
                    self.baton.leave(&self.hub.history())?;
                }
                return Ok(());
            }
        }
    }

    /// Waits for events and handles them; false if this process is to exit at once.
    fn serve_events(&mut self, events: &mut [EpollEvent], timeout: EpollTimeout) -> io::Result<bool> {
        let count = match self.poll.wait(events, timeout) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in events.iter().take(count) {
            match event.data() {
                CONTROL => {
                    if !self.read_commands()? {
                        return Ok(false);
                    }
                }
                SIGNAL => {
                    while let Ok(Some(_)) = self.signals.read_signal() {
                        self.begin_leaving();
                    }
                }
                ENGINE => self.read_engine(),
                token if token < WORKER => self.accept((token - RENDEZVOUS) as usize),
                token => {
                    if let Some(peer) = self.peers.all.get_mut(&token) {
                        peer.receive(&self.poll);
                    }
                }
            }
        }
        Ok(true)
    }

    fn timeout(&self, is_open: bool) -> EpollTimeout {
        if self.is_left {
            return EpollTimeout::ZERO;
        }
        let now = clock::now();
        let mut next = self.next_tick;
        next = self.counts_at.map_or(next, |at| at.min(next));
        next = self.leave_at.map_or(next, |at| at.min(next));
        // When leaving: a worker that has closed its side is not polled, but may still receive.
        if !is_open || self.leave_at.is_some() {
            next = next.min(now + RETRY);
        }
        let ms = next.since(now).as_nanos().div_ceil(1_000_000);
        i32::try_from(ms).ok().and_then(|ms| EpollTimeout::try_from(ms).ok()).unwrap_or(EpollTimeout::ZERO)
    }

    /// Carries out the supervisor's commands; false if this process is to exit at once.
    fn read_commands(&mut self) -> io::Result<bool> {
        loop {
            match self.channel.recv_command() {
                Ok(Some((Command::Drain | Command::Stop, _))) => self.begin_leaving(),
                Ok(Some((Command::Quit, _))) | Ok(None) => return Ok(false),
                Ok(Some((Command::List { ticket }, Some(fd)))) => {
                    let listed = operator::list(&self.hub, self.engine.as_ref(), fd.into());
                    self.reply(listed.map(|listed| Report::Listed { ticket, listed, left_out: 0 }));
                }
                Ok(Some((Command::Publish { ticket }, Some(fd)))) => {
                    let published = operator::publish(&mut self.hub, self.engine.as_ref(), fd.into());
                    self.reply(published.map(|subscribers| Report::Published { ticket, subscribers }));
                }
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    log::warn!("the supervisor {error}; ignored");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Replies to the supervisor. After an error it gets no reply and times out.
    fn reply(&self, report: io::Result<Report>) {
        if let Err(error) = report.and_then(|report| self.channel.send_report(&report)) {
            log::error!("cannot carry out a command of wshd ctl: {error}");
        }
    }

    /// Accepts no more workers, and no more messages: workers keep them for the next bus.
    fn begin_leaving(&mut self) {
        if self.leave_at.is_some() {
            return;
        }
        self.leave_at = Some(clock::now() + LEAVE);
        for (_, rx, _) in self.rendezvous.drain(..) {
            let _ = self.poll.delete(&rx); // fails if it is not watched yet
        }
        self.peers.all.values().for_each(Peer::shutdown_receive);
    }

    fn has_left(&mut self) -> bool {
        let Some(at) = self.leave_at else { return false };
        let hub = &mut self.hub;
        let is_done =
            |(token, peer): (&u64, &Peer)| peer.has_ended && hub.out(*token).is_none_or(|out| out.is_empty());
        !self.is_left && self.peers.all.iter().all(is_done) || clock::now() >= at
    }

    /// Accepts the connections that workers have left at a rendezvous.
    fn accept(&mut self, index: usize) {
        let Some((pool, rx, most)) = self.rendezvous.get(index) else { return };
        let pool = *pool;
        let mut bytes = [0; 8];
        // Bounded for each pool, so that none can exhaust the connections of the others.
        let mut known = self.peers.all.values().filter(|peer| peer.pool == pool).count();
        for _ in 0..EVENTS {
            let Ok((size, fd)) = datagram::receive(rx.as_fd(), &mut bytes) else { return };
            let Some(socket) = fd.filter(|_| bytes.get(..size) == Some(&FORMAT.to_ne_bytes())) else {
                if size == 0 {
                    return; // all sending ends are closed
                }
                log::debug!("pool {pool}: a worker of another version connected; refused");
                continue;
            };
            if known >= *most {
                log::debug!(
                    "pool {pool}: maximum of {known} connections to the bus reached; another refused"
                );
                continue;
            }
            known += 1;
            self.last_token += 1;
            let token = self.last_token;
            if let Err(error) = self.poll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, token)) {
                log::error!("pool {pool}: cannot watch the connection of a worker: {error}; refused");
                continue;
            }
            let mut peer = Peer::new(socket, pool);
            // Frames it sent while waiting may be older than those of other workers.
            peer.receive(&self.poll);
            self.peers.all.insert(token, peer);
            self.hub.connect(token, pool);
        }
    }

    /// Accepts the frames that workers have sent by `until`.
    fn take_in(&mut self, until: Instant) {
        let now = clock::now();
        let (hub, engine) = (&mut self.hub, &self.engine);
        self.is_left = self.peers.take_in(until, now, |pool, received| {
            let (token, result) = match received {
                Received::Frame(token, content) => (token, hub.take_in(token, content, now)),
                Received::Malformed(token) => (token, Err(Breach::Malformed)),
            };
            match &result {
                Ok(None) => {}
                Ok(Some((key, message))) => {
                    engine.iter().for_each(|engine| engine.publish(key, *message));
                }
                Err(breach) => {
                    log::error!("pool {pool}: a worker {breach}; its connection to the bus is closed");
                    hub.disconnect(token);
                }
            }
            result.is_ok()
        });
        // While this process is leaving, it still sends to workers that have closed their side.
        if self.leave_at.is_none() && !self.is_left {
            self.peers
                .all
                .extract_if(.., |_, peer| peer.has_ended)
                .for_each(|(token, _)| hub.disconnect(token));
        }
    }

    /// Accepts messages of other machines.
    fn read_engine(&mut self) {
        let (now, hub) = (clock::now(), &mut self.hub);
        self.engine.iter().for_each(|engine| engine.receive(|key, message| hub.publish(key, message, now)));
    }

    /// Does the housekeeping and the reports that are due.
    fn run_timers(&mut self) {
        let now = clock::now();
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.hub.expire(now);
            self.hub.report_passed();
            self.engine.iter_mut().for_each(|engine| engine.expire(now));
        }
        for (key, has_subscribers) in self.hub.changed_interest() {
            self.engine.iter_mut().for_each(|engine| engine.set_interest(&key, has_subscribers, now));
        }
        match self.counts_at {
            Some(at) if at <= now => {
                self.counts_at = None;
                self.hub.report_counts();
            }
            None if self.hub.has_changed_counts() => self.counts_at = Some(now + COUNTS),
            _ => {}
        }
    }

    /// Sends to workers what their sockets take.
    fn write(&mut self) {
        for (&token, peer) in &mut self.peers.all {
            let Some(out) = self.hub.out(token) else { continue };
            peer.send(out);
            let is_full = !out.is_empty();
            if peer.is_unwritable {
                self.hub.stop_sending(token);
            } else if is_full != peer.is_full && !peer.has_ended {
                peer.is_full = is_full;
                let mut flags = EpollFlags::EPOLLIN;
                flags.set(EpollFlags::EPOLLOUT, is_full);
                if let Err(error) = self.poll.modify(&peer.socket, &mut EpollEvent::new(flags, token)) {
                    log::error!("cannot watch the connection of a worker: {error}");
                }
            }
        }
    }
}
