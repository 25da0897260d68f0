//! Complaints about peers: of each peer a few are logged at a time, the others counted. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::fleet::memory::addresses::{Network, network_of};
use crate::log::{LeftOut, Limit};
use crate::time::Instant;

/// A peer is complained about so often in an interval.
const LINES: u64 = 3;
const INTERVAL: Duration = Duration::from_secs(10);
/// Peers that are tracked separately; further ones share an entry.
const PEERS: usize = 1024;

/// By the network of the peer; at most [`PEERS`], and the entry that others share.
#[derive(Debug, Default)]
pub struct Complaints {
    peers: HashMap<Option<Network>, Limit>,
}

impl Complaints {
    /// Whether a complaint about a peer is to be logged.
    pub fn admit(&mut self, peer: Option<IpAddr>, now: Instant) -> Option<LeftOut> {
        let mut key = peer.map(network_of);
        if !self.peers.contains_key(&key) && self.peers.len() >= PEERS {
            self.peers.retain(|_, limit| !limit.is_over(now));
            if self.peers.len() >= PEERS {
                key = None;
            }
        }
        self.peers.entry(key).or_insert_with(|| Limit::new(LINES, INTERVAL)).admit(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn a_few_lines_about_each_peer_and_a_count_of_the_rest() {
        let mut complaints = Complaints::default();
        let [one, other]: [IpAddr; 2] = ["2001:db8::1", "192.0.2.1"].map(|ip| ip.parse().unwrap());
        let neighbour: IpAddr = "2001:db8::9".parse().unwrap();
        let table = [
            (one, 0, Some("")),
            (neighbour, 0, Some("")),
            (one, 1, Some("")),
            (one, 2, None),
            (neighbour, 9, None),
            (other, 9, Some("")),
            (one, 10, Some("; 2 more such lines were left out")),
            (one, 11, Some("")),
        ];
        for (ip, second, expected) in table {
            let admitted = complaints.admit(Some(ip), at(second)).map(|left_out| left_out.to_string());
            assert_eq!(admitted.as_deref(), expected, "{ip} at {second}");
        }
    }

    #[test]
    fn the_table_has_a_bound() {
        let mut complaints = Complaints::default();
        let ip = |number: u32| Some(IpAddr::V4(number.into()));
        let logged = (0..100_000).filter(|number| complaints.admit(ip(*number), at(0)).is_some()).count();
        assert_eq!(logged, PEERS + LINES as usize);
        assert!(complaints.peers.len() <= PEERS + 1);
        assert!(complaints.admit(ip(200_000), at(10)).is_some(), "old entries make room");
    }
}
