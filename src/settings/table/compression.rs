//! permessage-deflate.

use super::super::value::{MAX_MEMORY, MAX_SIZE};
use super::*;

pub const TABLE: &[Setting] = &[
    Setting {
        name: "deflate",
        scopes: HANDLERS,
        kind: Flag(|d, is_on| d.handler.deflate.enabled = is_on),
        default: Is("true"),
        flag: No,
        help: "Offer compression of messages",
        more: "",
    },
    Setting {
        name: "deflate_threshold",
        scopes: HANDLERS,
        kind: Size(0..=MAX_SIZE, |d, size| d.handler.deflate.threshold = size as u32),
        default: Is("64"),
        flag: No,
        help: "Send shorter messages uncompressed",
        more: "",
    },
    Setting {
        name: "deflate_level",
        scopes: HANDLERS,
        kind: Count("LEVEL", 1..=9, |d, level| d.handler.deflate.level = level as u8),
        default: Is("1"),
        flag: No,
        help: "Effort of compression, from 1 (fast) to 9 (small)",
        more: "",
    },
    Setting {
        name: "deflate_takeover",
        scopes: HANDLERS,
        kind: Flag(|d, is_on| d.handler.deflate.server_no_context_takeover = !is_on),
        default: Is("true"),
        flag: No,
        help: "Compress a message with reference to those before it",
        more: "\
Similar short messages become much smaller; the connection keeps a context of 264K, of which short messages use about \
195K.
Otherwise server_no_context_takeover is negotiated.
.Fn ws_configure_deflate
overrides this.",
    },
    Setting {
        name: "deflate_total",
        scopes: SERVER,
        kind: Size(0..=MAX_MEMORY, |d, size| d.config.contexts.total = size),
        default: Is("64M"),
        flag: No,
        help: "Maximum memory of all contexts for sending of a worker (0: no limit)",
        more: "\
Above it the least recently used contexts are dropped; the next message of such a connection is compressed without \
history.
The default is enough for 248 connections.
Contexts for receiving, of 44K, exist only if a handler allows its clients context takeover; they cannot be dropped \
and are not counted.",
    },
    Setting {
        name: "deflate_idle",
        scopes: SERVER,
        kind: Time(Zero::Off, |d, time| d.config.contexts.idle = time),
        default: Is("60s"),
        flag: No,
        help: "Drop the context of a connection that was not used for this time (0: never)",
        more: "",
    },
];
