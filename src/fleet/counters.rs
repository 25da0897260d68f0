//! The counters: shared memory, made before the first fork, in which the fleet counts what it does. They only grow
//! while the fleet lives, but for the few that say how much there is right now. Atomics only, as in the scoreboard.
//!
//! A process that serves counts in a lane of its own, so that adding takes no locked instruction; when it has ended
//! the next one goes on in the lane, and a reader adds the lanes up. Handlers are known by their resource,
//! workers by their place: their counters stay when they come and go. Memory is used only for lanes and handlers that
//! there are.

#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use super::handler_counters::{Count, HandlerCounters, Times};
use super::routes::Routes;
use super::scoreboard::Place;

/// Ways in which processes die.
pub const DEATHS: [&str; 5] = ["crash", "exit", "hang", "killed", "ended"];

/// What became of the processes that were the worker of one place, as its slots come and go. Any process.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct PlaceCounters {
    /// Pool and number, and a bit above them; 0: of no place.
    key: AtomicU64,
    /// Processes that were started.
    pub starts: Count,
    /// Connections accepted.
    pub accepted: Count,
    /// Connections that came from other processes.
    pub moved_in: Count,
    /// Connections that went to other processes.
    pub moved_out: Count,
    /// Processes that handed their connections over to another one because they were told to.
    pub replaced: Count,
    /// Messages that were on their way to the bus when it died, or the worker crashed. Any thread.
    pub topics_lost: Count,
    /// Lines of the log that nobody took.
    pub log_lost: Count,
    /// Processes that died, by [`DEATHS`].
    pub deaths: [Count; DEATHS.len()],
    /// How long the turns of the event loop took.
    pub turns: Times,
}

impl PlaceCounters {
    /// The worker's place.
    pub fn place(&self) -> Place {
        let key = self.key.load(Ordering::Acquire);
        Place { pool: (key >> 16) as u16, number: key as u16 }
    }
}

fn key(place: Place) -> u64 {
    1 << 32 | u64::from(place.pool) << 16 | u64::from(place.number)
}

/// What of a handler belongs to no process. Written by the supervisor.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Entry {
    /// Bytes of the name; 0: nobody has it.
    size: AtomicU32,
    name: [AtomicU8; NAME],
    /// Processes that died in it.
    pub crashes: Count,
    /// How often it was quarantined.
    pub quarantines: Count,
}

/// The longest resource that is told from others; bytes.
const NAME: usize = 236;

impl Entry {
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
#[derive(Debug)]
#[repr(C, align(64))]
struct Head {
    /// The process that counts here; 0: none.
    owner: AtomicI32,
    /// Number of the owner's slot plus 1; 0: nobody was ever here.
    slot: AtomicU32,
    /// The traffic when the owner began.
    before: [Count; 4],
    /// Bytes in the send queues of all connections.
    queued: Count,
    /// Bytes that the incomplete messages of all connections take.
    receiving: Count,
    /// Subscriptions of all connections to topics.
    subscriptions: Count,
    /// Threads of blocking handlers.
    threads: Count,
    /// Connections that there may be.
    connections_limit: Count,
    /// Such threads that there may be.
    threads_limit: Count,
}

/// The lane of one process. [worker]
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    head: &'static Head,
    handler_counters: &'static [HandlerCounters],
}

impl Lane {
    /// What is counted for the handler of this entry.
    pub fn counters(&self, entry: usize) -> &'static HandlerCounters {
        &self.handler_counters[if entry < self.handler_counters.len() { entry } else { OTHER }]
    }

    /// A send queue had so many bytes before, and has so many now; returns how many all have. [event loop]
    pub fn count_queued(&self, before: u64, after: u64) -> u64 {
        self.head.queued.add(after.wrapping_sub(before));
        self.head.queued.get()
    }

    /// Bytes in the send queues of all connections.
    pub fn queued(&self) -> u64 {
        self.head.queued.get()
    }

    /// Incomplete messages take so many bytes. [event loop]
    pub fn set_receiving(&self, bytes: u64) {
        self.head.receiving.set(bytes);
    }

    /// How many connections there may be, and threads of blocking handlers.
    pub fn set_limits(&self, connections: u32, threads: u32) {
        self.head.connections_limit.set(connections.into());
        self.head.threads_limit.set(threads.into());
    }

    /// Blocking handlers have so many threads. [event loop]
    pub fn set_threads(&self, count: u32) {
        self.head.threads.set(count.into());
    }

    /// Connections have so many subscriptions to topics. [event loop]
    pub fn set_subscriptions(&self, count: u64) {
        self.head.subscriptions.set(count);
    }
}

/// Messages and payload bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages received.
    pub messages_in: u64,
    /// Payload bytes received.
    pub bytes_in: u64,
    /// Messages sent.
    pub messages_out: u64,
    /// Payload bytes sent.
    pub bytes_out: u64,
}

/// All counters. They live until the last process ends.
#[derive(Debug)]
pub struct Counters {
    places: &'static [PlaceCounters],
    entries: &'static [Entry],
    heads: &'static [Head],
    /// Lane by lane.
    handler_counters: &'static [HandlerCounters],
}

impl Counters {
    /// Makes counters of zero for so many places, processes at a time, and about so many handlers; further handlers
    /// share an entry. [supervisor, before fork]
    pub fn create(places: usize, lanes: usize, handlers: usize) -> io::Result<&'static Self> {
        // More would cost address space, of which a worker may have little.
        let entries = handlers.saturating_mul(2).max(64) + 2;
        let handler_counters = lanes.checked_mul(entries).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: all of these consist of atomic integers, for which zero is a value.
        let counters = unsafe {
            Self {
                places: map(places)?,
                entries: map(entries)?,
                heads: map(lanes)?,
                handler_counters: map(handler_counters)?,
            }
        };
        for (entry, name) in [(NONE, "none"), (OTHER, "other")] {
            counters.entries[entry].set(name);
        }
        Ok(Box::leak(Box::new(counters)))
    }

    /// Sees to it that there is an entry for the handler of this resource; says which. [supervisor, before fork]
    pub fn enter(&self, resource: &str) -> usize {
        let is_free = |entry: &Entry| entry.size.load(Ordering::Acquire) == 0;
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
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().take_while(|entry| entry.size.load(Ordering::Acquire) != 0)
    }

    /// The entry of this number.
    pub fn entry(&self, number: usize) -> Option<&Entry> {
        self.entries.get(number)
    }

    /// What is counted of the worker of a place, from now on if it is a new one; None when there is no room.
    /// [supervisor, before fork]
    pub fn enter_place(&self, place: Place) -> Option<&'static PlaceCounters> {
        self.place(place).or_else(|| {
            let free = self.places.get(self.places().count())?;
            free.key.store(key(place), Ordering::Release);
            Some(free)
        })
    }

    /// What is counted of the worker of a place, if anything is.
    pub fn place(&self, place: Place) -> Option<&'static PlaceCounters> {
        self.places().find(|counters| counters.key.load(Ordering::Relaxed) == key(place))
    }

    /// All places that there were.
    pub fn places(&self) -> impl Iterator<Item = &'static PlaceCounters> {
        self.places.iter().take_while(|counters| counters.key.load(Ordering::Acquire) != 0)
    }

    /// Takes a lane for this process, which serves in that slot. If none is free what it counts is lost. [worker]
    pub fn claim(&self, slot: usize, pid: i32) -> io::Result<Lane> {
        let claim =
            |head: &&Head| head.owner.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let Some(index) = self.heads.iter().position(|head| claim(&head)) else {
            log::error!("no room for the counters of this process: it is not counted what it does");
            // SAFETY: as in create().
            return unsafe { Ok(Lane { head: &map(1)?[0], handler_counters: map(self.entries.len())? }) };
        };
        let (head, handler_counters) = self.lanes().nth(index).ok_or(io::ErrorKind::NotFound)?;
        let now = self.traffic(handler_counters);
        let now = [now.messages_in, now.bytes_in, now.messages_out, now.bytes_out];
        for (before, now) in head.before.iter().zip(now) {
            before.clear();
            before.add(now);
        }
        head.slot.store(slot as u32 + 1, Ordering::Release);
        Ok(Lane { head, handler_counters })
    }

    /// A process counts no more: there is nothing any more of what it had. [supervisor]
    pub fn forget(&self, pid: i32) {
        for (head, handler_counters) in
            self.lanes().filter(|(head, _)| head.owner.load(Ordering::Acquire) == pid)
        {
            handler_counters.iter().zip(self.entries()).for_each(|(counters, _)| counters.open.clear());
            head.queued.clear();
            head.receiving.clear();
            head.subscriptions.clear();
            [&head.threads, &head.connections_limit, &head.threads_limit].into_iter().for_each(Count::clear);
        }
    }

    /// A process has ended: there is nothing any more of what it had, and its lane is free. [supervisor]
    pub fn release(&self, pid: i32) {
        self.forget(pid);
        for head in self.heads {
            let _ = head.owner.compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
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
        let now = self.traffic(handler_counters);
        let [messages_in, bytes_in, messages_out, bytes_out] = head.before.each_ref().map(Count::get);
        Some(Traffic {
            messages_in: now.messages_in.saturating_sub(messages_in),
            bytes_in: now.bytes_in.saturating_sub(bytes_in),
            messages_out: now.messages_out.saturating_sub(messages_out),
            bytes_out: now.bytes_out.saturating_sub(bytes_out),
        })
    }

    /// Bytes in the send queues of all connections of a slot, those of a process that leaves it included.
    /// [any process]
    pub fn queued(&self, slot: usize) -> u64 {
        self.sum_of(slot, |head| &head.queued)
    }

    /// Bytes that incomplete messages take in the same way. [any process]
    pub fn receiving(&self, slot: usize) -> u64 {
        self.sum_of(slot, |head| &head.receiving)
    }

    /// Threads of blocking handlers in the same way. [any process]
    pub fn threads(&self, slot: usize) -> u64 {
        self.sum_of(slot, |head| &head.threads)
    }

    /// How many connections and threads a slot may have, in the same way. [any process]
    pub fn limits(&self, slot: usize) -> (u64, u64) {
        (self.sum_of(slot, |head| &head.connections_limit), self.sum_of(slot, |head| &head.threads_limit))
    }

    /// Subscriptions to topics in the same way. [any process]
    pub fn subscriptions(&self, slot: usize) -> u64 {
        self.sum_of(slot, |head| &head.subscriptions)
    }

    fn sum_of(&self, slot: usize, count: impl Fn(&Head) -> &Count) -> u64 {
        let in_slot = |head: &&Head| head.slot.load(Ordering::Acquire) as usize == slot + 1;
        self.heads.iter().filter(in_slot).map(|head| count(head).get()).fold(0, u64::wrapping_add)
    }

    fn traffic(&self, handler_counters: &[HandlerCounters]) -> Traffic {
        handler_counters.iter().zip(self.entries()).fold(Traffic::default(), |sum, (counters, _)| Traffic {
            messages_in: sum.messages_in.wrapping_add(counters.messages_in.get()),
            bytes_in: sum.bytes_in.wrapping_add(counters.bytes_in.get()),
            messages_out: sum.messages_out.wrapping_add(counters.messages_out.get()),
            bytes_out: sum.bytes_out.wrapping_add(counters.bytes_out.get()),
        })
    }

    fn lanes(&self) -> impl Iterator<Item = (&'static Head, &'static [HandlerCounters])> {
        self.heads.iter().zip(self.handler_counters.chunks_exact(self.entries.len()))
    }

    /// Without those that nobody has ever had: reading them would take memory.
    fn used_lanes(&self) -> impl Iterator<Item = (&'static Head, &'static [HandlerCounters])> {
        self.lanes().filter(|(head, _)| head.slot.load(Ordering::Acquire) != 0)
    }
}

/// A new mapping, shared with the processes that are forked later, of so many zeroed values.
///
/// # Safety
/// All zero must be a value of `T`.
unsafe fn map<T: Sync>(count: usize) -> io::Result<&'static [T]> {
    let Some(size) = count.checked_mul(size_of::<T>()).and_then(NonZeroUsize::new) else { return Ok(&[]) };
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces no other memory.
    let base = unsafe { mmap_anonymous(None, size, protection, flags)? };
    // SAFETY: page-aligned, of this size, never unmapped, and zero is a value, as promised.
    Ok(unsafe { std::slice::from_raw_parts(base.cast::<T>().as_ptr(), count) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_goes_on_with_the_next_process_but_not_what_there_was() {
        let counters = Counters::create(2, 8, 1).unwrap();
        let entry = counters.enter("/a");
        let first = counters.claim(1, 100).unwrap();
        first.counters(entry).messages_in.add(3);
        first.counters(entry).open.add(2);
        first.count_queued(0, 50);
        assert_eq!((counters.queued(0), counters.queued(1)), (0, 50));
        counters.release(100);
        let next = counters.claim(1, 101).unwrap();
        next.counters(entry).messages_in.add(4);
        assert_eq!(counters.total(entry).messages_in.get(), 7);
        assert_eq!(counters.total(entry).open.get() + counters.queued(1), 0);
        assert_eq!(counters.traffic_of(101).map(|traffic| traffic.messages_in), Some(4));
        assert_eq!(counters.traffic_of(100), None);
    }

    #[test]
    fn two_processes_of_a_slot_count_in_two_lanes() {
        let counters = Counters::create(1, 8, 0).unwrap();
        let lanes = [1, 2].map(|pid| counters.claim(0, pid).unwrap());
        for lane in lanes {
            lane.counters(NONE).count_status(404);
            lane.count_queued(0, 10);
            lane.count_queued(10, 7);
        }
        assert!(!std::ptr::eq(lanes[0].head, lanes[1].head));
        assert_eq!((counters.total(NONE).status(404), counters.queued(0)), (2, 14));
    }

    #[test]
    fn a_process_without_a_lane_counts_for_nobody() {
        let counters = Counters::create(1, 8, 0).unwrap();
        let lanes = counters.heads.len() as i32;
        let all: Vec<Lane> = (1..=lanes + 1).map(|pid| counters.claim(0, pid).unwrap()).collect();
        all.iter().for_each(|lane| lane.counters(OTHER).messages_out.add(1));
        assert_eq!(counters.total(OTHER).messages_out.get(), lanes as u64);
    }

    #[test]
    fn handlers_keep_their_entries_and_the_last_ones_share_one() {
        let counters = Counters::create(1, 8, 1).unwrap();
        assert_eq!((counters.enter("/b"), counters.enter("/a"), counters.enter("/b")), (2, 3, 2));
        assert_eq!(counters.entries().map(Entry::name).collect::<Vec<_>>(), ["none", "other", "/b", "/a"]);
        assert_eq!((counters.entry_of("/a"), counters.entry_of("/c")), (3, OTHER));
        assert_eq!(counters.enter(&format!("/{}", "x".repeat(NAME))), OTHER);
        let entries: Vec<usize> = (0..100).map(|number| counters.enter(&format!("/{number}"))).collect();
        assert_eq!((entries[0], entries[61], entries[62], entries[99]), (4, 65, OTHER, OTHER));
        assert_eq!(counters.entries().count(), 66);
    }

    #[test]
    fn a_place_keeps_its_counters_and_what_has_no_room_is_not_counted() {
        let counters = Counters::create(2, 1, 0).unwrap();
        let places = [(0, 0), (7, 513), (7, 514)].map(|(pool, number)| Place { pool, number });
        assert!(counters.place(places[0]).is_none());
        for _ in 0..2 {
            counters.enter_place(places[0]).unwrap().starts.add(1);
            counters.enter_place(places[1]).unwrap();
            assert!(counters.enter_place(places[2]).is_none());
        }
        let found: Vec<_> = counters.places().map(|place| (place.place(), place.starts.get())).collect();
        assert_eq!(found, [(places[0], 2), (places[1], 0)]);
    }
}
