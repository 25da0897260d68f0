//! Topics: messages for many connections.

use super::super::Default::{Is, Unset};
use super::super::Flag::No;
use super::super::Kind::{Count, List, Path, Size, Text, Time};
use super::super::bus;
use super::super::value::MAX_MEMORY;
use super::super::{Scope, Setting, Zero};

const SERVER: &[Scope] = &[Scope::Server];
const HANDLER: &[Scope] = &[Scope::Handler];
/// More could not travel with a connection.
const MOST: i64 = 240;
const LEAST_SIZE: u64 = 64 * 1024;

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
        default: Unset("the topics of a handler are its own"),
        flag: No,
        help: "The topics of all handlers with this name are the same",
        more: "Also of those that run as other users.",
    },
    Setting {
        name: "topics_per_connection",
        scopes: SERVER,
        kind: Count("COUNT", 1..=MOST, |d, count| d.config.topics.per_connection = count as u32),
        default: Is("64"),
        flag: No,
        help: "Maximum topics that a connection is subscribed to",
        more: "",
    },
    Setting {
        name: "topics_max",
        scopes: SERVER,
        kind: Count("COUNT", 1..=10_000_000, |d, count| d.config.topics.topics = count as u32),
        default: Is("65536"),
        flag: No,
        help: "Maximum topics that the connections of a worker are subscribed to",
        more: "",
    },
    Setting {
        name: "topics_publish_queue",
        scopes: SERVER,
        kind: Size(LEAST_SIZE..=MAX_MEMORY, |d, size| d.config.topics.queue = size),
        default: Is("4M"),
        flag: No,
        help: "Maximum bytes of a worker on the way to the bus",
        more: "Above it publishing fails.",
    },
    Setting {
        name: "topics_worker_queue",
        scopes: SERVER,
        kind: Size(LEAST_SIZE..=MAX_MEMORY, |d, size| d.config.topics.worker_queue = size),
        default: Is("16M"),
        flag: No,
        help: "Maximum bytes that wait in the bus for a worker",
        more: "What comes above it is missed by the subscribers of that worker.",
    },
    Setting {
        name: "topics_history",
        scopes: SERVER,
        kind: Size(0..=MAX_MEMORY, |d, size| d.config.topics.history = size),
        default: Is("16M"),
        flag: No,
        help: "Bytes of messages that the bus keeps for connections on their way between workers",
        more: "",
    },
    Setting {
        name: "topics_history_time",
        scopes: SERVER,
        kind: Time(Zero::Wrong, |d, time| d.config.topics.history_time = time),
        default: Is("10s"),
        flag: No,
        help: "How long it keeps them",
        more: "",
    },
    Setting {
        name: "bus",
        scopes: SERVER,
        kind: List("URL", |d, texts| Ok(d.bus.servers = Some(bus::servers(texts)?))),
        default: Unset("topics end at this machine"),
        flag: No,
        help: "Engine that joins topics with those of other machines: nats://, tls://, redis:// or rediss://HOST[:PORT]",
        more: "\
Several servers of one engine have commas between them; they are tried until one answers.
See TOPICS in
.Xr wshd 8 .",
    },
    Setting {
        name: "bus_credentials",
        scopes: SERVER,
        kind: Path("FILE", |d, file| d.bus.credentials = Some(file)),
        default: Unset("none"),
        flag: No,
        help: "File with what proves to the engine who connects: a user and, on the next line, the password",
        more: "\
A single line is a password or, for NATS, a token or the seed of a user's nkey.
For NATS it may be a .creds file, which has a JWT and its seed.
Nobody but its owner and its group may be able to read it.
It is read again by a reload.",
    },
    Setting {
        name: "bus_ca",
        scopes: SERVER,
        kind: Path("FILE", |d, file| d.bus.ca = Some(file)),
        default: Unset("those of the system"),
        flag: No,
        help: "Certificates that issue that of the engine, in PEM",
        more: "It needs tls:// or rediss://.",
    },
    Setting {
        name: "bus_certificate",
        scopes: SERVER,
        kind: Path("FILE", |d, file| d.bus.certificate = Some(file)),
        default: Unset("none"),
        flag: No,
        help: "Certificate to show to the engine, with its chain, in PEM",
        more: "It needs tls:// or rediss://, and bus_private_key.",
    },
    Setting {
        name: "bus_private_key",
        scopes: SERVER,
        kind: Path("FILE", |d, file| d.bus.private_key = Some(file)),
        default: Unset("none"),
        flag: No,
        help: "Private key of that certificate, in PEM and without a passphrase",
        more: "Nobody but its owner and its group may be able to read it.",
    },
    Setting {
        name: "bus_prefix",
        scopes: SERVER,
        kind: Text("PREFIX", |d, text| Ok(d.bus.prefix = bus::prefix(text)?)),
        default: Is("wshd"),
        flag: No,
        help: "What subjects or channels begin with",
        more: "Servers with the same prefix share topics.",
    },
    Setting {
        name: "bus_queue",
        scopes: SERVER,
        kind: Size(LEAST_SIZE..=MAX_MEMORY, |d, size| d.bus.queue = size as usize),
        default: Is("4M"),
        flag: No,
        help: "Maximum bytes that wait for the engine, and that wait for the bus from there",
        more: "What comes above it is dropped and counted.",
    },
];
