//! The configuration file, from outside: errors, precedence of the command line, settings of handlers, and the example
//! of wshd.conf(5).
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

/// Runs the program with this file and compares exit code and messages.
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
    let output = run(&["-f", "/nowhere.conf"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("wshd: /nowhere.conf: No such file"));
}

#[test]
fn a_table_for_a_resource_without_a_handler() {
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
    let mut server = Server::start(&dir, &["-f", &file(&dir, text), "-m", map[1], "--workers=1"]);
    assert!(expected[..2].iter().all(|warning| server.log().contains(warning)), "{}", server.log());
    assert!(!server.log().contains("handler.\"/echo\""), "{}", server.log());
    server.stop();
}

#[test]
fn the_command_line_wins_over_the_file() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    // Listening on this address would fail: 192.0.2.0/24 is reserved (RFC 5737).
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
    let mut server = Server::start(&dir, &["-f", &file(&dir, TEXT)]);
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

/// The section of the manual with this heading.
fn section(heading: &str) -> &'static str {
    MANUAL.split(&format!("\n.Sh {heading}\n")).nth(1).unwrap().split("\n.Sh ").next().unwrap()
}

#[test]
fn the_example_of_the_manual_is_valid() {
    let example =
        section("EXAMPLES").split("\n.Bd -literal\n").nth(1).unwrap().split("\n.Ed").next().unwrap();
    let dir = Dir::new();
    let mut text = example.replace("/srv/www", dir.path().to_str().unwrap());
    if !nix::unistd::geteuid().is_root() {
        let allowed =
            text.lines().filter(|line| !line.starts_with("user = ") && !line.starts_with("group = "));
        text = allowed.collect::<Vec<_>>().join("\n");
    }
    let args = ["wshd", "-f", &file(&dir, &text)].map(OsString::from);
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

/// Runs the program to its end: status, standard output, standard error. DIR stands for the directory of the test.
fn ran(dir: &Dir, args: &[&str]) -> (i32, String, String) {
    let place = dir.path().to_str().unwrap();
    let args: Vec<String> = args.iter().map(|arg| arg.replace("DIR", place)).collect();
    let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(place, "DIR");
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_file_includes_others() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("w.conf", "websock_handlers = 'DIR'\ninclude = ['conf.d/*.toml', 'more.conf']\nport = 1\n");
    write("conf.d/a.toml", "workers = 3\n[handler.'/echo']\nisolation = 'pool'\npool = 'p'\n");
    write("conf.d/b.toml", "[pool.p]\nworkers = 2\n");
    // Of an editor.
    write("conf.d/.#b.toml", "junk");
    write("more.conf", "max_message = 5\n");
    let config = || ran(&dir, &["config", "-f", "DIR/w.conf", "-w", "DIR"]);
    let (status, text, error) = config();
    assert_eq!((status, error.as_str()), (0, ""));
    for line in
        ["port = 1", "workers = 3", "max_message = \"5\"", "[pool.\"p\"]\nworkers = 2", "pool = \"p\""]
    {
        assert!(text.contains(&format!("{line}\n")), "{line}: {text}");
    }
    for (file, wrong, expected) in [
        ("more.conf", "port = 2", "DIR/more.conf:1: port: it is already set at DIR/w.conf:3: port"),
        (
            "more.conf",
            "[pool.p]",
            "DIR/more.conf:1: pool.\"p\": it is already set at DIR/conf.d/b.toml:1: pool.\"p\"",
        ),
        (
            "more.conf",
            "[handler.'/echo']",
            "DIR/more.conf:1: handler.\"/echo\": it already has a table in another file",
        ),
        (
            "more.conf",
            "\ninclude = 'w.conf'",
            "DIR/more.conf:2: include = 'w.conf': the files include each other: DIR/w.conf -> DIR/more.conf -> DIR/w.conf",
        ),
        (
            "more.conf",
            "include = 'conf.d/a.toml'",
            "DIR/more.conf:1: include = 'conf.d/a.toml': DIR/conf.d/a.toml is already included",
        ),
        (
            "more.conf",
            "include = 'gone'",
            "DIR/more.conf:1: include = 'gone': DIR/gone: No such file or directory (os error 2)",
        ),
    ] {
        write(file, wrong);
        assert_eq!(config(), (3, String::new(), format!("wshd: {expected}\n")));
    }

    // A pattern is only what the key says, not the directory of the file.
    std::fs::create_dir(dir.path().join("x[1]")).unwrap();
    write("x[1]/w.conf", "websock_handlers = 'DIR'\ninclude = '*.toml'\n");
    write("x[1]/y.toml", "workers = 4\n");
    let (status, text, error) = ran(&dir, &["config", "-f", "DIR/x[1]/w.conf", "-w", "DIR"]);
    assert!(status == 0 && text.contains("\nworkers = 4\n"), "{text}{error}");
}

#[test]
fn the_effective_configuration_can_be_read_again() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let text = "log_level = 'debug'\nallow_origin = ['https://a.example', 'null']\ndeflate = false\n\
                drain_timeout = 'never'\nbasic_auth_credential = 'ann:pass\"word'\ncontrol_socket = 'DIR/s'\n\
                [handler.'/echo']\nisolation = 'pool'\nsettings = { 'a key' = \"hidden \\u007F\" }\n[pool.echo]\nnice = 1\n";
    let first = file(&dir, &text.replace("DIR", dir.path().to_str().unwrap()));
    let place = dir.path().to_str().unwrap();
    let args = ["-w", place, "-o", "idle_timeout=90s", "--port", "0"];
    let (status, printed, error) = ran(&dir, &[&["config", "-f", &first], &args[..]].concat());
    assert_eq!((status, error.as_str()), (0, ""));
    assert!(
        printed.contains("idle_timeout = \"90s\"\n") && printed.contains("\"a key\" = \"hidden \\u007F\"\n")
    );
    let again = dir.path().join("again.conf");
    std::fs::write(&again, printed.replace("DIR", place)).unwrap();
    assert_eq!(ran(&dir, &["config", "-f", "DIR/again.conf"]), (0, printed.clone(), String::new()));
    // The running server prints the same without secrets.
    let mut server = Server::start(&dir, &["-f", &first, "-o", "idle_timeout=90s"]);
    let (status, told, error) = ran(&dir, &["ctl", "--control-socket", "DIR/s", "config"]);
    assert_eq!((status, error.as_str()), (0, ""));
    let masked = printed.replace("\"ann:pass\\\"word\"", "\"***\"").replace("\"hidden \\u007F\"", "\"***\"");
    for (told, expected) in told.lines().zip(masked.lines()) {
        // The test adds options to the command line.
        assert!(told == expected || !told.contains("***") && !expected.contains("***"), "{told}: {expected}");
    }
    assert!(!told.contains("hidden") && !told.contains("ann:") && told.contains("\"a key\" = \"***\""));
    server.stop();
}

#[test]
fn a_configuration_is_tested_as_for_a_start_without_a_server() {
    let dir = Dir::new();
    let source = r#"
        #include <stdio.h>
        #include <ws_handler.h>
        static int32_t start(void) { return ws_config("room").data ? WS_OK : -7; }
        static void on_message(ws_conn conn, const ws_message *message) { (void)conn; (void)message; }
        __attribute__((constructor)) static void at_load(void) { fputs("loaded\n", stderr); }
        WS_HANDLER(.name = "room", .on_worker_start = start, .on_message = on_message);
    "#;
    let object = dir.handler("room", source);
    let test = |text: &str, args: &[&str]| {
        let file = file(&dir, &text.replace("DIR", dir.path().to_str().unwrap()));
        ran(&dir, &[&["check", "-f", &file, "-w", "DIR"], args].concat())
    };
    let (status, out, log) =
        test("server_host = 'unix:DIR/s'\n[handler.'/room'.settings]\nroom = 'a'\n", &[]);
    assert_eq!(
        (status, out.as_str()),
        (0, "DIR/wshd.conf: the configuration is valid, 1 resource\n"),
        "{log}"
    );
    assert!(log.contains("room_wsh.so (probe): loaded") && !dir.path().join("s").exists(), "{log}");
    for (text, args, status, expected) in [
        ("prot = 1", &[][..], 3, "DIR/wshd.conf:1: prot: no such key, did you mean port?"),
        ("", &["-o", "prot=1"], 2, "-o prot: no such setting, did you mean port?"),
        ("[handler.'/x']", &["--strict-handlers"], 3, "a handler or alias is broken, see above"),
        ("server_host = 'unix:/nowhere/s'", &[], 4, "cannot listen on unix:/nowhere/s: No such file"),
        ("server_host = 'no.such.host.invalid'", &[], 4, "cannot listen on no.such.host.invalid:8080: "),
    ] {
        let (code, out, error) = test(text, args);
        assert_eq!((code, out.as_str()), (status, ""), "{error}");
        assert!(error.contains(&format!("wshd: {expected}")), "{error}");
    }
    // A single handler gets its settings from the configuration.
    let object = object.to_str().unwrap();
    assert_eq!(ran(&dir, &["check", object]).0, 6);
    file(&dir, "[handler.'/room'.settings]\nroom = 'a'\n");
    let (status, out, _) = ran(&dir, &["check", "DIR", "-f", "DIR/wshd.conf", "-w", "DIR"]);
    assert_eq!((status, out.lines().next()), (0, Some("DIR/room_wsh.so: ok")), "{out}");
}

/// Whether the memory of a process contains these bytes.
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
