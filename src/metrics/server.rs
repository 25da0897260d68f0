//! A small HTTP server: one request per connection, few clients, each with a deadline, in one loop over non-blocking
//! sockets.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{SockRef, Socket};

use crate::clock;
use crate::fleet::sockets::control::{Channel, Command};
use crate::fleet::sockets::listener::Listener;
use crate::http::{self, Response};
use crate::proto::http1::head::{self, Head, HeadLimits, Parsed};
use crate::time::Instant;

/// Maximum clients; one more replaces the oldest.
const CLIENTS: usize = 32;
/// Time from the connection to the last byte of the response.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a client to read the response and close its end.
const LINGER: Duration = Duration::from_secs(2);
const LIMITS: HeadLimits = HeadLimits { bytes: 8 * 1024, headers: 64 };

struct Client {
    socket: Socket,
    phase: ExchangePhase,
    deadline: Instant,
}

enum ExchangePhase {
    /// The head of the request so far.
    Request(Vec<u8>),
    /// The response, and how many of its bytes were sent.
    Response(Vec<u8>, usize),
    /// Everything was sent; closing before the client does could reset the connection before it has read the response.
    Linger,
}

/// Whether to keep a client.
#[derive(PartialEq, Eq)]
enum Next {
    Keep,
    Close,
}

/// Responds to requests with what `answer` returns until it is told to leave; fails if polling fails.
pub fn serve(
    mut listeners: &[Arc<Listener>],
    channel: &Channel,
    answer: impl Fn(&Head) -> Response,
) -> io::Result<()> {
    let mut clients: Vec<Client> = Vec::new();
    let mut is_draining = false;
    while !is_draining || !clients.is_empty() {
        let (has_command, acceptable, ready) = wait(channel, listeners, &clients)?;
        let now = clock::now();
        let mut ready = ready.into_iter();
        clients.retain_mut(|client| {
            let is_ready = ready.next().unwrap_or(false);
            let next = if is_ready { client.handle(&answer, now) } else { Next::Keep };
            next == Next::Keep && client.deadline > now
        });
        for listener in acceptable {
            accept(listener, &mut clients, now);
        }
        if has_command {
            match channel.recv_command() {
                Ok(Some((Command::Drain, _))) => (is_draining, listeners) = (true, &[]),
                Ok(Some((Command::Stop | Command::Quit, _)) | None) => return Ok(()),
                Ok(Some(_)) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::InvalidData) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Waits for events or the next deadline. Returns whether there is a command, the listeners with a new connection, and
/// which clients are ready.
fn wait<'a>(
    channel: &Channel,
    listeners: &'a [Arc<Listener>],
    clients: &[Client],
) -> io::Result<(bool, Vec<&'a Listener>, Vec<bool>)> {
    let waiting = [channel.as_fd()].into_iter().chain(listeners.iter().map(|listener| listener.as_fd()));
    let mut fds: Vec<PollFd> = waiting.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    fds.extend(clients.iter().map(|client| {
        let writes = matches!(client.phase, ExchangePhase::Response(..));
        PollFd::new(client.socket.as_fd(), if writes { PollFlags::POLLOUT } else { PollFlags::POLLIN })
    }));
    let deadline = clients.iter().map(|client| client.deadline).min();
    let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
        let milliseconds = deadline.since(clock::now()).as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(false));
    let has_command = ready.next().unwrap_or(false);
    let acceptable =
        listeners.iter().filter(|_| ready.next().unwrap_or(false)).map(|listener| &**listener).collect();
    Ok((has_command, acceptable, ready.collect()))
}

fn accept(listener: &Listener, clients: &mut Vec<Client>, now: Instant) {
    let accepted = SockRef::from(listener).accept();
    match accepted.and_then(|(socket, _)| socket.set_nonblocking(true).map(|()| socket)) {
        Ok(socket) => {
            if clients.len() == CLIENTS {
                clients.remove(0);
            }
            let phase = ExchangePhase::Request(Vec::new());
            clients.push(Client { socket, phase, deadline: now + TIMEOUT });
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        Err(error) => {
            log::warn!("metrics: cannot accept on {}: {error}; retrying", listener.address);
            // Out of descriptors or memory: gives other processes time to free some.
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Client {
    fn handle(&mut self, answer: impl Fn(&Head) -> Response, now: Instant) -> Next {
        let done = match &self.phase {
            ExchangePhase::Request(_) => self.read(answer),
            ExchangePhase::Response(..) => self.write(now),
            ExchangePhase::Linger => match self.socket.read(&mut [0; 4096]) {
                Ok(count) if count > 0 => Ok(Next::Keep),
                end => end.map(|_| Next::Close),
            },
        };
        done.unwrap_or_else(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Next::Keep,
            _ => Next::Close,
        })
    }

    fn read(&mut self, answer: impl Fn(&Head) -> Response) -> io::Result<Next> {
        let ExchangePhase::Request(request) = &mut self.phase else { return Ok(Next::Close) };
        let mut buffer = [0; 4096];
        let count = self.socket.read(&mut buffer)?;
        if count == 0 {
            return Ok(Next::Close);
        }
        let seen = request.len();
        request.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let response = match head::parse_more(request, seen, &LIMITS) {
            Ok(Parsed::NeedMore) => return Ok(Next::Keep),
            Ok(Parsed::Head { head, .. }) => answer(&head),
            Err(bad) => bad.into(),
        };
        let takes_content = http::takes_content(request);
        let response = if takes_content { response } else { response.without_content() };
        self.phase = ExchangePhase::Response(response.into_bytes(), 0);
        Ok(Next::Keep)
    }

    fn write(&mut self, now: Instant) -> io::Result<Next> {
        let ExchangePhase::Response(response, sent) = &mut self.phase else { return Ok(Next::Close) };
        *sent += self.socket.write(response.get(*sent..).unwrap_or_default())?;
        if *sent == response.len() {
            self.socket.shutdown(Shutdown::Write)?;
            self.phase = ExchangePhase::Linger;
            self.deadline = now + LINGER;
        }
        Ok(Next::Keep)
    }
}
