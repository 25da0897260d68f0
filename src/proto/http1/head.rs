//! The head of an HTTP/1 request: request line and header fields (RFC 9112), of any request, WebSocket or not.
//!
//! Reads no body and writes nothing. Refuses what is ambiguous: a fragment in the target, folded lines, two Host or two
//! different Content-Length fields.

use memchr::memmem;

use crate::proto::http1::authority::Authority;
use crate::proto::http1::field::list;
use crate::proto::http1::target::Target;

/// How large a head may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// The methods of RFC 9110 section 9 and RFC 5789. Any other gets 501.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// Whether this is a method of HTTP; they are case-sensitive.
pub fn is_known_method(method: &str) -> bool {
    METHODS.contains(&method)
}

/// The request cannot be served: answer with `status` and `headers`, and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRequest {
    /// 400, 405, 414, 426, 431, 501 or 505.
    pub status: u16,
    /// For the log and the body of the answer.
    pub why: &'static str,
    /// Headers that the answer must have.
    pub headers: &'static [(&'static str, &'static str)],
}

impl BadRequest {
    pub(in crate::proto) const fn new(status: u16, why: &'static str) -> Self {
        Self { status, why, headers: &[] }
    }
}

/// 400.
pub(in crate::proto) const fn bad(why: &'static str) -> BadRequest {
    BadRequest::new(400, why)
}

/// Up to this length an incomplete head is parsed at each call, to refuse what is not HTTP early. A longer one is
/// parsed once, when its end has come.
const EARLY: usize = 1024;
/// RFC 9112 section 2.2: "at least one empty line" before the request line is ignored. Bytes of line ends.
const BLANK: usize = 4;

/// Parses a request head. `input` is everything received so far, from the first byte.
pub fn parse(input: &[u8], limits: &HeadLimits) -> Result<Parsed, BadRequest> {
    parse_more(input, 0, limits)
}

/// The same where the first `seen` bytes have given [`Parsed::NeedMore`] before: above 1 KiB they are not looked at
/// again until the head is complete, so that a head in single bytes costs no more than its length.
pub fn parse_more(input: &[u8], seen: usize, limits: &HeadLimits) -> Result<Parsed, BadRequest> {
    let blank = input.iter().take(BLANK + 1).take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if blank > BLANK {
        return Err(bad("not an HTTP/1.1 request"));
    }
    if input.len() > EARLY && !has_end(input.get(blank.max(seen.saturating_sub(2))..).unwrap_or_default()) {
        return incomplete(input, limits);
    }
    let mut fields = vec![httparse::EMPTY_HEADER; limits.headers];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(input) {
        Ok(httparse::Status::Partial) => incomplete(input, limits),
        Ok(httparse::Status::Complete(consumed)) if consumed > limits.bytes => Err(too_large(input, limits)),
        Ok(httparse::Status::Complete(consumed)) => {
            let head = Head::new(input.get(..consumed).unwrap_or_default(), &request)?;
            Ok(Parsed::Head { head, consumed })
        }
        Err(httparse::Error::TooManyHeaders) => Err(BadRequest::new(431, "too many header fields")),
        Err(httparse::Error::Version) => later_version(input, limits),
        Err(httparse::Error::HeaderName) => Err(bad("invalid header name")),
        Err(httparse::Error::HeaderValue) => Err(bad("invalid header value")),
        Err(_) => Err(bad("not an HTTP/1.1 request")),
    }
}

fn has_end(part: &[u8]) -> bool {
    memmem::find(part, b"\n\r\n").or_else(|| memmem::find(part, b"\n\n")).is_some()
}

fn incomplete(input: &[u8], limits: &HeadLimits) -> Result<Parsed, BadRequest> {
    if input.len() < limits.bytes { Ok(Parsed::NeedMore) } else { Err(too_large(input, limits)) }
}

fn too_large(input: &[u8], limits: &HeadLimits) -> BadRequest {
    let within = input.get(..limits.bytes).unwrap_or(input);
    // RFC 9112 section 3: a request line that is too long has a status of its own.
    if memchr::memchr(b'\n', within.trim_ascii_start()).is_none() {
        BadRequest::new(414, "the request line is too long")
    } else {
        BadRequest::new(431, "the request head is too large")
    }
}

/// The third word of the request line is not HTTP/1.0 or HTTP/1.1. RFC 9110 section 2.5: a higher minor version is
/// processed as the highest one that is known.
fn later_version(input: &[u8], limits: &HeadLimits) -> Result<Parsed, BadRequest> {
    let word = input.trim_ascii_start().split(|&byte| byte == b' ').nth(2).unwrap_or_default();
    match word.strip_prefix(b"HTTP/").unwrap_or_default() {
        [b'1', b'.', b'2'..=b'9'] | [b'1', b'.', b'2'..=b'9', b'\r' | b'\n', ..] => {
            let minor = Span::of(input, word).start as usize + b"HTTP/1.".len();
            let mut copy = input.to_vec();
            let digit = copy.get_mut(minor).map(|digit| std::mem::replace(digit, b'1'));
            let mut parsed = parse(&copy, limits)?;
            if let Parsed::Head { head, .. } = &mut parsed
                && let (Some(place), Some(digit)) = (head.bytes.get_mut(minor), digit)
            {
                *place = digit;
            }
            Ok(parsed)
        }
        [b'0' | b'2'..=b'9', ..] => Err(BadRequest::new(505, "expected HTTP/1.1")),
        _ => Err(bad("not an HTTP/1.1 request")),
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
    /// The port of the target's scheme; 0 where the target has none.
    scheme_port: u16,
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
    fn new(input: &[u8], request: &httparse::Request) -> Result<Head, BadRequest> {
        if u32::try_from(input.len()).is_err() {
            return Err(BadRequest::new(431, "the request head is too large"));
        }
        let method = request.method.unwrap_or_default();
        let target = request.path.unwrap_or_default();
        let split = Target::split(method, target).map_err(bad)?;

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
            scheme_port: split.scheme_port,
            minor_version: request.version.unwrap_or_default(),
            fields: fields.collect(),
        };
        let host = head.check_host()?;
        // RFC 9112 section 3.2.2: the authority of an absolute-form replaces that of Host.
        head.authority = split.authority.map_or(host, |authority| Span::of(input, authority.as_bytes()));
        head.check_content_length()?;
        head.check_transfer_encoding()?;
        Ok(head)
    }

    /// RFC 9112 section 3.2: exactly one, and valid; HTTP/1.0 may leave it out.
    fn check_host(&self) -> Result<Span, BadRequest> {
        let mut hosts = self.spans("host");
        match (hosts.next(), hosts.next()) {
            (Some(_), Some(_)) => Err(bad("more than one Host")),
            (Some(host), None) if self.slice(host).is_empty() => Ok(host),
            (Some(host), None) => {
                let text = std::str::from_utf8(self.slice(host)).ok();
                text.and_then(Authority::parse).map(|_| host).ok_or(bad("invalid Host"))
            }
            (None, _) if self.minor_version == 0 => Ok(Span::default()),
            (None, _) => Err(bad("no Host")),
        }
    }

    /// RFC 9112 section 6.3: several fields, or a list, must agree.
    fn check_content_length(&self) -> Result<(), BadRequest> {
        let mut lengths = list(self.header_all("content-length")).map(decimal);
        match lengths.next() {
            None if self.header("content-length").is_none() => Ok(()),
            Some(Some(first)) if lengths.all(|other| other == Some(first)) => Ok(()),
            _ => Err(bad("invalid Content-Length")),
        }
    }

    /// RFC 9112 section 6.3: where a body ends cannot be told unless chunked is the last coding, and a length beside it
    /// is an attempt to smuggle a request past somebody.
    fn check_transfer_encoding(&self) -> Result<(), BadRequest> {
        if self.header("transfer-encoding").is_none() {
            return Ok(());
        }
        let mut codings = list(self.header_all("transfer-encoding"));
        let has_chunked = codings.any(|coding| coding.eq_ignore_ascii_case(b"chunked"));
        if !has_chunked || codings.next().is_some() {
            return Err(bad("Transfer-Encoding does not end in chunked"));
        }
        if self.minor_version == 0 || self.header("content-length").is_some() {
            return Err(bad("Transfer-Encoding beside Content-Length or in HTTP/1.0"));
        }
        Ok(())
    }

    /// The method, such as "GET"; case-sensitive.
    pub fn method(&self) -> &str {
        self.text(self.method)
    }

    /// The request target as sent.
    pub fn target(&self) -> &str {
        self.text(self.target)
    }

    /// Path and query, whichever form the target had (RFC 9112 section 3.2). "*" and the authority-form are left as
    /// they are.
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

    /// The same in its parts, unless it is empty. Without a port of its own it has that of the target's scheme; in
    /// other forms of the target the scheme, and so its port, is not known: whoever ended TLS may have sent it on.
    pub fn host_and_port(&self) -> Option<Authority<'_>> {
        let authority = Authority::parse(self.authority())?;
        let scheme_port = (self.scheme_port != 0).then_some(self.scheme_port);
        Some(Authority { port: authority.port.or(scheme_port), ..authority })
    }

    /// 1 for HTTP/1.1 and later, 0 for HTTP/1.0.
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

    /// A copy with NULs behind its parts.
    pub fn terminated(&self) -> TerminatedHead {
        let mut head = self.clone();
        let fields = self.fields.iter().flat_map(|(name, value)| [name, value]);
        let parts = fields.chain([&self.method, &self.authority]).filter(|span| span.end > 0);
        // What follows each of them is a delimiter: white space, a colon, the slash behind an authority.
        for place in parts.map(|span| span.end as usize) {
            if let Some(byte) = head.bytes.get_mut(place) {
                *byte = 0;
            }
        }
        TerminatedHead(head)
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

/// The parts of a head for those who read C strings: the last byte of each slice is a NUL.
pub struct TerminatedHead(Head);

impl TerminatedHead {
    /// See [`Head::method`].
    pub fn method(&self) -> &[u8] {
        self.slice(self.0.method)
    }

    /// See [`Head::authority`]; `None` if there is none.
    pub fn authority(&self) -> Option<&[u8]> {
        let span = self.0.authority;
        (span.end > 0).then(|| self.slice(span))
    }

    /// See [`Head::header`].
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.0.spans(name).next().map(|value| self.slice(value))
    }

    /// See [`Head::header_at`].
    pub fn header_at(&self, index: usize) -> Option<(&[u8], &[u8])> {
        self.0.fields.get(index).map(|(name, value)| (self.slice(*name), self.slice(*value)))
    }

    fn slice(&self, span: Span) -> &[u8] {
        self.0.slice(Span { start: span.start, end: span.end.saturating_add(1) })
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Head({} {}, {} fields)", self.method(), self.target(), self.fields.len())
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// Parses arbitrary bytes, and what was understood once more.
#[doc(hidden)]
#[cfg(any(test, fuzzing))]
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
mod tests;
