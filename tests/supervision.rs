//! The supervisor and its workers as processes: start, death, replacement, exit.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "common/server.rs"]
mod daemon;

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use daemon::{Dir, ECHO, Server, children, is_alive, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A directory with one good handler.
fn echo_dir() -> Dir {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    dir
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// The title in /proc, as `ps` shows it.
fn title(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
}

/// Waits until the server has this many workers, none of them in `before`.
#[track_caller]
fn replaced(server: &Server, count: usize, before: &[i32]) -> Vec<i32> {
    let mut now = Vec::new();
    until("the dead workers are replaced", || {
        now = server.workers();
        now.len() == count && now.iter().all(|pid| !before.contains(pid) && is_alive(*pid))
    });
    now
}

/// How often the log contains this.
fn logged(server: &Server, text: &str) -> usize {
    server.log().matches(text).count()
}

/// The port in the ready line.
fn port(server: &Server) -> u16 {
    let rest = server.ready.split("127.0.0.1:").nth(1).unwrap();
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap()].parse().unwrap()
}

#[test]
fn the_ready_line_and_a_clean_end_on_interrupt() {
    let dir = echo_dir();
    let mut server = Server::start(&dir, &["--workers", "2"]);
    let port = port(&server);
    assert_eq!(
        server.ready,
        format!(
            "wshd: ready on 127.0.0.1:{port}, 2 workers, 1 resource, console http://127.0.0.1:{port}/console.html\n"
        )
    );
    let workers = server.workers();
    assert_eq!(workers.len(), 2);
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(0));
    assert!(workers.iter().all(|pid| !is_alive(*pid)));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn each_signal_that_stops() {
    let dir = echo_dir();
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let mut server = Server::start(&dir, &["--workers", "2"]);
        let workers = server.workers();
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0), "{signal}");
        assert!(workers.iter().all(|pid| !is_alive(*pid)), "{signal}");
    }
}

#[test]
fn an_interrupt_from_a_terminal_reaches_all_and_is_no_crash() {
    let dir = echo_dir();
    let mut server = Server::start(&dir, &["--workers", "2"]);
    for pid in server.workers() {
        send(pid, Signal::SIGINT);
        send(pid, Signal::SIGQUIT);
        send(pid, Signal::SIGHUP);
    }
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(logged(&server, "died of"), 0);
}

#[test]
fn a_worker_that_dies_is_replaced() {
    let dir = echo_dir();
    let server = Server::start(&dir, &["--workers", "2"]);
    let before = server.workers();
    send(before[0], Signal::SIGKILL);
    until("there is another", || {
        let now = server.workers();
        now.len() == 2 && !now.contains(&before[0]) && now.contains(&before[1])
    });
    assert_eq!(logged(&server, &format!("[{}] died of SIGKILL", before[0])), 1);
    until("it is ready", || logged(&server, "is ready with 1 handlers") == 3);
    TcpStream::connect(("127.0.0.1", port(&server))).unwrap();
}

#[test]
fn a_process_that_dies_of_a_signal_without_a_name_is_replaced_and_hides_no_other() {
    let dir = echo_dir();
    let mut server = Server::start(&dir, &["--workers", "1", "--metrics", "127.0.0.1:0"]);
    let metrics = || children(server.pid()).into_iter().find(|pid| title(*pid) == "wshd: metrics");
    let before = metrics().unwrap();
    // Workers ignore what others do not; nix knows no signals for real time.
    let command = format!("kill -34 {before}");
    assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    until("there is another", || metrics().is_some_and(|pid| pid != before));
    assert_eq!(logged(&server, "died of signal 34"), 1, "{}", server.log());
    let worker = server.workers();
    send(worker[0], Signal::SIGKILL);
    replaced(&server, 1, &worker);
    server.stop();
}

#[test]
fn workers_that_die_again_are_replaced_after_a_second() {
    let dir = echo_dir();
    let server = Server::start(&dir, &["--workers", "2"]);
    let first = server.workers();
    first.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
    let second = replaced(&server, 2, &first);
    until("they are ready", || logged(&server, "is ready") == 4);
    let killed = Instant::now();
    second.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
    replaced(&server, 2, &second);
    assert!(killed.elapsed() >= Duration::from_secs(1));
    assert_eq!(logged(&server, "died of SIGKILL"), 4);
}

#[test]
fn a_worker_that_gets_sigterm_is_replaced() {
    let dir = echo_dir();
    let server = Server::start(&dir, &["--workers", "1"]);
    let before = server.workers();
    send(before[0], Signal::SIGTERM);
    replaced(&server, 1, &before);
    until("it is ready", || logged(&server, "is ready") == 2);
}

#[test]
fn no_zombie_is_left() {
    let dir = echo_dir();
    let server = Server::start(&dir, &["--workers", "3"]);
    let before = server.workers();
    before.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
    replaced(&server, 3, &before);
    // `children` lists zombies too.
    until("three are left, and no zombie", || children(server.pid()).len() == 3);
}

#[test]
fn workers_exit_when_the_supervisor_dies() {
    let dir = echo_dir();
    let mut server = Server::start(&dir, &["--workers", "2"]);
    let workers = server.workers();
    let port = port(&server);
    server.signal(Signal::SIGKILL);
    server.wait();
    until("the workers have left", || workers.iter().all(|pid| !is_alive(*pid)));
    // They are not reaped: the last thread of a process may close the socket a moment after the first has ended.
    until("nobody listens any more", || TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_worker_stuck_in_a_handler_does_not_outlive_the_supervisor_for_long() {
    let dir = Dir::new();
    dir.handler(
        "stuck",
        r#"
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; }
        #include <time.h>
        #include <unistd.h>
        static int32_t start(void)
        {
            time_t end = time(NULL) + 60; /* a failed test leaves nothing behind for long */
            while (time(NULL) < end)
                continue;
            _exit(0);
        }
        WS_HANDLER(.name = "stuck", .on_message = on_message, .on_worker_start = start);
        "#,
    );
    let mut server = Server::spawn(&dir, &["--workers", "1", "-o", "stop_timeout=100ms"]);
    let mut workers = Vec::new();
    until("the worker has started", || {
        workers = server.workers();
        workers.iter().any(|pid| title(*pid) == "wshd: worker default/0")
    });
    server.signal(Signal::SIGKILL);
    server.wait();
    until("the worker is gone", || workers.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn the_log_names_the_handler_in_which_a_worker_died() {
    let dir = Dir::new();
    dir.handler(
        "crash",
        r#"
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; __builtin_trap(); }
        WS_HANDLER(.name = "crash-me", .on_message = on_message);
        "#,
    );
    let server = Server::start(&dir, &["--workers", "1"]);
    let url = format!("ws://127.0.0.1:{}/crash", port(&server));
    let (mut client, _) = tungstenite::connect(url).unwrap();
    client.send("now".into()).unwrap();
    until("it has died", || logged(&server, " in on_message of crash-me, crash_wsh.so+0x") == 1);
    until("there is another", || logged(&server, "is ready with 1 handlers") == 2);
}

#[test]
fn a_handler_that_kills_its_process_group_ends_its_worker_only() {
    let dir = echo_dir();
    dir.handler(
        "group",
        r#"
        #include <signal.h>
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; kill(0, SIGKILL); }
        WS_HANDLER(.name = "group", .on_message = on_message);
        "#,
    );
    let config = dir.path().join("wshd.conf");
    let text = "process_timeout = \"1m\"\n[handler.\"/group\"]\nisolation = \"connection\"\n";
    std::fs::write(&config, text).unwrap();
    for args in [&[][..], &["--config", config.to_str().unwrap()]] {
        let mut server =
            Server::start(&dir, &[args, &["--workers", "2", "--metrics", "127.0.0.1:0"]].concat());
        let (before, deaths) = (server.workers(), logged(&server, "died of SIGKILL"));
        let address = server.address();
        let (mut client, _) = tungstenite::connect(format!("ws://{address}/group")).unwrap();
        client.send("now".into()).unwrap();
        until("one worker is gone", || logged(&server, "died of SIGKILL") > deaths);
        let others = before.iter().filter(|pid| is_alive(**pid)).count();
        assert!(others + 1 >= before.len(), "{others} of {} are left", before.len());
        let (mut client, _) = tungstenite::connect(format!("ws://{address}/echo")).unwrap();
        client.send("here".into()).unwrap();
        assert_eq!(client.read().unwrap().into_text().unwrap().as_str(), "here");
        drop(client);
        server.stop();
    }
}

#[test]
fn a_stopped_worker_is_killed_in_time() {
    let dir = echo_dir();
    let mut server = Server::start(&dir, &["--workers", "2", "-o", "stop_timeout=200ms"]);
    let workers = server.workers();
    send(workers[0], Signal::SIGSTOP);
    let told = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(7));
    assert!(told.elapsed() >= Duration::from_millis(1200), "{:?}", told.elapsed());
    assert!(workers.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn a_second_interrupt_does_not_wait() {
    let dir = echo_dir();
    let mut server = Server::start(&dir, &["--workers", "1", "-o", "stop_timeout=10m"]);
    send(server.workers()[0], Signal::SIGSTOP);
    server.signal(Signal::SIGINT);
    until("the first has been seen", || logged(&server, "SIGINT received") == 1);
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(7));
}

#[test]
fn a_server_whose_workers_cannot_start_exits() {
    let dir = Dir::new();
    // It loads in a probe, and ends every process it starts in.
    dir.handler(
        "bad",
        r#"
        #include <stdlib.h>
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; }
        static int32_t start(void) { abort(); }
        WS_HANDLER(.name = "bad", .on_message = on_message, .on_worker_start = start);
        "#,
    );
    let begun = Instant::now();
    let mut server = Server::spawn(&dir, &["--workers", "2", "-o", "quarantine_deaths=0"]);
    assert_eq!(server.wait().code(), Some(5));
    assert_eq!(logged(&server, "no worker becomes ready: giving up"), 1, "{}", server.log());
    // Five starts in each slot: at once, at once, then after 1, 2 and 4 s.
    assert!(begun.elapsed() >= Duration::from_secs(7), "{:?}", begun.elapsed());
    assert_eq!(
        logged(&server, "crashed: SIGABRT in on_worker_start of bad, bad_wsh.so+0x"),
        10,
        "{}",
        server.log()
    );
}

/// A handler that loads in a probe, and ends every worker that starts with it.
fn bad_start(name: &str, action: &str) -> String {
    format!(
        "#include <stdlib.h>\n#include <unistd.h>\n#include <ws_handler.h>\n\
         static void on_message(ws_conn conn, const ws_message *msg) {{ (void)conn; (void)msg; }}\n\
         static int32_t start(void) {{ {action}; return 0; }}\n\
         WS_HANDLER(.name = \"{name}\", .on_message = on_message, .on_worker_start = start);"
    )
}

#[test]
fn a_handler_that_ends_workers_at_the_start_is_named_and_the_others_are_served() {
    let dir = echo_dir();
    let mut bad: Vec<String> = (0..6).map(|number| format!("bad{number}")).collect();
    for name in &bad {
        dir.handler(name, &bad_start(name, "abort()"));
    }
    dir.handler("leaves", &bad_start("leaves", "exit(0)"));
    bad.push("leaves".to_owned());
    // Its child has the worker's memory.
    dir.handler("vforks", &bad_start("vforks", "if (vfork() == 0) _exit(127); abort()"));
    bad.push("vforks".to_owned());
    let begun = Instant::now();
    let mut server = Server::start(&dir, &["--workers", "2"]);
    // Eight restarts with the usual delays would take more than half a minute.
    assert!(begun.elapsed() < Duration::from_secs(30), "no delay: {:?}", begun.elapsed());
    let log = server.log();
    assert!(log.contains("crashed: SIGABRT in on_worker_start of bad0, bad0_wsh.so+0x"), "{log}");
    assert!(log.contains("exit() called in on_worker_start of leaves, leaves_wsh.so+0x"), "{log}");
    assert!(log.contains("crashed: SIGABRT in on_worker_start of vforks, vforks_wsh.so+0x"), "{log}");
    let url = |name: &str| format!("ws://127.0.0.1:{}/{name}", port(&server));
    for name in &bad {
        match tungstenite::connect(url(name)) {
            Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 503, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(log.matches(&format!("{name}: ends workers during their start")).count(), 1, "{log}");
    }
    let (mut client, _) = tungstenite::connect(url("echo")).unwrap();
    client.send("here".into()).unwrap();
    assert_eq!(client.read().unwrap().into_text().unwrap().as_str(), "here");

    // Nothing was repaired.
    server.signal(Signal::SIGHUP);
    until("it is refused by name", || {
        let log = server.log();
        log.contains("reload: failed") && log.contains("in on_worker_start of bad0,")
    });
    for name in &bad {
        dir.handler(name, ECHO);
    }
    server.signal(Signal::SIGHUP);
    until("it is done", || logged(&server, "reload: done") == 1);
    for name in &bad {
        let (mut client, _) = tungstenite::connect(url(name)).unwrap();
        client.send("here".into()).unwrap();
        assert_eq!(client.read().unwrap().into_text().unwrap().as_str(), "here");
    }
    server.stop();
}

#[test]
fn a_handler_that_hangs_at_the_start_is_named_and_the_others_are_served() {
    let dir = echo_dir();
    dir.handler("hangs", &bad_start("hangs", "for (;;) { }"));
    let crashes = dir.path().join("crashes");
    std::fs::create_dir(&crashes).unwrap();
    let crash_dir = format!("crash_dir={}", crashes.display());
    let args = ["--workers", "2", "-o", "handler_timeout=2s", "-o", &crash_dir];
    let server = Server::start(&dir, &args);
    let log = server.log();
    assert!(log.contains("in on_worker_start of hangs, hangs_wsh.so+0x"), "{log}");
    assert_eq!(logged(&server, "hangs: ends workers during their start"), 1, "{log}");
    let url = |name: &str| format!("ws://127.0.0.1:{}/{name}", port(&server));
    assert!(
        matches!(tungstenite::connect(url("hangs")), Err(tungstenite::Error::Http(reply)) if reply.status() == 503)
    );
    let (mut client, _) = tungstenite::connect(url("echo")).unwrap();
    client.send("here".into()).unwrap();
    assert_eq!(client.read().unwrap().into_text().unwrap().as_str(), "here");
    let records = || std::fs::read_dir(&crashes).unwrap().map(|entry| entry.unwrap().path());
    server.says("crash record of process ");
    let record = std::fs::read_to_string(records().next().unwrap()).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(
        (&record["cause"], &record["code"]["module"]),
        (&"hang".into(), &"hangs_wsh.so".into()),
        "{record}"
    );
}

#[test]
fn a_handler_whose_thread_aborts_is_not_loaded_again() {
    let dir = echo_dir();
    let start = "#include <pthread.h>\n#include <unistd.h>\n\
         static void *work(void *arg) { usleep(20000); abort(); return arg; }\n";
    let thread = "pthread_t thread; pthread_create(&thread, 0, work, 0)";
    dir.handler(
        "thread",
        &format!("{start}{}", bad_start("thread", thread)).replacen(
            "#include",
            "#include <stdlib.h>\n#include",
            1,
        ),
    );
    let server = Server::start(&dir, &["--workers", "2"]);
    until("it is quarantined", || logged(&server, "thread: ends workers during their start") == 1);
    until("they serve without it", || logged(&server, "is ready with 1 handlers") == 2);
    let log = server.log();
    let (before, after) = log.split_once("thread: ends workers during their start").unwrap();
    let crashes =
        |log: &str| log.matches("crashed: SIGABRT in no callback of thread, thread_wsh.so+0x").count();
    // The other worker may have loaded it, too.
    assert!(crashes(before) > 0 && crashes(after) <= 1, "{log}");
    let (mut client, _) = tungstenite::connect(format!("ws://127.0.0.1:{}/echo", port(&server))).unwrap();
    client.send("here".into()).unwrap();
    assert_eq!(client.read().unwrap().into_text().unwrap().as_str(), "here");
}

#[test]
fn a_thread_that_aborts_between_start_and_service_is_named() {
    let dir = echo_dir();
    let work = "static void *work(void *arg) { usleep(300000); abort(); return arg; }\n";
    let source = bad_start("thread", "pthread_t thread; pthread_create(&thread, 0, work, 0)");
    dir.handler(
        "thread",
        &format!("#include <pthread.h>\n#include <stdlib.h>\n#include <unistd.h>\n{work}{source}"),
    );
    // The process that forks those for connections never serves.
    let config = dir.path().join("wshd.conf");
    std::fs::write(&config, "[handler.\"/thread\"]\nisolation = \"connection\"\n").unwrap();
    let server = Server::start(&dir, &["--workers", "1", "--config", config.to_str().unwrap()]);
    server.says("crashed: SIGABRT in no callback of thread, thread_wsh.so+0x");
}

#[test]
fn a_fleet_of_strict_handlers_does_not_start_with_one_that_ends_its_worker() {
    let dir = echo_dir();
    dir.handler("bad", &bad_start("bad", "abort()"));
    let mut server = Server::spawn(&dir, &["--workers", "1", "--strict-handlers"]);
    assert_eq!(server.wait().code(), Some(3));
    assert_eq!(logged(&server, "crashed: SIGABRT in on_worker_start of bad,"), 1, "{}", server.log());
}

#[test]
fn a_broken_handler_does_not_keep_the_others_from_being_served() {
    let dir = echo_dir();
    std::fs::write(dir.path().join("text_wsh.so"), "text").unwrap();
    dir.handler(
        "crash",
        &format!("{ECHO}\n__attribute__((constructor)) static void c(void) {{ __builtin_trap(); }}"),
    );
    let server = Server::start(&dir, &["--workers", "1"]);
    assert!(server.ready.contains(", 1 resource, "), "{}", server.ready);
    let log = server.log();
    assert!(log.contains("text_wsh.so: not a shared object"), "{log}");
    assert!(log.contains("crash_wsh.so: killed by signal"), "{log}");
}

#[test]
fn aliases_and_links_are_resources() {
    let dir = echo_dir();
    std::os::unix::fs::symlink("echo_wsh.so", dir.path().join("same_wsh.so")).unwrap();
    let map = dir.path().join("map");
    std::fs::write(&map, "/a /echo\n/b /a\n/c /nothing\n").unwrap();
    let server =
        Server::start(&dir, &["--workers", "1", "--websock-handlers-map-file", map.to_str().unwrap()]);
    assert!(server.ready.contains(", 4 resources, "), "{}", server.ready);
    until("the worker has loaded it once", || logged(&server, "is ready with 1 handlers") == 1);
    assert_eq!(logged(&server, "line 3: /c is not served: no handler serves /nothing"), 1);
}

#[test]
fn titles_name_the_processes() {
    let dir = echo_dir();
    let server = Server::start(&dir, &["--workers", "2"]);
    assert_eq!(title(server.pid()), "wshd: supervisor");
    let titles: BTreeSet<String> = server.workers().into_iter().map(title).collect();
    assert_eq!(titles, BTreeSet::from(["wshd: worker default/0".into(), "wshd: worker default/1".into()]));
}

#[test]
fn a_title_longer_than_the_arguments_leaves_the_environment_alone() {
    // The program under a short name, without arguments, and a handler that tells its environment.
    let dir = Dir::new();
    dir.handler(
        "env",
        r#"
        #include <stdlib.h>
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; }
        static int32_t start(void)
        {
            ws_log(WS_LOG_INFO, "WSHD_TEST is %s", getenv("WSHD_TEST"));
            return WS_OK;
        }
        WS_HANDLER(.name = "env", .on_message = on_message, .on_worker_start = start);
        "#,
    );
    let bin = Dir::new();
    std::fs::copy(env!("CARGO_BIN_EXE_wshd"), bin.path().join("w")).unwrap();
    std::os::unix::fs::symlink(dir.path(), bin.path().join("handlers")).unwrap();
    let log = bin.path().join("log");
    let mut command = std::process::Command::new("./w");
    command.current_dir(bin.path()).arg("-p0").env("WSHD_TEST", "still there");
    command.stderr(std::fs::File::create(&log).unwrap());
    let mut server = Server::launch(command, log);
    until("a worker has started", || logged(&server, "WSHD_TEST is still there") > 0);
    assert_eq!(title(server.pid()), "wshd: supervisor");
    for worker in server.workers() {
        until("it has its title", || title(worker).starts_with("wshd: worker default/"));
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_worker_inherits_only_what_it_needs() {
    let dir = echo_dir();
    // The server is started with a descriptor that it does not know.
    let log = dir.path().join("log");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "exec \"$0\" -p 0 --workers 3 --log-level debug -w \"$1\" -l \"$2\" 7</etc/passwd"]);
    command.arg(env!("CARGO_BIN_EXE_wshd")).args([dir.path(), &log]).stdin(std::process::Stdio::piped());
    let server = Server::launch(command, log);
    until("it is ready", || logged(&server, "is ready with 1 handlers") == 3);
    // The descriptors that a worker may inherit: no signalfd of the
    // supervisor, no pipe of a probe, nothing of the shell, and of the listeners and control channels one each.
    for pid in server.workers() {
        let fds = descriptors(pid);
        assert_eq!(fds[0], (0, "/dev/null".to_owned()), "{fds:?}");
        let count = |text: &str| fds.iter().filter(|(fd, target)| *fd > 2 && target.contains(text)).count();
        let signals = fds.iter().filter(|(_, target)| target.contains("signalfd"));
        for (fd, _) in signals {
            let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap();
            let mask = info.lines().find_map(|line| line.strip_prefix("sigmask:")).unwrap();
            let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
            assert_eq!(mask >> (Signal::SIGCHLD as u32 - 1) & 1, 0, "the supervisor's: {fds:?}");
        }
        assert_eq!(count("pipe:"), 0, "{fds:?}");
        assert_eq!(count("/etc/passwd"), 0, "{fds:?}");
        assert_eq!(count("/log"), 1, "{fds:?}");
        assert_eq!(listening(pid, &fds), 1, "{fds:?}");
    }
    // What the supervisor has as well is for all workers (listeners, inlets), but for the worker's own end of its
    // inbox; the channels are between two.
    let sockets = |pid: i32| -> BTreeSet<String> {
        let fds =
            descriptors(pid).into_iter().filter(|(fd, target)| *fd > 2 && target.starts_with("socket:"));
        fds.map(|(_, target)| target).collect()
    };
    let workers = server.workers();
    let of_supervisor = sockets(server.pid());
    let inherited: Vec<BTreeSet<String>> =
        workers.iter().map(|pid| &sockets(*pid) & &of_supervisor).collect();
    let common = inherited.iter().skip(1).fold(inherited[0].clone(), |common, sockets| &common & sockets);
    assert!(common.len() > 3, "{inherited:?}");
    assert!(inherited.iter().all(|sockets| (sockets - &common).len() == 1), "{inherited:?}");
}

/// Numbers and targets of a process's descriptors, sorted.
fn descriptors(pid: i32) -> Vec<(i32, String)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(Result::unwrap);
    let mut fds: Vec<(i32, String)> = entries
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.path()).ok()?; // closed meanwhile
            Some((entry.file_name().to_str()?.parse().ok()?, target.to_string_lossy().into_owned()))
        })
        .collect();
    fds.sort();
    fds
}

/// How many of them listen on TCP: their inodes are in /proc/PID/net/tcp with state 0A.
fn listening(pid: i32, fds: &[(i32, String)]) -> usize {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let inodes: BTreeSet<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(3) == Some(&"0A"))
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect();
    fds.iter().filter(|(_, target)| inodes.contains(target)).count()
}

#[test]
fn a_unix_socket_is_removed_at_the_end_and_replaced_after_a_crash() {
    let dir = echo_dir();
    let path = dir.path().join("socket");
    let host = format!("unix:{}", path.display());
    let mut server = Server::start(&dir, &["--workers", "1", "-H", &host]);
    assert_eq!(server.ready, format!("wshd: ready on {host}, 1 worker, 1 resource\n"));
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    let workers = server.workers();
    server.signal(Signal::SIGKILL);
    server.wait();
    until("the workers have left", || workers.iter().all(|pid| !is_alive(*pid)));
    until("nobody listens any more", || std::os::unix::net::UnixStream::connect(&path).is_err());
    assert!(path.exists());
    let mut server = Server::start(&dir, &["--workers", "1", "-H", &host]);
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn the_ready_line_has_all_addresses() {
    let dir = echo_dir();
    let server = Server::start(&dir, &["--workers", "1", "-H", "127.0.0.1", "-H", "127.0.0.2"]);
    let port = port(&server);
    assert!(server.ready.starts_with(&format!("wshd: ready on 127.0.0.1:{port} and 127.0.0.2:{port}, ")));
    TcpStream::connect(("127.0.0.2", port)).unwrap();
}

#[test]
fn the_number_of_connections_is_limited_by_open_files() {
    // A limit that the shell sets for the server only.
    let dir = echo_dir();
    let log = dir.path().join("log");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 200; exec \"$0\" -p 0 --workers 1 --log-level debug -w \"$1\" -l \"$2\""]);
    command.arg(env!("CARGO_BIN_EXE_wshd")).args([dir.path(), &log]);
    let mut server = Server::launch(command, log);
    until("it is ready", || logged(&server, "is ready with 1 handlers") == 1);
    assert_eq!(logged(&server, "--max-connections lowered from 16384 to 120"), 1);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

/// Serves one handler, whose probe waits until the second file exists.
fn probing() -> (Dir, Server, std::path::PathBuf) {
    let dir = Dir::new();
    let [asked, go] = ["asked", "go"].map(|name| dir.path().join(name));
    let source = format!(
        r#"
        #include <fcntl.h>
        #include <unistd.h>
        __attribute__((constructor)) static void wait_for_it(void)
        {{
            close(open("{}", O_CREAT | O_WRONLY, 0600));
            while (access("{}", F_OK) != 0)
                usleep(1000);
        }}
        {ECHO}
        "#,
        asked.display(),
        go.display()
    );
    dir.handler("echo", &source);
    let server = Server::spawn(&dir, &["--workers", "1"]);
    until("the handler is asked", || asked.exists());
    (dir, server, go)
}

#[test]
fn signals_during_the_start_take_effect_when_it_is_ready() {
    // A reload would reset the number of workers.
    for signals in [[Signal::SIGHUP, Signal::SIGUSR1], [Signal::SIGTTIN, Signal::SIGUSR1]] {
        let (_dir, server, go) = probing();
        signals.iter().for_each(|signal| server.signal(*signal));
        std::fs::write(go, "").unwrap();
        let mut server = server.when_ready();
        signals.iter().for_each(|signal| server.says(&format!("{signal} received")));
        if signals.contains(&Signal::SIGHUP) {
            server.says("no worker has to be replaced");
        } else {
            until("there is one worker more", || server.workers().len() == 2);
        }
        server.stop();
    }
}

#[test]
fn it_can_be_stopped_while_a_handler_does_not_answer() {
    // Not SIGINT, which a shell without job control ignores in background processes.
    let (_dir, mut server, _) = probing();
    let probes = children(server.pid());
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().signal(), Some(Signal::SIGTERM as i32));
    until("the probe has ended, too", || !probes.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn a_handler_that_crashes_when_its_worker_stops_is_not_started_again() {
    let dir = echo_dir();
    dir.handler(
        "last",
        r#"
        #include <stdlib.h>
        #include <ws_handler.h>
        static void on_worker_stop(void) { abort(); }
        static void on_message(ws_conn conn, const ws_message *msg) { (void)conn, (void)msg; }
        WS_HANDLER(.on_message = on_message, .on_worker_stop = on_worker_stop);
        "#,
    );
    let mut server = Server::start(&dir, &["--workers", "2"]);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    let crashes = logged(&server, " in on_worker_stop of last, ");
    assert!((2..=4).contains(&crashes), "{}", server.log());
    // So is the parent of a pool with a process for each connection, which serves nobody.
    let config = dir.path().join("wshd.conf");
    std::fs::write(&config, "[handler.\"/last\"]\nisolation = \"connection\"\n").unwrap();
    let mut server = Server::start(&dir, &["--config", config.to_str().unwrap(), "--workers", "1"]);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    let log = server.log();
    let is_it = |line: &str| line.contains("parent last[") && line.ends_with(" in on_worker_stop of last");
    assert!(log.lines().any(is_it), "{log}");
}

#[test]
fn a_worker_that_was_busy_when_the_server_was_told_to_stop_leaves_with_the_others() {
    let dir = echo_dir();
    dir.handler(
        "busy",
        r#"
        #include <unistd.h>
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            (void)msg;
            ws_log(WS_LOG_INFO, "begins to work");
            usleep(5000000);
            ws_send_text(conn, "done");
        }
        static void on_worker_stop(void) { ws_log(WS_LOG_INFO, "stops in good order"); }
        WS_HANDLER(.on_message = on_message, .on_worker_stop = on_worker_stop);
        "#,
    );
    let mut server = Server::start(&dir, &["--workers", "1", "-o", "stop_timeout=9s"]);
    let url = format!("ws://{}/busy", server.address());
    let (mut client, _) = tungstenite::connect(url).unwrap();
    client.send("work".into()).unwrap();
    server.says("begins to work");
    server.signal(Signal::SIGTERM);
    // The client does not answer the Close frame.
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert_eq!(logged(&server, "stops in good order"), 1, "{}", server.log());
}

/// Ticks of processor time and voluntary switches (proc_pid_stat(5), proc_pid_status(5)) of a process so far.
fn work_of(pid: i32) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let ticks = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    (ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum(), switches.trim().parse().unwrap())
}

/// Asserts that a process is idle for a while.
#[track_caller]
fn assert_idle(pid: i32, time: Duration) {
    let (begun, before) = (Instant::now(), work_of(pid));
    std::thread::sleep(time);
    let after = work_of(pid);
    let took = begun.elapsed();
    let (ticks, switches) = (after.0 - before.0, after.1 - before.1);
    let seconds = took.as_secs() + 1;
    assert!(
        ticks <= 2 * seconds && switches <= 30 * seconds,
        "{ticks} ticks, {switches} switches in {took:?}"
    );
}

#[test]
fn a_supervisor_that_waits_for_workers_to_stop_uses_no_processor() {
    let dir = echo_dir();
    let mut server =
        Server::start(&dir, &["--workers", "2", "-o", "stop_timeout=10m", "--metrics", "127.0.0.1:0"]);
    let worker = server.workers().into_iter().find(|pid| title(*pid).contains("worker")).unwrap();
    send(worker, Signal::SIGSTOP);
    server.signal(Signal::SIGTERM);
    until("it has been told to stop", || logged(&server, "SIGTERM received") == 1);
    server.signal(Signal::SIGTTIN);
    server.says("SIGTTIN: the server is told to stop");
    assert_idle(server.pid(), Duration::from_secs(2));
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait().code(), Some(7));
}

#[test]
fn a_worker_that_does_not_respond_is_killed_and_replaced() {
    let dir = echo_dir();
    let mut server = Server::start(&dir, &["--workers", "1", "-o", "worker_timeout=5s"]);
    let before = server.workers();
    send(before[0], Signal::SIGSTOP);
    server.says(&format!("worker default/0[{}] has not responded for ", before[0]));
    replaced(&server, 1, &before);
    let (mut client, _) = tungstenite::connect(format!("ws://{}/echo", server.address())).unwrap();
    client.send("here".into()).unwrap();
    assert_eq!(client.read().unwrap().into_text().unwrap().as_str(), "here");
    drop(client);
    server.stop();
}

#[test]
fn a_worker_that_executes_another_program_is_killed_and_replaced() {
    let dir = echo_dir();
    dir.handler(
        "exec",
        r#"
        #include <unistd.h>
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            (void)conn;
            (void)msg;
            execl("/bin/sleep", "sleep", "60", (char *)0);
        }
        WS_HANDLER(.name = "exec", .on_message = on_message);
        "#,
    );
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let before = server.workers();
    let (mut client, _) = tungstenite::connect(format!("ws://{}/exec", server.address())).unwrap();
    client.send("now".into()).unwrap();
    server.says(&format!(
        "worker default/0[{}] did not exit after it closed its channel; sending SIGTERM",
        before[0]
    ));
    replaced(&server, 1, &before);
    drop(client);
    server.stop();
}

#[test]
fn a_request_waits_for_a_process_of_its_own() {
    let dir = echo_dir();
    let config = dir.path().join("wshd.conf");
    std::fs::write(
        &config,
        "process_timeout = \"1m\"\n[handler.\"/echo\"]\nisolation = \"connection\"\n\
         [pool.echo]\nspare = 1\nprocesses = 8\n",
    )
    .unwrap();
    let mut server = Server::start(&dir, &["--config", config.to_str().unwrap(), "--workers", "1"]);
    let url = format!("ws://{}/echo", server.address());
    // One after another, without a pause, from the ready line on; and a burst.
    for round in 0..100 {
        let mut client = tungstenite::connect(&url).unwrap_or_else(|error| panic!("{round}: {error}")).0;
        client.send("here".into()).unwrap();
        assert_eq!(client.read().unwrap().into_text().unwrap().as_str(), "here", "{round}");
    }
    let burst: Vec<_> = (0..6).map(|_| tungstenite::connect(&url)).collect();
    assert!(burst.iter().all(Result::is_ok), "{burst:?}");
    assert_eq!(logged(&server, "cannot fork"), 0, "{}", server.log());
    drop(burst);
    server.stop();
}

#[test]
#[ignore = "takes twelve seconds"]
fn a_parent_that_does_not_fork_is_killed_and_replaced() {
    let dir = echo_dir();
    let config = dir.path().join("wshd.conf");
    let text = "[handler.\"/echo\"]\nisolation = \"connection\"\n[pool.echo]\nspare = 1\nprocesses = 4\n";
    std::fs::write(&config, text).unwrap();
    let mut server = Server::start(&dir, &["--config", config.to_str().unwrap(), "--workers", "1"]);
    let url = format!("ws://{}/echo", server.address());
    let parent = server.workers().into_iter().find(|pid| title(*pid).contains("parent")).unwrap();
    send(parent, Signal::SIGSTOP);
    let first = tungstenite::connect(&url).unwrap(); // by the process that waits
    server.says("did not fork in time; sending SIGTERM");
    until("there are processes again", || tungstenite::connect(&url).is_ok());
    until("the parent has ended", || !is_alive(parent));
    drop(first);
    server.stop();
}

#[test]
fn a_request_without_a_process_is_answered_in_time() {
    let dir = echo_dir();
    let config = dir.path().join("wshd.conf");
    let text = "[handler.\"/echo\"]\nisolation = \"connection\"\n[pool.echo]\nspare = 1\nprocesses = 1\n";
    std::fs::write(&config, text).unwrap();
    // Whichever time is over first.
    for (process, handshake, least) in [("300ms", "10s", 300), ("10s", "1s", 1000)] {
        let times = [format!("process_timeout={process}"), format!("handshake_timeout={handshake}")];
        let args = ["--config", config.to_str().unwrap(), "--workers", "1", "-o", &times[0], "-o", &times[1]];
        let mut server = Server::start(&dir, &args);
        let url = format!("ws://{}/echo", server.address());
        let connect = || {
            let mut connected = None;
            until("there is a process", || {
                connected = tungstenite::connect(&url).ok();
                connected.is_some()
            });
            connected.unwrap()
        };
        let first = connect();
        let asked = Instant::now();
        let error = tungstenite::connect(&url).unwrap_err().to_string();
        assert!(error.contains("503"), "{error}");
        assert!(asked.elapsed() >= Duration::from_millis(least), "{:?}", asked.elapsed());
        drop(first);
        drop(connect());
        server.stop();
    }
}

#[test]
fn titles_have_the_instance() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let server = Server::start(&dir, &["--workers", "1", "--instance", "chat"]);
    assert_eq!(title(server.pid()), "wshd@chat: supervisor");
    assert_eq!(title(server.worker()), "wshd@chat: worker default/0");
    let mut wrong = std::process::Command::new(env!("CARGO_BIN_EXE_wshd"));
    let refused = wrong.args(["--instance", "a b"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("1 to 32 letters"), "{said}");
}

/// A handler that shuts down sockets of its process: "listener" those that listen, "inbox" the one on which connections of
/// other processes arrive. Answers with how many these were.
const SHUTS_DOWN: &str = r#"
    #define _GNU_SOURCE
    #include <stdio.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <ws_handler.h>
    static int is_on(int fd, int option)
    {
        int value = 0;
        socklen_t size = sizeof value;
        return getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 && value != 0;
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        int option = strcmp(msg->data, "listener") == 0 ? SO_ACCEPTCONN : SO_PASSCRED, count = 0;
        char text[16];
        for (int fd = 3; strcmp(msg->data, "ping") != 0 && fd < 1000; fd++)
            count += is_on(fd, option) && shutdown(fd, SHUT_RDWR) == 0;
        snprintf(text, sizeof text, "%d", count);
        ws_send_text(conn, text);
    }
    WS_HANDLER(.name = "shuts", .on_message = on_message);
"#;

fn ask(client: &mut tungstenite::WebSocket<impl std::io::Read + std::io::Write>, text: &str) -> String {
    client.send(text.into()).unwrap();
    client.read().unwrap().into_text().unwrap().as_str().to_owned()
}

#[test]
fn a_listening_socket_that_a_handler_has_shut_down_listens_again() {
    let dir = Dir::new();
    dir.handler("shuts", SHUTS_DOWN);
    let mut server = Server::start(&dir, &["--workers", "2"]);
    let url = format!("ws://{}/shuts", server.address());
    let (mut client, _) = tungstenite::connect(&url).unwrap();
    for round in 1..=2 {
        assert_eq!(ask(&mut client, "listener"), "1");
        until("it is repaired", || logged(&server, "a handler has shut down 127.0.0.1:") == round);
        // Workers look once in a second.
        until("connections are accepted", || tungstenite::connect(&url).is_ok());
    }
    assert_eq!(ask(&mut client, "ping"), "0");
    drop(client);
    server.stop();
}

#[test]
fn the_slot_of_a_process_whose_inbox_a_handler_has_shut_down_gets_another_one() {
    let dir = Dir::new();
    dir.handler("shuts", SHUTS_DOWN);
    let config = dir.path().join("wshd.conf");
    let text = "[handler.\"/shuts\"]\nisolation = \"connection\"\n[pool.shuts]\nspare = 1\nprocesses = 4\n";
    std::fs::write(&config, text).unwrap();
    let mut server = Server::start(&dir, &["--config", config.to_str().unwrap(), "--workers", "1"]);
    let url = format!("ws://{}/shuts", server.address());
    let (mut client, _) = tungstenite::connect(&url).unwrap();
    assert_eq!(ask(&mut client, "inbox"), "1");
    drop(client);
    for round in 0..8 {
        let mut client = tungstenite::connect(&url).unwrap_or_else(|error| panic!("{round}: {error}")).0;
        assert_eq!(ask(&mut client, "ping"), "0", "{round}");
    }
    assert_idle(server.pid(), Duration::from_secs(1));
    server.stop();
}

#[test]
fn a_worker_whose_inbox_a_handler_has_shut_down_is_replaced() {
    let dir = Dir::new();
    dir.handler("shuts", SHUTS_DOWN);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let (mut client, _) = tungstenite::connect(format!("ws://{}/shuts", server.address())).unwrap();
    for round in 1..=2 {
        let before = server.workers();
        assert_eq!(ask(&mut client, "inbox"), "1");
        until("it is replaced", || {
            logged(&server, "is replaced: a handler has shut down its inbox") == round
        });
        replaced(&server, 1, &before);
        assert_eq!(ask(&mut client, "ping"), "0");
    }
    assert_eq!(logged(&server, "are missing"), 0, "{}", server.log());
    assert_idle(server.worker(), Duration::from_secs(1));
    assert_idle(server.pid(), Duration::from_secs(1));
    drop(client);
    server.stop();
}

#[test]
fn a_worker_that_no_descriptor_can_be_sent_to_does_not_hold_up_a_replacement() {
    let dir = echo_dir();
    dir.handler(
        "narrow",
        r#"
        #include <sys/resource.h>
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            struct rlimit limit;
            (void)msg;
            getrlimit(RLIMIT_NOFILE, &limit);
            limit.rlim_cur = 3;
            ws_send_text(conn, setrlimit(RLIMIT_NOFILE, &limit) == 0 ? "narrow" : "failed");
        }
        WS_HANDLER(.name = "narrow", .on_message = on_message);
        "#,
    );
    let options = ["--workers", "1", "-o", "drain_timeout=100ms", "-o", "close_timeout=100ms"];
    let mut server = Server::start(&dir, &options);
    let before = server.workers();
    let (mut client, _) = tungstenite::connect(format!("ws://{}/narrow", server.address())).unwrap();
    assert_eq!(ask(&mut client, "limit"), "narrow");
    server.says("is replaced: it is out of file descriptors");
    replaced(&server, 1, &before);
    let tungstenite::Message::Close(Some(close)) = client.read().unwrap() else { panic!("no close") };
    assert_eq!(u16::from(close.code), 1012);
    server.stop();
}

#[test]
fn a_handler_is_told_of_the_end_of_connections_whose_peers_do_not_answer_a_stop() {
    let dir = Dir::new();
    let handler = |served: &str, member: &str| {
        format!(
            r#"
            #include <ws_handler.h>
            static int32_t on_open(ws_conn conn)
            {{
                ws_send_text(conn, "open");
                return WS_OK;
            }}
            {served}
            static void on_close(ws_conn conn, uint32_t by, uint32_t code)
            {{
                (void)conn;
                ws_log(WS_LOG_INFO, "ends by %u with %u", by, code);
            }}
            static void on_worker_stop(void) {{ ws_log(WS_LOG_INFO, "stops in good order"); }}
            WS_HANDLER(.on_open = on_open, {member}, .on_close = on_close, .on_worker_stop = on_worker_stop);
            "#
        )
    };
    let on_message = "static void on_message(ws_conn conn, const ws_message *msg) { (void)conn, (void)msg; }";
    dir.handler("event", &handler(on_message, ".on_message = on_message"));
    let transfer = "static int32_t transfer(ws_conn conn)
        { ws_message msg; while (ws_receive(conn, &msg, -1) > WS_CLOSED); return WS_OK; }";
    dir.handler("blocking", &handler(transfer, ".transfer_data = transfer"));
    let mut server = Server::start(&dir, &["--workers", "1", "-o", "stop_timeout=4s"]);
    let url = |name: &str| format!("ws://{}/{name}", server.address());
    let names = ["event", "event", "blocking", "blocking"];
    let mut clients: Vec<_> = names.iter().map(|name| tungstenite::connect(url(name)).unwrap().0).collect();
    clients.iter_mut().for_each(|client| drop(client.read().unwrap()));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    let log = server.log();
    assert_eq!(logged(&server, "ends by 3 with 1001"), 4, "{log}");
    assert_eq!(logged(&server, "stops in good order"), 2, "{log}");
    assert!(log.rfind("ends by 3") < log.find("stops in good order"), "{log}");
}

#[test]
fn a_child_that_a_handler_forks_at_the_start_or_end_does_not_become_a_worker() {
    for isolation in ["shared", "connection"] {
        let dir = echo_dir();
        let source = bad_start("forks", "if (fork() == 0) return WS_OK");
        let at_stop = "static void stop(void) { start(); }\nWS_HANDLER(.on_worker_stop = stop, ";
        dir.handler("forks", &source.replace("WS_HANDLER(", at_stop));
        let config = dir.path().join("wshd.conf");
        let text = format!("process_timeout = '1m'\n[handler.\"/forks\"]\nisolation = \"{isolation}\"\n");
        std::fs::write(&config, text).unwrap();
        let mut server = Server::start(&dir, &["--workers", "1", "--config", config.to_str().unwrap()]);
        server.says("forks: a child of fork() returned from on_worker_start; ended it");
        let (mut client, _) = tungstenite::connect(format!("ws://{}/forks", server.address())).unwrap();
        client.send("served".into()).unwrap();
        drop(client);
        let worker = server.workers()[0];
        until("no child is left", || children(worker).iter().all(|pid| !is_alive(*pid)));
        server.stop();
        server.says("forks: a child of fork() returned from on_worker_stop; ended it");
    }
}
