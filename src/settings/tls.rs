//! Resolves the TLS and HTTP/2 settings of the server's own listeners, and of tables `[[listener]]`.

use std::path::PathBuf;

use super::account::identity;
use super::resolve::{absolute, cores};
use super::{Error, Values, draft};
use crate::config::gateway::{CertificateFiles, ClientAuth, GatewayListener, Protocol, Tls};
use crate::config::{Config, Listen};

/// The settings of a listener, as given.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// TLS is enabled.
    pub is_tls: bool,
    /// Settings of TLS that can be assigned directly.
    pub tls: Tls,
    /// Files of certificates.
    pub certificates: Vec<PathBuf>,
    /// Files of their keys, in the same order.
    pub keys: Vec<PathBuf>,
    /// Client certificates are requested.
    pub asks_clients: bool,
    /// Client certificates are optional.
    pub is_client_optional: bool,
    /// Trusted issuers of client certificates.
    pub client_ca: Option<PathBuf>,
    /// HTTP/2 without TLS.
    pub is_h2c: bool,
    /// Requests are redirected to https.
    pub redirects: bool,
    /// Host that they are redirected to.
    pub redirect_host: Option<String>,
}

impl Draft {
    /// The protocol; `None`: HTTP/1.1 without TLS, which workers accept.
    fn protocol(self, given: &Values) -> Result<Option<Protocol>, Error> {
        let kinds = [("tls", self.is_tls), ("h2c", self.is_h2c), ("redirect_to_https", self.redirects)];
        let mut chosen = kinds.into_iter().filter_map(|(name, is_chosen)| is_chosen.then_some(name));
        match (chosen.next(), chosen.next()) {
            // Certificates of the server may be for listeners with tables.
            (None, _) => Ok(None),
            (Some(first), Some(second)) => {
                Err(given.wrong(second, format!("cannot be combined with {first}")))
            }
            (Some("tls"), None) => Ok(Some(Protocol::Tls(Box::new(self.tls(given)?)))),
            (Some("h2c"), None) => Ok(Some(Protocol::H2c)),
            (Some(_), None) => Ok(Some(Protocol::Redirect { to: self.redirect_host })),
        }
    }

    fn tls(self, given: &Values) -> Result<Tls, Error> {
        if self.certificates.is_empty() {
            return Err(given.wrong("tls", "needs certificate and private_key"));
        }
        if self.certificates.len() != self.keys.len() {
            let why = format!("expected {} keys, as many as certificates", self.certificates.len());
            return Err(given.wrong("private_key", why));
        }
        let absolute = |path: PathBuf| absolute(&path);
        let pairs = self.certificates.into_iter().map(absolute).zip(self.keys.into_iter().map(absolute));
        let client_auth = match (self.asks_clients, self.client_ca) {
            (false, None) if self.is_client_optional => {
                return Err(given.wrong("tls_client_cert_optional", "needs tls_client_auth"));
            }
            (false, None) => None,
            (false, Some(_)) => {
                return Err(given.wrong("tls_client_ca", "needs tls_client_auth"));
            }
            (true, None) => return Err(given.wrong("tls_client_auth", "needs tls_client_ca")),
            (true, Some(ca)) => Some(ClientAuth { ca: absolute(ca), is_optional: self.is_client_optional }),
        };
        let certificates = pairs.map(|(certificate, key)| CertificateFiles { certificate, key }).collect();
        Ok(Tls { certificates, client_auth, ..self.tls })
    }
}

/// Applies the settings of the server.
pub fn server(draft: &draft::Draft, given: &Values, config: &mut Config) -> Result<(), Error> {
    let gateway = &mut config.gateway;
    gateway.processes = draft.gateways.unwrap_or((cores() / 2).max(1));
    let identity = identity(draft.gateway_user.clone(), draft.gateway_group);
    (gateway.user, gateway.groups) = identity.map_err(|why| given.wrong("gateway_user", why))?;
    let protocol = draft.tls.clone().protocol(given)?;
    if let Some(protocol) = &protocol {
        let listener =
            |listen: &_| GatewayListener { listen: Clone::clone(listen), protocol: protocol.clone() };
        gateway.listeners = config.listen.iter().map(listener).collect();
    }
    gateway.passed = protocol;
    Ok(())
}

/// Applies the table of a listener.
pub fn listener(draft: Draft, given: &Values, listen: &Listen, config: &mut Config) -> Result<(), Error> {
    let listeners = &mut config.gateway.listeners;
    listeners.retain(|known| known.listen != *listen);
    if let Some(protocol) = draft.protocol(given)? {
        listeners.push(GatewayListener { listen: listen.clone(), protocol });
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{config, fails};
    use super::*;

    fn protocols(text: &str) -> Vec<(String, Protocol)> {
        let gateway = config(text, &[]).unwrap().gateway;
        let listeners = gateway.listeners.into_iter();
        listeners.map(|listener| (listener.listen.to_string(), listener.protocol)).collect()
    }

    #[test]
    fn each_listener_has_its_own_protocol() {
        let text = r#"
            certificate = "/c.pem"
            private_key = "/k.pem"
            hsts = "1h"
            [[listener]]
            address = "0.0.0.0:443"
            tls = true
            tls_min_version = "1.3"
            [[listener]]
            address = "[::]:444"
            tls = true
            certificate = ["/a.pem", "/b.pem"]
            private_key = ["/a.key", "/b.key"]
            http2 = false
            [[listener]]
            address = "0.0.0.0:80"
            redirect_to_https = true
            [[listener]]
            address = "unix:/run/h2c"
            h2c = true
            [[listener]]
            address = "127.0.0.1:81"
        "#;
        let config = config(text, &[]).unwrap();
        let addresses: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["0.0.0.0:443", "[::]:444", "0.0.0.0:80", "unix:/run/h2c", "127.0.0.1:81"]);
        let [(first, Protocol::Tls(one)), (second, Protocol::Tls(other)), (_, redirect), (_, h2c)] =
            &protocols(text)[..]
        else {
            panic!("{:?}", protocols(text))
        };
        assert_eq!((first.as_str(), second.as_str()), ("0.0.0.0:443", "[::]:444"));
        assert_eq!((redirect, h2c), (&Protocol::Redirect { to: None }, &Protocol::H2c));
        assert!(!one.has_tls12 && one.has_http2 && one.hsts == Some(Duration::from_secs(3600)));
        assert!(other.has_tls12 && !other.has_http2 && other.certificates.len() == 2);
    }

    #[test]
    fn listeners_without_a_table_have_the_servers_protocol() {
        let text = "tls = true\ncertificate = '/c'\nprivate_key = '/k'\nserver_host = ['::1', '127.0.0.1']\n";
        let addresses: Vec<String> = protocols(text).into_iter().map(|(address, _)| address).collect();
        assert_eq!(addresses, ["[::1]:8080", "127.0.0.1:8080"]);
        assert!(config(text, &[]).unwrap().gateway.passed.is_some());
        assert!(!config("", &[]).unwrap().gateway.serves());
    }

    #[test]
    fn conflicting_settings() {
        let pair = "certificate = '/c'\nprivate_key = '/k'\n";
        for (text, expected) in [
            ("tls = true", "1: tls: needs certificate and private_key"),
            (
                "certificate = ['/a', '/b']\nprivate_key = '/k'\ntls = true",
                "2: private_key: expected 2 keys, as many as certificates",
            ),
            (&format!("tls = true\nh2c = true\n{pair}"), "2: h2c: cannot be combined with tls"),
            (
                &format!("tls = true\ntls_client_auth = true\n{pair}"),
                "2: tls_client_auth: needs tls_client_ca",
            ),
            (&format!("tls = true\ntls_client_ca = '/a'\n{pair}"), "2: tls_client_ca: needs tls_client_auth"),
            (
                "[[listener]]\naddress = 'a:1'\ntls_min_version = '1.1'",
                "3: tls_min_version = '1.1': expected one of 1.2, 1.3",
            ),
        ] {
            fails(text, &format!("w.conf:{expected}"));
        }
    }
}
