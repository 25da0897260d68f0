//! Recording the connections of a handler (`wshd ctl record`). Each event is written before the handler is called, so
//! that it is on record if the handler crashes. It is sent as datagrams to the client of `ctl`, which owns the file.
//! The socket does not block: datagrams that do not fit are dropped, and the next one says how many.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ::ws_handler::raw::*;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::fleet::sockets::datagram;
use crate::time::Instant;
use crate::worker::conn::request::Request;
use crate::worker::connections::Conns;
use crate::worker::connections::transcript::{Name, Script};

/// What goes in a datagram; bytes.
const LONGEST: usize = 64 << 10;
/// A line about the time is written when this much has passed since the last one.
const TICK: Duration = Duration::from_millis(100);
/// Connections that move at once are one move.
const ONE_MOVE: Duration = Duration::from_secs(1);
/// Names that are kept beyond those of connections that exist.
const SPARE_NAMES: usize = 1000;

/// Which handler is recorded.
#[derive(Default)]
pub struct Recorder {
    /// Its number.
    handler: Cell<Option<u16>>,
    recording: RefCell<Option<Recording>>,
}

/// A recording that runs.
struct Recording {
    /// Of datagrams, each of whole lines. Does not wait.
    socket: OwnedFd,
    /// The content of longer messages is not written; bytes.
    longest: usize,
    begun: Instant,
    /// The time that was written last, since the beginning.
    written: Duration,
    /// When the last move was written.
    moved: Option<Instant>,
    /// By connection; at most [`SPARE_NAMES`] more than there are connections.
    names: HashMap<u64, Name>,
    /// Datagrams, since the last that was sent.
    lost: u64,
}

impl Recorder {
    /// From now on this handler is recorded, and no other.
    pub fn start(&self, handler: u16, longest: u32, begun: Instant, socket: OwnedFd) {
        let (written, moved, names, lost) = Default::default();
        let longest = longest as usize;
        self.recording.replace(Some(Recording { socket, longest, begun, written, moved, names, lost }));
        self.handler.set(Some(handler));
    }

    /// Nothing is recorded any more.
    pub fn stop(&self) {
        self.handler.take();
        self.recording.take();
    }

    /// Whether this handler is recorded.
    #[inline]
    pub fn records(&self, handler: u16) -> bool {
        self.handler.get() == Some(handler)
    }
}

impl Recording {
    /// Sends whole lines: what does not fit into a datagram goes as a file in memory with it.
    fn send(&self, lines: &[u8]) -> io::Result<()> {
        let (first, rest) = lines.split_at(lines.len().min(LONGEST));
        let mut file = None;
        if !rest.is_empty() {
            let memory = memfd_create(c"wshd recording", MFdFlags::MFD_CLOEXEC)?;
            file.insert(File::from(memory)).write_all(rest)?;
        }
        datagram::send_at_once(self.socket.as_fd(), first, file.as_ref().map(AsFd::as_fd).as_slice())
    }
}

/// For the recording, before the handler is called; if [`Recorder::records`] says so, which is all that a message that
/// is not recorded costs.
impl Conns {
    /// A peer asks for a WebSocket.
    pub fn record_request(&self, id: u64, request: &Request) {
        self.write(id, false, |script, name, _| {
            let headers = (0..).map_while(|index| request.head.header_at(index));
            let protocols = request.protocols().and_then(|protocols| protocols.strip_suffix(b"\0"));
            script.request(name, request.strings().resource, headers, protocols);
        });
    }

    /// A peer has sent a message, or a fragment of one.
    pub fn record_message(&self, id: u64, is_text: bool, flags: u32, bytes: &[u8]) {
        let (is_first, is_last) = (flags & WS_FIRST != 0, flags & WS_LAST != 0);
        self.write(id, true, |script, name, longest| match bytes.len() <= longest {
            is_short if is_first && is_last => {
                script.message(name, is_text, bytes.len(), is_short.then_some(bytes));
            }
            true => script.fragment(name, is_text, is_first, is_last, bytes),
            false => script.fragment(name, is_text, is_first, is_last, &vec![b'x'; bytes.len()]),
        });
    }

    /// A peer has sent a Ping.
    pub fn record_ping(&self, id: u64, payload: &[u8]) {
        self.write(id, true, |script, name, longest| {
            script.ping(name, (payload.len() <= longest).then_some(payload), payload.len());
        });
    }

    /// A peer has sent a Close frame.
    pub fn record_close(&self, id: u64, code: u16, reason: &[u8]) {
        self.write(id, true, |script, name, longest| {
            script.close(name, code, (reason.len() <= longest).then_some(reason));
        });
    }

    /// A connection has ended.
    pub fn record_end(&self, id: u64, by: u32, code: u16) {
        self.write(id, true, |script, name, _| match (by, code) {
            (WS_BY_PEER, 1006) => script.vanish(name),
            (WS_BY_PEER, _) => {}
            (by, code) => {
                let by = if by == WS_BY_HANDLER { "handler" } else { "server" };
                script.comment(format_args!("{name} was closed by the {by} with {code}"));
            }
        });
        if let Some(recording) = &mut *self.recorder.recording.borrow_mut() {
            recording.names.remove(&id);
        }
    }

    /// A connection is open here, perhaps after it was open in another process.
    pub fn record_open(&self, id: u64) {
        let is_resumed = self.core.borrow_mut().table.record(id).is_some_and(|record| record.is_resumed());
        let now = self.now();
        let is_written = |recording: &mut Recording| match recording.moved.replace(now) {
            Some(before) => now.since(before) < ONE_MOVE,
            None => false,
        };
        if is_resumed && self.recorder.recording.borrow_mut().as_mut().is_some_and(|it| !is_written(it)) {
            self.write(id, true, |script, _, _| script.moved());
        }
    }

    /// Sends what is said about a connection. One that the script does not know yet is introduced, if that is wanted.
    fn write(&self, id: u64, is_introduced: bool, say: impl FnOnce(&mut Script, Name, usize)) {
        let mut recording = self.recorder.recording.borrow_mut();
        let Some(known) = &mut *recording else { return };
        let mut script = Script::default();
        if known.lost > 0 {
            script.comment(format_args!(
                "{} lines or more are missing: they were not read in time",
                known.lost
            ));
        }
        let time = self.now().since(known.begun);
        if time >= known.written + TICK {
            known.written = time;
            script.at(time);
        }
        let name = match known.names.get(&id) {
            Some(name) => Some(*name),
            None => self.introduce(id, known, is_introduced.then_some(&mut script)),
        };
        let Some(name) = name else { return };
        say(&mut script, name, known.longest);
        if script.text().is_empty() {
            return;
        }
        match known.send(script.text().as_bytes()) {
            Ok(()) => known.lost = 0,
            // The reader is slow, or there is no memory or descriptor for a file.
            Err(error) if !matches!(error.kind(), BrokenPipe | ConnectionReset | ConnectionRefused) => {
                known.lost += 1;
            }
            Err(_) => {
                drop(recording);
                self.recorder.stop();
            }
        }
    }

    /// The name of a connection, whose request was seen before the recording began, or is about to be written.
    fn introduce(&self, id: u64, recording: &mut Recording, script: Option<&mut Script>) -> Option<Name> {
        let core = &mut *self.core.borrow_mut();
        let conn = core.table.get(id)?;
        let name = Name(conn.socket.cookie().ok()?);
        // It is known to the second.
        let came = Instant::from_nanos((u64::from(conn.since) + 1) * 1_000_000_000);
        let record = core.table.record(id)?;
        // What came from another process meanwhile was written by that.
        let is_known = record.is_resumed() && came.since(recording.begun) > Duration::ZERO;
        if let Some(script) = script.filter(|_| !is_known) {
            let strings = record.strings();
            script.comment(format_args!("{name} was open before"));
            let origin = strings.origin.map(|origin| ("Origin", origin));
            script.request(name, strings.resource, origin.into_iter(), strings.protocol);
        }
        if recording.names.len() >= core.table.len() as usize + SPARE_NAMES {
            recording.names.retain(|id, _| core.table.get(*id).is_some());
        }
        recording.names.insert(id, name);
        Some(name)
    }
}
