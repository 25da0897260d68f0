//! Settings of a handler that the server does not have.

use strum::VariantNames;

use super::super::draft::Isolation;
use super::super::value::{choose, each};
use super::log::level;
use super::*;
use crate::log::Level;

/// A path, or with `/*` all paths below it.
fn resource(text: &str) -> Result<String, &'static str> {
    let path = text.strip_suffix("/*").unwrap_or(text);
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()+,;=:@/".contains(c);
    match text.starts_with('/') && path.chars().all(is_valid) {
        true => Ok(text.to_owned()),
        false => Err("expected a resource such as /room, or /room/* for all below it"),
    }
}

pub const TABLE: &[Setting] = &[
    Setting {
        name: "resources",
        scopes: HANDLER,
        kind: List("RESOURCE", |d, texts| Ok(d.resources = each(texts, resource)?)),
        default: Unset("none"),
        flag: No,
        help: "Further resources that the handler serves, such as \\(dq/room/*\\(dq for all below /room/",
        more: "\
An exact resource has precedence over a prefix, and a longer prefix over a shorter one.
The handler sees the resource that was requested.",
    },
    Setting {
        name: "isolation",
        scopes: HANDLER,
        kind: Choice("ISOLATION", Isolation::VARIANTS, |d, text| choose(&mut d.isolation, text)),
        default: Is("shared"),
        flag: No,
        help: "Which processes run the handler",
        more: "\
.Bl -tag -width \"\\(dqshared\\(dq\"
.It \"\\(dqshared\\(dq\"
The workers of the default pool, as for all handlers without a table.
They share memory, descriptors and processor time.
.It \"\\(dqpool\\(dq\"
The workers of a pool, which run only the handlers that name this pool.
A worker of the default pool accepts the connection, reads the request, and passes the socket on.
.It \"\\(dqconnection\\(dq\"
A process for each connection, in a pool of only such handlers.
The processes are forked from a parent that has loaded and started the handlers once, and exit with their connection.
.Cm spare
of them wait for connections; if there is none within
.Cm process_timeout ,
a request gets status 503.
.Fn on_worker_start
is called once, in the parent: each process has its memory, but not its threads.
A reload replaces the parent and the waiting processes; the others keep their connection until its end.
.El",
    },
    Setting {
        name: "pool",
        scopes: HANDLER,
        kind: Text("NAME", |d, text| {
            super::pool::name(text)?;
            Ok(d.pool_name = Some(text.to_owned()))
        }),
        default: Unset("the resource without its leading /"),
        flag: No,
        help: "Name of the pool, which must have a table",
        more: "\
Several handlers can share a pool.
The default, such as
.Cm [pool.\\(dqa/b\\(dq]
for
.Pa /a/b ,
needs no table.",
    },
    Setting {
        name: "max_connections",
        scopes: HANDLER,
        kind: Count("COUNT", 1..=10_000_000, |d, count| d.handler.connections = Some(count as u32)),
        default: Unset("no limit"),
        flag: No,
        help: "Maximum connections of the handler, in all workers together",
        more: "\
Further requests get status 503.
Concurrent opening handshakes may exceed it a little.",
    },
    Setting {
        name: "raw",
        scopes: HANDLER,
        kind: Flag(|d, is_on| d.handler.raw = is_on),
        default: Is("false"),
        flag: No,
        help: "Let the handler send raw octets",
        more: "\
With
.Fn ws_send_raw ,
for handlers that test clients.",
    },
    Setting {
        name: "log_level",
        scopes: HANDLER,
        kind: Choice("LEVEL", Level::VARIANTS, |d, text| {
            d.handler.log_level = level(text);
            d.handler.log_level.is_some()
        }),
        default: Unset("the log_level of the server"),
        flag: No,
        help: "Minimum severity of log lines of the handler",
        more: "\
These are the lines of
.Fn ws_log .
Above info, the access log omits its connections.",
    },
];
