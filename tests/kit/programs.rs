//! Conversations in test programs of one's own, and crashes that are replayed.

use std::path::Path;
use std::process::Command;

use super::daemon::{Dir, ECHO, output_of, wshd};
use super::ends;

const PROGRAM: &str = r#"
    #include <ws_handler_test.h>
    int main(int argc, char **argv)
    {
        const char *const options[] = {"max_message=1K", NULL};
        char said[4096], little[8];
        if (argc != 2 || ws_test(argv[1], "> hello\n< hello\n", said, sizeof said) != WS_TEST_PASSED)
            return fputs(said, stderr), 1;
        if (ws_test(argv[1], "> hello\n< goodbye\n", said, sizeof said) != WS_TEST_FAILED)
            return 2;
        if (strstr(said, "-:2: failed\n    expected  text \"goodbye\"\n    got       text \"hello\"\n") == NULL)
            return fputs(said, stderr), 3;
        if (ws_test(argv[1], "hello\n", little, sizeof little) != WS_TEST_ERROR || strlen(little) != 7)
            return 4;
        if (ws_test_with(argv[1], ">! large 2K\n< x\n", options, said, sizeof said) != WS_TEST_FAILED
            || strstr(said, "got       close 1009") == NULL)
            return fputs(said, stderr), 5;
        setenv("WSHD", "/nowhere/wshd", 1);
        if (ws_test(argv[1], "> a\n", said, sizeof said) != WS_TEST_ERROR || strstr(said, "say where it is in WSHD") == NULL)
            return fputs(said, stderr), 6;
        return 0;
    }
"#;

#[test]
fn programs_in_c_and_cpp_hold_conversations() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    for (compiler, standard, file) in [("cc", "-std=c99", "program.c"), ("c++", "-std=c++11", "program.cc")] {
        let (source, program) = (dir.path().join(file), dir.path().join("program"));
        std::fs::write(&source, PROGRAM).unwrap();
        let mut compile = Command::new(compiler);
        compile.args([
            standard,
            "-D_POSIX_C_SOURCE=200809L",
            "-Wall",
            "-Wextra",
            "-pedantic",
            "-Werror",
            "-I",
        ]);
        ends(&output_of(compile.arg(&include).arg(&source).arg("-o").arg(&program)).unwrap(), 0, "");
        let mut run = Command::new(&program);
        run.arg(dir.path().join("echo_wsh.so")).env("WSHD", env!("CARGO_BIN_EXE_wshd"));
        ends(&output_of(&mut run).unwrap(), 0, "");
    }
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
    ends(&replay(), 3, "replay.test: it exists and is left as it is");
    std::fs::write(dir.path().join("record.json"), "{}").unwrap();
    ends(&replay(), 3, "record.json: expected a recording or a crash record");
}
