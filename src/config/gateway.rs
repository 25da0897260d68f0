//! Listeners whose connections come through gateways, which end TLS and HTTP/2.

use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{Gid, Uid};

use crate::fleet::listener::Listen;

/// The gateways, and what they listen on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gateway {
    /// Number of processes, at least 1 where there are listeners.
    pub processes: usize,
    /// The user that they run as; only with groups, and only when the server is root.
    pub user: Option<Uid>,
    /// Their groups, the first one first; none: those of the server.
    pub groups: Vec<Gid>,
    /// Listeners of theirs among [`Config::listen`](super::Config::listen).
    pub listeners: Vec<GatewayListener>,
    /// What sockets are that the service manager has bound; none: the workers accept from them.
    pub passed: Option<Entrance>,
}

impl Gateway {
    /// Whether there is anything for gateways to do.
    pub fn serves(&self) -> bool {
        !self.listeners.is_empty() || self.passed.is_some()
    }

    /// What connections to a listener begin with, if gateways accept them. `None` for a socket of the service manager.
    pub fn entrance(&self, asked: Option<&Listen>) -> Option<&Entrance> {
        match asked {
            None => self.passed.as_ref(),
            Some(asked) => {
                let known = self.listeners.iter().find(|listener| listener.listen == *asked);
                known.map(|listener| &listener.entrance)
            }
        }
    }
}

/// One listener.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayListener {
    /// Where.
    pub listen: Listen,
    /// What its connections begin with.
    pub entrance: Entrance,
}

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq)]
pub enum Entrance {
    /// A TLS handshake.
    Tls(Box<Tls>),
    /// HTTP/2 with prior knowledge (RFC 9113 section 3.3), or HTTP/1.1.
    H2c,
    /// A request that is redirected to https.
    Redirect {
        /// Host, and port where it is not 443; none: the host of the request.
        to: Option<String>,
    },
}

/// How a listener speaks TLS.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// Never empty; the first one is for clients whose server name no other one has.
    pub certificates: Vec<CertificateFiles>,
    /// Whether TLS 1.2 is spoken, too.
    pub has_tls12: bool,
    /// Names of the cipher suites; empty: all.
    pub ciphers: Vec<String>,
    /// Whether HTTP/2 is offered (ALPN `h2`).
    pub has_http2: bool,
    /// Whether sessions can be resumed.
    pub has_tickets: bool,
    /// Whether clients are asked for a certificate.
    pub client_auth: Option<ClientAuth>,
    /// The max-age of Strict-Transport-Security, where the header is sent.
    pub hsts: Option<Duration>,
}

impl Tls {
    /// With these certificates, and else as is best for most.
    pub fn new(certificates: Vec<CertificateFiles>) -> Self {
        Self {
            certificates,
            has_tls12: true,
            ciphers: Vec::new(),
            has_http2: true,
            has_tickets: true,
            client_auth: None,
            hsts: None,
        }
    }
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The server's certificate, then those that lead to a root.
    pub certificate: PathBuf,
    /// Its private key; may be the same file.
    pub key: PathBuf,
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// File in PEM of those who may have issued them.
    pub ca: PathBuf,
    /// Whether a client may have none.
    pub is_optional: bool,
}
