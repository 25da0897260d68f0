//! The counters: shared memory in which the fleet counts what it does. They only grow while the fleet lives, but for
//! the few that say how much there is right now. Atomics only, as in the scoreboard.
//!
//! A process that serves counts in a lane of its own in the memory of its pool, so that adding takes no locked
//! instruction; when it has ended the next one goes on in the lane, and a reader adds up the lanes that it can see.
//! Handlers are known by their resource, workers by their place: their counters stay when they come and go. Memory is
//! used only for lanes and handlers that there are.

#![allow(unsafe_code)]

pub mod bus;
pub mod gateway;
pub mod handler;

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

use self::handler::{Count, HandlerCounters, Times, Traffic};
use super::cell::SharedCell;
use super::layout::{Audience, Memory, Owner, PerPool};
use super::region::Shareable;
use super::scoreboard::Place;
use crate::fleet::routes::Routes;

/// Ways in which processes die.
pub const DEATHS: [&str; 5] = ["crash", "exit", "hang", "killed", "ended"];

/// What became of the processes that were the worker of one place, as its slots come and go. Any process.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct PlaceCounters {
    /// 0: of no place.
    is_used: AtomicU32,
    pub starts: Count,
    pub accepted: Count,
    /// Connections that came from other processes.
    pub moved_in: Count,
    /// Connections that went to other processes.
    pub moved_out: Count,
    /// Processes that handed their connections over to another one because they were told to.
    pub replaced: Count,
    /// Messages that were on their way to the bus when it died, or the worker did.
    pub topics_lost: Count,
    /// Lines of the log that were lost.
    pub log_lost: AtomicU64,
    /// Processes that died, by [`DEATHS`].
    pub deaths: [Count; DEATHS.len()],
    /// How long the turns of the event loop took.
    pub turns: Times,
}

// SAFETY: atomic integers.
unsafe impl Shareable for PlaceCounters {}

impl PlaceCounters {
    fn clear(&self) {
        let Self { is_used, starts, accepted, moved_in, moved_out, replaced, topics_lost, .. } = self;
        [starts, accepted, moved_in, moved_out, replaced, topics_lost].into_iter().for_each(Count::clear);
        self.deaths.iter().for_each(Count::clear);
        self.turns.clear();
        self.log_lost.store(0, Ordering::Relaxed);
        is_used.store(0, Ordering::Release);
    }
}

/// What of a handler belongs to no process. Written by the supervisor.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct HandlerEntry {
    /// Bytes of the name; 0: nobody has it.
    size: AtomicU32,
    name: [AtomicU8; NAME],
    /// Processes that died in it.
    pub crashes: Count,
    /// How often it was quarantined.
    pub quarantines: Count,
}

// SAFETY: atomic integers.
unsafe impl Shareable for HandlerEntry {}

/// The longest resource that is told from others; bytes.
const NAME: usize = 236;

impl HandlerEntry {
    /// The resource of the handler, `none` or `other`.
    pub fn name(&self) -> String {
        let name = self.name.iter().take(self.size.load(Ordering::Acquire) as usize);
        let bytes: Vec<u8> = name.map(|byte| byte.load(Ordering::Relaxed)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn is(&self, name: &str) -> bool {
        let bytes = self.name.iter().map(|byte| byte.load(Ordering::Relaxed));
        self.size.load(Ordering::Acquire) as usize == name.len()
            && bytes.zip(name.bytes()).all(|(a, b)| a == b)
    }

    fn set(&self, name: &str) {
        self.name.iter().zip(name.bytes()).for_each(|(to, from)| to.store(from, Ordering::Relaxed));
        self.size.store(name.len() as u32, Ordering::Release);
    }
}

/// The entry of requests that no handler serves.
pub const NONE: usize = 0;
/// The entry of handlers that have none of their own.
pub const OTHER: usize = 1;

/// What is known of a lane as a whole.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct LaneHead {
    /// The process that counts here; 0: none.
    owner: AtomicI32,
    /// Number of the owner's slot plus 1; 0: nobody was ever here.
    slot: AtomicU32,
    /// The traffic when the owner began.
    before: SharedCell<Traffic, 4>,
    present: Present,
    /// Messages that were published since all before them were on their way to the bus.
    unpublished: Count,
}

/// What a process has now, and how much it may have. Only its event loop changes it.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Present {
    /// Bytes in the send queues of all connections.
    pub queued: Count,
    /// Bytes that the incomplete messages of all connections take.
    pub receiving: Count,
    /// Subscriptions of all connections to topics.
    pub subscriptions: Count,
    /// Threads of blocking handlers.
    pub threads: Count,
    pub connections_limit: Count,
    pub threads_limit: Count,
}

impl Present {
    fn counts(&self) -> [&Count; 6] {
        let Self { queued, receiving, subscriptions, threads, connections_limit, threads_limit } = self;
        [queued, receiving, subscriptions, threads, connections_limit, threads_limit]
    }
}

// SAFETY: atomic integers.
unsafe impl Shareable for LaneHead {}
// SAFETY: atomic integers.
unsafe impl Shareable for HandlerCounters {}

/// The lane of one process. [worker]
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    head: &'static LaneHead,
    handler_counters: &'static [HandlerCounters],
}

impl Lane {
    /// What is counted for the handler of this entry.
    pub fn counters(&self, entry: usize) -> &'static HandlerCounters {
        &self.handler_counters[if entry < self.handler_counters.len() { entry } else { OTHER }]
    }

    /// A send queue had so many bytes before, and has so many now; returns how many all have. [event loop]
    pub fn count_queued(&self, before: u64, after: u64) -> u64 {
        self.head.present.queued.add(after.wrapping_sub(before));
        self.head.present.queued.get()
    }

    /// What it has now. [event loop]
    pub fn present(&self) -> &'static Present {
        &self.head.present
    }

    /// So many messages at most end with this process. Written under the lock of what waits for the bus.
    pub fn unpublished(&self) -> &'static Count {
        &self.head.unpublished
    }
}

/// All counters. They live until the last process ends.
#[derive(Debug)]
pub struct Counters {
    entries: &'static [HandlerEntry],
    /// By number in the pool.
    places: PerPool<PlaceCounters>,
    heads: PerPool<LaneHead>,
    /// Lane by lane.
    handler_counters: PerPool<HandlerCounters>,
}

impl Counters {
    /// Makes counters of zero for so many places and processes at a time in each pool, and about so many handlers;
    /// further handlers share an entry. [supervisor, before fork]
    pub fn create(
        memory: &'static Memory,
        places: usize,
        lanes: usize,
        handlers: usize,
    ) -> io::Result<&'static Self> {
        // More would cost address space, of which a worker may have little.
        let count = handlers.saturating_mul(2).max(64) + 2;
        let handler_counters = lanes.checked_mul(count).ok_or(io::ErrorKind::InvalidInput)?;
        let entries: &[HandlerEntry] = memory.table(Owner::Supervisor, count)?;
        for (entry, name) in [(NONE, "none"), (OTHER, "other")] {
            entries[entry].set(name);
        }
        Ok(Box::leak(Box::new(Self {
            entries,
            places: memory.per_pool(Audience::Metrics, places)?,
            heads: memory.per_pool(Audience::Metrics, lanes)?,
            handler_counters: memory.per_pool(Audience::Metrics, handler_counters)?,
        })))
    }

    /// Sees to it that there is an entry for the handler of this resource; says which. [supervisor, before fork]
    pub fn enter(&self, resource: &str) -> usize {
        let is_free = |entry: &HandlerEntry| entry.size.load(Ordering::Acquire) == 0;
        let known = self.entries.iter().position(|entry| entry.is(resource) || is_free(entry));
        match known.filter(|_| (1..=NAME).contains(&resource.len())) {
            Some(index) => {
                self.entries[index].set(resource);
                index
            }
            None => OTHER,
        }
    }

    /// Enters all handlers that are served. [supervisor, before a worker that serves them is forked]
    pub fn enter_all(&self, routes: &Routes) {
        for (_, route) in routes.in_service() {
            self.enter(&route.resource);
        }
    }

    /// The number of the entry of this resource's handler.
    pub fn entry_of(&self, resource: &str) -> usize {
        self.entries.iter().position(|entry| entry.is(resource)).unwrap_or(OTHER)
    }

    /// All entries, by number: [`NONE`], [`OTHER`], then the handlers.
    pub fn entries(&self) -> impl Iterator<Item = &HandlerEntry> {
        self.entries.iter().take_while(|entry| entry.size.load(Ordering::Acquire) != 0)
    }

    pub fn entry(&self, number: usize) -> Option<&HandlerEntry> {
        self.entries.get(number)
    }

    /// What is counted of the worker of a place, from now on if it is a new one. [supervisor, before fork]
    pub fn enter_place(&self, place: Place) -> io::Result<&'static PlaceCounters> {
        let counters = self.place(place).ok_or(io::ErrorKind::OutOfMemory)?;
        counters.is_used.store(1, Ordering::Release);
        Ok(counters)
    }

    /// What is counted of the worker of a place, if this process can see it.
    pub fn place(&self, place: Place) -> Option<&'static PlaceCounters> {
        self.places.get(usize::from(place.pool))?.get(usize::from(place.number))
    }

    /// All places that there were, as far as this process can see them.
    pub fn places(&self) -> impl Iterator<Item = (Place, &'static PlaceCounters)> {
        let in_pool = |(pool, places): (usize, &'static [PlaceCounters])| {
            let used = places
                .iter()
                .enumerate()
                .filter(|(_, counters)| counters.is_used.load(Ordering::Acquire) != 0);
            used.map(move |(number, counters)| (Place { pool: pool as u16, number: number as u16 }, counters))
        };
        self.places.iter().flat_map(in_pool)
    }

    /// Takes a lane of its pool for this process, which serves in that slot. If none is free what it counts is lost.
    /// [worker]
    pub fn claim(&self, pool: usize, slot: usize, pid: i32) -> Lane {
        let claim = |head: &LaneHead| {
            head.owner.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let Some((head, handler_counters)) = self.lanes_of(pool).find(|(head, _)| claim(head)) else {
            log::error!("no counter row is free: this process is not counted in the metrics");
            let handler_counters =
                self.entries.iter().map(|_| HandlerCounters::default()).collect::<Vec<_>>().leak();
            return Lane { head: Box::leak(Box::default()), handler_counters };
        };
        self.clear_present(head, handler_counters);
        head.before.store(&self.traffic(handler_counters));
        head.slot.store(slot as u32 + 1, Ordering::Release);
        Lane { head, handler_counters }
    }

    /// A process counts no more: there is nothing any more of what it had. [supervisor]
    pub fn forget(&self, pid: i32) {
        for (head, handler_counters) in
            self.lanes().filter(|(head, _)| head.owner.load(Ordering::Acquire) == pid)
        {
            self.clear_present(head, handler_counters);
        }
    }

    /// What is counted of the present, not of all time.
    fn clear_present(&self, head: &LaneHead, handler_counters: &[HandlerCounters]) {
        handler_counters.iter().zip(self.entries()).for_each(|(counters, _)| counters.open.clear());
        head.present.counts().into_iter().for_each(Count::clear);
    }

    /// A process has ended: there is nothing any more of what it had, and its lane is free. How many messages that it
    /// had published have ended with it, at most. [supervisor]
    pub fn release(&self, pid: i32) -> u64 {
        self.forget(pid);
        let mut lost = 0;
        for (head, _) in self.lanes().filter(|(head, _)| head.owner.load(Ordering::Acquire) == pid) {
            lost += head.unpublished.get();
            head.unpublished.clear();
            head.owner.store(0, Ordering::Release);
        }
        lost
    }

    /// Resets what is corrupt: lanes of a pool whose owner is not one of its processes, and places whose flag is no
    /// flag. [supervisor]
    pub fn mend(&self, pool: usize, is_there: impl Fn(i32) -> bool) {
        for (head, handler_counters) in self.lanes_of(pool) {
            let owner = head.owner.load(Ordering::Acquire);
            if owner != 0 && !is_there(owner) {
                handler_counters.iter().for_each(HandlerCounters::clear);
                self.clear_present(head, handler_counters);
                head.unpublished.clear();
                head.slot.store(0, Ordering::Relaxed);
                head.owner.store(0, Ordering::Release);
            }
        }
        let places = self.places.get(pool).unwrap_or_default().iter();
        places.filter(|place| place.is_used.load(Ordering::Acquire) > 1).for_each(PlaceCounters::clear);
    }

    /// What all processes have counted for the handler of this entry. [any process]
    pub fn total(&self, entry: usize) -> HandlerCounters {
        let total = HandlerCounters::default();
        let handler_counters =
            self.used_lanes().filter_map(|(_, handler_counters)| handler_counters.get(entry));
        handler_counters.for_each(|counters| total.add_all(counters));
        total
    }

    /// Open connections to the handler of this entry, in all processes. [any process]
    pub fn open_of(&self, entry: usize) -> u64 {
        let open = self.used_lanes().filter_map(|(_, handlers)| handlers.get(entry));
        open.map(|counters| counters.open.get()).fold(0, u64::wrapping_add)
    }

    /// What a process has received and sent for all handlers since it began; None if it has no lane. [any process]
    pub fn traffic_of(&self, pid: i32) -> Option<Traffic> {
        let (head, handler_counters) =
            self.used_lanes().find(|(head, _)| head.owner.load(Ordering::Acquire) == pid && pid != 0)?;
        Some(self.traffic(handler_counters).each(head.before.load(), u64::saturating_sub))
    }

    /// What the processes of some slots have together, those that leave a slot included. [any process]
    pub fn present(&self, is_wanted: impl Fn(usize) -> bool) -> Present {
        let all = Present::default();
        for (head, _) in self.used_lanes() {
            if head.slot.load(Ordering::Acquire).checked_sub(1).is_some_and(|slot| is_wanted(slot as usize)) {
                all.counts().into_iter().zip(head.present.counts()).for_each(|(all, one)| all.add(one.get()));
            }
        }
        all
    }

    fn traffic(&self, handler_counters: &[HandlerCounters]) -> Traffic {
        let all = handler_counters.iter().zip(self.entries()).map(|(counters, _)| counters.traffic());
        all.fold(Traffic::default(), |sum, one| sum.each(one, u64::wrapping_add))
    }

    /// As far as this process can see them.
    fn lanes(&self) -> impl Iterator<Item = (&'static LaneHead, &'static [HandlerCounters])> {
        self.heads.iter().flat_map(|(pool, _)| self.lanes_of(pool))
    }

    fn lanes_of(&self, pool: usize) -> impl Iterator<Item = (&'static LaneHead, &'static [HandlerCounters])> {
        let (heads, counters) = (self.heads.get(pool), self.handler_counters.get(pool));
        heads.unwrap_or_default().iter().zip(counters.unwrap_or_default().chunks_exact(self.entries.len()))
    }

    /// Without those that nobody has ever had: reading them would take memory.
    fn used_lanes(&self) -> impl Iterator<Item = (&'static LaneHead, &'static [HandlerCounters])> {
        self.lanes().filter(|(head, _)| head.slot.load(Ordering::Acquire) != 0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// With one pool.
    fn counters(places: usize, lanes: usize) -> &'static Counters {
        let memory = Memory::create();
        let counters = Counters::create(memory, places, lanes, 1).unwrap();
        memory.open(0, &Audience::ALL).unwrap();
        counters.enter_place(Place::default()).unwrap();
        counters
    }

    fn queued(counters: &Counters, slot: usize) -> u64 {
        counters.present(|wanted| wanted == slot).queued.get()
    }

    #[test]
    fn a_lane_goes_on_with_the_next_process_but_not_what_there_was() {
        let counters = counters(2, 8);
        let entry = counters.enter("/a");
        let first = counters.claim(0, 1, 100);
        first.counters(entry).messages_in.add(3);
        first.counters(entry).open.add(2);
        first.count_queued(0, 50);
        assert_eq!((queued(counters, 0), queued(counters, 1)), (0, 50));
        counters.release(100);
        let next = counters.claim(0, 1, 101);
        next.counters(entry).messages_in.add(4);
        assert_eq!(counters.total(entry).messages_in.get(), 7);
        assert_eq!(counters.total(entry).open.get() + queued(counters, 1), 0);
        assert_eq!(counters.traffic_of(101).map(|traffic| traffic.messages_in), Some(4));
        assert_eq!(counters.traffic_of(100), None);
    }

    #[test]
    fn two_processes_of_a_slot_count_in_two_lanes() {
        let counters = counters(1, 8);
        let lanes = [1, 2].map(|pid| counters.claim(0, 0, pid));
        for lane in lanes {
            lane.counters(NONE).count_status(404);
            lane.count_queued(0, 10);
            lane.count_queued(10, 7);
        }
        assert!(!std::ptr::eq(lanes[0].head, lanes[1].head));
        assert_eq!((counters.total(NONE).status(404), queued(counters, 0)), (2, 14));
    }

    #[test]
    fn a_process_without_a_lane_counts_for_nobody() {
        let counters = counters(1, 8);
        let lanes = counters.lanes().count() as i32;
        let all: Vec<Lane> = (1..=lanes + 1).map(|pid| counters.claim(0, 0, pid)).collect();
        all.iter().for_each(|lane| lane.counters(OTHER).messages_out.add(1));
        assert_eq!(counters.total(OTHER).messages_out.get(), lanes as u64);
    }

    #[test]
    fn handlers_keep_their_entries_and_the_last_ones_share_one() {
        let counters = counters(1, 8);
        assert_eq!((counters.enter("/b"), counters.enter("/a"), counters.enter("/b")), (2, 3, 2));
        assert_eq!(
            counters.entries().map(HandlerEntry::name).collect::<Vec<_>>(),
            ["none", "other", "/b", "/a"]
        );
        assert_eq!((counters.entry_of("/a"), counters.entry_of("/c")), (3, OTHER));
        assert_eq!(counters.enter(&format!("/{}", "x".repeat(NAME))), OTHER);
        let entries: Vec<usize> = (0..100).map(|number| counters.enter(&format!("/{number}"))).collect();
        assert_eq!((entries[0], entries[61], entries[62], entries[99]), (4, 65, OTHER, OTHER));
        assert_eq!(counters.entries().count(), 66);
    }

    #[test]
    fn a_place_keeps_its_counters_and_what_has_no_room_is_not_counted() {
        let memory = Memory::create();
        let counters = Counters::create(memory, 2, 1, 0).unwrap();
        let places = [(0, 0), (7, 1), (7, 2)].map(|(pool, number)| Place { pool, number });
        assert!(counters.enter_place(places[0]).is_err() && counters.place(places[0]).is_none());
        [0, 7].into_iter().for_each(|pool| memory.open(pool, &Audience::ALL).unwrap());
        for _ in 0..2 {
            counters.enter_place(places[0]).unwrap().starts.add(1);
            counters.enter_place(places[1]).unwrap();
            assert!(counters.enter_place(places[2]).is_err());
        }
        let found: Vec<_> =
            counters.places().map(|(place, counters)| (place, counters.starts.get())).collect();
        assert_eq!(found, [(places[0], 2), (places[1], 0)]);
    }

    #[test]
    fn what_was_overwritten_is_made_anew() {
        let counters = counters(1, 2);
        let lanes = [1, 2].map(|pid| counters.claim(0, 0, pid));
        let entry = counters.enter("/a");
        for lane in lanes {
            lane.counters(entry).open.add(5);
            lane.counters(entry).messages_in.add(7);
            lane.count_queued(0, 9);
        }
        let place = counters.enter_place(Place::default()).unwrap();
        place.starts.add(3);
        counters.mend(0, |_| true);
        assert_eq!((counters.open_of(entry), place.starts.get(), queued(counters, 0)), (10, 3, 18));
        lanes[0].head.owner.store(i32::MAX, Ordering::Relaxed);
        place.is_used.store(u32::MAX, Ordering::Relaxed);
        counters.mend(0, |pid| pid == 2);
        let total = counters.total(entry);
        assert_eq!((total.open.get(), total.messages_in.get(), queued(counters, 0)), (5, 7, 9));
        assert_eq!((place.starts.get(), counters.places().count()), (0, 0));
        assert!(std::ptr::eq(counters.claim(0, 0, 3).head, lanes[0].head));
    }
}
