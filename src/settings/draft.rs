//! What the entries of the table assign. Most go to the field of the configuration at once; the others are here until
//! all are known, and `resolve` makes one of them.

use std::path::PathBuf;

use nix::unistd::Gid;

use super::account::Account;
use super::value::Host;
use super::{authentication, bus, tls};
use crate::config::{Cgi, Config, HandlerSettings, Listen, ListenerSettings, Pool, Processes};

/// A configuration in the making, of the server, of a handler or of a pool.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Of the server: what needs no further thought.
    pub config: Config,
    /// Of the handler, or the server's for those that say nothing else.
    pub handler: HandlerSettings,
    /// Of the listener, or the server's for those that say nothing else.
    pub listener: ListenerSettings,
    /// Of the listener: where.
    pub address: Option<Listen>,
    /// Of the pool: limits. Of the server: what pools have that say nothing else.
    pub pool: Pool,
    /// Of the pool: processes for each connection.
    pub processes: Processes,
    /// Of a pool, or the server's for those that say nothing else.
    pub user: Option<Account>,
    /// The same.
    pub group: Option<Gid>,
    /// Of the server; None: one for each core.
    pub workers: Option<usize>,
    /// Addresses without ports, in the order given.
    pub hosts: Vec<Host>,
    /// Of all of them.
    pub port: u16,
    /// The handler directory; None: one beside the program.
    pub handlers: Option<PathBuf>,
    /// The lower mark of send queues; None: a quarter of the upper.
    pub send_low: Option<usize>,
    /// Where crash records are written.
    pub crash_dir: Option<PathBuf>,
    /// Most bytes of a message in one.
    pub crash_bytes: usize,
    /// A file for the log.
    pub log_file: Option<PathBuf>,
    /// Where the log goes instead.
    pub log_target: Option<Target>,
    /// The socket of that.
    pub log_socket: Option<PathBuf>,
    /// A file for the access log, or `-`.
    pub access_log: Option<PathBuf>,
    /// Whether workers are confined.
    pub landlock: bool,
    /// What they may read then.
    pub landlock_read: Vec<PathBuf>,
    /// What they may write then.
    pub landlock_write: Vec<PathBuf>,
    /// The root directory of workers, as given.
    pub chroot: Option<PathBuf>,
    /// Of a listener, or the server's for those that say nothing else: what its connections begin with.
    pub tls: tls::Draft,
    /// The user that gateways run as.
    pub gateway_user: Option<Account>,
    /// With this group.
    pub gateway_group: Option<Gid>,
    /// Number of gateways; None: half as many as cores.
    pub gateways: Option<usize>,
    /// Of the server or of a handler: who has to prove who they are.
    pub policy: authentication::Draft,
    /// Of a handler: nobody is asked.
    pub is_open: bool,
    /// Of a handler: further resources that it serves.
    pub resources: Vec<String>,
    /// The engine behind the bus.
    pub bus: bus::Draft,
    /// Programs, if it has directories of them.
    pub cgi: Cgi,
    /// The user that they run as.
    pub cgi_user: Option<Account>,
    /// Of a handler: whose processes run it.
    pub isolation: Isolation,
    /// Of a handler: its pool, if it is named.
    pub pool_name: Option<String>,
}

impl Draft {
    /// A pool whose table says nothing, with this server.
    pub fn pool_without_table(&self) -> Self {
        let pool = Pool { seccomp: self.pool.seccomp, ..Pool::default() };
        Self { pool, ..Self::default() }
    }
}

/// Where the log goes if not to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard error.
    Stderr,
    /// A syslog daemon.
    Syslog,
    /// systemd-journald.
    Journald,
}

/// Whose processes run a handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// The server's workers.
    #[default]
    Shared,
    /// Workers of a pool.
    Pool,
    /// A process for each connection, of a pool.
    Connection,
}
