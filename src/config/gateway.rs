//! Listeners of gateways, which terminate TLS and HTTP/2.

use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{Gid, Uid};

use crate::fleet::sockets::listener::Listen;

/// The gateways, and what they listen on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gateway {
    /// Number of processes, at least 1 if there are listeners.
    pub processes: usize,
    /// User of the processes; only with groups, and only if the server is root.
    pub user: Option<Uid>,
    /// Groups of the processes, the primary one first; none: those of the server.
    pub groups: Vec<Gid>,
    /// Their listeners among [`Config::listen`](super::Config::listen).
    pub listeners: Vec<GatewayListener>,
    /// Protocol of the sockets passed by the service manager; none: the workers accept from them.
    pub passed: Option<Protocol>,
}

impl Gateway {
    /// Whether there are listeners for gateways.
    pub fn serves(&self) -> bool {
        !self.listeners.is_empty() || self.passed.is_some()
    }

    /// The protocol of a listener, if gateways accept from it. `asked` is `None` for a socket of the service manager.
    pub fn protocol(&self, asked: Option<&Listen>) -> Option<&Protocol> {
        match asked {
            None => self.passed.as_ref(),
            Some(asked) => {
                let known = self.listeners.iter().find(|listener| listener.listen == *asked);
                known.map(|listener| &listener.protocol)
            }
        }
    }
}

/// One listener.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayListener {
    /// Its address.
    pub listen: Listen,
    /// What its connections speak.
    pub protocol: Protocol,
}

/// What the connections of a listener speak.
#[derive(Clone, Debug, PartialEq)]
pub enum Protocol {
    /// TLS.
    Tls(Box<Tls>),
    /// HTTP/2 with prior knowledge (RFC 9113 section 3.3), or HTTP/1.1.
    H2c,
    /// HTTP/1.1; every request is redirected to https.
    Redirect {
        /// Host, and port if it is not 443; none: the host of the request.
        to: Option<String>,
    },
}

/// TLS settings of a listener.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tls {
    /// Never empty; the first one is the default.
    pub certificates: Vec<CertificateFiles>,
    /// Whether TLS 1.2 is enabled besides TLS 1.3.
    pub has_tls12: bool,
    /// Names of the cipher suites; empty: all.
    pub ciphers: Vec<String>,
    /// Whether HTTP/2 is offered (ALPN `h2`).
    pub has_http2: bool,
    /// Whether sessions can be resumed.
    pub has_tickets: bool,
    /// Whether clients must, or may, have a certificate.
    pub client_auth: Option<ClientAuth>,
    /// The max-age of Strict-Transport-Security; none: the header is not sent.
    pub hsts: Option<Duration>,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The server's certificate, then the intermediate ones.
    pub certificate: PathBuf,
    /// Its private key; may be the same file.
    pub key: PathBuf,
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// PEM file of the trusted issuers.
    pub ca: PathBuf,
    /// Whether a client may connect without one.
    pub is_optional: bool,
}
