//! A system call filter (seccomp(2)) that denies calls with which a process could leave its confinement, or which reach
//! rarely used parts of the kernel. It is a deny list, since handlers may need any other call. Denied calls fail with
//! EPERM, also in child processes.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::config::Config;

/// Denied calls, in groups; wshd(8) has the same list. process_vm_readv(2) is allowed: the rescue reads memory with it.
#[rustfmt::skip]
const DENIED: &[(&str, libc::c_long)] = &[
    // Other processes.
    ("kcmp", libc::SYS_kcmp),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("process_madvise", libc::SYS_process_madvise),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("ptrace", libc::SYS_ptrace),
    // Users and capabilities.
    ("capset", libc::SYS_capset),
    ("setfsgid", libc::SYS_setfsgid),
    ("setfsuid", libc::SYS_setfsuid),
    ("setgid", libc::SYS_setgid),
    ("setgroups", libc::SYS_setgroups),
    ("setregid", libc::SYS_setregid),
    ("setresgid", libc::SYS_setresgid),
    ("setresuid", libc::SYS_setresuid),
    ("setreuid", libc::SYS_setreuid),
    ("setuid", libc::SYS_setuid),
    // Namespaces, roots and mounts.
    ("chroot", libc::SYS_chroot),
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("fsopen", libc::SYS_fsopen),
    ("fspick", libc::SYS_fspick),
    ("mount", libc::SYS_mount),
    ("mount_setattr", libc::SYS_mount_setattr),
    ("move_mount", libc::SYS_move_mount),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("open_tree", libc::SYS_open_tree),
    ("pivot_root", libc::SYS_pivot_root),
    ("setns", libc::SYS_setns),
    ("umount2", libc::SYS_umount2),
    ("unshare", libc::SYS_unshare),
    // Parts of the kernel with a history of vulnerabilities. Operations of io_uring bypass the filter.
    ("add_key", libc::SYS_add_key),
    ("bpf", libc::SYS_bpf),
    ("fanotify_init", libc::SYS_fanotify_init),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("keyctl", libc::SYS_keyctl),
    ("lookup_dcookie", libc::SYS_lookup_dcookie),
    ("request_key", libc::SYS_request_key),
    ("userfaultfd", libc::SYS_userfaultfd),
    // The machine.
    ("acct", libc::SYS_acct),
    ("adjtimex", libc::SYS_adjtimex),
    ("clock_adjtime", libc::SYS_clock_adjtime),
    ("clock_settime", libc::SYS_clock_settime),
    ("delete_module", libc::SYS_delete_module),
    ("finit_module", libc::SYS_finit_module),
    ("init_module", libc::SYS_init_module),
    #[cfg(target_arch = "x86_64")]
    ("ioperm", libc::SYS_ioperm),
    #[cfg(target_arch = "x86_64")]
    ("iopl", libc::SYS_iopl),
    ("kexec_file_load", libc::SYS_kexec_file_load),
    ("kexec_load", libc::SYS_kexec_load),
    ("quotactl", libc::SYS_quotactl),
    ("reboot", libc::SYS_reboot),
    ("sethostname", libc::SYS_sethostname),
    ("setdomainname", libc::SYS_setdomainname),
    ("settimeofday", libc::SYS_settimeofday),
    ("swapoff", libc::SYS_swapoff),
    ("swapon", libc::SYS_swapon),
    ("syslog", libc::SYS_syslog),
    ("vhangup", libc::SYS_vhangup),
];

/// Flags with which clone(2) creates a namespace.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// The bit of the second number of each call on x86-64: __X32_SYSCALL_BIT.
const X32: Option<libc::c_long> = if cfg!(target_arch = "x86_64") { Some(0x4000_0000) } else { None };
/// Numbers of calls whose x32 variant is numbered differently: ptrace, kexec_load, process_vm_writev.
const X32_ONLY: [libc::c_long; 3] = [521, 528, 540];

/// Checks that the kernel can filter system calls, if configured. [supervisor, before fork]
pub(super) fn check(config: &Config) -> Result<(), String> {
    if !config.pools.iter().any(|pool| pool.seccomp) {
        return Ok(());
    }
    let cannot = |why: String| format!("seccomp: this machine cannot filter system calls: {why}");
    programs().map_err(|error| cannot(error.to_string()))?;
    rustix::thread::secure_computing_mode().map(drop).map_err(|error| cannot(error.to_string()))
}

/// Filters the system calls of this process and its future children, irrevocably. The last step of confinement. [worker
/// or probe, one thread]
pub(super) fn confine() -> io::Result<()> {
    let failed = |why: String| io::Error::other(format!("seccomp: {why}"));
    for program in programs().map_err(|error| failed(error.to_string()))? {
        seccompiler::apply_filter(&program).map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

/// The two filters. The second one denies clone3(2), whose flags a filter cannot read, with ENOSYS: the C library falls
/// back to clone(2).
fn programs() -> Result<[BpfProgram; 2], BackendError> {
    let mut denied: BTreeMap<_, _> = DENIED.iter().flat_map(|(_, call)| names(*call)).collect();
    if let Some(bit) = X32 {
        denied.extend(X32_ONLY.map(|call| (call | bit, Vec::new())));
    }
    let makes_namespace = NAMESPACES.map(|flag| {
        let flag = flag as u64;
        let is_set = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?;
        SeccompRule::new(vec![is_set])
    });
    let makes_namespace = makes_namespace.into_iter().collect::<Result<Vec<_>, _>>()?;
    denied.extend(names(libc::SYS_clone).map(|(call, _)| (call, makes_namespace.clone())));
    let missing = names(libc::SYS_clone3).collect();
    let program = |calls, errno: i32| {
        let (refuse, arch) = (SeccompAction::Errno(errno as u32), std::env::consts::ARCH.try_into()?);
        SeccompFilter::new(calls, SeccompAction::Allow, refuse, arch)?.try_into()
    };
    Ok([program(denied, libc::EPERM)?, program(missing, libc::ENOSYS)?])
}

/// The numbers of a call, without conditions.
fn names(call: libc::c_long) -> impl Iterator<Item = (libc::c_long, Vec<SeccompRule>)> {
    [Some(call), X32.map(|bit| call | bit)].into_iter().flatten().map(|call| (call, Vec::new()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_names_the_denied_calls() {
        let manual = include_str!("../../man/wshd.8");
        let missing: Vec<&str> = DENIED
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| !manual.contains(&format!(".Xr {name} 2")))
            .collect();
        assert!(missing.is_empty(), "wshd(8) does not name {missing:?}");
    }

    #[test]
    fn the_filters_can_be_compiled() {
        assert!(programs().unwrap().iter().all(|program| program.len() > 4));
    }
}
