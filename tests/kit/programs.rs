//! Conversations in other test programs, and replays of crashes.

use std::path::Path;
use std::process::Command;

use super::daemon::{Dir, ECHO, output_of, wshd};
use super::ends;

/// A test program with checks like those of common test frameworks.
const PROGRAM: &str = r#"
    #include <ws_handler_test.h>
    #define CHECK(condition) \
        do { if (!(condition)) { fprintf(stderr, "%s:%d: %s\n%s", __FILE__, __LINE__, #condition, said); exit(1); } } while (0)
    int main(int argc, char **argv)
    {
        const char *const options[] = {"max_message=1K", NULL};
        char said[4096] = "", little[8];
        CHECK(argc == 2);
        CHECK(ws_test(argv[1], "> hello\n< hello\n", said, sizeof said) == WS_TEST_PASSED);
        CHECK(ws_test(argv[1], "> hello\n< goodbye\n", said, sizeof said) == WS_TEST_FAILED);
        CHECK(strstr(said, "-:2: failed\n    expected  text \"goodbye\"\n    got       text \"hello\"\n") != NULL);
        CHECK(ws_test(argv[1], "hello\n", little, sizeof little) == WS_TEST_ERROR && strlen(little) == 7);
        CHECK(ws_test_with(argv[1], ">! large 2K\n< x\n", options, said, sizeof said) == WS_TEST_FAILED);
        CHECK(strstr(said, "got       close 1009") != NULL);
        setenv("WSHD", "/nowhere/wshd", 1);
        CHECK(ws_test(argv[1], "> a\n", said, sizeof said) == WS_TEST_ERROR);
        CHECK(strstr(said, "set WSHD to its path") != NULL);
        return 0;
    }
"#;

/// A project with the installed headers.
const MAKEFILE: &str = "\
CPPFLAGS = -D_POSIX_C_SOURCE=200809L -I $(PREFIX)/include
CFLAGS = -std=c99 -Wall -Wextra -pedantic -Werror
CXXFLAGS = -std=c++11 -Wall -Wextra -pedantic -Werror

check: echo_wsh.so test_c test_cc
\t./test_c ./echo_wsh.so
\t./test_cc ./echo_wsh.so
echo_wsh.so: echo_wsh.c
\t$(CC) $(CPPFLAGS) -shared -fPIC -o $@ $<
";

#[test]
fn test_programs_in_c_and_cpp_run_conversations() {
    let dir = Dir::new();
    let include = dir.path().join("prefix/include");
    std::fs::create_dir_all(&include).unwrap();
    for header in ["ws_handler.h", "ws_handler_test.h"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("include").join(header);
        std::fs::copy(from, include.join(header)).unwrap();
    }
    let files =
        [("Makefile", MAKEFILE), ("echo_wsh.c", ECHO), ("test_c.c", PROGRAM), ("test_cc.cc", PROGRAM)];
    for (file, text) in files {
        std::fs::write(dir.path().join(file), text).unwrap();
    }
    let mut make = Command::new("make");
    make.args(["-j2", "check", "PREFIX=prefix"]).current_dir(dir.path()).env_remove("MAKEFLAGS");
    ends(&output_of(make.env("WSHD", env!("CARGO_BIN_EXE_wshd"))).unwrap(), 0, "");
}

#[test]
fn a_crash_record_is_replayed() {
    let dir = Dir::new();
    let source = r#"
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            if (memchr(msg->data, '\n', msg->size) != NULL && ws_bytes_equal(ws_query(conn), "a=1"))
                *(volatile char *)16 = 0;
            ws_send(conn, msg->type, msg->data, msg->size);
        }
        WS_HANDLER(.name = "fragile", .on_message = on_message);
    "#;
    dir.handler("fragile", source);
    // As tests/crash_records.rs sees servers write them.
    let record = r#"{"time": "2026-11-27T03:11:09.002Z", "handler":
        {"name": "fragile", "file": "fragile_wsh.so", "callback": "on_message"}, "request":
        {"resource": "/fragile?a=1", "origin": null, "subprotocol": null}, "message":
        {"type": "text", "size": 3, "bytes": "YQpi", "complete": true}}"#;
    std::fs::write(dir.path().join("record.json"), record).unwrap();
    let replay = || output_of(wshd().args(["replay", "record.json"]).current_dir(dir.path())).unwrap();
    for _ in 0..2 {
        let output = replay();
        ends(&output, 6, "");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("crashed: SIGSEGV at address 0x10 in on_message of fragile"), "{said}");
        assert!(
            said.contains("gdb --args ")
                && said.ends_with(" test --no-fork --resource /fragile fragile_wsh.so replay.test\n"),
            "{said}"
        );
    }
    std::fs::write(dir.path().join("replay.test"), "> mine\n").unwrap();
    ends(&replay(), 3, "replay.test: it exists: choose another with --script");
    std::fs::write(dir.path().join("record.json"), "{}").unwrap();
    ends(&replay(), 3, "record.json: expected a recording or a crash record");
}
