//! Commands for authors of handlers: each file is one. They start servers, compilers and clients of their own and know
//! nothing of a running server.

pub mod cat;
mod client;
mod interface;
pub mod new;
mod value;

use std::process::ExitCode;

use clap::Subcommand;

/// What an author asks for.
#[derive(Debug, Subcommand)]
pub enum Kit {
    /// Begin a handler: a directory that builds, and passes its own test
    New(new::New),
    /// Send lines to a WebSocket server and print its messages
    Cat(Box<cat::Cat>),
}

impl Kit {
    /// Does it. What went wrong is on standard error.
    pub fn run(self) -> ExitCode {
        match self {
            Kit::New(new) => new.run(),
            Kit::Cat(cat) => cat.run(),
        }
    }
}
