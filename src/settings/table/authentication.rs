//! Authentication of clients.

use super::super::Default::{Is, Unset};
use super::super::Flag::{Long, No};
use super::super::Kind::{Count, Flag, List, Path, Secret, Text};
use super::super::authentication::{realm, word};
use super::super::{Scope, Setting};
use crate::auth::Passwords;

const SERVER: &[Scope] = &[Scope::Server];
const HANDLER: &[Scope] = &[Scope::Handler];
/// A handler has those of the server as a whole, or its own.
const EACH: &[Scope] = &[Scope::Server, Scope::Handler];

pub const TABLE: &[Setting] = &[
    Setting {
        name: "auth",
        scopes: HANDLER,
        kind: Flag(|d, is_on| d.is_open = !is_on),
        default: Is("true"),
        flag: No,
        help: "Ask who uses this handler, if there are users or keys",
        more: "\
With users or a key of its own, what the server says about authentication does not count for a handler.
With false nobody is asked, whatever the server says.",
    },
    Setting {
        name: "basic_auth",
        scopes: EACH,
        kind: Flag(|d, is_on| d.policy.basic = is_on),
        default: Is("false"),
        flag: Long,
        help: "Ask for a user and a password",
        more: "\
Either of
.Cm basic_auth_credential
and
.Cm htpasswd
implies this.
There is no default password.
See AUTHENTICATION in
.Xr wshd 8 .",
    },
    Setting {
        name: "basic_auth_credential",
        scopes: EACH,
        kind: Secret("USER:PASSWORD", |d, text| {
            Ok(d.policy.credential = Some(Passwords::of_credential(text)?))
        }),
        default: Unset("none"),
        flag: Long,
        help: "Accept this user with this password",
        more: "\
Other users of the machine can read a command line; in the configuration file, which only the server should be able to \
read, they cannot.",
    },
    Setting {
        name: "htpasswd",
        scopes: EACH,
        kind: Path("FILE", |d, file| d.policy.users = Some(file)),
        default: Unset("none"),
        flag: No,
        help: "Accept the users in this file",
        more: "\
It is as
.Xr htpasswd 1
writes it with
.Fl B
(bcrypt) or
.Fl 2
and
.Fl 5
(SHA-crypt).",
    },
    Setting {
        name: "auth_realm",
        scopes: EACH,
        kind: Text("TEXT", |d, text| Ok(d.policy.realm = Some(realm(text)?))),
        default: Unset("wshd"),
        flag: No,
        help: "The realm that clients are told",
        more: "",
    },
    Setting {
        name: "jwt_key",
        scopes: EACH,
        kind: Path("FILE", |d, file| d.policy.key = Some(file)),
        default: Unset("none"),
        flag: No,
        help: "Accept JSON Web Tokens that are signed with the key in this file",
        more: "\
A public key in PEM is RSA of at least 2048 bits (RS256) or on the curve P-256 (ES256); everything else is a secret of \
at least 32 bytes (HS256), without the line end at its end.",
    },
    Setting {
        name: "jwt_issuer",
        scopes: EACH,
        kind: List("TEXT", |d, texts| Ok(d.policy.rules.issuers = texts.to_vec())),
        default: Unset("any"),
        flag: No,
        help: "The issuer (iss) that tokens must have",
        more: "",
    },
    Setting {
        name: "jwt_audience",
        scopes: EACH,
        kind: List("TEXT", |d, texts| Ok(d.policy.rules.audiences = texts.to_vec())),
        default: Unset("tokens with an audience are refused, as RFC 7519 demands"),
        flag: No,
        help: "The audience (aud) that tokens must have",
        more: "",
    },
    Setting {
        name: "jwt_query",
        scopes: EACH,
        kind: Text("NAME", |d, text| Ok(d.policy.rules.query = Some(word(text)?))),
        default: Unset("none"),
        flag: No,
        help: "Look for a token in this parameter of the query, too",
        more: "",
    },
    Setting {
        name: "jwt_protocol",
        scopes: EACH,
        kind: Text("PREFIX", |d, text| Ok(d.policy.rules.protocol = Some(word(text)?))),
        default: Unset("none"),
        flag: No,
        help: "Look for a token in the offered subprotocol that begins with this, too",
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
