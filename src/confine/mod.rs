//! Confines a process before the code of a handler runs in it: resource limits, root directory, groups, group, user,
//! capabilities, files, system calls, always in this order, and irrevocably. Used in a worker after the fork, and in a
//! probe. Looks up no names: the configuration has numeric ids.

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

/// Checks that the kernel can confine workers as configured. [supervisor, before fork]
pub fn check(config: &Config) -> Result<(), String> {
    landlock::check(config)?;
    seccomp::check(config)
}

/// How the processes of a pool are confined. Serialized, since a probe reads it from a pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Name of the pool, for errors.
    pool: String,
    limits: [Option<u64>; LIMITED.len()],
    /// Added to the nice value.
    nice: i32,
    root: Option<OsString>,
    /// The first one is the primary group; none: unchanged.
    groups: Vec<u32>,
    user: Option<u32>,
    files: Option<Files>,
    /// Whether its system calls are filtered.
    seccomp: bool,
    /// Whether a process with another user keeps CAP_DAC_READ_SEARCH.
    reads_all: bool,
}

/// The pid is added to this: the id of a user without files and other processes, for an untrusted handler.
const UNUSED_USERS: u32 = 0x7000_0000;
/// The user for it if that id is not mapped, as in most containers: nobody on all Linux systems.
const NOBODY: u32 = 65534;
/// Maximum processes and threads of an untrusted handler, besides those of its user.
const UNTRUSTED_PROCESSES: u64 = 256;
/// Maximum CPU time of each of its processes.
const UNTRUSTED_CPU: Duration = Duration::from_secs(60);

impl Confinement {
    /// For a process that examines an untrusted handler: it reads what this process may read, writes nothing, has no
    /// network, and a limited number of processes.
    pub fn of_untrusted() -> Self {
        let users = [UNUSED_USERS.saturating_add(std::process::id()), NOBODY];
        let user = users.into_iter().find(|user| geteuid().is_root() && is_mapped(*user));
        let of_user = user.unwrap_or_else(|| geteuid().as_raw());
        // RLIMIT_NPROC does not apply to root.
        let processes = (of_user != 0).then(|| threads_of(of_user) + UNTRUSTED_PROCESSES);
        Self {
            pool: "check".to_owned(),
            limits: [None, None, Some(UNTRUSTED_CPU.as_secs()), processes],
            nice: 0,
            root: None,
            groups: user.into_iter().collect(),
            user,
            files: Some(Files::of_untrusted()),
            seccomp: true,
            reads_all: user.is_some(),
        }
    }

    /// For the pool with this number. Files are not restricted yet: see [`with_files`](Self::with_files).
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

    /// For gateways: that of the default pool, with their own user and groups if configured.
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

    /// For the process that runs CGI programs: that of the default pool, with its own user and groups if configured.
    pub fn of_programs(config: &Config) -> Option<Self> {
        let confinement = Self { files: Files::of_programs(config), ..Self::of(config, 0)? };
        let Some(cgi) = config.cgi.as_ref().filter(|cgi| cgi.user.is_some()) else {
            return Some(confinement);
        };
        let groups = cgi.groups.iter().map(|group| group.as_raw()).collect();
        Some(Self { pool: "cgi".to_owned(), user: cgi.user.map(Uid::as_raw), groups, ..confinement })
    }

    /// The same, restricted to these handlers and the files in the configuration, if it restricts files.
    pub fn with_files<'a>(self, config: &'a Config, handlers: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        Self { files: Files::of(config, handlers), ..self }
    }

    /// Confines this process. The error names the pool and the step that failed. [worker or probe, one thread]
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
        // A server without root may have been started with capabilities: only the supervisor keeps them.
        if self.user.is_some() || !geteuid().is_root() {
            let kept = if self.reads_all { CapabilitySet::DAC_READ_SEARCH } else { CapabilitySet::empty() };
            drop_capabilities(kept).map_err(self.failed("capabilities"))?;
        }
        if self.user.is_some() {
            set_no_new_privs().map_err(self.failed("no_new_privs"))?;
            // The change of the user has cleared this flag, without which there are no core dumps.
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

    /// Sets the resource limits and the nice value, before the user loses the right to.
    fn limit(&self) -> io::Result<()> {
        for ((resource, name), limit) in LIMITED.into_iter().zip(self.limits) {
            if let Some(limit) = limit {
                // Only root could raise the hard limit; a lower one is fine.
                let (_, hard) = getrlimit(resource).map_err(self.failed(name))?;
                setrlimit(resource, limit.min(hard), limit.min(hard)).map_err(self.failed(name))?;
            }
        }
        if self.nice != 0 {
            // SAFETY: getpriority and setpriority only read and write the nice value of this process.
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
    chdir("/") // chroot(2) does not change the current directory, which is outside
}

/// Empties the bounding set. Fails without CAP_SETPCAP; then no_new_privs has the same effect.
fn empty_bounding_set() {
    let each = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
    for capability in
        each.take_while(|capability| rustix::thread::capability_is_in_bounding_set(*capability).is_ok())
    {
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
}

/// Removes all other capabilities from the effective, permitted, inheritable and ambient sets. If there are none, it
/// makes no call, since a system call filter may deny that.
fn drop_capabilities(kept: CapabilitySet) -> nix::Result<()> {
    let kept = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    let drop = || match rustix::thread::capabilities(None)? {
        has if has == kept => Ok(()), // the ambient set is empty, too: it is a subset of the inheritable one
        _ => rustix::thread::set_capabilities(None, kept),
    };
    drop().map_err(errno)
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Whether this user id, and the same group id, are mapped in this user namespace (user_namespaces(7)).
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

/// Number of threads of all processes of a user.
fn threads_of(user: u32) -> u64 {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_user = processes.filter(|process| process.metadata().is_ok_and(|process| process.uid() == user));
    let threads =
        of_user.filter_map(|process| Some(std::fs::read_dir(process.path().join("task")).ok()?.count()));
    threads.sum::<usize>() as u64
}
