//! What systemd, or another service manager that speaks as it does, has to say to the server and hear from it:
//! listening sockets that are passed (sd_listen_fds(3)), and datagrams about how the server is (sd_notify(3)). Takes
//! it all out of the environment, so that no handler and no child of one gets it. Never waits: what the manager does not
//! take at once is sent again later.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::unistd::Pid;

use super::plan::Time;
use crate::fleet::scoreboard::now;

/// What the server was started with.
#[derive(Debug, Default)]
pub struct Environment {
    /// Sockets to use instead of binding, in their order; none unless some were passed.
    pub sockets: Vec<Passed>,
    /// To the service manager.
    pub notify: Notify,
}

impl Environment {
    /// The descriptors that were passed.
    pub fn raw(&self) -> impl Iterator<Item = RawFd> {
        self.sockets.iter().map(|socket| socket.fd.as_raw_fd())
    }
}

/// A descriptor that was passed. Whether it is a listening socket is for `fleet::listener` to find out.
#[derive(Debug)]
pub struct Passed {
    /// Closed on exec.
    pub fd: OwnedFd,
    /// For errors: its number, and its name if it has one.
    pub name: String,
}

/// SD_LISTEN_FDS_START
const FIRST: RawFd = 3;
/// More descriptors are not taken for real.
const MOST: RawFd = 1024;
const VARIABLES: [&str; 6] =
    ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Takes what is for this process out of the environment. Call it before anything is opened or forked, in a process with
/// one thread. The error names the variable or the descriptor.
pub fn take() -> Result<Environment, String> {
    let [fds, pid, names, socket, watchdog, watchdog_pid] = VARIABLES.map(std::env::var_os);
    for variable in VARIABLES {
        // SAFETY: one thread, as promised: nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(variable) };
    }
    let own = std::process::id().to_string();
    let is_ours = |pid: &Option<OsString>| pid.as_ref().is_some_and(|pid| pid.as_bytes() == own.as_bytes());
    let count = match fds.filter(|_| is_ours(&pid)) {
        None => 0,
        Some(fds) => fds
            .to_str()
            .and_then(|text| text.parse().ok())
            .filter(|count| (0..=MOST).contains(count))
            .ok_or_else(|| format!("LISTEN_FDS={}: expected a number up to {MOST}", fds.display()))?,
    };
    let names = names.unwrap_or_default();
    let names: Vec<_> = names.to_str().unwrap_or_default().split(':').collect();
    let sockets = (FIRST..FIRST + count).zip(names.into_iter().chain(std::iter::repeat("")));
    let sockets = sockets.map(|(number, name)| {
        let name = match name {
            "" => format!("descriptor {number} of LISTEN_FDS"),
            name => format!("descriptor {number} ({name}) of LISTEN_FDS"),
        };
        match claim(number) {
            Ok(fd) => Ok(Passed { fd, name }),
            Err(error) => Err(format!("{name}: {error}")),
        }
    });
    let watchdog = watchdog.filter(|_| watchdog_pid.is_none() || is_ours(&watchdog_pid));
    let watchdog = watchdog.and_then(|usec| usec.to_str()?.parse::<Time>().ok());
    let notify = socket.map_or_else(Notify::default, |socket| Notify::new(socket, watchdog));
    Ok(Environment { sockets: sockets.collect::<Result<_, _>>()?, notify })
}

/// Makes an inherited descriptor ours, if there is one of this number.
fn claim(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: sets a flag of a descriptor of which nobody in this process knows yet.
    nix::errno::Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, as fcntl has just shown, was passed to this process, and is claimed once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// sd_notify(3): a path, or with `@` a name in the abstract namespace. Anything else, such as the host of a virtual
/// machine, is not spoken to.
fn address(text: &OsString) -> Option<SocketAddr> {
    match text.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(text).ok(),
        _ => None,
    }
}

/// The way to the service manager. Does nothing if there is none.
#[derive(Debug, Default)]
pub struct Notify {
    address: Option<SocketAddr>,
    /// How often (ns) the manager wants to hear from us.
    watchdog: Option<Time>,
    /// Where all this comes from.
    variables: Vec<(&'static str, OsString)>,
    /// When it hears from us next.
    ping_at: Time,
    /// At most [`UNSENT`]; the oldest are given up.
    unsent: VecDeque<String>,
    is_stopping: bool,
}

/// Messages that are kept until they can be sent.
const UNSENT: usize = 8;
/// When (ns) to try again.
const AGAIN: Time = 100_000_000;

impl Notify {
    fn new(socket: OsString, watchdog_usec: Option<Time>) -> Self {
        let Some(address) = address(&socket) else { return Self::default() };
        let watchdog_usec = watchdog_usec.filter(|usec| *usec > 0);
        let mut variables = vec![("NOTIFY_SOCKET", socket)];
        variables.extend(watchdog_usec.map(|usec| ("WATCHDOG_USEC", usec.to_string().into())));
        // Half the time, as sd_watchdog_enabled(3) recommends; below a millisecond it would only be busy.
        let watchdog = watchdog_usec.map(|usec| usec.saturating_mul(1000 / 2).max(1_000_000));
        Self { address: Some(address), watchdog, variables, ..Self::default() }
    }

    /// The environment of a process that is to be the main one.
    pub fn variables(&self) -> &[(&'static str, OsString)] {
        &self.variables
    }

    /// The server serves, for the first time or after [`reloading`](Self::reloading). This process is the main one. Not
    /// said after [`stopping`](Self::stopping).
    pub fn ready(&mut self, status: &str) {
        if self.is_stopping {
            return;
        }
        self.send(format!("READY=1\nMAINPID={}\nSTATUS={}", std::process::id(), line(status)));
    }

    /// The configuration is being read anew; to be followed by [`ready`](Self::ready), whatever comes of it.
    pub fn reloading(&mut self) {
        // CLOCK_MONOTONIC, as now() is.
        self.send(format!("RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=Reloading", now() / 1000));
    }

    /// Something for people who ask how the server is.
    pub fn status(&mut self, status: &str) {
        self.send(format!("STATUS={}", line(status)));
    }

    /// The server is about to leave. Only the first call tells it.
    pub fn stopping(&mut self) {
        if !std::mem::replace(&mut self.is_stopping, true) {
            self.send("STOPPING=1\nSTATUS=Stopping".to_owned());
        }
    }

    /// Another process is the main one from now on: an upgrade.
    pub fn main_pid(&mut self, pid: Pid) {
        self.send(format!("MAINPID={pid}"));
    }

    /// When [`turn`](Self::turn) is to be called next, if at all.
    pub fn due(&self) -> Option<Time> {
        let again = (!self.unsent.is_empty()).then(|| now().saturating_add(AGAIN));
        self.watchdog.map(|_| self.ping_at).into_iter().chain(again).min()
    }

    /// Says that the supervisor's loop turns, if it is time to, and sends what could not be sent.
    pub fn turn(&mut self, now: Time) {
        if let Some(interval) = self.watchdog.filter(|_| self.ping_at <= now) {
            self.ping_at = now.saturating_add(interval);
            self.send("WATCHDOG=1".to_owned());
        } else if !self.unsent.is_empty() {
            self.send_all();
        }
    }

    fn send(&mut self, message: String) {
        if self.address.is_none() {
            return;
        }
        if self.unsent.len() == UNSENT {
            self.unsent.pop_front();
        }
        self.unsent.push_back(message);
        self.send_all();
    }

    fn send_all(&mut self) {
        let Some(address) = &self.address else { return };
        while let Some(message) = self.unsent.front() {
            match send_to(address, message) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => log::warn!("the service manager can not be told {message:?}: {error}"),
                Ok(()) => {}
            }
            self.unsent.pop_front();
        }
    }
}

/// A socket for each message: no worker and no child of a handler gets one that stays open.
fn send_to(address: &SocketAddr, message: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message.as_bytes(), address).map(drop)
}

/// A line of its own: what follows a line break would be another assignment.
fn line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A service manager and the way to it.
    fn manager(watchdog: Option<Time>) -> (UnixDatagram, Notify, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        (socket, Notify::new(path.into(), watchdog), dir)
    }

    fn heard(manager: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 4096];
        let size = manager.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..size].to_vec()).unwrap())
    }

    #[test]
    fn what_is_said() {
        let (manager, mut notify, _dir) = manager(None);
        notify.ready("serving\nREADY=0");
        let own = std::process::id();
        assert_eq!(heard(&manager).unwrap(), format!("READY=1\nMAINPID={own}\nSTATUS=serving READY=0"));
        let before = now() / 1000;
        notify.reloading();
        let text = heard(&manager).unwrap();
        let rest = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        let usec: u64 = rest.strip_suffix("\nSTATUS=Reloading").unwrap().parse().unwrap();
        assert!((before..=now() / 1000).contains(&usec));
        notify.status("busy");
        notify.main_pid(Pid::from_raw(7));
        notify.stopping();
        notify.stopping();
        let rest: Vec<String> = std::iter::from_fn(|| heard(&manager)).collect();
        assert_eq!(rest, ["STATUS=busy", "MAINPID=7", "STOPPING=1\nSTATUS=Stopping"]);
        assert_eq!(notify.due(), None, "no watchdog, nothing left");
    }

    #[test]
    fn the_watchdog_hears_from_us_twice_in_its_time() {
        let (manager, mut notify, _dir) = manager(Some(3_000_000));
        assert_eq!(notify.due(), Some(0));
        notify.turn(10);
        assert_eq!(heard(&manager).unwrap(), "WATCHDOG=1");
        let next = 10 + 1_500_000_000; // half of 3 s
        assert_eq!(notify.due(), Some(next));
        notify.turn(next - 1);
        assert_eq!(heard(&manager), None);
        notify.turn(next);
        assert_eq!(heard(&manager).unwrap(), "WATCHDOG=1");
    }

    #[test]
    fn a_manager_that_is_busy_hears_it_later() {
        let (manager, mut notify, _dir) = manager(None);
        let filler = UnixDatagram::unbound().unwrap();
        filler.set_nonblocking(true).unwrap();
        let full =
            (0..100_000).find(|_| filler.send_to_addr(b"x", notify.address.as_ref().unwrap()).is_err());
        assert!(full.is_some());
        for number in 0..UNSENT + 2 {
            notify.status(&number.to_string());
        }
        assert!(notify.due().unwrap() > now());
        while heard(&manager).is_some() {}
        notify.turn(now());
        let texts: Vec<String> = std::iter::from_fn(|| heard(&manager)).collect();
        let expected = (2..UNSENT + 2).map(|number| format!("STATUS={number}"));
        assert_eq!(texts, expected.collect::<Vec<_>>(), "the oldest are given up");
        assert_eq!(notify.due(), None);
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let mut notify = Notify::new("vsock:2:1".into(), Some(1_000_000));
        notify.ready("x");
        assert_eq!((notify.due(), notify.unsent.len(), notify.variables().len()), (None, 0, 0));
    }

    #[test]
    fn where_the_manager_is() {
        let text = |text: &str| address(&text.into());
        assert_eq!(text("@name").unwrap().as_abstract_name(), Some(&b"name"[..]));
        assert_eq!(text("/run/x").unwrap().as_pathname(), Some("/run/x".as_ref()));
        for other in ["run/x", "", "vsock:2:1"] {
            assert!(text(other).is_none(), "{other}");
        }
    }
}
