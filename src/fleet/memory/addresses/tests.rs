//! Tests of the table: what is counted, over processes that come, go, move things and are killed.
#![allow(unsafe_code)]

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

use super::*;
use crate::fleet::process::alone::is_alone;

/// With two pools, each with so many rows.
fn table(rows: usize) -> &'static Addresses {
    let memory = Memory::create();
    let table = Addresses::create(memory, rows).unwrap();
    [0, 1].into_iter().for_each(|pool| memory.open(pool, &[Audience::DefaultPool]).unwrap());
    table
}

fn key(table: &Addresses, ip: &str) -> Key {
    table.key(ip.parse().unwrap())
}

fn permit(limiter: Limiter, ip: &str) -> Permit {
    let mut permit = limiter.take();
    assert!(limiter.name(&mut permit, key(limiter.table, ip)));
    permit
}

#[test]
fn connections_are_counted_over_all_processes_and_no_longer_than_they_live() {
    let table = table(3);
    let (ours, theirs) = (table.join(1, 0), table.join(2, 1));
    let of = |ip: &str| table.of(key(table, ip));
    let first = permit(ours, "192.0.2.1");
    let second = permit(theirs, "192.0.2.1");
    let other = permit(theirs, "192.0.2.2");
    assert_eq!((of("192.0.2.1"), of("192.0.2.2"), of("192.0.2.3")), (2, 1, 0));
    assert_eq!((table.total(), table.in_pool(0), table.in_pool(1)), (3, 1, 2));
    drop((first, other));
    assert_eq!((of("192.0.2.1"), of("192.0.2.2"), table.total()), (1, 0, 1));
    drop(second);
    assert_eq!((of("192.0.2.1"), table.total(), table.uncounted()), (0, 0, 0));
}

#[test]
fn an_address_is_an_ipv4_address_or_half_an_ipv6_address() {
    let table = table(1);
    let same = |a: &str, b: &str| key(table, a).hash == key(table, b).hash;
    assert!(same("2001:db8:1:2::1", "2001:db8:1:2:ffff::"));
    assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
    assert!(!same("192.0.2.1", "192.0.2.2") && !same("0.0.0.0", "::"));
    assert!(same("192.0.2.1", "::ffff:192.0.2.1"), "as a socket for both families says it");
}

#[test]
fn a_ticket_goes_over_to_another_address() {
    let table = table(1);
    let limiter = table.join(1, 0);
    let mut connection = permit(limiter, "10.0.0.1");
    assert!(limiter.name(&mut connection, key(table, "192.0.2.1")));
    assert_eq!((table.of(key(table, "10.0.0.1")), table.of(key(table, "192.0.2.1"))), (0, 1));
    assert_eq!(table.total(), 1);
}

#[test]
fn a_connection_that_moves_is_counted_all_the_way() {
    let (table, ip) = (table(3), "192.0.2.1");
    let (sender, receiver) = (table.join(1, 0), table.join(2, 0));
    let address: Option<IpAddr> = Some(ip.parse().unwrap());
    let counts = || (table.of(key(table, ip)), table.total());
    let mut stays = vec![permit(sender, ip)];
    let mark = permit(sender, ip).keep();
    assert_eq!(counts(), (2, 2), "on its way");
    table.settle(0, mark, address);
    stays.push(permit(receiver, ip));
    assert_eq!(counts(), (2, 2));
    // From another server, from nowhere, of another address, or from a process that has ended.
    let mark = permit(sender, ip).keep();
    for (mark, ip) in [(mark ^ 1 << 50, address), (0, address), (u64::MAX, address)] {
        table.settle(0, mark, ip);
    }
    assert_eq!(counts(), (3, 3));
    table.settle(0, mark, "192.0.2.2".parse().ok());
    assert_eq!(counts(), (3, 2), "as many connections less, but not of another address");
    table.release(1);
    stays.remove(0).keep();
    let other = table.join(3, 0);
    stays.push(permit(other, ip));
    table.settle(0, mark, address);
    assert_eq!(counts(), (2, 2), "its row is another's");
    drop(stays);
    assert_eq!(counts(), (0, 0));
    let mark = receiver.take().keep();
    table.settle(0, mark, None);
    table.settle(0, mark, None);
    assert_eq!(counts(), (0, 0), "never below nothing");
}

#[test]
fn a_mark_of_another_pool_changes_nothing() {
    let (table, ip) = (table(1), "192.0.2.1");
    let (ours, theirs) = (table.join(1, 0), table.join(2, 1));
    let (mark, _stays) = (permit(ours, ip).keep(), permit(theirs, ip));
    theirs.settle(mark, ip.parse().ok());
    assert_eq!((table.in_pool(0), table.in_pool(1), table.of(key(table, ip))), (1, 1, 2));
    ours.settle(mark, ip.parse().ok());
    assert_eq!((table.in_pool(0), table.in_pool(1), table.of(key(table, ip))), (0, 1, 1));
}

#[test]
fn rows_of_nobody_are_free_again() {
    let table = table(1);
    let _lost = permit(table.join(7, 0), "192.0.2.1");
    table.mend(0, |pid| pid == 7);
    assert!(!table.join(8, 0).has_row());
    table.mend(0, |pid| pid != 7);
    assert_eq!(table.total(), 0);
    assert!(table.join(8, 0).has_row());
}

#[test]
fn so_many_new_connections_in_a_second() {
    let table = table(2);
    let (ours, theirs) = (table.join(1, 0), table.join(2, 0));
    let one = key(table, "192.0.2.1");
    assert!(ours.open(one, 70_000, 3) && theirs.open(one, 70_000, 3) && ours.open(one, 70_000, 3));
    for _ in 0..100 {
        assert!(!theirs.open(one, 70_000, 3) && !ours.open(one, 70_000, 3));
    }
    assert_eq!(table.opened(one, 70_000), 3, "those that were refused do not count");
    assert!(ours.open(key(table, "192.0.2.2"), 70_000, 3), "another address");
    assert!(theirs.open(one, 70_001, 3));
    assert_eq!((table.opened(one, 70_001), table.opened(one, 70_000)), (1, 2), "its cell is used again");
}

#[test]
fn failed_logins_are_counted_over_all_processes_for_a_minute() {
    let table = table(2);
    let (ours, theirs) = (table.join(1, 0), table.join(2, 0));
    let one = key(table, "192.0.2.1");
    assert!(ours.open(one, 7, 9));
    for _ in 0..3 {
        ours.fail(one, 7);
        theirs.fail(one, 7);
    }
    assert_eq!((table.failed(one, 7), table.failed(one, 8), table.opened(one, 7)), (6, 0, 1));
    assert_eq!(table.failed(key(table, "192.0.2.2"), 7), 0);
    theirs.fail(one, 8);
    assert_eq!((table.failed(one, 8), table.failed(one, 7)), (1, 3), "its cell is used again");
    table.release(1);
    assert_eq!(table.failed(one, 7), 0);
}

#[test]
fn a_full_table_refuses_nobody() {
    let table = table(1);
    let limiter = table.join(1, 0);
    let many = 20 * HELD as u32;
    let addresses = (0..many).map(|number| IpAddr::from(number.to_be_bytes()));
    let tickets: Vec<Permit> = addresses
        .map(|ip| {
            let mut permit = limiter.take();
            limiter.name(&mut permit, table.key(ip));
            permit
        })
        .collect();
    assert_eq!(table.total(), u64::from(many));
    let counted = tickets.iter().filter(|permit| permit.cell.is_some()).count() as u64;
    assert!(counted <= 8 * HELD as u64 && counted + table.uncounted() == u64::from(many));
    drop(tickets);
    assert_eq!(table.total(), 0);
    let ip = "192.0.2.1";
    let _again = permit(limiter, ip);
    assert_eq!(table.of(key(table, ip)), 1);
}

#[test]
fn without_a_row_nothing_is_counted_and_nobody_refused() {
    let table = table(1);
    let (first, second) = (table.join(1, 0), table.join(2, 0));
    assert!(first.has_row() && !second.has_row());
    let mut permit = second.take();
    assert!(!second.name(&mut permit, key(table, "192.0.2.1")));
    assert!(second.open(key(table, "192.0.2.1"), 1, 0));
    assert_eq!((table.uncounted(), table.total()), (2, 0));
    drop(permit);
    table.release(1);
    assert!(table.join(3, 0).has_row());
}

#[test]
fn threads_of_a_process_count_together() {
    let table = table(1);
    let limiter = table.join(1, 0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for round in 0..10_000 {
                    let mut connection = limiter.take();
                    // All in one line's worth of addresses, so that cells are taken and freed all the time.
                    let ip = IpAddr::from([192, 0, 2, (round + thread) as u8 % 8]);
                    assert!(limiter.name(&mut connection, table.key(ip)));
                }
            });
        }
    });
    assert_eq!((table.total(), table.uncounted()), (0, 0));
    assert!((0..8).all(|last| table.of(table.key(IpAddr::from([192, 0, 2, last]))) == 0));
}

#[test]
fn a_process_that_is_killed_while_it_counts_leaves_nothing() {
    if !is_alone() {
        return;
    }
    let table = table(2);
    let ours = table.join(-1, 0);
    let kept = permit(ours, "192.0.2.1");
    // SAFETY: the child uses atomics in the mapping only, until it is killed.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let _ = set_pdeathsig(Signal::SIGKILL); // also if the test fails
            let limiter = table.join(std::process::id() as i32, 0);
            let key = key(table, "192.0.2.1");
            loop {
                let mut connections = [limiter.take(), limiter.take(), limiter.take()];
                connections.iter_mut().for_each(|permit| assert!(limiter.name(permit, key)));
                limiter.open(key, 1, 2);
            }
        }
    };
    let counting = || table.opened(key(table, "192.0.2.1"), 1) > 0;
    while !counting() {
        std::thread::yield_now();
    }
    kill(child, Signal::SIGKILL).unwrap();
    waitpid(child, None).unwrap();
    let free = |pid: Pid| table.all().all(|row| row.pid.load(Ordering::Relaxed) != pid.as_raw());
    assert!(!free(child));
    table.release(child.as_raw());
    assert!(free(child) && !counting());
    assert_eq!((table.total(), table.of(key(table, "192.0.2.1"))), (1, 1), "ours is still there");
    drop(kept);
    assert_eq!(table.total(), 0);
}

#[test]
fn refusals_are_counted_by_reason() {
    let table = table(1);
    table.join(1, 0).refused(Refusal::Rate);
    table.join(2, 1).refused(Refusal::Rate);
    table.join(3, 0).refused(Refusal::Messages);
    let counts: Vec<(&str, u64)> =
        table.refusals().map(|(refusal, count)| (refusal.into(), count)).filter(|(_, n)| *n > 0).collect();
    assert_eq!(counts, [("rate", 2), ("messages", 1)]);
}
