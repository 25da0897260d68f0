//! Processes that were left behind by their parents: they become children of this process, which kills them.

use std::collections::BTreeSet;
use std::io;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::proc;

/// From now on orphans are this process's children.
pub fn adopt() -> io::Result<()> {
    Ok(set_child_subreaper(true)?)
}

/// Kills all children but those that are spared, and whatever they leave behind; returns how many that were. None may
/// be started meanwhile. Those that go on forking are given up after so many generations.
pub fn kill_all_but(spared: &BTreeSet<i32>, generations: usize) -> usize {
    let mut count = 0;
    for _ in 0..generations {
        let children = proc::children(std::process::id() as i32).into_iter();
        let orphans: Vec<Pid> = children.filter(|pid| !spared.contains(pid)).map(Pid::from_raw).collect();
        if orphans.is_empty() {
            break;
        }
        count += orphans.len();
        for orphan in &orphans {
            let _ = kill(*orphan, Signal::SIGKILL); // it may have ended
        }
        for orphan in orphans {
            let _ = waitpid(orphan, None); // it has no other parent
        }
    }
    count
}
