//! Commands for authors of handlers. They start their own servers, workers ([`host`]), compilers and clients, and do
//! not use a running server.

pub mod bench;
pub mod cat;
pub mod check;
mod client;
mod deflate;
mod host;
mod interface;
pub mod new;
mod peer;
pub mod replay;
pub mod run;
mod shell;
pub mod test;
mod value;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Subcommand;

use crate::exit::{Exit, Failure};

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Kit {
    /// Create a handler: a directory that builds and passes its test
    New(new::New),
    /// Serve one handler, and compile and reload it when it changes
    Run(Box<run::Run>),
    /// Test a handler with scripted conversations
    Test(Box<test::Test>),
    /// Replay a recording or a crash record in a test
    Replay(Box<replay::Replay>),
    /// Send lines to a WebSocket server and print its messages
    Cat(Box<cat::Cat>),
    /// Measure how fast a resource answers
    Bench(Box<bench::Bench>),
}

impl Kit {
    /// Runs the command. Errors go to standard error.
    pub fn run(self) -> ExitCode {
        let result = match self {
            Kit::New(new) => new.run().map_err(|why| Failure(Exit::Refused, why)),
            Kit::Run(run) => run.run().map_err(|why| Failure(Exit::Config, why)),
            Kit::Test(test) => test.run().map_err(|why| Failure(Exit::Config, why)),
            Kit::Replay(replay) => replay.run().map_err(|why| Failure(Exit::Config, why)),
            Kit::Cat(cat) => cat.run(),
            Kit::Bench(bench) => bench.run(),
        };
        result.unwrap_or_else(|failure| failure.report().into())
    }
}

/// Prints a line to standard output, whose reader may have gone.
fn print(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// The same to standard error.
fn complain(why: &str) {
    let _ = writeln!(io::stderr(), "wshd: {why}");
}
