//! Notifying systemd, or another service manager with the same interface, of the state of the server (sd_notify(3)).
//! Takes the address out of the environment, so that no handler and no child of one gets it. Never waits: what the
//! manager does not take at once is sent again later. The crate sd-notify waits, and reads the address from the
//! environment for each message.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::unistd::Pid;

use crate::clock::now;
use crate::time::Instant;

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
    /// How often the manager wants to hear from us.
    watchdog: Option<Duration>,
    /// Where all this comes from: the environment of a process that is to be the main one.
    pub variables: Vec<(&'static str, OsString)>,
    /// When it hears from us next.
    ping_at: Instant,
    /// At most [`UNSENT`]; the oldest are given up.
    unsent: VecDeque<String>,
    is_stopping: bool,
    /// Another process is the main one: what this one does is not the state of the service.
    is_silent: bool,
}

/// Messages that are kept until they can be sent.
const UNSENT: usize = 8;
/// For what a stop takes beyond the time that workers have.
const MARGIN: Duration = Duration::from_secs(5);
/// That the supervisor's loop turns.
const PING: &str = "WATCHDOG=1";
/// When to try again.
const AGAIN: Duration = Duration::from_millis(100);

impl Notify {
    /// To the manager that the environment names, which is taken out of it. Call it in a process with one thread only.
    pub fn from_environment() -> Self {
        let [socket, usec, pid] =
            ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"].map(super::take_variable);
        let usec = usec.filter(|_| pid.is_none() || super::names_this_process(&pid));
        let usec = usec.and_then(|usec| usec.to_str()?.parse::<u64>().ok());
        socket.map_or_else(Self::default, |socket| Self::new(socket, usec))
    }

    fn new(socket: OsString, watchdog_usec: Option<u64>) -> Self {
        let Some(address) = address(&socket) else { return Self::default() };
        let watchdog_usec = watchdog_usec.filter(|usec| *usec > 0);
        let mut variables = vec![("NOTIFY_SOCKET", socket)];
        variables.extend(watchdog_usec.map(|usec| ("WATCHDOG_USEC", usec.to_string().into())));
        // Half the time, as sd_watchdog_enabled(3) recommends; below a millisecond it would only be busy.
        let watchdog =
            watchdog_usec.map(|usec| Duration::from_micros(usec / 2).max(Duration::from_millis(1)));
        Self { address: Some(address), watchdog, variables, ..Self::default() }
    }

    /// The server serves, or a reload has ended, with success or not. This process is the main one.
    pub fn ready(&mut self, status: &str) {
        if self.is_stopping {
            return;
        }
        self.send(format!("READY=1\nMAINPID={}\nSTATUS={}", std::process::id(), line(status)));
    }

    /// A reload of a server that is ready begins; to be followed by [`ready`](Self::ready).
    pub fn reloading(&mut self) {
        // CLOCK_MONOTONIC, as now() is.
        self.send(format!("RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=Reloading", now().as_nanos() / 1000));
    }

    /// A line for systemctl status.
    pub fn status(&mut self, status: &str) {
        self.send(format!("STATUS={}", line(status)));
    }

    /// The server is about to leave, which may take so long. Only the first call tells it.
    pub fn stopping(&mut self, within: Duration) {
        if !std::mem::replace(&mut self.is_stopping, true) {
            let usec = (within + MARGIN).as_micros();
            self.send(format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={usec}\nSTATUS=Stopping"));
        }
    }

    /// Stopping takes so long from now on, not as long as was said before.
    pub fn extend(&mut self, within: Duration) {
        self.send(format!("EXTEND_TIMEOUT_USEC={}", (within + MARGIN).as_micros()));
    }

    /// From now on this is the main process: the new one of an upgrade, or ours again when that has failed.
    pub fn main_pid(&mut self, pid: Pid) {
        self.is_silent = false;
        self.send(format!("MAINPID={pid}"));
        self.is_silent = pid != Pid::this();
    }

    /// Whether another process is the main one for now, which this one is to replace.
    pub fn set_silent(&mut self, is_silent: bool) {
        self.is_silent = is_silent;
    }

    /// When [`turn`](Self::turn) is to be called next, if at all.
    pub fn due(&self) -> Option<Instant> {
        let again = (!self.unsent.is_empty()).then(|| now() + AGAIN);
        self.watchdog.map(|_| self.ping_at).into_iter().chain(again).min()
    }

    /// Says that the supervisor's loop turns, if it is time to, and sends what could not be sent.
    pub fn turn(&mut self, now: Instant) {
        if let Some(interval) = self.watchdog.filter(|_| self.ping_at <= now) {
            self.ping_at = now + interval;
            // One that could not be sent yet makes way: it must not push out other messages.
            self.unsent.retain(|message| message != PING);
            self.send(PING.to_owned());
        } else if !self.unsent.is_empty() {
            self.send_all();
        }
    }

    fn send(&mut self, message: String) {
        if self.address.is_none() || self.is_silent {
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
                Err(error) => log::warn!("cannot notify the service manager of {message:?}: {error}"),
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
    fn manager(watchdog: Option<u64>) -> (UnixDatagram, Notify, tempfile::TempDir) {
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
        let before = now().as_nanos() / 1000;
        notify.reloading();
        let text = heard(&manager).unwrap();
        let rest = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        let usec: u64 = rest.strip_suffix("\nSTATUS=Reloading").unwrap().parse().unwrap();
        assert!((before..=now().as_nanos() / 1000).contains(&usec));
        notify.status("busy");
        notify.main_pid(Pid::from_raw(7));
        notify.ready("no reload while there is another main process");
        notify.main_pid(Pid::this());
        notify.stopping(Duration::from_secs(10));
        notify.stopping(Duration::from_secs(10));
        let rest: Vec<String> = std::iter::from_fn(|| heard(&manager)).collect();
        assert_eq!(
            rest,
            [
                "STATUS=busy",
                "MAINPID=7",
                &format!("MAINPID={own}"),
                "STOPPING=1\nEXTEND_TIMEOUT_USEC=15000000\nSTATUS=Stopping"
            ]
        );
        assert_eq!(notify.due(), None, "no watchdog, nothing left");
    }

    #[test]
    fn the_watchdog_hears_from_us_twice_in_its_time() {
        let (manager, mut notify, _dir) = manager(Some(3_000_000));
        let start = Instant::from_nanos(10);
        assert_eq!(notify.due(), Some(Instant::default()));
        notify.turn(start);
        assert_eq!(heard(&manager).unwrap(), "WATCHDOG=1");
        let next = start + Duration::from_millis(1500); // half of 3 s
        assert_eq!(notify.due(), Some(next));
        notify.turn(Instant::from_nanos(next.as_nanos() - 1));
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
    fn pings_that_are_not_read_push_nothing_out() {
        let (manager, mut notify, _dir) = manager(Some(2));
        notify.ready("serving");
        for second in 1..100 {
            notify.turn(Instant::from_seconds(second));
        }
        notify.reloading();
        let mut texts: Vec<String> = Vec::new();
        while let Some(text) = heard(&manager) {
            texts.push(text);
            notify.send_all();
        }
        assert!(texts[0].starts_with("READY=1"), "{texts:?}");
        assert!(texts.iter().any(|text| text.starts_with("RELOADING=1")), "{texts:?}");
        assert!(notify.unsent.is_empty() && texts.len() < 99);
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let mut notify = Notify::new("vsock:2:1".into(), Some(1_000_000));
        notify.ready("x");
        assert_eq!((notify.due(), notify.unsent.len(), notify.variables.len()), (None, 0, 0));
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
