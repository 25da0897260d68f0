//! Rescued connections whose slot gets no worker soon: another worker of the pool receives them.

use nix::sys::signal::Signal;

use crate::QUARANTINE_OFF;
use crate::client::Raw;
use crate::daemon::{Dir, ECHO, Server, wshd};

/// Crashes on "crash", and runs `action` when a worker starts while a file `flag` exists.
fn fragile(flag: &str, action: &str) -> String {
    format!(
        r#"
        #include <stdlib.h>
        #include <string.h>
        #include <unistd.h>
        #include <ws_handler.h>
        static int32_t start(void) {{ if (access("{flag}", F_OK) == 0) {{ {action}; }} return 0; }}
        static void on_message(ws_conn conn, const ws_message *msg)
        {{
            if (strcmp((const char *)msg->data, "crash") == 0) abort();
            ws_send(conn, msg->type, msg->data, msg->size);
        }}
        WS_HANDLER(.name = "fragile", .on_message = on_message, .on_worker_start = start);
        "#
    )
}

/// Clients whose worker crashes, and whose replacement then runs `action`.
#[track_caller]
fn orphaned(action: &str, args: &[&str]) -> (Server, Dir) {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let flag = dir.path().join("flag");
    dir.handler("fragile", &fragile(flag.to_str().unwrap(), action));
    let server = Server::start(&dir, &[&["--workers", "2"], args].concat());
    let mut clients: Vec<Raw> = (0..16).map(|_| Raw::open(&server.address(), "/echo")).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.ask("before"), "before"));
    let mut culprit = Raw::open(&server.address(), "/fragile");
    assert_eq!(culprit.ask("before"), "before");
    std::fs::write(&flag, "").unwrap();
    culprit.text("crash");
    culprit.expect_close(1011);
    // No worker comes into its slot before the clients give up.
    for client in &mut clients {
        assert_eq!(client.ask("after"), "after", "{action}");
    }
    (server, dir)
}

#[test]
fn another_worker_receives_the_connections_of_a_slot_whose_worker_does_not_start() {
    for action in ["for (;;) pause()", "abort()", "_exit(3)"] {
        let (server, _dir) = orphaned(action, &QUARANTINE_OFF);
        server.signal(Signal::SIGQUIT);
    }
}

/// Keeps 4 KiB for each connection, and is slow to start while a file `flag` exists.
fn heavy(flag: &str) -> String {
    fragile(flag, "sleep(6)").replace(
        "ws_send(conn, msg",
        "static const char state[WS_STATE_MAX]; ws_set_state(conn, state, sizeof state); ws_send(conn, msg",
    )
}

/// Sets send buffers to the defaults of an ordinary user (socket(7), `wmem_max`).
pub const SMALL_BUFFERS: &str = r#"
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <sys/socket.h>
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
    {
        int (*real)(int, int, int, const void *, socklen_t), small = 212992;
        *(void **)&real = dlsym(RTLD_NEXT, "setsockopt");
        if (level == SOL_SOCKET && (name == SO_SNDBUFFORCE || name == SO_SNDBUF))
            return real(fd, level, SO_SNDBUF, &small, sizeof small);
        return real(fd, level, name, value, size);
    }
"#;

#[test]
#[ignore = "takes ten seconds and 1,200 connections"]
fn a_rescue_waits_for_as_long_as_the_only_replacement_starts() {
    let (dir, tools) = (Dir::new(), Dir::new());
    let [flag, log] = ["flag", "log"].map(|name| tools.path().join(name));
    dir.handler("heavy", &heavy(flag.to_str().unwrap()));
    let mut command = wshd();
    command.env("LD_PRELOAD", tools.handler("small", SMALL_BUFFERS)).args(["--port", "0", "--workers", "1"]);
    command.args(["-o", "ping_interval=0"]); // 1,200 questions can take long
    command.args(QUARANTINE_OFF).arg("--log-file").arg(&log).arg("--websock-handlers").arg(dir.path());
    let server = Server::launch(command, log).when_ready();
    // More than the inbox takes.
    let mut clients: Vec<Raw> = (0..1200).map(|_| Raw::open(&server.address(), "/heavy")).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.ask("before"), "before"));
    std::fs::write(&flag, "").unwrap();
    let mut culprit = clients.pop().unwrap();
    culprit.text("crash");
    culprit.expect_close(1011);
    clients.iter_mut().for_each(|client| assert_eq!(client.ask("after"), "after"));
    server.signal(Signal::SIGTERM);
}
