//! Settings of a pool of workers.

use super::super::account::must_be_root;
use super::super::value::{self, MAX_MEMORY};
use super::workers::MAX_WORKERS;
use super::*;
use crate::config::RESERVED_DESCRIPTORS;

/// The pool of all handlers without a pool of their own.
pub const DEFAULT: &str = "default";
/// The kernel's PID_MAX_LIMIT.
const MAX_PROCESSES: i64 = 4_194_304;

/// Checks a name, which appears in titles and logs, and may be a resource without its leading `/`.
pub fn name(text: &str) -> Result<(), String> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/".contains(c);
    match text {
        DEFAULT => Err(format!("expected another name: {DEFAULT} is the pool of all other handlers")),
        name if !name.is_empty() && !name.starts_with('/') && name.chars().all(is_valid) => Ok(()),
        _ => {
            Err("expected a name of letters, digits and -._~!$&'()*+,;=:@/ that does not begin with /"
                .to_owned())
        }
    }
}

/// In the order of the manual.
pub const TABLE: &[Setting] = &[
    Setting {
        name: "workers",
        scopes: POOL,
        kind: Count("COUNT", 1..=MAX_WORKERS as i64, |d, count| d.pool.workers = count as usize),
        default: Is("1"),
        flag: No,
        help: "Number of workers",
        more: "",
    },
    Setting {
        name: "max_connections",
        scopes: POOL,
        kind: Count("COUNT", 1..=10_000_000, |d, count| d.pool.connections = Some(count as u32)),
        default: Unset("no limit"),
        flag: No,
        help: "Maximum connections of all workers of the pool",
        more: "Further requests get status 503.",
    },
    Setting {
        name: "nice",
        scopes: POOL,
        kind: Count("NICE", -20..=19, |d, nice| d.pool.nice = nice as i32),
        default: Is("0"),
        flag: No,
        help: "Value to add to the nice value of the server",
        more: "See\n.Xr nice 2 .\nNegative values need root.",
    },
    Setting {
        name: "max_memory",
        scopes: POOL,
        kind: Size(1..=MAX_MEMORY, |d, size| d.pool.max_memory = Some(size)),
        default: Unset("no limit"),
        flag: No,
        help: "Maximum address space of each worker",
        more: "\
Allocations beyond it fail.
Threads reserve address space for their stacks, so leave room.",
    },
    Setting {
        name: "max_files",
        scopes: POOL,
        kind: Count("COUNT", RESERVED_DESCRIPTORS as i64 + 1..=10_000_000, |d, count| {
            d.pool.max_files = Some(count as u64);
        }),
        default: Unset("as the server"),
        flag: No,
        help: "Maximum open files of each worker",
        more: "A worker needs about 80 for itself, and one for each connection.",
    },
    Setting {
        name: "max_cpu",
        scopes: POOL,
        kind: Text("TIME", |d, text| match value::time(text)? {
            time if time.is_zero() => Err("expected a time above 0: this limit cannot be off".to_owned()),
            time if time.subsec_nanos() != 0 => Err("expected whole seconds".to_owned()),
            time => Ok(d.pool.max_cpu = Some(time)),
        }),
        default: Unset("no limit"),
        flag: No,
        help: "Processor time, in whole seconds, after which a worker is killed and replaced",
        more: "",
    },
    Setting {
        name: "max_processes",
        scopes: POOL,
        // A worker has a few threads of its own.
        kind: Count("COUNT", 8..=MAX_PROCESSES, |d, count| d.pool.max_processes = Some(count as u64)),
        default: Unset("no limit"),
        flag: No,
        help: "Maximum processes and threads of the user of the pool, including other programs",
        more: "\
A worker has two threads, its replacement another two, and each connection of the blocking style one.
A process for one connection has two, or three in the blocking style.
Needs a
.Cm user
other than root, for which the kernel has no such limit.",
    },
    Setting {
        name: "spare",
        scopes: POOL,
        kind: Count("COUNT", 1..=MAX_WORKERS as i64, |d, count| d.processes.spare = count as usize),
        default: Is("2"),
        flag: No,
        help: "With isolation \\(dqconnection\\(dq: number of processes that wait for a connection",
        more: "At most\n.Cm processes .",
    },
    Setting {
        name: "processes",
        scopes: POOL,
        kind: Count("COUNT", 1..=MAX_WORKERS as i64, |d, count| d.processes.most = count as usize),
        default: Is("64"),
        flag: No,
        help: "With isolation \\(dqconnection\\(dq: maximum number of processes, including those that wait",
        more: "Such a pool has no\n.Cm workers .",
    },
];

/// A negative nice value needs root.
pub fn check_nice(nice: i32) -> Result<(), String> {
    if nice < 0 { must_be_root("a nice value below that of the server") } else { Ok(()) }
}
