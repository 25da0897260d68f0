//! Reads certificates and keys from files, before the process gives up its privileges.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::config::gateway::CertificateFiles;
use crate::config::secret;

/// id-at-commonName.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// A certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    /// For rustls.
    pub certified: Arc<CertifiedKey>,
    /// The private key, from which ticket keys are derived.
    pub key: PrivateKeyDer<'static>,
    /// Its DNS names, in lower case; `*.example.com` matches names with one more label.
    pub names: Vec<String>,
    /// When it expires; time since the epoch.
    pub expires: Duration,
}

impl Certificate {
    /// Reads and checks the files. The error names the file and what is wrong with it.
    pub fn read(files: &CertificateFiles, provider: &CryptoProvider) -> Result<Self, String> {
        let path = files.certificate.as_path();
        let failed = |what: &str| format!("certificate {}: {what}", path.display());
        let chain = chain(path)?;
        let leaf = chain.first().ok_or_else(|| failed("no certificate in the file"))?;
        let parsed = x509_cert::Certificate::from_der(leaf).map_err(|error| failed(&error.to_string()))?;
        let validity = parsed.tbs_certificate.validity;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let expires = validity.not_after.to_unix_duration();
        if expires <= now {
            return Err(failed(&format!("expired on {}", validity.not_after)));
        }
        if validity.not_before.to_unix_duration() > now {
            return Err(failed(&format!("not valid before {}", validity.not_before)));
        }
        let names = names(&parsed);
        let key = key(&files.key)?;
        let signing = provider.key_provider.load_private_key(key.clone_key());
        let signing = signing.map_err(|error| format!("key {}: {error}", files.key.display()))?;
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("key {} does not match certificate {}", files.key.display(), path.display())
            }
            error => failed(&error.to_string()),
        })?;
        Ok(Self { certified: Arc::new(certified), key, names, expires })
    }
}

/// The authorities trusted for client certificates.
pub fn roots(path: &Path) -> Result<RootCertStore, String> {
    let failed = |what: &str| format!("CA file {}: {what}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in chain(path)? {
        roots.add(certificate).map_err(|error| failed(&error.to_string()))?;
    }
    match roots.is_empty() {
        true => Err(failed("no certificate in the file")),
        false => Ok(roots),
    }
}

/// The subject of a certificate in the form of RFC 4514; `None`: malformed.
pub fn subject(certificate: &[u8]) -> Option<String> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    Some(parsed.tbs_certificate.subject.to_string())
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: pem::Error| format!("certificate {}: {}", path.display(), text(&error));
    CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let failed = |why: &str| format!("key {}: {why}", path.display());
    secret::check_mode(path).map_err(|why| failed(&why))?;
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::NoItemsFound => failed("no private key in PEM without a passphrase"),
        error => failed(&text(&error)),
    })
}

/// The error without the crate's prefix to I/O errors.
fn text(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// Its DNS names; the common names if there are none (RFC 6125 section 6.4.4).
fn names(certificate: &x509_cert::Certificate) -> Vec<String> {
    let certificate = &certificate.tbs_certificate;
    if let Ok(Some((_, SubjectAltName(names)))) = certificate.get::<SubjectAltName>() {
        let names = names.into_iter().filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.to_string().to_ascii_lowercase()),
            _ => None,
        });
        return names.collect();
    }
    let subject = certificate.subject.0.iter().flat_map(|part| part.0.iter());
    let common = subject.filter(|part| part.oid == COMMON_NAME);
    common.filter_map(|part| str::from_utf8(part.value.value()).ok()).map(str::to_ascii_lowercase).collect()
}
