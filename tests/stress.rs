//! The slower tier: threads of a handler use random connections while those close, crash, move and are replaced.
//! Messages accepted with WS_OK arrive once and in order, or their connection has ended; afterwards all counters are
//! zero.
//!
//!     STRESS_SEED=7 STRESS_SECONDS=40 cargo test --test stress -- --ignored --nocapture
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use client::{CLOSE, Raw, TEXT};
use daemon::{Dir, Server, until};

const CLIENTS: usize = 60;
/// Rows of the fixture's file, and their size.
const ROWS: u64 = 1 << 16;
const ROW: u64 = 20;

/// Shared by all clients.
struct Shared {
    address: String,
    next_row: AtomicU32,
    /// No client connects again.
    is_over: AtomicBool,
    messages: AtomicU32,
    moves: AtomicU32,
    ends: AtomicU32,
}

/// A client: its current connection, and whether that has reported that all is settled.
#[derive(Default)]
struct Client {
    stream: Mutex<Option<TcpStream>>,
    is_settled: AtomicBool,
    /// The answer to "totals" is pending. A second request would queue a second answer.
    is_asked: AtomicBool,
}

/// The numbers received last, by process and thread.
type Received = HashMap<(u32, usize), u32>;

impl Client {
    /// One connection after the other.
    fn live(&self, shared: &Shared) {
        while !shared.is_over.load(Ordering::Relaxed) {
            let row = shared.next_row.fetch_add(1, Ordering::Relaxed);
            assert!(u64::from(row) < ROWS, "too many connections");
            let open = || Raw::open(&shared.address, &format!("/stress?{row}"));
            // A worker may crash during the handshake.
            let Ok(mut raw) = std::panic::catch_unwind(open) else { continue };
            self.is_asked.store(false, Ordering::Relaxed);
            *self.stream.lock().unwrap() = Some(raw.stream.try_clone().unwrap());
            let mut received = Received::new();
            while let Some(frame) = raw.next().filter(|frame| frame.first != CLOSE) {
                assert_eq!(frame.first, TEXT);
                self.receive(shared, &mut received, std::str::from_utf8(&frame.payload).unwrap());
            }
            *self.stream.lock().unwrap() = None;
            shared.ends.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn receive(&self, shared: &Shared, received: &mut Received, text: &str) {
        let (what, numbers) = text.split_once(' ').unwrap();
        let numbers: Vec<u32> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
        let got = |received: &Received, thread| received.get(&(numbers[0], thread)).copied().unwrap_or(0);
        match what {
            "m" => {
                let last = received.entry((numbers[0], numbers[1] as usize)).or_default();
                assert_eq!(numbers[2], *last + 1, "lost, doubled or out of order: {text}");
                *last = numbers[2];
                shared.messages.fetch_add(1, Ordering::Relaxed);
            }
            "was" => {
                shared.moves.fetch_add(1, Ordering::Relaxed);
                for thread in 0..4 {
                    let (got, sent) = (got(received, thread), numbers[1 + thread]);
                    // The last one of a crashed process may not be counted.
                    assert!(got == sent || got == sent + 1, "thread {thread}: {sent} were sent, {got} came");
                }
                received.clear();
            }
            "totals" => {
                let is_all = (0..4).all(|thread| got(received, thread) == numbers[1 + thread]);
                let is_settled = is_all && numbers[5] == 0 && numbers[6] == numbers[7];
                self.is_settled.store(is_settled, Ordering::Relaxed);
                self.is_asked.store(false, Ordering::Relaxed);
            }
            _ => panic!("{text}"),
        }
    }

    /// Whether it has no connection, or all messages have arrived and nothing is queued.
    fn settles(&self) -> bool {
        match &mut *self.stream.lock().unwrap() {
            Some(stream) => {
                if !self.is_asked.swap(true, Ordering::Relaxed) {
                    let _ = stream.write_all(&client::frame(TEXT, b"totals"));
                }
                self.is_settled.load(Ordering::Relaxed)
            }
            None => true,
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Crashes, reloads, and replacements after `worker_max_messages`, for a while.
fn disturb(server: &Server, mut seed: u64, time: Duration) {
    let end = Instant::now() + time;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(random(400)));
        match random(4) {
            0 => server.signal(Signal::SIGHUP),
            1 => {
                _ = std::panic::catch_unwind(|| {
                    let mut culprit = Raw::open(&server.address(), "/crash");
                    culprit.text("null");
                    culprit.expect_close(1011);
                })
            }
            _ => {
                let count = random(400);
                _ = std::panic::catch_unwind(|| {
                    let mut other = Raw::open(&server.address(), "/echo");
                    (0..count).for_each(|_| assert_eq!(other.ask("x"), "x"));
                });
            }
        }
    }
}

#[test]
#[ignore = "takes a minute"]
fn accepted_messages_of_threads_arrive_or_their_connection_has_ended() {
    let seed =
        number("STRESS_SEED", Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id()));
    println!("STRESS_SEED={seed}");
    let dir = Dir::new();
    for name in ["stress", "crash", "echo"] {
        fixtures::add_handler(dir.path(), name, name);
    }
    let totals = dir.path().join("totals");
    std::fs::File::create(&totals).unwrap().set_len(ROWS * ROW).unwrap();
    let log = dir.path().join("log");
    let mut command = daemon::wshd();
    command.args(["--port", "0", "--log-level", "info", "--workers", "3", "-o", "quarantine_deaths=0"]);
    command.args(["-o", "worker_max_messages=2000", "--websock-handlers"]).arg(dir.path());
    command.arg("--log-file").arg(&log).env("STRESS_TOTALS", &totals);
    let mut server = Server::launch(command, log).when_ready();
    let shared = Arc::new(Shared {
        address: server.address(),
        next_row: AtomicU32::new(1),
        is_over: AtomicBool::new(false),
        messages: AtomicU32::new(0),
        moves: AtomicU32::new(0),
        ends: AtomicU32::new(0),
    });
    let clients: Vec<Arc<Client>> = std::iter::repeat_with(Arc::default).take(CLIENTS).collect();
    let threads: Vec<_> = clients
        .iter()
        .map(|client| {
            let (client, shared) = (Arc::clone(client), Arc::clone(&shared));
            std::thread::spawn(move || client.live(&shared))
        })
        .collect();
    disturb(&server, seed, Duration::from_secs(number("STRESS_SECONDS", 40)));
    shared.is_over.store(true, Ordering::Relaxed);
    // The threads of the handler stop; their messages arrive.
    std::fs::OpenOptions::new().write(true).open(&totals).unwrap().write_all(&[1]).unwrap();
    until("all has arrived, nothing is queued, and all that was posted has run", || {
        let is_dead = threads
            .iter()
            .zip(&clients)
            .any(|(thread, client)| thread.is_finished() && client.stream.lock().unwrap().is_some());
        assert!(!is_dead, "a client has found a fault");
        clients.iter().all(|client| client.settles())
    });
    let count = |count: &AtomicU32| count.load(Ordering::Relaxed);
    let (messages, moves, ends) = (count(&shared.messages), count(&shared.moves), count(&shared.ends));
    println!("{messages} messages, {moves} moves, {ends} ends");
    assert!(messages > 1000 && moves > 50 && ends > 10, "too little has happened");
    for client in &clients {
        if let Some(stream) = client.stream.lock().unwrap().take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}
