//! Restricts processes to the files that they need, with Landlock (landlock(7)).
//!
//! The rights of Linux 5.13 are required: without them the server does not start. Later ones, such as truncation, are
//! used if the kernel has them. Only files are restricted; for an untrusted handler ([`Files::of_untrusted`]) also
//! network and signals, if the kernel can.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, Scope, path_beneath_rules,
};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Landlock};

/// Files that the C library, the dynamic linker and the worker itself read. Missing ones are ignored.
const SYSTEM: [&str; 24] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/dev/random",
    "/dev/urandom",
    "/proc",
    "/sys/devices/system/cpu",
];
/// Where CGI programs find interpreters, tools and their settings.
const PROGRAMS: [&str; 5] = ["/bin", "/etc", "/opt", "/sbin", "/usr"];
/// Devices that may also be written.
const SINKS: [&str; 2] = ["/dev/null", "/dev/zero"];
/// The newest version whose file rights are used.
const FILES_ABI: ABI = ABI::V5;
/// The newest version whose network rights and scopes are used.
const NETWORK_ABI: ABI = ABI::V6;

/// Checks that the kernel can enforce the configured restrictions. [supervisor, before fork]
pub(super) fn check(config: &Config) -> Result<(), String> {
    let Some(_) = config.landlock else { return Ok(()) };
    rules().map(drop).map_err(|error| format!("landlock: this kernel cannot confine workers: {error}"))
}

/// The files that a process may use. Paths are relative to its root, if it is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Besides those in `SYSTEM`.
    read: Vec<OsString>,
    /// Besides those in `SINKS`.
    write: Vec<OsString>,
    /// No TCP, abstract sockets, or signals to other processes, if the kernel can.
    is_isolated: bool,
}

impl Files {
    /// Reads all files, writes none, and is isolated.
    pub fn of_untrusted() -> Self {
        Self { read: vec!["/".into()], write: Vec::new(), is_isolated: true }
    }

    /// The directories of the configuration and these handlers; `None`: files are not restricted.
    pub fn of<'a>(config: &'a Config, handlers: impl IntoIterator<Item = &'a PathBuf>) -> Option<Self> {
        let handlers = [&config.handlers].into_iter().chain(handlers);
        Self::new(config, handlers.map(|path| config.inside(path).into_owned().into()))
    }

    /// The same for CGI programs: installed programs instead of handlers.
    pub fn of_programs(config: &Config) -> Option<Self> {
        Self::new(config, PROGRAMS.into_iter().map(Into::into))
    }

    fn new(config: &Config, more: impl Iterator<Item = OsString>) -> Option<Self> {
        let Landlock { read, write } = config.landlock.as_ref()?;
        let inside = |path: &PathBuf| config.inside(path).into_owned().into_os_string();
        let read = config.document_root.iter().chain(read).map(inside).chain(more).collect();
        Some(Self { read, write: write.iter().map(inside).collect(), is_isolated: false })
    }

    /// Restricts this process and its future children, irrevocably. [worker or probe, one thread]
    pub(super) fn confine(&self) -> io::Result<()> {
        let readable = self.read.iter().map(Path::new).chain(SYSTEM.map(Path::new));
        let writable = self.write.iter().map(Path::new).chain(SINKS.map(Path::new));
        let confine = || {
            let rules = if self.is_isolated { isolating_rules()? } else { rules()? };
            let rules = rules
                .add_rules(path_beneath_rules(readable, AccessFs::from_read(FILES_ABI)))?
                .add_rules(path_beneath_rules(writable, AccessFs::from_all(FILES_ABI)))?;
            rules.restrict_self()
        };
        confine()
            .map(drop)
            .map_err(|error: landlock::RulesetError| io::Error::other(format!("Landlock: {error}")))
    }
}

/// Rules that allow no files, no network and no signals, if the kernel can.
fn isolating_rules() -> Result<RulesetCreated, landlock::RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(FILES_ABI))?
        .handle_access(AccessNet::from_all(NETWORK_ABI))?
        .scope(Scope::from_all(NETWORK_ABI))?
        .create()
}

/// Rules that allow no files.
fn rules() -> Result<RulesetCreated, landlock::RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(FILES_ABI))?
        .create()
}
