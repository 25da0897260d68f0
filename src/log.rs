//! The log: one line an event, written with one system call, so that the lines of many processes do not mix in
//! one file. A sink of the `log` crate; keeps no buffer and so loses nothing when a process dies. Does not
//! rotate files.
//!
//! `2026-01-02T03:04:05.678Z warn  worker default/0[1234] message`

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};
use std::time::SystemTime;

use log::{LevelFilter, Log, Metadata, Record};

/// Target of records above `error`: the server, or a handler, can not go on.
pub const CRITICAL: &str = "critical";

/// Which lines are written, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The least level.
    pub level: Level,
    /// A file to append to; standard error without one.
    pub file: Option<PathBuf>,
}

/// The levels, as `ws_handler.h` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// Each step.
    Fine,
    /// What helps to find a mistake.
    Debug,
    /// What an operator may want to know.
    Info,
    /// Something is not as it should be; the server goes on.
    #[value(alias = "warning")]
    Warn,
    /// Something has failed.
    Error,
    /// The server can not go on.
    Critical,
}

/// Starts the log of this process and its future children. Called once, before the first fork.
pub fn start(settings: &Settings) -> io::Result<()> {
    let file = match &settings.file {
        Some(path) => Some(OpenOptions::new().append(true).create(true).open(path)?),
        None => None,
    };
    let sink = Sink { file, only_critical: settings.level == Level::Critical };
    if log::set_boxed_logger(Box::new(sink)).is_ok() {
        log::set_max_level(match settings.level {
            Level::Fine => LevelFilter::Trace,
            Level::Debug => LevelFilter::Debug,
            Level::Info => LevelFilter::Info,
            Level::Warn => LevelFilter::Warn,
            Level::Error | Level::Critical => LevelFilter::Error,
        });
    }
    Ok(())
}

/// Names the process in the lines it writes from now on, such as "worker default/0".
pub fn set_process(name: &str) {
    name.clone_into(&mut PROCESS.write().unwrap_or_else(PoisonError::into_inner));
}

/// Empty in a process that has not been named.
static PROCESS: RwLock<String> = RwLock::new(String::new());

struct Sink {
    file: Option<File>,
    only_critical: bool,
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level() && (!self.only_critical || metadata.target() == CRITICAL)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let process = PROCESS.read().unwrap_or_else(PoisonError::into_inner);
        let line = format_line(SystemTime::now(), level_name(record), &process, record.args());
        drop(process);
        // A full disk is no reason to stop serving, and there is nowhere left to say so.
        let _ = match &self.file {
            Some(file) => { file }.write(line.as_bytes()),
            None => io::stderr().write(line.as_bytes()), // not buffered
        };
    }

    fn flush(&self) {}
}

fn level_name(record: &Record<'_>) -> &'static str {
    match record.level() {
        log::Level::Error if record.target() == CRITICAL => "critical",
        log::Level::Error => "error",
        log::Level::Warn => "warn",
        log::Level::Info => "info",
        log::Level::Debug => "debug",
        log::Level::Trace => "fine",
    }
}

/// The most bytes of a line, so that what a peer sends can not fill a disk at once.
const LINE: usize = 8 * 1024;

fn format_line(now: SystemTime, level: &str, process: &str, message: &std::fmt::Arguments<'_>) -> String {
    let mut text = String::with_capacity(160);
    // Writing to a String does not fail.
    let _ = write!(text, "{} {level:<5} ", humantime::format_rfc3339_millis(now));
    let _ = match process {
        "" => write!(text, "wshd[{}] {message}", std::process::id()),
        _ => write!(text, "{process}[{}] {message}", std::process::id()),
    };
    if text.len() > LINE {
        let end = (0..=LINE).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
        text.push_str("...");
    }
    if text.contains(char::is_control) {
        // Whatever came from outside stays on its line.
        text = text.chars().fold(String::with_capacity(text.len() + 16), |mut line, c| {
            if c.is_control() {
                line.extend(c.escape_default())
            } else {
                line.push(c)
            };
            line
        });
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_line_has_time_level_process_and_message() {
        // date -u -d @1767322805: 2026-01-02 03:00:05
        let now = UNIX_EPOCH + Duration::from_millis(1_767_322_805_678);
        let pid = std::process::id();
        assert_eq!(
            format_line(now, "warn", "worker default/0", &format_args!("caf\u{e9} {}", 1)),
            format!("2026-01-02T03:00:05.678Z warn  worker default/0[{pid}] caf\u{e9} 1\n")
        );
        assert_eq!(
            format_line(now, "critical", "", &format_args!("x")),
            format!("2026-01-02T03:00:05.678Z critical wshd[{pid}] x\n")
        );
    }

    #[test]
    fn an_event_is_one_line_whatever_it_contains() {
        let line = format_line(UNIX_EPOCH, "info", "p", &format_args!("a\r\nb\u{1b}[2J"));
        assert!(line.ends_with("a\\r\\nb\\u{1b}[2J\n"), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn a_line_has_an_end() {
        let line = format_line(UNIX_EPOCH, "info", "p", &format_args!("{}", "\u{e9}".repeat(LINE)));
        assert!(line.len() <= LINE + "...\n".len());
        assert!(line.ends_with("...\n"));
    }
}
