//! The loop of the bus: sockets to workers, the way to the engine, and orders of the supervisor. What goes where is decided in [`hub`](super::hub).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::engine::Engine;
use super::hub::{Breach, Hub};
use super::{Start, operator};
use crate::clock;
use crate::fleet::bus_wire::{FORMAT, Incoming};
use crate::fleet::control::{Channel, Command, Report};
use crate::fleet::datagram;
use crate::fleet::rendezvous::Baton;
use crate::time::Instant;

/// Events taken at a time.
const EVENTS: usize = 64;
/// Bytes read from a worker at a time.
const READ: usize = 64 * 1024;
/// Between two looks at what is too old.
const TICK: Duration = Duration::from_secs(1);
/// Changes of the numbers of subscribers are told so much later.
const NEWS: Duration = Duration::from_millis(50);
/// Between two attempts to take the baton.
const BATON: Duration = Duration::from_millis(2);
/// Workers have this long to hear that another bus follows.
const FAREWELL: Duration = Duration::from_secs(1);

const CONTROL: u64 = 0;
const SIGNAL: u64 = 1;
const ENGINE: u64 = 2;
/// Token of the first rendezvous; the others follow.
const RENDEZVOUS: u64 = 3;
/// Tokens from here on are those of workers.
const WORKER: u64 = 1 << 32;

struct Peer {
    socket: OwnedFd,
    pool: u16,
    incoming: Incoming,
    /// Whether the poll waits for room.
    is_full: bool,
    /// It has said all.
    has_ended: bool,
}

/// The process.
pub struct Server<'a> {
    channel: &'a Channel,
    signals: SignalFd,
    poll: Epoll,
    rendezvous: Vec<(u16, OwnedFd)>,
    baton: Baton,
    hub: Hub,
    /// None: topics end at this machine.
    engine: Option<Engine>,
    peers: BTreeMap<u64, Peer>,
    last_token: u64,
    /// When to be gone, once told to leave.
    leave_at: Option<Instant>,
    next_tick: Instant,
    news_at: Option<Instant>,
}

impl<'a> Server<'a> {
    /// Ready to serve.
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
            peers: BTreeMap::new(),
            last_token: WORKER,
            leave_at: None,
            next_tick: clock::now() + TICK,
            news_at: None,
        })
    }

    /// Serves until told to leave.
    pub fn serve(mut self) -> io::Result<()> {
        // The stamps of one bus are all later than those of the one before: until that has ended nobody is let in.
        let mut is_open = false;
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            if !is_open && self.leave_at.is_none() && self.baton.take()? {
                is_open = true;
                self.hub.take_over(self.baton.found()?);
                for (index, (_, rx)) in (0..).zip(&self.rendezvous) {
                    self.poll.add(rx, EpollEvent::new(EpollFlags::EPOLLIN, RENDEZVOUS + index))?;
                }
            }
            let count = match self.poll.wait(&mut events, self.timeout(is_open)) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in events.iter().take(count) {
                match event.data() {
                    CONTROL => {
                        if !self.read_orders()? {
                            return Ok(());
                        }
                    }
                    SIGNAL => {
                        while let Ok(Some(_)) = self.signals.read_signal() {
                            self.begin_leaving();
                        }
                    }
                    ENGINE => self.read_engine(),
                    token if token < WORKER => self.let_in((token - RENDEZVOUS) as usize),
                    token => self.read(token),
                }
            }
            self.tend();
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

    fn timeout(&self, is_open: bool) -> EpollTimeout {
        let now = clock::now();
        let mut next = self.next_tick;
        next = self.news_at.map_or(next, |at| at.min(next));
        next = self.leave_at.map_or(next, |at| at.min(next));
        if !is_open && self.leave_at.is_none() {
            next = next.min(now + BATON);
        }
        let ms = next.since(now).as_nanos().div_ceil(1_000_000);
        i32::try_from(ms).ok().and_then(|ms| EpollTimeout::try_from(ms).ok()).unwrap_or(EpollTimeout::ZERO)
    }

    /// What the supervisor says; false if this process is to end at once.
    fn read_orders(&mut self) -> io::Result<bool> {
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
                    log::warn!("from the supervisor: {error}");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Without a reply the supervisor gives up.
    fn reply(&self, report: io::Result<Report>) {
        if let Err(error) = report.and_then(|report| self.channel.send_report(report)) {
            log::error!("cannot do what wshd ctl asks for: {error}");
        }
    }

    /// Nobody is let in any more, and workers say no more once they have heard it.
    fn begin_leaving(&mut self) {
        if self.leave_at.is_some() {
            return;
        }
        self.leave_at = Some(clock::now() + FAREWELL);
        for (_, rx) in self.rendezvous.drain(..) {
            let _ = self.poll.delete(&rx); // it was not watched yet
        }
        self.hub.say_farewell();
    }

    fn has_left(&mut self) -> bool {
        let Some(at) = self.leave_at else { return false };
        let hub = &mut self.hub;
        let is_done =
            |(token, peer): (&u64, &Peer)| peer.has_ended && hub.out(*token).is_none_or(|out| out.is_empty());
        self.peers.iter().all(is_done) || clock::now() >= at
    }

    /// Takes up what workers have left at a rendezvous.
    fn let_in(&mut self, index: usize) {
        let Some((pool, rx)) = self.rendezvous.get(index) else { return };
        let pool = *pool;
        let mut bytes = [0; 8];
        while let Ok((size, fd)) = datagram::receive(rx.as_fd(), &mut bytes) {
            let Some(socket) = fd.filter(|_| bytes.get(..size) == Some(&FORMAT.to_ne_bytes())) else {
                if size == 0 {
                    return; // no worker can come any more
                }
                log::debug!("a worker of another version is not let in");
                continue;
            };
            self.last_token += 1;
            let token = self.last_token;
            if let Err(error) = self.poll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, token)) {
                log::error!("epoll: {error}; a worker is not let in");
                continue;
            }
            let (is_full, has_ended) = (false, false);
            self.peers
                .insert(token, Peer { socket, pool, incoming: Incoming::default(), is_full, has_ended });
            self.hub.connect(token, pool);
        }
    }

    fn read(&mut self, token: u64) {
        let Some(peer) = self.peers.get_mut(&token).filter(|peer| !peer.has_ended) else { return };
        let received = recv(&peer.socket, peer.incoming.room(READ), RecvFlags::DONTWAIT);
        let count = received.as_ref().map_or(0, |(count, _)| *count);
        peer.incoming.received(count, READ);
        match received {
            Ok((1.., _)) => {}
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok(_) | Err(_) => return self.end(token),
        }
        // Not earlier than any of it was sent.
        let now = clock::now();
        let breach = loop {
            match peer.incoming.next_frame() {
                Ok(None) => return,
                Err(_) => break Breach::Nonsense,
                Ok(Some(content)) => match self.hub.take_in(token, content, now) {
                    Ok(None) => {}
                    Ok(Some((key, message))) => {
                        self.engine.iter().for_each(|engine| engine.publish(key, message));
                    }
                    Err(breach) => break breach,
                },
            }
        };
        log::error!("a worker of pool {} {breach}; its connection to the bus is closed", peer.pool);
        self.forget(token);
    }

    /// Takes in what was published on other machines.
    fn read_engine(&mut self) {
        let (now, hub) = (clock::now(), &mut self.hub);
        self.engine.iter().for_each(|engine| engine.receive(|key, message| hub.publish(key, message, now)));
    }

    /// A worker has said all. It still hears, while this process is leaving.
    fn end(&mut self, token: u64) {
        match self.peers.get_mut(&token) {
            Some(peer) if self.leave_at.is_some() => {
                peer.has_ended = true;
                let _ = self.poll.delete(&peer.socket); // it is watched in any case
            }
            _ => self.forget(token),
        }
    }

    fn forget(&mut self, token: u64) {
        self.peers.remove(&token);
        self.hub.disconnect(token);
    }

    /// Does what is due.
    fn tend(&mut self) {
        let now = clock::now();
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.hub.expire(now);
            self.engine.iter_mut().for_each(|engine| engine.tend(now));
        }
        for (key, has_subscribers) in self.hub.turned() {
            self.engine.iter_mut().for_each(|engine| engine.set_interest(&key, has_subscribers, now));
        }
        match self.news_at {
            Some(at) if at <= now => {
                self.news_at = None;
                self.hub.tell_counts();
            }
            None if self.hub.has_news() => self.news_at = Some(now + NEWS),
            _ => {}
        }
    }

    /// Gives the sockets what they take.
    fn write(&mut self) {
        let mut gone = Vec::new();
        for (&token, peer) in &mut self.peers {
            let Some(out) = self.hub.out(token) else { continue };
            while !out.is_empty() {
                match send(&peer.socket, out.unsent(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                    Ok(count) => out.advance(count),
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(_) => {
                        gone.push(token);
                        break;
                    }
                }
            }
            let is_full = !out.is_empty();
            if is_full != peer.is_full && !peer.has_ended {
                peer.is_full = is_full;
                let mut flags = EpollFlags::EPOLLIN;
                flags.set(EpollFlags::EPOLLOUT, is_full);
                if let Err(error) = self.poll.modify(&peer.socket, &mut EpollEvent::new(flags, token)) {
                    log::error!("epoll: {error}");
                }
            }
        }
        gone.into_iter().for_each(|token| self.forget(token));
    }
}
