//! Workers: how many, when they are replaced, what happens to handlers that crash them.

use super::super::Default::{Is, Unset};
use super::super::Flag::{Long, No};
use super::super::Kind::{Choice, Count, Path, Size, Text, Time};
use super::super::value::{self, MAX_MEMORY, MAX_SIZE};
use super::super::{Scope, Setting, Zero};

const SERVER: &[Scope] = &[Scope::Server];
const EACH: &[Scope] = &[Scope::Server, Scope::Handler];

/// The most workers of all pools together.
pub const MAX_WORKERS: usize = 1024;

/// In the order of the manual.
pub const TABLE: &[Setting] = &[
    Setting {
        name: "workers",
        scopes: SERVER,
        kind: Count("COUNT", 1..=MAX_WORKERS as i64, |d, count| d.workers = Some(count as usize)),
        default: Unset("one for each core"),
        flag: Long,
        help: "Number of worker processes",
        more: "",
    },
    Setting {
        name: "worker_max_memory",
        scopes: SERVER,
        kind: Size(0..=MAX_MEMORY, |d, size| d.config.wear.memory = size),
        default: Is("0"),
        flag: No,
        help: "Replace a worker whose resident memory is larger than this (0: never)",
        more: "\
Its connections go on in the new one, and nobody is disconnected; for those that cannot move see
.Cm drain_timeout .",
    },
    Setting {
        name: "worker_max_age",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.wear.age = time),
        default: Is("0"),
        flag: No,
        help: "Replace a worker that is older than this, in the same way (0: never)",
        more: "",
    },
    Setting {
        name: "worker_max_messages",
        scopes: SERVER,
        kind: Count("COUNT", 0..=i64::MAX, |d, count| d.config.wear.messages = count as u64),
        default: Is("0"),
        flag: No,
        help: "Replace a worker that has received more messages than this, in the same way (0: never)",
        more: "",
    },
    Setting {
        name: "handler_timeout",
        scopes: EACH,
        kind: Time(Zero::Off, |d, time| d.handler.timeout = time),
        default: Is("30s"),
        flag: No,
        help: "How long a handler may run without calling the server (0: forever)",
        more: "\
In the event style this is the time that a callback takes; in the blocking style it is the processor time that the \
thread of the connection uses, so that a handler may wait for something of its own.
Any call of the server begins the time anew, and time during which the process was stopped does not count.
A handler that takes longer is named in the log and its worker is killed; its connection is closed with 1011, the \
others go on in another worker.
Loading a handler and its on_worker_start have as long; one that takes longer is not loaded again until a reload.
Off means forever, though a worker has a minute to start.",
    },
    Setting {
        name: "handler_wait_timeout",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.handler_wait_timeout = time),
        default: Is("0"),
        flag: No,
        help: "How long the thread of a blocking handler may do anything, waiting included, without calling the \
               server (0: forever)",
        more: "One that takes longer is treated as with\n.Cm handler_timeout .",
    },
    Setting {
        name: "worker_timeout",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.worker_timeout = time),
        default: Is("20s"),
        flag: No,
        help: "Kill and replace a worker whose event loop has not turned for so long outside of handlers (0: never)",
        more: "\
A worker is in that state if it was stopped, or hangs where no signal reaches it.
It is sent SIGTERM, and SIGKILL a second later.
One that a debugger has attached to is left alone.
In a call of a handler it has this time beyond
.Cm handler_timeout .",
    },
    Setting {
        name: "process_timeout",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.process_timeout = time),
        default: Is("1s"),
        flag: No,
        help: "How long a request waits for a process of its own before it is answered with 503 (0: not at all)",
        more: "It concerns handlers with\n.Ql isolation = \\(dqconnection\\(dq .",
    },
    Setting {
        name: "drain_timeout",
        scopes: EACH,
        kind: Text("TIME", |d, text| {
            d.handler.drain = match text {
                "never" => None,
                _ => Some(value::time(text).map_err(|expected| format!("{expected}, or never"))?),
            };
            Ok(())
        }),
        default: Is("10s"),
        flag: No,
        help: "Time over which connections that cannot move are closed when their worker is replaced, or never",
        more: "\
Their handlers are told, and the connections are closed with 1012, evenly spread over this time.
With
.Ql never
they are left until they end.",
    },
    Setting {
        name: "stop_timeout",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.stop_timeout = time),
        default: Is("10s"),
        flag: No,
        help: "Time that workers have to close their connections when the server stops",
        more: "See SIGNALS in\n.Xr wshd 8 .",
    },
    Setting {
        name: "drain_before_stop",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.drain.before_stop = time),
        default: Is("0"),
        flag: No,
        help: "Drain over this time first when SIGTERM comes (0: stop at once)",
        more: "See HEALTH AND DRAIN in\n.Xr wshd 8 .",
    },
    Setting {
        name: "drain_delay",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.drain.delay = time),
        default: Is("0"),
        flag: No,
        help: "When draining, accept connections for this time after health checks have begun to fail",
        more: "A load balancer has that long to notice: some intervals of its checks.",
    },
    Setting {
        name: "drain_code",
        scopes: SERVER,
        kind: Choice("CODE", &["1001", "1012"], |d, text| {
            d.config.drain.code = if text == "1012" { 1012 } else { 1001 };
            matches!(text, "1001" | "1012")
        }),
        default: Is("1001"),
        flag: No,
        help: "Code with which a server that drains closes connections",
        more: "1001 is going away, 1012 service restart: some clients connect again after one, but not after the other.",
    },
    Setting {
        name: "quarantine_deaths",
        scopes: SERVER,
        kind: Count("COUNT", 0..=1000, |d, count| d.config.quarantine.deaths = count as u32),
        default: Is("3"),
        flag: No,
        help: "Quarantine a handler in which so many workers have died (0: never)",
        more: "See CRASHES in\n.Xr wshd 8 .",
    },
    Setting {
        name: "quarantine_window",
        scopes: SERVER,
        kind: Time(Zero::Wrong, |d, time| d.config.quarantine.window = time),
        default: Is("60s"),
        flag: No,
        help: "Time within which they have died",
        more: "It cannot be off.",
    },
    Setting {
        name: "quarantine_time",
        scopes: SERVER,
        kind: Time(Zero::Wrong, |d, time| d.config.quarantine.time = time),
        default: Is("10s"),
        flag: No,
        help: "How long a handler is quarantined the first time; then twice as long, up to 10m",
        more: "It cannot be off.",
    },
    Setting {
        name: "crash_dir",
        scopes: SERVER,
        kind: Path("DIR", |d, dir| d.crash_dir = Some(dir)),
        default: Unset("none"),
        flag: No,
        help: "Write a record of each crash into this directory",
        more: "See CRASHES in\n.Xr wshd 8 .",
    },
    Setting {
        name: "crash_bytes",
        scopes: SERVER,
        kind: Size(0..=MAX_SIZE, |d, size| d.crash_bytes = size as usize),
        default: Is("64K"),
        flag: No,
        help: "Maximum number of bytes of the last message in such a record",
        more: "The rest of the message is left out.",
    },
];
