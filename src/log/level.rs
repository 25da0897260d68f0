//! Severity levels.

use log::{LevelFilter, Metadata};
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantNames};

use super::CRITICAL;

/// A severity level, as in `ws_handler.h`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    EnumString,
    IntoStaticStr,
    VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown)]
pub enum Level {
    /// Trace.
    Fine,
    /// For debugging.
    Debug,
    /// Normal operation.
    #[default]
    Info,
    /// A problem that the server can work around.
    Warn,
    /// An operation has failed.
    Error,
    /// The server, or a handler, cannot continue.
    Critical,
}

impl Level {
    /// Its name in the configuration and in log lines.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The filter of the `log` crate, whose highest level is error.
    pub(super) fn filter(self) -> LevelFilter {
        match self {
            Level::Fine => LevelFilter::Trace,
            Level::Debug => LevelFilter::Debug,
            Level::Info => LevelFilter::Info,
            Level::Warn => LevelFilter::Warn,
            Level::Error | Level::Critical => LevelFilter::Error,
        }
    }

    pub(super) fn of(metadata: &Metadata<'_>) -> Self {
        match metadata.level() {
            log::Level::Error if metadata.target() == CRITICAL => Level::Critical,
            log::Level::Error => Level::Error,
            log::Level::Warn => Level::Warn,
            log::Level::Info => Level::Info,
            log::Level::Debug => Level::Debug,
            log::Level::Trace => Level::Fine,
        }
    }
}

fn unknown(_: &str) -> String {
    format!("expected one of {}", Level::VARIANTS.join(", "))
}
