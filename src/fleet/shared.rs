//! All memory that processes share, and what each kind of process may do with it. What workers write lies in regions of
//! their pools: none can harm, or read, what another pool has, but for the default pool, which hands connections to the
//! others and sees how loaded they are.

use std::io;
use std::sync::atomic::AtomicU64;

use super::addresses::{Addresses, PROGRAMS};
use super::breakers::Breakers;
use super::bus_counters::BusCounters;
use super::counters::Counters;
use super::crash_report::CrashReports;
use super::gateway_counters::GatewayCounters;
use super::region::{Access, Region};
use super::routes::Routes;
use super::scoreboard::{MAX_SLOTS, Place, Scoreboard};

/// The memory, the same in all processes as far as they can see it.
#[derive(Clone, Copy)]
pub struct Shared {
    /// How workers are.
    pub scoreboard: &'static Scoreboard,
    /// What they have counted.
    pub counters: &'static Counters,
    /// What gateways have counted.
    pub gateways: &'static GatewayCounters,
    of_gateways: &'static Region,
    /// What the bus has counted of its engine.
    pub bus: &'static BusCounters,
    of_bus: &'static Region,
    /// Lines of the log that the process of CGI programs has lost.
    pub programs_log_lost: &'static AtomicU64,
    of_programs: &'static Region,
    /// Connections by client address.
    pub addresses: &'static Addresses,
    /// Whether handlers are served.
    pub breakers: &'static Breakers,
    /// What crashes leave.
    pub crash_reports: &'static CrashReports,
}

/// What a process is, by what it may do with the memory.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    /// A worker of this pool, which may send connections to workers of those that `reaches` tells.
    Worker {
        /// Its pool.
        pool: usize,
        /// By number of the pool.
        reaches: &'a dyn Fn(usize) -> bool,
    },
    /// Reads all.
    Metrics,
    /// Writes what gateways count.
    Gateway,
    /// Counts its connections.
    Programs,
    /// Writes what the bus counts.
    Bus,
}

impl Shared {
    /// Makes it for a fleet of so many processes at its start, with room in crash reports for so many bytes of strings and of
    /// a message. [supervisor]
    pub fn create(processes: usize, routes: &Routes, (strings, message): (usize, usize)) -> io::Result<Self> {
        // A reload doubles the processes for a while, and may make more of them.
        let lanes = processes.saturating_mul(2).saturating_add(64).min(MAX_SLOTS);
        let counters = Counters::create(MAX_SLOTS, lanes, routes.handlers().len())?;
        counters.enter_all(routes);
        let of_gateways: &Region = Box::leak(Box::new(Region::new(size_of::<GatewayCounters>())?));
        let of_bus: &Region = Box::leak(Box::new(Region::new(size_of::<BusCounters>())?));
        let of_programs: &Region = Box::leak(Box::new(Region::new(size_of::<AtomicU64>())?));
        let addresses = Addresses::for_processes(processes);
        addresses.open(PROGRAMS)?;
        Ok(Self {
            scoreboard: Scoreboard::create()?,
            counters,
            gateways: of_gateways.value()?,
            of_gateways,
            bus: of_bus.value()?,
            of_bus,
            programs_log_lost: of_programs.value()?,
            of_programs,
            addresses,
            breakers: Breakers::create(Routes::MAX)?,
            crash_reports: CrashReports::create(MAX_SLOTS, strings, message)?,
        })
    }

    /// A worker of this place is to be in a slot from now on. [supervisor]
    pub fn assign(&self, slot: usize, place: Place) -> io::Result<()> {
        let pool = usize::from(place.pool);
        self.counters.enter_place(place)?;
        self.addresses.open(pool)?;
        self.breakers.open(pool)?;
        self.crash_reports.open(pool)?;
        self.scoreboard.assign(slot, place)
    }

    /// What processes of a pool have claimed that are not there, which can only be damage, is made anew. [supervisor]
    pub fn mend(&self, pool: usize, is_there: impl Fn(i32) -> bool) {
        let of_pool = self.scoreboard.slots().filter(|(_, slot)| usize::from(slot.place().pool) == pool);
        of_pool.for_each(|(_, slot)| slot.crash.mend(&is_there));
        self.counters.mend(pool, &is_there);
        self.addresses.mend(pool, is_there);
    }

    /// From here on this process is no more than that, for good. [child, before any code of others runs]
    pub fn restrict_to(&self, part: Part<'_>) -> io::Result<()> {
        let nothing = |_| Access::None;
        let (own, all) = match part {
            Part::Worker { pool, reaches } => return self.restrict_to_worker(pool, reaches),
            Part::Metrics => (Access::Read, Access::Read),
            Part::Gateway | Part::Programs | Part::Bus => (Access::None, Access::None),
        };
        let writes = |is_own| if is_own { Access::Write } else { all };
        let is_programs = matches!(part, Part::Programs);
        self.scoreboard.restrict(all)?;
        self.counters.restrict(own, |_| all)?;
        self.of_gateways.restrict(writes(matches!(part, Part::Gateway)))?;
        self.of_bus.restrict(writes(matches!(part, Part::Bus)))?;
        self.of_programs.restrict(writes(is_programs))?;
        self.addresses.restrict(|pool| writes(is_programs && pool == PROGRAMS))?;
        self.breakers.restrict(own, |_| all)?;
        self.crash_reports.restrict(nothing)
    }

    fn restrict_to_worker(&self, pool: usize, reaches: &dyn Fn(usize) -> bool) -> io::Result<()> {
        let own = |owner| if owner == pool { Access::Write } else { Access::None };
        // The default pool decides who comes in.
        let others = if pool == 0 { Access::Read } else { Access::None };
        self.scoreboard.restrict_to(pool, reaches)?;
        self.counters.restrict(Access::Read, own)?;
        self.of_gateways.restrict(Access::None)?;
        self.of_bus.restrict(Access::None)?;
        self.of_programs.restrict(Access::None)?;
        self.addresses.restrict(|owner| own(owner).max(others))?;
        self.breakers.restrict(Access::Read, |owner| own(owner).max(others))?;
        self.crash_reports.restrict(own)
    }
}
