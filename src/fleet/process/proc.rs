//! What the kernel tells of processes in /proc (proc(5)). Knows nothing of what they are. Where a process is gone, or
//! may not be looked at, there is nothing.

use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// Whether this program runs under valgrind, which answers for the first of these links but not for the second. It
/// takes its own settings from the environment as it was, and forgets argument 0 of a program that it runs.
pub fn is_under_valgrind() -> bool {
    let links = ["/proc/self/exe", "/proc/thread-self/exe"].map(std::fs::read_link);
    matches!(links, [Ok(program), Ok(running)] if program != running)
}

/// Resident memory of a process; bytes.
pub fn resident(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    // Always in units of 1024 bytes (proc_pid_status(5)).
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Processor time that a process has used, in user mode and in the kernel.
pub fn processor_time(pid: i32) -> Option<Duration> {
    let fields = stat(pid)?;
    let mut fields = fields.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()?.saturating_add(ticks()?);
    let per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
    Some(Duration::from_millis(ticks.saturating_mul(1000) / u64::try_from(per_second).ok()?.max(1)))
}

/// Whether the main thread of a process runs, or waits for nothing but a processor: state R of proc_pid_stat(5).
pub fn is_runnable(pid: i32) -> bool {
    stat(pid).is_some_and(|fields| fields.starts_with('R'))
}

/// Fields 3 and up of proc_pid_stat(5): the name in front of them, in brackets, may contain anything.
fn stat(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}

/// How many descriptors a process has open.
pub fn descriptors(pid: i32) -> Option<u64> {
    let dir = format!("/proc/{pid}/fd");
    match std::fs::metadata(&dir).ok()?.len() {
        // Before Linux 6.2, which tells everybody the number, one must be allowed to look.
        0 => Some(std::fs::read_dir(dir).ok()?.count() as u64),
        count => Some(count),
    }
}

/// The children of all threads of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// What a process is called in `ps`.
pub fn title(pid: i32) -> Option<String> {
    let title = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    Some(title.trim_end_matches('\0').to_owned())
}

/// How many it may have (RLIMIT_NOFILE).
pub fn descriptors_limit(pid: i32) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_process() {
        let own = std::process::id() as i32;
        let before = processor_time(own).unwrap();
        let begun = std::time::Instant::now();
        while processor_time(own).unwrap() < before + Duration::from_millis(20) {
            assert!(begun.elapsed() < Duration::from_secs(30));
        }
        assert!(resident(own).unwrap() > 1 << 20);
        let _file = std::fs::File::open("/dev/null").unwrap();
        assert!((4..=descriptors_limit(own).unwrap()).contains(&descriptors(own).unwrap()));
        let gone = i32::MAX;
        assert_eq!((processor_time(gone), resident(gone), descriptors(gone)), (None, None, None));
        assert_eq!(descriptors_limit(gone), None);
    }
}
