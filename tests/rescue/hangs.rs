//! Handlers that hang.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::Raw;
use crate::crowd::{Crowd, SMALL_TALK};
use crate::daemon::until;
use crate::{logged, serve, stop};

#[test]
fn a_handler_that_hangs_is_named_and_killed_and_others_continue() {
    let (mut server, _dir) = serve(&["loop", "echo"], &["--workers", "2", "-o", "handler_timeout=1s"]);
    let crowd = Crowd::gather(&server.address(), "/echo", 100, SMALL_TALK);
    for (count, way) in ["loop", "lock", "sleep"].into_iter().enumerate() {
        let mut culprit = Raw::open(&server.address(), "/loop");
        culprit.text(way);
        culprit.expect_close(1011);
        culprit.expect_end();
        assert_eq!(crowd.served().clients, 100, "after {way}");
        assert_eq!(crowd.ends(), [], "after {way}");
        let log = server.log();
        assert_eq!(log.matches("loop: on_message for connection ").count(), count + 1, "{log}");
        assert_eq!(log.matches("killed: handler timeout in on_message of loop").count(), count + 1, "{log}");
    }
    drop(crowd);
    stop(&mut server);
}

#[test]
fn while_one_worker_hangs_the_other_serves_without_delay() {
    let (mut server, _dir) = serve(&["loop", "echo"], &["--workers", "2", "-o", "handler_timeout=6s"]);
    let mut clients: Vec<Raw> = (0..10).map(|_| Raw::open(&server.address(), "/echo")).collect();
    let mut culprit = Raw::open(&server.address(), "/loop");
    culprit.text("sleep");
    until("it hangs", || logged(&server, "sleeping") == 1);
    // Half of them are in the other worker, and are answered at once.
    clients.iter_mut().for_each(|client| client.text("now?"));
    let answered = |client: &Raw| {
        client.stream.set_nonblocking(true).unwrap();
        let answered = client.stream.peek(&mut [0]).is_ok();
        client.stream.set_nonblocking(false).unwrap();
        answered
    };
    until("those of the other worker are answered", || {
        clients.iter().filter(|client| answered(client)).count() >= 4
    });
    assert!(!answered(&culprit), "only after the worker that hung had ended");
    culprit.expect_close(1011);
    clients.iter_mut().for_each(|client| assert_eq!(client.next_text(), "now?"));
    drop((clients, culprit));
    stop(&mut server);
}

#[test]
fn a_blocking_handler_is_judged_by_the_processor_time_that_it_uses_between_calls() {
    let times = ["-o", "handler_timeout=700ms", "-o", "ping_interval=0"]; // a busy machine takes long for all of it
    let (mut server, _dir) = serve(&["busy_blocking", "echo"], &times);
    let mut event = Raw::open(&server.address(), "/echo");
    let mut idle = Raw::open(&server.address(), "/busy_blocking");
    assert_eq!(idle.ask("wait 1000"), "done", "waiting is not hanging");
    assert_eq!(idle.ask("work 1000"), "done", "each call of the host begins the time anew");
    let mut culprit = Raw::open(&server.address(), "/busy_blocking");
    culprit.text("spin");
    culprit.expect_close(1011);
    idle.expect_close(1012);
    assert_eq!(event.ask("still"), "still");
    server.says("busy_blocking: its thread for connection ");
    drop((event, idle, culprit));
    stop(&mut server);
}

#[test]
fn a_posted_function_that_runs_when_its_connection_ends_is_watched() {
    let (mut server, _dir) = serve(&["busy_blocking"], &["--workers", "1", "-o", "handler_timeout=300ms"]);
    let mut culprit = Raw::open(&server.address(), "/busy_blocking");
    culprit.text("leave");
    // The thread has gone, or is still there.
    let named = ["a posted function or timer for connection ", "its thread for connection "];
    until("it is named", || {
        named.iter().any(|place| logged(&server, &format!("busy_blocking: {place}")) == 1)
    });
    drop(culprit);
    let mut next = Raw::open(&server.address(), "/busy_blocking");
    assert_eq!(next.ask("wait 1"), "done");
    drop(next);
    stop(&mut server);
}

#[test]
fn waiting_of_a_blocking_handler_has_its_own_limit() {
    let (mut server, _dir) = serve(&["busy_blocking"], &["-o", "handler_wait_timeout=1s"]);
    let mut culprit = Raw::open(&server.address(), "/busy_blocking");
    culprit.text("wait 60000");
    culprit.expect_close(1011);
    drop(culprit);
    stop(&mut server);
}

#[test]
fn time_in_which_the_process_was_stopped_does_not_count() {
    let (mut server, _dir) = serve(&["loop"], &["-o", "handler_timeout=4s"]);
    let mut client = Raw::open(&server.address(), "/loop");
    let worker = Pid::from_raw(server.worker());
    client.text("nap");
    // The callback sleeps for two seconds, in the middle of which the process is stopped for longer than the limit.
    until("it naps", || logged(&server, "napping") == 1);
    kill(worker, Signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    kill(worker, Signal::SIGCONT).unwrap();
    assert_eq!(client.next_text(), "nap");
    assert_eq!(server.worker(), worker.as_raw());
    drop(client);
    stop(&mut server);
}
