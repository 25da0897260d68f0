//! Connections that move in normal operation: worker limits, rebalancing, pools.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::client::{Raw, TEXT, UPGRADE, ask, connect, frame};
use crate::crowd::{Crowd, Habits, SMALL_TALK};
use crate::daemon::{Dir, ECHO, Server, until, wshd};
use crate::orphans::SMALL_BUFFERS;
use crate::{crash, fixtures, logged, serve, stop};

/// Connections of each worker, from its open sockets; listening and unconnected ones are not counted.
fn loads(server: &Server, port: &str) -> Vec<usize> {
    let port = format!(":{:04X}", port.parse::<u16>().unwrap());
    let established = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 9 && fields[1].ends_with(&port) && fields[3] == "01"
    };
    let tcp = fs::read_to_string("/proc/net/tcp").unwrap();
    let inodes: Vec<String> = tcp
        .lines()
        .filter(established)
        .map(|line| format!("socket:[{}]", line.split_whitespace().nth(9).unwrap()))
        .collect();
    let has = |pid: i32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        links.filter(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str())).count()
    };
    server.workers().into_iter().map(has).collect()
}

/// Whether two workers share so many connections.
pub fn are_shared(server: &Server, count: usize) -> bool {
    let address = server.address();
    match loads(server, address.rsplit(':').next().unwrap())[..] {
        [one, other] => one + other == count && one.max(other) * 10 <= one.min(other) * 11 + 10,
        _ => false,
    }
}

fn port_of(server: &Server) -> &str {
    let address = server.ready.split([',', ' ']).nth(3).unwrap();
    address.rsplit(':').next().unwrap()
}

#[test]
fn a_worker_at_its_limit_is_replaced_and_no_client_is_disconnected() {
    let deflate = Habits { deflate: true, ..SMALL_TALK };
    let (mut server, _dir) = serve(&["echo"], &["--workers", "2", "-o", "worker_max_messages=2000"]);
    let crowd = Crowd::gather(&server.address(), "/echo", 200, deflate);
    until("both workers have been replaced twice", || {
        crowd.served();
        logged(&server, "it has received") >= 4
    });
    assert_eq!(crowd.served().clients, 200);
    assert_eq!(crowd.ends(), []);
    drop(crowd);
    stop(&mut server);
}

#[test]
fn the_state_of_a_handler_moves_to_the_next_process() {
    let (mut server, _dir) = serve(&["everything"], &["-o", "worker_max_age=500ms"]);
    let mut client = connect(&server.address(), "/everything");
    assert_eq!(ask(&mut client, "set_state seven"), "set_state: 0");
    let first = server.worker();
    until("it has moved", || ask(&mut client, "is_resumed") == "is_resumed: 1");
    assert_eq!(ask(&mut client, "state"), "state: \"seven\"");
    until("the first process has left", || !server.workers().contains(&first));
    client.close(None).unwrap();
    server.stop();
}

#[test]
fn all_connections_are_closed_when_the_server_stops_during_a_replacement() {
    for count in [1, 40] {
        let args = ["-o", "worker_max_messages=3", "-o", "stop_timeout=20s", "-o", "drain_timeout=60s"];
        let (mut server, _dir) = serve(&["echo"], &args);
        let mut idle: Vec<Raw> = (0..count).map(|_| Raw::open(&server.address(), "/echo")).collect();
        // A connection with an incomplete message does not move.
        let mut torn = Raw::open(&server.address(), "/echo");
        let whole = crate::client::frame(crate::client::TEXT, b"in two halves");
        torn.send(&whole[..9]);
        let first = server.worker();
        for _ in 0..5 {
            assert_eq!(idle[0].ask("hello"), "hello");
        }
        until("the others have moved", || loads(&server, port_of(&server)) == [1, count]);
        assert_eq!(idle[0].ask("hello"), "hello");
        server.signal(Signal::SIGTERM);
        for client in idle.iter_mut().chain([&mut torn]) {
            client.expect_close(1001);
            client.frame(crate::client::CLOSE, &crate::client::close_payload(1001, ""));
            client.expect_end();
        }
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        assert!(!crate::daemon::is_alive(first));
        assert_eq!(logged(&server, "; sending SIG"), 0, "{}", server.log());
    }
}

#[test]
fn connections_in_transit_to_a_worker_that_stops_are_closed() {
    // The old worker is stopped while it moves connections, so that its replacement is told to exit before it.
    let args = ["-o", "worker_max_messages=3", "-o", "stop_timeout=20s", "-o", "drain_timeout=60s"];
    let (mut server, _dir) = serve(&["echo"], &args);
    let mut idle: Vec<Raw> = (0..10).map(|_| Raw::open(&server.address(), "/echo")).collect();
    let mut torn = Raw::open(&server.address(), "/echo");
    let whole = crate::client::frame(crate::client::TEXT, b"in two halves");
    torn.send(&whole[..9]);
    let first = Pid::from_raw(server.worker());
    for _ in 0..5 {
        assert_eq!(idle[0].ask("hello"), "hello");
    }
    until("the others have moved", || loads(&server, port_of(&server)) == [1, 10]);
    kill(first, Signal::SIGSTOP).unwrap();
    torn.send(&whole[9..]); // now it can move
    server.signal(Signal::SIGTERM);
    for client in &mut idle {
        client.expect_close(1001);
        client.frame(crate::client::CLOSE, &crate::client::close_payload(1001, ""));
        client.expect_end();
    }
    kill(first, Signal::SIGCONT).unwrap();
    // Either process may have it, and it may have answered before.
    let mut last = torn.next().unwrap();
    if last.first == crate::client::TEXT {
        last = torn.next().unwrap();
    }
    assert_eq!((last.first, &last.payload[..2]), (crate::client::CLOSE, &1001_u16.to_be_bytes()[..]));
    torn.frame(crate::client::CLOSE, &crate::client::close_payload(1001, ""));
    torn.expect_end();
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert_eq!(logged(&server, "; sending SIG"), 0, "{}", server.log());
}

#[test]
fn a_blocking_handler_gets_draining_when_its_worker_is_replaced() {
    // The loop of the example ends with WS_E_DRAINING; the new worker continues.
    let (mut server, _dir) = serve(&["echo_blocking"], &["-o", "worker_max_messages=1"]);
    let mut raw = Raw::open(&server.address(), "/echo_blocking");
    assert_eq!(raw.ask("hello"), "hello");
    raw.expect_close(1012);
    raw.frame(crate::client::CLOSE, &crate::client::close_payload(1012, ""));
    raw.expect_end();
    let mut again = Raw::open(&server.address(), "/echo_blocking");
    assert_eq!(again.ask("hello"), "hello");
    drop(again);
    stop(&mut server);
}

#[test]
fn a_new_worker_gets_its_share() {
    let (mut server, _dir) = serve(&["echo"], &["--workers", "2"]);
    let address = server.address();
    let crowd = Crowd::gather(&address, "/echo", 200, SMALL_TALK);
    until("they are shared", || are_shared(&server, 200));
    let victim = server.workers()[0];
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    until("those of the dead worker have ended", || crowd.served().clients < 150);
    let left = crowd.served().clients;
    until("the others are shared", || are_shared(&server, left));
    assert_eq!(crowd.served().clients, left, "moving ends nobody");
    assert!(crowd.ends().len() + left == 200);
    drop(crowd);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_pool_has_its_own_workers_and_crashes() {
    let config = tempfile::NamedTempFile::new().unwrap();
    let text = "[handler.\"/crash\"]\nisolation = \"pool\"\npool = \"fragile\"\n\
                [pool.fragile]\nworkers = 1\nmax_files = 200\nnice = 3\n";
    fs::write(config.path(), text).unwrap();
    let (mut server, _dir) =
        serve(&["crash", "echo"], &["--workers", "2", "--config", config.path().to_str().unwrap()]);
    let title = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let of_pool = |name: &str| -> Vec<i32> {
        server.workers().into_iter().filter(|pid| title(*pid).contains(&format!("worker {name}/"))).collect()
    };
    let (default, fragile) = (of_pool("default"), of_pool("fragile"));
    assert_eq!((default.len(), fragile.len()), (2, 1));
    let limits = fs::read_to_string(format!("/proc/{}/limits", fragile[0])).unwrap();
    assert!(
        limits.lines().any(|line| line.starts_with("Max open files") && line.contains(" 200 ")),
        "{limits}"
    );
    let crowd = Crowd::gather(&server.address(), "/echo", 50, SMALL_TALK);
    // In one piece, in two, and with the first message immediately after the request.
    let mut pieces = Raw::connect(&server.address());
    pieces.send(b"GET /crash HTTP/1.1\r\nHost: lo");
    crowd.served();
    pieces.send(format!("calhost\r\n{}\r\n", crate::client::UPGRADE).as_bytes());
    pieces.send(&crate::client::frame(0x81, b"pipelined"));
    assert!(pieces.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(pieces.next_text(), "pipelined");
    crash(&server, "/crash", "null");
    crash(&server, "/crash", "abort");
    pieces.text("still there");
    assert_eq!(pieces.next_text(), "still there");
    assert_eq!(crowd.served().clients, 50);
    assert_eq!(of_pool("default"), default, "no other worker has noticed");
    drop(crowd);
    drop(pieces);
    stop(&mut server);
}

#[test]
fn a_pool_runs_as_its_own_user() {
    if !geteuid().is_root() {
        eprintln!("not root: skipped");
        return;
    }
    let config = tempfile::NamedTempFile::new().unwrap();
    let text = "[handler.\"/echo\"]\nisolation = \"pool\"\n[pool.echo]\nuser = 65534\ngroup = 65534\n";
    fs::write(config.path(), text).unwrap();
    let dir = crate::Dir::new();
    crate::fixtures::add_handler(dir.path(), "echo", "echo");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), open).unwrap();
    let mut server = Server::start(&dir, &["--workers", "1", "--config", config.path().to_str().unwrap()]);
    let mut client = connect(&server.address(), "/echo");
    assert_eq!(ask(&mut client, "hello"), "hello");
    let status = |pid: i32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let nobody =
        server.workers().into_iter().map(status).find(|status| status.contains("Uid:\t65534\t65534"));
    let nobody = nobody.expect("a worker that runs as that user");
    for line in ["Gid:\t65534\t65534\t65534\t65534", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(nobody.contains(line), "{line} is not in {nobody}");
    }
    assert!(nobody.lines().any(|line| line.trim_end() == "Groups:\t65534"), "{nobody}");
    client.close(None).unwrap();
    server.stop();
}

#[test]
fn a_fork_bomb_in_a_pool_reaches_its_limit_without_effect_on_others() {
    const LIMIT: usize = 40;
    if !geteuid().is_root() {
        eprintln!("not root: skipped");
        return;
    }
    // An unused user, since the kernel counts by user.
    let user = 4_000_100_000 + std::process::id();
    let config = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "[handler.\"/fork_bomb\"]\nisolation = \"pool\"\n\
         [pool.fork_bomb]\nuser = {user}\ngroup = {user}\nmax_processes = {LIMIT}\n"
    );
    fs::write(config.path(), text).unwrap();
    let dir = crate::Dir::new();
    for name in ["echo", "fork_bomb"] {
        crate::fixtures::add_handler(dir.path(), name, name);
    }
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), open).unwrap();
    let mut server = Server::start(&dir, &["--workers", "2", "--config", config.path().to_str().unwrap()]);
    let crowd = Crowd::gather(&server.address(), "/echo", 50, SMALL_TALK);
    let mut bomb = connect(&server.address(), "/fork_bomb");
    let workers = server.workers().len();
    let children: usize = ask(&mut bomb, "bomb").parse().unwrap();
    // Its worker has some threads too.
    assert!((LIMIT / 2..LIMIT).contains(&children), "{children} children");
    assert_eq!((crowd.served().clients, crowd.ends()), (50, vec![]));
    assert_eq!(ask(&mut bomb, "defuse"), "0");
    assert_eq!(ask(&mut bomb, "still here"), "still here");
    bomb.close(None).unwrap();
    drop(crowd);
    // They have the title of their worker until they have ended.
    until("its children have ended", || server.workers().len() == workers);
    server.stop();
}

/// Keeps 4 KiB for each connection, and how often it was told that it moves. Answers with that, and with whether it has
/// moved here. A process that begins with one that has moved makes a file `busy`, and is busy while that exists.
fn counts_moves(busy: &str) -> String {
    format!(
        r#"
        #include <stdio.h>
        #include <string.h>
        #include <fcntl.h>
        #include <unistd.h>
        #include <ws_handler.h>
        static int moves(ws_conn conn) {{ ws_bytes state = ws_state(conn); return state.size ? state.data[0] : 0; }}
        static int32_t on_open(ws_conn conn)
        {{
            static int opened;
            if (!opened++ && ws_is_resumed(conn)) {{
                close(open("{busy}", O_CREAT | O_WRONLY, 0600));
                while (access("{busy}", F_OK) == 0) usleep(1000);
            }}
            return 0;
        }}
        static void on_close(ws_conn conn, uint32_t by, uint32_t code)
        {{
            char state[WS_STATE_MAX] = {{(char)(moves(conn) + 1)}};
            (void)code;
            if (by == WS_BY_MOVE) ws_set_state(conn, state, sizeof state);
        }}
        static void on_message(ws_conn conn, const ws_message *msg)
        {{
            char text[32];
            (void)msg;
            snprintf(text, sizeof text, "%d %u", moves(conn), ws_is_resumed(conn));
            ws_send_text(conn, text);
        }}
        WS_HANDLER(.name = "moves", .on_open = on_open, .on_close = on_close, .on_message = on_message);
        "#
    )
}

#[test]
fn a_connection_that_waits_for_room_in_an_inbox_does_not_notice() {
    let (dir, tools) = (Dir::new(), Dir::new());
    let [busy, log] = ["busy", "log"].map(|name| tools.path().join(name));
    dir.handler("moves", &counts_moves(busy.to_str().unwrap()));
    let mut command = wshd();
    command.env("LD_PRELOAD", tools.handler("small", SMALL_BUFFERS)).args(["--port", "0", "--workers", "1"]);
    command.args(["-o", "drain_timeout=500ms"]);
    command.arg("--log-file").arg(&log).arg("--websock-handlers").arg(dir.path());
    let mut server = Server::launch(command, log).when_ready();
    // More than the inbox takes.
    let mut clients: Vec<Raw> = (0..300).map(|_| Raw::open(&server.address(), "/moves")).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.ask("before"), "0 0"));
    let mut half = Raw::connect(&server.address());
    half.send(b"GET /moves HTTP/1.1\r\nHost: local");
    let last = clients.last_mut().unwrap();
    assert_eq!(last.ask("the others were read before"), "0 0");
    dir.handler("echo", ECHO); // so that the worker is replaced
    server.signal(Signal::SIGHUP);
    until("the new worker is busy", || busy.exists());
    // Longer than connections have that cannot move.
    std::thread::sleep(std::time::Duration::from_millis(700));
    half.send(format!("host\r\n{UPGRADE}\r\n").as_bytes());
    assert!(half.head().starts_with("HTTP/1.1 101 "));
    assert_eq!([half.ask("still here"), last.ask("still here")], ["0 0", "0 0"]);
    fs::remove_file(&busy).unwrap();
    until("the last one has moved", || last.ask("and now") == "1 1");
    clients.iter_mut().chain([&mut half]).for_each(|client| assert_eq!(client.ask("after"), "1 1"));
    drop((clients, half));
    stop(&mut server);
}

#[test]
fn connections_that_a_reload_leaves_no_room_for_are_told_so() {
    let dir = Dir::new();
    fixtures::add_handler(dir.path(), "echo", "echo");
    let file = dir.path().join("wshd.conf");
    let limit = |most: u32| fs::write(&file, format!("max_connections = {most}\n")).unwrap();
    limit(100);
    let mut server = Server::start(&dir, &["--workers", "1", "--config", file.to_str().unwrap()]);
    let mut clients: Vec<Raw> = (0..30).map(|_| Raw::open(&server.address(), "/echo")).collect();
    limit(20);
    server.signal(Signal::SIGHUP);
    until("those without room have left", || logged(&server, "finds no room here") == 10);
    clients.iter_mut().for_each(|client| client.text("still"));
    let answers: Vec<_> = clients.iter_mut().map(|client| client.next().unwrap()).collect();
    let count = |payload: &[u8]| answers.iter().filter(|answer| answer.payload == payload).count();
    assert_eq!((count(b"still"), count(&1012_u16.to_be_bytes())), (20, 10));
    drop(clients);
    stop(&mut server);
}

#[test]
fn a_connection_in_the_middle_of_a_message_has_all_of_the_time_to_end_it() {
    let args = ["-o", "worker_max_messages=20", "-o", "drain_timeout=24s"];
    let (mut server, _dir) = serve(&["echo"], &args);
    let whole = frame(TEXT, b"in two halves");
    let mut busy: Vec<Raw> = (0..48).map(|_| Raw::open(&server.address(), "/echo")).collect();
    busy.iter_mut().for_each(|client| client.send(&whole[..9]));
    let old = server.worker();
    let mut idle = Raw::open(&server.address(), "/echo");
    until("the worker is replaced", || {
        assert_eq!(idle.ask("one more"), "one more");
        server.workers().len() == 2
    });
    // Longer than the first ones would have if they could not move at all.
    std::thread::sleep(std::time::Duration::from_millis(1200));
    for client in &mut busy {
        client.send(&whole[9..]);
        assert_eq!(client.next_text(), "in two halves");
    }
    until("all have moved", || !server.workers().contains(&old));
    busy.iter_mut().for_each(|client| assert_eq!(client.ask("still"), "still"));
    drop((busy, idle));
    stop(&mut server);
}
