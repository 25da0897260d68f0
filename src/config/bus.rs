//! The engine that shares topics with other machines.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// How to connect to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    /// Its kind.
    pub kind: Kind,
    /// TLS settings; none: without TLS.
    pub tls: Option<Tls>,
    /// Its servers, at least one.
    pub servers: Vec<Server>,
    /// Prefix of subjects or channels.
    pub prefix: String,
    /// Credentials, if it requires any.
    pub credentials: Option<Credentials>,
    /// Maximum bytes in the queue to it, and in the queue from it.
    pub queue: usize,
}

impl Engine {
    /// Its kind and servers.
    pub fn name(&self) -> String {
        let servers: Vec<String> = self.servers.iter().map(ToString::to_string).collect();
        let name = match self.kind {
            Kind::Nats => "NATS",
            Kind::Redis => "Redis",
        };
        format!("{name} at {}", servers.join(", "))
    }
}

/// Kind of an engine.
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

/// TLS settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// Trusted issuers of the engine's certificate; none: those of the system.
    pub ca: Vec<CertificateDer<'static>>,
    /// The client certificate, if there is one.
    pub identity: Option<Identity>,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// The certificate, then the intermediate ones.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key; not shown by [`fmt::Debug`].
    pub key: Arc<PrivateKeyDer<'static>>,
}

impl Tls {
    /// The trusted authorities.
    pub fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        for certificate in &self.ca {
            roots.add(certificate.clone()).map_err(|error| error.to_string())?;
        }
        if self.ca.is_empty() {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        match roots.is_empty() {
            true => Err("the system has no trusted certificates; set bus_ca".to_owned()),
            false => Ok(roots),
        }
    }

    /// The configuration of the TLS client. Fails if the certificate does not match its key.
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

/// Credentials for the engine.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User and password, a password only, or a token.
    Password {
        /// The name of the user.
        user: Option<String>,
        /// The password or token.
        secret: String,
    },
    /// NATS: the text of a file with a JWT and the seed of its key.
    Jwt(String),
    /// NATS: the seed of a user's key.
    Nkey(String),
}

/// Without secrets.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Password { user, .. } => write!(f, "Password({user:?})"),
            Credentials::Jwt(_) => f.write_str("Jwt"),
            Credentials::Nkey(_) => f.write_str("Nkey"),
        }
    }
}
