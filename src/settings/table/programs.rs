//! Programs that answer requests (CGI).

use super::super::Default::{Is, Unset};
use super::super::Flag::{No, Short};
use super::super::Kind::{Count, List, NameOrNumber, Size, Time};
use super::super::account::user;
use super::super::value::{MAX_MEMORY, MAX_SIZE, directories};
use super::super::{Scope, Setting, Zero};

const SERVER: &[Scope] = &[Scope::Server];

pub const TABLE: &[Setting] = &[
    Setting {
        name: "cgi_paths",
        scopes: SERVER,
        kind: List("PATHS", |d, texts| Ok(d.cgi.directories = directories(texts)?)),
        default: Unset("none"),
        flag: Short('x'),
        help: "Run files of these directories as CGI programs",
        more: "\
They are below the document root; several may be given with commas between.
See CGI PROGRAMS in
.Xr wshd 8 .",
    },
    Setting {
        name: "cgi_user",
        scopes: SERVER,
        kind: NameOrNumber("USER", |d, text| Ok(d.cgi_user = Some(user(text)?))),
        default: Unset("as the workers, who must not be root then"),
        flag: No,
        help: "Run programs as this user",
        more: "Needs a server that was started by root.",
    },
    Setting {
        name: "cgi_processes",
        scopes: SERVER,
        kind: Count("COUNT", 1..=1024, |d, count| d.cgi.processes = count as u32),
        default: Is("16"),
        flag: No,
        help: "Maximum programs at a time",
        more: "Further requests get status 503.",
    },
    Setting {
        name: "cgi_timeout",
        scopes: SERVER,
        kind: Time(Zero::Wrong, |d, time| d.cgi.timeout = time),
        default: Is("30s"),
        flag: No,
        help: "Kill a program that prints and takes nothing for this time",
        more: "Before its header is complete the answer is 504.",
    },
    Setting {
        name: "cgi_lifetime",
        scopes: SERVER,
        kind: Time(Zero::Wrong, |d, time| d.cgi.lifetime = time),
        default: Is("1h"),
        flag: No,
        help: "Kill a program that runs for longer than this",
        more: "",
    },
    Setting {
        name: "cgi_max_body",
        scopes: SERVER,
        kind: Size(0..=MAX_SIZE, |d, size| d.cgi.body = size),
        default: Is("1M"),
        flag: No,
        help: "Maximum body of a request for a program",
        more: "A larger one gets status 413.",
    },
    Setting {
        name: "cgi_max_output",
        scopes: SERVER,
        kind: Size(0..=MAX_MEMORY, |d, size| d.cgi.output = size),
        default: Is("64M"),
        flag: No,
        help: "Maximum bytes that a program may print (0: no limit)",
        more: "",
    },
    Setting {
        name: "cgi_max_memory",
        scopes: SERVER,
        kind: Size(1..=MAX_MEMORY, |d, size| d.cgi.memory = Some(size)),
        default: Unset("no limit"),
        flag: No,
        help: "Address space of each process of a program",
        more: "",
    },
    Setting {
        name: "cgi_max_processes",
        scopes: SERVER,
        kind: Count("COUNT", 1..=1 << 22, |d, count| d.cgi.max_processes = Some(count as u64)),
        default: Unset("no limit"),
        flag: No,
        help: "Maximum processes and threads of the user of programs",
        more: "\
Above it a program cannot start another one.
Those that the user has elsewhere count as well, so this goes with a
.Cm cgi_user
of its own.",
    },
];
