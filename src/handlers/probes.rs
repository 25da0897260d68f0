//! Many probes, a few at a time.
//!
//! After each call of [`step`](Probes::step) and [`reaped`](Probes::reaped) take what is [`known`](Probes::known).

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::message::Request;
use super::probe::{Probe, Report};
use crate::clock;
use crate::time::Instant;

/// At least as many run at a time: plugins that hang use no processor.
const AT_LEAST: usize = 8;
/// While [`Probes::finish`] waits it looks for ended processes so often (ms): one whose pipes have been inherited by
/// another is not noticed otherwise.
const LOOK: u64 = 20;

/// Probes by number, such as the index of a file.
#[derive(Debug)]
pub struct Probes {
    program: PathBuf,
    at_a_time: usize,
    waiting: VecDeque<(usize, Request)>,
    /// At most `at_a_time`.
    running: Vec<(usize, Probe)>,
    known: VecDeque<(usize, Report)>,
}

impl Default for Probes {
    /// By this executable as it runs, also if its file has been replaced or removed.
    fn default() -> Self {
        Self::by("/proc/self/exe".into())
    }
}

impl Probes {
    /// By this executable.
    pub fn by(program: PathBuf) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            program,
            at_a_time: processors.max(AT_LEAST),
            waiting: VecDeque::new(),
            running: Vec::new(),
            known: VecDeque::new(),
        }
    }

    /// One more question, to be asked when there is room.
    pub fn push(&mut self, number: usize, request: Request) {
        self.waiting.push_back((number, request));
    }

    /// Whether all is known.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// What to wait for, to become readable.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running.iter().flat_map(|(_, probe)| probe.descriptors())
    }

    /// When [`step`](Self::step) has something to do, if nothing comes earlier.
    pub fn deadline(&self) -> Option<Instant> {
        match self.has_room() && !self.waiting.is_empty() {
            true => Some(Instant::default()),
            false => self.running.iter().filter_map(|(_, probe)| probe.deadline()).min(),
        }
    }

    /// Reads what has come, kills who is late, and starts at most one: that takes a millisecond.
    pub fn step(&mut self, now: Instant) {
        self.running.iter_mut().for_each(|(_, probe)| probe.step(now));
        self.collect();
        if let Some((number, request)) = self.has_room().then(|| self.waiting.pop_front()).flatten() {
            match Probe::start(&self.program, &request, now) {
                Ok(probe) => self.running.push((number, probe)),
                Err(error) => self.known.push_back((number, Report::of_system(&error))),
            }
        }
    }

    /// A child of this process has been reaped; whether it was one of these.
    pub fn reaped(&mut self, pid: Pid, status: WaitStatus) -> bool {
        let Some((_, probe)) = self.running.iter_mut().find(|(_, probe)| probe.pid() == pid) else {
            return false;
        };
        probe.reaped(status);
        self.collect();
        true
    }

    /// The next result, in no order.
    pub fn known(&mut self) -> Option<(usize, Report)> {
        self.known.pop_front()
    }

    /// Kills those that run; they are still to be reaped, and nobody has to know them for that.
    pub fn cancel(&mut self) {
        self.waiting.clear();
        self.running.drain(..).for_each(|(_, probe)| probe.cancel());
    }

    /// Waits until all is known; at most [`LIMIT`](super::probe::LIMIT) and a little for each so many as run at a time.
    /// For a process that has nothing else to do.
    pub fn finish(&mut self) {
        self.finish_unless(&|| false);
    }

    /// The same, but gives up when this is true; a signal that is caught has it look.
    pub fn finish_unless(&mut self, is_interrupted: &dyn Fn() -> bool) {
        while !self.is_done() {
            if is_interrupted() {
                return self.cancel();
            }
            let now = clock::now();
            let left = self.deadline().map_or(0, |deadline| deadline.since(now).as_millis() as u64 + 1);
            let timeout = PollTimeout::try_from(left.min(LOOK)).unwrap_or(PollTimeout::ZERO);
            let mut fds: Vec<PollFd> =
                self.descriptors().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            let _ = poll(&mut fds, timeout); // if it is interrupted, as if the time were over
            self.step(clock::now());
            let pids: Vec<Pid> = self.running.iter().map(|(_, probe)| probe.pid()).collect();
            for pid in pids {
                match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::StillAlive) => {}
                    Ok(status) => drop(self.reaped(pid, status)),
                    // Whoever started us ignores SIGCHLD: its status is lost.
                    Err(_) => drop(self.reaped(pid, WaitStatus::Exited(pid, 0))),
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.running.len() < self.at_a_time
    }

    fn collect(&mut self) {
        for (number, probe) in self.running.extract_if(.., |(_, probe)| probe.is_over()) {
            self.known.push_back((number, probe.into_report()));
        }
    }
}
