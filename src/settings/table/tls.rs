//! TLS and HTTP/2, of all sockets or of a listener.

use std::path::PathBuf;

use super::super::Default::{Is, Unset};
use super::super::Flag::{Long, No, Short};
use super::super::Kind::{Choice, Count, Flag, List, NameOrNumber, Path, Text, Time};
use super::super::account::{group, user};
use super::super::{Scope, Setting, Zero};

const SERVER: &[Scope] = &[Scope::Server];
const EACH: &[Scope] = &[Scope::Server, Scope::Listener];

fn paths(texts: &[String]) -> Vec<PathBuf> {
    texts.iter().map(PathBuf::from).collect()
}

pub const TABLE: &[Setting] = &[
    Setting {
        name: "tls",
        scopes: EACH,
        kind: Flag(|d, is_on| d.tls.is_tls = is_on),
        default: Is("false"),
        flag: Short('t'),
        help: "Speak TLS",
        more: "Needs certificate and private_key.\nSee TLS AND HTTP/2 in\n.Xr wshd 8 .",
    },
    Setting {
        name: "private_key",
        scopes: EACH,
        kind: List("PATH", |d, texts| Ok(d.tls.keys = paths(texts))),
        default: Unset("none"),
        flag: Short('k'),
        help: "File of the private key, in PEM",
        more: "It has no passphrase, and users beyond its owner and group cannot read it, or it is refused.\nThere are as many as certificates, in the same order.",
    },
    Setting {
        name: "certificate",
        scopes: EACH,
        kind: List("PATH", |d, texts| Ok(d.tls.certificates = paths(texts))),
        default: Unset("none"),
        flag: Short('c'),
        help: "File of the certificate and its chain, in PEM",
        more: "\
The server's own stands first, then those that lead to a root.
Of several that one is shown which has the name that the client asks for, and else the first.
When a file changes it is read anew within seconds; what is wrong is logged, and changes nothing.",
    },
    Setting {
        name: "tls_client_auth",
        scopes: EACH,
        kind: Flag(|d, is_on| d.tls.asks_clients = is_on),
        default: Is("false"),
        flag: Long,
        help: "Require a certificate of clients",
        more: "Needs tls_client_ca.",
    },
    Setting {
        name: "tls_client_cert_optional",
        scopes: EACH,
        kind: Flag(|d, is_on| d.tls.is_client_optional = is_on),
        default: Is("false"),
        flag: Long,
        help: "Serve clients without a certificate, too",
        more: "One that is not accepted is refused all the same.",
    },
    Setting {
        name: "tls_client_ca",
        scopes: EACH,
        kind: Path("FILE", |d, file| d.tls.client_ca = Some(file)),
        default: Unset("none"),
        flag: Long,
        help: "Certificates that issue those of clients, in PEM",
        more: "",
    },
    Setting {
        name: "tls_min_version",
        scopes: EACH,
        kind: Choice("VERSION", &["1.2", "1.3"], |d, word| {
            d.tls.has_tls13_only = word == "1.3";
            matches!(word, "1.2" | "1.3")
        }),
        default: Is("1.2"),
        flag: No,
        help: "The oldest version of TLS that is spoken: 1.2 or 1.3",
        more: "",
    },
    Setting {
        name: "tls_ciphers",
        scopes: EACH,
        kind: List("SUITE", |d, texts| Ok(d.tls.ciphers = texts.to_vec())),
        default: Unset("all that are known, none of which is weak"),
        flag: No,
        help: "Cipher suite to allow, such as TLS_AES_128_GCM_SHA256",
        more: "In the order of preference, by their IANA names; an error lists those that there are.",
    },
    Setting {
        name: "http2",
        scopes: EACH,
        kind: Flag(|d, is_on| d.tls.has_http2 = is_on),
        default: Is("true"),
        flag: No,
        help: "Offer HTTP/2 where TLS is spoken",
        more: "",
    },
    Setting {
        name: "session_tickets",
        scopes: EACH,
        kind: Flag(|d, is_on| d.tls.has_tickets = is_on),
        default: Is("true"),
        flag: No,
        help: "Let clients resume TLS sessions",
        more: "",
    },
    Setting {
        name: "hsts",
        scopes: EACH,
        kind: Time(Zero::Off, |d, time| d.tls.hsts = time),
        default: Is("0"),
        flag: No,
        help: "Have browsers use TLS only, for this time (0: off)",
        more: "It is the max-age of Strict-Transport-Security in the responses to requests over TLS.",
    },
    Setting {
        name: "h2c",
        scopes: EACH,
        kind: Flag(|d, is_on| d.tls.is_h2c = is_on),
        default: Is("false"),
        flag: No,
        help: "Speak HTTP/2 without TLS with clients that begin so, such as proxies",
        more: "Others get HTTP/1.1.",
    },
    Setting {
        name: "redirect_to_https",
        scopes: EACH,
        kind: Flag(|d, is_on| d.tls.redirects = is_on),
        default: Is("false"),
        flag: No,
        help: "Redirect all requests to https",
        more: "With status 308.",
    },
    Setting {
        name: "redirect_host",
        scopes: EACH,
        kind: Text("HOST", |d, text| {
            let is_host =
                !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
            if !is_host {
                return Err("expected a host, with its port if that is not 443".to_owned());
            }
            Ok(d.tls.redirect_host = Some(text.to_owned()))
        }),
        default: Unset("the host of the request"),
        flag: No,
        help: "Redirect them to this host, and port if that is not 443",
        more: "",
    },
    Setting {
        name: "gateways",
        scopes: SERVER,
        kind: Count("COUNT", 1..=64, |d, count| d.gateways = Some(count as usize)),
        default: Unset("half as many as cores"),
        flag: No,
        help: "Number of processes that speak TLS and HTTP/2",
        more: "",
    },
    Setting {
        name: "gateway_user",
        scopes: SERVER,
        kind: NameOrNumber("USER", |d, text| Ok(d.gateway_user = Some(user(text)?))),
        default: Unset("as the workers"),
        flag: No,
        help: "Run these processes as this user, once they have read their keys",
        more: "Needs a server that was started by root.",
    },
    Setting {
        name: "gateway_group",
        scopes: SERVER,
        kind: NameOrNumber("GROUP", |d, text| Ok(d.gateway_group = Some(group(text)?))),
        default: Unset("all groups of gateway_user"),
        flag: No,
        help: "Run them with this group only",
        more: "",
    },
];
