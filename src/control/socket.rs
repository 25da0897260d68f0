//! The control socket: reads requests, a line each, and sends answers. Knows nothing of what they mean. Everything is
//! non-blocking and bounded: clients, bytes of a request, the time to send it and to take the answer. A client over a
//! bound gets an error or is disconnected; further clients wait in the kernel's queue.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{UnixCredentials, getsockopt, sockopt};
use nix::unistd::{Gid, geteuid};
use socket2::{SockRef, Socket as Stream};

use crate::ctl::answer;
use crate::ctl::request::MAX_BYTES;
use crate::fleet::sockets::datagram;
use crate::fleet::sockets::listener::{self, Listen, Listener};
use crate::time::Instant;

/// Bytes of a request that are taken at a time.
const READ: usize = 4096;
/// Most clients at a time.
const MAX_CLIENTS: usize = 8;
/// Time for a request to arrive, and how long an answer may lie there without the client taking any of it.
const IDLE: Duration = Duration::from_secs(5);
/// How long an answer may take.
const LONGEST: Duration = Duration::from_secs(600);
/// Connections that the kernel keeps until there is room for them.
const BACKLOG: i32 = 16;

/// Names a client; never used for another one.
pub type Number = u64;

/// A listening control socket and its clients.
pub struct Socket {
    pub listener: Arc<Listener>,
    /// The file's permissions decide about users other than root and the server's own.
    open_to_group: bool,
    clients: Vec<Client>,
    /// When to accept again after accepting failed, such as for lack of descriptors.
    accept_at: Option<Instant>,
    /// The number of the next client.
    next: Number,
}

struct Client {
    number: Number,
    stream: Stream,
    peer: UnixCredentials,
    state: State,
    /// The descriptor that came with the request.
    fd: Option<OwnedFd>,
    /// When the present state times out.
    deadline: Instant,
}

enum State {
    /// So much of the request has come.
    Asking(Vec<u8>),
    /// The request was handed out.
    Waiting,
    /// The answer, and how much of it was sent.
    Taking(Vec<u8>, usize),
    /// Nothing is left to be done.
    Over,
}

/// A line that a client has sent.
pub struct Asked {
    pub client: Number,
    /// Its process; 0 if that is of another namespace.
    pub pid: i32,
    pub uid: u32,
    /// Without the end of the line.
    pub line: Vec<u8>,
    /// The descriptor that came along.
    pub fd: Option<OwnedFd>,
}

impl Socket {
    /// Listens, on the socket that is inherited or else on a new one. Replaces the file of a server that does not
    /// answer any more.
    pub fn bind(path: &Path, group: Option<Gid>, inherited: &[Arc<Listener>]) -> io::Result<Self> {
        let ours = Listen::Unix(path.to_owned());
        let listener = match inherited.iter().find(|listener| listener.asked() == Some(&ours)) {
            Some(listener) => Arc::clone(listener),
            None => Arc::new(listener::bind_private(path, group, BACKLOG)?),
        };
        Ok(Self { listener, open_to_group: group.is_some(), clients: Vec::new(), accept_at: None, next: 1 })
    }

    /// What to wait for. Of clients that wait for an answer only that they leave. `accepts`: see [`turn`](Self::turn).
    pub fn interest(&self, accepts: bool) -> impl Iterator<Item = PollFd<'_>> {
        let has_room = self.clients.len() < MAX_CLIENTS && self.accept_at.is_none();
        let listener = Some(&self.listener).filter(|_| accepts && has_room);
        let listener = listener.map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        let clients = self.clients.iter().filter_map(|client| {
            let flags = match client.state {
                State::Asking(_) => PollFlags::POLLIN,
                State::Taking(..) => PollFlags::POLLOUT,
                State::Waiting => PollFlags::empty(),
                State::Over => return None,
            };
            Some(PollFd::new(client.stream.as_fd(), flags))
        });
        listener.into_iter().chain(clients)
    }

    /// When to look after the clients at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.iter().map(|client| client.deadline).chain(self.accept_at).min()
    }

    /// Does what can be done without waiting; returns the requests that have come. `accepts`: no other server has taken
    /// the socket over.
    pub fn turn(&mut self, accepts: bool, now: Instant) -> Vec<Asked> {
        self.accept_at.take_if(|at| *at <= now);
        if accepts && self.accept_at.is_none() {
            self.accept(now);
        }
        let mut asked = Vec::new();
        for client in &mut self.clients {
            match client.read() {
                Ok(Some(_)) if !self.open_to_group && !is_ours(client.peer.uid()) => client.refuse(now),
                Ok(Some(line)) => {
                    client.state = State::Waiting;
                    client.deadline = now + LONGEST;
                    let (pid, uid, fd) = (client.peer.pid(), client.peer.uid(), client.fd.take());
                    asked.push(Asked { client: client.number, pid, uid, line, fd });
                }
                Ok(None) => {}
                Err(why) => client.answer(answer::line(&Err(why)), now),
            }
            // Its place is for another one: a reload that takes long may have to be cancelled.
            if matches!(client.state, State::Waiting) && datagram::is_hung_up(client.stream.as_fd()) {
                client.state = State::Over;
            }
            client.write(now);
            client.look_at_the_time(now);
        }
        self.forget();
        asked
    }

    /// Answers a client with a line, as far as it can be sent at once; the rest follows in [`turn`](Self::turn).
    pub fn answer(&mut self, client: Number, line: Vec<u8>, now: Instant) {
        if let Some(client) = self.clients.iter_mut().find(|known| known.number == client) {
            client.answer(line, now);
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.clients.retain(|client| !matches!(client.state, State::Over));
    }

    fn accept(&mut self, now: Instant) {
        while self.clients.len() < MAX_CLIENTS {
            let stream = match SockRef::from(&*self.listener).accept() {
                Ok((stream, _)) => stream,
                Err(error) if is_to_be_tried_again(&error) => return,
                Err(error) => {
                    log::warn!("control socket: cannot accept: {error}; trying again in {IDLE:?}");
                    self.accept_at = Some(now + IDLE);
                    return;
                }
            };
            let peer = getsockopt(&stream, sockopt::PeerCredentials).map_err(io::Error::from);
            let peer = stream.set_nonblocking(true).and(peer);
            match peer {
                Ok(peer) => {
                    let (number, state, deadline) = (self.next, State::Asking(Vec::new()), now + IDLE);
                    self.next += 1;
                    self.clients.push(Client { number, stream, peer, state, fd: None, deadline });
                }
                Err(error) => log::warn!("control socket: client dropped: {error}"),
            }
        }
    }
}

/// Root and the server's user, who could do as much with signals.
fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

impl Client {
    /// Reads on; the line, once it is whole, or what is wrong with it.
    fn read(&mut self) -> Result<Option<Vec<u8>>, String> {
        let State::Asking(read) = &mut self.state else { return Ok(None) };
        let (mut bytes, before) = ([0; READ], read.len());
        // What a request is short of its bound: never more is taken.
        let room = bytes.get_mut(..READ.min(MAX_BYTES.saturating_sub(before))).unwrap_or_default();
        match datagram::receive(self.stream.as_fd(), room) {
            Ok((count @ 1.., fd)) => {
                read.extend_from_slice(room.get(..count).unwrap_or_default());
                self.fd = fd.or(self.fd.take());
            }
            Err(error) if is_to_be_tried_again(&error) => {}
            Ok(_) | Err(_) => {
                self.state = State::Over; // it has left without having asked
                return Ok(None);
            }
        }
        if let Some(end) = read.iter().skip(before).position(|byte| *byte == b'\n') {
            read.truncate(before + end);
            return Ok(Some(std::mem::take(read)));
        }
        if read.len() >= MAX_BYTES {
            return Err(format!("the request is too long: expected a line of at most {MAX_BYTES} bytes"));
        }
        Ok(None)
    }

    fn refuse(&mut self, now: Instant) {
        let (uid, pid) = (self.peer.uid(), self.peer.pid());
        log::warn!(
            "control socket: refused process {pid} of user {uid}: not root, not the server's user, and no control_group is set"
        );
        let why = format!(
            "user {uid} may not control this server: expected root or user {}, or the server to be given a \
             control_group",
            geteuid()
        );
        self.answer(answer::line(&Err(why)), now);
    }

    fn answer(&mut self, line: Vec<u8>, now: Instant) {
        self.state = State::Taking(line, 0);
        self.deadline = now + IDLE;
        self.write(now);
    }

    fn write(&mut self, now: Instant) {
        let State::Taking(line, sent) = &mut self.state else { return };
        while let Some(rest) = line.get(*sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(count) => {
                    *sent += count;
                    self.deadline = now + IDLE;
                }
                Err(error) if is_to_be_tried_again(&error) => return,
                Err(_) => break, // it has left
            }
        }
        self.state = State::Over;
    }

    fn look_at_the_time(&mut self, now: Instant) {
        if self.deadline > now {
            return;
        }
        let why = match self.state {
            State::Asking(_) => "no request came in time: expected a line within 5 seconds",
            State::Waiting => "it is not done after ten minutes: see the log",
            State::Taking(..) | State::Over => return self.state = State::Over,
        };
        self.answer(answer::line(&Err(why.to_owned())), now);
    }
}

fn is_to_be_tried_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufRead, Read};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    const TICK: Duration = Duration::from_nanos(1);

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    fn bound() -> (Socket, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let socket = Socket::bind(&dir.path().join("control"), None, &[]).unwrap();
        (socket, dir)
    }

    fn connect(dir: &tempfile::TempDir) -> UnixStream {
        let stream = UnixStream::connect(dir.path().join("control")).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    fn error(stream: &mut UnixStream) -> String {
        let mut line = Vec::new();
        stream.read_to_end(&mut line).unwrap();
        answer::read(&line).unwrap().unwrap_err()
    }

    #[test]
    fn a_line_comes_in_pieces_and_the_answer_ends_the_connection() {
        let (mut socket, dir) = bound();
        let mut client = connect(&dir);
        client.write_all(b"{\"a\":").unwrap();
        assert!(socket.turn(true, at(0)).is_empty());
        client.write_all(b"1}\nmore").unwrap();
        let asked = socket.turn(true, at(1));
        assert_eq!((asked.len(), &asked[0].line[..]), (1, &b"{\"a\":1}"[..]));
        assert_eq!((asked[0].pid, asked[0].uid), (std::process::id() as i32, geteuid().as_raw()));
        assert!(socket.turn(true, at(2)).is_empty(), "one request each");
        socket.answer(asked[0].client, b"yes\n".to_vec(), at(3));
        let mut line = String::new();
        io::BufReader::new(&client).read_line(&mut line).unwrap();
        assert_eq!(line, "yes\n");
        assert_eq!(socket.clients.len(), 0);
        socket.answer(asked[0].client, b"again\n".to_vec(), at(4)); // nobody is there: nothing happens
    }

    #[test]
    fn the_file_is_for_its_owner_only_or_for_a_group_as_well() {
        let (socket, dir) = bound();
        let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("control"), 0o600);
        let group = Socket::bind(&dir.path().join("group"), Some(nix::unistd::getegid()), &[]).unwrap();
        assert_eq!(mode("group"), 0o660);
        [socket, group].iter().for_each(|socket| socket.listener.remove_file());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn who_says_nothing_or_too_much_is_told_so() {
        let (mut socket, dir) = bound();
        let mut silent = connect(&dir);
        socket.turn(true, at(0));
        assert_eq!(socket.deadline(), Some(at(0) + IDLE));
        socket.turn(true, at(0) + (IDLE - TICK));
        assert_eq!(socket.clients.len(), 1);
        socket.turn(true, at(0) + IDLE);
        assert!(error(&mut silent).contains("within 5 seconds"));
        let mut talker = connect(&dir);
        talker.write_all(&[b'x'; MAX_BYTES + 100]).unwrap();
        (0..MAX_BYTES / READ).for_each(|_| assert!(socket.turn(true, at(0)).is_empty()));
        let mut line = Vec::new();
        // What it had sent beyond the bound was never read, which it is told after the answer.
        let _ = talker.read_to_end(&mut line);
        assert!(answer::read(&line).unwrap().unwrap_err().contains("too long"));
        let gone = connect(&dir);
        drop(gone);
        socket.turn(true, at(0));
        assert_eq!((socket.clients.len(), socket.deadline()), (0, None));
    }

    #[test]
    fn who_does_not_take_the_answer_is_cut_off_and_who_takes_it_slowly_is_not() {
        let (mut socket, dir) = bound();
        let mut clients = [connect(&dir), connect(&dir)];
        let long = vec![b'x'; 4 << 20];
        for client in &mut clients {
            client.write_all(b"\n").unwrap();
        }
        for asked in socket.turn(true, at(0)) {
            socket.answer(asked.client, long.clone(), at(0));
        }
        assert_eq!(socket.clients.len(), 2);
        let [mut reader, _idler] = clients;
        let mut bytes = vec![0; long.len()];
        let (mut taken, mut now) = (0, at(0));
        while taken < long.len() {
            now = now + (IDLE - TICK);
            taken += reader.read(&mut bytes).unwrap();
            socket.turn(true, now);
        }
        assert!(now > at(0) + IDLE);
        assert_eq!((taken, socket.clients.len()), (long.len(), 0));
    }

    #[test]
    fn those_that_are_too_many_wait_their_turn() {
        let (mut socket, dir) = bound();
        let mut clients: Vec<UnixStream> = (0..MAX_CLIENTS + 2).map(|_| connect(&dir)).collect();
        socket.turn(true, at(0));
        assert_eq!((socket.clients.len(), socket.interest(true).count()), (MAX_CLIENTS, MAX_CLIENTS));
        for client in &mut clients {
            client.write_all(b"x\n").unwrap();
        }
        let asked = socket.turn(true, at(0));
        assert_eq!(
            (asked.len(), socket.interest(true).count()),
            (MAX_CLIENTS, MAX_CLIENTS),
            "that they leave"
        );
        asked.iter().for_each(|asked| socket.answer(asked.client, b"y\n".to_vec(), at(0)));
        assert_eq!(socket.turn(true, at(0)).len(), 2);
    }

    #[test]
    fn clients_that_leave_before_their_answer_make_room() {
        let (mut socket, dir) = bound();
        let mut clients: Vec<UnixStream> = (0..MAX_CLIENTS + 1).map(|_| connect(&dir)).collect();
        for client in &mut clients {
            client.write_all(b"x\n").unwrap();
        }
        socket.turn(true, at(0));
        let mut last = clients.pop().unwrap();
        // One that has only ended its request stays.
        clients[0].shutdown(std::net::Shutdown::Write).unwrap();
        clients.truncate(1);
        socket.turn(true, at(1));
        let asked = socket.turn(true, at(2));
        assert_eq!((asked.len(), socket.clients.len()), (1, 2));
        socket.answer(asked[0].client, b"y\n".to_vec(), at(3));
        let mut line = Vec::new();
        last.read_to_end(&mut line).unwrap();
        assert_eq!(line, b"y\n");
    }

    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for_for_ever() {
        let (mut socket, dir) = bound();
        let mut client = connect(&dir);
        client.write_all(b"x\n").unwrap();
        assert_eq!(socket.turn(true, at(0)).len(), 1);
        socket.turn(true, at(0) + (LONGEST - TICK));
        assert_eq!(socket.clients.len(), 1);
        socket.turn(true, at(0) + LONGEST);
        assert!(error(&mut client).contains("ten minutes"));
    }
}
