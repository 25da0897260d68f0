//! Memory checkers, used as in ws_handler(3).

use std::process::Command;
use std::time::Duration;

use super::client::{ask, connect};
use super::daemon::{Dir, ECHO, Server, output_of, output_within, wshd};
use super::ends;

/// These tools slow the program down many times.
const TIMEOUT: Duration = Duration::from_secs(120);

/// An echo with an error.
fn careless(mistake: &str) -> String {
    let source = ECHO.replace("ws_send(", &format!("{mistake}\nws_send("));
    source.replace("#include", "#include <stdlib.h>\n#include")
}

/// Reads uninitialised memory.
const UNWRITTEN: &str = "char *copy = malloc(msg->size);\nif (copy[0] == 'x')\nws_abort(conn);\nfree(copy);";

#[test]
#[ignore = "needs valgrind"]
fn a_conversation_runs_under_valgrind() {
    let dir = Dir::new();
    dir.handler("x", &careless(UNWRITTEN));
    std::fs::write(dir.path().join("x.test"), "> hello\n< hello\n").unwrap();
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["-q", "--error-exitcode=99", env!("CARGO_BIN_EXE_wshd"), "test", "--no-fork"]);
    valgrind.args(["x_wsh.so", "x.test"]).current_dir(dir.path());
    let output = output_within(TIMEOUT, &mut valgrind).unwrap();
    ends(&output, 99, "on_message");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("x.test: passed"), "{said}");
}

#[test]
#[ignore = "needs valgrind"]
fn a_server_runs_under_valgrind() {
    let dir = Dir::new();
    dir.handler("sound", ECHO);
    dir.handler("x", &careless(UNWRITTEN));
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["-q", "--trace-children=yes", "--error-exitcode=99", env!("CARGO_BIN_EXE_wshd")]);
    valgrind.args(["--port", "0", "--workers", "1", "--websock-handlers"]).arg(dir.path());
    let log = dir.path().join("log");
    valgrind.arg("--log-file").arg(&log).stderr(std::fs::File::create(log.with_file_name("stderr")).unwrap());
    let mut server = Server::launch(valgrind, log).when_ready();
    assert_eq!(ask(&mut connect(&server.address(), "/sound"), "hello"), "hello");
    assert!(!server.log().contains("=="), "{}", server.log());
    assert_eq!(ask(&mut connect(&server.address(), "/x"), "hello"), "hello");
    server.says("on_message (");
    server.stop();
}

/// A sanitizer of the compiler.
struct Sanitizer {
    flags: &'static str,
    /// A library that has to be loaded before all others.
    preload: Option<&'static str>,
    /// The error occurs with a message of 5 bytes, not with one of 3.
    mistake: &'static str,
    finding: &'static str,
    /// The same for a server, where process titles hide the options of the second one.
    in_server: (&'static str, &'static str),
}

const SANITIZERS: [Sanitizer; 2] = [
    Sanitizer {
        flags: "-fsanitize=address",
        preload: Some("libasan.so"),
        mistake: "static volatile char a[4];\na[msg->size] = 1;",
        finding: "AddressSanitizer: global-buffer-overflow",
        in_server: ("-fsanitize=address", "crashed: SIGABRT in on_message of echo"),
    },
    Sanitizer {
        flags: "-fsanitize=undefined -fno-sanitize-recover=undefined",
        preload: None,
        mistake: "volatile int32_t count = 2147483643;\ncount += (int32_t)msg->size;",
        finding: "runtime error: signed integer overflow: ",
        in_server: (
            "-fsanitize=undefined -fsanitize-undefined-trap-on-error",
            "crashed: SIGILL in on_message of echo",
        ),
    },
];

impl Sanitizer {
    /// The environment of a program that loads a handler compiled with it.
    fn set(&self, command: &mut Command) {
        command.env("UBSAN_OPTIONS", "abort_on_error=1");
        command.env("ASAN_OPTIONS", "abort_on_error=1:detect_leaks=0");
        if let Some(library) = self.preload {
            let path = output_of(Command::new("cc").arg(format!("-print-file-name={library}"))).unwrap();
            command.env("LD_PRELOAD", String::from_utf8(path.stdout).unwrap().trim());
        }
    }
}

#[test]
#[ignore = "needs the sanitizers of gcc"]
fn findings_of_sanitizers_in_a_conversation_are_crashes() {
    for sanitizer in SANITIZERS {
        let dir = Dir::new();
        std::fs::write(dir.path().join("x_wsh.c"), careless(sanitizer.mistake)).unwrap();
        std::fs::write(dir.path().join("x.test"), "> abc\n< abc\n> hello\n< hello\n").unwrap();
        let mut test = wshd();
        test.args(["test", "x_wsh.c", "x.test"]).current_dir(dir.path());
        sanitizer.set(test.env("CFLAGS", format!("-g {}", sanitizer.flags)));
        let output = output_within(TIMEOUT, &mut test).unwrap();
        ends(&output, 6, sanitizer.finding);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            said.contains("x.test:4: failed") && said.contains("crashed: SIGABRT in on_message of echo"),
            "{said}"
        );
    }
}

#[test]
#[ignore = "needs the sanitizers of gcc"]
fn findings_of_sanitizers_in_a_server_cost_one_connection() {
    for sanitizer in SANITIZERS {
        let dir = Dir::new();
        let source = dir.path().join("x_wsh.c");
        std::fs::write(&source, careless(sanitizer.mistake)).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-g", "-I", concat!(env!("CARGO_MANIFEST_DIR"), "/include")]);
        let (flags, finding) = sanitizer.in_server;
        compiler.args(flags.split(' ')).arg(&source).arg("-o").arg(dir.path().join("x_wsh.so"));
        ends(&output_of(&mut compiler).unwrap(), 0, "");
        let mut command = wshd();
        command.args(["--port", "0", "--workers", "1", "--websock-handlers"]).arg(dir.path());
        let log = dir.path().join("log");
        let stderr = std::fs::File::create(log.with_file_name("stderr")).unwrap();
        sanitizer.set(command.arg("--log-file").arg(&log).stderr(stderr));
        let mut server = Server::launch(command, log).when_ready();
        let mut other = connect(&server.address(), "/x");
        assert_eq!(ask(&mut other, "abc"), "abc");
        connect(&server.address(), "/x").send("hello".into()).unwrap();
        server.says(finding);
        assert_eq!(ask(&mut other, "abc"), "abc");
        server.stop();
    }
}
