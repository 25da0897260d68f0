//! Everything a process needs to know, already parsed into types that cannot be wrong. Reads no file, no argument and no
//! environment, and has no defaults: `settings` does, and hands over a finished [`Config`].

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
pub use crate::fleet::listener::{Binding, Listen};
pub use crate::proto::ws::handshake::Unmatched;

/// Descriptors of a worker that are not connections: standard streams, listeners, epoll, inbox, log, and what
/// a handler opens.
pub const RESERVED_DESCRIPTORS: u64 = 64;
/// Descriptors that a worker keeps for what comes from other processes when there are no others.
pub const SPARE_DESCRIPTORS: usize = 16;

/// What a worker may use up before it is replaced; 0: as much as it wants.
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

/// When a handler in which workers die is not served for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quarantine {
    /// Deaths that are too many; 0: never.
    pub deaths: u32,
    /// Within this time; never zero.
    pub window: Duration,
    /// The first time that it is not served, which doubles with each further one; never zero.
    pub time: Duration,
}

/// Records of crashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashRecords {
    /// Where they are written.
    pub dir: PathBuf,
    /// Most bytes of a message in them.
    pub bytes: usize,
}

/// The socket for `wshd ctl`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Where it is, if there is one.
    pub socket: Option<PathBuf>,
    /// Whose members may use it beside root and the server's own user.
    pub group: Option<Gid>,
}

/// How the server is a daemon of the system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Daemon {
    /// Whether it goes to the background.
    pub detach: bool,
    /// Where the number of the supervisor's process is kept.
    pub pid_file: Option<PathBuf>,
    /// Tells the processes of this server from those of another.
    pub instance: Option<String>,
    /// The root directory of workers, a real path: handlers and document root are below it.
    pub chroot: Option<PathBuf>,
}

/// Limits on connections and their rates. Counts are over all processes; 0: no limit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    /// Most connections.
    pub total: u32,
    /// Most connections of an address.
    pub per_address: u32,
    /// Most new connections of an address in a second; at most 65,535.
    pub handshakes: u32,
    /// Hosts that requests may be for; empty: all.
    pub hosts: Vec<HostRule>,
    /// Proxies that are believed.
    pub proxy: Proxy,
}

/// Proxies that are believed when they tell whom they relay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proxy {
    /// Those with these addresses.
    pub networks: Vec<IpNet>,
    /// Those on Unix sockets.
    pub unix: bool,
}

impl Proxy {
    /// Whether anybody is believed.
    pub fn is_any(&self) -> bool {
        self.unix || !self.networks.is_empty()
    }

    /// Whether a peer is; `None`: on a Unix socket.
    pub fn trusts(&self, peer: Option<IpAddr>) -> bool {
        match peer.map(|ip| ip.to_canonical()) {
            Some(ip) => self.networks.iter().any(|network| network.contains(&ip)),
            None => self.unix,
        }
    }
}

/// When send queues are full; bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sending {
    /// The queue of a connection is full from here on.
    pub high: usize,
    /// One that was full has drained at this, which is at most `high`.
    pub low: usize,
    /// Above this, of all queues of a worker together, the marks of each are lowered; 0: never.
    pub total: u64,
}

/// What a worker's connections may hold together; bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Of incomplete messages; 0: no bound.
    pub receive_total: u64,
}

/// Contexts with which messages are compressed that go on from the ones before (RFC 7692 section 7.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    /// What all of a worker may take; above it the longest idle are dropped. Bytes; 0: no bound.
    pub total: u64,
    /// How long one is kept that is not used; zero: forever.
    pub idle: Duration,
}

/// Bounds of topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicBounds {
    /// Topics of a connection.
    pub per_connection: u32,
    /// Topics of a worker.
    pub topics: u32,
    /// Bytes that a worker may have waiting for the bus.
    pub queue: u64,
    /// Bytes that the bus may have waiting for a worker.
    pub worker_queue: u64,
    /// Bytes of messages that the bus keeps for connections on the way.
    pub history: u64,
    /// How long it keeps them.
    pub history_time: Duration,
}

/// Files that confined workers may use beside those that they need anyway.
#[derive(Clone, Debug, PartialEq)]
pub struct Landlock {
    /// To be read.
    pub read: Vec<PathBuf>,
    /// To be read and written.
    pub write: Vec<PathBuf>,
}

/// How to listen, and what is served to those who come in there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListenerSettings {
    /// How the socket is bound.
    pub binding: Binding,
    /// Whether connections of proxies that are believed begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Which clients are served the console.
    pub console: Console,
}

/// Which clients are served the console, a page that lists all resources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Console {
    /// Clients on this machine that come through no proxy.
    #[default]
    Local,
    /// All.
    Always,
    /// Nobody.
    Never,
}

/// What one handler is served with; what its table does not say is as for all others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HandlerSettings {
    /// Bounds of an open connection.
    pub limits: proto::ws::limits::Limits,
    /// Most connections in all workers together, if there is a limit.
    pub connections: Option<u32>,
    /// Most messages of a peer in a second; 0: no limit.
    pub message_rate: u32,
    /// Most bytes of messages of a peer in a second; 0: no limit.
    pub byte_rate: u64,
    /// How long it may run without a call of the host before its worker is killed; zero: forever.
    pub timeout: Duration,
    /// Over this time its connections that cannot move are closed when their worker is replaced; None: they are left
    /// until they end.
    pub drain: Option<Duration>,
    /// How permessage-deflate is negotiated unless the handler says otherwise.
    pub deflate: proto::ws::deflate::negotiate::Config,
    /// Allowed origins; empty: all.
    pub origins: Vec<OriginRule>,
    /// The name that joins its topics with those of others, if it has one.
    pub topics: Option<String>,
    /// The least level of what it logs itself, if it has one of its own. If that is above info its connections are not
    /// in the access log.
    pub log_level: Option<Level>,
    /// Whether a handshake that offers subprotocols of which none is chosen is refused.
    pub subprotocol: Unmatched,
    /// Whether it may send octets past the protocol.
    pub raw: bool,
}

impl HandlerSettings {
    /// The same, with no frame that is larger than a message.
    pub fn sound(mut self) -> Self {
        self.limits.frame = self.limits.frame.min(self.limits.message);
        self
    }
}

/// The configuration of a fleet. Made before the first fork of those that have it, and never changed after.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// The configuration file that was read, if one was.
    pub file: Option<PathBuf>,
    /// All that is configured, as TOML without secrets.
    pub effective: Arc<str>,
    /// Warnings about what was given and has no meaning.
    pub ignored: Vec<String>,
    /// Where to listen, in the order given; never empty.
    pub listen: Vec<Listen>,
    /// Which of these gateways accept from, and how.
    pub gateway: Gateway,
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
    /// The path of health checks, if they are answered; it begins with a slash.
    pub health: Option<Box<str>>,
    /// Root of the static files; without it there are none.
    pub document_root: Option<PathBuf>,
    /// Programs below it, if there are any.
    pub cgi: Option<Cgi>,
    /// Host and port that a target in absolute form must name, where set (else 421).
    pub validation: (Option<String>, Option<u16>),
    /// Number of workers, at least 1.
    pub workers: usize,
    /// How to listen where no table says otherwise, and what is served there.
    pub listener: ListenerSettings,
    /// Those with a table.
    pub listener_of: Vec<(Listen, ListenerSettings)>,
    /// Most connections of one worker.
    pub connections: u32,
    /// Most connections to blocking handlers (each has a thread) of one worker.
    pub threads: u32,
    /// Bounds of a request head.
    pub head: proto::http1::head::HeadLimits,
    /// Time from accept to the end of the opening handshake; never zero.
    pub handshake_timeout: Duration,
    /// How long contexts of compression are kept.
    pub contexts: Contexts,
    /// When send queues are full.
    pub sending: Sending,
    /// What connections may hold together.
    pub memory: Memory,
    /// What a worker may use up before it is replaced.
    pub wear: Wear,
    /// When a handler in which workers die is not served for a while.
    pub quarantine: Quarantine,
    /// Whether and where crashes are recorded.
    pub crash_records: Option<CrashRecords>,
    /// The socket for `wshd ctl`.
    pub control: Control,
    /// Limits on connections.
    pub admission: Admission,
    /// Which clients have to authenticate themselves.
    pub authentication: Authentication,
    /// What workers may do with files, if that is confined.
    pub landlock: Option<Landlock>,
    /// What handlers without a table of their own are served with.
    pub handler: HandlerSettings,
    /// Those with a table, by resource.
    pub handler_of: BTreeMap<String, HandlerSettings>,
    /// How long a blocking handler may wait without a call of the host before its worker is killed; zero: forever.
    pub handler_wait_timeout: Duration,
    /// A worker whose event loop has not turned for so long, outside of handlers, is killed; zero: never.
    pub worker_timeout: Duration,
    /// A request waits so long for a process of its own, where each connection has one; zero: not at all.
    pub process_timeout: Duration,
    /// Time from the order to stop until a worker must have left.
    pub stop_timeout: Duration,
    /// How the server sends its clients away before it stops.
    pub drain: Drain,
    /// Where metrics are served, if they are.
    pub metrics: Option<Listen>,
    /// Bounds of topics.
    pub topics: TopicBounds,
    /// The engine that joins topics with those of other machines, if there is one.
    pub bus: Option<Arc<bus::Engine>>,
    /// How the server is a daemon of the system.
    pub daemon: Daemon,
    /// Where log lines go, and which.
    pub log: LogSettings,
    /// Further resources, which may end in `/*`, and the resource of the handler that serves them.
    pub resources: BTreeMap<String, String>,
    /// Whether a breach of the contract of `ws_handler.h` ends the worker.
    pub strict_abi: bool,
    /// The handlers' own settings by resource.
    pub settings: BTreeMap<String, Vec<(String, String)>>,
    /// The pools of workers; the first is the default pool, with [`Config::workers`].
    pub pools: Vec<Pool>,
    /// The number of the pool of each resource that the configuration file has a table for.
    pub isolation: BTreeMap<String, usize>,
}

impl Config {
    /// The number of the pool that serves this resource, which is [`Route::resource`](crate::fleet::routes::Route)
    /// of a handler, not an alias.
    pub fn pool_of(&self, resource: &str) -> usize {
        self.isolation.get(resource).copied().unwrap_or(0)
    }

    /// The same with the settings and the secrets of handlers of this pool only, and without those of the bus.
    pub fn with_settings_of(&self, pool: Option<usize>) -> Self {
        let mut config = Config { bus: None, ..self.clone() };
        let is_theirs = |resource: &str| Some(self.pool_of(resource)) == pool;
        config.settings.retain(|resource, _| is_theirs(resource));
        // Pool 0 serves what is no handler, too, and handlers that the configuration does not name.
        let is_ruled = |resource: &String| !self.authentication.of.contains_key(resource);
        let has_others = pool == Some(0)
            || self.isolation.keys().any(|resource| is_theirs(resource) && is_ruled(resource));
        config.authentication.of.retain(|resource, _| is_theirs(resource));
        config.authentication.all = config.authentication.all.filter(|_| has_others);
        config
    }

    /// The same with numbers of pools that go on from those of `before`: a pool keeps its number, and one that is gone
    /// has no workers.
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

    /// What this handler is served with.
    pub fn handler(&self, resource: &str) -> &HandlerSettings {
        self.handler_of.get(resource).unwrap_or(&self.handler)
    }

    /// How to listen at an address; `None`: on a socket that somebody else has bound.
    pub fn listener(&self, asked: Option<&Listen>) -> &ListenerSettings {
        let own = self.listener_of.iter().find(|(listen, _)| Some(listen) == asked);
        own.map_or(&self.listener, |(_, settings)| settings)
    }

    /// What each listener has.
    pub fn listeners(&self) -> impl Iterator<Item = &ListenerSettings> {
        self.listen.iter().map(|listen| self.listener(Some(listen)))
    }

    /// What the topics of a handler belong to: a name that does not begin with a slash, or its resource.
    pub fn scope_of<'a>(&'a self, resource: &'a str) -> &'a str {
        self.handler(resource).topics.as_deref().unwrap_or(resource)
    }

    /// A file as workers see it: below their root, if they have one of their own.
    pub fn inside<'a>(&self, path: &'a Path) -> Cow<'a, Path> {
        let below = self.daemon.chroot.as_ref().and_then(|root| path.strip_prefix(root).ok());
        below.map_or(Cow::Borrowed(path), |below| Cow::Owned(Path::new("/").join(below)))
    }

    /// Descriptors of a worker that are not connections: it knows the inboxes of all processes, too.
    pub fn reserved_descriptors(&self) -> u64 {
        let children =
            self.pools.iter().filter_map(|pool| pool.children).map(|children| children.most as u64);
        RESERVED_DESCRIPTORS + SPARE_DESCRIPTORS as u64 + children.sum::<u64>()
    }

    /// Whether each connection of this pool has a process of its own.
    pub fn is_per_connection(&self, pool: usize) -> bool {
        self.pools.get(pool).is_some_and(|pool| pool.children.is_some())
    }

    /// Whether the worker of this place has children that serve, and serves nobody itself.
    pub fn is_parent(&self, pool: u16, number: u16) -> bool {
        number == 0 && self.is_per_connection(pool.into())
    }

    /// The name of a worker, in titles and logs.
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

    /// The workers of all pools.
    pub fn all_workers(&self) -> usize {
        self.pools.iter().map(|pool| pool.workers).sum()
    }
}
