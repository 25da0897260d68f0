//! What the configuration says about programs.

use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{Gid, Uid};

/// Programs that answer requests (CGI).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgi {
    /// The directories whose files are programs, below the document root; not empty, nor is any of them.
    pub directories: Vec<PathBuf>,
    /// The user that programs run as; none: that of the workers of the default pool, which are not root.
    pub user: Option<Uid>,
    /// Their groups, the first one first; none: those of the workers.
    pub groups: Vec<Gid>,
    /// Most programs at a time.
    pub processes: u32,
    /// A program that prints and takes nothing for this time is killed.
    pub timeout: Duration,
    /// A program that runs for longer is killed.
    pub lifetime: Duration,
    /// Most bytes of a request's body.
    pub body: u64,
    /// Most bytes of a program's output; 0: no bound.
    pub output: u64,
    /// Address space of each process of a program; bytes.
    pub memory: Option<u64>,
    /// Most processes and threads of their user while a program starts one.
    pub max_processes: Option<u64>,
}
