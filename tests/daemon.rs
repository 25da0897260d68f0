//! The server as a daemon: passed listening sockets, notifications of the service manager, running
//! in the background, the pid file, and the privileges of workers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use client::Raw;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use server::{Dir, ECHO, Server, TIMEOUT, children, is_alive, output_of, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_wshd");

/// Answers `NAME` with the value of that variable, `bind PORT` with the result of bind(2), `file PATH` with the
/// beginning of the file; crashes at `crash`.
const PROBE: &str = r#"
    #include <errno.h>
    #include <netinet/in.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <unistd.h>
    #include <ws_handler.h>
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        char text[200] = "", reply[200] = "none";
        memcpy(text, msg->data, msg->size < 199 ? msg->size : 199);
        if (strncmp(text, "bind ", 5) == 0) {
            struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(text + 5)) };
            int fd = socket(AF_INET, SOCK_STREAM, 0);
            int result = bind(fd, (struct sockaddr *)&at, sizeof at);
            snprintf(reply, sizeof reply, "%s", result == 0 ? "bound" : strerror(errno));
            close(fd);
        } else if (strncmp(text, "file ", 5) == 0) {
            FILE *file = fopen(text + 5, "r");
            if (file == NULL || fgets(reply, sizeof reply, file) == NULL)
                snprintf(reply, sizeof reply, "%s", strerror(errno));
            if (file != NULL)
                fclose(file);
        } else if (strcmp(text, "crash") == 0) {
            abort();
        } else if (getenv(text) != NULL) {
            snprintf(reply, sizeof reply, "%s", getenv(text));
        }
        ws_send(conn, WS_TEXT, reply, strlen(reply));
    }
    WS_HANDLER(.name = "probe", .on_message = on_message);
"#;

/// A directory with the handlers `echo` and `probe` that everybody may read.
fn dir() -> Dir {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    dir.handler("probe", PROBE);
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

/// Starts the server like a service manager: with LISTEN_PID, LISTEN_FDS, and descriptors from 3 on. Descriptor 3 is
/// `first`, descriptor 4 `second`; 5 is open, too. Standard error goes to a file.
fn passed(dir: &Dir, count: u32, first: OwnedFd, second: Option<OwnedFd>, args: &[&str]) -> Command {
    const SCRIPT: &str =
        r#"exec 3<&0 4<&2 5<&2 0</dev/null 2>"$1"; shift; LISTEN_PID=${WRONG_PID:-$$} exec "$@""#;
    let log = dir.path().join("log");
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "sh"]).arg(&log).arg(PROGRAM).arg("-w").arg(dir.path()).args(args);
    command.env("LISTEN_FDS", count.to_string()).stdin(first);
    command.stderr(second.map_or_else(Stdio::null, Stdio::from));
    command
}

fn launch(dir: &Dir, command: Command) -> Server {
    Server::launch(command, dir.path().join("log")).when_ready()
}

/// A listening socket and its address.
fn listening() -> (OwnedFd, String) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket.into(), address)
}

fn over_unix(path: &Path, resource: &str) -> Raw<UnixStream> {
    let mut raw = Raw::over(client::unix(path));
    raw.upgrade(resource, "");
    raw
}

#[test]
fn passed_sockets_are_used() {
    let dir = dir();
    let (tcp, address) = listening();
    let path = dir.path().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    unix.set_nonblocking(true).unwrap(); // workers accept from it nevertheless
    // Listening on this address would fail: 192.0.2.0/24 is reserved (RFC 5737).
    let mut command = passed(&dir, 2, tcp, Some(unix.into()), &["-H", "192.0.2.1", "--workers", "2"]);
    command.env("LISTEN_FDNAMES", "web:local").env("WATCHDOG_USEC", "1000000").env("INHERITED", "yes");
    let mut server = launch(&dir, command);
    let expected = format!("wshd: ready on {address} and unix:{}, 2 workers, ", path.display());
    assert!(server.ready.starts_with(&expected), "{}", server.ready);
    let mut raw = Raw::open(&address, "/probe");
    assert_eq!(raw.ask("INHERITED"), "yes");
    for variable in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC"] {
        assert_eq!(raw.ask(variable), "none", "{variable} is for the supervisor");
    }
    let mut local = over_unix(&path, "/echo");
    assert_eq!(local.ask("hello"), "hello");
    // Handshakes of both sockets are completed.
    for _ in 0..8 {
        assert_eq!(over_unix(&path, "/echo").ask("x"), "x");
        assert_eq!(Raw::open(&address, "/echo").ask("x"), "x");
    }
    drop((raw, local));
    // No other address is bound.
    server.signal(Signal::SIGHUP);
    server.says("reload: done");
    assert_eq!(Raw::open(&address, "/echo").ask("x"), "x");
    server.stop();
    assert!(path.exists(), "the file is whose socket it is");
}

#[test]
fn other_inherited_descriptors_are_closed() {
    let dir = dir();
    let (first, address) = listening();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut server = launch(&dir, passed(&dir, 1, first, Some(theirs.into()), &[]));
    assert!(server.ready.contains(&address), "{}", server.ready);
    // 4 and 5 were the other ends.
    assert_eq!(ours.read(&mut [0]).expect("nobody holds the other end"), 0);
    server.stop();
}

#[test]
fn sockets_for_another_process_are_not_used() {
    let dir = dir();
    let (first, address) = listening();
    let mut command = passed(&dir, 1, first, None, &["-p", "0"]);
    command.env("WRONG_PID", "1");
    let mut server = launch(&dir, command);
    assert!(!server.ready.contains(&address), "{}", server.ready);
    // A child that another test has forked holds it until it executes a program.
    until("nobody holds it any more", || std::net::TcpStream::connect(&address).is_err());
    server.stop();
}

#[test]
fn a_descriptor_that_does_not_listen_is_named_in_the_error() {
    let fails = |count, first: OwnedFd, second: Option<OwnedFd>, names: &str, expected: &str| {
        let dir = dir();
        let mut command = passed(&dir, count, first, second, &[]);
        let output = output_of(command.env("LISTEN_FDNAMES", names)).unwrap();
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(output.status.code(), Some(4), "{log}");
        assert!(log.contains(expected), "{log}");
    };
    let expected = "expected a stream socket that listens";
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let named = format!("cannot listen on descriptor 4 (web) of LISTEN_FDS: {expected}");
    fails(2, listening().0, Some(file), "x:web", &named);
    let datagram: OwnedFd = UnixDatagram::unbound().unwrap().into();
    let unnamed = format!("cannot listen on descriptor 3 of LISTEN_FDS: {expected}");
    fails(1, datagram, None, "", &unnamed);
    let connected: OwnedFd = UnixStream::pair().unwrap().0.into();
    fails(1, connected, None, "a", &format!("descriptor 3 (a) of LISTEN_FDS: {expected}"));
    fails(4, listening().0, None, "", "descriptor 6 of LISTEN_FDS: Bad file descriptor");
    fails(5000, listening().0, None, "", "LISTEN_FDS=5000: expected a number up to 1024");
}

/// The next message to the service manager, split into assignments.
fn heard(manager: &UnixDatagram) -> BTreeMap<String, String> {
    let mut buffer = [0; 4096];
    let size = manager.recv(&mut buffer).expect("the service manager is told something");
    let text = std::str::from_utf8(&buffer[..size]).unwrap();
    let pairs = text.lines().map(|line| line.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn the_service_manager_is_notified() {
    let dir = dir();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["-p", "0", "-l"]).arg(dir.path().join("log")).arg("-w").arg(dir.path());
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut server = launch(&dir, command);
    let mut pings = 0;
    let ready = loop {
        let message = heard(&manager);
        if !message.contains_key("WATCHDOG") {
            break message;
        }
        pings += 1;
    };
    assert_eq!(ready["READY"], "1");
    assert_eq!(ready["MAINPID"], server.pid().to_string());
    assert_eq!(format!("wshd: {}\n", ready["STATUS"]), server.ready);
    while pings < 3 {
        assert_eq!(heard(&manager), BTreeMap::from([("WATCHDOG".to_owned(), "1".to_owned())]));
        pings += 1;
    }
    let mut raw = Raw::open(&server.address(), "/probe");
    assert_eq!((raw.ask("NOTIFY_SOCKET"), raw.ask("WATCHDOG_USEC")), ("none".to_owned(), "none".to_owned()));
    drop(raw);
    let next = || {
        std::iter::repeat_with(|| heard(&manager)).find(|message| !message.contains_key("WATCHDOG")).unwrap()
    };
    server.signal(Signal::SIGHUP);
    let reloading = next();
    assert_eq!(reloading["RELOADING"], "1");
    assert!(reloading["MONOTONIC_USEC"].parse::<u64>().unwrap() > 0, "as Type=notify-reload wants it");
    assert_eq!(next()["READY"], "1");
    server.signal(Signal::SIGTERM);
    assert_eq!(next()["STOPPING"], "1");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn an_upgrade_keeps_sockets_and_notification() {
    let dir = dir();
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let (socket, address) = listening();
    let pid_file = dir.path().join("pid");
    let args = ["--workers", "1", "--pid-file", pid_file.to_str().unwrap()];
    let mut command = passed(&dir, 1, socket, None, &args);
    command.env("NOTIFY_SOCKET", dir.path().join("notify"));
    let mut old = launch(&dir, command);
    assert_eq!(heard(&manager)["MAINPID"], old.pid().to_string());
    let mut raw = Raw::open(&address, "/echo");

    old.signal(Signal::SIGUSR2);
    let ready = heard(&manager);
    let new = Background(ready["MAINPID"].parse().unwrap());
    assert_eq!((&*ready["READY"], new.0 != old.pid()), ("1", true), "which the manager believes after this:");
    assert_eq!(heard(&manager), BTreeMap::from([("MAINPID".to_owned(), new.0.to_string())]));
    assert_eq!(old.wait().code(), Some(0), "{}", old.log());
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), format!("{}\n", new.0));
    assert_eq!(raw.ask("moved"), "moved");
    let mut other = Raw::open(&address, "/probe");
    assert_eq!(other.ask("NOTIFY_SOCKET"), "none");
    drop((raw, other));
    new.stop();
    assert!(!pid_file.exists());
}

#[test]
fn an_upgrade_that_fails_changes_nothing() {
    let dir = dir();
    let (pid_file, link) = (dir.path().join("pid"), dir.path().join("wshd"));
    std::os::unix::fs::symlink(PROGRAM, &link).unwrap();
    let mut command = Command::new(&link);
    command.args(["-p", "0", "-l"]).arg(dir.path().join("log")).arg("-w").arg(dir.path());
    command.arg("--pid-file").arg(&pid_file);
    let mut server = launch(&dir, command);
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/bin/false", &link).unwrap();
    server.signal(Signal::SIGUSR2);
    server.says("upgrade: failed");
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), format!("{}\n", server.pid()));
    server.stop();
    assert!(!pid_file.exists());
}

/// A server in the background, found by its pid file; stopped at the end of the test.
struct Background(i32);

impl Background {
    fn of(pid_file: &Path) -> Self {
        Self(std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap())
    }

    /// Stops it, and waits.
    fn stop(&self) {
        kill(Pid::from_raw(self.0), Signal::SIGTERM).unwrap();
        until("the server in the background ends", || !is_alive(self.0));
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if is_alive(self.0) {
            let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
        }
    }
}

/// Runs `wshd --daemon` until it has returned and all writers of its output have closed it.
fn daemonize(dir: &Dir, args: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(["--daemon", "--workers", "2", "-l"]).arg(dir.path().join("log"));
    command.arg("-w").arg(dir.path()).args(args).stdin(Stdio::null());
    output_of(&mut command).expect("it returns, and nobody holds its output")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Fields of /proc/PID/stat: parent, process group, session and terminal.
fn stat(pid: i32) -> [i32; 4] {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ').skip(1);
    fields.take(4).map(|field| field.parse().unwrap()).collect::<Vec<_>>().try_into().unwrap()
}

#[test]
fn in_the_background() {
    let dir = dir();
    let pid_file = dir.path().join("pid");
    let output = daemonize(&dir, &["-p", "0", "--pid-file", pid_file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let ready = text(&output.stdout);
    let daemon = Background::of(&pid_file);
    let address = ready.strip_prefix("wshd: ready on ").unwrap().split(',').next().unwrap();
    assert_eq!(Raw::open(address, "/echo").ask("hello"), "hello");
    let [_, group, session, terminal] = stat(daemon.0);
    assert!(group == session && session != daemon.0, "in a session that it does not lead");
    assert_eq!((terminal, is_alive(session)), (0, false), "and that has no terminal, nor will");
    let link = |pid: i32, name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    let title = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut workers = children(daemon.0);
    workers.retain(|pid| title(*pid).starts_with("wshd: worker "));
    assert_eq!(workers.len(), 2);
    for pid in workers.into_iter().chain([daemon.0]) {
        assert_eq!(link(pid, "cwd"), Path::new("/"));
        for stream in ["fd/0", "fd/1", "fd/2"] {
            assert_eq!(link(pid, stream), Path::new("/dev/null"), "{stream} of {pid}");
        }
    }
    daemon.stop();
    assert!(!pid_file.exists());
}

#[test]
fn what_handlers_of_a_walled_pool_print_is_in_the_log_of_a_daemon() {
    if !geteuid().is_root() {
        return println!("skipped: pools with a user need root");
    }
    let dir = dir();
    let [pid_file, config, log] = ["pid", "w.conf", "log"].map(|name| dir.path().join(name));
    let print = "#include <stdio.h>\n__attribute__((constructor)) static void at_load(void)\n\
                 { printf(\"printed by a handler\\n\"); fflush(stdout); }\n";
    dir.handler("loud", &[print, ECHO].concat());
    let pool = "[handler.'/loud']\nisolation = 'pool'\n[pool.loud]\nuser = 4001\ngroup = 4001\n";
    std::fs::write(&config, pool).unwrap();
    let files = [&pid_file, &config].map(|path| path.to_str().unwrap());
    let output = daemonize(&dir, &["-p", "0", "--pid-file", files[0], "--config", files[1]]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let daemon = Background::of(&pid_file);
    until("it is logged", || std::fs::read_to_string(&log).unwrap().contains("printed by a handler"));
    daemon.stop();
}

#[test]
fn the_caller_gets_the_error_of_a_failed_start() {
    let dir = dir();
    let pid_file = dir.path().join("pid");
    let fails = |code: i32, args: &[&str], expected: &str| {
        let args = [args, &["--pid-file", pid_file.to_str().unwrap()]].concat();
        let output = daemonize(&dir, &args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(expected) && output.stdout.is_empty(), "{stderr}");
        let left =
            |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let left = std::fs::read_dir(dir.path()).unwrap().map(left).find(|name| name.contains("pid"));
        assert_eq!(left, None);
    };
    let (_taken, address) = listening();
    let port = address.split(':').nth(1).unwrap();
    let expected = format!("wshd: cannot listen on 127.0.0.1:{port}: Address already in use");
    fails(4, &["-p", port], &expected);
    std::fs::write(dir.path().join("bad_wsh.so"), "text").unwrap();
    fails(3, &["-p", "0", "--strict-handlers"], "wshd: a handler or alias is broken");
    fails(3, &["-p", "0", "-m", "x"], "wshd: --websock-handlers-map-file x: expected an absolute path");
    let output = daemonize(&dir, &["-p", "0", "--pid-file", "/nowhere/pid"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 0));
    assert!(text(&output.stderr).starts_with("wshd: --pid-file /nowhere/pid: No such file"), "{output:?}");
}

#[test]
fn the_caller_gets_the_error_of_the_log() {
    let dir = dir();
    let mut command = Command::new(PROGRAM);
    command.args(["--daemon", "-p", "0", "-l", "/nowhere/log", "-w"]).arg(dir.path());
    let output = output_of(&mut command).unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("wshd: --log-file /nowhere/log: No such file"), "{output:?}");
}

#[test]
fn a_pid_file_has_one_server() {
    let dir = dir();
    let pid_file = dir.path().join("pid");
    let args = ["--pid-file", pid_file.to_str().unwrap()];
    let mut first = Server::start(&dir, &args);
    until("the file is there", || pid_file.exists());
    let content = || std::fs::read_to_string(&pid_file).unwrap();
    assert_eq!(content(), format!("{}\n", first.pid()));
    assert_eq!(std::fs::metadata(&pid_file).unwrap().permissions().mode() & 0o777, 0o644);

    let second = daemonize(&dir, &[&["-p", "0"], &args[..]].concat());
    let expected = format!("--pid-file {}: another server, process {}, holds it", args[1], first.pid());
    assert_eq!(second.status.code(), Some(4));
    assert!(text(&second.stderr).contains(&expected), "{}", text(&second.stderr));
    assert_eq!(content(), format!("{}\n", first.pid()), "nothing has happened to it");

    first.signal(Signal::SIGKILL);
    first.wait();
    assert!(pid_file.exists(), "nobody could remove it");
    let mut third = Server::start(&dir, &args);
    until("the file is that of the new one", || content() == format!("{}\n", third.pid()));
    third.stop();
    assert!(!pid_file.exists());
}

/// Blocks on each message: until the file `go` is there, which it then says.
const BUSY: &str = r#"
    #include <unistd.h>
    #include <ws_handler.h>
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        ws_log_conn(conn, WS_LOG_INFO, "is busy");
        while (access(msg->data, F_OK) != 0)
            usleep(10000);
        ws_log_conn(conn, WS_LOG_INFO, "has returned");
    }
    WS_HANDLER(.name = "busy", .on_message = on_message);
"#;

/// A server whose only worker is in a handler; its address, and that of a Unix socket.
fn busy(dir: &Dir, args: &[&str]) -> (Server, String, PathBuf) {
    dir.handler("busy", BUSY);
    let socket = dir.path().join("socket");
    let host = format!("unix:{}", socket.display());
    let both = ["--workers", "1", "-H", "127.0.0.1", "-H", &host, "-o", "stop_timeout=1h"];
    let server = Server::start(dir, &[&both[..], args].concat());
    let mut raw = Raw::open(&server.address(), "/busy");
    raw.text(dir.path().join("go").to_str().unwrap());
    server.says("is busy");
    let address = server.address();
    (server, address, socket)
}

#[test]
fn connections_are_refused_as_soon_as_the_server_stops() {
    let dir = dir();
    let (mut server, address, socket) = busy(&dir, &[]);
    server.signal(Signal::SIGTERM);
    until("TCP is refused", || std::net::TcpStream::connect(&address).is_err());
    until("Unix is refused", || UnixStream::connect(&socket).is_err());
    assert!(server.child.try_wait().unwrap().is_none(), "the worker is still in the handler");
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait().code(), Some(7), "it is killed then");
}

#[test]
fn the_port_of_a_supervisor_that_was_killed_is_free() {
    let dir = dir();
    let (mut server, address, socket) = busy(&dir, &[]);
    let worker = Background(server.worker());
    server.signal(Signal::SIGKILL);
    server.wait();
    until("the port is free", || TcpListener::bind(&address).is_ok());
    until("Unix is refused", || UnixStream::connect(&socket).is_err());
    assert!(is_alive(worker.0), "the worker is still in the handler");
}

#[test]
fn sockets_that_a_new_executable_has_are_not_shut_down() {
    let dir = dir();
    let pid_file = dir.path().join("pid");
    let (mut old, address, _) = busy(&dir, &["--pid-file", pid_file.to_str().unwrap()]);
    let worker = Background(old.worker());
    old.signal(Signal::SIGUSR2);
    old.says("upgrade: the new executable serves");
    let new = Background::of(&pid_file);
    assert_ne!(new.0, old.pid());
    old.signal(Signal::SIGKILL);
    old.wait();
    std::fs::write(dir.path().join("go"), "").unwrap();
    until("the old worker is gone", || !is_alive(worker.0));
    assert_eq!(Raw::open(&address, "/echo").ask("x"), "x");
    new.stop();
}

#[test]
fn the_pid_file_exists_before_the_ready_line() {
    let dir = dir();
    let pid_file = dir.path().join("pid");
    for _ in 0..20 {
        std::fs::write(&pid_file, "1\n").unwrap(); // of a server that was killed
        let mut server = Server::start(&dir, &["--workers", "1", "--pid-file", pid_file.to_str().unwrap()]);
        assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), format!("{}\n", server.pid()));
        server.signal(Signal::SIGQUIT);
        server.wait();
        assert!(!pid_file.exists());
    }
}

/// Is slow to load, and slower to start.
const SLOW: &str = r#"
    #include <unistd.h>
    #include <ws_handler.h>
    static __attribute__((constructor)) void load(void) { sleep(2); }
    WS_HANDLER(.name = "slow");
"#;

#[test]
fn a_signal_during_the_start_leaves_nothing_behind() {
    let dir = dir();
    dir.handler("slow", &SLOW.replace("sleep(2)", "sleep(3600)"));
    let at = |name: &str| dir.path().join(name);
    let host = format!("unix:{}", at("socket").display());
    let (pid_file, control) = (at("pid"), at("control"));
    let args = ["-H", &host, "--pid-file", pid_file.to_str().unwrap()];
    let args = [&args[..], &["--control-socket", control.to_str().unwrap()]].concat();
    let is_left = |entry: &std::fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        ["socket", "control", "pid"].iter().any(|left| name.contains(left))
    };
    let nothing_is_left = || {
        let left = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap).find(is_left);
        assert!(left.is_none(), "{left:?}");
    };
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let mut server = Server::spawn(&dir, &args);
        until("it is on its way", || at("socket").exists());
        server.signal(signal);
        let status = server.wait();
        assert!(!server.log().contains("slow_wsh.so"), "it has not waited: {}", server.log());
        assert_eq!(status.signal(), Some(signal as i32), "as a program ends that does not know the signal");
        nothing_is_left();
    }
    // With --daemon the caller gets the error.
    let mut command = Command::new(PROGRAM);
    command.args(["--daemon", "-l"]).arg(at("log")).arg("-w").arg(dir.path()).args(&args);
    command.stderr(Stdio::piped()).stdout(Stdio::piped());
    let caller = command.spawn().unwrap();
    until("it is on its way", || at("socket").exists());
    let mut users = Vec::new();
    // A child that is to probe the handler has it, too, until it executes the program.
    until("the daemon alone has the log", || {
        users = users_of(&at("log"));
        users.len() == 1
    });
    let daemon = users[0];
    kill(Pid::from_raw(daemon), Signal::SIGTERM).unwrap();
    let output = caller.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("SIGTERM"), "{output:?}");
    nothing_is_left();
}

/// The processes that have a file open.
fn users_of(file: &Path) -> Vec<i32> {
    let names = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    let pids = names.filter_map(|name| name.to_str()?.parse::<i32>().ok());
    let has_it = |pid: &i32| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|link| link == file))
    };
    pids.filter(has_it).collect()
}

#[test]
fn a_reload_during_the_start_waits_until_the_server_is_ready() {
    let dir = dir();
    dir.handler("slow", SLOW);
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut command = Command::new(PROGRAM);
    let socket = dir.path().join("socket");
    command.args(["-H", &format!("unix:{}", socket.display())]);
    command.args(["--log-level", "debug", "-l"]).arg(dir.path().join("log"));
    command.arg("-w").arg(dir.path()).env("NOTIFY_SOCKET", &path);
    let server = Server::launch(command, dir.path().join("log"));
    until("it is on its way", || socket.exists());
    server.signal(Signal::SIGHUP);
    let mut server = server.when_ready();
    assert_eq!(heard(&manager).get("READY").map(String::as_str), Some("1"), "before anything else");
    assert_eq!(heard(&manager).get("RELOADING").map(String::as_str), Some("1"));
    assert_eq!(heard(&manager).get("READY").map(String::as_str), Some("1"));
    server.says("reload: done");
    server.stop();
}

/// The lines of /proc/PID/status; none of a process that is gone.
fn status(pid: i32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    lines.map(|(name, value)| (name.to_owned(), words(value))).collect()
}

/// Whether this process has the rights of root that the tests below need; prints what it lacks.
fn is_root(what: &str) -> bool {
    let can = geteuid().is_root()
        && Command::new("unshare").args(["-n", "-m", "true"]).status().is_ok_and(|status| status.success());
    if !can {
        println!("skipped: {what} needs root and unshare(1)");
    }
    can
}

/// Runs the server in new namespaces, after this script. In a new network namespace only root can bind ports below
/// 1024.
fn unshared(dir: &Dir, script: &str, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-n", "-m", "sh", "-c"]).arg(format!("set -e; {script}; exec \"$@\"")).arg("sh");
    command.arg(PROGRAM).arg("-l").arg(dir.path().join("log")).args(args);
    command
}

/// Compares the credentials of a process with those expected.
#[track_caller]
fn is_confined(pid: i32, user: u32, groups: &[u32]) {
    let status = status(pid);
    assert_eq!(status["Uid"], [user; 4].map(|id| id.to_string()).join(" "));
    assert_eq!(status["Gid"], [groups[0]; 4].map(|id| id.to_string()).join(" "));
    let mut all = groups.to_vec();
    all.sort_unstable();
    assert_eq!(status["Groups"], all.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    let mut sets = vec!["CapInh", "CapPrm", "CapEff", "CapAmb"];
    const CAP_SETPCAP: u64 = 1 << 8; // capabilities(7): needed to change the bounding set
    if u64::from_str_radix(&self::status(std::process::id() as i32)["CapEff"], 16).unwrap() & CAP_SETPCAP != 0
    {
        sets.push("CapBnd");
    }
    for set in sets {
        assert_eq!(status[set], "0".repeat(16), "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
}

#[test]
fn workers_keep_no_privileges_of_root() {
    if !is_root("giving workers another user") {
        return;
    }
    let dir = dir();
    let (socket, crashes) = (dir.path().join("socket"), dir.path().join("crashes"));
    std::fs::create_dir(&crashes).unwrap();
    std::fs::set_permissions(&crashes, PermissionsExt::from_mode(0o700)).unwrap();
    let config = dir.path().join("conf");
    let text = "[handler.'/echo']\nisolation = 'pool'\n[pool.echo]\nuser = 4001\ngroup = 4002\n";
    std::fs::write(&config, text).unwrap();
    let host = format!("unix:{}", socket.display());
    // The supervisor can bind port 80.
    let mut args = vec!["-H", "0.0.0.0", "-p", "80", "-H", &host, "--user", "nobody", "--workers", "2"];
    let crash_dir = format!("crash_dir={}", crashes.display());
    args.extend(["-w", dir.path().to_str().unwrap(), "-o", &crash_dir]);
    args.extend(["--config", config.to_str().unwrap(), "--metrics", "0.0.0.0:0"]);
    let command = unshared(&dir, "umask 0", &args);
    let mut server = launch(&dir, command);

    let supervisor = status(server.pid());
    assert_eq!(supervisor["Uid"], "0 0 0 0", "it forks, signals and reopens");
    let id = |option: &str| {
        let output = Command::new("id").args([option, "nobody"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<u32>>()
    };
    let (nobody, groups) = (id("-u")[0], id("-G"));
    let workers = children(server.pid());
    assert_eq!(workers.len(), 4, "one serves metrics");
    let (pool, default): (Vec<i32>, Vec<i32>) =
        workers.into_iter().partition(|pid| status(*pid)["Uid"].starts_with("4001 "));
    assert_eq!((pool.len(), default.len()), (1, 3));
    default.iter().for_each(|pid| is_confined(*pid, nobody, &groups));
    is_confined(pool[0], 4001, &[4002]);

    let mut raw = over_unix(&socket, "/probe");
    assert_eq!(raw.ask("bind 1023"), "Permission denied");
    assert_eq!(raw.ask("bind 1024"), "bound", "which is what the kernel gives to anybody");
    assert_eq!(raw.ask(&format!("file {}", crashes.join("x").display())), "Permission denied");
    let mut other = over_unix(&socket, "/echo");
    assert_eq!(other.ask("in the pool"), "in the pool");

    // The supervisor can still write the crash record and replace the worker.
    raw.text("crash");
    raw.expect_close(1011);
    let record = || std::fs::read_dir(&crashes).unwrap().next().map(|entry| entry.unwrap().path());
    until("there is a record", || record().is_some());
    let owner = std::fs::metadata(record().unwrap()).unwrap();
    assert_eq!((owner.uid(), owner.permissions().mode() & 0o777), (0, 0o600));
    until("the worker is replaced", || {
        let now = server.workers();
        now.len() == 3 && now.iter().all(|pid| is_alive(*pid))
    });
    until("the new one is confined as well", || {
        server.workers().iter().all(|pid| status(*pid).get("NoNewPrivs").is_some_and(|set| set == "1"))
    });
    assert_eq!(over_unix(&socket, "/probe").ask("bind 1"), "Permission denied");
    server.stop();
}

/// Like a unit with `User=` and `AmbientCapabilities=CAP_NET_BIND_SERVICE`.
#[test]
fn workers_without_root_have_no_capabilities() {
    if !is_root("giving a server another user") {
        return;
    }
    let dir = dir();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let socket = dir.path().join("socket");
    let host = format!("unix:{}", socket.display());
    let script = "set -- setpriv --reuid 4001 --regid 4002 --clear-groups --inh-caps=-all,+net_bind_service \
                  --ambient-caps=+net_bind_service \"$@\"";
    let args =
        ["-H", "0.0.0.0", "-p", "80", "-H", &host, "-w", dir.path().to_str().unwrap(), "--workers", "1"];
    let mut server = launch(&dir, unshared(&dir, script, &args));
    // capabilities(7): number 10.
    assert_eq!(status(server.pid())["CapEff"], "0000000000000400");
    let worker = status(server.worker());
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(worker[set], "0".repeat(16), "{set}");
    }
    assert_eq!(over_unix(&socket, "/probe").ask("bind 81"), "Permission denied");
    server.stop();
}

#[test]
fn files_that_workers_cannot_read_are_found_at_the_start() {
    if !is_root("giving workers another user") {
        return;
    }
    let dir = dir();
    std::fs::set_permissions(dir.path().join("echo_wsh.so"), PermissionsExt::from_mode(0o600)).unwrap();
    let mut server = Server::start(&dir, &["--user", "4001", "--group", "4002"]);
    assert!(server.ready.contains(", 1 resource, "), "{}", server.ready);
    server.says("echo_wsh.so: cannot be read: Permission denied");
    is_confined(server.workers()[0], 4001, &[4002]);
    server.stop();
}

#[test]
fn workers_in_a_chroot() {
    if !is_root("another root directory") {
        return;
    }
    let dir = dir();
    let root = dir.path().join("root");
    let at = |path: &str| root.join(path);
    for path in ["handlers", "www", "proc"] {
        std::fs::create_dir_all(at(path)).unwrap();
    }
    for name in ["echo_wsh.so", "probe_wsh.so"] {
        std::fs::copy(dir.path().join(name), at("handlers").join(name)).unwrap();
    }
    std::fs::write(at("www/page.txt"), "static").unwrap();
    std::fs::write(at("inside"), "inside").unwrap();
    let (socket, crashes) = (dir.path().join("socket"), dir.path().join("crashes"));
    std::fs::create_dir(&crashes).unwrap();
    let paths = [&root, &at("handlers"), &at("www"), &crashes].map(|path| path.to_str().unwrap().to_owned());
    let host = format!("unix:{}", socket.display());
    let mut args = vec!["-H", &host, "--user", "4001", "--group", "4002", "--workers", "1"];
    let own = [format!("-ochroot={}", paths[0]), format!("-ocrash_dir={}", paths[3])];
    args.extend([&own[0], "-w", &paths[1], "-d", &paths[2], &own[1]]);
    let script = format!("mount -t proc proc {}", at("proc").display());
    let mut server = launch(&dir, unshared(&dir, &script, &args));

    let worker = server.worker();
    is_confined(worker, 4001, &[4002]);
    assert_eq!(std::fs::read_link(format!("/proc/{worker}/root")).unwrap(), root.canonicalize().unwrap());
    assert_eq!(std::fs::read_link(format!("/proc/{worker}/cwd")).unwrap(), root.canonicalize().unwrap());
    assert_eq!(std::fs::read_link(format!("/proc/{}/root", server.pid())).unwrap(), PathBuf::from("/"));
    let mut raw = over_unix(&socket, "/probe");
    assert_eq!(raw.ask("file /inside"), "inside");
    assert_eq!(raw.ask(&format!("file {}", at("inside").display())), "No such file or directory");
    assert_eq!(over_unix(&socket, "/echo").ask("hello"), "hello");
    let mut page = Raw::over(client::unix(&socket));
    page.send(b"GET /page.txt HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(page.answer().body, b"static");

    // The crash has a place in the code, and the record is outside of the workers' root.
    let mut other = over_unix(&socket, "/probe");
    raw.text("crash");
    raw.expect_close(1011);
    assert_eq!(other.ask("file /inside"), "inside", "rescued");
    let record = || std::fs::read_dir(&crashes).unwrap().next().map(|entry| entry.unwrap().path());
    until("there is a record", || record().is_some());
    until("it is whole", || std::fs::read_to_string(record().unwrap()).unwrap().contains("probe_wsh.so"));
    drop((raw, other));
    server.stop();
}
