//! A generation: what workers are made of. A reload makes a new one, from configuration and handlers as they are then,
//! and says which workers have to be replaced. Changes nothing that serves.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::bus::{self, Bus};
use super::policy::rolling_restart::Step;
use crate::auth::Authentication;
use crate::config::gateway::Protocol;
use crate::config::{Binding, Cgi, Config, Pool};
use crate::fleet::memory::scoreboard::Place;
use crate::fleet::routes::{self, Route, Routes};
use crate::fleet::sockets::inbox;
use crate::fleet::sockets::listener::{self, BindError, Listener};
use crate::fleet::sockets::queue::SocketQueue;
use crate::log::Settings as LogSettings;

/// Length of the kernel's queue of clients that ask for metrics.
const METRICS: Binding = Binding { backlog: 64, mode: None, owner: None, group: None };

/// The most handlers that are isolated at a time.
const MOST_ISOLATED: usize = 4;

/// Listening sockets.
pub type Sockets = Vec<Arc<Listener>>;

/// Configuration, handlers and listening sockets that belong together.
#[derive(Clone, Debug)]
pub struct Generation {
    /// As it was read.
    pub config: Arc<Config>,
    /// The handlers; numbers outlive generations.
    pub routes: Arc<Routes>,
    /// The sockets to accept from.
    pub listeners: Sockets,
    /// The sockets to serve metrics on.
    pub metrics: Sockets,
    /// Where workers meet the bus.
    pub bus: Bus,
    /// Where requests for programs arrive, if there are any. It outlives the process that runs them.
    pub cgi: Option<Arc<SocketQueue>>,
    /// What was left out because it is broken.
    pub faults: Vec<String>,
    /// The files that gateways read, as they were.
    pub certificates: Vec<FileStamp>,
    /// The pools of handlers that are isolated. A reload knows none.
    pub isolated: BTreeSet<usize>,
}

impl Generation {
    /// What a server starts from: what another one has left.
    pub fn before_start(inherited: Sockets, bus: Bus) -> Self {
        let (config, routes, cgi, faults, certificates, isolated) = Default::default();
        let metrics = inherited.clone();
        Self { config, routes, listeners: inherited, metrics, bus, cgi, faults, certificates, isolated }
    }

    /// The sockets to accept from, and those for metrics, of the one that follows this one: its own, new ones, and else
    /// those that are bound here.
    pub fn sockets_for(
        &self,
        config: &Config,
        new: [&[Arc<Listener>]; 2],
    ) -> Result<[Sockets; 2], BindError> {
        let have = [[&self.listeners, new[0]].concat(), [&self.metrics, new[1]].concat()];
        let binding = |listen: &_| config.listener(Some(listen)).binding;
        let listeners = listener::adopted_or_bound(&config.listen, &binding, &have[0])?;
        let metrics = bind_metrics(config, &have[1])
            .inspect_err(|_| self.new_of(&listeners).for_each(|listener| listener.remove_file()))?;
        Ok([listeners, metrics])
    }

    /// Those sockets that this one does not have.
    pub fn new_of<'a>(&self, sockets: &'a [Arc<Listener>]) -> impl Iterator<Item = &'a Arc<Listener>> {
        sockets.iter().filter(|new| !self.sockets().any(|old| Arc::ptr_eq(old, new)))
    }

    /// The one that follows this one, of a configuration that follows its configuration.
    pub fn following(
        &self,
        config: Config,
        (routes, faults): (Routes, Vec<String>),
        [listeners, metrics]: [Sockets; 2],
        certificates: Vec<FileStamp>,
    ) -> Result<Self, String> {
        let routes = routes.following(&self.routes).ok_or("too many handlers have come and gone: restart")?;
        let bus = self.bus.following(&config).map_err(|error| error.to_string())?;
        let inbox = || self.cgi.clone().map_or_else(|| inbox::create().map(Arc::new), Ok);
        let cgi = config.cgi.as_ref().map(|_| inbox()).transpose();
        let cgi = cgi.map_err(|error| format!("no inbox for programs: {error}"))?;
        let (config, routes) = (Arc::new(config), Arc::new(routes));
        let isolated = BTreeSet::new();
        Ok(Self { config, routes, listeners, metrics, bus, cgi, faults, certificates, isolated })
    }

    /// Whether the handlers were found anew since `before`.
    pub fn is_reread(&self, before: &Self) -> bool {
        !Arc::ptr_eq(&self.routes, &before.routes)
    }

    /// The same with a pool of its own for a handler that is suspected. None: it cannot have one.
    pub fn with_isolated(&self, handler: u16) -> Option<io::Result<Self>> {
        let route = self.routes.get(handler).filter(|route| !route.retired)?;
        let before = self.config.pool_of(&route.resource);
        let template = self.config.pools.get(before).filter(|pool| pool.children.is_none())?;
        if self.is_alone(handler) || self.isolated.len() >= MOST_ISOLATED {
            return None;
        }
        let mut config = Config::clone(&self.config);
        let name = |number: usize| format!("suspect-{number}");
        let is_free = |name: &String| config.pool(name).is_none_or(|pool| config.pools[pool].workers == 0);
        let name = (1..).map(name).find(is_free)?;
        let pool = Pool { name: name.clone(), workers: 1, ..template.clone() };
        let number = config.pool(&name).unwrap_or(config.pools.len());
        match config.pools.get_mut(number) {
            Some(gone) => *gone = pool,
            None => config.pools.push(pool),
        }
        config.isolation.insert(route.resource.clone(), number);
        let isolated = self.isolated.iter().copied().chain([number]).collect();
        let bus = self.bus.following(&config);
        Some(bus.map(|bus| Self { config: Arc::new(config), bus, isolated, ..self.clone() }))
    }

    /// Whether no other handler is served in the pool of this one.
    pub fn is_alone(&self, handler: u16) -> bool {
        let pool = |route: &Route| self.config.pool_of(&route.resource);
        let ours = self.routes.get(handler).map(pool);
        self.routes.in_service().filter(|(_, route)| Some(pool(route)) == ours).count() == 1
    }

    /// The handler that a pool isolates.
    pub fn isolated_in(&self, pool: usize) -> Option<u16> {
        let mut routes = self.routes.in_service().filter(|_| self.isolated.contains(&pool));
        routes.find(|(_, route)| self.config.pool_of(&route.resource) == pool).map(|(number, _)| number)
    }

    /// What makes the bus what it is.
    pub fn bus_settings(&self) -> impl PartialEq {
        let pools: Vec<_> = self.config.pools.iter().map(|pool| pool.name.clone()).collect();
        (self.config.topics, self.config.bus.clone(), bus::scopes(&self.config, &self.routes), pools)
    }

    /// Its sockets that another one does not have.
    pub fn sockets_without(&self, other: &Self) -> Sockets {
        let all: Sockets = self.sockets().cloned().collect();
        other.new_of(&all).cloned().collect()
    }

    /// All sockets that it listens on.
    pub fn sockets(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.iter().chain(&self.metrics)
    }

    /// The sockets that the workers of the default pool accept from.
    pub fn worker_listeners(&self) -> Sockets {
        self.listeners.iter().filter(|listener| !self.is_for_gateways(listener)).cloned().collect()
    }

    /// The sockets that gateways accept from.
    pub fn gateway_listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.iter().filter(|listener| self.is_for_gateways(listener))
    }

    /// Whether gateways that were started for one would not be what they are if they were started for the other.
    pub fn are_gateways_changed(&self, new: &Generation) -> bool {
        let identities = |generation: &Generation| {
            let listeners = generation.gateway_listeners().map(Arc::as_ptr);
            listeners.collect::<Vec<_>>()
        };
        let before = (&self.config.gateway, &self.certificates, identities(self));
        before != (&new.config.gateway, &new.certificates, identities(new))
    }

    /// Whether no process would be what it is if it was started for the other: settings of all, such as the log, or how
    /// the default pool is confined, and those that have no pool.
    pub fn is_changed_for_all(&self, new: &Generation) -> bool {
        let of = |config: &Config| (of_all(config), settings_of(config, 0));
        of(&self.config) != of(&new.config)
    }

    fn is_for_gateways(&self, listener: &Listener) -> bool {
        self.config.gateway.protocol(listener.asked()).is_some()
    }

    /// The pools whose workers would not be what they are if they were started from `new`.
    pub fn changed_pools(&self, new: &Generation) -> BTreeSet<usize> {
        let pools = 0..new.config.pools.len();
        let (before, after) = (&self.config, &new.config);
        if of_all(before) != of_all(after) {
            return pools.collect();
        }
        let is_changed = |pool: &usize| {
            settings_of(before, *pool) != settings_of(after, *pool)
                || self.handlers_of(*pool) != new.handlers_of(*pool)
        };
        let mut changed: BTreeSet<usize> = pools.filter(is_changed).collect();
        // The workers of the default pool accept, and find the handlers of all pools.
        // Its workers also ask who wants files.
        let of_files = |generation: &Self| generation.config.authentication.all.clone();
        let is_other = of_files(self) != of_files(new);
        if is_other || self.addresses() != new.addresses() || self.resources() != new.resources() {
            changed.insert(0);
        }
        changed
    }

    /// What is to be done for this generation to serve, in order. `workers` are those that serve: places and slots.
    pub fn steps(&self, changed: &BTreeSet<usize>, workers: &[(Place, usize)]) -> Vec<Step> {
        let slot_of = |place: Place| workers.iter().find(|(taken, _)| *taken == place).map(|(_, slot)| *slot);
        // The default pool last: its workers pass requests on to the others.
        let pools =
            self.config.pools.iter().enumerate().skip(1).chain(self.config.pools.iter().enumerate().take(1));
        let mut steps = Vec::new();
        for (pool, settings) in pools {
            for number in 0..settings.workers {
                let place = Place { pool: pool as u16, number: number as u16 };
                let retire = slot_of(place);
                if retire.is_none() || changed.contains(&pool) {
                    steps.push(Step { start: Some(place), retire });
                }
            }
        }
        let wanted = |place: Place| {
            let pool = self.config.pools.get(usize::from(place.pool));
            pool.is_some_and(|pool| usize::from(place.number) < pool.workers)
        };
        let surplus = workers.iter().filter(|(place, _)| !wanted(*place));
        steps.extend(surplus.map(|(_, slot)| Step { start: None, retire: Some(*slot) }));
        steps
    }

    /// What makes a worker of this pool what it is, of each handler.
    fn handlers_of(&self, pool: usize) -> Vec<impl PartialEq> {
        let routes = self.routes.in_service().map(|(_, route)| route);
        let ours = routes.filter(|route| self.config.pool_of(&route.resource) == pool);
        let with_settings = |route: &Route| {
            let own = self.config.settings.get(&route.resource).cloned();
            let users = self.config.authentication.of(&route.resource).cloned();
            let settings = self.config.handler(&route.resource).clone();
            (route.resource.clone(), route.file.clone(), route.stamp, own, settings, users)
        };
        let mut handlers: Vec<_> = ours.map(with_settings).collect();
        handlers.sort_by(|one, other| one.0.cmp(&other.0));
        handlers
    }

    /// What concerns the process that runs programs.
    pub fn programs(&self) -> impl PartialEq {
        let config = &self.config;
        (config.cgi.clone(), config.document_root.clone(), config.head.clone(), config.handshake_timeout)
    }

    fn addresses(&self) -> Vec<String> {
        self.worker_listeners().iter().map(|listener| listener.address.to_string()).collect()
    }

    /// All resources, with what they are other names of and the pool that serves them.
    fn resources(&self) -> Vec<(String, String, usize)> {
        let named = |(resource, number): (&str, u16)| {
            let route = self.routes.get(number)?;
            Some((resource.to_owned(), route.resource.clone(), self.config.pool_of(&route.resource)))
        };
        self.routes.resources().filter_map(named).collect()
    }
}

/// A file as it is; `None` if it cannot be looked at.
pub type FileStamp = Option<routes::Stamp>;

/// The files that gateways read, as they are. Waits for the file system.
pub(super) fn stamps(config: &Config) -> Vec<FileStamp> {
    let protocols = config.gateway.listeners.iter().map(|listener| &listener.protocol);
    let mut paths: Vec<&Path> = Vec::new();
    for protocol in protocols.chain(&config.gateway.passed) {
        let Protocol::Tls(tls) = protocol else { continue };
        paths.extend(tls.certificates.iter().flat_map(|files| [&*files.certificate, &*files.key]));
        paths.extend(tls.client_auth.iter().map(|auth| &*auth.ca));
    }
    paths.into_iter().map(|path| path.metadata().ok().as_ref().map(routes::Stamp::from)).collect()
}

/// The sockets to serve metrics on, of which those that are there go on.
fn bind_metrics(config: &Config, have: &[Arc<Listener>]) -> Result<Sockets, BindError> {
    let listeners = listener::bind_missing(config.metrics.as_slice(), &|_| METRICS, have)?;
    let is_new = |new: &&Arc<Listener>| !have.iter().any(|old| Arc::ptr_eq(old, new));
    for listener in listeners.iter().filter(is_new) {
        log::info!("metrics are served on {}", listener.address);
    }
    Ok(listeners)
}

/// What concerns the workers of this pool, whatever handlers they serve.
fn settings_of(config: &Config, pool: usize) -> Option<Pool> {
    config.pools.get(pool).map(|pool| Pool { workers: 0, ..pool.clone() })
}

/// What concerns the workers of all pools.
fn of_all(config: &Config) -> Config {
    Config {
        effective: Default::default(),
        listen: Vec::new(),
        workers: 0,
        pools: Vec::new(),
        isolation: Default::default(),
        settings: Default::default(),
        resources: Default::default(),
        authentication: Authentication {
            failures: config.authentication.failures,
            ..Authentication::default()
        },
        handler_of: Default::default(),
        // Workers know only which paths are those of programs.
        cgi: config.cgi.as_ref().map(|cgi| Cgi { directories: cgi.directories.clone(), ..Cgi::default() }),
        ignored: Vec::new(),
        control: Default::default(),
        bus: None,
        gateway: Default::default(),
        log: LogSettings { rotation: Default::default(), ..config.log.clone() },
        ..config.clone()
    }
}
