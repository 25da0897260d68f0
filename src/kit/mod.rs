//! Commands for authors of handlers. They start servers, workers ([`host`]), compilers and clients of their own and know
//! nothing of a running server.

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

/// What an author asks for.
#[derive(Debug, Subcommand)]
pub enum Kit {
    /// Begin a handler: a directory that builds, and passes its own test
    New(new::New),
    /// Serve one handler, and compile and reload it when it changes
    Run(Box<run::Run>),
    /// Have conversations with a handler, as scripts say
    Test(Box<test::Test>),
    /// Repeat what a worker crashed of, by its crash record
    Replay(Box<replay::Replay>),
    /// Send lines to a WebSocket server and print its messages
    Cat(Box<cat::Cat>),
    /// Measure how fast a resource answers
    Bench(Box<bench::Bench>),
}

impl Kit {
    /// Does it. What went wrong is on standard error.
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
