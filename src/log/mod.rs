//! The log and the access log: one line per event, in one write, so that lines of several processes do not mix. A sink
//! of the `log` crate. It keeps no buffer, so that nothing is lost when a process dies, and never blocks, so that
//! neither a full disk nor a slow reader delays the server: lines that cannot be written are counted, and the next line
//! that can be written reports how many.

mod access;
mod files;
mod level;
mod limit;
mod line;
mod relay;
mod target;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::SystemTime;

use log::{Log, Metadata, Record};
use serde::{Deserialize, Serialize};
use strum::{EnumString, VariantNames};

pub use self::access::AccessField;
pub use self::files::Rotation;
pub use self::level::Level;
pub use self::limit::{LeftOut, Limit};
pub use self::line::{Escaped, Value};
use self::line::{Form, Line, Writer};
pub use self::relay::MAX_BYTES as MAX_RELAYED;
use self::relay::{Relay, Wire};
use self::target::Target;

/// Target of records above `error`: the server, or a handler, cannot continue.
pub const CRITICAL: &str = "critical";

/// Which lines are written, where, and how they look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Minimum level.
    pub level: Level,
    /// Where the log goes.
    pub destination: Destination,
    /// Format of the lines, except in the journal.
    pub format: Format,
    /// Where the access log goes, if there is one.
    pub access: Option<AccessLog>,
    /// Optional fields of its lines, in this order.
    pub fields: Vec<AccessField>,
    /// When files are rotated.
    pub rotation: Rotation,
}

/// Where the log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// Standard error.
    #[default]
    Stderr,
    /// A file to append to.
    File(PathBuf),
    /// The socket of a syslog daemon.
    Syslog(PathBuf),
    /// The socket of systemd's journal.
    Journald(PathBuf),
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// The same destination as the log.
    Log,
    /// A file to append to.
    File(PathBuf),
}

/// Format of the lines. As a string: its name in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Format {
    /// Plain text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// One of the two logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogKind {
    /// The log.
    #[default]
    Main,
    /// The access log.
    Access,
}

/// Starts the log of this process and its future children, or applies new settings to it. The error names option and
/// file; the running log is unchanged then. [supervisor]
pub fn start(settings: &Settings) -> Result<(), String> {
    start_with(settings, Vec::new()).map(drop)
}

/// Opens the destinations of these settings, for another process to [start with](start_with); nothing if the settings
/// are in force. [child of the supervisor]
pub fn open(settings: &Settings) -> Result<Vec<(LogKind, OwnedFd)>, String> {
    if is_in_force(settings) {
        return Ok(Vec::new());
    }
    let logger = Logger::open(settings, Vec::new())?;
    let outputs = LogKind::ALL.into_iter().filter_map(|kind| Some((kind, logger.output(kind)?)));
    let opened = outputs.map(|(kind, output)| Ok((kind, output.descriptor()?)));
    opened.collect::<io::Result<_>>().map_err(|error| error.to_string())
}

/// Like [`start`], with descriptors that another process has opened. Returns the previous log if it was replaced.
/// [supervisor]
pub fn start_with(settings: &Settings, opened: Vec<(LogKind, OwnedFd)>) -> Result<Option<Former>, String> {
    if is_in_force(settings) {
        return Ok(None);
    }
    let former = put_in_force(Logger::open(settings, opened)?);
    if log::set_logger(&Sink).is_ok() {
        // Panics go to the log: standard error may be closed.
        std::panic::set_hook(Box::new(|panic| {
            let trace = Backtrace::capture();
            match trace.status() {
                BacktraceStatus::Captured => log::error!("{panic}\n{trace}"),
                _ => log::error!("{panic}"),
            }
        }));
    }
    Ok(former)
}

/// A log that was replaced.
pub struct Former(Logger);

/// Puts a replaced log in force again. [supervisor]
pub fn restore(former: Former) {
    put_in_force(former.0);
}

fn put_in_force(logger: Logger) -> Option<Former> {
    log::set_max_level(logger.settings.level.filter());
    let mut current = LOGGER.write().unwrap_or_else(PoisonError::into_inner);
    current.iter().for_each(|former| logger.take_losses_of(former));
    current.replace(logger).map(Former)
}

fn is_in_force(settings: &Settings) -> bool {
    with_logger(|logger| logger.settings == *settings) == Some(true)
}

/// Minimum level of the lines that this process writes.
pub fn level() -> Level {
    with_logger(|logger| logger.settings.level).unwrap_or_default()
}

/// Changes the minimum level, until the log is [started](start) again.
pub fn set_level(level: Level) {
    if let Some(logger) = LOGGER.write().unwrap_or_else(PoisonError::into_inner).as_mut() {
        logger.settings.level = level;
        log::set_max_level(level.filter());
    }
}

/// Sets the name of this process in its lines, such as "worker default/0".
pub fn set_process(name: &str) {
    name.clone_into(&mut PROCESS.write().unwrap_or_else(PoisonError::into_inner));
}

/// Writes a line of a handler, if it has its `least` level, by default that of the log. `conn` is 0 for no connection.
pub fn write_for_handler(least: Option<Level>, level: Level, handler: &str, conn: u64, message: &str) {
    with_logger(|logger| {
        if level >= least.unwrap_or(logger.settings.level) {
            logger.log.write(&Line { level, handler: Some(handler), conn, message, fields: &[] });
        }
    });
}

/// Writes a line of the access log, which must be configured.
pub fn write_access(fields: &[(&str, Value<'_>)]) {
    let line = Line { level: Level::Info, handler: None, conn: 0, message: "access", fields };
    with_logger(|logger| logger.access.as_ref().unwrap_or(&logger.log).write(&line));
}

/// Reopens a file, which may have been renamed, or reconnects to a log daemon, which may have been restarted. After an
/// error, lines go to the old destination. Returns the descriptor to pass to workers. [child of the supervisor]
pub fn reopen(kind: LogKind) -> Result<Option<OwnedFd>, String> {
    with_logger(|logger| logger.output(kind).map_or(Ok(None), Output::reopen)).unwrap_or(Ok(None))
}

/// The path of a file that is written to. [supervisor]
pub fn path(kind: LogKind) -> Option<PathBuf> {
    with_logger(|logger| logger.output(kind)?.path.clone()).flatten()
}

/// Whether a file is large enough to be rotated. [supervisor]
pub fn is_rotation_due(kind: LogKind) -> bool {
    let is_due =
        |logger: &Logger| logger.output(kind).is_some_and(|output| output.is_due(logger.settings.rotation));
    with_logger(is_due).unwrap_or(false)
}

/// Like [`reopen`], for a file that is due for rotation, which it renames first. [child of the supervisor]
pub fn rotate(kind: LogKind) -> Result<Option<OwnedFd>, String> {
    let rotate = |logger: &Logger| {
        logger.output(kind).map_or(Ok(None), |output| output.rotate(logger.settings.rotation))
    };
    with_logger(rotate).unwrap_or(Ok(None))
}

/// Writes to this descriptor from now on, which another process has opened. [supervisor, worker]
pub fn replace(kind: LogKind, fd: OwnedFd) -> io::Result<()> {
    let target = Target::from_fd(fd)?;
    with_logger(|logger| logger.output(kind).map(|output| output.replace(target)));
    Ok(())
}

/// Sends lines to the supervisor over this socket from now on, and closes the files and sockets of the log. [worker of
/// a pool with its own user]
pub fn relay(socket: OwnedFd) -> io::Result<()> {
    let relay = Relay::new(socket, LogKind::Main);
    let relayed = with_logger(|logger| {
        if let Some(access) = &logger.access {
            access.replace(Target::Relay(relay.try_clone(LogKind::Access)?));
        }
        logger.log.replace(Target::Relay(relay));
        Ok(())
    });
    relayed.unwrap_or(Ok(()))
}

/// Writes a line that another process has sent with [`relay`]. [supervisor]
pub fn write_relayed(bytes: &[u8], process: &str, pid: u32) {
    let received = Wire::read(bytes);
    with_logger(|logger| {
        let output = logger.output(received.kind).unwrap_or(&logger.log);
        if received.lost > 0 {
            output.write_as(process, pid, &loss(&loss_text(received.lost)));
        }
        received.with_line(|line| output.write_as(process, pid, line));
    });
}

impl LogKind {
    /// All logs.
    pub const ALL: [LogKind; 2] = [LogKind::Main, LogKind::Access];
}

/// Counts the lines of both logs that this process loses in `counter`; None: not at all.
pub fn count_losses(counter: Option<&'static AtomicU64>) {
    *LOST.write().unwrap_or_else(PoisonError::into_inner) = counter;
}

static LOST: RwLock<Option<&AtomicU64>> = RwLock::new(None);
/// None until the log is started.
static LOGGER: RwLock<Option<Logger>> = RwLock::new(None);
/// Name of this process; empty: not set.
static PROCESS: RwLock<String> = RwLock::new(String::new());

fn with_logger<R>(f: impl FnOnce(&Logger) -> R) -> Option<R> {
    LOGGER.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(f)
}

struct Logger {
    settings: Settings,
    log: Output,
    /// None if there is no access log, or it goes where the log goes.
    access: Option<Output>,
}

impl Logger {
    /// Opens what `opened` lacks.
    fn open(settings: &Settings, mut opened: Vec<(LogKind, OwnedFd)>) -> Result<Self, String> {
        let mut opened = |kind| {
            let at = opened.iter().position(|(known, _)| *known == kind)?;
            Some(opened.remove(at).1)
        };
        let (text, journal, datagram) = match settings.format {
            Format::Text => (Form::Text, Form::JournalText, Form::SyslogText),
            Format::Json => (Form::Json, Form::JournalJson, Form::SyslogJson),
        };
        let file = |option: &str, path: &Path, opened: Option<OwnedFd>| {
            let target = opened.map_or_else(|| Target::file(path), Target::from_fd);
            let target = target.map_err(|error| failed(option, path, &error))?;
            Ok::<_, String>(Output::new(target, text, Some(path.to_owned())))
        };
        let daemon = |option: &str, path: &Path, form, opened| {
            let target = Target::daemon(path, opened).map_err(|error| failed(option, path, &error))?;
            Ok::<_, String>(Output::new(target, form, None))
        };
        let log = opened(LogKind::Main);
        let log = match &settings.destination {
            Destination::Stderr => {
                let target = log.map_or_else(Target::stderr, Target::from_fd);
                let target = target.map_err(|error| format!("standard error: {error}"))?;
                Output::new(target, if target::stderr_is_journal() { journal } else { text }, None)
            }
            Destination::File(path) => file("--log-file", path, log)?,
            Destination::Syslog(path) => daemon("log_target syslog:", path, datagram, log)?,
            Destination::Journald(path) => daemon("log_target journald:", path, Form::Journal, log)?,
        };
        let access = match &settings.access {
            Some(AccessLog::File(path)) => Some(file("--access-log", path, opened(LogKind::Access))?),
            Some(AccessLog::Log) | None => None,
        };
        Ok(Self { settings: settings.clone(), log, access })
    }

    /// The next lines report what another log has lost and not reported.
    fn take_losses_of(&self, other: &Logger) {
        for kind in LogKind::ALL {
            if let (Some(from), Some(to)) = (other.output(kind), self.output(kind)) {
                to.lost.fetch_add(from.lost.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            }
        }
    }

    fn output(&self, kind: LogKind) -> Option<&Output> {
        match kind {
            LogKind::Main => Some(&self.log),
            LogKind::Access => self.access.as_ref(),
        }
    }
}

/// Receives the records of the `log` crate.
struct Sink;

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        with_logger(|logger| Level::of(metadata) >= logger.settings.level) == Some(true)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (level, message) = (Level::of(record.metadata()), record.args().to_string());
        let line = Line { level, handler: None, conn: 0, message: &message, fields: &[] };
        with_logger(|logger| logger.log.write(&line));
    }

    fn flush(&self) {}
}

/// A target, and the lines lost on the way to it.
struct Output {
    target: RwLock<Target>,
    form: Form,
    /// Path of a file.
    path: Option<PathBuf>,
    /// Lines lost and not yet reported.
    lost: AtomicU64,
}

impl Output {
    fn new(target: Target, form: Form, path: Option<PathBuf>) -> Self {
        Self { target: RwLock::new(target), form, path, lost: AtomicU64::new(0) }
    }

    fn write(&self, line: &Line<'_>) {
        let process = PROCESS.read().unwrap_or_else(PoisonError::into_inner);
        self.write_as(&process, std::process::id(), line);
    }

    fn write_as(&self, process: &str, pid: u32, line: &Line<'_>) {
        let by = Writer { now: SystemTime::now(), process, pid };
        let target = self.target.read().unwrap_or_else(PoisonError::into_inner);
        let format = |line: &Line<'_>, max: usize| self.form.write(line, &by, max);
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let max = target.longest_line();
        let loss = if lost > 0 { format(&loss(&loss_text(lost)), max) } else { Vec::new() };
        let is_written = match &*target {
            // In one write: otherwise the short line about losses might fit again and again, and the line itself not.
            Target::Stream(stream) => {
                let line = format(line, max - loss.len());
                stream.write(&[loss, line].concat())
            }
            Target::Daemon(daemon) => {
                let is_written = daemon.send(&format(line, max));
                if is_written && lost > 0 && !daemon.send(&loss) {
                    self.lost.fetch_add(lost, Ordering::Relaxed);
                }
                is_written
            }
            Target::Relay(relay) => relay.send(line, lost),
        };
        if !is_written {
            let counter = *LOST.read().unwrap_or_else(PoisonError::into_inner);
            counter.map(|counter| counter.fetch_add(1, Ordering::Relaxed));
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }

    fn descriptor(&self) -> io::Result<OwnedFd> {
        self.target.read().unwrap_or_else(PoisonError::into_inner).descriptor().try_clone_to_owned()
    }

    fn replace(&self, target: Target) {
        *self.target.write().unwrap_or_else(PoisonError::into_inner) = target;
    }

    fn reopen(&self) -> Result<Option<OwnedFd>, String> {
        let Some(path) = &self.path else {
            return match &*self.target.read().unwrap_or_else(PoisonError::into_inner) {
                Target::Daemon(daemon) => {
                    daemon.reconnect().map(|()| None).map_err(|error| error.to_string())
                }
                Target::Stream(_) | Target::Relay(_) => Ok(None),
            };
        };
        let open = || {
            let target = Target::file(path)?;
            let copy = target.file_of().map(File::try_clone).transpose()?;
            self.replace(target);
            Ok(copy.map(OwnedFd::from))
        };
        open().map_err(|error: io::Error| format!("{}: {error}", path.display()))
    }

    fn is_due(&self, rotation: Rotation) -> bool {
        let target = self.target.read().unwrap_or_else(PoisonError::into_inner);
        self.path.is_some() && target.file_of().is_some_and(|file| files::is_due(file, rotation))
    }

    fn rotate(&self, rotation: Rotation) -> Result<Option<OwnedFd>, String> {
        let Some(path) = &self.path else { return Ok(None) };
        {
            let target = self.target.read().unwrap_or_else(PoisonError::into_inner);
            match target.file_of() {
                Some(file) if files::is_due(file, rotation) => {
                    files::rename(path, file, rotation).map_err(|error| error.to_string())?;
                }
                _ => return Ok(None),
            }
        }
        self.reopen()
    }
}

fn loss_text(lost: u64) -> String {
    format!("{lost} line{} lost", if lost == 1 { " was" } else { "s were" })
}

fn loss(message: &str) -> Line<'_> {
    Line { level: Level::Warn, handler: None, conn: 0, message, fields: &[] }
}

fn failed(option: &str, path: &Path, error: &io::Error) -> String {
    format!("{option} {}: {error}", path.display())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_next_line_reports_how_many_were_lost() {
        let (mut reader, writer) = io::pipe().unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", writer.as_raw_fd()));
        let output = Output::new(Target::file(&path).unwrap(), Form::Text, None);
        drop(writer);
        let line = |message| Line { level: Level::Info, handler: None, conn: 0, message, fields: &[] };
        let long = "x".repeat(3000);
        // A pipe holds 64 KiB, or less for a user who has many (pipe(7)).
        (0..100).for_each(|_| output.write(&line(&long)));
        let lost = output.lost.load(Ordering::Relaxed);
        assert!((1..100).contains(&lost));
        let mut room = vec![0; 16 * 1024];
        reader.read_exact(&mut room).unwrap();
        output.write(&line("next"));
        output.write(&line("last"));
        drop(output);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let mut ends = text.lines().rev().map(|line| line.split_once("] ").unwrap().1);
        assert_eq!(ends.next(), Some("last"));
        assert_eq!(ends.next(), Some("next"));
        assert_eq!(ends.next(), Some(&*format!("{lost} lines were lost")));
        assert_eq!(ends.next(), Some(&*long));
    }

    #[test]
    fn a_new_log_reports_what_the_former_has_lost() {
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &str| {
            let destination = Destination::File(dir.path().join(path));
            Logger::open(&Settings { destination, ..Settings::default() }, Vec::new()).unwrap()
        };
        let (former, logger) = (open("/dev/full"), open("log"));
        (0..2).for_each(|_| former.log.write(&loss("x")));
        logger.take_losses_of(&former);
        logger.log.write(&loss("next"));
        let text = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(text.contains("] 2 lines were lost\n") && text.ends_with("] next\n"), "{text}");
        assert_eq!(former.log.lost.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_loss_of_one_line_is_in_the_singular() {
        assert_eq!((&*loss_text(1), &*loss_text(17)), ("1 line was lost", "17 lines were lost"));
    }

    #[test]
    fn a_file_that_cannot_be_reopened_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/log");
        std::fs::create_dir(dir.path().join("a")).unwrap();
        let output = Output::new(Target::file(&path).unwrap(), Form::Text, Some(path.clone()));
        std::fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        let error = output.reopen().unwrap_err();
        assert!(error.contains("a/log: No such file"), "{error}");
        output.write(&loss("still"));
        assert!(std::fs::read_to_string(dir.path().join("b/log")).unwrap().ends_with("] still\n"));
    }

    #[test]
    fn levels_are_in_order() {
        assert!(Level::Fine < Level::Debug && Level::Debug < Level::Info && Level::Info < Level::Warn);
        assert!(Level::Warn < Level::Error && Level::Error < Level::Critical);
    }
}
