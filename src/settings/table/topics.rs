//! Topics: messages for many connections.

use super::super::Default::{Is, Unset};
use super::super::Flag::No;
use super::super::Kind::{Count, Size, Text, Time};
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
];
