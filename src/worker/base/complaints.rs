//! Complaints about peers: of each peer a few are logged at a time, the others counted. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::fleet::addresses::{Network, network_of};
use crate::time::Instant;
use crate::worker::base::log_limit::LogLimit;

/// A peer is complained about so often in an interval.
const LINES: u32 = 3;
const INTERVAL: Duration = Duration::from_secs(10);
/// Peers that are told apart; further ones share what a peer has.
const PEERS: usize = 1024;

/// The complaints of late, by the network of the peer. At most [`PEERS`], and those that share an entry.
#[derive(Debug, Default)]
pub struct Complaints {
    peers: HashMap<Option<Network>, LogLimit>,
}

impl Complaints {
    /// Whether a complaint about a peer is to be logged: then how many about it were not since the last that was.
    pub fn admit(&mut self, peer: Option<IpAddr>, now: Instant) -> Option<u64> {
        let mut key = peer.map(network_of);
        if !self.peers.contains_key(&key) && self.peers.len() >= PEERS {
            self.peers.retain(|_, said| !said.is_over(INTERVAL, now));
            if self.peers.len() >= PEERS {
                key = None;
            }
        }
        self.peers.entry(key).or_default().admit((LINES, INTERVAL), now)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
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
            (one, 0, Some(0)),
            (neighbour, 0, Some(0)),
            (one, 1, Some(0)),
            (one, 2, None),
            (neighbour, 9, None),
        ];
        for (ip, second, expected) in table {
            assert_eq!(complaints.admit(Some(ip), at(second)), expected, "{ip} at {second}");
        }
        assert_eq!(complaints.admit(Some(other), at(9)), Some(0), "another one has lines of its own");
        assert_eq!(complaints.admit(Some(one), at(10)), Some(2));
        assert_eq!(complaints.admit(Some(one), at(11)), Some(0));
    }

    #[test]
    fn the_table_has_a_bound() {
        let mut complaints = Complaints::default();
        let ip = |number: u32| Some(IpAddr::V4(number.into()));
        let logged = (0..100_000).filter(|number| complaints.admit(ip(*number), at(0)).is_some()).count();
        assert_eq!(logged, PEERS + LINES as usize);
        assert!(complaints.peers.len() <= PEERS + 1);
        assert_eq!(complaints.admit(ip(200_000), at(10)), Some(0), "old entries make room");
    }
}
