//! The engine that joins topics with those of other machines.

use std::fmt;

use rustls::pki_types::CertificateDer;

/// How to reach it.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    /// What it is.
    pub kind: Kind,
    /// Whether TLS is spoken.
    pub has_tls: bool,
    /// Its servers, at least one.
    pub servers: Vec<Server>,
    /// What subjects or channels begin with.
    pub prefix: String,
    /// What to prove, if anything.
    pub credentials: Option<Credentials>,
    /// The authorities that may have issued its certificate; none: those of the system.
    pub ca: Vec<CertificateDer<'static>>,
    /// Bytes that may wait on the way there, and as many on the way back.
    pub queue: usize,
}

impl Engine {
    /// What it is, and where.
    pub fn name(&self) -> String {
        let servers: Vec<String> = self.servers.iter().map(ToString::to_string).collect();
        let name = match self.kind {
            Kind::Nats => "NATS",
            Kind::Redis => "Redis",
        };
        format!("{name} at {}", servers.join(", "))
    }
}

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// NATS.
    Nats,
    /// Redis, or Valkey.
    Redis,
}

/// A server of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A user and a password, or a password or token alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user, if one is named.
    pub user: Option<String>,
    /// Password or token.
    pub secret: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({:?})", self.user)
    }
}
