//! Stopping the server: with or without closing the connections.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::client::{BINARY, CLOSE, Raw, close_payload};
use crate::daemon::{is_alive, until};
use crate::serve;

#[test]
fn sigterm_closes_all_with_1001_and_exits_with_0() {
    let mut server =
        serve(&["echo", "echo_blocking", "everything", "everything_blocking"], &["--workers", "2"]);
    let resources = ["/echo", "/echo_blocking", "/everything", "/everything_blocking"];
    let mut open: Vec<Raw> =
        resources.iter().map(|resource| Raw::open(&server.address(), resource)).collect();
    let in_a_head = {
        let mut raw = Raw::connect(&server.address());
        raw.send(b"GET /echo HT");
        raw
    };
    server.signal(Signal::SIGTERM);
    for raw in &mut open {
        raw.expect_close(1001);
        raw.frame(CLOSE, &close_payload(1001, ""));
        raw.expect_end();
    }
    let workers = server.workers();
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(workers.iter().all(|pid| !is_alive(*pid)));
    assert!(!server.log().contains("did not end in time"), "{}", server.log());
    assert!(server.log().contains("everything: worker 1 stops, started 1 times"), "{}", server.log());
    drop(in_a_head);
}

#[test]
fn a_client_that_does_not_answer_is_not_waited_for() {
    // The time to stop is longer than this test waits.
    let mut server = serve(&["echo"], &["-o", "close_timeout=100ms", "-o", "stop_timeout=10m"]);
    let mut raw = Raw::open(&server.address(), "/echo");
    server.signal(Signal::SIGTERM);
    raw.expect_close(1001);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_handler_that_hangs_is_killed_at_the_deadline() {
    // On a busy machine the second may be too short in which the worker then has to exit.
    assert!((0..3).any(|_| is_left_at_the_deadline()));
}

/// Whether the worker has exited by itself.
fn is_left_at_the_deadline() -> bool {
    let mut server =
        serve(&["everything_blocking"], &["-o", "stop_timeout=300ms", "-o", "close_timeout=100ms"]);
    let mut raw = Raw::open(&server.address(), "/everything_blocking");
    assert_eq!(raw.ask("nap 60000"), "nap: begins");
    let mut other = Raw::open(&server.address(), "/everything_blocking");
    assert_eq!(other.ask("user"), "user: ");
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    raw.expect_close(1001);
    let code = server.wait().code();
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    assert!(matches!(code, Some(0 | 7)), "{code:?}: {}", server.log());
    code == Some(0) && server.log().contains("1 handler threads that did not end in time")
}

#[test]
fn messages_sent_before_the_stop_still_arrive() {
    let mut server = serve(&["everything"], &["-odeflate=false"]);
    let mut raw = Raw::open(&server.address(), "/everything");
    raw.text("zeros 900000");
    raw.text("send queued");
    // The worker has executed the command once the first frame is here; the kernel cannot hold all of it.
    let first = raw.next().unwrap();
    assert_eq!((first.first, first.payload.len()), (BINARY, 900_000));
    server.signal(Signal::SIGTERM);
    assert_eq!(raw.next_text(), "queued");
    raw.expect_close(1001);
    raw.frame(CLOSE, &[]);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn sigquit_ends_at_once() {
    // On a busy machine the second may be too short in which the workers have to exit.
    assert!((0..3).any(|_| is_ended_at_once()));
}

/// Whether all workers have exited by themselves.
fn is_ended_at_once() -> bool {
    let mut server =
        serve(&["everything", "everything_blocking"], &["--workers", "2", "-o", "stop_timeout=10m"]);
    let mut open: Vec<Raw> = (0..4).map(|_| Raw::open(&server.address(), "/everything_blocking")).collect();
    assert_eq!(open[0].ask("nap 60000"), "nap: begins");
    let workers = server.workers();
    server.signal(Signal::SIGQUIT);
    let code = server.wait().code();
    assert!(matches!(code, Some(0 | 7)), "{code:?}: {}", server.log());
    assert!(workers.iter().all(|pid| !is_alive(*pid)));
    // No connection got a Close frame.
    open[1].expect_end();
    code == Some(0)
}

#[test]
fn connections_during_the_stop_do_not_delay_it() {
    let times = ["stop_timeout=10m", "handshake_timeout=10m", "close_timeout=1s"];
    let mut server = serve(&["everything_blocking"], &times.map(|time| ["-o", time]).concat());
    let address = server.address();
    let mut raw = Raw::open(&address, "/everything_blocking");
    assert_eq!(raw.ask("nap 300"), "nap: begins");
    let mut other = Raw::open(&address, "/everything_blocking");
    assert_eq!(other.ask("user"), "user: ");
    server.signal(Signal::SIGTERM);
    server.says("SIGTERM received");
    // They send nothing, and stay for longer than this test waits.
    let _silent: Vec<_> = (0..3).filter_map(|_| std::net::TcpStream::connect(&address).ok()).collect();
    until("it has ended", || server.child.try_wait().unwrap().is_some());
}

#[test]
fn a_signal_to_a_worker_closes_with_1001_too() {
    // As when a service manager signals every process; the signal may reach any thread.
    let mut server = serve(&["echo", "echo_blocking"], &[]);
    for _ in 0..5 {
        let mut open = ["/echo", "/echo_blocking"].map(|resource| Raw::open(&server.address(), resource));
        let worker = server.worker();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), Signal::SIGTERM).unwrap();
        for raw in &mut open {
            raw.expect_close(1001);
            raw.frame(CLOSE, &close_payload(1001, ""));
            raw.expect_end();
        }
        until("it is replaced", || matches!(server.workers()[..], [other] if other != worker));
    }
    assert!(!server.log().contains("died of"), "{}", server.log());
    server.stop();
}
