//! Logs a program's standard error line by line. Lines are truncated, and their number is bounded.

use std::io::{self, ErrorKind, Read};
use std::process::ChildStderr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Bytes that are read at a time.
pub const READ: usize = 4096;
/// Maximum bytes of a line in the log, and maximum lines.
const LINE: usize = 1024;
const LINES: usize = 100;

/// The lines so far.
#[derive(Default)]
pub struct Errors {
    /// The line so far: at most [`LINE`] bytes.
    line: Vec<u8>,
    lines: usize,
}

impl Errors {
    /// Reads once; returns whether there was something to read. Closes the pipe at its end.
    pub fn read(&mut self, pipe: &mut Option<ChildStderr>, name: &str) -> bool {
        let mut buffer = [0; READ];
        match pipe.as_mut().map(|pipe| pipe.read(&mut buffer)) {
            Some(Ok(count)) if count > 0 => {
                for byte in buffer.iter().take(count) {
                    if *byte == b'\n' {
                        self.flush(name);
                    } else if self.line.len() < LINE {
                        self.line.push(*byte);
                    }
                }
                return true;
            }
            Some(Err(error)) if is_later(&error) => {}
            _ => *pipe = None,
        }
        false
    }

    /// Waits for something to read for at most this time, and reads it.
    pub fn wait(&mut self, pipe: &mut Option<ChildStderr>, name: &str, time: Duration) {
        let fds = &mut pipe.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect::<Vec<_>>();
        if poll(fds, Timespec::try_from(time).ok().as_ref()).is_ok_and(|ready| ready > 0) {
            self.read(pipe, name);
        }
    }

    fn flush(&mut self, name: &str) {
        let line = std::mem::take(&mut self.line);
        self.lines += 1;
        if self.lines <= LINES {
            log::warn!("cgi {name}: {}", String::from_utf8_lossy(&line));
        }
    }

    /// After the last read.
    pub fn finish(&mut self, name: &str) {
        if !self.line.is_empty() {
            self.flush(name);
        }
        if let Some(more) = self.lines.checked_sub(LINES).filter(|more| *more > 0) {
            log::warn!("cgi {name}: {more} more lines on standard error were not logged");
        }
    }
}

/// Whether the call can be repeated later.
pub fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
