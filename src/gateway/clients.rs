//! Connections by client network, while no worker counts them: from accept until a worker gets them, and of HTTP/2
//! those without a stream. Each gateway counts its own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::config::Config;
use crate::fleet::memory::addresses::{Network, network_of};
use crate::fleet::memory::counters::gateway::{Failure, GatewayCounters};
use crate::log::Limit;

/// Maximum networks. Connections of further ones are not counted and not refused.
const NETWORKS: usize = 65536;

/// The clients of a gateway.
pub struct Clients {
    config: Arc<Config>,
    counters: &'static GatewayCounters,
    limits: Limits,
    networks: Mutex<Networks>,
    /// Log lines about refused clients.
    refusals: Limit,
}

/// Limits of a network.
#[derive(Clone, Copy)]
struct Limits {
    /// Connections at a time.
    open: usize,
    /// New connections in a second; 0: no limit.
    opened: u32,
}

#[derive(Default)]
struct Networks {
    second: u32,
    /// Each has open connections, or had new ones in this second.
    counts: HashMap<Network, Counts>,
}

#[derive(Default)]
struct Counts {
    open: usize,
    /// In this second.
    opened: u32,
}

/// The client of a connection, counted until this is dropped.
pub struct Client {
    /// `None`: a peer on a Unix socket.
    pub address: Option<SocketAddr>,
    counted: Option<(Arc<Clients>, Network)>,
}

/// The client was refused, which is counted and logged.
pub struct Refused;

impl Clients {
    /// For a gateway with room for so many connections: a network gets half of it at most.
    pub fn new(config: Arc<Config>, counters: &'static GatewayCounters, room: usize) -> Self {
        let admission = &config.admission;
        let per_address = usize::try_from(admission.per_address).ok().filter(|most| *most != 0);
        let open = per_address.unwrap_or(usize::MAX).min(room / 2).max(1);
        let limits = Limits { open, opened: admission.handshakes };
        let refusals = Limit::new(1, Duration::from_secs(1));
        Self { config, counters, limits, networks: Mutex::default(), refusals }
    }

    /// Counts a new connection of this client.
    pub fn admit(self: &Arc<Self>, address: Option<SocketAddr>) -> Result<Client, Refused> {
        self.enter(address, self.limits)
    }

    /// Counts a connection again after workers had it.
    pub fn admit_again(self: &Arc<Self>, address: Option<SocketAddr>) -> Result<Client, Refused> {
        self.enter(address, Limits { opened: 0, ..self.limits })
    }

    fn enter(self: &Arc<Self>, address: Option<SocketAddr>, limits: Limits) -> Result<Client, Refused> {
        let ip = address.map(|address| address.ip());
        let Some(ip) = ip.filter(|ip| !self.config.admission.proxy.trusts(Some(*ip))) else {
            return Ok(Client { address, counted: None });
        };
        let network = network_of(ip);
        match self.lock().enter(network, clock::now().seconds(), limits) {
            Ok(is_counted) => {
                Ok(Client { address, counted: is_counted.then(|| (Arc::clone(self), network)) })
            }
            Err(failure) => {
                self.counters.count_failure(failure);
                if let Some(left_out) = self.refusals.admit(clock::now()) {
                    let why = match failure {
                        Failure::Rate => "too many new connections from its address in this second",
                        _ => "too many connections from its address wait in this gateway",
                    };
                    log::warn!("{ip} was turned away: {why}{left_out}");
                }
                Err(Refused)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Networks> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Networks {
    /// Counts a connection; false: there is no room to count it.
    fn enter(&mut self, network: Network, second: u32, limits: Limits) -> Result<bool, Failure> {
        if self.second != second {
            self.second = second;
            self.counts.retain(|_, counts| counts.open != 0);
            self.counts.values_mut().for_each(|counts| counts.opened = 0);
        }
        if self.counts.len() >= NETWORKS && !self.counts.contains_key(&network) {
            return Ok(false);
        }
        let counts = self.counts.entry(network).or_default();
        if counts.open >= limits.open {
            return Err(Failure::Address);
        }
        if limits.opened != 0 {
            if counts.opened >= limits.opened {
                return Err(Failure::Rate);
            }
            counts.opened += 1;
        }
        counts.open += 1;
        Ok(true)
    }

    fn leave(&mut self, network: Network) {
        if let Some(counts) = self.counts.get_mut(&network) {
            counts.open = counts.open.saturating_sub(1);
            if counts.open == 0 && counts.opened == 0 {
                self.counts.remove(&network);
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some((clients, network)) = &self.counted {
            clients.lock().leave(*network);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn network(ip: &str) -> Network {
        network_of(ip.parse().unwrap())
    }

    #[test]
    fn a_network_has_a_share_and_others_have_theirs() {
        let mut networks = Networks::default();
        let limits = Limits { open: 2, opened: 0 };
        for (ip, expected) in [
            ("2001:db8::1", Ok(true)),
            ("2001:db8::2", Ok(true)),
            ("2001:db8::3", Err(Failure::Address)),
            ("192.0.2.1", Ok(true)),
        ] {
            assert_eq!(networks.enter(network(ip), 1, limits), expected, "{ip}");
        }
        networks.leave(network("2001:db8::9"));
        assert_eq!(networks.enter(network("2001:db8::3"), 1, limits), Ok(true));
        (0..2).for_each(|_| networks.leave(network("2001:db8::1")));
        networks.leave(network("192.0.2.1"));
        assert!(networks.counts.is_empty());
    }

    #[test]
    fn new_connections_are_limited_in_each_second() {
        let mut networks = Networks::default();
        let limits = Limits { open: 2, opened: 3 };
        let one = network("192.0.2.1");
        let mut open_and_close = |second| {
            let entered = networks.enter(one, second, limits);
            if entered.is_ok() {
                networks.leave(one);
            }
            entered
        };
        (0..3).for_each(|_| assert_eq!(open_and_close(1), Ok(true)));
        assert_eq!(open_and_close(1), Err(Failure::Rate));
        assert_eq!(open_and_close(2), Ok(true));
    }

    #[test]
    fn the_table_has_a_bound() {
        let mut networks = Networks::default();
        let limits = Limits { open: 1, opened: 1 };
        for number in 0..NETWORKS as u64 {
            assert_eq!(networks.enter((4, number), 1, limits), Ok(true));
            networks.leave((4, number));
        }
        assert_eq!(networks.enter((6, 0), 1, limits), Ok(false), "not counted");
        assert_eq!(networks.enter((6, 0), 2, limits), Ok(true), "there is room in the next second");
        assert_eq!(networks.counts.len(), 1);
    }
}
