//! The metrics process, its clients, and the format.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::{tcp, unix};
use super::*;

const MANUAL: &str = include_str!("../../man/wshd-metrics.7");
const OPEN_METRICS: &str = "Accept: application/openmetrics-text; version=1.0.0, text/plain; q=0.5\r\n";

/// A server for which most metrics have values.
fn busy() -> (Server, Dir) {
    let (server, dir) = serve(&["--workers", "2"]);
    let mut raw = Raw::open(&server.address(), "/a");
    raw.ask("x");
    raw.text("close");
    raw.expect_close(4001);
    (server, dir)
}

/// Checks the rules of the format beyond single lines; returns the type of each family.
#[track_caller]
fn check(text: &str, is_open_metrics: bool) -> BTreeMap<String, String> {
    let (mut types, mut series, mut units) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
    let (mut helped, mut family) = (String::new(), String::new());
    assert!(text.ends_with('\n') && !text.contains("\n\n") && !text.contains('\r'), "{text}");
    assert_eq!(text.ends_with("\n# EOF\n"), is_open_metrics);
    for line in text.trim_end_matches("# EOF\n").lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => {
                assert!(help.ends_with('.'), "{line}");
                helped = name.to_owned();
            }
            ["#", "TYPE", name, kind] => {
                assert_eq!(helped, name, "help comes before the type");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} comes twice");
                family = name.to_owned();
            }
            ["#", "UNIT", name, unit] => {
                assert!(is_open_metrics && name == family && name.ends_with(&format!("_{unit}")), "{line}");
                units.insert(name.to_owned(), unit.to_owned());
            }
            _ => {
                let (labelled, value) = line.rsplit_once(' ').unwrap();
                let name = labelled.split('{').next().unwrap();
                let suffix =
                    name.strip_prefix(&family).unwrap_or_else(|| panic!("{name} stands below {family}"));
                let allowed: &[&str] = match (&*types[&family], is_open_metrics) {
                    ("counter", true) => &["_total"],
                    ("info", true) => &["_info"],
                    ("histogram", _) => &["_bucket", "_count", "_sum"],
                    _ => &[""],
                };
                assert!(allowed.contains(&suffix), "{line}");
                assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
                assert!(series.insert(labelled.to_owned()), "{labelled} comes twice");
            }
        }
    }
    for (name, kind) in &types {
        assert!(name.starts_with("wshd_"), "{name}");
        assert_eq!(!is_open_metrics && kind == "counter", name.ends_with("_total"), "{name}");
        let is_with_unit = ["_seconds", "_bytes"].iter().any(|unit| name.ends_with(unit));
        assert!(!is_open_metrics || is_with_unit == units.contains_key(name), "{name}");
    }
    types
}

/// The buckets of each histogram are cumulative, and the last one has all.
#[track_caller]
fn check_histograms(report: &Report) {
    let mut found = 0;
    for (count, value) in report.0.iter().filter(|(series, _)| series.contains("_count{")) {
        let (name, labels) = count.split_once("_count{").unwrap();
        let labels = labels.trim_end_matches('}');
        let bucket = |bound: &str| report.0[&format!("{name}_bucket{{{labels},le=\"{bound}\"}}")];
        let buckets = ["1e-05", "0.0001", "0.001", "0.01", "0.1", "1.0", "10.0", "+Inf"].map(bucket);
        assert!(buckets.is_sorted(), "{count}: {buckets:?}");
        assert_eq!(buckets[7], *value, "{count}");
        found += 1;
    }
    assert_eq!(found, 2 + 4, "turns of two workers, and four callbacks");
}

#[test]
fn both_formats_are_valid_and_the_manual_has_every_metric() {
    let (mut server, _dir) = busy();
    report_until(&server, "it is closed", |report| report.sum("wshd_connections_closed_total") == 1.0);
    let address = endpoint(&server);
    let open_metrics = get(&address, OPEN_METRICS);
    let prometheus = get(&address, "Accept: */*\r\n");
    let kinds = [
        (&open_metrics, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (&prometheus, "text/plain; version=0.0.4; charset=utf-8"),
    ];
    for (answer, kind) in kinds {
        assert_eq!((answer.status, answer.header("Content-Type")), (200, Some(kind)));
        assert_eq!(answer.header("Content-Length").unwrap().parse(), Ok(answer.body.len()));
    }
    let types = check(str::from_utf8(&open_metrics.body).unwrap(), true);
    let plain = check(str::from_utf8(&prometheus.body).unwrap(), false);
    assert_eq!(types.len(), plain.len());
    check_histograms(&report(&server));

    let mut live = BTreeMap::new();
    for series in report(&server).0.keys() {
        let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
        let name =
            ["_bucket", "_count", "_sum"].iter().fold(name, |name, suffix| name.trim_end_matches(suffix));
        let labels = labels.split_terminator("\",").map(|label| label.split('=').next().unwrap());
        let labels = labels.filter(|label| *label != "le").collect::<Vec<_>>().join(", ");
        live.insert(name.to_owned(), labels);
    }
    assert_eq!(live.len(), types.len());
    let rows = MANUAL.lines().filter_map(|line| line.strip_prefix(".It Li "));
    let rows = rows.map(|row| row.split_once(" Brq ").unwrap_or((row, "")));
    // Metrics of gateways exist only with TLS, and those of the bus only with an engine.
    let of_others = ["wshd_tls_", "wshd_http2_", "wshd_certificate_", "wshd_bus_"];
    let rows = rows.filter(|(name, _)| !of_others.iter().any(|start| name.starts_with(start)));
    let in_manual: BTreeMap<String, String> =
        rows.map(|(name, labels)| (name.to_owned(), labels.to_owned())).collect();
    assert_eq!(in_manual, live);
    server.stop();
}

#[test]
fn only_get_and_head_of_its_resources() {
    let (mut server, _dir) = serve(&["--workers", "1"]);
    let address = endpoint(&server);
    let ask = |request: &str| {
        let mut raw = Raw::connect(&address);
        raw.send(request.as_bytes());
        raw.answer()
    };
    assert_eq!(ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 404);
    assert_eq!(ask("GET /metrics/x HTTP/1.1\r\nHost: a\r\n\r\n").status, 404);
    assert_eq!(ask("GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
    assert_eq!(ask("GET /metrics HTTP/1.0\r\n\r\n").status, 200);
    let answer = ask("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD")));
    assert_eq!(ask("BREW /metrics HTTP/1.1\r\nHost: a\r\n\r\n").status, 501);
    for (status, request, longer_than) in [
        (200, "HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 1000),
        (404, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 10),
        (400, "HEAD /metrics HTTP/1.1\r\n\r\n", 10),
        (505, "HEAD /metrics HTTP/2.0\r\n\r\n", 10),
    ] {
        let answer = ask(request);
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{request}");
        assert!(
            answer.header("Content-Length").unwrap().parse::<usize>().unwrap() > longer_than,
            "{request}"
        );
    }
    assert_eq!(ask("nonsense\r\n\r\n").status, 400);
    assert_eq!(ask(&format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000))).status, 414);
    server.stop();
}

#[test]
fn slow_clients_do_not_block_and_the_oldest_is_dropped() {
    let (mut server, _dir) = serve(&["--workers", "1"]);
    let address = endpoint(&server);
    // One sends nothing, one sends a request and does not read, the others send incomplete requests.
    let mut silent = tcp(&address);
    tcp(&address).write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let begin = |address: &str| {
        let mut stream = tcp(address);
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Slow").unwrap();
        stream
    };
    let mut slow: Vec<_> = (0..40).map(|_| begin(&address)).collect();
    assert_eq!(get(&address, "").status, 200);
    // The oldest were dropped, long before their timeout.
    assert_eq!(silent.read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(slow[0].read(&mut [0]).unwrap_or(0), 0);
    // The last one is still served, byte by byte, or another one if ten seconds have gone by.
    let mut last = slow.pop();
    until("a slow one is served", || {
        let mut raw = Raw::over(last.take().unwrap_or_else(|| begin(&address)));
        b": x\r\n\r\n".iter().for_each(|byte| drop(raw.stream.write_all(&[*byte])));
        raw.rest().starts_with(b"HTTP/1.1 200 ")
    });
    let held = std::fs::read_dir(format!("/proc/{}/fd", serving(&server))).unwrap().count();
    assert!(held < 32 + 16, "{held} descriptors");
    server.stop();
}

#[test]
fn its_process_is_replaced_without_effect_on_workers() {
    let (mut server, _dir) = serve(&["--workers", "1"]);
    let mut raw = Raw::open(&server.address(), "/a");
    raw.ask("x");
    let (first, worker) = (serving(&server), workers(&server));
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    until("there is another one", || process(&server).is_some_and(|pid| pid != first));
    assert_eq!(report(&server).of(r#"wshd_messages_received_total{handler="/a"}"#), 1.0);
    assert_eq!(workers(&server), worker);
    raw.ask("y");
    // It ends with the server, but not before: SIGTERM to all is what a service manager sends.
    let pid = serving(&server);
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert_eq!(report(&server).of(r#"wshd_messages_received_total{handler="/a"}"#), 2.0);
    drop(raw);
    server.stop();
    assert!(!is_alive(pid));
}

#[test]
fn a_reload_is_reported_and_counters_continue() {
    let (mut server, dir) = serve(&["--workers", "2"]);
    let mut raw = Raw::open(&server.address(), "/a");
    raw.ask("x");
    let (first, address) = (serving(&server), endpoint(&server));
    dir.handler("b", HANDLER);
    server.signal(Signal::SIGHUP);
    server.says("reload: done, 2 resources");
    until("there is another process", || process(&server).is_some_and(|pid| pid != first));
    assert_eq!(endpoint(&server), address);
    raw.ask("y");
    Raw::open(&server.address(), "/b").ask("z");
    let report = report_until(&server, "the old workers have ended", |report| {
        report.of(r#"wshd_workers{state="running"}"#) == 2.0
            && report.of(r#"wshd_connections_open{handler="/a",pool="default"}"#) == 1.0
            && report.sum("wshd_worker_connections") == 1.0
    });
    report.is("wshd_messages_received_total", &[(r#"handler="/a""#, 2), (r#"handler="/b""#, 1)]);
    report.is(
        "wshd_handler_info",
        &["/a", "/b"]
            .map(|path| (format!(r#"handler="{path}",name="test",version="1.5",pool="default""#), 1)),
    );
    let both = [r#"worker="default/0""#, r#"worker="default/1""#];
    report.is("wshd_worker_starts_total", &both.map(|worker| (worker, 2)));
    report.is("wshd_worker_replacements_total", &both.map(|worker| (worker, 1)));
    assert_eq!(report.sum("wshd_worker_deaths_total"), 0.0);
    drop(raw);
    server.stop();
}

#[test]
fn it_ends_when_the_supervisor_is_killed() {
    let (mut server, _dir) = serve(&["--workers", "1"]);
    let pid = serving(&server);
    server.signal(Signal::SIGKILL);
    server.wait();
    until("it has ended", || !is_alive(pid));
}

#[test]
fn without_the_option_there_is_no_process_and_no_clock() {
    let dir = Dir::new();
    dir.handler("a", HANDLER);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    Raw::open(&server.address(), "/a").ask("x");
    assert_eq!((process(&server), server.workers().len()), (None, 1));
    server.stop();
}

#[test]
fn on_a_unix_socket() {
    let dir = Dir::new();
    dir.handler("a", HANDLER);
    let path = dir.path().join("metrics.sock");
    let address = format!("unix:{}", path.display());
    let mut server = Server::start(&dir, &["--workers", "1", "--metrics", &address]);
    assert_eq!(endpoint(&server), address);
    let mut raw = Raw::over(unix(&path));
    raw.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(raw.answer().status, 200);
    // No worker has the socket.
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let is_it = |line: &&str| line.ends_with(path.to_str().unwrap()) && line.contains(" 00010000 "); // it listens
    let line = sockets.lines().find(is_it).unwrap();
    let socket = format!("socket:[{}]", line.split_whitespace().nth(6).unwrap());
    let has_it = |pid: i32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|file| file.as_os_str() == &*socket)
    };
    assert!(has_it(server.pid()) && has_it(serving(&server)));
    assert!(!workers(&server).into_iter().any(has_it));
    server.stop();
    assert!(!path.exists());
}

#[test]
fn a_reload_may_change_the_address() {
    let dir = Dir::new();
    dir.handler("a", HANDLER);
    let (config, sockets) = (dir.path().join("conf"), ["one", "two"].map(|name| dir.path().join(name)));
    let write = |socket: &std::path::Path| {
        std::fs::write(&config, format!("metrics = \"unix:{}\"\n", socket.display())).unwrap();
    };
    write(&sockets[0]);
    let mut server = Server::start(&dir, &["--workers", "1", "--config", config.to_str().unwrap()]);
    let ask = |socket: &std::path::Path| {
        let mut raw = Raw::over(unix(socket));
        raw.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        raw.answer().status
    };
    assert_eq!(ask(&sockets[0]), 200);
    write(&sockets[1]);
    server.signal(Signal::SIGHUP);
    server.says("reload: done");
    assert_eq!(ask(&sockets[1]), 200);
    until("the socket of before is removed", || !sockets[0].exists());
    std::fs::write(&config, "").unwrap();
    server.signal(Signal::SIGHUP);
    until("nothing is served any more", || !sockets[1].exists() && process(&server).is_none());
    server.stop();
}

#[test]
fn an_address_in_use() {
    let dir = Dir::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = daemon::run(&["-w", dir.path().to_str().unwrap(), "-p", "0", "--metrics", &address]);
    assert_eq!(output.status.code(), Some(4));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("cannot listen on {address}: Address already in use")), "{said}");
}

#[test]
#[ignore = "needs the Python package prometheus-client"]
fn an_independent_parser_reads_both_formats() {
    const PARSER: &str = r#"
import sys
from prometheus_client import openmetrics, parser
import prometheus_client.openmetrics.parser
read = openmetrics.parser if sys.argv[1] == "openmetrics" else parser
for family in read.text_string_to_metric_families(sys.stdin.read()):
    print(family.name, family.type, family.unit or "-", len(family.samples))
"#;
    let python = std::env::var("WSHD_PYTHON").expect(
        "WSHD_PYTHON is not set: a python3 with the package \"prometheus-client\" (pip install prometheus-client)",
    );
    let (mut server, _dir) = busy();
    report_until(&server, "it is closed", |report| report.sum("wshd_connections_closed_total") == 1.0);
    for (format, headers) in [("openmetrics", OPEN_METRICS), ("prometheus", "")] {
        let text = get(&endpoint(&server), headers).body;
        let samples = text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"wshd_")).count();
        let mut child = Command::new(&python)
            .args(["-c", PARSER, format])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&text).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{format}: {said}");
        let read: usize =
            said.lines().map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum();
        assert_eq!(read, samples, "{format}: {said}");
        assert!(said.contains("wshd_callback_duration_seconds histogram"), "{said}");
        let unit = if format == "openmetrics" { "bytes" } else { "-" };
        assert!(said.contains(&format!("wshd_received_bytes counter {unit}")), "{said}");
    }
    server.stop();
}
