//! The program from outside: exit codes, messages, `wshd check`, and the options compared with the manual page.
#![allow(clippy::unwrap_used)]

#[path = "common/server.rs"]
mod daemon;

use std::collections::BTreeSet;
use std::process::{Command, Output};

use daemon::{Dir, ECHO, output_of, run, wshd};

const MANUAL: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/man/wshd.8"));

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs the program and compares its exit code and standard error.
#[track_caller]
fn fails(args: &[&str], code: i32, expected: &[&str]) {
    let output = run(args);
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(expected.iter().all(|expected| stderr.contains(expected)), "{args:?}: {stderr}");
    assert!(stdout(&output).is_empty());
}

/// The long options of the program.
fn options() -> BTreeSet<String> {
    let mut command = wshd::cli::command();
    command.build();
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown.filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
}

#[test]
fn help_lists_every_option_and_succeeds() {
    for flag in ["--help", "-h"] {
        let output = run(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        let help = stdout(&output);
        for option in options() {
            assert!(help.contains(&format!("--{option}")), "{option} is missing in:\n{help}");
        }
        assert!(help.contains("check") && help.contains("[127.0.0.1]"), "{help}");
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn the_version() {
    let output = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), format!("wshd {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn usage_errors_name_option_value_and_expectation() {
    fails(&["--prot", "1"], 2, &["--prot", "--port"]);
    fails(&["--max-message", "16Q"], 2, &["--max-message", "16Q", "expected a size"]);
    fails(&["--idle_timeout", "30"], 2, &["--idle-timeout", "30", "expected a time"]);
    fails(&["--log-level", "loud"], 2, &["--log-level", "loud", "critical"]);
    fails(&["-osend_high=1K", "-osend_low=2K"], 2, &["-o send_low: 2048", "-o send_high 1024"]);
}

#[test]
fn configuration_errors() {
    let dir = Dir::new();
    let path = dir.path().to_str().unwrap();
    fails(&["-w", "/nowhere/at/all"], 3, &["handler directory /nowhere/at/all: No such file"]);
    fails(&["-w", path, "-d", "/nowhere"], 3, &["--document-root /nowhere: expected a directory"]);
    fails(&["-w", path, "-p", "0", "-m", "/nowhere"], 3, &["map file /nowhere: No such file"]);
    fails(&["-w", path, "-p", "0", "-s", "/"], 3, &["scan directory /: expected a directory below"]);
    fails(&["-w", path, "-l", "/nowhere/log"], 3, &["--log-file /nowhere/log: No such file"]);
    let map = dir.path().join("map");
    std::fs::write(&map, "# aliases\n/a\n").unwrap();
    fails(&["-w", path, "-p", "0", "-m", map.to_str().unwrap()], 3, &["map: line 2: got \"/a\", expected"]);
}

#[test]
fn a_broken_handler_is_an_error_with_strict_handlers() {
    let dir = Dir::new();
    dir.handler("good", ECHO);
    std::fs::write(dir.path().join("bad_wsh.so"), "text").unwrap();
    let path = dir.path().to_str().unwrap();
    let expected = ["bad_wsh.so: not a shared object", "/bad is not served", "a handler or alias is broken"];
    fails(&["-w", path, "-p", "0", "--strict-handlers"], 3, &expected);
    std::fs::remove_file(dir.path().join("bad_wsh.so")).unwrap();
    std::fs::write(dir.path().join("map"), "/x /bad\n").unwrap();
    let map = dir.path().join("map");
    let args = ["-w", path, "-p", "0", "--strict_handlers", "-m", map.to_str().unwrap()];
    fails(&args, 3, &["map: line 1: /x is not served: no handler serves /bad"]);
}

#[test]
fn an_address_in_use() {
    let dir = Dir::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let expected = format!("cannot listen on 127.0.0.1:{port}: Address already in use");
    fails(&["-w", dir.path().to_str().unwrap(), "-p", &port], 4, &[&expected]);
}

#[test]
fn check_describes_a_handler() {
    let dir = Dir::new();
    let source = r#"
        #include <stdio.h>
        #include <ws_handler.h>
        __attribute__((constructor)) static void at_load(void) { puts("noise"); fflush(stdout); }
        static int32_t transfer_data(ws_conn conn) { (void)conn; return WS_OK; }
        WS_HANDLER(.name = "chat", .version = "1.2", .protocols = "b,a", .flags = WS_RESUMABLE,
                   .transfer_data = transfer_data);
    "#;
    let good = dir.handler("chat", source);
    let output = run(&["check", good.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let expected = format!(
        "{}: ok\n    name       chat\n    version    1.2\n    abi        1.0\n    style      blocking\n    \
         flags      WS_RESUMABLE\n    protocols  b, a\n",
        good.display()
    );
    assert_eq!(stdout(&output), expected);
}

#[test]
fn check_reports_faults_and_continues() {
    let dir = Dir::new();
    let bad = dir.handler("bad", "int x;");
    let good = dir.handler("good", ECHO);
    let other = dir.path().join("good.so");
    std::fs::copy(&good, &other).unwrap();
    let output = output_of(wshd().arg("check").args([&bad, &good, &other])).unwrap();
    assert_eq!(output.status.code(), Some(6));
    let text = stdout(&output);
    assert!(text.contains("bad_wsh.so: exports no ws_handler_entry_v1"), "{text}");
    assert!(text.contains("good_wsh.so: ok\n    name       echo\n    version    none\n"), "{text}");
    assert!(text.contains("note       its name does not end in _wsh.so"), "{text}");
}

#[test]
fn the_manual_names_the_same_options() {
    let mut in_manual = BTreeSet::new();
    let section = MANUAL.split(".Sh OPTIONS").nth(1).unwrap().split("\n.Sh ").next().unwrap();
    for line in section.lines().filter(|line| line.starts_with(".It Fl ")) {
        let words: Vec<&str> = line.split(' ').collect();
        // mdoc: "Fl" prints one dash, so a long option is "Fl -name".
        in_manual.extend(words.iter().filter_map(|word| word.strip_prefix('-')).map(str::to_owned));
    }
    assert_eq!(options(), in_manual);
}

#[test]
fn the_manual_lists_the_exit_codes() {
    let status = MANUAL.split(".Sh EXIT STATUS").nth(1).unwrap().split("\n.Sh ").next().unwrap();
    let codes: Vec<i32> = status.lines().filter_map(|line| line.strip_prefix(".It ")?.parse().ok()).collect();
    use wshd::exit::Exit;
    let all = [
        Exit::Ok,
        Exit::Internal,
        Exit::Usage,
        Exit::Config,
        Exit::Bind,
        Exit::Start,
        Exit::Check,
        Exit::Killed,
        Exit::Unreachable,
        Exit::Refused,
    ];
    assert_eq!(codes, all.map(Exit::code));
}

#[test]
fn the_manual_is_clean() {
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/man/wshd.8");
    let Ok(output) = Command::new("mandoc").args(["-Tlint", "-Wwarning", manual]).output() else {
        return; // not installed here; .ci/run installs it
    };
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}
