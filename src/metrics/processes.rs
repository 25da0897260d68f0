//! Metrics of processes: memory, CPU time and descriptors from /proc, and lost log lines.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use super::families::{counter, gauge};
use super::text::{Family, Text, seconds};
use super::{LOG_LOST as OWN_LOST, Start};
use crate::fleet::memory::scoreboard::Place;
use crate::fleet::process::proc;

const MEMORY: Family = gauge("wshd_resident_memory_bytes", "bytes", "Resident memory of a process.");
const CPU: Family = counter(
    "wshd_cpu_seconds",
    "seconds",
    "CPU time of a process, user and system; starts at 0 again when it is replaced.",
);
const DESCRIPTORS: Family = gauge("wshd_open_descriptors", "", "Open file descriptors of a process.");
const DESCRIPTORS_LIMIT: Family =
    gauge("wshd_descriptors_limit", "", "Maximum open file descriptors of a process.");
const LOG_LOST: Family =
    counter("wshd_log_lines_lost", "", "Log lines of a process that could not be written.");

/// Titles of the processes that serve no handlers, except this one.
const AUXILIARIES: [&str; 3] = ["gateway", "bus", "cgi"];

/// Writes these families.
pub fn report(start: &Start, text: &mut Text) {
    let processes = processes(start);
    let mut family = |family: &Family, read: &dyn Fn(i32) -> Option<u64>, show: &dyn Fn(u64) -> String| {
        text.family(family);
        for (name, pids) in &processes {
            // No sample if no process can be read.
            if let Some(sum) = pids.iter().filter_map(|pid| read(*pid)).reduce(u64::saturating_add) {
                text.sample(&[("process", name)], show(sum));
            }
        }
    };
    let number = |number: u64| number.to_string();
    family(&MEMORY, &proc::resident, &number);
    family(&CPU, &|pid| u64::try_from(proc::processor_time(pid)?.as_nanos()).ok(), &seconds);
    family(&DESCRIPTORS, &proc::descriptors, &number);
    family(&DESCRIPTORS_LIMIT, &proc::descriptors_limit, &number);
    text.family(&LOG_LOST);
    let others = [
        ("supervisor", &start.shared.scoreboard.bulletin().log_lost),
        ("gateway", &start.shared.gateways.log_lost),
        ("bus", &start.shared.bus.log_lost),
        ("cgi", start.shared.programs_log_lost),
        ("metrics", &OWN_LOST),
    ];
    let others = others.map(|(name, lost)| (name.to_owned(), lost));
    let workers =
        start.shared.counters.places().map(|(place, counters)| (worker(start, place), &counters.log_lost));
    for (name, lost) in others.into_iter().chain(workers) {
        text.sample(&[("process", name.as_str())], lost.load(Relaxed));
    }
}

/// The processes by name. A draining worker has the same name as its replacement, and all gateways have one name.
fn processes(start: &Start) -> BTreeMap<String, Vec<i32>> {
    let own = [("supervisor", start.supervisor), ("metrics", std::process::id() as i32)];
    let own = own.map(|(name, pid)| (name.to_owned(), pid));
    let workers = start.shared.scoreboard.slots().map(|(_, slot)| (worker(start, slot.place()), slot.pid()));
    let children = proc::children(start.supervisor).into_iter();
    let auxiliaries = children.filter_map(|pid| {
        let title = proc::title(pid)?;
        let (_, name) = title.split_once(": ")?;
        AUXILIARIES.contains(&name).then(|| (name.to_owned(), pid))
    });
    let mut processes: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for (name, pid) in own.into_iter().chain(workers).chain(auxiliaries).filter(|(_, pid)| *pid != 0) {
        processes.entry(name).or_default().push(pid);
    }
    processes
}

fn worker(start: &Start, place: Place) -> String {
    format!("worker {}", start.name(place))
}
