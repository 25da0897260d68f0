//! Confining workers to the files that they need, with Landlock (landlock(7)).
//!
//! What a kernel of 5.13 can do is demanded: a server that is told to confine its workers does not run without. What
//! later kernels can do beyond that, such as guarding against truncation, is used where it is there. Nothing but files
//! is confined: not the network, not signals. Of a stranger ([`Files::of_stranger`]) both are, as far as the kernel can.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, Scope, path_beneath_rules,
};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Landlock};

/// What the C library, the dynamic linker and the worker itself read. What is not there is passed over.
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
/// Where programs (CGI) find interpreters, tools and their settings.
const PROGRAMS: [&str; 5] = ["/bin", "/etc", "/opt", "/sbin", "/usr"];
/// May be written, too.
const SINKS: [&str; 2] = ["/dev/null", "/dev/zero"];
/// The newest whose rights about files are known here.
const NEWEST: ABI = ABI::V5;
/// The newest whose rights about the network and signals are known.
const NEWEST_OF_ALL: ABI = ABI::V6;

/// Whether workers can be confined as wanted. [supervisor, before fork]
pub(super) fn check(config: &Config) -> Result<(), String> {
    let Some(_) = config.landlock else { return Ok(()) };
    rules().map(drop).map_err(|error| format!("landlock: this kernel cannot confine workers: {error}"))
}

/// The files that a process may use, as it sees them: below its root, if it has one of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Beside those of the system.
    read: Vec<OsString>,
    write: Vec<OsString>,
    /// Neither TCP, abstract sockets nor signals to others; as far as the kernel can.
    is_alone: bool,
}

impl Files {
    /// All may be read, nothing written, and nobody reached.
    pub fn of_stranger() -> Self {
        Self { read: vec!["/".into()], write: Vec::new(), is_alone: true }
    }

    /// The directories of the configuration and these handlers, if it limits files at all.
    pub fn of<'a>(config: &'a Config, handlers: impl IntoIterator<Item = &'a PathBuf>) -> Option<Self> {
        let handlers = [&config.handlers].into_iter().chain(handlers);
        Self::new(config, handlers.map(|path| config.inside(path).into_owned().into()))
    }

    /// The same for programs: no handlers, but whatever else is installed.
    pub fn of_programs(config: &Config) -> Option<Self> {
        Self::new(config, PROGRAMS.into_iter().map(Into::into))
    }

    fn new(config: &Config, more: impl Iterator<Item = OsString>) -> Option<Self> {
        let Landlock { read, write } = config.landlock.as_ref()?;
        let inside = |path: &PathBuf| config.inside(path).into_owned().into_os_string();
        let read = config.document_root.iter().chain(read).map(inside).chain(more).collect();
        Some(Self { read, write: write.iter().map(inside).collect(), is_alone: false })
    }

    /// Confines this process and all it starts to these, for good. The last thing before handlers are loaded. [worker or
    /// probe, one thread]
    pub(super) fn confine(&self) -> io::Result<()> {
        let readable = self.read.iter().map(Path::new).chain(SYSTEM.map(Path::new));
        let writable = self.write.iter().map(Path::new).chain(SINKS.map(Path::new));
        let confine = || {
            let rules = if self.is_alone { rules_for_strangers()? } else { rules()? };
            let rules = rules
                .add_rules(path_beneath_rules(readable, AccessFs::from_read(NEWEST)))?
                .add_rules(path_beneath_rules(writable, AccessFs::from_all(NEWEST)))?;
            rules.restrict_self()
        };
        confine()
            .map(drop)
            .map_err(|error: landlock::RulesetError| io::Error::other(format!("Landlock: {error}")))
    }
}

/// Rules that allow nothing yet, and less.
fn rules_for_strangers() -> Result<RulesetCreated, landlock::RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST_OF_ALL))?
        .scope(Scope::from_all(NEWEST_OF_ALL))?
        .create()
}

/// Rules that allow nothing yet.
fn rules() -> Result<RulesetCreated, landlock::RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .create()
}
