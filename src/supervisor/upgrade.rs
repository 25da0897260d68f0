//! Upgrade: another executable takes over while this one serves. It is started with one end of a socket pair, over
//! which it gets the listening sockets; when its workers are ready it sends back the inlets of their inboxes, and all
//! connections are handed over to them. If it does not come up, nothing has changed.
//!
//! From old to new: a datagram for each listening socket, what it was bound for (or that it was passed to the old one)
//! and the socket; then an empty line.
//! From new to old: a datagram for each worker of the default pool, the form of entries and an inlet; then an empty
//! line.

#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{ForkResult, Pid, execv, fork};

use super::Fleet;
use super::edition::Step;
use super::policy::slots::{self as plan, Plan};
use crate::fleet::datagram;
use crate::fleet::inbox::{FORMAT, Inbox};
use crate::fleet::listener::{self, Listen, Listener};
use crate::fleet::scoreboard;
use crate::service::notify::Notify;

/// Names the descriptor that the old executable has left for the new one.
const VARIABLE: &str = "WSHD_UPGRADE";
/// Stands for what a socket was bound for, if the service manager has bound it.
const PASSED: &[u8] = b"passed";
/// The longest datagram: a path or a name.
const DATAGRAM: usize = 8 * 1024;
/// The new executable has this long (ns) to come up; longer than its workers have.
const PATIENCE: plan::Time = 2 * plan::START;

/// How this program was started, and is started again.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The executable; by the path it was called by, so that a link may point to another one meanwhile.
    pub program: PathBuf,
    /// All arguments, the program's name first.
    pub args: Vec<OsString>,
}

impl Invocation {
    /// That of this process. To be made before the title is written over the arguments, and before the working
    /// directory changes.
    pub fn of_this_process() -> Self {
        let args: Vec<OsString> = std::env::args_os().collect();
        let called = args.first().map(PathBuf::from).filter(|program| program.components().count() > 1);
        let called = called.and_then(|program| std::path::absolute(program).ok());
        let program = called.or_else(|| std::env::current_exe().ok()).unwrap_or_default();
        Self { program, args }
    }
}

/// The new executable's end: to the one that it replaces.
#[derive(Debug)]
pub struct Predecessor(OwnedFd);

impl Predecessor {
    /// If this process was started to replace another one. To be called once, before any descriptor is opened or
    /// closed; handlers do not inherit the variable.
    pub fn from_environment() -> Option<Self> {
        let value = std::env::var(VARIABLE).ok()?;
        // SAFETY: there is one thread, which reads no variable meanwhile.
        unsafe { std::env::remove_var(VARIABLE) };
        let raw: RawFd = value.parse().ok().filter(|raw| *raw > 2)?;
        // SAFETY: the old executable has left this descriptor for us, and nobody else in this process knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
        Some(Self(fd))
    }

    /// The descriptor, which is not to be closed with the others.
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The listening sockets that go on.
    pub fn listeners(&self) -> io::Result<Vec<Arc<Listener>>> {
        setsockopt(&self.0, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
        let mut listeners = Vec::new();
        loop {
            match receive(&self.0)? {
                Some((text, Some(fd))) if text == PASSED => {
                    let listener = listener::adopt(fd, "a socket that was passed to the old server");
                    listeners.push(Arc::new(listener.map_err(io::Error::other)?));
                }
                Some((text, Some(fd))) => {
                    let listen = Listen::from_bytes(&text).ok_or(io::ErrorKind::InvalidData)?;
                    listeners.push(Arc::new(Listener::inherited(fd, listen)?));
                }
                Some(_) => return Ok(listeners),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Has the old executable hand its connections over to these.
    pub fn take_over<'a>(&self, inboxes: impl Iterator<Item = &'a Inbox>) -> io::Result<()> {
        for inbox in inboxes {
            datagram::send(self.0.as_fd(), &FORMAT.to_ne_bytes(), Some(inbox.tx()))?;
        }
        datagram::send(self.0.as_fd(), b"\n", None)
    }
}

/// The old executable's end: to the one that is to replace it.
pub(super) struct Successor {
    pub pid: Pid,
    fd: OwnedFd,
    /// When it is given up.
    pub give_up: plan::Time,
    /// Of its workers.
    txs: Vec<OwnedFd>,
    /// It has all: connections are handed over.
    pub is_serving: bool,
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Successor {
    /// Starts it.
    fn start<'a>(
        invocation: &Invocation,
        listeners: impl Iterator<Item = &'a Arc<Listener>>,
        notify: &Notify,
    ) -> io::Result<Self> {
        let text = |text: &std::ffi::OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
        let program = text(invocation.program.as_os_str())?;
        let args = invocation.args.iter().map(|arg| text(arg)).collect::<io::Result<Vec<CString>>>()?;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        for listener in listeners {
            let text = listener.asked().map_or_else(|| PASSED.to_vec(), Listen::to_bytes);
            datagram::send(ours.as_fd(), &text, Some(listener.as_fd()))?;
        }
        datagram::send(ours.as_fd(), b"\n", None)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: the supervisor has one thread, so the child may do whatever a process may do.
        match unsafe { fork()? } {
            ForkResult::Parent { child } => {
                let give_up = scoreboard::now().saturating_add(PATIENCE);
                Ok(Self { pid: child, fd: ours, give_up, txs: Vec::new(), is_serving: false })
            }
            ForkResult::Child => {
                drop(ours);
                let error = replace_image(&program, &args, theirs, notify);
                log::error!("{}: {error}", invocation.program.display());
                // SAFETY: ends the child here: what the supervisor would do at its end is not the child's.
                unsafe { libc::_exit(127) }
            }
        }
    }

    /// What it sends; true when that is all.
    fn hear(&mut self) -> Result<bool, String> {
        loop {
            match receive(&self.fd) {
                Ok(Some((form, Some(fd)))) if form == FORMAT.to_ne_bytes() => self.txs.push(fd),
                // Another form of entries: connections can not move there.
                Ok(Some((_, Some(_)))) => {}
                Ok(Some(_)) => return Ok(true),
                Ok(None) => return Err("it has ended".to_owned()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Where a worker hands its connections over to; the workers take turns. None if they can not move there.
    pub fn tx(&self, slot: usize) -> Option<BorrowedFd<'_>> {
        let index = slot.checked_rem(self.txs.len())?;
        self.txs.get(index).map(AsFd::as_fd)
    }
}

/// In the child: becomes the other program. Returns only when that fails.
fn replace_image(program: &CString, args: &[CString], fd: OwnedFd, notify: &Notify) -> io::Error {
    // SAFETY: the child has one thread, which reads no variable meanwhile.
    unsafe {
        std::env::set_var(VARIABLE, fd.as_raw_fd().to_string());
        notify.variables().iter().for_each(|(name, value)| std::env::set_var(name, value));
    }
    let prepared =
        SigSet::empty().thread_set_mask().and_then(|()| fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())));
    match prepared.and_then(|_| execv(program, args)) {
        Err(error) => error.into(),
        Ok(never) => match never {},
    }
}

impl Fleet {
    /// An upgrade is wanted.
    pub(super) fn ask_for_upgrade(&mut self) {
        self.is_upgrade_due = true;
    }

    /// Starts another executable that is to take over.
    pub(super) fn begin_upgrade(&mut self, plan: &Plan) {
        if !std::mem::take(&mut self.is_upgrade_due) {
            return;
        }
        if self.successor.is_some() {
            return log::error!("upgrade: one is on its way already");
        }
        let why = if plan.is_stopping() {
            Some("the server is told to stop")
        } else if !self.roll.is_idle() {
            Some("workers are being replaced")
        } else {
            None
        };
        if let Some(why) = why {
            return self.upgrade_done(Err(why.to_owned()));
        }
        let listeners = self.listeners.iter().chain(&self.metrics.listeners).chain(self.control.listener());
        self.scoreboard.share_sockets(true);
        match Successor::start(&self.invocation, listeners, &self.notify) {
            Ok(successor) => {
                log::info!("upgrade: {}[{}] is starting", self.invocation.program.display(), successor.pid);
                self.successor = Some(successor);
            }
            Err(error) => {
                self.scoreboard.share_sockets(false);
                let program = self.invocation.program.display();
                self.upgrade_done(Err(format!("{program} can not be started: {error}")));
            }
        }
    }

    /// Goes on with an upgrade as far as that is possible now.
    pub(super) fn go_on_with_upgrade(&mut self) {
        let Some(successor) = self.successor.as_mut().filter(|successor| !successor.is_serving) else {
            return;
        };
        match successor.hear() {
            Ok(true) => {
                successor.is_serving = true;
                self.notify.main_pid(successor.pid);
                if successor.txs.is_empty() {
                    log::warn!("upgrade: the new executable can not take up connections: they are closed");
                }
                self.call_off("another executable takes over");
                self.metrics.hand_over();
                self.control.hand_over();
                for (_, slot) in self.serving() {
                    self.roll.push(Step { start: None, retire: Some(slot) });
                }
                self.upgrade_done(Ok(()));
            }
            Ok(false) if successor.give_up > scoreboard::now() => {}
            Ok(false) => {
                // Not reaped yet, so the pid is still its own.
                let _ = kill(successor.pid, Signal::SIGTERM);
                self.fail_upgrade("it was not ready in time");
            }
            // Reaped soon, which tells more.
            Err(_) => {}
        }
    }

    /// The process that was to take over has ended, however; false if it is another one.
    pub(super) fn lose_successor(&mut self, pid: Pid, why: &str) -> bool {
        match &self.successor {
            Some(successor) if successor.pid == pid && successor.is_serving => {
                log::error!("upgrade: the new executable has taken over, and is gone: {why}");
                true
            }
            Some(successor) if successor.pid == pid => {
                self.fail_upgrade(why);
                true
            }
            _ => false,
        }
    }

    fn fail_upgrade(&mut self, why: &str) {
        let Some(successor) = self.successor.take() else { return };
        self.scoreboard.share_sockets(false);
        if let Err(error) = self.daemon.rewrite_pid_file() {
            log::error!("{error}");
        }
        let program = self.invocation.program.display();
        self.upgrade_done(Err(format!("{program}[{}]: {why}", successor.pid)));
    }

    /// An upgrade has succeeded or failed.
    fn upgrade_done(&mut self, result: Result<(), String>) {
        let result = match result {
            Ok(()) => Ok("upgrade: the new executable serves, connections are handed over".to_owned()),
            Err(why) => Err(format!("upgrade: failed, and this executable serves on: {why}")),
        };
        match &result {
            Ok(done) => log::info!("{done}"),
            Err(why) => log::error!("{why}"),
        }
        self.control.upgrade_ends(&result);
    }

    /// New connections are refused from now on, unless another executable has the sockets too.
    pub(super) fn refuse_connections(&self) {
        if !self.scoreboard.are_sockets_shared() {
            self.listeners.iter().for_each(|listener| listener.shut_down());
        }
    }

    /// Whether another executable serves in the place of this one.
    pub(super) fn has_successor(&self) -> bool {
        self.successor.as_ref().is_some_and(|successor| successor.is_serving)
    }

    /// The same, and nothing is left to be done here.
    pub(super) fn is_superseded(&self) -> bool {
        let is_empty = self.workers.iter().all(Option::is_none) && self.replaced.is_empty();
        self.has_successor() && is_empty && self.roll.is_idle()
    }

    /// All workers are ready: the old executable can hand its connections over.
    pub(super) fn take_over(&self, predecessor: &Predecessor) {
        let serving = self.serving().into_iter().filter(|(place, _)| place.pool == 0);
        let inboxes = serving.filter_map(|(_, slot)| self.inboxes.get(slot));
        if let Err(error) = predecessor.take_over(inboxes) {
            log::error!("upgrade: cannot reach the old executable: {error}");
        }
        // The old one accepts no more.
        self.scoreboard.share_sockets(false);
    }
}

/// The next datagram and what came with it; None at the end.
fn receive(fd: &OwnedFd) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut bytes = vec![0; DATAGRAM];
    let (size, with) = datagram::receive(fd.as_fd(), &mut bytes)?;
    bytes.truncate(size);
    Ok((size > 0).then_some((bytes, with)))
}
