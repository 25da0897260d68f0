//! What is reported of processes, as /proc has it, and of what each has lost.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use super::families::{counter, gauge};
use super::text::{Family, Text, seconds};
use super::{LOG_LOST as OWN_LOST, Start};
use crate::fleet::proc;
use crate::fleet::scoreboard::Place;

const MEMORY: Family = gauge("wshd_resident_memory_bytes", "bytes", "Resident memory of a process.");
const CPU: Family = counter(
    "wshd_cpu_seconds",
    "seconds",
    "Processor time of a process, in user mode and in the kernel; from 0 again when it was replaced.",
);
const DESCRIPTORS: Family = gauge("wshd_open_descriptors", "", "File descriptors that a process has open.");
const DESCRIPTORS_LIMIT: Family =
    gauge("wshd_descriptors_limit", "", "File descriptors that a process may have open.");
const LOG_LOST: Family =
    counter("wshd_log_lines_lost", "", "Lines that a process could not log because nobody took them.");

/// The processes that serve no handler, as their titles name them; that of the metrics is this one.
const AUXILIARIES: [&str; 3] = ["gateway", "bus", "cgi"];

/// Adds these families.
pub fn report(start: &Start, text: &mut Text) {
    let processes = processes(start);
    let mut family = |family: &Family, read: &dyn Fn(i32) -> Option<u64>, show: &dyn Fn(u64) -> String| {
        text.family(family);
        for (name, pids) in &processes {
            // Nothing is said of what cannot be seen.
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

/// The processes by their names. A worker that drains has the name of the one that has replaced it, and gateways have one
/// name.
fn processes(start: &Start) -> BTreeMap<String, Vec<i32>> {
    let own = [("supervisor", start.supervisor), ("metrics", std::process::id() as i32)];
    let own = own.map(|(name, pid)| (name.to_owned(), pid));
    let workers = start.shared.scoreboard.slots().map(|(_, slot)| (worker(start, slot.place()), slot.pid()));
    let children = proc::children(start.supervisor).into_iter();
    let auxiliaries = children.filter_map(|(pid, title)| {
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
