//! Resolves the settings of the engine of the bus. Reads the named files, with the privileges of the supervisor.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_nats::ConnectOptions;
use nkeys::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Error, Values, outside};
use crate::config::bus::{Credentials, Engine, Identity, Kind, Server, Tls};

/// Maximum bytes of the prefix.
const MAX_PREFIX: usize = 64;
/// Maximum number of servers.
const MAX_SERVERS: usize = 32;

const URL: &str = "expected nats://, tls://, redis:// or rediss:// and HOST[:PORT]";

/// The settings as given.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// The servers, if there is an engine.
    pub servers: Option<Servers>,
    /// File with user and password, or with credentials of NATS.
    pub credentials: Option<PathBuf>,
    /// File of trusted certificates.
    pub ca: Option<PathBuf>,
    /// File of the client certificate, with its chain.
    pub certificate: Option<PathBuf>,
    /// File of its private key.
    pub private_key: Option<PathBuf>,
    /// Prefix of subjects.
    pub prefix: String,
    /// Maximum bytes queued in each direction.
    pub queue: usize,
}

/// Servers of one engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers {
    kind: Kind,
    has_tls: bool,
    /// At least one, unless `has_secret`.
    servers: Vec<Server>,
    /// Whether an address has a password, which an error must not show; the rest is not filled in then.
    has_secret: bool,
}

/// The engine, if there is one.
pub fn engine(draft: &Draft, given: &Values) -> Result<Option<Engine>, Error> {
    let Some(Servers { kind, has_tls, servers, has_secret }) = draft.servers.clone() else {
        // Not bus_prefix and bus_queue, whose defaults are in a file written by `wshd config`.
        let others = ["bus_credentials", "bus_ca", "bus_certificate", "bus_private_key"];
        return match others.iter().find(|name| given.get(name).is_some()) {
            Some(name) => Err(given.wrong(name, "needs bus")),
            None => Ok(None),
        };
    };
    if has_secret {
        let why = "expected no credentials in an address: give them in a file, bus_credentials";
        return Err(given.wrong("bus", why));
    }
    let credentials = draft.credentials.as_deref().map(|path| credentials(path, kind)).transpose();
    let credentials = credentials.map_err(|why| given.unusable("bus_credentials", why))?;
    let tls = tls(draft, has_tls, given)?;
    let (prefix, queue) = (draft.prefix.clone(), draft.queue);
    Ok(Some(Engine { kind, tls, servers, prefix, credentials, queue }))
}

/// The TLS settings, if TLS is used. Builds the client once, so that errors are found before the bus connects.
fn tls(draft: &Draft, has_tls: bool, given: &Values) -> Result<Option<Tls>, Error> {
    if !has_tls {
        let files = ["bus_ca", "bus_certificate", "bus_private_key"];
        return match files.iter().find(|name| given.get(name).is_some()) {
            Some(name) => Err(given.wrong(name, "expected tls:// or rediss:// in bus")),
            None => Ok(None),
        };
    }
    let ca = draft.ca.as_deref().map(certificates).transpose();
    let ca = ca.map_err(|why| given.unusable("bus_ca", why))?.unwrap_or_default();
    let identity = match (&draft.certificate, &draft.private_key) {
        (None, None) => None,
        (Some(_), None) => return Err(given.wrong("bus_certificate", "needs bus_private_key")),
        (None, Some(_)) => return Err(given.wrong("bus_private_key", "needs bus_certificate")),
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate).map_err(|why| given.unusable("bus_certificate", why))?;
            let key = private_key(key).map_err(|why| given.unusable("bus_private_key", why))?;
            Some(Identity { chain, key: Arc::new(key) })
        }
    };
    let tls = Tls { ca, identity };
    let roots = tls.roots().map_err(|why| given.unusable("bus_ca", why))?;
    tls.client(roots).map_err(|why| given.unusable("bus_private_key", why))?;
    Ok(Some(tls))
}

/// Parses addresses of servers of one engine, separated by commas.
pub fn servers(texts: &[String]) -> Result<Servers, String> {
    // Refused later: an error of this function is shown with the value.
    if texts.iter().any(|text| text.contains('@')) {
        return Ok(Servers { kind: Kind::Nats, has_tls: false, servers: Vec::new(), has_secret: true });
    }
    let mut all: Option<Servers> = None;
    for url in texts.iter().flat_map(|text| text.split(',')) {
        let (kind, has_tls, server) = server(url.trim())?;
        let new = || Servers { kind, has_tls, servers: Vec::new(), has_secret: false };
        let all = all.get_or_insert_with(new);
        if (all.kind, all.has_tls) != (kind, has_tls) {
            return Err("expected servers of one engine, all with the same scheme".to_owned());
        }
        all.servers.push(server);
    }
    all.filter(|all| all.servers.len() <= MAX_SERVERS)
        .ok_or_else(|| format!("expected 1 to {MAX_SERVERS} servers"))
}

/// Parses an address: kind, whether with TLS, and server.
fn server(url: &str) -> Result<(Kind, bool, Server), String> {
    let (scheme, rest) = url.split_once("://").ok_or(URL)?;
    let (kind, has_tls) = match scheme {
        "nats" => (Kind::Nats, false),
        "tls" => (Kind::Nats, true),
        "redis" => (Kind::Redis, false),
        "rediss" => (Kind::Redis, true),
        _ => return Err(format!("unknown scheme {scheme}://: {URL}")),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || !host.chars().all(is_host) {
        return Err(URL.to_owned());
    }
    let port = match (port, kind) {
        (Some(port), _) => {
            port.parse().ok().filter(|port| *port > 0).ok_or("expected a port from 1 to 65535")?
        }
        (None, Kind::Nats) => 4222,
        (None, Kind::Redis) => 6379,
    };
    Ok((kind, has_tls, Server { host: host.to_owned(), port }))
}

/// Checks the prefix of subjects: words separated by dots.
pub fn prefix(text: &str) -> Result<String, String> {
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    match text.len() <= MAX_PREFIX && text.split('.').all(is_word) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "expected words of letters, digits, - and _ with dots between, {MAX_PREFIX} bytes at most"
        )),
    }
}

fn credentials(path: &Path, kind: Kind) -> Result<Credentials, String> {
    let text = secret(path)?;
    if text.contains("-----BEGIN NATS USER JWT-----") {
        if kind != Kind::Nats {
            return Err("expected a password: only NATS accepts a JWT".to_owned());
        }
        ConnectOptions::new().credentials(&text).map_err(|error| error.to_string())?;
        return Ok(Credentials::Jwt(text));
    }
    let lines: Vec<&str> = text.lines().collect();
    match lines[..] {
        [seed] if kind == Kind::Nats && is_seed(seed) => match KeyPair::from_seed(seed) {
            Ok(_) if seed.starts_with("SU") => Ok(Credentials::Nkey(seed.to_owned())),
            Ok(_) => Err("expected the seed of a user's nkey, which begins with SU".to_owned()),
            Err(error) => Err(format!("not the seed of an nkey: {error}")),
        },
        [secret] if !secret.is_empty() => Ok(Credentials::Password { user: None, secret: secret.to_owned() }),
        [user, secret] if !user.is_empty() && !secret.is_empty() => {
            Ok(Credentials::Password { user: Some(user.to_owned()), secret: secret.to_owned() })
        }
        _ => Err(
            "expected a line with the user and one with the password, one line with a password or token, \
                  or for NATS the seed of an nkey or a file with a JWT and its seed"
                .to_owned(),
        ),
    }
}

/// Whether this has the form of the seed of an nkey.
fn is_seed(text: &str) -> bool {
    text.len() == 58
        && text.starts_with('S')
        && text.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'))
}

/// Reads a file that others must not be able to access.
fn secret(path: &Path) -> Result<String, String> {
    outside::check_secret(path)?;
    outside::read_text(path)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(secret(path)?.as_bytes())
        .map_err(|_| "expected a private key in PEM, without a passphrase".to_owned())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = outside::read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    certificates
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| "expected certificates in PEM".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::tests::{config, fails};
    use super::*;

    fn of(text: &str) -> Result<(Kind, bool, String), String> {
        let Servers { kind, has_tls, servers, .. } = servers(&[text.to_owned()])?;
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        Ok((kind, has_tls, servers.join(" ")))
    }

    #[test]
    fn addresses_of_servers() {
        assert_eq!(of("nats://a"), Ok((Kind::Nats, false, "a:4222".to_owned())));
        assert_eq!(of("tls://a:1, tls://[::1]:2"), Ok((Kind::Nats, true, "a:1 [::1]:2".to_owned())));
        assert_eq!(of("rediss://10.0.0.1/"), Ok((Kind::Redis, true, "10.0.0.1:6379".to_owned())));
        for (text, expected) in [
            ("a:4222", "expected nats://"),
            ("http://a", "unknown scheme http://"),
            ("nats://", "expected nats://"),
            ("redis://a/1", "expected nats://"),
            ("nats://a:0", "1 to 65535"),
            ("nats://a,redis://b", "of one engine"),
            ("nats://a,tls://b", "of one engine"),
        ] {
            assert!(of(text).unwrap_err().contains(expected), "{text}: {:?}", of(text));
        }
    }

    #[test]
    fn an_engine_is_optional_and_its_secrets_come_from_a_file() {
        assert_eq!(config("", &[]).unwrap().bus, None);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        let text = format!("bus = 'redis://a'\nbus_credentials = '{}'\n", file.display());
        let written = |content: &str, mode: u32| {
            std::fs::write(&file, content).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            config(&text, &[]).map(|config| config.bus.unwrap().credentials.clone().unwrap())
        };
        let secret = |user: Option<&str>| Credentials::Password {
            user: user.map(str::to_owned),
            secret: "a:b c".to_owned(),
        };
        assert_eq!(written("ann\na:b c\n", 0o640).unwrap(), secret(Some("ann")));
        assert_eq!(written("a:b c", 0o600).unwrap(), secret(None));
        assert!(!format!("{:?}", written("ann\na:b c\n", 0o600).unwrap()).contains("a:b"));
        for (content, mode, expected) in [
            ("a", 0o604, "others can read this secret, mode 0604"),
            ("", 0o600, "a line with the user"),
            ("a\nb\nc\n", 0o600, "a line with the user"),
            ("-----BEGIN NATS USER JWT-----", 0o600, "only NATS accepts a JWT"),
        ] {
            let why = written(content, mode).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn credentials_of_nats() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        let text = format!("bus = 'nats://a'\nbus_credentials = '{}'\n", file.display());
        let written = |content: &str| {
            std::fs::write(&file, content).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            config(&text, &[]).map(|config| config.bus.unwrap().credentials.clone().unwrap())
        };
        let seed = KeyPair::new_user().seed().unwrap();
        assert_eq!(written(&format!("{seed}\n")).unwrap(), Credentials::Nkey(seed.clone()));
        let creds = |jwt: &str, seed: &str| {
            format!(
                "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
                 -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
            )
        };
        let whole = creds("eyJ0.e30.sig", &seed);
        let taken = written(&whole).unwrap();
        assert_eq!(taken, Credentials::Jwt(whole));
        assert_eq!(format!("{taken:?}"), "Jwt");
        let account = KeyPair::new_account().seed().unwrap();
        let other = if &seed[10..11] == "A" { "B" } else { "A" };
        let broken = [&seed[..10], other, &seed[11..]].concat();
        for (content, expected) in [
            (account.as_str(), "which begins with SU"),
            (&broken, "not the seed of an nkey: "),
            (&creds("eyJ0.e30.sig", ""), "cannot parse nkey"),
            (&creds("eyJ0.e30.sig", &broken), "w.conf:2: bus_credentials"),
        ] {
            let why = written(content).unwrap_err();
            assert!(why.contains(expected) && !why.contains(&seed[12..50]), "{why}");
        }
    }

    #[test]
    fn a_client_certificate_needs_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for name in ["one", "other"] {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
            let certificate = params.self_signed(&key).unwrap().pem();
            for (file, text, mode) in
                [(path(name), certificate, 0o644), (path(name) + ".key", key.serialize_pem(), 0o600)]
            {
                std::fs::write(&file, text).unwrap();
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        let with = |certificate: &str, key: &str| {
            let text = format!(
                "bus = 'tls://a'\nbus_ca = '{}'\nbus_certificate = '{}'\nbus_private_key = '{}'\n",
                path("one"),
                path(certificate),
                path(key)
            );
            config(&text, &[]).map(|config| config.bus.unwrap().tls.clone().unwrap().identity.unwrap())
        };
        let identity = with("one", "one.key").unwrap();
        assert_eq!(identity.chain.len(), 1);
        assert!(format!("{identity:?}").contains("secret key elided"));
        for (certificate, key, expected) in [
            ("other", "one.key", "the key does not belong to the certificate"),
            ("one.key", "one.key", "expected certificates in PEM"),
            ("one", "one", "others can read this secret"),
            ("absent", "one.key", "w.conf:3: bus_certificate"),
        ] {
            let why = with(certificate, key).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn conflicting_settings() {
        fails("bus_ca = '/a'", "w.conf:1: bus_ca: needs bus");
        let why = "expected no credentials in an address: give them in a file, bus_credentials";
        // Whatever else is wrong.
        for url in
            ["nats://b,nats://ann:secret@a", "nats://ann:secret@a:0", "http://ann:secret@a", "ann:secret@a"]
        {
            fails(&format!("bus = '{url}'"), &format!("w.conf:1: bus: {why}"));
        }
        for name in ["bus_ca", "bus_certificate", "bus_private_key"] {
            let why = format!("w.conf:2: {name}: expected tls:// or rediss:// in bus");
            fails(&format!("bus = 'nats://a'\n{name} = '/ca'"), &why);
        }
        let why = "w.conf:2: bus_certificate: needs bus_private_key";
        fails("bus = 'tls://a'\nbus_certificate = '/a'", why);
        let why = "w.conf:2: bus_private_key: needs bus_certificate";
        fails("bus = 'tls://a'\nbus_private_key = '/a'", why);
        for wrong in ["", ".a", "a..b", "a b", "a*", &"a".repeat(65)] {
            assert!(prefix(wrong).is_err(), "{wrong}");
        }
    }
}
