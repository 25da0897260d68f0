//! Everything that lies in shared memory.

use std::io;
use std::sync::atomic::AtomicU64;

use super::addresses::Addresses;
use super::breakers::Breakers;
use super::counters::Counters;
use super::crash_report::CrashReports;
use super::layout::{Audience, Memory, Owner, PROGRAMS, Part};
use super::scoreboard::{MAX_SLOTS, Place, Scoreboard};
use crate::fleet::memory::counters::bus::BusCounters;
use crate::fleet::memory::counters::gateway::GatewayCounters;
use crate::fleet::routes::Routes;

/// The same in all processes, as far as they can see it.
#[derive(Clone, Copy)]
pub struct Shared {
    memory: &'static Memory,
    pub scoreboard: &'static Scoreboard,
    pub counters: &'static Counters,
    pub gateways: &'static GatewayCounters,
    pub bus: &'static BusCounters,
    /// Lines of the log that the process of CGI programs has lost.
    pub programs_log_lost: &'static AtomicU64,
    pub addresses: &'static Addresses,
    pub breakers: &'static Breakers,
    pub crash_reports: &'static CrashReports,
}

impl Shared {
    /// Makes it for a fleet of so many processes at its start, with room in crash reports for so many bytes of strings
    /// and of a message. [supervisor]
    pub fn create(processes: usize, routes: &Routes, (strings, message): (usize, usize)) -> io::Result<Self> {
        // A reload doubles the processes for a while, and may make more of them.
        let lanes = processes.saturating_mul(2).saturating_add(64).min(MAX_SLOTS);
        let memory = Memory::create();
        let counters = Counters::create(memory, MAX_SLOTS, lanes, routes.handlers().len())?;
        counters.enter_all(routes);
        let shared = Self {
            memory,
            scoreboard: Scoreboard::create(memory)?,
            counters,
            gateways: memory.value(Owner::Gateways)?,
            bus: memory.value(Owner::Bus)?,
            programs_log_lost: memory.value(Owner::Programs)?,
            addresses: Addresses::create(memory, lanes)?,
            breakers: Breakers::create(memory, Routes::MAX)?,
            crash_reports: CrashReports::create(memory, MAX_SLOTS, strings, message)?,
        };
        memory.open(PROGRAMS, &[Audience::DefaultPool])?;
        Ok(shared)
    }

    /// A worker of this place is to be in a slot from now on. [supervisor]
    pub fn assign(&self, slot: usize, place: Place) -> io::Result<()> {
        self.memory.open(place.pool.into(), &Audience::ALL)?;
        self.counters.enter_place(place)?;
        self.scoreboard.assign(slot, place)
    }

    /// Resets what is corrupt: what processes of a pool have claimed that do not exist. [supervisor]
    pub fn mend(&self, pool: usize, is_there: impl Fn(i32) -> bool) {
        let of_pool = self.scoreboard.slots().filter(|(_, slot)| usize::from(slot.place().pool) == pool);
        of_pool.for_each(|(_, slot)| slot.crash.mend(&is_there));
        self.counters.mend(pool, &is_there);
        self.addresses.mend(pool, is_there);
    }

    /// From here on this process is no more than that, for good. [child, before any code of others runs]
    pub fn restrict_to(&self, part: Part<'_>) -> io::Result<()> {
        self.memory.restrict_to(part)
    }
}
