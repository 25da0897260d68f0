//! The log and the access log of a running server: format and destinations, and that a destination that does not
//! accept lines cannot block the server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use client::{Client, Raw, ask, close_frame, close_of, connect, connect_with};
use daemon::{Dir, Server, TIMEOUT, children, until, wshd};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

/// Logs every message, "LEVEL TEXT", and sends it back. Rejects requests with a query.
const TALK: &str = r#"
    #include <stdlib.h>
    #include <string.h>
    #include <ws_handler.h>
    static int32_t do_extra_handshake(ws_conn conn, ws_handshake *hs)
    {
        return ws_query(conn).size ? ws_reject(hs, 403) : WS_OK;
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        char *text;
        long  level = strtol(msg->data, &text, 10);
        if (strcmp(msg->data, "crash") == 0)
            abort();
        if (level != 0)
            ws_log_conn(conn, (uint32_t)level, "%s", text + 1);
        ws_send(conn, msg->type, msg->data, msg->size);
    }
    WS_HANDLER(.name = "talk", .protocols = "talk", .do_extra_handshake = do_extra_handshake,
               .on_message = on_message);
"#;

/// The levels of ws_handler.h, and their names.
const LEVELS: [(u32, &str); 6] =
    [(10, "fine"), (20, "debug"), (30, "info"), (40, "warn"), (50, "error"), (60, "critical")];

fn talk_dir() -> Dir {
    let dir = Dir::new();
    dir.handler("talk", TALK);
    dir
}

/// The program with one worker, a free port and these options; standard error goes to a file.
fn command(dir: &Dir, args: &[&str]) -> Command {
    let mut command = wshd();
    command.args(["--port", "0", "-w"]).arg(dir.path()).args(args);
    if !args.contains(&"--workers=2") {
        command.arg("--workers=1");
    }
    command.stderr(File::create(dir.path().join("stderr")).unwrap());
    command
}

fn serve(dir: &Dir, args: &[&str]) -> Server {
    Server::launch(command(dir, args), dir.path().join("log")).when_ready()
}

/// The path of a file in the directory, for an option.
fn path(dir: &Dir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Makes the handler log a line, and returns when it was written or lost.
#[track_caller]
fn say(client: &mut Client, level: u32, text: &str) {
    let message = format!("{level} {text}");
    assert_eq!(ask(client, &message), message);
}

/// Closes with this code and waits for the answer.
#[track_caller]
fn close(mut client: Client, code: u16) {
    client.close(close_frame(code, "")).unwrap();
    assert_eq!(close_of(&mut client).0, code);
}

/// The numbers after "line " in a text.
fn numbers(text: &str) -> Vec<u32> {
    let rests = text.lines().filter_map(|line| line.split(": line ").nth(1));
    rests.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect()
}

/// The fields of the access log lines with this event; words that are not `key=value` are omitted.
fn access(text: &str, event: &str) -> Vec<BTreeMap<String, String>> {
    let lines = text.lines().filter(|line| line.contains(&format!("] access event={event} ")));
    let fields = |line: &str| {
        let mut rest = line.split_once("] access ").unwrap().1;
        let mut fields = BTreeMap::new();
        while let Some((key, value)) = rest.split_once('=') {
            let mut json = serde_json::Deserializer::from_str(value).into_iter::<String>();
            let (value, end) = match value.starts_with('"') {
                true => (json.next().unwrap().unwrap(), json.byte_offset()),
                false => {
                    let end = value.find(' ').unwrap_or(value.len());
                    (value[..end].to_owned(), end)
                }
            };
            rest = rest[key.len() + 1 + end..].trim_start();
            fields.insert(key.to_owned(), value);
        }
        fields
    };
    lines.map(fields).collect()
}

/// The rest of the first line that contains this.
fn after<'a>(log: &'a str, what: &str) -> &'a str {
    let line = log.lines().find_map(|line| line.split_once(what)).expect(what);
    line.1
}

#[test]
fn the_life_of_a_server() {
    let dir = talk_dir();
    dir.handler("b/gone", TALK);
    let config = path(&dir, "w.conf");
    fs::write(&config, "log_level = 'info'\n").unwrap();
    let mut server = serve(&dir, &["--log-file", &path(&dir, "log"), "--config", &config]);
    let log = server.log();
    let started = format!("wshd {} is starting, configuration file {config}", env!("CARGO_PKG_VERSION"));
    assert!(log.contains(&started), "{log}");
    assert_eq!(format!("wshd: ready on {}", after(&log, "] ready on ")), server.ready.trim_end());

    let talk = fs::read(path(&dir, "talk_wsh.so")).unwrap();
    fs::remove_file(path(&dir, "talk_wsh.so")).unwrap();
    fs::write(path(&dir, "talk_wsh.so"), talk).unwrap();
    fs::remove_file(path(&dir, "b/gone_wsh.so")).unwrap();
    dir.handler("new", TALK);
    server.signal(Signal::SIGHUP);
    server.says("reload: done");
    let log = server.log();
    assert_eq!(after(&log, "reload: resources "), "added: /new; changed: /talk; removed: /b/gone");

    server.stop();
    let log = server.log();
    assert!(log.contains("SIGTERM received"), "{log}");
    assert!(log.trim_end().ends_with("] stopped, exit status 0"), "{log}");
}

#[test]
fn a_failure_to_start_is_on_standard_error_as_well() {
    let dir = talk_dir();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let log = path(&dir, "log");
    let fails = |args: &[&str], code: i32, why: &str| {
        let output = daemon::run(&[&["-w", dir.path().to_str().unwrap(), "-l", &log], args].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert_eq!(stderr.matches(why).count(), 1, "{stderr}");
        assert!(read(&log).contains(why));
    };
    fails(&["-p", &port], 4, &format!("127.0.0.1:{port}: Address already in use"));
    fs::write(path(&dir, "bad_wsh.so"), "text").unwrap();
    fails(&["-p", "0", "--strict-handlers"], 3, "a handler or alias is broken");
}

#[test]
fn lines_on_a_standard_error_that_is_the_journal() {
    let dir = talk_dir();
    let file = File::create(path(&dir, "stderr")).unwrap();
    let file = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
    let serve = |stream: String, args: &[&str]| {
        let mut command = command(&dir, args);
        command.env("JOURNAL_STREAM", stream);
        Server::launch(command, path(&dir, "log").into()).when_ready()
    };
    let device = std::os::unix::fs::MetadataExt::dev(&fs::metadata(path(&dir, "stderr")).unwrap());
    let mut server = serve(format!("{device}:{file}"), &["--access-log", "-"]);
    let mut client = connect(&server.address(), "/talk");
    say(&mut client, 50, "help");
    close(client, 1000);
    server.says("event=close");
    server.stop();
    let log = server.log();
    assert!(log.lines().all(|line| line.starts_with('<')), "{log}");
    assert!(log.contains("\n<3>worker default/0: talk: connection ") && log.contains(": help\n"), "{log}");
    assert!(log.contains("\n<6>worker default/0: access event=open "), "{log}");
    assert!(log.contains("<6>supervisor: SIGTERM received"), "{log}");

    let mut server = serve(format!("{device}:{file}"), &["-o", "log_format=json"]);
    server.stop();
    let first = server.log().lines().next().unwrap().to_owned();
    let object: serde_json::Value = serde_json::from_str(first.strip_prefix("<6>").unwrap()).unwrap();
    assert_eq!(object["process"], "supervisor");

    let mut server = serve(format!("{device}:1"), &[]);
    server.stop();
    assert!(server.log().starts_with("20"), "another stream: {}", server.log());
}

#[test]
fn every_level() {
    let dir = talk_dir();
    for (index, (_, least)) in LEVELS.iter().enumerate() {
        let log = path(&dir, least);
        let server = serve(&dir, &["--log-file", &log, "--log-level", least]);
        let mut client = connect(&server.address(), "/talk");
        LEVELS.iter().for_each(|(level, name)| say(&mut client, *level, &format!("this is {name}")));
        let log = read(&log);
        let said: Vec<&str> = log.lines().filter(|line| line.contains(": this is ")).collect();
        assert_eq!(said.len(), LEVELS.len() - index, "{log}");
        for (line, (_, name)) in said.iter().zip(&LEVELS[index..]) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(fields[1], *name, "{line}");
            assert_eq!(fields[2..4], ["worker", &format!("default/0[{}]", server.worker())], "{line}");
            assert!(
                line.contains("] talk: connection ") && line.ends_with(&format!("this is {name}")),
                "{line}"
            );
        }
    }
}

#[test]
fn a_handler_has_a_level_of_its_own() {
    let dir = Dir::new();
    for name in ["loud", "quiet", "other"] {
        dir.handler(name, &TALK.replace("\"talk\"", &format!("{name:?}")));
    }
    let config = path(&dir, "w.conf");
    let tables = "[handler.'/loud']\nlog_level = 'fine'\n[handler.'/quiet']\nlog_level = 'error'\n";
    fs::write(&config, tables).unwrap();
    let log = path(&dir, "log");
    let server = serve(&dir, &["--config", &config, "--log-file", &log, "--access-log=-"]);
    for name in ["loud", "quiet", "other"] {
        let mut client = connect(&server.address(), &format!("/{name}"));
        LEVELS.iter().for_each(|(level, text)| say(&mut client, *level, text));
        close(client, 1000);
    }
    server.says("resource=/other subprotocol=- compression=- code=1000");
    let log = read(&log);
    let said = |name: &str| {
        let lines = log.lines().filter(|line| line.contains(&format!("] {name}: ")));
        lines.map(|line| line.rsplit(' ').next().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(said("loud"), ["fine", "debug", "info", "warn", "error", "critical"]);
    assert_eq!(said("quiet"), ["error", "critical"]);
    assert_eq!(said("other"), ["info", "warn", "error", "critical"]);
    let opened: Vec<_> = access(&log, "open").into_iter().map(|line| line["resource"].clone()).collect();
    assert_eq!(opened, ["/loud", "/other"], "the access log is of level info");
}

#[test]
fn json_has_one_object_per_line() {
    let dir = talk_dir();
    let log = path(&dir, "log");
    let server = serve(&dir, &["--log-file", &log, "-olog_format=json", "--access-log", "-"]);
    let mut client = connect(&server.address(), "/talk");
    say(&mut client, 40, "caf\u{e9} \"x\"\t\u{1b}[2J");
    close(client, 1000);
    server.says("\"close\"");
    let lines: Vec<serde_json::Value> =
        read(&log).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["pid"].is_u64() && line["time"].as_str().unwrap().ends_with('Z')));
    let said = lines.iter().find(|line| line["handler"] == "talk").unwrap();
    assert_eq!((&said["level"], &said["process"]), (&"warn".into(), &"worker default/0".into()));
    assert_eq!(said["message"], "caf\u{e9} \"x\"\t\u{1b}[2J");
    let [open, end] =
        ["open", "close"].map(|event| lines.iter().find(|line| line["event"] == event).unwrap());
    assert_eq!(
        (&open["status"], &open["conn"], &open["compression"]),
        (&101.into(), &said["conn"], &serde_json::Value::Null)
    );
    assert_eq!((&end["code"], &end["by"], &end["messages_in"]), (&1000.into(), &"peer".into(), &1.into()));
}

/// A log daemon for the test.
fn daemon(dir: &Dir) -> UnixDatagram {
    let socket = UnixDatagram::bind(dir.path().join("socket")).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// Stops a log daemon. A child forked by another test also has the socket, until it executes a program; lines sent
/// to it would be lost.
fn stop(daemon: UnixDatagram, dir: &Dir) {
    daemon.shutdown(Shutdown::Both).unwrap();
    fs::remove_file(dir.path().join("socket")).unwrap();
}

/// The next datagram that contains this.
#[track_caller]
fn datagram(socket: &UnixDatagram, text: &str) -> Vec<u8> {
    let mut buffer = [0; 16 * 1024];
    loop {
        let size = socket.recv(&mut buffer).unwrap();
        if String::from_utf8_lossy(&buffer[..size]).contains(text) {
            return buffer[..size].to_vec();
        }
    }
}

#[test]
fn lines_for_syslog() {
    let dir = talk_dir();
    let socket = daemon(&dir);
    let args =
        ["-olog_target=syslog", "-o", &format!("log_socket={}", path(&dir, "socket")), "--access-log=-"];
    let server = serve(&dir, &args);
    let mut client = connect(&server.address(), "/talk");
    let pid = server.worker();
    // RFC 3164 4.1.1: facility 3 (daemon) times 8 and severity 2, critical.
    say(&mut client, 60, "hello");
    let line = String::from_utf8(datagram(&socket, "hello")).unwrap();
    assert!(line.starts_with(&format!("<26>wshd[{pid}]: worker default/0: talk: connection ")), "{line}");
    assert!(line.ends_with(": hello"), "{line}");
    close(client, 1000);
    let line = String::from_utf8(datagram(&socket, "event=close")).unwrap();
    assert!(
        line.starts_with(&format!("<30>wshd[{pid}]: worker default/0: access event=close conn=")),
        "{line}"
    );
    // The daemon is restarted.
    stop(socket, &dir);
    let socket = daemon(&dir);
    let mut client = connect(&server.address(), "/talk");
    say(&mut client, 40, "again");
    datagram(&socket, "again");
    stop(socket, &dir);
    say(&mut client, 40, "lost");
    say(&mut client, 40, "lost, too");
    let socket = daemon(&dir);
    say(&mut client, 40, "there");
    datagram(&socket, "there");
    datagram(&socket, "2 lines were lost");
}

#[test]
fn entries_for_the_journal() {
    let dir = talk_dir();
    let socket = daemon(&dir);
    let args =
        ["-olog_target=journald", "-o", &format!("log_socket={}", path(&dir, "socket")), "--access-log=-"];
    let server = serve(&dir, &args);
    let (mut client, _) = connect_with(&server.address(), "/talk", &[("Sec-WebSocket-Protocol", "talk")]);
    say(&mut client, 40, "hello");
    close(client, 1001);
    let fields = |entry: Vec<u8>| {
        let text = String::from_utf8(entry).unwrap();
        let fields = text.lines().map(|line| line.split_once('=').unwrap());
        fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>()
    };
    let said = fields(datagram(&socket, "hello"));
    let conn = &said["WSHD_CONN"];
    assert_eq!(said["MESSAGE"], format!("talk: connection {conn}: hello"));
    assert_eq!((&*said["PRIORITY"], &*said["SYSLOG_IDENTIFIER"]), ("4", "wshd"));
    assert_eq!((&*said["WSHD_PROCESS"], &*said["WSHD_HANDLER"]), ("worker default/0", "talk"));
    let end = fields(datagram(&socket, "event=close"));
    assert_eq!((&*end["WSHD_EVENT"], &end["WSHD_CONN"], &*end["WSHD_CODE"]), ("close", conn, "1001"));
    assert_eq!((&*end["WSHD_RESOURCE"], &*end["WSHD_SUBPROTOCOL"]), ("/talk", "talk"));
    assert!(!end.contains_key("WSHD_COMPRESSION") && end["MESSAGE"].contains(" compression=- "));
}

/// The targets of a process's descriptors.
fn open_files(pid: i32) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect()
}

#[test]
fn renamed_files_are_reopened() {
    let dir = talk_dir();
    let (log, access_log) = (path(&dir, "log"), path(&dir, "access"));
    let args = ["--workers=2", "--log-file", &log, "--access-log", &access_log, "--metrics=127.0.0.1:0"];
    let server = serve(&dir, &args);
    let mut client = connect(&server.address(), "/talk");
    let (mut number, mut connections) = (0, 1);
    for round in 1..=3 {
        number += 1;
        say(&mut client, 30, &format!("line {number}"));
        for file in [&log, &access_log] {
            fs::rename(file, format!("{file}.{round}")).unwrap();
        }
        server.signal(Signal::SIGUSR1);
        until("the worker writes into the new file", || {
            number += 1;
            say(&mut client, 30, &format!("line {number}"));
            read(&log).contains(&format!(": line {number}"))
        });
        until("the workers write into the other new file, too", || {
            drop(connect(&server.address(), "/talk"));
            connections += 1;
            !read(&access_log).is_empty()
        });
        until("nobody has an old file open", || {
            let all = children(server.pid()).into_iter().chain([server.pid()]);
            let old = format!(".{round}");
            all.flat_map(open_files).all(|file| !file.to_string_lossy().ends_with(&old))
        });
    }
    close(client, 1000);
    let files = |file: &str| {
        (1..=3).map(|round| read(format!("{file}.{round}"))).chain([read(file)]).collect::<String>()
    };
    until("all have ended", || access(&files(&access_log), "close").len() == connections);
    assert_eq!(access(&files(&access_log), "open").len(), connections);
    let all = files(&log);
    assert_eq!(numbers(&all), (1..=number).collect::<Vec<_>>(), "nothing is lost, nothing doubled");
    assert!(all.contains("SIGUSR1 received"));
}

#[test]
fn a_worker_without_access_to_the_file_gets_its_descriptor() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root for workers of another user");
        return;
    }
    let dir = talk_dir();
    let private = dir.path().join("private");
    fs::create_dir(&private).unwrap();
    // For the handler; the directory of the log belongs to root.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    let (log, config) = (path(&dir, "private/log"), path(&dir, "w.conf"));
    let table = "[handler.'/talk']\nisolation = 'pool'\n[pool.talk]\nuser = 65534\ngroup = 65534\n";
    fs::write(&config, table).unwrap();
    let server = serve(&dir, &["--config", &config, "--log-file", &log]);
    let mut client = connect(&server.address(), "/talk");
    say(&mut client, 30, "line 1");
    fs::rename(&log, path(&dir, "private/old")).unwrap();
    server.signal(Signal::SIGUSR1);
    until("it writes into the new file", || {
        say(&mut client, 30, "line 2");
        read(&log).contains("worker talk/0") && numbers(&read(&log)).contains(&2)
    });
}

#[test]
fn a_reload_changes_the_log() {
    let dir = talk_dir();
    let (config, first, second) = (path(&dir, "w.conf"), path(&dir, "first"), path(&dir, "second"));
    let reload = |server: &Server, text: String| {
        fs::write(&config, text).unwrap();
        server.signal(Signal::SIGHUP);
    };
    fs::write(&config, format!("log_file = {first:?}\nlog_level = 'warn'")).unwrap();
    let server = serve(&dir, &["--config", &config]);
    let mut client = connect(&server.address(), "/talk");
    say(&mut client, 40, "line 1");
    say(&mut client, 30, "line 2");
    reload(&server, "log_file = '/none/log'".to_owned());
    until("it is refused", || {
        let line = format!(
            "failed; keeping the running configuration: {config}:1: log_file = '/none/log': No such file"
        );
        read(&first).contains(&line)
    });
    let worker = server.worker();
    reload(
        &server,
        format!("log_file = {second:?}\nlog_format = 'json'\naccess_log = '-'\nlog_level = 'fine'"),
    );
    until("the worker is replaced", || matches!(server.workers()[..], [new] if new != worker));
    until("the reload is done", || read(&second).contains("reload: done, 1 resource"));
    say(&mut client, 10, "line 3");
    let lines: Vec<serde_json::Value> =
        read(&second).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let has = |key: &str, value: &str| lines.iter().any(|line| line[key] == value);
    assert!(has("event", "resumed") && has("message", "line 3"));
    assert_eq!(numbers(&read(&first)), [1]);
    // A handler's own level affects its workers only; a new log_max affects none.
    let worker = server.worker();
    let same = format!("log_file = {second:?}\nlog_format = 'json'\naccess_log = '-'\nlog_level = 'fine'\n");
    reload(&server, format!("{same}log_max = '1G'"));
    until("it is done", || read(&second).contains("no worker has to be replaced"));
    reload(&server, format!("{same}[handler.'/talk']\nlog_level = 'error'"));
    until("the worker is replaced", || matches!(server.workers()[..], [new] if new != worker));
    say(&mut client, 40, "line 4");
    say(&mut client, 50, "line 5");
    let log = read(&second);
    assert!(!log.contains("line 4") && log.contains("line 5"), "{log}");
}

#[test]
fn large_files_are_rotated() {
    let dir = talk_dir();
    let log = path(&dir, "log");
    let server = serve(&dir, &["--log-file", &log, "--log_max", "4K", "--log_count", "2"]);
    let mut client = connect(&server.address(), "/talk");
    let mut number = 0;
    let mut say_until = |is_so: &dyn Fn() -> bool| {
        until("the file is renamed", || {
            // Only a few lines per check, so that none of them is in a third file.
            std::thread::sleep(std::time::Duration::from_millis(10));
            number += 1;
            say(&mut client, 30, &format!("line {number} {}", "x".repeat(100)));
            is_so()
        });
        number
    };
    say_until(&|| !read(format!("{log}.1")).is_empty());
    assert!(fs::metadata(format!("{log}.1")).unwrap().len() >= 4096);
    let last = say_until(&|| !read(format!("{log}.2")).is_empty());
    // The files are renamed one after another.
    let found = || numbers(&[".2", ".1", ""].map(|end| read(format!("{log}{end}"))).concat());
    until("nothing is lost, nothing doubled", || found() == (1..=last).collect::<Vec<_>>());
    let first = read(format!("{log}.2"));
    let last = say_until(&|| read(format!("{log}.2")) != first);
    until("the last ones are there, one after another", || {
        let found = found();
        let begin = found.first().copied().unwrap_or_default();
        (2..last - 30).contains(&begin) && found == (begin..=last).collect::<Vec<_>>()
    });
    assert!(!Path::new(&format!("{log}.3")).exists());
}

#[test]
fn a_file_that_cannot_be_renamed_is_reported_once() {
    let dir = talk_dir();
    fs::create_dir(dir.path().join("logs")).unwrap();
    let log = path(&dir, "logs/log");
    // A directory prevents the rename.
    fs::create_dir_all(path(&dir, "logs/log.1/full")).unwrap();
    let server = serve(&dir, &["--log-file", &log, "--log-max=1K", "--log-count=1"]);
    let mut client = connect(&server.address(), "/talk");
    let complaint = "cannot rotate a log file";
    say(&mut client, 30, &"x".repeat(1000));
    until("it is said", || read(&log).contains(complaint));
    // What is ordered meanwhile is reported all the same.
    let moved = dir.path().join("moved");
    fs::rename(dir.path().join("logs"), &moved).unwrap();
    server.signal(Signal::SIGUSR1);
    until("it is reported", || read(moved.join("log")).contains("cannot reopen the log: "));
    fs::rename(&moved, dir.path().join("logs")).unwrap();
    fs::remove_dir_all(path(&dir, "logs/log.1")).unwrap();
    until("it is renamed", || Path::new(&format!("{log}.1")).is_file());
    assert_eq!(read(format!("{log}.1")).matches(complaint).count(), 1);
}

/// The lines of a worker's log that begin with `line`, and the number reported as lost.
fn kept_and_lost(log: &str) -> (usize, usize) {
    let of_worker = log.lines().filter(|line| line.contains(" worker default/0["));
    let losses = of_worker.filter_map(|line| line.split("] ").nth(1)?.strip_suffix(" lost"));
    let lost = losses.map(|loss| loss.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
    (numbers(log).len(), lost)
}

#[test]
fn a_full_pipe_does_not_block_the_server() {
    let dir = talk_dir();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let ours = writer.try_clone().unwrap();
    let mut command = command(&dir, &[]);
    command.stderr(OwnedFd::from(writer));
    let server = Server::launch(command, dir.path().join("log")).when_ready();
    let mut client = connect(&server.address(), "/talk");
    // A pipe holds 64 KiB (pipe(7)).
    let long = "x".repeat(900);
    (0..200).for_each(|number| say(&mut client, 30, &format!("line {number} {long}")));
    let flags = fcntl(ours.as_fd(), FcntlArg::F_GETFL).map(OFlag::from_bits_truncate).unwrap();
    assert!(!flags.contains(OFlag::O_NONBLOCK), "who shares the pipe still writes as before");
    drop(ours);
    fcntl(reader.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut text = String::new();
    let mut take = |wanted: &str| {
        until(&format!("{wanted:?} comes"), || {
            let mut some = [0; 4096];
            let count = reader.read(&mut some).unwrap_or(0);
            text.push_str(str::from_utf8(&some[..count]).unwrap());
            text.contains(wanted)
        });
    };
    take(": line 0 ");
    // Once there is room again.
    say(&mut client, 30, "line 200");
    take(": line 200\n");
    let (kept, lost) = kept_and_lost(&text);
    assert!(lost > 0, "{text}");
    assert_eq!(kept + lost, 201);
    assert!(text.lines().all(|line| line.starts_with("20") && line.contains("Z ")), "whole lines only");
}

#[test]
fn a_full_device_does_not_block_the_server() {
    let dir = talk_dir();
    let full = ["--log-file=/dev/full", "--access-log=/dev/full", "--log-level=fine"];
    let mut server = serve(&dir, &full);
    let mut client = connect(&server.address(), "/talk");
    (0..100).for_each(|number| say(&mut client, 30, &format!("line {number}")));
    close(client, 1000);
    server.stop();
}

#[test]
fn lines_continue_when_a_full_file_system_has_room_again() {
    let dir = talk_dir();
    let small = path(&dir, "small");
    fs::create_dir(&small).unwrap();
    // A file system of 64 KiB in a mount namespace.
    let script =
        r#"mount -t tmpfs -o size=64k tmpfs "$SMALL" && head -c 40K /dev/zero > "$SMALL/other" && exec "$@""#;
    let in_namespace = |program: &Command| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        command.arg(program.get_program()).args(program.get_args()).env("SMALL", &small);
        command.stderr(File::create(dir.path().join("stderr")).unwrap());
        command
    };
    if !in_namespace(&Command::new("true")).status().is_ok_and(|status| status.success()) {
        println!("skipped: no mount namespaces here: {}", read(dir.path().join("stderr")));
        return;
    }
    let log = format!("{small}/log");
    let server = Server::launch(in_namespace(&command(&dir, &["--log-file", &log])), dir.path().join("log"))
        .when_ready();
    let inside = |name: &str| format!("/proc/{}/root{small}/{name}", server.pid());
    let mut client = connect(&server.address(), "/talk");
    let long = "x".repeat(900);
    (0..100).for_each(|number| say(&mut client, 30, &format!("line {number} {long}")));
    fs::remove_file(inside("other")).unwrap();
    say(&mut client, 30, "line 100");
    let text = read(inside("log"));
    let (kept, lost) = kept_and_lost(&text);
    assert!(lost > 0 && text.lines().last().unwrap().ends_with(": line 100"), "{text}");
    // The first line that did not fit may be there in part, with or without its number.
    assert!([101, 102].contains(&(kept + lost)), "{kept} and {lost}");
    assert!(text.lines().filter(|line| !line.starts_with("20")).count() == 0, "{text}");
}

#[test]
fn missing_targets() {
    let dir = talk_dir();
    let none = path(&dir, "none");
    let daemon = |target| vec![format!("-olog_target={target}"), format!("-olog_socket={none}")];
    for (args, expected) in [
        (daemon("syslog".to_owned()), format!("wshd: log_target syslog: {none}: No such file")),
        (daemon("journald".to_owned()), format!("wshd: log_target journald: {none}: No such file")),
        (
            vec!["--access-log=/none/access".to_owned()],
            "wshd: --access-log /none/access: No such file".to_owned(),
        ),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        assert_eq!(command(&dir, &args).status().unwrap().code(), Some(3));
        let said = read(dir.path().join("stderr"));
        assert!(said.starts_with(&expected), "{said}");
    }
}

/// Compares some fields of a line.
#[track_caller]
fn has(line: &BTreeMap<String, String>, fields: &[(&str, &str)]) {
    for (key, value) in fields {
        assert_eq!(line.get(*key).map(String::as_str), Some(*value), "{key} of {line:?}");
    }
}

#[test]
fn a_connection_in_the_access_log() {
    let dir = talk_dir();
    let file = path(&dir, "access");
    let server = serve(&dir, &["--access-log", &file, "--log-level=critical"]);
    let headers = [
        ("Sec-WebSocket-Protocol", "x, talk"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
    ];
    let begun = std::time::Instant::now();
    let mut raw = Raw::over(client::tcp(&server.address()));
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    raw.upgrade("/talk", &lines);
    let peer = raw.stream.local_addr().unwrap().to_string();
    raw.ask("hello");
    // In two fragments: one message.
    raw.send(&client::frame(0x02, b"ab"));
    raw.send(&client::frame(0x80, b"c"));
    assert_eq!(raw.next().unwrap().payload, b"abc");
    raw.frame(client::CLOSE, &client::close_payload(3000, ""));
    raw.expect_close(3000);
    until("both lines are there", || access(&read(&file), "close").len() == 1);
    let log = read(&file);
    let open = access(&log, "open").remove(0);
    let common = [
        ("peer", &*peer),
        ("resource", "/talk"),
        ("subprotocol", "talk"),
        ("compression", "permessage-deflate; client_no_context_takeover"),
        ("conn", &open["conn"]),
    ];
    has(&open, &common);
    has(&open, &[("event", "open"), ("status", "101")]);
    let end = access(&log, "close").remove(0);
    has(&end, &common);
    has(&end, &[("code", "3000"), ("by", "peer"), ("messages_in", "2"), ("bytes_in", "8")]);
    has(&end, &[("messages_out", "2"), ("bytes_out", "8")]);
    assert!(end["duration_ms"].parse::<u128>().unwrap() <= begun.elapsed().as_millis());
    assert!(read(dir.path().join("stderr")).is_empty(), "the log has none of it");
}

#[test]
fn refused_requests() {
    let dir = talk_dir();
    let file = path(&dir, "access");
    let server = serve(&dir, &["--access-log", &file]);
    let answer = |request: &str| {
        let mut raw = Raw::over(client::tcp(&server.address()));
        raw.send(request.as_bytes());
        raw.answer().status
    };
    let upgrade = |resource: &str| format!("GET {resource} HTTP/1.1\r\nHost: h\r\n{}\r\n", client::UPGRADE);
    assert_eq!(answer(&upgrade("/talk?a=1&b=\"")), 403);
    assert_eq!(answer(&upgrade("/none")), 404);
    assert_eq!(answer(&upgrade("/talk").replace("Version: 13", "Version: 12")), 426);
    assert_eq!(answer("GET /no%20file HTTP/1.1\r\nHost: h\r\n\r\n"), 404);
    assert_eq!(answer("NONSENSE\r\n\r\n"), 400);
    until("all lines are there", || read(&file).lines().count() == 5);
    let log = read(&file);
    let told = |event: &str| {
        let lines = access(&log, event).into_iter();
        lines.map(|line| format!("{} {}", line["status"], line["resource"])).collect::<Vec<_>>()
    };
    assert_eq!(told("refused"), ["403 /talk?a=1&b=\"", "404 /none", "426 /talk"]);
    assert_eq!(told("http"), ["404 /no%20file", "400 -"]);
}

#[test]
fn a_peer_without_an_address() {
    let dir = talk_dir();
    let (file, socket) = (path(&dir, "access"), path(&dir, "socket"));
    let _server = serve(&dir, &["--access-log", &file, "-H", &format!("unix:{socket}")]);
    let mut raw = Raw::over(client::unix(&socket));
    raw.upgrade("/talk", "");
    raw.ask("hello");
    drop(raw);
    until("it has ended", || access(&read(&file), "close").len() == 1);
    has(&access(&read(&file), "close")[0], &[("peer", "unix"), ("messages_in", "1"), ("code", "1006")]);
}

#[test]
fn the_access_log_says_who_ended_a_connection() {
    let dir = talk_dir();
    dir.handler("bye", &TALK.replace("ws_send(", "ws_close(conn, 4001, NULL); ws_send("));
    let file = path(&dir, "access");
    let mut server = serve(&dir, &["--access-log", &file]);
    let mut bye = connect(&server.address(), "/bye");
    bye.send(tungstenite::Message::text("x")).unwrap();
    assert_eq!(close_of(&mut bye).0, 4001);
    drop(bye);
    until("it has ended", || access(&read(&file), "close").len() == 1);
    // Disconnected without a Close frame.
    drop(connect(&server.address(), "/talk"));
    until("it has ended", || access(&read(&file), "close").len() == 2);
    let mut last = connect(&server.address(), "/talk");
    ask(&mut last, "x");
    server.signal(Signal::SIGTERM);
    assert_eq!(close_of(&mut last).0, 1001);
    assert_eq!(server.wait().code(), Some(0));
    let ends = access(&read(&file), "close");
    let ends: Vec<_> = ends.iter().map(|line| (&*line["code"], &*line["by"])).collect();
    assert_eq!(ends, [("4001", "handler"), ("1006", "peer"), ("1001", "server")]);
}

#[test]
fn a_connection_that_moves_and_one_that_crashes() {
    let dir = talk_dir();
    let file = path(&dir, "access");
    let server = serve(&dir, &["--access-log", &file, "-o", "worker_max_messages=3"]);
    let mut client = connect(&server.address(), "/talk");
    let peer = client.get_ref().local_addr().unwrap().to_string();
    (0..4).for_each(|_| drop(ask(&mut client, "four")));
    until("it has moved", || ["moved", "resumed"].iter().all(|event| access(&read(&file), event).len() == 1));
    ask(&mut client, "fifth");
    let log = read(&file);
    let moved = access(&log, "moved").remove(0);
    has(&moved, &[("peer", &peer), ("resource", "/talk"), ("code", "0"), ("by", "move")]);
    // The fourth one may have come after the move.
    let before: u32 = moved["messages_in"].parse().unwrap();
    assert!([3, 4].contains(&before), "{moved:?}");
    let (messages, bytes) = (before.to_string(), (4 * before).to_string());
    has(&moved, &[("messages_in", &messages), ("bytes_in", &bytes)]);
    has(&moved, &[("messages_out", &messages), ("bytes_out", &bytes)]);
    has(&access(&log, "resumed")[0], &[("peer", &peer), ("resource", "/talk"), ("subprotocol", "-")]);
    assert!(access(&log, "close").is_empty());
    close(client, 1000);
    until("it has ended", || access(&read(&file), "close").len() == 1);
    let end = access(&read(&file), "close").remove(0);
    let (messages, bytes) = ((5 - before).to_string(), (4 * (4 - before) + 5).to_string());
    has(&end, &[("peer", &peer), ("code", "1000"), ("messages_in", &messages), ("bytes_in", &bytes)]);

    let mut crashes = connect(&server.address(), "/talk");
    let peer = crashes.get_ref().local_addr().unwrap().to_string();
    crashes.send(tungstenite::Message::text("crash")).unwrap();
    assert_eq!(close_of(&mut crashes).0, 1011);
    drop(crashes);
    until("its end is told", || access(&read(&file), "close").len() == 2);
    let end = access(&read(&file), "close").remove(1);
    has(&end, &[("peer", &peer), ("resource", "/talk"), ("code", "-"), ("by", "crash")]);
}
