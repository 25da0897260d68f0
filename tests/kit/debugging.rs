//! The tools that look at memory, as ws_handler(3) has them used.

use std::process::Command;
use std::time::Duration;

use super::daemon::{Dir, ECHO, output_of, output_within, wshd};
use super::ends;

/// These tools take many times as long as the program alone.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
#[ignore = "needs valgrind"]
fn a_conversation_is_held_under_valgrind() {
    let dir = Dir::new();
    let careless = ECHO.replace(
        "ws_send(",
        "char *copy = malloc(msg->size);\nif (copy[0] == 'x')\nws_abort(conn);\nfree(copy);\nws_send(",
    );
    dir.handler("x", &careless.replace("#include", "#include <stdlib.h>\n#include"));
    std::fs::write(dir.path().join("x.test"), "> hello\n< hello\n").unwrap();
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["-q", "--error-exitcode=99", env!("CARGO_BIN_EXE_wshd"), "test", "--no-fork"]);
    valgrind.args(["x_wsh.so", "x.test"]).current_dir(dir.path());
    let output = output_within(PATIENCE, &mut valgrind).unwrap();
    ends(&output, 99, "on_message");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("x.test: passed"), "{said}");
}

#[test]
#[ignore = "needs the AddressSanitizer of gcc"]
fn what_asan_finds_is_a_crash_like_others() {
    let dir = Dir::new();
    let source = ECHO.replace("ws_send(", "static volatile char a[4];\na[msg->size] = 1;\nws_send(");
    std::fs::write(dir.path().join("x_wsh.c"), source).unwrap();
    std::fs::write(dir.path().join("x.test"), "> abc\n< abc\n> hello\n< hello\n").unwrap();
    let library = output_of(Command::new("cc").arg("-print-file-name=libasan.so")).unwrap();
    let mut test = wshd();
    test.args(["test", "x_wsh.c", "x.test"]).current_dir(dir.path()).env("CFLAGS", "-g -fsanitize=address");
    test.env("LD_PRELOAD", String::from_utf8(library.stdout).unwrap().trim());
    test.env("ASAN_OPTIONS", "abort_on_error=1:detect_leaks=0");
    let output = output_within(PATIENCE, &mut test).unwrap();
    ends(&output, 6, "AddressSanitizer: global-buffer-overflow");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("x.test:4: failed") && said.contains("crashed: SIGABRT in on_message of echo"),
        "{said}"
    );
}
