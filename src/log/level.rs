//! The levels of lines.

use log::{LevelFilter, Metadata};

use super::CRITICAL;

/// The levels, as `ws_handler.h` has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Each step.
    Fine,
    /// What helps to find a mistake.
    Debug,
    /// What an operator may want to know.
    #[default]
    Info,
    /// Something is wrong, but the server goes on.
    Warn,
    /// Something has failed.
    Error,
    /// The server cannot go on.
    Critical,
}

impl Level {
    /// All of them, in order.
    pub const ALL: [Level; 6] =
        [Level::Fine, Level::Debug, Level::Info, Level::Warn, Level::Error, Level::Critical];

    /// The one of this number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|level| *level as u64 == number)
    }

    /// The one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    /// As it is written.
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

    /// The same for the `log` crate, which knows none above error.
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
