//! All kinds of crashes, with a crowd of other connections.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::Raw;
use crate::crowd::{Crowd, End, Habits, SMALL_TALK};
use crate::daemon::until;
use crate::{HANDLERS, WAYS, crash, logged, serve, stop};

/// Crashes in all ways in turn, `count` times; after each the whole crowd must be served.
#[track_caller]
pub fn crash_beside(crowd: &Crowd, server: &crate::daemon::Server, ways: &[(&str, &str)], count: usize) {
    for (resource, text) in ways.iter().cycle().take(count) {
        crash(server, resource, text);
        let wave = crowd.served();
        assert_eq!(crowd.ends(), [], "after {text}");
        assert_eq!(wave.clients, 1000, "after {text}");
    }
    assert_eq!(logged(server, " crashed: ") + logged(server, "ended: exit() called"), count);
}

#[test]
fn a_crash_in_each_way_ends_one_connection_of_a_thousand() {
    let (mut server, _dir) = serve(&HANDLERS, &["--workers", "2"]);
    let crowd = Crowd::gather(&server.address(), "/echo", 1000, SMALL_TALK);
    crash_beside(&crowd, &server, &WAYS, 20);
    drop(crowd);
    stop(&mut server);
}

#[test]
fn unsent_replies_of_a_turn_survive_a_crash_in_it() {
    let (mut server, _dir) = serve(&["crash", "echo"], &["--workers", "1"]);
    let mut clients: Vec<Raw> = (0..60).map(|_| Raw::open(&server.address(), "/echo")).collect();
    for round in 0..3 {
        let mut culprit = Raw::open(&server.address(), "/crash");
        // All of them are ready when the loop continues: the one that crashes is in the middle.
        let worker = Pid::from_raw(server.worker());
        kill(worker, Signal::SIGSTOP).unwrap();
        for (index, client) in clients.iter_mut().enumerate() {
            if index == 30 {
                culprit.text("null");
            }
            client.text(&format!("{round} {index}"));
            client.text("again");
        }
        kill(worker, Signal::SIGCONT).unwrap();
        for (index, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.next_text(), format!("{round} {index}"));
            assert_eq!(client.next_text(), "again");
            assert_eq!(client.ask("and on"), "and on");
        }
        culprit.expect_close(1011);
    }
    stop(&mut server);
}

#[test]
fn under_load_connections_that_end_were_within_a_message_and_get_a_close_code() {
    const CLIENTS: usize = 400;
    let habits = Habits { deflate: true, large: 1_000_000, quiet: false };
    let (mut server, _dir) = serve(&HANDLERS, &["--workers", "2"]);
    let crowd = Crowd::gather(&server.address(), "/echo", CLIENTS, habits);
    let mut ends = Vec::new();
    let mut crashes = 0;
    for ((resource, text), part) in WAYS.iter().zip((1..6).cycle()) {
        if crashes >= 5 && !ends.is_empty() {
            break;
        }
        crashes += 1;
        // In another part of the wave each time.
        let wave = crowd.served();
        std::thread::sleep((wave.ended - wave.begun) * part / 6);
        crash(&server, resource, text);
        crowd.served();
        let after = crowd.ends();
        for end in &after {
            let End { client, code, in_message } = end;
            assert!(client % 20 == 14, "after {text}: a message that comes at once is not torn: {end:?}");
            assert!(in_message & matches!(code, Some(1011 | 1012)), "after {text}: {end:?}");
        }
        ends.extend(after);
    }
    println!("{} of {CLIENTS} clients, 20 with large messages, ended in {crashes} crashes", ends.len());
    assert!(!ends.is_empty(), "no message was torn: the test is too kind");
    drop(crowd);
    stop(&mut server);
}

#[test]
fn a_crash_on_a_blocking_thread_moves_the_others() {
    let (mut server, _dir) = serve(&["crash_blocking", "echo"], &[]);
    let crowd = Crowd::gather(&server.address(), "/echo", 100, SMALL_TALK);
    for way in ["null", "abort", "stack", "exit", "_exit"] {
        crash(&server, "/crash_blocking", way);
        assert_eq!(crowd.served().clients, 100);
        assert_eq!(crowd.ends(), [], "after {way}");
    }
    drop(crowd);
    stop(&mut server);
}

#[test]
fn a_crash_on_a_handlers_own_thread_ends_no_connection() {
    let (mut server, _dir) = serve(&["crash", "crash_blocking", "echo"], &[]);
    let crowd = Crowd::gather(&server.address(), "/echo", 100, SMALL_TALK);
    for (way, count) in ["thread null", "thread abort", "thread exit", "timer null"].into_iter().zip(1..) {
        let mut culprit = Raw::open(&server.address(), "/crash");
        culprit.text(way);
        if way.starts_with("timer") {
            culprit.expect_close(1011);
        } else {
            // The echo may have come before; the connection is in a clean state like all others.
            until("it crashed", || logged(&server, "has ended after its crash") == count);
            while culprit.ask("still here") != "still here" {}
        }
        assert_eq!(crowd.served().clients, 100, "after {way}");
        assert_eq!(crowd.ends(), [], "after {way}");
    }
    drop(crowd);
    stop(&mut server);
}

#[test]
fn other_blocking_connections_get_1012_idle_or_busy() {
    let (mut server, _dir) = serve(&["crash_blocking", "everything_blocking"], &[]);
    let mut idle = Raw::open(&server.address(), "/crash_blocking");
    assert_eq!(idle.ask("hello"), "hello");
    let mut busy = Raw::open(&server.address(), "/everything_blocking");
    busy.text("sleep 20000");
    crash(&server, "/crash_blocking", "null");
    for end in [&mut idle, &mut busy] {
        end.expect_close(1012);
        end.expect_end();
    }
    drop((idle, busy));
    stop(&mut server);
}

#[test]
fn each_callback_is_attributed() {
    let (mut server, _dir) = serve(&["crash"], &[]);
    for (callback, name) in [
        ("handshake", "do_extra_handshake"),
        ("open", "on_open"),
        ("passive", "passive_closing_handshake"),
        ("close", "on_close"),
    ] {
        let mut culprit = Raw::connect(&server.address());
        let resource = format!("/crash?{callback}=null");
        match callback {
            "handshake" => {
                culprit.send(
                    format!("GET {resource} HTTP/1.1\r\nHost: localhost\r\n{}\r\n", crate::client::UPGRADE)
                        .as_bytes(),
                );
                assert_eq!(culprit.answer().status, 500);
            }
            "open" => {
                culprit.upgrade(&resource, "");
                culprit.expect_close(1011);
                culprit.expect_end();
            }
            _ => {
                culprit.upgrade(&resource, "");
                culprit.frame(crate::client::CLOSE, &crate::client::close_payload(1000, ""));
                culprit.expect_close(if callback == "passive" { 1011 } else { 1000 });
                culprit.expect_end();
            }
        }
        server.says(&format!("in {name} of crash"));
    }
    stop(&mut server);
}

#[test]
fn connections_that_have_ended_are_not_lost_in_a_crash() {
    let (mut server, _dir) = serve(&["crash", "echo"], &[]);
    let mut stays = Raw::open(&server.address(), "/echo");
    assert_eq!(stays.ask("here"), "here");
    // They have their last bytes, and do not close their end.
    let mut answered = Raw::connect(&server.address());
    answered.send(b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(answered.answer().status, 404);
    let mut failed = Raw::open(&server.address(), "/crash");
    failed.frame(0x8b, b"");
    failed.expect_close(1002);
    crash(&server, "/crash", "null");
    server.says("moved 1 connections, lost 1");
    assert_eq!(stays.ask("still"), "still");
    drop((stays, answered, failed));
    stop(&mut server);
}
