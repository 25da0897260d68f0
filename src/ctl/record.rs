//! `wshd ctl record`: has a server record what the connections of a handler receive, and writes that into a file: a
//! script that `wshd replay` and `wshd test` play. The file, its bounds and the time are here; the server only sends
//! lines.

use std::fmt::{self, Display};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind::{Interrupted, WouldBlock};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;

use super::answer::Handler;
use super::request::Request;
use super::{Failure, ask_with, not_understood, refused};
use crate::fleet::sockets::datagram;

/// The largest recording that can be played; bytes.
pub const MAX_FILE: u64 = 128 << 20;
/// The longest message whose content can be recorded; bytes. Those that are not read yet lie in memory: a few.
pub const MAX_MESSAGE: u64 = 4 << 20;
/// The longest datagram; what does not fit comes as a file in memory with it.
const LONGEST: usize = 64 << 10;
/// The longest such file: a byte of a message takes six characters at most.
const LONGEST_FILE: u64 = 7 * MAX_MESSAGE;
/// How the last line begins, if the server sends one.
pub const ENDED: &str = "# ended: ";
/// Room for what has not been read yet; the system may give less.
const ROOM: usize = 1 << 20;
/// How a recording begins.
const MARK: &str = "# Recorded by wshd ";
const HANDLER: &str = "# handler: ";
const RESOURCE: &str = "# resource: ";

/// Where to, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Is new.
    pub file: PathBuf,
    /// For so long.
    pub time: Duration,
    /// At most so many bytes.
    pub limit: u64,
}

/// What a recording begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heading {
    /// The handler's file, where it was recorded.
    pub handler: PathBuf,
    /// What it serves.
    pub resource: String,
}

impl Heading {
    /// That of this text; None: it is no recording.
    pub fn of(text: &str) -> Option<Self> {
        let mut lines = text.strip_prefix(MARK)?.lines().skip(1);
        let handler = lines.next()?.strip_prefix(HANDLER)?.into();
        Some(Heading { handler, resource: lines.next()?.strip_prefix(RESOURCE)?.to_owned() })
    }
}

impl Display for Heading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_rfc3339_seconds(SystemTime::now());
        writeln!(f, "{MARK}{}, {time}", env!("CARGO_PKG_VERSION"))?;
        writeln!(f, "{HANDLER}{}\n{RESOURCE}{}", self.handler.display(), self.resource)
    }
}

/// Does it; what to say of it.
pub(super) fn run(socket: &Path, request: &Request, target: &Target) -> Result<String, Failure> {
    let Target { file: path, .. } = target;
    let shown = path.display();
    let wrong = |error: io::Error| refused(format!("{shown}: {error}"));
    // It has what clients send.
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(wrong)?;
    let recorded = record(socket, request, target, &mut file);
    if file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
        let _ = std::fs::remove_file(path); // it was made above
    }
    let why = recorded?;
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    Ok(format!("{why}: {size} bytes in {shown}; play them with: wshd replay {shown}\n"))
}

/// Why it ended.
fn record(socket: &Path, request: &Request, target: &Target, file: &mut File) -> Result<String, Failure> {
    let local = |error: io::Error| refused(format!("cannot record: {error}"));
    let (theirs, ours) = datagram::pair_with_room(ROOM).map_err(local)?;
    let answer = ask_with(socket, request, Some(theirs.as_fd()))?;
    drop(theirs);
    let handler = Handler::deserialize(&answer).map_err(not_understood)?;
    let resource = match request {
        Request::Record { resource, .. } => resource.clone(),
        _ => String::new(),
    };
    let heading = Heading { handler: handler.file.into(), resource }.to_string();
    let full = |error: io::Error| refused(format!("{}: {error}; recording ended", target.file.display()));
    file.write_all(heading.as_bytes()).map_err(full)?;
    let (begun, mut left) = (Instant::now(), target.limit.saturating_sub(heading.len() as u64));
    let mut bytes = vec![0; LONGEST];
    let mut end = "the server ended".to_owned();
    while let Some(time) = target.time.checked_sub(begun.elapsed()).filter(|time| !time.is_zero()) {
        let mut fds = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(time.as_millis() as u64 + 1).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut fds, timeout); // if it is interrupted, as if the time were over
        let (count, rest) = match datagram::receive(ours.as_fd(), &mut bytes) {
            // A datagram may be empty, too.
            Ok((0, _)) if datagram::is_hung_up(ours.as_fd()) => return Ok(end),
            Ok(received) => received,
            Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => continue,
            Err(error) => return Err(local(error)),
        };
        let mut lines = bytes.get(..count).unwrap_or_default().to_vec();
        if let Some(mut file) = rest.map(File::from) {
            file.rewind().and_then(|()| file.take(LONGEST_FILE).read_to_end(&mut lines)).map_err(local)?;
        }
        if !lines.ends_with(b"\n") {
            continue;
        }
        if let Some(why) = lines.strip_prefix(ENDED.as_bytes()) {
            end = String::from_utf8_lossy(why.trim_ascii_end()).escape_debug().to_string();
        }
        let Some(rest) = left.checked_sub(lines.len() as u64) else {
            return Ok("the file is as large as it may be".to_owned());
        };
        left = rest;
        file.write_all(&lines).map_err(full)?;
    }
    Ok(format!("recorded for {:?}", target.time))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_heading_is_read_as_it_is_written() {
        let heading = Heading { handler: "/usr/lib/a b_wsh.so".into(), resource: "/rooms/a b".to_owned() };
        assert_eq!(Heading::of(&format!("{heading}c1> x\n")).unwrap(), heading);
        for other in ["", "> x\n", "# Recorded by wshd 0.1.0\n", "{}"] {
            assert_eq!(Heading::of(other), None);
        }
    }
}
