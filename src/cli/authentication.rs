//! The options about who has to prove who they are. Reads the files that they name: they are secrets of the supervisor
//! and of the workers that need them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::auth::{Authentication, Passwords, Policy, TokenRules, Tokens};

const AUTHENTICATION: &str = "Authentication";
/// Largest file of passwords or a key; bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Flattened into the table of options and into that of a handler.
#[derive(Debug, clap::Args)]
pub struct PolicyArgs {
    /// Ask for a user and a password: that of --basic-auth-credential, or one in --htpasswd
    #[arg(long, help_heading = AUTHENTICATION)]
    basic_auth: bool,
    /// Accept this user with this password; other users of the machine can see a command line
    #[arg(long, value_name = "USER:PASSWORD", help_heading = AUTHENTICATION)]
    basic_auth_credential: Option<String>,
    /// Accept the users in this file, whose passwords are hashed with bcrypt or SHA-crypt
    #[arg(long, value_name = "FILE", help_heading = AUTHENTICATION)]
    htpasswd: Option<PathBuf>,
    /// Realm that clients are told [default: wshd]
    #[arg(long, value_name = "TEXT", value_parser = realm, help_heading = AUTHENTICATION)]
    auth_realm: Option<String>,
    /// Accept JSON Web Tokens that are signed with the key in this file: a PEM public key (RS256, ES256) or a secret
    /// (HS256)
    #[arg(long, value_name = "FILE", help_heading = AUTHENTICATION)]
    jwt_key: Option<PathBuf>,
    /// Issuer that tokens must have; may be repeated [default: any]
    #[arg(long, value_name = "TEXT", help_heading = AUTHENTICATION)]
    jwt_issuer: Vec<String>,
    /// Audience that tokens must have; may be repeated [default: they must have none]
    #[arg(long, value_name = "TEXT", help_heading = AUTHENTICATION)]
    jwt_audience: Vec<String>,
    /// Look for a token in this parameter of the query, too
    #[arg(long, value_name = "NAME", value_parser = not_empty, help_heading = AUTHENTICATION)]
    jwt_query: Option<String>,
    /// Look for a token in the offered subprotocol that begins with this, too
    #[arg(long, value_name = "PREFIX", value_parser = not_empty, help_heading = AUTHENTICATION)]
    jwt_protocol: Option<String>,
}

/// Flattened into the table of options.
#[derive(Debug, clap::Args)]
pub struct AuthenticationArgs {
    #[command(flatten)]
    policy: PolicyArgs,
    /// Most failed logins of one address in a minute; then status 429 (0: no limit)
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=10_000),
        help_heading = AUTHENTICATION)]
    max_auth_failures: u32,
}

/// Flattened into the table of a handler.
#[derive(Debug, clap::Args)]
pub struct HandlerPolicyArgs {
    /// Ask nobody who uses this handler, whatever is asked elsewhere
    #[arg(long)]
    no_auth: bool,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// The id of an option, and what is wrong with it.
pub type Wrong = (&'static str, String);

impl AuthenticationArgs {
    /// Into the configuration.
    pub fn into_config(self) -> Result<Authentication, Wrong> {
        let all = self.policy.into_policy()?.map(Arc::new);
        Ok(Authentication { all, failures: self.max_auth_failures, ..Authentication::default() })
    }
}

impl HandlerPolicyArgs {
    /// Into the configuration, for this resource.
    pub fn apply(self, resource: &str, authentication: &mut Authentication) -> Result<(), Wrong> {
        let policy = self.policy.into_policy()?.map(Arc::new);
        match (self.no_auth, &policy) {
            (true, Some(_)) => return Err(("no_auth", "expected no users and no key beside it".to_owned())),
            (false, None) => {}
            _ => drop(authentication.of.insert(resource.to_owned(), policy)),
        }
        Ok(())
    }
}

impl PolicyArgs {
    fn into_policy(self) -> Result<Option<Policy>, Wrong> {
        let credential = self.basic_auth_credential.as_deref().map(Passwords::of_credential).transpose();
        let credential = credential.map_err(|why| ("basic_auth_credential", why.to_owned()))?;
        let file = self.htpasswd.as_deref().map(users).transpose().map_err(|why| ("htpasswd", why))?;
        let passwords = match (credential, file) {
            (Some(credential), Some(file)) => Some(file.with(credential)),
            (credential, file) => credential.or(file),
        };
        if self.basic_auth && passwords.is_none() {
            let why =
                "expected --basic-auth-credential or --htpasswd beside it: there is no default password";
            return Err(("basic_auth", why.to_owned()));
        }
        let for_tokens = [
            ("jwt_issuer", !self.jwt_issuer.is_empty()),
            ("jwt_audience", !self.jwt_audience.is_empty()),
            ("jwt_query", self.jwt_query.is_some()),
            ("jwt_protocol", self.jwt_protocol.is_some()),
        ];
        let rules = TokenRules {
            issuers: self.jwt_issuer,
            audiences: self.jwt_audience,
            query: self.jwt_query,
            protocol: self.jwt_protocol,
        };
        let tokens = match &self.jwt_key {
            Some(path) => Some(tokens(path, rules).map_err(|why| ("jwt_key", why))?),
            None => match for_tokens.iter().find(|(_, is_given)| *is_given) {
                Some((id, _)) => return Err((id, "expected --jwt-key beside it".to_owned())),
                None => None,
            },
        };
        if passwords.is_none() && tokens.is_none() {
            return match self.auth_realm {
                Some(_) => Err(("auth_realm", "expected --htpasswd or --jwt-key beside it".to_owned())),
                None => Ok(None),
            };
        }
        let realm = self.auth_realm.unwrap_or_else(|| "wshd".to_owned());
        Ok(Some(Policy { realm, passwords, tokens }))
    }
}

fn users(path: &Path) -> Result<Passwords, String> {
    let wrong = |why: String| format!("{}: {why}", path.display());
    let text = String::from_utf8(read(path)?).map_err(|_| wrong("expected UTF-8".to_owned()))?;
    Passwords::of_file(&text).map_err(wrong)
}

fn tokens(path: &Path, rules: TokenRules) -> Result<Tokens, String> {
    Tokens::new(&read(path)?, rules).map_err(|why| format!("{}: {why}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = |file: File| file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    File::open(path).and_then(read).map_err(|error| format!("{}: {error}", path.display()))?;
    match bytes.len() as u64 {
        0..=MAX_BYTES => Ok(bytes),
        _ => Err(format!("{}: expected at most {MAX_BYTES} bytes", path.display())),
    }
}

/// It stands in a quoted string of a header.
fn realm(text: &str) -> Result<String, &'static str> {
    let is_fit = |c: char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\');
    match !text.is_empty() && text.chars().all(is_fit) {
        true => Ok(text.to_owned()),
        false => Err("expected printable ASCII without quotes and backslashes"),
    }
}

fn not_empty(text: &str) -> Result<String, &'static str> {
    let is_fit = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
    if is_fit { Ok(text.to_owned()) } else { Err("expected printable ASCII without spaces and commas") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::write;

    use super::super::file::tests::config;
    use super::*;
    use crate::auth::Authentication;

    const USERS: &str = "eve:$5$salt$bZDmhjddzzMv6QiMvpMRtPoB6YiC0flGPEs/yYlKFH2\n";

    /// A directory with a file of users and one with a secret.
    fn files() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path().join("users"), USERS).unwrap();
        write(dir.path().join("key"), "0123456789abcdef0123456789abcdef\n").unwrap();
        dir
    }

    fn read(text: &str, dir: &Path, args: &[&str]) -> Result<Authentication, String> {
        let text = text.replace("DIR", dir.to_str().unwrap());
        config(&text, args)
            .map(|config| config.authentication)
            .map_err(|why| why.replace(dir.to_str().unwrap(), "DIR"))
    }

    #[test]
    fn nobody_is_asked_by_default() {
        let authentication = config("", &[]).unwrap().authentication;
        assert!(authentication.all.is_none() && authentication.of("/a").is_none());
        assert_eq!(authentication.failures, 10);
    }

    #[test]
    fn a_handler_has_its_own_rules_or_none() {
        let dir = files();
        let text = "basic_auth_credential = 'ann:secret'\n[handler.'/a']\njwt_key = 'DIR/key'\nauth_realm = 'a'\n\
                    [handler.'/b']\nno_auth = true\n[handler.'/c']\nhandler_timeout = 0\n[handler.'/d']\n\
                    htpasswd = 'DIR/users'\nbasic_auth_credential = 'ann:secret'\n";
        let found = read(text, dir.path(), &[]).unwrap();
        let ways = |resource: &str| {
            found
                .of(resource)
                .map(|policy| (policy.realm.clone(), policy.passwords.is_some(), policy.tokens.is_some()))
        };
        assert_eq!(ways("/a"), Some(("a".to_owned(), false, true)));
        assert_eq!(ways("/b"), None);
        for resource in ["/c", "/elsewhere", "/d"] {
            assert_eq!(ways(resource), Some(("wshd".to_owned(), true, false)), "{resource}");
        }
        assert_eq!(format!("{:?}", found.of("/d").unwrap().passwords), "Some(Passwords(2 users))");
    }

    #[test]
    fn workers_have_the_secrets_of_their_handlers_only() {
        let dir = files();
        let text = format!(
            "basic_auth_credential = 'ann:secret'\n[handler.'/a']\nisolation = 'pool'\njwt_key = '{0}/key'\n\
             [handler.'/b']\nisolation = 'pool'\n[handler.'/c']\nhtpasswd = '{0}/users'\n",
            dir.path().display()
        );
        let config = config(&text, &[]).unwrap();
        let of = |pool| {
            let own = config.with_settings_of(pool).authentication;
            (own.all.is_some(), own.of.into_keys().collect::<Vec<_>>())
        };
        assert_eq!(of(Some(config.pool_of("/a"))), (false, vec!["/a".to_owned()]));
        assert_eq!(of(Some(config.pool_of("/b"))), (true, vec![]));
        assert_eq!(of(Some(0)), (true, vec!["/c".to_owned()]));
        assert_eq!(of(None), (false, vec![]));
    }

    #[test]
    fn options_that_are_wrong() {
        let dir = files();
        write(dir.path().join("plain"), "ann:secret\n").unwrap();
        let beside = "expected --basic-auth-credential or --htpasswd beside it: there is no default password";
        for (text, expected) in [
            ("basic_auth = true\n", format!("w.conf:1: basic_auth: {beside}")),
            ("basic_auth_credential = 'ann'\n", "w.conf:1: basic_auth_credential: expected user:password".to_owned()),
            ("jwt_audience = 'a'\n", "w.conf:1: jwt_audience: expected --jwt-key beside it".to_owned()),
            ("auth_realm = 'a'\n", "w.conf:1: auth_realm: expected --htpasswd or --jwt-key beside it".to_owned()),
            ("htpasswd = 'DIR/no'\n", "w.conf:1: htpasswd: DIR/no: No such file or directory (os error 2)".to_owned()),
            (
                "htpasswd = 'DIR/plain'\n",
                "w.conf:1: htpasswd: DIR/plain: line 1: user ann: expected bcrypt ($2y$) or SHA-crypt ($5$, $6$), not \
                 plain text or an unknown hash; make it anew with: htpasswd -B FILE USER"
                    .to_owned(),
            ),
            (
                "jwt_key = 'DIR/plain'\n",
                "w.conf:1: jwt_key: DIR/plain: expected a PEM public key, or a secret of at least 32 bytes".to_owned(),
            ),
            (
                "[handler.'/a']\nno_auth = true\nhtpasswd = 'DIR/users'\n",
                "w.conf:2: no_auth: expected no users and no key beside it".to_owned(),
            ),
            (
                "[handler.'/a']\nhtpasswd = 'DIR/no'\n",
                "w.conf:2: htpasswd: DIR/no: No such file or directory (os error 2)".to_owned(),
            ),
        ] {
            assert_eq!(read(text, dir.path(), &[]).unwrap_err(), expected, "{text}");
        }
    }
}
