//! A connection that cannot be sent to another process goes on in its own, as if it had come from elsewhere.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;

use crate::client::{self, Raw};
use crate::daemon::{Dir, Server, wshd};

/// Each timer has an argument that `on_close` frees, as the manual says.
const HANDLER: &str = r#"
    #include <pthread.h>
    #include <stdio.h>
    #include <ws_handler.h>
    static int generation; /* of the arguments of timers that are not freed */
    static void on_timer(ws_conn conn, void *arg)
    {
        if ((int)(size_t)arg != generation)
            ws_log_conn(conn, WS_LOG_ERROR, "a timer after on_close");
    }
    static void of_worker(ws_conn conn, void *arg)
    {
        (void)conn, (void)arg;
        ws_log(WS_LOG_INFO, "a timer of the worker");
    }
    static void *look(void *conn)
    {
        return (void *)ws_buffered((ws_conn)(size_t)conn);
    }
    static int32_t on_open(ws_conn conn)
    {
        void *buffered = NULL;
        pthread_t thread;
        if (!ws_is_resumed(conn))
            return WS_OK;
        if (pthread_create(&thread, NULL, look, (void *)(size_t)conn) == 0)
            pthread_join(thread, &buffered);
        ws_log_conn(conn, WS_LOG_INFO, "resumed: %zu waiting, %zu for threads", ws_buffered(conn), (size_t)buffered);
        return WS_OK;
    }
    static void fill(ws_conn conn, void *arg)
    {
        static const char message[1000];
        (void)arg;
        if (ws_buffered(conn) > 0)
            ws_log_conn(conn, WS_LOG_INFO, "filled");
        else if (ws_send(conn, WS_BINARY, message, sizeof message) == WS_OK)
            ws_set_timer(conn, 1, fill, NULL);
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        ws_bytes text = {msg->data, msg->size};
        if (ws_bytes_equal(text, "fill")) {
            fill(conn, NULL);
        } else if (ws_bytes_equal(text, "timer")) {
            ws_set_timer(0, 300, of_worker, NULL);
        } else if (ws_bytes_equal(text, "pause")) {
            ws_set_interval(conn, 300, on_timer, (void *)(size_t)generation);
            ws_send_text(conn, "paused");
            ws_pause(conn);
        } else {
            ws_send(conn, msg->type, msg->data, msg->size);
        }
    }
    static void on_close(ws_conn conn, uint32_t by, uint32_t code)
    {
        (void)conn, (void)by, (void)code;
        generation++;
    }
    WS_HANDLER(.name = "kept", .on_open = on_open, .on_message = on_message, .on_close = on_close);
"#;

/// Lets no descriptors be sent to another process, as when too many are on their way (unix(7), ETOOMANYREFS).
const NOTHING_IS_SENT: &str = r#"
    #define _GNU_SOURCE
    #include <errno.h>
    #include <sys/socket.h>
    ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
    {
        (void)fd, (void)message, (void)flags;
        errno = ETOOMANYREFS;
        return -1;
    }
"#;

/// A server on a Unix socket, which takes a message as a whole or not at all, and a connection to it.
fn serve() -> (Server, Dir, Raw<UnixStream>) {
    let (dir, tools) = (Dir::new(), Dir::new());
    dir.handler("kept", HANDLER);
    let (socket, log) = (dir.path().join("socket"), dir.path().join("log"));
    let mut command = wshd();
    command.env("LD_PRELOAD", tools.handler("nothing", NOTHING_IS_SENT)).args(["--workers", "1", "-H"]);
    command.arg(format!("unix:{}", socket.display())).arg("--log-file").arg(&log);
    command.arg("--websock-handlers").arg(dir.path());
    let server = Server::launch(command, log).when_ready();
    let mut raw = Raw::over(client::unix(socket));
    raw.upgrade("/kept", "");
    (server, dir, raw)
}

/// A reload, after which the connection has gone on in its worker.
fn reload(server: &Server, dir: &Dir) {
    static VERSION: AtomicU32 = AtomicU32::new(0);
    let version = VERSION.fetch_add(1, Ordering::Relaxed);
    let next = dir.handler("next", &format!("{HANDLER}\nint version_{version};"));
    std::fs::rename(next, dir.path().join("kept_wsh.so")).unwrap();
    server.signal(Signal::SIGHUP);
    server.says("resumed: ");
}

#[test]
fn neither_its_timers_nor_its_pause_are_left() {
    let (mut server, dir, mut raw) = serve();
    assert_eq!(raw.ask("pause"), "paused");
    reload(&server, &dir);
    assert_eq!(raw.ask("still"), "still");
    // Any that is left comes before one as long as that, which is set now.
    raw.text("timer");
    server.says("a timer of the worker");
    assert!(!server.log().contains("a timer after on_close"), "{}", server.log());
    drop(raw);
    server.stop();
}

#[test]
fn what_waits_to_be_sent_is_known_to_threads() {
    let (mut server, dir, mut raw) = serve();
    raw.text("fill");
    server.says("filled");
    reload(&server, &dir);
    let log = server.log();
    let line = log.lines().find(|line| line.contains("resumed: ")).unwrap();
    let numbers: Vec<u64> =
        line.rsplit("resumed: ").next().unwrap().split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[0] > 0 && numbers[0] == numbers[1], "{line}");
    drop(raw);
    server.stop();
}
