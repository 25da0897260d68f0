//! What peers do, as a script that `wshd test` plays (wshd-test(1)), without secrets. Pure: values in, text out.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use percent_encoding::percent_decode_str;

/// Bytes of a fragment that one line has.
const PIECE: usize = 16 << 10;
/// In place of a secret.
const MASKED: &str = "masked";
/// What the peer of a test says itself.
const OWN_HEADERS: [&str; 6] = [
    "connection",
    "upgrade",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-extensions",
    "sec-websocket-protocol",
];
/// Parts of the names of headers and parameters whose values are secrets.
const SECRET_PARTS: [&str; 15] = [
    "token",
    "secret",
    "passw",
    "auth",
    "session",
    "apikey",
    "api_key",
    "api-key",
    "signature",
    "ticket",
    "credential",
    "bearer",
    "csrf",
    "xsrf",
    "assertion",
];
/// Such names.
const SECRETS: [&str; 7] = ["key", "pwd", "sid", "sig", "code", "jwt", "otp"];
/// Names of subprotocols are not as long: it is a credential, in the one place where scripts in browsers can put it;
/// bytes.
const LONGEST_PROTOCOL: usize = 32;

/// The name of a peer, which its connection keeps in whichever process it is: the kernel's cookie of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(pub u64);

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{:x}", self.0)
    }
}

/// A script that grows. Writing to it does not fail.
#[derive(Debug, Default)]
pub struct Script(String);

impl Script {
    pub fn text(&self) -> &str {
        &self.0
    }

    /// For people.
    pub fn comment(&mut self, text: impl Display) {
        self.line(format_args!("# {text}"));
    }

    /// So much time has passed since the beginning.
    pub fn at(&mut self, time: Duration) {
        let (seconds, millis) = (time.as_secs(), time.subsec_millis());
        self.line(format_args!("= at {seconds}s {millis}ms"));
    }

    /// Connections have come from another process.
    pub fn moved(&mut self) {
        self.line("= move");
    }

    /// A request for a WebSocket, with these headers and subprotocols.
    pub fn request<'a>(
        &mut self,
        name: Name,
        resource: &[u8],
        headers: impl Iterator<Item = (&'a str, &'a [u8])>,
        protocols: Option<&[u8]>,
    ) {
        self.line(format_args!("{name}>! request {}", without_secrets(&String::from_utf8_lossy(resource))));
        for (header, value) in headers.filter(|(name, _)| !is_one_of(name, &OWN_HEADERS)) {
            self.line(format_args!("    {header}: {}", masked(header, &String::from_utf8_lossy(value))));
        }
        if let Some(protocols) = protocols {
            self.line(format_args!(
                "    Sec-WebSocket-Protocol: {}",
                known_protocols(&String::from_utf8_lossy(protocols))
            ));
        }
    }

    /// A whole message; None: only its size is written.
    pub fn message(&mut self, name: Name, is_text: bool, size: usize, bytes: Option<&[u8]>) {
        match bytes {
            None if is_text => self.line(format_args!("{name}>! large {size}")),
            None => self.line(format_args!("{name}>! large {size} binary")),
            Some(bytes) if is_text => {
                let text = String::from_utf8_lossy(bytes);
                match text.contains(char::is_control) {
                    false => self.line(format_args!("{name}> {text}")),
                    true => self.line(format_args!("{name}>! text {}", serde_json::Value::from(text))),
                }
            }
            Some(bytes) => self.line(format_args!("{name}>! binary {}", Hex(bytes))),
        }
    }

    /// A fragment, as a handler gets them that takes messages as a stream.
    pub fn fragment(&mut self, name: Name, is_text: bool, is_first: bool, is_last: bool, bytes: &[u8]) {
        if is_text && is_first {
            self.line(format_args!("{name}>! fragment ")); // the others do not say what they are pieces of
        }
        let mut pieces = bytes.chunks(PIECE).peekable();
        if pieces.peek().is_none() && is_last {
            self.line(format_args!("{name}>! binary last "));
        }
        while let Some(piece) = pieces.next() {
            let part = if is_last && pieces.peek().is_none() { "last" } else { "fragment" };
            self.line(format_args!("{name}>! binary {part} {}", Hex(piece)));
        }
    }

    /// A Ping; where it is no text for one line, its size only.
    pub fn ping(&mut self, name: Name, payload: Option<&[u8]>, size: usize) {
        let text = payload.and_then(|payload| std::str::from_utf8(payload).ok());
        match text.filter(|text| !text.contains(char::is_control)) {
            Some(text) => self.line(format_args!("{name}>! ping {text}")),
            None => self.line(format_args!("{name}>! ping {}", "x".repeat(size))),
        }
    }

    /// A Close frame; 1005 is one without a code.
    pub fn close(&mut self, name: Name, code: u16, reason: Option<&[u8]>) {
        let reason = reason.map(String::from_utf8_lossy).unwrap_or_default();
        match code {
            1005 => self.line(format_args!("{name}>! close")),
            _ if reason.is_empty() || reason.contains(char::is_control) => {
                self.line(format_args!("{name}>! close {code}"));
            }
            _ => self.line(format_args!("{name}>! close {code} {reason}")),
        }
    }

    /// The end without one.
    pub fn vanish(&mut self, name: Name) {
        self.line(format_args!("{name}>! vanish"));
    }

    fn line(&mut self, line: impl Display) {
        let _ = writeln!(self.0, "{line}");
    }
}

/// Bytes as digits.
struct Hex<'a>(&'a [u8]);

impl Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn is_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    is_one_of(name, &SECRETS) || SECRET_PARTS.iter().any(|part| lower.contains(part))
}

/// A resource without the values of parameters whose names say that they are secrets.
fn without_secrets(resource: &str) -> String {
    let Some((path, query)) = resource.split_once('?') else { return resource.to_owned() };
    let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if is_secret(&percent_decode_str(name).decode_utf8_lossy()) => {
            format!("{name}={MASKED}")
        }
        _ => parameter.to_owned(),
    });
    format!("{path}?{}", parameters.collect::<Vec<_>>().join("&"))
}

/// The subprotocols that are offered, without credentials: what follows a name such as bearer or access_token, also in
/// the same item as in bearer.TOKEN, or is too long for a name.
fn known_protocols(offered: &str) -> String {
    let mut is_after_secret = false;
    let protocols = offered.split(',').map(str::trim).map(|protocol| {
        let is_prefixed = is_secret(protocol) && protocol.contains('.');
        let is_credential = is_after_secret || is_prefixed || protocol.len() > LONGEST_PROTOCOL;
        is_after_secret = !is_credential && is_secret(protocol);
        if is_credential { MASKED } else { protocol }
    });
    protocols.collect::<Vec<_>>().join(", ")
}

/// The value of a header without what is secret in it.
fn masked(name: &str, value: &str) -> String {
    match name.to_ascii_lowercase().as_str() {
        "cookie" => {
            let names = value.split(';').map(|pair| pair.split('=').next().unwrap_or_default().trim());
            names.map(|name| format!("{name}={MASKED}")).collect::<Vec<_>>().join("; ")
        }
        "authorization" | "proxy-authorization" => match value.split_once(' ') {
            Some((scheme, _)) => format!("{scheme} {MASKED}"),
            None => MASKED.to_owned(),
        },
        "referer" => without_secrets(value),
        _ if is_secret(name) => MASKED.to_owned(),
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: Name = Name(0x1f);

    fn said(say: impl FnOnce(&mut Script)) -> String {
        let mut script = Script::default();
        say(&mut script);
        script.0
    }

    #[test]
    fn a_request_has_its_headers_without_secrets() {
        let headers: [(&str, &[u8]); 8] = [
            ("Host", b"example.com"),
            ("Connection", b"Upgrade"),
            ("Sec-WebSocket-Key", b"AAAA"),
            ("Cookie", b"theme=dark; SID=31d4"),
            ("authorization", b"Bearer abc.def"),
            ("Proxy-Authorization", b"x"),
            ("X-Auth-Token", b"x"),
            ("Referer", b"https://example.com/?access_token=x&a=b"),
        ];
        let resource = b"/chat?room=1&Access_Token=x&%6bey=y&keyboard=z&ticket=t&flag";
        let said = said(|script| script.request(ANN, resource, headers.into_iter(), Some(b"v2, v1")));
        let expected = "c1f>! request /chat?room=1&Access_Token=masked&%6bey=masked&keyboard=z&ticket=masked&flag\n    \
            Host: example.com\n    Cookie: theme=masked; SID=masked\n    authorization: Bearer masked\n    \
            Proxy-Authorization: masked\n    X-Auth-Token: masked\n    \
            Referer: https://example.com/?access_token=masked&a=b\n    Sec-WebSocket-Protocol: v2, v1\n";
        assert_eq!(said, expected);
    }

    #[test]
    fn credentials_among_subprotocols_are_masked() {
        for (offered, expected) in [
            ("graphql-transport-ws, v12.stomp", "graphql-transport-ws, v12.stomp"),
            ("chat, access_token, abc", "chat, access_token, masked"),
            ("chat, bearer.abc", "chat, masked"),
            ("Bearer,abc.def,chat", "Bearer, masked, chat"),
            ("base64url.bearer.authorization.k8s.io.YWJj, v5.channel.k8s.io", "masked, v5.channel.k8s.io"),
        ] {
            assert_eq!(known_protocols(offered), expected);
        }
    }

    #[test]
    fn messages_are_lines() {
        for (is_text, bytes, expected) in [
            (true, "b\u{e4}r, said \"she\"".as_bytes(), "c1f> b\u{e4}r, said \"she\"\n"),
            (true, b" ", "c1f>  \n"),
            (true, b"a\r\n\"b\"", "c1f>! text \"a\\r\\n\\\"b\\\"\"\n"),
            (false, b"\x00\xff", "c1f>! binary 00ff\n"),
        ] {
            assert_eq!(said(|script| script.message(ANN, is_text, bytes.len(), Some(bytes))), expected);
        }
        assert_eq!(said(|script| script.message(ANN, true, 3, None)), "c1f>! large 3\n");
        assert_eq!(said(|script| script.message(ANN, false, 3, None)), "c1f>! large 3 binary\n");
    }

    #[test]
    fn fragments_say_once_what_they_are_pieces_of() {
        let text = said(|script| {
            script.fragment(ANN, true, true, false, b"a");
            script.fragment(ANN, true, false, true, b"");
        });
        assert_eq!(text, "c1f>! fragment \nc1f>! binary fragment 61\nc1f>! binary last \n");
        let binary = said(|script| script.fragment(ANN, false, true, false, &[0; PIECE + 1]));
        assert!(binary.lines().count() == 2 && binary.ends_with(">! binary fragment 00\n"));
        assert!(
            said(|script| script.fragment(ANN, false, false, true, b"\x01")).ends_with("binary last 01\n")
        );
    }

    #[test]
    fn ends_and_times_are_lines() {
        assert_eq!(said(|script| script.close(ANN, 1005, None)), "c1f>! close\n");
        assert_eq!(said(|script| script.close(ANN, 4000, Some(b"why not"))), "c1f>! close 4000 why not\n");
        assert_eq!(said(|script| script.ping(ANN, Some(b" a"), 2)), "c1f>! ping  a\n");
        assert_eq!(said(|script| script.ping(ANN, Some(b"\n\xff"), 2)), "c1f>! ping xx\n");
        assert_eq!(said(|script| script.ping(ANN, None, 1)), "c1f>! ping x\n");
        assert_eq!(said(|script| script.vanish(ANN)), "c1f>! vanish\n");
        assert_eq!(said(|script| script.at(Duration::from_millis(61_020))), "= at 61s 20ms\n");
    }
}
