//! The configuration file, from outside: its errors, the command line beside it, what reaches a handler, and the example
//! in wshd.conf(5).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use client::Raw;
use daemon::{Dir, ECHO, Server, run};
use nix::sys::signal::Signal;
use wshd::cli::{self, Command};

const MANUAL: &str = include_str!("../man/wshd.conf.5");

/// Writes a configuration file into the directory of a test.
fn file(dir: &Dir, text: &str) -> String {
    let path = dir.path().join("wshd.conf");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Runs the program to its end with this file and holds exit code and messages against what is expected.
#[track_caller]
fn fails(dir: &Dir, text: &str, args: &[&str], expected: &[&str]) {
    let file = file(dir, text);
    let handlers = dir.path().to_str().unwrap();
    let output = run(&[&["-w", handlers, "-p", "0", "--config", &file], args].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    for expected in expected {
        assert!(stderr.contains(&expected.replace("FILE", &file)), "{expected}\n{stderr}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn errors_name_file_line_and_key() {
    let dir = Dir::new();
    fails(
        &dir,
        "workers = 1\nwokers = 2\n",
        &[],
        &["wshd: FILE:2: wokers: no such key", "did you mean workers?"],
    );
    fails(&dir, "\nport = '80'\n", &[], &["wshd: FILE:2: port: expected an integer, not a string\n"]);
    fails(&dir, "max_head = '1T'", &[], &["wshd: FILE:1: max_head = '1T': expected a size such as"]);
    fails(
        &dir,
        "[pool.a]\nuser = true",
        &[],
        &["FILE:2: user: expected a string or an integer, not a boolean"],
    );
    fails(&dir, "[handler.'/a']\nisolation = 'alone'", &[], &["FILE:2: isolation", "expected one of shared"]);
    fails(&dir, "x = [", &[], &["wshd: FILE:1: "]);
    fails(
        &dir,
        "",
        &["--document-root", "/nowhere"],
        &["wshd: --document-root /nowhere: expected a directory"],
    );
    let output = run(&["-c", "/nowhere.conf"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("wshd: /nowhere.conf: No such file"));
}

#[test]
fn a_table_for_a_resource_that_nothing_serves() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let map = dir.path().join("map");
    std::fs::write(&map, "/same /echo\n").unwrap();
    let text =
        "[handler.'/echo']\n[handler.'/gone']\nisolation = 'shared'\n[handler.'/same'.settings]\nx = 1\n";
    let map = ["-m", map.to_str().unwrap()];
    let expected = [
        "handler.\"/gone\" is not used: no handler serves it",
        "handler.\"/same\" is not used: it is another name of /echo",
        "2 handlers or aliases are broken",
    ];
    fails(&dir, text, &[&map[..], &["--strict-handlers"]].concat(), &expected);
    let mut server = Server::start(&dir, &["-c", &file(&dir, text), "-m", map[1], "--workers=1"]);
    assert!(expected[..2].iter().all(|warning| server.log().contains(warning)), "{}", server.log());
    assert!(!server.log().contains("handler.\"/echo\""), "{}", server.log());
    server.stop();
}

#[test]
fn the_command_line_wins_over_the_file() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    // The address could not be listened on: 192.0.2.0/24 belongs to nobody (RFC 5737).
    let text = "server_host = '192.0.2.1'\nport = 1\nworkers = 2\nlog_level = 'critical'\nmax_message = 10\n";
    let mut server =
        Server::start(&dir, &["--config", &file(&dir, text), "-H", "127.0.0.1", "--max-message=20"]);
    assert!(server.ready.contains(", 2 workers, "), "from the file: {}", server.ready);
    let mut raw = Raw::open(&server.address(), "/echo");
    let long = "x".repeat(20);
    assert_eq!(raw.ask(&long), long);
    drop(raw);
    server.stop();
}

#[test]
fn settings_reach_the_handler() {
    const TEXT: &str = "workers = 1\n\
        [handler.'/everything'.settings]\nroom = 'a b'\nlimit = 0x10\nlog = false\n\
        [handler.'/everything_blocking'.settings]\nroom = 'c'\n";
    let dir = Dir::new();
    for name in ["everything", "everything_blocking"] {
        fixtures::add_handler(dir.path(), name, name);
    }
    let mut server = Server::start(&dir, &["-c", &file(&dir, TEXT)]);
    let mut raw = Raw::open(&server.address(), "/everything");
    for (command, reply) in [
        ("config room", "config: \"a b\""),
        ("config limit", "config: \"16\""),
        ("config log", "config: \"false\""),
        ("config absent", "config: -"),
        ("config_at 0", "config_at: limit=16"),
        ("config_at 2", "config_at: room=a b"),
        ("config_at 3", "config_at: 0"),
    ] {
        assert_eq!(raw.ask(command), reply);
    }
    let mut other = Raw::open(&server.address(), "/everything_blocking");
    assert_eq!(other.ask("config room"), "config: \"c\"");
    assert_eq!(other.ask("config limit"), "config: -");
    drop((raw, other));
    server.stop();
}

/// The part of the manual below this heading.
fn section(heading: &str) -> &'static str {
    MANUAL.split(&format!("\n.Sh {heading}\n")).nth(1).unwrap().split("\n.Sh ").next().unwrap()
}

#[test]
fn the_example_of_the_manual_is_right() {
    let example =
        section("EXAMPLES").split("\n.Bd -literal\n").nth(1).unwrap().split("\n.Ed").next().unwrap();
    let dir = Dir::new();
    let mut text = example.replace("/srv/www", dir.path().to_str().unwrap());
    if !nix::unistd::geteuid().is_root() {
        let allowed =
            text.lines().filter(|line| !line.starts_with("user = ") && !line.starts_with("group = "));
        text = allowed.collect::<Vec<_>>().join("\n");
    }
    let args = ["wshd", "-c", &file(&dir, &text)].map(OsString::from);
    let Ok(Command::Serve(config)) = cli::parse(args, None) else { panic!("{text}") };
    assert_eq!(config.handlers, PathBuf::from("/usr/lib/wshd/handlers"));
    assert_eq!(config.listen.len(), 3);
    assert_eq!(config.settings["/chat"].len(), 3);
    let untrusted = &config.pools[config.pool_of("/legacy/feed")];
    assert_eq!(
        (untrusted.name.as_str(), untrusted.workers, untrusted.max_cpu),
        ("untrusted", 2, Some(Duration::from_secs(3600)))
    );
    assert_eq!((config.pool_of("/chat"), config.all_workers()), (0, 6));
}

/// Whether a process has these bytes in its memory.
fn is_in_memory(pid: i32, needle: &str) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let ranges = maps.lines().filter(|line| line.contains(" rw-p ")).map(|line| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap())
    });
    ranges.into_iter().any(|(from, to)| {
        let mut bytes = vec![0; (to - from) as usize];
        let read = memory.read_at(&mut bytes, from).unwrap_or(0);
        memchr::memmem::find(&bytes[..read], needle.as_bytes()).is_some()
    })
}

#[test]
fn a_worker_holds_the_settings_of_its_own_handlers_only() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    dir.handler("other", ECHO);
    let secrets = |version: u32| {
        let of = |name: &str| format!("{version}-secret-of-{name}-0123456789");
        (of("echo"), of("other"))
    };
    let write = |version: u32| {
        let (echo, other) = secrets(version);
        let text = format!(
            "workers = 1\n[handler.'/echo'.settings]\nkey = '{echo}'\n\
             [handler.'/other']\nisolation = 'pool'\nsettings = {{ key = '{other}' }}\n[pool.other]\nworkers = 1\n"
        );
        file(&dir, &text)
    };
    let config = write(1);
    let mut server = Server::start(&dir, &["--config", &config, "--metrics", "127.0.0.1:0"]);
    let check = |before: &[i32], version: u32| {
        let mut found = BTreeSet::new();
        for pid in server.workers().into_iter().filter(|pid| !before.contains(pid)) {
            for past in 1..=version {
                let (echo, other) = secrets(past);
                let has = (is_in_memory(pid, &echo), is_in_memory(pid, &other));
                assert!(past == version || has == (false, false), "{pid}: settings of the past");
                found.insert(has);
            }
        }
        found.remove(&(false, false)); // metrics
        assert_eq!(found, [(false, true), (true, false)].into());
    };
    check(&[], 1);
    let before = server.workers();
    write(2);
    server.signal(Signal::SIGHUP);
    daemon::until("the reload is done", || server.log().contains("reload: done"));
    check(&before, 2);
    server.stop();
}
