//! Commands for authors of handlers. They start their own servers, workers ([`host`]), compilers and clients, and do
//! not use a running server.

pub mod bench;
pub mod cat;
pub mod check;
mod client;
mod control;
mod deflate;
mod host;
mod interface;
pub mod new;
mod peer;
pub mod replay;
pub mod run;
pub mod test;
mod value;

use std::process::ExitCode;

use clap::Subcommand;

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
        match self {
            Kit::New(new) => new.run(),
            Kit::Run(run) => run.run(),
            Kit::Test(test) => test.run(),
            Kit::Replay(replay) => replay.run(),
            Kit::Bench(bench) => bench.run(),
            Kit::Cat(cat) => cat.run(),
        }
    }
}
