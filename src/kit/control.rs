//! Requests on the control socket of a server that a command has started.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::ctl::request::Request;

/// Maximum size of an answer; bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// Sends a request and returns the line of the answer.
pub fn ask(control: &Path, request: &Request, timeout: Duration) -> io::Result<Vec<u8>> {
    let socket = UnixStream::connect(control)?;
    socket.set_read_timeout(Some(timeout))?;
    (&socket).write_all(&request.line().map_err(io::Error::other)?)?;
    let mut line = Vec::new();
    BufReader::new((&socket).take(MAX_ANSWER)).read_until(b'\n', &mut line)?;
    Ok(line)
}
