//! A process for each connection.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{CLOSE, Raw, UPGRADE, close_payload};
use crate::crowd::{Crowd, SMALL_TALK};
use crate::daemon::{Dir, Server, descriptors_of, is_alive, memory_of, until};
use crate::{fixtures, logged};

/// Serves /process with a process for each connection, and /echo as usual.
fn serve(keys: &str, args: &[&str]) -> (Server, Dir) {
    let dir = Dir::new();
    for name in ["process", "echo"] {
        fixtures::add_handler(dir.path(), name, name);
    }
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = dir.path().join("wshd.conf");
    fs::write(&config, format!("[handler.'/process']\nisolation = 'connection'\n[pool.process]\n{keys}\n"))
        .unwrap();
    let quarantine = if args.iter().any(|arg| arg.starts_with("quarantine_deaths=")) {
        &[][..]
    } else {
        &crate::QUARANTINE_OFF
    };
    let ours = ["--workers", "1", "--config", config.to_str().unwrap()];
    (Server::start(&dir, &[&ours, quarantine, args].concat()), dir)
}

/// Pids of the processes whose titles begin so.
fn titled(server: &Server, title: &str) -> Vec<i32> {
    let is_so = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        text.starts_with(title) && is_alive(*pid)
    };
    server.workers().into_iter().filter(is_so).collect()
}

fn children(server: &Server) -> Vec<i32> {
    titled(server, "wshd: worker process/")
}

fn parent(server: &Server) -> Option<i32> {
    titled(server, "wshd: parent process").first().copied()
}

/// Opens a connection; if there is no process for it yet, the status.
fn try_open(server: &Server) -> Result<Raw, String> {
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("GET /process HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n").as_bytes());
    let head = raw.head();
    if head.starts_with("HTTP/1.1 101 ") { Ok(raw) } else { Err(head) }
}

/// Opens a connection once there is a process for it.
#[track_caller]
fn open(server: &Server) -> Raw {
    let mut opened = None;
    until("there is a process", || {
        opened = try_open(server).ok();
        opened.is_some()
    });
    opened.unwrap()
}

fn close(mut raw: Raw) {
    raw.frame(CLOSE, &close_payload(1000, ""));
    raw.expect_close(1000);
    raw.expect_end();
}

#[track_caller]
fn stop(server: &mut Server) {
    let all = server.workers();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(all.iter().all(|pid| !is_alive(*pid)), "processes are left");
}

#[test]
fn each_connection_has_a_process_and_state_of_its_own() {
    let (mut server, _dir) = serve("", &[]);
    let mut clients: Vec<Raw> = (0..10).map(|_| open(&server)).collect();
    let pids: BTreeSet<String> = clients.iter_mut().map(|client| client.ask("pid")).collect();
    assert_eq!(pids.len(), 10);
    for round in 1..=3 {
        assert!(clients.iter_mut().all(|client| client.ask("count") == round.to_string()));
    }
    assert_eq!(logged(&server, "started by "), 1, "in the parent only");
    let of_server: Vec<String> = children(&server).iter().map(i32::to_string).collect();
    assert!(pids.iter().all(|pid| of_server.contains(pid)), "{pids:?} {of_server:?}");
    clients.drain(..).for_each(close);
    until("their processes have left", || {
        let left = children(&server);
        left.len() == 2 && left.iter().all(|pid| !pids.contains(&pid.to_string()))
    });
    stop(&mut server);
}

#[test]
fn a_crash_costs_one_connection_and_is_attributed() {
    let (mut server, _dir) = serve("", &[]);
    let crowd = Crowd::gather(&server.address(), "/echo", 20, SMALL_TALK);
    let mut others: Vec<Raw> = (0..3).map(|_| open(&server)).collect();
    for (count, way) in ["null", "abort", "exit", "doublefree"].into_iter().enumerate() {
        let mut culprit = open(&server);
        let pid = culprit.ask("pid");
        culprit.text(way);
        culprit.expect_close(1011);
        culprit.expect_end();
        until("it is told", || {
            let log = server.log();
            log.lines()
                .any(|line| line.contains(&format!("[{pid}] ")) && line.contains("in on_message of process"))
        });
        for other in &mut others {
            assert_eq!(other.ask("count"), (count + 1).to_string(), "after {way}");
        }
        assert_eq!((crowd.served().clients, crowd.ends()), (20, vec![]), "after {way}");
    }
    drop((crowd, others));
    stop(&mut server);
}

#[test]
fn at_the_bound_requests_get_503_until_a_connection_ends() {
    let (mut server, _dir) = serve("processes = 3\nspare = 1", &[]);
    let mut clients: Vec<Raw> = (0..3).map(|_| open(&server)).collect();
    let Err(head) = try_open(&server) else { panic!("a fourth") };
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("Retry-After: 1"), "{head}");
    assert_eq!(children(&server).len(), 3);
    close(clients.pop().unwrap());
    clients.push(open(&server));
    assert!(clients.iter_mut().all(|client| client.ask("hello") == "hello"));
    drop(clients);
    stop(&mut server);
}

#[test]
fn the_supervisor_does_not_grow_with_500_connections() {
    let (mut server, _dir) = serve("", &[]);
    let supervisor = server.pid();
    let descriptors = || descriptors_of(supervisor);
    let memory = || memory_of(supervisor, "VmRSS");
    let serve = |count: usize| {
        for _ in 0..count / 5 {
            let mut clients: Vec<Raw> = (0..5).map(|_| open(&server)).collect();
            assert!(clients.iter_mut().all(|client| client.ask("count") == "1"));
            clients.into_iter().for_each(close);
        }
        until("they have left", || children(&server).len() == 2);
    };
    serve(50);
    let (fds, kib) = (descriptors(), memory());
    serve(500);
    // The number of slots in use may differ by one, and the last ones may not have been reaped.
    until("the descriptors of those that have left are closed", || descriptors() <= fds + 8);
    assert!(memory() <= kib + 256, "{kib} KiB, then {}", memory());
    stop(&mut server);
}

#[test]
fn a_killed_parent_is_replaced_and_its_children_continue() {
    let (mut server, _dir) = serve("", &[]);
    let mut before = open(&server);
    let pid = before.ask("pid");
    let first = parent(&server).unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    until("there is another parent", || parent(&server).is_some_and(|pid| pid != first));
    let mut after: Vec<Raw> = (0..4).map(|_| open(&server)).collect();
    assert!(after.iter_mut().all(|client| client.ask("count") == "1"));
    assert_eq!((before.ask("pid"), before.ask("count")), (pid, "1".to_owned()));
    assert_eq!(logged(&server, "started by "), 2);
    drop((before, after));
    stop(&mut server);
}

#[test]
fn an_innocent_connection_continues_in_another_process() {
    let (mut server, _dir) = serve("", &[]);
    let mut client = open(&server);
    let pid: i32 = client.ask("pid").parse().unwrap();
    // The echo may have come before.
    client.text("thread null");
    until("it has ended", || !is_alive(pid));
    while client.ask("still here") != "still here" {}
    assert_ne!(client.ask("pid"), pid.to_string());
    close(client);
    stop(&mut server);
}

#[test]
fn connections_are_closed_with_1001_when_the_server_stops() {
    let (mut server, _dir) = serve("", &[]);
    let mut clients: Vec<Raw> = (0..4).map(|_| open(&server)).collect();
    let all = server.workers();
    server.signal(Signal::SIGTERM);
    for client in &mut clients {
        client.expect_close(1001);
        client.frame(CLOSE, &close_payload(1001, ""));
        client.expect_end();
    }
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(all.iter().all(|pid| !is_alive(*pid)), "processes are left");
}

/// A new modification time makes it another file.
fn touch_handler(dir: &Dir) {
    fixtures::add_handler(dir.path(), "process", "process");
    let file = fs::File::options().append(true).open(dir.path().join("process_wsh.so")).unwrap();
    std::io::Write::write_all(&mut &file, b" ").unwrap();
}

#[test]
fn a_reload_replaces_the_parent_and_those_that_wait() {
    let (mut server, dir) = serve("", &[]);
    let mut before = open(&server);
    let pid = before.ask("pid");
    let first = parent(&server).unwrap();
    until("two wait", || children(&server).len() == 3);
    let waiting: Vec<i32> = children(&server).into_iter().filter(|child| child.to_string() != pid).collect();
    touch_handler(&dir);
    server.signal(Signal::SIGHUP);
    server.says("reload: done");
    until("the old ones have left", || waiting.iter().chain([&first]).all(|pid| !is_alive(*pid)));
    let mut after: Vec<Raw> = (0..3).map(|_| open(&server)).collect();
    assert!(after.iter_mut().all(|client| client.ask("count") == "1"));
    assert_eq!((before.ask("pid"), before.ask("count")), (pid, "1".to_owned()));
    assert_eq!(logged(&server, "started by "), 2);
    drop((before, after));
    stop(&mut server);
}

#[test]
fn a_parent_that_is_replaced_need_not_fork_any_more() {
    let (mut server, dir) = serve("spare = 2\nprocesses = 6", &[]);
    let first = parent(&server).unwrap();
    until("two wait", || children(&server).len() == 2);
    let waiting = children(&server);
    kill(Pid::from_raw(first), Signal::SIGSTOP).unwrap();
    let client = open(&server); // the parent is asked for another process
    touch_handler(&dir);
    server.signal(Signal::SIGHUP);
    until("the other one is dismissed", || !waiting.iter().all(|pid| is_alive(*pid)));
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    server.says("reload: done");
    let mut others: Vec<Raw> = (0..2).map(|_| open(&server)).collect();
    assert!(others.iter_mut().all(|client| client.ask("count") == "1"));
    assert_eq!(logged(&server, "cannot fork"), 0, "{}", server.log());
    drop((client, others));
    stop(&mut server);
}

#[test]
fn they_run_as_the_user_of_their_pool_and_within_its_limits() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: skipped");
        return;
    }
    let user = 4_000_200_000 + std::process::id();
    let keys = format!("user = {user}\ngroup = {user}\nmax_files = 100\nnice = 3\nmax_processes = 12");
    let (mut server, _dir) = serve(&keys, &[]);
    let mut client = open(&server);
    let pid = client.ask("pid");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in [&format!("Uid:\t{user}\t{user}"), "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(
        limits.lines().any(|line| line.starts_with("Max open files") && line.contains(" 100 ")),
        "{limits}"
    );
    // The parent has one thread, each process two: no more than five of them.
    let mut others: Vec<Raw> = (0..4).map(|_| open(&server)).collect();
    assert!(try_open(&server).is_err());
    server.says("cannot fork a process for a connection");
    close(others.pop().unwrap());
    others.push(open(&server));
    assert!(others.iter_mut().all(|client| client.ask("hello") == "hello"));
    drop((client, others));
    stop(&mut server);
}

#[test]
fn a_handler_that_crashes_too_often_is_quarantined() {
    let (mut server, _dir) = serve("", &["-o", "quarantine_deaths=2", "-o", "quarantine_time=10m"]);
    let mut before = open(&server);
    for _ in 0..2 {
        let mut culprit = open(&server);
        culprit.text("null");
        culprit.expect_close(1011);
    }
    server.says("process: 2 workers died in it");
    let Err(head) = try_open(&server) else { panic!("it is served") };
    assert!(head.contains(" 503 ") && !head.contains("Retry-After: 1\r"), "{head}");
    assert_eq!(before.ask("hello"), "hello");
    drop(before);
    stop(&mut server);
}

#[test]
fn a_blocking_handler_has_a_process_too() {
    let dir = Dir::new();
    fixtures::add_handler(dir.path(), "resumable_echo_blocking", "resumable_echo_blocking");
    let config = dir.path().join("wshd.conf");
    fs::write(&config, "[handler.'/resumable_echo_blocking']\nisolation = 'connection'\n").unwrap();
    let mut server = Server::start(&dir, &["--workers", "1", "--config", config.to_str().unwrap()]);
    let children = || titled(&server, "wshd: worker resumable_echo_blocking/");
    until("two wait", || logged(&server, "worker resumable_echo_blocking/1 is ready") == 1);
    let mut client = Raw::open(&server.address(), "/resumable_echo_blocking");
    assert_eq!(client.ask("a message 0;"), "a message 0;");
    until("two more wait", || children().len() == 3);
    close(client);
    until("it has left", || children().len() == 2);
    stop(&mut server);
}
