//! TLS and HTTP/2.

use std::path::PathBuf;

use super::super::account::{group, user};
use super::*;

fn paths(texts: &[String]) -> Vec<PathBuf> {
    texts.iter().map(PathBuf::from).collect()
}

pub const TABLE: &[Setting] = &[
    Setting {
        name: "tls",
        scopes: LISTENERS,
        kind: Flag(|d, is_on| d.tls.is_tls = is_on),
        default: Is("false"),
        flag: Short('t'),
        help: "Accept TLS connections",
        more: "Needs certificate and private_key.\nSee TLS AND HTTP/2 in\n.Xr wshd 8 .",
    },
    Setting {
        name: "private_key",
        scopes: LISTENERS,
        kind: List("PATH", |d, texts| Ok(d.tls.keys = paths(texts))),
        default: Unset("none"),
        flag: Short('k'),
        help: "Private key, a PEM file",
        more: "It must have no passphrase, and only its owner and group may have access.\nGive as many as certificates, in the same order.",
    },
    Setting {
        name: "certificate",
        scopes: LISTENERS,
        kind: List("PATH", |d, texts| Ok(d.tls.certificates = paths(texts))),
        default: Unset("none"),
        flag: Short('c'),
        help: "Certificate and its chain, a PEM file",
        more: "\
The server's own comes first, then the intermediate ones.
Of several files the first is used unless another one has the name that the client asks for (SNI).
A changed file is loaded within seconds; on an error, which is logged, the previous one stays in use.",
    },
    Setting {
        name: "tls_client_auth",
        scopes: LISTENERS,
        kind: Flag(|d, is_on| d.tls.asks_clients = is_on),
        default: Is("false"),
        flag: Long,
        help: "Require client certificates",
        more: "Needs tls_client_ca.",
    },
    Setting {
        name: "tls_client_cert_optional",
        scopes: LISTENERS,
        kind: Flag(|d, is_on| d.tls.is_client_optional = is_on),
        default: Is("false"),
        flag: Long,
        help: "Accept client certificates, but do not require one",
        more: "Needs tls_client_auth.\nA client with an invalid certificate is refused.",
    },
    Setting {
        name: "tls_client_ca",
        scopes: LISTENERS,
        kind: Path("FILE", |d, file| d.tls.client_ca = Some(file)),
        default: Unset("none"),
        flag: Long,
        help: "CA certificates of clients, a PEM file",
        more: "",
    },
    Setting {
        name: "tls_min_version",
        scopes: LISTENERS,
        kind: Choice("VERSION", &["1.2", "1.3"], |d, word| {
            d.tls.tls.has_tls12 = word == "1.2";
            matches!(word, "1.2" | "1.3")
        }),
        default: Is("1.2"),
        flag: No,
        help: "Minimum version of TLS: 1.2 or 1.3",
        more: "",
    },
    Setting {
        name: "tls_ciphers",
        scopes: LISTENERS,
        kind: List("SUITE", |d, texts| Ok(d.tls.tls.ciphers = texts.to_vec())),
        default: Unset("all supported ones, none of which is weak"),
        flag: No,
        help: "Cipher suite to allow, such as TLS_AES_128_GCM_SHA256",
        more: "In order of preference, by IANA name; the error for an unknown one lists those supported.",
    },
    Setting {
        name: "http2",
        scopes: LISTENERS,
        kind: Flag(|d, is_on| d.tls.tls.has_http2 = is_on),
        default: Is("true"),
        flag: No,
        help: "Offer HTTP/2 over TLS",
        more: "",
    },
    Setting {
        name: "session_tickets",
        scopes: LISTENERS,
        kind: Flag(|d, is_on| d.tls.tls.has_tickets = is_on),
        default: Is("true"),
        flag: No,
        help: "Let clients resume TLS sessions",
        more: "",
    },
    Setting {
        name: "hsts",
        scopes: LISTENERS,
        kind: Time(Zero::Off, |d, time| d.tls.tls.hsts = Some(time).filter(|hsts| !hsts.is_zero())),
        default: Is("0"),
        flag: No,
        help: "Tell browsers to use only TLS for this time (0: off)",
        more: "The max-age of Strict-Transport-Security in responses over TLS.",
    },
    Setting {
        name: "h2c",
        scopes: LISTENERS,
        kind: Flag(|d, is_on| d.tls.is_h2c = is_on),
        default: Is("false"),
        flag: No,
        help: "Accept HTTP/2 without TLS from clients that begin with it (prior knowledge), such as proxies",
        more: "Others use HTTP/1.1.",
    },
    Setting {
        name: "redirect_to_https",
        scopes: LISTENERS,
        kind: Flag(|d, is_on| d.tls.redirects = is_on),
        default: Is("false"),
        flag: No,
        help: "Redirect all requests to https",
        more: "With status 308.",
    },
    Setting {
        name: "redirect_host",
        scopes: LISTENERS,
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
        default: Unset("half the number of cores"),
        flag: No,
        help: "Number of gateways, the processes for TLS and HTTP/2",
        more: "",
    },
    Setting {
        name: "gateway_user",
        scopes: SERVER,
        kind: NameOrNumber("USER", |d, text| Ok(d.gateway_user = Some(user(text)?))),
        default: Unset("as the workers"),
        flag: No,
        help: "Run gateways as this user, after they have read their keys",
        more: "Needs a server that was started by root.",
    },
    Setting {
        name: "gateway_group",
        scopes: SERVER,
        kind: NameOrNumber("GROUP", |d, text| Ok(d.gateway_group = Some(group(text)?))),
        default: Unset("all groups of gateway_user"),
        flag: No,
        help: "Run gateways with this group only",
        more: "",
    },
];
