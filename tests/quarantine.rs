//! A handler that crashes too often is quarantined, and other handlers are not affected.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use client::{Raw, UPGRADE, header};
use daemon::{Dir, ECHO, Server, is_alive, until};

/// Serves fixtures with one worker, unless `args` say otherwise.
fn serve(handlers: &[&str], args: &[&str]) -> (Server, Dir) {
    let dir = Dir::new();
    handlers.iter().for_each(|name| fixtures::add_handler(dir.path(), name, name));
    let workers = if args.contains(&"--workers") { &[][..] } else { &["--workers", "1"][..] };
    (Server::start(&dir, &[workers, args].concat()), dir)
}

/// The result of an opening handshake.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Open,
    /// 503, and the seconds of Retry-After.
    Refused(u64),
    /// The connection ended without an answer.
    Cut,
}

/// Asks for a WebSocket; the connection, if there is one.
#[track_caller]
fn request(address: &str, resource: &str) -> (Outcome, Raw) {
    let mut raw = Raw::connect(address);
    let request = format!("GET {resource} HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n");
    let mut head = Vec::new();
    // A worker that dies may reset the connection at any time.
    if std::io::Write::write_all(&mut raw.stream, request.as_bytes()).is_ok() {
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && matches!(raw.stream.read(&mut byte), Ok(1)) {
            head.push(byte[0]);
        }
    }
    // A Close frame is also an end.
    let head = String::from_utf8(head).unwrap_or_default();
    let outcome = match head.get(9..12) {
        Some("101") => Outcome::Open,
        Some("503") => Outcome::Refused(header(&head, "Retry-After").unwrap().parse().unwrap()),
        // It crashed in the handshake.
        Some("500") => Outcome::Cut,
        Some(_) => panic!("{head}"),
        None => Outcome::Cut,
    };
    (outcome, raw)
}

fn ask_for(address: &str, resource: &str) -> Outcome {
    request(address, resource).0
}

/// Crashes the handler once, and waits until the worker is replaced.
#[track_caller]
fn crash(server: &Server, resource: &str) {
    let before = server.worker();
    let crashes = server.log().matches("] crashed: ").count();
    request(&server.address(), resource);
    until("it crashes", || server.log().matches("] crashed: ").count() > crashes);
    until("the worker is replaced", || {
        let now = server.workers();
        now.len() == 1 && now[0] != before && is_alive(now[0])
    });
}

/// The times for which /crash was quarantined, as the log has them.
fn sentences(server: &Server) -> Vec<String> {
    let log = server.log();
    log.lines().filter_map(|line| Some(line.split_once("/crash answers 503 for ")?.1.to_owned())).collect()
}

#[test]
fn after_three_crashes_only_that_handler_answers_503() {
    let (mut server, _dir) = serve(&["echo", "crash"], &["-o", "quarantine_time=10m"]);
    let address = server.address();
    let mut before = Raw::open(&address, "/crash");
    for _ in 0..2 {
        crash(&server, "/crash?open=null");
        assert_eq!(ask_for(&address, "/crash"), Outcome::Open);
    }
    crash(&server, "/crash?handshake=abort");
    let Outcome::Refused(seconds) = ask_for(&address, "/crash") else { panic!("{}", server.log()) };
    assert!((500..=600).contains(&seconds), "{seconds}");
    assert!(matches!(ask_for(&address, "/crash?x"), Outcome::Refused(_)), "the query makes no difference");
    assert_eq!(Raw::open(&address, "/echo").ask("hello"), "hello");
    // Earlier connections continue, also in the replacement of their process.
    assert_eq!(before.ask("hello"), "hello");
    assert_eq!(sentences(&server), ["600s"]);
    assert!(server.log().contains("crash: 3 workers died in it within 60s: quarantined"), "{}", server.log());
    // A plain HTTP request does not involve the handler.
    let mut raw = Raw::connect(&address);
    raw.send(b"GET /crash HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_ne!(raw.answer().status, 503);
    drop(before);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_handler_of_a_pool_is_refused_without_asking_the_pool() {
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), "[handler.\"/crash\"]\nisolation = \"pool\"\n").unwrap();
    let options = ["-o", "quarantine_deaths=1", "-o", "quarantine_time=10m", "--config"];
    let config = config.path().to_str().unwrap();
    let (mut server, _dir) = serve(&["crash"], &[&options[..], &[config]].concat());
    let title = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let of_pool = || server.workers().into_iter().find(|pid| title(*pid).contains("worker crash/"));
    let before = of_pool();
    request(&server.address(), "/crash?open=null");
    until("it crashes", || server.log().contains("quarantined"));
    until("its worker is replaced", || of_pool().is_some_and(|pid| Some(pid) != before));
    let worker = nix::unistd::Pid::from_raw(of_pool().unwrap());
    nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let outcome = ask_for(&server.address(), "/crash");
    nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert!(matches!(outcome, Outcome::Refused(500..=600)), "{outcome:?}");
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn one_probe_at_a_time_and_the_second_quarantine_is_twice_as_long() {
    let options = ["-o", "quarantine_deaths=1", "-o", "quarantine_time=400ms"];
    let (server, _dir) = serve(&["crash"], &options);
    let address = server.address();

    for (round, length) in [400_u64, 800, 1600].into_iter().enumerate() {
        let refused =
            |outcome| matches!(outcome, Outcome::Refused(seconds) if seconds <= length.div_ceil(1000));
        let begun = Instant::now();
        crash(&server, "/crash?open=null");
        let mut probe = None;
        until("the time is over", || match request(&address, "/crash") {
            (Outcome::Open, raw) => {
                probe = Some(raw);
                true
            }
            (outcome, _) => {
                assert!(refused(outcome));
                false
            }
        });
        assert!(begun.elapsed() >= Duration::from_millis(length), "{:?}", begun.elapsed());
        // Until the probe has a result, which may be that it has stayed open, others are not served.
        let succeeded = || server.log().matches("crash: probe succeeded; handler back in service").count();
        assert!(refused(ask_for(&address, "/crash")) || succeeded() == round + 1);
        assert_eq!(probe.unwrap().ask("hello"), "hello");
        until("it is served again", || ask_for(&address, "/crash") == Outcome::Open);
        assert_eq!(server.log().matches("crash: probed by connection ").count(), round + 1);
        assert_eq!(succeeded(), round + 1);
    }
    assert_eq!(sentences(&server), ["400ms", "800ms", "1.6s"]);
}

#[test]
fn a_probe_that_ends_early_has_no_result_and_one_that_stays_open_succeeds() {
    let options = ["-o", "quarantine_deaths=1", "-o", "quarantine_time=100ms"];
    let (server, _dir) = serve(&["crash"], &options);
    let address = server.address();
    crash(&server, "/crash?open=null");
    let next_probe = || {
        let mut probe = None;
        until("one is let through", || {
            let (outcome, raw) = request(&address, "/crash");
            probe = Some(raw);
            outcome == Outcome::Open
        });
        probe.unwrap()
    };
    until("one is let through, and ends as soon as it is open", || {
        let mut raw = Raw::connect(&address);
        raw.send(format!("GET /crash HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n").as_bytes());
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        raw.rest().starts_with(b"HTTP/1.1 101 ")
    });
    let probe = next_probe();
    server.says("probe succeeded");
    drop(probe);
    assert_eq!(server.log().matches("probed by connection").count(), 2);
}

#[test]
fn a_probe_whose_worker_is_killed_makes_way_for_the_next() {
    let options = ["-o", "quarantine_deaths=1", "-o", "quarantine_time=100ms"];
    let (server, _dir) = serve(&["crash"], &options);
    let address = server.address();
    crash(&server, "/crash?open=null");
    let mut probe = None;
    until("one is let through", || {
        let (outcome, raw) = request(&address, "/crash");
        probe = Some(raw);
        outcome == Outcome::Open
    });
    let worker = server.worker();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("the next is let through", || ask_for(&address, "/crash") == Outcome::Open);
    assert_eq!(sentences(&server).len(), 1, "nobody is to blame for that");
}

#[test]
fn kills_hangs_and_exits_count() {
    for (handler, word) in [("exits", "group"), ("exits", "exit"), ("loop", "loop"), ("loop", "kill")] {
        let timeout = if word == "loop" { "handler_timeout=1s" } else { "handler_timeout=5m" };
        let options = ["-o", "quarantine_deaths=1", "-o", timeout];
        let (server, _dir) = serve(&["exits", "loop"], &options);
        let before = server.worker();
        let resource = format!("/{handler}");
        let mut raw = Raw::open(&server.address(), &resource);
        raw.text(if word == "kill" { "loop" } else { word });
        if word == "kill" {
            // Busy for a while: it is in the handler.
            let ticks = || {
                let stat = std::fs::read_to_string(format!("/proc/{before}/stat")).unwrap();
                stat.rsplit_once(") ").unwrap().1.split(' ').nth(11).unwrap().parse::<u64>().unwrap()
            };
            let at_first = ticks();
            until("it spins", || ticks() > at_first + 5);
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(before), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
        until("the worker dies", || !is_alive(before));
        until("it is quarantined", || matches!(ask_for(&server.address(), &resource), Outcome::Refused(_)));
        let log = server.log();
        assert!(log.contains(&format!(" in on_message of {handler}")), "{word}: {log}");
        assert!(log.contains(&format!("{resource} answers 503 for 10s")), "{word}: {log}");
    }
}

#[test]
fn zero_deaths_turns_quarantine_off() {
    let (server, _dir) = serve(&["crash"], &["-o", "quarantine_deaths=0"]);
    for _ in 0..6 {
        crash(&server, "/crash?open=null");
    }
    assert_eq!(ask_for(&server.address(), "/crash"), Outcome::Open);
    assert!(sentences(&server).is_empty());
}

/// Hammers a handler that crashes on every open while echo clients count their messages.
fn hammered(clients: usize, time: Duration, first: u64) {
    let length = format!("quarantine_time={first}ms");
    let (server, _dir) = serve(&["echo", "crash"], &["--workers", "2", "-o", &length]);
    let address = server.address();
    let over = AtomicBool::new(false);
    let echoes: Vec<client::Client> = (0..8).map(|_| client::connect(&address, "/echo")).collect();
    let (refused, cut, echoed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for mut client in echoes {
            let (over, echoed) = (&over, &echoed);
            scope.spawn(move || {
                let mut number = 0;
                while !over.load(Ordering::Relaxed) {
                    let text = format!("message {number}");
                    assert_eq!(client::ask(&mut client, &text), text);
                    number += 1;
                    echoed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..clients {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    match ask_for(&address, "/crash?open=null") {
                        Outcome::Refused(seconds) => {
                            assert!(seconds >= 1);
                            refused.fetch_add(1, Ordering::Relaxed)
                        }
                        // The 101 may have been written before on_open.
                        Outcome::Cut | Outcome::Open => cut.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
        }
        let hammer = || {
            std::thread::sleep(time);
            until("enough has happened", || {
                let counts = [&refused, &echoed].map(|count| count.load(Ordering::Relaxed));
                sentences(&server).len() >= 3 && counts.iter().all(|count| *count > 100)
            });
        };
        let hammered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(hammer));
        over.store(true, Ordering::Relaxed);
        hammered.unwrap();
    });
    let sentences = sentences(&server);
    let lengths = (0..sentences.len()).map(|times| format!("{:?}", Duration::from_millis(first << times)));
    assert_eq!(sentences, lengths.collect::<Vec<_>>());
    // Three, one that was in progress in the other worker, and one for each step of the backoff.
    let mut crashes = 0;
    until("all crashes are judged, and none is too much", || {
        let log = server.log();
        let steps = log.matches("/crash answers 503 for ").count();
        crashes = log.matches("] crashed: ").count();
        (steps + 2..=steps + 3).contains(&crashes)
    });
    let [refused, cut, echoed] = [refused, cut, echoed].map(AtomicUsize::into_inner);
    println!("{echoed} echoes, {refused} refused, {cut} cut, {crashes} crashes, {sentences:?}");
}

#[test]
fn a_handler_that_crashes_on_every_open_costs_one_worker_for_each_step_and_echo_loses_nothing() {
    hammered(10, Duration::from_secs(3), 300);
}

#[test]
#[ignore = "half a minute"]
fn the_same_with_fifty_clients() {
    hammered(50, Duration::from_secs(30), 1000);
}

#[test]
fn a_handler_that_did_not_start_is_served_when_its_quarantine_is_lifted_and_it_starts() {
    let dir = Dir::new();
    let (flag, socket) = (dir.path().join("flag"), dir.path().join("control"));
    std::fs::write(&flag, "").unwrap();
    let source = format!(
        r#"
        #include <stdlib.h>
        #include <unistd.h>
        #include <ws_handler.h>
        static int32_t start(void) {{ if (access("{}", F_OK) == 0) abort(); return 0; }}
        static void on_message(ws_conn conn, const ws_message *msg) {{ ws_send(conn, msg->type, msg->data, msg->size); }}
        WS_HANDLER(.name = "late", .on_message = on_message, .on_worker_start = start);
        "#,
        flag.display()
    );
    dir.handler("late", &source);
    let mut server = Server::start(&dir, &["--workers", "2", "--control-socket", socket.to_str().unwrap()]);
    let lift = || assert!(daemon::ctl(&socket, &["quarantine", "/late", "off"]).status.success());
    let quarantines = || server.log().matches("late: ends workers during their start").count();
    assert_eq!(quarantines(), 1);
    lift();
    until("it has failed again", || quarantines() == 2);
    assert_eq!(ask_for(&server.address(), "/late"), Outcome::Refused(1));
    std::fs::remove_file(&flag).unwrap();
    lift();
    until("it is served", || ask_for(&server.address(), "/late") == Outcome::Open);
    until("both workers are new", || server.log().matches("exited, replaced").count() == 2);
    server.stop();
}

/// A moment after each message its worker gets a signal from outside, which cannot be attributed.
const POISON: &str = r#"
    #include <signal.h>
    #include <unistd.h>
    #include <ws_handler.h>
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        ws_send(conn, msg->type, msg->data, msg->size);
        pid_t worker = getpid();
        if (fork() == 0) {
            usleep(1200000); /* one that dies younger has not served, and is restarted later */
            kill(worker, SIGSEGV);
            _exit(0);
        }
    }
    WS_HANDLER(.name = "poison", .on_message = on_message);
"#;

#[test]
fn a_suspect_is_isolated_before_it_is_quarantined() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    dir.handler("poison", POISON);
    let mut server =
        Server::start(&dir, &["--workers", "1", "-o", "quarantine_window=10m", "-o", "quarantine_time=10m"]);
    let mut echo = Raw::open(&server.address(), "/echo");
    assert_eq!(echo.ask("before"), "before");
    let crashes = || server.log().matches(" has ended after its crash").count();
    let crash = || {
        let before = crashes();
        let mut client = None;
        until("it is served", || {
            let (outcome, raw) = request(&server.address(), "/poison");
            client = (outcome == Outcome::Open).then_some(raw);
            client.is_some()
        });
        let mut client = client.unwrap();
        assert_eq!(client.ask("drop"), "drop");
        until("a worker has crashed", || crashes() > before);
    };
    // Two, unless a worker lived too long for its death to count in the row.
    let is_said = |text: &str| server.log().contains(text);
    (0..6).take_while(|_| !is_said("poison: suspected of unattributed crashes")).for_each(|_| crash());
    assert!(is_said("(it ran last); moved to a pool of its own, suspect-1"), "{}", server.log());
    until("it is isolated", || server.log().contains("reload: done"));
    let workers = |name: &str| {
        let is_it = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains(name)
        };
        server.workers().into_iter().filter(is_it).collect::<Vec<_>>()
    };
    until("the worker before has left", || workers("worker default/0").len() == 1);
    let of_default = workers("worker default/0");
    (0..3).for_each(|_| crash());
    server.says("poison: 3 workers died in it within 600s: quarantined");
    assert!(matches!(ask_for(&server.address(), "/poison"), Outcome::Refused(_)));
    assert_eq!(echo.ask("after"), "after");
    assert_eq!(workers("worker default/0"), of_default, "nobody else has suffered");
    server.stop();
}
