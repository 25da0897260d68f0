//! Workers: number, replacement, timeouts, quarantine.

use super::super::value::{self, MAX_MEMORY, MAX_SIZE};
use super::*;

/// Maximum workers of all pools together.
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
Its connections move to the new one; for those that cannot see
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
        scopes: HANDLERS,
        kind: Time(Zero::Off, |d, time| d.handler.timeout = time),
        default: Is("30s"),
        flag: No,
        help: "How long a handler may run without calling the server (0: forever)",
        more: "\
In the event style this is the duration of a callback; in the blocking style the processor time of the connection's \
thread, which may wait.
Any call of the server restarts the time; time while the process is stopped does not count.
A handler that takes longer is logged and its worker killed; its connection is closed with 1011, and the others move \
to another worker.
The limit also applies to loading a handler and to
.Fn on_worker_start ;
a handler that exceeds it there is not loaded again until a reload.
A worker has a minute to start in any case.",
    },
    Setting {
        name: "handler_wait_timeout",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.handler_wait_timeout = time),
        default: Is("0"),
        flag: No,
        help: "How long a blocking handler may wait or run without calling the server (0: forever)",
        more: "One that takes longer is treated as by\n.Cm handler_timeout .",
    },
    Setting {
        name: "worker_timeout",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.worker_timeout = time),
        default: Is("20s"),
        flag: No,
        help: "Kill and replace a worker whose event loop hangs for this time outside of handlers (0: never)",
        more: "\
It was stopped, for example, or hangs in the kernel.
The same holds for gateways, the bus, and the processes of metrics and CGI programs.
It is sent SIGTERM, and SIGKILL a second later, unless a debugger is attached.
Within a callback the time is added to
.Cm handler_timeout .",
    },
    Setting {
        name: "process_timeout",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.process_timeout = time),
        default: Is("1s"),
        flag: No,
        help: "How long a request waits for a process of its own before it gets status 503 (0: not at all)",
        more: "For handlers with\n.Ql isolation = \\(dqconnection\\(dq .",
    },
    Setting {
        name: "drain_timeout",
        scopes: HANDLERS,
        kind: Text("TIME", |d, text| {
            d.handler.drain = match text {
                "never" => None,
                _ => Some(value::time(text).map_err(|expected| format!("{expected}, or never"))?),
            };
            Ok(())
        }),
        default: Is("10s"),
        flag: No,
        help: "Close connections that cannot move over this time when their worker is replaced, or never",
        more: "\
Their handlers are told, and the connections are closed with 1012, evenly spread over this time.
One that is only in the middle of a message has all of it.
With
.Ql never
the old worker keeps them until they end.",
    },
    Setting {
        name: "stop_timeout",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.stop_timeout = time),
        default: Is("10s"),
        flag: No,
        help: "Time for workers to close their connections when the server stops",
        more: "\
After three quarters of it those whose peers have not answered are cut;
the rest is for
.Fn on_close
of their handlers.
See SIGNALS in
.Xr wshd 8 .",
    },
    Setting {
        name: "drain_before_stop",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.drain.before_stop = time),
        default: Is("0"),
        flag: No,
        help: "Drain over this time at SIGTERM before stopping (0: stop at once)",
        more: "See HEALTH AND DRAIN in\n.Xr wshd 8 .",
    },
    Setting {
        name: "drain_delay",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.drain.delay = time),
        default: Is("0"),
        flag: No,
        help: "When draining, accept connections for this time after health checks have begun to fail",
        more: "Load balancers must notice within it: use some intervals of their checks.",
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
        help: "Code to close connections with when draining",
        more: "1001 (going away) or 1012 (service restart): clients differ in which makes them reconnect.",
    },
    Setting {
        name: "quarantine_deaths",
        scopes: SERVER,
        kind: Count("COUNT", 0..=1000, |d, count| d.config.quarantine.deaths = count as u32),
        default: Is("3"),
        flag: No,
        help: "Quarantine a handler after this many deaths of workers in it (0: never)",
        more: "See CRASHES in\n.Xr wshd 8 .",
    },
    Setting {
        name: "quarantine_window",
        scopes: SERVER,
        kind: Time(Zero::Wrong, |d, time| d.config.quarantine.window = time),
        default: Is("60s"),
        flag: No,
        help: "Time within which deaths are counted",
        more: "It cannot be 0.",
    },
    Setting {
        name: "quarantine_time",
        scopes: SERVER,
        kind: Time(Zero::Wrong, |d, time| d.config.quarantine.time = time),
        default: Is("10s"),
        flag: No,
        help: "Duration of the first quarantine; each further one is twice as long, up to 10m",
        more: "It cannot be 0.",
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
        more: "The rest of the message is omitted.",
    },
];
