//! The mistakes of `ctests/samples`, each found by the tool that ws_handler(3) names for it, in these words.

use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use super::daemon::{Dir, ECHO, output_of, wshd};
use super::ends;

/// What finds a mistake.
#[derive(Clone, Copy)]
enum Tool {
    /// `wshd check`, with these options.
    Check(&'static [&'static str]),
    /// `wshd test` with this script.
    Test(&'static str),
}

const SAMPLES: [(&str, Tool, &str); 10] = [
    ("use_after_close", Tool::Check(&["--faults"]), "ws_send() was called after on_close of the connection"),
    (
        "double_close",
        Tool::Test(">! binary 00\n<! close 1003 text only\n"),
        "ws_close() was called after ws_close() or ws_abort() of the connection",
    ),
    (
        "wrong_thread",
        Tool::Test("> a\n= log outside of callbacks\n"),
        "was called outside of callbacks; it may be called only in a callback of this connection",
    ),
    (
        "oversize_send",
        Tool::Test(">! large 126\n= log ws_ping\n"),
        "ws_ping() of 126 bytes returned WS_E_INVALID",
    ),
    ("past_message", Tool::Test("> a;b\n< a\n> ab\n< ab\n"), "past the end of a message"),
    ("blocking_call", Tool::Check(&[]), "calls usleep(), which may wait"),
    ("leak", Tool::Check(&["--faults"]), "each connection leaves about"),
    (
        "forgotten_return",
        Tool::Test("<! status 403\n"),
        "returned WS_OK after ws_reject() or ws_abort_handshake(); rejected",
    ),
    ("kept_message", Tool::Test("> a\n> b\n< a\n"), "a message whose callback has returned"),
    ("shared_static", Tool::Check(&[]), "with every other handler that has it (STB_GNU_UNIQUE)"),
];

/// Compiles a sample.
fn compile(dir: &Path, name: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = |kind| root.join(format!("ctests/samples/{name}_wsh.{kind}"));
    let is_c = source("c").exists();
    // Without -fvisibility=hidden, which would hide the mistake of the one in C++.
    let mut compiler = Command::new(if is_c { "cc" } else { "c++" });
    compiler.args(["-shared", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror", "-I"]);
    compiler.arg(root.join("include")).arg(source(if is_c { "c" } else { "cc" }));
    ends(&output_of(compiler.arg("-o").arg(dir.join(format!("{name}_wsh.so")))).unwrap(), 0, "");
}

fn find(dir: &Path, name: &str, tool: Tool) -> Output {
    let object = format!("{name}_wsh.so");
    let mut command = wshd();
    match tool {
        Tool::Check(options) => command.args(["check", "--strict"]).args(options).arg(object),
        Tool::Test(script) => {
            let file = format!("{name}.test");
            std::fs::write(dir.join(&file), script).unwrap();
            command.args(["test", "--timeout", "2s"]).args([object, file])
        }
    };
    output_of(command.current_dir(dir)).unwrap()
}

#[test]
fn every_mistake_of_the_samples_is_found_and_named() {
    let manual = include_str!("../../man/ws_handler.3");
    let dir = Dir::new();
    thread::scope(|scope| {
        for (name, tool, said) in SAMPLES {
            assert!(
                manual.contains(&format!(".It {}", name.replace('_', " "))),
                "ws_handler(3) without {name}"
            );
            assert!(manual.contains(said), "ws_handler(3) does not say {said:?}");
            let dir = dir.path();
            scope.spawn(move || {
                compile(dir, name);
                let output = find(dir, name, tool);
                let out = String::from_utf8_lossy(&output.stdout);
                assert!(out.contains(said), "{name}: {out}\n{}", String::from_utf8_lossy(&output.stderr));
                if let Tool::Check(_) = tool {
                    assert_eq!(output.status.code(), Some(6), "{name}: {out}");
                }
            });
        }
    });
    let samples = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("ctests/samples")).unwrap();
    assert_eq!(samples.count(), SAMPLES.len());
}

#[test]
fn a_sound_handler_stands_all_faults() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let output =
        output_of(wshd().args(["check", "--strict", "--faults", "echo_wsh.so"]).current_dir(dir.path()));
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn faults_end_the_worker_of_a_handler_that_looks_at_no_result() {
    let dir = Dir::new();
    let source = r#"
        #include <stdlib.h>
        #include <ws_handler.h>
        static void later(ws_conn conn, void *arg)
        {
            (void)conn, (void)arg;
        }
        static int32_t on_open(ws_conn conn)
        {
            ws_bytes greeting = ws_config("greeting");
            if (ws_set_timer(conn, 10, later, NULL) < 0)
                abort();
            return greeting.size > 99 ? WS_E_FAILED : WS_OK;
        }
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            (void)conn, (void)msg;
        }
        WS_HANDLER(.name = "rash", .on_open = on_open, .on_message = on_message);
    "#;
    dir.handler("rash", source);
    let output =
        output_of(wshd().args(["check", "--json", "--faults", "rash_wsh.so"]).current_dir(dir.path()));
    let output = output.unwrap();
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = result[0]["findings"].as_array().unwrap();
    let found = |level: &str, rule: &str, said: &str| {
        findings.iter().any(|finding| {
            finding["level"] == level
                && finding["rule"] == rule
                && finding["message"].as_str().unwrap().contains(said)
        })
    };
    assert!(found("fault", "host-calls", "its worker crashed: SIGABRT in on_open of rash"), "{result}");
    assert!(found("note", "settings", "ws_config(\"greeting\"): no such setting is configured"), "{result}");
    assert_eq!(output.status.code(), Some(6));
}
