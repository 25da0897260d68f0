//! Host and port of a request: what Host, and a target in absolute form, name (RFC 9110 section 7.2, RFC 3986 section
//! 3.2). User names are refused, as RFC 9110 section 4.2.4 wants.

use std::net::Ipv6Addr;

/// `uri-host [ ":" port ]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// Never empty; an IPv6 address in its brackets.
    pub host: &'a str,
    /// `None` where none is named: the port of the scheme. An empty port is none (RFC 3986 section 3.2.3).
    pub port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Reads an authority; `None` if it is malformed or has no host.
    pub fn parse(text: &'a str) -> Option<Self> {
        let end = match text.strip_prefix('[') {
            Some(rest) => rest.find(']')? + 2,
            None => text.find(':').unwrap_or(text.len()),
        };
        let (host, rest) = text.split_at_checked(end)?;
        let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => !host.is_empty() && is_reg_name(host.as_bytes()),
        };
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            Some("") => None,
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(port.parse().ok()?),
            _ => return None,
        };
        is_host.then_some(Authority { host, port })
    }
}

/// The port that a scheme stands for.
pub fn port_of(scheme: &str) -> Option<u16> {
    match scheme.to_ascii_lowercase().as_str() {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// RFC 3986 section 3.2.2: unreserved characters, sub-delimiters and percent-encoded bytes.
fn is_reg_name(text: &[u8]) -> bool {
    let mut rest = text;
    loop {
        rest = match rest {
            [] => return true,
            [b'%', a, b, rest @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(byte) => rest,
            _ => return false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port() {
        for (text, host, port) in [
            ("example.com", "example.com", None),
            ("example.com:80", "example.com", Some(80)),
            ("example.com:", "example.com", None),
            ("example.com:00080", "example.com", Some(80)),
            ("127.0.0.1:65535", "127.0.0.1", Some(65535)),
            ("[::1]", "[::1]", None),
            ("[2001:db8::1]:8080", "[2001:db8::1]", Some(8080)),
            ("a_b.c~d%41!", "a_b.c~d%41!", None),
        ] {
            assert_eq!(Authority::parse(text), Some(Authority { host, port }), "{text}");
        }
    }

    #[test]
    fn malformed_ones() {
        #[rustfmt::skip]
        let table = [
            "", ":80", "a:b", "a:99999", "a:65536", "a:-1", "a:+1", "a:80:80", "::1", "[::1", "[::1]x", "[::1]:x", "[a]", "[]",
            "%zz", "a%4", "a%", "u@h", "a b", "a/b", "a?b", "a#b", "h\u{e9}", "a]", "[v1.x]",
        ];
        for text in table {
            assert_eq!(Authority::parse(text), None, "{text}");
        }
    }
}
