//! The command line: options become a [`Config`], or an error that names the option, the value and what was
//! expected. The spellings are those of mod_pywebsocket's standalone server, with `_` for `-` as well, and ours. What
//! the configuration file says becomes options in front of those that are given; it is read here and nowhere else.

mod account;
mod admission;
mod authentication;
mod control;
mod daemon;
mod deflate;
mod file;
mod landlock;
mod logging;
mod memory;
mod metrics;
mod pools;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, value_parser};

pub use clap_complete::Shell;

pub use self::file::keys;

use self::admission::AdmissionArgs;
use self::authentication::AuthenticationArgs;
use self::daemon::DaemonArgs;
use self::deflate::DeflateArgs;
use self::file::File;
use self::landlock::LandlockArgs;
use self::logging::Logging;
use self::memory::MemoryArgs;
use self::value::{Host, Time, count, host, memory_or_zero, size, size_or_zero, time, time_or_off};
use crate::config::{Config, CrashRecords, Listen, Quarantine, Wear};
use crate::ctl;
use crate::proto::http1::head::HeadLimits;
use crate::proto::ws::limits::Limits;

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// To serve.
    Serve(Box<Config>),
    /// To check these files.
    Check(Vec<PathBuf>),
    /// To ask a running server.
    Ctl(ctl::Order),
    /// To print what this shell needs to complete command lines.
    Completions(Shell),
}

/// Why there is nothing to be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is wrong, or asks for help or the version.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The command line is right, but what it names is not.
    #[error("{0}")]
    Config(String),
}

/// Reads a command line, whose first element is the program's name. `exe_dir` is where the program is, for the
/// default of the handler directory.
pub fn parse(args: impl IntoIterator<Item = OsString>, exe_dir: Option<PathBuf>) -> Result<Command, Error> {
    let mut line = normalize(args);
    let matches = command().try_get_matches_from(&line)?;
    let args = Args::from_arg_matches(&matches)?;
    match args.command {
        Some(Sub::Check { files }) => return Ok(Command::Check(files)),
        Some(Sub::Ctl(ctl)) => return Ok(Command::Ctl(ctl.into_order()?)),
        Some(Sub::Completions { shell }) => return Ok(Command::Completions(shell)),
        None => {}
    }
    let Some(path) = args.config else {
        return Ok(Command::Serve(Box::new(args.into_config(&matches, exe_dir, &Places::default())?)));
    };
    let file = File::read(&path).map_err(Error::Config)?;
    let document = file.parse().map_err(Error::Config)?;
    let mut settings = file.settings(pools::outside(&document), &command()).map_err(Error::Config)?;
    settings.retain(|setting| matches.value_source(&setting.id) != Some(ValueSource::CommandLine));
    line.splice(1..1, settings.iter().flat_map(|setting| setting.args.clone()));
    let matches = command().try_get_matches_from(line)?;
    let args = Args::from_arg_matches(&matches)?;
    let places = settings.into_iter().map(|setting| (setting.id, setting.place));
    let mut config = args.into_config(&matches, exe_dir, &Places(places.collect()))?;
    pools::read(&file, &document, &mut config).map_err(Error::Config)?;
    config.file = Some(path);
    Ok(Command::Serve(Box::new(config)))
}

/// The table of options, for the parser, `--help` and the tests of the manual page.
pub fn command() -> clap::Command {
    Args::command()
}

/// The script that has this shell complete command lines.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "wshd", &mut script);
    script
}

/// The tables of the configuration file, as commands whose options are their [`keys`]: that of the server, which is
/// [`command`], `handler` and `pool`.
pub fn tables() -> impl Iterator<Item = clap::Command> {
    [command()].into_iter().chain(pools::commands())
}

/// Serves WebSocket handlers, which are shared objects
#[derive(Debug, Parser)]
#[command(name = "wshd", version, disable_version_flag = true, args_conflicts_with_subcommands = true)]
#[command(after_help = "SIZE: bytes, or with K, M, G (1024s).  TIME: such as 500ms, 30s, 2m; 0 is off.\n\
    Each option can be written with _ for -.  Details: wshd(8)")]
struct Args {
    #[command(subcommand)]
    command: Option<Sub>,

    /// Read the options that are not given here, and settings of handlers, from this file: see wshd.conf(5)
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listen on this address, name, or unix:/PATH; may be repeated
    #[arg(short = 'H', long, value_name = "HOST", default_value = "127.0.0.1", value_parser = host)]
    server_host: Vec<Host>,
    /// Listen on this port; 0 picks a free one
    #[arg(short, long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Directory of the handlers; /a/b is served by DIR/a/b_wsh.so [default: handlers beside the program, or
    /// ../lib/wshd/handlers from there]
    #[arg(short, long, value_name = "DIR")]
    websock_handlers: Option<PathBuf>,
    /// File of aliases, in each line ALIAS EXISTING
    #[arg(short = 'm', long, value_name = "FILE")]
    websock_handlers_map_file: Option<PathBuf>,
    /// Search for handlers in this directory below the handler directory only
    #[arg(short, long, value_name = "DIR")]
    scan_dir: Option<PathBuf>,
    /// Serve handlers whose real path is outside the handler directory, too
    #[arg(long)]
    allow_handlers_outside_root_dir: bool,
    /// Do not start with a handler or alias that is broken
    #[arg(long)]
    strict_handlers: bool,
    /// Directory of static files [default: none are served]
    #[arg(short, long, value_name = "DIR")]
    document_root: Option<PathBuf>,
    /// Host that a request target in absolute form must name [default: any]
    #[arg(short = 'V', long, value_name = "HOST")]
    validation_host: Option<String>,
    /// Port that a request target in absolute form must name [default: any]
    #[arg(short = 'P', long, value_name = "PORT", value_parser = value_parser!(u16).range(1..))]
    validation_port: Option<u16>,
    /// Length of the queue of connections not yet accepted
    #[arg(short, long, value_name = "COUNT", default_value_t = 4096, value_parser = value_parser!(i32).range(1..))]
    queue: i32,
    /// Number of worker processes [default: one per core]
    #[arg(long, value_name = "COUNT", value_parser = count::<usize>(1024))]
    workers: Option<usize>,
    /// Write a record of each crash into this directory [default: none is written]
    #[arg(long, value_name = "DIR")]
    crash_dir: Option<PathBuf>,
    /// Most bytes of the last message in such a record
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = size_or_zero)]
    crash_bytes: usize,
    #[command(flatten)]
    logging: Logging,

    /// Largest message received
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = size, help_heading = LIMITS)]
    max_message: usize,
    /// Largest frame received; a frame is never larger than a message
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = size, help_heading = LIMITS)]
    max_frame: usize,
    /// Largest request head
    #[arg(long, value_name = "SIZE", default_value = "16K", value_parser = size, help_heading = LIMITS)]
    max_head: usize,
    /// Most headers of a request
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = count::<usize>(1024),
        help_heading = LIMITS)]
    max_headers: usize,
    /// Time for the opening handshake
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time, help_heading = LIMITS)]
    handshake_timeout: Time,
    /// Close a connection without messages after this time
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = time_or_off, help_heading = LIMITS)]
    idle_timeout: Time,
    /// Ping a connection that has been silent for this time
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time_or_off, help_heading = LIMITS)]
    ping_interval: Time,
    /// Drop a connection that does not answer a ping in this time
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = time, help_heading = LIMITS)]
    pong_timeout: Time,
    /// Drop a connection that does not answer a close frame in this time
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time, help_heading = LIMITS)]
    close_timeout: Time,
    #[command(flatten)]
    memory: MemoryArgs,
    /// Most pings that a peer may send in a second; 0 is off
    #[arg(long, value_name = "COUNT", default_value_t = 20, help_heading = LIMITS)]
    max_pings: u32,
    /// Most connections of one worker; lowered to what its open files allow
    #[arg(long, value_name = "COUNT", default_value_t = 16_384, value_parser = count::<u32>(10_000_000),
        help_heading = LIMITS)]
    max_connections: u32,
    /// Most connections to blocking handlers, which have a thread each, of one worker
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = count::<u32>(100_000),
        help_heading = LIMITS)]
    max_threads: u32,
    /// Replace a worker that uses more memory than this (0: never)
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = memory_or_zero, help_heading = LIMITS)]
    worker_max_memory: u64,
    /// Replace a worker that is older than this (0: never)
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = time_or_off, help_heading = LIMITS)]
    worker_max_age: Time,
    /// Replace a worker that has received more messages than this (0: never)
    #[arg(long, value_name = "COUNT", default_value_t = 0, help_heading = LIMITS)]
    worker_max_messages: u64,
    /// How long a handler may run without calling the server before its worker is killed (0: forever)
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time_or_off, help_heading = LIMITS)]
    handler_timeout: Time,
    /// How long a blocking handler may wait outside the server's calls before its worker is killed (0: forever)
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = time_or_off, help_heading = LIMITS)]
    handler_wait_timeout: Time,
    /// Kill and replace a worker that has not responded for this long, outside of handlers (0: never)
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = time_or_off, help_heading = LIMITS)]
    worker_timeout: Time,
    /// How long a request waits for a process of its own before it is answered with 503 (0: not at all)
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time_or_off, help_heading = LIMITS)]
    process_timeout: Time,
    /// Quarantine a handler in which so many workers have died (0: never)
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = value_parser!(u32).range(..=1000),
        help_heading = LIMITS)]
    quarantine_deaths: u32,
    /// Within this time
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time, help_heading = LIMITS)]
    quarantine_window: Time,
    /// How long a handler is quarantined the first time; then twice as long, up to 10m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time, help_heading = LIMITS)]
    quarantine_time: Time,
    /// Time over which connections that cannot move are closed when their worker is replaced
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time_or_off, help_heading = LIMITS)]
    drain_timeout: Time,
    /// Time to close all connections when told to stop
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time_or_off, help_heading = LIMITS)]
    stop_timeout: Time,
    #[command(flatten)]
    deflate: DeflateArgs,

    #[command(flatten)]
    metrics: metrics::MetricsOptions,
    #[command(flatten)]
    control: control::ControlOptions,
    #[command(flatten)]
    daemon: DaemonArgs,
    #[command(flatten)]
    admission: AdmissionArgs,
    #[command(flatten)]
    authentication: AuthenticationArgs,
    #[command(flatten)]
    landlock: LandlockArgs,

    /// Print version
    #[arg(long, action = ArgAction::Version)]
    version: (),
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Load handlers in a process of their own and report what they are and what is wrong
    Check {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Ask a running server, or tell it what to do
    Ctl(control::Ctl),
    /// Print the script with which a shell completes command lines of this program
    Completions {
        /// The shell
        #[arg(value_enum, value_name = "SHELL")]
        shell: Shell,
    },
}

const LIMITS: &str = "Limits";

impl Args {
    /// `matches` is what these were read from.
    fn into_config(
        mut self,
        matches: &ArgMatches,
        exe_dir: Option<PathBuf>,
        places: &Places,
    ) -> Result<Config, Error> {
        let (deflate, contexts) = self.deflate.into_config();
        let (sending, memory) = self.memory.into_config().map_err(|(send_low, send_high)| {
            let [low, high] = ["send_low", "send_high"].map(|id| places.of(id));
            let what = format!("{low} {send_low} is above {high} {send_high}: expected at most that");
            match ["send_low", "send_high"].iter().any(|id| places.0.contains_key(*id)) {
                true => Error::Config(what),
                false => Error::from(command().error(ErrorKind::ValueValidation, what + "\n")),
            }
        })?;
        for (id, dir) in [("document_root", &self.document_root), ("crash_dir", &self.crash_dir)] {
            if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_dir()) {
                let message = format!("{} {}: expected a directory", places.of(id), dir.display());
                return Err(Error::Config(message));
            }
        }
        // Handlers may change the current directory of workers.
        self.document_root = self.document_root.map(std::path::absolute).transpose().map_err(|error| {
            Error::Config(format!("{}: the current directory: {error}", places.of("document_root")))
        })?;
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let port = self.port;
        let listen = self.server_host.into_iter().map(|host| match host {
            Host::Name(host) => Listen::Tcp { host, port },
            Host::Unix(path) => Listen::Unix(path),
        });
        let workers = self.workers.unwrap_or_else(cores);
        let mut handlers = self.websock_handlers.map_or_else(|| default_handlers(exe_dir), Ok)?;
        let log = self.logging.settings();
        self.daemon.check(&log.destination, matches, places).map_err(Error::Config)?;
        let (daemon, default) = self
            .daemon
            .into_config(workers, &mut handlers, &mut self.document_root, places)
            .map_err(Error::Config)?;
        Ok(Config {
            file: None,
            listen: listen.collect(),
            handlers,
            scan_dir: self.scan_dir,
            map_file: self.websock_handlers_map_file,
            allow_outside: self.allow_handlers_outside_root_dir,
            strict_handlers: self.strict_handlers,
            document_root: self.document_root,
            validation: (self.validation_host, self.validation_port),
            workers,
            backlog: self.queue,
            connections: self.max_connections,
            threads: self.max_threads,
            head: HeadLimits { bytes: self.max_head, headers: self.max_headers },
            handshake_time: self.handshake_timeout,
            limits: Limits {
                message: self.max_message,
                frame: self.max_frame.min(self.max_message),
                idle: Duration::from_nanos(self.idle_timeout),
                ping_interval: Duration::from_nanos(self.ping_interval),
                pong_deadline: Duration::from_nanos(self.pong_timeout),
                close_deadline: Duration::from_nanos(self.close_timeout),
                pings_per_second: self.max_pings,
            },
            deflate,
            contexts,
            sending,
            memory,
            wear: Wear {
                memory: self.worker_max_memory,
                age: self.worker_max_age,
                messages: self.worker_max_messages,
            },
            quarantine: Quarantine {
                deaths: self.quarantine_deaths,
                window: self.quarantine_window,
                time: self.quarantine_time,
            },
            crash_records: self.crash_dir.map(|dir| CrashRecords { dir, bytes: self.crash_bytes }),
            control: self.control.into_config(),
            admission: self.admission.into_config().map_err(|why| places.wrong("proxy_protocol", why))?,
            authentication: self.authentication.into_config().map_err(|(id, why)| places.wrong(id, &why))?,
            landlock: self.landlock.into_landlock().map_err(|(id, why)| places.wrong(id, &why))?,
            handler_time: self.handler_timeout,
            handler_times: Default::default(),
            without_takeover: Default::default(),
            handler_wait_time: self.handler_wait_timeout,
            worker_timeout: Duration::from_nanos(self.worker_timeout),
            process_timeout: Duration::from_nanos(self.process_timeout),
            drain_time: self.drain_timeout,
            drain_times: Default::default(),
            stop_time: self.stop_timeout,
            metrics: self.metrics.metrics,
            log,
            settings: Default::default(),
            daemon,
            pools: vec![default],
            isolation: Default::default(),
        })
    }
}

/// Where the values come from that the command line does not give.
#[derive(Default)]
struct Places(BTreeMap<String, String>);

impl Places {
    /// What an error calls this option: file, line and key, or as on the command line.
    fn of(&self, id: &str) -> String {
        self.0.get(id).cloned().unwrap_or_else(|| format!("--{}", id.replace('_', "-")))
    }
}

fn default_handlers(exe_dir: Option<PathBuf>) -> Result<PathBuf, Error> {
    let exe_dir = exe_dir.ok_or_else(|| Error::Config("--websock-handlers is missing".to_owned()))?;
    let candidates = ["handlers", "../lib/wshd/handlers"].map(|dir| exe_dir.join(dir));
    candidates.iter().find(|dir| dir.is_dir()).cloned().ok_or_else(|| {
        let [first, second] = candidates.map(|dir| dir.display().to_string());
        Error::Config(format!("--websock-handlers is missing, and there is neither {first} nor {second}"))
    })
}

/// `--a_b=c_d` becomes `--a-b=c_d`: the names of options have `-` here, and `_` in mod_pywebsocket as well.
fn normalize(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut is_option = true;
    let normal = |arg: OsString| {
        is_option &= arg != "--";
        if !is_option || !arg.as_bytes().starts_with(b"--") {
            return arg;
        }
        let mut bytes = arg.into_vec();
        let name = bytes.iter().position(|b| *b == b'=').unwrap_or(bytes.len());
        bytes.iter_mut().take(name).filter(|b| **b == b'_').for_each(|b| *b = b'-');
        OsString::from_vec(bytes)
    };
    args.into_iter().map(normal).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
