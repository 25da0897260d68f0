//! Complaints about peers: of each peer a few are logged at a time, the others counted. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::time::Instant;

/// A peer is complained about so often in an interval.
const LINES: u32 = 3;
const INTERVAL: Duration = Duration::from_secs(10);
/// Peers that are told apart; further ones share what a peer has.
const PEERS: usize = 1024;

/// Who was complained about lately.
#[derive(Debug, Default)]
pub struct Complaints {
    peers: HashMap<Option<IpAddr>, Said>,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    /// When the interval began.
    since: Instant,
    /// Lines that were logged in it: at most [`LINES`].
    lines: u32,
    /// Complaints that were not logged since the last line.
    left_out: u64,
}

impl Complaints {
    /// Whether a complaint about a peer is to be logged: then how many about it were not since the last that was.
    pub fn admit(&mut self, peer: Option<IpAddr>, now: Instant) -> Option<u64> {
        let mut key = peer.map(network);
        if !self.peers.contains_key(&key) && self.peers.len() >= PEERS {
            self.peers.retain(|_, said| now.since(said.since) < INTERVAL);
            if self.peers.len() >= PEERS {
                key = None;
            }
        }
        let said = self.peers.entry(key).or_insert(Said { since: now, lines: 0, left_out: 0 });
        if now.since(said.since) >= INTERVAL {
            (said.since, said.lines) = (now, 0);
        }
        if said.lines >= LINES {
            said.left_out += 1;
            return None;
        }
        said.lines += 1;
        Some(std::mem::take(&mut said.left_out))
    }
}

/// Whoever has one address of IPv6 usually has all of its /64 (RFC 6177).
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & !u128::from(u64::MAX)).into()),
        ip => ip,
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
