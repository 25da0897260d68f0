//! `wshd ctl` against the real server: output, effects, and protection of the server from clients of the
//! control socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;

use client::{Raw, UPGRADE};
use daemon::{Dir, Server, ctl, is_alive, output_of, until, wshd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A server with a control socket.
struct Controlled {
    server: Server,
    dir: Dir,
}

impl Controlled {
    /// Serves fixtures.
    fn start(handlers: &[&str], args: &[&str]) -> Self {
        let dir = Dir::new();
        handlers.iter().for_each(|name| fixtures::add_handler(dir.path(), name, name));
        let socket = socket_in(&dir);
        let socket = ["--control-socket", socket.to_str().unwrap()];
        Self { server: Server::start(&dir, &[&socket, args].concat()), dir }
    }

    fn socket(&self) -> PathBuf {
        socket_in(&self.dir)
    }

    fn address(&self) -> String {
        self.server.address()
    }

    /// The output.
    #[track_caller]
    fn says(&self, args: &[&str]) -> String {
        self.server.ctl_says(&self.socket(), args)
    }

    /// Asserts that the server refuses, and returns why.
    #[track_caller]
    fn refuses(&self, args: &[&str]) -> String {
        self.server.ctl_refuses(&self.socket(), args)
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.says(&[args, &["--json"]].concat())).unwrap()
    }

    /// Sends raw bytes; returns the answer.
    #[track_caller]
    fn raw(&self, bytes: &[u8]) -> Value {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes); // if the server has not waited for them it says so
        let mut answer = Vec::new();
        // Unread bytes reset the connection after the answer.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.ends_with(b"\n"), "{:?}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).unwrap()
    }

    /// The list of connections of all workers. One that gets no processor for two seconds does not answer: then the
    /// list is requested again.
    #[track_caller]
    fn connections(&self) -> Value {
        let mut list = Value::Null;
        until("all workers list their connections", || {
            list = self.json(&["connections"]);
            list["silent"] == json!([])
        });
        list
    }

    /// Closes a connection, which has been closed as well if a worker was silent the first time.
    #[track_caller]
    fn close(&self, args: &[&str]) {
        let mut was_silent = false;
        until("the worker closes the connection", || {
            let output = ctl(&self.socket(), &[&["close"], args].concat());
            let why = String::from_utf8(output.stderr).unwrap();
            let is_silent = why.contains("within 2 seconds");
            was_silent |= is_silent;
            assert!(
                output.status.success() || is_silent || was_silent && why.contains("is not an open"),
                "{why}"
            );
            if output.status.success() {
                assert_eq!(output.stdout, format!("{} is being closed\n", args[0]).into_bytes());
            }
            !is_silent
        });
    }

    /// The status once all workers run: one that gets no processor for five seconds is shown as hung.
    #[track_caller]
    fn status(&self) -> Value {
        let mut status = Value::Null;
        until("all workers run", || {
            status = self.json(&["status"]);
            status["workers"].as_array().unwrap().iter().all(|worker| worker["state"] == "running")
        });
        status
    }

    fn connect(&self) -> UnixStream {
        client::unix(self.socket())
    }
}

fn socket_in(dir: &Dir) -> PathBuf {
    dir.path().join("control")
}

/// The status of an opening handshake.
#[track_caller]
fn status_of(address: &str, resource: &str) -> u16 {
    let mut raw = Raw::connect(address);
    raw.send(format!("GET {resource} HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n").as_bytes());
    raw.head()[9..12].parse().unwrap()
}

/// The items of a list, by the members of these names.
fn members(list: &Value, names: [&str; 2]) -> BTreeSet<(String, String)> {
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or("null").to_owned();
    let list = list.as_array().unwrap();
    list.iter().map(|entry| (text(entry, names[0]), text(entry, names[1]))).collect()
}

#[test]
fn status_shows_workers_pools_and_handlers() {
    let dir = Dir::new();
    ["echo", "crash"].iter().for_each(|name| fixtures::add_handler(dir.path(), name, name));
    let (socket, file) = (socket_in(&dir), dir.path().join("w.conf"));
    std::fs::write(
        &file,
        format!(
            "workers = 2\ncontrol_socket = '{}'\n[handler.'/crash']\nisolation = 'pool'\n[pool.crash]\nworkers = 1\n",
            socket.display()
        ),
    )
    .unwrap();
    let server = Server::start(&dir, &["--config", file.to_str().unwrap()]);
    let mut this = Controlled { server, dir };
    let mut echo = Raw::open(&this.address(), "/echo");
    echo.text("hello");
    assert_eq!(echo.next().unwrap().payload, b"hello");
    let status = this.status();
    assert_eq!(status["pid"], this.server.pid());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["listen"], json!([this.address()]));
    assert_eq!((&status["leaving"], status["uptime"].as_f64().unwrap() < 600.0), (&json!([]), true));
    let names = members(&status["workers"], ["name", "state"]);
    let expected = ["crash/0", "default/0", "default/1"].map(|name| (name.to_owned(), "running".to_owned()));
    assert_eq!(names, expected.into());
    let workers = status["workers"].as_array().unwrap();
    let pids: BTreeSet<i64> = workers.iter().map(|worker| worker["pid"].as_i64().unwrap()).collect();
    assert_eq!(pids, this.server.workers().iter().map(|pid| i64::from(*pid)).collect());
    let sum =
        |pick: fn(&Value) -> &Value| workers.iter().map(|worker| pick(worker).as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum(|worker| &worker["connections"]), 1);
    assert_eq!(sum(|worker| &worker["totals"]["messages_in"]), 1);
    assert_eq!(sum(|worker| &worker["totals"]["bytes_out"]), 5);
    assert!(workers.iter().all(|worker| worker["memory"].as_u64().unwrap() > 100_000), "{status}");
    assert!(workers.iter().all(|worker| worker["executes"].is_null()), "{status}");
    let pool = |name, workers, connections| json!({ "name": name, "workers": workers, "running": workers, "connections": connections });
    assert_eq!(status["pools"], json!([pool("default", 2, 1), pool("crash", 1, 0)]));
    assert_eq!(
        members(&status["handlers"], ["name", "pool"]),
        [("echo".into(), "default".into()), ("crash".into(), "crash".into())].into()
    );
    let echo =
        &status["handlers"].as_array().unwrap().iter().find(|handler| handler["name"] == "echo").unwrap();
    assert_eq!(echo["connections"], 1);
    assert_eq!(echo["totals"], json!({ "messages_in": 1, "messages_out": 1, "bytes_in": 5, "bytes_out": 5 }));
    // As text, with the socket from the configuration file.
    let mut text = String::new();
    until("all workers run", || {
        let output = output_of(wshd().args(["ctl", "status", "-f"]).arg(&file)).unwrap();
        text = String::from_utf8(output.stdout).unwrap();
        text.contains("3 of 3 workers running, 1 connection\n")
    });
    for (start, rest) in
        [("default/1 ", " running "), ("crash/0 ", " running "), ("POOL ", "RUNNING"), ("crash ", " served ")]
    {
        assert!(text.lines().any(|line| line.starts_with(start) && line.contains(rest)), "{start}: {text}");
    }
    this.server.stop();
    assert!(!socket.exists());
}

#[test]
fn a_handler_that_hangs_is_named_while_it_hangs() {
    let this = Controlled::start(&["loop"], &["--workers", "2"]);
    let mut raw = Raw::open(&this.address(), "/loop");
    raw.text("sleep");
    let mut status = Value::Null;
    until("it has hung for a second", || {
        status = this.json(&["status"]);
        let workers = status["workers"].as_array().unwrap();
        workers.iter().any(|worker| worker["executes"]["for"].as_f64().is_some_and(|time| time >= 1.0))
    });
    let stuck =
        status["workers"].as_array().unwrap().iter().find(|worker| worker["executes"].is_object()).unwrap();
    let pid = stuck["pid"].as_i64().unwrap();
    let executes = &stuck["executes"];
    for (member, value) in [("handler", "loop"), ("resource", "/loop"), ("callback", "on_message")] {
        assert_eq!(executes[member], value);
    }
    let id = executes["connection"].as_str().unwrap();
    assert!(id.starts_with(&format!("{pid}:")), "{id}");
    let text = this.says(&["status"]);
    // After five seconds it is hung.
    let is_state = |line: &&str| line.contains(" running ") || line.contains(" hung ");
    let line = text.lines().filter(is_state).find(|line| line.contains(&pid.to_string())).unwrap();
    assert!(
        line.contains("on_message of loop (/loop) for ") && line.ends_with(&format!("{id} !!")),
        "{text}"
    );

    // Its worker cannot answer; the others are still listed.
    assert_eq!(this.server.workers().len(), 2);
    let list = this.json(&["connections"]);
    let silent = list["silent"].as_array().unwrap().iter().find(|silent| silent["pid"] == pid).unwrap();
    assert_eq!(silent["executes"]["handler"], "loop");
    assert!(list["connections"].as_array().unwrap().iter().all(|entry| entry["id"] != *id), "{list}");
    let text = this.says(&["connections"]);
    assert!(text.contains(&format!(", process {pid}: on_message of loop")), "{text}");
    let why = this.refuses(&["close", id]);
    assert!(why.contains("within 2 seconds: it is in on_message of loop"), "{why}");
}

#[test]
fn connections_are_exactly_those_that_are_open() {
    let this = Controlled::start(&["echo", "everything_blocking"], &["--workers", "3"]);
    let address = this.address();
    assert_eq!(this.connections(), json!({ "connections": [], "left_out": 0, "silent": [] }));
    let peer = |raw: &Raw| raw.stream.local_addr().unwrap().to_string();
    let mut open: Vec<(Raw, &str)> = Vec::new();
    for number in 0..12 {
        let resource = ["/echo", "/echo?query", "/everything_blocking"][number % 3];
        open.push((Raw::open(&address, resource), resource));
    }
    let expected = |open: &[(Raw, &str)]| -> BTreeSet<(String, String)> {
        open.iter().map(|(raw, resource)| (peer(raw), (*resource).to_owned())).collect()
    };
    // The client may see the reply before the worker has finished the handshake.
    let mut list = Value::Null;
    until("all are open", || {
        list = this.json(&["connections"]);
        members(&list["connections"], ["peer", "resource"]) == expected(&open)
            && list["connections"].as_array().unwrap().iter().all(|entry| entry["phase"] == "open")
    });
    let entries = list["connections"].as_array().unwrap();
    let distinct =
        |member: &str| entries.iter().map(|entry| entry[member].to_string()).collect::<BTreeSet<_>>().len();
    assert_eq!((entries.len(), distinct("id")), (12, 12));
    assert!(distinct("worker") > 1, "{list}");
    let workers = members(&this.status()["workers"], ["name", "state"]);
    for entry in entries {
        assert!(workers.contains(&(entry["worker"].as_str().unwrap().to_owned(), "running".to_owned())));
        let blocking = entry["resource"] == "/everything_blocking";
        assert_eq!(entry["handler"] == "echo", !blocking, "{entry}");
        assert_eq!(
            (&entry["queued"], &entry["compressed"], &entry["protocol"]),
            (&json!(0), &json!(false), &Value::Null)
        );
        assert!(entry["age"].as_f64().unwrap() < 600.0);
    }
    // Ended connections are not listed.
    open.truncate(5);
    until("seven have left", || {
        members(&this.connections()["connections"], ["peer", "resource"]) == expected(&open)
    });
    // One without a request yet, and one with compression.
    let silent = Raw::connect(&address);
    let mut compressed = Raw::connect(&address);
    compressed.upgrade("/echo", "Sec-WebSocket-Extensions: permessage-deflate\r\n");
    let of = |list: &Value, raw: &Raw| {
        let entries = list["connections"].as_array().unwrap().clone();
        entries.into_iter().find(|entry| entry["peer"] == *peer(raw))
    };
    until("both are there", || {
        let list = this.json(&["connections"]);
        let (Some(silent), Some(compressed)) = (of(&list, &silent), of(&list, &compressed)) else {
            return false;
        };
        silent["phase"] == "request" && silent["resource"].is_null() && compressed["compressed"] == true
    });
    let mut text = String::new();
    until("all are listed", || {
        text = this.says(&["connections"]);
        text.lines().count() == 1 + 5 + 2
    });
    assert!(text.lines().any(|line| line.contains(&peer(&silent)) && line.contains(" request ")), "{text}");
}

#[test]
fn connections_of_a_draining_worker_are_listed() {
    let dir = Dir::new();
    fixtures::add_handler(dir.path(), "stubborn", "stubborn_blocking");
    let socket = socket_in(&dir);
    let options =
        ["--control-socket", socket.to_str().unwrap(), "--workers", "1", "-o", "worker_max_messages=1"];
    let mut this =
        Controlled { server: Server::start(&dir, &[&options[..], &["-o", "stop_timeout=1h"]].concat()), dir };
    let before = this.server.worker();
    let mut client = client::connect(&this.address(), "/stubborn");
    for _ in 0..2 {
        assert_eq!(client::ask(&mut client, "hello"), "hello");
    }
    until("its worker is replaced", || {
        let status = this.json(&["status"]);
        status["workers"][0]["state"] == "running" && status["workers"][0]["pid"] != before
    });
    let status = this.json(&["status"]);
    assert_eq!(
        (&status["leaving"][0]["pid"], &status["leaving"][0]["name"]),
        (&json!(before), &json!("default/0"))
    );
    assert_eq!(status["leaving"][0]["connections"], 1);
    let text = this.says(&["status"]);
    assert!(
        text.lines().any(|line| line.contains(&before.to_string()) && line.contains(" leaving ")),
        "{text}"
    );
    let list = this.connections();
    let [entry] = &list["connections"].as_array().unwrap()[..] else { panic!("{list}") };
    let id = entry["id"].as_str().unwrap();
    assert!(id.starts_with(&format!("{before}:")), "{list}");
    this.close(&[id]);
    assert_eq!(client::close_of(&mut client).0, 1001);
    until("it has left", || this.json(&["status"])["leaving"] == json!([]));
    assert!(!is_alive(before));
    assert_eq!(this.connections()["connections"], json!([]));
    this.server.stop();
}

#[test]
fn a_list_has_a_bound_and_says_so() {
    let this = Controlled::start(&["echo"], &["--workers", "1"]);
    let resource = format!("/echo?{}", "long".repeat(3500));
    let open: Vec<Raw> = (0..330).map(|_| Raw::open(&this.address(), &resource)).collect();
    // 14,000 bytes each: 4 MiB hold 300 at most.
    let list = this.connections();
    let listed = list["connections"].as_array().unwrap().len();
    assert_eq!(listed as u64 + list["left_out"].as_u64().unwrap(), 330);
    assert!((290..=300).contains(&listed), "{listed}");
    until("the table says so, too", || {
        this.says(&["connections"]).ends_with(&format!("\n{} more are not listed\n", 330 - listed))
    });
    drop(open);
}

#[test]
fn strings_of_peers_are_listed_unchanged() {
    let this = Controlled::start(&["echo"], &["--workers", "1"]);
    let resource = "/echo?%1b[31m\"\\,{}";
    let mut raw = Raw::open(&this.address(), resource);
    assert_eq!(raw.ask("hello"), "hello");
    assert_eq!(this.connections()["connections"][0]["resource"], resource);
    until("it is in the table", || this.says(&["connections"]).contains(resource));
}

#[test]
fn close_closes_one_connection_with_the_code() {
    let this = Controlled::start(&["echo"], &["--workers", "2"]);
    let mut clients: Vec<client::Client> =
        (0..4).map(|_| client::connect(&this.address(), "/echo")).collect();
    for client in &mut clients {
        client::ask(client, "hello");
    }
    let id_of = |client: &client::Client| {
        let peer = client.get_ref().local_addr().unwrap().to_string();
        let mut entry = None;
        until("it is listed", || {
            let list = this.connections();
            let mut all = list["connections"].as_array().unwrap().iter();
            entry = all.find(|entry| entry["peer"] == peer).cloned();
            entry.is_some()
        });
        entry.unwrap()["id"].as_str().unwrap().to_owned()
    };
    let mut third = clients.remove(2);
    let id = id_of(&third);
    this.close(&[&id, "--code", "4321"]);
    assert_eq!(client::close_of(&mut third), (4321, String::new()));
    let mut first = clients.remove(0);
    this.close(&[&id_of(&first)]);
    assert_eq!(client::close_of(&mut first), (1001, String::new()));
    for client in &mut clients {
        assert_eq!(client::ask(client, "still here"), "still here");
    }
    until("it is gone", || this.connections()["connections"].as_array().unwrap().len() == 2);
    until("it cannot be closed again", || {
        this.refuses(&["close", &id]).contains(&format!("{id} is not an open connection"))
    });
    assert!(this.refuses(&["close", "1:100000001"]).contains("no worker has pid 1"));
    let supervisor = format!("{}:100000001", this.server.pid());
    assert!(this.refuses(&["close", &supervisor]).contains("no worker has pid"));
    // A connection without a request is dropped.
    let mut silent = Raw::connect(&this.address());
    let peer = silent.stream.local_addr().unwrap().to_string();
    let mut id = None;
    until("it is there", || {
        let list = this.json(&["connections"]);
        let entry =
            list["connections"].as_array().unwrap().iter().find(|entry| entry["peer"] == peer).cloned();
        id = entry.map(|entry| entry["id"].as_str().unwrap().to_owned());
        id.is_some()
    });
    this.close(&[&id.unwrap()]);
    assert!(silent.rest().is_empty());
    assert!(this.server.log().contains(" requests: close "), "{}", this.server.log());
}

#[test]
fn a_handler_is_quarantined_and_released_by_command() {
    let this = Controlled::start(&["echo", "crash"], &["--workers", "2"]);
    let address = this.address();
    let mut before = Raw::open(&address, "/crash");
    this.says(&["quarantine", "/crash", "on"]);
    let mut raw = Raw::connect(&address);
    raw.send(format!("GET /crash HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n").as_bytes());
    let answer = raw.answer();
    assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("60")));
    assert_eq!(status_of(&address, "/echo"), 101);
    assert_eq!(before.ask("hello"), "hello");
    let state = |this: &Controlled| this.json(&["quarantine", "/crash"])[0]["quarantine"].clone();
    assert_eq!(state(&this), json!({ "probing": false, "seconds": null }));
    let text = this.says(&["quarantine"]);
    assert!(
        text.lines().any(|line| line.starts_with("crash ") && line.contains(" quarantined until lifted "))
    );
    assert!(text.lines().any(|line| line.starts_with("echo ") && line.contains(" served ")), "{text}");
    let text = this.says(&["quarantine", "/crash", "off"]);
    assert!(text.contains(" served "), "{text}");
    assert_eq!((status_of(&address, "/crash"), state(&this)), (101, Value::Null));
    // For a time, after which it is probed.
    this.says(&["quarantine", "/crash", "on", "--time", "1h"]);
    assert_eq!(status_of(&address, "/crash"), 503);
    assert!(state(&this)["seconds"].as_f64().is_some_and(|left| (3000.0..=3600.0).contains(&left)));
    this.says(&["quarantine", "/crash", "on", "--time", "1s"]);
    until("it is probed", || state(&this)["probing"] == true);
    let mut probe = Raw::open(&address, "/crash");
    assert_eq!(probe.ask("hello"), "hello");
    until("it is served", || state(&this).is_null());
    assert!(this.refuses(&["quarantine", "/nothing", "on"]).contains("no handler serves /nothing"));
    let wrong = this.raw(b"{\"command\":\"quarantine\",\"state\":\"on\"}\n");
    assert_eq!(wrong["error"], "expected the resource whose handler to quarantine");
}

#[test]
fn lifting_a_quarantine_clears_its_deaths() {
    let this = Controlled::start(&["crash"], &["--workers", "1", "-o", "quarantine_deaths=2"]);
    let crash = || {
        let before = this.server.workers();
        let mut raw = Raw::connect(&this.address());
        raw.send(format!("GET /crash?open=null HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n").as_bytes());
        until("the worker is replaced", || {
            let now = this.server.workers();
            now.len() == 1 && now != before && is_alive(now[0])
        });
    };
    crash();
    this.says(&["quarantine", "/crash", "off"]);
    crash();
    assert_eq!(status_of(&this.address(), "/crash"), 101, "one death since then: {}", this.server.log());
    crash();
    assert_eq!(status_of(&this.address(), "/crash"), 503);
    this.says(&["quarantine", "/crash", "off"]);
    assert_eq!(status_of(&this.address(), "/crash"), 101);
}

#[test]
fn stop_ends_the_server_and_the_socket() {
    let mut this = Controlled::start(&["echo"], &["--workers", "2"]);
    let mut client = client::connect(&this.address(), "/echo");
    assert_eq!(this.says(&["stop"]), "stopping\n");
    assert_eq!(client::close_of(&mut client).0, 1001);
    assert_eq!(this.server.wait().code(), Some(0), "{}", this.server.log());
    assert!(!this.socket().exists());

    let mut this = Controlled::start(&["echo"], &["--workers", "2", "-o", "stop_timeout=1h"]);
    let client = client::connect(&this.address(), "/echo"); // does not answer the close
    assert_eq!(this.says(&["stop", "--now"]), "stopping\n");
    this.server.wait();
    assert!(!this.socket().exists());
    drop(client);
}

/// Leaves the file of a socket without a listener, even if other tests fork children meanwhile.
fn leave_socket(path: &std::path::Path) {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(path).unwrap()).unwrap();
}

#[test]
fn the_socket_of_a_dead_server_is_replaced_and_that_of_a_living_one_is_not() {
    let dir = Dir::new();
    fixtures::add_handler(dir.path(), "echo", "echo");
    let path = socket_in(&dir);
    leave_socket(&path);
    let option = ["--control-socket", path.to_str().unwrap()];
    let mut this = Controlled { server: Server::start(&dir, &option), dir };
    this.says(&["status"]);
    let other = Dir::new();
    fixtures::add_handler(other.path(), "echo", "echo");
    let mut second = Server::spawn(&other, &option);
    assert_eq!(second.wait().code(), Some(4));
    assert!(second.log().contains("another server answers"), "{}", second.log());
    this.says(&["status"]);
    this.server.stop();
    std::fs::write(&path, "precious").unwrap();
    let mut third = Server::spawn(&other, &option);
    assert_eq!(third.wait().code(), Some(4));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn without_a_server_it_says_what_to_do() {
    let dir = Dir::new();
    let path = socket_in(&dir);
    let ctl = |args: &[&str]| ctl(&path, args);
    for stale in [false, true] {
        if stale {
            leave_socket(&path);
        }
        let output = ctl(&["status"]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(8), "{error}");
        assert!(error.contains("is it running with --control-socket"), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    // Another program listens there.
    let listener = UnixListener::bind(&path).unwrap();
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail.example.com\r\n").unwrap();
    });
    let output = ctl(&["status"]);
    stranger.join().unwrap();
    assert_eq!(output.status.code(), Some(8));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no control socket of wshd"));
    assert_eq!(ctl(&["close", "x"]).status.code(), Some(2));
}

#[test]
fn the_number_of_workers_is_changed() {
    let mut this = Controlled::start(&["echo"], &["--workers", "2"]);
    let running = |this: &Controlled| this.json(&["status"])["pools"][0]["running"].clone();
    // One that is to be restarted, after a second, is one.
    for _ in 0..2 {
        until("there are two", || running(&this) == 2);
        let worker = this.json(&["status"])["workers"][1]["pid"].as_i64().unwrap();
        assert!(worker > 1);
        kill(Pid::from_raw(worker as i32), Signal::SIGKILL).unwrap();
        until("it has died", || this.json(&["status"])["workers"][1]["pid"] != worker);
    }
    assert_eq!(this.says(&["workers", "2"]), "default: 2 workers become 2\n");
    let mut clients: Vec<client::Client> =
        (0..8).map(|_| client::connect(&this.address(), "/echo")).collect();
    assert_eq!(this.says(&["workers", "+1"]), "default: 2 workers become 3\n");
    until("there are three", || running(&this) == 3);
    assert_eq!(this.says(&["workers", "5"]), "default: 3 workers become 5\n");
    until("there are five", || running(&this) == 5);
    let names = members(&this.status()["workers"], ["name", "state"]);
    let expected = (0..5).map(|number| (format!("default/{number}"), "running".to_owned()));
    assert_eq!(names, expected.collect());
    assert_eq!(this.says(&["workers", "-4"]), "default: 5 workers become 1\n");
    until("there is one, and none leaves", || {
        let status = this.json(&["status"]);
        status["leaving"] == json!([]) && status["workers"].as_array().unwrap().len() == 1
    });
    for client in &mut clients {
        assert_eq!(client::ask(client, "still here"), "still here");
    }
    until("no process is left over", || this.server.workers().len() == 1);
    for (change, why) in [("-1", "expected 1 to 1024 workers, not 0"), ("0", "not 0"), ("+1024", "not 1025")]
    {
        assert!(this.refuses(&["workers", change]).contains(why), "{change}");
    }
    assert!(this.refuses(&["workers", "+1", "--pool", "none"]).contains("there is no pool none"));
    until("there is one", || running(&this) == 1);
    drop(clients);
    this.server.stop();
}

#[test]
fn a_log_level_holds_until_the_next_reload() {
    let dir = Dir::new();
    dir.handler(
        "talker",
        r#"
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            ws_log(WS_LOG_DEBUG, "got it");
            ws_send(conn, msg->type, msg->data, msg->size);
        }
        WS_HANDLER(.name = "talker", .on_message = on_message);
        "#,
    );
    let socket = socket_in(&dir);
    let server = Server::start(&dir, &["--workers", "1", "--control-socket", socket.to_str().unwrap()]);
    let mut this = Controlled { server, dir };
    let mut client = client::connect(&this.address(), "/talker");
    let mut is_logged = |server: &Server| {
        let before = server.log().matches("got it").count();
        assert_eq!(client::ask(&mut client, "hello"), "hello");
        server.log().matches("got it").count() > before
    };
    assert!(is_logged(&this.server));
    assert_eq!(this.says(&["log-level", "error"]), "error\n");
    until("it is not logged", || !is_logged(&this.server));
    assert!(this.says(&["reload"]).contains("done"));
    until("it is logged again", || is_logged(&this.server));
    assert_eq!(this.says(&["log-level"]), "debug\n");
    drop(client);
    this.server.stop();
}

#[test]
fn reload_waits_and_prints_the_result() {
    let dir = Dir::new();
    fixtures::add_handler(dir.path(), "echo", "echo");
    let (socket, file) = (socket_in(&dir), dir.path().join("w.conf"));
    let write = |more: &str| {
        std::fs::write(&file, format!("workers = 2\ncontrol_socket = '{}'\n{more}\n", socket.display()))
            .unwrap();
    };
    write("");
    let server = Server::start(&dir, &["--config", file.to_str().unwrap()]);
    let mut this = Controlled { server, dir };
    let mut client = client::connect(&this.address(), "/echo");
    let before: BTreeSet<i32> = this.server.workers().into_iter().collect();
    write("max_message = '1M'");
    fixtures::add_handler(this.dir.path(), "more", "echo");
    assert_eq!(this.says(&["reload"]), "reload: done, 2 resources\n");
    // When it returns, all serving workers are new, and have the new handler.
    let status = this.json(&["status"]);
    let serving = status["workers"].as_array().unwrap().iter();
    assert!(
        serving.clone().all(|worker| !before.contains(&(worker["pid"].as_i64().unwrap() as i32))),
        "{status}"
    );
    assert_eq!(serving.count(), 2);
    assert_eq!(status_of(&this.address(), "/more"), 101);
    assert_eq!(client::ask(&mut client, "still here"), "still here");
    write("max_message = 'much'");
    let why = this.refuses(&["reload"]);
    assert!(
        why.contains("reload: failed; keeping the running configuration: ") && why.contains("max_message"),
        "{why}"
    );
    // Several at a time.
    write("max_message = '2M'");
    let outputs: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| this.says(&["reload"]))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(outputs, vec!["reload: done, 2 resources\n"; 4]);
    // A change that needs a restart is an error.
    std::fs::write(&file, "workers = 2\npid_file = '/tmp/other'\n").unwrap();
    let why = this.refuses(&["reload"]);
    assert!(
        why.contains("control_socket and pid_file cannot change while the server runs: restart it"),
        "{why}"
    );
    this.says(&["status"]);
    assert_eq!(client::ask(&mut client, "still here"), "still here");
    drop(client);
    this.server.stop();
}

/// The user nobody, in group nogroup.
const NOBODY: u32 = 65534;

#[test]
fn other_users_are_refused() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root to run as another user");
        return;
    }
    let this = Controlled::start(&["echo"], &["--workers", "1"]);
    let mode = this.socket().metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    // In a place where everybody can reach the program and the socket's directory.
    let public = tempfile::tempdir().unwrap();
    let program = public.path().join("wshd");
    // Copied by another process: a child forked by another test would keep it open for writing, and it could not be
    // executed.
    let copied = std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_wshd")).arg(&program).status();
    assert!(copied.unwrap().success());
    for path in [public.path(), &program, this.dir.path()] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let as_nobody = |path: PathBuf| {
        let mut command = std::process::Command::new(&program);
        command.args(["ctl", "status", "--control-socket"]).arg(path);
        output_of(command.uid(NOBODY).gid(NOBODY)).unwrap()
    };
    let output = as_nobody(this.socket());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(8), "{error}");
    assert!(error.contains("permission denied") && error.contains("control_group"), "{error}");
    // The server checks the peer even if the socket's permissions were changed.
    std::fs::set_permissions(this.socket(), PermissionsExt::from_mode(0o666)).unwrap();
    let output = as_nobody(this.socket());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(9), "{error}");
    assert!(error.contains(&format!("user {NOBODY} may not control this server")), "{error}");
    this.server.says("control socket: refused process");

    let this = Controlled::start(&["echo"], &["--workers", "1", "-o", &format!("control_group={NOBODY}")]);
    std::fs::set_permissions(this.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(this.socket().metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let output = as_nobody(this.socket());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn invalid_requests_are_answered_and_harmless() {
    let mut this = Controlled::start(&["echo"], &["--workers", "1"]);
    let valid: [&[u8]; 4] = [
        br#"{"command":"status"}"#,
        br#"{"command":"connections"}"#,
        br#"{"command":"close","id":"4711:100000007","code":1001}"#,
        br#"{"command":"quarantine","resource":"/none","state":"on","seconds":60}"#,
    ];
    // A linear congruential generator (Knuth, MMIX), for the same junk each time.
    let mut seed: u64 = 4;
    let mut next = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    for round in 0..400 {
        let mut bytes = valid[round % valid.len()].to_vec();
        for _ in 0..1 + next(6) {
            let at = next(bytes.len());
            match next(4) {
                0 => bytes[at] = next(256) as u8,
                1 => bytes.insert(at, b"{}[]\",:\\\0\xff0e-"[next(13)]),
                2 => drop(bytes.drain(at..at + next(bytes.len() - at))),
                _ => bytes.extend_from_within(at..),
            }
            if bytes.is_empty() {
                bytes.push(b' ');
            }
        }
        bytes.push(b'\n');
        let answer = this.raw(&bytes);
        let ok = answer["ok"].as_bool().unwrap();
        assert!(ok || !answer["error"].as_str().unwrap().is_empty(), "{answer}");
    }
    let deep = ["[".repeat(4000).into_bytes(), b"\n".to_vec()].concat();
    assert!(this.raw(&deep)["error"].as_str().unwrap().starts_with("not a request: "));
    let long = this.raw(&[b'x'; 96 * 1024 + 1]);
    assert!(long["error"].as_str().unwrap().contains("too long"), "{long}");
    drop(this.connect()); // nothing at all
    assert_eq!(status_of(&this.address(), "/echo"), 101);
    this.says(&["status"]);
    this.server.stop();
}

#[test]
fn idle_clients_and_clients_that_do_not_read_do_not_delay_others() {
    let mut this = Controlled::start(&["echo"], &["--workers", "2"]);
    // A list longer than the socket's buffers, so that the supervisor must keep the rest.
    let resource = format!("/echo?{}", "long".repeat(3000));
    let mut clients: Vec<Raw> = (0..150).map(|_| Raw::open(&this.address(), &resource)).collect();
    let mut idle: Vec<UnixStream> = Vec::new();
    for number in 0..6 {
        let mut stream = this.connect();
        if number % 2 == 0 {
            stream.write_all(b"{\"command\":\"connections\"}\n").unwrap();
        } else {
            stream.write_all(b"{\"command\":").unwrap();
        }
        idle.push(stream);
    }
    // Others are served meanwhile.
    until("all are counted", || this.json(&["status"])["pools"][0]["connections"] == 150);
    assert_eq!(clients[77].ask("hello"), "hello");
    // When all places are taken, idle clients are dropped after five seconds.
    idle.extend((0..4).map(|_| this.connect()));
    this.says(&["status"]);
    until("all of them are gone", || idle.iter_mut().all(is_over));
    // A worker that dies is replaced as ever.
    let worker = this.server.workers()[0];
    idle = (0..8).map(|_| this.connect()).collect();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("it is replaced", || {
        let now = this.server.workers();
        now.len() == 2 && !now.contains(&worker)
    });
    drop(idle);
    drop(clients);
    this.server.stop();
}

/// Whether the other end is closed; reads what is available.
fn is_over(stream: &mut UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = [0; 65536];
    match stream.read(&mut bytes) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

#[test]
fn a_client_may_leave_before_its_answer() {
    let mut this = Controlled::start(&["loop"], &["--workers", "1"]);
    let mut raw = Raw::open(&this.address(), "/loop");
    raw.text("sleep");
    until("it hangs", || !this.json(&["status"])["workers"][0]["executes"].is_null());
    for _ in 0..20 {
        let mut stream = this.connect();
        stream.write_all(b"{\"command\":\"connections\"}\n").unwrap();
    }
    assert_eq!(this.json(&["connections"])["silent"].as_array().unwrap().len(), 1);
    this.says(&["stop", "--now"]);
    this.server.wait();
    assert!(!this.server.log().contains("panicked at"));
}

#[test]
fn watch_repeats() {
    let mut this = Controlled::start(&["echo"], &["--workers", "1"]);
    let mut child = wshd()
        .args(["ctl", "status", "--watch=0.1", "--control-socket"])
        .arg(this.socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut connections = |wanted: &str| {
        let line = lines.find(|line| line.as_ref().unwrap().contains(wanted));
        assert!(line.is_some(), "{wanted} never comes");
    };
    connections("running, 0 connections");
    let _client = Raw::open(&this.address(), "/echo");
    connections("running, 1 connection");
    this.server.stop();
    // It ends with the server, with an error.
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(8), "{output:?}");
}

#[test]
fn a_worker_that_does_not_respond_is_shown_as_hung() {
    let mut this = Controlled::start(&["echo"], &["--workers", "1"]);
    let worker = Pid::from_raw(this.server.worker());
    let state = |this: &Controlled| this.json(&["status"])["workers"][0]["state"].clone();
    kill(worker, Signal::SIGSTOP).unwrap();
    until("it is shown as hung", || state(&this) == "hung");
    kill(worker, Signal::SIGCONT).unwrap();
    until("it runs again", || state(&this) == "running");
    this.server.stop();
}
