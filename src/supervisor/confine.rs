//! What a process gives up before the code of a handler runs in it: limits, root directory, groups, group, user and all
//! capabilities, always in this order, and with no way back. In a worker just after fork, and in a probe. Looks no name
//! up: the configuration has numbers.

#![allow(unsafe_code)]

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{chdir, chroot, geteuid, setgid, setgroups, setuid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::config::{Config, Pool};

/// Confines this process as the pool of this number is. The error names the pool and what was refused.
pub fn enter(config: &Config, pool: usize) -> io::Result<()> {
    let Some(pool) = config.pools.get(pool) else { return Ok(()) };
    let failed = |what: &'static str| {
        move |error: Errno| {
            let message = format!("pool {}: {what}: {error}", pool.name);
            io::Error::new(io::Error::from(error).kind(), message)
        }
    };
    limit(pool, failed)?;
    if let Some(root) = &config.daemon.chroot {
        enter_root(root).map_err(failed("chroot"))?;
    }
    if let Some(group) = pool.groups.first() {
        setgroups(&pool.groups).map_err(failed("group"))?;
        setgid(*group).map_err(failed("group"))?;
    }
    if let Some(user) = pool.user {
        empty_bounding_set();
        setuid(user).map_err(failed("user"))?;
    }
    // Capabilities that a server without root was started with are the supervisor's.
    if pool.user.is_some() || !geteuid().is_root() {
        drop_capabilities().map_err(failed("capabilities"))?;
    }
    if pool.user.is_some() {
        set_no_new_privs().map_err(failed("no_new_privs"))?;
        // A change of the user takes it away, and with it core dumps.
        set_dumpable(true).map_err(failed("dumpable"))?;
    }
    Ok(())
}

/// The limits of a pool; first, since a user may not raise what was limited.
fn limit<F: FnOnce(Errno) -> io::Error>(pool: &Pool, failed: impl Fn(&'static str) -> F) -> io::Result<()> {
    let limits = [
        (Resource::RLIMIT_AS, pool.max_memory, "max_memory"),
        (Resource::RLIMIT_NOFILE, pool.max_files, "max_files"),
        (Resource::RLIMIT_CPU, pool.max_cpu, "max_cpu"),
        (Resource::RLIMIT_NPROC, pool.max_processes, "max_processes"),
    ];
    for (resource, limit, name) in limits {
        if let Some(limit) = limit {
            // Only root could raise it; what is wanted is an upper bound.
            let (_, hard) = getrlimit(resource).map_err(failed(name))?;
            setrlimit(resource, limit.min(hard), limit.min(hard)).map_err(failed(name))?;
        }
    }
    if pool.nice != 0 {
        // SAFETY: getpriority and setpriority of this process only read and write a number.
        let result = unsafe {
            let now = libc::getpriority(libc::PRIO_PROCESS, 0);
            libc::setpriority(libc::PRIO_PROCESS, 0, now + pool.nice)
        };
        Errno::result(result).map_err(failed("nice"))?;
    }
    Ok(())
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
