//! What a process gives up before the code of a handler runs in it: limits, root directory, groups, group, user, all
//! capabilities, files, and system calls, always in this order, and with no way back. In a worker just after fork, and in a
//! probe. Looks no name up: the configuration has numbers.

#![allow(unsafe_code)]

mod landlock;
mod seccomp;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, chdir, chroot, geteuid, setgid, setgroups, setuid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use self::landlock::Files;
use crate::config::Config;

/// The resources that a pool may limit, in the order of [`Confinement::limits`].
const LIMITED: [(Resource, &str); 4] = [
    (Resource::RLIMIT_AS, "max_memory"),
    (Resource::RLIMIT_NOFILE, "max_files"),
    (Resource::RLIMIT_CPU, "max_cpu"),
    (Resource::RLIMIT_NPROC, "max_processes"),
];

/// Whether this machine can confine workers as wanted. [supervisor, before fork]
pub fn check(config: &Config) -> Result<(), String> {
    landlock::check(config)?;
    seccomp::check(config)
}

/// How the processes of a pool are confined, as values: a probe reads it from a pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Name of the pool, for errors.
    pool: String,
    limits: [Option<u64>; LIMITED.len()],
    /// Added to the nice value.
    nice: i32,
    root: Option<OsString>,
    /// The first one is the group of the process; none: as it is.
    groups: Vec<u32>,
    user: Option<u32>,
    files: Option<Files>,
    /// Whether its system calls are filtered.
    seccomp: bool,
}

impl Confinement {
    /// That of the pool with this number. The files that it may use are not limited yet.
    pub fn of(config: &Config, pool: usize) -> Option<Self> {
        let root = config.daemon.chroot.as_ref().map(|root| root.clone().into());
        config.pools.get(pool).map(|pool| Self {
            pool: pool.name.clone(),
            limits: [
                pool.max_memory,
                pool.max_files,
                pool.max_cpu.map(|time| time.as_secs()),
                pool.max_processes,
            ],
            nice: pool.nice,
            root,
            groups: pool.groups.iter().map(|group| group.as_raw()).collect(),
            user: pool.user.map(Uid::as_raw),
            files: None,
            seccomp: pool.seccomp,
        })
    }

    /// That of gateways: of the default pool, with a user of their own where they have one.
    pub fn of_gateways(config: &Config) -> Option<Self> {
        let own = &config.gateway;
        Self::of(config, 0).map(|shared| match (own.user, &own.groups[..]) {
            (None, []) => shared,
            (user, groups) => Self {
                groups: groups.iter().map(|group| group.as_raw()).collect(),
                user: user.map(Uid::as_raw).or(shared.user),
                ..shared
            },
        })
    }

    /// That of the process that runs programs: as the default pool, with a user of its own if it has one.
    pub fn of_programs(config: &Config) -> Option<Self> {
        let confinement = Self { files: Files::of_programs(config), ..Self::of(config, 0)? };
        let Some(cgi) = config.cgi.as_ref().filter(|cgi| cgi.user.is_some()) else {
            return Some(confinement);
        };
        let groups = cgi.groups.iter().map(|group| group.as_raw()).collect();
        Some(Self { pool: "cgi".to_owned(), user: cgi.user.map(Uid::as_raw), groups, ..confinement })
    }

    /// The same, limited to these handlers and what else the configuration names, if it limits files at all.
    pub fn with_files<'a>(self, config: &'a Config, handlers: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        Self { files: Files::of(config, handlers), ..self }
    }

    /// Confines this process. The error names the pool and what was refused. [worker or probe, one thread]
    pub fn enter(&self) -> io::Result<()> {
        self.limit()?;
        if let Some(root) = &self.root {
            enter_root(root.as_ref()).map_err(self.failed("chroot"))?;
        }
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        if let Some(group) = groups.first() {
            setgroups(&groups).map_err(self.failed("group"))?;
            setgid(*group).map_err(self.failed("group"))?;
        }
        if let Some(user) = self.user {
            empty_bounding_set();
            setuid(Uid::from_raw(user)).map_err(self.failed("user"))?;
        }
        // Capabilities that a server without root was started with are the supervisor's.
        if self.user.is_some() || !geteuid().is_root() {
            drop_capabilities().map_err(self.failed("capabilities"))?;
        }
        if self.user.is_some() {
            set_no_new_privs().map_err(self.failed("no_new_privs"))?;
            // A change of the user takes it away, and with it core dumps.
            set_dumpable(true).map_err(self.failed("dumpable"))?;
        }
        self.files.as_ref().map_or(Ok(()), Files::confine)?;
        if self.seccomp { seccomp::confine() } else { Ok(()) }
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(Errno) -> io::Error {
        move |error| {
            let message = format!("pool {}: {what}: {error}", self.pool);
            io::Error::new(io::Error::from(error).kind(), message)
        }
    }

    /// First, since a user may not raise what was limited.
    fn limit(&self) -> io::Result<()> {
        for ((resource, name), limit) in LIMITED.into_iter().zip(self.limits) {
            if let Some(limit) = limit {
                // Only root could raise it; what is wanted is an upper bound.
                let (_, hard) = getrlimit(resource).map_err(self.failed(name))?;
                setrlimit(resource, limit.min(hard), limit.min(hard)).map_err(self.failed(name))?;
            }
        }
        if self.nice != 0 {
            // SAFETY: getpriority and setpriority of this process only read and write a number.
            let result = unsafe {
                let now = libc::getpriority(libc::PRIO_PROCESS, 0);
                libc::setpriority(libc::PRIO_PROCESS, 0, now + self.nice)
            };
            Errno::result(result).map_err(self.failed("nice"))?;
        }
        Ok(())
    }
}

fn enter_root(root: &Path) -> nix::Result<()> {
    chroot(root)?;
    chdir("/") // chroot(2) leaves the current directory where it is, outside
}

/// Takes from the bounding set whatever may be taken. Without CAP_SETPCAP that is nothing, which no_new_privs makes up
/// for.
fn empty_bounding_set() {
    let each = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
    for capability in
        each.take_while(|capability| rustix::thread::capability_is_in_bounding_set(*capability).is_ok())
    {
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
}

/// Leaves no capability in the effective, permitted, inheritable and ambient sets: to have less is always allowed. What is
/// empty is not asked for, which a system call filter may refuse.
fn drop_capabilities() -> nix::Result<()> {
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    let drop = || match rustix::thread::capabilities(None)? {
        has if has == none => Ok(()), // nor is there an ambient one, which would have to be permitted
        _ => rustix::thread::set_capabilities(None, none),
    };
    drop().map_err(|error| Errno::from_raw(error.raw_os_error()))
}
