//! A small HTTP server: one request on each connection. Clients are few, each has its time, and nobody waits for another:
//! one loop over sockets that do not block.

use std::convert::Infallible;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{SockRef, Socket};

use crate::clock;
use crate::fleet::listener::Listener;
use crate::http::{self, Response};
use crate::proto::http1::head::{self, Head, HeadLimits, Parsed};
use crate::time::Instant;

/// Clients at a time; when one more comes, the one that has been here for the longest makes way.
const CLIENTS: usize = 32;
/// From the connection to the last byte of the reply.
const TIME: Duration = Duration::from_secs(10);
/// How long a client may take to close its end, which it does once it has read the reply.
const LINGER: Duration = Duration::from_secs(2);
const LIMITS: HeadLimits = HeadLimits { bytes: 8 * 1024, headers: 64 };

struct Client {
    socket: Socket,
    phase: Phase,
    deadline: Instant,
}

enum Phase {
    /// The head of the request so far.
    Request(Vec<u8>),
    /// The reply, and how much of it was sent.
    Reply(Vec<u8>, usize),
    /// All is sent; closing before the client does could take the reply from it.
    Linger,
}

/// What is to become of a client.
#[derive(PartialEq, Eq)]
enum Next {
    Stay,
    Go,
}

/// Answers requests with what `answer` returns, forever; fails if the listening sockets do.
pub fn serve(listeners: &[Arc<Listener>], answer: impl Fn(&Head) -> Response) -> io::Result<Infallible> {
    let mut clients: Vec<Client> = Vec::new();
    loop {
        let (calling, ready) = wait(listeners, &clients)?;
        let now = clock::now();
        let mut ready = ready.into_iter();
        clients.retain_mut(|client| {
            let is_ready = ready.next().unwrap_or(false);
            let next = if is_ready { client.go_on(&answer, now) } else { Next::Stay };
            next == Next::Stay && client.deadline > now
        });
        for listener in calling {
            welcome(listener, &mut clients, now);
        }
    }
}

/// Waits until something is to be done: listeners with a client, and which clients can go on.
fn wait<'a>(
    listeners: &'a [Arc<Listener>],
    clients: &[Client],
) -> io::Result<(Vec<&'a Listener>, Vec<bool>)> {
    let waiting = listeners.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN));
    let mut fds: Vec<PollFd> = waiting.collect();
    fds.extend(clients.iter().map(|client| {
        let writes = matches!(client.phase, Phase::Reply(..));
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
    let calling =
        listeners.iter().filter(|_| ready.next().unwrap_or(false)).map(|listener| &**listener).collect();
    Ok((calling, ready.collect()))
}

fn welcome(listener: &Listener, clients: &mut Vec<Client>, now: Instant) {
    let accepted = SockRef::from(listener).accept();
    match accepted.and_then(|(socket, _)| socket.set_nonblocking(true).map(|()| socket)) {
        Ok(socket) => {
            if clients.len() == CLIENTS {
                clients.remove(0);
            }
            let phase = Phase::Request(Vec::new());
            clients.push(Client { socket, phase, deadline: now + TIME });
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        Err(error) => {
            log::warn!("metrics: {}: {error}", listener.address);
            // Descriptors or memory have run out: what there is goes on first.
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Client {
    fn go_on(&mut self, answer: impl Fn(&Head) -> Response, now: Instant) -> Next {
        let done = match &self.phase {
            Phase::Request(_) => self.read(answer),
            Phase::Reply(..) => self.write(now),
            Phase::Linger => match self.socket.read(&mut [0; 4096]) {
                Ok(count) if count > 0 => Ok(Next::Stay),
                end => end.map(|_| Next::Go),
            },
        };
        done.unwrap_or_else(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Next::Stay,
            _ => Next::Go,
        })
    }

    fn read(&mut self, answer: impl Fn(&Head) -> Response) -> io::Result<Next> {
        let Phase::Request(request) = &mut self.phase else { return Ok(Next::Go) };
        let mut buffer = [0; 4096];
        let count = self.socket.read(&mut buffer)?;
        if count == 0 {
            return Ok(Next::Go);
        }
        let seen = request.len();
        request.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let reply = match head::parse_more(request, seen, &LIMITS) {
            Ok(Parsed::NeedMore) => return Ok(Next::Stay),
            Ok(Parsed::Head { head, .. }) => answer(&head),
            Err(bad) => bad.into(),
        };
        let takes_content = http::takes_content(request);
        let reply = if takes_content { reply } else { reply.without_content() };
        self.phase = Phase::Reply(reply.into_bytes(), 0);
        Ok(Next::Stay)
    }

    fn write(&mut self, now: Instant) -> io::Result<Next> {
        let Phase::Reply(reply, sent) = &mut self.phase else { return Ok(Next::Go) };
        *sent += self.socket.write(reply.get(*sent..).unwrap_or_default())?;
        if *sent == reply.len() {
            self.socket.shutdown(Shutdown::Write)?;
            self.phase = Phase::Linger;
            self.deadline = now + LINGER;
        }
        Ok(Next::Stay)
    }
}
