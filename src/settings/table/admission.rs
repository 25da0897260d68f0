//! Limits on connections and rates; origins, hosts and proxies.

use super::super::value::{MAX_SIZE, each, network};
use super::*;
use crate::config::{Proxy, Unmatched};
use crate::proto::http1::allow::{HostRule, OriginRule};

/// Maximum of a 32-bit count.
const MAX: i64 = u32::MAX as i64;

pub const TABLE: &[Setting] = &[
    Setting {
        name: "max_connections_total",
        scopes: SERVER,
        kind: Count("COUNT", 0..=MAX, |d, count| d.config.admission.total = count as u32),
        default: Is("0"),
        flag: No,
        help: "Maximum connections of all workers together (0: no limit)",
        more: "Further ones get status 503.",
    },
    Setting {
        name: "max_connections_per_address",
        scopes: SERVER,
        kind: Count("COUNT", 0..=MAX, |d, count| d.config.admission.per_address = count as u32),
        default: Is("0"),
        flag: No,
        help: "Maximum connections from one address, over all workers (0: no limit)",
        more: "Further ones get status 429.\nOf an IPv6 address the first 64 bits count.",
    },
    Setting {
        name: "max_handshakes_per_address",
        scopes: SERVER,
        kind: Count("COUNT", 0..=65_535, |d, count| d.config.admission.handshakes = count as u32),
        default: Is("0"),
        flag: No,
        help: "Maximum new connections from one address in a second (0: no limit)",
        more: "Further ones get status 429.",
    },
    Setting {
        name: "max_message_rate",
        scopes: HANDLERS,
        kind: Count("COUNT", 0..=MAX, |d, count| d.handler.message_rate = count as u32),
        default: Is("0"),
        flag: No,
        help: "Maximum messages from a peer in a second, on each connection (0: no limit)",
        more: "\
One more closes it with 1008.
An empty continuation fragment counts as a message.",
    },
    Setting {
        name: "max_byte_rate",
        scopes: HANDLERS,
        kind: Size(0..=MAX_SIZE, |d, size| d.handler.byte_rate = size),
        default: Is("0"),
        flag: No,
        help: "Maximum bytes of messages from a peer in a second, in the same way (0: no limit)",
        more: "A single message may be larger; the excess counts against the following seconds.",
    },
    Setting {
        name: "allow_origin",
        scopes: HANDLERS,
        kind: List("ORIGIN", |d, texts| Ok(d.handler.origins = each(texts, OriginRule::parse)?)),
        default: Unset("all"),
        flag: No,
        help: "Accept WebSockets from pages of this origin, such as https://example.com",
        more: "\
Others get status 403.
A host that begins with
.Ql *.
stands for all subdomains, not for the domain itself.
.Ql null
is what browsers send for pages with an opaque origin,
.Ql *
allows all.
Requests without an Origin are allowed: browsers always send one.",
    },
    Setting {
        name: "unmatched_subprotocol",
        scopes: HANDLERS,
        kind: Choice("WHAT", &["omit", "refuse"], |d, text| {
            d.handler.subprotocol = match text {
                "omit" => Unmatched::Omit,
                "refuse" => Unmatched::Refuse,
                _ => return false,
            };
            true
        }),
        default: Is("omit"),
        flag: No,
        help: "Reply to a client that offers subprotocols of which the handler chooses none",
        more: "\
With omit the reply names none (RFC 6455, section 4.2.2): the client decides, and browsers end the connection.
With refuse the client gets status 400, as from mod_pywebsocket, even if it could do without a subprotocol.
A rejection by the handler has precedence.",
    },
    Setting {
        name: "allow_host",
        scopes: SERVER,
        kind: List("HOST", |d, texts| Ok(d.config.admission.hosts = each(texts, HostRule::parse)?)),
        default: Unset("all"),
        flag: No,
        help: "Serve requests for this host, such as example.com or *.example.com",
        more: "\
Others get status 421.
A rule with a port allows that port only; 80 and 443 also allow requests without a port.",
    },
    Setting {
        name: "trust_proxy",
        scopes: SERVER,
        kind: List("NETWORK", |d, texts| {
            let trusted = each(texts, network)?;
            let unix = trusted.contains(&None);
            Ok(d.config.admission.proxy = Proxy { unix, networks: trusted.into_iter().flatten().collect() })
        }),
        default: Unset("none"),
        flag: No,
        help: "Trust client addresses sent by proxies in this network, such as 10.0.0.0/8 or ::1",
        more: ".Ql unix\nstands for all peers on Unix sockets.\nSee PROXIES in\n.Xr wshd 8 .",
    },
    Setting {
        name: "proxy_protocol",
        scopes: LISTENERS,
        kind: Flag(|d, is_on| d.listener.proxy_protocol = is_on),
        default: Is("false"),
        flag: No,
        help: "Require the PROXY protocol, version 1 or 2, from peers that trust_proxy names",
        more: "",
    },
];
