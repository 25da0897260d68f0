//! Resolves the authentication settings of the server or of a handler to a policy. Reads the named files, with the
//! privileges of the supervisor.

use std::path::{Path, PathBuf};

use super::{Error, Values, outside};
use crate::auth::{Passwords, Policy, TokenRules, Tokens};

/// The settings of one table, as given.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Whether passwords are required; only checks that there are some.
    pub basic: bool,
    /// A user and a password.
    pub credential: Option<Passwords>,
    /// File of users.
    pub users: Option<PathBuf>,
    /// Realm of the challenge.
    pub realm: Option<String>,
    /// File with the key of tokens.
    pub key: Option<PathBuf>,
    /// Further requirements for tokens.
    pub rules: TokenRules,
}

impl Draft {
    /// The policy; `None`: no authentication.
    pub fn policy(self, given: &Values) -> Result<Option<Policy>, Error> {
        let users =
            self.users.as_deref().map(users).transpose().map_err(|why| given.unusable("htpasswd", why))?;
        let passwords = match (self.credential, users) {
            (Some(credential), Some(users)) => Some(users.with(credential)),
            (credential, users) => credential.or(users),
        };
        if self.basic && passwords.is_none() {
            let why = "needs basic_auth_credential or htpasswd: there is no default password";
            return Err(given.wrong("basic_auth", why));
        }
        let tokens = match &self.key {
            Some(path) => Some(tokens(path, self.rules).map_err(|why| given.unusable("jwt_key", why))?),
            None => {
                let rules = ["jwt_issuer", "jwt_audience", "jwt_query", "jwt_protocol"];
                match rules.iter().find(|name| given.get(name).is_some()) {
                    Some(name) => return Err(given.wrong(name, "needs jwt_key")),
                    None => None,
                }
            }
        };
        match (passwords, tokens, self.realm) {
            (None, None, Some(_)) => Err(given.wrong("auth_realm", "needs htpasswd or jwt_key")),
            (None, None, None) => Ok(None),
            (passwords, tokens, realm) => {
                let realm = realm.unwrap_or_else(|| "wshd".to_owned());
                Ok(Some(Policy { realm, passwords, tokens }))
            }
        }
    }
}

fn users(path: &Path) -> Result<Passwords, String> {
    Passwords::of_file(&outside::read_text(path)?)
}

fn tokens(path: &Path, rules: TokenRules) -> Result<Tokens, String> {
    let key = outside::read(path)?;
    let tokens = Tokens::new(&key, rules)?;
    // With the secret, anybody could make tokens; a public key may be readable for all.
    if !key.starts_with(b"-----BEGIN") {
        outside::check_secret(path)?;
    }
    Ok(tokens)
}

/// Checks a realm, which is sent in a quoted string.
pub fn realm(text: &str) -> Result<String, String> {
    let is_valid = |c: char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\');
    match !text.is_empty() && text.chars().all(is_valid) {
        true => Ok(text.to_owned()),
        false => Err("expected printable ASCII without quotes and backslashes".to_owned()),
    }
}

/// Checks the name of a query parameter, or the prefix of a subprotocol.
pub fn word(text: &str) -> Result<String, String> {
    let is_valid = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
    match is_valid {
        true => Ok(text.to_owned()),
        false => Err("expected printable ASCII without spaces and commas".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use std::fs::write;

    use super::*;
    use crate::auth::Authentication;
    use crate::settings::tests::config;

    const USERS: &str = "eve:$5$salt$bZDmhjddzzMv6QiMvpMRtPoB6YiC0flGPEs/yYlKFH2\n";

    /// A directory with a file of users and one with a secret.
    fn files() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path().join("users"), USERS).unwrap();
        let key = dir.path().join("key");
        write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        dir
    }

    fn read(text: &str, dir: &Path, args: &[&str]) -> Result<Authentication, String> {
        let text = text.replace("DIR", dir.to_str().unwrap());
        config(&text, args)
            .map(|config| config.authentication)
            .map_err(|why| why.replace(dir.to_str().unwrap(), "DIR"))
    }

    #[test]
    fn by_default_there_is_no_authentication() {
        let authentication = config("", &[]).unwrap().authentication;
        assert!(authentication.all.is_none() && authentication.of("/a").is_none());
        assert_eq!(authentication.failures, 10);
    }

    #[test]
    fn a_handler_has_its_own_policy_or_none() {
        let dir = files();
        let text = "basic_auth_credential = 'ann:secret'\n[handler.'/a']\njwt_key = 'DIR/key'\nauth_realm = 'a'\n\
                    [handler.'/b']\nauth = false\n[handler.'/c']\nhandler_timeout = 0\n[handler.'/d']\n\
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
    fn workers_have_only_the_secrets_of_their_handlers() {
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
    fn invalid_settings() {
        let dir = files();
        write(dir.path().join("plain"), "ann:secret\n").unwrap();
        let needs = "needs basic_auth_credential or htpasswd: there is no default password";
        for (text, expected) in [
            ("basic_auth = true\n", format!("w.conf:1: basic_auth: {needs}")),
            ("basic_auth_credential = 'ann'\n", "w.conf:1: basic_auth_credential: expected user:password".to_owned()),
            ("jwt_audience = 'a'\n", "w.conf:1: jwt_audience: needs jwt_key".to_owned()),
            ("auth_realm = 'a'\n", "w.conf:1: auth_realm: needs htpasswd or jwt_key".to_owned()),
            ("htpasswd = 'DIR/no'\n", "w.conf:1: htpasswd = 'DIR/no': No such file or directory (os error 2)".to_owned()),
            (
                "htpasswd = 'DIR/plain'\n",
                "w.conf:1: htpasswd = 'DIR/plain': line 1: user ann: expected bcrypt ($2y$) or SHA-crypt ($5$, $6$), not \
                 plain text or an unknown hash; create one with: htpasswd -B FILE USER"
                    .to_owned(),
            ),
            (
                "jwt_key = 'DIR/plain'\n",
                "w.conf:1: jwt_key = 'DIR/plain': expected a PEM public key, or a secret of at least 32 bytes".to_owned(),
            ),
            (
                "[handler.'/a']\nauth = false\nhtpasswd = 'DIR/users'\n",
                "w.conf:2: auth: false cannot be combined with users or a key".to_owned(),
            ),
            (
                "[handler.'/a']\nhtpasswd = 'DIR/no'\n",
                "w.conf:2: htpasswd = 'DIR/no': No such file or directory (os error 2)".to_owned(),
            ),
        ] {
            assert_eq!(read(text, dir.path(), &[]).unwrap_err(), expected, "{text}");
        }
    }
}
