//! Authentication of a client by what its request carries: a password (RFC 7617) or a bearer token (RFC 6750, RFC 7519). Reads no
//! file, keeps no connection, and waits for nothing: a password whose hash takes long to compute becomes a [`Check`],
//! which the caller runs on a thread of its own.

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

/// Longest name of a user; bytes. As in htpasswd, and of `sub` in OpenID Connect.
pub const MAX_USER: usize = 255;

/// What a client must prove, and how it may. At least one of the ways is there.
#[derive(Debug, PartialEq)]
pub struct Policy {
    /// Named in the challenge: printable ASCII without quotes and backslashes.
    pub realm: String,
    /// Users with passwords.
    pub passwords: Option<Passwords>,
    /// Bearer tokens.
    pub tokens: Option<Tokens>,
}

/// Which clients have to authenticate themselves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Authentication {
    /// All who ask for anything, unless its handler says otherwise.
    pub all: Option<Arc<Policy>>,
    /// By resource of a handler; `None`: nobody.
    pub of: BTreeMap<String, Option<Arc<Policy>>>,
    /// Failed attempts of an address in a minute; further ones wait for the next. 0: no limit.
    pub failures: u32,
}

impl Authentication {
    /// What is asked of those who ask for this handler.
    pub fn of(&self, resource: &str) -> Option<&Arc<Policy>> {
        self.of.get(resource).unwrap_or(&self.all).as_ref()
    }
}

/// A name that was proved: 1 to [`MAX_USER`] bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User(Box<str>);

impl User {
    /// `None` if it is no name for a user.
    pub fn new(name: &str) -> Option<Self> {
        let is_fit = (1..=MAX_USER).contains(&name.len()) && !name.contains(char::is_control);
        is_fit.then(|| Self(name.into()))
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// What is known of a client after a look at its request.
#[derive(Debug)]
pub enum Outcome {
    /// It is this user.
    User(User),
    /// It is not known until this was run.
    Check(Check),
    /// It proved nothing.
    Denied(Denied),
}

/// Why a client is asked to prove who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It did not try.
    Missing,
    /// Not in a way that is allowed here.
    Malformed(&'static str),
    /// User and password are wrong.
    Password,
    /// The token is wrong.
    Token(&'static str),
}

impl Denied {
    /// For the log and the body of the answer, which do not tell whether there is such a user.
    pub fn why(self) -> &'static str {
        match self {
            Denied::Missing => "credentials are required",
            Denied::Malformed(why) | Denied::Token(why) => why,
            Denied::Password => "wrong user or password",
        }
    }

    /// Whether somebody has tried, and may be guessing.
    pub fn is_attempt(self) -> bool {
        self != Denied::Missing
    }
}

impl Policy {
    /// Whoever sends this request.
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
            _ => Outcome::Denied(Denied::Malformed("Authorization is of a kind that is not accepted here")),
        }
    }

    /// Path and query of a request, without the parameter that holds a token.
    pub fn resource<'a>(&self, head: &'a Head) -> Cow<'a, str> {
        self.tokens.as_ref().map_or(head.resource().into(), |tokens| tokens.hide(head.resource()))
    }

    /// Whether a subprotocol that was offered is a token.
    pub fn is_token(&self, protocol: &str) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| tokens.is_token(protocol))
    }

    /// The fields of a 401 (RFC 9110 section 11.6.1).
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

/// What follows this scheme in a value of Authorization; schemes are case-insensitive (RFC 9110 section 11.1).
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

    /// A request with these lines after the first.
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
    fn who_does_not_try_is_asked_and_who_tries_in_another_way_is_denied() {
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
    fn names_of_users() {
        assert!(User::new("a").is_some() && User::new(&"ä".repeat(127)).is_some());
        for name in ["", "a\0", "a\r\nb", &"a".repeat(256)] {
            assert_eq!(User::new(name), None, "{name:?}");
        }
    }
}
