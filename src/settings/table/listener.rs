//! Settings of a listener that the server does not have.

use super::super::account::{owner, owning_group};
use super::super::value;
use super::*;

pub const TABLE: &[Setting] = &[
    Setting {
        name: "address",
        scopes: LISTENER,
        kind: Text("ADDRESS", |d, text| Ok(d.address = Some(value::address(text)?))),
        default: Unset("none; it is required"),
        flag: No,
        help: "Listen on HOST:PORT, [IPV6]:PORT or unix:/PATH",
        more: "",
    },
    Setting {
        name: "mode",
        scopes: LISTENER,
        kind: Text("MODE", |d, text| {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
            Ok(d.listener.binding.mode = Some(mode.ok_or("expected permissions such as 0660")?))
        }),
        default: Unset("as the umask determines"),
        flag: No,
        help: "Permissions of a socket in the file system, such as \\(dq0660\\(dq",
        more: "Write permission allows connecting.",
    },
    Setting {
        name: "owner",
        scopes: LISTENER,
        kind: NameOrNumber("USER", |d, text| Ok(d.listener.binding.owner = Some(owner(text)?))),
        default: Unset("the user of the server"),
        flag: No,
        help: "Owner of a socket in the file system, by name or number",
        more: "Needs a server that was started by root.",
    },
    Setting {
        name: "group",
        scopes: LISTENER,
        kind: NameOrNumber("GROUP", |d, text| Ok(d.listener.binding.group = Some(owning_group(text)?))),
        default: Unset("the group of the server"),
        flag: No,
        help: "Group of a socket in the file system, by name or number",
        more: "Unless the server was started by root, its user must be a member.",
    },
];
