//! The address of a connection's peer in a form that costs nothing to keep: plain bytes in a process, atomic words
//! between processes. Names no sockets and resolves nothing.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A peer; all zero for one without an IP address. Has no padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Peer {
    port: u16,
    /// 4, 6, or 0 for none.
    family: u16,
    /// An address of IPv4 is mapped into IPv6.
    ip: [u8; 16],
}

impl Peer {
    /// None.
    pub const NONE: Peer = Peer { port: 0, family: 0, ip: [0; 16] };

    /// The address, if there is one.
    pub fn address(self) -> Option<SocketAddr> {
        let ip = Ipv6Addr::from(self.ip);
        match (self.family, ip.to_ipv4_mapped()) {
            (4, Some(ip)) => Some(SocketAddr::new(ip.into(), self.port)),
            (6, _) => Some(SocketAddr::new(ip.into(), self.port)),
            _ => None,
        }
    }
}

impl From<Option<SocketAddr>> for Peer {
    fn from(address: Option<SocketAddr>) -> Self {
        let Some(address) = address else { return Peer::NONE };
        let (family, ip) = match address.ip() {
            IpAddr::V4(ip) => (4, ip.to_ipv6_mapped()),
            IpAddr::V6(ip) => (6, ip),
        };
        Peer { port: address.port(), family, ip: ip.octets() }
    }
}

/// A peer in shared memory. Async-signal-safe. May be torn while it is written.
#[derive(Debug, Default)]
#[repr(C)]
pub struct PeerCell {
    ip: [AtomicU64; 2],
    /// Family and port.
    word: AtomicU32,
}

impl PeerCell {
    /// Changes it.
    pub fn store(&self, peer: Peer) {
        let ip = u128::from_ne_bytes(peer.ip);
        self.word.store(u32::from(peer.family) << 16 | u32::from(peer.port), Ordering::Relaxed);
        self.ip[0].store(ip as u64, Ordering::Relaxed);
        self.ip[1].store((ip >> 64) as u64, Ordering::Relaxed);
    }

    /// What is there.
    pub fn load(&self) -> Peer {
        let word = self.word.load(Ordering::Relaxed);
        let [low, high] = [0, 1].map(|half: usize| self.ip[half].load(Ordering::Relaxed));
        let ip = u128::from(high) << 64 | u128::from(low);
        Peer { port: word as u16, family: (word >> 16) as u16, ip: ip.to_ne_bytes() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_of_each_family_comes_back_as_it_was() {
        let cell = PeerCell::default();
        assert_eq!(cell.load().address(), None);
        for text in ["192.0.2.1:80", "[2001:db8::1]:443", "[::ffff:192.0.2.1]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            cell.store(Some(address).into());
            assert_eq!(cell.load().address(), Some(address));
        }
        cell.store(Peer::from(None));
        assert_eq!(cell.load(), Peer::NONE);
    }
}
