//! The counters.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::{BINARY, CLOSE, Raw, TEXT, UPGRADE, close_payload, frame};
use super::*;

/// The reply to an opening handshake.
fn status_of(address: &str, resource: &str, headers: &str) -> u16 {
    let mut raw = Raw::connect(address);
    raw.send(format!("GET {resource} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes());
    raw.answer().status
}

fn close(raw: &mut Raw, code: u16) {
    raw.frame(CLOSE, &close_payload(code, ""));
    raw.expect_close(code);
    raw.expect_end();
}

#[test]
fn a_known_exchange_is_counted_exactly() {
    let (mut server, _dir) = serve(&["--workers", "1"]);
    let address = server.address();

    // 4 messages, one of them in two frames, of 5 + 5 + 300 + 0 bytes, and their echoes.
    let mut first = Raw::open(&address, "/a");
    assert_eq!(first.ask("hello"), "hello");
    first.send(&[frame(0x01, b"he"), frame(0x80, b"llo")].concat());
    assert_eq!(first.next_text(), "hello");
    first.frame(BINARY, &[7; 300]);
    assert_eq!(first.next().unwrap().payload.len(), 300);
    first.frame(TEXT, b"");
    assert_eq!(first.next_text(), "");

    report(&server).is("wshd_connections_open", &[(r#"handler="/a",pool="default""#, 1)]);
    report(&server).is("wshd_worker_connections", &[(r#"worker="default/0""#, 1)]);
    close(&mut first, 1000);

    // One more message of 5 bytes, whose answer is a Close.
    let mut second = Raw::open(&address, "/a");
    second.text("close");
    second.expect_close(4001);
    second.frame(CLOSE, &close_payload(4001, ""));
    second.expect_end();

    // This one breaks the rules: its frame is not masked.
    let mut third = Raw::open(&address, "/a");
    third.send(&[TEXT, 0]);
    third.expect_close(1002);
    drop(third);

    // And this one disconnects without a Close frame.
    drop(Raw::open(&address, "/a"));

    assert_eq!(status_of(&address, "/nowhere", UPGRADE), 404);
    assert_eq!(status_of(&address, "/a?no", UPGRADE), 403);
    assert_eq!(status_of(&address, "/a", ""), 426);
    assert_eq!(status_of(&address, "/a", &UPGRADE.replace("13", "8")), 426);
    assert_eq!(status_of(&address, "/console.html", ""), 200);

    let report = report_until(&server, "all connections have ended", |report| {
        report.sum("wshd_connections_closed_total") == 4.0 && report.sum("wshd_worker_connections") == 0.0
    });
    let handler = r#"handler="/a""#;
    let in_pool = r#"handler="/a",pool="default""#;
    report.is("wshd_connections_open", &[(in_pool, 0)]);
    report.is("wshd_connections_opened_total", &[(in_pool, 4)]);
    report.is("wshd_messages_received_total", &[(handler, 5)]);
    report.is("wshd_received_bytes_total", &[(handler, 315)]);
    report.is("wshd_messages_sent_total", &[(handler, 4)]);
    report.is("wshd_sent_bytes_total", &[(handler, 310)]);
    report.is(
        "wshd_handshakes_total",
        &[
            (r#"handler="/a",status="101""#, 4),
            (r#"handler="/a",status="403""#, 1),
            (r#"handler="/a",status="426""#, 2),
            (r#"handler="none",status="200""#, 1),
            (r#"handler="none",status="404""#, 1),
        ],
    );
    report.is(
        "wshd_connections_closed_total",
        &[
            (r#"handler="/a",by="handler",code="4000-4999""#, 1),
            (r#"handler="/a",by="peer",code="1000""#, 1),
            (r#"handler="/a",by="peer",code="1006""#, 1),
            (r#"handler="/a",by="server",code="1002""#, 1),
        ],
    );
    report.is(
        "wshd_callback_duration_seconds_count",
        &[
            (r#"handler="/a",callback="do_extra_handshake""#, 5),
            (r#"handler="/a",callback="on_close""#, 4),
            (r#"handler="/a",callback="on_message""#, 5),
            (r#"handler="/a",callback="on_open""#, 4),
        ],
    );
    report.is("wshd_worker_connections_accepted_total", &[(r#"worker="default/0""#, 9)]);
    report.is("wshd_sends_refused_total", &[(handler, 0)]);
    assert!(report.of(r#"wshd_worker_loop_turn_seconds_count{worker="default/0"}"#) > 9.0);
    report.is("wshd_handler_info", &[(r#"handler="/a",name="test",version="1.5",pool="default""#, 1)]);
    for process in ["supervisor", "metrics", "worker default/0"] {
        let memory = report.of(&format!("wshd_resident_memory_bytes{{process=\"{process}\"}}"));
        assert!((1e6..1e9).contains(&memory), "{process}: {memory}");
    }
    server.stop();
}

#[test]
fn callbacks_of_blocking_handlers_are_measured_too() {
    let dir = Dir::new();
    dir.handler("b", BLOCKING);
    let mut server = Server::start(&dir, &["--metrics", "127.0.0.1:0", "--workers", "1"]);
    let mut raw = Raw::open(&server.address(), "/b");
    assert_eq!(raw.ask("one"), "one");
    assert_eq!(raw.ask("two"), "two");
    close(&mut raw, 1000);
    let report = report_until(&server, "the thread has ended", |report| {
        report.sum("wshd_callback_duration_seconds_count") == 2.0
    });
    report.is(
        "wshd_callback_duration_seconds_count",
        &[(r#"handler="/b",callback="on_open""#, 1), (r#"handler="/b",callback="transfer_data""#, 1)],
    );
    report.is("wshd_messages_received_total", &[(r#"handler="/b""#, 2)]);
    report.is("wshd_messages_sent_total", &[(r#"handler="/b""#, 2)]);
    server.stop();
}

#[test]
fn counters_are_summed_and_survive_their_worker() {
    let (mut server, _dir) = serve(&["--workers", "2"]);
    let mut clients: Vec<Raw> = Vec::new();
    // A worker that gets no processor for seconds is not waited for.
    let before = report_until(&server, "both workers have some", |report| {
        let has_some = report.all("wshd_worker_connections").all(|(_, count)| count >= 3.0);
        if !has_some {
            let mut client = Raw::open(&server.address(), "/a");
            assert_eq!(client.ask("1234"), "1234");
            clients.push(client);
        }
        has_some
    });
    let count = clients.len() as u32;
    before.is("wshd_connections_open", &[(r#"handler="/a",pool="default""#, count)]);
    before.is("wshd_messages_received_total", &[(r#"handler="/a""#, count)]);
    assert_eq!(before.sum("wshd_worker_connections"), f64::from(count));

    let victim = workers(&server)[0];
    let title = std::fs::read_to_string(format!("/proc/{victim}/cmdline")).unwrap();
    let name = title.trim_end_matches('\0').strip_prefix("wshd: worker ").unwrap();
    let lost = before.of(&format!("wshd_worker_connections{{worker=\"{name}\"}}"));
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    // Then some of the other connections move to the new worker.
    let open = r#"wshd_connections_open{handler="/a",pool="default"}"#;
    report_until(&server, "a worker has taken its place", |report| {
        let runs = report.of(r#"wshd_workers{state="running"}"#) == 2.0;
        runs && report.sum("wshd_worker_starts_total") == 3.0 && report.of(open) == f64::from(count) - lost
    });
    let mut more: Vec<Raw> = (0..8).map(|_| Raw::open(&server.address(), "/a")).collect();
    more.iter_mut().for_each(|client| assert_eq!(client.ask("12345"), "12345"));
    let all = f64::from(count + 8) - lost;
    let after = report_until(&server, "all are in their places", |report| report.of(open) == all);
    after.is("wshd_messages_received_total", &[(r#"handler="/a""#, count + 8)]);
    after.is("wshd_received_bytes_total", &[(r#"handler="/a""#, count * 4 + 8 * 5)]);
    assert_eq!(after.all("wshd_worker_deaths_total").filter(|(_, count)| *count > 0.0).count(), 1);
    assert_eq!(after.sum("wshd_worker_deaths_total"), 1.0);
    assert!(
        after
            .all("wshd_worker_deaths_total")
            .any(|(series, count)| series.contains("\"killed\"") && count == 1.0)
    );
    // The CPU time of a process starts from 0 with its replacement.
    let stays = |series: &str| series.contains("_total{") && !series.contains("{process=");
    for (series, value) in before.0.iter().filter(|(series, _)| stays(series)) {
        assert!(after.of(series) >= *value, "{series}: {value}, then {}", after.of(series));
    }
    drop((clients, more));
    server.stop();
}

#[test]
fn a_crash_and_a_quarantine_are_seen() {
    let (mut server, _dir) =
        serve(&["--workers", "1", "-o", "quarantine_deaths=1", "-o", "quarantine_time=10m"]);
    let mut bystanders: Vec<Raw> = (0..3).map(|_| Raw::open(&server.address(), "/a")).collect();
    report(&server).is("wshd_handler_quarantined", &[(r#"handler="/a""#, 0)]);
    let mut culprit = Raw::open(&server.address(), "/a");
    culprit.text("crash");
    culprit.expect_close(1011);
    let report = report_until(&server, "the crashed process has ended", |report| {
        report.of(r#"wshd_worker_connections_moved_total{worker="default/0",direction="out"}"#) == 3.0
            && report.of(r#"wshd_connections_open{handler="/a",pool="default"}"#) == 3.0
            && report.of(r#"wshd_worker_connections_moved_total{worker="default/0",direction="in"}"#) == 4.0
    });
    bystanders.iter_mut().for_each(|client| assert_eq!(client.ask("still here"), "still here"));
    assert_eq!(status_of(&server.address(), "/a", UPGRADE), 503);
    for (series, expected) in [
        (r#"wshd_handler_crashes_total{handler="/a"}"#, 1.0),
        (r#"wshd_handler_quarantines_total{handler="/a"}"#, 1.0),
        (r#"wshd_handler_quarantined{handler="/a"}"#, 1.0),
        (r#"wshd_worker_deaths_total{worker="default/0",cause="crash"}"#, 1.0),
        // The socket of the crashed connection moves too, to be closed there.
        (r#"wshd_worker_connections_moved_total{worker="default/0",direction="in"}"#, 4.0),
        (r#"wshd_connections_opened_total{handler="/a",pool="default"}"#, 4.0),
    ] {
        assert_eq!(report.of(series), expected, "{series}");
    }
    let refused = r#"wshd_handshakes_total{handler="/a",status="503"}"#;
    report_until(&server, "the refusal is counted", |report| report.of(refused) == 1.0);
    drop(bystanders);
    server.stop();
}

#[test]
fn a_worker_that_drains_is_added_to_its_successor() {
    let dir = Dir::new();
    let file = dir.handler("b", BLOCKING);
    let mut server = Server::start(&dir, &["--metrics", "127.0.0.1:0", "--workers", "1"]);
    let mut raw = Raw::open(&server.address(), "/b");
    raw.ask("x");
    let old = workers(&server)[0];
    std::fs::remove_file(file).unwrap();
    dir.handler("b", &format!("{BLOCKING}/* changed */"));
    server.signal(Signal::SIGHUP);
    until("the reload is done", || server.log().contains("reload: done"));
    assert!(is_alive(old), "it waits for its connection");
    assert!(report(&server).of(r#"wshd_resident_memory_bytes{process="worker default/0"}"#) > 0.0);
    drop(raw);
    server.stop();
}

#[test]
fn a_replaced_worker_is_counted_and_its_traffic_once() {
    let (mut server, _dir) = serve(&["--workers", "1", "-o", "worker_max_messages=3"]);
    let mut raw = Raw::open(&server.address(), "/a");
    for _ in 0..3 {
        raw.ask("x");
    }
    let replaced = r#"wshd_worker_replacements_total{worker="default/0"}"#;
    report_until(&server, "the worker is replaced", |report| {
        report.of(replaced) == 1.0 && report.of(r#"wshd_workers{state="running"}"#) == 1.0
    });
    raw.ask("y");
    let report = report_until(&server, "the connection is in the new one only", |report| {
        let moved = report.sum("wshd_worker_connections_moved_total");
        moved == 2.0 && report.of(r#"wshd_connections_open{handler="/a",pool="default"}"#) == 1.0
    });
    report.is("wshd_messages_received_total", &[(r#"handler="/a""#, 4)]);
    report.is("wshd_connections_opened_total", &[(r#"handler="/a",pool="default""#, 1)]);
    for direction in ["in", "out"] {
        let moved =
            format!("wshd_worker_connections_moved_total{{worker=\"default/0\",direction=\"{direction}\"}}");
        assert_eq!(report.of(&moved), 1.0, "{moved}");
    }
    assert_eq!(report.sum("wshd_worker_deaths_total"), 0.0);
    drop(raw);
    server.stop();
}

#[test]
fn a_request_for_a_pool_is_counted_once() {
    let dir = Dir::new();
    dir.handler("a", HANDLER);
    let config = dir.path().join("conf");
    std::fs::write(&config, "[handler.\"/a\"]\nisolation = \"pool\"\n").unwrap();
    let args = ["--metrics", "127.0.0.1:0", "--workers", "1", "--config", config.to_str().unwrap()];
    let mut server = Server::start(&dir, &args);
    let mut raw = Raw::open(&server.address(), "/a");
    raw.ask("x");
    // The worker that has passed it on may not have counted that yet.
    let report = report_until(&server, "it has moved", |report| {
        let moved = report.sum("wshd_worker_connections_moved_total");
        moved == 2.0 && report.sum("wshd_worker_connections") == 1.0
    });
    let in_pool = r#"handler="/a",pool="a""#;
    report.is("wshd_connections_open", &[(in_pool, 1)]);
    report.is("wshd_connections_opened_total", &[(in_pool, 1)]);
    report.is("wshd_handshakes_total", &[(r#"handler="/a",status="101""#, 1)]);
    report.is("wshd_worker_connections", &[(r#"worker="a/0""#, 1), (r#"worker="default/0""#, 0)]);
    for moved in [r#"worker="default/0",direction="out""#, r#"worker="a/0",direction="in""#] {
        assert_eq!(report.of(&format!("wshd_worker_connections_moved_total{{{moved}}}")), 1.0, "{moved}");
    }
    drop(raw);
    server.stop();
}

#[test]
fn a_full_send_queue_is_seen() {
    let (mut server, _dir) = serve(&["--workers", "1", "-o", "send_high=100K"]);
    let mut raw = Raw::open(&server.address(), "/a");
    raw.text("fill");
    let queued = r#"wshd_worker_send_queue_bytes{worker="default/0"}"#;
    let refused = r#"wshd_sends_refused_total{handler="/a"}"#;
    let report = report_until(&server, "the queue is full", |report| {
        report.of(refused) == 1.0 && report.of(queued) > 0.0
    });
    // Bytes not accepted by the kernel: at most the high mark and the rest of a frame of 12 bytes.
    assert!(report.of(queued) < 102_412.0, "{}", report.of(queued));
    drop(raw);
    report_until(&server, "nothing waits any more", |report| report.of(queued) == 0.0);
    server.stop();
}
