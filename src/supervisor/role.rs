//! What a process is for. Values only; which processes there are is in `processes`.

use nix::unistd::Pid;
use strum::IntoStaticStr;

/// What the supervisor would have to wait for if it did it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Reads the configuration for a reload, finds its handlers, binds its sockets and opens its log.
    Reload,
    /// Renames files of the log, and opens them.
    OpenLogs,
    /// Looks at the files that gateways read until they have changed.
    WatchCertificates,
    /// Changes files, and hands nothing back; what the process is called.
    Tidy(&'static str),
}

impl Errand {
    pub fn name(self) -> &'static str {
        match self {
            Errand::Reload => "preparing the reload",
            Errand::OpenLogs => "opening the log",
            Errand::WatchCertificates => "watching the certificates",
            Errand::Tidy(what) => what,
        }
    }
}

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds its slot: serves there, or will as soon as it has started.
    Worker,
    /// Holds its slot, and serves one connection there. Forked by the worker of its pool with this pid.
    PerConnection(Pid),
    /// Started beside the worker that it is to replace; waits for the command to begin.
    Standby,
    /// Hands its connections over, or waits until they end; holds its slot no more.
    Draining,
    /// Crashes, and sends its connections to the inbox of its slot, which it holds no more.
    Crashed,
    /// Of the supervisor's own; holds no slot.
    Auxiliary(Kind),
    /// The same after it was replaced or told to leave: exits with its last connection.
    Leaving(Kind),
    /// Does one thing that may wait for a disk or a name server, and exits.
    Errand(Errand),
    /// The other executable of an upgrade.
    Successor,
    /// Was killed because it is not needed.
    Dismissed,
}

/// What an auxiliary process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Kind {
    /// Serves metrics over HTTP.
    Metrics,
    /// Ends TLS and HTTP/2.
    Gateway,
    /// Carries published messages between workers.
    Bus,
    /// Runs programs for requests.
    Cgi,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Metrics, Kind::Gateway, Kind::Bus, Kind::Cgi];

    /// Its name in the log and in `ps`.
    pub fn name(self) -> &'static str {
        self.into()
    }
}
