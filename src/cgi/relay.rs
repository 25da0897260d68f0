//! One request and its program, from start to end: the body goes in, the output comes out as it is printed, with a bound
//! for what is between them. Runs on a thread of its own, and waits in poll(2) only.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, Socket};

use super::output::{Framing, Header};
use crate::clock;
use crate::http::{self, Response};
use crate::time::Instant;

/// Bytes on their way in either direction.
const BUFFER: usize = 64 * 1024;
/// How long the client may take to close its end after everything was said.
const LINGER: Duration = Duration::from_secs(2);
/// Longest line of a program's standard error that is logged, and how many lines.
const LINE: usize = 1024;
const LINES: usize = 100;

/// How a program may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Without anything printed or taken.
    pub idle: Duration,
    /// From its start to its end.
    pub lifetime: Duration,
    /// Bytes of its output; 0: no bound.
    pub output: u64,
}

/// How it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All was sent.
    Complete,
    /// The client has gone.
    Gone,
    /// It was silent for too long, or ran for too long.
    Late(&'static str),
    /// What it printed is no response, or not all of one.
    Bad(&'static str),
}

/// A request with its program.
pub struct Relay<'a> {
    name: &'a str,
    socket: &'a Socket,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    bounds: Bounds,
    /// Read from the client, and not given to the program: at most [`BUFFER`] more than came with the head.
    body: Vec<u8>,
    /// What of the body the client is still to send.
    body_left: u64,
    is_head: bool,
    minor_version: u8,
    /// The output up to the end of its header.
    start: Vec<u8>,
    /// Once that is complete.
    framing: Option<Framing>,
    sent: Option<Sent>,
    printed: u64,
    /// To be sent: at most a little more than [`BUFFER`].
    out: Vec<u8>,
    errors: Errors,
    /// When something was last read or written.
    progress: Instant,
}

impl<'a> Relay<'a> {
    /// Of a program that has just been started. `body` is what came of the body with the head; `body_left` is to come.
    pub fn new(
        name: &'a str,
        socket: &'a Socket,
        mut child: Child,
        bounds: Bounds,
        (body, body_left): (Vec<u8>, u64),
        (is_head, minor_version): (bool, u8),
    ) -> Self {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let pipes = [
            stdin.as_ref().map(AsFd::as_fd),
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ];
        for pipe in pipes.into_iter().flatten() {
            // Fails for no pipe; one that waits would only wait for the program.
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
            start,
            framing,
            sent,
            printed,
            out,
            errors,
            progress,
        }
    }

    /// To the end of the program and of its group. Returns how that came about and what was sent, if anything was.
    /// `wait` reaps the program, which has exited or was killed.
    pub fn run(mut self, wait: impl FnOnce(&mut Child) -> io::Result<ExitStatus>) -> (End, Option<Sent>) {
        let begun = clock::now();
        let end = self.exchange(begun);
        drop((self.stdin.take(), self.stdout.take()));
        match &end {
            End::Complete => self.finish(),
            // An end that the client cannot take for that of the content.
            End::Gone => self.cut(),
            End::Late(_) if self.framing.is_none() => {
                self.answer(http::error(504, "the program did not answer in time", &[]))
            }
            End::Bad(_) if self.framing.is_none() => {
                self.answer(http::error(502, "the program gave no valid answer", &[]))
            }
            End::Late(_) | End::Bad(_) => self.cut(),
        }
        let left = if end == End::Complete { self.bounds.idle } else { Duration::ZERO };
        let status = self.reap(left, wait);
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

    /// Copies until nothing is left.
    fn exchange(&mut self, begun: Instant) -> End {
        loop {
            if self.stdout.is_none() && self.out.is_empty() {
                return End::Complete;
            }
            let now = clock::now();
            let (idle, end) = (self.progress + self.bounds.idle, begun + self.bounds.lifetime);
            if now >= end {
                return End::Late("it ran for longer than cgi_lifetime; killed");
            }
            if now >= idle {
                return End::Late("nothing was printed or taken for cgi_timeout; killed");
            }
            match self.wait(idle.min(end).since(now)).and_then(|ready| self.copy(ready)) {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(error) => {
                    log::warn!("cgi {}: {error}", self.name);
                    return End::Bad("it cannot be served");
                }
            }
        }
    }

    /// Waits until something can be done: what is ready of socket, standard input, output and error.
    fn wait(&self, time: Duration) -> io::Result<[PollFlags; 4]> {
        let mut wanted = PollFlags::RDHUP;
        if self.body_left > 0 && self.body.len() < BUFFER {
            wanted |= PollFlags::IN;
        }
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

    /// Does what can be done; what ends it, if anything does.
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
            (self.stdin, self.body) = (None, Vec::new()); // the program does not want it
        } else if !stdin.is_empty() {
            self.write_body();
        }
        if self.body.is_empty() && self.body_left == 0 {
            self.stdin = None; // its end
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

    /// False: the client has gone.
    fn read_body(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        let room = buffer.len().min(self.body_left.try_into().unwrap_or(usize::MAX));
        match (&*self.socket).read(&mut buffer[..room]) {
            Ok(0) => false,
            Ok(count) => {
                self.progress = clock::now();
                self.body_left -= count as u64;
                if self.stdin.is_some() {
                    self.body.extend_from_slice(&buffer[..count]); // else nobody wants it
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
            // The program does not want it.
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
                return Some(End::Bad("it ended before its header did"));
            };
            return match framing.end() {
                Some(end) => {
                    self.out.extend_from_slice(end);
                    None
                }
                None => Some(End::Bad("it printed less than its Content-Length")),
            };
        }
        self.progress = clock::now();
        self.printed += count as u64;
        if self.bounds.output != 0 && self.printed > self.bounds.output {
            return Some(End::Bad("it printed more than cgi_max_output; killed"));
        }
        let output = buffer.get(..count).unwrap_or_default();
        match &mut self.framing {
            Some(framing) => {
                let content = framing.frame(output, &mut self.out);
                self.sent.iter_mut().for_each(|sent| sent.content += content as u64);
            }
            None => {
                self.start.extend_from_slice(output);
                match Header::parse(&self.start) {
                    Ok(None) => return None,
                    Ok(Some((header, taken))) => self.begin(&header, taken),
                    Err(why) => return Some(End::Bad(why)),
                }
            }
        }
        if self.framing.is_some_and(Framing::is_complete) {
            self.stdout = None; // no more of it is needed
        }
        None
    }

    fn begin(&mut self, header: &Header, taken: usize) {
        let mut framing = header.framing(self.is_head, self.minor_version);
        self.out = header.response(SystemTime::now(), framing);
        let start = std::mem::take(&mut self.start);
        let content = framing.frame(start.get(taken..).unwrap_or_default(), &mut self.out);
        self.sent = Some(Sent { status: header.status(), content: content as u64 });
        self.framing = Some(framing);
    }

    /// False: the client has gone.
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
        self.sent = Some(reply(self.socket, response, self.is_head));
    }

    /// Everything was sent: waits for the client's end, so that no reset overtakes the last bytes.
    fn finish(&self) {
        linger(self.socket);
    }

    /// The client gets a reset.
    fn cut(&self) {
        let _ = SockRef::from(self.socket).set_linger(Some(Duration::ZERO)); // then it is an end like any other
    }

    /// Gives the program so long to exit, and kills what is left of its group.
    fn reap(
        &mut self,
        time: Duration,
        wait: impl FnOnce(&mut Child) -> io::Result<ExitStatus>,
    ) -> Option<ExitStatus> {
        let (begun, mut pause) = (clock::now(), Duration::from_millis(1));
        let exited = || has_exited(self.child.id());
        while !exited() && clock::now() < begun + time {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        let was_killed = !exited();
        // Before it is reaped, since its number is not another's until then.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let status = wait(&mut self.child).ok();
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
        Some((Some(code), _)) => format!("exited with {code}"),
        Some((_, Some(signal))) => format!("killed by signal {signal}"),
        _ => "its end was missed".to_owned(),
    }
}

/// Whether nothing can be read or written now.
fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// What a client was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// The status.
    pub status: u16,
    /// Bytes of content.
    pub content: u64,
}

/// Sends a response without a program and ends the connection.
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

fn linger(socket: &Socket) {
    let _ = socket.shutdown(Shutdown::Write); // it has ended already
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

/// False: the time is over.
fn wait_for(socket: &Socket, flags: PollFlags, until: Instant) -> bool {
    let left = until.since(clock::now());
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), flags)];
    let time = Timespec::try_from(left).ok();
    !left.is_zero() && poll(&mut fds, time.as_ref()).is_ok_and(|ready| ready > 0)
}

/// A program's standard error, line by line into the log.
#[derive(Default)]
struct Errors {
    /// The line so far: at most [`LINE`] bytes.
    line: Vec<u8>,
    lines: usize,
}

impl Errors {
    /// Reads once; true if something came. At its end the pipe is closed.
    fn read(&mut self, pipe: &mut Option<ChildStderr>, name: &str) -> bool {
        let mut buffer = [0; 4096];
        match pipe.as_mut().map(|pipe| pipe.read(&mut buffer)) {
            Some(Ok(count)) if count > 0 => {
                for byte in buffer.iter().take(count) {
                    if *byte == b'\n' {
                        self.flush(name);
                    } else if self.line.len() < LINE {
                        self.line.push(*byte);
                    }
                }
                return true;
            }
            Some(Err(error)) if is_later(&error) => {}
            _ => *pipe = None,
        }
        false
    }

    fn flush(&mut self, name: &str) {
        let line = std::mem::take(&mut self.line);
        self.lines += 1;
        if self.lines <= LINES {
            log::warn!("cgi {name}: {}", String::from_utf8_lossy(&line));
        }
    }

    fn finish(&mut self, name: &str) {
        if !self.line.is_empty() {
            self.flush(name);
        }
        if let Some(more) = self.lines.checked_sub(LINES).filter(|more| *more > 0) {
            log::warn!("cgi {name}: {more} more lines on standard error were not logged");
        }
    }
}
