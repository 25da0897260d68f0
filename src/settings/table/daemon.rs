//! Daemon, users, control socket and confinement.

use super::super::account::{group, owning_group, user};
use super::super::value::absolute;
use super::*;

/// A name that systemd allows for an instance of a unit.
fn instance(name: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=32).contains(&name.len()) && name.bytes().all(is_plain) {
        return Ok(name.to_owned());
    }
    Err("expected 1 to 32 letters, digits, \"-\", \"_\" and \".\"".to_owned())
}

pub const TABLE: &[Setting] = &[
    Setting {
        name: "daemon",
        scopes: SERVER,
        kind: Flag(|d, is_on| d.config.daemon.detach = is_on),
        default: Is("false"),
        flag: Long,
        help: "Run in the background; return when ready",
        more: "\
All paths in the configuration must begin with /.
It is read at the start only.
See RUNNING AS A DAEMON in
.Xr wshd 8 .",
    },
    Setting {
        name: "pid_file",
        scopes: SERVER,
        kind: Path("FILE", |d, file| d.config.daemon.pid_file = Some(file)),
        default: Unset("none"),
        flag: Long,
        help: "Keep the process id of the supervisor here",
        more: "\
If another server has locked it, the start fails with status 4.
It is read at the start only.",
    },
    Setting {
        name: "instance",
        scopes: SERVER,
        kind: Text("NAME", |d, name| Ok(d.config.daemon.instance = Some(instance(name)?))),
        default: Unset("none"),
        flag: Long,
        help: "Name of this server in process titles",
        more: "\
With the name chat,
.Xr ps 1
shows wshd@chat instead of wshd.
It is read at the start only.",
    },
    Setting {
        name: "user",
        scopes: POOLS,
        kind: NameOrNumber("USER", |d, text| Ok(d.user = Some(user(text)?))),
        default: Unset("as the server; of a pool, the user of the server"),
        flag: Long,
        help: "Run workers as this user",
        more: "A name or a number, looked up at the start; a number need not be in the user database.\nThe user must be able to read the handlers.\nNeeds a server that was started by root.",
    },
    Setting {
        name: "group",
        scopes: POOLS,
        kind: NameOrNumber("GROUP", |d, text| Ok(d.group = Some(group(text)?))),
        default: Unset("all groups of the user"),
        flag: Long,
        help: "Run workers with this group only",
        more: "A name or a number.\nNeeds a server that was started by root.",
    },
    Setting {
        name: "chroot",
        scopes: SERVER,
        kind: Path("DIR", |d, dir| d.chroot = Some(dir)),
        default: Unset("none"),
        flag: No,
        help: "Make this directory the root of the workers",
        more: "\
Needs a server that was started by root.
See RUNNING AS A DAEMON in
.Xr wshd 8 .",
    },
    Setting {
        name: "control_socket",
        scopes: SERVER,
        kind: Text("PATH", |d, text| Ok(d.config.control.socket = Some(absolute(text)?))),
        default: Unset("none"),
        flag: Long,
        help: "Listen for wshd ctl on this Unix socket",
        more: "\
A stale one is replaced, and it is removed at the end.
See
.Xr wshd-ctl 8 .",
    },
    Setting {
        name: "control_group",
        scopes: SERVER,
        kind: NameOrNumber("GROUP", |d, text| Ok(d.config.control.group = Some(owning_group(text)?))),
        default: Unset("only root and the user of the server"),
        flag: No,
        help: "Let members of this group, by name or number, use the control socket, too",
        more: "Unless the server was started by root, its user must be a member, as with usermod -a -G ops wshd.",
    },
    Setting {
        name: "landlock",
        scopes: SERVER,
        kind: Flag(|d, is_on| d.landlock = is_on),
        default: Is("false"),
        flag: No,
        help: "Let workers and programs that they start read only handlers, static files and system libraries",
        more: "\
If the kernel does not support it the server does not start, status 3.
See CONFINEMENT in
.Xr wshd 8 .",
    },
    Setting {
        name: "landlock_read",
        scopes: SERVER,
        kind: List("PATH", |d, texts| Ok(d.landlock_files.read = texts.iter().map(Into::into).collect())),
        default: Unset("none"),
        flag: No,
        help: "Let confined workers read and execute this file, or files below this directory, too",
        more: "",
    },
    Setting {
        name: "landlock_write",
        scopes: SERVER,
        kind: List("PATH", |d, texts| Ok(d.landlock_files.write = texts.iter().map(Into::into).collect())),
        default: Unset("none"),
        flag: No,
        help: "Let confined workers read, write and execute this file, or files below this directory",
        more: "",
    },
    Setting {
        name: "seccomp",
        scopes: POOLS,
        kind: Flag(|d, is_on| d.pool.seccomp = is_on),
        default: Is("false"),
        flag: No,
        help: "Deny workers and programs that they start the system calls that handlers do not need",
        more: "\
Such a call fails with EPERM.
They are listed in CONFINEMENT in
.Xr wshd 8 .
If the kernel does not support it the server does not start, status 3.",
    },
];
