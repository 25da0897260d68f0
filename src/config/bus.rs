//! The engine that joins topics with those of other machines.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// How to reach it.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    /// What it is.
    pub kind: Kind,
    /// How TLS is spoken, if it is.
    pub tls: Option<Tls>,
    /// Its servers, at least one.
    pub servers: Vec<Server>,
    /// What subjects or channels begin with.
    pub prefix: String,
    /// What to prove, if anything.
    pub credentials: Option<Credentials>,
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

/// What both ends of TLS prove.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// The authorities that may have issued the engine's certificate; none: those of the system.
    pub ca: Vec<CertificateDer<'static>>,
    /// The certificate shown to the engine, if there is one.
    pub identity: Option<Identity>,
}

/// A certificate with its chain, and its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Its own first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Does not show itself in [`fmt::Debug`].
    pub key: Arc<PrivateKeyDer<'static>>,
}

impl Tls {
    /// The authorities that are trusted.
    pub fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        for certificate in &self.ca {
            roots.add(certificate.clone()).map_err(|error| error.to_string())?;
        }
        if self.ca.is_empty() {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        match roots.is_empty() {
            true => Err("the system trusts no certificates: name a file of them".to_owned()),
            false => Ok(roots),
        }
    }

    /// The end of TLS that the bus is. Fails if the certificate does not belong to its key.
    pub fn client(&self, roots: RootCertStore) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| error.to_string())?.with_root_certificates(roots);
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some(Identity { chain, key }) => {
                let client = builder.with_client_auth_cert(chain.clone(), key.clone_key());
                client.map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => {
                        "the key does not belong to the certificate".to_owned()
                    }
                    error => error.to_string(),
                })
            }
        }
    }
}

/// What the engine is told of who connects.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user, if one is named, and a password; without a user it may be a token.
    Password {
        /// The name of the user.
        user: Option<String>,
        /// The password or token.
        secret: String,
    },
    /// Of NATS: the text of a file with a JWT and the seed of its key.
    Jwt(String),
    /// Of NATS: the seed of a user's key.
    Nkey(String),
}

/// No secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Password { user, .. } => write!(f, "Password({user:?})"),
            Credentials::Jwt(_) => f.write_str("Jwt"),
            Credentials::Nkey(_) => f.write_str("Nkey"),
        }
    }
}
