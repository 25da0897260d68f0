//! Pools of workers, and which pools may move connections to which others.

use std::time::Duration;

use nix::unistd::{Gid, Uid};

use super::Config;

/// A pool of workers. Number 0 is "default", which accepts connections and serves all handlers without a pool of their
/// own; it has no limits of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Its name in titles and logs.
    pub name: String,
    /// Number of workers, at least 1.
    pub workers: usize,
    /// Maximum connections of all its workers together, if limited.
    pub connections: Option<u32>,
    /// User of the workers; only with groups, and only if the server is root.
    pub user: Option<Uid>,
    /// Groups of the workers, the primary one first; none: those of the server.
    pub groups: Vec<Gid>,
    /// Added to the nice value of the server.
    pub nice: i32,
    /// RLIMIT_AS; bytes.
    pub max_memory: Option<u64>,
    /// RLIMIT_NOFILE.
    pub max_files: Option<u64>,
    /// RLIMIT_CPU; whole seconds, never zero.
    pub max_cpu: Option<Duration>,
    /// RLIMIT_NPROC; only with a user other than root.
    pub max_processes: Option<u64>,
    /// Whether system calls of the workers are filtered.
    pub seccomp: bool,
    /// Per-connection processes, if the pool has them; the only worker is their parent.
    pub children: Option<Processes>,
}

/// The per-connection processes of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// Number of processes that wait for a connection; at most `most`.
    pub spare: usize,
    /// Maximum number of processes, at least 1.
    pub most: usize,
}

impl Pool {
    /// Maximum processes at a time, except those that are being replaced.
    pub fn processes(&self) -> usize {
        self.workers + self.children.map_or(0, |children| children.most)
    }

    /// A pool without limits, with the user of the server.
    pub fn new(name: &str, workers: usize) -> Self {
        Self { name: name.to_owned(), workers, ..Self::default() }
    }
}

impl Config {
    /// Whether workers of a pool may move connections to those of another one. Those of the default pool may move them
    /// to all pools, others only to pools with the same user and groups.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        let identity = |pool: usize| self.pools.get(pool).map(|pool| (pool.user, &pool.groups));
        from == 0 || from == to || identity(from) == identity(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_with_a_user_of_its_own_is_a_boundary() {
        let pool = |name, user: Option<u32>| Pool { user: user.map(Into::into), ..Pool::new(name, 1) };
        let pools = vec![pool("default", None), pool("a", None), pool("b", Some(7)), pool("c", Some(7))];
        let config = Config { pools, ..Config::default() };
        for (from, reached) in [(0, &[0, 1, 2, 3][..]), (1, &[0, 1]), (2, &[2, 3]), (3, &[2, 3])] {
            assert!((0..4).filter(|to| config.reaches(from, *to)).eq(reached.iter().copied()), "{from}");
        }
    }
}
