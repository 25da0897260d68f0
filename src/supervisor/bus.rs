//! What the supervisor keeps for the bus: where workers meet it, which outlives it. The process itself is one of the
//! auxiliaries; it is there once a handler uses topics.

use std::collections::BTreeMap;
use std::io;
use std::iter::once;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bus;
use crate::bus::baton::Baton;
use crate::bus::hub::Limits;
use crate::config::{Config, Pool};
use crate::fleet::memory::counters::bus::BusCounters;
use crate::fleet::routes::Routes;
use crate::fleet::sockets::queue::SocketQueue;

/// Connections of a pool beyond two for each process, which a reload replaces.
const SPARE: usize = 16;

/// See the module. A copy is the same.
#[derive(Clone, Debug)]
pub struct Bus {
    baton: Arc<Baton>,
    /// By name of the pool: where its workers leave one end of a connection of their own. Each pool has one, so that
    /// the bus knows the pool of whom it finds there.
    rendezvous: BTreeMap<String, Arc<SocketQueue>>,
    /// Whether a handler uses topics.
    is_used: Arc<AtomicBool>,
}

impl Bus {
    /// That of a server that replaces no other.
    pub fn new() -> io::Result<Self> {
        Ok(Self { baton: Arc::new(Baton::new()?), rendezvous: BTreeMap::new(), is_used: Arc::default() })
    }

    /// That of another server, of its [parts](Self::parts). None: they are not complete.
    pub fn of_parts(pools: Vec<String>, fds: &mut impl Iterator<Item = OwnedFd>) -> Option<Self> {
        let baton = Arc::new(Baton::from(fds.next()?));
        let mut queue = |pool| Some((pool, Arc::new(SocketQueue { tx: fds.next()?, rx: fds.next()? })));
        let rendezvous = pools.into_iter().map(&mut queue).collect::<Option<_>>()?;
        Some(Self { baton, rendezvous, is_used: Arc::new(AtomicBool::new(true)) })
    }

    /// What another server needs to go on with it: the names of the pools, the baton, and both ends for each pool. None
    /// if topics are not used.
    pub fn parts(&self) -> Option<(Vec<String>, Vec<BorrowedFd<'_>>)> {
        let ends = self.rendezvous.values().flat_map(|queue| [queue.tx.as_fd(), queue.rx.as_fd()]);
        let fds = once(self.baton.fd()).chain(ends).collect();
        self.is_used().then(|| (self.rendezvous.keys().cloned().collect(), fds))
    }

    /// The same for a configuration that may have other pools.
    pub fn following(&self, config: &Config) -> io::Result<Self> {
        let mut next = self.clone();
        for pool in &config.pools {
            if !next.rendezvous.contains_key(&pool.name) {
                next.rendezvous.insert(pool.name.clone(), Arc::new(SocketQueue::new()?));
            }
        }
        Ok(next)
    }

    /// Where the workers of a pool meet it.
    pub fn tx(&self, pool: &str) -> io::Result<OwnedFd> {
        let rendezvous = self.rendezvous.get(pool).ok_or(io::ErrorKind::NotFound)?;
        rendezvous.tx.try_clone()
    }

    /// Whether a handler uses topics.
    pub fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    /// One does.
    pub fn set_used(&self) {
        self.is_used.store(true, Ordering::Relaxed);
    }

    /// What the process is to be given; the counters are those of its engine, if one is configured.
    pub fn start(
        &self,
        config: &Config,
        routes: &Routes,
        counters: &'static BusCounters,
    ) -> io::Result<bus::Start> {
        let number = |name: &str| config.pool(name).and_then(|pool| u16::try_from(pool).ok());
        let mut rendezvous = Vec::new();
        for (pool, ends) in &self.rendezvous {
            if let Some(pool) = number(pool) {
                let processes = config.pools.get(usize::from(pool)).map_or(0, Pool::processes);
                rendezvous.push((pool, ends.rx.try_clone()?, 2 * processes + SPARE));
            }
        }
        let bounds = config.topics;
        let limits = Limits {
            queue: bounds.worker_queue as usize,
            history: bounds.history as usize,
            age: bounds.history_time,
            topics: bounds.topics as usize,
        };
        let baton = Baton::from(self.baton.fd().try_clone_to_owned()?);
        let engine = config.bus.as_deref().map(|engine| (engine.clone(), counters));
        Ok(bus::Start { rendezvous, baton, limits, scopes: scopes(config, routes), engine })
    }
}

/// Which pool may use which scope: that of a handler that it serves.
pub fn scopes(config: &Config, routes: &Routes) -> Vec<(u16, String)> {
    let of_route = |resource: &str| (config.pool_of(resource) as u16, config.scope_of(resource).to_owned());
    let mut scopes: Vec<_> = routes.in_service().map(|(_, route)| of_route(&route.resource)).collect();
    scopes.sort();
    scopes.dedup();
    scopes
}
