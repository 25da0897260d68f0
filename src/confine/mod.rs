//! What a process gives up before the code of a handler runs in it: limits, root directory, groups, group, user, all
//! capabilities, files, and system calls, always in this order, and with no way back. In a worker just after fork, and in a
//! probe. Looks no name up: the configuration has numbers.

#![allow(unsafe_code)]

mod landlock;
mod seccomp;

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, chdir, chroot, geteuid, setgid, setgroups, setuid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_keep_capabilities};
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
    /// Of a process with another user: it may read all files even so, and nothing more.
    reads_all: bool,
}

/// The user of a stranger, where there is a choice: one that has no files, and no other processes. The pid is added.
const NOBODY_ELSE: u32 = 0x7000_0000;
/// Where there is no such user, as in most containers: nobody, on all Linux systems.
const NOBODY: u32 = 65534;
/// Processes and threads of a stranger, beside those that its user has already.
const STRANGERS: u64 = 256;
/// Processor time of each of its processes.
const STRANGE_TIME: Duration = Duration::from_secs(60);

impl Confinement {
    /// Of a process with a handler that nobody vouches for, which is examined: it reads what this process may read, writes
    /// nothing, reaches nobody, and has no more than so many processes.
    pub fn of_stranger() -> Self {
        let users = [NOBODY_ELSE.saturating_add(std::process::id()), NOBODY];
        let user = users.into_iter().find(|user| geteuid().is_root() && is_mapped(*user));
        let of_user = user.unwrap_or_else(|| geteuid().as_raw());
        // Root has no limit.
        let processes = (of_user != 0).then(|| threads_of(of_user) + STRANGERS);
        Self {
            pool: "check".to_owned(),
            limits: [None, None, Some(STRANGE_TIME.as_secs()), processes],
            nice: 0,
            root: None,
            groups: user.into_iter().collect(),
            user,
            files: Some(Files::of_stranger()),
            seccomp: true,
            reads_all: user.is_some(),
        }
    }

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
            reads_all: false,
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
            set_keep_capabilities(self.reads_all)
                .map_err(|error| self.failed("capabilities")(errno(error)))?;
            setuid(Uid::from_raw(user)).map_err(self.failed("user"))?;
        }
        // Capabilities that a server without root was started with are the supervisor's.
        if self.user.is_some() || !geteuid().is_root() {
            let kept = if self.reads_all { CapabilitySet::DAC_READ_SEARCH } else { CapabilitySet::empty() };
            drop_capabilities(kept).map_err(self.failed("capabilities"))?;
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

/// Leaves no other capability in the effective, permitted, inheritable and ambient sets: to have less is always allowed. What
/// is so already is not asked for, which a system call filter may refuse.
fn drop_capabilities(kept: CapabilitySet) -> nix::Result<()> {
    let kept = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    let drop = || match rustix::thread::capabilities(None)? {
        has if has == kept => Ok(()), // nor is there an ambient one, which would have to be inheritable
        _ => rustix::thread::set_capabilities(None, kept),
    };
    drop().map_err(errno)
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Whether this user, and the group with the same number, exist in the namespace of this process (user_namespaces(7)).
fn is_mapped(id: u32) -> bool {
    let is_in = |map: &str| {
        std::fs::read_to_string(map).is_ok_and(|map| {
            map.lines().any(|line| {
                let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
                let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
                    (numbers.next(), numbers.next(), numbers.next())
                else {
                    return false;
                };
                (first..first.saturating_add(count)).contains(&id.into())
            })
        })
    };
    is_in("/proc/self/uid_map") && is_in("/proc/self/gid_map")
}

/// Processes and threads of a user.
fn threads_of(user: u32) -> u64 {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_user = processes.filter(|process| process.metadata().is_ok_and(|process| process.uid() == user));
    let threads =
        of_user.filter_map(|process| Some(std::fs::read_dir(process.path().join("task")).ok()?.count()));
    threads.sum::<usize>() as u64
}
