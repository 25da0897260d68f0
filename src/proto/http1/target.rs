//! The target of a request in its four forms (RFC 9112 section 3.2).

use crate::proto::http1::authority::{Authority, port_of};

/// A request target.
#[derive(Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Host and port of the absolute-form.
    pub authority: Option<&'a str>,
    /// The port that the scheme of the absolute-form stands for; 0 in the other forms.
    pub scheme_port: u16,
    /// Path and query, without the path where the absolute-form has none; "*" and the authority-form as they are.
    pub resource: &'a str,
}

impl<'a> Target<'a> {
    /// Takes a target apart, or says what is wrong with it.
    pub fn split(method: &str, target: &'a str) -> Result<Self, &'static str> {
        // RFC 6455 section 3: fragment identifiers must not be used; RFC 9112 has no place for them either.
        if target.contains('#') {
            return Err("a fragment in the request target");
        }
        let without_authority = target.starts_with('/')
            || (method == "OPTIONS" && target == "*")
            || (method == "CONNECT" && Authority::parse(target).is_some());
        if without_authority {
            return Ok(Target { authority: None, scheme_port: 0, resource: target });
        }
        const INVALID: &str = "invalid request target";
        let (scheme, rest) = target.split_once("://").ok_or(INVALID)?;
        let scheme_port = port_of(scheme).ok_or(INVALID)?;
        let (authority, resource) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        Authority::parse(authority).ok_or(INVALID)?;
        Ok(Target { authority: Some(authority), scheme_port, resource })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_forms() {
        for (method, target, authority, scheme_port, resource) in [
            ("GET", "/", None, 0, "/"),
            ("GET", "//a//b", None, 0, "//a//b"),
            ("GET", "ws://x:1/a?b", Some("x:1"), 80, "/a?b"),
            ("GET", "HTTP://x/", Some("x"), 80, "/"),
            ("GET", "wss://x", Some("x"), 443, ""),
            ("GET", "https://[::1]:8?q=/", Some("[::1]:8"), 443, "?q=/"),
            ("OPTIONS", "*", None, 0, "*"),
            ("CONNECT", "x:443", None, 0, "x:443"),
        ] {
            let expected = Target { authority, scheme_port, resource };
            assert_eq!(Target::split(method, target), Ok(expected), "{method} {target}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for target in
            ["", "a", "*", "x:443", "/a#b", "ftp://h/", "http:///a", "http://u@h/", "http:h", "http://a:x/"]
        {
            assert!(Target::split("GET", target).is_err(), "{target}");
        }
    }
}
