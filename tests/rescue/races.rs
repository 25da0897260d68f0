//! Races with crashes, each provoked.

use std::io::{Read, Write};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{CLOSE, PING, PONG, Raw, UPGRADE, frame as frame_bytes};
use crate::crowd::{Crowd, End, Habits, SMALL_TALK};
use crate::daemon::{children, is_alive, until};
use crate::{crash, logged, serve, stop};

/// Reads frames of 10,000 zeros to the end of the connection; returns the code of the last Close frame.
fn zeros_and_close(client: &mut Raw) -> Option<u16> {
    let bytes = client.rest();
    let mut rest = &bytes[..];
    while let [0x82, 126, high, low, frame @ ..] = rest {
        let size = usize::from(u16::from_be_bytes([*high, *low]));
        let payload = &frame[..size.min(frame.len())];
        assert!(payload.iter().all(|byte| *byte == 0), "something else stands in the middle of a frame");
        rest = &frame[payload.len()..];
    }
    match rest {
        [CLOSE, 2, high, low] => Some(u16::from_be_bytes([*high, *low])),
        // The header of a frame may be torn, too.
        [] | [0x82] | [0x82, 126] | [0x82, 126, _] => None,
        other => panic!("not a frame of this handler: {:?}", &other[..other.len().min(20)]),
    }
}

#[test]
fn simultaneous_crashes_of_threads() {
    let (mut server, _dir) = serve(&["rescue", "echo"], &[]);
    let crowd = Crowd::gather(&server.address(), "/echo", 100, SMALL_TALK);
    for round in 1..=5 {
        let mut client = Raw::open(&server.address(), "/rescue");
        client.text("crowd 8 null");
        until("the crash is over", || logged(&server, "has ended after its crash") == round);
        assert_eq!(crowd.served().clients, 100);
        assert_eq!(crowd.ends(), []);
    }
    drop(crowd);
    stop(&mut server);
}

#[test]
fn a_thread_with_blocked_signals_does_not_stop_the_rescue() {
    let (mut server, _dir) = serve(&["rescue", "echo"], &[]);
    let crowd = Crowd::gather(&server.address(), "/echo", 100, SMALL_TALK);
    crash(&server, "/rescue", "numb null");
    assert_eq!(crowd.served().clients, 100);
    assert_eq!(crowd.ends(), []);
    drop(crowd);
    stop(&mut server);
}

#[test]
fn deaths_of_a_handlers_children_have_no_effect() {
    let (mut server, _dir) = serve(&["rescue", "echo"], &[]);
    let crowd = Crowd::gather(&server.address(), "/echo", 50, SMALL_TALK);
    let mut client = Raw::open(&server.address(), "/rescue");
    for (way, end) in
        [("exit", "status 0"), ("null", "signal 11"), ("abort", "signal 6"), ("none", "status 99")]
    {
        assert_eq!(client.ask(&format!("child {way}")), end);
        assert_eq!(crowd.served().clients, 50);
        assert_eq!(crowd.ends(), []);
    }
    assert_eq!(client.ask("still"), "still");
    assert_eq!(logged(&server, "crashed"), 0);
    drop(crowd);
    drop(client);
    stop(&mut server);
}

#[test]
fn a_child_that_returns_from_its_callback_ends_there() {
    let (mut server, _dir) = serve(&["crash", "crash_blocking", "echo"], &[]);
    let habits = Habits { deflate: true, ..SMALL_TALK };
    let crowd = Crowd::gather(&server.address(), "/echo", 50, habits);
    for (resource, callback) in [("/crash", "on_message"), ("/crash_blocking", "transfer_data")] {
        let mut client = Raw::open(&server.address(), resource);
        for _ in 0..3 {
            // It arrives once: the child has no host to send it.
            assert_eq!(client.ask("fork"), "fork");
            assert_eq!(client.ask("still"), "still");
        }
        let told = format!("a child of fork() returned from {callback} for connection ");
        until("they have ended", || logged(&server, &told) == 3);
        crowd.served();
        assert_eq!(crowd.ends(), []);
    }
    let worker = server.worker();
    until("no child is left", || children(worker).iter().all(|pid| !is_alive(*pid)));
    drop(crowd);
    stop(&mut server);
}

#[test]
fn nothing_is_sent_within_a_frame() {
    let (mut server, _dir) = serve(&["rescue"], &[]);
    let mut culprit = Raw::open(&server.address(), "/rescue");
    culprit.text("large 20000000 null");
    let bytes = culprit.rest();
    assert!(bytes.len() > 10 && bytes.len() < 20_000_000, "{} bytes", bytes.len());
    assert_eq!(bytes[..2], [0x82, 127]);
    assert!(bytes[10..].iter().all(|byte| *byte == 0), "a Close frame within another");
    stop(&mut server);
}

#[test]
fn a_slow_reader_gets_1012_or_no_close_frame_and_never_a_torn_frame() {
    for size in [20_000, 900_000, 20_000_000] {
        let (mut server, _dir) = serve(&["rescue", "echo"], &[]);
        let mut bystander = Raw::open(&server.address(), "/rescue");
        let mut slow: Vec<Raw> = (0..4).map(|_| Raw::open(&server.address(), "/rescue")).collect();
        for client in &mut slow {
            assert_eq!(client.ask("join"), "join");
        }
        // From here on no client reads for a while, and all queues are full.
        slow[0].text("shout 9000000 none");
        let mut culprit = Raw::open(&server.address(), "/rescue");
        culprit.text(&format!("shout {size} null"));
        let readers: Vec<_> = slow
            .into_iter()
            .map(|mut client| std::thread::spawn(move || zeros_and_close(&mut client)))
            .collect();
        culprit.expect_close(1011);
        let codes: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        assert!(codes.iter().all(|code| matches!(code, None | Some(1012))), "{codes:?}");
        assert_eq!(bystander.ask("still"), "still");
        drop(bystander);
        stop(&mut server);
    }
}

#[test]
fn a_damaged_record_is_not_adopted() {
    let (mut server, _dir) = serve(&["rescue"], &[]);
    // Short enough to be in the record itself.
    let mut clients: Vec<Raw> =
        (0..60).map(|index| Raw::open(&server.address(), &format!("/rescue?v-{index:03}"))).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.ask(&format!("state of {index}")), format!("of {index} 0"));
    }
    assert_eq!(clients[0].ask("damage v-030"), "damaged");
    crash(&server, "/rescue", "null");
    for (index, client) in clients.iter_mut().enumerate() {
        match index {
            30 => client.expect_end(),
            _ => assert_eq!(client.ask("tell"), format!("of {index} 1")),
        }
    }
    server.says("moved 59 connections, lost 2");
    // Now a larger area is overwritten.
    clients.remove(30);
    assert_eq!(clients[0].ask("whole v-031"), "damaged");
    crash(&server, "/rescue", "null");
    let mut left = 0;
    for client in &mut clients {
        client.text("tell");
        match client.next() {
            Some(frame) => assert!(frame.payload.starts_with(b"of ") && frame.payload.ends_with(b" 1")),
            None => continue,
        }
        left += 1;
    }
    assert!((1..59).contains(&left), "{left} of 59 went on");
    drop(clients);
    stop(&mut server);
}

#[test]
fn a_connection_whose_subscriptions_are_damaged_does_not_go_on_without_them() {
    let (mut server, _dir) = serve(&["rescue", "topics"], &[]);
    let [mut damaged, mut intact] = ["damaged-topic", "intact-topic"].map(|topic| {
        let mut client = Raw::open(&server.address(), "/topics");
        assert_eq!(client.ask(&format!("sub {topic}")), "sub 0");
        client
    });
    crash(&server, "/rescue", "spoil damaged-topic null");
    damaged.expect_close(1012);
    assert_eq!(intact.ask("pub intact-topic still"), "pub 0");
    assert_eq!(intact.next_text(), "still");
    drop((damaged, intact));
    stop(&mut server);
}

#[test]
fn a_request_that_its_connection_no_longer_keeps_is_not_read() {
    let (mut server, _dir) = serve(&["keep_request", "crash", "echo"], &["-o", "max_head=1M"]);
    let crowd = Crowd::gather(&server.address(), "/echo", 100, SMALL_TALK);
    let cookie = format!("Cookie: {}\r\n", "c".repeat(900_000));
    let mut lingering: Vec<Raw> = (0..5).map(|_| Raw::connect(&server.address())).collect();
    for client in &mut lingering {
        client.upgrade("/keep_request", &cookie);
        client.send(&[0xff; 16]); // not a frame
        client.expect_close(1002);
    }
    let mut kept = Raw::connect(&server.address());
    kept.upgrade("/keep_request", &cookie);
    crash(&server, "/crash", "null");
    assert_eq!(crowd.served().clients, 100);
    assert_eq!(crowd.ends(), []);
    // A connection too large for a datagram gets a close code.
    kept.expect_close(1012);
    for client in &mut lingering {
        client.expect_end();
    }
    drop(crowd);
    stop(&mut server);
}

#[test]
fn an_overflow_of_the_heap_costs_one_connection() {
    let (mut server, _dir) = serve(&["rescue", "echo"], &[]);
    let crowd = Crowd::gather(&server.address(), "/echo", 100, SMALL_TALK);
    for size in [4_000, 16_000, 60_000] {
        crash(&server, "/rescue", &format!("overflow {size} null"));
        crowd.served();
        assert_eq!(crowd.ends(), [], "after {size} bytes");
    }
    drop(crowd);
    stop(&mut server);
}

#[test]
fn without_a_free_descriptor_all_threads_are_stopped() {
    let (mut server, dir) = serve(&["rescue", "echo"], &[]);
    let crowd = Crowd::gather(&server.address(), "/echo", 300, SMALL_TALK);
    let path = dir.path().join("counted");
    let mut moved = 0;
    for _ in 0..5 {
        std::fs::write(&path, [0; 8]).unwrap();
        let mut counting = Raw::open(&server.address(), "/rescue");
        counting.text(&format!("count {}", path.display()));
        for number in 1..=20 {
            assert_eq!(counting.next_text(), number.to_string());
        }
        let worker = server.worker();
        crash(&server, "/rescue", "exhaust null");
        until("it is dead", || !is_alive(worker));
        counting.frame(PING, b"there?");
        let mut last = 20;
        let is_moved = loop {
            let frame = counting.next().expect("an answer or a Close, not the end");
            match frame.first {
                PONG => break true,
                CLOSE => break false,
                _ => last = String::from_utf8(frame.payload).unwrap().parse::<u64>().unwrap(),
            }
        };
        let noted = u64::from_ne_bytes(std::fs::read(&path).unwrap().try_into().unwrap());
        assert!(!is_moved || noted <= last, "{noted} were sent, {last} arrived");
        moved += usize::from(is_moved);
    }
    println!("moved {moved} times of 5");
    crowd.served();
    assert_eq!(crowd.ends(), []);
    drop(crowd);
    stop(&mut server);
}

#[test]
fn a_handler_that_closes_the_socket_of_another_connection_costs_that_one() {
    let (mut server, _dir) = serve(&["rescue", "echo"], &[]);
    let first = Crowd::gather(&server.address(), "/echo", 60, SMALL_TALK);
    let mut victim = Raw::open(&server.address(), "/echo");
    assert_eq!(victim.ask("before"), "before");
    let last = Crowd::gather(&server.address(), "/echo", 60, SMALL_TALK);
    let victim = victim.into_stream();
    let port = victim.local_addr().unwrap().port();
    crash(&server, "/rescue", &format!("unplug {port} null"));
    assert!(matches!((&victim).read(&mut [0]), Ok(0) | Err(_)));
    assert_eq!((first.served().clients, last.served().clients), (60, 60));
    assert_eq!((first.ends(), last.ends()), (vec![], vec![]));
    drop((first, last));
    stop(&mut server);
}

#[test]
fn a_crash_in_on_open_of_a_moved_connection_costs_that_one() {
    let (mut server, _dir) = serve(&["rescue", "echo"], &[]);
    let crowd = Crowd::gather(&server.address(), "/echo", 50, SMALL_TALK);
    let mut traps: Vec<Raw> = (0..5).map(|_| Raw::open(&server.address(), "/rescue?resumed=null")).collect();
    crash(&server, "/rescue", "null");
    for trap in &mut traps {
        trap.expect_close(1011);
        trap.expect_end();
    }
    assert_eq!(crowd.served().clients, 50);
    assert_eq!(crowd.ends(), []);
    assert_eq!(logged(&server, " crashed: "), 6);
    drop(crowd);
    drop(traps);
    stop(&mut server);
}

#[test]
fn a_connection_that_kills_its_receiver_without_attribution_is_closed() {
    let (mut server, _dir) = serve(&["rescue", "echo"], &[]);
    let mut trap = Raw::open(&server.address(), "/rescue?thread=null");
    let mut other = Raw::open(&server.address(), "/rescue");
    assert_eq!(trap.ask("here"), "here");
    crash(&server, "/rescue", "null");
    for client in [&mut trap, &mut other] {
        client.expect_close(1012);
        client.expect_end();
    }
    assert!(logged(&server, " crashed: ") < 10, "{}", server.log());
    let mut later = Raw::open(&server.address(), "/rescue");
    assert_eq!(later.ask("still"), "still");
    drop((trap, other, later));
    stop(&mut server);
}

#[test]
fn a_crash_during_the_receipt_of_connections_loses_none() {
    let (mut server, _dir) = serve(&["rescue", "slow=rescue", "echo"], &["-o", "handshake_timeout=5m"]);
    let habits = Habits { quiet: true, ..SMALL_TALK };
    let mut trap = Raw::open(&server.address(), "/rescue?arrived=20");
    let first = Crowd::gather(&server.address(), "/echo", 500, habits);
    // Their handshakes restart when they arrive, and take longer than a crash waits.
    let mut late: Vec<Raw> = (0..50).map(|_| Raw::connect(&server.address())).collect();
    for client in &mut late {
        client.send(format!("GET /slow?late=5 HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n").as_bytes());
    }
    let last = Crowd::gather(&server.address(), "/echo", 500, habits);
    crash(&server, "/rescue", "null");
    // Until it is closed, since it is not known which connection it is.
    trap.expect_close(1012);
    assert_eq!((first.served().clients, last.served().clients), (500, 500));
    assert_eq!((first.ends(), last.ends()), (vec![], vec![]));
    let mut other = Raw::open(&server.address(), "/slow");
    assert_eq!(other.ask("accept"), "accept");
    for client in &mut late {
        assert!(client.head().starts_with("HTTP/1.1 101 "));
    }
    drop((first, last, late, other));
    stop(&mut server);
}

#[test]
fn a_crash_while_moving_connections_loses_and_duplicates_none() {
    let habits = Habits { deflate: true, quiet: true, ..SMALL_TALK };
    // While the other 700 are sent: a worker that has sent all in time exits without a crash.
    for delay in ["0", "1", "3"] {
        let (mut server, _dir) = serve(&["rescue", "echo"], &["-o", "worker_max_messages=1000"]);
        let first = Crowd::gather(&server.address(), "/echo", 300, habits);
        let trap = Raw::open(&server.address(), &format!("/rescue?leaving={delay}"));
        let last = Crowd::gather(&server.address(), "/echo", 700, habits);
        until("it has crashed while it was worn", || {
            first.served();
            last.served();
            logged(&server, " crashed: ") > 0
        });
        for _ in 0..3 {
            assert_eq!((first.served().clients, last.served().clients), (300, 700), "after {delay} ms");
        }
        assert_eq!((first.ends(), last.ends()), (vec![], vec![]), "after {delay} ms");
        drop((first, last, trap));
        stop(&mut server);
    }
}

#[test]
fn both_workers_crash_at_once() {
    let (mut server, _dir) = serve(&["crash", "echo"], &["--workers", "2"]);
    let crowd = Crowd::gather(&server.address(), "/echo", 200, SMALL_TALK);
    for _ in 0..5 {
        let mut culprits: Vec<Raw> = (0..8).map(|_| Raw::open(&server.address(), "/crash")).collect();
        let start = Barrier::new(culprits.len());
        std::thread::scope(|scope| {
            for culprit in &mut culprits {
                scope.spawn(|| {
                    start.wait();
                    culprit.text("null");
                    culprit.expect_close(1011);
                    culprit.expect_end();
                });
            }
        });
        assert_eq!(crowd.served().clients, 200);
        assert_eq!(crowd.ends(), []);
    }
    drop(crowd);
    stop(&mut server);
}

#[test]
fn connections_in_the_opening_handshake_go_on() {
    let (mut server, _dir) = serve(&["crash", "echo", "late_accept"], &[]);
    let mut silent = Raw::connect(&server.address());
    let mut half = Raw::connect(&server.address());
    half.send(b"GET /echo HTTP/1.1\r\nHost: local");
    let mut late = Raw::connect(&server.address());
    late.send(format!("GET /late_accept?accept=300 HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n").as_bytes());
    let mut open = Raw::open(&server.address(), "/echo");
    assert_eq!(open.ask("all of them were accepted before"), "all of them were accepted before");
    crash(&server, "/crash", "null");
    silent.upgrade("/echo", "");
    half.send(format!("host\r\n{UPGRADE}\r\n").as_bytes());
    assert!(half.head().starts_with("HTTP/1.1 101 "));
    assert!(late.head().starts_with("HTTP/1.1 101 "));
    for client in [&mut silent, &mut half, &mut late, &mut open] {
        assert_eq!(client.ask("still"), "still");
    }
    drop((silent, half, late, open));
    stop(&mut server);
}

#[test]
fn connections_that_arrive_during_a_crash_are_served() {
    let (mut server, _dir) = serve(&["crash", "crash_blocking", "echo"], &["--workers", "2"]);
    let enough = AtomicBool::new(false);
    let address = server.address();
    std::thread::scope(|scope| {
        let arrivals: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut served = 0;
                    while !enough.load(Ordering::Relaxed) {
                        let mut client = Raw::open(&address, "/echo");
                        assert_eq!(client.ask("served"), "served", "after {served}");
                        served += 1;
                    }
                    served
                })
            })
            .collect();
        let crashes = || {
            // On the loop, and on another thread while the loop runs.
            for resource in ["/crash", "/crash_blocking"].iter().cycle().take(25) {
                crash(&server, resource, "null");
            }
        };
        let crashed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(crashes));
        enough.store(true, Ordering::Relaxed);
        crashed.unwrap();
        let served: u32 = arrivals.into_iter().map(|thread| thread.join().unwrap()).sum();
        println!("{served} connections were served during 25 crashes");
    });
    stop(&mut server);
}

#[test]
fn a_crash_while_the_server_stops() {
    for delay in [0, 1, 3, 10] {
        let (mut server, _dir) = serve(&["crash", "echo"], &["--workers", "2", "-o", "stop_timeout=1m"]);
        let mut others: Vec<Raw> = (0..20).map(|_| Raw::open(&server.address(), "/echo")).collect();
        let mut closing: Vec<Raw> =
            (0..4).map(|_| Raw::open(&server.address(), "/crash?close=null")).collect();
        let mut culprit = Raw::open(&server.address(), "/crash");
        culprit.text("null");
        std::thread::sleep(Duration::from_millis(delay));
        let begun = Instant::now();
        server.signal(Signal::SIGTERM);
        for client in others.iter_mut().chain(&mut closing) {
            let frame = client.next();
            let told = frame.as_ref().is_some_and(|frame| {
                frame.first == CLOSE && matches!(frame.payload[..], [0x03, 0xe9 | 0xf3 | 0xf4])
            });
            assert!(told, "delay {delay}: neither 1001 nor 1011 nor 1012: {frame:?}");
            let _ = client.stream.write_all(&frame_bytes(CLOSE, &[0x03, 0xe9]));
            client.expect_end();
        }
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        // When three quarters of the time are over those are cut that are left.
        assert!(begun.elapsed() < Duration::from_secs(40), "delay {delay}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_killed_worker_is_attributed_and_its_clients_see_the_end_at_once() {
    // Nobody else ends them.
    let (mut server, _dir) = serve(&["loop", "echo"], &["-o", "ping_interval=0"]);
    let mut others: Vec<Raw> = (0..100).map(|_| Raw::open(&server.address(), "/echo")).collect();
    let mut culprit = Raw::open(&server.address(), "/loop");
    assert_eq!(culprit.ask("ready"), "ready");
    culprit.text("sleep");
    let worker = server.worker();
    until("the handler sleeps", || asleep(worker));
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    for client in others.iter_mut().chain([&mut culprit]) {
        client.expect_end();
    }
    server.says("died of SIGKILL in on_message of loop, connection ");
    assert_eq!(Raw::open(&server.address(), "/echo").ask("still"), "still");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

/// Whether the main thread of a process is in nanosleep.
fn asleep(pid: i32) -> bool {
    let mut wchan = String::new();
    let file = std::fs::File::open(format!("/proc/{pid}/syscall"));
    let _ = file.and_then(|mut file| file.read_to_string(&mut wchan));
    // 35: nanosleep, 230: clock_nanosleep (x86-64); 101 and 115 (arm64).
    ["35 ", "230 ", "101 ", "115 "].iter().any(|number| wchan.starts_with(number))
}

#[test]
fn an_exit_by_system_call_is_reported() {
    let (mut server, _dir) = serve(&["crash_blocking", "echo"], &[]);
    let mut culprit = Raw::open(&server.address(), "/crash_blocking");
    culprit.text("exit_group");
    culprit.expect_end();
    server.says("] ended with status 0");
    assert_eq!(Raw::open(&server.address(), "/echo").ask("still"), "still");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(logged(&server, "] ended with status"), 1, "{}", server.log());
}

#[test]
fn a_crash_signal_from_outside_ends_at_most_the_served_connection() {
    let (mut server, _dir) = serve(&["echo"], &[]);
    let crowd = Crowd::gather(&server.address(), "/echo", 100, SMALL_TALK);
    for signal in [Signal::SIGSEGV, Signal::SIGABRT] {
        let worker = server.worker();
        kill(Pid::from_raw(worker), signal).unwrap();
        until("it is gone", || !server.workers().contains(&worker));
        crowd.served();
        let ends = crowd.ends();
        // Closed without a frame, if the signal came during a write to it; with 1011, if its handler was running.
        let told = |end: &End| matches!(end.code, None | Some(1011 | 1012));
        assert!(ends.len() <= 1 && ends.iter().all(told), "{signal}: {ends:?}");
    }
    drop(crowd);
    stop(&mut server);
}

#[test]
fn messages_from_threads_to_the_loop_are_not_lost_silently() {
    let (mut server, _dir) = serve(&["ten_threads", "crash"], &[]);
    for round in 0..5 {
        let mut client = Raw::open(&server.address(), "/ten_threads");
        client.text("go");
        // At a random point.
        let mut next = [0; 10];
        for _ in 0..100 * round {
            assert_eq!(count_up(&client.next_text(), &mut next), None);
        }
        crash(&server, "/crash", "null");
        // Its threads ended with the process. Their messages arrived in order, and then, if more were in
        // transit, the client got a close code. Otherwise the connection continues.
        client.frame(PING, b"there?");
        loop {
            let frame = client.next().expect("an answer or a Close, not the end");
            match frame.first {
                PONG => break,
                CLOSE => {
                    assert_eq!(frame.payload, [0x03, 0xf4]);
                    break;
                }
                _ => drop(count_up(&String::from_utf8(frame.payload).unwrap(), &mut next)),
            }
        }
    }
    stop(&mut server);
}

/// Counts "THREAD NUMBER", which must be the thread's next; returns other messages.
fn count_up(text: &str, next: &mut [u32; 10]) -> Option<String> {
    let (thread, number) = text.split_once(' ')?;
    let Ok(thread) = thread.parse::<usize>() else { return Some(text.to_owned()) };
    assert_eq!(number.parse::<u32>().unwrap(), next[thread], "{text}: {next:?}");
    next[thread] += 1;
    None
}

#[test]
fn unread_messages_of_a_paused_connection_move() {
    let (mut server, _dir) = serve(&["everything", "crash"], &[]);
    let mut paused = Raw::open(&server.address(), "/everything");
    assert_eq!(paused.ask("pause 60000"), "pause: 0");
    for number in 0..1000 {
        paused.frame(crate::client::BINARY, format!("{number}").as_bytes());
    }
    // Another one is served meanwhile, so the worker could have read.
    crash(&server, "/crash", "null");
    for number in 0..1000 {
        let frame = paused.next().unwrap();
        assert_eq!(frame.payload, format!("{number}").as_bytes());
    }
    drop(paused);
    stop(&mut server);
}
