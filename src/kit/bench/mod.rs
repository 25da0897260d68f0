//! `wshd bench URL`: measures how fast a resource answers. Every message must be answered with one, as by an echo. Uses
//! one thread.

mod load;
mod report;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use self::load::{Load, Measured, Plan};
use self::report::Report;
use super::client::{Client, Failure, Target};
use super::value::{size, time};
use crate::exit::Exit;

/// The command line.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    target: Target,
    /// Number of connections
    #[arg(short, long, value_name = "COUNT", default_value_t = 10, value_parser = value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    /// Payload of a message
    #[arg(short = 'z', long, value_name = "SIZE", default_value = "64", value_parser = size)]
    size: usize,
    /// Messages of a connection that may be unanswered at a time
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = value_parser!(u32).range(1..=1_000_000))]
    depth: u32,
    /// Messages per second of all connections; without it each answer is followed by the next message
    #[arg(short, long, value_name = "COUNT", value_parser = value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// How long to send messages
    #[arg(short = 't', long, value_name = "TIME", default_value = "10s", value_parser = time)]
    duration: Duration,
    /// Send binary messages
    #[arg(short, long)]
    binary: bool,
    /// Print the result as one JSON object
    #[arg(short, long)]
    json: bool,
    /// Write a histogram of the latencies to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Connecting(#[from] Failure),
    #[error("{0}")]
    System(#[from] io::Error),
    #[error("{0}: {1}")]
    Output(String, io::Error),
}

impl Bench {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        match self.attempt() {
            Ok(Measured { closed: 0, .. }) => Exit::Ok.into(),
            Ok(Measured { closed, cause, .. }) => {
                let cause = cause.unwrap_or_default();
                eprintln!("wshd: {closed} connections ended early, the first with: {cause}");
                Exit::Unreachable.into()
            }
            Err(fault) => {
                eprintln!("wshd: {fault}");
                match fault {
                    Fault::Connecting(failure) => failure.exit().into(),
                    Fault::System(_) | Fault::Output(..) => Exit::Internal.into(),
                }
            }
        }
    }

    fn attempt(&self) -> Result<Measured, Fault> {
        allow_descriptors();
        // An unwritable file is reported before the measurement.
        let svg = self.svg.as_ref().map(|path| File::create(path).map_err(|error| (path, error)));
        let svg =
            svg.transpose().map_err(|(path, error)| Fault::Output(path.display().to_string(), error))?;
        let client = Client::new(&self.target)?;
        let plan = Plan {
            rate: self.rate,
            depth: self.depth,
            duration: self.duration,
            timeout: self.target.timeout,
            size: self.size,
            binary: self.binary,
        };
        let mut load = Load::new(plan)?;
        let bar = progress("connecting {bar:30} {pos}/{len}", u64::from(self.connections));
        for _ in 0..self.connections {
            load.add(client.connect()?.0)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let is_interrupted = watch_for_interrupt()?;
        let total = self.duration.as_millis() as u64;
        let bar = progress("{bar:30} {msg}", total);
        let measured = load.run(&mut |elapsed, answers, latencies| {
            bar.set_position((elapsed.as_millis() as u64).min(total));
            let rate = answers as f64 / elapsed.as_secs_f64().max(1e-3);
            let late = Duration::from_nanos(latencies.value_at_quantile(0.99));
            bar.set_message(format!("{rate:.0} messages/s, 99% within {late:.3?}"));
            !is_interrupted.load(Ordering::Relaxed)
        })?;
        bar.finish_and_clear();
        let report = Report::new(self, &measured);
        let text = if self.json { report.json() } else { report.text() };
        match io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(Fault::Output("standard output".to_owned(), error));
            }
            _ => {}
        }
        if let Some((mut file, path)) = svg.zip(self.svg.as_ref()) {
            let written = file.write_all(report.svg().as_bytes());
            written.map_err(|error| Fault::Output(path.display().to_string(), error))?;
        }
        Ok(measured)
    }
}

/// A progress bar on standard error, if that is a terminal.
fn progress(template: &str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Becomes true with the first SIGINT: the measurement ends early. The second one ends the program.
fn watch_for_interrupt() -> io::Result<Arc<AtomicBool>> {
    let is_interrupted = Arc::new(AtomicBool::new(false));
    flag::register_conditional_default(SIGINT, Arc::clone(&is_interrupted))?;
    flag::register(SIGINT, Arc::clone(&is_interrupted))?;
    Ok(is_interrupted)
}

/// Raises the limit on descriptors as far as possible; if it is too low, connecting fails.
fn allow_descriptors() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
