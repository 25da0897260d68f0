//! The client that a proxy names in a request: Forwarded (RFC 7239) and X-Forwarded-For.
//!
//! Trusts nobody: the caller tells which addresses are trusted proxies, and asks only when one of them has sent the
//! request. Refuses fields that are malformed, and two fields that name different clients: a proxy that sets
//! one of them may hand on what a client has put into the other.

use std::net::{IpAddr, SocketAddr};

use crate::proto::http1::field::{is_token, list, split, unquoted};
use crate::proto::http1::head::Head;

/// Parameters of one element of Forwarded; RFC 7239 knows four.
const MAX_PARAMETERS: usize = 16;

/// A place on the way of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    /// Its port is 0 where none was told.
    Address(SocketAddr),
    /// It does not want to be known, or is not.
    Unknown,
}

/// The client for which the trusted proxy `peer` has sent this request: going from the right, the first address that
/// is not trusted, or the last one that is known. An error says what is wrong with the fields: the request is to be
/// answered with 400.
pub fn client(
    head: &Head,
    peer: Option<SocketAddr>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Result<Option<SocketAddr>, &'static str> {
    let walk = |nodes: Vec<Node>| {
        let mut client = peer;
        for node in nodes.into_iter().rev() {
            let Node::Address(address) = node else { break };
            client = Some(address);
            if !is_trusted(address.ip()) {
                break;
            }
        }
        client
    };
    let mut found = None;
    if head.header("forwarded").is_some() {
        found = Some(walk(forwarded(head.header_all("forwarded"))?));
    }
    if head.header("x-forwarded-for").is_some() {
        let other = walk(x_forwarded_for(head.header_all("x-forwarded-for"))?);
        let ip = |client: Option<SocketAddr>| client.map(|address| address.ip());
        if found.is_some_and(|found| ip(found) != ip(other)) {
            return Err("Forwarded and X-Forwarded-For name different clients");
        }
        found = found.or(Some(other));
    }
    Ok(found.unwrap_or(peer))
}

/// RFC 7239 section 4: elements, each with pairs of a token and a value.
fn forwarded<'a>(values: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Node>, &'static str> {
    const WRONG: &str = "malformed Forwarded";
    let elements = values.flat_map(|value| split(value, b',')).filter(|element| !element.is_empty());
    let node = |element| {
        let (mut names, mut node) = (Vec::new(), Node::Unknown);
        for pair in split(element, b';').filter(|pair| !pair.is_empty()) {
            let mut halves = pair.splitn(2, |byte| *byte == b'=');
            let name = halves.next().unwrap_or_default();
            let value = halves.next().and_then(unquoted).ok_or(WRONG)?;
            // "Each parameter MUST NOT occur more than once per field-value."
            let is_known = |known: &&[u8]| known.eq_ignore_ascii_case(name);
            if !is_token(name) || names.len() == MAX_PARAMETERS || names.iter().any(is_known) {
                return Err(WRONG);
            }
            names.push(name);
            if name.eq_ignore_ascii_case(b"for") {
                node = node_of(&value).ok_or(WRONG)?;
            }
        }
        Ok(node)
    };
    elements.map(node).collect()
}

/// Addresses in a list; what everybody does, by no standard.
fn x_forwarded_for<'a>(values: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Node>, &'static str> {
    let nodes = list(values).map(|element| {
        let text = std::str::from_utf8(element).ok();
        let bare = text.and_then(|text| text.parse::<IpAddr>().ok()).map(address);
        bare.or_else(|| node_of(element)).ok_or("malformed X-Forwarded-For")
    });
    nodes.collect()
}

/// RFC 7239 section 6: `192.0.2.1`, `[2001:db8::1]`, `unknown` or `_hidden`, perhaps with `:` and a port that is a
/// number or `_hidden`.
fn node_of(text: &[u8]) -> Option<Node> {
    let is_hidden = |text: &str| {
        let rest = text.strip_prefix('_');
        rest.is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        })
    };
    let text = std::str::from_utf8(text).ok()?;
    let (name, port) = match text.rsplit_once(':') {
        // The last colon may be one of the address.
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (text, None),
    };
    let port = match port {
        None => 0,
        Some(port) if is_hidden(port) => 0,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok()?,
        Some(_) => return None,
    };
    if name.eq_ignore_ascii_case("unknown") || is_hidden(name) {
        return Some(Node::Unknown);
    }
    let ip = match name.strip_prefix('[') {
        Some(name) => IpAddr::V6(name.strip_suffix(']')?.parse().ok()?),
        None => IpAddr::V4(name.parse().ok()?),
    };
    Some(Node::Address(SocketAddr::new(ip.to_canonical(), port)))
}

fn address(ip: IpAddr) -> Node {
    Node::Address(SocketAddr::new(ip.to_canonical(), 0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::proto::http1::head::{HeadLimits, Parsed, parse};

    /// The client of a request with these headers that 10.0.0.1 has sent; all of 10 is trusted.
    fn client_of(headers: &str) -> Result<String, &'static str> {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n");
        let limits = HeadLimits { bytes: 4096, headers: 32 };
        let Ok(Parsed::Head { head, .. }) = parse(text.as_bytes(), &limits) else { panic!("{text}") };
        let trusted = |ip: IpAddr| ip.to_string().starts_with("10.");
        let found = client(&head, Some("10.0.0.1:99".parse().unwrap()), trusted)?;
        Ok(found.unwrap().to_string())
    }

    #[track_caller]
    fn is(headers: &str, expected: &str) {
        assert_eq!(client_of(headers).as_deref(), Ok(expected), "{headers}");
    }

    #[test]
    fn without_the_fields_it_is_the_proxy() {
        is("Origin: x", "10.0.0.1:99");
    }

    #[test]
    fn the_examples_of_rfc_7239() {
        // Section 4.
        is(r#"Forwarded: for="_gazonk""#, "10.0.0.1:99");
        is(r#"Forwarded: For="[2001:db8:cafe::17]:4711""#, "[2001:db8:cafe::17]:4711");
        is("Forwarded: for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60:0");
        is("Forwarded: for=192.0.2.43, for=198.51.100.17", "198.51.100.17:0");
        // Section 6.
        is(r#"Forwarded: for="192.0.2.43:47011""#, "192.0.2.43:47011");
        is(r#"Forwarded: for="[2001:db8:cafe::17]:47011""#, "[2001:db8:cafe::17]:47011");
        // Section 7.1: one list in two fields, and with white space.
        is("Forwarded: for=192.0.2.43\r\nForwarded: for=198.51.100.17", "198.51.100.17:0");
        // Section 7.4.
        is(r#"Forwarded: for=192.0.2.43, for="[2001:db8:cafe::17]""#, "[2001:db8:cafe::17]:0");
    }

    #[test]
    fn the_rightmost_that_is_not_trusted_counts() {
        is("X-Forwarded-For: 192.0.2.1, 198.51.100.2, 10.0.0.3, 10.0.0.2", "198.51.100.2:0");
        is("Forwarded: for=192.0.2.1, for=198.51.100.2, for=10.0.0.3, for=10.0.0.2", "198.51.100.2:0");
        is("X-Forwarded-For: 10.0.0.3, 10.0.0.2", "10.0.0.3:0");
        is("Forwarded: for=192.0.2.1, for=unknown, for=10.0.0.2", "10.0.0.2:0");
        is("Forwarded: for=192.0.2.1, proto=https", "10.0.0.1:99");
    }

    #[test]
    fn addresses_in_every_form() {
        is("X-Forwarded-For: 2001:db8::1", "[2001:db8::1]:0");
        is("X-Forwarded-For: [2001:db8::1]:80", "[2001:db8::1]:80");
        is("X-Forwarded-For: 192.0.2.1:80", "192.0.2.1:80");
        is("X-Forwarded-For: ::ffff:192.0.2.1", "192.0.2.1:0");
        is("X-Forwarded-For: , 192.0.2.1,", "192.0.2.1:0");
        is(r#"Forwarded: for="192.0.2.1:_p""#, "192.0.2.1:0");
        is(r#"Forwarded: by="a,b;c\"d" ; for=192.0.2.1"#, "192.0.2.1:0");
    }

    #[test]
    fn malformed_fields() {
        for wrong in [
            "X-Forwarded-For: example.com",
            "X-Forwarded-For: 192.0.2.1:x",
            "X-Forwarded-For: 192.0.2.300",
            "X-Forwarded-For: 192.0.2.1 192.0.2.2",
            "Forwarded: for",
            "Forwarded: for=",
            "Forwarded: for=192.0.2.1;for=192.0.2.2",
            "Forwarded: for=192.0.2.1:80", // a colon needs quotes
            "Forwarded: for=\"192.0.2.1",
            "Forwarded: for=\"192.0.2.1\"x",
            "Forwarded: for=2001:db8::1",
            "Forwarded: for=\"2001:db8::1\"", // and IPv6 brackets
            "Forwarded: for=\"[192.0.2.1]\"",
            "Forwarded: for=\"192.0.2.1:70000\"",
            "Forwarded: for=_",
            "Forwarded: f r=192.0.2.1",
        ] {
            assert!(client_of(wrong).is_err(), "{wrong}: {:?}", client_of(wrong));
        }
    }

    /// Each name is compared with all before it in its element.
    #[test]
    fn an_element_has_at_most_16_parameters() {
        let element = |count: usize| {
            let others: String = (1..count).map(|number| format!(";p{number}=x")).collect();
            format!("Forwarded: for=192.0.2.1{others}")
        };
        is(&format!("{}, for=10.0.0.2", element(16)), "192.0.2.1:0");
        assert_eq!(client_of(&element(17)), Err("malformed Forwarded"));
    }

    /// Whichever of the two a proxy sets, what a client puts into the other does not help it.
    #[test]
    fn two_fields_must_agree() {
        is("Forwarded: for=\"192.0.2.1:5\"\r\nX-Forwarded-For: 192.0.2.1", "192.0.2.1:5");
        let spoofed = client_of("Forwarded: for=203.0.113.9\r\nX-Forwarded-For: 192.0.2.1");
        assert_eq!(spoofed, Err("Forwarded and X-Forwarded-For name different clients"));
        assert!(client_of("Forwarded: proto=http\r\nX-Forwarded-For: 192.0.2.1").is_err());
    }
}
