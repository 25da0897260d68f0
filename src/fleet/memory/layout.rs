//! The memory that processes share, and the wall in it: what each kind of process may do with each part. Tables are
//! declared before the first fork. What a pool has of them is made when the pool gets its first worker; a process knows
//! the pools that were there when it was forked, as far as it may see them.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::region::{Access, Region, Shareable};

/// Maximum number of pools: their numbers are not reused when pools come and go.
pub const MAX_POOLS: usize = 2048;

/// In place of the number of a pool: the process that runs programs.
pub const PROGRAMS: usize = MAX_POOLS - 1;

/// The processes that write a region shared by all pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Workers read it.
    Supervisor,
    Gateways,
    Bus,
    /// The process that runs programs.
    Programs,
}

/// Further processes with access to a region of a pool. The pool's workers and the supervisor can always write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Nobody.
    Private,
    Metrics,
    /// Metrics, and the default pool, which decides who comes in.
    DefaultPool,
    /// Metrics, and the pools that send connections to this one.
    Senders,
    /// The same, and these may write it.
    WritingSenders,
}

impl Audience {
    pub const ALL: [Self; 5] =
        [Self::Private, Self::Metrics, Self::DefaultPool, Self::Senders, Self::WritingSenders];
}

/// What a process is, by what it may do with the memory.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    /// A worker of this pool, which may send connections to workers of those that `reaches` tells.
    Worker { pool: usize, reaches: &'a dyn Fn(usize) -> bool },
    /// Reads all but what is private.
    Metrics,
    /// Writes what gateways count.
    Gateway,
    /// Counts its connections.
    Programs,
    /// Writes what the bus counts.
    Bus,
}

impl Part<'_> {
    /// What it may do with a region of this owner.
    fn access(self, owner: Owner) -> Access {
        match (self, owner) {
            (Part::Metrics, _) | (Part::Worker { .. }, Owner::Supervisor) => Access::Read,
            (Part::Gateway, Owner::Gateways) => Access::Write,
            (Part::Programs, Owner::Programs) => Access::Write,
            (Part::Bus, Owner::Bus) => Access::Write,
            _ => Access::None,
        }
    }

    /// What it may do with a region of this pool.
    fn access_in(self, owner: usize, audience: Audience) -> Access {
        match (self, audience) {
            (Part::Worker { pool, .. }, _) if pool == owner => Access::Write,
            (Part::Worker { pool: 0, .. }, Audience::DefaultPool) => Access::Read,
            (Part::Worker { reaches, .. }, Audience::Senders) if reaches(owner) => Access::Read,
            (Part::Worker { reaches, .. }, Audience::WritingSenders) if reaches(owner) => Access::Write,
            (Part::Metrics, audience) if audience != Audience::Private => Access::Read,
            (Part::Programs, _) if owner == PROGRAMS => Access::Write,
            _ => Access::None,
        }
    }
}

/// All regions. They live until the last process that has them mapped ends.
pub struct Memory {
    declared: Mutex<Declared>,
    /// By number of the pool and by audience.
    pools: Box<[[OnceLock<Box<Region>>; Audience::ALL.len()]]>,
    /// The pools that have regions, in order.
    opened: Box<[AtomicUsize]>,
    /// Number of pools in `opened`.
    count_opened: AtomicUsize,
}

#[derive(Default)]
struct Declared {
    /// The regions that are not of a pool.
    singles: Vec<(Owner, Region)>,
    /// Bytes that each pool has of each audience.
    sizes: [usize; Audience::ALL.len()],
}

/// Tables do not share cache lines, nor the pairs of lines that processors fetch.
const ALIGNMENT: usize = 128;

impl Memory {
    /// Without any region. [supervisor, before fork]
    pub fn create() -> &'static Self {
        Box::leak(Box::new(Self {
            declared: Mutex::default(),
            pools: (0..MAX_POOLS).map(|_| Default::default()).collect(),
            opened: (0..MAX_POOLS).map(|_| AtomicUsize::new(0)).collect(),
            count_opened: AtomicUsize::new(0),
        }))
    }

    /// `count` values in a region of their own. [supervisor, before fork]
    pub fn table<T: Shareable>(&self, owner: Owner, count: usize) -> io::Result<&'static [T]> {
        let region = Region::new(count.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?)?;
        let table = region.slice(0, count).ok_or(io::ErrorKind::InvalidInput)?;
        self.declared().singles.push((owner, region));
        Ok(table)
    }

    /// One value in a region of its own. [supervisor, before fork]
    pub fn value<T: Shareable>(&self, owner: Owner) -> io::Result<&'static T> {
        self.table(owner, 1)?.first().ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// `count` values for each pool. [supervisor, before the first pool is opened]
    pub fn per_pool<T: Shareable>(&'static self, audience: Audience, count: usize) -> io::Result<PerPool<T>> {
        let size = &mut self.declared().sizes[audience as usize];
        let offset = size.next_multiple_of(ALIGNMENT.max(align_of::<T>()));
        let end = count.checked_mul(size_of::<T>()).and_then(|bytes| offset.checked_add(bytes));
        *size = end.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(PerPool { memory: self, audience, offset, count, content: PhantomData })
    }

    /// Makes the regions of a pool for these audiences, unless it has them. [supervisor, before fork]
    pub fn open(&self, pool: usize, audiences: &[Audience]) -> io::Result<()> {
        let full = || io::Error::other("too many pools have come and gone: restart the server");
        let regions = self.pools.get(pool).ok_or_else(full)?;
        if !self.opened().any(|opened| opened == pool) {
            let number = self.count_opened.load(Ordering::Relaxed);
            self.opened.get(number).ok_or_else(full)?.store(pool, Ordering::Relaxed);
            self.count_opened.store(number + 1, Ordering::Release);
        }
        for audience in audiences {
            let place = &regions[*audience as usize];
            if place.get().is_none() {
                let region = Region::new(self.declared().sizes[*audience as usize])?;
                place.get_or_init(|| Box::new(region));
            }
        }
        Ok(())
    }

    /// Restricts this process to the access of that part, for good. [child, before any code of others runs]
    pub fn restrict_to(&self, part: Part<'_>) -> io::Result<()> {
        for (owner, region) in &self.declared().singles {
            region.restrict(part.access(*owner))?;
        }
        for pool in self.opened() {
            for (audience, region) in
                Audience::ALL.into_iter().zip(self.pools.get(pool).into_iter().flatten())
            {
                region.get().map_or(Ok(()), |region| region.restrict(part.access_in(pool, audience)))?;
            }
        }
        Ok(())
    }

    fn opened(&self) -> impl Iterator<Item = usize> {
        let opened = self.opened.iter().take(self.count_opened.load(Ordering::Acquire));
        opened.map(|pool| pool.load(Ordering::Relaxed))
    }

    fn declared(&self) -> std::sync::MutexGuard<'_, Declared> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A table of which each pool has its own.
pub struct PerPool<T> {
    memory: &'static Memory,
    audience: Audience,
    /// Where it begins in the region of a pool; in bytes.
    offset: usize,
    /// Values that each pool has.
    count: usize,
    content: PhantomData<fn() -> T>,
}

impl<T: Shareable> PerPool<T> {
    /// The values of a pool, if this process can see them.
    pub fn get(&self, pool: usize) -> Option<&'static [T]> {
        let region = self.memory.pools.get(pool)?[self.audience as usize].get()?;
        let is_visible = region.access() != Access::None;
        is_visible.then(|| region.slice(self.offset, self.count)).flatten()
    }

    /// All that this process can see, with the numbers of their pools.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &'static [T])> {
        self.memory.opened().filter_map(|pool| Some((pool, self.get(pool)?)))
    }
}

impl<T> fmt::Debug for PerPool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values for each pool", self.count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn each_pool_has_its_own_values_and_tables_do_not_overlap() {
        let memory = Memory::create();
        let small: PerPool<AtomicU32> = memory.per_pool(Audience::Metrics, 3).unwrap();
        let large: PerPool<AtomicU32> = memory.per_pool(Audience::Metrics, 5000).unwrap();
        for pool in [3, 0, 3] {
            memory.open(pool, &[Audience::Metrics]).unwrap();
        }
        assert!(memory.open(MAX_POOLS, &[]).is_err() && small.get(1).is_none());
        for (number, (pool, values)) in large.iter().enumerate() {
            values.iter().for_each(|value| value.store(number as u32 + 1, Ordering::Relaxed));
            assert_eq!((values.len(), pool), (5000, [3, 0][number]));
        }
        let all = |pool| large.get(pool).unwrap().iter().map(|value| value.load(Ordering::Relaxed));
        assert!(all(3).all(|value| value == 1) && all(0).all(|value| value == 2));
        assert!(small.iter().flat_map(|(_, small)| small).all(|value| value.load(Ordering::Relaxed) == 0));
    }

    /// One line for each part: `N`one, `R`ead or `W`rite.
    #[test]
    fn who_may_what() {
        let letter = |access| match access {
            Access::None => 'N',
            Access::Read => 'R',
            Access::Write => 'W',
        };
        let reaches = |pool| pool == 2;
        let worker = |pool| Part::Worker { pool, reaches: &reaches };
        // Regions of an owner; those of pool 1, of pool 2 and of the programs, by audience.
        for (part, expected) in [
            (worker(0), "RNNN NNRNN NNRRW NNRNN"),
            (worker(1), "RNNN WWWWW NNNRW NNNNN"),
            (worker(3), "RNNN NNNNN NNNRW NNNNN"),
            (Part::Metrics, "RRRR NRRRR NRRRR NRRRR"),
            (Part::Gateway, "NWNN NNNNN NNNNN NNNNN"),
            (Part::Bus, "NNWN NNNNN NNNNN NNNNN"),
            (Part::Programs, "NNNW NNNNN NNNNN WWWWW"),
        ] {
            let owners = [Owner::Supervisor, Owner::Gateways, Owner::Bus, Owner::Programs];
            let of_owners = owners.map(|owner| letter(part.access(owner))).iter().collect::<String>();
            let of_pools = [1, 2, PROGRAMS].map(|pool| {
                Audience::ALL
                    .map(|audience| letter(part.access_in(pool, audience)))
                    .iter()
                    .collect::<String>()
            });
            assert_eq!(format!("{of_owners} {}", of_pools.join(" ")), expected);
        }
    }
}
