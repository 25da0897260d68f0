//! The configuration of CGI programs.

use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{Gid, Uid};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgi {
    /// Directories whose files are programs, relative to the document root; at least one, and none of them empty.
    pub directories: Vec<PathBuf>,
    /// User of the programs; none: that of the default pool's workers, which is not root.
    pub user: Option<Uid>,
    /// Groups of the programs, the primary one first; none: those of the workers.
    pub groups: Vec<Gid>,
    /// Maximum concurrent programs.
    pub processes: u32,
    /// A program without input or output for this time is killed.
    pub timeout: Duration,
    /// A program that runs for longer is killed.
    pub lifetime: Duration,
    /// Maximum bytes of a request body.
    pub body: u64,
    /// Maximum bytes of a program's output; 0: unlimited.
    pub output: u64,
    /// Address space of each process of a program; bytes.
    pub memory: Option<u64>,
    /// RLIMIT_NPROC: maximum processes and threads of their user.
    pub max_processes: Option<u64>,
}
