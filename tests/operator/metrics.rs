//! Metrics for operators: limits, reloads, and workers that hang.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use super::client::connect;
use super::server::{Dir, until};
use super::{Operated, request, tls};

/// The value of a series, if it exists.
fn value(operated: &Operated, series: &str) -> Option<f64> {
    let text = String::from_utf8(request(&operated.metrics(), "GET", "/metrics", "").body).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
    line.map(|value| value.parse().unwrap())
}

/// The answer to a request of which a part has been sent before something happens.
fn answer_after(operated: &Operated, happens: impl FnOnce()) -> String {
    let mut stream = TcpStream::connect(operated.metrics()).unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
    happens();
    stream.write_all(b"Host: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Sleeps for each message.
const BLOCKING: &str = r#"
    #include <ws_handler.h>
    static int32_t transfer_data(ws_conn conn)
    {
        ws_message msg;
        while (ws_receive(conn, &msg, WS_FOREVER) == WS_MESSAGE)
            ws_send(conn, msg.type, msg.data, msg.size);
        return WS_OK;
    }
    WS_HANDLER(.name = "blocking", .transfer_data = transfer_data);
"#;

#[test]
fn limits_and_reloads_have_metrics() {
    let dir = Dir::new();
    dir.handler("blocking", BLOCKING);
    let file = dir.path().join("w.conf");
    let write =
        |text: &str| std::fs::write(&file, format!("max_connections = 50\nmax_threads = 7\n{text}")).unwrap();
    write("");
    let name = file.to_str().unwrap().to_owned();
    let mut operated = Operated::start_in(dir, &["--config", &name, "--workers", "1"]);
    let of_worker = |name: &str| value(&operated, &format!("wshd_worker_{name}{{worker=\"default/0\"}}"));
    let of_process = |name: &str| value(&operated, &format!("wshd_{name}{{process=\"worker default/0\"}}"));
    assert_eq!((of_worker("connections_limit"), of_worker("threads_limit")), (Some(50.0), Some(7.0)));
    let client = connect(&operated.address(), "/blocking");
    until("the thread is counted", || of_worker("threads") == Some(1.0));
    drop(client);
    until("it has ended", || of_worker("threads") == Some(0.0));
    until("its heart beats", || (0.0..20.0).contains(&of_worker("heartbeat_age_seconds").unwrap()));
    for process in ["worker default/0", "supervisor"] {
        let series = format!("wshd_log_lines_lost_total{{process=\"{process}\"}}");
        assert_eq!(value(&operated, &series), Some(0.0));
    }
    assert!(of_process("cpu_seconds_total").unwrap() < 60.0);
    let (open, most) = (of_process("open_descriptors").unwrap(), of_process("descriptors_limit").unwrap());
    assert!(open > 5.0 && open < most, "{open} of {most}");

    assert_eq!(
        (value(&operated, "wshd_ready"), value(&operated, "wshd_last_reload_successful")),
        (Some(1.0), Some(1.0))
    );
    assert!(value(&operated, "wshd_last_reload_timestamp_seconds").unwrap() > 1.7e9);
    write("no_such_key = 1\n");
    operated.refuses(&["reload"]);
    assert_eq!(value(&operated, "wshd_last_reload_successful"), Some(0.0));
    write("");
    let answer = answer_after(&operated, || drop(operated.says(&["reload"])));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    until("the new process of metrics tells it", || {
        value(&operated, "wshd_last_reload_successful") == Some(1.0)
    });
    let processes = || tls::processes(&operated.server, "metrics");
    until("the old one has left", || processes().len() == 1);
    let before = processes();
    let answer = answer_after(&operated, || drop(operated.says(&["log-level", "error"])));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(processes(), before, "a new level is no reason to replace it");
    operated.server.stop();
}

#[test]
fn processes_of_other_users_and_lost_log_lines_have_metrics() {
    let (dir, authority) = tls::prepare(&["echo"]);
    let is_root = nix::unistd::geteuid().is_root();
    let users: &[&str] = if is_root { &["--user", "4001", "--group", "4001"] } else { &[] };
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let root = dir.path().join("www");
    std::fs::create_dir_all(root.join("cgi")).unwrap();
    std::fs::write(root.join("cgi/done"), "#!/bin/sh\nprintf 'Status: 204\\n\\n'\n").unwrap();
    std::fs::set_permissions(root.join("cgi/done"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let root = format!("document_root={}", root.display());
    let own = ["--workers", "1", "--access-log", "/dev/full", "-o", "cgi_paths=/cgi", "-o", &root];
    let program_user: &[&str] = if is_root { &["-o", "cgi_user=nobody"] } else { &[] };
    let options = tls::options(&dir, &[&own, users, program_user].concat());
    let mut operated = Operated::start_in(dir, &options.iter().map(String::as_str).collect::<Vec<_>>());
    for process in ["supervisor", "metrics", "gateway", "cgi", "worker default/0"] {
        for name in ["resident_memory_bytes", "cpu_seconds_total", "open_descriptors", "descriptors_limit"] {
            let series = format!("wshd_{name}{{process=\"{process}\"}}");
            assert!(value(&operated, &series).is_some(), "{series}");
        }
    }
    let lost =
        |process: &str| value(&operated, &format!("wshd_log_lines_lost_total{{process=\"{process}\"}}"));
    for process in ["worker default/0", "gateway", "bus", "cgi", "metrics"] {
        assert_eq!(lost(process), Some(0.0), "{process}");
    }
    let port = tls::port(&operated.server);
    let mut socket = tls::Client::of(&authority).open(port, "/echo").unwrap();
    tls::echo(&mut socket, 10);
    until("its line is counted", || lost("worker default/0") == Some(1.0));
    let mut stream = tls::Client::of(&authority).connect(port).unwrap();
    stream.write_all(b"GET /cgi/done HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    until("that of the program is counted", || lost("cgi") == Some(1.0));
    operated.server.stop();
}
