//! The memory of processes, as the kernel tells it. Knows nothing of what they are.

/// Resident memory of a process; bytes. None if it is gone, or /proc is not there.
pub fn resident(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    // Always in units of 1024 bytes (proc_pid_status(5)).
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}
