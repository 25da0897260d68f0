//! The rustls configuration of a listener: certificates, versions, ciphers and protocols.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::certificate::{Certificate, roots};
use super::tickets::Tickets;
use crate::config::gateway::Tls;

/// A listener's TLS, ready for handshakes.
#[derive(Debug)]
pub struct Acceptor {
    /// For rustls.
    pub config: Arc<ServerConfig>,
    /// Chooses the certificate, and remembers the requested name.
    pub resolver: Arc<Resolver>,
    /// When its first certificate expires; time since the epoch.
    pub expires: Duration,
    /// File of that certificate.
    pub first_to_expire: String,
}

impl Acceptor {
    /// Reads all files. `salt`: see [`Tickets`].
    pub fn load(tls: &Tls, salt: &[u8]) -> Result<Self, String> {
        let provider = provider(&tls.ciphers)?;
        let read = |files| Certificate::read(files, &provider).map(|certificate| (files, certificate));
        let certificates = tls.certificates.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let first = certificates.iter().min_by_key(|(_, certificate)| certificate.expires);
        let (files, first) = first.ok_or("a TLS listener needs a certificate")?;
        let (expires, first_to_expire) = (first.expires, files.certificate.display().to_string());
        let resolver = Arc::new(Resolver::new(certificates.iter().map(|(_, certificate)| certificate))?);
        let versions: &[&SupportedProtocolVersion] =
            if tls.has_tls12 { &[&TLS13, &TLS12] } else { &[&TLS13] };
        let provider = Arc::new(provider);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(versions).map_err(|error| error.to_string())?;
        // What tickets depend on: a resumed session is not asked for a certificate.
        let mut rules = Vec::new();
        let builder = match &tls.client_auth {
            None => builder.with_no_client_auth(),
            Some(auth) => {
                let roots = Arc::new(roots(&auth.ca)?);
                rules.push(u8::from(auth.is_optional) + 1);
                for anchor in &roots.roots {
                    let constraints = anchor.name_constraints.as_deref().unwrap_or_default();
                    for part in [&*anchor.subject, &*anchor.subject_public_key_info, constraints] {
                        rules.extend_from_slice(&(part.len() as u64).to_be_bytes());
                        rules.extend_from_slice(part);
                    }
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = if auth.is_optional { verifier.allow_unauthenticated() } else { verifier };
                let failed = |error| format!("CA file {}: {error}", auth.ca.display());
                builder.with_client_cert_verifier(verifier.build().map_err(failed)?)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::clone(&resolver) as Arc<dyn ResolvesServerCert>);
        let protocols: &[&[u8]] = if tls.has_http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        // No session cache: the other gateways could not use it.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if tls.has_tickets {
            let keys = certificates.iter().map(|(_, certificate)| certificate.key.secret_der());
            config.ticketer = Arc::new(Tickets::new(keys, &rules, salt));
            config.send_tls13_tickets = 1;
        }
        Ok(Self { config: Arc::new(config), resolver, expires, first_to_expire })
    }
}

/// A provider with these cipher suites, in this order; none named: all.
fn provider(ciphers: &[String]) -> Result<CryptoProvider, String> {
    let mut provider = provider::default_provider();
    if ciphers.is_empty() {
        return Ok(provider);
    }
    let known = provider.cipher_suites;
    let name =
        |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
    let find = |wanted: &String| {
        let found = known.iter().find(|suite| name(suite) == *wanted).copied();
        let all = || known.iter().map(name).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| format!("cipher {wanted}: expected one of {}", all()))
    };
    provider.cipher_suites = ciphers.iter().map(find).collect::<Result<_, _>>()?;
    Ok(provider)
}

/// Chooses a certificate by the requested server name.
#[derive(Debug)]
pub struct Resolver {
    /// By name, or `*.` and the name without its first label.
    by_name: HashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
    /// The last requested name: rustls does not return that of an unbuffered connection.
    asked: Mutex<Option<String>>,
}

impl Resolver {
    fn new<'a>(certificates: impl Iterator<Item = &'a Certificate>) -> Result<Self, String> {
        let (mut by_name, mut default) = (HashMap::new(), None);
        for certificate in certificates {
            default.get_or_insert_with(|| Arc::clone(&certificate.certified));
            for name in &certificate.names {
                // The first certificate with a name is used.
                by_name.entry(name.clone()).or_insert_with(|| Arc::clone(&certificate.certified));
            }
        }
        let default = default.ok_or("a TLS listener needs a certificate")?;
        Ok(Self { by_name, default, asked: Mutex::default() })
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        self.by_name.get(name).or_else(|| self.by_name.get(&format!("*.{}", name.split_once('.')?.1)))
    }

    /// The name requested in the handshake that was just processed, if any.
    pub fn take_asked(&self) -> Option<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().map(str::to_ascii_lowercase);
        let found = asked.as_ref().and_then(|name| self.find(name)).unwrap_or(&self.default);
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = asked;
        Some(Arc::clone(found))
    }
}
