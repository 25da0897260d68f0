//! Commands for authors of handlers: each file is one. They start servers, compilers and clients of their own and know
//! nothing of a running server.

pub mod cat;
mod client;
mod value;

use std::process::ExitCode;

use clap::Subcommand;

/// What an author asks for.
#[derive(Debug, Subcommand)]
pub enum Kit {
    /// Connect to a WebSocket server: lines of standard input are sent, messages received are printed
    Cat(cat::Cat),
}

impl Kit {
    /// Does it. What went wrong is on standard error.
    pub fn run(self) -> ExitCode {
        match self {
            Kit::Cat(cat) => cat.run(),
        }
    }
}
