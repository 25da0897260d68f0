//! The slower tier: `cargo test --release --test rescue -- --ignored --nocapture --test-threads 1`.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{Raw, TEXT};
use crate::crashes::crash_beside;
use crate::crowd::{Crowd, Habits, SMALL_TALK};
use crate::daemon::{TIMEOUT, descriptors_of, memory_of, until};
use crate::{HANDLERS, WAYS, crash, serve, stop};

#[test]
#[ignore = "takes a minute"]
fn twenty_crashes_in_each_way_end_one_connection_each() {
    let (mut server, _dir) = serve(&HANDLERS, &["--workers", "2"]);
    let crowd = Crowd::gather(&server.address(), "/echo", 1000, SMALL_TALK);
    crash_beside(&crowd, &server, &WAYS, 20 * WAYS.len());
    drop(crowd);
    stop(&mut server);
}

#[test]
#[ignore = "needs 20,000 descriptors"]
fn fifteen_thousand_connections_are_served_again_soon_after_a_crash() {
    let (mut server, _dir) = serve(&HANDLERS, &[]);
    let habits = Habits { quiet: true, ..SMALL_TALK };
    let crowd = Crowd::gather(&server.address(), "/echo", 15_000, habits);
    crowd.served();
    let mut gaps = Vec::new();
    for _ in 0..5 {
        let wave = crowd.served();
        let usual = wave.ended - wave.begun;
        let crashed = Instant::now();
        crash(&server, "/crash", "null");
        let wave = crowd.served();
        assert_eq!((wave.clients, crowd.ends().len()), (15_000, 0));
        let all = wave.ended - crashed;
        println!("15,000 messages take {usual:?}; from the crash to the last answer: {all:?}");
        gaps.push(all.saturating_sub(usual));
    }
    gaps.sort();
    println!("what the crash adds for the last of 15,000 connections, median of 5: {:?}", gaps[2]);
    assert!(gaps[2] < Duration::from_secs(2), "{gaps:?}");
    drop(crowd);
    stop(&mut server);
}

#[test]
#[ignore = "takes a minute"]
fn every_client_of_a_randomly_killed_worker_sees_the_end() {
    const LOAD: Duration = Duration::from_secs(60);
    let (mut server, _dir) = serve(&["echo"], &["--workers", "4"]);
    let descriptors = descriptors_of(server.pid());
    let address = server.address();
    let (enough, ends, served) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let (mut kills, mut early) = (0, None);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    // Without a worker the kernel queues it, and it is served later.
                    let mut client = Raw::connect(&address);
                    let request =
                        format!("GET /echo HTTP/1.1\r\nHost: localhost\r\n{}\r\n", crate::client::UPGRADE);
                    if std::io::Write::write_all(&mut client.stream, request.as_bytes()).is_err() {
                        continue;
                    }
                    talk(&mut client, &enough, &served);
                    ends.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let begun = Instant::now();
        let mut seed = 1_u32;
        loop {
            let passed = begun.elapsed();
            if passed > LOAD / 3 {
                // By then all shared memory has been touched.
                early.get_or_insert_with(|| memory_of(server.pid(), "VmRSS"));
            }
            if passed > LOAD {
                break;
            }
            let workers = server.workers();
            // The linear congruential generator of Numerical Recipes, for similar kills in each run.
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if let Some(pid) = workers.get((seed >> 16) as usize % workers.len().max(1)) {
                kills += u32::from(kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok());
            }
            std::thread::sleep(Duration::from_millis(u64::from(seed >> 24) + 50));
        }
        enough.store(true, Ordering::Relaxed);
    });
    println!("{kills} kills, {} ends, {} messages", ends.into_inner(), served.into_inner());
    until("all workers are there again", || server.workers().len() == 4);
    assert_eq!(Raw::open(&address, "/echo").ask("still"), "still");
    until("the supervisor has no more descriptors than before", || {
        descriptors_of(server.pid()) <= descriptors
    });
    let (early, late) = (early.unwrap(), memory_of(server.pid(), "VmRSS"));
    println!("memory of the supervisor: {early} KiB, then {late} KiB");
    assert!(late <= early + 512, "{early} {late}");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

/// Sends messages until the connection ends; each must be answered, or the connection must end, at once.
fn talk(client: &mut Raw, enough: &AtomicBool, served: &AtomicU32) {
    let bytes = crate::client::frame(TEXT, b"there?");
    let head = "\r\n\r\n";
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    let mut read =
        |client: &mut Raw, seen: &mut Vec<u8>| match std::io::Read::read(&mut client.stream, &mut buffer) {
            Ok(count @ 1..) => {
                seen.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("left in the dark: {error}")
            }
            _ => false,
        };
    while !seen.windows(4).any(|bytes| bytes == head.as_bytes()) {
        if !read(client, &mut seen) {
            return;
        }
    }
    seen.clear();
    client.stream.set_read_timeout(Some(TIMEOUT / 10)).unwrap();
    while !enough.load(Ordering::Relaxed) {
        if std::io::Write::write_all(&mut client.stream, &bytes).is_err() || !read(client, &mut seen) {
            return;
        }
        while seen.len() < 8 {
            if !read(client, &mut seen) {
                return;
            }
        }
        assert_eq!(seen, [&[TEXT, 6][..], b"there?"].concat());
        seen.clear();
        served.fetch_add(1, Ordering::Relaxed);
    }
}
