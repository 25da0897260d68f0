//! Relays between one request and its program: passes the body to the program and its output to the client as it is
//! printed, with bounded buffers. Runs on a thread of its own, and waits in poll(2) only.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, Socket};

use super::errors::{self, Errors, is_later};
use super::output::{Framing, OutputHeader};
use crate::clock;
use crate::http::{self, Response};
use crate::time::Instant;

/// Bytes buffered in each direction.
const BUFFER: usize = 64 * 1024;
/// Time for the client to read the response and close its end.
const LINGER: Duration = Duration::from_secs(2);

/// Bounds of a program's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Maximum time without a byte copied in any direction.
    pub idle: Duration,
    /// Maximum time from start to end.
    pub lifetime: Duration,
    /// Maximum bytes of output; 0: unlimited.
    pub output: u64,
}

/// How a run has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The response was sent.
    Complete,
    /// The client has disconnected.
    Gone,
    /// A timeout expired.
    Late(&'static str),
    /// The output is not a valid and complete response.
    Bad(&'static str),
}

/// A request and its program.
pub struct Relay<'a> {
    name: &'a str,
    socket: &'a Socket,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    bounds: Bounds,
    /// Body read from the client, not written to the program yet: at most [`BUFFER`] more than was read with the head.
    body: Vec<u8>,
    /// Bytes of the body still to be read.
    body_left: u64,
    is_head: bool,
    minor_version: u8,
    /// The Strict-Transport-Security of the response.
    hsts: Option<&'a str>,
    /// The output until its header is complete.
    start: Vec<u8>,
    /// Known once the header is complete.
    framing: Option<Framing>,
    sent: Option<Sent>,
    printed: u64,
    /// Bytes to send: at most a little more than [`BUFFER`].
    out: Vec<u8>,
    errors: Errors,
    /// When something was last read or written.
    progress: Instant,
}

impl<'a> Relay<'a> {
    /// `child` has just been started. `body` was read with the head; `body_left` bytes follow.
    pub fn new(
        name: &'a str,
        socket: &'a Socket,
        mut child: Child,
        bounds: Bounds,
        (body, body_left): (Vec<u8>, u64),
        (is_head, minor_version, hsts): (bool, u8, Option<&'a str>),
    ) -> Self {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let stdin = stdin.filter(|_| !body.is_empty() || body_left > 0); // else end of file
        let pipes = [
            stdin.as_ref().map(AsFd::as_fd),
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ];
        for pipe in pipes.into_iter().flatten() {
            // Cannot fail for a pipe.
            let _ = rustix::io::ioctl_fionbio(pipe, true);
        }
        let (start, framing, sent, printed, out) = Default::default();
        let (errors, progress) = (Errors::default(), clock::now());
        Self {
            name,
            socket,
            child,
            stdin,
            stdout,
            stderr,
            bounds,
            body,
            body_left,
            is_head,
            minor_version,
            hsts,
            start,
            framing,
            sent,
            printed,
            out,
            errors,
            progress,
        }
    }

    /// Runs until the program and its process group have ended. Returns how, and what was sent, if anything. `wait`
    /// reaps the program, which has exited or was killed.
    pub fn run(mut self, wait: impl FnOnce(&mut Child) -> io::Result<ExitStatus>) -> (End, Option<Sent>) {
        let begun = clock::now();
        let end = self.exchange(begun);
        drop((self.stdin.take(), self.stdout.take()));
        match &end {
            End::Complete => linger(self.socket),
            End::Gone => self.reset(),
            End::Late(_) if self.framing.is_none() => {
                self.answer(http::error(504, "the program did not answer in time", &[]))
            }
            End::Bad(_) if self.framing.is_none() => {
                self.answer(http::error(502, "malformed response of the program", &[]))
            }
            // The client must not take this for the end of the content.
            End::Late(_) | End::Bad(_) => self.reset(),
        }
        let time = if end == End::Complete { self.bounds.idle } else { Duration::ZERO };
        let status = self.reap(time, wait);
        self.errors.finish(self.name);
        match &end {
            End::Late(why) | End::Bad(why) => log::warn!("cgi {}: {why}", self.name),
            End::Complete if !status.is_some_and(|status| status.success()) => {
                log::warn!("cgi {}: {}", self.name, describe(status));
            }
            _ => {}
        }
        (end, self.sent)
    }

    /// Copies in all directions until everything was sent, or a bound is exceeded.
    fn exchange(&mut self, begun: Instant) -> End {
        loop {
            if self.stdout.is_none() && self.out.is_empty() {
                return End::Complete;
            }
            let now = clock::now();
            let (idle, end) = (self.progress + self.bounds.idle, begun + self.bounds.lifetime);
            if now >= end {
                return End::Late("running for longer than cgi_lifetime; killed");
            }
            if now >= idle {
                return End::Late("no input or output for cgi_timeout; killed");
            }
            match self.wait(idle.min(end).since(now)).and_then(|ready| self.copy(ready)) {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(error) => {
                    log::warn!("cgi {}: {error}", self.name);
                    return End::Bad("cannot copy its input or output; killed");
                }
            }
        }
    }

    /// Waits for events of socket, standard input, output and error, in this order.
    fn wait(&self, time: Duration) -> io::Result<[PollFlags; 4]> {
        // Not RDHUP while the buffer is full: it would be reported at once, again and again.
        let mut wanted = match (self.body_left, self.body.len()) {
            (0, _) => PollFlags::RDHUP,
            (_, ..BUFFER) => PollFlags::RDHUP | PollFlags::IN,
            _ => PollFlags::empty(),
        };
        if !self.out.is_empty() {
            wanted |= PollFlags::OUT;
        }
        let has_room = self.out.len() < BUFFER;
        let stdin = self.stdin.as_ref().map(|pipe| {
            (pipe.as_fd(), if self.body.is_empty() { PollFlags::empty() } else { PollFlags::OUT })
        });
        let stdout = self.stdout.as_ref().filter(|_| has_room).map(|pipe| (pipe.as_fd(), PollFlags::IN));
        let stderr = self.stderr.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN));
        let all = [Some((self.socket.as_fd(), wanted)), stdin, stdout, stderr];
        let mut fds: Vec<PollFd<'_>> =
            all.iter().flatten().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        let time = Timespec::try_from(time).ok();
        match poll(&mut fds, time.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(PollFd::revents);
        Ok(all.map(|entry| entry.and_then(|_| ready.next()).unwrap_or(PollFlags::empty())))
    }

    /// Copies what is ready; returns how the run has ended, if it has.
    fn copy(&mut self, [socket, stdin, stdout, stderr]: [PollFlags; 4]) -> io::Result<Option<End>> {
        if socket.intersects(PollFlags::HUP | PollFlags::ERR)
            || (socket.contains(PollFlags::RDHUP) && self.body_left == 0)
        {
            return Ok(Some(End::Gone));
        }
        if socket.contains(PollFlags::IN) && !self.read_body() {
            return Ok(Some(End::Gone));
        }
        if stdin.intersects(PollFlags::ERR | PollFlags::HUP) {
            (self.stdin, self.body) = (None, Vec::new()); // the program has closed it
        } else if !stdin.is_empty() {
            self.write_body();
        }
        if self.body.is_empty() && self.body_left == 0 {
            self.stdin = None; // end of file
        }
        if !stderr.is_empty() && self.errors.read(&mut self.stderr, self.name) {
            self.progress = clock::now();
        }
        if !stdout.is_empty()
            && let Some(end) = self.read_output()
        {
            return Ok(Some(end));
        }
        if !self.out.is_empty() && !self.send() {
            return Ok(Some(End::Gone));
        }
        Ok(None)
    }

    /// False: the client has disconnected.
    fn read_body(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        let room = buffer.len().min(self.body_left.try_into().unwrap_or(usize::MAX));
        match (&*self.socket).read(&mut buffer[..room]) {
            Ok(0) => false,
            Ok(count) => {
                self.progress = clock::now();
                self.body_left -= count as u64;
                if self.stdin.is_some() {
                    self.body.extend_from_slice(&buffer[..count]); // otherwise discarded
                }
                true
            }
            Err(error) => is_later(&error),
        }
    }

    fn write_body(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        match stdin.write(&self.body) {
            Ok(count) => {
                self.progress = clock::now();
                self.body.drain(..count);
            }
            Err(error) if is_later(&error) => {}
            // The program has closed it.
            Err(_) => (self.stdin, self.body) = (None, Vec::new()),
        }
    }

    fn read_output(&mut self) -> Option<End> {
        let mut buffer = [0; 16 * 1024];
        let count = match self.stdout.as_mut()?.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if is_later(&error) => return None,
            Err(_) => 0,
        };
        if count == 0 {
            self.stdout = None;
            let Some(framing) = self.framing else {
                return Some(End::Bad("output ended within the header"));
            };
            return match framing.end() {
                Some(end) => {
                    self.out.extend_from_slice(end);
                    None
                }
                None => Some(End::Bad("output is shorter than its Content-Length")),
            };
        }
        self.progress = clock::now();
        self.printed += count as u64;
        if self.bounds.output != 0 && self.printed > self.bounds.output {
            return Some(End::Bad("output exceeds cgi_max_output; killed"));
        }
        let output = buffer.get(..count).unwrap_or_default();
        match &mut self.framing {
            Some(framing) => {
                let content = framing.frame(output, &mut self.out);
                self.sent.iter_mut().for_each(|sent| sent.content += content as u64);
            }
            None => {
                self.start.extend_from_slice(output);
                match OutputHeader::parse(&self.start) {
                    Ok(None) => return None,
                    Ok(Some((header, taken))) => self.begin(&header, taken),
                    Err(why) => return Some(End::Bad(why)),
                }
            }
        }
        if self.framing.is_some_and(Framing::is_complete) {
            self.stdout = None; // the rest is not needed
        }
        None
    }

    fn begin(&mut self, header: &OutputHeader, taken: usize) {
        let mut framing = header.framing(self.is_head, self.minor_version);
        self.out = header.response(SystemTime::now(), framing, self.hsts);
        let start = std::mem::take(&mut self.start);
        let content = framing.frame(start.get(taken..).unwrap_or_default(), &mut self.out);
        self.sent = Some(Sent { status: header.status(), content: content as u64 });
        self.framing = Some(framing);
    }

    /// False: the client has disconnected.
    fn send(&mut self) -> bool {
        match (&*self.socket).write(&self.out) {
            Ok(count) => {
                self.progress = clock::now();
                self.out.drain(..count);
                true
            }
            Err(error) => is_later(&error),
        }
    }

    fn answer(&mut self, response: Response) {
        self.sent = Some(reply(self.socket, response.with_hsts(self.hsts), self.is_head));
    }

    /// The close that follows resets the connection.
    fn reset(&self) {
        let _ = SockRef::from(self.socket).set_linger(Some(Duration::ZERO)); // fails on no open socket
    }

    /// Waits for the program to exit, for at most `time`, then kills what is left of its process group.
    fn reap(
        &mut self,
        time: Duration,
        wait: impl FnOnce(&mut Child) -> io::Result<ExitStatus>,
    ) -> Option<ExitStatus> {
        let (begun, mut pause) = (clock::now(), Duration::from_millis(1));
        let id = self.child.id();
        let exited = || has_exited(id);
        while !exited() && clock::now() < begun + time {
            // It must not be blocked by a full pipe.
            self.errors.wait(&mut self.stderr, self.name, pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        let was_killed = !exited();
        // Before it is reaped: until then, its pid cannot be reused.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let status = wait(&mut self.child).ok();
        // What a pipe holds.
        (0..BUFFER / errors::READ).any(|_| !self.errors.read(&mut self.stderr, self.name));
        if was_killed && !time.is_zero() {
            log::warn!(
                "cgi {}: still running {time:?} after closing its output (cgi_timeout); killed",
                self.name
            );
            return Some(ExitStatus::from_raw(0));
        }
        status
    }
}

/// Whether a child has ended and can be waited for.
fn has_exited(pid: u32) -> bool {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::Pid(Pid::from_raw(pid as i32)), flags), Ok(WaitStatus::StillAlive))
}

fn describe(status: Option<ExitStatus>) -> String {
    match status.map(|status| (status.code(), status.signal())) {
        Some((Some(code), _)) => format!("exited with status {code}"),
        Some((_, Some(signal))) => format!("killed by signal {signal}"),
        _ => "exit status unknown".to_owned(),
    }
}

/// What a client was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// The status.
    pub status: u16,
    /// Bytes of content.
    pub content: u64,
}

/// Sends a response of the server itself, and waits for the client to close the connection.
pub fn reply(socket: &Socket, response: Response, is_head: bool) -> Sent {
    let response = if is_head { response.without_content() } else { response };
    let sent = Sent { status: response.status(), content: response.content_length() };
    let bytes = response.into_bytes();
    let mut left = bytes.as_slice();
    let until = clock::now() + LINGER;
    while !left.is_empty() {
        match (&*socket).write(left) {
            Ok(count) => left = left.get(count..).unwrap_or_default(),
            Err(error) if is_later(&error) && wait_for(socket, PollFlags::OUT, until) => {}
            Err(_) => return sent,
        }
    }
    linger(socket);
    sent
}

/// Waits for the client to close its end: closing with unread bytes would reset the connection before the client has
/// read the response.
fn linger(socket: &Socket) {
    let _ = socket.shutdown(Shutdown::Write); // fails if the client has disconnected
    let until = clock::now() + LINGER;
    let mut buffer = [0; 4096];
    loop {
        match (&*socket).read(&mut buffer) {
            Ok(count) if count > 0 && clock::now() < until => {}
            Err(error) if is_later(&error) && wait_for(socket, PollFlags::IN, until) => {}
            _ => return,
        }
    }
}

/// False: `until` has passed.
fn wait_for(socket: &Socket, flags: PollFlags, until: Instant) -> bool {
    let left = until.since(clock::now());
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), flags)];
    let time = Timespec::try_from(left).ok();
    !left.is_zero() && poll(&mut fds, time.as_ref()).is_ok_and(|ready| ready > 0)
}
