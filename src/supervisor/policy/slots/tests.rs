//! Tables of time, event and actions.

use super::Action::*;
use super::*;

fn at(seconds: u64) -> Instant {
    Instant::default() + Duration::from_secs(seconds)
}

fn actions(slots: &mut Slots, event: Event, seconds: u64) -> Vec<Action> {
    slots.on(event, at(seconds));
    std::iter::from_fn(|| slots.action()).collect()
}

/// Runs a table of (seconds, event, actions) through slots that have been started at 0.
#[track_caller]
fn check(slots: usize, table: &[(u64, Event, &[Action])]) -> Slots {
    let mut all = Slots::new(slots);
    assert_eq!(actions(&mut all, Passed, 0), (0..slots).map(Spawn).collect::<Vec<_>>());
    for (row, (seconds, event, expected)) in table.iter().enumerate() {
        let done = actions(&mut all, *event, *seconds);
        assert_eq!(done, *expected, "row {row}: {event:?} at {seconds} s");
    }
    all
}

use Event::{Adopted, Crashed, Died, Hindered, Interrupt, Killed, Left, Ready, Time as Passed, Wanted};

const TERMINATE: Event = Event::Stop { exit: Exit::Ok, at_once: false };
const QUIT: Event = Event::Stop { exit: Exit::Ok, at_once: true };
const FAIL: Event = Event::Stop { exit: Exit::Config, at_once: true };

#[test]
fn the_fleet_was_ready_when_all_were_at_the_same_time() {
    let mut slots = check(2, &[(1, Ready(1), &[]), (1, Ready(1), &[]), (2, Died(1), &[Spawn(1)])]);
    for (event, were_ready) in [(Ready(0), false), (Ready(1), true), (Died(0), true), (TERMINATE, true)] {
        slots.on(event, at(3));
        assert_eq!(slots.were_ready(), were_ready, "{event:?}");
    }
    let slots = check(1, &[(1, TERMINATE, &[Stop(0)]), (1, Ready(0), &[])]);
    assert!(!slots.were_ready(), "it stops");
}

#[test]
fn a_start_that_goes_without_what_hindered_the_last_one_is_no_failure() {
    let hindered: Vec<(u64, Event, &[Action])> = vec![(0, Hindered(0), &[Spawn(0)]); 10];
    let mut slots = check(1, &[&hindered[..], &[(1, Ready(0), &[])]].concat());
    // One that is said to have served died like any other, and nobody is started when all are to leave.
    assert_eq!(actions(&mut slots, Hindered(0), 70), [Spawn(0)]);
    actions(&mut slots, TERMINATE, 71);
    assert_eq!(actions(&mut slots, Hindered(0), 72), [Leave]);
}

#[test]
fn a_worker_is_replaced_at_once_and_then_ever_later() {
    // At once, then 1, 2, 4, 8, 16, 30, 30 s after the death.
    check(
        1,
        &[
            (0, Ready(0), &[]),
            (10, Died(0), &[Spawn(0)]),
            (10, Ready(0), &[]),
            (10, Died(0), &[]),
            (11, Passed, &[Spawn(0)]),
            (11, Ready(0), &[]),
            (11, Died(0), &[]),
            (12, Passed, &[]),
            (13, Passed, &[Spawn(0)]),
            (13, Ready(0), &[]),
            (13, Died(0), &[]),
            (16, Passed, &[]),
            (17, Passed, &[Spawn(0)]),
            (17, Ready(0), &[]),
            (17, Died(0), &[]),
            (24, Passed, &[]),
            (25, Passed, &[Spawn(0)]),
            (25, Ready(0), &[]),
            (25, Died(0), &[]),
            (40, Passed, &[]),
            (41, Passed, &[Spawn(0)]),
            (41, Ready(0), &[]),
            (41, Died(0), &[]),
            (70, Passed, &[]),
            (71, Passed, &[Spawn(0)]),
            (71, Ready(0), &[]),
            (71, Died(0), &[]),
            (100, Passed, &[]),
            (101, Passed, &[Spawn(0)]),
        ],
    );
}

#[test]
fn a_worker_that_served_is_away_for_a_second_at_most_however_often_it_dies() {
    let mut slots = check(1, &[(0, Ready(0), &[]), (20, Died(0), &[Spawn(0)])]);
    for second in (40..1000).step_by(20) {
        actions(&mut slots, Ready(0), second - 20);
        assert_eq!(actions(&mut slots, Died(0), second), [], "at {second} s");
        assert_eq!(actions(&mut slots, Passed, second + 1), [Spawn(0)]);
    }
}

#[test]
fn a_minute_of_service_is_forgiveness() {
    check(
        1,
        &[
            (0, Ready(0), &[]),
            (1, Died(0), &[Spawn(0)]),
            (1, Ready(0), &[]),
            (60, Died(0), &[]), // 59 s of service: the second death
            (61, Passed, &[Spawn(0)]),
            (61, Ready(0), &[]),
            (121, Died(0), &[Spawn(0)]), // 60 s: as if it were the first
            (121, Ready(0), &[]),
            (122, Died(0), &[]),
            (123, Passed, &[Spawn(0)]),
        ],
    );
}

#[test]
fn the_other_slots_do_not_pay_for_one() {
    check(
        2,
        &[(0, Died(0), &[Spawn(0)]), (0, Died(0), &[]), (0, Died(1), &[Spawn(1)]), (1, Passed, &[Spawn(0)])],
    );
}

#[test]
fn the_deadline_is_the_next_start() {
    let mut slots = check(2, &[(0, Ready(0), &[])]);
    assert_eq!(slots.deadline(), None);
    assert_eq!(actions(&mut slots, Died(0), 2), [Spawn(0)]);
    assert_eq!(actions(&mut slots, Died(0), 3), []);
    assert_eq!(slots.deadline(), Some(at(4)));
    assert_eq!(actions(&mut slots, TERMINATE, 3), [Stop(1)]);
    assert_eq!(slots.deadline(), None);
}

#[test]
fn a_fleet_of_which_nobody_comes_up_is_given_up() {
    check(
        2,
        &[
            (0, Died(0), &[Spawn(0)]),
            (0, Died(0), &[]),
            (1, Passed, &[Spawn(0)]),
            (1, Died(0), &[]),
            (3, Passed, &[Spawn(0)]),
            (3, Died(0), &[]),
            (7, Passed, &[Spawn(0)]),
            (7, Died(0), &[]), // the fifth, but slot 1 may still come up
            (7, Died(1), &[Spawn(1)]),
            (7, Died(1), &[]),
            (8, Passed, &[Spawn(1)]),
            (8, Died(1), &[]),
            (10, Passed, &[Spawn(1)]),
            (10, Died(1), &[]),
            (14, Passed, &[Spawn(1)]),
            (15, Passed, &[Spawn(0)]),
            (15, Died(1), &[GiveUp]),
            (15, Event::Stop { exit: Exit::Start, at_once: true }, &[Quit(0)]),
            (15, Died(0), &[Leave]),
        ],
    );
}

#[test]
fn one_start_that_succeeds_is_a_new_beginning() {
    check(
        1,
        &[
            (0, Died(0), &[Spawn(0)]),
            (0, Died(0), &[]),
            (1, Passed, &[Spawn(0)]),
            (1, Died(0), &[]),
            (3, Passed, &[Spawn(0)]),
            (3, Died(0), &[]),
            (7, Passed, &[Spawn(0)]),
            (7, Ready(0), &[]),
            (7, Died(0), &[]),
            (15, Passed, &[Spawn(0)]),
            (15, Died(0), &[]), // the first failed start in a row
            (31, Passed, &[Spawn(0)]),
        ],
    );
}

#[test]
fn a_slot_whose_worker_has_left_is_nobodys() {
    check(
        1,
        &[
            (0, Ready(0), &[]),
            (1, Adopted(2), &[]),
            (2, Left(0), &[]),
            (3, Died(0), &[]),
            (4, Died(2), &[Spawn(2)]),
            (8, TERMINATE, &[Stop(2)]),
            (9, Adopted(0), &[Stop(0)]),
            (9, Died(0), &[]),
            (9, Died(2), &[Leave]),
        ],
    );
}

#[test]
fn stopping_waits_for_all_and_replaces_nobody() {
    check(
        3,
        &[
            (0, Ready(0), &[]),
            (0, Ready(1), &[]),
            (1, Died(2), &[Spawn(2)]),
            (1, Died(2), &[]), // due at 2 s, when nobody is replaced any more
            (1, TERMINATE, &[Stop(0), Stop(1)]),
            (2, TERMINATE, &[]),
            (3, Died(0), &[]),
            (11, Passed, &[]),
            (11, Died(1), &[Leave]),
            (12, Passed, &[]),
            (12, Interrupt, &[]),
        ],
    );
}

#[test]
fn a_process_that_had_to_be_killed_shows_in_the_exit_code() {
    let mut slots = check(
        2,
        &[
            (0, Ready(0), &[]),
            (0, Killed, &[]), // while the server serves it does not matter
            (0, Ready(1), &[]),
            (5, TERMINATE, &[Stop(0), Stop(1)]),
            (6, Died(0), &[]),
            (17, Died(1), &[Leave]),
        ],
    );
    assert_eq!(slots.exit(), Some(Exit::Ok));
    actions(&mut slots, Killed, 18); // one that hands its connections over, and has no slot any more
    assert_eq!(slots.exit(), Some(Exit::Killed));
}

#[test]
fn a_second_interrupt_is_impatience_but_a_second_terminate_is_not() {
    check(
        1,
        &[
            (0, Ready(0), &[]),
            (1, Interrupt, &[Stop(0)]),
            (2, TERMINATE, &[]),
            (3, Interrupt, &[Quit(0)]),
            (3, Interrupt, &[]),
            (4, Died(0), &[Leave]),
        ],
    );
    check(1, &[(1, TERMINATE, &[Stop(0)]), (2, Interrupt, &[]), (3, Interrupt, &[Quit(0)])]);
    // Also when only processes without a slot are left.
    let mut slots = check(1, &[(1, Interrupt, &[Stop(0)]), (2, Died(0), &[Leave])]);
    assert!(!slots.stops_at_once());
    assert_eq!(actions(&mut slots, Interrupt, 3), []);
    assert!(slots.stops_at_once());
}

#[test]
fn quit_leaves_at_once() {
    check(2, &[(0, Ready(0), &[]), (1, QUIT, &[Quit(0), Quit(1)]), (1, Died(0), &[]), (2, Passed, &[])]);
    check(1, &[(1, TERMINATE, &[Stop(0)]), (2, QUIT, &[Quit(0)]), (2, Died(0), &[Leave])]);
}

#[test]
fn with_no_process_left_there_is_nothing_to_wait_for() {
    check(1, &[(0, Died(0), &[Spawn(0)]), (0, Died(0), &[]), (0, TERMINATE, &[Leave])]);
}

#[test]
fn the_first_reason_to_leave_is_the_exit_code() {
    let slots = check(
        2,
        &[
            (0, FAIL, &[Quit(0), Quit(1)]),
            (0, QUIT, &[]),
            (0, TERMINATE, &[]),
            (0, Died(0), &[]),
            (1, Killed, &[]),
            (1, Died(1), &[Leave]),
        ],
    );
    assert_eq!(slots.exit(), Some(Exit::Config));
}

#[test]
fn a_worker_that_crashes_while_serving_is_replaced_without_delay_whatever_was() {
    check(
        1,
        &[
            (0, Ready(0), &[]),
            (1, Crashed(0, true), &[Spawn(0)]),
            (1, Ready(0), &[]),
            (1, Crashed(0, true), &[Spawn(0)]),
            (3, Crashed(0, true), &[Spawn(0)]), // before it was ready: the first death
            (3, Crashed(0, true), &[]),
            (4, Passed, &[Spawn(0)]),
            (4, TERMINATE, &[Stop(0)]),
            (5, Crashed(0, true), &[Leave]),
        ],
    );
}

#[test]
fn crashes_that_leave_no_time_to_serve_are_deaths_like_others() {
    check(
        1,
        &[
            (0, Ready(0), &[]),
            (0, Crashed(0, false), &[Spawn(0)]),
            (0, Ready(0), &[]),
            (0, Crashed(0, false), &[]),
            (1, Passed, &[Spawn(0)]),
            (1, Ready(0), &[]),
            (1, Crashed(0, false), &[]),
            (3, Passed, &[Spawn(0)]),
            (3, Ready(0), &[]),
            (4, Crashed(0, false), &[Spawn(0)]), // that one has served
        ],
    );
}

#[test]
fn a_slot_that_is_wanted_again_gets_a_worker() {
    check(
        1,
        &[
            (0, Ready(0), &[]),
            (1, Wanted(0), &[]),
            (2, Left(0), &[]),
            (3, Wanted(0), &[Spawn(0)]),
            (3, Wanted(2), &[Spawn(2)]),
        ],
    );
    check(1, &[(0, Ready(0), &[]), (1, Left(0), &[]), (1, TERMINATE, &[Leave]), (1, Wanted(0), &[])]);
}

#[test]
fn connections_of_a_worker_that_crashes_while_stopping_are_taken_up_to_be_closed() {
    check(
        2,
        &[
            (0, Ready(0), &[]),
            (0, Ready(1), &[]),
            (1, TERMINATE, &[Stop(0), Stop(1)]),
            (1, Crashed(0, false), &[Spawn(0), Stop(0)]),
            (2, Ready(0), &[]),
            (2, Died(0), &[]),
            (2, QUIT, &[Quit(1)]),
            (2, Crashed(1, false), &[Leave]),
        ],
    );
}

#[test]
fn a_worker_that_crashes_when_it_has_closed_its_connections_is_not_replaced_for_ever() {
    let stopping: [(u64, Event, &[Action]); 4] = [
        (0, Ready(0), &[]),
        (1, TERMINATE, &[Stop(0)]),
        (1, Crashed(0, false), &[Spawn(0), Stop(0)]),
        (1, Ready(0), &[]),
    ];
    let in_no_connection: [(u64, Event, &[Action]); 1] = [(1, Crashed(0, false), &[Leave])];
    let in_a_connection: [(u64, Event, &[Action]); 3] =
        [(3, Crashed(0, true), &[Spawn(0), Stop(0)]), (3, Ready(0), &[]), (9, Crashed(0, false), &[Leave])];
    check(1, &[&stopping[..], &in_no_connection].concat());
    check(1, &[&stopping[..], &in_a_connection].concat());
}

#[test]
fn events_about_nobody_change_nothing() {
    check(1, &[(0, Ready(7), &[]), (0, Died(7), &[]), (0, Ready(0), &[])]);
}

#[test]
fn a_worker_that_does_nothing_but_crash_is_restarted_later_at_last() {
    let mut slots = check(1, &[(0, Ready(0), &[])]);
    let mut crash = |second| {
        let done = actions(&mut slots, Crashed(0, true), second);
        actions(&mut slots, Ready(0), second);
        done == [Spawn(0)]
    };
    let restarts = (0..1000).take_while(|_| crash(1)).count();
    assert_eq!(restarts as u64, CRASHES * BURST.as_secs());
    assert_eq!(actions(&mut slots, Passed, 2), [Spawn(0)]);
    let mut slots = check(1, &[(0, Ready(0), &[])]);
    for second in 1..1000 {
        assert_eq!(actions(&mut slots, Crashed(0, true), second), [Spawn(0)]);
        actions(&mut slots, Ready(0), second);
    }
}
