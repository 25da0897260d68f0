//! The options about who may come in: limits over all workers, allowed origins and hosts, proxies that are believed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::error::ErrorKind;
use clap::value_parser;
use ipnet::IpNet;

use super::value::{count, size_or_zero};
use super::{Error, Places, command};
use crate::config::{Admission, Proxy};
use crate::proto::http1::allow::{HostRule, OriginRule};

const DOORS: &str = "Doors";

/// Flattened into the table of options.
#[derive(Debug, clap::Args)]
pub struct AdmissionArgs {
    /// Most connections of all workers together; further ones get status 503 (0: no limit)
    #[arg(long, value_name = "COUNT", default_value_t = 0, help_heading = DOORS)]
    max_connections_total: u32,
    /// Most connections of one address, an IPv6 address being its first half; further ones get status 429 (0: no limit)
    #[arg(long, value_name = "COUNT", default_value_t = 0, help_heading = DOORS)]
    max_connections_per_address: u32,
    /// Most new connections of one address in a second; further ones get status 429 (0: no limit)
    #[arg(long, value_name = "COUNT", default_value_t = 0, value_parser = value_parser!(u32).range(..=65_535),
        help_heading = DOORS)]
    max_handshakes_per_address: u32,
    /// Most messages that a peer may send in a second; more close the connection with 1008 (0: no limit)
    #[arg(long, value_name = "COUNT", default_value_t = 0, help_heading = DOORS)]
    max_message_rate: u32,
    /// Most bytes of messages that a peer may send in a second, in the same way (0: no limit)
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size_or_zero, help_heading = DOORS)]
    max_byte_rate: usize,
    /// Accept WebSockets of pages of this origin, such as https://*.example.com, null, or *; may be repeated
    /// [default: *]
    #[arg(long, value_name = "ORIGIN", value_parser = origin, help_heading = DOORS)]
    allow_origin: Vec<OriginRule>,
    /// Serve requests for this host, such as *.example.com or example.com:8080; may be repeated [default: for all]
    #[arg(long, value_name = "HOST", value_parser = host, help_heading = DOORS)]
    allow_host: Vec<HostRule>,
    /// Believe this address or network, such as 10.0.0.0/8, or unix for Unix sockets, when it tells whom it relays; may
    /// be repeated [default: nobody]
    #[arg(long, value_name = "NETWORK", value_parser = network, help_heading = DOORS)]
    trust_proxy: Vec<Trusted>,
    /// Expect the header of the PROXY protocol from all whom --trust-proxy names
    #[arg(long, help_heading = DOORS)]
    proxy_protocol: bool,
}

impl Places {
    /// The error that an option is wrong, beside the others.
    pub fn wrong(&self, id: &str, why: &str) -> Error {
        let what = format!("{}: {why}", self.of(id));
        match self.0.contains_key(id) {
            true => Error::Config(what),
            false => command().error(ErrorKind::ValueValidation, what + "\n").into(),
        }
    }
}

/// Flattened into the table of a handler.
#[derive(Debug, clap::Args)]
pub struct HandlerArgs {
    /// Accept WebSockets of pages of this origin [default: as the server]
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    allow_origin: Vec<OriginRule>,
}

impl HandlerArgs {
    /// Into the configuration, for this resource.
    pub fn apply(self, resource: &str, admission: &mut Admission) {
        if !self.allow_origin.is_empty() {
            admission.origins_of.insert(resource.to_owned(), self.allow_origin);
        }
    }
}

/// Flattened into the table of a pool.
#[derive(Debug, clap::Args)]
pub struct PoolArgs {
    /// Most connections of all its workers together [default: no limit]
    #[arg(long, value_name = "COUNT", value_parser = count::<u32>(10_000_000))]
    pub max_connections: Option<u32>,
}

/// A value of `--trust-proxy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trusted {
    Network(IpNet),
    /// All peers on Unix sockets.
    Unix,
}

impl AdmissionArgs {
    /// The configuration; the error is about `--proxy-protocol`.
    pub fn into_config(self) -> Result<Admission, &'static str> {
        let networks = self.trust_proxy.iter().filter_map(|trusted| match trusted {
            Trusted::Network(network) => Some(*network),
            Trusted::Unix => None,
        });
        let proxy = Proxy {
            networks: networks.collect(),
            unix: self.trust_proxy.contains(&Trusted::Unix),
            protocol: self.proxy_protocol,
        };
        if proxy.protocol && !proxy.is_any() {
            return Err("expected --trust-proxy beside it, which says from whom");
        }
        Ok(Admission {
            total: self.max_connections_total,
            per_address: self.max_connections_per_address,
            handshakes: self.max_handshakes_per_address,
            messages: self.max_message_rate,
            bytes: self.max_byte_rate as u64,
            origins: self.allow_origin,
            origins_of: BTreeMap::new(),
            hosts: self.allow_host,
            proxy,
        })
    }
}

fn origin(text: &str) -> Result<OriginRule, &'static str> {
    OriginRule::parse(text)
}

fn host(text: &str) -> Result<HostRule, &'static str> {
    HostRule::parse(text)
}

fn network(text: &str) -> Result<Trusted, &'static str> {
    if text == "unix" {
        return Ok(Trusted::Unix);
    }
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    // As peers are compared: an IPv4 address is one, however it is written.
    let is_mapped = |network: &IpNet| network.addr().to_canonical() != network.addr();
    match network {
        Ok(network) if !is_mapped(&network) => Ok(Trusted::Network(network.trunc())),
        _ => Err("expected an address such as 10.0.0.1, a network such as 10.0.0.0/8, or unix"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::file::tests::{config, fails};

    #[test]
    fn without_options_everybody_may_come_in() {
        let admission = config("", &[]).unwrap().admission;
        let limits = (
            admission.total,
            admission.per_address,
            admission.handshakes,
            admission.messages,
            admission.bytes,
        );
        assert_eq!(limits, (0, 0, 0, 0, 0));
        assert!(admission.origins.is_empty() && admission.hosts.is_empty() && !admission.proxy.is_any());
    }

    #[test]
    fn the_file_says_the_same_as_the_command_line() {
        let text = r#"
            max_connections_total = 5
            max_connections_per_address = 4
            max_handshakes_per_address = 3
            max_message_rate = 2
            max_byte_rate = "1K"
            allow_origin = ["https://a.example", "null"]
            allow_host = "*.example"
            trust_proxy = ["10.1.2.3/8", "::1", "unix"]
            proxy_protocol = true
        "#;
        let line = "--max-connections-total=5 --max-connections-per-address=4 --max-handshakes-per-address=3 \
                    --max-message-rate=2 --max-byte-rate=1K --allow-origin=https://a.example --allow-origin=null \
                    --allow-host=*.example --trust-proxy=10.0.0.0/8 --trust-proxy=::1/128 --trust-proxy=unix \
                    --proxy-protocol";
        let line: Vec<&str> = line.split_whitespace().collect();
        let [file, line] = [config(text, &[]), config("", &line)].map(|config| config.unwrap().admission);
        assert_eq!(format!("{file:?}"), format!("{line:?}"));
        assert_eq!((file.total, file.bytes, file.origins.len()), (5, 1024, 2));
        let trusts = |ip: &str| file.proxy.trusts(Some(ip.parse().unwrap()));
        assert!(
            trusts("10.255.0.1") && trusts("::1") && trusts("::ffff:10.0.0.1") && file.proxy.trusts(None)
        );
        assert!(!trusts("11.0.0.1") && !trusts("::2"));
    }

    #[test]
    fn a_handler_has_origins_of_its_own() {
        let text = "allow_origin = 'https://a'\n[handler.'/x']\nallow_origin = ['https://b', 'null']\n\
                    [handler.'/y']\n";
        let admission = config(text, &[]).unwrap().admission;
        let counts = ["/x", "/y", "/z"].map(|resource| admission.origins_of(resource).len());
        assert_eq!(counts, [2, 1, 1]);
        assert!(admission.origins_of("/x")[0].allows(b"https://b"));
        fails(
            "[handler.'/x']\nallow_origin = 'b'\n",
            "w.conf:2: allow_origin = 'b': expected an origin such as https://example.com or \
             https://*.example.com:8443, null or *",
        );
    }

    #[test]
    fn values_that_are_wrong() {
        for (line, expected) in [
            ("allow_host = 'http://a'", "expected a host such as example.com, *.example.com or [::1]:8443"),
            (
                "trust_proxy = '10.0.0.0/33'",
                "expected an address such as 10.0.0.1, a network such as 10.0.0.0/8, or unix",
            ),
            (
                "trust_proxy = '::ffff:10.0.0.1'",
                "expected an address such as 10.0.0.1, a network such as 10.0.0.0/8, or unix",
            ),
            ("max_handshakes_per_address = 65536", "65536 is not in 0..=65535"),
        ] {
            fails(&format!("{line}\n"), &format!("w.conf:1: {line}: {expected}"));
        }
        fails(
            "proxy_protocol = true\n",
            "w.conf:1: proxy_protocol: expected --trust-proxy beside it, which says from whom",
        );
    }
}
