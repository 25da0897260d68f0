//! Resumable blocking handlers: their connections move like those of the event style.

use nix::sys::signal::Signal;

use crate::client::{CLOSE, Raw, close_payload};
use crate::crowd::{Crowd, Habits, SMALL_TALK};
use crate::daemon::{is_idle, until};
use crate::handover::are_shared;
use crate::{WAYS, crash, logged, serve, stop};

/// Counts the messages of a connection in its state, to detect lost and duplicate ones.
const ECHO: &str = "/resumable_echo_blocking";
const HANDLERS: [&str; 5] = ["crash", "throw", "panic_abort", "crash_blocking", "resumable_echo_blocking"];

#[test]
fn a_crash_in_each_way_loses_and_duplicates_nothing() {
    let habits = Habits { deflate: true, quiet: true, ..SMALL_TALK };
    let (mut server, _dir) = serve(&HANDLERS, &["--workers", "2"]);
    let crowd = Crowd::gather(&server.address(), ECHO, 200, habits);
    crowd.served();
    for (resource, way) in WAYS.iter().chain(&[("/crash_blocking", "null"), ("/crash_blocking", "exit")]) {
        // An echo does not prove that its thread waits again.
        until("all threads wait", || {
            let workers = server.workers();
            workers.len() == 2 && workers.into_iter().all(is_idle)
        });
        crash(&server, resource, way);
        assert_eq!((crowd.served().clients, crowd.ends()), (200, vec![]), "after {way}");
    }
    assert!(logged(&server, "opened again") >= 200);
    drop(crowd);
    stop(&mut server);
}

#[test]
fn under_load_connections_that_end_had_a_message_in_transit_and_get_a_close_code() {
    let (mut server, _dir) = serve(&HANDLERS, &["--workers", "2"]);
    let crowd = Crowd::gather(&server.address(), ECHO, 200, SMALL_TALK);
    let (mut ends, mut late) = (0, 0);
    for ((resource, way), part) in WAYS.iter().zip(1..8) {
        let wave = crowd.served();
        std::thread::sleep((wave.ended - wave.begun) * part / 8);
        crash(&server, resource, way);
        crowd.served();
        for end in crowd.ends() {
            assert_eq!(end.code, Some(1012), "after {way}: {end:?}");
            ends += 1;
            // Its echo has arrived, but the thread was not back in ws_receive yet.
            late += usize::from(!end.in_message);
        }
    }
    println!("{ends} of 200 clients ended in 7 crashes, {late} of them right after an echo");
    assert!(ends < 200, "all of them");
    // On a busy machine many threads may stand there.
    assert!(late < 50, "{late} of them had no message under way");
    drop(crowd);
    stop(&mut server);
}

#[test]
fn a_crash_while_they_detach_costs_one_connection() {
    let quiet = Habits { quiet: true, ..SMALL_TALK };
    let (mut server, _dir) = serve(&["rescue", "resumable_echo_blocking"], &["-o", "worker_max_age=3s"]);
    let first = Crowd::gather(&server.address(), ECHO, 100, quiet);
    let mut trap = Raw::open(&server.address(), "/rescue?leave=null");
    let last = Crowd::gather(&server.address(), ECHO, 100, quiet);
    trap.expect_close(1011);
    server.says("in on_close of rescue");
    assert_eq!((first.served().clients, last.served().clients), (100, 100));
    assert_eq!((first.ends(), last.ends()), (vec![], vec![]));
    drop((first, last));
    stop(&mut server);
}

#[test]
fn a_replaced_worker_moves_them() {
    let deflate = Habits { deflate: true, ..SMALL_TALK };
    let (mut server, _dir) = serve(&HANDLERS, &["--workers", "2", "-o", "worker_max_messages=1000"]);
    let crowd = Crowd::gather(&server.address(), ECHO, 100, deflate);
    until("both workers have been replaced, and all have moved twice", || {
        crowd.served();
        logged(&server, "exited, replaced") >= 4 && logged(&server, "opened again") >= 200
    });
    assert_eq!((crowd.served().clients, crowd.ends()), (100, vec![]));
    // The pool may be sharing them out at this moment.
    until("each that was let go has been opened again", || {
        logged(&server, "let go") == logged(&server, "opened again")
    });
    drop(crowd);
    stop(&mut server);
    assert_eq!(logged(&server, " closed\n"), logged(&server, " opened\n"));
}

#[test]
fn a_new_worker_gets_its_share_of_them() {
    let (mut server, _dir) = serve(&HANDLERS, &["--workers", "2"]);
    let crowd = Crowd::gather(&server.address(), ECHO, 100, SMALL_TALK);
    until("they are shared", || are_shared(&server, 100));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.workers()[0]), Signal::SIGKILL).unwrap();
    until("those of the dead worker have ended", || crowd.served().clients < 70);
    let left = crowd.served().clients;
    until("a third or more has moved", || {
        crowd.served();
        logged(&server, "opened again") > left / 3
    });
    assert_eq!(crowd.served().clients, left, "moving ends nobody");
    assert_eq!(crowd.ends().len() + left, 100);
    drop(crowd);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_busy_one_gets_1012_in_a_crash_and_moves_later_in_a_replacement() {
    let (mut server, _dir) = serve(&["crash", "slow_resumable_blocking"], &["-o", "worker_max_messages=4"]);
    let mut idle = Raw::open(&server.address(), "/slow_resumable_blocking");
    let mut busy = Raw::open(&server.address(), "/slow_resumable_blocking");
    assert_eq!(idle.ask("1"), "1 resumed 0");
    busy.text("60000");
    until("it is busy", || logged(&server, "sleeping for 60000") == 1);
    crash(&server, "/crash", "null");
    busy.expect_close(1012);
    busy.expect_end();
    assert_eq!(idle.ask("2"), "2 resumed 1");

    idle.text("301");
    until("it is busy", || logged(&server, "sleeping for 301") == 1);
    let first = server.worker();
    // The fourth message: the worker is replaced.
    let mut other = Raw::open(&server.address(), "/slow_resumable_blocking");
    assert_eq!(other.ask("1"), "1 resumed 0");
    assert_eq!(other.ask("1"), "1 resumed 0");
    until("it is replaced", || server.workers().len() == 2 || !server.workers().contains(&first));
    idle.text("3");
    assert_eq!(idle.next_text(), "301 resumed 1");
    assert_eq!(idle.next_text(), "3 resumed 1");
    idle.frame(CLOSE, &close_payload(1000, ""));
    idle.expect_close(1000);
    drop((idle, busy, other));
    stop(&mut server);
}
