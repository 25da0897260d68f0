//! Addresses, handlers, static files.

use super::super::value::{each, host, request_path};
use super::*;
use crate::config::Console;

pub const TABLE: &[Setting] = &[
    Setting {
        name: "server_host",
        scopes: SERVER,
        kind: List("HOST", |d, texts| Ok(d.hosts = each(texts, |text| host(text, 0))?)),
        default: Is("127.0.0.1"),
        flag: Short('H'),
        help: "Address, name or unix:/PATH to listen on",
        more: "\
A name stands for all its addresses.
.Sm off
.Ar unix : Ar /path
.Sm on
is a socket in the file system; a stale one is replaced, and it is removed at the end.
Its permissions, which the
.Xr umask 2
determines, decide who may connect.
:: does not include IPv4: for all addresses of a machine give both 0.0.0.0 and ::.
On loopback addresses reno is used instead of the congestion control BBR, whose timers cost much there; the
.Cm congctl
of a route has precedence
.Pq Xr ip-route 8 .",
    },
    Setting {
        name: "port",
        scopes: SERVER,
        kind: Count("PORT", 0..=65_535, |d, port| d.port = port as u16),
        default: Is("8080"),
        flag: Short('p'),
        help: "Listen on this port; 0 picks a free one",
        more: "It is the same for all addresses, and the ready line has it.",
    },
    Setting {
        name: "websock_handlers",
        scopes: SERVER,
        kind: Path("DIR", |d, dir| d.handlers = Some(dir)),
        default: Unset("the first that exists of handlers and ../lib/wshd/handlers beside the program"),
        flag: Short('w'),
        help: "Serve /a/b with the handler DIR/a/b_wsh.so",
        more: "",
    },
    Setting {
        name: "websock_handlers_map_file",
        scopes: SERVER,
        kind: Path("FILE", |d, file| d.config.map_file = Some(file)),
        default: Unset("none"),
        flag: Short('m'),
        help: "Aliases of resources, a line each: ALIAS RESOURCE",
        more: "See FILES in\n.Xr wshd 8 .",
    },
    Setting {
        name: "scan_dir",
        scopes: SERVER,
        kind: Path("DIR", |d, dir| d.config.scan_dir = Some(dir)),
        default: Unset("none"),
        flag: Short('s'),
        help: "Search for handlers below this directory only",
        more: "It must be in the handler directory, to which the names of resources stay relative.",
    },
    Setting {
        name: "allow_handlers_outside_root_dir",
        scopes: SERVER,
        kind: Flag(|d, is_on| d.config.allow_outside = is_on),
        default: Is("false"),
        flag: Long,
        help: "Follow links out of the handler directory",
        more: "",
    },
    Setting {
        name: "strict_handlers",
        scopes: SERVER,
        kind: Flag(|d, is_on| d.config.strict_handlers = is_on),
        default: Is("false"),
        flag: Long,
        help: "Do not start with an unusable handler or alias",
        more: "\
The exit status is 3, and a reload fails for the same reasons.
A running server is not affected: a handler whose file has become unusable answers 503.",
    },
    Setting {
        name: "strict_abi",
        scopes: SERVER,
        kind: Flag(|d, is_on| d.config.strict_abi = is_on),
        default: Is("false"),
        flag: Long,
        help: "Abort a worker whose handler breaks the contract",
        more: "\
For development: a call in a wrong place, or one that accepts after a rejection, aborts the worker there instead of \
returning an error, and closes the connection with 1011 and the breach as the reason.
Each message is at the end of a mapping that is unmapped when its callback returns, so that reading past it, or \
later, crashes the worker.
Calls without effect, such as on a connection that the handler has closed, are logged.
Do not use it where strangers can connect.
.Xr ws_handler 3
is the contract.",
    },
    Setting {
        name: "document_root",
        scopes: SERVER,
        kind: Path("DIR", |d, dir| d.config.document_root = Some(dir)),
        default: Unset("none"),
        flag: Short('d'),
        help: "Serve static files from this directory",
        more: "They are the response to requests that are not for a WebSocket.",
    },
    Setting {
        name: "validation_host",
        scopes: SERVER,
        kind: Text("HOST", |d, host| Ok(d.config.validation.0 = Some(host.to_owned()))),
        default: Unset("any"),
        flag: Short('V'),
        help: "Require this host in absolute request targets",
        more: "Others get status 421.",
    },
    Setting {
        name: "validation_port",
        scopes: SERVER,
        kind: Count("PORT", 1..=65_535, |d, port| d.config.validation.1 = Some(port as u16)),
        default: Unset("any"),
        flag: Short('P'),
        help: "Require this port in absolute request targets",
        more: "\
Others get status 421.
A target without a port has that of its scheme: 80 for http and ws, 443 for https and wss.",
    },
    Setting {
        name: "queue",
        scopes: LISTENERS,
        kind: Count("COUNT", 1..=2_147_483_647, |d, count| d.listener.binding.backlog = count as i32),
        default: Is("4096"),
        flag: Short('q'),
        help: "Maximum connections that wait to be accepted",
        more: "This is the backlog of\n.Xr listen 2 .",
    },
    Setting {
        name: "console",
        scopes: LISTENERS,
        kind: Flag(|d, is_on| d.listener.console = if is_on { Console::Always } else { Console::Never }),
        default: Unset("only for clients on this machine, and not through a proxy"),
        flag: No,
        help: "Serve the console, a page for trying resources in a browser, to all clients",
        more: "\
It lists all resources.
With false it is not served at all.",
    },
    Setting {
        name: "metrics",
        scopes: SERVER,
        kind: Text("ADDRESS", |d, text| {
            Ok(d.config.metrics = Some(super::super::value::address(text)?))
        }),
        default: Unset("none"),
        flag: Long,
        help: "Serve metrics on HOST:PORT or unix:/PATH",
        more: "\
An IPv6 address is written in brackets; port 0 picks a free one, which is logged.
See
.Xr wshd-metrics 7 .",
    },
    Setting {
        name: "health",
        scopes: SERVER,
        kind: Text("PATH", |d, text| Ok(d.config.health = Some(request_path(text)?))),
        default: Unset("none"),
        flag: No,
        help: "Answer health checks of load balancers at this path, such as /healthz",
        more: "See HEALTH AND DRAIN in\n.Xr wshd 8 .",
    },
    Setting {
        name: "include",
        scopes: SERVER,
        kind: List("FILE", |_, _| Ok(())),
        default: Unset("none"),
        flag: No,
        help: "Read these files, too, such as \\(dqconf.d/*.toml\\(dq",
        more: "\
Names are relative to the directory of the including file; those that match a pattern, except hidden ones, are read in alphabetical order.
No key may be set in two files.
It cannot be given on the command line.",
    },
];
