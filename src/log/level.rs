//! Severity levels.

use std::str::FromStr;

use log::{LevelFilter, Metadata};
use serde::{Deserialize, Serialize};

use super::CRITICAL;

/// A severity level, as in `ws_handler.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
    /// All levels, in ascending order.
    pub const ALL: [Level; 6] =
        [Level::Fine, Level::Debug, Level::Info, Level::Warn, Level::Error, Level::Critical];

    /// Its name in the configuration and in log lines.
    pub fn name(self) -> &'static str {
        match self {
            Level::Fine => "fine",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
            Level::Critical => "critical",
        }
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

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let levels = || Self::ALL.map(Level::name).join(", ");
        let level = Self::ALL.into_iter().find(|level| level.name() == text);
        level.ok_or_else(|| format!("expected one of {}", levels()))
    }
}
