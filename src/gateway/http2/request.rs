//! Translates an HTTP/2 request to HTTP/1.1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use h2::ext::Protocol;
use http::request::Parts;
use http::{HeaderMap, Method, header};
use ring::rand::{SecureRandom, SystemRandom};

/// A request for a worker.
pub struct Request {
    /// Its head.
    pub head: Vec<u8>,
    /// The Sec-WebSocket-Accept expected in the response, if it opens a WebSocket.
    pub accept: Option<[u8; 28]>,
}

/// Why a request is refused: status and text.
pub type Refusal = (u16, &'static str);

/// Headers that concern a connection, or that the gateway sets (RFC 9113 section 8.2.2, RFC 8441 section 5); omitted.
const OMITTED: [&str; 9] = [
    "connection",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "sec-websocket-key",
    "te",
    "transfer-encoding",
    "upgrade",
];

impl Request {
    /// `has_body`: content follows the headers.
    pub fn new(parts: &Parts, has_body: bool) -> Result<Self, Refusal> {
        let authority = parts.uri.authority().map(|authority| authority.as_str());
        let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        // RFC 9113 section 8.3.1: :authority takes precedence over Host.
        let host = authority.or(host).ok_or((400, "the request has neither :authority nor Host"))?;
        let target = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let protocol = parts.extensions.get::<Protocol>().map(Protocol::as_str);
        match (parts.method == Method::CONNECT, protocol) {
            (true, Some("websocket")) => Self::of_websocket(parts, host, target),
            (true, Some(_)) => Err((501, "unknown :protocol; expected websocket")),
            (true, None) => Err((405, "this server is not a proxy")),
            (false, _) => Self::of_other(parts, host, target, has_body),
        }
    }

    fn of_websocket(parts: &Parts, host: &str, target: &str) -> Result<Self, Refusal> {
        let mut key = [0; 16];
        SystemRandom::new().fill(&mut key).map_err(|_| (500, "cannot get random bytes"))?;
        let key = STANDARD.encode(key);
        let mut head = format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: {key}\r\n"
        )
        .into_bytes();
        write_headers(&parts.headers, &mut head, &["content-length"]);
        let accept = crate::proto::ws::handshake::accept_key(key.as_bytes());
        Ok(Self { head, accept: Some(accept) })
    }

    fn of_other(parts: &Parts, host: &str, target: &str, has_body: bool) -> Result<Self, Refusal> {
        if has_body && !parts.headers.contains_key(header::CONTENT_LENGTH) {
            return Err((411, "a body needs a Content-Length"));
        }
        let method = &parts.method;
        let mut head =
            format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n").into_bytes();
        write_headers(&parts.headers, &mut head, &[]);
        Ok(Self { head, accept: None })
    }
}

fn write_headers(headers: &HeaderMap, head: &mut Vec<u8>, others: &[&str]) {
    let is_omitted = |name: &str| OMITTED.contains(&name) || others.contains(&name);
    let mut write = |name: &str, value: &[u8]| {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    };
    // RFC 9113 section 8.2.3: cookies are joined into one line.
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(|crumb| crumb.as_bytes()).collect();
    if !crumbs.is_empty() {
        write("cookie", &crumbs.join(&b"; "[..]));
    }
    for (name, value) in headers {
        if !is_omitted(name.as_str()) && name != header::COOKIE {
            write(name.as_str(), value.as_bytes());
        }
    }
    head.extend_from_slice(b"\r\n");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn an_extended_connect_is_an_upgrade() {
        let mut parts = parts(
            "CONNECT",
            "https://example.com/chat?x=1",
            &[
                ("sec-websocket-version", "13"),
                ("origin", "https://a"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
                ("te", "trailers"),
                ("sec-websocket-key", "theirs"),
                ("host", "other"),
            ],
        );
        parts.extensions.insert(Protocol::from_static("websocket"));
        let request = Request::new(&parts, true).unwrap();
        let head = String::from_utf8(request.head).unwrap();
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap().to_owned();
        let expected = format!(
            "GET /chat?x=1 HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: {key}\r\ncookie: a=1; b=2\r\nsec-websocket-version: 13\r\norigin: https://a\r\n\r\n"
        );
        assert_eq!(head, expected);
        assert_eq!(request.accept, Some(crate::proto::ws::handshake::accept_key(key.as_bytes())));
    }

    #[test]
    fn other_requests_keep_method_and_headers() {
        let get = parts("GET", "https://example.com/a", &[("accept", "*/*")]);
        let request = Request::new(&get, false).unwrap();
        let expected = "GET /a HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\naccept: */*\r\n\r\n";
        assert_eq!(request.head, expected.as_bytes());
        assert_eq!(request.accept, None);
        let refusal = |parts, has_body| Request::new(&parts, has_body).err().map(|(status, _)| status);
        assert_eq!(refusal(parts("GET", "/a", &[]), false), Some(400));
        assert_eq!(refusal(parts("POST", "https://x/a", &[]), true), Some(411));
        assert_eq!(refusal(parts("POST", "https://x/a", &[("content-length", "1")]), true), None);
        assert_eq!(refusal(parts("CONNECT", "x:443", &[]), true), Some(405));
        let mut other = parts("CONNECT", "https://x/", &[]);
        other.extensions.insert(Protocol::from_static("connect-udp"));
        assert_eq!(refusal(other, true), Some(501));
    }
}
