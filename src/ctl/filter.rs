//! Which connections a request is about. The supervisor hands it on; workers apply it to what they would list.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::Args;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::answer::Connection;

/// Conditions that all have to hold; none: all connections. The comments are the help of `wshd ctl`.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[group(id = "filter", multiple = true)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Select peers with this address, address and port, or network; or unix
    #[arg(long, value_name = "PEER")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// Select this resource, or with /* at its end all below it
    #[arg(long, value_name = "RESOURCE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Select the handler of this name
    #[arg(long, value_name = "NAME")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// Select this user
    #[arg(long, value_name = "USER")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Peers, by their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Peer {
    /// With this address and port.
    Address(SocketAddr),
    /// In this network, which may be an address.
    Network(IpNet),
    /// On a Unix socket.
    Unix,
}

impl Filter {
    /// Whether it lets all through.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the connection fulfils all conditions.
    pub fn matches(&self, connection: &Connection<'_>) -> bool {
        let path =
            connection.resource.as_deref().map(|resource| resource.split('?').next().unwrap_or_default());
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        let prefix = self.resource.as_deref().and_then(|wanted| wanted.strip_suffix('*'));
        let is_resource = match prefix.filter(|prefix| prefix.ends_with('/')) {
            Some(prefix) => path.is_some_and(|path| path.starts_with(prefix)),
            None => is(&self.resource, path),
        };
        is_resource
            && self.peer.is_none_or(|peer| peer.contains(connection.peer.as_deref()))
            && is(&self.handler, connection.handler.as_deref())
            && is(&self.user, connection.user.as_deref())
    }
}

impl Peer {
    /// `None` is a peer on a Unix socket.
    fn contains(self, peer: Option<&str>) -> bool {
        let found: Option<SocketAddr> = peer.and_then(|peer| peer.parse().ok());
        let ip = |address: SocketAddr| address.ip().to_canonical();
        match (self, found) {
            (Peer::Unix, _) => peer.is_none(),
            (Peer::Address(wanted), Some(found)) => ip(wanted) == ip(found) && wanted.port() == found.port(),
            (Peer::Network(network), Some(found)) => network.contains(&ip(found)),
            (_, None) => false,
        }
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = || text.parse::<IpAddr>().map(|ip| ip.to_canonical().into()).or_else(|_| text.parse());
        match text {
            "unix" => Ok(Peer::Unix),
            _ => text.parse().map(Peer::Address).or_else(|_| network().map(Peer::Network)).map_err(|_| {
                "expected an address (with its port or without), a network such as 192.0.2.0/24, or unix"
                    .to_owned()
            }),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Address(address) => address.fmt(f),
            Peer::Network(network) => network.fmt(f),
            Peer::Unix => f.write_str("unix"),
        }
    }
}

/// `peer 192.0.2.1/32, handler chat`
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self.peer.map(String::from);
        let all =
            [("peer", &peer), ("resource", &self.resource), ("handler", &self.handler), ("user", &self.user)];
        let given = all.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        for (index, (name, value)) in given.enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{name} {}", value.escape_debug())?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn connection(peer: Option<&str>) -> Connection<'static> {
        Connection {
            id: "1:1".into(),
            worker: "default/0".into(),
            peer: peer.map(str::to_owned),
            phase: "open".into(),
            resource: Some("/room/7?token=x".into()),
            handler: Some("chat".into()),
            user: None,
            protocol: None,
            compressed: false,
            age: 1.0,
            queued: 0,
        }
    }

    #[test]
    fn all_conditions_have_to_hold() {
        let table = [
            (r#"{}"#, true),
            (r#"{"peer":"192.0.2.1"}"#, true),
            (r#"{"peer":"192.0.2.1:4000"}"#, true),
            (r#"{"peer":"::ffff:192.0.2.1"}"#, true),
            (r#"{"peer":"192.0.2.0/24"}"#, true),
            (r#"{"peer":"192.0.2.1:4001"}"#, false),
            (r#"{"peer":"198.51.100.0/24"}"#, false),
            (r#"{"peer":"unix"}"#, false),
            (r#"{"resource":"/room/7"}"#, true),
            (r#"{"resource":"/room/*"}"#, true),
            (r#"{"resource":"/room"}"#, false),
            (r#"{"resource":"/room*"}"#, false),
            (r#"{"handler":"chat","resource":"/room/7"}"#, true),
            (r#"{"handler":"other","resource":"/room/7"}"#, false),
            (r#"{"user":"alice"}"#, false),
        ];
        for (text, expected) in table {
            let filter: Filter = serde_json::from_str(text).unwrap();
            assert_eq!(filter.matches(&connection(Some("192.0.2.1:4000"))), expected, "{text}");
            assert_eq!(
                serde_json::from_str::<Filter>(&serde_json::to_string(&filter).unwrap()).unwrap(),
                filter
            );
            assert_eq!(filter.is_empty(), text == "{}");
        }
        let unix = Filter { peer: Some(Peer::Unix), ..Filter::default() };
        assert!(unix.matches(&connection(None)) && unix.to_string() == "peer unix");
        let mapped = Filter { peer: Some("10.0.0.0/8".parse().unwrap()), ..Filter::default() };
        assert!(mapped.matches(&connection(Some("[::ffff:10.1.2.3]:5"))));
    }

    #[test]
    fn what_is_no_peer_is_refused() {
        for wrong in ["", "host", "192.0.2.0/33", "192.0.2.1:x", "UNIX"] {
            assert!(wrong.parse::<Peer>().unwrap_err().starts_with("expected an address"), "{wrong}");
        }
    }
}
