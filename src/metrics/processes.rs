//! What is reported of processes, as /proc has it.

use std::collections::BTreeMap;

use super::Start;
use super::families::{counter, gauge};
use super::text::{Family, Text, seconds};
use crate::fleet::proc;

const MEMORY: Family = gauge("wshd_resident_memory_bytes", "bytes", "Resident memory of a process.");
const CPU: Family = counter(
    "wshd_cpu_seconds",
    "seconds",
    "Processor time of a process, in user mode and in the kernel; from 0 again when it was replaced.",
);
const DESCRIPTORS: Family = gauge("wshd_open_descriptors", "", "File descriptors that a process has open.");
const DESCRIPTORS_LIMIT: Family =
    gauge("wshd_descriptors_limit", "", "File descriptors that a process may have open.");

/// Adds these families.
pub fn report(start: &Start, text: &mut Text) {
    let workers = start.scoreboard.slots().map(|(_, slot)| slot);
    let workers = workers.map(|slot| (format!("worker {}", start.name(slot.place())), slot.pid()));
    let others = [("supervisor", start.supervisor), ("metrics", std::process::id() as i32)];
    let others = others.map(|(name, pid)| (name.to_owned(), pid));
    // A worker that drains has the name of the one that has replaced it.
    let mut processes: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for (name, pid) in others.into_iter().chain(workers).filter(|(_, pid)| *pid != 0) {
        processes.entry(name).or_default().push(pid);
    }
    let mut family = |family: &Family, read: &dyn Fn(i32) -> Option<u64>, show: &dyn Fn(u64) -> String| {
        text.family(family);
        for (name, pids) in &processes {
            // Nothing is said of what cannot be read, as of a worker of another user.
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
}
