//! Many probes, a few at a time.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::message::Request;
use super::probe::{Probe, Report};
use crate::clock;
use crate::fleet::process::proc::is_under_valgrind;

/// At least as many run at a time: plugins that hang use no processor.
const AT_LEAST: usize = 8;
/// How often ended processes are looked for (ms): one whose pipes have been inherited by another is not noticed
/// otherwise.
const LOOK: u64 = 20;

/// This executable as it runs, also if its file has been replaced or removed; under valgrind, which is what runs there,
/// the file.
pub fn own() -> PathBuf {
    let own = PathBuf::from("/proc/self/exe");
    if is_under_valgrind() { own.read_link().unwrap_or(own) } else { own }
}

/// Has `program`, which is this executable, probe plugins; the reports are in the order of the requests. Waits until
/// all is known: at most [`LIMIT`](super::probe::LIMIT) and a little for each so many as run at a time. Asks in between
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
        let deadline = running.iter().map(|(_, probe)| probe.deadline()).min();
        let left = deadline.map_or(0, |deadline| deadline.since(now).as_millis() as u64 + 1);
        let timeout = PollTimeout::try_from(left.min(LOOK)).unwrap_or(PollTimeout::ZERO);
        let descriptors = running.iter().flat_map(|(_, probe)| probe.descriptors());
        let mut fds: Vec<PollFd> = descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let _ = poll(&mut fds, timeout); // if it is interrupted, as if the time were over
        for (number, probe) in running.extract_if(.., |(_, probe)| probe.step(clock::now())) {
            reports[number] = probe.into_report();
        }
    }
    Some(reports)
}
