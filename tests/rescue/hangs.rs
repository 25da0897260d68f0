//! Handlers that do not come back.

use std::time::{Duration, Instant};

use crate::client::Raw;
use crate::crowd::{Crowd, SMALL_TALK};
use crate::{serve, stop};

#[test]
fn a_handler_that_hangs_is_named_and_ended_and_the_others_go_on() {
    let (mut server, _dir) = serve(&["loop", "echo"], &["--workers", "2", "--handler-timeout", "300ms"]);
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
        assert_eq!(log.matches("did not come back in on_message of loop").count(), count + 1, "{log}");
    }
    drop(crowd);
    stop(&mut server);
}

#[test]
fn while_one_worker_hangs_the_other_serves_without_delay() {
    let (mut server, _dir) = serve(&["loop", "echo"], &["--workers", "2", "--handler-timeout", "1500ms"]);
    let mut clients: Vec<Raw> = (0..10).map(|_| Raw::open(&server.address(), "/echo")).collect();
    let mut culprit = Raw::open(&server.address(), "/loop");
    culprit.text("sleep");
    // Half of them are in the other worker, and answer at once; who does is there.
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    clients.iter_mut().for_each(|client| client.text("now?"));
    let mut prompt = 0;
    for client in &mut clients {
        client.stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let mut byte = [0];
        prompt += usize::from(client.stream.peek(&mut byte).is_ok());
        client.stream.set_read_timeout(Some(crate::daemon::PATIENCE)).unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!((4..=6).contains(&prompt), "{prompt} of 10 were answered while one of two workers hung");
    culprit.expect_close(1011);
    clients.iter_mut().for_each(|client| assert_eq!(client.next_text(), "now?"));
    drop((clients, culprit));
    stop(&mut server);
}

#[test]
fn a_blocking_handler_that_hangs_is_ended_and_one_that_waits_in_a_call_is_not() {
    let (mut server, _dir) = serve(&["everything_blocking", "echo"], &["--handler-timeout", "300ms"]);
    let mut event = Raw::open(&server.address(), "/echo");
    let mut waiting = Raw::open(&server.address(), "/everything_blocking");
    assert_eq!(waiting.ask("sleep 1"), "sleep: ok");
    std::thread::sleep(Duration::from_millis(900));
    assert_eq!(waiting.ask("sleep 1"), "sleep: ok", "the time in ws_receive does not count");
    let mut culprit = Raw::open(&server.address(), "/everything_blocking");
    culprit.text("sleep 20000");
    culprit.expect_close(1011);
    waiting.expect_close(1012);
    assert_eq!(event.ask("still"), "still");
    server.says("everything_blocking: its thread for connection ");
    drop((event, waiting, culprit));
    stop(&mut server);
}
