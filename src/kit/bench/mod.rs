//! `wshd bench URL`: measures how fast a resource answers. Every message must be answered with one, as by an echo. Uses
//! one thread.

mod load;
mod report;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use self::load::{Load, Plan};
use self::report::Report;
use super::client::{Client, Target};
use super::complain;
use crate::exit::{Exit, Failure};

/// The command line.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    target: Target,
    /// Number of connections
    #[arg(short, long, value_name = "COUNT", default_value_t = 10, value_parser = value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    #[command(flatten)]
    plan: Plan,
    /// Print the result as one JSON object
    #[arg(short, long)]
    json: bool,
    /// Write a histogram of the latencies to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Bench {
    /// Runs the command.
    pub fn run(&self) -> Result<ExitCode, Failure> {
        allow_descriptors();
        // An unwritable file is reported before the measurement.
        let create = |path| File::create(path).map(|file| (file, path)).map_err(unwritable(path));
        let svg = self.svg.as_deref().map(create).transpose()?;
        let client = Client::new(&self.target)?;
        let mut load = Load::new(self.plan, self.target.timeout)?;
        let bar = progress("connecting {bar:30} {pos}/{len}", u64::from(self.connections));
        for _ in 0..self.connections {
            load.add(client.connect()?.0)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let is_interrupted = watch_for_interrupt()?;
        let total = self.plan.duration.as_millis() as u64;
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
        if let Some((mut file, path)) = svg {
            file.write_all(report.svg().as_bytes()).map_err(unwritable(path))?;
        }
        io::stdout().write_all(text.as_bytes()).map_err(Failure::output)?;
        if measured.closed == 0 {
            return Ok(Exit::Ok.into());
        }
        let cause = measured.cause.unwrap_or_default();
        complain(&format!("{} connections ended early, the first with: {cause}", measured.closed));
        Ok(Exit::Unreachable.into())
    }
}

fn unwritable(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| Failure(Exit::Internal, format!("{}: {error}", path.display()))
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
