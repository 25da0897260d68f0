//! A pool with a user of its own is a boundary: a handler there attacks everything that its process can reach
//! (`ctests/fixtures/hostile_wsh.c`), and the default pool and a third one continue. As root only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use client::{Client, Raw, ask, connect, next_text};
use daemon::{Dir, Server, is_alive, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// The bytes that the fixture searches for.
const SECRET: &str = "sesame-of-the-other-pool";

const HOSTILE: &str = "
[handler.'/hostile']
isolation = 'pool'
[pool.hostile]
user = 4001
group = 4001
workers = 2
max_processes = 200
";

/// The same with a process for each connection.
const HOSTILE_PROCESSES: &str = "
[handler.'/hostile']
isolation = 'connection'
[pool.hostile]
user = 4001
group = 4001
spare = 2
processes = 8
max_processes = 200
";

const OTHERS: &str = "
[handler.'/third']
isolation = 'pool'
[pool.third]
user = 4002
group = 4002
";

/// A server with a hostile pool between two others, and a client of each of these.
struct Walls {
    server: Server,
    dir: Dir,
    clients: Vec<Client>,
    /// The workers of the other pools.
    others: Vec<i32>,
}

impl Walls {
    /// None without the privileges for pools with users.
    fn start(extra: &str) -> Option<Self> {
        Self::start_as(HOSTILE, extra)
    }

    /// The same with this configuration of the hostile pool.
    fn start_as(hostile: &str, extra: &str) -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("not root: skipped");
            return None;
        }
        let dir = Dir::new();
        for (path, name) in
            [("echo", "echo"), ("third", "echo"), ("hostile", "hostile"), ("topics", "topics")]
        {
            fixtures::add_handler(dir.path(), path, name);
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("w.conf");
        fs::write(&config, [extra, hostile, OTHERS].concat()).unwrap();
        let server = Server::start(&dir, &["--workers", "1", "--config", config.to_str().unwrap()]);
        let mut clients = ["/echo", "/third"].map(|resource| connect(&server.address(), resource)).into();
        others_answer(&mut clients);
        let mut walls = Self { server, dir, clients, others: Vec::new() };
        walls.others = walls.workers_of(&["default", "third"]);
        Some(walls)
    }

    fn workers_of(&self, pools: &[&str]) -> Vec<i32> {
        let title = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_of = |pid: &i32| pools.iter().any(|pool| title(pid).contains(&format!("worker {pool}/")));
        let mut workers: Vec<i32> = self.server.workers().into_iter().filter(is_of).collect();
        workers.sort_unstable();
        workers
    }

    /// Sends a command to the hostile handler, whose worker may have to be replaced first; returns the number in its
    /// answer.
    fn attack(&self, command: &str) -> u32 {
        let mut answer = None;
        until(&format!("the hostile handler is served, for {command}"), || {
            answer = self.try_attack(command);
            answer.is_some()
        });
        let text = answer.unwrap();
        text.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
    }

    fn try_attack(&self, command: &str) -> Option<String> {
        let stream = client::tcp(&self.server.address());
        let request = "ws://localhost/hostile";
        let (mut client, _) = tungstenite::client(request, stream).ok()?;
        client.send(command.into()).ok()?;
        client.read().ok()?.into_text().ok().map(|text| text.to_string())
    }

    /// How many workers and per-connection processes of the hostile pool were started.
    fn starts(&self) -> usize {
        let log = self.server.log();
        let is_start = |line: &&str| line.ends_with(" is starting") || line.ends_with(" is forked");
        log.lines()
            .filter(|line| line.contains("supervisor[") && line.contains("hostile/"))
            .filter(is_start)
            .count()
    }

    /// The hostile pool sends junk for some seconds, which must cost the supervisor little time. At most so many
    /// processes may be started in three seconds.
    fn withstand_flood(&mut self, most_starts: usize) {
        let (begun, busy, starts) = (Instant::now(), self.busy(), self.starts());
        while begun.elapsed() < Duration::from_secs(3) {
            let _ = self.try_attack("flood");
            others_answer(&mut self.clients);
        }
        let (took, used, starts) = (begun.elapsed(), self.busy() - busy, self.starts() - starts);
        assert!(used < took / 2, "the supervisor has used {used:?} of {took:?}");
        let most_starts = most_starts * took.as_secs().div_ceil(3) as usize;
        assert!(starts < most_starts, "{starts} processes were started in {took:?}");
    }

    /// CPU time of the supervisor.
    fn busy(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.server.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u32 = fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap();
        Duration::from_millis(10) * ticks
    }

    /// Asserts that the other pools are not affected: clients, workers, new connections, a reload, the log.
    fn others_serve_on(&mut self) {
        others_answer(&mut self.clients);
        assert!(self.others.iter().all(|pid| is_alive(*pid)), "a worker of another pool is gone");
        assert_eq!(self.workers_of(&["default", "third"]), self.others);
        let mut new: Vec<Client> =
            ["/echo", "/third"].map(|resource| connect(&self.server.address(), resource)).into();
        others_answer(&mut new);
        let reloads = || self.server.log().matches("reload: done").count();
        let before = reloads();
        self.server.signal(Signal::SIGHUP);
        until("a reload is done", || reloads() > before);
        others_answer(&mut self.clients);
        assert!(self.server.log().contains("is starting, configuration file"), "the log was truncated");
    }

    /// Stops the server, which must end properly.
    fn stop(mut self) {
        drop(self.clients);
        self.server.signal(Signal::SIGTERM);
        self.server.wait();
        assert!(!self.server.log().contains("panicked at"), "{}", self.server.log());
    }
}

fn others_answer(clients: &mut Vec<Client>) {
    for client in clients {
        assert_eq!(ask(client, SECRET), SECRET);
    }
}

#[test]
fn memory_of_other_pools_cannot_be_read() {
    let Some(mut walls) = Walls::start("") else { return };
    assert_eq!(walls.attack("search"), 0);
    walls.others_serve_on();
    walls.stop();
}

#[test]
fn overwriting_shared_memory_harms_the_own_pool_only() {
    let Some(mut walls) = Walls::start("max_connections_per_address = 1000\n") else { return };
    for _ in 0..3 {
        assert!(walls.attack("scribble") > 0);
        walls.others_serve_on();
    }
    walls.stop();
}

#[test]
fn files_cannot_be_truncated_nor_log_sockets_redirected() {
    let Some(mut walls) = Walls::start("access_log = '-'\n") else { return };
    assert_eq!(walls.attack("truncate"), 0);
    walls.attack("steal");
    walls.others_serve_on();
    walls.stop();
}

#[test]
fn junk_in_every_socket_is_dropped_and_costs_that_worker_only() {
    let Some(mut walls) = Walls::start("") else { return };
    let [mut subscriber, mut publisher] =
        ["/topics"; 2].map(|topics| connect(&walls.server.address(), topics));
    assert_eq!(ask(&mut subscriber, "sub news"), "sub 0");
    assert_eq!(ask(&mut publisher, "pub news first"), "pub 0");
    assert_eq!(next_text(&mut subscriber), "first");
    assert!(walls.attack("junk") > 0);
    walls.others_serve_on();
    assert_eq!(ask(&mut publisher, "pub news second"), "pub 0");
    assert_eq!(next_text(&mut subscriber), "second");
    assert!(walls.attack("forks") > 0);
    walls.others_serve_on();
    walls.withstand_flood(30);
    walls.others_serve_on();
    assert_eq!(ask(&mut publisher, "pub news third"), "pub 0");
    assert_eq!(next_text(&mut subscriber), "third");
    walls.stop();
}

#[test]
fn per_connection_processes_have_the_same_boundary() {
    let Some(mut walls) = Walls::start_as(HOSTILE_PROCESSES, "") else { return };
    assert_eq!(walls.attack("search"), 0);
    assert_eq!(walls.attack("truncate"), 0);
    assert!(walls.attack("junk") > 0);
    walls.others_serve_on();
    assert!(walls.attack("forks") > 0);
    walls.withstand_flood(200);
    walls.others_serve_on();
    walls.stop();
}

#[test]
fn no_process_of_a_walled_pool_gets_a_file_of_the_log() {
    for hostile in [HOSTILE, HOSTILE_PROCESSES] {
        let Some(walls) = Walls::start_as(hostile, "") else { return };
        let log = walls.dir.path().join("log");
        let mut client = connect(&walls.server.address(), "/hostile");
        assert_eq!(ask(&mut client, "here"), "here");
        fs::rename(&log, walls.dir.path().join("before")).unwrap();
        walls.server.signal(Signal::SIGUSR1);
        let has_it = |pid: &i32| {
            let mut fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            fds.any(|fd| fs::read_link(fd.unwrap().path()).is_ok_and(|file| file == log))
        };
        until("others have the new file", || walls.workers_of(&["default"]).iter().all(has_it));
        assert_eq!(ask(&mut client, "still here"), "still here");
        let walled = walls.workers_of(&["hostile", "third"]);
        assert!(!walled.is_empty() && !walled.iter().any(has_it), "{walled:?}");
        drop(client);
        walls.stop();
    }
}

#[test]
fn a_process_of_a_connection_logs_on_when_its_parent_has_been_replaced() {
    if !geteuid().is_root() {
        return eprintln!("not root: skipped");
    }
    let dir = Dir::new();
    let source = r#"
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            ws_log(WS_LOG_WARN, "said %s", (const char *)msg->data);
            ws_send(conn, msg->type, msg->data, msg->size);
        }
        WS_HANDLER(.name = "says", .on_message = on_message);
    "#;
    dir.handler("says", source);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let config = dir.path().join("w.conf");
    fs::write(&config, HOSTILE_PROCESSES.replace("hostile", "says")).unwrap();
    let mut server = Server::start(&dir, &["--workers", "1", "--config", config.to_str().unwrap()]);
    let mut client = connect(&server.address(), "/says");
    ask(&mut client, "first");
    server.says("said first");
    let title = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let parent = || server.workers().into_iter().find(|pid| title(pid).contains("parent says"));
    let before = parent().unwrap();
    kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
    until("the parent is replaced", || parent().is_some_and(|pid| pid != before));
    ask(&mut client, "second");
    server.says("said second");
    drop(client);
    server.stop();
}

#[test]
fn a_removed_pool_moves_its_connections_to_the_default_pool() {
    let Some(walls) = Walls::start("") else { return };
    let mut client = connect(&walls.server.address(), "/hostile");
    assert_eq!(ask(&mut client, "here"), "here");
    fs::write(walls.dir.path().join("w.conf"), OTHERS).unwrap();
    walls.server.signal(Signal::SIGHUP);
    until("the pool is gone", || walls.workers_of(&["hostile"]).is_empty());
    assert_eq!(ask(&mut client, "still here"), "still here");
    walls.stop();
}

#[test]
fn closed_descriptors_cost_that_worker_only() {
    let Some(mut walls) = Walls::start("") else { return };
    let mut raw = Raw::open(&walls.server.address(), "/hostile");
    raw.text("close");
    walls.others_serve_on();
    assert_eq!(walls.attack("search"), 0);
    walls.stop();
}

/// The default pool has no boundary inside, but overwritten memory is replaced.
#[test]
fn overwriting_memory_of_the_default_pool_harms_it_for_seconds_only() {
    let dir = Dir::new();
    fixtures::add_handler(dir.path(), "echo", "echo");
    fixtures::add_handler(dir.path(), "hostile", "hostile");
    let config = dir.path().join("w.conf");
    let control = dir.path().join("control");
    fs::write(&config, "workers = 2\nstop_timeout = '1h'\n[handler.'/echo']\nmax_connections = 50\n")
        .unwrap();
    let (config, socket) = (config.to_str().unwrap(), control.to_str().unwrap());
    let mut server = Server::start(&dir, &["--config", config, "--control-socket", socket]);
    let workers = server.workers();
    let mut raw = Raw::open(&server.address(), "/hostile");
    raw.text("scribble");
    until("the workers are replaced", || {
        let now = server.workers();
        now.len() == 2 && now.iter().all(|pid| !workers.contains(pid))
    });
    until("the other handler is served", || {
        let stream = client::tcp(&server.address());
        let opened = tungstenite::client("ws://localhost/echo", stream);
        opened.is_ok_and(|(mut client, _)| client.send(SECRET.into()).is_ok() && client.read().is_ok())
    });
    until("nothing is left of the numbers", || {
        let status = server.ctl_says(&control, &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let handlers = status["handlers"].as_array().unwrap();
        handlers.iter().all(|handler| handler["connections"].as_u64().is_some_and(|count| count < 10))
    });
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}
