//! Authentication of clients.

use super::super::authentication::{realm, word};
use super::*;
use crate::auth::Passwords;

/// A handler has all of them of its own, or all of the server's.
pub const TABLE: &[Setting] = &[
    Setting {
        name: "auth",
        scopes: HANDLER,
        kind: Flag(|d, is_on| d.is_open = !is_on),
        default: Is("true"),
        flag: No,
        help: "Authenticate clients of this handler, if there are users or keys",
        more: "\
Users or a key of the handler replace all authentication settings of the server.
With false clients are not authenticated.",
    },
    Setting {
        name: "basic_auth",
        scopes: HANDLERS,
        kind: Flag(|d, is_on| d.policy.basic = is_on),
        default: Is("false"),
        flag: Long,
        help: "Require a user and a password",
        more: "\
Implied by
.Cm basic_auth_credential
and
.Cm htpasswd .
There is no default password.
See AUTHENTICATION in
.Xr wshd 8 .",
    },
    Setting {
        name: "basic_auth_credential",
        scopes: HANDLERS,
        kind: Secret("USER:PASSWORD", |d, text| {
            Ok(d.policy.credential = Some(Passwords::of_credential(text)?))
        }),
        default: Unset("none"),
        flag: Long,
        help: "Accept this user with this password",
        more: "\
Set it in the configuration file: other users of the machine can read command lines.",
    },
    Setting {
        name: "htpasswd",
        scopes: HANDLERS,
        kind: Path("FILE", |d, file| d.policy.users = Some(file)),
        default: Unset("none"),
        flag: No,
        help: "Accept the users in this file",
        more: "\
In the format of
.Xr htpasswd 1
with
.Fl B
(bcrypt) or
.Fl 2
and
.Fl 5
(SHA-crypt).",
    },
    Setting {
        name: "auth_realm",
        scopes: HANDLERS,
        kind: Text("TEXT", |d, text| Ok(d.policy.realm = Some(realm(text)?))),
        default: Unset("wshd"),
        flag: No,
        help: "Realm of the challenge",
        more: "",
    },
    Setting {
        name: "jwt_key",
        scopes: HANDLERS,
        kind: Path("FILE", |d, file| d.policy.key = Some(file)),
        default: Unset("none"),
        flag: No,
        help: "Accept JSON Web Tokens that are signed with the key in this file",
        more: "\
A PEM public key, RSA of at least 2048 bits (RS256) or on the curve P-256 (ES256); any other file is a secret of at \
least 32 bytes (HS256), without the final newline.",
    },
    Setting {
        name: "jwt_issuer",
        scopes: HANDLERS,
        kind: List("TEXT", |d, texts| Ok(d.policy.rules.issuers = texts.to_vec())),
        default: Unset("any"),
        flag: No,
        help: "Required issuer (iss) of tokens",
        more: "",
    },
    Setting {
        name: "jwt_audience",
        scopes: HANDLERS,
        kind: List("TEXT", |d, texts| Ok(d.policy.rules.audiences = texts.to_vec())),
        default: Unset("tokens with an audience are refused (RFC 7519)"),
        flag: No,
        help: "Required audience (aud) of tokens",
        more: "",
    },
    Setting {
        name: "jwt_query",
        scopes: HANDLERS,
        kind: Text("NAME", |d, text| Ok(d.policy.rules.query = Some(word(text)?))),
        default: Unset("none"),
        flag: No,
        help: "Also accept a token in this query parameter",
        more: "",
    },
    Setting {
        name: "jwt_protocol",
        scopes: HANDLERS,
        kind: Text("PREFIX", |d, text| Ok(d.policy.rules.protocol = Some(word(text)?))),
        default: Unset("none"),
        flag: No,
        help: "Also accept a token in an offered subprotocol after this prefix",
        more: "",
    },
    Setting {
        name: "max_auth_failures",
        scopes: SERVER,
        kind: Count("COUNT", 0..=10_000, |d, count| d.config.authentication.failures = count as u32),
        default: Is("10"),
        flag: No,
        help: "Maximum failed logins from one address in a minute (0: no limit)",
        more: "Further ones get status 429 until the minute is over.",
    },
];
