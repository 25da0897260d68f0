//! Serves one handler without a supervisor: a worker and a bus, on a Unix socket in a private directory, with a clock
//! that the caller advances.
//!
//! The worker is a forked process, so that its crash can be reported and connections can move to another one. For
//! debuggers it runs on the main thread of this process, while another thread drives it.

pub mod process;
mod samples;
pub mod settings;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::getpid;

use self::process::Process;
use self::samples::Samples;
use super::run::install;
use crate::bus;
use crate::clock;
use crate::config::Config;
use crate::confine::Confinement;
use crate::exit::Exit;
use crate::ffi::callback_name;
use crate::ffi::is_start;
use crate::ffi::strict;
use crate::fleet::memory::scoreboard::{Place, State};
use crate::fleet::memory::shared::Shared;
use crate::fleet::process::proc;
use crate::fleet::routes::Routes;
use crate::fleet::sockets::bus_wire::{FORMAT, Publication, Request, key_of};
use crate::fleet::sockets::control::{Channel, Command, Report};
use crate::fleet::sockets::datagram;
use crate::fleet::sockets::inbox;
use crate::fleet::sockets::listener::{self, Listener};
use crate::fleet::sockets::queue::SocketQueue;
use crate::handlers::discover::discover_by;
use crate::handlers::probe::own;
use crate::log as sink;
use crate::supervisor::bus::Bus;
use crate::supervisor::death::{Cause, Death};
use crate::worker;

/// Time for a worker to start, to answer and to exit.
const TIMEOUT: Duration = Duration::from_secs(30);
const FOREVER: Duration = Duration::MAX;
/// One serves, the other receives connections that move.
const SLOTS: usize = 2;
/// Room for a message in a crash report; bytes.
const MESSAGE: usize = 64 << 10;
/// Interval at which a worker that does not answer is sampled.
const SAMPLE: Duration = Duration::from_millis(20);
/// Maximum of a log that is shown, from its end; bytes.
const MAX_LOG: usize = 64 << 10;
/// The clock advances by this step, so that timers run in order.
const STEP: Duration = Duration::from_millis(100);
/// Maximum number of steps; for longer times the steps are larger.
const MAX_STEPS: u32 = 1000;
/// Time for threads of the blocking style to notice that the clock has advanced.
const THREADS: Duration = Duration::from_millis(3);

/// What to serve, and how.
#[derive(Clone, Copy)]
pub struct Served<'a> {
    /// The file, which is copied.
    pub object: &'a Path,
    /// The resource, without its slash.
    pub name: &'a str,
    /// Settings of the server, as NAME=VALUE.
    pub options: &'a [String],
    /// A server configuration, whose settings for the handler apply.
    pub config: Option<&'a Config>,
    /// Without time limits for callbacks.
    pub is_debugged: bool,
    /// One in this many calls of the host fails; 0: none.
    pub fail_every: u32,
    /// Of the worker, if it is a process of its own.
    pub confinement: Option<&'a Confinement>,
}

/// A running worker.
struct Worker {
    slot: usize,
    channel: Channel,
    /// It has reported a crash.
    has_crashed: bool,
    /// None if it runs in this process.
    process: Option<Process>,
}

impl Worker {
    /// The next report; None if the worker has ended.
    fn report(&mut self) -> io::Result<Option<Report>> {
        let report = self.channel.recv_report();
        self.has_crashed |= matches!(report, Ok(Some(Report::Crashed)));
        report
    }

    /// Waits for its end, and reads its last reports; None if it had to be killed or runs in this process.
    fn wait(&mut self) -> Option<Cause> {
        let status = self.process.take().and_then(|process| process.wait(TIMEOUT));
        while let Ok(Some(_)) = self.report() {}
        status
    }
}

/// The host. Dropping it kills its processes.
pub struct Host {
    dir: PathBuf,
    config: Arc<Config>,
    routes: Arc<Routes>,
    listener: Arc<Listener>,
    shared: Shared,
    inboxes: Vec<SocketQueue>,
    bus: Bus,
    fail_every: u32,
    /// Of the worker, if it is a process of its own.
    confinement: Option<Confinement>,
    /// The bus, which exits when this end of its channel is closed.
    bus_process: Option<(Channel, Process)>,
    /// From the start until its end was noticed.
    worker: Option<Worker>,
    /// A worker that runs in this process has ended.
    has_left: Arc<AtomicBool>,
    samples: Samples,
}

impl Host {
    /// For this handler, with its files in `dir`, which must not exist.
    pub fn new(dir: &Path, served: Served<'_>) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("the host: {error}");
        process::share_clock().map_err(cannot)?;
        let handlers = dir.join("handlers");
        install(served.object, &handlers.join(format!("{}_wsh.so", served.name))).map_err(cannot)?;
        let config = settings::config(dir, &handlers, &served)?;
        sink::start(&config.log)?;
        process::show_panics();
        let (routes, faults) =
            discover_by((&own(), served.confinement), &config, &Routes::default(), &|| true)?;
        if let Some(fault) = faults.first() {
            return Err(fault.clone());
        }
        let bound = listener::bind(&config.listen, &|_| Default::default());
        let mut listeners = bound.map_err(|error| format!("the host: {error}"))?;
        let listener = listeners.pop().ok_or("the host: no address")?;
        let shared = Shared::create(SLOTS, &routes, (config.head.bytes, MESSAGE)).map_err(cannot)?;
        for slot in 0..SLOTS {
            shared.assign(slot, Place { pool: 0, number: slot as u16 }).map_err(cannot)?;
        }
        let inboxes = (0..SLOTS).map(|_| inbox::create()).collect::<io::Result<_>>().map_err(cannot)?;
        let bus = Bus::new().and_then(|bus| bus.following(&config)).map_err(cannot)?;
        Ok(Host {
            dir: dir.to_owned(),
            config: Arc::new(config),
            routes: Arc::new(routes),
            listener: Arc::new(listener),
            shared,
            inboxes,
            bus,
            fail_every: served.fail_every,
            confinement: served.confinement.cloned(),
            bus_process: None,
            worker: None,
            has_left: Arc::default(),
            samples: Samples::default(),
        })
    }

    /// The socket that it listens on.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// The file of the log.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The end of the log.
    pub fn log(&self) -> String {
        let log = fs::read(self.log_file()).unwrap_or_default();
        let end = log.get(log.len().saturating_sub(MAX_LOG)..).unwrap_or_default();
        String::from_utf8_lossy(end).into_owned()
    }

    /// Starts a worker as a process of its own, and waits until it serves.
    pub fn start(&mut self) -> Result<(), String> {
        self.start_bus().map_err(|error| format!("the bus: {error}"))?;
        self.worker = Some(self.fork_worker(0, &[])?);
        self.wait_until_ready()
    }

    /// Prepares a worker in this process: the caller runs [`worker::run`] with the result.
    pub fn start_here(&mut self) -> Result<worker::Start, String> {
        self.start_bus().map_err(|error| format!("the bus: {error}"))?;
        let (start, channel) = self.prepare(0).map_err(|error| format!("the worker: {error}"))?;
        process::block_sigterm().map_err(|error| format!("signals: {error}"))?;
        self.worker = Some(Worker { slot: 0, channel, has_crashed: false, process: None });
        Ok(start)
    }

    /// A flag that the caller of [`Self::start_here`] sets when the worker has ended.
    pub fn has_left(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.has_left)
    }

    /// Waits until the worker serves the handler.
    pub fn wait_until_ready(&mut self) -> Result<(), String> {
        match self.report(|report| matches!(report, Report::Ready { .. }))? {
            Report::Ready { loaded: 0, .. } => Err("the handler does not start: see its log".to_owned()),
            _ => Ok(()),
        }
    }

    /// Moves all connections, to another process if the worker is one. The new process closes `peers`, descriptors of
    /// this process.
    pub fn move_connections(&mut self, peers: &[RawFd]) -> Result<(), String> {
        let Some(worker) = &self.worker else { return Err("the worker has ended".to_owned()) };
        let to = 1 - worker.slot;
        if worker.process.is_none() {
            return self.move_within().map_err(|error| format!("move: {error}"));
        }
        let next = self.fork_worker(to, peers)?;
        let Some(mut before) = self.worker.replace(next) else { return Ok(()) };
        self.wait_until_ready()?;
        let order = Command::Migrate { to: to as u16 };
        before.channel.send_command(order).map_err(|error| format!("move: {error}"))?;
        let status = before.wait();
        self.cause_of_death(&before, status).map_or(Ok(()), Err)?;
        self.turn()
    }

    /// Sends all connections to the inbox of the other slot, and has the worker receive them from there.
    fn move_within(&mut self) -> io::Result<()> {
        const AWAY: usize = 1;
        if let (Some(worker), Some(record)) = (&self.worker, self.shared.scoreboard.slot(AWAY)) {
            record.set_state(State::Running); // connections are sent to running workers only
            worker.channel.send_command(Command::Rebalance { to: AWAY as u16, count: u16::MAX })?;
            if let Some(inbox) = self.inboxes.get(AWAY) {
                worker.channel.send_command_with(Command::TakeUp, &[inbox.rx.as_fd()])?;
            }
        }
        self.turn().map_err(io::Error::other)
    }

    /// Waits until the event loop has processed everything that was pending.
    pub fn turn(&mut self) -> Result<(), String> {
        // The current turn may have begun too early to see it; the next one sees it, and is over when another one
        // begins.
        let (mut last, mut begun) = (None, 0);
        while begun < 2 {
            let Some(worker) = &self.worker else { return Err("the worker has ended".to_owned()) };
            let record = self.shared.scoreboard.slot(worker.slot);
            let turn = record.map(|record| record.heartbeat());
            if last.replace(turn).is_some_and(|last| last != turn) {
                begun += 1;
            }
            // A command wakes the worker, which may answer within the same turn.
            let no_connection = Command::Close { ticket: 0, conn: 0, code: 1000 };
            match worker.channel.send_command(no_connection) {
                Ok(()) => self.report(|report| matches!(report, Report::Closing { .. }))?,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(self.death_soon()),
                Err(error) => return Err(format!("the worker: {error}")),
            };
        }
        Ok(())
    }

    /// Advances the clock. Calls `meanwhile` after each step, so that peers can answer.
    pub fn pass(&mut self, time: Duration, mut meanwhile: impl FnMut()) -> Result<(), String> {
        let step = STEP.max(time / MAX_STEPS);
        let has_threads = self.routes.in_service().any(|(_, route)| route.blocking);
        let mut left = time;
        while !left.is_zero() {
            let now = left.min(step);
            left -= now;
            process::advance_clock(now);
            self.turn()?;
            if has_threads {
                sleep(THREADS);
            }
            meanwhile();
        }
        Ok(())
    }

    /// Publishes a text as if from another worker.
    pub fn publish(&self, topic: &str, text: &str) -> io::Result<()> {
        use std::io::Write;
        let resource = self.routes.resources().next().map_or("/", |(resource, _)| resource);
        let key = key_of(self.config.scope_of(resource), topic);
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let rendezvous = self.bus.tx(&self.pool())?;
        theirs.set_nonblocking(true)?;
        datagram::send(rendezvous.as_fd(), &FORMAT.to_ne_bytes(), &[theirs.as_fd()])?;
        let message = Publication { but: 0, kind: 1, compress: true, payload: text.as_bytes() };
        let mut frame = Vec::new();
        let time = crate::clock::now().as_nanos();
        Request::Publish { time, key: &key, message }.append_to(&mut frame);
        ours.write_all(&frame)
    }

    /// Stops the worker; an error says how it died, if it did.
    pub fn stop(&mut self) -> Result<(), String> {
        let Some(mut worker) = self.worker.take() else { return Ok(()) };
        let _ = worker.channel.send_command(Command::Stop); // it may have ended
        if worker.process.is_none() {
            return Ok(()); // its caller sees its end
        }
        let status = worker.wait();
        self.cause_of_death(&worker, status).map_or(Ok(()), Err)
    }

    /// How the worker died, if it did.
    pub fn death(&mut self) -> Option<String> {
        self.worker.as_mut()?.process.as_mut()?.ended()?;
        let mut worker = self.worker.take()?;
        let status = worker.wait();
        self.cause_of_death(&worker, status)
    }

    /// The callback that has blocked the event loop repeatedly, if any.
    pub fn blocking_callback(&self) -> Option<&'static str> {
        let has_threads = self.routes.in_service().any(|(_, route)| route.blocking);
        self.samples.blocking().filter(|_| !has_threads).map(callback_name)
    }

    /// Resident memory of the worker, in bytes, and the number of its descriptors; None if it runs in this process.
    pub fn usage(&self) -> Option<(u64, usize)> {
        let pid = self.worker.as_ref()?.process.as_ref()?.pid();
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Some((proc::resident(pid.as_raw())?, descriptors))
    }

    /// Lines of the host about the handler, from a log in JSON: whether it is a warning, and the message.
    pub fn remarks(&self) -> Vec<(bool, String)> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let remarks = lines.filter(|line| line["handler"].is_null()).filter_map(|line| {
            let message = line["message"].as_str()?;
            match line["level"].as_str()? {
                "warn" | "error" => Some((true, message.to_owned())),
                _ if message.contains("ws_config(") => Some((false, message.to_owned())),
                _ => None,
            }
        });
        remarks.collect()
    }

    fn pool(&self) -> String {
        self.config.pools.first().map_or_else(String::new, |pool| pool.name.clone())
    }

    fn start_bus(&mut self) -> io::Result<()> {
        let start = self.bus.start(&self.config, &self.routes, self.shared.bus)?;
        let start = bus::Start { engine: None, ..start }; // messages stay here
        let (ours, theirs) = Channel::pair()?;
        let process = process::fork(&[], move || {
            bus::run(start, &theirs).map_err(|error| log::error!("bus: {error}")).is_err().into()
        })?;
        ours.send_command(Command::Begin)?;
        self.bus_process = Some((ours, process));
        Ok(())
    }

    fn fork_worker(&self, slot: usize, peers: &[RawFd]) -> Result<Worker, String> {
        let cannot = |error: io::Error| format!("the worker: {error}");
        let (start, channel) = self.prepare(slot).map_err(cannot)?;
        let fail_every = self.fail_every;
        let confinement = self.confinement.clone();
        let parent = getpid();
        let confine = move |confinement: Confinement| {
            confinement.enter()?;
            process::end_with(parent, Signal::SIGKILL)
        };
        let process = process::fork(peers, move || {
            sink::set_process("worker");
            if let Some(Err(error)) = confinement.map(confine) {
                log::error!("{error}");
                return Exit::Internal.code();
            }
            strict::fail_every(fail_every);
            worker::run(start)
        })
        .map_err(cannot)?;
        if let Some(record) = self.shared.scoreboard.slot(slot) {
            record.set_pid(process.pid().as_raw());
        }
        Ok(Worker { slot, channel, has_crashed: false, process: Some(process) })
    }

    /// The start parameters of a worker in this slot, and this side of its channel.
    fn prepare(&self, slot: usize) -> io::Result<(worker::Start, Channel)> {
        let (ours, theirs) = Channel::pair()?;
        if let Some(record) = self.shared.scoreboard.slot(slot) {
            record.begin(clock::now());
        }
        let own = self.inboxes.get(slot).ok_or(io::ErrorKind::NotFound)?;
        let inbox = SocketQueue { tx: own.tx.try_clone()?, rx: own.rx.try_clone()? };
        let txs = self.inboxes.iter().enumerate();
        let txs = txs.map(|(slot, inbox)| Ok((slot, inbox.tx.try_clone()?)));
        let start = worker::Start {
            config: Arc::clone(&self.config),
            routes: Arc::clone(&self.routes),
            skipped: Vec::new(),
            listeners: vec![Arc::clone(&self.listener)],
            gateways: None,
            shared: self.shared,
            slot,
            control: theirs,
            inbox,
            rendezvous: self.bus.tx(&self.pool())?,
            txs: txs.collect::<io::Result<BTreeMap<usize, OwnedFd>>>()?,
            cgi: None,
            standby: false,
        };
        Ok((start, ours))
    }

    /// Waits for a report.
    fn report(&mut self, is_wanted: impl Fn(&Report) -> bool) -> Result<Report, String> {
        let begun = Instant::now();
        // In this process a debugger may stop it for any time.
        let timeout =
            self.worker.as_ref().and_then(|worker| worker.process.as_ref()).map_or(FOREVER, |_| TIMEOUT);
        while let Some(left) = timeout.checked_sub(begun.elapsed()) {
            let Some(worker) = &mut self.worker else { break };
            match worker.report() {
                Ok(Some(report)) if is_wanted(&report) => return Ok(report),
                Ok(Some(_)) => {}
                Ok(None) => return Err(self.death_soon()),
                Err(_) if self.has_left.load(Ordering::Acquire) => {
                    return Err("the worker has ended: see its log".to_owned());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let left = left.min(SAMPLE);
                    let mut fds = [PollFd::new(worker.channel.as_fd(), PollFlags::POLLIN)];
                    let ready = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
                    let call =
                        self.shared.scoreboard.slot(worker.slot).and_then(|record| record.call.current());
                    if let (Ok(0), Some((_, callback, _))) = (ready, call)
                        && !is_start(callback)
                    {
                        let process = worker.process.as_ref();
                        self.samples.add(callback, process.map(|process| process.pid().as_raw()));
                    }
                }
                Err(error) => return Err(format!("the worker: {error}")),
            }
        }
        let hung = self.worker.take().and_then(|worker| self.cause_of_death(&worker, None)); // drop kills it
        Err(hung.unwrap_or_else(|| "the worker has ended".to_owned()))
    }

    /// The channel is closed: waits for the process, which has ended or is about to.
    fn death_soon(&mut self) -> String {
        let worker = self.worker.take();
        let death = worker.and_then(|mut worker| {
            let status = worker.wait();
            self.cause_of_death(&worker, status)
        });
        death.unwrap_or_else(|| "the worker has ended".to_owned())
    }

    /// How a worker died; None if it exited normally.
    fn cause_of_death(&self, worker: &Worker, status: Option<Cause>) -> Option<String> {
        let (slot, has_crashed) = (worker.slot, worker.has_crashed);
        let record = self.shared.scoreboard.slot(slot)?;
        let (crash, call) = (record.crash.facts(), record.call.current());
        let cause = match status {
            Some(Cause::Ended(0)) => return None,
            _ if has_crashed => Cause::of_crash(crash.signal, crash.address),
            status => status.unwrap_or(Cause::Killed(Signal::SIGKILL as i32)),
        };
        let (handler, callback, conn) = match (has_crashed, call) {
            (true, _) => (crash.handler(), crash.callback, crash.conn),
            (false, Some((handler, callback, conn))) => (Some(handler), callback, conn),
            (false, None) => (None, 0, 0),
        };
        let facts =
            self.shared.crash_reports.get(0, slot).filter(|_| has_crashed).map(|report| report.read(&crash));
        let handler = handler.and_then(|handler| self.routes.handlers().get(usize::from(handler)));
        if status.is_none() {
            let what = handler.map(|route| format!(", in {} of {}", callback_name(callback), route.name));
            return Some(format!("does not answer within {TIMEOUT:?}{}", what.unwrap_or_default()));
        }
        let facts = facts.unwrap_or_default();
        Some(Death { worker: "worker", pid: 0, cause, handler, callback, conn, facts }.line())
    }
}
