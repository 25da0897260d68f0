//! Probes: processes that load plugins, a few at a time, seen from the process that asks.

use std::io::{self, PipeReader, Read, Seek, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpid};

use super::message::{Answer, Answers, Offer, Request};
use super::program::{NAME, Question};
use crate::clock;
use crate::fleet::process::proc::{is_runnable, is_under_valgrind, processor_time};
use crate::time::Instant;

/// The time that a plugin has to load, and to start.
pub const LIMIT: Duration = Duration::from_secs(5);
/// The same under valgrind, and on a machine whose processors are busy with other things.
const SLOW_LIMIT: Duration = Duration::from_secs(60);
/// How long one that waits for a processor has more.
const MORE: Duration = Duration::from_millis(100);
/// The time from SIGKILL until a probe is given up: it hangs in the kernel, such as in a file system that does not
/// answer.
const GIVE_UP: Duration = Duration::from_secs(2);
/// At least as many run at a time: plugins that hang use no processor.
const AT_LEAST: usize = 8;
/// How often (ms) late processes are looked for, and ended ones: one whose pipes have been inherited by another is not
/// noticed otherwise.
const LOOK: u8 = 20;

/// What is kept of standard error, from its beginning; bytes.
const LONGEST_LOG: usize = 4 * 1024;
/// What is read of a descriptor at a time: what a pipe holds (pipe(7)), and no more of a flood; bytes.
const PIECE: usize = 64 * 1024;

fn limit() -> Duration {
    if is_under_valgrind() { SLOW_LIMIT } else { LIMIT }
}

/// This executable as it runs, also if its file has been replaced or removed; under valgrind, which is what runs there,
/// the file.
pub fn own() -> PathBuf {
    let own = PathBuf::from("/proc/self/exe");
    if is_under_valgrind() { own.read_link().unwrap_or(own) } else { own }
}

/// Has `program`, which is this executable, probe plugins; the reports are in the order of the requests. Waits until
/// all is known: at most [`LIMIT`] and a little for each so many as run at a time. Asks in between
/// whether to go on; if not, what runs is killed, and there is no report.
pub fn probe(program: &Path, requests: Vec<Request>, go_on: &dyn Fn() -> bool) -> Option<Vec<Report>> {
    let at_a_time = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).max(AT_LEAST);
    let mut reports: Vec<Report> = requests.iter().map(|_| Report::default()).collect();
    let mut waiting = requests.into_iter().enumerate();
    let mut running: Vec<(usize, Probe)> = Vec::new();
    while waiting.len() + running.len() > 0 {
        let now = clock::now();
        if !go_on() {
            running.iter_mut().for_each(|(_, probe)| probe.kill(now));
            return None;
        }
        while running.len() < at_a_time
            && let Some((number, request)) = waiting.next()
        {
            match Probe::start(program, &request, now) {
                Ok(probe) => running.push((number, probe)),
                Err(error) => reports[number].fault = Some(format!("cannot be probed: {error}")),
            }
        }
        let descriptors = running.iter().flat_map(|(_, probe)| probe.descriptors());
        let mut fds: Vec<PollFd> = descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let _ = poll(&mut fds, LOOK); // if it is interrupted, as if the time were over
        for (number, probe) in running.extract_if(.., |(_, probe)| probe.step(clock::now())) {
            reports[number] = probe.into_report();
        }
    }
    Some(reports)
}

/// ` (SIGSEGV)`, or nothing: signals for real time have no name.
fn name_of(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| String::new(), |signal| format!(" ({signal})"))
}

/// What came of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Known also where only starting failed.
    pub offer: Option<Offer>,
    /// Why it cannot serve, without the name of the file; None: it can.
    pub fault: Option<String>,
    /// What it has written to standard error, as far as it is kept.
    pub log: String,
}

/// A probe that runs. Nothing here waits.
struct Probe {
    process: Child,
    /// Its pid is also the number of this.
    group: Pid,
    /// Whether it is to start the plugin, too.
    start: bool,
    /// None when it has been closed at the other end.
    answer: Option<PipeReader>,
    log: Option<PipeReader>,
    answers: Answers,
    /// What is known so far, but for the log.
    report: Report,
    /// From standard error: at most [`LONGEST_LOG`] bytes, and the number of those beyond.
    log_bytes: Vec<u8>,
    log_left_out: usize,
    /// There is nothing more to be learnt: it was killed, and has until the deadline to be reaped.
    is_killed: bool,
    begun: Instant,
    /// Of loading and starting, or of being reaped.
    deadline: Instant,
}

impl Probe {
    /// Starts `program`, which is this executable, as a probe.
    fn start(program: &Path, request: &Request, now: Instant) -> io::Result<Self> {
        let mut nonce = [0; 16];
        rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())?;
        let nonce = format!("{:032x}", u128::from_ne_bytes(nonce));
        // A file in memory takes a question of any length at once, as a pipe does not.
        let mut question = std::fs::File::from(memfd_create(c"wshd probe", MFdFlags::MFD_CLOEXEC)?);
        let asked = Question { nonce: nonce.clone(), asker: getpid().as_raw(), request: request.clone() };
        question.write_all(&serde_json::to_vec(&asked)?)?;
        question.rewind()?;
        let (answer, answer_end) = io::pipe()?;
        let (log, log_end) = io::pipe()?;
        for pipe in [&answer, &log] {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let process = Command::new(program)
            .arg0(NAME[0])
            .arg(NAME[1])
            .arg(&request.file)
            .stdin(question)
            .stdout(answer_end)
            .stderr(log_end)
            .process_group(0)
            .spawn()?;
        Ok(Self {
            group: Pid::from_raw(i32::try_from(process.id()).map_err(io::Error::other)?),
            process,
            start: request.start,
            answer: Some(answer),
            log: Some(log),
            answers: Answers::new(nonce),
            report: Report::default(),
            log_bytes: Vec::new(),
            log_left_out: 0,
            is_killed: false,
            begun: now,
            deadline: now + limit(),
        })
    }

    /// What to wait for, to become readable.
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.answer, &self.log].into_iter().flatten().map(AsFd::as_fd)
    }

    /// What came of it.
    fn into_report(self) -> Report {
        let mut log = String::from_utf8_lossy(&self.log_bytes).into_owned();
        if self.log_left_out > 0 {
            log += &format!("\n({} bytes more)", self.log_left_out);
        }
        Report { log, ..self.report }
    }

    /// Reads what has come, and sees to the deadline and the end of the process; whether there is nothing left to wait
    /// for.
    fn step(&mut self, now: Instant) -> bool {
        match self.process.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return self.reaped(status),
            // Whoever started us ignores SIGCHLD: its status is lost.
            Err(_) => return self.reaped(ExitStatus::default()),
        }
        self.read_log();
        if self.is_killed {
            return self.deadline <= now;
        }
        if self.read_answer() {
            self.kill(now);
        } else if self.deadline <= now && self.is_starved(now) {
            self.deadline = now + MORE;
        } else if self.deadline <= now {
            let (limit, stage) = (limit().as_secs(), self.stage());
            self.report.fault = Some(format!("did not return within {limit} s {stage}"));
            self.kill(now);
        }
        false
    }

    fn reaped(&mut self, status: ExitStatus) -> bool {
        self.read_log();
        if !self.is_killed && !self.read_answer() {
            let how = match status.signal() {
                Some(signal) => format!("killed by signal {signal}{}", name_of(signal)),
                None => format!("exited with status {}", status.code().unwrap_or_default()),
            };
            self.report.fault = Some(format!("{how} {}, expected to return", self.stage()));
        }
        // What it has left behind. Linux gives a pid away again only after all others, so the group is still its own.
        let _ = killpg(self.group, Signal::SIGKILL);
        true
    }

    /// Ends it, with whatever it has left behind. Not reaped yet, so the pid is still its own.
    fn kill(&mut self, now: Instant) {
        let _ = killpg(self.group, Signal::SIGKILL);
        (self.is_killed, self.deadline) = (true, now + GIVE_UP);
    }

    /// Whether it is not the plugin that takes so long: it got less than its time of the processors.
    fn is_starved(&self, now: Instant) -> bool {
        let pid = self.group.as_raw();
        now < self.begun + SLOW_LIMIT
            && is_runnable(pid)
            && processor_time(pid).is_some_and(|used| used < limit())
    }

    /// What the plugin is doing.
    fn stage(&self) -> &'static str {
        match self.report.offer {
            Some(_) => "in on_worker_start",
            None => "while loading (constructors, ws_handler_entry_v1)",
        }
    }

    /// Whether all is known that will ever be.
    fn read_answer(&mut self) -> bool {
        let bytes = read_piece(&mut self.answer);
        self.answers.feed(&bytes);
        loop {
            let fault = match self.answers.take() {
                Ok(None) => return false,
                Ok(Some(Answer::Offer(offer))) if self.report.offer.is_none() => {
                    self.report.offer = Some(offer);
                    if self.start {
                        continue;
                    }
                    None
                }
                Ok(Some(Answer::Started(result))) if self.start && self.report.offer.is_some() => {
                    (result < 0).then(|| format!("on_worker_start returned {result}, expected 0 or more"))
                }
                Ok(Some(Answer::Fault(why))) => Some(why),
                Ok(Some(answer)) => Some(format!("gave an answer out of order: {answer:?}")),
                Err(junk) => Some(format!(
                    "wrote {junk} into a descriptor that is not its own, the answer of the process that loaded it"
                )),
            };
            self.report.fault = fault;
            return true;
        }
    }

    fn read_log(&mut self) {
        let bytes = read_piece(&mut self.log);
        let (kept, left_out) = bytes.split_at(bytes.len().min(LONGEST_LOG - self.log_bytes.len()));
        self.log_bytes.extend_from_slice(kept);
        self.log_left_out += left_out.len();
    }
}

/// What can be read at once, up to [`PIECE`]; at the end of the pipe it becomes None.
fn read_piece(pipe: &mut Option<PipeReader>) -> Vec<u8> {
    let mut bytes = vec![0; PIECE];
    let mut size = 0;
    while let (Some(open), room @ [_, ..]) = (pipe.as_mut(), &mut bytes[size..]) {
        match open.read(room) {
            Ok(0) => *pipe = None,
            Ok(read) => size += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => *pipe = None,
        }
    }
    bytes.truncate(size);
    bytes
}
