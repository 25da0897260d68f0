//! Limits of a connection: sizes, times, memory.

use super::super::value::{MAX_MEMORY, MAX_SIZE};
use super::*;

pub const TABLE: &[Setting] = &[
    Setting {
        name: "max_message",
        scopes: HANDLERS,
        kind: Size(1..=MAX_SIZE, |d, size| d.handler.limits.message = size as usize),
        default: Is("16M"),
        flag: Long,
        help: "Maximum size of a received message",
        more: "A larger one closes the connection with 1009.",
    },
    Setting {
        name: "max_frame",
        scopes: HANDLERS,
        kind: Size(1..=MAX_SIZE, |d, size| d.handler.limits.frame = size as usize),
        default: Is("16M"),
        flag: No,
        help: "Maximum size of a received frame",
        more: "At most\n.Cm max_message .",
    },
    Setting {
        name: "max_head",
        scopes: SERVER,
        kind: Size(1..=MAX_SIZE, |d, size| d.config.head.bytes = size as usize),
        default: Is("16K"),
        flag: No,
        help: "Maximum size of a request head",
        more: "A larger one gets status 431.",
    },
    Setting {
        name: "max_headers",
        scopes: SERVER,
        kind: Count("COUNT", 1..=1024, |d, count| d.config.head.headers = count as usize),
        default: Is("100"),
        flag: No,
        help: "Maximum number of header fields of a request",
        more: "\
More of them, more than 128 subprotocols, or more than 128 extensions and parameters get status 431.",
    },
    Setting {
        name: "handshake_timeout",
        scopes: SERVER,
        kind: Time(Zero::Wrong, |d, time| d.config.handshake_timeout = time),
        default: Is("10s"),
        flag: No,
        help: "Time from accepting a connection to the end of its opening handshake",
        more: "It cannot be 0.",
    },
    Setting {
        name: "idle_timeout",
        scopes: HANDLERS,
        kind: Time(Zero::Off, |d, time| d.handler.limits.idle = time),
        default: Is("0"),
        flag: Long,
        help: "Close connections idle for this time (0: never)",
        more: "Messages count, Pings do not.\nThe code is 1001.",
    },
    Setting {
        name: "ping_interval",
        scopes: HANDLERS,
        kind: Time(Zero::Off, |d, time| d.handler.limits.ping_interval = time),
        default: Is("30s"),
        flag: No,
        help: "Ping a connection that has sent nothing for this time (0: never)",
        more: "",
    },
    Setting {
        name: "pong_timeout",
        scopes: HANDLERS,
        kind: Time(Zero::Wrong, |d, time| d.handler.limits.pong_deadline = time),
        default: Is("20s"),
        flag: No,
        help: "Drop a connection that sends nothing for this time after a Ping",
        more: "It cannot be 0.",
    },
    Setting {
        name: "close_timeout",
        scopes: HANDLERS,
        kind: Time(Zero::Wrong, |d, time| d.handler.limits.close_deadline = time),
        default: Is("5s"),
        flag: No,
        help: "Drop a connection that does not answer a Close frame in this time",
        more: "It cannot be 0.",
    },
    Setting {
        name: "send_high",
        scopes: SERVER,
        kind: Size(1..=MAX_SIZE, |d, size| d.config.sending.high = size as usize),
        default: Is("1M"),
        flag: No,
        help: "Size at which the send queue of a connection is full",
        more: "",
    },
    Setting {
        name: "send_low",
        scopes: SERVER,
        kind: Size(1..=MAX_SIZE, |d, size| d.send_low = Some(size as usize)),
        default: Unset("a quarter of send_high"),
        flag: No,
        help: "Size at which a full send queue counts as drained",
        more: "",
    },
    Setting {
        name: "send_total",
        scopes: SERVER,
        kind: Size(0..=MAX_MEMORY, |d, size| d.config.sending.total = size),
        default: Is("256M"),
        flag: No,
        help: "Size of all send queues of a worker above which each is full at 64K (0: off)",
        more: "\
Such a queue counts as drained at 16K, until a quarter of the total is free.
A message of a topic that is in many queues counts once.
This bounds the growth of queues, not memory: 64K of each connection and the message that fills a queue are in \
addition, and a growing buffer may take up to four times the bytes in it.
No connection is closed for it; those that do not read are dropped by
.Cm pong_timeout .",
    },
    Setting {
        name: "receive_total",
        scopes: SERVER,
        kind: Size(0..=MAX_MEMORY, |d, size| d.config.memory.receive_total = size),
        default: Is("256M"),
        flag: No,
        help: "Maximum memory of all incomplete messages of a worker (0: off)",
        more: "\
What has arrived of a message counts after decompression; messages below 16K do not count.
Above three quarters, connections with an incomplete message are not read until half is free, except for the one \
whose message began first.
That one is closed with 1013 if it does not complete its message within 10 seconds while others wait, and so is a \
connection that needs more memory when none is left.
The total may be exceeded by two messages of the maximum size.",
    },
    Setting {
        name: "max_pings",
        scopes: HANDLERS,
        kind: Count("COUNT", 0..=u32::MAX as i64, |d, count| d.handler.limits.pings_per_second = count as u32),
        default: Is("20"),
        flag: No,
        help: "Maximum number of Pings from a peer in a second (0: no limit)",
        more: "More close the connection with 1008.",
    },
    Setting {
        name: "max_connections",
        scopes: SERVER,
        kind: Count("COUNT", 1..=10_000_000, |d, count| d.config.connections = count as u32),
        default: Is("16384"),
        flag: Long,
        help: "Maximum connections per worker",
        more: "\
The limit of open files is raised as needed; if the system does not allow enough, this number is lowered with a \
warning.",
    },
    Setting {
        name: "max_threads",
        scopes: SERVER,
        kind: Count("COUNT", 1..=100_000, |d, count| d.config.threads = count as u32),
        default: Is("256"),
        flag: No,
        help: "Maximum connections per worker to blocking handlers, which have a thread each",
        more: "More get status 503.",
    },
];
