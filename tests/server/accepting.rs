//! Accepting connections: loads are even from the first connection on, no connection waits for a worker that
//! does not accept, and none is left waiting.

use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::balance::shares;
use crate::client::Raw;
use crate::daemon::{Server, until};
use crate::{Served, serve};

/// Four workers that are ready.
fn serve_four(handlers: &[&str], args: &[&str]) -> Served {
    let server = serve(handlers, &[&["--workers", "4"], args].concat());
    until("all four are ready", || server.log().matches("is ready").count() == 4);
    server
}

/// Opens a WebSocket and waits for an echo.
#[track_caller]
fn open(server: &Server) -> Raw {
    let mut raw = Raw::open(&server.address(), "/echo");
    assert_eq!(raw.ask("served"), "served");
    raw
}

#[test]
fn sequential_connections_are_shared_evenly() {
    let mut server = serve_four(&["echo"], &[]);
    let mut open_ones = Vec::new();
    for _ in 0..10 {
        for _ in 0..4 {
            open_ones.push(open(&server));
        }
        let shares = shares(&server);
        assert!(shares.iter().all(|share| *share == open_ones.len() / 4), "{shares:?}");
    }
    // And not because the supervisor rebalanced.
    assert!(!server.log().contains("moved to slot"), "{}", server.log());
    drop(open_ones);
    server.stop();
}

#[test]
fn while_a_worker_is_in_a_handler_the_others_do_not_wait_for_it() {
    let mut server = serve_four(&["echo", "turns"], &["-o", "handler_timeout=10m"]);
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let mut busy = Raw::open(&server.address(), "/turns");
    busy.text(&format!("A hold {}", go.display()));
    busy.text("order");
    server.says("A holds");
    // It has one connection. The others would stop at two each if they waited for it.
    let open_ones: Vec<Raw> = (0..40).map(|_| open(&server)).collect();
    busy.stream.set_nonblocking(true).unwrap();
    let answered = busy.stream.peek(&mut [0]).is_ok();
    busy.stream.set_nonblocking(false).unwrap();
    assert!(!answered, "it was over before the others were served");
    std::fs::write(go, "").unwrap();
    assert_eq!(busy.next_text(), "A");
    drop((busy, open_ones));
    server.stop();
}

#[test]
fn a_stopped_worker_is_not_waited_for() {
    let mut server = serve_four(&["echo"], &["-o", "worker_timeout=10m"]);
    let first = open(&server);
    let stopped = server.workers()[0];
    kill(Pid::from_raw(stopped), Signal::SIGSTOP).unwrap();
    let open_ones: Vec<Raw> = (0..20).map(|_| open(&server)).collect();
    kill(Pid::from_raw(stopped), Signal::SIGCONT).unwrap();
    drop((first, open_ones));
    server.stop();
}

#[test]
fn connections_during_kills_of_workers_are_served_or_closed() {
    let server = serve_four(&["echo"], &[]);
    let enough = AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        let clients = || {
            let mut served = 0;
            while !enough.load(Ordering::Relaxed) {
                let request = "GET /echo HTTP/1.1\r\nHost: localhost\r\n";
                let mut raw = Raw::connect(&server.address());
                // Its worker may be killed during it.
                let _ = raw.stream.write_all(format!("{request}{}\r\n", crate::client::UPGRADE).as_bytes());
                // Reads to the end of the connection; one that is left waiting fails the test.
                let _ = raw.stream.shutdown(std::net::Shutdown::Write);
                served += usize::from(raw.rest().starts_with(b"HTTP/1.1 101 "));
            }
            served
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(clients)).collect();
        for _ in 0..5 {
            let victims = server.workers();
            for victim in victims.iter().take(2) {
                kill(Pid::from_raw(*victim), Signal::SIGKILL).unwrap();
            }
            until("they are replaced", || {
                let workers = server.workers();
                workers.len() == 4 && victims.iter().take(2).all(|victim| !workers.contains(victim))
            });
        }
        enough.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>()
    });
    assert!(served > 0);
    drop(open(&server));
}

#[test]
fn without_descriptors_a_worker_serves_and_accepts_again_later() {
    let mut server = serve(&["echo"], &[]);
    let mut first = open(&server);
    let worker = server.worker();
    let limit = |soft: &str| {
        let args = [format!("--pid={worker}"), format!("--nofile={soft}:")];
        assert!(Command::new("prlimit").args(args).status().unwrap().success());
    };
    let descriptors = std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap();
    let names = descriptors.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    limit(&(names.max().unwrap() + 1).to_string());
    let mut waiting = Raw::connect(&server.address());
    server.says("accepts no connections until");
    for _ in 0..10 {
        assert_eq!(first.ask("still"), "still");
    }
    limit("1000");
    waiting.upgrade("/echo", "");
    assert_eq!(waiting.ask("at last"), "at last");
    drop((first, waiting));
    server.stop();
}

/// Asks for one thing, and expects another.
#[track_caller]
fn ask(raw: &mut Raw, question: &str, answer: &str) {
    let said = raw.ask(question);
    assert!(said.starts_with(answer), "{question}: {said}");
}

#[test]
fn a_worker_without_descriptors_is_not_waited_for_and_is_replaced() {
    let mut server = serve_four(&["echo", "descriptors"], &[]);
    let mut eater = Raw::open(&server.address(), "/descriptors");
    ask(&mut eater, "take", "taken ");
    let before = eater.ask("pid");
    // It has one connection: the others would stop at two if they waited for it.
    let open_ones: Vec<Raw> = (0..20).map(|_| open(&server)).collect();
    server.says("is replaced: it is out of file descriptors");
    until("its connections go on elsewhere", || eater.ask("pid") != before);
    until("four workers serve", || server.workers().len() == 4);
    drop((eater, open_ones, open(&server)));
    server.stop();
    let log = server.log();
    assert_eq!(log.matches("accepts no connections until").count(), 1, "{log}");
}

#[test]
fn a_worker_whose_listening_socket_was_closed_is_not_waited_for_and_is_replaced() {
    let mut server = serve_four(&["echo", "descriptors"], &[]);
    let mut deaf = Raw::open(&server.address(), "/descriptors");
    ask(&mut deaf, "deafen", "deaf 1");
    let before = deaf.ask("pid");
    let open_ones: Vec<Raw> = (0..20).map(|_| open(&server)).collect();
    server.says("is replaced: it has lost a listening socket");
    until("its connections go on elsewhere", || deaf.ask("pid") != before);
    drop((deaf, open_ones, open(&server)));
    server.stop();
    let log = server.log();
    assert_eq!(log.matches("no longer accepts connections on it").count(), 1, "{log}");
}

#[test]
fn connections_sent_to_a_worker_without_descriptors_wait_for_its_replacement() {
    const MORE: usize = 40;
    let config = "[handler.'/descriptors']\nisolation = 'pool'\npool = 'own'\n[pool.own]\nworkers = 1\n";
    let dir = crate::daemon::Dir::new();
    crate::fixtures::add_handler(dir.path(), "descriptors", "descriptors");
    let file = dir.path().join("wshd.conf");
    std::fs::write(&file, config).unwrap();
    let options = ["--workers", "1", "-o", "handshake_timeout=5m", "--config", file.to_str().unwrap()];
    let mut server = Server::start(&dir, &options);
    let mut eater = Raw::open(&server.address(), "/descriptors");
    ask(&mut eater, "take", "taken ");
    let mut later: Vec<Raw> = (0..MORE).map(|_| Raw::connect(&server.address())).collect();
    for raw in &mut later {
        raw.send(
            format!("GET /descriptors HTTP/1.1\r\nHost: a\r\n{}\r\n", crate::client::UPGRADE).as_bytes(),
        );
    }
    for raw in &mut later {
        assert!(raw.head().starts_with("HTTP/1.1 101 "));
        assert_eq!(raw.ask("served"), "served");
    }
    server.says("is replaced: it is out of file descriptors");
    drop((eater, later));
    server.stop();
}
