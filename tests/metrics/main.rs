//! The metrics of a running server: the counts of known exchanges, and the endpoint.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/client.rs"]
mod client;
#[path = "../common/server.rs"]
mod daemon;

mod counted;
mod endpoint;

use std::collections::BTreeMap;
use std::fmt::Display;

use client::{Answer, Raw};
use daemon::{Dir, Server, children, is_alive, until};

/// Echoes; some messages, explained where they are sent, have other effects. Requests with a query
/// are rejected.
const HANDLER: &str = r#"
    #include <stdlib.h>
    #include <string.h>
    #include <ws_handler.h>

    static int32_t do_extra_handshake(ws_conn conn, ws_handshake *handshake)
    {
        if (ws_query(conn).size > 0)
            return ws_reject(handshake, 403);
        return WS_OK;
    }

    static int32_t on_open(ws_conn conn) { (void)conn; return WS_OK; }

    static void on_message(ws_conn conn, const ws_message *msg)
    {
        if (strcmp(msg->data, "crash") == 0)
            abort();
        if (strcmp(msg->data, "close") == 0)
            ws_close(conn, 4001, NULL);
        else if (strcmp(msg->data, "fill") == 0)
            while (ws_send(conn, WS_TEXT, "0123456789", 10) == WS_OK) {}
        else
            ws_send(conn, msg->type, msg->data, msg->size);
    }

    static void on_close(ws_conn conn, uint32_t by, uint32_t code) { (void)conn; (void)by; (void)code; }

    WS_HANDLER(.name = "test", .version = "1.5", .do_extra_handshake = do_extra_handshake, .on_open = on_open,
               .on_message = on_message, .on_close = on_close);
"#;

/// A blocking handler that echoes.
const BLOCKING: &str = r#"
    #include <ws_handler.h>

    static int32_t on_open(ws_conn conn) { (void)conn; return WS_OK; }

    static int32_t transfer_data(ws_conn conn)
    {
        ws_message msg;
        int32_t result;
        while ((result = ws_receive(conn, &msg, WS_FOREVER)) == WS_MESSAGE)
            ws_send(conn, msg.type, msg.data, msg.size);
        return WS_OK;
    }

    WS_HANDLER(.name = "blocking", .on_open = on_open, .transfer_data = transfer_data);
"#;

/// Serves /a, and metrics on a free port.
fn serve(args: &[&str]) -> (Server, Dir) {
    let dir = Dir::new();
    dir.handler("a", HANDLER);
    (Server::start(&dir, &[&["--metrics", "127.0.0.1:0"], args].concat()), dir)
}

/// The address of the metrics.
fn endpoint(server: &Server) -> String {
    let log = server.log();
    let (_, rest) = log.split_once("metrics are served on ").unwrap();
    rest.lines().next().unwrap().to_owned()
}

/// The pid of the metrics process.
fn process(server: &Server) -> Option<i32> {
    let is_it = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|title| title.starts_with(b"wshd: metrics"))
    };
    children(server.pid()).into_iter().find(is_it)
}

/// The same, once it exists.
#[track_caller]
fn serving(server: &Server) -> i32 {
    until("metrics are served", || process(server).is_some());
    process(server).unwrap()
}

/// The pids of the workers.
fn workers(server: &Server) -> Vec<i32> {
    let metrics = serving(server);
    server.workers().into_iter().filter(|pid| *pid != metrics).collect()
}

fn get(address: &str, headers: &str) -> Answer {
    let mut raw = Raw::connect(address);
    raw.send(format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes());
    raw.answer()
}

/// The current series and values.
fn report(server: &Server) -> Report {
    let answer = get(&endpoint(server), "");
    assert_eq!(answer.status, 200);
    let text = String::from_utf8(answer.body).unwrap();
    let samples =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap());
    let mut report = BTreeMap::new();
    for (series, value) in samples {
        let before = report.insert(series.to_owned(), value.parse().unwrap());
        assert_eq!(before, None, "{series} is there twice");
    }
    Report(report)
}

#[derive(Debug)]
struct Report(BTreeMap<String, f64>);

impl Report {
    /// The value of a series; 0 without one.
    fn of(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// The sum of all series of that name, whatever their labels.
    fn sum(&self, name: &str) -> f64 {
        self.all(name).map(|(_, value)| value).sum()
    }

    fn all(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        let of_name = move |series: &str| series.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
        self.0.iter().filter(move |(series, _)| of_name(series)).map(|(series, value)| (&**series, *value))
    }

    /// Asserts that these are all series of that name.
    #[track_caller]
    fn is(&self, name: &str, expected: &[(impl Display, u32)]) {
        let found: Vec<_> = self.all(name).collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(labels, value)| (format!("{name}{{{labels}}}"), f64::from(*value)))
            .collect();
        let expected: Vec<_> = expected.iter().map(|(series, value)| (&**series, *value)).collect();
        assert_eq!(found, expected);
    }
}

/// Waits for a report that meets the condition, and returns the next one: a report is not of one moment, and what it
/// begins with may be older than what the condition is about.
#[track_caller]
fn report_until(server: &Server, what: &str, mut is_so: impl FnMut(&Report) -> bool) -> Report {
    until(what, || is_so(&report(server)));
    report(server)
}
