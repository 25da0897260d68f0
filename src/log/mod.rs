//! The log, and the access log beside it: one line an event, given to the kernel in one piece and at once, so that
//! the lines of many processes do not mix. A sink of the `log` crate; keeps no buffer, so that nothing is lost when a
//! process dies, and never waits, so that neither a full disk nor a reader that does not read holds up the server:
//! what is not taken is counted, and the count told with the next line that is.

mod access;
mod files;
mod level;
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

pub use self::access::AccessField;
pub use self::files::Rotation;
pub use self::level::Level;
pub use self::line::Value;
use self::line::{Form, Line, Writer};
pub use self::relay::MAX_BYTES as MAX_RELAYED;
use self::relay::{Received, Relay};
use self::target::Target;

/// Target of records above `error`: the server, or a handler, cannot go on.
pub const CRITICAL: &str = "critical";

/// Which lines are written, where, and how they look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The least level.
    pub level: Level,
    /// Where the log goes.
    pub destination: Destination,
    /// What lines look like, but for those in the journal.
    pub format: Format,
    /// Where the access log goes, if there is one.
    pub access: Option<AccessLog>,
    /// Further fields of its lines, in this order.
    pub fields: Vec<AccessField>,
    /// When files are renamed.
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
    /// To where the log goes.
    Log,
    /// A file to append to.
    File(PathBuf),
}

/// What lines look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one object a line.
    Json,
}

/// One of the two logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Book {
    /// What happens.
    Log = 0,
    /// The connections and requests: the access log.
    Access = 1,
}

/// Both.
pub const BOOKS: [Book; 2] = [Book::Log, Book::Access];

/// Starts the log of this process and its future children, before the first fork of one, or goes on with other
/// settings. The error names option and file; all is as it was then. [supervisor]
pub fn start(settings: &Settings) -> Result<(), String> {
    start_with(settings, Vec::new()).map(drop)
}

/// Opens what these settings name, for another process to [start with](start_with); nothing if they are in force. [child of
/// the supervisor]
pub fn open(settings: &Settings) -> Result<Vec<(Book, OwnedFd)>, String> {
    if is_in_force(settings) {
        return Ok(Vec::new());
    }
    let logger = Logger::open(settings, Vec::new())?;
    let outlets = BOOKS.into_iter().filter_map(|book| Some((book, logger.output(book)?)));
    let opened = outlets.map(|(book, rx)| Ok((book, rx.descriptor()?)));
    opened.collect::<io::Result<_>>().map_err(|error| error.to_string())
}

/// The same as [`start`] with what another process has opened. What was in force before, if something else is now. [supervisor]
pub fn start_with(settings: &Settings, opened: Vec<(Book, OwnedFd)>) -> Result<Option<Former>, String> {
    if is_in_force(settings) {
        return Ok(None);
    }
    let former = put_in_force(Logger::open(settings, opened)?);
    if log::set_logger(&Sink).is_ok() {
        // Standard error may lead nowhere.
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

/// A log that was in force.
pub struct Former(Logger);

/// Goes on with it. [supervisor]
pub fn restore(former: Former) {
    put_in_force(former.0);
}

fn put_in_force(logger: Logger) -> Option<Former> {
    log::set_max_level(logger.settings.level.filter());
    LOGGER.write().unwrap_or_else(PoisonError::into_inner).replace(logger).map(Former)
}

fn is_in_force(settings: &Settings) -> bool {
    with_logger(|logger| logger.settings == *settings) == Some(true)
}

/// The least level of the lines that this process writes.
pub fn level() -> Level {
    with_logger(|logger| logger.settings.level).unwrap_or_default()
}

/// Changes it, until the log is [started](start) again.
pub fn set_level(level: Level) {
    if let Some(logger) = LOGGER.write().unwrap_or_else(PoisonError::into_inner).as_mut() {
        logger.settings.level = level;
        log::set_max_level(level.filter());
    }
}

/// Names the process in the lines it writes from now on, such as "worker default/0".
pub fn set_process(name: &str) {
    name.clone_into(&mut PROCESS.write().unwrap_or_else(PoisonError::into_inner));
}

/// Writes what a handler says itself, if it is of its `least` level, or without one of that of the log. `conn` is 0
/// for no connection.
pub fn write_for_handler(least: Option<Level>, level: Level, handler: &str, conn: u64, message: &str) {
    with_logger(|logger| {
        if level >= least.unwrap_or(logger.settings.level) {
            logger.log.write(&Line { level, handler: Some(handler), conn, message, fields: &[] });
        }
    });
}

/// Writes a line of the access log; there must be one.
pub fn write_access(fields: &[(&str, Value<'_>)]) {
    let line = Line { level: Level::Info, handler: None, conn: 0, message: "access", fields };
    with_logger(|logger| logger.access.as_ref().unwrap_or(&logger.log).write(&line));
}

/// Opens a file anew, which somebody may have renamed, or finds a log daemon that has come new. Lines go to the old
/// place until then, and if there is an error. Returns the descriptor to hand on. [supervisor]
pub fn reopen(book: Book) -> Result<Option<OwnedFd>, String> {
    with_logger(|logger| logger.output(book).map_or(Ok(None), Output::reopen)).unwrap_or(Ok(None))
}

/// Whether a file has become too large. [supervisor]
pub fn is_rotation_due(book: Book) -> bool {
    let is_due =
        |logger: &Logger| logger.output(book).is_some_and(|output| output.is_due(logger.settings.rotation));
    with_logger(is_due).unwrap_or(false)
}

/// Renames a file that has become too large, and opens it anew; otherwise as [`reopen`]. [child of the supervisor]
pub fn rotate(book: Book) -> Result<Option<OwnedFd>, String> {
    let rotate = |logger: &Logger| {
        logger.output(book).map_or(Ok(None), |output| output.rotate(logger.settings.rotation))
    };
    with_logger(rotate).unwrap_or(Ok(None))
}

/// Goes on where the supervisor has opened something. [worker]
pub fn replace(book: Book, fd: OwnedFd) -> io::Result<()> {
    let target = Target::from_fd(fd)?;
    with_logger(|logger| logger.output(book).map(|output| output.replace(target)));
    Ok(())
}

/// From here on lines go to the supervisor over this socket, and this process has no file or socket of the log any more.
/// [worker of a pool with a user of its own]
pub fn relay(socket: OwnedFd) -> io::Result<()> {
    let relay = Relay::new(socket, Book::Log);
    let relayed = with_logger(|logger| {
        if let Some(access) = &logger.access {
            access.replace(Target::Relay(relay.try_clone(Book::Access)?));
        }
        logger.log.replace(Target::Relay(relay));
        Ok(())
    });
    relayed.unwrap_or(Ok(()))
}

/// Writes what a process has sent that has no file of the log. [supervisor]
pub fn write_relayed(bytes: &[u8], process: &str, pid: u32) {
    let received = Received::read(bytes);
    with_logger(|logger| {
        let output = logger.output(received.book).unwrap_or(&logger.log);
        if received.lost > 0 {
            output.write_as(process, pid, &loss(&loss_text(received.lost)));
        }
        received.with_line(|line| output.write_as(process, pid, line));
    });
}

impl Book {
    /// Its name among processes.
    pub fn name(self) -> &'static str {
        match self {
            Book::Log => "log",
            Book::Access => "access",
        }
    }

    /// The one of this number.
    pub fn from_number(number: u64) -> Option<Self> {
        BOOKS.into_iter().find(|book| *book as u64 == number)
    }
}

/// From here on the lines of both logs that this process loses are counted there, or not at all.
pub fn count_losses(counter: Option<&'static AtomicU64>) {
    *LOST.write().unwrap_or_else(PoisonError::into_inner) = counter;
}

static LOST: RwLock<Option<&AtomicU64>> = RwLock::new(None);
/// None until the log is started.
static LOGGER: RwLock<Option<Logger>> = RwLock::new(None);
/// Empty in a process that has not been named.
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
    /// What is not opened already is here.
    fn open(settings: &Settings, mut opened: Vec<(Book, OwnedFd)>) -> Result<Self, String> {
        let mut opened = |book| {
            let at = opened.iter().position(|(known, _)| *known == book)?;
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
        let log = opened(Book::Log);
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
            Some(AccessLog::File(path)) => Some(file("--access-log", path, opened(Book::Access))?),
            Some(AccessLog::Log) | None => None,
        };
        Ok(Self { settings: settings.clone(), log, access })
    }

    fn output(&self, book: Book) -> Option<&Output> {
        match book {
            Book::Log => Some(&self.log),
            Book::Access => self.access.as_ref(),
        }
    }
}

/// The log for the macros of the `log` crate.
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

/// A target with what has been lost on the way to it.
struct Output {
    target: RwLock<Target>,
    form: Form,
    /// Of a file.
    path: Option<PathBuf>,
    /// Lines that this process has lost since it told how many.
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
        let form = |line: &Line<'_>, room: usize| self.form.write(line, &by, room);
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let room = target.longest_line();
        let loss = if lost > 0 { form(&loss(&loss_text(lost)), room) } else { Vec::new() };
        // Together, or short lines about losses would take the room of longer ones.
        let is_written = match &*target {
            Target::Stream(stream) => {
                let line = form(line, room - loss.len());
                stream.write(&[loss, line].concat())
            }
            Target::Daemon(daemon) => {
                let is_written = daemon.send(&form(line, room));
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
    fn what_was_lost_is_told_with_the_next_line() {
        let (mut reader, writer) = io::pipe().unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", writer.as_raw_fd()));
        let rx = Output::new(Target::file(&path).unwrap(), Form::Text, None);
        drop(writer);
        let line = |message| Line { level: Level::Info, handler: None, conn: 0, message, fields: &[] };
        let long = "x".repeat(3000);
        // A pipe holds 64 KiB, or less for a user who has many (pipe(7)).
        (0..100).for_each(|_| rx.write(&line(&long)));
        let lost = rx.lost.load(Ordering::Relaxed);
        assert!((1..100).contains(&lost));
        let mut room = vec![0; 16 * 1024];
        reader.read_exact(&mut room).unwrap();
        rx.write(&line("next"));
        rx.write(&line("last"));
        drop(rx);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let mut ends = text.lines().rev().map(|line| line.split_once("] ").unwrap().1);
        assert_eq!(ends.next(), Some("last"));
        assert_eq!(ends.next(), Some("next"));
        assert_eq!(ends.next(), Some(&*format!("{lost} lines were lost")));
        assert_eq!(ends.next(), Some(&*long));
    }

    #[test]
    fn one_line_is_one_line() {
        assert_eq!((&*loss_text(1), &*loss_text(17)), ("1 line was lost", "17 lines were lost"));
    }

    #[test]
    fn a_file_that_can_not_be_opened_anew_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/log");
        std::fs::create_dir(dir.path().join("a")).unwrap();
        let rx = Output::new(Target::file(&path).unwrap(), Form::Text, Some(path.clone()));
        std::fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        let error = rx.reopen().unwrap_err();
        assert!(error.contains("a/log: No such file"), "{error}");
        rx.write(&loss("still"));
        assert!(std::fs::read_to_string(dir.path().join("b/log")).unwrap().ends_with("] still\n"));
    }

    #[test]
    fn levels_are_in_order() {
        assert!(Level::Fine < Level::Debug && Level::Debug < Level::Info && Level::Info < Level::Warn);
        assert!(Level::Warn < Level::Error && Level::Error < Level::Critical);
    }
}
