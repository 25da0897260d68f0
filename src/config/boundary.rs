//! Which pools may send connections to which.

use super::Config;

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
    use crate::config::Pool;

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
