//! `wshd run FILE`: serves one handler during development. Compiles a source, and after each change compiles it again
//! and reloads the server, a child with one worker whose log is passed through. A version that does not compile or load
//! changes nothing.

pub(super) mod build;
mod log;
mod slow;
mod watch;

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use self::build::Source;
use crate::clock;
use crate::exit::Exit;
use crate::kit::host::process;
use crate::kit::{complain, print};
use crate::time::Instant;

/// Files that are saved together are compiled together.
const QUIET: Duration = Duration::from_millis(50);
/// Maximum queued events, while a compiler runs. If the queue is full the threads wait, and the server drops log lines.
const EVENTS_MAX: usize = 1000;
/// Interval of polling the end of its streams.
const POLL: Duration = Duration::from_millis(5);
/// Callbacks on the event loop that take longer are reported.
const SLOW: Duration = Duration::from_millis(50);

/// Default settings: errors of the handler abort the worker, and a handler that crashes is not quarantined.
const DEFAULTS: [&str; 3] = ["workers=1", "strict_abi=true", "quarantine_deaths=0"];
/// Time for the last lines of the server after its end: its descendants may keep the streams open.
const LAST_LINES: Duration = Duration::from_secs(1);

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

/// Events from the threads.
enum Event {
    /// Files have changed.
    Changed,
    /// A line of the server's log.
    Log(String),
    /// A line of standard output: the server's ready line, or one printed by the handler.
    Output(String),
    /// A signal to stop.
    Stop,
    /// The server has ended.
    Ended(io::Result<ExitStatus>),
}

impl Run {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode, String> {
        let directory = tempfile::Builder::new().prefix("wshd-run.").tempdir();
        let directory = directory.map_err(|error| format!("temporary directory: {error}"))?;
        let source = Source::new(&self.file, directory.path())?;
        let (sender, events) = mpsc::sync_channel(EVENTS_MAX);
        let _watcher = watch::start(&source, sender.clone())?;
        stop_signals(sender.clone()).map_err(|error| format!("signals: {error}"))?;
        let mut session =
            Session { run: self, source, directory, sender, server: None, is_ready: false, is_newer: false };
        session.follow(&events)
    }
}

struct Session<'a> {
    run: &'a Run,
    source: Source,
    directory: TempDir,
    sender: SyncSender<Event>,
    /// Set once the handler was built for the first time.
    server: Option<Pid>,
    is_ready: bool,
    /// Built again while the server was starting.
    is_newer: bool,
}

impl Session<'_> {
    fn follow(&mut self, events: &Receiver<Event>) -> Result<ExitCode, String> {
        let log = log::Terminal::new();
        let mut build_at = clock::now();
        loop {
            match events.recv_timeout(build_at.since(clock::now())) {
                // We hold a sender, so this is the timeout.
                Err(_) => {
                    build_at = Instant::NEVER;
                    self.build()?;
                }
                Ok(Event::Changed) => build_at = clock::now() + QUIET,
                Ok(Event::Log(line)) => log.print(&line),
                Ok(Event::Output(line)) => self.output(&line),
                Ok(Event::Stop) => match self.server {
                    Some(server) => drop(kill(server, Signal::SIGTERM)), // if it has ended, Event::Ended follows
                    None => return Ok(Exit::Ok.into()),
                },
                Ok(Event::Ended(status)) => return status.map(ended).map_err(of_server),
            }
        }
    }

    /// Compiles, and starts or reloads the server.
    fn build(&mut self) -> Result<(), String> {
        let installed = self.source.build().and_then(|object| {
            let served = self.handlers().join(format!("{}_wsh.so", self.source.name()));
            install(&object, &served).map_err(|error| format!("copying {}: {error}", object.display()))
        });
        match (installed, self.server) {
            (Ok(()), None) => self.server = Some(self.start().map_err(of_server)?),
            (Ok(()), Some(pid)) if self.is_ready => drop(kill(pid, Signal::SIGHUP)),
            (Ok(()), Some(_)) => self.is_newer = true,
            (Err(why), Some(_)) => complain(&format!("{why}; the previous version stays in service")),
            (Err(why), None) => complain(&format!("{why}; waiting for a change")),
        }
        Ok(())
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
        command.args(["--port", &self.run.port.to_string()]);
        command.arg("--websock-handlers").arg(self.handlers()).arg("--control-socket").arg(self.control());
        let given = &self.run.option;
        let is_given = |default: &&str| given.iter().any(|option| name_of(option) == name_of(default));
        let defaults = DEFAULTS.iter().filter(|default| !is_given(default)).copied();
        command.args(defaults.chain(given.iter().map(String::as_str)).flat_map(|option| ["-o", option]));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C reaches this process only, which stops the server and waits for it.
        command.process_group(0);
        process::end_with_parent(&mut command);
        let mut child = command.spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let stdout = child.stdout.take().map(|stdout| lines(stdout, self.sender.clone(), Event::Output));
        let stderr = child.stderr.take().map(|stderr| lines(stderr, self.sender.clone(), Event::Log));
        let sender = self.sender.clone();
        thread::spawn(move || {
            let status = child.wait();
            let limit = clock::now() + LAST_LINES;
            while [&stdout, &stderr].into_iter().flatten().any(|stream| !stream.is_finished())
                && clock::now() < limit
            {
                thread::sleep(POLL);
            }
            sender.send(Event::Ended(status))
        });
        Ok(pid)
    }

    /// Prints a line of standard output. The first one is the server's ready line, others are from the handler.
    fn output(&mut self, line: &str) {
        print(line);
        if let Some(rest) = line.strip_prefix("wshd: ready on ").filter(|_| !self.is_ready) {
            let address = rest.split([',', ' ']).next().unwrap_or_default();
            print(&format!("wshd: serving ws://{address}/{}, Ctrl-C stops", self.source.name()));
            self.is_ready = true;
            slow::watch(self.control(), SLOW, self.sender.clone());
            if let Some(pid) = self.server.filter(|_| self.is_newer) {
                let _ = kill(pid, Signal::SIGHUP); // if it has ended, Event::Ended follows
            }
        }
    }
}

fn of_server(error: io::Error) -> String {
    format!("the server: {error}")
}

/// Converts the exit status of the server to that of this program.
fn ended(status: ExitStatus) -> ExitCode {
    if let Some(signal) = status.signal() {
        complain(&format!("the server was killed by signal {signal}"));
    }
    if status.code() == Some(Exit::Bind.code()) {
        complain("choose another port with --port; 0 picks a free one");
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(Exit::Internal.into(), ExitCode::from)
}

/// The name of a setting in the form of `-o`.
fn name_of(option: &str) -> &str {
    option.split('=').next().unwrap_or_default().trim()
}

/// Replaces a shared object by renaming, so that a mapped version is not changed.
pub(super) fn install(object: &Path, served: &Path) -> io::Result<()> {
    if let Some(dir) = served.parent() {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    }
    let passing = served.with_extension("new");
    fs::copy(object, &passing)?;
    // A server that runs as root skips handlers that others may write.
    fs::set_permissions(&passing, Permissions::from_mode(0o644))?;
    fs::rename(&passing, served)
}

/// Starts a thread that sends each line as an event. It ends with the stream.
fn lines(
    from: impl Read + Send + 'static,
    to: SyncSender<Event>,
    event: fn(String) -> Event,
) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            if to.send(event(String::from_utf8_lossy(&line).into_owned())).is_err() {
                break;
            }
        }
    })
}

/// Makes stop signals events.
fn stop_signals(sender: SyncSender<Event>) -> io::Result<()> {
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
