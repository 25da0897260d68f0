//! The target of the assignments in the table. Most settings are assigned to a field of the configuration; the others
//! are collected here, and `resolve` combines them.

use std::path::PathBuf;

use nix::unistd::Gid;
use strum::{EnumString, VariantNames};

use super::account::Account;
use super::{authentication, bus, tls};
use crate::config::{Cgi, Config, HandlerSettings, Landlock, Listen, ListenerSettings, Pool, Processes};

/// The settings of a scope: of the server, or of one handler, pool or listener. The fields marked "any" are those of
/// the scope; in a handler, pool or listener they default to the server's.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Server: settings that can be assigned directly.
    pub config: Config,
    /// Any: settings of a handler.
    pub handler: HandlerSettings,
    /// Any: settings of a listener.
    pub listener: ListenerSettings,
    /// Listener: its address.
    pub address: Option<Listen>,
    /// Any: limits of a pool; of the server's only `seccomp`.
    pub pool: Pool,
    /// Pool: per-connection processes.
    pub processes: Processes,
    /// Any: user of a pool.
    pub user: Option<Account>,
    /// Any: group of a pool.
    pub group: Option<Gid>,
    /// Number of workers; None: one for each core.
    pub workers: Option<usize>,
    /// Addresses to listen on, with port 0, in the order given.
    pub hosts: Vec<Listen>,
    /// Port of these addresses.
    pub port: u16,
    /// The handler directory; None: the default.
    pub handlers: Option<PathBuf>,
    /// Low watermark of send queues; None: a quarter of the high one.
    pub send_low: Option<usize>,
    /// Directory of crash records.
    pub crash_dir: Option<PathBuf>,
    /// Maximum bytes of a message in a crash record.
    pub crash_bytes: usize,
    /// File of the log.
    pub log_file: Option<PathBuf>,
    /// Destination of the log; overrides the file.
    pub log_target: Option<Target>,
    /// Socket of that destination.
    pub log_socket: Option<PathBuf>,
    /// File of the access log, or `-`.
    pub access_log: Option<PathBuf>,
    /// Whether the files of workers are restricted.
    pub landlock: bool,
    /// Files that they may use then.
    pub landlock_files: Landlock,
    /// Root directory of workers, as given.
    pub chroot: Option<PathBuf>,
    /// Any: TLS and HTTP/2 of a listener.
    pub tls: tls::Draft,
    /// User of gateways.
    pub gateway_user: Option<Account>,
    /// Group of gateways.
    pub gateway_group: Option<Gid>,
    /// Number of gateways; None: half the number of cores.
    pub gateways: Option<usize>,
    /// Server or handler: authentication.
    pub policy: authentication::Draft,
    /// Handler: no authentication.
    pub is_open: bool,
    /// Handler: further resources that it serves.
    pub resources: Vec<String>,
    /// The engine of the bus.
    pub bus: bus::Draft,
    /// CGI programs, if it has directories.
    pub cgi: Cgi,
    /// User of CGI programs.
    pub cgi_user: Option<Account>,
    /// Handler: which processes run it.
    pub isolation: Isolation,
    /// Handler: name of its pool, if given.
    pub pool_name: Option<String>,
}

impl Draft {
    /// The draft of a pool without a table.
    pub fn pool_without_table(&self) -> Self {
        let pool = Pool { seccomp: self.pool.seccomp, ..Pool::default() };
        Self { pool, ..Self::default() }
    }
}

/// Destination of the log other than a file. As a string: its name in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Target {
    /// Standard error.
    Stderr,
    /// A syslog daemon.
    Syslog,
    /// systemd-journald.
    Journald,
}

/// Which processes run a handler. As a string: its name in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Isolation {
    /// The server's workers.
    #[default]
    Shared,
    /// The workers of a pool.
    Pool,
    /// A process for each connection, in a pool.
    Connection,
}
