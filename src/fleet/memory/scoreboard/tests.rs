use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::*;
use crate::fleet::memory::layout::Part;
use crate::fleet::peer::Peer;
use crate::fleet::process::alone::is_alone;

/// Runs `work` in a child process, which uses no memory but its own and the scoreboard.
fn in_child(work: impl FnOnce()) -> Pid {
    // SAFETY: the child calls functions without locks and allocations only, then ends.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let _ = set_pdeathsig(Signal::SIGKILL); // also if the test fails
            work();
            // SAFETY: ends the child without running anything of the test harness.
            unsafe { libc::_exit(0) }
        }
    }
}

/// With three pools, and no slot in use yet.
fn empty() -> (&'static Memory, &'static Scoreboard) {
    let memory = Memory::create();
    let board = Scoreboard::create(memory).unwrap();
    [0, 1, 2].into_iter().for_each(|pool| memory.open(pool, &Audience::ALL).unwrap());
    (memory, board)
}

/// With so many slots in use.
fn board(slots: usize) -> &'static Scoreboard {
    let (_, board) = empty();
    (0..slots).for_each(|slot| board.assign(slot, Place::default()).unwrap());
    board
}

#[test]
fn slots_come_into_use_with_their_places_and_no_more_than_there_is_room_for() {
    let (_, board) = empty();
    assert!(board.slots().next().is_none() && board.slot(0).is_none());
    let place = Place { pool: 2, number: 513 };
    board.assign(0, Place::default()).unwrap();
    board.assign(1, place).unwrap();
    assert!(board.assign(MAX_SLOTS, place).is_err());
    let places = || board.slots().map(|(index, slot)| (index, slot.place())).collect::<Vec<_>>();
    assert_eq!(places(), [(0, Place::default()), (1, place)]);
    board.assign(0, place).unwrap();
    assert_eq!((places(), board.place(0)), (vec![(0, place), (1, place)], Some(place)));
}

#[test]
fn both_sides_of_a_fork_see_the_same_records() {
    if !is_alone() {
        return;
    }
    let board = board(3);
    assert_eq!(board.slots().count(), 3);
    assert!(board.slot(3).is_none());
    let child = in_child(|| {
        let slot = board.slot(2).unwrap();
        slot.connections.fetch_add(5, Ordering::Relaxed);
        slot.beat(Instant::NEVER);
        slot.call.set_current(0xabcd, Peer::NONE, Instant::from_nanos(1));
        slot.call.begin(7, 6);
        slot.set_state(State::Running);
    });
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
    let slot = board.slot(2).unwrap();
    assert_eq!(slot.connections.load(Ordering::Relaxed), 5);
    assert_eq!(slot.heartbeat(), Instant::NEVER);
    assert_eq!(slot.call.current(), Some((7, 6, 0xabcd)));
    assert_eq!(slot.state(), State::Running);
    assert_eq!(board.slot(1).unwrap().state(), State::Empty);
}

#[test]
fn a_new_process_begins_with_a_clean_record() {
    let board = board(1);
    let slot = board.slot(0).unwrap();
    slot.begin(Instant::from_nanos(10));
    slot.connections.store(9, Ordering::Relaxed);
    slot.call.set_current(2, Peer::NONE, Instant::from_nanos(3));
    slot.call.begin(0, 1);
    slot.end();
    assert_eq!((slot.state(), slot.call.current()), (State::Empty, None));
    slot.begin(Instant::from_nanos(20));
    assert_eq!(slot.state(), State::Starting);
    assert_eq!(slot.generation(), 2);
    assert_eq!(slot.connections.load(Ordering::Relaxed), 0);
    assert_eq!(slot.heartbeat(), Instant::from_nanos(20));
}

#[test]
fn a_change_in_another_process_ends_the_wait() {
    if !is_alone() {
        return;
    }
    let (_, board) = empty();
    let seen = board.tick();
    let child = in_child(|| {
        // The parent may not wait yet: then its wait must not begin.
        board.changed();
    });
    let begun = std::time::Instant::now();
    const LONG: Duration = Duration::from_secs(120);
    while board.tick() == seen && begun.elapsed() < LONG {
        board.wait(seen, LONG);
    }
    assert!(begun.elapsed() < LONG);
    waitpid(child, None).unwrap();
}

#[test]
fn a_waiter_is_woken_and_one_that_was_killed_costs_no_more() {
    if !is_alone() {
        return;
    }
    let (_, board) = empty();
    let seen = board.tick();
    let is_waiting = || board.throttle().unwrap().waiting.load(Ordering::SeqCst) != 0;
    let child = in_child(|| board.wait(seen, Duration::from_secs(600)));
    while !is_waiting() {
        std::thread::yield_now();
    }
    board.changed();
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));

    let seen = board.tick();
    let child = in_child(|| board.wait(seen, Duration::from_secs(600)));
    while !is_waiting() {
        std::thread::yield_now();
    }
    kill(child, Signal::SIGKILL).unwrap();
    waitpid(child, None).unwrap();
    board.changed();
    assert!(!is_waiting());
}

#[test]
fn a_wait_ends_at_its_time() {
    let (_, board) = empty();
    let begun = std::time::Instant::now();
    board.wait(board.tick(), Duration::from_millis(30));
    assert!(begun.elapsed() >= Duration::from_millis(30));
    board.wait(board.tick().wrapping_sub(1), Duration::from_secs(600)); // it has changed already
}

#[test]
fn records_do_not_share_cache_lines() {
    assert_eq!((size_of::<Load>(), align_of::<Work>()), (128, 128));
    assert_eq!((size_of::<SharedWords>(), size_of::<Assignment>()), (128, 64));
}

#[test]
fn a_worker_sees_how_loaded_those_are_that_it_sends_connections_to_and_nothing_else() {
    if !is_alone() {
        return;
    }
    let (memory, board) = empty();
    for pool in 0..3 {
        board.assign(usize::from(pool), Place { pool, number: 0 }).unwrap();
        let slot = board.slot(usize::from(pool)).unwrap();
        slot.begin(Instant::from_nanos(1));
        slot.call.begin(7, 6);
    }
    let worker = Part::Worker { pool: 1, reaches: &|other| other == 2 };
    let child = in_child(|| {
        memory.restrict_to(worker).unwrap();
        board.changed(); // of no use here, and harmless
        assert!(board.slot(0).is_none() && board.place(0) == Some(Place::default()));
        let (own, other) = (board.slot(1).unwrap(), board.slot(2).unwrap());
        assert!(own.call.current().is_some() && other.call.current().is_none());
        assert!(other.state() == State::Starting && other.claim());
        own.connections.store(5, Ordering::Relaxed);
    });
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
    let (own, other) = (board.slot(1).unwrap(), board.slot(2).unwrap());
    assert_eq!((own.connections.load(Ordering::Relaxed), other.is_idle()), (5, false));
    let child = in_child(|| {
        memory.restrict_to(worker).unwrap();
        board.slot(2).unwrap().set_state(State::Running);
    });
    assert!(matches!(waitpid(child, None).unwrap(), WaitStatus::Signaled(_, Signal::SIGSEGV, _)));
    assert_eq!(other.state(), State::Starting);
}
