//! The process that runs CGI programs (RFC 3875): it receives requests from workers, and serves each with a thread and
//! a program. It loads no handler, and gets no WebSocket connections.
//!
//! Bounded are the number of programs (503 beyond), and for each its time, body, output, memory and processes. A
//! program and its descendants are killed when the client disconnects, when a timeout expires and when this process
//! exits.

mod bounds;
mod errors;
pub mod handover;
mod output;
mod program;
mod relay;
mod spawn;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;

use crate::clock;
use crate::config::Config;
use crate::fleet::memory::addresses::{Addresses, Limiter, Permit};
use crate::fleet::memory::layout::PROGRAMS;
use crate::fleet::process::orphans;
use crate::fleet::sockets::control::{Channel, Command};
use crate::http::{self, Response};
use crate::log::{self as sink, AccessField, Value};
use crate::proto::http1::head::{self, Head, Parsed};
use crate::time::Instant;
pub use bounds::Cgi;
use handover::{Handover, MAX_BYTES};
use program::Program;
pub use program::covers;
use relay::{Bounds, End, Relay, Sent};
use spawn::Limits;

/// Maximum rounds of killing the orphans of a program: killing a process may orphan its children.
const GENERATIONS: usize = 16;
/// Requests received at a time.
const BATCH: usize = 64;
/// While draining, interval of checks whether the last program has ended; ns.
const DRAIN_CHECK: i64 = 50_000_000;
/// Time for threads to end after their programs were killed.
const END: Duration = Duration::from_secs(1);

/// What the supervisor passes on through the fork.
pub struct Start {
    /// The configuration, which has programs.
    pub config: Arc<Config>,
    /// Receiving end of the queue of requests.
    pub inbox: OwnedFd,
    /// The table that counts connections by address.
    pub addresses: &'static Addresses,
}

/// What all threads share.
struct Shared {
    config: Arc<Config>,
    cgi: Cgi,
    /// The document root as this process sees it.
    root: PathBuf,
    limiter: Limiter,
    /// Process groups of the running programs. Locked while one is started or reaped: every other child is an orphan.
    running: Mutex<BTreeSet<i32>>,
    /// Number of requests being served.
    serving: Mutex<usize>,
}

/// Serves from the command to begin until the command to stop, or until the last program has ended after the command to
/// drain.
pub fn run(start: Start, channel: &Channel) -> io::Result<()> {
    let Start { config, inbox, addresses } = start;
    let (Some(cgi), Some(root)) = (config.cgi.clone(), config.document_root.clone()) else {
        return Err(io::Error::other("cgi and document_root are not configured"));
    };
    if nix::unistd::geteuid().is_root() {
        return Err(io::Error::other("expected cgi_user or user: programs do not run as root"));
    }
    let limiter = addresses.join(std::process::id() as i32, PROGRAMS);
    let root = config.inside(&root).into_owned();
    let (running, serving) = Default::default();
    let shared = Arc::new(Shared { config, cgi, root, limiter, running, serving });
    orphans::adopt()?;
    if !channel.stand_by()? {
        return Ok(());
    }
    serve(&shared, &inbox, channel)
}

fn serve(shared: &Arc<Shared>, inbox: &OwnedFd, channel: &Channel) -> io::Result<()> {
    let mut buffer = vec![0; MAX_BYTES];
    let mut is_draining = false;
    loop {
        if is_draining && *lock(&shared.serving) == 0 {
            return Ok(());
        }
        let mut fds = vec![PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN)];
        if !is_draining {
            fds.push(PollFd::new(inbox, PollFlags::IN));
        }
        let time = is_draining.then_some(Timespec { tv_sec: 0, tv_nsec: DRAIN_CHECK });
        match poll(&mut fds, time.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [has_command, has_request] =
            [0, 1].map(|index| fds.get(index).is_some_and(|fd| !fd.revents().is_empty()));
        if has_command {
            match channel.recv_command() {
                Ok(Some((Command::Stop | Command::Quit, _))) | Ok(None) => {
                    shared.end();
                    return Ok(());
                }
                Ok(Some((Command::Drain, _))) => is_draining = true,
                Ok(Some(_)) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::InvalidData) => {}
                Err(error) => return Err(error),
            }
        }
        for _ in 0..if has_request && !is_draining { BATCH } else { 0 } {
            match handover::receive(inbox.as_fd(), &mut buffer) {
                Ok(handover) => shared.start(handover),
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    log::error!("cgi: malformed request from a worker; dropped")
                }
                Err(_) => break,
            }
        }
    }
}

/// Locks; ignores poisoning, since a panic leaves the values valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Serves a request on a thread of its own.
    fn start(self: &Arc<Self>, handover: Handover) {
        let Handover { socket, facts, read } = handover;
        let (socket, begun) = (Socket::from(socket), clock::now());
        let permit = self.take_over(&facts);
        let is_late = begun.since(Instant::from_nanos(facts.at)) > self.config.handshake_timeout;
        let is_full = {
            let serving = &mut *lock(&self.serving);
            let is_full = is_late || *serving >= self.cgi.processes as usize;
            *serving += usize::from(!is_full);
            is_full
        };
        let busy = |why| http::error(503, why, &[("Retry-After", "1")]);
        if is_full {
            // Without waiting: this thread has other requests to receive.
            let response = busy("the maximum number of programs is running").with_hsts(facts.hsts.as_deref());
            let is_head = !http::takes_content(&read);
            let response = if is_head { response.without_content() } else { response };
            let sent = Sent { status: response.status(), content: response.content_length() };
            let _ = socket.send(&response.into_bytes()); // fails if the client has disconnected
            if let Ok(Parsed::Head { head, .. }) = head::parse(&read, &self.config.head) {
                self.log(&facts, &head, Some(sent), begun);
            }
            return;
        }
        let shared = Arc::clone(self);
        let serve = move || {
            shared.serve(&socket, &facts, read, begun);
            drop((socket, permit));
            *lock(&shared.serving) -= 1;
        };
        if let Err(error) = std::thread::Builder::new().name("cgi".to_owned()).spawn(serve) {
            log::error!("cgi: cannot start a thread: {error}; connection dropped");
            *lock(&self.serving) -= 1;
        }
    }

    /// Counts a connection in this process, which the worker counts no longer.
    fn take_over(&self, facts: &handover::RequestFacts) -> Permit {
        let (ip, table) = (facts.peer.map(|peer| peer.ip()), self.limiter.table());
        let mut permit = self.limiter.take();
        if let Some(ip) = ip.filter(|ip| !self.config.admission.proxy.trusts(Some(*ip))) {
            self.limiter.name(&mut permit, table.key(ip));
        }
        permit
    }

    fn serve(&self, socket: &Socket, facts: &handover::RequestFacts, read: Vec<u8>, begun: Instant) {
        // A worker has parsed it before: it is valid.
        let Ok(Parsed::Head { head, consumed }) = head::parse(&read, &self.config.head) else { return };
        let body = read.get(consumed..).unwrap_or_default().to_vec();
        let sent = match self.run(socket, facts, &head, body) {
            Ok(sent) => sent,
            Err(response) => {
                let response = response.with_hsts(facts.hsts.as_deref());
                Some(relay::reply(socket, response, head.method() == "HEAD"))
            }
        };
        self.log(facts, &head, sent, begun);
    }

    /// Runs the program of a request; returns what was sent, if anything. The error is the response.
    fn run(
        &self,
        socket: &Socket,
        facts: &handover::RequestFacts,
        head: &Head,
        body: Vec<u8>,
    ) -> Result<Option<Sent>, Response> {
        let error = |status, why: &str| http::error(status, why, &[]);
        if !matches!(head.method(), "GET" | "HEAD" | "POST") {
            return Err(match head::is_known_method(head.method()) {
                true => {
                    http::error(405, "programs are for GET, HEAD and POST", &[("Allow", "GET, HEAD, POST")])
                }
                false => error(501, "unknown method"),
            });
        }
        // RFC 3875 section 4.1.2: CONTENT_LENGTH must be known before the program starts.
        if head.header("transfer-encoding").is_some() {
            return Err(error(411, "a body needs a Content-Length"));
        }
        let length = head.content_length().unwrap_or(0);
        if length > self.cgi.body {
            return Err(error(413, "the body is too large"));
        }
        let program = Program::find(&self.root, &self.cgi.directories, head.path())?;
        let expects = head.has_token("expect", "100-continue") && head.minor_version() > 0;
        if expects && (body.len() as u64) < length && socket.send(b"HTTP/1.1 100 Continue\r\n\r\n").is_err() {
            return Ok(None);
        }
        let local = facts.local.or_else(|| socket.local_addr().ok()?.as_socket());
        let environment = program.environment(&self.root, head, facts, local);
        let Cgi { timeout: idle, lifetime, output, memory, max_processes: processes, .. } = self.cgi;
        let name = program.name();
        let mut running = lock(&self.running);
        let limits = Limits { cpu: lifetime, memory, processes };
        let child = spawn::spawn(&program.file, environment, limits).map_err(|failed| {
            log::error!("cgi {name}: cannot start the program: {failed}");
            match failed.kind() {
                ErrorKind::WouldBlock | ErrorKind::OutOfMemory => error(503, "cannot start the program now"),
                _ => error(500, "cannot start the program"),
            }
        })?;
        let group = child.id() as i32;
        running.insert(group);
        drop(running);
        let mut body = body;
        body.truncate(usize::try_from(length).unwrap_or(usize::MAX)); // bytes after the body are ignored
        let left = length - body.len() as u64;
        let bounds = Bounds { idle, lifetime, output };
        let request = (head.method() == "HEAD", head.minor_version(), facts.hsts.as_deref());
        let relay = Relay::new(&name, socket, child, bounds, (body, left), request);
        let (end, sent) = relay.run(|child| {
            let mut running = lock(&self.running);
            let status = child.wait();
            running.remove(&group);
            orphans::kill_all_but(&running, GENERATIONS);
            status
        });
        log::debug!("cgi {name}: {end:?}");
        Ok(sent.filter(|_| end != End::Gone))
    }

    /// Writes a line of the access log, with the fields that workers write.
    fn log(&self, facts: &handover::RequestFacts, head: &Head, sent: Option<Sent>, begun: Instant) {
        if self.config.log.access.is_none() {
            return;
        }
        let peer = facts.peer.map_or("unix".to_owned(), |peer| {
            std::net::SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string()
        });
        let resource = facts.resource.as_deref().unwrap_or(head.resource());
        let duration = clock::now().since(begun).as_millis() as u64;
        let number = |number: Option<u64>| number.map_or(Value::Absent, Value::Number);
        let text = |name| head.header(name).map(String::from_utf8_lossy);
        let fields = &self.config.log.fields;
        let optional: Vec<_> = fields.iter().map(|field| (*field, field.header().and_then(text))).collect();
        let optional = optional.iter().map(|(field, text)| match field {
            AccessField::Method => (field.into(), Value::Text(head.method())),
            AccessField::ReplyBytes => (field.into(), number(sent.map(|sent| sent.content))),
            _ => (field.into(), text.as_deref().into()),
        });
        let mut line = vec![
            ("event", Value::Text("http")),
            ("conn", Value::Absent),
            ("peer", Value::Text(&peer)),
            ("user", facts.user.as_deref().into()),
            ("resource", Value::Text(resource)),
            ("status", number(sent.map(|sent| sent.status.into()))),
            ("duration_ms", Value::Number(duration)),
        ];
        line.extend(optional);
        sink::write_access(&line);
    }

    /// Kills all programs, and waits at most [`END`] for their threads.
    fn end(&self) {
        for group in lock(&self.running).iter() {
            let _ = killpg(Pid::from_raw(*group), Signal::SIGKILL); // fails if it has ended
        }
        let until = clock::now() + END;
        while *lock(&self.serving) > 0 && clock::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
