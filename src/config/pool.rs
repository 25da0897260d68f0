//! Pools of workers, and which of them may send connections to which.

use std::time::Duration;

use nix::unistd::{Gid, Uid};

use super::Config;

/// A pool of workers. Number 0 is "default", which accepts connections and serves every handler without a pool of
/// its own; its workers run as the server does, without limits of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// As in titles and logs.
    pub name: String,
    /// How many, at least 1.
    pub workers: usize,
    /// Most connections of all its workers together, if there is a limit.
    pub connections: Option<u32>,
    /// The user that they run as; only with groups, and only when the server is root.
    pub user: Option<Uid>,
    /// Their groups, the first one first; none: those of the server.
    pub groups: Vec<Gid>,
    /// Added to the nice value of the server.
    pub nice: i32,
    /// RLIMIT_AS; bytes.
    pub max_memory: Option<u64>,
    /// RLIMIT_NOFILE.
    pub max_files: Option<u64>,
    /// RLIMIT_CPU; whole seconds, never zero.
    pub max_cpu: Option<Duration>,
    /// RLIMIT_NPROC; only with a user, who is not root.
    pub max_processes: Option<u64>,
    /// Whether its workers are kept from some system calls.
    pub seccomp: bool,
    /// A process for each connection; then the one worker is their parent.
    pub children: Option<Processes>,
}

/// The processes of a pool in which each serves one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// How many wait for a connection, if there may be so many; at most `most`.
    pub spare: usize,
    /// How many there are, at least 1.
    pub most: usize,
}

impl Pool {
    /// The most processes at a time, apart from those that are being replaced.
    pub fn processes(&self) -> usize {
        self.workers + self.children.map_or(0, |children| children.most)
    }

    /// A pool without limits that runs as the server does.
    pub fn new(name: &str, workers: usize) -> Self {
        Self { name: name.to_owned(), workers, ..Self::default() }
    }
}

impl Config {
    /// Whether workers of a pool may send connections to those of another one. The default pool may to all; a pool with a user
    /// of its own is a boundary for the others.
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
