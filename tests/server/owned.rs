//! Messages whose bytes the handler owns.

use nix::sys::signal::Signal;

use crate::client::{CLOSE, Raw, TEXT, close_payload, frame};
use crate::daemon::{Dir, Server, is_alive, until};

/// Answers each message with as many owned bytes as it says; their release sends "released".
const HANDLER: &str = r#"
    #include <stdlib.h>
    #include <string.h>
    #include <ws_handler.h>
    struct Parcel { ws_conn conn; char bytes[1]; };
    static void release(void *arg)
    {
        struct Parcel *parcel = arg;
        ws_send_text(parcel->conn, "released");
        free(parcel);
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        size_t size = strtoul((const char *)msg->data, NULL, 10);
        struct Parcel *parcel = malloc(sizeof *parcel + size);
        parcel->conn = conn;
        memset(parcel->bytes, 'x', size);
        ws_send_owned(conn, WS_BINARY, parcel->bytes, size, 0, release, parcel);
    }
    WS_HANDLER(.name = "owned", .on_message = on_message);
"#;

#[test]
fn a_release_may_call_the_server() {
    let dir = Dir::new();
    dir.handler("owned", HANDLER);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let worker = server.worker();
    let mut raw = Raw::open(&server.address(), "/owned");
    for size in [0, 1, 20_000, 3_000_000] {
        raw.text(&size.to_string());
        let owned = raw.next().unwrap();
        assert_eq!(owned.payload.len(), size);
        assert_eq!(raw.next_text(), "released");
    }
    // One that is never sent: the peer disconnects while it is in the queue.
    raw.text("8000000");
    drop(raw);
    let mut raw = Raw::open(&server.address(), "/owned");
    raw.text("1");
    assert_eq!(raw.next().unwrap().payload.len(), 1);
    until("it is the same worker", || server.worker() == worker);
    drop(raw);
    server.stop();
}

/// The pointer of each connection; its release tells all others. "leave" returns from transfer_data.
const LEAVING: &str = r#"
    #include <stdlib.h>
    #include <ws_handler.h>
    static ws_conn first;
    static void release(void *arg)
    {
        ws_conn conn = *(ws_conn *)arg;
        free(arg);
        if (conn != first)
            ws_send_text(first, "one has left");
    }
    static int32_t transfer_data(ws_conn conn)
    {
        ws_message msg;
        ws_conn *own = malloc(sizeof *own);
        *own = conn;
        ws_set_user_owned(conn, own, release);
        if (first == 0)
            first = conn;
        while (ws_receive(conn, &msg, WS_FOREVER) > 0)
            ws_send(conn, msg.type, msg.data, msg.size);
        return WS_OK;
    }
    WS_HANDLER(.name = "leaving", .transfer_data = transfer_data);
"#;

#[test]
fn the_release_of_a_thread_that_ends_may_send_to_others() {
    let dir = Dir::new();
    dir.handler("leaving", LEAVING);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let worker = server.worker();
    let mut first = Raw::open(&server.address(), "/leaving");
    assert_eq!(first.ask("here"), "here");
    for _ in 0..3 {
        let mut raw = Raw::open(&server.address(), "/leaving");
        assert_eq!(raw.ask("here"), "here");
        raw.frame(CLOSE, &close_payload(1000, ""));
        assert_eq!(first.next_text(), "one has left");
    }
    assert_eq!(server.worker(), worker);
    drop(first);
    server.stop();
}

/// Logs what is called at the end: the release of each connection's pointer, and functions that post one another.
const LAST_CALLS: &str = r#"
    #include <ws_handler.h>
    static void release(void *arg) { ws_log(WS_LOG_INFO, "released %s", (const char *)arg); }
    static void second(ws_conn conn, void *arg) { (void)conn, (void)arg; ws_log(WS_LOG_INFO, "second: called"); }
    static void first(ws_conn conn, void *arg)
    {
        int32_t result = ws_post(conn, second, arg);
        if (result != WS_OK)
            ws_log(WS_LOG_INFO, "second: %s", ws_error_name(result));
    }
    static int32_t on_open(ws_conn conn) { return ws_set_user_owned(conn, "pointer", release); }
    static void on_message(ws_conn conn, const ws_message *msg) { ws_send(conn, msg->type, msg->data, msg->size); }
    static void on_close(ws_conn conn, uint32_t by, uint32_t code)
    {
        (void)conn, (void)by, (void)code;
        ws_post(0, first, NULL);
    }
    WS_HANDLER(.name = "last_calls", .on_open = on_open, .on_message = on_message, .on_close = on_close);
"#;

#[test]
fn what_is_due_when_a_worker_leaves_is_called() {
    let dir = Dir::new();
    dir.handler("last_calls", LAST_CALLS);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let worker = server.worker();
    let mut raw = Raw::open(&server.address(), "/last_calls");
    assert_eq!(raw.ask("here"), "here");
    // In the middle of a message it cannot move: it is the last one, and the worker leaves as soon as it has gone.
    let message = frame(TEXT, b"moves at its end");
    raw.send(&message[..8]);
    let next = dir.handler("next/last_calls", &format!("{LAST_CALLS}\nint next;"));
    std::fs::rename(next, dir.path().join("last_calls_wsh.so")).unwrap();
    server.signal(Signal::SIGHUP);
    server.says("reload: done"); // it has begun to leave
    raw.send(&message[8..]);
    assert_eq!(raw.next_text(), "moves at its end");
    until("the worker has left", || !is_alive(worker));
    assert!(server.log().contains("released pointer"), "{}", server.log());
    assert_eq!(raw.ask("here"), "here");
    let called = server.log().matches("second: ").count();
    // Its on_close is the last thing before the worker stops.
    server.signal(Signal::SIGTERM);
    raw.expect_close(1001);
    raw.frame(CLOSE, &close_payload(1001, ""));
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    let log = server.log();
    assert_eq!((called, log.matches("second: ").count()), (1, 2), "{log}");
    assert_eq!(log.matches("released pointer").count(), 2, "{log}");
}
