//! Topics: messages for many connections.

use super::super::bus;
use super::super::value::MAX_MEMORY;
use super::*;

/// Maximum subscriptions that can move with a connection.
const MAX_SUBSCRIPTIONS: i64 = 240;
const MIN_QUEUE: u64 = 64 * 1024;

pub const TABLE: &[Setting] = &[
    Setting {
        name: "topics",
        scopes: HANDLER,
        kind: Text("NAME", |d, text| {
            let is_name = !text.starts_with('/') && (1..=64).contains(&text.len());
            if !is_name || text.chars().any(char::is_control) {
                return Err("expected a name of 1 to 64 bytes that does not begin with /".to_owned());
            }
            Ok(d.handler.topics = Some(text.to_owned()))
        }),
        default: Unset("the handler has topics of its own"),
        flag: No,
        help: "Share topics with all handlers that have this name",
        more: "Even with those that run as other users.",
    },
    Setting {
        name: "topics_per_connection",
        scopes: SERVER,
        kind: Count("COUNT", 1..=MAX_SUBSCRIPTIONS, |d, count| d.config.topics.per_connection = count as u32),
        default: Is("64"),
        flag: No,
        help: "Maximum subscriptions of a connection",
        more: "",
    },
    Setting {
        name: "topics_max",
        scopes: SERVER,
        kind: Count("COUNT", 1..=10_000_000, |d, count| d.config.topics.topics = count as u32),
        default: Is("65536"),
        flag: No,
        help: "Maximum different topics of all connections of a worker",
        more: "",
    },
    Setting {
        name: "topics_publish_queue",
        scopes: SERVER,
        kind: Size(MIN_QUEUE..=MAX_MEMORY, |d, size| d.config.topics.queue = size),
        default: Is("4M"),
        flag: No,
        help: "Maximum bytes in the queue from a worker to the bus",
        more: "Above it publishing fails.",
    },
    Setting {
        name: "topics_worker_queue",
        scopes: SERVER,
        kind: Size(MIN_QUEUE..=MAX_MEMORY, |d, size| d.config.topics.worker_queue = size),
        default: Is("16M"),
        flag: No,
        help: "Maximum bytes in the queue from the bus to a worker",
        more: "Above it the subscribers of that worker miss messages.",
    },
    Setting {
        name: "topics_history",
        scopes: SERVER,
        kind: Size(0..=MAX_MEMORY, |d, size| d.config.topics.history = size),
        default: Is("16M"),
        flag: No,
        help: "Maximum bytes of messages that the bus keeps for connections that are moving",
        more: "",
    },
    Setting {
        name: "topics_history_time",
        scopes: SERVER,
        kind: Time(Zero::Wrong, |d, time| d.config.topics.history_time = time),
        default: Is("10s"),
        flag: No,
        help: "How long the bus keeps these messages",
        more: "",
    },
    Setting {
        name: "bus",
        scopes: SERVER,
        kind: List("URL", |d, texts| Ok(d.bus.servers = Some(bus::servers(texts)?))),
        default: Unset("topics are local to this machine"),
        flag: No,
        help: "Share topics with other machines through nats://, tls://, redis:// or rediss://HOST[:PORT]",
        more: "\
Several servers of one engine are separated by commas, and tried until one answers.
See TOPICS in
.Xr wshd 8 .",
    },
    Setting {
        name: "bus_credentials",
        scopes: SERVER,
        kind: Path("FILE", |d, file| d.bus.credentials = Some(file)),
        default: Unset("none"),
        flag: No,
        help: "Credentials for the engine, a file with a user and, on the next line, the password",
        more: "\
A single line is a password or, for NATS, a token or the seed of a user's nkey.
For NATS it may be a .creds file, which has a JWT and its seed.
Only its owner and its group may have access.
A reload reads it again.",
    },
    Setting {
        name: "bus_ca",
        scopes: SERVER,
        kind: Path("FILE", |d, file| d.bus.ca = Some(file)),
        default: Unset("those of the system"),
        flag: No,
        help: "CA certificates to verify the engine with, a PEM file",
        more: "Needs tls:// or rediss://.",
    },
    Setting {
        name: "bus_certificate",
        scopes: SERVER,
        kind: Path("FILE", |d, file| d.bus.certificate = Some(file)),
        default: Unset("none"),
        flag: No,
        help: "Client certificate for the engine, with its chain, a PEM file",
        more: "Needs tls:// or rediss://, and bus_private_key.",
    },
    Setting {
        name: "bus_private_key",
        scopes: SERVER,
        kind: Path("FILE", |d, file| d.bus.private_key = Some(file)),
        default: Unset("none"),
        flag: No,
        help: "Private key of that certificate, a PEM file without a passphrase",
        more: "Only its owner and its group may have access.",
    },
    Setting {
        name: "bus_prefix",
        scopes: SERVER,
        kind: Text("PREFIX", |d, text| Ok(d.bus.prefix = bus::prefix(text)?)),
        default: Is("wshd"),
        flag: No,
        help: "Prefix of subjects or channels",
        more: "Servers with the same prefix share topics.",
    },
    Setting {
        name: "bus_queue",
        scopes: SERVER,
        kind: Size(MIN_QUEUE..=MAX_MEMORY, |d, size| d.bus.queue = size as usize),
        default: Is("4M"),
        flag: No,
        help: "Maximum bytes in the queue to the engine, and in the queue from it",
        more: "Messages above it are dropped and counted.",
    },
];
