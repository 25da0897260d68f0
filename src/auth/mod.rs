//! Authentication of a request by a password (RFC 7617) or a bearer token (RFC 6750, RFC 7519). It reads no files and
//! does not block: a password with a slow hash becomes a [`Check`], which the caller runs on another thread.

mod passwords;
mod recent;
mod tokens;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use crate::proto::http1::head::Head;
pub use passwords::{Check, Passwords};
pub use recent::{Proof, Recent};
pub use tokens::{TokenRules, Tokens};

/// Maximum bytes of a user name, as in htpasswd, and of `sub` in OpenID Connect.
pub const MAX_USER: usize = 255;

/// How clients authenticate: with passwords, tokens, or either; at least one is configured.
#[derive(Debug, PartialEq)]
pub struct Policy {
    /// Realm of the challenge: printable ASCII without quotes and backslashes.
    pub realm: String,
    /// Users with passwords.
    pub passwords: Option<Passwords>,
    /// Bearer tokens.
    pub tokens: Option<Tokens>,
}

/// Which requests must be authenticated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Authentication {
    /// All requests, except those for handlers with a policy of their own.
    pub all: Option<Arc<Policy>>,
    /// By resource of a handler; `None`: no authentication.
    pub of: BTreeMap<String, Option<Arc<Policy>>>,
    /// Maximum failed attempts of an address per minute; further ones are refused until the next. 0: unlimited.
    pub failures: u32,
}

impl Authentication {
    /// The policy for requests for this handler.
    pub fn of(&self, resource: &str) -> Option<&Arc<Policy>> {
        self.of.get(resource).unwrap_or(&self.all).as_ref()
    }
}

/// A user name: 1 to [`MAX_USER`] bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User(Box<str>);

impl User {
    /// `None`: not a valid name.
    pub fn new(name: &str) -> Option<Self> {
        let is_valid = (1..=MAX_USER).contains(&name.len()) && !name.contains(char::is_control);
        is_valid.then(|| Self(name.into()))
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// Result of the authentication of a request.
#[derive(Debug)]
pub enum Outcome {
    /// Authenticated.
    User(User),
    /// Known only after this check was run.
    Check(Check),
    /// Refused.
    Denied(Denied),
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It has no credentials.
    Missing,
    /// Its credentials are malformed, or of a kind that is not accepted.
    Malformed(&'static str),
    /// Wrong user or password.
    Password,
    /// Invalid token.
    Token(&'static str),
}

impl Denied {
    /// The reason, for the log and the response. It does not reveal whether the user exists.
    pub fn why(self) -> &'static str {
        match self {
            Denied::Missing => "credentials are required",
            Denied::Malformed(why) | Denied::Token(why) => why,
            Denied::Password => "wrong user or password",
        }
    }

    /// Whether it counts as a failed attempt, which may be a guess.
    pub fn is_attempt(self) -> bool {
        self != Denied::Missing
    }
}

impl Policy {
    /// Authenticates a request.
    pub fn authenticate(&self, head: &Head) -> Outcome {
        let mut values = head.header_all("authorization");
        let value = values.next();
        if values.next().is_some() {
            return Outcome::Denied(Denied::Malformed("more than one Authorization"));
        }
        if let Some(tokens) = &self.tokens
            && let Some(token) =
                value.and_then(|value| after_scheme(value, "Bearer")).or_else(|| tokens.find(head))
        {
            return tokens.verify(token);
        }
        let Some(value) = value else { return Outcome::Denied(Denied::Missing) };
        match (&self.passwords, after_scheme(value, "Basic")) {
            (Some(passwords), Some(credentials)) => passwords.verify(credentials),
            _ => Outcome::Denied(Denied::Malformed("this kind of Authorization is not accepted here")),
        }
    }

    /// Path and query of a request, without its token.
    pub fn resource<'a>(&self, head: &'a Head) -> Cow<'a, str> {
        self.tokens.as_ref().map_or(head.resource().into(), |tokens| tokens.hide(head.resource()))
    }

    /// Whether a subprotocol that was offered is a token.
    pub fn is_token(&self, protocol: &str) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| tokens.is_token(protocol))
    }

    /// The challenges of a 401 (RFC 9110 section 11.6.1).
    pub fn challenge(&self, denied: Denied) -> Vec<(&'static str, String)> {
        const FIELD: &str = "WWW-Authenticate";
        let mut fields = Vec::new();
        if self.passwords.is_some() {
            fields.push((FIELD, format!("Basic realm=\"{}\", charset=\"UTF-8\"", self.realm)));
        }
        if self.tokens.is_some() {
            let mut value = format!("Bearer realm=\"{}\"", self.realm);
            if let Denied::Token(why) = denied {
                // RFC 6750 section 3.
                let _ = write!(value, ", error=\"invalid_token\", error_description=\"{why}\"");
            }
            fields.push((FIELD, value));
        }
        fields
    }
}

/// The credentials after this scheme in Authorization; schemes are case-insensitive (RFC 9110 section 11.1).
fn after_scheme<'a>(value: &'a [u8], scheme: &str) -> Option<&'a [u8]> {
    let (name, rest) = value.split_at_checked(scheme.len())?;
    let is_same = name.eq_ignore_ascii_case(scheme.as_bytes()) && rest.starts_with(b" ");
    is_same.then(|| rest.trim_ascii())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::proto::http1::head::{HeadLimits, Parsed, parse};

    /// A request with these header lines.
    pub fn head(target: &str, lines: &str) -> Head {
        let text = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        match parse(text.as_bytes(), &HeadLimits { bytes: 16_384, headers: 100 }) {
            Ok(Parsed::Head { head, .. }) => head,
            other => panic!("{other:?}"),
        }
    }

    fn policy() -> Policy {
        let passwords = Passwords::of_credential("ann:s:cret").unwrap();
        Policy { realm: "here".to_owned(), passwords: Some(passwords), tokens: None }
    }

    #[track_caller]
    fn denied(policy: &Policy, lines: &str) -> Denied {
        match policy.authenticate(&head("/", lines)) {
            Outcome::Denied(denied) => denied,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_scheme_is_case_insensitive_and_followed_by_a_space() {
        for (value, rest) in [
            ("Basic YQ==", Some("YQ==")),
            ("bASIC   YQ== ", Some("YQ==")),
            ("BasicYQ==", None),
            ("Basic", None),
            ("Bas", None),
            ("Digest a", None),
        ] {
            assert_eq!(after_scheme(value.as_bytes(), "Basic"), rest.map(str::as_bytes), "{value}");
        }
    }

    #[test]
    fn missing_and_other_credentials_are_denied() {
        let policy = policy();
        assert_eq!(denied(&policy, ""), Denied::Missing);
        for lines in [
            "Authorization: Bearer abc\r\n",
            "Authorization: \r\n",
            "Authorization: Basic YW5uOnM6Y3JldA==\r\nAuthorization: Basic YW5uOnM6Y3JldA==\r\n",
        ] {
            assert!(matches!(denied(&policy, lines), Denied::Malformed(_)), "{lines}");
        }
        let fields = policy.challenge(Denied::Missing);
        assert_eq!(fields, [("WWW-Authenticate", "Basic realm=\"here\", charset=\"UTF-8\"".to_owned())]);
    }

    #[test]
    fn user_names() {
        assert!(User::new("a").is_some() && User::new(&"ä".repeat(127)).is_some());
        for name in ["", "a\0", "a\r\nb", &"a".repeat(256)] {
            assert_eq!(User::new(name), None, "{name:?}");
        }
    }
}
