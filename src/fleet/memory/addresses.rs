//! How many connections there are, and from where: shared memory with a row for each process. Atomics only.
//!
//! A process counts in its own row, which lies in the memory of its pool, and adds up the rows that it can see: the
//! default pool, which lets connections in, sees all. So a process may be killed at any instruction: nobody waits for
//! it, and what it has counted is gone with its row, which the supervisor clears. A connection is counted by the
//! process that holds it. One that moves within its pool stays counted where it was until it arrives: it carries a
//! [`Mark`], by which the process that takes it up takes it out of the other's row and counts it in its own. On the way
//! to another pool it is not counted. What is lost on the way is counted until the process that has sent it ends; what
//! a crashed process had is not counted from the crash until it arrives.
//!
//! A row has room for a number of addresses, eight in a line; an address can lie in one line only. Where that is full
//! the address is not counted, and so not limited: a full table refuses nobody. Lines are chosen by a hash with
//! a secret key, so that nobody can fill another's on purpose.
#![allow(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use strum::VariantArray;

use super::layout::{Audience, Memory, PerPool};
use super::region::Shareable;
use crate::fleet::refusal::Refusal;

/// Addresses whose connections a process can count: 8 in each line.
const HELD: usize = 4096;
/// Addresses whose new connections of the present second a process can count: 8 in each line.
const OPENED: usize = 1024;
/// Addresses whose failed logins of the present minute a process can count: 8 in each line.
const FAILED: usize = 256;
/// How often a cell is tried again that another thread of this process has changed.
const TRIES: usize = 64;

/// The words that the processes of a pool share. They only grow.
#[repr(C, align(128))]
struct PoolWords {
    refusals: [AtomicU64; Refusal::VARIANTS.len()],
    uncounted: AtomicU64,
}

// SAFETY: atomic integers.
unsafe impl Shareable for PoolWords {}

/// What one process counts.
#[repr(C, align(128))]
struct Row {
    /// 0: nobody's.
    pid: AtomicI32,
    connections: AtomicU32,
    /// How often it was released.
    generation: AtomicU32,
    /// Whether anything is in its lines: while there is not, nobody touches their pages.
    is_used: AtomicU32,
    held: [Line; HELD],
    opened: [Line; OPENED],
    failed: [Line; FAILED],
}

// SAFETY: atomic integers.
unsafe impl Shareable for Row {}

/// A cache line. A cell is 0, or has in its upper half the tag of an address. In the lower half of one of `held` is the
/// number of connections, in one of `opened` the second and, in the last 16 bits, the number of new connections in it;
/// in one of `failed` the minute and the number of failed logins.
#[repr(C, align(64))]
struct Line([AtomicU64; 8]);

/// What limits see of an address: the version, and of IPv4 all of it, of IPv6 the /64 that one client usually has (RFC
/// 6177).
pub type Network = (u8, u64);

pub fn network_of(ip: IpAddr) -> Network {
    match ip.to_canonical() {
        IpAddr::V4(ip) => (4, ip.to_bits().into()),
        IpAddr::V6(ip) => (6, (ip.to_bits() >> 64) as u64),
    }
}

/// An address as limits see it: where it is counted, and as what.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    hash: u64,
}

impl Key {
    /// Never 0.
    fn tag(self) -> u64 {
        self.hash >> 32 | 1
    }

    fn line_of<const N: usize>(self) -> usize {
        self.hash as u32 as usize % N
    }

    fn line<const N: usize>(self, lines: &[Line; N]) -> Option<&Line> {
        lines.get(self.line_of::<N>())
    }
}

/// Where a connection is counted, in numbers; 0: nowhere. From the upper bits to the lower, 16 each: a number of the
/// table's own, which is not 0; the row's generation; the row; the cell of `held` plus 1, or 0 without an address.
pub type Mark = u64;

/// The table. Lives until the last process that has it mapped ends.
pub struct Addresses {
    headers: PerPool<PoolWords>,
    rows: PerPool<Row>,
    secret: RandomState,
}

impl Addresses {
    /// Makes a table for so many processes of a pool at a time. Each has room of its own, which counts for the limits
    /// of memory of its pool. [supervisor, before fork]
    pub fn create(memory: &'static Memory, rows: usize) -> io::Result<&'static Self> {
        Ok(Box::leak(Box::new(Self {
            headers: memory.per_pool(Audience::DefaultPool, 1)?,
            rows: memory.per_pool(Audience::DefaultPool, rows)?,
            secret: RandomState::new(),
        })))
    }

    /// Takes a row of its pool for this process. Without a free one it counts nothing. [worker, once]
    pub fn join(&'static self, pid: i32, pool: usize) -> Limiter {
        let claim =
            |row: &&Row| row.pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let header = self.headers.get(pool).and_then(<[_]>::first);
        let mut rows = self.rows.get(pool).unwrap_or_default().iter().enumerate();
        let Some((index, row)) = rows.find(|(_, row)| claim(row)) else {
            return Limiter { table: self, pool, header, row: None, mark: 0 };
        };
        let generation = row.generation.load(Ordering::Relaxed) as u16;
        let parts = [self.number_of(pool), generation, index as u16, 0];
        let mark = parts.iter().fold(0, |mark, part| mark << 16 | u64::from(*part));
        Limiter { table: self, pool, header, row: Some(row), mark }
    }

    /// Marks of the rows of a pool begin with it: connections may come from another pool, or from a server that has
    /// another table. Never 0.
    fn number_of(&self, pool: usize) -> u16 {
        self.secret.hash_one(("pool", pool)) as u16 | 1
    }

    /// What a process has counted is no more: it has ended, or hands over all it has without counting back.
    /// [supervisor]
    pub fn clear(&self, pid: i32) {
        self.all().filter(|row| row.pid.load(Ordering::Acquire) == pid).for_each(Row::clear);
    }

    /// The process has ended: its row can be another's. [supervisor]
    pub fn release(&self, pid: i32) {
        self.all().filter(|row| row.pid.load(Ordering::Acquire) == pid).for_each(Row::release);
    }

    /// Resets what is corrupt: rows of a pool whose process does not exist. [supervisor]
    pub fn mend(&self, pool: usize, is_there: impl Fn(i32) -> bool) {
        let is_lost =
            |row: &&Row| Some(row.pid.load(Ordering::Acquire)).is_some_and(|pid| pid != 0 && !is_there(pid));
        self.rows.get(pool).unwrap_or_default().iter().filter(is_lost).for_each(Row::release);
    }

    fn all(&self) -> impl Iterator<Item = &'static Row> {
        self.rows.iter().flat_map(|(_, rows)| rows)
    }

    /// A connection of this address is over, or has arrived elsewhere in its pool, which is this: where it was counted
    /// it is no more. A mark of another pool changes nothing. [worker]
    pub fn settle(&self, pool: usize, mark: Mark, ip: Option<IpAddr>) {
        let [number, generation, row, cell] = [48, 32, 16, 0].map(|shift| (mark >> shift) as u16);
        let rows = self.rows.get(pool).filter(|_| number == self.number_of(pool));
        let row = rows.and_then(|rows| rows.get(usize::from(row)));
        let is_same = |row: &&Row| row.generation.load(Ordering::Acquire) as u16 == generation;
        // Whatever the other process does or has become: never below nothing, and never another's count.
        let Some(row) = row.filter(is_same) else { return };
        row.count_less();
        let cell = usize::from(cell).checked_sub(1).and_then(|cell| row.held.get(cell / 8)?.0.get(cell % 8));
        if let (Some(cell), Some(tag)) = (cell, ip.map(|ip| self.key(ip).tag())) {
            let less = |value: u64| (value >> 32 == tag && value as u32 != 0).then(|| value - 1);
            let _ = cell.fetch_update(Ordering::SeqCst, Ordering::Relaxed, less);
        }
    }

    pub fn key(&self, ip: IpAddr) -> Key {
        Key { hash: self.secret.hash_one(network_of(ip)) }
    }

    pub fn total(&self) -> u64 {
        self.all().map(|row| u64::from(row.connections.load(Ordering::Relaxed))).sum()
    }

    pub fn in_pool(&self, pool: usize) -> u64 {
        let rows = self.rows.get(pool).unwrap_or_default().iter();
        rows.map(|row| u64::from(row.connections.load(Ordering::Relaxed))).sum()
    }

    /// The connections of an address.
    pub fn of(&self, key: Key) -> u64 {
        let lines = self.taken().filter_map(|row| key.line(&row.held));
        let cells = lines.flat_map(|line| &line.0).map(|cell| cell.load(Ordering::Relaxed));
        cells.filter(|cell| cell >> 32 == key.tag()).map(|cell| cell & u64::from(u32::MAX)).sum()
    }

    /// The new connections of an address in this second.
    pub fn opened(&self, key: Key, second: u64) -> u64 {
        let lines = self.taken().filter_map(|row| key.line(&row.opened));
        count_in(lines, key, second)
    }

    /// The failed logins of an address in this minute.
    pub fn failed(&self, key: Key, minute: u64) -> u64 {
        let lines = self.taken().filter_map(|row| key.line(&row.failed));
        count_in(lines, key, minute)
    }

    fn taken(&self) -> impl Iterator<Item = &'static Row> {
        self.all().filter(|row| row.pid.load(Ordering::Relaxed) != 0)
    }

    /// How many clients were turned away since the start, for each reason.
    pub fn refusals(&self) -> impl Iterator<Item = (Refusal, u64)> {
        let count = |reason: usize| self.sum(|header| header.refusals.get(reason));
        Refusal::VARIANTS.iter().map(move |refusal| (*refusal, count(*refusal as usize)))
    }

    /// Connections since the start that were not counted for their address, because there was no room.
    pub fn uncounted(&self) -> u64 {
        self.sum(|header| Some(&header.uncounted))
    }

    fn sum(&self, count: impl Fn(&PoolWords) -> Option<&AtomicU64>) -> u64 {
        let headers = self.headers.iter().flat_map(|(_, headers)| headers);
        headers.filter_map(|header| Some(count(header)?.load(Ordering::Relaxed))).fold(0, u64::wrapping_add)
    }
}

/// A cell of `opened` or `failed`.
fn in_period(key: Key, period: u64, count: u64) -> u64 {
    key.tag() << 32 | (period & 0xffff) << 16 | count
}

/// What is counted for an address in this period.
fn count_in<'a>(lines: impl Iterator<Item = &'a Line>, key: Key, period: u64) -> u64 {
    let cells = lines.flat_map(|line| &line.0).map(|cell| cell.load(Ordering::Relaxed));
    let now = in_period(key, period, 0) >> 16;
    cells.filter(|cell| cell >> 16 == now).map(|cell| cell & 0xffff).sum()
}

impl Row {
    /// One connection less, unless the row was cleared meanwhile.
    fn count_less(&self) {
        let less = |count: u32| count.checked_sub(1);
        let _ = self.connections.fetch_update(Ordering::SeqCst, Ordering::Relaxed, less);
    }

    /// It can be another's.
    fn release(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.clear();
        self.pid.store(0, Ordering::Release);
    }

    fn clear(&self) {
        self.connections.store(0, Ordering::Relaxed);
        if self.is_used.swap(0, Ordering::AcqRel) == 0 {
            return;
        }
        let cells = self.held.iter().chain(&self.opened).chain(&self.failed).flat_map(|line| &line.0);
        cells.for_each(|cell| cell.store(0, Ordering::Relaxed));
    }
}

/// Where a process counts. All its threads may.
#[derive(Clone, Copy)]
pub struct Limiter {
    table: &'static Addresses,
    pool: usize,
    header: Option<&'static PoolWords>,
    /// None: there was no row left.
    row: Option<&'static Row>,
    /// Of connections without an address.
    mark: Mark,
}

/// A connection that is counted, as long as this lives.
#[derive(Default)]
pub struct Permit {
    row: Option<&'static Row>,
    cell: Option<&'static AtomicU64>,
    mark: Mark,
}

impl Limiter {
    pub fn table(self) -> &'static Addresses {
        self.table
    }

    /// A connection of this address is over, or has arrived here: see [`Addresses::settle`].
    pub fn settle(self, mark: Mark, ip: Option<IpAddr>) {
        self.table.settle(self.pool, mark, ip);
    }

    /// A client was turned away.
    pub fn refused(self, refusal: Refusal) {
        if let Some(count) = self.header.and_then(|header| header.refusals.get(refusal as usize)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether anything is counted here.
    pub fn has_row(self) -> bool {
        self.row.is_some()
    }

    /// Counts a connection of nobody yet.
    pub fn take(self) -> Permit {
        if let Some(row) = self.row {
            row.connections.fetch_add(1, Ordering::SeqCst);
        }
        Permit { row: self.row, cell: None, mark: self.mark }
    }

    /// Counts the connection for an address from now on, and no longer for another. False if there is no room.
    pub fn name(self, permit: &mut Permit, key: Key) -> bool {
        permit.unname();
        self.begin_use();
        let found = self.row.and_then(|row| {
            let is_same = |cell: u64| cell >> 32 == key.tag();
            let is_free = |cell: u64| cell as u32 == 0;
            let change = |cell: u64| if is_same(cell) { cell } else { key.tag() << 32 } + 1;
            let line = key.line_of::<HELD>();
            let (place, cell) = row.held.get(line)?.change(is_same, is_free, change)?;
            Some((line * 8 + place, cell))
        });
        if let Some((place, cell)) = found {
            (permit.cell, permit.mark) = (Some(cell), self.mark | (place as u64 + 1));
        }
        self.note_lack(found.is_some())
    }

    /// Counts a new connection of an address, unless there have been `most` in this second already. True also if there
    /// is no room to count.
    pub fn open(self, key: Key, second: u64, most: u64) -> bool {
        self.begin_use();
        let is_same = |cell: u64| cell >> 16 == in_period(key, second, 0) >> 16;
        let line = self.row.and_then(|row| key.line(&row.opened));
        let Some(cell) = line.and_then(|line| line.count(key, second)) else {
            self.note_lack(false);
            return true;
        };
        let is_within = self.table.opened(key, second) <= most;
        if !is_within {
            // Those that are refused do not count, so that as many as are allowed come in. Another second may have
            // begun meanwhile.
            let back = |cell| (is_same(cell) && cell & 0xffff != 0).then(|| cell - 1);
            let _ = cell.fetch_update(Ordering::SeqCst, Ordering::Relaxed, back);
        }
        is_within
    }

    /// Counts a failed login of an address in this minute, if there is room.
    pub fn fail(self, key: Key, minute: u64) {
        self.begin_use();
        let line = self.row.and_then(|row| key.line(&row.failed));
        self.note_lack(line.and_then(|line| line.count(key, minute)).is_some());
    }

    fn begin_use(self) {
        if let Some(row) = self.row {
            row.is_used.store(1, Ordering::Release);
        }
    }

    fn note_lack(self, has_room: bool) -> bool {
        if !has_room {
            self.header.map(|header| header.uncounted.fetch_add(1, Ordering::Relaxed));
        }
        has_room
    }
}

impl Line {
    /// Counts one more of an address in this period; None without room.
    fn count(&self, key: Key, period: u64) -> Option<&AtomicU64> {
        let now = in_period(key, period, 0);
        let is_same = |cell: u64| cell >> 16 == now >> 16;
        let is_free = |cell: u64| (cell >> 16) & 0xffff != period & 0xffff || cell >> 32 == 0;
        // At the highest count that there is room for it stays.
        let more = |cell: u64| if cell & 0xffff == 0xffff { cell } else { cell + 1 };
        let change = |cell: u64| more(if is_same(cell) { cell } else { now });
        self.change(is_same, is_free, change).map(|(_, cell)| cell)
    }

    /// Changes the cell that is the right one, else one that is free, and says which. None without either, or if other
    /// threads of this process are always faster.
    fn change(
        &self,
        is_same: impl Fn(u64) -> bool,
        is_free: impl Fn(u64) -> bool,
        change: impl Fn(u64) -> u64,
    ) -> Option<(usize, &AtomicU64)> {
        for _ in 0..TRIES {
            let cells = self.0.iter().map(|cell| (cell, cell.load(Ordering::Relaxed))).enumerate();
            let same = cells.clone().find(|(_, (_, value))| is_same(*value));
            let (place, (cell, value)) =
                same.or_else(|| cells.clone().find(|(_, (_, value))| is_free(*value)))?;
            let changed =
                cell.compare_exchange(value, change(value), Ordering::SeqCst, Ordering::Relaxed).is_ok();
            if changed {
                return Some((place, cell));
            }
        }
        None
    }
}

impl Permit {
    /// The connection stays counted, until what is returned is settled: by its process, or by one that takes it up.
    /// See [`Addresses::settle`].
    pub fn keep(mut self) -> Mark {
        (self.row, self.cell) = (None, None);
        self.mark
    }

    fn unname(&mut self) {
        if let Some(cell) = self.cell.take() {
            // The cell stays that of its address while it counts at least one: this.
            let less = |value: u64| (value as u32 != 0).then(|| value - 1);
            let _ = cell.fetch_update(Ordering::SeqCst, Ordering::Relaxed, less);
            self.mark &= !0xffff;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.unname();
        if let Some(row) = self.row {
            row.count_less();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
