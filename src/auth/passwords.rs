//! Users and their passwords: one credential of the configuration, or the lines of an htpasswd file.
//!
//! Hashes are bcrypt or SHA-crypt, which are slow by design; fast ones (MD5, SHA-1, DES) and plain text are refused
//! when the file is read. Checking an unknown user takes as long as checking a known one.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha_crypt::{Algorithm, Params, PasswordHash, PasswordVerifier, ShaCrypt};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Denied, Outcome, User};

/// Maximum bytes of a password: the time of SHA-crypt grows with them.
const MAX_PASSWORD: usize = 256;
/// Maximum cost of bcrypt: about a second.
const MAX_COST: u32 = 14;
/// Maximum rounds of SHA-crypt: about a second.
const MAX_ROUNDS: u32 = 1_000_000;

/// Users by name; never empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Passwords(BTreeMap<String, Secret>);

/// What a password is compared with.
#[derive(Clone, PartialEq, Eq)]
enum Secret {
    /// SHA-256 of a password in the configuration: fast to compare.
    Digest([u8; 32]),
    Bcrypt(String),
    ShaCrypt(String),
}

/// A password to be checked, which takes up to a second.
pub struct Check {
    user: User,
    password: Box<[u8]>,
    secret: Secret,
    /// False: the user is unknown, and the secret that of another user.
    is_known: bool,
}

impl Passwords {
    /// The one user of `user:password`; the error says what was expected.
    pub fn of_credential(credential: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected user:password";
        let (user, password) = credential.split_once(':').ok_or(EXPECTED)?;
        User::new(user).ok_or(EXPECTED)?;
        if password.is_empty() || password.len() > MAX_PASSWORD {
            return Err("expected a password of 1 to 256 bytes after user:");
        }
        Ok(Self([(user.to_owned(), Secret::Digest(Sha256::digest(password).into()))].into()))
    }

    /// Parses an htpasswd file: lines `user:hash`, empty lines and comments (#). The error names the line.
    pub fn of_file(text: &str) -> Result<Self, String> {
        let mut users = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !is_blank(line)) {
            let wrong = |what: String| format!("line {number}: {what}");
            let (name, hash) =
                line.trim_end().split_once(':').ok_or_else(|| wrong("expected user:hash".into()))?;
            User::new(name).ok_or_else(|| wrong("expected a user of 1 to 255 bytes".into()))?;
            let secret = Secret::parse(hash).map_err(|what| wrong(format!("user {name}: {what}")))?;
            if users.insert(name.to_owned(), secret).is_some() {
                return Err(wrong(format!("duplicate user {name}")));
            }
        }
        match users.is_empty() {
            true => Err("expected at least one line user:hash".to_owned()),
            false => Ok(Self(users)),
        }
    }

    /// The users of both; if both have a user, that of `other`.
    pub fn with(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Verifies `credentials`, base64 of `user:password`.
    pub fn verify(&self, credentials: &[u8]) -> Outcome {
        const MALFORMED: Denied = Denied::Malformed("malformed Basic credentials");
        let decoded = STANDARD.decode(credentials).ok();
        let decoded = decoded.as_deref().and_then(|text| std::str::from_utf8(text).ok());
        let Some((name, password)) = decoded.and_then(|text| text.split_once(':')) else {
            return Outcome::Denied(MALFORMED);
        };
        let Some(user) = User::new(name) else { return Outcome::Denied(MALFORMED) };
        if password.len() > MAX_PASSWORD {
            return Outcome::Denied(Denied::Password);
        }
        let found = self.0.get(name);
        let Some(secret) = found.or_else(|| self.stand_in()) else {
            return Outcome::Denied(Denied::Password);
        };
        let check = Check {
            user,
            password: password.as_bytes().into(),
            secret: secret.clone(),
            is_known: found.is_some(),
        };
        match secret {
            Secret::Digest(_) => check.run(),
            Secret::Bcrypt(_) | Secret::ShaCrypt(_) => Outcome::Check(check),
        }
    }

    /// The secret that the password of an unknown user is compared with: one of those that take longest.
    fn stand_in(&self) -> Option<&Secret> {
        self.0.values().max_by_key(|secret| matches!(secret, Secret::Bcrypt(_) | Secret::ShaCrypt(_)))
    }
}

impl Secret {
    fn parse(hash: &str) -> Result<Self, String> {
        const CREATE: &str = "create one with: htpasswd -B FILE USER";
        if let Some(kind) = ["$2a$", "$2b$", "$2y$"].into_iter().find(|kind| hash.starts_with(kind)) {
            let parts: bcrypt::HashParts =
                hash.parse().map_err(|_| format!("malformed bcrypt hash ({kind})"))?;
            return match parts.get_cost() {
                4..=MAX_COST => Ok(Secret::Bcrypt(hash.to_owned())),
                cost => Err(format!("bcrypt with cost {cost}: expected 4 to {MAX_COST}")),
            };
        }
        if hash.starts_with("$5$") || hash.starts_with("$6$") {
            return Self::sha_crypt(hash);
        }
        let kind = match hash {
            "" => "no password",
            _ if hash.starts_with("$apr1$") || hash.starts_with("$1$") => "MD5",
            _ if hash.starts_with("{SHA}") => "SHA-1 without salt",
            _ => "plain text or an unknown hash",
        };
        Err(format!("expected bcrypt ($2y$) or SHA-crypt ($5$, $6$), not {kind}; {CREATE}"))
    }

    fn sha_crypt(hash: &str) -> Result<Self, String> {
        let malformed = || "malformed SHA-crypt hash".to_owned();
        let fields: Vec<&str> = hash.split('$').skip(2).collect();
        let (salt, sum) = match fields[..] {
            [rounds, salt, sum] => {
                let rounds = rounds.strip_prefix("rounds=").and_then(|number| number.parse().ok());
                match rounds.ok_or_else(malformed)? {
                    Params::ROUNDS_MIN..=MAX_ROUNDS => (salt, sum),
                    rounds => {
                        let least = Params::ROUNDS_MIN;
                        return Err(format!(
                            "SHA-crypt with {rounds} rounds: expected {least} to {MAX_ROUNDS}"
                        ));
                    }
                }
            }
            [salt, sum] => (salt, sum),
            _ => return Err(malformed()),
        };
        let size = if hash.starts_with("$5$") { 43 } else { 86 };
        let is_crypt = |c: u8| c.is_ascii_alphanumeric() || b"./".contains(&c);
        let is_whole = sum.len() == size && sum.bytes().all(is_crypt) && (1..=16).contains(&salt.len());
        match is_whole && PasswordHash::new(hash).is_ok() {
            true => Ok(Secret::ShaCrypt(hash.to_owned())),
            false => Err(malformed()),
        }
    }
}

impl Check {
    /// The user to be authenticated.
    pub fn user(&self) -> &User {
        &self.user
    }

    /// What identifies this check: user, password and secret.
    pub(super) fn parts(&self) -> [&[u8]; 3] {
        let secret: &[u8] = match &self.secret {
            Secret::Digest(digest) => digest,
            Secret::Bcrypt(hash) | Secret::ShaCrypt(hash) => hash.as_bytes(),
        };
        [self.user.name().as_bytes(), &self.password, secret]
    }

    /// Hashes and compares the password; slow.
    pub fn run(self) -> Outcome {
        let is_same = match &self.secret {
            Secret::Digest(digest) => Sha256::digest(&self.password)[..].ct_eq(digest).into(),
            Secret::Bcrypt(hash) => bcrypt::verify(&self.password, hash).unwrap_or(false),
            Secret::ShaCrypt(hash) => {
                ShaCrypt::from(Algorithm::default()).verify_password(&self.password, hash.as_str()).is_ok()
            }
        };
        match is_same && self.is_known {
            true => Outcome::User(self.user),
            false => Outcome::Denied(Denied::Password),
        }
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Passwords({} users)", self.0.len())
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Check({:?})", self.user)
    }
}

fn is_blank(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with('#')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Created by other programs: bcrypt from httpd's documentation, SHA-crypt with openssl-passwd(1) and crypt(3).
    const FILE: &str = "# users\n\
        \n\
        bea:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n\
        eve:$5$salt$bZDmhjddzzMv6QiMvpMRtPoB6YiC0flGPEs/yYlKFH2\r\n\
        joe:$6$rounds=1000$salt$NA9Kv1V.XTkPrW0i0xqZq4c1kgYTOA46HQ./mO5C/2LyvuZ9FknTLTQo8hGZvxrnk3WsvCBiOVghHfjFhPRWv.\n\
        sam:$6$saltstring$ET0yFcPJ231DnF6Kw86Loj/QU5T/4a4TbCXIAxs1oXEubslPAFJO/uAbdmSIuPrrgz5YncoabuHSrz4z.RJjq0\n";

    /// Whether the check is slow, and the user.
    fn verify(passwords: &Passwords, credentials: &str) -> (bool, Option<String>) {
        let (is_slow, outcome) = match passwords.verify(STANDARD.encode(credentials).as_bytes()) {
            Outcome::Check(check) => (true, check.run()),
            outcome => (false, outcome),
        };
        match outcome {
            Outcome::User(user) => (is_slow, Some(user.name().to_owned())),
            _ => (is_slow, None),
        }
    }

    #[test]
    fn hashes_of_other_programs() {
        let passwords = Passwords::of_file(FILE).unwrap();
        for (user, password) in [("bea", "myPassword"), ("eve", "eve!"), ("joe", "joe!"), ("sam", "joe!")] {
            assert_eq!(verify(&passwords, &format!("{user}:{password}")), (true, Some(user.to_owned())));
            for wrong in ["", "x", &format!("{password} "), &password.to_uppercase()] {
                assert_eq!(verify(&passwords, &format!("{user}:{wrong}")), (true, None), "{user} {wrong}");
            }
        }
        assert_eq!(format!("{passwords:?}"), "Passwords(4 users)");
    }

    #[test]
    fn an_unknown_user_takes_as_long_as_a_known_one() {
        let file = Passwords::of_file(FILE).unwrap();
        let both = file.with(Passwords::of_credential("ann:secret").unwrap());
        assert_eq!(verify(&both, "ann:secret"), (false, Some("ann".to_owned())));
        assert_eq!(verify(&both, "nobody:secret"), (true, None));
        assert_eq!(verify(&both, "nobody:myPassword"), (true, None), "the password of another");
    }

    #[test]
    fn a_credential_has_a_user_without_colons_and_a_password() {
        let passwords = Passwords::of_credential("ann:s:cret").unwrap();
        assert_eq!(verify(&passwords, "ann:s:cret"), (false, Some("ann".to_owned())));
        for wrong in
            ["ann:s", "ann:", "ann", ":s:cret", "bob:s:cret", "Ann:s:cret", "ann:s:cret\0", "an\n:s:cret"]
        {
            assert_eq!(verify(&passwords, wrong).1, None, "{wrong}");
        }
        for wrong in ["", "ann", ":secret", "ann:", "a\nb:secret", &format!("ann:{}", "x".repeat(257))] {
            assert!(Passwords::of_credential(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "?", "YW5uOnM6Y3JldA", "/////w=="] {
            assert!(
                matches!(passwords.verify(wrong.as_bytes()), Outcome::Denied(Denied::Malformed(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn malformed_lines() {
        let create = "; create one with: htpasswd -B FILE USER";
        for (text, expected) in [
            ("", "expected at least one line user:hash".to_owned()),
            ("# nobody\n", "expected at least one line user:hash".to_owned()),
            ("\nann\n", "line 2: expected user:hash".to_owned()),
            (":$2y$", "line 1: expected a user of 1 to 255 bytes".to_owned()),
            ("a:$2y$05$abc", "line 1: user a: malformed bcrypt hash ($2y$)".to_owned()),
            (
                "a:$2y$15$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC",
                "line 1: user a: bcrypt with cost 15: expected 4 to 14".to_owned(),
            ),
            ("a:$6$salt$abc", "line 1: user a: malformed SHA-crypt hash".to_owned()),
            (
                "a:$5$rounds=999999999$salt$bZDmhjddzzMv6QiMvpMRtPoB6YiC0flGPEs/yYlKFH2",
                "line 1: user a: SHA-crypt with 999999999 rounds: expected 1000 to 1000000".to_owned(),
            ),
            (
                "a:$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/",
                format!("line 1: user a: expected bcrypt ($2y$) or SHA-crypt ($5$, $6$), not MD5{create}"),
            ),
            (
                "a:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
                format!(
                    "line 1: user a: expected bcrypt ($2y$) or SHA-crypt ($5$, $6$), not SHA-1 without salt{create}"
                ),
            ),
            (
                "a:secret",
                format!(
                    "line 1: user a: expected bcrypt ($2y$) or SHA-crypt ($5$, $6$), not plain text or an unknown hash{create}"
                ),
            ),
        ] {
            assert_eq!(Passwords::of_file(text).unwrap_err(), expected, "{text}");
        }
        let twice = "a:$5$salt$bZDmhjddzzMv6QiMvpMRtPoB6YiC0flGPEs/yYlKFH2\n".repeat(2);
        assert_eq!(Passwords::of_file(&twice).unwrap_err(), "line 2: duplicate user a");
    }
}
