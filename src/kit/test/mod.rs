//! `wshd test FILE SCRIPT`: runs a scripted conversation against a handler and compares its replies with those
//! expected. A [`Host`] serves the handler with the code of a worker.

mod conversation;
mod script;

use std::fs::File;
use std::io::{Read, stdin};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use clap::Args;

use self::conversation::{Conversation, Outcome};
use self::script::Step;
use super::host::{Host, Served, settings};
use super::run::build::Source;
use super::value::time;
use super::{complain, print};
use crate::ctl::record::MAX_FILE;
use crate::exit::Exit;
use crate::worker;

/// Time to wait for an expected step.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The same where a debugger may stop the handler.
const AN_HOUR: Duration = Duration::from_secs(60 * 60);

/// The command line.
#[derive(Debug, Args)]
pub struct Test {
    /// NAME_wsh.so, a source NAME_wsh.c or NAME_wsh.cc, or a directory with a Cargo.toml
    file: PathBuf,
    /// The conversations: see wshd-test(1); - is standard input
    #[arg(required = true, value_name = "SCRIPT")]
    scripts: Vec<PathBuf>,
    /// How long to wait for each expected step [default: 5s, with --no-fork an hour]
    #[arg(long, value_name = "TIME", value_parser = time)]
    timeout: Option<Duration>,
    /// Use the handler's settings in this server configuration
    #[arg(short = 'f', long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve it as this resource [default: its name]
    #[arg(long, value_name = "PATH", value_parser = resource)]
    resource: Option<String>,
    /// Set a key of wshd.conf(5); may be repeated
    #[arg(short, value_name = "NAME=VALUE", id = "setting")]
    option: Vec<String>,
    /// Run the handler in this process, for a debugger; with one script only
    #[arg(long)]
    no_fork: bool,
    /// Show the log
    #[arg(short, long)]
    verbose: bool,
}

impl Test {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode, String> {
        if self.no_fork && self.scripts.len() > 1 {
            return Err("--no-fork: expected one script".to_owned());
        }
        let directory = tempfile::Builder::new().prefix("wshd-test.").tempdir();
        let directory = directory.map_err(|error| format!("temporary directory: {error}"))?;
        let source = Source::new(&self.file, directory.path())?;
        let scripts = self.scripts.iter().map(|path| Ok((path, read(path)?)));
        let scripts = scripts.collect::<Result<Vec<_>, String>>()?;
        let object = source.build().map_err(|why| format!("{}: {why}", self.file.display()))?;
        let config = self.config.as_deref().map(settings::read).transpose()?;
        let name = self.resource.as_deref().map_or(source.name(), |path| path.trim_start_matches('/'));
        let timeout = self.timeout.unwrap_or(if self.no_fork { AN_HOUR } else { TIMEOUT });
        let mut exit = Exit::Ok;
        for (number, (path, steps)) in scripts.into_iter().enumerate() {
            // A new host for each: no script can depend on another.
            let dir = directory.path().join(number.to_string());
            let served = Served {
                object: &object,
                name,
                options: &self.option,
                config: config.as_ref(),
                is_debugged: self.no_fork,
                fail_every: 0,
                confinement: None,
            };
            let mut host = Host::new(&dir, served)?;
            let conversation = Conversation::new(name, timeout);
            let played = match self.no_fork {
                true => play_here(&mut host, conversation, &steps),
                false => host.start().map(|()| conversation.run(&mut host, &steps)),
            };
            let log = host.log();
            let outcome = played.map_err(|why| format!("{why}\n{log}"))?;
            let shown = path.display();
            match &outcome {
                Ok(()) => print(&format!("{shown}: passed, {} steps", steps.len())),
                Err((line, failure)) => {
                    exit = Exit::Check;
                    print(&format!("{shown}:{line}: failed\n{}", failure.text()));
                }
            }
            // Warnings of the strict host are always shown.
            let is_warning = |line: &&str| [" warn ", " error "].iter().any(|level| line.contains(level));
            let is_shown = |line: &&str| self.verbose || outcome.is_err() || is_warning(line);
            log.lines().filter(is_shown).for_each(|line| print(&format!("    log       {line}")));
        }
        Ok(exit.into())
    }
}

/// Runs the worker on this thread, the main one, and the script on another.
fn play_here(host: &mut Host, conversation: Conversation, steps: &[Step]) -> Result<Outcome, String> {
    complain(&format!("the log is {}", host.log_file().display()));
    let (start, has_left) = (host.start_here()?, host.has_left());
    thread::scope(|scope| {
        let script = scope.spawn(|| {
            let outcome = host.wait_until_ready().map(|()| conversation.run(host, steps));
            let _ = host.stop(); // there is no process that could have died
            outcome
        });
        let _ = catch_unwind(AssertUnwindSafe(|| worker::run(start))); // a panic has printed its message
        has_left.store(true, Ordering::Release);
        script.join().map_err(|_| "the script has panicked".to_owned())?
    })
}

fn resource(path: &str) -> Result<String, String> {
    let is_path =
        path.starts_with('/') && !path.split('/').skip(1).any(|name| matches!(name, "" | "." | ".."));
    if is_path { Ok(path.to_owned()) } else { Err("expected a path such as /chat".to_owned()) }
}

fn read(path: &Path) -> Result<Vec<Step>, String> {
    let mut text = String::new();
    let shown = path.display();
    let read = match path == Path::new("-") {
        true => stdin().take(MAX_FILE + 1).read_to_string(&mut text),
        false => File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text)),
    };
    read.map_err(|error| format!("{shown}: {error}"))?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("{shown}: a script has {} MiB at most", MAX_FILE >> 20));
    }
    let steps = script::parse(&text).map_err(|error| format!("{shown}:{error}"))?;
    match steps.is_empty() {
        true => Err(format!("{shown}: it has no steps: expected lines such as \"> hello\" and \"< hello\"")),
        false => Ok(steps),
    }
}
