//! Upgrade: a new executable takes over the sockets and the connections, or the old one stays in service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "rescue/crowd.rs"]
mod crowd;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use client::{Raw, ask, connect};
use crowd::{Crowd, Habits, SMALL_TALK};
use daemon::{Dir, Server, children, ctl, is_alive, until};
use fixtures::add_handler;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A server started from a copy of the program, which can be replaced. Dropping it ends its last supervisor.
struct Upgradable {
    server: Server,
    program: PathBuf,
    supervisor: i32,
}

impl Upgradable {
    fn start(dir: &Dir, args: &[&str]) -> Self {
        let program = dir.path().join("wshd");
        copy(Path::new(env!("CARGO_BIN_EXE_wshd")), &program);
        let mut command = Command::new(&program);
        command.stdin(Stdio::null()).args(["--port", "0", "--log-level", "debug", "--websock-handlers"]);
        let log = dir.path().join("log");
        command.arg(dir.path()).arg("--log-file").arg(&log).args(args);
        let server = Server::launch(command, log).when_ready();
        let supervisor = server.pid();
        Self { server, program, supervisor }
    }

    /// Replaces the program by rename.
    fn install(&self, content: &[u8]) {
        let passing = self.program.with_extension("new");
        let source = self.program.with_extension("source");
        fs::write(&source, content).unwrap();
        copy(&source, &passing);
        fs::set_permissions(&passing, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&passing, &self.program).unwrap();
    }

    fn logged(&self, text: &str) -> usize {
        self.server.log().matches(text).count()
    }

    /// Upgrades, and waits until the new executable serves and the old one has exited.
    #[track_caller]
    fn upgrade(&mut self) {
        let old = self.supervisor;
        let before = self.logged("upgrade: the new executable serves");
        kill(Pid::from_raw(old), Signal::SIGUSR2).unwrap();
        let is_supervisor = |pid: &i32| title(*pid).starts_with("wshd: supervisor");
        let mut new = None;
        until("there is a new supervisor", || {
            new = children(old).into_iter().find(is_supervisor);
            new.is_some()
        });
        self.supervisor = new.unwrap();
        until("it serves", || self.logged("upgrade: the new executable serves") > before);
        if old == self.server.pid() {
            assert_eq!(self.server.wait().code(), Some(0), "{}", self.server.log());
        } else {
            until("the old supervisor has left", || !is_alive(old));
        }
    }

    /// Ends the last supervisor, and asserts that nothing is left.
    #[track_caller]
    fn stop(&mut self) {
        let workers = children(self.supervisor);
        kill(Pid::from_raw(self.supervisor), Signal::SIGTERM).unwrap();
        until("the last supervisor has left", || !is_alive(self.supervisor));
        assert!(workers.iter().all(|pid| !is_alive(*pid)), "workers are left");
        assert!(!self.server.log().contains("panicked at"), "{}", self.server.log());
    }
}

impl Drop for Upgradable {
    fn drop(&mut self) {
        // After an upgrade it is not our child, but its pid is not reused while it lives.
        if title(self.supervisor).starts_with("wshd: supervisor") {
            let _ = kill(Pid::from_raw(self.supervisor), Signal::SIGKILL);
        }
    }
}

/// Written by another process: a child forked by a parallel test would have the file open for writing, so that
/// it could not be executed.
fn copy(from: &Path, to: &Path) {
    fixtures::run(Command::new("cp").arg(from).arg(to));
}

fn title(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// Three upgrades under this many clients that number their messages.
#[track_caller]
fn three_upgrades(clients: usize) {
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    add_handler(dir.path(), "everything", "everything");
    let mut upgradable = Upgradable::start(&dir, &["--workers", "2"]);
    let address = upgradable.server.address();
    let habits = Habits { deflate: true, large: 40_000, ..SMALL_TALK };
    let crowd = Crowd::gather(&address, "/echo", clients, habits);
    let mut client = connect(&address, "/everything");
    assert_eq!(ask(&mut client, "set_state seven"), "set_state: 0");
    for _ in 0..3 {
        upgradable.upgrade();
        crowd.served();
        assert_eq!(ask(&mut client, "is_resumed"), "is_resumed: 1");
        assert_eq!(ask(&mut client, "state"), "state: \"seven\"");
        let mut late = Raw::open(&address, "/echo");
        assert_eq!(late.ask("served"), "served");
    }
    assert_eq!(crowd.served().clients, clients);
    assert_eq!(crowd.ends(), []);
    client.close(None).unwrap();
    drop(crowd);
    upgradable.stop();
}

#[test]
fn no_message_is_lost_in_three_upgrades_under_load() {
    three_upgrades(200);
}

#[test]
#[ignore = "slow: two thousand clients"]
fn two_thousand_clients_lose_nothing_in_three_upgrades() {
    three_upgrades(2000);
}

#[test]
fn no_connection_is_refused_during_upgrades() {
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    let mut upgradable = Upgradable::start(&dir, &["--workers", "1"]);
    let address = upgradable.server.address();
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let arrivals = scope.spawn(|| {
            let mut served = 0;
            while !enough.load(Ordering::Relaxed) {
                let mut raw = Raw::open(&address, "/echo");
                assert_eq!(raw.ask("served"), "served", "after {served}");
                served += 1;
            }
            served
        });
        let upgrades = || (0..3).for_each(|_| upgradable.upgrade());
        let upgraded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(upgrades));
        enough.store(true, Ordering::Relaxed); // also if one has failed: the scope waits for its threads
        upgraded.unwrap();
        assert!(arrivals.join().unwrap() > 10);
    });
    upgradable.stop();
}

#[test]
fn an_executable_that_does_not_start_changes_nothing() {
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    let mut upgradable = Upgradable::start(&dir, &["--workers", "1"]);
    let address = upgradable.server.address();
    let mut raw = Raw::open(&address, "/echo");
    let failures = [
        (&b"#!/bin/sh\nexit 42\n"[..], "ended with status 42"),
        (b"no program at all\0", "cannot be started: Exec format error (os error 8)"),
        (b"#!/no/such/shell\n", "cannot be started: its interpreter does not exist"),
        (b"#!/bin/sh\nexit 127\n", "ended with status 127"),
        (b"#!/bin/sh\nkill -SEGV $$\n", "died of SIGSEGV"),
    ];
    for (content, why) in failures {
        upgradable.install(content);
        upgradable.server.signal(Signal::SIGUSR2);
        upgradable.server.says(&format!(": {why}"));
        assert_eq!(raw.ask("still here"), "still here");
    }
    assert_eq!(upgradable.logged("upgrade: failed, and this executable serves on"), failures.len());
    upgradable.install(&fs::read(env!("CARGO_BIN_EXE_wshd")).unwrap());
    upgradable.upgrade();
    assert_eq!(raw.ask("and in the new one"), "and in the new one");
    drop(raw);
    upgradable.stop();
}

#[test]
fn pools_and_unix_sockets_continue() {
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    let config = dir.path().join("wshd.conf");
    let socket = dir.path().join("socket");
    fs::write(
        &config,
        format!(
            "server_host = [\"127.0.0.1\", \"unix:{}\"]\nworkers = 1\n[handler.\"/echo\"]\nisolation = \"pool\"\n",
            socket.display()
        ),
    )
    .unwrap();
    let mut upgradable = Upgradable::start(&dir, &["--config", config.to_str().unwrap()]);
    let mut raw = Raw::over(client::unix(&socket));
    raw.upgrade("/echo", "");
    let before = children(upgradable.supervisor);
    upgradable.upgrade();
    raw.text("over there");
    assert_eq!(raw.next_text(), "over there");
    until("there are two new processes", || {
        let after = children(upgradable.supervisor);
        after.len() == 2 && after.iter().all(|pid| !before.contains(pid))
    });
    let mut late = Raw::over(client::unix(&socket));
    late.upgrade("/echo", "");
    drop((raw, late));
    upgradable.stop();
    assert!(!socket.exists(), "the last one removes it");
}

#[test]
fn control_socket_and_metrics_are_those_of_the_new_executable() {
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    let [control, metrics] = ["control", "metrics"].map(|name| dir.path().join(name));
    let metrics_address = format!("unix:{}", metrics.display());
    let args =
        ["--control-socket", control.to_str().unwrap(), "--metrics", &metrics_address, "--workers", "1"];
    let mut upgradable = Upgradable::start(&dir, &args);
    let ctl = |order: &str| {
        let output = ctl(&control, &[order]);
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    let metrics_of = || {
        let mut raw = Raw::over(client::unix(&metrics));
        raw.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        String::from_utf8(raw.rest()).unwrap()
    };
    let old = upgradable.supervisor;
    fs::set_permissions(&upgradable.program, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, text) = ctl("upgrade");
    assert!(code != Some(0) && text.contains("cannot be started: Permission denied"), "{text}");
    let recording = dir.path().join("recording");
    let mut record = daemon::wshd();
    record.args(["ctl", "--control-socket"]).arg(&control).args(["record", "/echo"]).arg(&recording);
    let record = record.stdout(Stdio::piped()).spawn().unwrap();
    let recorded = || fs::read_to_string(&recording).unwrap_or_default();
    until("it records", || recorded().contains("# resource: /echo"));
    upgradable.install(&fs::read(env!("CARGO_BIN_EXE_wshd")).unwrap());
    let (code, text) = ctl("upgrade");
    assert_eq!(code, Some(0), "{text}");
    let said = String::from_utf8(record.wait_with_output().unwrap().stdout).unwrap();
    assert!(said.starts_with("the server was upgraded: "), "{said}");
    assert!(recorded().ends_with("\n# ended: the server was upgraded\n"), "{}", recorded());
    // The old one may have exited.
    let log = upgradable.server.log();
    let pids = log.split("supervisor[").filter_map(|part| part.split(']').next()?.parse().ok());
    let is_new = |pid: &i32| *pid != old && title(*pid).starts_with("wshd: supervisor");
    upgradable.supervisor = pids.filter(is_new).last().unwrap();
    assert_eq!(upgradable.server.wait().code(), Some(0));
    let (code, text) = ctl("status");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(&upgradable.supervisor.to_string()), "{text}");
    until("there is one worker", || metrics_of().contains("wshd_workers{state=\"running\"} 1"));
    upgradable.stop();
    assert!(!control.exists() && !metrics.exists());
}

#[test]
fn an_executable_that_fails_late_leaves_the_sockets_of_the_old_one_alone() {
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    let [control, socket, metrics] = ["control", "socket", "metrics"].map(|name| dir.path().join(name));
    let [host, metrics_address] = [&socket, &metrics].map(|path| format!("unix:{}", path.display()));
    let args = ["-H", &host, "--metrics", &metrics_address, "--strict-handlers", "--workers", "1"];
    let args = [&["--control-socket", control.to_str().unwrap()], &args[..]].concat();
    let mut upgradable = Upgradable::start(&dir, &args);
    // The failure shows only when a worker starts.
    dir.handler(
        "late",
        r#"#include <ws_handler.h>
           static int on_worker_start(void) { return WS_E_FAILED; }
           static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; }
           WS_HANDLER(.name = "late", .on_worker_start = on_worker_start, .on_message = on_message);"#,
    );
    let ctl = |order: &str| ctl(&control, &[order]);
    let output = ctl("upgrade");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(9), "{error}");
    assert!(
        error.contains("this executable serves on: ") && error.contains("ended with status 3"),
        "{error}"
    );
    let status = String::from_utf8(ctl("status").stdout).unwrap();
    assert!(status.contains(&format!("process {}, ", upgradable.supervisor)), "{status}");
    let mut raw = Raw::over(client::unix(&socket));
    raw.upgrade("/echo", "");
    drop(raw);
    UnixStream::connect(&metrics).unwrap();
    upgradable.stop();
    assert!(!control.exists() && !socket.exists() && !metrics.exists());
}

#[test]
fn the_new_executable_serves_metrics_at_the_same_address() {
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    let socket = dir.path().join("metrics.sock");
    let address = format!("unix:{}", socket.display());
    let mut upgradable = Upgradable::start(&dir, &["--workers", "1", "--metrics", &address]);
    let report = || {
        let mut raw = Raw::over(client::unix(&socket));
        raw.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        String::from_utf8(raw.answer().body).unwrap()
    };
    let metrics = |supervisor: i32| {
        children(supervisor).into_iter().filter(|pid| title(*pid).starts_with("wshd: metrics")).count()
    };
    let mut client = connect(&upgradable.server.address(), "/echo");
    ask(&mut client, "x");
    until("it is counted", || report().contains("wshd_messages_received_total{handler=\"/echo\"} 1\n"));
    upgradable.upgrade();
    ask(&mut client, "y");
    // It counts from 0, and has the connection.
    until("the new executable answers", || {
        report().contains("wshd_messages_received_total{handler=\"/echo\"} 1\n")
            && metrics(upgradable.supervisor) == 1
    });
    until("it has one connection", || {
        report().contains("wshd_connections_open{handler=\"/echo\",pool=\"default\"} 1\n")
    });
    drop(client);
    upgradable.stop();
    assert!(!socket.exists());
}

/// Ticks of processor time of a process (proc_pid_stat(5)).
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum()
}

#[test]
fn an_executable_that_closes_its_channel_is_killed() {
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    let mut upgradable = Upgradable::start(&dir, &["--workers", "1"]);
    let mut raw = Raw::open(&upgradable.server.address(), "/echo");
    // It ignores SIGTERM.
    upgradable.install(b"#!/bin/bash\ntrap '' TERM\neval \"exec $WSHD_UPGRADE<&-\"\nexec sleep 60\n");
    let before = (ticks(upgradable.supervisor), children(upgradable.supervisor).len());
    upgradable.server.signal(Signal::SIGUSR2);
    upgradable.server.says("it closed its channel before it was ready");
    until("it has been killed", || children(upgradable.supervisor).len() == before.1);
    assert!(ticks(upgradable.supervisor) - before.0 < 50, "it has waited, not polled");
    assert_eq!(raw.ask("still here"), "still here");
    upgradable.install(&fs::read(env!("CARGO_BIN_EXE_wshd")).unwrap());
    upgradable.upgrade();
    assert_eq!(raw.ask("and in the new one"), "and in the new one");
    drop(raw);
    upgradable.stop();
}

#[test]
fn a_stop_during_an_upgrade_leaves_no_process() {
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    // The worker exits in time, and after the other executable was killed.
    let mut upgradable = Upgradable::start(&dir, &["--workers", "1", "-o", "close_timeout=1500ms"]);
    let _silent = connect(&upgradable.server.address(), "/echo");
    upgradable.install(b"#!/bin/sh\ntrap '' TERM\nexec sleep 60\n");
    let before = children(upgradable.supervisor);
    upgradable.server.signal(Signal::SIGUSR2);
    let mut pending = None;
    until("the other executable runs", || {
        pending = children(upgradable.supervisor).into_iter().find(|pid| !before.contains(pid));
        pending.is_some_and(|pid| title(pid).starts_with("sleep"))
    });
    upgradable.server.signal(Signal::SIGTERM);
    assert_eq!(upgradable.server.wait().code(), Some(0), "{}", upgradable.server.log());
    assert!(!is_alive(pending.unwrap()));
    assert_eq!(upgradable.logged("upgrade: failed, and this executable serves on"), 1);
}

#[test]
fn the_old_server_resumes_if_the_new_executable_dies() {
    let dir = Dir::new();
    let pid_file = dir.path().join("pid");
    let (mut upgradable, mut stubborn, new) = superseded(&dir, &["--pid-file", pid_file.to_str().unwrap()]);
    let (address, old) = (upgradable.server.address(), upgradable.supervisor);
    assert_eq!(stubborn.ask("still there"), "still there");
    kill(Pid::from_raw(new), Signal::SIGKILL).unwrap();
    upgradable.server.says("this executable serves again");
    let mut late = Raw::open(&address, "/echo");
    assert_eq!(late.ask("served"), "served");
    assert_eq!(stubborn.ask("and still"), "and still");
    let pid_of_file = || fs::read_to_string(&pid_file).unwrap_or_default().trim().to_owned();
    until("the pid file names it", || pid_of_file() == old.to_string());
    drop((stubborn, late));
    upgradable.stop();
    assert_eq!(upgradable.logged("all connections moved or closed"), 0);
}

/// A server with a connection that does not move, and the new one that has taken over the rest.
fn superseded(dir: &Dir, args: &[&str]) -> (Upgradable, Raw, i32) {
    add_handler(dir.path(), "echo", "echo");
    add_handler(dir.path(), "stubborn", "stubborn_blocking");
    let upgradable = Upgradable::start(dir, &[&["--workers", "1", "-o", "drain_timeout=10m"], args].concat());
    let mut stubborn = Raw::open(&upgradable.server.address(), "/stubborn");
    assert_eq!(stubborn.ask("hello"), "hello");
    let new = successor(&upgradable, upgradable.supervisor);
    (upgradable, stubborn, new)
}

/// Has a server upgrade; the supervisor that serves then.
#[track_caller]
fn successor(upgradable: &Upgradable, old: i32) -> i32 {
    let before = upgradable.logged("upgrade: the new executable serves");
    kill(Pid::from_raw(old), Signal::SIGUSR2).unwrap();
    until("the new executable serves", || upgradable.logged("upgrade: the new executable serves") > before);
    let is_supervisor = |pid: &i32| title(*pid).starts_with("wshd: supervisor");
    children(old).into_iter().find(is_supervisor).expect("there is a new supervisor")
}

#[test]
fn a_server_that_is_upgraded_twice_leaves_after_its_own_old_server() {
    let dir = Dir::new();
    let (mut upgradable, mut stubborn, second) = superseded(&dir, &[]);
    let first = upgradable.supervisor;
    let third = successor(&upgradable, second);
    upgradable.supervisor = third;
    assert_eq!(stubborn.ask("still there"), "still there");
    drop(stubborn);
    assert_eq!(upgradable.server.wait().code(), Some(0), "{}", upgradable.server.log());
    until("the second has left", || !is_alive(second));
    let log = upgradable.server.log();
    let left = |pid: i32| {
        log.lines().position(|line| line.contains(&format!("supervisor[{pid}]")) && line.contains("stopped"))
    };
    assert!(left(first).unwrap() < left(second).unwrap() && left(third).is_none(), "{log}");
    assert!(!log.contains("serves again"), "{log}");
    let mut late = Raw::open(&upgradable.server.address(), "/echo");
    assert_eq!(late.ask("served"), "served");
    drop(late);
    upgradable.stop();
}

#[test]
fn a_new_executable_that_stops_leaves_the_sockets_to_the_old_one() {
    let dir = Dir::new();
    let (socket, control) = (dir.path().join("socket"), dir.path().join("control"));
    let host = format!("unix:{}", socket.display());
    let args = ["-H", "127.0.0.1", "-H", &host, "--control-socket", control.to_str().unwrap()];
    let (mut upgradable, mut stubborn, new) = superseded(&dir, &args);
    kill(Pid::from_raw(new), Signal::SIGTERM).unwrap();
    upgradable.server.says("this executable serves again");
    let mut late = Raw::over(client::unix(&socket));
    late.upgrade("/echo", "");
    late.text("served");
    assert_eq!(late.next_text(), "served");
    assert_eq!(stubborn.ask("and still"), "and still");
    assert!(upgradable.server.ctl_says(&control, &["status"]).contains("1 of 1 worker"));
    drop((late, stubborn));
    upgradable.stop();
    assert!(!socket.exists() && !control.exists());
}

#[test]
fn two_servers_that_are_told_to_stop_refuse_connections() {
    let dir = Dir::new();
    let (mut upgradable, stubborn, new) = superseded(&dir, &["-o", "stop_timeout=10m"]);
    let address = upgradable.server.address();
    let worker = upgradable.server.workers();
    assert_eq!(worker.len(), 1);
    kill(Pid::from_raw(worker[0]), Signal::SIGSTOP).unwrap();
    upgradable.server.signal(Signal::SIGTERM);
    until("the old one stops", || upgradable.logged("SIGTERM received") == 1);
    kill(Pid::from_raw(new), Signal::SIGTERM).unwrap();
    upgradable.server.says("the new executable ended with status 0 while this one stops");
    until("connections are refused", || std::net::TcpStream::connect(&address).is_err());
    assert!(is_alive(worker[0]), "the old one waits for it");
    upgradable.server.signal(Signal::SIGQUIT);
    assert_eq!(upgradable.server.wait().code(), Some(7), "{}", upgradable.server.log());
    assert_eq!(upgradable.logged("serves again"), 0);
    drop(stubborn);
}

#[test]
#[ignore = "takes ten seconds"]
fn a_worker_that_is_to_be_restarted_is_not_once_another_executable_serves() {
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    add_handler(dir.path(), "stubborn", "stubborn_blocking");
    let mut upgradable = Upgradable::start(&dir, &["--workers", "2", "-o", "drain_timeout=10m"]);
    let second = || {
        let workers = upgradable.server.workers();
        workers.into_iter().find(|pid| title(*pid).starts_with("wshd: worker default/1") && is_alive(*pid))
    };
    // Each is killed as it comes: the fifth comes after four seconds.
    for _ in 0..4 {
        let mut pid = None;
        until("it is there", || {
            pid = second();
            pid.is_some()
        });
        kill(Pid::from_raw(pid.unwrap()), Signal::SIGKILL).unwrap();
        until("it has died", || second() != pid);
    }
    let died = std::time::Instant::now();
    // It keeps the old server alive.
    let mut stubborn = Raw::open(&upgradable.server.address(), "/stubborn");
    upgradable.supervisor = successor(&upgradable, upgradable.supervisor);
    std::thread::sleep(std::time::Duration::from_secs(5).saturating_sub(died.elapsed()));
    assert_eq!(stubborn.ask("still there"), "still there");
    drop(stubborn);
    assert_eq!(upgradable.server.wait().code(), Some(0), "{}", upgradable.server.log());
    upgradable.stop();
}

#[test]
fn a_second_request_for_an_upgrade_is_not_the_end_of_the_first() {
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    let control = dir.path().join("control");
    let args = ["--workers", "1", "--control-socket", control.to_str().unwrap()];
    let mut upgradable = Upgradable::start(&dir, &args);
    upgradable.install(b"#!/bin/sh\nexec sleep 60\n");
    let waits = {
        let control = control.clone();
        std::thread::spawn(move || ctl(&control, &["upgrade"]))
    };
    until("it is starting", || upgradable.logged("] is starting") > 1);
    upgradable.server.signal(Signal::SIGUSR2);
    upgradable.server.says("upgrade: refused: an upgrade is already under way");
    upgradable.server.ctl_says(&control, &["cancel"]);
    let error = String::from_utf8(waits.join().unwrap().stderr).unwrap();
    assert!(error.contains("cancelled by wshd ctl"), "{error}");
    upgradable.stop();
}

#[test]
fn process_1_refuses_an_upgrade() {
    let unshare = |command: &mut Command| {
        command.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"]);
    };
    let mut probe = Command::new("unshare");
    unshare(&mut probe);
    if !probe.arg("true").status().is_ok_and(|status| status.success()) {
        return; // not allowed here
    }
    let dir = Dir::new();
    add_handler(dir.path(), "echo", "echo");
    let (log, control) = (dir.path().join("log"), dir.path().join("control"));
    let mut command = Command::new("unshare");
    unshare(&mut command);
    command.arg(env!("CARGO_BIN_EXE_wshd")).args(["--port", "0", "--workers", "1", "--websock-handlers"]);
    command.arg(dir.path()).arg("--log-file").arg(&log).arg("--control-socket").arg(&control);
    let server = Server::launch(command, log).when_ready();
    let output = ctl(&control, &["upgrade"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(9), "{error}");
    assert!(error.contains("this is process 1"), "{error}");
    assert_eq!(ctl(&control, &["stop"]).status.code(), Some(0));
    drop(server);
}

#[test]
fn an_upgrade_that_is_requested_during_the_start_waits_until_the_server_is_ready() {
    let dir = Dir::new();
    let slow = "#include <ws_handler.h>\n#include <unistd.h>\n\
         static int32_t start(void) { usleep(500000); return 0; }\n\
         static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; }\n\
         WS_HANDLER(.name = \"slow\", .on_message = on_message, .on_worker_start = start);";
    dir.handler("slow", slow);
    let server = Server::spawn(&dir, &["--workers", "1"]);
    server.says("worker default/0[");
    server.signal(Signal::SIGUSR2);
    let server = server.when_ready();
    let (program, supervisor) = (PathBuf::from(env!("CARGO_BIN_EXE_wshd")), server.pid());
    let mut this = Upgradable { server, program, supervisor };
    until("it is upgraded", || this.logged("upgrade: the new executable serves") == 1);
    let log = this.server.log();
    assert!(log.find("ready on ").unwrap() < log.find("upgrade: ").unwrap(), "{log}");
    assert_eq!(this.server.wait().code(), Some(0), "{log}");
    let pid = |line: &str| line.split("supervisor[").nth(1)?.split(']').next()?.parse().ok();
    this.supervisor = this.server.log().lines().filter_map(pid).find(|pid| *pid != supervisor).unwrap();
    this.stop();
}

/// The longest turn of the supervisor's loop, in seconds, during slow operations.
fn longest_turn() -> f64 {
    let dir = Dir::new();
    ["echo", "crash"].iter().for_each(|name| add_handler(dir.path(), name, name));
    let socket = dir.path().join("control");
    let full = ["-o", "access_log=/dev/full"]; // a disk without room
    let args = ["--workers", "2", "-o", "quarantine_deaths=0", "--log-max", "64K", "--control-socket"];
    let mut this = Upgradable::start(&dir, &[&args[..], &[socket.to_str().unwrap()], &full].concat());
    let crash = || {
        let mut culprit = Raw::open(&this.server.address(), "/crash");
        culprit.text("null");
        culprit.expect_close(1011);
    };
    // Handlers that load slowly, hang, crash and exit, and crashes meanwhile.
    for number in 0..4 {
        let slow = "#include <ws_handler.h>\n#include <unistd.h>\n\
             __attribute__((constructor)) static void load(void) { sleep(1); }\n\
             static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; }\n\
             WS_HANDLER(.name = \"slow\", .on_message = on_message);";
        dir.handler(&format!("slow{number}"), slow);
    }
    ["constructor_crashes", "constructor_exits", "constructor_hangs"]
        .iter()
        .for_each(|name| add_handler(dir.path(), name, name));
    this.server.signal(Signal::SIGHUP);
    (0..10).for_each(|_| crash());
    until("the reload is over", || this.logged("supervisor") > 0 && this.logged("reload: ") > 0);
    // A successor that does not become ready, and crashes meanwhile.
    let program = fs::read(&this.program).unwrap();
    this.install(b"#!/bin/sh\nexec sleep 2\n");
    this.server.signal(Signal::SIGUSR2);
    (0..10).for_each(|_| crash());
    until("the upgrade has failed", || this.logged("upgrade: failed") == 1);
    let status = |_: &Upgradable| -> f64 {
        let output = ctl(&socket, &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        status["longest_turn"].as_f64().unwrap()
    };
    let old = status(&this);
    this.install(&program);
    this.upgrade();
    let new = status(&this);
    this.stop();
    println!("the longest turn: {old} s, after the upgrade {new} s");
    old.max(new)
}

#[test]
#[ignore = "takes twenty seconds"]
fn the_supervisor_always_responds() {
    // On a busy machine it may have to wait for the processor.
    assert!((0..3).any(|_| longest_turn() < 0.1));
}
