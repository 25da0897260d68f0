//! The log and the access log.

use strum::VariantNames;

use super::super::draft::Target;
use super::super::value::{MAX_MEMORY, choose, each};
use super::*;
use crate::log::{AccessField, Format, Level};

/// The level with this name; mod_pywebsocket has `warning` for `warn`.
pub fn level(text: &str) -> Option<Level> {
    if text == "warning" { Some(Level::Warn) } else { text.parse().ok() }
}

fn field(text: &str) -> Result<AccessField, String> {
    text.parse().map_err(|_| format!("expected one of {}", AccessField::VARIANTS.join(", ")))
}

/// In the order of the manual.
pub const TABLE: &[Setting] = &[
    Setting {
        name: "log_file",
        scopes: SERVER,
        kind: Path("FILE", |d, file| d.log_file = Some(file)),
        default: Unset("none"),
        flag: Short('l'),
        help: "Append log lines to this file",
        more: "",
    },
    Setting {
        name: "log_target",
        scopes: SERVER,
        kind: Choice("TARGET", Target::VARIANTS, |d, text| {
            d.log_target = text.parse().ok();
            d.log_target.is_some()
        }),
        default: Unset("the log file, else standard error"),
        flag: No,
        help: "Log to stderr, syslog or journald, whatever log_file is",
        more: "",
    },
    Setting {
        name: "log_socket",
        scopes: SERVER,
        kind: Path("FILE", |d, path| d.log_socket = Some(path)),
        default: Unset("/dev/log for syslog, /run/systemd/journal/socket for journald"),
        flag: No,
        help: "The socket of syslog or journald",
        more: "",
    },
    Setting {
        name: "log_format",
        scopes: SERVER,
        kind: Choice("FORMAT", Format::VARIANTS, |d, text| choose(&mut d.config.log.format, text)),
        default: Is("text"),
        flag: No,
        help: "Format of the lines of log and access log: text or json",
        more: "",
    },
    Setting {
        name: "log_level",
        scopes: SERVER,
        kind: Choice("LEVEL", Level::VARIANTS, |d, text| {
            level(text).map(|level| d.config.log.level = level).is_some()
        }),
        default: Is("info"),
        flag: Long,
        help: "Minimum severity to log",
        more: "From least to most severe: fine, debug, info, warn, error, critical.",
    },
    Setting {
        name: "log_max",
        scopes: SERVER,
        kind: Size(0..=MAX_MEMORY, |d, size| d.config.log.rotation.size = size),
        default: Is("0"),
        flag: Long,
        help: "Rotate log files larger than this (0: never)",
        more: "The access log is rotated, too.",
    },
    Setting {
        name: "log_count",
        scopes: SERVER,
        kind: Count("COUNT", 1..=1000, |d, count| d.config.log.rotation.count = count as u32),
        default: Is("5"),
        flag: Long,
        help: "Number of rotated log files to keep",
        more: "",
    },
    Setting {
        name: "access_log",
        scopes: SERVER,
        kind: Path("FILE", |d, file| d.access_log = Some(file)),
        default: Unset("none"),
        flag: Long,
        help: "Log connections to this file; - is the log",
        more: "There is a line when a connection opens, closes or is refused.",
    },
    Setting {
        name: "access_log_fields",
        scopes: SERVER,
        kind: List("FIELD", |d, texts| Ok(d.config.log.fields = each(texts, field)?)),
        default: Unset("none"),
        flag: No,
        help: "Further fields of the access log: method, host, origin, user_agent, handler, reply_bytes",
        more: "They follow the others, in the order given.",
    },
];
