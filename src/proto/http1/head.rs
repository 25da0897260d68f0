//! The head of an HTTP/1 request: request line and header fields (RFC 9112), of any request, WebSocket or not.
//!
//! Reads no body and writes nothing. Refuses what is ambiguous: a fragment in the target, folded lines, two Host or two
//! different Content-Length fields.

use memchr::memmem;

/// How large a head may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes from the first one to the end of the empty line.
    pub bytes: usize,
    /// Number of header fields.
    pub headers: usize,
}

/// What [`parse`] found.
#[derive(Clone, Debug)]
pub enum Parsed {
    /// The head is not complete, and within the limits so far.
    NeedMore,
    /// A complete head.
    Head {
        /// The head, which owns its bytes.
        head: Head,
        /// How many bytes of the input it took. What follows belongs to the connection.
        consumed: usize,
    },
}

/// The request can not be understood: answer with `status` and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {why}")]
pub struct BadHead {
    /// 400, 414, 431 or 505.
    pub status: u16,
    /// For the log and the body of the answer.
    pub why: &'static str,
}

/// Heads with at most this many fields are parsed without an allocation for them.
const FIELDS_ON_STACK: usize = 64;
/// Up to this length an incomplete head is parsed at each call, to refuse what is not HTTP early. A longer one is parsed
/// once, when its end has come.
const EARLY: usize = 1024;
/// RFC 9112 section 2.2: "at least one empty line" before the request line is ignored. Bytes of line ends.
const BLANK: usize = 4;

/// Parses a request head. `input` is everything received so far, from the first byte.
pub fn parse(input: &[u8], limits: &HeadLimits) -> Result<Parsed, BadHead> {
    parse_more(input, 0, limits)
}

/// The same where the first `seen` bytes have given [`Parsed::NeedMore`] before: above 1 KiB they are not looked at
/// again until the head is complete, so that a head in single bytes costs no more than its length.
pub fn parse_more(input: &[u8], seen: usize, limits: &HeadLimits) -> Result<Parsed, BadHead> {
    let blank = input.iter().take(BLANK + 1).take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if blank > BLANK {
        return Err(bad("not an HTTP/1.1 request"));
    }
    if input.len() > EARLY && !has_end(input.get(blank.max(seen.saturating_sub(2))..).unwrap_or_default()) {
        return incomplete(input, limits);
    }
    if limits.headers <= FIELDS_ON_STACK {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_ON_STACK];
        parse_with(input, limits, fields.get_mut(..limits.headers).unwrap_or_default())
    } else {
        parse_with(input, limits, &mut vec![httparse::EMPTY_HEADER; limits.headers])
    }
}

fn has_end(part: &[u8]) -> bool {
    memmem::find(part, b"\n\r\n").or_else(|| memmem::find(part, b"\n\n")).is_some()
}

fn parse_with<'a>(
    input: &'a [u8],
    limits: &HeadLimits,
    fields: &mut [httparse::Header<'a>],
) -> Result<Parsed, BadHead> {
    let mut request = httparse::Request::new(fields);
    match request.parse(input) {
        Ok(httparse::Status::Partial) => incomplete(input, limits),
        Ok(httparse::Status::Complete(consumed)) if consumed > limits.bytes => Err(too_large(input, limits)),
        Ok(httparse::Status::Complete(consumed)) => {
            let head = Head::new(input.get(..consumed).unwrap_or_default(), &request)?;
            Ok(Parsed::Head { head, consumed })
        }
        Err(httparse::Error::TooManyHeaders) => Err(BadHead { status: 431, why: "too many header fields" }),
        Err(httparse::Error::Version) => Err(bad_version(input)),
        Err(httparse::Error::HeaderName) => Err(bad("invalid header name")),
        Err(httparse::Error::HeaderValue) => Err(bad("invalid header value")),
        Err(_) => Err(bad("not an HTTP/1.1 request")),
    }
}

fn incomplete(input: &[u8], limits: &HeadLimits) -> Result<Parsed, BadHead> {
    if input.len() < limits.bytes { Ok(Parsed::NeedMore) } else { Err(too_large(input, limits)) }
}

fn too_large(input: &[u8], limits: &HeadLimits) -> BadHead {
    let within = input.get(..limits.bytes).unwrap_or(input);
    // RFC 9112 section 3: a request line that is too long has a status of its own.
    if memchr::memchr(b'\n', within.trim_ascii_start()).is_none() {
        BadHead { status: 414, why: "the request line is too long" }
    } else {
        BadHead { status: 431, why: "the request head is too large" }
    }
}

fn bad(why: &'static str) -> BadHead {
    BadHead { status: 400, why }
}

/// The third word of the request line is not HTTP/1.0 or HTTP/1.1: another version, or no version at all.
fn bad_version(input: &[u8]) -> BadHead {
    let word = input.trim_ascii_start().split(|&byte| byte == b' ').nth(2);
    match word.and_then(|word| word.strip_prefix(b"HTTP/")) {
        Some([b'0' | b'2'..=b'9', ..] | [b'1', b'.', b'2'..=b'9', ..]) => {
            BadHead { status: 505, why: "expected HTTP/1.1" }
        }
        _ => bad("not an HTTP/1.1 request"),
    }
}

/// A request head. It owns a copy of its bytes and is read by offsets, so it is small enough to be kept for the life of
/// a connection.
#[derive(Clone)]
pub struct Head {
    /// The head as sent, then a resource that is not a part of it as it stands.
    bytes: Box<[u8]>,
    sent: u32,
    method: Span,
    target: Span,
    resource: Span,
    authority: Span,
    minor_version: u8,
    fields: Box<[(Span, Span)]>,
}

/// `bytes[start..end]`, with `start <= end <= bytes.len()`.
#[derive(Clone, Copy, Default)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Where `part`, a piece of `whole`, lies in it.
    fn of(whole: &[u8], part: &[u8]) -> Span {
        let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
        Span::new(start, part.len())
    }

    fn new(start: usize, len: usize) -> Span {
        let at = |offset| u32::try_from(offset).unwrap_or(u32::MAX);
        Span { start: at(start), end: at(start.saturating_add(len)) }
    }
}

impl Head {
    fn new(input: &[u8], request: &httparse::Request) -> Result<Head, BadHead> {
        if u32::try_from(input.len()).is_err() {
            return Err(BadHead { status: 431, why: "the request head is too large" });
        }
        let method = request.method.unwrap_or_default();
        let target = request.path.unwrap_or_default();
        let split = split_target(method, target)?;

        let mut bytes = input.to_vec();
        let resource = if split.resource.starts_with('/') || split.authority.is_none() {
            Span::of(input, split.resource.as_bytes())
        } else {
            // RFC 9112 section 3.2.1: an empty path is sent as "/".
            let start = bytes.len();
            bytes.push(b'/');
            bytes.extend_from_slice(split.resource.as_bytes());
            Span::new(start, bytes.len() - start)
        };
        let fields = request.headers.iter();
        let fields =
            fields.map(|field| (Span::of(input, field.name.as_bytes()), Span::of(input, field.value)));
        let mut head = Head {
            bytes: bytes.into_boxed_slice(),
            sent: input.len() as u32,
            method: Span::of(input, method.as_bytes()),
            target: Span::of(input, target.as_bytes()),
            resource,
            authority: Span::default(),
            minor_version: request.version.unwrap_or_default(),
            fields: fields.collect(),
        };
        let host = head.check_host()?;
        // RFC 9112 section 3.2.2: the authority of an absolute-form replaces that of Host.
        head.authority = split.authority.map_or(host, |authority| Span::of(input, authority.as_bytes()));
        head.check_content_length()?;
        Ok(head)
    }

    /// RFC 9112 section 3.2: exactly one, and valid; HTTP/1.0 may leave it out.
    fn check_host(&self) -> Result<Span, BadHead> {
        let mut hosts = self.spans("host");
        match (hosts.next(), hosts.next()) {
            (Some(_), Some(_)) => Err(bad("more than one Host")),
            (Some(host), None) if is_authority(self.slice(host)) => Ok(host),
            (Some(_), None) => Err(bad("invalid Host")),
            (None, _) if self.minor_version == 0 => Ok(Span::default()),
            (None, _) => Err(bad("no Host")),
        }
    }

    /// RFC 9112 section 6.3: several fields, or a list, must agree.
    fn check_content_length(&self) -> Result<(), BadHead> {
        let mut lengths = list(self.header_all("content-length")).map(decimal);
        match lengths.next() {
            None if self.header("content-length").is_none() => Ok(()),
            Some(Some(first)) if lengths.all(|other| other == Some(first)) => Ok(()),
            _ => Err(bad("invalid Content-Length")),
        }
    }

    /// The method, such as "GET"; case-sensitive.
    pub fn method(&self) -> &str {
        self.text(self.method)
    }

    /// The request target as sent.
    pub fn target(&self) -> &str {
        self.text(self.target)
    }

    /// Path and query, whichever form the target had (RFC 9112 section 3.2). "*" and the authority-form are left as they are.
    pub fn resource(&self) -> &str {
        self.text(self.resource)
    }

    /// The resource up to its query.
    pub fn path(&self) -> &str {
        let resource = self.resource();
        resource.split_once('?').map_or(resource, |(path, _)| path)
    }

    /// What follows the first "?" of the resource.
    pub fn query(&self) -> Option<&str> {
        self.resource().split_once('?').map(|(_, query)| query)
    }

    /// Host and port that the client meant: of the absolute-form, else of Host. Empty if it named none.
    pub fn authority(&self) -> &str {
        self.text(self.authority)
    }

    /// 1 for HTTP/1.1, 0 for HTTP/1.0.
    pub fn minor_version(&self) -> u8 {
        self.minor_version
    }

    /// The first field of this name, in any case, without white space around it.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.spans(name).next().map(|value| self.slice(value))
    }

    /// All fields of this name, in their order.
    pub fn header_all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.spans(name).map(|value| self.slice(value))
    }

    /// Name as sent and value of a field, counted from 0.
    pub fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        self.fields.get(index).map(|&(name, value)| (self.text(name), self.slice(value)))
    }

    /// Whether the fields of this name, which are lists, contain the token, in any case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        let is_token = |element: &[u8]| element.eq_ignore_ascii_case(token.as_bytes());
        // Most often it is the only one.
        self.header_all(name).any(is_token) || list(self.header_all(name)).any(is_token)
    }

    /// The length that the request declares for its body; bytes.
    pub fn content_length(&self) -> Option<u64> {
        list(self.header_all("content-length")).next().and_then(decimal)
    }

    /// Whether a body follows the head (RFC 9112 section 6.3).
    pub fn has_body(&self) -> bool {
        self.header("transfer-encoding").is_some() || self.content_length().is_some_and(|length| length > 0)
    }

    /// The head as it was sent; [`parse`] makes the same head of it.
    pub fn as_bytes(&self) -> &[u8] {
        self.slice(Span { start: 0, end: self.sent })
    }

    fn spans(&self, wanted: &str) -> impl Iterator<Item = Span> {
        let named = |name| self.slice(name).eq_ignore_ascii_case(wanted.as_bytes());
        self.fields.iter().filter(move |(name, _)| named(*name)).map(|(_, value)| *value)
    }

    fn slice(&self, span: Span) -> &[u8] {
        self.bytes.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    /// Only for what httparse has handed out as text.
    fn text(&self, span: Span) -> &str {
        std::str::from_utf8(self.slice(span)).unwrap_or_default()
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Head({} {}, {} fields)", self.method(), self.target(), self.fields.len())
    }
}

struct Target<'a> {
    authority: Option<&'a str>,
    resource: &'a str,
}

/// RFC 9112 section 3.2: the four forms of a request target.
fn split_target<'a>(method: &str, target: &'a str) -> Result<Target<'a>, BadHead> {
    // RFC 6455 section 3: fragment identifiers must not be used; RFC 9112 has no place for them either.
    if target.contains('#') {
        return Err(bad("a fragment in the request target"));
    }
    if target.starts_with('/') || (method == "OPTIONS" && target == "*") {
        return Ok(Target { authority: None, resource: target });
    }
    if method == "CONNECT" && !target.is_empty() && is_authority(target.as_bytes()) {
        return Ok(Target { authority: None, resource: target });
    }
    let (scheme, rest) = target.split_once("://").ok_or(bad("invalid request target"))?;
    let known = ["ws", "wss", "http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    let (authority, resource) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if !known || authority.is_empty() || !is_authority(authority.as_bytes()) {
        return Err(bad("invalid request target"));
    }
    Ok(Target { authority: Some(authority), resource })
}

/// The characters of `uri-host [ ":" port ]` (RFC 3986 section 3.2); user names are not allowed here. May be empty.
fn is_authority(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte))
}

/// The elements of comma-separated lists, without the empty ones (RFC 9110 section 5.6.1).
pub(in crate::proto) fn list<'a>(values: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    values
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// Parses arbitrary bytes, and what was understood once more.
#[doc(hidden)]
#[cfg(any(test, fuzzing, feature = "fuzz"))]
pub fn fuzz(data: &[u8]) {
    let limits = HeadLimits { bytes: 4096, headers: 32 };
    let Ok(Parsed::Head { head, consumed }) = parse(data, &limits) else { return };
    assert!(consumed <= data.len() && consumed <= limits.bytes);
    assert_eq!(head.as_bytes(), &data[..consumed]);
    for cut in [consumed - 1, consumed / 2, consumed / 3, 0] {
        assert!(matches!(parse(&data[..cut], &limits), Ok(Parsed::NeedMore)), "cut at {cut}");
        assert!(matches!(parse_more(data, cut, &limits), Ok(Parsed::Head { .. })), "seen up to {cut}");
    }
    assert!(!head.method().is_empty() && !head.target().contains('#'));
    assert!(head.resource().starts_with('/') || matches!(head.method(), "OPTIONS" | "CONNECT"));
    assert!(head.resource().starts_with(head.path()));
    let again = parse(head.as_bytes(), &limits);
    assert!(matches!(again, Ok(Parsed::Head { head: again, .. }) if again.bytes == head.bytes));
    let named = (0..).map_while(|index| head.header_at(index)).map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(named.len(), head.fields.len());
    assert!(named.iter().all(|name| head.header(name).is_some()));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 2048, headers: 8 };

    fn head(text: &str) -> Head {
        match parse(text.as_bytes(), &LIMITS).unwrap() {
            Parsed::Head { head, .. } => head,
            Parsed::NeedMore => panic!("incomplete: {text:?}"),
        }
    }

    fn status(text: impl AsRef<[u8]>) -> u16 {
        parse(text.as_ref(), &LIMITS).err().map_or(200, |bad| bad.status)
    }

    #[test]
    fn reads_request_line_and_fields() {
        let text =
            "GET /chat?a=1?b HTTP/1.1\r\nHost: example.com:80\r\nX-A:  one \r\nx-a:two\r\nEmpty:\r\n\r\nrest";
        let Parsed::Head { head, consumed } = parse(text.as_bytes(), &LIMITS).unwrap() else { panic!() };
        assert_eq!(&text[consumed..], "rest");
        assert_eq!((head.method(), head.target(), head.minor_version()), ("GET", "/chat?a=1?b", 1));
        assert_eq!((head.path(), head.query(), head.authority()), ("/chat", Some("a=1?b"), "example.com:80"));
        assert_eq!(head.header("X-a"), Some(&b"one"[..]));
        assert_eq!(head.header_all("x-a").collect::<Vec<_>>(), [b"one", b"two"]);
        assert_eq!(head.header("empty"), Some(&b""[..]));
        assert_eq!(head.header("absent"), None);
        assert_eq!(head.header_at(2), Some(("x-a", &b"two"[..])));
        assert_eq!(head.header_at(4), None);
        assert_eq!(head.as_bytes(), &text.as_bytes()[..consumed]);
    }

    #[test]
    fn every_split_needs_more_and_then_gives_the_same() {
        let text = "GET /a HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n";
        for cut in 0..text.len() {
            assert!(matches!(parse(&text.as_bytes()[..cut], &LIMITS), Ok(Parsed::NeedMore)), "at {cut}");
        }
        assert_eq!(head(text).header("upgrade"), Some(&b"websocket"[..]));
    }

    #[test]
    fn a_long_head_in_pieces_is_found_complete_with_its_last_byte() {
        for end in ["\r\n\r\n", "\n\n", "\n\r\n", "\r\n\n"] {
            let text = format!("\r\nGET /a HTTP/1.1\r\nHost: h\r\nA: {}{end}", "v".repeat(1500));
            for step in 1..5 {
                let mut seen = 0;
                while seen + step < text.len() {
                    let parsed = parse_more(&text.as_bytes()[..seen + step], seen, &LIMITS);
                    assert!(matches!(parsed, Ok(Parsed::NeedMore)), "{end:?} at {seen}: {parsed:?}");
                    seen += step;
                }
                let parsed = parse_more(text.as_bytes(), seen, &LIMITS);
                assert!(matches!(parsed, Ok(Parsed::Head { .. })), "{end:?} in steps of {step}: {parsed:?}");
            }
        }
    }

    /// Else the end of a head would be searched for in empty lines again and again.
    #[test]
    fn two_empty_lines_before_the_request_are_ignored_and_no_more() {
        let text = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
        assert_eq!(status(format!("\r\n\r\n{text}")), 200);
        assert_eq!(status(format!("\n\n\n\n{text}")), 200);
        assert_eq!(status("\r\n\r\n\r"), 400);
        assert_eq!(status(format!("\n\n\n\n\n{text}")), 400);
    }

    #[test]
    fn reduces_the_forms_of_the_target() {
        for (line, resource, authority) in [
            ("GET /", "/", "h"),
            ("GET //a//b", "//a//b", "h"),
            ("GET ws://x:1/a?b", "/a?b", "x:1"),
            ("GET HTTP://x/", "/", "x"),
            ("GET wss://x", "/", "x"),
            ("GET https://[::1]:8?q=/", "/?q=/", "[::1]:8"),
            ("OPTIONS *", "*", "h"),
            ("CONNECT x:443", "x:443", "h"),
        ] {
            let head = head(&format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n"));
            assert_eq!((head.resource(), head.authority()), (resource, authority), "{line}");
        }
    }

    #[test]
    fn refuses_what_is_malformed() {
        #[rustfmt::skip]
        let table = [
            "GET /a#b", "GET /#", "GET a", "GET *", "GET ftp://h/", "GET http:///a", "GET http://u@h/", "GET http:h",
            "GET  /", "G@T /", "GET /a b", "GET /\x01", "GET", "\0",
        ];
        for line in table {
            assert_eq!(status(format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n")), 400, "{line:?}");
        }
        #[rustfmt::skip]
        let table = [
            "", "Host: a\r\nHost: a", "Host: a b", "Host: a/b", "Host: u@h", "Host: h\r\n folded: x", "Host : h",
            "Host: h\r\nA: \x00", "Host: h\r\nA b: c", "Host: h\r\n: c", "Host: h\r\nA", "Host: h\rA: b",
            "Host: h\r\nContent-Length: x", "Host: h\r\nContent-Length: -1", "Host: h\r\nContent-Length:",
            "Host: h\r\nContent-Length: 1\r\nContent-Length: 2", "Host: h\r\nContent-Length: 99999999999999999999",
        ];
        for fields in table {
            assert_eq!(status(format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n")), 400, "{fields:?}");
        }
    }

    #[test]
    fn refuses_other_versions() {
        #[rustfmt::skip]
        let table = [
            ("HTTP/1.1", 200), ("HTTP/1.0", 200), ("HTTP/1.2", 505), ("HTTP/2.0", 505), ("HTTP/0.9", 505),
            ("HTTP/1.", 400), ("http/1.1", 400), ("HTTX/1.1", 400), ("", 400), ("b HTTP/1.1", 400), ("HTTP/1.1x", 400),
        ];
        for (version, expected) in table {
            assert_eq!(status(format!("GET / {version}\r\nHost: h\r\n\r\n")), expected, "{version:?}");
        }
        assert_eq!(status("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
    }

    #[test]
    fn refuses_garbage_early() {
        assert_eq!(status(b"\x16\x03\x01"), 400, "a TLS ClientHello");
        assert_eq!(status("GET / HTTP/2"), 505);
        assert_eq!(status("GET / HTTP/1.1\r\n folded"), 400);
    }

    #[test]
    fn keeps_its_limits() {
        let with = |target: usize, value: usize, fields: usize| {
            let (target, value) = ("a".repeat(target), "v".repeat(value));
            format!("GET /{target} HTTP/1.1\r\nHost: h\r\nA: {value}\r\n{}\r\n", "B: c\r\n".repeat(fields))
        };
        let fit = LIMITS.bytes - with(0, 0, 0).len();
        assert_eq!(status(with(0, fit, 0)), 200);
        assert_eq!(status(with(0, fit + 1, 0)), 431);
        assert_eq!(status(with(LIMITS.bytes, 0, 0)), 414);
        assert_eq!(status(with(0, 0, LIMITS.headers - 2)), 200);
        assert_eq!(status(with(0, 0, LIMITS.headers - 1)), 431);
        // The same without an end in sight.
        assert_eq!(status("A".repeat(LIMITS.bytes)), 414);
        assert_eq!(status(&with(0, LIMITS.bytes, 0)[..LIMITS.bytes]), 431);
        assert_eq!(status(&with(0, LIMITS.bytes, 0)[..LIMITS.bytes - 1]), 200);
        // More fields than are parsed on the stack.
        let many = HeadLimits { bytes: 1 << 16, headers: 200 };
        let parsed = parse(with(0, 0, 150).as_bytes(), &many);
        assert!(matches!(parsed, Ok(Parsed::Head { head, .. }) if head.header_at(151).is_some()));
    }

    #[test]
    fn finds_tokens_in_lists() {
        let head =
            head("GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, UPGRADE\r\nConnection: ,x ,\r\n\r\n");
        assert!(head.has_token("connection", "upgrade"));
        assert!(head.has_token("Connection", "X"));
        assert!(!head.has_token("connection", "keep"));
        assert!(!head.has_token("connection", ""));
        assert!(!head.has_token("host", "x"));
    }

    #[test]
    fn tells_bodies() {
        for (field, body) in [
            ("A: b", false),
            ("Content-Length: 0", false),
            ("Content-Length: 3", true),
            ("Content-Length: 3, 3", true),
            ("Transfer-Encoding: chunked", true),
        ] {
            let head = head(&format!("POST / HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n"));
            assert_eq!(head.has_body(), body, "{field}");
        }
    }

    #[test]
    fn http_1_0_needs_no_host() {
        assert_eq!(head("GET / HTTP/1.0\r\n\r\n").authority(), "");
    }

    #[test]
    fn the_bodies_of_the_fuzzer_hold() {
        fuzz(b"\r\nGET http://a?b HTTP/1.1\r\nHost: h\r\n\r\nmore");
        fuzz(b"OPTIONS * HTTP/1.1\nHost: h\nA:\n\n");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(data: Vec<u8>, target in "[!-~]{1,20}", fields in "([A-Za-z-]{1,9}: ?[ -~]{0,9}\r?\n){0,5}") {
            fuzz(&data);
            fuzz(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes());
        }
    }
}
