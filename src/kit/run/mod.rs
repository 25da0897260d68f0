//! `wshd run FILE`: serves one handler while it is written. A source is compiled; when a file changes it is compiled again and
//! the server, a child, reloads it. What does not compile or load changes nothing. The server itself is not different from
//! any other: one worker, with its log passed through.

pub(super) mod build;
mod log;
mod slow;
mod watch;

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use self::build::{Source, Unbuilt};
use crate::exit::Exit;

/// Files that are saved together are compiled together.
const QUIET: Duration = Duration::from_millis(50);
/// What a callback on the event loop may take before there is a line about it.
const SLOW: Duration = Duration::from_millis(50);

/// Settings that are not given: mistakes end the worker, and what has crashed is tried again.
const DEFAULTS: [&str; 2] = ["strict_abi=true", "quarantine_deaths=0"];

/// The command line.
#[derive(Debug, Args)]
pub struct Run {
    /// NAME_wsh.so, a source NAME_wsh.c or NAME_wsh.cc, or a directory with a Cargo.toml
    file: PathBuf,
    /// Listen on this port of 127.0.0.1; 0 picks a free one
    #[arg(short, long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Set a key of wshd.conf(5) of the server; may be repeated
    #[arg(short, value_name = "NAME=VALUE", id = "setting")]
    option: Vec<String>,
}

/// What the threads tell.
enum Event {
    /// Files have changed.
    Changed,
    /// A line of the server's log.
    Log(String),
    /// The server is ready: its first line.
    Ready(String),
    /// A signal to stop.
    Stop,
    /// The server has ended.
    Ended(io::Result<ExitStatus>),
}

impl Run {
    /// Does it.
    pub fn run(self) -> ExitCode {
        match self.serve() {
            Ok(status) => status,
            Err(error) => {
                eprintln!("wshd: {error}");
                Exit::Config.into()
            }
        }
    }

    fn serve(&self) -> Result<ExitCode, String> {
        let directory = tempfile::Builder::new().prefix("wshd-run.").tempdir();
        let directory = directory.map_err(|error| format!("temporary directory: {error}"))?;
        let source = Source::new(&self.file, directory.path())?;
        let (sender, events) = mpsc::channel();
        let _watcher = watch::start(&source, sender.clone())?;
        stop_signals(sender.clone()).map_err(|error| format!("signals: {error}"))?;
        let mut session =
            Session { run: self, source, directory, sender, server: None, is_ready: false, is_newer: false };
        session.build();
        session.follow(&events)
    }
}

struct Session<'a> {
    run: &'a Run,
    source: Source,
    directory: TempDir,
    sender: Sender<Event>,
    /// From the first time that the handler was built.
    server: Option<Pid>,
    is_ready: bool,
    /// Built again while the server was starting.
    is_newer: bool,
}

impl Session<'_> {
    fn follow(&mut self, events: &Receiver<Event>) -> Result<ExitCode, String> {
        let log = log::Terminal::new();
        // One sender is ours: there is always another event to come.
        while let Ok(event) = events.recv() {
            match event {
                Event::Changed => {
                    let mut others = Vec::new();
                    while let Ok(event) = events.recv_timeout(QUIET) {
                        if !matches!(event, Event::Changed) {
                            others.push(event);
                        }
                    }
                    self.build();
                    others.into_iter().for_each(|event| drop(self.sender.send(event)));
                }
                Event::Log(line) => log.print(&line),
                Event::Ready(line) => self.ready(&line),
                Event::Stop => match self.server {
                    Some(server) => drop(kill(server, Signal::SIGTERM)), // if it is gone, its end is on its way
                    None => return Ok(Exit::Ok.into()),
                },
                Event::Ended(Ok(status)) => {
                    let code = status.code().and_then(|code| u8::try_from(code).ok());
                    if let Some(signal) = status.signal() {
                        eprintln!("wshd: the server was killed by signal {signal}");
                    }
                    if status.code() == Some(Exit::Bind.code()) {
                        eprintln!("wshd: choose another port with --port; 0 picks a free one");
                    }
                    return Ok(code.map_or(Exit::Internal.into(), ExitCode::from));
                }
                Event::Ended(Err(error)) => return Err(format!("the server: {error}")),
            }
        }
        Ok(Exit::Internal.into())
    }

    /// Compiles, and has the server take up what comes of it.
    fn build(&mut self) {
        match self.source.build() {
            Ok(object) => {
                let served = self.handlers().join(format!("{}_wsh.so", self.source.name()));
                if let Err(error) = install(&object, &served) {
                    return eprintln!("wshd: {}: {error}", served.display());
                }
            }
            Err(Unbuilt::Compiler) if self.server.is_some() => {
                return eprintln!("wshd: not compiled: the last version is still served");
            }
            Err(Unbuilt::Compiler) => return eprintln!("wshd: not compiled: waiting for a change"),
            Err(Unbuilt::Other(why)) => return eprintln!("wshd: {why}"),
        }
        match self.server {
            None => match self.start() {
                Ok(pid) => self.server = Some(pid),
                Err(error) => drop(self.sender.send(Event::Ended(Err(error)))),
            },
            Some(pid) if self.is_ready => drop(kill(pid, Signal::SIGHUP)),
            Some(_) => self.is_newer = true,
        }
    }

    fn handlers(&self) -> PathBuf {
        self.directory.path().join("handlers")
    }

    fn control(&self) -> PathBuf {
        self.directory.path().join("control")
    }

    fn start(&self) -> io::Result<Pid> {
        fs::create_dir_all(self.handlers())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--workers", "1", "--port", &self.run.port.to_string()]);
        command.arg("--websock-handlers").arg(self.handlers()).arg("--control-socket").arg(self.control());
        let given = &self.run.option;
        let is_given = |default: &&str| given.iter().any(|option| name_of(option) == name_of(default));
        let defaults = DEFAULTS.iter().filter(|default| !is_given(default)).copied();
        command.args(defaults.chain(given.iter().map(String::as_str)).flat_map(|option| ["-o", option]));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is ours, so that the end is told once and waited for.
        let mut child = command.process_group(0).spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            lines(stdout, self.sender.clone(), Event::Ready);
            lines(stderr, self.sender.clone(), Event::Log);
        }
        let sender = self.sender.clone();
        thread::spawn(move || sender.send(Event::Ended(child_end(child))));
        Ok(pid)
    }

    fn ready(&mut self, line: &str) {
        println!("{line}");
        let address = line.trim_start_matches("wshd: ready on ").split([',', ' ']).next().unwrap_or_default();
        println!("wshd: serving ws://{address}/{}, Ctrl-C stops", self.source.name());
        let _ = io::stdout().flush(); // nobody may be reading
        self.is_ready = true;
        slow::watch(self.control(), SLOW, self.sender.clone());
        if let Some(pid) = self.server.filter(|_| self.is_newer) {
            let _ = kill(pid, Signal::SIGHUP);
        }
    }
}

/// Of a setting as `-o` takes it.
fn name_of(option: &str) -> &str {
    option.split('=').next().unwrap_or_default().trim()
}

fn child_end(mut child: Child) -> io::Result<ExitStatus> {
    child.wait()
}

/// Puts a new version in the place of another: one that is mapped stays whole.
pub(super) fn install(object: &Path, served: &Path) -> io::Result<()> {
    if let Some(dir) = served.parent() {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    }
    let passing = served.with_extension("new");
    fs::copy(object, &passing)?;
    // As root, a server takes no handler that others may write, whatever the umask was.
    fs::set_permissions(&passing, Permissions::from_mode(0o644))?;
    fs::rename(&passing, served)
}

/// Passes lines on from a thread of its own.
fn lines(from: impl Read + Send + 'static, to: Sender<Event>, event: fn(String) -> Event) {
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { break };
            if to.send(event(String::from_utf8_lossy(&line).into_owned())).is_err() {
                break;
            }
        }
    });
}

/// Has signals that stop the program become events.
fn stop_signals(sender: Sender<Event>) -> io::Result<()> {
    let (mut reader, writer) = UnixStream::pair()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signal_hook::low_level::pipe::register(signal as i32, writer.try_clone()?)?;
    }
    thread::spawn(move || {
        let mut byte = [0];
        while reader.read_exact(&mut byte).is_ok() && sender.send(Event::Stop).is_ok() {}
    });
    Ok(())
}
