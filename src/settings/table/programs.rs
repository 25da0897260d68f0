//! CGI programs.

use super::super::account::user;
use super::super::value::{MAX_MEMORY, MAX_SIZE, directories};
use super::*;

pub const TABLE: &[Setting] = &[
    Setting {
        name: "cgi_paths",
        scopes: SERVER,
        kind: List("DIR", |d, texts| Ok(d.cgi.directories = directories(texts)?)),
        default: Unset("none"),
        flag: Short('x'),
        help: "Run files of these directories as CGI programs",
        more: "\
They are relative to the document root, such as /cgi-bin; several may be separated by commas.
See CGI PROGRAMS in
.Xr wshd 8 .",
    },
    Setting {
        name: "cgi_user",
        scopes: SERVER,
        kind: NameOrNumber("USER", |d, text| Ok(d.cgi_user = Some(user(text)?))),
        default: Unset("as the workers, which must not be root then"),
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
        help: "Maximum number of programs running at a time",
        more: "Further requests get status 503.",
    },
    Setting {
        name: "cgi_timeout",
        scopes: SERVER,
        kind: Time(Zero::Wrong, |d, time| d.cgi.timeout = time),
        default: Is("30s"),
        flag: No,
        help: "Kill a program that neither reads nor writes for this time",
        more: "If its header is not complete, the response is 504.",
    },
    Setting {
        name: "cgi_lifetime",
        scopes: SERVER,
        kind: Time(Zero::Wrong, |d, time| d.cgi.lifetime = time),
        default: Is("1h"),
        flag: No,
        help: "Kill a program that runs longer than this",
        more: "",
    },
    Setting {
        name: "cgi_max_body",
        scopes: SERVER,
        kind: Size(0..=MAX_SIZE, |d, size| d.cgi.body = size),
        default: Is("1M"),
        flag: No,
        help: "Maximum size of a request body for a program",
        more: "A larger one gets status 413.",
    },
    Setting {
        name: "cgi_max_output",
        scopes: SERVER,
        kind: Size(0..=MAX_MEMORY, |d, size| d.cgi.output = size),
        default: Is("64M"),
        flag: No,
        help: "Maximum size of the output of a program (0: no limit)",
        more: "",
    },
    Setting {
        name: "cgi_max_memory",
        scopes: SERVER,
        kind: Size(1..=MAX_MEMORY, |d, size| d.cgi.memory = Some(size)),
        default: Unset("no limit"),
        flag: No,
        help: "Maximum address space of each process of a program",
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
Other processes of the user count as well, so give programs a
.Cm cgi_user
of their own.",
    },
];
