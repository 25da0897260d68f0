//! Learning what a plugin offers without loading it: a short-lived child process loads it and answers through a
//! pipe. Whatever the plugin's constructors do, it is done to the child, and it is over after [`LIMIT`].

#![allow(unsafe_code)]

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stdin, dup2_stdout, fork, pipe2};
use ws_handler::raw;

use super::call::Handler;
use super::host::Callback;
pub use super::plugin::Style;
use super::plugin::{self, Plugin};

/// The time that a plugin has to load and to start.
pub const LIMIT: Duration = Duration::from_secs(5);

/// What a handler says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// For people and logs.
    pub name: String,
    /// May be empty.
    pub version: String,
    /// How it is called.
    pub style: Style,
    /// `ws_handler.flags`.
    pub flags: u32,
    /// `ws_handler.abi`.
    pub abi: u32,
    /// In order of preference.
    pub protocols: Vec<String>,
}

impl Offer {
    /// The names of the flags; those that this version does not know as one number.
    pub fn flag_names(&self) -> Vec<String> {
        let known = [
            (raw::WS_KEEP_REQUEST, "WS_KEEP_REQUEST"),
            (raw::WS_STREAM, "WS_STREAM"),
            (raw::WS_NO_EXTENSIONS, "WS_NO_EXTENSIONS"),
            (raw::WS_RESUMABLE, "WS_RESUMABLE"),
        ];
        let unknown = known.iter().fold(self.flags, |flags, (flag, _)| flags & !flag);
        let set = known.iter().filter(|(flag, _)| self.flags & flag != 0);
        let mut names: Vec<String> = set.map(|(_, name)| (*name).to_owned()).collect();
        if unknown != 0 {
            names.push(format!("{unknown:#x} (unknown)"));
        }
        names
    }

    /// Major and minor version of the header that the handler was compiled with.
    pub fn abi_version(&self) -> (u32, u32) {
        (self.abi >> 16, self.abi & 0xffff)
    }
}

/// Why a plugin can not serve. Does not name the file, the caller knows it.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The words of a [`plugin::LoadError`].
    #[error("{0}")]
    Load(String),
    /// It killed the process it was in.
    #[error("died of signal {} ({}) {stage}", *signal as i32, signal.as_str())]
    Signal {
        /// Of which signal.
        signal: Signal,
        /// When.
        stage: &'static str,
    },
    /// It ended the process it was in.
    #[error("ended the process with status {status} {stage}")]
    Exit {
        /// Its exit status.
        status: i32,
        /// When.
        stage: &'static str,
    },
    /// It did not come back.
    #[error("did not come back within {} s {stage}", LIMIT.as_secs())]
    Timeout {
        /// From what.
        stage: &'static str,
    },
    /// `on_worker_start` failed.
    #[error("on_worker_start returned {0}, expected 0 or more")]
    Start(i32),
    /// The system refused the probe; nothing is known about the plugin.
    #[error("can not be probed: {0}")]
    System(#[from] io::Error),
}

/// Asks a file what it offers. `confine` is called in the process that is to load it, before; then `file` is looked for.
/// [supervisor]
pub fn probe(file: &Path, confine: Confine<'_>) -> Result<Offer, ProbeError> {
    let answer = ask(file, confine, false)?;
    match (answer.fault, answer.offer) {
        (Some(fault), _) => Err(fault),
        (None, Some(offer)) => Ok(offer),
        (None, None) => Err(ProbeError::Load("gave no answer".to_owned())),
    }
}

/// Gives up rights that the code in the file is not to have.
pub type Confine<'a> = &'a dyn Fn() -> io::Result<()>;

/// Asks a file what it offers and has it start as in a worker. What it offers is known even where starting fails.
pub fn check(file: &Path) -> (Option<Offer>, Option<ProbeError>) {
    match ask(file, &|| Ok(()), true) {
        Ok(answer) => (answer.offer, answer.fault),
        Err(error) => (None, Some(error)),
    }
}

/// The name of a callback by its number in the scoreboard, for the log.
pub fn callback_name(number: u32) -> &'static str {
    Callback::from_number(number).name()
}

/// What came through the pipe.
#[derive(Default)]
struct Answer {
    offer: Option<Offer>,
    fault: Option<ProbeError>,
    is_complete: bool,
}

/// More than any honest answer needs.
const LONGEST_ANSWER: usize = 64 * 1024;

fn ask(file: &Path, confine: Confine<'_>, start: bool) -> Result<Answer, ProbeError> {
    let deadline = Instant::now() + LIMIT;
    let (from_child, to_parent) = pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?;
    // SAFETY: the supervisor has one thread, so the child may do anything; in a process with more, glibc keeps
    // malloc usable in the child and the time limit covers the rest.
    match unsafe { fork() }.map_err(io::Error::from)? {
        ForkResult::Child => {
            drop(from_child);
            let _ = catch_unwind(AssertUnwindSafe(|| answer(file, confine, start, to_parent)));
            // SAFETY: ends the child here; destructors and exit handlers belong to the parent.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(to_parent);
            let bytes = read_answer(from_child, deadline);
            let mut answer = parse_answer(&bytes.unwrap_or_default());
            if answer.is_complete {
                let _ = kill(child, Signal::SIGKILL); // it has nothing left to do but to end
                let _ = wait(child, None);
            } else {
                let stage = if answer.offer.is_some() { "in on_worker_start" } else { "while loading" };
                answer.fault = Some(match wait(child, Some(deadline))? {
                    None => ProbeError::Timeout { stage },
                    Some(WaitStatus::Signaled(_, signal, _)) => ProbeError::Signal { signal, stage },
                    Some(WaitStatus::Exited(_, status)) => ProbeError::Exit { status, stage },
                    Some(_) => ProbeError::Exit { status: 0, stage },
                });
            }
            Ok(answer)
        }
    }
}

/// In the child. The answer is a sequence of NUL-terminated fields: all of them come from C strings or are ours.
fn answer(file: &Path, confine: Confine<'_>, start: bool, to_parent: OwnedFd) -> io::Result<()> {
    for crash in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: the default action installs no code; it replaces the handler of Rust's runtime, which would
        // swallow a signal that the plugin raised itself.
        unsafe { signal(crash, SigHandler::SigDfl)? };
    }
    SigSet::empty().thread_set_mask()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?; // the ready line is all that the parent's output is for
    drop(null);
    let mut pipe = File::from(to_parent);
    if let Err(error) = confine() {
        return send(&mut pipe, &[&"error", &error, &"end"]);
    }
    // A probe is of no use to anybody else. A change of the user would have taken it back.
    let _ = set_pdeathsig(Signal::SIGKILL);
    match plugin::load(file, 0, &[], None) {
        Err(error) => send(&mut pipe, &[&"error", &error])?,
        Ok(plugin) => {
            let Plugin { name, version, table, .. } = &plugin;
            let (blocking, protocols) = (plugin.style == Style::Blocking, plugin.protocols.join(","));
            send(&mut pipe, &[&"offer", name, version, &blocking, &table.flags, &table.abi, &protocols])?;
            if start {
                send(&mut pipe, &[&"started", &Handler::new(table).worker_start()])?;
            }
        }
    }
    send(&mut pipe, &[&"end"])
}

fn send(pipe: &mut File, fields: &[&dyn Display]) -> io::Result<()> {
    let mut message = Vec::new();
    for field in fields {
        message.extend(field.to_string().replace('\0', "").bytes().take(LONGEST_ANSWER / 8));
        message.push(0);
    }
    pipe.write_all(&message)
}

/// Everything up to the end of the answer, of the pipe, or of the time.
fn read_answer(from_child: OwnedFd, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut pipe = File::from(from_child);
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !answer.ends_with(b"\0end\0") && answer.len() < LONGEST_ANSWER {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => break,
            Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(_) => match pipe.read(&mut piece) {
                Ok(0) => break,
                Ok(size) => answer.extend_from_slice(&piece[..size]),
                Err(error) => return Err(error),
            },
        }
    }
    Ok(answer)
}

/// Takes nothing for granted: the plugin's code ran in the process that wrote this.
fn parse_answer(bytes: &[u8]) -> Answer {
    let mut answer = Answer::default();
    let text = String::from_utf8_lossy(bytes);
    let mut fields = text.split_terminator('\0');
    while let Some(field) = fields.next() {
        match field {
            "offer" => answer.offer = parse_offer(&mut fields),
            "error" => answer.fault = fields.next().map(|text| ProbeError::Load(text.to_owned())),
            "started" => match fields.next().and_then(|number| number.parse().ok()) {
                Some(0..) => {}
                Some(result) => answer.fault = Some(ProbeError::Start(result)),
                None => return answer,
            },
            "end" => answer.is_complete = true,
            _ => return answer,
        }
    }
    answer
}

fn parse_offer<'a>(fields: &mut impl Iterator<Item = &'a str>) -> Option<Offer> {
    Some(Offer {
        name: fields.next()?.to_owned(),
        version: fields.next()?.to_owned(),
        style: if fields.next()?.parse().ok()? { Style::Blocking } else { Style::Event },
        flags: fields.next()?.parse().ok()?,
        abi: fields.next()?.parse().ok()?,
        protocols: fields.next()?.split_terminator(',').map(str::to_owned).collect(),
    })
}

/// Waits for the child to end; at the deadline kills it and returns None.
fn wait(child: Pid, deadline: Option<Instant>) -> io::Result<Option<WaitStatus>> {
    let Some(deadline) = deadline else { return Ok(Some(waitpid(child, None)?)) };
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive if Instant::now() >= deadline => {
                let _ = kill(child, Signal::SIGKILL);
                waitpid(child, None)?;
                return Ok(None);
            }
            WaitStatus::StillAlive => std::thread::sleep(Duration::from_millis(2)),
            status => return Ok(Some(status)),
        }
    }
}
