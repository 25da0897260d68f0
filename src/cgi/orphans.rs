//! What programs leave behind outside of their process groups: it becomes a child of this process, which kills it.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// How deep it is looked for: the children of what was killed are the next ones.
const GENERATIONS: usize = 16;

/// From now on orphans are this process's children.
pub fn adopt() -> io::Result<()> {
    Ok(set_child_subreaper(true)?)
}

/// Kills all children but these, which are programs. None may be started meanwhile.
pub fn kill_all_but(programs: &BTreeSet<i32>) {
    for _ in 0..GENERATIONS {
        let orphans: Vec<i32> = children().into_iter().filter(|pid| !programs.contains(pid)).collect();
        if orphans.is_empty() {
            return;
        }
        for orphan in orphans.into_iter().map(Pid::from_raw) {
            let _ = kill(orphan, Signal::SIGKILL); // it has exited
            let _ = waitpid(orphan, None);
        }
    }
}

/// The children of all threads; none where there is no /proc.
fn children() -> Vec<i32> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}
