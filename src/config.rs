//! The configuration, parsed and validated. This module reads no files, arguments or environment, and has no defaults:
//! `settings` builds the [`Config`].

pub mod bus;
pub mod drain;
mod fixed;
pub mod gateway;
mod pool;
pub mod secret;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use nix::unistd::Gid;

use crate::auth::Authentication;
use crate::log::{Level, Settings as LogSettings};
use crate::proto;
use crate::proto::http1::allow::{HostRule, OriginRule};

use self::drain::Drain;
use self::gateway::Gateway;
pub use self::pool::{Pool, Processes};
pub use crate::cgi::Cgi;
pub use crate::fleet::sockets::listener::{Binding, Listen};
pub use crate::proto::ws::handshake::Unmatched;

/// Descriptors of a worker that are not connections: standard streams, listeners, epoll, inbox, log, and those that
/// handlers open.
pub const RESERVED_DESCRIPTORS: u64 = 64;
/// Descriptors that a worker keeps in reserve for receiving from other processes.
pub const SPARE_DESCRIPTORS: usize = 16;

/// Bounds beyond which a worker is replaced; 0: unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wear {
    /// Resident memory; bytes.
    pub memory: u64,
    /// Age.
    pub age: Duration,
    /// Messages received.
    pub messages: u64,
}

impl Wear {
    /// Whether there is any bound.
    pub fn is_bounded(&self) -> bool {
        self.memory != 0 || !self.age.is_zero() || self.messages != 0
    }
}

/// When a handler is quarantined because workers die in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quarantine {
    /// Number of deaths; 0: never.
    pub deaths: u32,
    /// Time within which they are counted; never zero.
    pub window: Duration,
    /// Duration of the first quarantine, doubled for each further one; never zero.
    pub time: Duration,
}

/// Records of crashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashRecords {
    /// Directory of the records.
    pub dir: PathBuf,
    /// Maximum bytes of a message in a record.
    pub bytes: usize,
}

/// The socket for `wshd ctl`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Its path, if there is one.
    pub socket: Option<PathBuf>,
    /// The group that may use it besides root and the server's user.
    pub group: Option<Gid>,
}

/// Daemon settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Daemon {
    /// Whether the server runs in the background.
    pub detach: bool,
    /// File with the pid of the supervisor.
    pub pid_file: Option<PathBuf>,
    /// Name of this server in process titles.
    pub instance: Option<String>,
    /// Root directory of workers, a real path: handlers and document root are below it.
    pub chroot: Option<PathBuf>,
}

/// Limits on connections and their rates, over all processes; 0: unlimited.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    /// Maximum connections.
    pub total: u32,
    /// Maximum connections per address.
    pub per_address: u32,
    /// Maximum new connections per address and second; at most 65,535.
    pub handshakes: u32,
    /// Hosts that requests may be for; empty: all.
    pub hosts: Vec<HostRule>,
    /// Trusted proxies.
    pub proxy: Proxy,
}

/// Proxies that are trusted to send client addresses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proxy {
    /// Proxies with these addresses.
    pub networks: Vec<IpNet>,
    /// Proxies on Unix sockets.
    pub unix: bool,
}

impl Proxy {
    /// Whether any proxy is trusted.
    pub fn is_any(&self) -> bool {
        self.unix || !self.networks.is_empty()
    }

    /// Whether a peer is trusted; `None`: a peer on a Unix socket.
    pub fn trusts(&self, peer: Option<IpAddr>) -> bool {
        match peer.map(|ip| ip.to_canonical()) {
            Some(ip) => self.networks.iter().any(|network| network.contains(&ip)),
            None => self.unix,
        }
    }
}

/// Watermarks of send queues; bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sending {
    /// High watermark: the queue of a connection is full.
    pub high: usize,
    /// Low watermark: a full queue has drained; at most `high`.
    pub low: usize,
    /// Size of all queues of a worker above which their watermarks are lowered; 0: never.
    pub total: u64,
}

/// Memory of all connections of a worker; bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Maximum for incomplete messages; 0: unlimited.
    pub receive_total: u64,
}

/// Compression contexts that are kept between messages (RFC 7692 section 7.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    /// Maximum bytes of all contexts of a worker, above which the longest idle are dropped; 0: unlimited.
    pub total: u64,
    /// Idle time after which a context is dropped; zero: never.
    pub idle: Duration,
}

/// Bounds of topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicBounds {
    /// Topics of a connection.
    pub per_connection: u32,
    /// Topics of a worker.
    pub topics: u32,
    /// Bytes in the queue from a worker to the bus.
    pub queue: u64,
    /// Bytes in the queue from the bus to a worker.
    pub worker_queue: u64,
    /// Bytes of messages that the bus keeps for moving connections.
    pub history: u64,
    /// How long it keeps them.
    pub history_time: Duration,
}

/// Files that confined workers may use, besides those that they need.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Landlock {
    /// May be read.
    pub read: Vec<PathBuf>,
    /// May be read and written.
    pub write: Vec<PathBuf>,
}

/// Settings of a listener.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListenerSettings {
    /// How the socket is bound.
    pub binding: Binding,
    /// Whether trusted proxies send a PROXY header first.
    pub proxy_protocol: bool,
    /// Which clients are served the console.
    pub console: Console,
}

/// Which clients are served the console, a page that lists all resources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Console {
    /// Clients on this machine, not through a proxy.
    #[default]
    Local,
    /// All clients.
    Always,
    /// No clients.
    Never,
}

/// Settings of a handler; those that its table lacks are the server's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HandlerSettings {
    /// Bounds of an open connection.
    pub limits: proto::ws::limits::Limits,
    /// Maximum connections in all workers together, if limited.
    pub connections: Option<u32>,
    /// Maximum messages of a peer per second; 0: unlimited.
    pub message_rate: u32,
    /// Maximum bytes of messages of a peer per second; 0: unlimited.
    pub byte_rate: u64,
    /// How long it may run without calling the host before its worker is killed; zero: forever.
    pub timeout: Duration,
    /// Time over which its connections that cannot move are closed when their worker is replaced; None: they stay until
    /// they end.
    pub drain: Option<Duration>,
    /// How permessage-deflate is negotiated, unless the handler overrides it.
    pub deflate: proto::ws::deflate::negotiate::Config,
    /// Allowed origins; empty: all.
    pub origins: Vec<OriginRule>,
    /// The name under which it shares topics with other handlers, if any.
    pub topics: Option<String>,
    /// Minimum level of its own log lines, if it differs from the server's. Above info, its connections are not in the
    /// access log.
    pub log_level: Option<Level>,
    /// Whether a handshake is refused if it offers subprotocols and the handler chooses none.
    pub subprotocol: Unmatched,
    /// Whether it may send raw octets.
    pub raw: bool,
}

impl HandlerSettings {
    /// The same, with the maximum of a frame lowered to that of a message.
    pub fn normalized(mut self) -> Self {
        self.limits.frame = self.limits.frame.min(self.limits.message);
        self
    }
}

/// The configuration of a generation. Built before the first fork of its processes, and never changed after.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// The configuration file, if one was read.
    pub file: Option<PathBuf>,
    /// The configuration as TOML, without secrets.
    pub effective: Arc<str>,
    /// Warnings about ignored settings.
    pub ignored: Vec<String>,
    /// Addresses to listen on, in the order given; never empty.
    pub listen: Vec<Listen>,
    /// The gateways, and those listeners that they accept from.
    pub gateway: Gateway,
    /// The handler directory.
    pub handlers: PathBuf,
    /// Directory below [`Config::handlers`] to which the search is limited; resources stay relative to `handlers`.
    pub scan_dir: Option<PathBuf>,
    /// File of aliases, see `handlers::alias`.
    pub map_file: Option<PathBuf>,
    /// Whether a handler's real path may be outside the handler directory.
    pub allow_outside: bool,
    /// Whether an unusable handler or alias is an error instead of a warning.
    pub strict_handlers: bool,
    /// Path of health checks, if enabled; begins with a slash.
    pub health: Option<Box<str>>,
    /// Directory of static files; None: there are none.
    pub document_root: Option<PathBuf>,
    /// CGI programs below it, if there are any.
    pub cgi: Option<Cgi>,
    /// Host and port required in absolute request targets, if set (otherwise 421).
    pub validation: (Option<String>, Option<u16>),
    /// Number of workers, at least 1.
    pub workers: usize,
    /// Settings of listeners without a table.
    pub listener: ListenerSettings,
    /// Settings of listeners with a table.
    pub listener_of: Vec<(Listen, ListenerSettings)>,
    /// Maximum connections per worker.
    pub connections: u32,
    /// Maximum connections per worker to blocking handlers, each of which has a thread.
    pub threads: u32,
    /// Bounds of a request head.
    pub head: proto::http1::head::HeadLimits,
    /// Time from accept to the end of the opening handshake; never zero.
    pub handshake_timeout: Duration,
    /// Bounds of compression contexts.
    pub contexts: Contexts,
    /// Watermarks of send queues.
    pub sending: Sending,
    /// Bounds on memory of all connections of a worker.
    pub memory: Memory,
    /// Bounds beyond which a worker is replaced.
    pub wear: Wear,
    /// When handlers are quarantined.
    pub quarantine: Quarantine,
    /// Where crashes are recorded, if they are.
    pub crash_records: Option<CrashRecords>,
    /// The socket for `wshd ctl`.
    pub control: Control,
    /// Limits on connections.
    pub admission: Admission,
    /// Which requests must be authenticated.
    pub authentication: Authentication,
    /// Files that workers may use, if these are restricted.
    pub landlock: Option<Landlock>,
    /// Settings of handlers without a table.
    pub handler: HandlerSettings,
    /// Settings of handlers with a table, by resource.
    pub handler_of: BTreeMap<String, HandlerSettings>,
    /// How long a blocking handler may wait without calling the host before its worker is killed; zero: forever.
    pub handler_wait_timeout: Duration,
    /// A worker whose event loop hangs for this time, outside of handlers, is killed; zero: never.
    pub worker_timeout: Duration,
    /// How long a request waits for a process of its own; zero: not at all.
    pub process_timeout: Duration,
    /// Time for workers to exit after the command to stop.
    pub stop_timeout: Duration,
    /// How the server drains before it stops.
    pub drain: Drain,
    /// Address of the metrics, if they are served.
    pub metrics: Option<Listen>,
    /// Bounds of topics.
    pub topics: TopicBounds,
    /// The engine that shares topics with other machines, if there is one.
    pub bus: Option<Arc<bus::Engine>>,
    /// Daemon settings.
    pub daemon: Daemon,
    /// Settings of the log and the access log.
    pub log: LogSettings,
    /// Further resources, which may end in `/*`, and the resource of the handler that serves them.
    pub resources: BTreeMap<String, String>,
    /// Whether a breach of the contract of `ws_handler.h` aborts the worker.
    pub strict_abi: bool,
    /// The handlers' own settings, by resource.
    pub settings: BTreeMap<String, Vec<(String, String)>>,
    /// The pools of workers; the first is the default pool, with [`Config::workers`].
    pub pools: Vec<Pool>,
    /// The pool number of each handler with a table, by resource.
    pub isolation: BTreeMap<String, usize>,
}

impl Config {
    /// The number of the pool that serves this resource, which is [`Route::resource`](crate::fleet::routes::Route)
    /// of a handler, not an alias.
    pub fn pool_of(&self, resource: &str) -> usize {
        self.isolation.get(resource).copied().unwrap_or(0)
    }

    /// The same, with the settings and secrets of the handlers of this pool only, and without those of the bus.
    pub fn with_settings_of(&self, pool: Option<usize>) -> Self {
        let mut config = Config { bus: None, ..self.clone() };
        let is_theirs = |resource: &str| Some(self.pool_of(resource)) == pool;
        config.settings.retain(|resource, _| is_theirs(resource));
        // Pool 0 also serves other requests, and handlers without a table.
        let has_no_policy = |resource: &String| !self.authentication.of.contains_key(resource);
        let needs_policy = pool == Some(0)
            || self.isolation.keys().any(|resource| is_theirs(resource) && has_no_policy(resource));
        config.authentication.of.retain(|resource, _| is_theirs(resource));
        config.authentication.all = config.authentication.all.filter(|_| needs_policy);
        config
    }

    /// The same, with pools numbered as in `before`: a pool keeps its number, and a removed one has no workers.
    pub fn following(mut self, before: &Config) -> Self {
        let gone = before.pools.iter().map(|pool| Pool { workers: 0, ..pool.clone() });
        let mut pools: Vec<Pool> = gone.collect();
        let mut numbers = Vec::new();
        for pool in std::mem::take(&mut self.pools) {
            let number = pools.iter().position(|old| old.name == pool.name).unwrap_or(pools.len());
            match pools.get_mut(number) {
                Some(old) => *old = pool,
                None => pools.push(pool),
            }
            numbers.push(number);
        }
        self.pools = pools;
        for number in self.isolation.values_mut() {
            *number = numbers.get(*number).copied().unwrap_or_default();
        }
        self
    }

    /// The settings of this handler.
    pub fn handler(&self, resource: &str) -> &HandlerSettings {
        self.handler_of.get(resource).unwrap_or(&self.handler)
    }

    /// The settings of the listener at an address; `None`: of a socket passed by the service manager.
    pub fn listener(&self, asked: Option<&Listen>) -> &ListenerSettings {
        let own = self.listener_of.iter().find(|(listen, _)| Some(listen) == asked);
        own.map_or(&self.listener, |(_, settings)| settings)
    }

    /// The settings of all listeners.
    pub fn listeners(&self) -> impl Iterator<Item = &ListenerSettings> {
        self.listen.iter().map(|listen| self.listener(Some(listen)))
    }

    /// The scope of a handler's topics: a name that does not begin with a slash, or its resource.
    pub fn scope_of<'a>(&'a self, resource: &'a str) -> &'a str {
        self.handler(resource).topics.as_deref().unwrap_or(resource)
    }

    /// The path of a file for workers: relative to their root, if it is changed.
    pub fn inside<'a>(&self, path: &'a Path) -> Cow<'a, Path> {
        let below = self.daemon.chroot.as_ref().and_then(|root| path.strip_prefix(root).ok());
        below.map_or(Cow::Borrowed(path), |below| Cow::Owned(Path::new("/").join(below)))
    }

    /// Descriptors of a worker that are not connections, including the inboxes of all per-connection processes.
    pub fn reserved_descriptors(&self) -> u64 {
        let children =
            self.pools.iter().filter_map(|pool| pool.children).map(|children| children.most as u64);
        RESERVED_DESCRIPTORS + SPARE_DESCRIPTORS as u64 + children.sum::<u64>()
    }

    /// Whether each connection of this pool has a process of its own.
    pub fn is_per_connection(&self, pool: usize) -> bool {
        self.pools.get(pool).is_some_and(|pool| pool.children.is_some())
    }

    /// Whether this worker is the parent of per-connection processes, and serves no connections itself.
    pub fn is_parent(&self, pool: u16, number: u16) -> bool {
        number == 0 && self.is_per_connection(pool.into())
    }

    /// The name of a worker in titles and logs.
    pub fn worker_name(&self, pool: u16, number: u16) -> String {
        if self.is_parent(pool, number) {
            return format!("parent {}", self.pools.get(usize::from(pool)).map_or("", |pool| &pool.name));
        }
        let pool = self.pools.get(usize::from(pool)).map_or("default", |pool| &pool.name);
        format!("worker {pool}/{number}")
    }

    /// The number of the pool of this name.
    pub fn pool(&self, name: &str) -> Option<usize> {
        self.pools.iter().position(|pool| pool.name == name)
    }

    /// Number of workers of all pools.
    pub fn all_workers(&self) -> usize {
        self.pools.iter().map(|pool| pool.workers).sum()
    }
}
