//! The address of a connection's peer as plain bytes. Names no sockets and resolves nothing.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

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
    pub const NONE: Peer = Peer { port: 0, family: 0, ip: [0; 16] };

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
