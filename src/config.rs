//! Everything a process needs to know, already parsed into types that can not be wrong. Reads no file, no
//! argument and no environment: `cli` does, and hands over a finished [`Config`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::log::Settings as LogSettings;
use crate::proto;

pub use crate::fleet::listener::Listen;

/// Descriptors of a worker that are not connections: standard streams, listeners, epoll, inbox, log, and what
/// a handler opens.
pub const RESERVED_DESCRIPTORS: u64 = 64;

/// What a worker may use up before it is replaced; 0: as much as it wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wear {
    /// Resident memory; bytes.
    pub memory: u64,
    /// Age; ns.
    pub age: u64,
    /// Messages received.
    pub messages: u64,
}

impl Wear {
    /// Whether there is any bound.
    pub fn is_bounded(&self) -> bool {
        self.memory != 0 || self.age != 0 || self.messages != 0
    }
}

/// The configuration of a fleet. Made once, before the first fork, and never changed after.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen, in the order given; never empty.
    pub listen: Vec<Listen>,
    /// Root of the handler directory.
    pub handlers: PathBuf,
    /// Only this directory below [`Config::handlers`] is searched; resources are still named from the root.
    pub scan_dir: Option<PathBuf>,
    /// File of aliases, see `supervisor::alias`.
    pub map_file: Option<PathBuf>,
    /// Whether a handler's real path may lie outside the root.
    pub allow_outside: bool,
    /// Whether a broken handler or alias is an error instead of a warning.
    pub strict_handlers: bool,
    /// Root of the static files; without it there are none.
    pub document_root: Option<PathBuf>,
    /// Host and port that a target in absolute form must name, where set (else 421).
    pub validation: (Option<String>, Option<u16>),
    /// Number of workers, at least 1.
    pub workers: usize,
    /// Length of the kernel's queue of connections that nobody has accepted yet.
    pub backlog: i32,
    /// Most connections of one worker.
    pub connections: u32,
    /// Most connections to blocking handlers (each has a thread) of one worker.
    pub threads: u32,
    /// Bounds of a request head.
    pub head: proto::head::HeadLimits,
    /// Time from accept to the end of the opening handshake; ns, never 0.
    pub handshake_time: u64,
    /// Bounds of an open connection.
    pub limits: proto::limits::Limits,
    /// How permessage-deflate is negotiated unless a handler says otherwise.
    pub deflate: proto::deflate::Config,
    /// The send queue is full above this; bytes.
    pub send_high: usize,
    /// A full send queue has drained at this; bytes, at most `send_high`.
    pub send_low: usize,
    /// What a worker may use up before it is replaced.
    pub wear: Wear,
    /// How long a handler may run without a call to the host before it is brought down; ns, 0: for ever.
    pub handler_time: u64,
    /// Time from the order to stop until a worker must have left; ns.
    pub stop_time: u64,
    /// Where log lines go, and which.
    pub log: LogSettings,
    /// The handlers' own settings by resource.
    pub settings: BTreeMap<String, Vec<(String, String)>>,
}
