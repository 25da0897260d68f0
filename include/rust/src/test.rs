//! Conversations with a handler, in tests of your own (feature `test`).
//!
//! ```no_run
//! // tests/conversation.rs
//! #[test]
//! fn says_hello() {
//!     ws_handler::test::converse(env!("CARGO_MANIFEST_DIR"), "> hello\n< hello\n").unwrap();
//! }
//! ```
//!
//! The language of scripts is that of wshd-test(1). The conversation is held by the program `wshd` (that of the
//! environment variable `WSHD`, else the one in `PATH`), not by this crate: a handler that crashes fails a test and not
//! the test program.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{error, fmt, io};

/// The exit status of `wshd test` for a script that failed.
const FAILED: i32 = 6;

/// Why a conversation did not go as the script says.
#[derive(Debug)]
pub enum Failure {
    /// A step failed: which one, what was expected and what came, and the log.
    Script(String),
    /// There was no conversation: a wrong script, or a handler that is not served.
    Refused(String),
    /// `wshd` cannot be run.
    Program(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Script(said) | Failure::Refused(said) => f.write_str(said.trim_end()),
            Failure::Program(error) => write!(f, "wshd: {error}; install it, or set WSHD to its path"),
        }
    }
}

impl error::Error for Failure {}

/// Plays the script with the handler. Its file is what wshd-test(1) takes: the directory of a package, which is built,
/// a `NAME_wsh.so` or a source.
pub fn converse(file: impl AsRef<Path>, script: &str) -> Result<(), Failure> {
    converse_with(file, script, &[])
}

/// The same with settings of wshd.conf(5), such as `max_message=1K`.
pub fn converse_with(file: impl AsRef<Path>, script: &str, settings: &[&str]) -> Result<(), Failure> {
    let program = std::env::var_os("WSHD").filter(|path| !path.is_empty());
    let mut command = Command::new(program.unwrap_or_else(|| OsString::from("wshd")));
    command.arg("test").args(settings.iter().flat_map(|setting| ["-o", setting])).arg(file.as_ref()).arg("-");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Failure::Program)?;
    if let Some(mut input) = child.stdin.take() {
        // It reads all before it says anything, or ends at once.
        let _ = input.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(Failure::Program)?;
    let said = || {
        let said = [&output.stdout[..], &output.stderr].concat();
        String::from_utf8_lossy(&said).into_owned()
    };
    match output.status.code() {
        Some(0) => Ok(()),
        Some(FAILED) => Err(Failure::Script(said())),
        _ => Err(Failure::Refused(said())),
    }
}
