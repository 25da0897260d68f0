//! Reload: handlers and configuration change while connections continue, and a failed reload changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "rescue/crowd.rs"]
mod crowd;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use client::{Raw, ask, connect, header};
use crowd::{Crowd, Habits, SMALL_TALK};
use daemon::{Dir, Server, is_alive, is_idle, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Answers "version" with its own, "pid" with its process; "keep X" attaches X, "kept" is answered with it;
/// everything else is echoed. `START` is run in on_worker_start.
fn versioned(version: u32, start: &str) -> String {
    format!(
        r#"
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <unistd.h>
        #include <ws_handler.h>
        static int on_worker_start(void) {{ {start} return 0; }}
        static void on_message(ws_conn conn, const ws_message *msg)
        {{
            const char *text = (const char *)msg->data;
            char answer[64];
            if (strcmp(text, "version") == 0) {{
                ws_send(conn, WS_TEXT, answer, (size_t)sprintf(answer, "%d", {version}));
            }} else if (strcmp(text, "pid") == 0) {{
                ws_send(conn, WS_TEXT, answer, (size_t)sprintf(answer, "%d", (int)getpid()));
            }} else if (strncmp(text, "keep ", 5) == 0) {{
                ws_set_state(conn, text + 5, msg->size - 5);
                ws_send(conn, WS_TEXT, "ok", 2);
            }} else if (strcmp(text, "kept") == 0) {{
                ws_bytes state = ws_state(conn);
                ws_send(conn, WS_TEXT, state.data, state.size);
            }} else {{
                ws_send(conn, msg->type, msg->data, msg->size);
            }}
        }}
        WS_HANDLER(.name = "versioned", .on_worker_start = on_worker_start, .on_message = on_message);
        "#
    )
}

/// Puts a handler into the directory as an operator should: by rename.
fn install(dir: &Dir, name: &str, source: &str) {
    let made = dir.handler(&format!("{name}.new"), source);
    fs::rename(made, target(dir, name)).unwrap();
}

fn target(dir: &Dir, name: &str) -> PathBuf {
    dir.path().join(format!("{name}_wsh.so"))
}

/// How often the log contains this.
fn logged(server: &Server, text: &str) -> usize {
    server.log().matches(text).count()
}

/// Reloads, and waits for the end.
#[track_caller]
fn reload(server: &Server) {
    let before = logged(server, "reload: done");
    server.signal(Signal::SIGHUP);
    until("the reload is done", || logged(server, "reload: done") > before);
}

/// Reloads; it must fail with this reason.
#[track_caller]
fn refused(server: &Server, why: &str) {
    let refusals = || server.log().lines().filter(|line| line.contains("reload: failed")).count();
    let before = refusals();
    server.signal(Signal::SIGHUP);
    until("the reload is refused", || refusals() > before);
    let log = server.log();
    let line = log.lines().rfind(|line| line.contains("reload: failed")).unwrap();
    assert!(line.contains(why), "{why:?} is expected in {line:?}");
}

/// The workers, as a set.
fn pids(server: &Server) -> BTreeSet<i32> {
    server.workers().into_iter().collect()
}

#[test]
fn a_changed_handler_takes_over_the_open_connections_with_their_state() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let mut server = Server::start(&dir, &["--workers", "2"]);
    let before = pids(&server);
    let mut client = connect(&server.address(), "/chat");
    assert_eq!(ask(&mut client, "version"), "1");
    assert_eq!(ask(&mut client, "keep seven"), "ok");
    install(&dir, "chat", &versioned(2, ""));
    reload(&server);
    until("the new version answers", || ask(&mut client, "version") == "2");
    assert_eq!(ask(&mut client, "kept"), "seven");
    until("both workers are new ones", || {
        let now = pids(&server);
        now.len() == 2 && now.is_disjoint(&before)
    });
    client.close(None).unwrap();
    server.stop();
}

#[test]
fn no_message_is_lost_in_ten_reloads_under_load() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(0, ""));
    let mut server = Server::start(&dir, &["--workers", "2"]);
    let habits = Habits { deflate: true, large: 40_000, ..SMALL_TALK };
    let crowd = Crowd::gather(&server.address(), "/chat", 200, habits);
    for version in 1..=10 {
        install(&dir, "chat", &versioned(version, ""));
        reload(&server);
        crowd.served();
    }
    assert_eq!(connect_and_ask(&server, "/chat", "version"), "10");
    assert_eq!(crowd.served().clients, 200);
    assert_eq!(crowd.ends(), []);
    drop(crowd);
    until("those that were replaced have left", || server.workers().len() == 2);
    server.stop();
}

fn connect_and_ask(server: &Server, resource: &str, text: &str) -> String {
    let mut client = connect(&server.address(), resource);
    let answer = ask(&mut client, text);
    client.close(None).unwrap();
    answer
}

#[test]
fn a_reload_without_a_change_replaces_no_worker() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let mut server = Server::start(&dir, &["--workers", "2"]);
    let before = pids(&server);
    reload(&server);
    server.says("no worker has to be replaced");
    assert_eq!(pids(&server), before);
    server.stop();
}

#[test]
fn a_failed_reload_changes_nothing() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let config = dir.path().join("wshd.conf");
    fs::write(&config, "workers = 1\n").unwrap();
    let mut server = Server::start(&dir, &["--config", config.to_str().unwrap()]);
    let before = pids(&server);
    let mut client = connect(&server.address(), "/chat");

    fs::write(&config, "workers = 1\nworkerz = 2\n").unwrap();
    refused(&server, "wshd.conf:2: workerz: no such key");
    fs::write(&config, "workers = 1\nserver_host = [\"127.0.0.1\", \"192.0.2.77\"]\n").unwrap();
    refused(&server, "cannot listen on 192.0.2.77:");
    fs::write(&config, "workers = 1\n").unwrap();

    fs::write(dir.path().join("passing"), "no shared object").unwrap();
    fs::rename(dir.path().join("passing"), target(&dir, "chat")).unwrap();
    refused(&server, "chat_wsh.so: ");
    // It loads, but a worker with it does not start.
    install(&dir, "chat", &versioned(2, "abort();"));
    refused(&server, "]: crashed: SIGABRT in on_worker_start");
    install(&dir, "chat", &versioned(3, "return -1;"));
    refused(&server, "1 of its handlers cannot be loaded");
    install(&dir, "chat", &versioned(4, "_exit(3);"));
    refused(&server, "exit() called in on_worker_start");

    until("those that were refused have left", || pids(&server) == before);
    assert_eq!(ask(&mut client, "version"), "1");
    install(&dir, "chat", &versioned(5, ""));
    reload(&server);
    until("the new version answers", || ask(&mut client, "version") == "5");
    client.close(None).unwrap();
    server.stop();
}

#[test]
fn handlers_and_addresses_are_added_and_removed() {
    let dir = Dir::new();
    install(&dir, "stays", &versioned(1, ""));
    install(&dir, "goes", &versioned(1, ""));
    let config = dir.path().join("wshd.conf");
    let socket = dir.path().join("socket");
    let both = |path: &str| format!("server_host = [\"127.0.0.1\", \"unix:{path}\"]\n");
    fs::write(&config, "server_host = \"127.0.0.1\"\n").unwrap();
    let mut server = Server::start(&dir, &["--config", config.to_str().unwrap(), "--workers", "2"]);
    let mut goes = Raw::open(&server.address(), "/goes");
    let mut stays = Raw::open(&server.address(), "/stays");
    assert_eq!(goes.ask("version"), "1");
    fs::remove_file(target(&dir, "goes")).unwrap();
    install(&dir, "comes", &versioned(7, ""));
    fs::write(&config, both(socket.to_str().unwrap())).unwrap();
    reload(&server);
    goes.expect_close(1001);
    goes.frame(client::CLOSE, &client::close_payload(1001, ""));
    assert_eq!(stays.ask("version"), "1");
    assert_eq!(connect_and_ask(&server, "/comes", "version"), "7");
    let mut over_unix = Raw::over(client::unix(&socket));
    over_unix.upgrade("/comes", "");
    let mut late = Raw::connect(&server.address());
    late.send(b"GET /goes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(late.head().starts_with("HTTP/1.1 404 "));
    fs::write(&config, "server_host = \"127.0.0.1\"\n").unwrap();
    reload(&server);
    until("the file of its socket is removed", || !socket.exists());
    over_unix.text("version");
    assert_eq!(over_unix.next_text(), "7", "who has come in stays");
    assert_eq!(stays.ask("version"), "1");
    drop((over_unix, stays));
    server.stop();
}

#[test]
fn only_the_pool_with_the_change_is_replaced() {
    let dir = Dir::new();
    install(&dir, "one", &versioned(1, ""));
    install(&dir, "two", &versioned(1, ""));
    let config = dir.path().join("wshd.conf");
    let isolated = "[handler.\"/two\"]\nisolation = \"pool\"\n";
    fs::write(&config, isolated).unwrap();
    let mut server = Server::start(&dir, &["--config", config.to_str().unwrap(), "--workers", "1"]);
    let pid_of = |resource: &str| connect_and_ask(&server, resource, "pid");
    let (one, two) = (pid_of("/one"), pid_of("/two"));
    assert_ne!(one, two);
    let mut client = connect(&server.address(), "/two");
    assert_eq!(ask(&mut client, "keep me"), "ok");

    install(&dir, "two", &versioned(2, ""));
    reload(&server);
    until("the new version answers", || ask(&mut client, "version") == "2");
    assert_eq!(pid_of("/one"), one);
    assert_ne!(pid_of("/two"), two);

    // The pool is removed: the connection moves to a worker of the default pool, and back.
    fs::write(&config, "").unwrap();
    reload(&server);
    until("it is served beside the other", || ask(&mut client, "pid") == pid_of("/one"));
    assert_eq!(ask(&mut client, "kept"), "me");
    fs::write(&config, isolated).unwrap();
    reload(&server);
    until("it has a process of its own again", || ask(&mut client, "pid") != pid_of("/one"));
    assert_eq!(ask(&mut client, "kept"), "me");
    client.close(None).unwrap();
    until("nobody else is left", || server.workers().len() == 2);
    server.stop();
}

#[test]
fn workers_are_added_and_removed_by_signal_and_a_reload_resets_their_number() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let crowd = Crowd::gather(&server.address(), "/chat", 100, SMALL_TALK);
    for workers in 2..=4 {
        server.signal(Signal::SIGTTIN);
        until("there is one more", || server.workers().len() == workers);
        crowd.served();
    }
    for workers in [3, 2] {
        server.signal(Signal::SIGTTOU);
        until("there is one less", || server.workers().len() == workers);
        crowd.served();
    }
    reload(&server);
    until("there is one", || server.workers().len() == 1);
    server.signal(Signal::SIGTTOU);
    server.says("cannot remove the last worker");
    assert_eq!(crowd.served().clients, 100);
    assert_eq!(crowd.ends(), []);
    drop(crowd);
    server.stop();
}

#[test]
fn connections_that_cannot_move_end_over_drain_timeout_or_never() {
    let dir = Dir::new();
    for name in ["quick", "patient"] {
        fixtures::add_handler(dir.path(), name, "stubborn_blocking");
    }
    install(&dir, "chat", &versioned(1, ""));
    let config = dir.path().join("wshd.conf");
    let text = "[handler.\"/quick\"]\ndrain_timeout = \"300ms\"\n[handler.\"/patient\"]\ndrain_timeout = \"never\"\n";
    fs::write(&config, text).unwrap();
    let mut server = Server::start(&dir, &["--config", config.to_str().unwrap(), "--workers", "1"]);
    let old = server.worker();
    let mut quick: Vec<Raw> = (0..3).map(|_| Raw::open(&server.address(), "/quick")).collect();
    let mut patient = Raw::open(&server.address(), "/patient");
    assert_eq!(patient.ask("hello"), "hello");
    install(&dir, "chat", &versioned(2, ""));
    reload(&server);
    for raw in &mut quick {
        raw.expect_close(1012);
        raw.frame(client::CLOSE, &client::close_payload(1012, ""));
        raw.expect_end();
    }
    assert_eq!(patient.ask("still there"), "still there");
    assert!(pids(&server).contains(&old), "it serves what it cannot give away");
    assert_eq!(connect_and_ask(&server, "/chat", "version"), "2");
    drop(patient);
    until("the old worker has left", || !pids(&server).contains(&old));
    server.stop();
}

#[test]
fn a_stop_during_a_reload_stops() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    fixtures::add_handler(dir.path(), "patient", "stubborn_blocking");
    let config = dir.path().join("wshd.conf");
    fs::write(&config, "[handler.\"/patient\"]\ndrain_timeout = \"never\"\n").unwrap();
    let args = ["--config", config.to_str().unwrap(), "--workers", "1"];
    let mut server = Server::start(&dir, &args);
    let mut patient = Raw::open(&server.address(), "/patient");
    assert_eq!(patient.ask("hello"), "hello");
    install(&dir, "chat", &versioned(2, ""));
    reload(&server);
    assert_eq!(server.workers().len(), 2);
    // And one whose first worker is still starting.
    install(&dir, "chat", &versioned(3, "sleep(600);"));
    server.signal(Signal::SIGHUP);
    until("a third is starting", || server.workers().len() == 3);
    let workers = server.workers();
    server.signal(Signal::SIGTERM);
    patient.expect_close(1001);
    patient.frame(client::CLOSE, &client::close_payload(1001, ""));
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(workers.iter().all(|pid| !daemon::is_alive(*pid)), "workers are left");
}

#[test]
fn a_second_interrupt_waits_for_no_process_of_any_kind() {
    let dir = Dir::new();
    for name in ["patient", "single"] {
        fixtures::add_handler(dir.path(), name, "stubborn_blocking");
    }
    let config = dir.path().join("wshd.conf");
    let text =
        "[handler.'/patient']\ndrain_timeout = 'never'\n[handler.'/single']\nisolation = 'connection'\n";
    fs::write(&config, text).unwrap();
    let args = ["--config", config.to_str().unwrap(), "--workers", "1", "-o", "stop_timeout=10m"];
    let more = ["--metrics", "127.0.0.1:0", "-o", "process_timeout=1m"];
    let mut server = Server::start(&dir, &[&args[..], &more].concat());
    let titled = |server: &Server, prefix: &str| {
        let title = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let children = daemon::children(server.pid()).into_iter();
        children.filter(|pid| title(pid).starts_with(prefix)).collect::<BTreeSet<i32>>()
    };
    let mut clients = ["/patient", "/single"].map(|path| Raw::open(&server.address(), path));
    assert_eq!(clients.each_mut().map(|client| client.ask("hello")), ["hello", "hello"]);
    let draining = titled(&server, "wshd: worker default/");
    fixtures::add_handler(dir.path(), "patient", "stubborn_blocking");
    reload(&server);
    until("the metrics process was replaced, too", || titled(&server, "wshd: metrics").len() == 1);
    let others = ["wshd: worker single/", "wshd: metrics"].map(|prefix| titled(&server, prefix));
    let stopped = others.iter().fold(draining, |all, some| &all | some);
    stopped.iter().for_each(|pid| kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap());
    server.signal(Signal::SIGINT);
    until("the first has been obeyed", || titled(&server, "wshd: parent ").is_empty());
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(7), "they had to be killed");
}

#[test]
fn a_pool_of_its_own_answers_with_its_headers_after_a_reload() {
    // The kept request head moves from generation to generation.
    let dir = Dir::new();
    let keeps = r#"
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            ws_bytes value = ws_header(conn, "X-Mark");
            (void)msg;
            ws_send(conn, WS_TEXT, value.data, value.size);
        }
        WS_HANDLER(.name = "keeps", .flags = WS_KEEP_REQUEST, .on_message = on_message);
    "#;
    install(&dir, "keeps", keeps);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let mut raw = Raw::connect(&server.address());
    let head = raw.upgrade("/keeps?a=b", "X-Mark: here\r\n");
    assert!(header(&head, "Sec-WebSocket-Accept").is_some());
    let old = server.worker();
    install(&dir, "keeps", &format!("{keeps}\nint another_version;"));
    reload(&server);
    until("the old worker has left", || !pids(&server).contains(&old));
    assert_eq!(raw.ask("?"), "here");
    drop(raw);
    server.stop();
}

#[test]
fn a_reload_repairs_a_handler_that_cannot_start() {
    let dir = Dir::new();
    let flag = dir.path().join("broken");
    let start = format!("if (access(\"{}\", F_OK) == 0) _exit(9);", flag.display());
    install(&dir, "chat", &versioned(1, &start));
    install(&dir, "other", &versioned(1, ""));
    let config = dir.path().join("wshd.conf");
    fs::write(&config, "[handler.\"/chat\"]\nisolation = \"pool\"\n").unwrap();
    let mut server = Server::start(&dir, &["--config", config.to_str().unwrap(), "--workers", "1"]);
    let pid: i32 = connect_and_ask(&server, "/chat", "pid").parse().unwrap();
    fs::write(&flag, "").unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    // It starts without the handler that ends it.
    until("its resource answers 503", || {
        logged(&server, "not loaded until a reload or \"wshd ctl quarantine /chat off\"") == 1
    });
    install(&dir, "chat", &versioned(2, &start));
    refused(&server, "in on_worker_start of versioned");
    assert_eq!(connect_and_ask(&server, "/other", "version"), "1");
    install(&dir, "chat", &versioned(3, ""));
    reload(&server);
    assert_eq!(connect_and_ask(&server, "/chat", "version"), "3");
    until("nobody else is left", || server.workers().len() == 2);
    server.stop();
}

/// When a connection moves, its handler sends to the other one.
const MEDDLER: &str = r#"
    #include <string.h>
    #include <ws_handler.h>
    static ws_conn conns[2];
    static int on_open(ws_conn conn)
    {
        conns[conns[0] != 0] = conn;
        return 0;
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        const char *text = (const char *)msg->data;
        if (strcmp(text, "kept") == 0) {
            ws_bytes state = ws_state(conn);
            ws_send(conn, WS_TEXT, state.data, state.size);
        } else {
            ws_send(conn, WS_TEXT, ws_set_state(conn, text, msg->size) == WS_OK ? "ok" : "no", 2);
        }
    }
    static void on_close(ws_conn conn, uint32_t by, uint32_t code)
    {
        (void)code;
        for (int i = 0; i < 2 && by == WS_BY_MOVE; i++)
            if (conns[i] != conn) ws_send_text(conns[i], "late");
    }
    WS_HANDLER(.name = "meddler", .on_open = on_open, .on_message = on_message, .on_close = on_close);
"#;

#[test]
fn a_detached_connection_is_gone_for_callbacks_of_others() {
    let dir = Dir::new();
    install(&dir, "meddler", MEDDLER);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let mut first = Raw::open(&server.address(), "/meddler");
    assert_eq!(first.ask("one"), "ok");
    let mut second = Raw::open(&server.address(), "/meddler");
    assert_eq!(second.ask("two"), "ok");
    install(&dir, "meddler", &format!("{MEDDLER}\nint another_version;"));
    reload(&server);
    // The first one is moved first, and may still reach the second; not the other way around.
    assert_eq!(second.next_text(), "late");
    assert_eq!(second.ask("kept"), "two");
    assert_eq!(first.ask("kept"), "one");
    drop((first, second));
    server.stop();
}

/// Crashes on "crash".
const FRAGILE: &str = r#"
    #include <string.h>
    #include <ws_handler.h>
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        if (strcmp((const char *)msg->data, "crash") == 0) *(volatile int *)0 = 1;
        ws_send(conn, msg->type, msg->data, msg->size);
    }
    WS_HANDLER(.name = "fragile", .on_message = on_message);
"#;

#[test]
fn crashes_during_reloads_cost_their_own_connections_only() {
    let dir = Dir::new();
    install(&dir, "fragile", FRAGILE);
    install(&dir, "chat", &versioned(0, ""));
    let mut server = Server::start(&dir, &["--workers", "2", "-o", "quarantine_deaths=0"]);
    let crowd = Crowd::gather(&server.address(), "/chat", 200, Habits { quiet: true, ..SMALL_TALK });
    for version in 1..=10 {
        let mut culprits: Vec<Raw> = (0..4).map(|_| Raw::open(&server.address(), "/fragile")).collect();
        install(&dir, "chat", &versioned(version, ""));
        let before = logged(&server, "reload: done");
        server.signal(Signal::SIGHUP);
        for culprit in &mut culprits {
            culprit.text("crash");
        }
        for culprit in &mut culprits {
            // A second one in the same worker may get 1012, or be lost between two crashes.
            while culprit.next().is_some() {}
        }
        until("the reload is done", || logged(&server, "reload: done") > before);
        crowd.served();
    }
    assert_eq!(crowd.served().clients, 200);
    assert_eq!(crowd.ends(), []);
    drop(crowd);
    assert_eq!(connect_and_ask(&server, "/chat", "version"), "10");
    until("two are left", || server.workers().len() == 2);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[test]
#[ignore = "slow: two thousand clients"]
fn two_thousand_clients_lose_nothing_in_ten_reloads() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(0, ""));
    let mut server = Server::start(&dir, &["--workers", "2"]);
    let crowd = Crowd::gather(&server.address(), "/chat", 2000, Habits { deflate: true, ..SMALL_TALK });
    let mut client = connect(&server.address(), "/chat");
    assert_eq!(ask(&mut client, "keep seven"), "ok");
    for version in 1..=10 {
        install(&dir, "chat", &versioned(version, ""));
        reload(&server);
        crowd.served();
        until("the new version answers", || ask(&mut client, "version") == version.to_string());
    }
    assert_eq!(ask(&mut client, "kept"), "seven");
    client.close(None).unwrap();
    assert_eq!(crowd.served().clients, 2000);
    assert_eq!(crowd.ends(), []);
    drop(crowd);
    server.stop();
}

#[test]
fn a_reload_whose_second_worker_fails_changes_nothing() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let mut server = Server::start(&dir, &["--workers", "2"]);
    let before = pids(&server);
    for (version, failure) in [(2, "return -1;"), (3, "abort();")] {
        // The first worker that starts creates the file, the second one finds it.
        let mark = dir.path().join(format!("started-{version}"));
        let start = format!("if (mkdir(\"{}\", 0700) != 0) {failure}", mark.display());
        install(&dir, "chat", &format!("#include <sys/stat.h>\n{}", versioned(version, &start)));
        refused(&server, "the new worker default/");
        until("only those from before are left", || pids(&server) == before);
        for _ in 0..4 {
            assert_eq!(connect_and_ask(&server, "/chat", "version"), "1");
        }
    }
    server.stop();
}

#[test]
fn a_new_handler_in_which_a_new_worker_dies_is_named() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let config = dir.path().join("w.conf");
    fs::write(&config, "").unwrap();
    let mut server = Server::start(&dir, &["--workers", "1", "--config", config.to_str().unwrap()]);
    install(&dir, "new", &versioned(1, "abort();"));
    refused(&server, "SIGABRT in on_worker_start of versioned");
    fs::write(&config, "[handler.'/new']\nisolation = 'pool'\n").unwrap();
    refused(&server, "the new worker new/0[");
    server.stop();
}

#[test]
fn a_new_worker_that_dies_as_soon_as_it_is_ready_is_started_again() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let mark = dir.path().join("started");
    // The first one that starts takes its time.
    let start = format!(
        "FILE *mark = fopen(\"{}\", \"wx\"); if (mark != NULL) {{ fprintf(mark, \"%d\\n\", (int)getpid()); \
         fflush(mark); sleep(1); fprintf(mark, \"started\\n\"); fclose(mark); }}",
        mark.display()
    );
    install(&dir, "chat", &versioned(2, &start));
    server.signal(Signal::SIGHUP);
    let marked = || fs::read_to_string(&mark).unwrap_or_default();
    until("the new worker starts", || marked().ends_with('\n'));
    // The supervisor finds that it is ready and that it has died in the same turn.
    server.signal(Signal::SIGSTOP);
    let pid: i32 = marked().lines().next().unwrap().parse().unwrap();
    until("the new worker waits", || marked().contains("started") && is_idle(pid));
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    until("the new worker has died", || !is_alive(pid));
    server.signal(Signal::SIGCONT);
    until("the new version answers", || connect_and_ask(&server, "/chat", "version") == "2");
    until("one worker is left", || server.workers().len() == 1);
    server.stop();
}

#[test]
fn a_reload_with_slow_handlers_does_not_block_the_server() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let socket = dir.path().join("control");
    let args = ["--workers", "1", "-o", "handler_timeout=5m", "--control-socket", socket.to_str().unwrap()];
    let mut server = Server::start(&dir, &args);
    let [started, go] = ["started", "go"].map(|name| dir.path().join(name));
    let quoted = |path: &std::path::Path| format!("\"{}\"", path.display());
    let touch = |path: &std::path::Path| format!("close(open({}, O_CREAT | O_WRONLY, 0600));", quoted(path));
    let wait = |path: &std::path::Path| format!("while (access({}, F_OK) != 0) usleep(1000);", quoted(path));
    // None is loaded before all of them are, which are probed in parallel; a worker starts when the test lets it.
    let loading: Vec<_> = (0..4).map(|number| dir.path().join(format!("loading{number}"))).collect();
    let wait_for_all: String = loading.iter().map(|path| wait(path)).collect();
    for (number, own) in loading.iter().enumerate() {
        let load = format!(
            "__attribute__((constructor)) static void load(void) {{ {} {wait_for_all} }}",
            touch(own)
        );
        let source = versioned(1, &(touch(&started) + &wait(&go)));
        install(&dir, &format!("slow{number}"), &format!("#include <fcntl.h>\n{source}\n{load}\n"));
    }
    let serves = || {
        let worker: i32 = connect_and_ask(&server, "/chat", "pid").parse().unwrap();
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        assert_eq!(connect_and_ask(&server, "/chat", "version"), "1");
        assert_eq!(daemon::ctl(&socket, &["status"]).status.code(), Some(0));
    };
    server.signal(Signal::SIGHUP);
    serves();
    until("a worker starts with them", || started.exists());
    serves();
    assert_eq!(logged(&server, "reload: "), 0, "{}", server.log());
    fs::write(go, "").unwrap();
    server.says("reload: done, 5 resources");
    server.stop();
}

#[test]
fn a_slow_configuration_does_not_block_the_server() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let [socket, config, passing] = ["control", "wshd.conf", "new.conf"].map(|name| dir.path().join(name));
    fs::write(&config, "workers = 1\n").unwrap();
    let args = ["--config", config.to_str().unwrap(), "--control-socket", socket.to_str().unwrap()];
    let mut server = Server::start(&dir, &args);
    let worker = server.worker();
    // Opening a FIFO waits for a writer.
    nix::unistd::mkfifo(&passing, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::rename(&passing, &config).unwrap();
    server.signal(Signal::SIGHUP);
    server.says("SIGHUP received");
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    assert_eq!(connect_and_ask(&server, "/chat", "version"), "1");
    assert_eq!(daemon::ctl(&socket, &["status"]).status.code(), Some(0));
    fs::write(&passing, "workers = 2\n").unwrap();
    // Fails, rather than wait, until the reload has opened the FIFO for reading.
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let mut fifo = None;
    until("the reload reads the configuration", || {
        fifo = fs::File::options().write(true).custom_flags(flags).open(&config).ok();
        fifo.is_some()
    });
    fs::rename(&passing, &config).unwrap();
    drop(fifo);
    until("the reload is done", || logged(&server, "reload: done") == 1);
    until("there are two workers", || server.workers().len() == 2);
    server.stop();
}

#[test]
#[ignore = "takes eleven seconds"]
fn a_configuration_that_cannot_be_read_fails_the_reload_in_time() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let [config, passing] = ["wshd.conf", "new.conf"].map(|name| dir.path().join(name));
    fs::write(&config, "workers = 1\n").unwrap();
    let mut server = Server::start(&dir, &["--config", config.to_str().unwrap()]);
    // Opening a FIFO waits for a writer.
    nix::unistd::mkfifo(&passing, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::rename(&passing, &config).unwrap();
    refused(&server, "a file system or name server does not answer");
    fs::write(&passing, "workers = 2\n").unwrap();
    fs::rename(&passing, &config).unwrap();
    reload(&server);
    until("there are two workers", || server.workers().len() == 2);
    server.stop();
}

/// While the file `calls` exists, records calls to the file system and name servers in it: the pid, the
/// call, and its argument.
fn noted_calls(tools: &Dir, calls: &std::path::Path) -> PathBuf {
    let source = r#"
        #define _GNU_SOURCE
        #include <dirent.h>
        #include <dlfcn.h>
        #include <fcntl.h>
        #include <netdb.h>
        #include <stdarg.h>
        #include <stdio.h>
        #include <string.h>
        #include <sys/socket.h>
        #include <sys/stat.h>
        #include <unistd.h>
        static void *note(const char *call, const char *about)
        {
            char line[4096];
            int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
            /* Neither an open file nor one that is none. */
            int is_disk = *about != 0 && strncmp(about, "/proc/", 6) != 0 && strncmp(about, "/sys/", 5) != 0;
            int fd = is_disk ? real("CALLS", O_WRONLY | O_APPEND) : -1;
            if (fd >= 0) {
                int size = snprintf(line, sizeof line, "%d %s %s\n", (int)getpid(), call, about);
                if (write(fd, line, (size_t)size) < 0)
                    _exit(99);
                close(fd);
            }
            return dlsym(RTLD_NEXT, call);
        }
        int open64(const char *path, int flags, ...)
        {
            int (*real)(const char *, int, ...) = note("open64", path);
            va_list list;
            va_start(list, flags);
            mode_t mode = va_arg(list, mode_t);
            va_end(list);
            return real(path, flags, mode);
        }
        int statx(int dir, const char *path, int flags, unsigned mask, struct statx *to)
        {
            int (*real)(int, const char *, int, unsigned, struct statx *) = note("statx", path);
            return real(dir, path, flags, mask, to);
        }
        DIR *opendir(const char *path)
        {
            DIR *(*real)(const char *) = note("opendir", path);
            return real(path);
        }
        int rename(const char *from, const char *to)
        {
            int (*real)(const char *, const char *) = note("rename", from);
            return real(from, to);
        }
        int unlink(const char *path)
        {
            int (*real)(const char *) = note("unlink", path);
            return real(path);
        }
        char *realpath(const char *path, char *to)
        {
            char *(*real)(const char *, char *) = note("realpath", path);
            return real(path, to);
        }
        int access(const char *path, int mode)
        {
            int (*real)(const char *, int) = note("access", path);
            return real(path, mode);
        }
        int bind(int fd, const struct sockaddr *address, socklen_t size)
        {
            int (*real)(int, const struct sockaddr *, socklen_t) =
                dlsym(RTLD_NEXT, "bind");
            if (address->sa_family == AF_UNIX)
                note("bind", address->sa_data);
            return real(fd, address, size);
        }
        int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **to)
        {
            int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
                note("getaddrinfo", host);
            return real(host, port, hints, to);
        }
    "#;
    tools.handler("calls", &source.replace("CALLS", calls.to_str().unwrap()))
}

#[test]
fn slow_operations_run_in_children() {
    let (dir, tools) = (Dir::new(), Dir::new());
    install(&dir, "chat", &versioned(1, ""));
    let names = ["calls", "control", "log", "other", "wshd.conf", "a", "b", "cert", "key"];
    let [calls, socket, log, other, config, a, b, cert, key] = names.map(|name| tools.path().join(name));
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&cert, issued.cert.pem()).unwrap();
    let configured = |name: &str, unix: &std::path::Path, log: &std::path::Path| {
        let [unix, log, cert, key] = [unix, log, &cert, &key].map(|path| path.display());
        let tls = format!("tls = true\ncertificate = '{cert}'\nprivate_key = '{key}'");
        let text = format!(
            "workers = 1\nlog_file = '{log}'\nlog_max = '1K'\n[[listener]]\naddress = '{name}:0'\n{tls}\n\
             [[listener]]\naddress = '127.0.0.2:0'\n[[listener]]\naddress = 'unix:{unix}'\n"
        );
        fs::write(&config, text).unwrap();
    };
    configured("localhost", &a, &log);
    let mut command = daemon::wshd();
    command.env("LD_PRELOAD", noted_calls(&tools, &calls)).arg("--config").arg(&config);
    command.arg("--websock-handlers").arg(dir.path()).arg("--control-socket").arg(&socket);
    let mut server = Server::launch(command, log.clone()).when_ready();
    fs::write(&calls, "").unwrap();
    // A reload with another log, other sockets and another handler.
    install(&dir, "new", &versioned(2, ""));
    configured("LOCALHOST", &b, &other); // a name that is looked up, too
    server.ctl_says(&socket, &["reload"]);
    assert!(fs::read_to_string(&other).unwrap().contains("reload: done, 2 resources"));
    until("a socket comes, another goes", || b.exists() && !a.exists());
    // A reload that fails.
    configured("localhost", &a, std::path::Path::new("/none/log"));
    assert_ne!(daemon::ctl(&socket, &["reload"]).status.code(), Some(0));
    // The log is rotated by its size.
    let renamed = other.with_file_name("other.1");
    until("the log is renamed", || {
        server.ctl_says(&socket, &["log-level", "info"]); // a line
        renamed.exists() && other.metadata().is_ok_and(|log| log.len() > 0)
    });
    fs::rename(&other, &log).unwrap();
    server.signal(Signal::SIGUSR1);
    until("the log is opened anew", || other.exists());
    let noted = fs::read_to_string(&calls).unwrap();
    until("somebody looks at the certificate", || fs::read_to_string(&calls).unwrap().contains("/cert\n"));
    fs::remove_file(&calls).unwrap();
    let own: Vec<&str> =
        noted.lines().filter(|line| line.starts_with(&format!("{} ", server.pid()))).collect();
    assert!(own.is_empty(), "{own:#?}");
    for call in ["open64", "statx", "opendir", "rename", "unlink", "bind", "getaddrinfo"] {
        assert!(noted.contains(&format!(" {call} ")), "{call} is not noted: {noted}");
    }
    server.stop();
}

#[test]
fn a_reload_is_not_done_while_a_worker_that_it_replaces_hangs() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let mut server = Server::start(&dir, &["--workers", "1", "-o", "worker_timeout=6s"]);
    let old = server.worker();
    kill(Pid::from_raw(old), Signal::SIGSTOP).unwrap();
    install(&dir, "chat", &versioned(2, ""));
    server.signal(Signal::SIGHUP);
    until("the new version serves", || connect_and_ask(&server, "/chat", "version") == "2");
    server.says("reload: done");
    assert!(!daemon::is_alive(old), "{}", server.log());
    assert_eq!(logged(&server, &format!("[{old}] has not responded")), 1);
    // It was to leave: none is started in its place beside the one that has come.
    assert_eq!(logged(&server, "] is starting\n"), 1, "{}", server.log());
    assert_eq!(server.workers().len(), 1);
    server.stop();
}

#[test]
fn a_worker_that_does_not_begin_when_it_is_told_to_is_killed_and_replaced() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let mut server = Server::start(&dir, &["--workers", "2", "-o", "worker_timeout=6s"]);
    let [first, go] = ["first", "go"].map(|name| dir.path().join(name));
    // One of the new workers is ready at once, the other one has to wait.
    let start = format!(
        "int file = open(\"{}\", O_CREAT | O_EXCL | O_WRONLY, 0600);\n\
         while (file < 0 && access(\"{}\", F_OK) != 0) usleep(1000);",
        first.display(),
        go.display()
    );
    install(&dir, "chat", &("#include <fcntl.h>\n".to_owned() + &versioned(2, &start)));
    server.signal(Signal::SIGHUP);
    let ready = |line: &str| {
        let pid = line.strip_suffix("is ready with 1 handlers, as a standby")?.rsplit('[').next()?;
        pid.trim_end_matches(['[', ']', ' ']).parse().ok()
    };
    let mut pid: Option<i32> = None;
    until("one is ready", || {
        pid = server.log().lines().find_map(ready);
        pid.is_some()
    });
    kill(Pid::from_raw(pid.unwrap()), Signal::SIGSTOP).unwrap();
    fs::write(&go, "").unwrap();
    server.says(&format!("[{}] has not responded for ", pid.unwrap()));
    server.says("reload: done");
    until("it is replaced", || server.workers().len() == 2 && !daemon::is_alive(pid.unwrap()));
    assert_eq!(connect_and_ask(&server, "/chat", "version"), "2");
    server.stop();
}

#[test]
fn a_reload_after_one_that_was_not_completed_replaces_all_workers() {
    let dir = Dir::new();
    install(&dir, "chat", &versioned(1, ""));
    let socket = dir.path().join("control");
    let control = ["--control-socket", socket.to_str().unwrap()];
    let args = [&control[..], &["--workers", "2", "-o", "drain_delay=10m"]].concat();
    let mut server = Server::start(&dir, &args);
    let before = pids(&server);
    for pid in &before {
        kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap();
    }
    install(&dir, "chat", &versioned(2, ""));
    server.signal(Signal::SIGHUP);
    // The first one is told to leave, and does not yet.
    server.says("reload: resources changed: /chat");
    server.ctl_says(&socket, &["drain", "--for", "10m"]);
    server.says("reload: incomplete: the new configuration is in force, but not all workers were replaced");
    server.ctl_says(&socket, &["resume"]);
    for pid in &before {
        kill(Pid::from_raw(*pid), Signal::SIGCONT).unwrap();
    }
    until("one is left", || pids(&server).intersection(&before).count() == 1);
    reload(&server);
    until("none is left", || pids(&server).is_disjoint(&before));
    assert_eq!(connect_and_ask(&server, "/chat", "version"), "2");
    server.stop();
}
