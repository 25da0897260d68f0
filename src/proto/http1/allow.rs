//! Which origins and hosts are allowed: rules as an operator writes them, and what they match.
//!
//! Knows no request: what is to be matched is handed in.

use crate::proto::http1::authority::{Authority, port_of};

/// An origin (RFC 6454): `https://example.com`, `https://*.example.com:8443`, `null`, or `*` for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginRule {
    Any,
    /// What browsers send for pages without an origin that can be told.
    Null,
    /// Scheme, host, port.
    Tuple(String, HostPattern, Option<u16>),
}

/// A host of a request: `example.com`, `*.example.com`, `[::1]:8443`. Without a port, all ports; with 80 or 443 also
/// requests that name none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRule {
    name: HostPattern,
    port: Option<u16>,
}

/// A host, or with `*.` all names below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    /// `.example.com` where `is_suffix`.
    text: String,
    is_suffix: bool,
}

impl OriginRule {
    /// Reads a rule, or says what was expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str =
            "expected an origin such as https://example.com or https://*.example.com:8443, null or *";
        match text {
            "*" => return Ok(Self::Any),
            "null" => return Ok(Self::Null),
            _ => {}
        }
        let (scheme, host, port) = split_origin(text).ok_or(EXPECTED)?;
        Ok(Self::Tuple(scheme.to_ascii_lowercase(), HostPattern::parse(host).ok_or(EXPECTED)?, port))
    }

    /// Whether it allows the origin that a request names.
    pub fn allows(&self, origin: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Null => origin == b"null",
            Self::Tuple(scheme, name, port) => {
                let found = std::str::from_utf8(origin).ok().and_then(split_origin);
                found.is_some_and(|(its_scheme, host, its_port)| {
                    its_scheme.eq_ignore_ascii_case(scheme) && its_port == *port && name.is(host)
                })
            }
        }
    }
}

impl HostRule {
    /// Reads a rule, or says what was expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected a host such as example.com, *.example.com or [::1]:8443";
        let Authority { host, port } = Authority::parse(text).ok_or(EXPECTED)?;
        Ok(Self { name: HostPattern::parse(host).ok_or(EXPECTED)?, port })
    }

    /// Whether it allows what a request is for.
    pub fn allows(&self, asked: Authority<'_>) -> bool {
        let port = match (self.port, asked.port) {
            (None, _) | (Some(80 | 443), None) => true,
            (port, asked) => port == asked,
        };
        port && self.name.is(asked.host)
    }
}

impl HostPattern {
    fn parse(text: &str) -> Option<Self> {
        let (name, is_suffix) = match text.strip_prefix('*') {
            Some(suffix) => (suffix, true),
            None => (text, false),
        };
        let is_ipv6 = name.starts_with('[');
        let is_fit = match is_suffix {
            true => name.len() > 1 && name.starts_with('.'),
            false => !name.is_empty() && !name.starts_with('.'),
        };
        // Names in other scripts are compared in the form that is sent, xn--.
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let is_known = is_ipv6 || name.chars().all(is_name);
        (is_fit && is_known).then(|| Self { text: name.to_ascii_lowercase(), is_suffix })
    }

    fn is(&self, host: &str) -> bool {
        let rest = host.len().checked_sub(self.text.len());
        let same = rest.and_then(|at| host.get(at..)).is_some_and(|end| end.eq_ignore_ascii_case(&self.text));
        same && (rest == Some(0)) != self.is_suffix
    }
}

/// Scheme, host, and the port unless it is the scheme's own (RFC 6454 section 6.2 leaves that out).
fn split_origin(text: &str) -> Option<(&str, &str, Option<u16>)> {
    let (scheme, authority) = text.split_once("://")?;
    let is_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if scheme.is_empty() || !scheme.chars().all(is_scheme) {
        return None;
    }
    let Authority { host, port } = Authority::parse(authority)?;
    Some((scheme, host, port.filter(|port| Some(*port) != port_of(scheme))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn origin(rule: &str, origin: &str) -> bool {
        OriginRule::parse(rule).unwrap().allows(origin.as_bytes())
    }

    fn host(rule: &str, authority: &str) -> bool {
        Authority::parse(authority).is_some_and(|asked| HostRule::parse(rule).unwrap().allows(asked))
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert!(origin("https://example.com", "https://example.com"));
        assert!(origin("https://Example.com", "HTTPS://EXAMPLE.com"));
        assert!(origin("https://example.com:443", "https://example.com"));
        assert!(origin("http://[::1]:8080", "http://[::1]:8080"));
        assert!(origin("chrome-extension://abcdef", "chrome-extension://abcdef"));
        for other in [
            "http://example.com",
            "https://example.com:8443",
            "https://www.example.com",
            "https://example.com.evil.org",
            "https://evil-example.com",
            "https://example.com/",
            "https://example.com@evil.org",
            "null",
            "",
            "example.com",
        ] {
            assert!(!origin("https://example.com", other), "{other}");
        }
    }

    #[test]
    fn a_star_stands_for_one_name_or_more() {
        for (name, fits) in [
            ("https://a.example.com", true),
            ("https://a.b.Example.com", true),
            ("https://example.com", false),
            ("https://.example.com", false),
            ("https://evilexample.com", false),
            ("https://a.example.com:8443", false),
            ("https://a.example.com.org", false),
        ] {
            assert_eq!(origin("https://*.example.com", name), fits, "{name}");
        }
    }

    #[test]
    fn null_is_null_only() {
        assert!(origin("null", "null"));
        assert!(!origin("null", "NULL") && !origin("null", "https://null") && !origin("null", ""));
    }

    #[test]
    fn a_host_has_the_port_of_the_rule_or_any() {
        assert!(host("example.com", "example.com") && host("example.com", "EXAMPLE.com:8080"));
        assert!(host("example.com:8080", "example.com:8080") && !host("example.com:8080", "example.com"));
        assert!(host("*.example.com", "a.example.com:1") && !host("*.example.com", "example.com"));
        assert!(host("[::1]", "[::1]:80") && host("127.0.0.1", "127.0.0.1:80"));
        assert!(host("example.com", "example.com:") && !host("example.com", "example.org"));
    }

    /// Which of the two it is the server cannot know: TLS may have ended before it.
    #[test]
    fn a_request_without_a_port_is_for_that_of_its_scheme() {
        for rule in ["example.com:80", "example.com:443"] {
            assert!(host(rule, "example.com") && host(rule, "example.com:"), "{rule}");
            assert!(!host(rule, "example.com:8080"), "{rule}");
        }
        assert!(!host("example.com:80", "example.com:443") && !host("example.com:8080", "example.com:"));
    }

    #[test]
    fn rules_that_are_wrong() {
        assert!(origin("*", "https://example.com") && origin("*", "null"));
        for wrong in ["", "**", "example.com", "https://", "https://*", "https://*example.com", "https://a/b"]
        {
            assert!(OriginRule::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["https://a b", "https://exämple.com", "https://a.*.com", "://a", "https://*.", "NULL"]
        {
            assert!(OriginRule::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "*", "*.", "a:x", "a:70000", "http://a", "::1", "[::1", "a b", ".a"] {
            assert!(HostRule::parse(wrong).is_err(), "{wrong}");
        }
    }
}
