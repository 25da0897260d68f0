//! Workers share connections fairly: 400 on 4 workers, none more than a tenth above another.

use std::collections::BTreeSet;
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client;
use crate::daemon::{is_alive, until};
use crate::{Served, serve};

/// Inodes of the server's accepted connections.
fn accepted(server: &Served) -> BTreeSet<String> {
    let port: u16 = server.address().rsplit_once(':').unwrap().1.parse().unwrap();
    let local = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // State 01: established.
    let ours =
        lines.filter(|fields| fields.get(1).is_some_and(|at| at.ends_with(&local)) && fields[3] == "01");
    ours.map(|fields| format!("socket:[{}]", fields[9])).collect()
}

/// How many connections each worker has.
pub fn shares(server: &Served) -> Vec<usize> {
    let all = accepted(server);
    let count = |pid: i32| {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        let targets = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        targets.filter(|target| all.contains(target.to_string_lossy().as_ref())).count()
    };
    server.workers().into_iter().map(count).collect()
}

/// Opens this many, and waits until all are accepted.
fn open(server: &Served, connections: &mut Vec<TcpStream>, count: usize) {
    connections.extend((0..count).map(|_| client::tcp(&server.address())));
}

#[track_caller]
fn assert_fair(server: &Served, total: usize) {
    let mut now = Vec::new();
    until("all are accepted", || {
        now = shares(server);
        now.iter().sum::<usize>() == total
    });
    let (most, least) = (*now.iter().max().unwrap(), *now.iter().min().unwrap());
    assert!(now.len() == 4 && least > 0 && most as f64 / least as f64 <= 1.1, "{now:?}");
}

#[test]
fn four_hundred_connections_on_four_workers() {
    let server = serve(&["echo"], &["--workers", "4", "-o", "handshake_timeout=5m"]);
    until("all four are ready", || server.log().matches("is ready").count() == 4);
    let mut connections = Vec::new();
    open(&server, &mut connections, 400);
    assert_fair(&server, 400);
}

#[test]
fn balance_after_a_worker_was_killed_and_came_back() {
    let server = serve(&["echo"], &["--workers", "4", "-o", "handshake_timeout=5m"]);
    until("all four are ready", || server.log().matches("is ready").count() == 4);
    let mut connections = Vec::new();
    open(&server, &mut connections, 400);
    assert_fair(&server, 400);
    let victim = server.workers()[1];
    let left = 400 - shares(&server)[1];
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    until("it has come back", || !is_alive(victim) && server.log().matches("is ready").count() == 5);
    until("its connections are gone", || shares(&server).iter().sum::<usize>() == left);
    open(&server, &mut connections, 400);
    assert_fair(&server, left + 400);
}
